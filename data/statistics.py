"""Mergeable summaries of columns: what kinds, scales and vocabularies are decided from. Float64 throughout.

A leaf is a slice of one row group's training rows; leaves are merged in file order, in runs that the table alone decides, so the
result is the same to the last bit whatever the blocks and the number of workers. Shapes: E elements of a vector (1 for scalars).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from data.hashing import hash_values
from data.sketches import DistinctSketch, QuantileSketch, ValueCounts
from data.types import is_list, is_number, is_temporal, is_text, ticks_type, to_float64

# Text and named categories are counted exactly up to here, and approximately beyond.
MAX_DISTINCT = 1_000_000
# Integers with more different values than this are quantities, whose counts nobody asks for.
MAX_DISTINCT_INTEGERS = 10_000


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
        missing = np.isnan(values)
        if not missing.any():
            mean = values.mean(0)
            squares = values - mean
            count = np.full(values.shape[1], float(len(values)))
            return Moments(count, mean, np.einsum("ij,ij->j", squares, squares), values.min(0), values.max(0))
        count = (~missing).sum(0).astype(np.float64)
        mean = np.where(missing, 0.0, values).sum(0) / np.maximum(count, 1)
        squares = np.where(missing, 0.0, values - mean)
        return Moments(
            count,
            mean,
            np.einsum("ij,ij->j", squares, squares),
            np.where(missing, np.inf, values).min(0),
            np.where(missing, -np.inf, values).max(0),
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
    """What one column's training rows hold.

    all_distinct: no value came twice within a leaf. counts: None for types that are no categories. sketch: of finite numbers,
    for scalar columns only.
    """

    num_values: int = 0
    num_nulls: int = 0
    num_nonfinite: int = 0
    num_null_elements: int = 0
    moments: Moments | None = None
    sketch: QuantileSketch | None = None
    sizes: set[int] = field(default_factory=set)
    counts: ValueCounts | None = None
    distinct: DistinctSketch | None = None
    all_distinct: bool = True
    first_nonfinite: str | None = None  # the file that holds the first NaN or infinity

    @property
    def num_distinct(self) -> float:
        """Different values: exact where they were counted, else an estimate (2 %)."""
        if self.counts is not None and self.counts.exact:
            return self.counts.num_distinct
        return self.distinct.estimate() if self.distinct is not None else float(self.num_values)

    @property
    def is_unique(self) -> bool:
        """Whether no value comes twice (beyond what is counted exactly: as far as an estimate can tell)."""
        exact = self.counts is not None and self.counts.exact
        return self.all_distinct and self.num_distinct >= (1.0 if exact else 0.9) * self.num_values

    def merge(self, other: ColumnSummary) -> ColumnSummary:
        return ColumnSummary(
            self.num_values + other.num_values,
            self.num_nulls + other.num_nulls,
            self.num_nonfinite + other.num_nonfinite,
            self.num_null_elements + other.num_null_elements,
            merge_moments(self.moments, other.moments),
            merged(self.sketch, other.sketch),
            self.sizes | other.sizes if len(self.sizes) < 3 else self.sizes,
            merged(self.counts, other.counts),
            merged(self.distinct, other.distinct),
            self.all_distinct and other.all_distinct,
            self.first_nonfinite or other.first_nonfinite,
        )


def merged(a: Any, b: Any) -> Any:
    """Returns the merge of two sketches of one class, either of which may be None for nothing seen."""
    return b if a is None else a if b is None else a.merge(b)


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


def summarise_table(table: pa.Table, num_rows: tuple[int, int, int], categorical: Collection[str] = ()) -> TableSummary:
    """Returns the summary of one leaf; categorical: integer columns whose values are counted as text's are."""
    return TableSummary(num_rows, {name: summarise(table[name], name in categorical) for name in table.column_names})


def summarise(column: pa.ChunkedArray, categorical: bool = False) -> ColumnSummary:
    """Returns the summary of one leaf's column; categorical: its integers are counted as text is."""
    kind = column.type
    if pa.types.is_dictionary(kind) and not is_text(kind):
        column, kind = column.cast(kind.value_type), kind.value_type
    nulls = num_missing(column)
    summary = ColumnSummary(num_values=len(column) - nulls, num_nulls=nulls)
    if summary.num_values == 0:
        return summary
    if is_number(kind) or is_temporal(kind):
        values = to_float64(column.drop_null() if nulls else column)
        finite = values if np.isfinite(values).all() else values[np.isfinite(values)]
        summary.num_nonfinite = len(values) - len(finite)
        if len(finite):
            summary.moments = Moments.of(finite[:, None])
            summary.sketch = QuantileSketch.of(finite)
    elif is_list(kind):
        summarise_lists(column, summary)
    if pa.types.is_integer(kind) or is_text(kind) or pa.types.is_boolean(kind):
        count_values(column, summary, few=pa.types.is_integer(kind) and not categorical)
    elif is_temporal(kind):
        count_values(column.cast(ticks_type(kind)), summary, few=True)
    else:
        summary.all_distinct = False
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


def count_values(column: pa.ChunkedArray, summary: ColumnSummary, few: bool) -> None:
    """Notes how often each value occurs; few: more than a few different values are no categories, and only their number is kept."""
    summary.counts = ValueCounts.of(column, MAX_DISTINCT_INTEGERS if few else MAX_DISTINCT, "drop" if few else "approximate")
    entries = summary.counts.entries
    distinct = entries.values if entries is not None else pc.unique(column.drop_null())
    if not pa.types.is_boolean(column.type):
        summary.distinct = DistinctSketch.of(hash_values(distinct))
    summary.all_distinct = len(distinct) == summary.num_values


def num_missing(column: pa.ChunkedArray) -> int:
    """Returns the number of nulls, those included that a dictionary holds."""
    nulls: int = column.null_count
    if pa.types.is_dictionary(column.type) and any(chunk.dictionary.null_count for chunk in column.chunks):
        nulls = len(column) - len(column.cast(column.type.value_type).drop_null())
    return nulls
