"""How many rows of one table are in another, value for value. Memory is bounded, whatever the tables hold.

Rows are compared by 64-bit hashes first; where these agree, SHA-256 of the rows' values decides. Shapes: B rows, D elements of a list.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pyarrow import fs

from data.column import Column
from data.decoding import settled
from data.fields import one_array
from data.hashing import POWER, Hashes, hash_integers, hash_values, mix
from data.reading import MAX_BATCH_BYTES, RowReader
from data.scan import in_order, runs
from data.table import RowGroup, Table
from data.types import is_list, is_temporal, is_text, to_float64, to_ticks

# Rows whose hashes are held at once: 64 MiB of them. The other table is read once for every so many.
MAX_HELD_ROWS = 2**23
NULL_HASH = np.uint64(0x6A09E667F3BCC908)


@dataclass(frozen=True)
class CompareTask:
    """What a comparing task is told. schema: the columns that are compared, in the types in which both tables are read.

    suspected: hashes, ascending, of rows that are to be looked at; digests: those of rows that the other table has. columns: where floats
    lie on grids, as numbers of which they are compared.
    """

    filesystem: fs.FileSystem
    schema: pa.Schema
    max_batch_bytes: int
    suspected: Hashes
    digests: frozenset[bytes]
    columns: tuple[Column, ...] = ()

    def slices(self, groups: Sequence[RowGroup]) -> Iterator[tuple[pa.Table, Hashes]]:
        """Yields the rows, slice by slice, and their hashes."""
        with RowReader(self.filesystem, self.schema, self.max_batch_bytes) as reader:
            for group in groups:
                for _, found in reader.slices(group):
                    rows = settled(found, self.columns)
                    yield rows, hash_rows(rows)


def count_copies(
    table: Table, other: Table, schema: pa.Schema, max_batch_bytes: int = MAX_BATCH_BYTES, columns: tuple[Column, ...] = ()
) -> int:
    """Returns how many rows of a table equal some row of the other in all columns of the schema; a null equals a null.

    columns: those of whose floats on a grid the nearest number of the grid is compared.
    """
    nothing = np.zeros(0, np.uint64), frozenset[bytes]()
    here, there = (CompareTask(each.filesystem, schema, max_batch_bytes, *nothing, columns) for each in (table, other))
    total = 0
    for groups in held_at_once(list(table.row_groups())):
        suspected = np.unique(np.concatenate([*in_order(distinct_hashes, here, runs(groups))]))
        found = in_order(suspected_digests, replace(there, suspected=suspected), runs(list(other.row_groups())))
        digests = frozenset().union(*found)
        total += sum(in_order(count_known, replace(here, suspected=suspected, digests=digests), runs(groups))) if digests else 0
    return total


def held_at_once(groups: Sequence[RowGroup]) -> Iterator[list[RowGroup]]:
    """Yields the row groups in runs of at most MAX_HELD_ROWS rows, or of one row group."""
    run: list[RowGroup] = []
    for group in groups:
        if run and sum(each.num_rows for each in run) + group.num_rows > MAX_HELD_ROWS:
            yield run
            run = []
        run.append(group)
    yield run


def distinct_hashes(task: CompareTask, groups: Sequence[RowGroup]) -> Hashes:
    return np.unique(np.concatenate([np.zeros(0, np.uint64), *(hashes for _, hashes in task.slices(groups))]))


def suspected_digests(task: CompareTask, groups: Sequence[RowGroup]) -> set[bytes]:
    """Returns the digests of the rows whose hash is suspected, one row for each hash."""
    found: dict[int, bytes] = {}
    for rows, hashes in task.slices(groups):
        for number, digest, _ in digests_of_suspected(rows, hashes, task.suspected):
            found.setdefault(number, digest)
    return set(found.values())


def count_known(task: CompareTask, groups: Sequence[RowGroup]) -> int:
    """Returns how many rows have a digest that is known."""
    return sum(
        count
        for rows, hashes in task.slices(groups)
        for _, digest, count in digests_of_suspected(rows, hashes, task.suspected)
        if digest in task.digests
    )


def digests_of_suspected(rows: pa.Table, hashes: Hashes, suspected: Hashes) -> Iterator[tuple[int, bytes, int]]:
    """Yields every suspected hash among the rows', the SHA-256 of the first row that has it, and how many have it."""
    distinct, first, counts = np.unique(hashes, return_index=True, return_counts=True)
    chosen = np.flatnonzero(np.isin(distinct, suspected))
    values = plain_rows(rows.take(pa.array(first[chosen]))).to_pylist()
    for place, row in zip(chosen.tolist(), values, strict=True):
        yield int(distinct[place]), hashlib.sha256(repr(list(row.values())).encode()).digest(), int(counts[place])


def plain_rows(rows: pa.Table) -> pa.Table:
    """Returns rows that Python holds and prints alike where `hash_rows` takes them for equal."""
    return pa.Table.from_arrays([plain_cells(one_array(column)) for column in rows.columns], rows.column_names)


def plain_cells(column: pa.Array) -> pa.Array:
    """Returns points in time as ticks, as they may lie beyond Python's calendar, and floats without negative zeros; of lists too."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if is_list(column.type):
        lengths = pc.list_value_length(column).fill_null(0).to_numpy(zero_copy_only=False)
        offsets = pa.array(np.append(0, lengths.cumsum(dtype=np.int64)))
        return pa.LargeListArray.from_arrays(offsets, plain_cells(pc.list_flatten(column)), mask=column.is_null())
    if is_temporal(column.type):
        return to_ticks(column)
    return pc.add(column.cast(pa.float64()), 0.0) if pa.types.is_floating(column.type) else column


def hash_rows(rows: pa.Table) -> Hashes:
    """Returns a hash of every row's values, the same whatever their dictionaries and chunks."""
    total = np.zeros(rows.num_rows, np.uint64)
    for column in rows.columns:
        total = mix(total * POWER + hash_cells(one_array(column)))
    return total


def hash_cells(column: pa.Array) -> Hashes:
    """Returns a hash of every cell, [B]; nulls have one of their own."""
    if pa.types.is_dictionary(column.type) and (column.dictionary.null_count or not is_text(column.type)):
        column = column.dictionary_decode()
    there = np.asarray(pc.is_valid(column).to_numpy(zero_copy_only=False), np.bool_)
    hashes = np.full(len(column), NULL_HASH, np.uint64)
    values = column.drop_null()
    hashes[there] = hash_lists(values) if is_list(values.type) else hash_scalars(values)
    return hashes


def hash_scalars(values: pa.Array) -> Hashes:
    """Returns a hash of every value of an array without nulls."""
    if is_temporal(values.type):
        values = to_ticks(values)
    if pa.types.is_floating(values.type):
        return hash_integers((to_float64(values) + 0.0).view(np.int64))  # -0.0 + 0.0 is 0.0
    if pa.types.is_boolean(values.type):
        values = values.cast(pa.int64())
    return hash_values(values.cast(pa.large_string()) if pa.types.is_decimal(values.type) else values)


def hash_lists(values: pa.Array) -> Hashes:
    """Returns a hash of every list of an array without nulls: the elements' hashes times powers of an odd number by place, mixed."""
    lengths: NDArray[np.int64] = pc.list_value_length(values).to_numpy().astype(np.int64)
    elements = hash_cells(values.flatten())
    ends = lengths.cumsum()
    places = np.arange(len(elements)) - np.repeat(ends - lengths, lengths)
    powers = np.full(int(lengths.max(initial=0)) + 1, POWER, np.uint64).cumprod(dtype=np.uint64)
    terms = np.concatenate([np.zeros(1, np.uint64), (elements * powers[places]).cumsum(dtype=np.uint64)])
    sums: Hashes = terms[ends] - terms[ends - lengths]
    return mix(sums ^ mix(lengths.view(np.uint64)))
