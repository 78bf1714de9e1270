"""MLflow's tracking: experiments, runs, metrics, files. Only this file, registry.py and served_model.py import mlflow."""

from __future__ import annotations

import logging
import os
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# A server that does not answer is known within seconds, not after MLflow's default of four minutes a call.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
os.environ.setdefault("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")

import mlflow
from mlflow.data.dataset_source_registry import resolve_dataset_source
from mlflow.data.meta_dataset import MetaDataset
from mlflow.entities import Metric, Param
from mlflow.exceptions import MlflowException
from mlflow.tracking.registry import UnsupportedModelRegistryStoreURIException

from workflows.checks import ConfigError, require
from workflows.errors import ServiceError, TryAgain, logger
from workflows.pinned import default_tracking_uri, without_password
from workflows.store_file import opening, sqlite_file

logging.getLogger("alembic").setLevel(logging.WARNING)
logging.getLogger("mlflow").setLevel(logging.WARNING)

MAX_PARAM_CHARS = 6000
# MLflow allows 1000; to find 1000 points again that are there already takes a busy server more than the 10 s above.
MAX_METRICS_PER_CALL = 250
# Whose exceptions MLflow's clients of artifact stores let pass, besides OSErrors, among which are those of requests.
STORE_CLIENTS = ("boto3", "botocore", "google", "azure")


@contextmanager
def service_errors(uri: str) -> Iterator[None]:
    """Turns failures of MLflow and its artifact stores into ServiceError with the address, or ConfigError where that is of no known kind.

    An OSError here is a connection's, or a file's of the store, or of a temporary folder on its way there: the message says which.
    """
    try:
        yield
    except UnsupportedModelRegistryStoreURIException as error:
        raise ConfigError(f"registry.tracking_uri is {without_password(uri)!r}: {str(error).strip()}") from error
    except Exception as error:
        if not isinstance(error, MlflowException | OSError) and type(error).__module__.partition(".")[0] not in STORE_CLIENTS:
            raise
        raise ServiceError(f"MLflow at {without_password(uri)}: {error}") from error


class Tracking:
    """One tracking store: its experiments and runs."""

    def __init__(self, tracking_uri: str | None) -> None:
        self.uri = default_tracking_uri(tracking_uri)
        mlflow.set_tracking_uri(self.uri)
        with service_errors(self.uri), opening(sqlite_file(self.uri)):
            self.client = mlflow.MlflowClient(self.uri)

    def open_experiment(self, name: str) -> str:
        """Returns the experiment's id, made where it is new; proves that the store answers before any compute.

        Raises ConfigError where it was deleted, as then no run can be made in it.
        """
        with service_errors(self.uri):
            file = sqlite_file(self.uri)
            artifacts = (file.parent / "mlartifacts").as_uri() if file else None
            try:
                found = self.client.get_experiment_by_name(name)
                deleted = found is not None and found.lifecycle_stage == "deleted"
                require(not deleted, "registry.experiment", name, "one that is not deleted: name another, or have MLflow restore it")
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
            known = run.data.params  # which MLflow lets nobody change
            new = [Param(name, str(value)[:MAX_PARAM_CHARS]) for name, value in params.items() if name not in known]
            self.client.log_batch(run_id, params=new)
        return run_id

    def refuse_lost_run(self, run_id: str) -> None:
        """Raises ConfigError where the store answers and has not got the run any more, so that nothing could be logged to it."""
        try:
            with service_errors(self.uri):
                is_lost = self.client.get_run(run_id).info.lifecycle_stage == "deleted"
        except ServiceError as error:  # where the store does not answer, training goes on and says so
            is_lost = getattr(error.__cause__, "error_code", None) == "RESOURCE_DOES_NOT_EXIST"
        if is_lost:
            raise ConfigError(
                f"registry.tracking_uri is {without_password(self.uri)!r}, where MLflow run {run_id}, which this run.name goes on with, is "
                f"deleted or never was: restore it (mlflow runs restore --run-id {run_id}), name its store, or choose a new run.name"
            )

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


@contextmanager
def run_open(run_id: str) -> Iterator[None]:
    """Makes a run MLflow's active one, leaving its status as it is."""
    with mlflow.start_run(run_id=run_id, log_system_metrics=False):
        yield
    mlflow.MlflowClient().update_run(run_id, status="RUNNING")
