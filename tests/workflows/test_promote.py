"""Moving champion and previous in a real MLflow store; versions are bundles that nobody trained."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import mlflow
import pytest

from tests.running import job_environment, run_job
from vae import VAE, BundleError, save_bundle
from workflows.batch_config import BatchRegistryConfig, PromoteConfig
from workflows.checks import ConfigError
from workflows.errors import ServiceError
from workflows.pinned import pin
from workflows.promote_job import promote
from workflows.registry import CHAMPION_CHANGE, Registry

FIELDS: list[dict[str, Any]] = [{"name": "x", "likelihood": "gaussian", "valid_size": 1, "size": 1}]


class Store(NamedTuple):
    """An MLflow store in a folder with three versions of the model `tiny`."""

    folder: Path
    client: mlflow.MlflowClient

    @property
    def uri(self) -> str:
        return f"sqlite:///{self.folder / 'mlflow.db'}"

    def promote(self, **options: Any) -> dict[str, Any]:
        config = PromoteConfig("tiny", registry=BatchRegistryConfig(self.uri), **options)
        config.check()
        return promote(config)

    def aliases(self) -> dict[str, str]:
        return {alias: str(version) for alias, version in self.client.get_registered_model("tiny").aliases.items()}

    def noted(self) -> dict[str, str]:
        noted: dict[str, str] = json.loads(self.client.get_registered_model("tiny").tags[CHAMPION_CHANGE])
        return noted

    def bundle(self, version: int) -> Path:
        return self.folder / f"model-{version}" / "artifacts" / "bundle"


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder = tmp_path_factory.mktemp("store")
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    mlflow.set_tracking_uri(uri)
    return Store(folder, mlflow.MlflowClient(uri))


@pytest.fixture
def store(empty_store: Store) -> Store:
    """The store with the model registered anew; making a new database takes seconds, this does not."""
    client = empty_store.client
    if client.search_registered_models("name = 'tiny'"):
        client.delete_registered_model("tiny")
    client.create_registered_model("tiny")
    for version in (1, 2, 3):
        sha256 = save_bundle(empty_store.bundle(version), VAE(FIELDS, version, hidden_dims=[2]), {"columns": [], "key": None})
        source = (empty_store.folder / f"model-{version}").as_uri()
        client.create_model_version("tiny", source, tags={"bundle_sha256": sha256})
    return empty_store


def test_the_version_promoted_is_champion_and_the_one_before_is_previous(store: Store) -> None:
    first = store.promote(version=1)
    assert first == {"job": "promote", "model_name": "tiny", "champion_version": "1", "previous_version": None, "changed": True}
    second = store.promote(version=3)
    assert (second["champion_version"], second["previous_version"], second["changed"]) == ("3", "1", True)
    assert store.aliases() == {"champion": "3", "previous": "1"}
    assert Registry(store.uri).pin("models:/tiny@champion").version == "3"


def test_the_alias_candidate_stays_where_it_is(store: Store) -> None:
    store.client.set_registered_model_alias("tiny", "candidate", "2")
    store.promote(version=2)
    store.promote(version=3)
    assert store.aliases() == {"candidate": "2", "champion": "3", "previous": "2"}


def test_who_when_why_and_from_which_version_are_tags_of_version_and_model(store: Store) -> None:
    store.promote(version=1)
    store.promote(version=2, why="passed the gates; naïve bound +0.3", by="ana")
    tags = store.client.get_model_version("tiny", "2").tags
    assert {"champion_by": "ana", "champion_why": "passed the gates; naïve bound +0.3", "champion_from": "1"}.items() <= tags.items()
    assert datetime.now(UTC) - datetime.fromisoformat(tags["champion_at"]) < timedelta(minutes=5)
    assert store.noted() == {key: tags[f"champion_{key}"] for key in ("from", "to", "how", "by", "at", "why")}
    assert (store.noted()["to"], store.noted()["how"]) == ("2", "promotion")
    before = store.client.get_model_version("tiny", "1").tags
    assert before["champion_from"] == ""
    user, _, host = before["champion_by"].partition("@")
    assert user
    assert host


def test_promoting_the_champion_does_nothing(store: Store) -> None:
    store.promote(version=1)
    store.promote(version=2, why="first")
    again = store.promote(version=2, why="second")
    assert (again["champion_version"], again["previous_version"], again["changed"]) == ("2", "1", False)
    assert store.noted()["why"] == "first"


def test_a_rollback_swaps_and_a_second_one_undoes_it(store: Store) -> None:
    store.promote(version=1)
    store.promote(version=2)
    back = store.promote(rollback=True, why="embeddings drift")
    assert (back["champion_version"], back["previous_version"]) == ("1", "2")
    assert (store.noted()["how"], store.noted()["from"], store.noted()["why"]) == ("rollback", "2", "embeddings drift")
    store.promote(rollback=True)
    assert store.aliases() == {"champion": "2", "previous": "1"}


@contextmanager
def cut_off_at(store: Store, alias: str) -> Iterator[None]:
    """Makes the database refuse to write an alias while open."""
    with sqlite3.connect(store.folder / "mlflow.db") as database:
        for event in ("INSERT", "UPDATE"):
            refuse = f"WHEN NEW.alias = '{alias}' BEGIN SELECT RAISE(ABORT, 'cut off'); END"
            database.execute(f"CREATE TRIGGER cut_{event} BEFORE {event} ON registered_model_aliases {refuse}")
    try:
        yield
    finally:
        with sqlite3.connect(store.folder / "mlflow.db") as database:
            for event in ("INSERT", "UPDATE"):
                database.execute(f"DROP TRIGGER cut_{event}")


@pytest.mark.parametrize(("options", "to"), [({"version": 3}, "3"), ({"rollback": True}, "1")], ids=["promotion", "rollback"])
@pytest.mark.parametrize(("at", "left"), [("previous", "1"), ("champion", "2")])
def test_cut_off_between_its_writes_it_is_finished_by_the_same_command(
    store: Store, options: dict[str, Any], to: str, at: str, left: str
) -> None:
    store.promote(version=1)
    store.promote(version=2)
    with cut_off_at(store, at), pytest.raises(ServiceError, match="cut off"):
        store.promote(**options)
    assert store.aliases() == {"champion": "2", "previous": left}
    store.promote(**options)
    assert store.aliases() == {"champion": to, "previous": "2"}


def test_a_rollback_after_a_promotion_that_was_cut_off_is_refused(store: Store) -> None:
    store.promote(version=1)
    store.promote(version=2)
    with cut_off_at(store, "champion"), pytest.raises(ServiceError):
        store.promote(version=3)
    with pytest.raises(BundleError, match=r"cut off: champion is version 2, versions are 1, 2, 3; name one by --version"):
        store.promote(rollback=True)


def test_a_version_that_is_not_there_is_refused_with_those_that_are(store: Store) -> None:
    with pytest.raises(BundleError, match=r"tiny has no version 9; its versions are 1, 2, 3"):
        store.promote(version=9)
    assert store.aliases() == {}


def test_a_rollback_without_a_previous_version_is_refused(store: Store) -> None:
    with pytest.raises(BundleError, match=r"no alias champion.*versions are 1, 2, 3"):
        store.promote(rollback=True)
    store.promote(version=2)
    with pytest.raises(BundleError, match=r"no alias previous.*champion is version 2"):
        store.promote(rollback=True)
    assert store.aliases() == {"champion": "2"}


def test_a_model_that_is_not_there_is_refused_with_those_that_are(store: Store) -> None:
    with pytest.raises(BundleError, match=r"no model 'other' in the registry at .*; it has tiny"):
        promote(PromoteConfig("other", 1, registry=BatchRegistryConfig(store.uri)))


def test_a_registry_that_is_not_there_is_said_and_not_made(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'typo' / 'mlflow.db'}"
    with pytest.raises(BundleError, match=r"mlflow\.db, which is not there; name another by registry.tracking_uri"):
        promote(PromoteConfig("other", 1, registry=BatchRegistryConfig(uri)))
    with pytest.raises(BundleError, match="which is not there"):
        pin("models:/other/1", uri)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["weights.safetensors", "manifest.json", "table.json"])
def test_a_version_whose_files_were_changed_does_not_become_champion(store: Store, name: str) -> None:
    store.promote(version=1)
    path = store.bundle(2) / name
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(BundleError, match="sha256"):
        store.promote(version=2)
    assert store.aliases() == {"champion": "1"}
    assert store.noted()["to"] == "1"


def test_a_bundle_that_was_replaced_whole_does_not_become_champion(store: Store) -> None:
    save_bundle(store.bundle(2), VAE(FIELDS, 7, hidden_dims=[2]), {"columns": [], "key": None})
    with pytest.raises(BundleError, match=r"registered was [0-9a-f]{64}"):
        store.promote(version=2)


@pytest.mark.parametrize("options", [{}, {"version": 1, "rollback": True}, {"version": 1, "why": "y" * 2001}])
def test_one_of_version_and_rollback_is_needed(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        PromoteConfig("tiny", **options).check()
    for name in ("models:/tiny", "", " "):
        with pytest.raises(ConfigError, match="without models:/"):
            PromoteConfig(name, 1).check()


def test_a_registry_that_does_not_answer_is_said() -> None:
    with pytest.raises(ServiceError, match=r"127\.0\.0\.1:9"):
        promote(PromoteConfig("tiny", 1, registry=BatchRegistryConfig("http://127.0.0.1:9")))


def test_the_command_line_prints_one_json_line_and_ends_with_its_codes(store: Store, tmp_path: Path) -> None:
    assert "MLFLOW_TRACKING_URI" not in job_environment()
    options = ("--model", "tiny", "--registry.tracking_uri", store.uri)
    done = run_job(tmp_path, "promote.py", *options, "--version", 2, "--why", "first light")
    assert done.json["champion_version"] == "2"
    assert len(done.stdout.splitlines()) == 1
    assert "champion is version 2" in done.stderr
    refused = run_job(tmp_path, "promote.py", *options, "--rollback", "true")
    assert refused.code == 76
    assert list(tmp_path.iterdir()) == []
