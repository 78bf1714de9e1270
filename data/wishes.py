"""Likelihoods that are named for columns: which of them can be granted, and the columns with them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from data.column import Column
from data.likelihood_names import COUNTS, MASSES, NAMES, WARPED_MASSES, possible_likelihoods
from data.numeric_columns import drawn_in, plain, with_tails
from data.overrides import KINDS, ColumnOverrideError, can_be
from data.scales import center_and_width, heavy_tails, log1p_moments
from data.statistics import ColumnSummary, TableSummary
from data.widening import without_dictionary

# Whole numbers up to here are exact in float32.
MAX_RAW_COUNT = 2**24
WHITE = 255


def check_likelihoods(
    schema: pa.Schema,
    key: str | None,
    overrides: Mapping[str, Mapping[str, Any]],
    condition: Collection[str],
    likelihoods: Mapping[str, str],
) -> None:
    """Raises ColumnOverrideError, with all faults, for what names and types alone forbid; the rest is known when the values are."""
    faults = []
    for name, wish in likelihoods.items():
        reason = None if name in schema.names else f"the table does not have this column; it has {schema.names}"
        reason = reason or ("it is the key, which is not modelled" if name == key else None)
        reason = reason or ("it conditions the model (data.condition) and is not modelled" if name in condition else None)
        reason = reason or unsuitable_type(schema.field(name), overrides.get(name, {}), wish)
        if reason:
            faults.append(fault(name, wish, reason))
    refuse(faults)


def fault(name: str, wish: str, reason: str) -> str:
    return f"model.likelihoods.{name} is {wish!r}: {reason}"


def refuse(faults: Sequence[str]) -> None:
    if faults:
        raise ColumnOverrideError("\n".join(faults))


def unsuitable_type(item: pa.Field, override: Mapping[str, Any], wish: str) -> str | None:
    """Returns why a column of this type, of the kind that an override gives it, can in no case have a likelihood."""
    if wish not in NAMES:
        return f"there is no such likelihood; there are {list(NAMES)}"
    if override.get("kind") == "ignored":
        return "it is ignored by data.columns, and not modelled"
    values = without_dictionary(item.type)
    kinds = [override["kind"]] if "kind" in override else [kind for kind in KINDS if can_be(values, kind) and kind != "ignored"]
    names = dict.fromkeys(name for kind in kinds for name in possible_likelihoods(kind, is_whole(values), gridded=True))
    if "binarize" in override:
        names = {"bernoulli": None}
    of = f" as {override['kind']}" if "kind" in override else ""
    return None if wish in names else f"a column of type {item.type}{of} can have one of {list(names)}"


def is_whole(values: pa.DataType) -> bool:
    """Returns whether numbers of a type, or a list's elements, are integers."""
    element = getattr(values, "value_type", values)
    return bool(pa.types.is_integer(element))


def with_likelihoods(columns: Sequence[Column], summary: TableSummary, likelihoods: Mapping[str, str]) -> list[Column]:
    """Returns the columns with the likelihoods named for them, standardised as these need it.

    Raises ColumnOverrideError, with all faults, where a column's values or its kind forbid one.
    """
    faults, granted = [], []
    for column in columns:
        wish = likelihoods.get(column.name)
        reason = None if wish is None else unsuitable(column, summary.columns.get(column.name, ColumnSummary()), wish)
        if wish is None or reason:
            faults += [fault(column.name, str(wish), reason)] if reason else []
            granted.append(column)
        else:
            granted.append(with_likelihood(column, summary.columns[column.name], wish))
    refuse(faults)
    return granted


def unsuitable(column: Column, summary: ColumnSummary, wish: str) -> str | None:
    """Returns why a column, as its values are, cannot have a likelihood."""
    if column.kind in ("key", "ignored"):
        return f"it is {'the key' if column.kind == 'key' else 'ignored'} ({column.reason}), and not modelled"
    if column.condition:
        return "it conditions the model (data.condition) and is not modelled"
    names = ("bernoulli",) if column.binarize else possible_likelihoods(column.kind, column.integer, column.resolution is not None)
    if wish not in names:
        more = "" if column.kind != "categorical" else "; data.columns can give it another kind"
        return f"the column is {column.kind} ({column.reason}) and can have one of {list(names)}{more}"
    if wish in COUNTS and summary.moments is not None and summary.moments.maximum[0] > MAX_RAW_COUNT:
        most = summary.moments.maximum[0]
        return f"its values go up to {most:.0f}, and beyond {MAX_RAW_COUNT} (2^24) float32 skips whole numbers; take one of {list(MASSES)}"
    if wish in WARPED_MASSES and column.base:
        return f"its values lie beyond 2^53 and so close together that no asinh draws them in; take one of {list(MASSES)}"
    if column.kind == "image" and wish == "bernoulli" and not column.binarize and has_greys(summary):
        return (
            "its pixels are not all 0 or 255; take continuous_bernoulli, or have them drawn by "
            f'--data.columns \'{{"{column.name}": {{"kind": "image", "binarize": "per_epoch"}}}}\''
        )
    return None


def has_greys(summary: ColumnSummary) -> bool:
    """Returns whether some pixel is neither 0 nor 255: then the sum of x (255 - x) over all is 254 or more."""
    moments = summary.moments
    assert moments is not None
    of_squares = moments.squares + moments.count * moments.mean**2
    return bool((WHITE * moments.count * moments.mean - of_squares).sum() > 127)


def with_likelihood(column: Column, summary: ColumnSummary, wish: str) -> Column:
    """Returns a column that can have a likelihood with it."""
    if column.atoms:  # these are values like others then, by which numbers are standardised
        assert summary.sketch is not None
        column = plain(replace(column, atoms=[], lower=None, upper=None), summary)
        column = with_tails(column, summary, heavy_tails(summary.sketch))
    column = replace(column, likelihood=wish, reason=f"{column.reason}; {wish}, named by model.likelihoods")
    return standardised_for(column, summary) if column.kind in ("numeric", "count", "timestamp") else column


def standardised_for(column: Column, summary: ColumnSummary) -> Column:
    """Returns a column of numbers standardised as its likelihood needs it: counts not at all, masses with an asinh where it says so.

    Densities of heavy tails are those after the asinh, whatever their name.
    """
    if column.likelihood in COUNTS:
        mean, scale = count_moments(summary)
        column = replace(column, mean=[0.0], scale=1.0, center=0.0, width=None, log_mean=mean, log_scale=scale)
        return replace(column, resolution=1.0, origin=0.0, lower=0)
    if column.likelihood in MASSES:
        return plain(column, summary)
    if column.likelihood in WARPED_MASSES and column.width is None:
        assert summary.sketch is not None
        center, width = center_and_width(summary.sketch)
        return drawn_in(column, summary, center, width or column.scale)
    return column


def count_moments(summary: ColumnSummary) -> tuple[float, float]:
    """Returns mean and standard deviation of log(1 + k): exact where values were counted, else as the sketch knows k (to 1/128)."""
    if summary.counts is not None and summary.counts.exact:
        entries = summary.counts.entries
        return log1p_moments(entries.values.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False), entries.counts)
    assert summary.sketch is not None
    return log1p_moments(np.maximum(summary.sketch.middles(), 0.0), summary.sketch.counts)
