"""Compact arrays back to Arrow: the column's own type, nulls and categories. Shapes: B rows, D cells."""

from __future__ import annotations

from collections.abc import Iterable
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data.column import Column
from data.fields import atom_cells, stored
from data.grids import on_grid
from data.lattices import TOLERANCE
from data.types import counted_on, from_ticks, integer_range, is_temporal, ticks_type, to_float64, to_ticks

# What a float32 that is drawn about a spike may be off, in roundings, and be its cell nevertheless.
SPIKE_ROUNDINGS = 16


def decode(column: Column, kind: pa.DataType, cells: NDArray[Any], valid: NDArray[np.bool_]) -> pa.Array:
    """Returns stored cells [B, D] as the column's type `kind`, null where valid [B] is false.

    Of a list whose elements may be null one by one valid is [B, D]; one without an element is null, if the column has null lists.
    """
    missing, missing_elements = ~valid, None
    if valid.ndim > 1:
        missing_elements = missing.reshape(-1)
        missing = np.asarray(missing.all(1) & (column.null_fraction > 0))
    match column.kind:
        case "boolean":
            return pa.array(cells[:, 0] > 0.5, mask=missing)  # of a probability, what is more probable
        case "categorical":
            # "Other" stands for values that are not kept, so it comes back as null.
            values = pa.array([*column.categories, None] if column.other else column.categories, plain_values(kind))
            return values.take(pa.array(cells[:, 0], mask=missing)).cast(storable(kind, column))
        case "numeric" | "count" | "timestamp":
            numbers = unwarped(destandardised(cells[:, 0], column.scale, column.mean[0]), column)
            for (atom, _), cell in zip(column.atoms, atom_cells(column), strict=True):
                numbers[cells[:, 0] == cell] = atom
            if column.spike is not None and column.width is not None:
                numbers[on_spike(column, cells[:, 0])] = column.spike[0]
            return column_to_arrow(numbers, column, kind, missing)
        case "vector":
            elements = destandardised(cells, column.scale, np.asarray(column.mean)).reshape(-1)
            return lists_to_arrow(numbers_to_arrow(elements, kind.value_type, missing_elements), kind, column.size, missing)
        case _:
            pixels = pa.array(np.ascontiguousarray(cells).reshape(-1), pa.uint8(), mask=missing_elements)
            return lists_to_arrow(pixels, kind, column.size, missing)


def destandardised(cells: NDArray[Any], scale: float, mean: float | NDArray[np.float64]) -> NDArray[np.float64]:
    numbers: NDArray[np.float64] = np.multiply(cells, scale, dtype=np.float64)
    numbers += mean
    return numbers


@np.errstate(over="ignore")  # what is beyond float64 ends at its type's limit
def unwarped(u: NDArray[np.float64], column: Column) -> NDArray[np.float64]:
    """Returns x of u = asinh((x - center) / width), or u itself where the column has no width."""
    return u if column.width is None else column.center + column.width * np.sinh(u)


def on_spike(column: Column, cells: NDArray[Any]) -> NDArray[np.bool_]:
    """Returns which cells [B] float32 does not tell from a drawn-in column's spike: far out, steps are closer than its digits."""
    assert column.spike is not None
    cell = np.float32(stored(column.spike[0], column))
    return np.abs(cells - cell) <= SPIKE_ROUNDINGS * np.finfo(np.float32).eps * abs(cell)


def column_to_arrow(numbers: NDArray[np.float64], column: Column, kind: pa.DataType, missing: NDArray[np.bool_]) -> pa.Array:
    """Returns a column's numbers, which are overwritten and counted from its base, as it has them, in its type."""
    values = plain_values(kind)
    if column.base:
        ticks = ticks_type(values) if is_temporal(values) else values
        found = pa.array(counted_on(column.base, numbers, ticks), ticks, mask=missing)
        found = from_ticks(found, values) if is_temporal(values) else found
    else:
        found = numbers_to_arrow(supported(numbers, column), values, missing)
    if column.integer and (column.resolution != 1 or is_temporal(values) or column.base):  # float64 holds no ticks of nanoseconds
        found = on_stride(found, column, values)
    return found.cast(kind)


def on_stride(found: pa.Array, column: Column, kind: pa.DataType) -> pa.Array:
    """Returns integers or points in time at the nearest ones of their column's grid, within its ends, exactly."""
    assert column.resolution is not None
    assert column.lower is not None
    assert column.upper is not None
    ticks = to_ticks(found) if is_temporal(kind) else found
    whole = ticks.fill_null(0).to_numpy(zero_copy_only=False)
    whole = np.clip(whole if whole.dtype == np.uint64 else whole.astype(np.int64), int(column.lower), int(column.upper))
    step = int(column.resolution)
    beyond = (whole % step + (step - int(column.origin))) % step
    near = np.where(beyond > step // 2, whole + (step - beyond), whole - beyond).astype(ticks.type.to_pandas_dtype())
    snapped = pa.array(near, ticks.type, mask=ticks.is_null().to_numpy(zero_copy_only=False))
    return from_ticks(snapped, kind) if is_temporal(kind) else snapped


def supported(numbers: NDArray[np.float64], column: Column) -> NDArray[np.float64]:
    """Returns numbers as the column has them: not below its range, nor beyond an end that is an atom, and on its grid (whole numbers of the
    step 1 are rounded with their type)."""
    if column.lower is not None:
        numbers = np.maximum(numbers, column.lower)
    if column.atoms and column.upper is not None:
        numbers = np.minimum(numbers, column.upper)
    if column.resolution is None or (column.integer and column.resolution == 1):
        return numbers
    return on_grid(numbers, column.resolution, column.origin)


@np.errstate(invalid="ignore")  # infinities are on no grid
def settled(rows: pa.Table, columns: Iterable[Column]) -> pa.Table:
    """Returns rows with the floats that lie on their column's grid as `decode` writes them, to the last bit."""
    for column in columns:
        place = rows.schema.get_field_index(column.name)
        if place < 0 or column.resolution is None or not pa.types.is_floating(rows.schema.field(place).type):
            continue
        given = rows.column(place)
        numbers = to_float64(given.fill_null(0.0))
        nearest = on_grid(numbers, column.resolution, column.origin)
        numbers = np.where(np.abs(nearest - numbers) <= 2 * TOLERANCE * column.resolution, nearest, numbers)
        written = pa.array(numbers, mask=given.is_null().to_numpy()).cast(given.type, safe=False)
        rows = rows.set_column(place, rows.schema.field(place), written)
    return rows


def storable(kind: pa.DataType, column: Column) -> pa.DataType:
    """Returns a categorical column's type, its dictionary with indices that can count all categories: files may have fewer each."""
    if pa.types.is_dictionary(kind) and len(column.categories) > np.iinfo(kind.index_type.to_pandas_dtype()).max:
        return pa.dictionary(pa.int32(), kind.value_type, kind.ordered)
    return kind


def plain_values(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def constant_array(constant: Any, kind: pa.DataType, missing: NDArray[np.bool_]) -> pa.Array:
    """Returns a constant column's rows: its value in the column's type, null where it is missing."""
    values = plain_values(kind)
    if is_temporal(values):
        one = from_ticks(pa.array([constant], ticks_type(values)), values)
    elif pa.types.is_decimal(values):
        one = pa.array([Decimal(str(constant))], castable(values)).cast(values)
    else:
        one = pa.array([constant]).cast(values, safe=False) if isinstance(constant, float) else pa.array([constant], values)
    return one.take(pa.array(np.zeros(len(missing), np.int64), mask=missing)).cast(kind)


def numbers_to_arrow(numbers: NDArray[np.float64], kind: pa.DataType, missing: NDArray[np.bool_] | None) -> pa.Array:
    """Returns numbers, which are overwritten, in the column's type, rounded to what it holds and kept in its range."""
    if is_temporal(kind):
        return from_ticks(whole_numbers(numbers, kind, ticks_type(kind), missing), kind)
    if pa.types.is_integer(kind):
        return whole_numbers(numbers, kind, kind, missing)
    if pa.types.is_decimal(kind):
        end = 10.0 ** (kind.precision - kind.scale)
        limit = min(end - 10.0**-kind.scale, np.nextafter(end, 0))  # a larger one would come out of the cast as zero
        return pa.array(np.clip(numbers, -limit, limit), mask=missing).cast(castable(kind), safe=False).cast(kind)
    limit = float(np.finfo(kind.to_pandas_dtype()).max)
    return pa.array(np.clip(numbers, -limit, limit, out=numbers), mask=missing).cast(kind, safe=False)


def castable(kind: pa.DataType) -> pa.DataType:
    """Returns a decimal type to which pyarrow 25 casts numbers rightly; to decimal64 it does not."""
    return pa.decimal128(kind.precision, kind.scale) if kind.bit_width < 128 else kind


def whole_numbers(numbers: NDArray[np.float64], kind: pa.DataType, stored: pa.DataType, missing: NDArray[np.bool_] | None) -> pa.Array:
    """Returns rounded numbers in the integer type that stores a type, within the latter's range."""
    low, high = integer_range(kind)
    highest = np.nextafter(float(high), 0) if high > 2**53 else float(high)
    return pa.array(np.clip(np.rint(numbers), float(low), highest).astype(stored.to_pandas_dtype()), stored, mask=missing)


def lists_to_arrow(elements: pa.Array, kind: pa.DataType, size: int, missing: NDArray[np.bool_]) -> pa.Array:
    mask = pa.array(missing) if missing.any() else None
    if pa.types.is_fixed_size_list(kind):
        return pa.FixedSizeListArray.from_arrays(elements, type=kind, mask=mask)
    offsets = np.arange(len(missing) + 1, dtype=np.int64) * size
    plain = pa.LargeListArray.from_arrays(pa.array(offsets), elements, mask=mask)
    return plain.cast(kind)
