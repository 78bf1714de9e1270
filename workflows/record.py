"""What a training run leaves: its identity, its MLflow run, the registered model and the JSON line."""

from __future__ import annotations

import shlex
import shutil
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from data.split import TRAIN, VALIDATION
from data.table import Table
from vae.bundle import load_bundle
from workflows.checkpoint import Progress
from workflows.cluster import check_submitted, is_submitted
from workflows.config import TrainConfig
from workflows.job import logger
from workflows.pictures import sample_rows, save_training_pictures
from workflows.registry import Registry, flatten, lineage, reconcile, relative_store, without_password
from workflows.runs import Run
from workflows.training import Prepared, table_record

EXAMPLE_ROWS = 5


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
    given = " ".join(shlex.quote(argument) for argument in sys.argv[1:])
    more = " ".join(f"{key} {value}" for key, value in advice.items())
    check_submitted(problems, f"ray job submit --address http://HEAD:8265 --working-dir . -- python workflows/train.py {given} {more}")


def identity(config: TrainConfig, table: Table, validation_table: Table | None) -> dict[str, Any]:
    """Returns everything that decides a run's numbers and its model's name, flat; neither the cluster nor paths are in it."""
    sections = {key: value for key, value in asdict(config).items() if key not in ("cluster", "run", "registry")}
    flat = {key: value for key, value in flatten(sections).items() if key not in ("data.path", "data.validation_path")}
    return flat | {
        "registry.model_name": config.registry.model_name,
        "data.path (fingerprint of its content)": table.fingerprint,
        "data.validation_path (fingerprint of its content)": validation_table.fingerprint if validation_table else None,
    }


def record_start(config: TrainConfig, this: Run, registry: Registry, experiment_id: str, prepared: Prepared) -> str:
    """Logs all that is known before the first step, to a new MLflow run or that of the run which goes on; returns its id."""
    table = prepared.sources[TRAIN].table
    resolved = asdict(config)
    resolved["registry"]["tracking_uri"] = without_password(registry.uri)
    if this.mlflow_run_id is None:
        tags = lineage() | {"run_name": this.name, "job": "train"}
        this.mlflow_run_id = registry.start_run(experiment_id, this.name, flatten(resolved), tags)
        this.save()
    else:
        logger.info("going on with MLflow run %s", this.mlflow_run_id)
    first = config.data.path if isinstance(config.data.path, str) else config.data.path[0]
    registry.log_input(this.mlflow_run_id, first, table.fingerprint, "training table")
    registry.log_json(this.mlflow_run_id, resolved, "config.json")
    registry.log_json(this.mlflow_run_id, table_record(config, prepared), "table.json")
    return this.mlflow_run_id


def record_end(
    config: TrainConfig, this: Run, registry: Registry, prepared: Prepared, progress: Progress, bundle: Path, started: float
) -> dict[str, Any]:
    """Registers the model, logs what was measured and drawn, and returns the JSON line."""
    run_id = str(this.mlflow_run_id)
    scores = progress.scores
    loaded = load_bundle(bundle)
    reconcile(registry, run_id, progress.history, int(time.time() * 1000))
    registry.log_metrics(run_id, {f"final/{side}/{name}": value for side, score in scores.items() for name, value in score.items()})
    source = prepared.sources[VALIDATION if VALIDATION in prepared.sources else TRAIN]
    rows = sample_rows(source.table, prepared.encoding)
    with tempfile.TemporaryDirectory() as folder:
        save_training_pictures(Path(folder), loaded.model, prepared.encoding, rows, progress.history)
        registry.log_files(run_id, Path(folder), "pictures")
    tags = lineage() | {
        "bundle_sha256": loaded.sha256,
        "dataset_fingerprint": prepared.sources[TRAIN].table.fingerprint,
        "num_training_rows": str(scores["train"]["num_rows"]),
        "latent_dim": str(config.model.latent_dim),
        "validation_elbo_nats_per_row": str(scores["validation"].get("elbo_nats_per_row")),
    }
    example = rows.select(prepared.encoding.modelled).slice(0, EXAMPLE_ROWS).to_pandas()
    version = registry.register(run_id, config.registry.model_name, bundle, prepared.encoding, example, tags)
    registry.end_run(run_id, "FINISHED")
    shutil.rmtree(bundle.parent)
    logger.info("registered %s version %s (alias candidate), MLflow run %s", config.registry.model_name, version, run_id)
    this.result = json_line(config, this, version, progress, time.monotonic() - started)
    this.save()
    return this.result


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
