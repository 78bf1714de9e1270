"""What a table's columns hold one by one: null rates, means, quantiles, frequencies. Of training rows, and of generated ones the same way.

The bundle keeps those of the training rows. Of a column with more than 100 values neither the smallest nor the largest is among them, and
a frequency is of a category that was kept (`min_category_count`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data.column import Column
from data.columns import null_fraction
from data.decoding import supported
from data.encoding import TableEncoding
from data.scales import RESOLUTION
from data.statistics import ColumnSummary, TableSummary, summarise_table

LEVELS = (0.01, *(level / 20 for level in range(1, 20)), 0.99)
# A standard deviation spans this many bins of the sketch, or its quantiles say too little.
MIN_BINS = 4

Marginal = dict[str, Any]


def marginals(encoding: TableEncoding, summary: TableSummary) -> dict[str, Any]:
    """Returns what the model's columns hold, plain JSON: "num_rows", and "columns" by name.

    Each has null_rate and, by its kind: frequencies (shares of all rows, by category, or of false and true), or mean and
    standard_deviation (of all elements together for lists) and quantiles at LEVELS (None where they are not known well). Lists whose
    elements may be null have element_null_rate too, of the elements of lists that are there.
    Points in time are in their type's units since the epoch.
    """
    found = {column.name: summary.columns[column.name] for column in encoding.columns if column.name in encoding.inputs}
    return {
        "num_rows": summary.num_rows[0],
        "columns": {c.name: marginal(c, encoding.schema.field(c.name), found[c.name]) for c in encoding.columns if c.name in found},
    }


def summarise_rows(encoding: TableEncoding, rows: pa.Table) -> TableSummary:
    """Returns the mergeable summary of rows with the model's columns, which `marginals` takes."""
    counted = [column.name for column in encoding.columns if column.kind == "categorical"]
    return summarise_table(rows.select(encoding.inputs), (rows.num_rows, 0, 0), counted)


def marginal(column: Column, item: pa.Field, summary: ColumnSummary) -> Marginal:
    result: Marginal = {"kind": column.kind, "null_rate": null_fraction(item, summary)}
    if column.kind in ("categorical", "boolean"):
        return result | {"frequencies": frequencies(categories_of(column), summary)}
    if column.element_nulls:
        result |= {"element_null_rate": summary.num_missing_elements / max(1, summary.num_values * column.size)}
    moments = summary.moments
    if moments is None:
        return result | {"mean": None, "standard_deviation": None}
    total = moments.count.sum()
    with np.errstate(over="ignore", invalid="ignore"):  # atoms may be as large as floats are
        mean = float((moments.mean * moments.count).sum() / total)
        squares = float((moments.squares + moments.count * (moments.mean - mean) ** 2).sum())
    deviation = float(np.sqrt(squares / total)) if np.isfinite(squares) else np.inf
    result |= {"mean": if_finite(mean + float(moments.base[0])), "standard_deviation": if_finite(deviation)}
    if column.kind in ("vector", "image"):
        return result
    found = quantiles(summary, deviation)
    if found is not None and not column.base:
        found = supported(np.array(found, np.float64), column).tolist()
    return result | {"quantiles": found}


def if_finite(number: float) -> float | None:
    """Returns a figure, None where float64 does not hold it."""
    return number if np.isfinite(number) else None


def categories_of(column: Column) -> list[Any]:
    return [False, True] if column.kind == "boolean" else column.categories


def frequencies(categories: Sequence[Any], summary: ColumnSummary) -> list[float]:
    """Returns each category's share of all rows; what is left of 1 are nulls and other values."""
    num_rows = summary.num_values + summary.num_nulls
    if summary.counts is None or not num_rows:
        return [0.0] * len(categories)
    entries = summary.counts.entries
    places = pc.index_in(pa.array(categories, entries.values.type), entries.values)
    counts = np.append(entries.counts, 0)[places.fill_null(len(entries.counts)).to_numpy(zero_copy_only=False)]
    return [float(count) / num_rows for count in counts]


def quantiles(summary: ColumnSummary, standard_deviation: float) -> list[float] | None:
    """Returns the values at LEVELS: exact where values were counted, else the sketch's, or None where these are too coarse."""
    if summary.counts is not None and summary.counts.exact:
        values, counts = summary.counts.entries
        numbers = values.to_numpy(zero_copy_only=False)
        order = np.argsort(numbers)
        ends = counts[order].cumsum()
        ranks = np.floor(np.array(LEVELS) * (ends[-1] - 1))
        return [number.item() for number in numbers[order][np.searchsorted(ends, ranks, side="right")]]
    assert summary.sketch is not None
    found = summary.sketch.quantiles(LEVELS)
    middle = found[len(LEVELS) // 2]
    return found if abs(middle) * RESOLUTION * MIN_BINS <= standard_deviation else None


def total_variation(a: Sequence[float], b: Sequence[float]) -> float:
    """Returns half the sum of differences of two lists of frequencies, of what is left of 1 too: 0 if equal, 1 if disjoint."""
    rest = (1 - sum(a)) - (1 - sum(b))
    return 0.5 * (sum(abs(p - q) for p, q in zip(a, b, strict=True)) + abs(rest))


def stored_marginals(record: Mapping[str, Any]) -> dict[str, Any] | None:
    """Returns the training rows' marginals of a bundle's table.json, None where it is of a version that did not keep them."""
    return record.get("marginals")
