"""What a training run leaves: its identity, its MLflow run, the registered model and the JSON line."""

from __future__ import annotations

import json
import math
import shlex
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from pyarrow import fs
from safetensors.torch import load as load_tensors

from data.encoding import TableEncoding
from data.frames import example_frame
from data.split import TRAIN
from data.table import Table
from vae.bundle import load_bundle, save_bundle
from vae.model import VAE
from workflows.architecture import architecture
from workflows.checkpoint import BEST, Checkpoints, Progress, progress_of, read, refuse_other_model
from workflows.checks import ConfigError
from workflows.cluster import check_submitted, is_submitted
from workflows.config import TrainConfig
from workflows.drift import training_reference
from workflows.errors import ComputationError, ServiceError, logger
from workflows.lineage import flatten, lineage, parameters
from workflows.metrics_log import MetricsLog
from workflows.nodes import alive_nodes, nodes_without
from workflows.pictures import sample_rows, save_training_pictures
from workflows.pinned import relative_store, without_password, without_passwords
from workflows.registry import Registry
from workflows.runs import TABLE, Run
from workflows.training import Prepared, table_record

EXAMPLE_ROWS = 5
METRICS = "metrics.jsonl"
# How long the end of a run waits for MLflow to take what it has not yet.
LOG_CLOSE_S = 60


def refuse_lost_defaults(config: TrainConfig) -> None:
    """Raises ConfigError where a submitted job would leave its results in the working directory that goes away with it."""
    if not is_submitted():
        return
    problems, advice = [], {"--registry.tracking_uri": "http://MLFLOW-SERVER:5000", "--run.storage_path": "s3://BUCKET/runs"}
    if relative_store(config.registry.tracking_uri) is None:
        advice.pop("--registry.tracking_uri")
    else:
        problems.append("registry.tracking_uri is a SQLite file in the job's temporary folder; name a tracking server")
    if "://" in config.run.storage_path or Path(config.run.storage_path).is_absolute():
        advice.pop("--run.storage_path")
    else:
        problems.append(
            f"run.storage_path is {config.run.storage_path!r} in the job's temporary folder; name storage that every node reaches"
        )
    job = Path(sys.argv[0]).name
    given = " ".join(shlex.quote(argument) for argument in sys.argv[1:])
    more = " ".join(f"{key} {value}" for key, value in advice.items())
    check_submitted(problems, f"ray job submit --address http://HEAD:8265 --working-dir . -- python workflows/{job} {given} {more}")


def refuse_local_checkpoints(this: Run) -> None:
    """Raises ConfigError where a job would keep its run on one of several nodes; a folder that all of them mount will do.

    The nodes are those that are here, so it is asked once the workers have theirs.
    """
    if not isinstance(this.filesystem, fs.LocalFileSystem) or not (is_submitted() or len(alive_nodes()) > 1):
        return
    marker = f"nodes-{uuid.uuid4().hex}"  # a name that no node has looked for, and remembers as missing
    this.write(marker, b"")
    try:
        without = nodes_without(f"{this.folder}/{marker}")
    finally:
        this.filesystem.delete_file(f"{this.folder}/{marker}")
    if without:
        raise ConfigError(
            f"run.storage_path: {this.folder} is not the same folder on every node of the cluster ({', '.join(without)} see another or "
            "none), where checkpoints would be lost; name a folder that all of them mount, or an object store: "
            "--run.storage_path s3://BUCKET/runs"
        )


def identity(config: TrainConfig, table: Table, validation_table: Table | None) -> dict[str, Any]:
    """Returns everything that decides a run's numbers and its model's name, flat; neither the cluster nor paths are in it."""
    sections = {key: value for key, value in asdict(config).items() if key not in ("cluster", "run", "registry")}
    flat = {key: value for key, value in flatten(sections).items() if key not in ("data.path", "data.validation_path")}
    return flat | {
        "registry.model_name": config.registry.model_name,
        "data.path (fingerprint of its content)": table.fingerprint,
        "data.validation_path (fingerprint of its content)": validation_table.fingerprint if validation_table else None,
    }


def record_start(
    config: TrainConfig,
    this: Run,
    registry: Registry,
    prepared: Prepared,
    *,
    job: str = "train",
    given: Mapping[str, Any] | None = None,
    parent: str | None = None,
) -> None:
    """Logs all that is known before the first step, to a new MLflow run or that of the run which goes on.

    given: the options as they are recorded, where they are not config's; parent: the MLflow run that this one is part of.
    Raises ServiceError where a new run cannot be recorded; one that goes on does without MLflow until it is back.
    """
    table = table_record(config, prepared)
    this.write(TABLE, json.dumps(table).encode())
    resolved = without_passwords(dict(given or asdict(config)))
    resolved["registry"] = resolved["registry"] | {"tracking_uri": without_password(registry.uri)}
    if this.mlflow_run_id is not None:
        logger.info("going on with MLflow run %s", this.mlflow_run_id)
        return
    this.save()
    tags = lineage() | {"run_name": this.name, "job": job} | ({"mlflow.parentRunId": parent} if parent else {})
    experiment_id = registry.open_experiment(config.registry.experiment)
    run_id = registry.open_run(experiment_id, this.name, this.key, parameters(resolved), tags)
    first = config.data.path if isinstance(config.data.path, str) else config.data.path[0]
    registry.log_input(run_id, first, prepared.sources[TRAIN].table.fingerprint, "training table")
    registry.log_json(run_id, resolved, "config.json")
    registry.log_json(run_id, table, "table.json")
    this.mlflow_run_id = run_id
    this.save()


@contextmanager
def metrics_log(this: Run, registry: Registry) -> Iterator[MetricsLog]:
    """Gives the run's metrics.jsonl, from which MLflow gets them.

    In other than local storage it is a copy, kept there before MLflow gets its lines: a killed job's next start finds what was sent.
    """
    send = partial(registry.log_points, str(this.mlflow_run_id))
    if isinstance(this.filesystem, fs.LocalFileSystem):
        with MetricsLog(Path(this.folder) / METRICS, send) as log:
            yield log
        return
    with tempfile.TemporaryDirectory() as folder:
        copy, kept_at = Path(folder) / METRICS, f"{this.folder}/{METRICS}"
        if this.filesystem.get_file_info(kept_at).type == fs.FileType.File:
            copy.write_bytes(read(this.filesystem, kept_at))

        def keep_and_send(lines: Sequence[Mapping[str, Any]]) -> None:
            this.write(METRICS, copy.read_bytes())
            send(lines)

        try:
            with MetricsLog(copy, keep_and_send) as log:
                yield log
        finally:
            this.write(METRICS, copy.read_bytes())


def record_end(
    config: TrainConfig,
    this: Run,
    registry: Registry,
    checkpoints: Checkpoints,
    table: Table,
    log: MetricsLog,
    started: float,
    name: str | None = None,
) -> dict[str, Any]:
    """Registers the model of the run's finished checkpoint, logs what was measured and drawn, and returns the JSON line.

    table: whose rows the pictures show, and those that new rows will be compared with; name: the run.name that was asked for, where it is
    not the run's. Raises ServiceError where MLflow does not answer; the next start comes here again.
    """
    files = checkpoints.finished()
    if files is None:
        raise ComputationError("training ended without a finished checkpoint")
    run_id, progress, record = str(this.mlflow_run_id), progress_of(files), this.table_record()
    refuse_useless(progress)
    encoding = TableEncoding.from_json(record)
    for message in progress.unkept:  # like the epochs, those that a stop kept from the log
        log.append(message["kind"], message["step"], message["metrics"])
    for entry in progress.history:
        log.append("epoch", int(entry["epoch"]), epoch_metrics(entry))
    final = {f"final/{side}/{name}": float(value) for side, score in progress.scores.items() for name, value in score.items()}
    log.append("final", progress.step, final)
    with tempfile.TemporaryDirectory() as folder:
        bundle, pictures = Path(folder) / "bundle", Path(folder) / "pictures"
        model = VAE(**architecture(encoding, config.model, progress.scores["train"]["num_rows"]) | progress.prior)
        best = load_tensors(files[BEST])
        refuse_other_model(model, best)
        model.load_state_dict(best)
        is_validation = config.data.validation_path is not None
        reference = training_reference(model, encoding, table, record, is_validation, config.data.max_batch_bytes)
        sha256 = save_bundle(bundle, model, record | ({"drift": reference} if reference is not None else {}))
        for path in bundle.iterdir():
            this.write(f"bundle/{path.name}", path.read_bytes())
        pictures.mkdir()
        rows = sample_rows(table, encoding, config.data.max_batch_bytes)
        save_training_pictures(pictures, load_bundle(bundle).model, encoding, rows, progress.history)
        if log.close(LOG_CLOSE_S):
            raise ServiceError(f"MLflow at {without_password(registry.uri)} does not answer; {kept(this, name)}")
        tags = lineage() | {
            "bundle_sha256": sha256,
            "dataset_fingerprint": record["fingerprint"],
            "num_training_rows": str(progress.scores["train"]["num_rows"]),
            "latent_dim": str(config.model.latent_dim),
            "validation_elbo_nats_per_row": str(progress.scores["validation"].get("elbo_nats_per_row")),
        }
        example = example_frame(rows.select(encoding.inputs).slice(0, EXAMPLE_ROWS))
        try:
            registry.log_files(run_id, pictures, "pictures")
            version = registry.register(run_id, config.registry.model_name, bundle, encoding, example, tags)
            registry.end_run(run_id, "FINISHED")
        except ServiceError as error:
            raise ServiceError(f"{error}; {kept(this, name)}") from error
    logger.info("registered %s version %s (alias candidate), MLflow run %s", config.registry.model_name, version, run_id)
    this.result = json_line(config, this, version, progress, time.monotonic() - started)
    this.save()
    return this.result


def refuse_useless(progress: Progress) -> None:
    """Raises ComputationError where training came to a model that nobody can use."""
    if progress.num_skipped_steps == progress.step:
        raise ComputationError(
            f"none of the {progress.step} steps had a finite loss and gradient: nothing was learned, nothing is registered"
        )
    for side, score in progress.scores.items():
        if not math.isfinite(score.get("elbo_nats_per_row", 0.0)):
            raise ComputationError(
                f"the ELBO of the {side} rows is not finite under the weights that training ended with: nothing is registered; look for "
                "outliers among these rows, or try a lower training.learning_rate under another run.name"
            )


def kept(this: Run, name: str | None) -> str:
    return f"the model is trained and kept in {this.folder}/bundle: the same command with --run.name {name or this.name} registers it"


def epoch_metrics(entry: Mapping[str, float]) -> dict[str, float]:
    return {name: float(value) for name, value in entry.items() if name != "epoch"}


def json_line(config: TrainConfig, this: Run, version: str, progress: Progress, wall_s: float) -> dict[str, Any]:
    names = ("elbo_nats_per_row", "expected_log_likelihood_nats_per_row", "kl_nats_per_row")
    train, validation = progress.scores["train"], progress.scores["validation"]
    rates = [entry["train/rows_per_s"] for entry in progress.history]
    return {
        "job": "train",
        "run_id": this.mlflow_run_id,
        "run_name": this.name,
        "model_name": config.registry.model_name,
        "model_version": version,
        "model_uri": f"models:/{config.registry.model_name}/{version}",
        "num_steps": progress.step,
        "num_epochs": progress.epoch,
        "train": {"num_rows": train["num_rows"], "rows_per_s": sum(rates) / len(rates), "elbo_nats_per_row": train["elbo_nats_per_row"]},
        "validation": {"num_rows": validation["num_rows"]} | {name: validation.get(name) for name in names},
        "wall_s": wall_s,
    }
