"""How often each value of one column occurs, mergeable and in bounded memory. Shapes: D distinct values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

# Text beyond this overflows like too many values do: a column of documents is no category, and a driver holds many columns.
MAX_VALUE_BYTES = 1 << 28
# Merged parts wait until they weigh as much as what they are merged into (so that an entry is handled about twice), or this much.
# Every part weighs what it costs to open, say as much as 4 KiB of entries.
MIN_WAITING_BYTES = 1 << 20
PART_BYTES = 1 << 12


class Entries(NamedTuple):
    """Distinct values [D], and how often each occurs [D]."""

    values: pa.Array
    counts: NDArray[np.int64]

    @property
    def num_bytes(self) -> int:
        return int(self.values.nbytes) + self.counts.nbytes + PART_BYTES


@dataclass(frozen=True, eq=False)
class ValueCounts:
    """How often each value of a column of text, integers or booleans occurs: exactly, up to `capacity` distinct values.

    With more (or more than MAX_VALUE_BYTES of text) at most `capacity` of the most frequent are kept: the count of the first that does not
    fit is subtracted from all, and what is left without a count goes (Misra & Gries 1982; merged, Agarwal et al., PODS 2012). A value's
    true count is then its count, 0 if absent, or up to `error` more. Ties go together, so what is kept depends on counts alone, and when
    the subtractions happen on the sequence of merges alone.

    parts: what was merged and waits for `finished`, consolidated first. total: values counted, nulls left out.
    """

    capacity: int
    parts: tuple[Entries, ...]
    num_bytes: int
    total: int
    subtracted: int

    @staticmethod
    def of(column: pa.ChunkedArray, capacity: int) -> ValueCounts:
        """Returns the counts of a column's values. Raises TypeError for types that are not counted."""
        kind = plain_type(column.type)
        if pa.types.is_dictionary(column.type):
            empty = Entries(pa.array([], kind), np.zeros(0, np.int64))
            entries = combined([empty, *(count_indices(chunk, kind) for chunk in column.chunks)])
        else:
            found = pc.value_counts(column.cast(kind))
            entries = valid_entries(found.field("values"), found.field("counts").to_numpy())
        return ValueCounts.counted(entries, capacity)

    @staticmethod
    def counted(entries: Entries, capacity: int) -> ValueCounts:
        """Returns the counts of values that are counted already."""
        return ValueCounts(capacity, (), 0, int(entries.counts.sum()), 0).limited(entries)

    def merge(self, other: ValueCounts) -> ValueCounts:
        """Returns the counts of both sets of values."""
        assert self.capacity == other.capacity
        total, subtracted = self.total + other.total, self.subtracted + other.subtracted
        parts, num_bytes = self.parts + other.parts, self.num_bytes + other.num_bytes
        merged = replace(self, parts=parts, num_bytes=num_bytes, total=total, subtracted=subtracted)
        consolidated = parts[0].num_bytes
        return merged.finished() if num_bytes - consolidated > max(MIN_WAITING_BYTES, consolidated) else merged

    def finished(self) -> ValueCounts:
        """Returns these counts with nothing waiting. Ask for it once, after the last merge: each reading of what waits adds it up anew."""
        return self if len(self.parts) <= 1 else self.limited(combined(self.parts))

    def limited(self, entries: Entries) -> ValueCounts:
        """Returns these counts with nothing but these entries, or with what of them fits."""
        least = count_to_subtract(entries, self.capacity)
        if least:
            keep = entries.counts > least
            entries = Entries(entries.values.filter(pa.array(keep)), entries.counts[keep] - least)
        return replace(self, parts=(entries,), num_bytes=entries.num_bytes, subtracted=self.subtracted + least)

    @property
    def entries(self) -> Entries:
        """The values and their counts."""
        return self.finished().parts[0]

    @property
    def error(self) -> int:
        """How much a value's count may be too low."""
        return self.finished().subtracted

    @property
    def exact(self) -> bool:
        return self.error == 0

    @property
    def num_distinct(self) -> int:
        """The number of distinct values, or capacity + 1 for 'more than were counted'."""
        finished = self.finished()
        return self.capacity + 1 if finished.subtracted else len(finished.parts[0].counts)

    @property
    def is_one_value(self) -> bool:
        return self.num_distinct == 1

    def most_common(self, n: int, min_count: int = 1) -> tuple[list[Any], list[int]]:
        """Returns up to n values that occur min_count times or more, and their counts: by count descending, then value ascending.

        Text is in the order of its code points, as in Python.
        """
        values, counts = self.entries
        if n < len(counts):
            min_count = max(min_count, int(np.partition(counts, -n)[-n]))
        table = pa.table({"value": values, "count": counts}).filter(pa.array(counts >= min_count))
        order = pc.sort_indices(table, sort_keys=[("count", "descending"), ("value", "ascending")])
        chosen = table.take(order[:n])
        return chosen["value"].to_pylist(), chosen["count"].to_pylist()


def plain_type(kind: pa.DataType) -> pa.DataType:
    """Returns the type in which values of this type are counted, so that files may differ in width and encoding."""
    if pa.types.is_dictionary(kind):
        return plain_type(kind.value_type)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return pa.large_string()
    if pa.types.is_integer(kind):
        return pa.uint64() if pa.types.is_uint64(kind) else pa.int64()
    if pa.types.is_boolean(kind):
        return kind
    raise TypeError(f"values of type {kind} are not counted; text, integers and booleans are")


def count_indices(chunk: pa.DictionaryArray, kind: pa.DataType) -> Entries:
    """Returns the valid entries of the dictionary that are in use, and their counts; a dictionary may hold nulls and repeat values."""
    indices = chunk.indices.drop_null().cast(pa.int64()).to_numpy()
    counts = np.bincount(indices)
    used = np.flatnonzero(counts)
    return valid_entries(chunk.dictionary.take(pa.array(used)).cast(kind), counts[used])


def valid_entries(values: pa.Array, counts: NDArray[np.int64]) -> Entries:
    if not values.null_count:
        return Entries(values, counts)
    return Entries(values.drop_null(), counts[values.is_valid().to_numpy(zero_copy_only=False)])


def combined(parts: Sequence[Entries]) -> Entries:
    """Returns each value once, in the order of first appearance, with the sum of its counts."""
    if not any(len(part.counts) for part in parts):
        return parts[0]
    waiting = pa.concat_arrays([part.values for part in parts[1:]])
    # One hash table over both; pyarrow's group_by gives the same at 7 times the time for text (25.0).
    encoded = pa.chunked_array([parts[0].values, waiting]).dictionary_encode()
    values = encoded.chunk(0).dictionary
    counts = np.zeros(len(values), np.int64)
    indices = np.concatenate([chunk.indices.to_numpy() for chunk in encoded.chunks])
    np.add.at(counts, indices, np.concatenate([part.counts for part in parts]))
    return Entries(values, counts)


def count_to_subtract(entries: Entries, capacity: int) -> int:
    """Returns the largest count among the values that do not fit, 0 where all do."""
    values, counts = entries
    least = int(np.partition(counts, -capacity - 1)[-capacity - 1]) if len(counts) > capacity else 0
    if not pa.types.is_large_string(values.type) or values.nbytes <= MAX_VALUE_BYTES:
        return least
    order = np.argsort(-counts, kind="stable")
    ends = (pc.binary_length(values).to_numpy()[order] + 8).cumsum()  # and an offset each
    num_fitting = int(np.searchsorted(ends, MAX_VALUE_BYTES, side="right"))
    # However values of one count are ordered, the first that does not fit has this count.
    return max(least, int(counts[order[num_fitting]])) if num_fitting < len(order) else least
