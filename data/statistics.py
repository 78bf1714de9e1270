"""Mergeable summaries of columns: what kinds, scales and vocabularies are decided from. Float64 throughout.

A leaf is one row group's training rows; leaves are merged in file order, so the result is the same to the last bit
whatever the blocks and the number of workers. Shapes: E elements of a vector (1 for scalars).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

# Distinct values are counted exactly up to here; a column with more is no category, and memory stays bounded.
MAX_DISTINCT = 100_000


@dataclass
class Moments:
    """Count, mean and sum of squared deviations per element, with the range. [E] each."""

    count: NDArray[np.float64]
    mean: NDArray[np.float64]
    squares: NDArray[np.float64]
    minimum: NDArray[np.float64]
    maximum: NDArray[np.float64]

    @staticmethod
    @np.errstate(over="ignore", invalid="ignore")  # what is not finite here is refused by name, in columns.py
    def of(values: NDArray[np.float64]) -> Moments:
        """Returns the moments of values [n, E], NaN where missing, n >= 1."""
        present = ~np.isnan(values)
        count = present.sum(0).astype(np.float64)
        mean = np.where(present, values, 0.0).sum(0) / np.maximum(count, 1)
        squares = np.where(present, values - mean, 0.0)
        return Moments(
            count,
            mean,
            (squares * squares).sum(0),
            np.where(present, values, np.inf).min(0),
            np.where(present, values, -np.inf).max(0),
        )

    @np.errstate(over="ignore", invalid="ignore")
    def merge(self, other: Moments) -> Moments:
        """Returns the moments of both sets of rows (Chan, Golub & LeVeque 1979)."""
        count = self.count + other.count
        share = other.count / np.maximum(count, 1)
        delta = other.mean - self.mean
        return Moments(
            count,
            self.mean + delta * share,
            self.squares + other.squares + delta * delta * self.count * share,
            np.minimum(self.minimum, other.minimum),
            np.maximum(self.maximum, other.maximum),
        )


@dataclass
class ColumnSummary:
    """What one column's training rows hold."""

    num_values: int = 0
    num_nulls: int = 0
    num_nonfinite: int = 0
    num_null_elements: int = 0
    moments: Moments | None = None
    sizes: set[int] = field(default_factory=set)
    counts: dict[Any, int] | None = field(default_factory=dict)
    all_distinct: bool = True
    first_nonfinite: str | None = None  # the file that holds the first NaN or infinity

    @property
    def num_distinct(self) -> int:
        """Distinct values seen, or MAX_DISTINCT + 1 for 'more than were counted'."""
        return MAX_DISTINCT + 1 if self.counts is None else len(self.counts)

    def merge(self, other: ColumnSummary) -> ColumnSummary:
        num_values = self.num_values + other.num_values
        counts = merge_counts(self.counts, other.counts)
        all_distinct = self.all_distinct and other.all_distinct and (counts is None or len(counts) == num_values)
        return ColumnSummary(
            num_values,
            self.num_nulls + other.num_nulls,
            self.num_nonfinite + other.num_nonfinite,
            self.num_null_elements + other.num_null_elements,
            merge_moments(self.moments, other.moments),
            self.sizes | other.sizes if len(self.sizes) < 3 else self.sizes,
            counts if counts is not None and len(counts) <= MAX_DISTINCT else None,
            all_distinct,
            self.first_nonfinite or other.first_nonfinite,
        )


def merge_counts(a: dict[Any, int] | None, b: dict[Any, int] | None) -> dict[Any, int] | None:
    if a is None or b is None:
        return None
    merged = dict(a)
    for value, count in b.items():
        merged[value] = merged.get(value, 0) + count
    return merged


def merge_moments(a: Moments | None, b: Moments | None) -> Moments | None:
    if a is None or b is None:
        return b if a is None else a
    return a.merge(b) if a.mean.shape == b.mean.shape else a


@dataclass
class TableSummary:
    """Rows per side of the split, and one summary per column over the training rows."""

    num_rows: tuple[int, int, int]
    columns: dict[str, ColumnSummary]

    def merge(self, other: TableSummary) -> TableSummary:
        a, b = self.num_rows, other.num_rows
        columns = {name: summary.merge(other.columns[name]) for name, summary in self.columns.items()}
        return TableSummary((a[0] + b[0], a[1] + b[1], a[2] + b[2]), columns)


def merge_all(leaves: Iterable[TableSummary]) -> TableSummary:
    iterator = iter(leaves)
    total = next(iterator)
    for leaf in iterator:
        total = total.merge(leaf)
    return total


def summarise(column: pa.ChunkedArray) -> ColumnSummary:
    """Returns the summary of one leaf's column."""
    if is_text(column.type) and pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)  # a dictionary may hold a null, which no null count sees
    nulls = column.null_count
    summary = ColumnSummary(num_values=len(column) - nulls, num_nulls=nulls)
    if summary.num_values == 0:
        return summary
    kind = column.type
    if is_number(kind):
        values = to_float64(column.drop_null())
        summary.num_nonfinite = int((~np.isfinite(values)).sum())
        finite = values[np.isfinite(values)]
        summary.moments = Moments.of(finite[:, None]) if len(finite) else None
    elif is_list(kind):
        summarise_lists(column, summary)
    if pa.types.is_integer(kind) or is_text(kind) or pa.types.is_boolean(kind):
        count_values(column, summary)
    else:
        summary.counts, summary.all_distinct = None, False
    return summary


def summarise_lists(column: pa.ChunkedArray, summary: ColumnSummary) -> None:
    summary.sizes = set(pc.unique(pc.list_value_length(column).drop_null()).to_pylist()[:3])
    if len(summary.sizes) != 1 or not is_number(column.type.value_type):
        return
    elements = pc.list_flatten(column)
    summary.num_null_elements = elements.null_count
    values = to_float64(elements)
    nonfinite = ~np.isfinite(values)
    summary.num_nonfinite = int(nonfinite.sum()) - elements.null_count
    (size,) = summary.sizes
    if size:
        summary.moments = Moments.of(np.where(nonfinite, np.nan, values).reshape(-1, size))


def count_values(column: pa.ChunkedArray, summary: ColumnSummary) -> None:
    counted = pc.value_counts(column.drop_null())
    summary.all_distinct = len(counted) == summary.num_values
    few = len(counted) <= MAX_DISTINCT
    summary.counts = dict(zip(counted.field("values").to_pylist(), counted.field("counts").to_pylist(), strict=True)) if few else None


def is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind))


def is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        return is_text(kind.value_type)
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def to_float64(values: pa.Array | pa.ChunkedArray) -> NDArray[np.float64]:
    """Returns numbers as float64, NaN where null."""
    if pa.types.is_float16(values.type):
        values = values.cast(pa.float32())
    cast = values.cast(pa.float64(), safe=False)
    return np.asarray(cast.to_numpy() if isinstance(cast, pa.ChunkedArray) else cast.to_numpy(zero_copy_only=False), dtype=np.float64)
