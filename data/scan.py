"""One distributed pass over a table's row groups: the split's row counts and the training rows' summaries, in file order."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
from numpy.typing import NDArray
from pyarrow import fs

from data.split import TRAIN, split_rows, take
from data.statistics import TableSummary, is_list, merge_all, summarise
from data.table import DataError, RowGroup, Table, read_row_group

# Enough tasks for any cluster to share evenly, few enough that the driver's bookkeeping stays small.
MAX_TASKS = 1024


def scan(table: Table, key: str | None, fractions: tuple[float, float], only_rows: bool = False) -> tuple[TableSummary, NDArray[np.int64]]:
    """Returns the summary of all training rows, and the rows per side of every row group, [row groups, 3].

    only_rows: count the sides and summarise no column. Raises DataError naming file and column.
    """
    if key is not None and key not in table.schema.names:
        raise DataError(f"column {key!r} (data.key) is not in the table; it has {table.schema.names}")
    groups = list(table.row_groups())
    names = [] if only_rows else [name for name in table.schema.names if name != key]
    columns = [*names, key] if key is not None else names
    batches = [groups[i::MAX_TASKS] for i in range(min(MAX_TASKS, len(groups)))]
    task = ray.remote(max_retries=3)(summarise_groups)
    pending = [task.remote(table.filesystem, batch, columns, names, key, fractions) for batch in batches]
    try:
        results = ray.get(pending)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, DataError):
            raise error.cause from error
        raise
    leaves = [results[i % MAX_TASKS][i // MAX_TASKS] for i in range(len(groups))]
    return merge_all(leaves), np.array([leaf.num_rows for leaf in leaves], np.int64)


def summarise_groups(
    filesystem: fs.FileSystem,
    groups: Sequence[RowGroup],
    columns: list[str],
    names: list[str],
    key: str | None,
    fractions: tuple[float, float],
) -> list[TableSummary]:
    """Returns one leaf per row group."""
    return [summarise_group(filesystem, group, columns, names, key, fractions) for group in groups]


def summarise_group(
    filesystem: fs.FileSystem, group: RowGroup, columns: list[str], names: list[str], key: str | None, fractions: tuple[float, float]
) -> TableSummary:
    if not columns:
        sides = split_rows(pa.table({}), group, None, fractions)
        return TableSummary(rows_per_side(sides), {})
    table = read_row_group(filesystem, group, columns)
    sides = split_rows(table, group, key, fractions)
    training = take(table, sides == TRAIN)
    leaf = TableSummary(rows_per_side(sides), {name: summarise(training[name]) for name in names})
    for name in names:
        if leaf.columns[name].num_nonfinite:
            leaf.columns[name].first_nonfinite = group.path
        if is_list(table[name].type):
            # Whether elements may be missing is structure, so every row counts, whatever its side.
            leaf.columns[name].num_null_elements = pc.list_flatten(table[name]).null_count
    return leaf


def rows_per_side(sides: NDArray[np.int8]) -> tuple[int, int, int]:
    counts = np.bincount(sides, minlength=3)
    return int(counts[0]), int(counts[1]), int(counts[2])
