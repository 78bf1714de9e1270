"""What is wished of columns: kinds, shapes, the key; which wishes names and types alone forbid."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from data.types import is_list, is_number, is_temporal, is_text
from data.widening import without_dictionary

KINDS = ("numeric", "count", "boolean", "categorical", "timestamp", "vector", "image", "key", "ignored")


class ColumnOverrideError(ValueError):
    """An override names a column that is not there, or asks for a kind that its values cannot have."""


def check_overrides(schema: pa.Schema, key: str | None, overrides: Mapping[str, Mapping[str, Any]]) -> None:
    """Raises ColumnOverrideError for what names and types alone forbid; the rest is known when the values are."""
    check_names(schema, key, overrides)
    faults = [fault for name, override in overrides.items() for fault in override_faults(schema.field(name), override, name == key)]
    if faults:
        raise ColumnOverrideError("\n".join(faults))


def check_names(schema: pa.Schema, key: str | None, overrides: Mapping[str, Mapping[str, Any]]) -> None:
    """Raises ColumnOverrideError for overrides of columns that are not there, and for a key that is to be something else."""
    unknown = sorted(set(overrides) - set(schema.names))
    if unknown:
        raise ColumnOverrideError(f"data.columns names {unknown}, which the table does not have; it has {schema.names}")
    wish = overrides.get(key, {}).get("kind", "key") if key is not None else "key"
    if wish != "key":
        raise ColumnOverrideError(f"data.columns.{key}.kind is {wish!r}, but data.key names this column; take one away")


def key_column(key: str | None, overrides: Mapping[str, Mapping[str, Any]]) -> str | None:
    """Returns the column that identifies a row, named by data.key or as a kind in data.columns. Raises ColumnOverrideError for two."""
    named = {name for name, override in overrides.items() if override.get("kind") == "key"} | ({key} if key is not None else set())
    if len(named) > 1:
        raise ColumnOverrideError(f"data.key and data.columns name several keys: {sorted(named)}; a row has one")
    return next(iter(named), None)


def counted_columns(overrides: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Returns the columns that are to be categorical whatever their type: their values must be counted."""
    return [name for name, override in overrides.items() if override.get("kind") == "categorical"]


def override_faults(item: pa.Field, override: Mapping[str, Any], is_key: bool) -> list[str]:
    place, values = f"data.columns.{item.name}", without_dictionary(item.type)
    faults = []
    unknown = sorted(set(override) - {"kind", "shape", "binarize"})
    if unknown:
        faults.append(f"{place}: unknown keys {unknown}; known are kind, shape and binarize")
    binarize = override.get("binarize")
    if binarize not in (None, "per_epoch"):
        faults.append(f"{place}.binarize is {binarize!r}; it must be 'per_epoch'")
    elif binarize is not None and override.get("kind") != "image":
        faults.append(f"{place}.binarize: pixels are binarised, so it needs kind 'image'")
    shape = override.get("shape")
    if shape is not None and not (isinstance(shape, list) and shape and all(type(side) is int and side > 0 for side in shape)):
        faults.append(f"{place}.shape is {shape!r}; it must be a list of positive numbers, such as [28, 28]")
    elif shape is not None and not can_be(values, "image"):
        faults.append(f"{place}.shape: a column of type {item.type} is no image; images are lists of uint8")
    possible = ["key"] if is_key else [kind for kind in KINDS if can_be(values, kind)]
    if override.get("kind", possible[0]) not in possible:
        faults.append(f"{place}.kind is {override['kind']!r}; a column of type {item.type} can be one of {possible}")
    return faults


def can_be(values: pa.DataType, kind: str) -> bool:
    match kind:
        case "numeric":
            return is_number(values)
        case "count":
            return bool(pa.types.is_integer(values))
        case "boolean":
            return bool(pa.types.is_boolean(values))
        case "categorical":
            return is_text(values) or bool(pa.types.is_integer(values))
        case "timestamp":
            return is_temporal(values)
        case "vector":
            return is_list(values) and is_number(values.value_type)
        case "image":
            return is_list(values) and bool(values.value_type == pa.uint8())
        case _:
            return kind == "ignored"
