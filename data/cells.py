"""Cells of one Arrow array as NumPy numbers and flags, without a Python object per cell. Shapes: B cells."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from data.columns import Column
from data.listing import DataError
from data.types import is_temporal, is_text, ticks_type

# The largest standardised cell: float32 holds its square.
LARGEST_CELL = 1e18


def present(array: pa.Array, flags: NDArray[np.bool_]) -> None:
    """Writes which cells are not null into flags [B], from the array's bitmap."""
    bitmap = array.buffers()[0] if array.null_count else None
    if bitmap is None:
        flags[:] = True
    else:
        bits = np.unpackbits(np.frombuffer(bitmap, np.uint8), bitorder="little", count=array.offset + len(array))
        flags[:] = bits[array.offset :].view(np.bool_)


def raw_numbers(array: pa.Array) -> NDArray[Any]:
    """Returns the numbers [B] in their own NumPy type where there is one, else float64; null cells hold anything."""
    if is_temporal(array.type):
        array = array.view(ticks_type(array.type))
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if pa.types.is_decimal(array.type):
        array = array.cast(pa.float64(), safe=False)
    dtype = np.dtype(array.type.to_pandas_dtype())
    return np.frombuffer(array.buffers()[1], dtype, len(array), array.offset * dtype.itemsize) if len(array) else np.zeros(0, dtype)


def finite_numbers(array: pa.Array, valid: NDArray[np.bool_], place: str, nonfinite: str) -> NDArray[np.float64]:
    """Returns float64 numbers [B], 0 where not valid; NaN and infinities are refused by DataError, or made not valid."""
    numbers = raw_numbers(array).astype(np.float64)
    numbers[~valid] = 0
    bad = ~np.isfinite(numbers)
    if bad.any():
        if nonfinite == "error":
            raise DataError(f"{place} has {int(bad.sum())} NaN or infinite values; store them as null, or train with --data.nonfinite null")
        valid &= ~bad
        numbers[bad] = 0
    return numbers


def mask_missing(cells: NDArray[Any], valid: NDArray[np.bool_]) -> None:
    """Sets missing cells of a 4-byte type to 0, whatever they held."""
    bits = cells.view(np.int32)
    np.bitwise_and(bits, np.negative(valid.view(np.int8), dtype=np.int32), out=bits)


def encode_categories(array: pa.Array, column: Column, codes: NDArray[np.int32], valid: NDArray[np.bool_], unseen: Counter[str]) -> None:
    """Writes codes [B] (0 where missing) and flags [B]. A value without a code of its own is "other", or missing where there is none."""
    if pa.types.is_dictionary(array.type):
        table = codes_of(array.dictionary, column)
        present(array.indices, valid)
        indices = raw_numbers(array.indices)
        np.take(table, indices, mode="clip", out=codes) if len(table) else codes.fill(0)
        known_nulls = array.dictionary.null_count
    else:
        codes[:] = codes_of(array, column)
        present(array, valid)
        known_nulls = 0
    if array.null_count or known_nulls:
        mask_missing(codes, valid)
    if len(codes) and int(codes.min()) < 0:
        settle_unseen(array, column, codes, valid, unseen)


def settle_unseen(array: pa.Array, column: Column, codes: NDArray[np.int32], valid: NDArray[np.bool_], unseen: Counter[str]) -> None:
    unknown = codes == -1
    unseen[column.name] += int(unknown.sum())
    lost = codes == -2 if column.other else codes < 0
    if column.other:
        codes[unknown] = len(column.categories)
    valid &= ~lost
    codes[lost] = 0


def codes_of(values: pa.Array, column: Column) -> NDArray[np.int32]:
    """Returns each value's code; -1 for a value that has none, -2 for a null."""
    kind = pa.large_string() if is_text(values.type) else values.type
    known = pa.array(column.categories, pa.large_string() if is_text(values.type) else None)
    known = known.cast(kind)
    codes: NDArray[np.int32] = pc.fill_null(pc.index_in(values.cast(kind), known), -1).to_numpy(zero_copy_only=False).astype(np.int32)
    if values.null_count:
        codes[values.is_null().to_numpy(zero_copy_only=False)] = -2
    return codes
