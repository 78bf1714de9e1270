"""Who is training: every row's side of the split, from a keyed hash of its key (or place) and nothing else.

The hash depends on the key's value only, so a row keeps its side whatever the files, blocks, workers and machine.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data.statistics import is_text
from data.table import DataError, RowGroup

TRAIN, VALIDATION, TEST = 0, 1, 2
SPLITS = {"train": TRAIN, "validation": VALIDATION, "test": TEST}

Hashes = NDArray[np.uint64]

# Numbers of our own, fixed for ever: another number would move rows between the sides of every model's split.
INTEGER_KEY = np.uint64(0x9AE16A3B2F90404F)
BYTE_TABLE = np.random.Generator(np.random.Philox(key=20260101)).integers(0, 2**64, 256, dtype=np.uint64)
POWER = np.uint64(0x9E3779B97F4A7C15)


def mix(x: Hashes) -> Hashes:
    """Returns the splitmix64 finaliser of x (Steele et al. 2014): every input bit moves every output bit."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def hash_integers(values: NDArray[np.int64], key: np.uint64 = INTEGER_KEY) -> Hashes:
    return mix(values.view(np.uint64) ^ key)


def hash_strings(values: pa.LargeBinaryArray) -> Hashes:
    """Returns a 64-bit hash per string: random numbers of its bytes, times powers of an odd number by place, mixed."""
    offsets = np.frombuffer(values.buffers()[1], np.int64, len(values) + 1, values.offset * 8)
    begin, end = int(offsets[0]), int(offsets[-1])
    buffer = values.buffers()[2]
    content = np.frombuffer(buffer, np.uint8, end - begin, begin) if end > begin else np.zeros(0, np.uint8)
    lengths = np.diff(offsets)
    places = np.arange(end - begin) - np.repeat(offsets[:-1] - begin, lengths)
    powers = np.full(int(lengths.max(initial=0)) + 1, POWER, np.uint64).cumprod(dtype=np.uint64)
    terms = np.concatenate([np.zeros(1, np.uint64), (BYTE_TABLE[content] * powers[places]).cumsum(dtype=np.uint64)])
    sums = terms[offsets[1:] - begin] - terms[offsets[:-1] - begin]
    return mix(sums ^ mix(lengths.astype(np.uint64) ^ INTEGER_KEY))


def hash_key_column(column: pa.ChunkedArray, where: str) -> Hashes:
    """Returns the hash of each key. Raises DataError for nulls and for types that identify nothing."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if column.null_count:
        raise DataError(f"{where}: the key column has {column.null_count} nulls; every row needs its key")
    array = column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)
    if pa.types.is_integer(array.type):
        unsigned = array.type == pa.uint64()
        return hash_integers(
            array.to_numpy(zero_copy_only=False).view(np.int64) if unsigned else array.cast(pa.int64()).to_numpy(zero_copy_only=False)
        )
    if is_text(array.type) or pa.types.is_binary(array.type) or pa.types.is_large_binary(array.type):
        return hash_strings(array.cast(pa.large_binary()))
    raise DataError(f"{where}: the key column is {array.type}; a key is an integer or a string")


def hash_places(group: RowGroup) -> Hashes:
    """Returns the hash of each row's place: its file's content identity and its position in the file."""
    positions = np.arange(group.first_row, group.first_row + group.num_rows, dtype=np.int64)
    return hash_integers(positions, np.uint64(int(group.identity[:16], 16)))


def split_of(hashes: Hashes, validation_fraction: float, test_fraction: float) -> NDArray[np.int8]:
    """Returns TRAIN, VALIDATION or TEST per row; the fractions hold up to sampling error."""
    place = (hashes >> np.uint64(11)).astype(np.float64) * 2.0**-53
    result = np.full(len(hashes), TRAIN, np.int8)
    result[place < validation_fraction + test_fraction] = TEST
    result[place < validation_fraction] = VALIDATION
    return result


def split_rows(table: pa.Table, group: RowGroup, key: str | None, fractions: tuple[float, float]) -> NDArray[np.int8]:
    """Returns the side of every row of a row group; `table` holds the key column where there is one."""
    hashes = hash_places(group) if key is None else hash_key_column(table[key], f"{group.path}: column {key!r}")
    return split_of(hashes, *fractions)


def take(table: pa.Table, mask: NDArray[np.bool_]) -> pa.Table:
    """Returns the rows where mask is true (the table itself where it always is)."""
    return table if mask.all() else table.filter(pa.array(mask))
