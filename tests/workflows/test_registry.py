"""MLflow's store as jobs open it: several at once, and those that cannot be."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.running import ROOT, free_port
from vae.bundle_files import BundleError
from workflows.batch import record_job
from workflows.batch_config import BatchRegistryConfig
from workflows.checks import ConfigError
from workflows.job import exit_code
from workflows.pinned import PinnedModel, pin
from workflows.registry import Registry

NUM_JOBS = 4
# MLflow imports this at its first use, which would keep the jobs apart.
OPEN = """
import sys
import mlflow.store.tracking.sqlalchemy_store
from workflows.registry import Registry
print("ready", flush=True)
sys.stdin.readline()
print(Registry(sys.argv[1]).open_experiment("vae"), flush=True)
"""


def test_jobs_that_start_together_make_one_new_store(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/new/mlflow.db"
    command = [sys.executable, "-c", OPEN, uri]
    jobs = [subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(NUM_JOBS)]
    for job in jobs:
        assert job.stdout
        assert job.stdout.readline() == "ready\n"
    for job in jobs:
        assert job.stdin
        job.stdin.write("go\n")
        job.stdin.flush()
    ids = {job.communicate(timeout=120)[0].strip() for job in jobs}
    assert [job.returncode for job in jobs] == [0] * NUM_JOBS
    assert ids == {Registry(uri).open_experiment("vae")}


def refused(uri: str) -> tuple[int, str]:
    with pytest.raises(Exception) as caught:  # noqa: PT011  its code and message are what is asserted
        Registry(uri)
    return exit_code(caught.value), str(caught.value)


def test_a_store_that_cannot_be_opened_is_refused_at_once(tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("no database, but a text of some length " * 100)
    code, message = refused(f"sqlite:///{file}")
    assert code == 69
    assert str(file) in message
    assert "not a database" in message
    code, message = refused(f"sqlite:///{file}/mlflow.db")
    assert code == 69
    assert f"{file}/mlflow.db cannot be opened" in message


def test_a_tracking_uri_of_no_known_kind_is_a_configuration_error() -> None:
    code, message = refused("nowhere:5000")
    assert code == 2
    assert message.startswith("registry.tracking_uri is 'nowhere:5000': ")


def test_a_deleted_experiment_is_refused_before_anything_is_computed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    registry = Registry(f"sqlite:///{tmp_path}/mlflow.db")
    registry.client.delete_experiment(registry.open_experiment("vae"))
    with pytest.raises(ConfigError, match=r"registry\.experiment is 'vae'.*restore it"):
        registry.open_experiment("vae")
    line = {"job": "encode", "model_name": "m", "model_version": "1", "output_path": "here"}
    record_job(BatchRegistryConfig(registry.uri), PinnedModel({}, "m", "1", None, ""), {}, line, {})
    assert "the job is done, but its MLflow run is not recorded: registry.experiment is 'vae'" in caplog.text


def test_a_run_that_mlflow_has_no_more_is_refused_and_one_that_is_out_of_reach_is_not(tmp_path: Path) -> None:
    registry = Registry(f"sqlite:///{tmp_path}/mlflow.db")
    run_id = registry.open_run(registry.open_experiment("vae"), "first", "key", {}, {})
    registry.refuse_lost_run(run_id)
    Registry(f"http://127.0.0.1:{free_port()}").refuse_lost_run(run_id)
    registry.client.delete_run(run_id)
    with pytest.raises(ConfigError, match=rf"registry\.tracking_uri is '{registry.uri}'.*run {run_id}, .* deleted"):
        registry.refuse_lost_run(run_id)
    with pytest.raises(ConfigError, match=rf"registry\.tracking_uri is 'sqlite:.*moved.*run {run_id}, .* never was"):
        Registry(f"sqlite:///{tmp_path}/moved.db").refuse_lost_run(run_id)


@pytest.mark.parametrize("reference", ["runs:/", "runs:/abc", "runs:/abc/", "models:/m", "models:/m/latest", f"models:/m/{10**22}"])
def test_what_is_no_reference_says_what_is_one(tmp_path: Path, reference: str) -> None:
    with pytest.raises(BundleError, match=r"not a model reference; give models:/NAME@ALIAS"):
        Registry(f"sqlite:///{tmp_path}/mlflow.db").pin(reference)


def test_a_models_folder_that_cannot_be_looked_into_is_said_with_its_path(tmp_path: Path) -> None:
    folder = tmp_path / ("o" * 300)  # more than a filesystem's 255 bytes
    with pytest.raises(BundleError, match=f"{folder}: cannot be read: .*File name too long"):
        pin(str(folder), None)
