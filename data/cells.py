"""Cells of one Arrow array as NumPy numbers and flags, without a Python object per cell. Shapes: B cells."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from data.column import Column
from data.types import is_temporal, to_ticks

# The largest standardised cell: float32 holds its square.
LARGEST_CELL = 1e18
# The eight flags that a byte of a bitmap holds, as eight bytes.
EIGHT_FLAGS = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little").view(np.uint64).ravel()


def empty(shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
    """Returns an array of any content, in memory of Arrow's pool: what one batch frees the next one takes, without asking the system."""
    num_bytes = math.prod(shape) * np.dtype(dtype).itemsize
    return np.frombuffer(pa.allocate_buffer(num_bytes), dtype).reshape(shape)


def flags_of(arrays: Sequence[pa.Array]) -> NDArray[np.bool_]:
    """Returns which cells of some arrays of one length are not null, [arrays, B], all bitmaps unpacked at once."""
    num_cells = len(arrays[0])
    bitmaps = np.full((len(arrays), -(-num_cells // 8)), 255, np.uint8)
    for row, array in zip(bitmaps, arrays, strict=True):
        if array.null_count:
            if array.offset % 8:
                array = pa.concat_arrays([array])  # a copy, which begins at a byte
            row[:] = np.frombuffer(array.buffers()[0], np.uint8, len(row), array.offset // 8)
    words = np.take(EIGHT_FLAGS, bitmaps, mode="clip", out=empty(bitmaps.shape, np.uint64))
    return words.view(np.bool_)[:, :num_cells]


def raw_numbers(array: pa.Array) -> NDArray[Any]:
    """Returns the numbers [B] in their own NumPy type where there is one, else float64; null cells hold anything."""
    if is_temporal(array.type):
        array = to_ticks(array)
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if pa.types.is_decimal(array.type):
        array = array.cast(pa.float64(), safe=False)
    dtype = np.dtype(array.type.to_pandas_dtype())
    return np.frombuffer(array.buffers()[1], dtype, len(array), array.offset * dtype.itemsize) if len(array) else np.zeros(0, dtype)


def mask_missing(cells: NDArray[Any], valid: NDArray[np.bool_]) -> None:
    """Sets missing cells of a 4-byte type to 0, whatever they held."""
    bits = cells.view(np.int32)
    np.bitwise_and(bits, np.negative(valid.view(np.int8)).astype(np.int32), out=bits)


def sums_where(valid: NDArray[np.bool_], weights: Sequence[float]) -> NDArray[np.float64]:
    """Returns sum_d weights[d] valid[d, b] for flags [D, B]: a table lookup for every eight columns, by the bits that their flags make."""
    num_cells = valid.shape[1]
    words = -(-num_cells // 8)
    padded = valid if num_cells % 8 == 0 else np.pad(valid, ((0, 0), (0, 8 * words - num_cells)))
    sums, part = empty((8 * words,), np.float64), empty((8 * words,), np.float64)
    sums[:] = 0
    for begin in range(0, len(padded), 8):
        patterns, table = np.zeros(words, np.uint64), np.zeros(1)
        for flags, weight in zip(padded[begin : begin + 8], weights[begin : begin + 8], strict=True):
            patterns = patterns << np.uint64(1) | flags.view(np.uint64)
            table = np.ravel(table[:, None] + [0.0, weight])
        sums += np.take(table, patterns.view(np.uint8), mode="clip", out=part)
    return sums[:num_cells]


def encode_categories(array: pa.Array, column: Column, codes: NDArray[np.int32], valid: NDArray[np.bool_], unseen: Counter[str]) -> None:
    """Writes codes [B], 0 where not valid. A value without a code of its own is "other", or no longer valid where there is none."""
    if pa.types.is_dictionary(array.type):
        table = codes_of(array.dictionary, column)
        np.take(table if len(table) else np.zeros(1, np.int32), raw_numbers(array.indices), mode="clip", out=codes)
    else:
        codes[:] = codes_of(array, column)
    if array.null_count:
        mask_missing(codes, valid)
    if len(codes) and int(codes.min()) < 0:
        settle_unseen(column, codes, valid, unseen)


def settle_unseen(column: Column, codes: NDArray[np.int32], valid: NDArray[np.bool_], unseen: Counter[str]) -> None:
    unknown = codes == -1
    unseen[column.name] += int(unknown.sum())
    lost = codes == -2 if column.other else codes < 0
    if column.other:
        codes[unknown] = len(column.categories)
    valid &= ~lost
    codes[lost] = 0


def codes_of(values: pa.Array, column: Column) -> NDArray[np.int32]:
    """Returns each value's code; -1 for a value that has none, -2 for a null."""
    codes = pc.index_in(values, pa.array(column.categories, values.type))
    known: NDArray[np.int32] = raw_numbers(codes.fill_null(-1) if codes.null_count else codes)
    if values.null_count:
        known = np.where(values.is_valid().to_numpy(zero_copy_only=False), known, np.int32(-2))
    return known
