"""What each column is: its kind, decided from Arrow type and training statistics, and the numbers that encode it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from data.statistics import ColumnSummary, TableSummary, is_list, is_number, is_text
from data.table import DataError

KINDS = ("numeric", "boolean", "categorical", "vector", "image", "key", "ignored")
# Integers with at most this many different values are codes more often than quantities.
MAX_INTEGER_CATEGORIES = 20
# A column with more categories than this needs embeddings and a vocabulary of its own; it is ignored, and said so.
MAX_CATEGORIES = 1000


class ColumnOverrideError(ValueError):
    """An override names a column that is not there, or asks for a kind that its values cannot have."""


@dataclass(frozen=True)
class Column:
    """One column as the model takes it.

    mean: per element for a vector, else one number; with `scale` it standardises float64 cells: y = (x - mean) / scale.
    integer: the cells are whole numbers, to be given a probability and not a density.
    element_nulls: a vector's or image's elements may be missing one by one.
    """

    name: str
    kind: str
    reason: str
    null_fraction: float = 0.0
    integer: bool = False
    shape: list[int] = field(default_factory=list)
    mean: list[float] = field(default_factory=lambda: [0.0])
    scale: float = 1.0
    categories: list[Any] = field(default_factory=list)
    element_nulls: bool = False
    constant: Any = None

    @property
    def size(self) -> int:
        """Cells per row."""
        return math.prod(self.shape)

    @property
    def valid_size(self) -> int:
        """Validity flags per row."""
        return self.size if self.element_nulls else 1


def decide_columns(schema: pa.Schema, summary: TableSummary, key: str | None, overrides: Mapping[str, Mapping[str, Any]]) -> list[Column]:
    """Returns one Column per schema field, in its order.

    Raises ColumnOverrideError for an override that cannot be, DataError where a column's values are unsuitable (all at once).
    """
    unknown = sorted(set(overrides) - set(schema.names))
    if unknown:
        raise ColumnOverrideError(f"data.columns names {unknown}, which the table does not have; it has {schema.names}")
    faults: list[str] = []
    columns = []
    for item in schema:
        column_summary = summary.columns.get(item.name, ColumnSummary())
        override = overrides.get(item.name, {})
        if item.name == key:
            if override.get("kind", "key") != "key":
                raise ColumnOverrideError(f"data.columns.{key}.kind is {override['kind']!r}, but data.key names this column; take one away")
            columns.append(Column(item.name, "key", "named by data.key"))
            continue
        check_override(item, override)
        column = infer(item, column_summary, override)
        if column.kind != "ignored" and column_summary.num_nonfinite:
            count, first = column_summary.num_nonfinite, column_summary.first_nonfinite
            faults.append(f"column {item.name!r} has {count} NaN or infinite values, the first in {first}; store them as null")
        if column.kind != "ignored" and not np.isfinite([*column.mean, column.scale]).all():
            faults.append(f"column {item.name!r} has values too large to standardise (up to {largest(column_summary):g})")
        columns.append(column)
    if faults:
        raise DataError("unsuitable values in the training rows:\n  " + "\n  ".join(faults))
    if not any(column.kind not in ("key", "ignored") for column in columns):
        reasons = "; ".join(f"{column.name}: {column.reason}" for column in columns)
        raise DataError(f"no column is left to model ({reasons}); give kinds by data.columns")
    return columns


def largest(summary: ColumnSummary) -> float:
    """Returns the largest magnitude among a column's finite values."""
    assert summary.moments is not None
    return float(max(summary.moments.maximum.max(), -summary.moments.minimum.min()))


def check_override(item: pa.Field, override: Mapping[str, Any]) -> None:
    if set(override) - {"kind", "shape"}:
        raise ColumnOverrideError(
            f"data.columns.{item.name}: unknown keys {sorted(set(override) - {'kind', 'shape'})}; known are kind and shape"
        )
    shape = override.get("shape")
    if shape is not None and not (isinstance(shape, list) and shape and all(type(side) is int and side > 0 for side in shape)):
        raise ColumnOverrideError(f"data.columns.{item.name}.shape is {shape!r}; it must be a list of positive numbers, such as [28, 28]")
    if shape is not None and not can_be(item.type, "image"):
        raise ColumnOverrideError(f"data.columns.{item.name}.shape: a column of type {item.type} is no image; images are lists of uint8")
    kind = override.get("kind")
    if kind is None:
        return
    possible = [k for k in KINDS if k != "key" and can_be(item.type, k)]
    if kind == "key":
        raise ColumnOverrideError(f"data.columns.{item.name}: name the key column by data.key")
    if kind not in possible:
        raise ColumnOverrideError(f"data.columns.{item.name}.kind is {kind!r}; a column of type {item.type} can be one of {possible}")


def can_be(kind_of_values: pa.DataType, kind: str) -> bool:
    match kind:
        case "ignored":
            return True
        case "numeric":
            return is_number(kind_of_values)
        case "boolean":
            return bool(pa.types.is_boolean(kind_of_values))
        case "categorical":
            return is_text(kind_of_values) or bool(pa.types.is_integer(kind_of_values))
        case "vector":
            return is_list(kind_of_values) and is_number(kind_of_values.value_type)
        case _:
            return is_list(kind_of_values) and bool(kind_of_values.value_type == pa.uint8())


def infer(item: pa.Field, summary: ColumnSummary, override: Mapping[str, Any]) -> Column:
    name, kind = item.name, override.get("kind")
    num_rows = summary.num_values + summary.num_nulls
    nulls = summary.num_nulls / num_rows if num_rows else 0.0
    if kind == "ignored":
        return Column(name, "ignored", "named by data.columns", nulls)
    if summary.num_values == 0:
        return Column(name, "ignored", "all null in the training rows", 1.0)
    if (constant := constant_value(summary)) is not None:
        return Column(name, "ignored", "constant", nulls, constant=constant)
    said = "named by data.columns" if kind else None
    if can_be(item.type, "boolean"):
        return Column(name, "boolean", said or "boolean type", nulls, shape=[1])
    if is_text(item.type):
        return text_column(name, summary, nulls, said)
    if pa.types.is_integer(item.type):
        return integer_column(name, summary, nulls, kind)
    if is_number(item.type):
        return numeric_column(name, summary, nulls, said or f"{item.type} type", integer=False)
    if can_be(item.type, "vector"):
        return list_column(item, summary, nulls, override)
    return Column(name, "ignored", f"columns of type {item.type} are not modelled", nulls)


def constant_value(summary: ColumnSummary) -> Any:
    if summary.counts:
        return next(iter(summary.counts)) if len(summary.counts) == 1 else None
    if (
        summary.moments is not None
        and summary.num_nonfinite == 0
        and not summary.sizes
        and summary.moments.minimum[0] == summary.moments.maximum[0]
    ):
        return float(summary.moments.minimum[0])
    return None


def text_column(name: str, summary: ColumnSummary, nulls: float, said: str | None) -> Column:
    if summary.all_distinct and summary.num_values > 1 and said is None:
        return Column(name, "ignored", "every value is different: free text, or a key to name by data.key", nulls)
    if summary.counts is None or len(summary.counts) > MAX_CATEGORIES:
        if said:
            raise ColumnOverrideError(
                f"data.columns.{name}: more than {MAX_CATEGORIES} different values; at most that many categories are modelled"
            )
        return Column(name, "ignored", f"text with more than {MAX_CATEGORIES} different values", nulls)
    return categorical_column(name, summary, nulls, said or f"text with {len(summary.counts)} values")


def integer_column(name: str, summary: ColumnSummary, nulls: float, kind: str | None) -> Column:
    few = summary.num_distinct <= MAX_INTEGER_CATEGORIES
    if kind is None and summary.all_distinct and not few:
        return Column(name, "ignored", "every value is different: a key? then name it by data.key", nulls)
    if kind == "categorical" or (kind is None and few):
        if summary.num_distinct > MAX_CATEGORIES:
            raise ColumnOverrideError(
                f"data.columns.{name}: more than {MAX_CATEGORIES} different values; at most that many categories are modelled"
            )
        return categorical_column(name, summary, nulls, "named by data.columns" if kind else f"integers with {summary.num_distinct} values")
    return numeric_column(
        name, summary, nulls, "named by data.columns" if kind else f"integers with more than {MAX_INTEGER_CATEGORIES} values", integer=True
    )


def categorical_column(name: str, summary: ColumnSummary, nulls: float, reason: str) -> Column:
    assert summary.counts is not None
    return Column(name, "categorical", reason, nulls, shape=[1], categories=sorted(summary.counts))


def numeric_column(name: str, summary: ColumnSummary, nulls: float, reason: str, integer: bool) -> Column:
    moments = summary.moments
    if moments is None:
        return Column(name, "ignored", "no finite value in the training rows", nulls)
    scale = float(np.sqrt(moments.squares[0] / moments.count[0])) or 1.0  # values whose differences float64 cannot hold
    return Column(name, "numeric", reason, nulls, integer=integer, shape=[1], mean=[float(moments.mean[0])], scale=scale)


def list_column(item: pa.Field, summary: ColumnSummary, nulls: float, override: Mapping[str, Any]) -> Column:
    name, kind, moments = item.name, override.get("kind"), summary.moments
    if len(summary.sizes) != 1:
        if kind:
            raise ColumnOverrideError(
                f"data.columns.{name}.kind is {kind!r}, but its lists have several lengths, among them {sorted(summary.sizes)}"
            )
        return Column(name, "ignored", f"lists of several lengths ({', '.join(map(str, sorted(summary.sizes)))}, ..)", nulls)
    (size,) = summary.sizes
    if size == 0 or moments is None or moments.count.sum() == 0 or (moments.minimum == moments.maximum).all():
        return Column(name, "ignored", "lists without elements, or all the same", nulls)
    side = math.isqrt(size)
    shape = list(override.get("shape", [side, side] if side * side == size else [size]))
    if math.prod(shape) != size:
        raise ColumnOverrideError(f"data.columns.{name}.shape is {shape}, which makes {math.prod(shape)} cells; the lists hold {size}")
    if kind == "image" and len(shape) < 2:
        raise ColumnOverrideError(f"data.columns.{name}: {size} pixels are no square; give its shape, such as [height, width]")
    is_image = kind == "image" or (kind is None and can_be(item.type, "image") and len(shape) > 1)
    missing = summary.num_null_elements > 0
    total = moments.count.sum()
    if not is_image:
        scale = float(np.sqrt(moments.squares.sum() / total)) or 1.0
        reason = "named by data.columns" if kind else f"lists of {size} numbers"
        whole = pa.types.is_integer(item.type.value_type)
        return Column(name, "vector", reason, nulls, whole, [size], moments.mean.tolist(), scale, element_nulls=missing)
    mean = float((moments.mean * moments.count).sum() / total)
    scale = float(np.sqrt((moments.squares + moments.count * (moments.mean - mean) ** 2).sum() / total)) or 1.0
    reason = "named by data.columns" if kind else f"lists of {size} bytes"
    return Column(name, "image", reason, nulls, True, shape, [mean], scale, element_nulls=missing)
