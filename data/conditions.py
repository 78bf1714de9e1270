"""The columns that condition a model: which may, and values for them in the table's own types, given or drawn."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from decimal import Decimal, InvalidOperation
from typing import Any

import numpy as np
import pyarrow as pa

from data.column import Column
from data.decoding import column_to_arrow, plain_values, storable
from data.encoding import TableEncoding
from data.fields import Arrays
from data.listing import DataError
from data.marginals import LEVELS, categories_of
from data.overrides import ColumnOverrideError
from data.types import is_temporal, is_text

# Categories that a message lists.
MAX_SHOWN = 30


class ConditionError(ColumnOverrideError):
    """A column cannot condition the model, or a condition has a value that the model does not know."""


def check_condition(schema: pa.Schema, key: str | None, overrides: Mapping[str, Mapping[str, Any]], condition: Sequence[str]) -> None:
    """Raises ConditionError, with all faults, for what names and overrides alone forbid; the rest is known when the values are."""
    ignored = {name for name, override in overrides.items() if override.get("kind") == "ignored"}
    faults = [f"{name!r} is not in the table" for name in condition if name not in schema.names]
    faults += [f"{name!r} is the key" for name in condition if name == key]
    faults += [f"{name!r} is ignored by data.columns" for name in condition if name in ignored]
    binarised = {name for name, override in overrides.items() if "binarize" in override}
    faults += [f"{name!r} is binarised by data.columns" for name in condition if name in binarised]
    faults += [f"{name!r} comes twice" for name in dict.fromkeys(condition) if condition.count(name) > 1]
    candidates = [name for name in schema.names if name != key and name not in ignored]
    if faults:
        raise ConditionError(f"data.condition names columns that cannot condition: {'; '.join(faults)}; choose among {candidates}")
    if condition and set(candidates) <= set(condition):
        raise ConditionError(f"data.condition names every column, {candidates}, and nothing is left to model; leave some out")


def conditioned(columns: Sequence[Column], condition: Sequence[str]) -> list[Column]:
    """Returns the columns, marked where they condition the model.

    Raises ConditionError for one that is ignored, and where nothing is left to model.
    """
    faults = [
        f"{column.name!r} is ignored ({column.reason})" for column in columns if column.name in condition and column.kind == "ignored"
    ]
    if faults:
        raise ConditionError(
            f"data.condition names columns that cannot condition: {'; '.join(faults)}; leave them out, or give kinds by data.columns"
        )
    marked = [replace(column, condition=True) if column.name in condition else column for column in columns]
    if not any(column.kind not in ("key", "ignored") and not column.condition for column in marked):
        reasons = "; ".join(f"{column.name}: {column.reason}" for column in marked if not column.condition)
        raise ConditionError(f"data.condition leaves no column to model ({reasons}); leave some out of it, or give kinds by data.columns")
    return marked


def given_condition(encoding: TableEncoding, given: Mapping[str, Any]) -> pa.Table:
    """Returns the values given for the condition columns as one row in the table's own types.

    Raises ConditionError, with all faults, for a column that is no condition or is missing, and a value that the model does not know.
    """
    columns = {column.name: column for column in encoding.conditions}
    faults = [f"{name!r} is no condition of the model" for name in given if name not in columns]
    faults += [f"{name!r} is missing" for name in columns if name not in given]
    arrays: dict[str, pa.Array] = {}
    for name in (name for name in columns if name in given):
        try:
            arrays[name] = one_value(given[name], encoding.schema.field(name).type)
        except (pa.ArrowException, TypeError, ValueError, OverflowError, InvalidOperation) as error:
            faults.append(f"{name!r} is {given[name]!r}: {error}")
    if not faults:
        faults = unknown_values(encoding, pa.table(arrays))
    if faults:
        raise ConditionError(f"condition: {'; '.join(faults)}; {describe_conditions(encoding)}")
    return pa.table(arrays)


def unknown_values(encoding: TableEncoding, row: pa.Table) -> list[str]:
    """Returns what of a row of conditions the model has no code for."""
    unseen: Counter[str] = Counter()
    try:
        encode_conditions(encoding, row, unseen)
    except DataError as error:
        return [str(error)]
    return [f"{name!r} is {row[name][0].as_py()!r}, which the model does not know" for name in unseen]


def encode_conditions(encoding: TableEncoding, rows: pa.Table, unseen: Counter[str] | None = None) -> Arrays:
    """Returns the arrays of the condition's fields alone."""
    return encoding.encode(rows, "condition", unseen, [field for field in encoding.fields if field.condition])


def one_value(value: Any, kind: pa.DataType) -> pa.Array:
    """Returns a value as JSON has it in a column's type: points in time as text such as 2024-12-31T23:59:00, or 23:59:00 for a
    time of day; decimals as text or number."""
    values = plain_values(kind)
    if value is None:
        return pa.nulls(1, kind)
    if pa.types.is_time(values) and isinstance(value, str):  # Arrow reads times of day from text as part of a date alone
        return pa.array([f"1970-01-01T{value}"]).cast(pa.timestamp(values.unit)).cast(values)
    if is_temporal(values):
        if isinstance(value, int | float):
            raise ValueError("numbers do not say their unit; give text such as 2024-12-31T23:59:00")
        return pa.array([str(value)]).cast(values).cast(kind)
    if pa.types.is_decimal(values):
        return pa.array([Decimal(str(value))]).cast(values).cast(kind)
    if (isinstance(value, bool), isinstance(value, str)) != (pa.types.is_boolean(values), is_text(values)):
        raise TypeError(f"the column is {kind}")
    return pa.array([value]).cast(values).cast(kind)  # a cast refuses what would be lost


def describe_conditions(encoding: TableEncoding) -> str:
    """Returns the model's condition columns in words: type and, of categories, the values."""
    described = []
    for column in encoding.conditions:
        shown = ", ".join(map(repr, column.categories[:MAX_SHOWN])) + (", .." if len(column.categories) > MAX_SHOWN else "")
        described.append(
            f"{column.name!r} ({f'one of {shown}' if column.categories else encoding.schema.field(column.name).type}, or null)"
        )
    return f"the model's conditions are {', '.join(described)}" if described else "the model has no condition"


def check_drawable(encoding: TableEncoding) -> None:
    """Raises ConditionError where conditions cannot be drawn: lists, of which no distribution is known."""
    lists = [column.name for column in encoding.conditions if column.kind in ("vector", "image")]
    if lists:
        raise ConditionError(f"condition: values of {lists} cannot be drawn; give them; {describe_conditions(encoding)}")


def draw_conditions(
    encoding: TableEncoding, known: Mapping[str, Any], num_rows: int, generator: np.random.Generator, null_pattern: bool
) -> pa.Table:
    """Returns conditions drawn from the training rows' marginals, each column independently of the others, in the table's own types.

    Categories by their frequencies (never "other"), numbers between the 1 % and 99 % quantiles, or from a normal distribution where those
    are not known; nulls at the column's rate where null_pattern.
    """
    drawn = {}
    for column in encoding.conditions:
        kind, marginal = encoding.schema.field(column.name).type, known["columns"][column.name]
        missing = generator.random(num_rows) < (marginal["null_rate"] if null_pattern else 0.0)
        place = generator.random(num_rows)
        if "frequencies" in marginal:
            ends = np.cumsum(marginal["frequencies"])
            codes = np.searchsorted(ends, place * ends[-1], side="right").clip(0, len(ends) - 1)
            values = pa.array(categories_of(column), plain_values(kind))
            drawn[column.name] = values.take(pa.array(codes, mask=missing)).cast(storable(kind, column))
            continue
        if marginal["quantiles"] is not None:
            numbers = np.interp(place, LEVELS, [quantile - column.base for quantile in marginal["quantiles"]])
        else:
            numbers = marginal["mean"] - column.base + marginal["standard_deviation"] * generator.standard_normal(num_rows)
        drawn[column.name] = column_to_arrow(numbers, column, kind, missing)
    return pa.table(drawn)
