"""What each column is: its kind, decided from Arrow type and training statistics, and the numbers that encode it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from data.column import MAX_INTEGER_CATEGORIES, Column
from data.listing import DataError
from data.numeric_columns import numeric_column
from data.overrides import ColumnOverrideError, can_be, check_overrides
from data.scales import usable
from data.statistics import ColumnSummary, TableSummary
from data.types import MAX_EXACT_INTEGER, is_list, is_number, is_temporal, is_text
from data.widening import unsuitable, without_dictionary

# Text of which this share of the values differs is free text: a category says something only where it comes again.
FREE_TEXT_SHARE = 0.9
# Decimals of so many digits come back from float64 as they were.
FLOAT_DIGITS = 15
NAMED = "named by data.columns"


@dataclass(frozen=True)
class Rules:
    """What decides besides the values. max_categories: categories kept of a column, the most frequent ones; the rest become one
    "other". min_category_count: training rows that a category needs to be kept. nonfinite: whether NaN and infinities are errors
    or nulls."""

    max_categories: int = 1000
    min_category_count: int = 1
    nonfinite: Literal["error", "null"] = "error"


def decide_columns(
    schema: pa.Schema, summary: TableSummary, key: str | None, overrides: Mapping[str, Mapping[str, Any]], rules: Rules
) -> list[Column]:
    """Returns one Column per schema field, in its order.

    Raises ColumnOverrideError for an override that cannot be, DataError where a column's values are unsuitable (all at once).
    """
    check_overrides(schema, key, overrides)
    faults: list[str] = []
    columns = []
    for item in schema:
        override = overrides.get(item.name, {})
        if item.name == key:
            columns.append(Column(item.name, "key", f"named by {'data.columns' if 'kind' in override else 'data.key'}"))
            continue
        column_summary = summary.columns.get(item.name, ColumnSummary())
        column = replace(infer(item, column_summary, override, rules), null_fraction=null_fraction(item, column_summary))
        if column.kind != "ignored" and column_summary.num_nonfinite:
            found = f"{column_summary.num_nonfinite} NaN or infinite values"
            column = replace(column, reason=f"{column.reason}; {found} count as nulls")
            if rules.nonfinite == "error":
                faults.append(
                    f"column {item.name!r} has {found}, the first in {column_summary.first_nonfinite}; "
                    "store them as null, or take them for nulls by --data.nonfinite null"
                )
        if column.kind != "ignored" and not np.isfinite([*column.mean, column.scale]).all():
            assert column_summary.moments is not None
            most = column_summary.moments.magnitude
            faults.append(f"column {item.name!r} has values too large to standardise (up to {most:g}); rescale or ignore it")
        columns.append(column)
    if faults:
        raise DataError("unsuitable values in the training rows:\n  " + "\n  ".join(faults))
    if not any(column.kind not in ("key", "ignored") for column in columns):
        reasons = "; ".join(f"{column.name}: {column.reason}" for column in columns)
        raise DataError(f"no column is left to model ({reasons}); give kinds by data.columns")
    return columns


def null_fraction(item: pa.Field, summary: ColumnSummary) -> float:
    """Returns the share of rows without a value; a list's elements may be missing besides."""
    num_rows = summary.num_values + summary.num_nulls
    missing = summary.num_nulls + (0 if is_list(item.type) else summary.num_nonfinite)
    return missing / num_rows if num_rows else 1.0


def infer(item: pa.Field, summary: ColumnSummary, override: Mapping[str, Any], rules: Rules) -> Column:
    """Returns the column but for its null fraction."""
    name, kind, values = item.name, override.get("kind"), without_dictionary(item.type)
    if kind == "ignored" or not name:
        return Column(name, "ignored", NAMED if name else "it has no name; give it one to have it modelled")
    not_modelled = Column(name, "ignored", f"columns of type {values} are not modelled")
    if unsuitable(item) is not None:
        return not_modelled
    if summary.num_values == 0:
        return Column(name, "ignored", "all null in the training rows")
    if (constant := constant_value(summary, rules)) is not None:
        return Column(name, "ignored", "constant", constant=constant)
    if can_be(values, "boolean"):
        return Column(name, "boolean", NAMED if kind else "boolean type", shape=[1])
    if is_text(values):
        return text_column(name, summary, kind, rules)
    if pa.types.is_integer(values):
        return integer_column(name, values, summary, kind, rules)
    if is_number(values) or is_temporal(values):
        return numeric_column(name, values, "timestamp" if is_temporal(values) else "numeric", summary, NAMED if kind else f"{values} type")
    if can_be(values, "vector"):
        return list_column(name, values, summary, override)
    return not_modelled


def constant_value(summary: ColumnSummary, rules: Rules) -> Any:
    """Returns the one value of a scalar column, exact and as JSON holds it; None where there are several."""
    if summary.counts is not None:
        return summary.counts.most_common(1)[0][0] if summary.counts.is_one_value else None
    if summary.decimals is not None:
        least, most = summary.decimals
        return None if least < most else float(least) if len(least.as_tuple().digits) <= FLOAT_DIGITS else str(least)
    moments = summary.moments
    if moments is None or summary.sizes or (summary.num_nonfinite and rules.nonfinite == "error"):
        return None
    return float(moments.minimum[0]) if moments.minimum[0] == moments.maximum[0] else None


def text_column(name: str, summary: ColumnSummary, kind: str | None, rules: Rules) -> Column:
    if kind is None and summary.is_unique:
        return Column(name, "ignored", "every value is different: free text, or a key to name by data.key")
    if kind is None and summary.num_distinct > max(FREE_TEXT_SHARE * summary.num_values, MAX_INTEGER_CATEGORIES):
        return Column(name, "ignored", f"free text: {number_of_values(summary)} different values in {summary.num_values} rows")
    return categorical_column(name, summary, NAMED if kind else "text", rules)


def integer_column(name: str, values: pa.DataType, summary: ColumnSummary, kind: str | None, rules: Rules) -> Column:
    few = summary.num_distinct <= MAX_INTEGER_CATEGORIES
    if kind is None and summary.is_unique and not few:
        return Column(name, "ignored", "every value is different: a key? then name it by data.key")
    if kind == "categorical" or (kind is None and few):
        return categorical_column(name, summary, NAMED if kind else "integers", rules)
    assert summary.moments is not None
    least = summary.moments.minimum[0]
    if kind == "count" and least < 0:
        raise ColumnOverrideError(f"data.columns.{name}.kind is 'count', but its values go down to {least:g}; counts are 0 or more")
    wide = f"{'integers' if least < 0 else 'integers from 0'}, more than {MAX_INTEGER_CATEGORIES} values"
    return numeric_column(name, values, kind or ("numeric" if least < 0 else "count"), summary, NAMED if kind else wide)


def number_of_values(summary: ColumnSummary) -> str:
    exact = summary.counts is not None and summary.counts.exact
    return f"{'' if exact else 'about '}{summary.num_distinct:.0f}"


def categorical_column(name: str, summary: ColumnSummary, reason: str, rules: Rules) -> Column:
    """Returns the column with its most frequent categories, in ascending order; what is not kept is said."""
    counts = summary.counts
    assert counts is not None
    kept, rows = counts.most_common(rules.max_categories, rules.min_category_count)
    others = counts.total - sum(rows)
    if not kept:
        return Column(name, "ignored", f"no value comes in {rules.min_category_count} rows (data.min_category_count)")
    reason += f", {number_of_values(summary)} values"
    if others:
        reason += f", the {len(kept)} most frequent kept; {others / counts.total:.1%} of the rows are one category 'other'"
    if not counts.exact:
        reason += f" (counts are approximate, by up to {counts.error} rows)"
    return Column(name, "categorical", reason, shape=[1], categories=sorted(kept), other=others > 0)


def list_column(name: str, values: pa.DataType, summary: ColumnSummary, override: Mapping[str, Any]) -> Column:
    kind, moments = override.get("kind"), summary.moments
    if len(summary.sizes) != 1:
        if kind:
            raise ColumnOverrideError(
                f"data.columns.{name}.kind is {kind!r}, but its lists have several lengths, among them {sorted(summary.sizes)}"
            )
        return Column(name, "ignored", f"lists of several lengths ({', '.join(map(str, sorted(summary.sizes)))}, ..)")
    (size,) = summary.sizes
    side = math.isqrt(size)
    shape = list(override.get("shape", [side, side] if side * side == size else [size]))
    if math.prod(shape) != size:
        raise ColumnOverrideError(f"data.columns.{name}.shape is {shape}, which makes {math.prod(shape)} cells; the lists hold {size}")
    if kind == "image" and len(shape) < 2:
        raise ColumnOverrideError(f"data.columns.{name}: {size} pixels are no square; give its shape, such as [height, width]")
    missing = summary.num_missing_elements > 0
    if size == 0 or moments is None or moments.count.sum() == 0:
        return Column(name, "ignored", "lists without a number")
    if not missing and (moments.minimum == moments.maximum).all():
        return Column(name, "ignored", "constant", constant=constant_list(values, moments.minimum.tolist()))
    is_image = kind == "image" or (kind is None and can_be(values, "image") and len(shape) > 1)
    reason = NAMED if kind else f"lists of {size} {'bytes' if is_image else 'numbers'}"
    total = moments.count.sum()
    fractions = (1 - moments.count / summary.num_values).tolist() if missing else []
    elements: dict[str, Any] = {"element_nulls": missing, "element_null_fractions": fractions}
    if not is_image:
        scale = usable(np.sqrt(moments.squares.sum() / total))
        whole = pa.types.is_integer(values.value_type)
        if whole and moments.magnitude > MAX_EXACT_INTEGER and np.spacing(moments.magnitude) > np.finfo(np.float32).eps * scale:
            return Column(name, "ignored", "whole numbers beyond 2^53, too close together for float64; store them less some number")
        return Column(name, "vector", reason, 0.0, whole, [size], moments.mean.tolist(), scale, **elements)
    mean = (moments.mean * moments.count).sum() / total
    scale = usable(np.sqrt((moments.squares + moments.count * (moments.mean - mean) ** 2).sum() / total))
    column = Column(name, "image", reason, 0.0, True, shape, [float(mean)], scale, **elements)
    return replace(column, binarize=True, likelihood="bernoulli") if "binarize" in override else column


def constant_list(values: pa.DataType, elements: list[float]) -> list[Any] | None:
    """Returns the list that every row holds, None where float64 does not hold it exactly."""
    if pa.types.is_integer(values.value_type):
        return [int(element) for element in elements] if max(map(abs, elements)) <= MAX_EXACT_INTEGER else None
    return elements if pa.types.is_floating(values.value_type) else None
