"""The MLflow side: runs, metrics, model versions, aliases, signatures. Only this file and served_model.py import mlflow."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

# A server that does not answer is known within seconds, not after MLflow's default of four minutes a call.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
os.environ.setdefault("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")

import mlflow
import pandas as pd
from mlflow.data.dataset_source_registry import resolve_dataset_source
from mlflow.data.meta_dataset import MetaDataset
from mlflow.entities import Metric, Param
from mlflow.exceptions import MlflowException
from mlflow.models.signature import ModelSignature
from mlflow.tracking.registry import UnsupportedModelRegistryStoreURIException
from mlflow.types.schema import AnyType, ColSpec, DataType, ParamSchema, ParamSpec, Schema

from data.encoding import TableEncoding
from vae.bundle import MANIFEST, BundleError, read_bundle
from workflows.checks import ConfigError
from workflows.cluster import ROOT
from workflows.errors import ServiceError, TryAgain, logger
from workflows.lineage import pinned_requirements
from workflows.pinned import PinnedModel, default_tracking_uri, folder_model, without_password
from workflows.store_file import opening, sqlite_file

logging.getLogger("alembic").setLevel(logging.WARNING)
logging.getLogger("mlflow").setLevel(logging.WARNING)

MAX_PARAM_CHARS = 6000
CHAMPION_CHANGE = "champion_change"
MAX_VERSIONS = 100_000  # MLflow allows 200,000
# MLflow allows 1000; to find 1000 points again that are there already takes a busy server more than the 10 s above.
MAX_METRICS_PER_CALL = 250


@contextmanager
def service_errors(uri: str) -> Iterator[None]:
    """Turns MLflow's failures into ServiceError with the address, or ConfigError where the address is of no kind that it knows."""
    try:
        yield
    except UnsupportedModelRegistryStoreURIException as error:
        raise ConfigError(f"registry.tracking_uri is {without_password(uri)!r}: {str(error).strip()}") from error
    except MlflowException as error:
        raise ServiceError(f"MLflow at {without_password(uri)}: {error}") from error


class Registry:
    """One tracking store: its runs and its registered models."""

    def __init__(self, tracking_uri: str | None) -> None:
        self.uri = default_tracking_uri(tracking_uri)
        mlflow.set_tracking_uri(self.uri)
        with service_errors(self.uri), opening(sqlite_file(self.uri)):
            self.client = mlflow.MlflowClient(self.uri)

    def open_experiment(self, name: str) -> str:
        """Returns the experiment's id, made where it is new; proves that the store answers before any compute."""
        with service_errors(self.uri):
            file = sqlite_file(self.uri)
            artifacts = (file.parent / "mlartifacts").as_uri() if file else None
            try:
                found = self.client.get_experiment_by_name(name)
                return str(found.experiment_id if found else self.client.create_experiment(name, artifact_location=artifacts))
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":  # as it does where another job made it meanwhile
                    raise
                return str(self.client.get_experiment_by_name(name).experiment_id)

    def open_run(self, experiment_id: str, run_name: str, key: str, params: Mapping[str, Any], tags: Mapping[str, str]) -> str:
        """Returns the id of the run with that key among its tags, made where there is none, so that a retry makes no second one."""
        with service_errors(self.uri):
            found = self.client.search_runs([experiment_id], f"tags.run_key = '{key}'", max_results=1)
            run = found[0] if found else self.client.create_run(experiment_id, run_name=run_name, tags=dict(tags) | {"run_key": key})
            run_id = str(run.info.run_id)
            self.client.log_batch(run_id, params=[Param(name, str(value)[:MAX_PARAM_CHARS]) for name, value in params.items()])
        return run_id

    def log_input(self, run_id: str, path: str, digest: str, name: str) -> None:
        """Links the run to its training table: where it is and its fingerprint."""
        with warnings.catch_warnings():  # two of MLflow's own classes claim local paths; the first is right
            warnings.simplefilter("ignore", UserWarning)
            source = resolve_dataset_source(without_password(path))
        with service_errors(self.uri), run_open(run_id):
            mlflow.log_input(MetaDataset(source, name=name, digest=digest), context="training")

    def log_points(self, run_id: str, lines: Sequence[Mapping[str, Any]]) -> None:
        """Logs lines of a MetricsLog, each at its step and time; a line that is there already is no second point.

        Raises ServiceError; what came before it may have been logged.
        """
        points = [
            Metric(key, float(value), int(line["timestamp_ms"]), int(line["step"]))
            for line in lines
            for key, value in line["metrics"].items()
        ]
        with service_errors(self.uri):
            for start in range(0, len(points), MAX_METRICS_PER_CALL):
                self.client.log_batch(run_id, metrics=points[start : start + MAX_METRICS_PER_CALL])

    def log_files(self, run_id: str, folder: Path, artifact_path: str | None = None) -> None:
        with service_errors(self.uri):
            self.client.log_artifacts(run_id, str(folder), artifact_path)

    def fetch_files(self, run_id: str, artifact_path: str, folder: Path) -> None:
        """Copies a run's artifacts to folder/artifact_path."""
        with service_errors(self.uri):
            self.client.download_artifacts(run_id, artifact_path, str(folder))

    def epochs(self, run_id: str) -> list[dict[str, float]]:
        """Returns the bounds that a training run logged, epoch by epoch, as its checkpoints have them."""
        names = [f"{side}/{name}_nats_per_row" for side in ("train", "validation") for name in ("elbo", "kl")]
        found: dict[int, dict[str, float]] = {}
        with service_errors(self.uri):
            for name in names:
                for point in self.client.get_metric_history(run_id, name):
                    found.setdefault(point.step, {"epoch": float(point.step)})[name] = point.value
        return [found[epoch] for epoch in sorted(found)]

    def log_json(self, run_id: str, value: Any, artifact_file: str) -> None:
        with service_errors(self.uri):
            self.client.log_dict(run_id, value, artifact_file)

    @contextmanager
    def running(self, run_id: str) -> Iterator[None]:
        """Shows the run as running while open, and as failed or killed where an exception leaves; work does not wait for MLflow."""
        self.show_status(run_id, "RUNNING")
        try:
            yield
        except BaseException as error:
            self.show_status(run_id, "KILLED" if isinstance(error, KeyboardInterrupt | TryAgain) else "FAILED")
            raise

    def show_status(self, run_id: str, status: str) -> None:
        """Sets a run's status, as far as MLflow answers."""
        try:
            with service_errors(self.uri):
                self.client.update_run(run_id, status=status)
        except ServiceError as unreachable:
            logger.warning("that the run is %s did not reach MLflow: %s", status, unreachable)

    def log_job(
        self,
        experiment: str,
        name: str,
        options: Mapping[str, Any],
        tags: Mapping[str, str],
        metrics: Mapping[str, float],
        manifest: Mapping[str, Any],
        training_run_id: str | None,
        texts: Mapping[str, str],
    ) -> str:
        """Returns the id of a finished run that says what a batch job did. manifest, and texts by name: kept as its artifacts."""
        experiment_id = self.open_experiment(experiment)
        linked = dict(tags) | ({"training_run_id": training_run_id} if training_run_id else {})
        with service_errors(self.uri):
            run_id = str(self.client.create_run(experiment_id, run_name=name, tags=linked).info.run_id)
            now = int(time.time() * 1000)
            params = [Param(key, str(value)[:MAX_PARAM_CHARS]) for key, value in options.items()]
            self.client.log_batch(run_id, params=params)
            points = [Metric(key, value, now, 0) for key, value in metrics.items()]
            for start in range(0, len(points), MAX_METRICS_PER_CALL):
                self.client.log_batch(run_id, points[start : start + MAX_METRICS_PER_CALL])
            self.client.log_dict(run_id, dict(manifest), "manifest.json")
            for name, text in texts.items():
                self.client.log_text(run_id, text, name.lstrip("_"))
            self.client.set_terminated(run_id, "FINISHED")
        return run_id

    def end_run(self, run_id: str, status: str) -> None:
        with service_errors(self.uri):
            self.client.set_terminated(run_id, status)

    def register(
        self, run_id: str, model_name: str, bundle: Path, encoding: TableEncoding, example: pd.DataFrame, tags: Mapping[str, str]
    ) -> str:
        """Returns the run's model version, registered under alias `candidate`; a run has at most one version."""
        with service_errors(self.uri):
            known = self.client.search_model_versions(f"name = '{model_name}' and run_id = '{run_id}'")
            version = str(known[0].version) if known else self._log_and_register(run_id, model_name, bundle, encoding, example)
            for key, value in tags.items():
                self.client.set_model_version_tag(model_name, version, key, value)
            self.client.set_registered_model_alias(model_name, "candidate", version)
        return version

    def _log_and_register(self, run_id: str, model_name: str, bundle: Path, encoding: TableEncoding, example: pd.DataFrame) -> str:
        latent_dim = int(json.loads((bundle / "model.json").read_text())["latent_dim"])
        with run_open(run_id):
            info = mlflow.pyfunc.log_model(
                name="model",
                python_model=str(ROOT / "workflows" / "served_model.py"),
                artifacts={"bundle": str(bundle)},
                code_paths=[str(ROOT / "vae"), str(ROOT / "data")],
                signature=signature(encoding, latent_dim),
                input_example=example,
                pip_requirements=pinned_requirements(),
            )
        return str(mlflow.register_model(info.model_uri, model_name, await_registration_for=60).version)

    def pin(self, reference: str) -> PinnedModel:
        """Returns the model that models:/NAME@ALIAS, models:/NAME/VERSION or runs:/RUN_ID/PATH names. Raises as workflows.pinned.pin."""
        if reference.startswith("runs:/"):
            return self._pin_run(reference)
        named = re.fullmatch(r"models:/([^/@]+)(?:@([^/@]+)|/(\d+))", reference)
        if named is None:
            raise BundleError(
                f"{reference}: not a model reference; give models:/NAME@ALIAS, models:/NAME/VERSION, runs:/RUN_ID/model or a folder"
            )
        name, alias, number = named.groups()
        try:
            found = self.client.get_model_version_by_alias(name, alias) if alias else self.client.get_model_version(name, number)
            folder = Path(mlflow.artifacts.download_artifacts(f"models:/{name}/{found.version}"))
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise BundleError(f"{reference}: not in the registry at {without_password(self.uri)}: {error.message}") from error
            raise ServiceError(f"MLflow at {without_password(self.uri)}: {error}") from error
        files = read_bundle(folder / "artifacts" / "bundle")
        sha256 = hashlib.sha256(files[MANIFEST]).hexdigest()
        if found.tags.get("bundle_sha256", sha256) != sha256:
            raise BundleError(f"{reference}: the bundle's sha256 is {sha256}, registered was {found.tags['bundle_sha256']}; do not use it")
        return PinnedModel(files, name, str(found.version), found.run_id, sha256)

    def _pin_run(self, reference: str) -> PinnedModel:
        """Returns the model that a run logged: its registered version where it has one, else known by the bundle's hash."""
        run_id = reference.removeprefix("runs:/").split("/")[0]
        try:
            self.client.get_run(run_id)
            versions = self.client.search_model_versions(f"run_id = '{run_id}'")
            if versions:
                return self.pin(f"models:/{versions[0].name}/{versions[0].version}")
            folder = Path(mlflow.artifacts.download_artifacts(reference))
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise BundleError(f"{reference}: not at {without_password(self.uri)}: {error.message}") from error
            raise ServiceError(f"MLflow at {without_password(self.uri)}: {error}") from error
        return replace(folder_model(folder), run_id=run_id)

    def aliases(self, name: str) -> dict[str, str]:
        """Returns a registered model's aliases as alias -> version.

        Raises BundleError, naming the models that there are, where it is none; ServiceError where the registry does not answer.
        """
        with service_errors(self.uri):
            try:
                return {alias: str(version) for alias, version in self.client.get_registered_model(name).aliases.items()}
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
            known = ", ".join(model.name for model in self.client.search_registered_models(max_results=20))
        raise BundleError(f"no model {name!r} in the registry at {without_password(self.uri)}; it has {known or 'none'}")

    def versions(self, name: str) -> list[str]:
        """Returns a registered model's version numbers, the lowest first. Raises ServiceError where the registry does not answer."""
        with service_errors(self.uri):
            found = self.client.search_model_versions(f"name = '{name}'", max_results=MAX_VERSIONS)
        return [str(number) for number in sorted(int(version.version) for version in found)]

    def tag_version(self, name: str, version: str, tags: Mapping[str, str]) -> None:
        """Sets tags of a model version. Raises ServiceError where the registry does not answer."""
        with service_errors(self.uri):
            for key, value in tags.items():
                self.client.set_model_version_tag(name, version, key, value)

    def version_files(self, name: str, version: str) -> dict[str, bytes]:
        """Returns every file of a model version, relative path -> its first bytes. Raises ServiceError."""
        with service_errors(self.uri):
            folder = Path(mlflow.artifacts.download_artifacts(f"models:/{name}/{version}"))
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        return {str(path.relative_to(folder)): first_bytes(path) for path in files}

    def last_champion_change(self, name: str) -> dict[str, str]:
        """Returns what move_champion last noted of a model; empty where it never did."""
        with service_errors(self.uri):
            noted: dict[str, str] = json.loads(self.client.get_registered_model(name).tags.get(CHAMPION_CHANGE, "{}"))
        return noted

    def move_champion(self, name: str, change: Mapping[str, str]) -> None:
        """Makes version change["to"] champion and change["from"], where there is one, previous.

        The change is noted first, as tags `champion_KEY` of the version and one JSON tag of the model; then `previous` is
        written, then `champion`. Cut off in between, both aliases name the old champion and the note says what was meant.
        """
        with service_errors(self.uri):
            for key, value in change.items():
                self.client.set_model_version_tag(name, change["to"], f"champion_{key}", value)
            self.client.set_registered_model_tag(name, CHAMPION_CHANGE, json.dumps(change))
            if change["from"]:
                self.client.set_registered_model_alias(name, "previous", change["from"])
            self.client.set_registered_model_alias(name, "champion", change["to"])


def first_bytes(path: Path) -> bytes:
    with path.open("rb") as stream:
        return stream.read(16)


@contextmanager
def run_open(run_id: str) -> Iterator[None]:
    """Makes a run MLflow's active one, leaving its status as it is."""
    with mlflow.start_run(run_id=run_id, log_system_metrics=False):
        yield
    mlflow.MlflowClient().update_run(run_id, status="RUNNING")


def signature(encoding: TableEncoding, latent_dim: int) -> ModelSignature:
    """Returns what predict takes (the input columns by name) and gives (z_mean_0, ..).

    Inputs are of any type: MLflow's typed columns refuse what pandas makes of nulls and dictionaries, which the model takes.
    """
    inputs = [ColSpec(AnyType(), name, required=False) for name in encoding.inputs]
    outputs = [ColSpec(DataType.float, f"z_mean_{i}") for i in range(latent_dim)]
    return ModelSignature(Schema(inputs), Schema(outputs), ParamSchema([ParamSpec("task", DataType.string, "encode")]))
