"""A job keeps its run only where every node of the cluster sees it, and looks for models where a submitted job can find some."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from workflows import record
from workflows.batch import refuse_lost_output
from workflows.batch_config import PromoteConfig
from workflows.checks import ConfigError
from workflows.cluster import connected
from workflows.nodes import nodes_without
from workflows.promote_job import promote
from workflows.record import refuse_local_checkpoints
from workflows.runs import Run


@pytest.fixture
def submitted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps({}))


def looked_for(monkeypatch: pytest.MonkeyPatch, without: list[str]) -> list[Path]:
    """Makes the named nodes see nothing; returns what was looked for, which must be there then."""
    looks: list[Path] = []

    def look(path: str) -> list[str]:
        assert Path(path).is_file()
        looks.append(Path(path))
        return without

    monkeypatch.setattr(record, "nodes_without", look)
    return looks


@pytest.mark.usefixtures("submitted")
def test_a_folder_of_one_node_is_refused_and_the_nodes_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = looked_for(monkeypatch, ["10.0.0.7"])
    with pytest.raises(ConfigError, match=r"run\.storage_path: .*not the same folder on every node .*10\.0\.0\.7"):
        refuse_local_checkpoints(Run.open(str(tmp_path / "runs"), "one", {}))
    assert looks
    assert not list((tmp_path / "runs" / "one").iterdir())


@pytest.mark.usefixtures("submitted")
@pytest.mark.parametrize("scheme", ["", "file://"])
def test_a_folder_that_every_node_mounts_will_do(scheme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = looked_for(monkeypatch, [])
    refuse_local_checkpoints(Run.open(f"{scheme}{tmp_path}/runs", "one", {}))
    assert len(looks) == 1


def test_a_job_beside_a_cluster_is_asked_where_that_has_several_nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = looked_for(monkeypatch, ["10.0.0.7"])
    monkeypatch.setattr(record, "alive_nodes", lambda: [{}])
    refuse_local_checkpoints(Run.open(str(tmp_path), "one", {}))
    assert not looks
    monkeypatch.setattr(record, "alive_nodes", lambda: [{}, {}])
    with pytest.raises(ConfigError, match=r"10\.0\.0\.7"):
        refuse_local_checkpoints(Run.open(str(tmp_path), "one", {}))


def test_nodes_are_asked_what_they_see(ray_address: str, tmp_path: Path) -> None:
    (tmp_path / "here").touch()
    with connected(ray_address):
        assert nodes_without(str(tmp_path / "here")) == []
        assert len(nodes_without(str(tmp_path / "elsewhere"))) == 1


@pytest.mark.usefixtures("submitted")
@pytest.mark.parametrize("model", ["models:/customers@champion", "runs:/0123456789abcdef/model"])
def test_a_submitted_job_is_told_to_name_the_registry_of_its_model(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(ConfigError, match=r"registry\.tracking_uri .*name the tracking server"):
        refuse_lost_output(str(tmp_path / "out"), model, None)
    refuse_lost_output(str(tmp_path / "out"), model, "http://127.0.0.1:5000")
    refuse_lost_output(str(tmp_path / "out"), str(tmp_path / "bundle"), None)


@pytest.mark.usefixtures("submitted")
def test_so_is_a_submitted_promotion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"registry\.tracking_uri .*name the tracking server"):
        promote(PromoteConfig("customers", version=1))
    assert not list(tmp_path.iterdir())
