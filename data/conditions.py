"""The columns that condition a model: which may, and values for them in the table's own types."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa

from data.columns import Column, ColumnOverrideError


class ConditionError(ColumnOverrideError):
    """A column cannot condition the model, or a condition has a value that the model does not know."""


def check_condition(schema: pa.Schema, key: str | None, overrides: Mapping[str, Mapping[str, Any]], condition: Sequence[str]) -> None:
    """Raises ConditionError, with all faults, for what names and overrides alone forbid; the rest is known when the values are."""
    ignored = {name for name, override in overrides.items() if override.get("kind") == "ignored"}
    faults = [f"{name!r} is not in the table" for name in condition if name not in schema.names]
    faults += [f"{name!r} is the key" for name in condition if name == key]
    faults += [f"{name!r} is ignored by data.columns" for name in condition if name in ignored]
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
