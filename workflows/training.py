"""Training as the driver sees it: what the table is, what the workers are told, and what they gave back."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import ray
import ray.train
from numpy.typing import NDArray
from ray.train.torch import TorchConfig
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table as RichTable

from data.columns import Rules, decide_columns
from data.conditions import check_condition, conditioned
from data.determined import with_dependencies
from data.encoding import TableEncoding
from data.listing import DataError
from data.marginals import marginals
from data.overrides import check_overrides, counted_columns, key_column
from data.plan import Plan, readings_by_rank, shard_bounds
from data.scan import scan
from data.shard import Reader, bytes_per_row, layout, reading_dataset
from data.split import TRAIN, VALIDATION
from data.stream import NUM_AHEAD, Stream
from data.table import RowGroup, Table, open_table
from data.widening import unsuitable
from data.wishes import check_likelihoods, with_likelihoods
from workflows.architecture import architecture, prior_of
from workflows.checkpoint import Checkpoints
from workflows.checks import ConfigError
from workflows.cluster import Workers
from workflows.config import TrainConfig
from workflows.errors import logger
from workflows.feed import EVALUATION_ROWS
from workflows.mailbox import Mailbox
from workflows.runs import Run
from workflows.trainer import MAX_FAILED_STARTS, DriverTrainer, Hear, run_trainer
from workflows.training_loop import train_worker
from workflows.worker import WorkerTask

ONE_SIDE = {VALIDATION: (1.0, 0.0)}
# Encoded rows that are permuted together where the configuration does not say how many: what can be read at once, and streamed.
WINDOW_BYTES = 2**25
# Characters of a column's name and type on one line of the table that is printed; longer ones leave no room for the rest.
NAME_WIDTH = 40


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
    """A table made ready: how its rows are encoded, where each side's rows are, and what the training rows' columns hold."""

    encoding: TableEncoding
    sources: dict[int, Source]
    marginals: dict[str, Any]

    @property
    def num_rows(self) -> dict[int, int]:
        return {side: source.num_rows(side) for side, source in self.sources.items()}


def open_tables(config: TrainConfig) -> tuple[Table, Table | None]:
    """Returns the table, and the validation table where there is one, whose footers and overrides fit together.

    Raises ColumnOverrideError or DataError.
    """
    allow_missing, validation_path = config.data.allow_missing_columns, config.data.validation_path
    table = open_table(config.data.path, allow_missing_columns=allow_missing)
    check_columns(config, table)
    return table, open_table(validation_path, allow_missing_columns=allow_missing) if validation_path else None


def check_columns(config: TrainConfig, table: Table) -> None:
    """Raises ColumnOverrideError or DataError for what the configuration says of columns and their types alone forbid."""
    key = key_column(config.data.key, config.data.columns)
    if key is not None and key not in table.schema.names:
        raise DataError(f"column {key!r} (data.key) is not in the table; it has {table.schema.names}")
    check_overrides(table.schema, key, config.data.columns)
    check_condition(table.schema, key, config.data.columns, config.data.condition)
    check_likelihoods(table.schema, key, config.data.columns, config.data.condition, config.model.likelihoods)


def prepare(config: TrainConfig, table: Table, validation_table: Table | None) -> Prepared:
    """Returns the table's encoding and split after one distributed pass. Raises DataError or ColumnOverrideError."""
    return prepare_each([config], table, validation_table)[0]


def prepare_each(configs: Sequence[TrainConfig], table: Table, validation_table: Table | None) -> list[Prepared]:
    """Returns for each configuration, all of the same data, what prepare does, after one pass for all of them. Raises as prepare does.

    Where the likelihoods are the same, so is the object.
    """
    data = configs[0].data
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
    columns = with_dependencies(conditioned(decide_columns(table.schema, summary, key, data.columns, rules), data.condition), summary)
    wishes = {json.dumps(config.model.likelihoods, sort_keys=True): config.model.likelihoods for config in configs}
    granted = {wish: with_likelihoods(columns, summary, likelihoods) for wish, likelihoods in wishes.items()}
    encodings = {wish: TableEncoding(table.schema, tuple(found), key, data.nonfinite) for wish, found in granted.items()}
    sources = {TRAIN: source}
    if validation_table is not None:
        some = next(iter(encodings.values()))  # likelihoods decide no column's type
        some.check_schema(validation_table.schema, str(data.validation_path), validation_table.partitions)
        _, counts = scan(validation_table, key, ONE_SIDE[VALIDATION], only_rows=True, max_batch_bytes=data.max_batch_bytes)
        sources[VALIDATION] = Source(validation_table, list(validation_table.row_groups()), counts, ONE_SIDE[VALIDATION])
    elif source.num_rows(VALIDATION):
        sources[VALIDATION] = source
    prepared = {wish: Prepared(encoding, sources, marginals(encoding, summary)) for wish, encoding in encodings.items()}
    for made in prepared.values():
        show_columns(made.encoding, made.num_rows)
    return [prepared[json.dumps(config.model.likelihoods, sort_keys=True)] for config in configs]


def for_table(config: TrainConfig, prepared: Prepared) -> TrainConfig:
    """Returns the configuration with the numbers that it leaves to the table."""
    return replace(config, training=config.training.for_rows(prepared.num_rows[TRAIN]))


def show_columns(encoding: TableEncoding, num_rows: Mapping[int, int]) -> None:
    """Prints the decision for every column, so that a wrong guess is seen before training and not after."""
    table = RichTable(title=f"{num_rows[TRAIN]:,} training rows, {num_rows.get(VALIDATION, 0):,} validation rows", box=SIMPLE)
    for heading in ("column", "type", "kind", "nulls", "why"):
        width = NAME_WIDTH if heading in ("column", "type") else None
        table.add_column(heading, no_wrap=heading in ("kind", "nulls"), overflow="fold", max_width=width)
    for column in encoding.columns:
        kind = column.kind if column.kind != "image" else f"image {' x '.join(map(str, column.shape))}"
        kind += " (condition)" if column.condition else ""
        item = encoding.schema.field(column.name)
        nulls = f"{column.null_fraction:.1%}" if unsuitable(item) is None else "not read"
        arrow_type = str(item.type).split(", indices")[0].replace("dictionary<values=", "dictionary of ")
        table.add_row(column.name, arrow_type, kind, nulls, column.reason)
    # A name such as "price [/kg]" is no markup.
    Console(stderr=True, width=max(120, Console(stderr=True).width), markup=False, emoji=False).print(table)


def table_record(config: TrainConfig, prepared: Prepared) -> dict[str, Any]:
    """Returns the bundle's table.json: the encoding, the split, which table it was, and its columns' marginals."""
    source, validation = prepared.sources[TRAIN], prepared.sources.get(VALIDATION)
    split: dict[str, Any] = {"validation_fraction": source.fractions[0], "test_fraction": source.fractions[1]}
    if validation is not None and validation is not source:
        split["validation_fingerprint"] = validation.table.fingerprint
    return prepared.encoding.to_json() | {
        "null_pattern": config.model.null_pattern,
        "split": split,
        "num_training_rows": source.num_rows(TRAIN),
        "fingerprint": source.table.fingerprint,
        "marginals": prepared.marginals,
    }


def fit(config: TrainConfig, prepared: Prepared, run: Run, checkpoints: Checkpoints, workers: Workers, hear: Hear) -> None:
    """Trains on the cluster to the end, going on from the run's last checkpoint; hear gets what the workers say.

    Raises DataError, ComputationError or ServiceError, and KeyboardInterrupt once the workers have saved where they stood.
    """
    window_rows = config.data.shuffle_window_rows or max(EVALUATION_ROWS, WINDOW_BYTES // bytes_per_row(prepared.encoding))
    plan = Plan(
        prepared.num_rows[TRAIN], config.data.num_logical_shards, config.training.global_batch_size, config.training.seed, window_rows
    )
    max_bytes = memory_of_worker(config)
    streamed = must_stream(config, prepared, plan, max_bytes)
    here = {ray._raylet.RAY_NODE_ID_KEY: ray.get_runtime_context().get_node_id()}
    mailbox = Mailbox.options(label_selector=here).remote()  # type: ignore[attr-defined]
    task = WorkerTask(
        architecture(prepared.encoding, config.model, plan.num_rows),
        prior_of(prepared.encoding, config.model, plan.num_rows) == "fitted",
        {item.name: [column.name for column in item.columns] for item in prepared.encoding.fields},
        layout(prepared.encoding),
        plan,
        prepared.num_rows,
        streams(config, prepared, plan.num_shards, workers.reading_cpus) if streamed else None,
        workers.is_elastic,
        config.objective,
        config.training,
        config.run,
        checkpoints,
        mailbox,
    )
    trainer = DriverTrainer(
        train_worker,
        train_loop_config={"task": task},
        scaling_config=workers.scaling(),
        torch_config=TorchConfig(timeout_s=config.cluster.collective_timeout_s),
        datasets={} if streamed else datasets(prepared, plan.num_shards, workers, config.data.max_batch_bytes),
        dataset_config=ray.train.DataConfig(datasets_to_split=[]),
        # Checkpoints are ours, so nothing that Ray keeps of an earlier start is read.
        run_config=ray.train.RunConfig(
            name=f"attempt-{checkpoints.attempt:06d}",
            storage_path=f"{run.folder}/ray",
            storage_filesystem=run.filesystem,
            failure_config=ray.train.FailureConfig(max_failures=config.cluster.max_failures, controller_failure_limit=MAX_FAILED_STARTS),
        ),
    )
    # Of nodes that left, workers are not waited for where fewer will do.
    run_trainer(trainer, mailbox, hear, 0 if workers.is_elastic else config.cluster.start_timeout_s)


def datasets(prepared: Prepared, num_shards: int, workers: Workers, max_batch_bytes: int) -> dict[str, Any]:
    """Returns SIDE-RANK -> dataset: each worker's own rows of each side; SIDE-SHARD where how many workers there will be is not known."""
    num_readers, result = num_shards if workers.is_elastic else workers.num_workers, {}
    for side, source in prepared.sources.items():
        reader = Reader(source.table.filesystem, prepared.encoding, source.fractions, max_batch_bytes)
        for number, plan in enumerate(readings_by_rank(source.groups, source.counts, [side], num_shards, num_readers)):
            if plan:
                result[f"{side}-{number}"] = reading_dataset(reader, plan, bytes_per_row(prepared.encoding), workers.reading_cpus)
    return result


def streams(config: TrainConfig, prepared: Prepared, num_shards: int, reading_cpus: int) -> dict[int, Stream]:
    """Returns side -> what reads its rows window by window."""
    result = {}
    for side, source in prepared.sources.items():
        reader = Reader(source.table.filesystem, prepared.encoding, source.fractions, config.data.max_batch_bytes)
        starts = np.concatenate([np.zeros(1, np.int64), source.counts[:, side].cumsum()])
        bounds = shard_bounds(int(starts[-1]), num_shards)
        result[side] = Stream(reader, layout(prepared.encoding), source.groups, starts, side, bounds, reading_cpus)
    return result


def memory_of_worker(config: TrainConfig) -> int:
    """Returns the bytes of rows that a worker may hold: half of what it may use, unless the configuration says otherwise."""
    return config.run.shard_memory_bytes or int(ray.cluster_resources()["memory"] / 2 / config.cluster.num_workers)


def must_stream(config: TrainConfig, prepared: Prepared, plan: Plan, max_bytes: int) -> bool:
    """Returns whether a worker's rows do not fit its memory. Raises ConfigError where not even what streaming holds at once does."""
    row_bytes = bytes_per_row(prepared.encoding)
    shards = -(-plan.num_shards // config.cluster.fewest_workers)
    needed = sum(shards * -(-count // plan.num_shards) for count in prepared.num_rows.values()) * row_bytes
    if needed <= max_bytes:
        return False
    # Of every shard a window and the next one, and those on their way.
    num_windows = 2 * shards + NUM_AHEAD
    window = min(plan.shuffle_window_rows, -(-max(prepared.num_rows.values()) // plan.num_shards))
    if window * row_bytes * num_windows > max_bytes:
        fitting = max_bytes // (num_windows * row_bytes)
        least = min(needed, num_windows * row_bytes)
        smaller = f"set --data.shuffle_window_rows {fitting}, raise" if fitting else f"{least:,} are needed at least: raise"
        raise ConfigError(
            f"run.shard_memory_bytes is {max_bytes:,}, a worker's rows take {needed:,}, and streaming them would take "
            f"{window * row_bytes * num_windows:,}; {smaller} --run.shard_memory_bytes, or use more workers (--cluster.num_workers)"
        )
    logger.info("a worker's rows take %d bytes, more than the %d that it may hold: every epoch reads them again", needed, max_bytes)
    return True
