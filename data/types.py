"""What an Arrow type is to us: a number, text, a point in time, a list. And the numbers that such a column holds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

# Integers up to here are exact in float64.
MAX_EXACT_INTEGER = 2**53
# Days from 1970 to the first day of Python's calendar, 0001-01-01, and to the day after its last, 9999-12-31.
FIRST_DAY, AFTER_LAST_DAY = -719_162, 2_932_897


def is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind))


def is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        return is_text(kind.value_type)
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def without_views(kind: pa.DataType) -> pa.DataType:
    """Returns the usual type of text or bytes that are stored as views, which Arrow casts little to; any other type as it is."""
    return pa.string() if pa.types.is_string_view(kind) else pa.binary() if pa.types.is_binary_view(kind) else kind


def is_temporal(kind: pa.DataType) -> bool:
    """Whether values are dates, times of day or timestamps; durations are not modelled."""
    return bool(pa.types.is_date(kind) or pa.types.is_time(kind) or pa.types.is_timestamp(kind))


def ticks_type(kind: pa.DataType) -> pa.DataType:
    """Returns the integer type in which a temporal type counts its units; those of date64 are days too, as it holds whole days only."""
    return pa.int32() if kind.bit_width == 32 or pa.types.is_date64(kind) else pa.int64()


def ticks_per_day(kind: pa.DataType) -> int:
    """Returns how many of its units a temporal type has in a day."""
    return 1 if pa.types.is_date(kind) else 86_400 * {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[kind.unit]


def to_ticks(values: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    """Returns points in time as the integers that count their units."""
    return (values.cast(pa.date32()) if pa.types.is_date64(values.type) else values).cast(ticks_type(values.type))


def from_ticks(ticks: pa.Array, kind: pa.DataType) -> pa.Array:
    """Returns integers as the points in time that they count."""
    return ticks.cast(pa.date32()).cast(kind) if pa.types.is_date64(kind) else ticks.cast(kind)


def integer_range(kind: pa.DataType) -> tuple[int, int]:
    """Returns the least and greatest integer that an integer or temporal type holds; times lie within a day."""
    if pa.types.is_time(kind):
        return 0, ticks_per_day(kind) - 1
    bounds = np.iinfo((ticks_type(kind) if is_temporal(kind) else kind).to_pandas_dtype())
    return int(bounds.min), int(bounds.max)


def calendar_range(kind: pa.DataType) -> tuple[int, int]:
    """Returns the least and greatest integer of a temporal type that Python's calendar holds, both in UTC and in the type's zone."""
    least, greatest = integer_range(kind)
    day = ticks_per_day(kind)
    if pa.types.is_time(kind) or greatest < AFTER_LAST_DAY * day:  # nanoseconds end in 2262
        return least, greatest
    least, greatest = FIRST_DAY * day, AFTER_LAST_DAY * day - 1
    if pa.types.is_timestamp(kind) and kind.tz is not None:
        clock = from_ticks(pa.array([least, greatest]), pa.timestamp(kind.unit))
        in_zone = to_ticks(pc.assume_timezone(clock, kind.tz, ambiguous="latest", nonexistent="latest")).to_pylist()
        least, greatest = max(least, in_zone[0]), min(greatest, in_zone[1])
    return least, greatest


def counted_from(base: int, numbers: NDArray[Any]) -> NDArray[np.float64]:
    """Returns 64-bit integers less a whole number as float64, exactly where they lie within 2^53 of it."""
    rough = numbers.astype(np.float64) - float(base)
    exact = (numbers.view(np.uint64) - np.uint64(base % 2**64)).view(np.int64)  # right but where int64 wraps around
    return np.where(np.abs(rough) < 2.0**62, exact, rough)


def counted_on(base: int, numbers: NDArray[np.float64], kind: pa.DataType) -> NDArray[Any]:
    """Returns the integers of a 64-bit integer type, kept in its range, that are nearest to a whole number plus float64 numbers."""
    least, greatest = integer_range(kind)
    whole = np.rint(numbers).clip(-(2.0**62), 2.0**62).astype(np.int64).clip(max(least - base, -(2**62)), min(greatest - base, 2**62))
    return (whole.view(np.uint64) + np.uint64(base % 2**64)).view(kind.to_pandas_dtype())


def to_float64(values: pa.Array | pa.ChunkedArray) -> NDArray[np.float64]:
    """Returns numbers (of temporal types: their units since the epoch) as float64, NaN where null."""
    if is_temporal(values.type):
        values = to_ticks(values)
    if pa.types.is_float16(values.type):
        values = values.cast(pa.float32())
    cast = values.cast(pa.float64(), safe=False)
    return np.asarray(cast.to_numpy() if isinstance(cast, pa.ChunkedArray) else cast.to_numpy(zero_copy_only=False), dtype=np.float64)
