"""Tables as pandas has them, and pandas' columns as a table's types: what JSON and NaN make of dates, decimals and nulls is undone."""

from __future__ import annotations

from datetime import datetime, time
from decimal import Context, Decimal
from numbers import Number
from typing import Any

import pandas as pd
import pyarrow as pa

from data.types import is_list

# As many digits as decimals of Arrow have.
EXACT = Context(prec=76)


def to_arrow(frame: pd.DataFrame, schema: pa.Schema) -> pa.Table:
    """Returns the schema's columns of a frame. Raises ValueError naming a column whose values are none of its type."""
    arrays = []
    for field in schema:
        try:
            arrays.append(column_to_arrow(frame[field.name], field.type))
        except (pa.ArrowException, ValueError, TypeError, ArithmeticError) as error:
            raise ValueError(f"column {field.name!r} does not hold values of type {field.type}: {error}") from error
    return pa.table(arrays, schema=schema)


def column_to_arrow(values: pd.Series, kind: pa.DataType) -> pa.Array:
    """Returns a column in a type. A column without a value has whatever type pandas gave it."""
    there = values[values.notna()]
    if there.empty:
        return pa.nulls(len(values), kind)
    if pa.types.is_temporal(kind) and isinstance(there.iloc[0], Number):
        # pandas' own JSON has milliseconds, Arrow would take them for the type's unit.
        raise ValueError(f"numbers such as {there.iloc[0]} do not say their unit; give times, or text such as 2024-12-31T23:59:00")
    if pa.types.is_timestamp(kind) and isinstance(there.iloc[0], datetime):
        refuse_other_zone(there.iloc[0], kind)  # Arrow would take times without one for UTC
    if pa.types.is_boolean(kind) and isinstance(there.iloc[0], Number) and not there.isin([0, 1]).all():
        raise ValueError("numbers other than 0 and 1 are no booleans")
    if pa.types.is_decimal(kind):
        values = values.map(lambda value: to_decimal(value, kind.scale))
    elif is_list(kind) and pa.types.is_decimal(kind.value_type):
        scale = kind.value_type.scale
        values = values.map(lambda value: [to_decimal(item, scale) for item in value] if is_given(value) else None)
    elif isinstance(there.iloc[0], str) and pa.types.is_time(kind):
        values = values.map(lambda value: time.fromisoformat(value) if is_given(value) else None)
    elif isinstance(there.iloc[0], str) and pa.types.is_timestamp(kind):
        return timestamps(pa.array(values.where(values != "NaT"), pa.string(), from_pandas=True), kind)  # NaT: a null as pandas writes it
    elif isinstance(values.dtype, pd.DatetimeTZDtype) and pa.types.is_timestamp(kind) and kind.tz is not None:
        # pyarrow 25 takes a deprecated way to a series' time zone.
        return pa.array(values.dt.tz_convert(None), pa.timestamp(kind.unit), from_pandas=True).cast(kind)
    return pa.array(values, kind, from_pandas=True)


def refuse_other_zone(moment: datetime, kind: pa.DataType) -> None:
    """Raises ValueError where a time has a time zone and the type has none, or the other way round."""
    if moment.tzinfo is None and kind.tz is not None:
        raise ValueError(f"{moment} has no time zone, and the column has; say which, as series.dt.tz_localize does")
    if moment.tzinfo is not None and kind.tz is None:
        raise ValueError(f"{moment} has a time zone, and the column has none; leave it out, as series.dt.tz_localize(None) does")


def timestamps(texts: pa.Array, kind: pa.DataType) -> pa.Array:
    """Returns points in time from text; digits that the unit does not have are zeros, as pandas writes them."""
    try:
        return texts.cast(kind)
    except pa.ArrowInvalid:
        return texts.cast(pa.timestamp("ns", kind.tz)).cast(kind)


def is_given(value: Any) -> bool:
    return not (pd.api.types.is_scalar(value) and pd.isna(value))


def to_decimal(value: Any, scale: int) -> Decimal | None:
    """Returns a number as pandas or JSON has it as a decimal; floats are rounded to so many digits."""
    if not is_given(value):
        return None
    exact = Decimal(str(value))
    return exact.quantize(Decimal(1).scaleb(-scale), context=EXACT) if isinstance(value, float) else exact


def to_pandas(column: pa.ChunkedArray) -> pd.Series:
    """Returns a column as pandas has it. Times of a day have microseconds there."""
    if column.type == pa.time64("ns"):
        column = column.cast(pa.time64("us"), safe=False)
    return column.to_pandas()


def example_frame(rows: pa.Table) -> pd.DataFrame:
    """Returns rows as MLflow keeps them, as JSON: decimals as numbers."""
    return pd.DataFrame({name: to_pandas(without_decimals(rows[name])) for name in rows.column_names})


def without_decimals(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Returns decimals, or the decimals of lists, as float64."""
    if pa.types.is_decimal(column.type):
        return column.cast(pa.float64(), safe=False)
    if is_list(column.type) and pa.types.is_decimal(column.type.value_type):
        return column.cast(pa.list_(pa.float64()), safe=False)
    return column
