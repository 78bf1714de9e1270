"""What each column is: its kind, decided from Arrow type and training statistics, and the numbers that encode it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data.listing import DataError
from data.sketches import QuantileSketch
from data.statistics import ColumnSummary, TableSummary
from data.types import integer_range, is_list, is_number, is_temporal, is_text

KINDS = ("numeric", "count", "boolean", "categorical", "timestamp", "vector", "image", "key", "ignored")
# Integers with at most this many different values are codes more often than quantities.
MAX_INTEGER_CATEGORIES = 20
# Text of which this share of the values differs is free text: a category says something only where it comes again.
FREE_TEXT_SHARE = 0.9
# Quantiles of heavy tails are told from outliers by this many values.
MIN_TAIL_VALUES = 100
# How far the 0.1 % quantiles lie from the median, in standard deviations judged by the 10 % quantiles: Gaussian 3.1, Laplace 4.9,
# exponential 7.2, lognormal 16. Beyond this a Gaussian's tail is too light to hold them.
HEAVY_TAIL = 6.0
GAUSSIAN_DECILES = 2.563
# Its inverse is finite in float64.
MIN_SCALE = 1e-300


class ColumnOverrideError(ValueError):
    """An override names a column that is not there, or asks for a kind that its values cannot have."""


@dataclass(frozen=True)
class Rules:
    """What decides besides the values. max_categories: categories kept of a column, the most frequent ones; the rest become one
    "other". min_category_count: training rows that a category needs to be kept. nonfinite: whether NaN and infinities are errors
    or nulls."""

    max_categories: int = 1000
    min_category_count: int = 1
    nonfinite: Literal["error", "null"] = "error"


@dataclass(frozen=True)
class Column:
    """One column as the model takes it.

    mean: per element for a vector, else one number; with `scale` it standardises float64 cells: y = (x - mean) / scale.
    width: of a heavy-tailed column, whose cells are u = asinh((x - center) / width) before they are standardised.
    integer: the cells are whole numbers, to be given a probability and not a density; lower and upper: the ends of their range.
    other: categories that are not listed have one code together, after all listed ones.
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
    center: float = 0.0
    width: float | None = None
    lower: int | None = None
    upper: int | None = None
    categories: list[Any] = field(default_factory=list)
    other: bool = False
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

    @property
    def num_codes(self) -> int:
        """Codes of a categorical column."""
        return len(self.categories) + self.other


def decide_columns(
    schema: pa.Schema, summary: TableSummary, key: str | None, overrides: Mapping[str, Mapping[str, Any]], rules: Rules
) -> list[Column]:
    """Returns one Column per schema field, in its order.

    Raises ColumnOverrideError for an override that cannot be, DataError where a column's values are unsuitable (all at once).
    """
    check_names(schema, key, overrides)
    faults: list[str] = []
    columns = []
    for item in schema:
        column_summary = summary.columns.get(item.name, ColumnSummary())
        override = overrides.get(item.name, {})
        if item.name == key:
            columns.append(Column(item.name, "key", "named by data.key"))
            continue
        check_override(item, override)
        column = infer(item, column_summary, override, rules)
        if column.kind != "ignored" and column_summary.num_nonfinite and rules.nonfinite == "error":
            count, first = column_summary.num_nonfinite, column_summary.first_nonfinite
            faults.append(
                f"column {item.name!r} has {count} NaN or infinite values, the first in {first}; "
                "store them as null, or take them for nulls by --data.nonfinite null"
            )
        if column.kind != "ignored" and not np.isfinite([*column.mean, column.scale]).all():
            faults.append(f"column {item.name!r} has values too large to standardise (up to {largest(column_summary):g})")
        columns.append(column)
    if faults:
        raise DataError("unsuitable values in the training rows:\n  " + "\n  ".join(faults))
    if not any(column.kind not in ("key", "ignored") for column in columns):
        reasons = "; ".join(f"{column.name}: {column.reason}" for column in columns)
        raise DataError(f"no column is left to model ({reasons}); give kinds by data.columns")
    return columns


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


def largest(summary: ColumnSummary) -> float:
    """Returns the largest magnitude among a column's finite values."""
    assert summary.moments is not None
    return float(max(summary.moments.maximum.max(), -summary.moments.minimum.min()))


def check_override(item: pa.Field, override: Mapping[str, Any]) -> None:
    values = item.type.value_type if pa.types.is_dictionary(item.type) else item.type
    if set(override) - {"kind", "shape"}:
        raise ColumnOverrideError(
            f"data.columns.{item.name}: unknown keys {sorted(set(override) - {'kind', 'shape'})}; known are kind and shape"
        )
    shape = override.get("shape")
    if shape is not None and not (isinstance(shape, list) and shape and all(type(side) is int and side > 0 for side in shape)):
        raise ColumnOverrideError(f"data.columns.{item.name}.shape is {shape!r}; it must be a list of positive numbers, such as [28, 28]")
    if shape is not None and not can_be(values, "image"):
        raise ColumnOverrideError(f"data.columns.{item.name}.shape: a column of type {item.type} is no image; images are lists of uint8")
    kind = override.get("kind")
    if kind is None:
        return
    possible = [k for k in KINDS if k != "key" and can_be(values, k)]
    if kind not in possible:
        raise ColumnOverrideError(f"data.columns.{item.name}.kind is {kind!r}; a column of type {item.type} can be one of {possible}")


def can_be(kind_of_values: pa.DataType, kind: str) -> bool:
    match kind:
        case "ignored":
            return True
        case "numeric":
            return is_number(kind_of_values)
        case "count":
            return bool(pa.types.is_integer(kind_of_values))
        case "boolean":
            return bool(pa.types.is_boolean(kind_of_values))
        case "categorical":
            return is_text(kind_of_values) or bool(pa.types.is_integer(kind_of_values))
        case "timestamp":
            return is_temporal(kind_of_values)
        case "vector":
            return is_list(kind_of_values) and is_number(kind_of_values.value_type)
        case _:
            return is_list(kind_of_values) and bool(kind_of_values.value_type == pa.uint8())


def infer(item: pa.Field, summary: ColumnSummary, override: Mapping[str, Any], rules: Rules) -> Column:
    name, kind = item.name, override.get("kind")
    num_rows = summary.num_values + summary.num_nulls
    lost = summary.num_nulls + (summary.num_nonfinite if not is_list(item.type) else 0)
    nulls = lost / num_rows if num_rows else 0.0
    if kind == "ignored":
        return Column(name, "ignored", "named by data.columns", nulls)
    if summary.num_values == 0:
        return Column(name, "ignored", "all null in the training rows", 1.0)
    if (constant := constant_value(summary)) is not None:
        return Column(name, "ignored", "constant", nulls, constant=constant)
    said = "named by data.columns" if kind else None
    values = item.type.value_type if pa.types.is_dictionary(item.type) else item.type
    if can_be(values, "boolean"):
        return Column(name, "boolean", said or "boolean type", nulls, shape=[1])
    if is_text(values):
        return text_column(name, summary, nulls, said, rules)
    if pa.types.is_integer(values):
        return integer_column(item, summary, nulls, kind, rules)
    if is_number(values):
        return numeric_column(item, "numeric", summary, nulls, said or f"{values} type")
    if is_temporal(values):
        return numeric_column(item, "timestamp", summary, nulls, said or f"{values} type")
    if can_be(values, "vector"):
        return list_column(item, summary, nulls, override)
    return Column(name, "ignored", f"columns of type {values} are not modelled", nulls)


def constant_value(summary: ColumnSummary) -> Any:
    if summary.counts is not None and summary.counts.entries is not None:
        return summary.counts.most_common(1)[0][0] if summary.counts.is_one_value else None
    moments = summary.moments
    if moments is not None and summary.num_nonfinite == 0 and not summary.sizes and moments.minimum[0] == moments.maximum[0]:
        return float(moments.minimum[0])
    return None


def text_column(name: str, summary: ColumnSummary, nulls: float, said: str | None, rules: Rules) -> Column:
    distinct = summary.num_distinct
    if said is None and summary.is_unique and summary.num_values > 1:
        return Column(name, "ignored", "every value is different: free text, or a key to name by data.key", nulls)
    if said is None and distinct > max(FREE_TEXT_SHARE * summary.num_values, MAX_INTEGER_CATEGORIES):
        return Column(name, "ignored", f"free text: about {distinct:.0f} different values in {summary.num_values} rows", nulls)
    return categorical_column(name, summary, nulls, said or "text", rules)


def integer_column(item: pa.Field, summary: ColumnSummary, nulls: float, kind: str | None, rules: Rules) -> Column:
    few = summary.num_distinct <= MAX_INTEGER_CATEGORIES
    if kind is None and summary.is_unique and not few:
        return Column(item.name, "ignored", "every value is different: a key? then name it by data.key", nulls)
    if kind == "categorical" or (kind is None and few):
        return categorical_column(item.name, summary, nulls, "named by data.columns" if kind else "integers", rules)
    assert summary.moments is not None
    least = float(summary.moments.minimum[0])
    if kind == "count" and least < 0:
        raise ColumnOverrideError(f"data.columns.{item.name}.kind is 'count', but its values go down to {least:g}; counts are 0 or more")
    count = kind == "count" or (kind is None and least >= 0)
    said = "named by data.columns" if kind else f"{'whole numbers from 0' if count else 'integers'}, more than {MAX_INTEGER_CATEGORIES}"
    return numeric_column(item, "count" if count else "numeric", summary, nulls, said)


def categorical_column(name: str, summary: ColumnSummary, nulls: float, reason: str, rules: Rules) -> Column:
    """Returns the column with its most frequent categories, in ascending order; what is not kept is said."""
    assert summary.counts is not None
    counts = summary.counts.finished()
    kept, rows = counts.most_common(rules.max_categories, rules.min_category_count)
    others = counts.total - sum(rows)
    if not kept:
        return Column(name, "ignored", f"no value comes in {rules.min_category_count} rows (data.min_category_count)", nulls)
    distinct = f"{counts.num_distinct}" if counts.exact else f"about {summary.num_distinct:.0f}"
    reason += f" with {distinct} values"
    if others:
        reason += f", the {len(kept)} most frequent kept; {others / counts.total:.1%} of the rows are one category 'other'"
    if not counts.exact:
        reason += f" (counts are approximate, by up to {counts.error} rows)"
    return Column(name, "categorical", reason, nulls, shape=[1], categories=sorted(kept), other=others > 0)


def numeric_column(item: pa.Field, kind: str, summary: ColumnSummary, nulls: float, reason: str) -> Column:
    """Returns the column standardised, its tails drawn in where they are heavy."""
    moments, sketch = summary.moments, summary.sketch
    if moments is None or sketch is None:
        return Column(item.name, "ignored", "no finite value in the training rows", nulls)
    integer = kind != "numeric" or pa.types.is_integer(item.type)
    lower, upper = integer_range(item.type) if integer else (None, None)
    if kind == "count":
        lower = 0
    warp = tails(sketch, integer) if kind != "timestamp" else None
    if warp is None:
        scale = usable(np.sqrt(moments.squares[0] / moments.count[0]))
        return Column(item.name, kind, reason, nulls, integer, [1], [float(moments.mean[0])], scale, lower=lower, upper=upper)
    center, width = warp
    mean, scale = warped_moments(sketch, center, width)
    return Column(item.name, kind, f"{reason}; heavy tails, drawn in", nulls, integer, [1], [mean], scale, center, width, lower, upper)


def tails(sketch: QuantileSketch, integer: bool) -> tuple[float, float] | None:
    """Returns center and width of the asinh that draws heavy tails in, None where the tails are light."""
    if sketch.count < MIN_TAIL_VALUES:
        return None
    least, low, center, high, most = sketch.quantiles([0.001, 0.1, 0.5, 0.9, 0.999])
    spread = (high - low) / GAUSSIAN_DECILES
    if max(most - center, center - least) <= HEAVY_TAIL * spread:
        return None
    center = float(round(center)) if integer else center
    if spread == 0:  # one value in most rows: what the others' distances are
        distances, counts = np.abs(sketch.middles() - center), sketch.counts
        away = distances > 0
        order = np.argsort(distances[away])
        ends = counts[away][order].cumsum()
        spread = float(distances[away][order][np.searchsorted(ends, ends[-1] / 2)])
    return center, spread


def warped_moments(sketch: QuantileSketch, center: float, width: float) -> tuple[float, float]:
    """Returns mean and standard deviation of asinh((x - center) / width), as the sketch knows x."""
    warped: NDArray[np.float64] = np.arcsinh((sketch.middles() - center) / width)
    mean = float(np.average(warped, weights=sketch.counts))
    return mean, usable(np.sqrt(np.average((warped - mean) ** 2, weights=sketch.counts)))


def usable(scale: float) -> float:
    """Returns a scale to divide by: 1 where the values' differences are beyond what float64 holds."""
    return float(scale) if scale > MIN_SCALE else 1.0


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
    missing = summary.num_null_elements > 0 or summary.num_nonfinite > 0
    total = moments.count.sum()
    if not is_image:
        scale = usable(np.sqrt(moments.squares.sum() / total))
        reason = "named by data.columns" if kind else f"lists of {size} numbers"
        whole = pa.types.is_integer(item.type.value_type)
        return Column(name, "vector", reason, nulls, whole, [size], moments.mean.tolist(), scale, element_nulls=missing)
    mean = float((moments.mean * moments.count).sum() / total)
    scale = usable(np.sqrt((moments.squares + moments.count * (moments.mean - mean) ** 2).sum() / total))
    reason = "named by data.columns" if kind else f"lists of {size} bytes"
    return Column(name, "image", reason, nulls, True, shape, [mean], scale, element_nulls=missing)
