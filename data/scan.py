"""One distributed pass over a table: the split's row counts, the training rows' summaries, and whether keys come twice."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import ray
from numpy.typing import NDArray
from pyarrow import fs

from data.dependencies import Dependencies
from data.hashing import Hashes
from data.listing import DataError
from data.reading import MAX_BATCH_BYTES, RowReader
from data.split import MAX_EXAMPLES, TRAIN, row_hashes, split_of, take
from data.statistics import ColumnSummary, TableSummary, merge_all, summarise, summarise_table
from data.table import RowGroup, Table
from data.types import is_list
from data.widening import unsuitable

# Enough tasks for any cluster to share evenly, few enough that the driver's bookkeeping stays small.
MAX_TASKS = 1024
# Results that wait for the driver, per CPU: it takes them in order, and must not hold many at once.
TASKS_AHEAD = 2
# Keys, and rows of a task, that are compared to find examples of keys that come twice.
MAX_SUSPECTED = 1000

Task = TypeVar("Task")
Part = TypeVar("Part")
Found = TypeVar("Found")


@dataclass(frozen=True)
class Scan:
    """What a scan of some row groups found. counts: rows per side, [groups, 3]. keys: every row's hash, none unless they are compared."""

    summary: TableSummary
    counts: NDArray[np.int64]
    keys: Hashes


@dataclass(frozen=True)
class ScanTask:
    """What a scanning task is told. names: the columns that are summarised; categorical: integers among them to be counted."""

    filesystem: fs.FileSystem
    schema: pa.Schema
    names: tuple[str, ...]
    key: str | None
    fractions: tuple[float, float]
    categorical: tuple[str, ...]
    compare_keys: bool
    max_batch_bytes: int


def scan(
    table: Table,
    key: str | None,
    fractions: tuple[float, float],
    only_rows: bool = False,
    categorical: Sequence[str] = (),
    max_unique_check_rows: int = 0,
    max_batch_bytes: int = MAX_BATCH_BYTES,
) -> tuple[TableSummary, NDArray[np.int64]]:
    """Returns the summary of all training rows, and the rows per side of every row group, [row groups, 3].

    Columns of types that cannot be read have no summary. only_rows: count the sides and summarise no column. categorical: integer columns
    that are counted as text is.
    max_unique_check_rows: keys of a table with at most so many rows are compared, and one that comes twice is refused.
    Raises DataError naming file and column.
    """
    if key is not None and key not in table.schema.names:
        raise DataError(f"column {key!r} (data.key) is not in the table; it has {table.schema.names}")
    fault = None if key is None else unsuitable(table.schema.field(key))
    if fault is not None:
        raise DataError(f"column {key!r} (data.key) {fault}")
    groups = list(table.row_groups())
    names = () if only_rows else tuple(item.name for item in table.schema if item.name != key and unsuitable(item) is None)
    schema = pa.schema([table.schema.field(name) for name in [*names, *([key] if key is not None else [])]])
    compare = key is not None and table.num_rows <= max_unique_check_rows
    task = ScanTask(table.filesystem, schema, names, key, fractions, tuple(categorical), compare, max_batch_bytes)
    counts: list[NDArray[np.int64]] = []
    keys: list[Hashes] = []

    def summaries() -> Iterator[TableSummary]:
        for part in in_order(scan_groups, task, runs(groups)):
            counts.append(part.counts)
            keys.append(part.keys)
            yield part.summary

    summary = merge_all(summaries())
    if compare:
        refuse_duplicates(task, groups, np.concatenate(keys))
    return summary, np.concatenate(counts)


def runs(groups: Sequence[RowGroup]) -> list[list[RowGroup]]:
    """Returns the row groups in at most MAX_TASKS consecutive runs of about equal rows: a function of the table alone."""
    ends = np.cumsum([group.num_rows for group in groups])
    run_of = (ends - 1).clip(0) * min(MAX_TASKS, len(groups)) // max(1, int(ends[-1]))
    cuts = [0, *(np.flatnonzero(np.diff(run_of)) + 1).tolist(), len(groups)]
    return [list(groups[begin:end]) for begin, end in pairwise(cuts)]


def in_order(work: Callable[[Task, Part], Found], task: Task, parts: Sequence[Part]) -> Iterator[Found]:
    """Yields work(task, part) of every part in their order, computed by Ray tasks a little ahead."""
    remote = ray.remote(max_retries=3)(work)
    shared = ray.put(task)
    ahead = max(8, TASKS_AHEAD * int(ray.cluster_resources().get("CPU", 1)))
    pending = [remote.remote(shared, part) for part in parts[:ahead]]
    for index in range(len(parts)):
        try:
            result = ray.get(pending[index])
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, DataError):
                raise error.cause from error
            raise
        pending[index] = None  # the object store may forget it
        if index + ahead < len(parts):
            pending.append(remote.remote(shared, parts[index + ahead]))
        yield result


def scan_groups(task: ScanTask, groups: Sequence[RowGroup]) -> Scan:
    """Returns what some row groups hold, slice by slice."""
    counts = np.zeros((len(groups), 3), np.int64)
    keys: list[Hashes] = [np.zeros(0, np.uint64)]

    def leaves() -> Iterator[TableSummary]:
        yield TableSummary((0, 0, 0), {name: ColumnSummary() for name in task.names})  # a row group may be empty
        with RowReader(task.filesystem, task.schema, task.max_batch_bytes) as reader:
            for index, group in enumerate(groups):
                for part, rows in reader.slices(group) if task.schema.names else [(group, pa.table({}))]:
                    hashes = row_hashes(rows, part, task.key)
                    sides = split_of(hashes, *task.fractions)
                    summary = leaf(task, rows, sides, group.path)
                    counts[index] += summary.num_rows
                    if task.compare_keys:
                        keys.append(hashes)
                    yield summary

    summary = merge_all(leaves())
    return Scan(summary, counts, np.concatenate(keys))


def leaf(task: ScanTask, rows: pa.Table, sides: NDArray[np.int8], path: str) -> TableSummary:
    """Returns the summary of a slice's training rows."""
    train, validation, test = np.bincount(sides, minlength=3).tolist()
    if not task.names:
        return TableSummary((train, validation, test), {})  # a table without columns has no rows to take
    rows, training = rows.select(task.names), sides == TRAIN
    taken = take(rows, training)
    summary = summarise_table(taken, (train, validation, test), task.categorical)
    if train:
        summary = replace(summary, dependencies=Dependencies.of(taken, task.categorical))
    for name, column in summary.columns.items():
        if column.num_nonfinite:
            column.first_nonfinite = path
        if is_list(rows.schema.field(name).type) and not training.all():
            # The lengths of lists, and whether elements may be missing, are structure: every row counts, whatever its side.
            others = summarise(take(rows.select([name]), ~training)[name])
            column.sizes = column.sizes | others.sizes
            column.num_missing_elements += others.num_missing_elements
    return summary


def refuse_duplicates(task: ScanTask, groups: Sequence[RowGroup], keys: Hashes) -> None:
    """Raises DataError with examples where two rows have one key. Equal hashes are only a suspicion: the keys are read and compared."""
    keys.sort()
    repeated = keys[1:][keys[1:] == keys[:-1]]
    if not len(repeated):
        return
    assert task.key is not None
    task = replace(task, schema=pa.schema([task.schema.field(task.key)]))
    suspected = np.unique(repeated)[:MAX_SUSPECTED]
    places: dict[Any, list[str]] = {}
    for found in in_order(suspected_rows, task, [(suspected, run) for run in runs(groups)]):
        for key, place in found:
            places.setdefault(key, []).append(place)
    examples = [f"{key!r}: {' and '.join(found[:2])}" for key, found in places.items() if len(found) > 1]
    if examples:
        raise DataError(
            f"column {task.key!r} is the key, and {len(repeated)} rows repeat one that another row has; name another by data.key, "
            "or none:\n  " + "\n  ".join(examples[:MAX_EXAMPLES])
        )


def suspected_rows(task: ScanTask, part: tuple[Hashes, Sequence[RowGroup]]) -> list[tuple[Any, str]]:
    """Returns key and place of the rows whose hash is suspected, or of enough of them."""
    suspected, groups = part
    assert task.key is not None
    found: list[tuple[Any, str]] = []
    with RowReader(task.filesystem, task.schema, task.max_batch_bytes) as reader:
        for group in groups:
            for part_of_group, rows in reader.slices(group):
                here = np.flatnonzero(np.isin(row_hashes(rows, part_of_group, task.key), suspected))[: MAX_SUSPECTED - len(found)]
                keys = rows[task.key].take(pa.array(here)).to_pylist()
                found += [(key, f"{group.path} row {part_of_group.first_row + row}") for key, row in zip(keys, here.tolist(), strict=True)]
    return found
