"""Training as the driver sees it: what the table is, what the workers are told, and what they gave back."""

from __future__ import annotations

import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.train
from numpy.typing import NDArray
from ray.train.torch import TorchTrainer
from ray.util.queue import Empty, Queue
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table as RichTable

from data.columns import Rules, check_overrides, counted_columns, decide_columns, key_column
from data.encoding import TableEncoding
from data.listing import DataError
from data.plan import Plan, readings_by_rank
from data.scan import scan
from data.shard import bytes_per_row, layout, reading_dataset
from data.split import TRAIN, VALIDATION
from data.table import RowGroup, Table
from workflows.architecture import architecture
from workflows.checkpoint import BUNDLE, Progress, read_progress
from workflows.cluster import Workers
from workflows.config import ConfigError, TrainConfig
from workflows.job import ComputationError, ServiceError, logger
from workflows.registry import Registry
from workflows.runs import Run
from workflows.training_loop import WorkerTask, train_worker

ONE_SIDE = {VALIDATION: (1.0, 0.0)}


@dataclass(frozen=True)
class Source:
    """Where the rows of one side of the split come from."""

    table: Table
    groups: list[RowGroup]
    counts: NDArray[np.int64]
    fractions: tuple[float, float]

    def num_rows(self, side: int) -> int:
        return int(self.counts[:, side].sum())


@dataclass(frozen=True)
class Prepared:
    """A table made ready: how its rows are encoded, and where each side's rows are."""

    encoding: TableEncoding
    sources: dict[int, Source]

    @property
    def num_rows(self) -> dict[int, int]:
        return {side: source.num_rows(side) for side, source in self.sources.items()}


def check_columns(config: TrainConfig, table: Table) -> None:
    """Raises ColumnOverrideError or DataError for what the configuration says of columns and their types alone forbid."""
    key = key_column(config.data.key, config.data.columns)
    if key is not None and key not in table.schema.names:
        raise DataError(f"column {key!r} (data.key) is not in the table; it has {table.schema.names}")
    check_overrides(table.schema, key, config.data.columns)


def prepare(config: TrainConfig, table: Table, validation_table: Table | None) -> Prepared:
    """Returns the table's encoding and split after one distributed pass. Raises DataError or ColumnOverrideError."""
    data = config.data
    key = key_column(data.key, data.columns)
    if key is not None and table.num_rows > data.max_unique_check_rows:
        logger.warning("%d rows: whether two of them have one %s is not checked (data.max_unique_check_rows)", table.num_rows, key)
    summary, counts = scan(
        table,
        key,
        data.fractions,
        categorical=counted_columns(data.columns),
        max_unique_check_rows=data.max_unique_check_rows,
        max_batch_bytes=data.max_batch_bytes,
    )
    source = Source(table, list(table.row_groups()), counts, data.fractions)
    if source.num_rows(TRAIN) == 0:
        raise DataError(f"{data.path}: none of its {table.num_rows} rows is on the training side; lower data.validation_fraction")
    rules = Rules(data.max_categories, data.min_category_count, data.nonfinite)
    columns = decide_columns(table.schema, summary, key, data.columns, rules)
    encoding = TableEncoding(table.schema, tuple(columns), key, data.nonfinite)
    sources = {TRAIN: source}
    if validation_table is not None:
        encoding.check_schema(validation_table.schema, str(data.validation_path), validation_table.partitions)
        _, counts = scan(validation_table, key, ONE_SIDE[VALIDATION], only_rows=True, max_batch_bytes=data.max_batch_bytes)
        sources[VALIDATION] = Source(validation_table, list(validation_table.row_groups()), counts, ONE_SIDE[VALIDATION])
    elif source.num_rows(VALIDATION):
        sources[VALIDATION] = source
    prepared = Prepared(encoding, sources)
    show_columns(encoding, prepared.num_rows)
    return prepared


def show_columns(encoding: TableEncoding, num_rows: Mapping[int, int]) -> None:
    """Prints the decision for every column, so that a wrong guess is seen before training and not after."""
    table = RichTable(title=f"{num_rows[TRAIN]:,} training rows, {num_rows.get(VALIDATION, 0):,} validation rows", box=SIMPLE)
    for heading in ("column", "type", "kind", "nulls", "why"):
        table.add_column(heading, no_wrap=heading != "why")
    for column in encoding.columns:
        kind = column.kind if column.kind != "image" else f"image {' x '.join(map(str, column.shape))}"
        arrow_type = str(encoding.schema.field(column.name).type).split(", indices")[0].replace("dictionary<values=", "dictionary of ")
        table.add_row(column.name, arrow_type, kind, f"{column.null_fraction:.1%}", column.reason)
    Console(stderr=True, width=max(120, Console(stderr=True).width)).print(table)


def table_record(config: TrainConfig, prepared: Prepared) -> dict[str, Any]:
    """Returns the bundle's table.json: the encoding, the split, and which table it was."""
    source = prepared.sources[TRAIN]
    return prepared.encoding.to_json() | {
        "null_pattern": config.model.null_pattern,
        "split": {"validation_fraction": source.fractions[0], "test_fraction": source.fractions[1]},
        "num_training_rows": source.num_rows(TRAIN),
        "fingerprint": source.table.fingerprint,
    }


def fit(config: TrainConfig, prepared: Prepared, run: Run, registry: Registry, workers: Workers) -> tuple[Progress, Path]:
    """Trains on the cluster, going on from the run's last checkpoint; returns the progress and a local copy of the bundle.

    Raises DataError, ComputationError or ServiceError.
    """
    check_memory(config, prepared)
    queue = Queue(actor_options={"num_cpus": 0})
    plan = Plan(
        prepared.num_rows[TRAIN],
        config.data.num_logical_shards,
        config.training.global_batch_size,
        config.training.seed,
        config.data.shuffle_window_rows,
    )
    task = WorkerTask(
        architecture(prepared.encoding, config.model),
        table_record(config, prepared),
        layout(prepared.encoding),
        plan,
        prepared.num_rows,
        config.objective,
        config.training,
        queue,
    )
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={"task": task},
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers.num_workers, use_gpu=workers.use_gpu, resources_per_worker=workers.per_worker
        ),
        datasets=datasets(prepared, plan.num_shards, workers.num_workers, config.data.max_batch_bytes),
        dataset_config=ray.train.DataConfig(datasets_to_split=[]),
        run_config=ray.train.RunConfig(
            name=run.name,
            storage_path=run.storage_path,
            failure_config=ray.train.FailureConfig(max_failures=2, controller_failure_limit=3),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
        ),
    )
    log = partial(log_epoch, registry=registry, run_id=str(run.mlflow_run_id), num_epochs=config.training.epochs)
    result = run_trainer(trainer, log, queue)
    return collect(result, Path(run.path).name)


def datasets(prepared: Prepared, num_shards: int, num_workers: int, max_batch_bytes: int) -> dict[str, Any]:
    """Returns SIDE-RANK -> dataset: each worker's own rows of each side."""
    result = {}
    for side, source in prepared.sources.items():
        for rank, plan in enumerate(readings_by_rank(source.groups, source.counts, [side], num_shards, num_workers)):
            if plan:
                result[f"{side}-{rank}"] = reading_dataset(source.table, plan, prepared.encoding, source.fractions, max_batch_bytes)
    return result


def check_memory(config: TrainConfig, prepared: Prepared) -> None:
    """Raises ConfigError where a worker's rows would not fit its memory."""
    rows = -(-sum(prepared.num_rows.values()) // config.cluster.num_workers)
    needed = rows * bytes_per_row(prepared.encoding)
    cluster = ray.cluster_resources()["memory"]
    allowed = config.run.shard_memory_bytes or int(cluster / 2 / config.cluster.num_workers)
    if needed > allowed:
        raise ConfigError(
            f"run.shard_memory_bytes is {allowed:,}, a worker's {rows:,} rows take {needed:,}; use more workers (cluster.num_workers)"
        )


def run_trainer(trainer: TorchTrainer, on_epoch: Callable[[Mapping[str, float]], None], queue: Queue) -> ray.train.Result:
    """Returns the trainer's result, handing every epoch's metrics on as they come. Raises ComputationError where training failed.

    Training is waited for in a thread of its own: on the main thread Ray Train 2.60 takes Ctrl-C for itself and exits.
    """
    outcome: Future[ray.train.Result] = Future()

    def fit() -> None:
        try:
            outcome.set_result(trainer.fit())
        except BaseException as error:  # raised again where the result is asked for
            outcome.set_exception(error)

    threading.Thread(target=fit, daemon=True).start()
    while True:
        ended = outcome.done()
        try:
            entry = queue.get(timeout=0.5)
        except Empty:
            if ended:
                return outcome.result()
            continue
        if "failure" in entry:
            raise ComputationError(entry["failure"])
        on_epoch(entry)


def log_epoch(entry: Mapping[str, float], registry: Registry, run_id: str, num_epochs: int) -> None:
    """Says how far training is and logs it to MLflow; a store that is away costs nothing but a warning, the end makes up for it."""
    validation = entry.get("validation/elbo_nats_per_row")
    measured = f"validation ELBO {validation:.3f} (KL {entry['validation/kl_nats_per_row']:.3f})  " if validation is not None else ""
    logger.info(
        "epoch %d/%d  step %d  train ELBO %.3f  %snats per row  %.0f rows/s",
        entry["epoch"] + 1,
        num_epochs,
        entry["step"],
        entry["train/elbo_nats_per_row"],
        measured,
        entry["train/rows_per_s"],
    )
    try:
        registry.log_epoch(run_id, entry, int(time.time() * 1000))
    except ServiceError as error:
        logger.warning("epoch %d did not reach MLflow, it will be logged at the end: %s", entry["epoch"] + 1, error)


def collect(result: ray.train.Result, name: str) -> tuple[Progress, Path]:
    """Returns the finished run's progress and a local copy of its bundle, in a folder that the caller removes."""
    if result.checkpoint is None:
        raise ComputationError("training ended without a checkpoint")
    copy = Path(tempfile.mkdtemp(prefix="vae-bundle-"))
    with result.checkpoint.as_directory() as folder:
        progress = read_progress(Path(folder))
        shutil.copytree(Path(folder) / BUNDLE, copy / BUNDLE)
    return progress, copy / BUNDLE
