"""Which columns of categories count as determined by another one, and by what rule."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from data.column import Column
from data.dependencies import MAX_CATEGORIES
from data.statistics import TableSummary

# Nats: how unlikely it has to be that values drawn by their frequencies agree whenever those of the other column come again.
MIN_EVIDENCE = 30.0


def with_dependencies(columns: Sequence[Column], summary: TableSummary) -> list[Column]:
    """Returns the columns of which some are marked as determined by another, which is not: the one with the fewest categories."""
    rules = {} if summary.dependencies is None else summary.dependencies.rules
    ranked = sorted((c for c in columns if c.kind == "categorical"), key=lambda column: -column.num_codes)
    marked: dict[str, Column] = {}
    for column in ranked:
        able = [by for by in marked.values() if by.determined_by is None and not by.other and by.num_codes <= MAX_CATEGORIES]
        able = [by for by in able if (by.name, column.name) in rules and is_evident(rules[by.name, column.name], by, column, summary)]
        marked[column.name] = determined(column, able[-1], rules[able[-1].name, column.name], summary) if able else column
    return [marked.get(column.name, column) for column in columns]


def is_evident(rule: Mapping[Any, Any], by: Column, column: Column, summary: TableSummary) -> bool:
    """Returns whether values would hardly agree so by chance: in each row but the first of each category of the other column."""
    counts = summary.columns[column.name].counts
    assert counts is not None
    shares = counts.entries.counts / counts.total
    num_again = min(summary.columns[name].num_values for name in (by.name, column.name)) - len(rule)
    return -num_again * math.log(min(1.0, float(np.square(shares).sum()))) >= MIN_EVIDENCE


def determined(column: Column, by: Column, rule: Mapping[Any, Any], summary: TableSummary) -> Column:
    """Returns a column with the codes that another's categories give it; those never seen with it give its most frequent category."""
    counts = summary.columns[column.name].counts
    assert counts is not None
    code_of = {value: code for code, value in enumerate(column.categories)}
    usual = counts.most_common(1)[0][0]
    codes = [code_of.get(rule.get(value, usual), len(column.categories)) for value in by.categories]
    slack = 1 / (summary.columns[column.name].num_values + 2)
    return replace(column, determined_by=by.name, determined_codes=codes, slack=slack, reason=f"{column.reason}; determined by {by.name!r}")


def undetermined(columns: Sequence[Column]) -> list[Column]:
    """Returns the columns without those marks that do not hold: of conditions, by conditions."""
    modelled = {column.name for column in columns if not column.condition}
    return [
        replace(column, determined_by=None, determined_codes=[], slack=0.0)
        if column.determined_by is not None and not {column.name, column.determined_by} <= modelled
        else column
        for column in columns
    ]
