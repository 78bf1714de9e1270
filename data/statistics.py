"""Mergeable summaries of columns: what kinds, scales and vocabularies are decided from. Float64 throughout.

A leaf is a slice of one row group's training rows; leaves are merged in file order, in runs that the table alone decides, so the
result is the same to the last bit whatever the blocks and the number of workers.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from data.dependencies import Dependencies
from data.grids import MAX_PLACES, off_grid_counts, relative_rounding
from data.hashing import hash_values
from data.moments import Moments
from data.sketches import DistinctSketch, QuantileSketch
from data.types import MAX_EXACT_INTEGER, counted_from, is_list, is_number, is_temporal, is_text, to_float64, to_ticks
from data.value_counts import Entries, ValueCounts, plain_type

# Text and named categories are counted exactly up to here, and approximately beyond.
MAX_DISTINCT = 1_000_000
# Integers with more different values than this are quantities, whose counts nobody asks for.
MAX_DISTINCT_INTEGERS = 10_000
MAX_DECIMAL_DIGITS = 76
# So many different floats of a column are counted, the most frequent ones; of a leaf with more those that one in so many rows have.
MAX_REPEATED = 1000
# A value that 5 % of the rows have comes again among so many of them, but for once in 10^9 times.
SAMPLE_VALUES = 512
# Elements of lists that are summed at once: float64 that a second-level cache holds.
BLOCK_ELEMENTS = 1 << 16


@dataclass
class ColumnSummary:
    """What one column's training rows hold.

    num_missing_elements: of lists, null or not finite. decimals: the least and the greatest, which float64 may not tell apart.
    sketch: of finite numbers. counts: None for types that are not counted. all_distinct: no value came twice within a leaf.
    first_nonfinite: the file that holds the first NaN or infinity. off_grid: how many floats or decimals have more than 0, 1, ..
    MAX_PLACES decimal places; none of other types. at_ends: how many floats are the least, and how many the greatest.
    repeated: of floats, those that come often, by their bits, not all of them counted; None for other types.
    stride: of integers and ticks, one of them and the greatest common divisor of their differences, 0 of a single one.
    """

    num_values: int = 0
    num_nulls: int = 0
    num_nonfinite: int = 0
    num_missing_elements: int = 0
    moments: Moments | None = None
    decimals: tuple[Decimal, Decimal] | None = None
    sketch: QuantileSketch | None = None
    sizes: set[int] = field(default_factory=set)
    counts: ValueCounts | None = None
    distinct: DistinctSketch | None = None
    all_distinct: bool = True
    first_nonfinite: str | None = None
    off_grid: tuple[int, ...] = (0,) * (MAX_PLACES + 1)
    at_ends: tuple[int, int] = (0, 0)
    repeated: ValueCounts | None = None
    stride: tuple[int, int] | None = None

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
            self.num_missing_elements + other.num_missing_elements,
            merge_moments(self.moments, other.moments),
            merge_ranges(self.decimals, other.decimals),
            merged(self.sketch, other.sketch),
            self.sizes | other.sizes if len(self.sizes) < 3 else self.sizes,
            merged(self.counts, other.counts),
            merged(self.distinct, other.distinct),
            self.all_distinct and other.all_distinct,
            self.first_nonfinite or other.first_nonfinite,
            tuple(a + b for a, b in zip(self.off_grid, other.off_grid, strict=True)),
            merge_ends(self, other),
            merged(self.repeated, other.repeated),
            merge_strides(self.stride, other.stride),
        )

    def finished(self) -> ColumnSummary:
        """Returns this summary with counts that are cheap to read."""
        counts, repeated = (None if part is None else part.finished() for part in (self.counts, self.repeated))
        return replace(self, counts=counts, repeated=repeated)


def merged(a: Any, b: Any) -> Any:
    """Returns the merge of two sketches of one class, either of which may be None for nothing seen."""
    return b if a is None else a if b is None else a.merge(b)


def merge_moments(a: Moments | None, b: Moments | None) -> Moments | None:
    """Returns the moments of both; of the former where lists differ in length, which have none together."""
    if a is None or b is None:
        return b if a is None else a
    return a.merge(b) if a.mean.shape == b.mean.shape else a


def merge_ends(a: ColumnSummary, b: ColumnSummary) -> tuple[int, int]:
    """Returns how many of both columns' scalars are the least of all, and the greatest."""
    if a.moments is None or b.moments is None:
        return b.at_ends if a.moments is None else a.at_ends
    least, other = a.moments.minimum[0], b.moments.minimum[0]
    first = a.at_ends[0] * int(least <= other) + b.at_ends[0] * int(other <= least)
    greatest, other = a.moments.maximum[0], b.moments.maximum[0]
    return first, a.at_ends[1] * int(greatest >= other) + b.at_ends[1] * int(other >= greatest)


def merge_strides(a: tuple[int, int] | None, b: tuple[int, int] | None) -> tuple[int, int] | None:
    if a is None or b is None:
        return b if a is None else a
    return min(a[0], b[0]), math.gcd(a[1], b[1], a[0] - b[0])


def merge_ranges(a: tuple[Decimal, Decimal] | None, b: tuple[Decimal, Decimal] | None) -> tuple[Decimal, Decimal] | None:
    if a is None or b is None:
        return b if a is None else a
    return min(a[0], b[0]), max(a[1], b[1])


@dataclass
class TableSummary:
    """Rows per side of the split, and one summary per column over the training rows; dependencies: None where there was no row."""

    num_rows: tuple[int, int, int]
    columns: dict[str, ColumnSummary]
    dependencies: Dependencies | None = None

    def merge(self, other: TableSummary) -> TableSummary:
        a, b = self.num_rows, other.num_rows
        columns = {name: summary.merge(other.columns[name]) for name, summary in self.columns.items()}
        return TableSummary((a[0] + b[0], a[1] + b[1], a[2] + b[2]), columns, merged(self.dependencies, other.dependencies))


def merge_all(leaves: Iterable[TableSummary]) -> TableSummary:
    """Returns the summary of one leaf or more, merged in their order."""
    iterator = iter(leaves)
    total = next(iterator)
    for leaf in iterator:
        total = total.merge(leaf)
    return replace(total, columns={name: summary.finished() for name, summary in total.columns.items()})


def summarise_table(table: pa.Table, num_rows: tuple[int, int, int], categorical: Collection[str] = ()) -> TableSummary:
    """Returns the summary of one leaf; categorical: integer columns whose values are counted as text's are."""
    return TableSummary(num_rows, {name: summarise(table[name], name in categorical) for name in table.column_names})


def summarise(column: pa.ChunkedArray, categorical: bool = False) -> ColumnSummary:
    """Returns the summary of one leaf's column; categorical: its integers are counted as text is."""
    kind = column.type
    if pa.types.is_dictionary(kind) and not is_text(kind):
        column, kind = column.cast(kind.value_type), kind.value_type
    nulls = num_missing(column)
    summary = ColumnSummary(len(column) - nulls, nulls, all_distinct=nulls == len(column))
    if summary.num_values == 0:
        return summary
    if is_list(kind):
        summarise_lists(column, summary)
    elif is_text(kind) or pa.types.is_boolean(kind):
        summary.counts = ValueCounts.of(column, MAX_DISTINCT)
        if is_text(kind):
            note_distinct(summary.counts.parts[0].values if summary.counts.exact else pc.unique(column.drop_null()), summary)
    elif is_number(kind) or is_temporal(kind):
        column = column.drop_null() if nulls else column
        summarise_numbers(column, summary)
        if pa.types.is_integer(kind) or is_temporal(kind):
            entries = integer_counts(to_ticks(column) if is_temporal(kind) else column)
            summary.counts = ValueCounts.counted(entries, MAX_DISTINCT if categorical else MAX_DISTINCT_INTEGERS)
            note_distinct(entries.values, summary)
            summary.stride = stride_of(np.asarray(entries.values.to_numpy()))
    return summary


def summarise_numbers(column: pa.ChunkedArray, summary: ColumnSummary) -> None:
    values = to_float64(column)
    finite = values if np.isfinite(values).all() else values[np.isfinite(values)]
    summary.num_nonfinite = len(values) - len(finite)
    if len(finite):
        summary.moments = Moments.of(finite[:, None])
        if summary.moments.magnitude > MAX_EXACT_INTEGER and (is_temporal(column.type) or pa.types.is_integer(column.type)):
            summary.moments = moments_from_base(column, summary.moments)
        summary.sketch = QuantileSketch.of(finite)
        if pa.types.is_floating(column.type) or pa.types.is_decimal(column.type):
            summary.off_grid = off_grid_counts(finite, relative_rounding(column.type))
            ends = summary.moments.minimum[0], summary.moments.maximum[0]
            summary.at_ends = int(np.count_nonzero(finite == ends[0])), int(np.count_nonzero(finite == ends[1]))
            summary.repeated = repeated_values(finite)
    if pa.types.is_decimal(column.type):
        ends = pc.min_max(column.cast(pa.decimal256(MAX_DECIMAL_DIGITS, column.type.scale))).as_py()
        summary.decimals = ends["min"], ends["max"]


def moments_from_base(column: pa.ChunkedArray, rounded: Moments) -> Moments:
    """Returns the moments of 64-bit integers or ticks, which are counted from one of them."""
    numbers = np.asarray((to_ticks(column) if is_temporal(column.type) else column).to_numpy())
    moments = Moments.of(counted_from(int(rounded.minimum[0]), numbers)[:, None])
    return replace(moments, minimum=rounded.minimum, maximum=rounded.maximum, base=rounded.minimum)


def repeated_values(values: NDArray[np.float64]) -> ValueCounts:
    """Returns how often the values [n], n >= 1, come, by their bits; of many, the frequent ones, and none where all of a sample differ."""
    few = values[:: -(-len(values) // SAMPLE_VALUES)]
    differ = len(values) > MAX_REPEATED and len(np.unique(few)) == len(few)
    bits = (values[:0] if differ else values + 0.0).view(np.int64)  # no negative zero
    found = pc.value_counts(pa.array(bits, pa.int64()))
    entries = Entries(found.field("values"), found.field("counts").to_numpy())
    if len(entries.counts) > MAX_REPEATED:
        often = entries.counts * MAX_REPEATED >= len(values)
        entries = Entries(entries.values.filter(pa.array(often)), entries.counts[often])
    return ValueCounts.counted(entries, MAX_REPEATED)


def summarise_lists(column: pa.ChunkedArray, summary: ColumnSummary) -> None:
    """Adds up the elements block by block of rows, as a float64 copy of all would take many times their memory."""
    summary.sizes = set(pc.unique(pc.list_value_length(column).drop_null()).to_pylist()[:3])
    (size,) = summary.sizes if len(summary.sizes) == 1 else (0,)
    if size == 0 or not is_number(column.type.value_type):
        return
    elements = pc.list_flatten(column)
    block = size * max(1, BLOCK_ELEMENTS // size)
    for begin in range(0, len(elements), block):
        values = to_float64(elements.slice(begin, block))
        missing = ~np.isfinite(values)
        if missing.any():
            values = np.where(missing, np.nan, values)
            summary.num_missing_elements += int(missing.sum())
        summary.moments = merge_moments(summary.moments, Moments.of(values.reshape(-1, size)))
    summary.num_nonfinite = summary.num_missing_elements - elements.null_count


def integer_counts(column: pa.ChunkedArray) -> Entries:
    """Returns each integer once, ascending, and how often it occurs; sorting takes half the time of hashing (pyarrow 25.0)."""
    kind = plain_type(column.type)
    values = np.asarray(column.cast(kind).to_numpy())
    low, span = values.min(), int(values.max()) - int(values.min()) + 1
    if span <= 4 * len(values):
        table = np.bincount((values - low).astype(np.int64))
        used = np.flatnonzero(table)
        return Entries(pa.array(used.astype(values.dtype) + low, kind), table[used])
    values = np.sort(values)
    starts = np.flatnonzero(np.concatenate([[True], values[1:] != values[:-1]]))
    return Entries(pa.array(values[starts], kind), np.diff(starts, append=len(values)))


def stride_of(values: NDArray[Any]) -> tuple[int, int]:
    """Returns the least of different integers, ascending, and the greatest common divisor of their differences, 0 of a single one."""
    step, wide = 0, values if values.dtype == np.uint64 else values.astype(np.int64)
    for begin in range(0, len(wide) - 1, BLOCK_ELEMENTS):
        gaps = np.diff(wide[begin : begin + BLOCK_ELEMENTS + 1]).view(np.uint64)  # right even where int64 wraps around
        step = math.gcd(step, int(np.gcd.reduce(gaps[:SAMPLE_VALUES])))
        if step != 1:
            step = math.gcd(step, int(np.gcd.reduce(gaps)))
        if step == 1:
            break
    return int(values[0]), step


def note_distinct(distinct: pa.Array, summary: ColumnSummary) -> None:
    summary.distinct = DistinctSketch.of(hash_values(distinct))
    summary.all_distinct = len(distinct) == summary.num_values


def num_missing(column: pa.ChunkedArray) -> int:
    """Returns the number of nulls, those included that a dictionary holds."""
    nulls: int = column.null_count
    if pa.types.is_dictionary(column.type) and any(chunk.dictionary.null_count for chunk in column.chunks):
        nulls = len(column) - len(column.cast(column.type.value_type).drop_null())
    return nulls
