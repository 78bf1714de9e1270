"""Which columns of categories count as determined by another one, and by what rule."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from data.column import Column
from data.dependencies import MAX_CATEGORIES, Dependencies
from data.statistics import TableSummary

# Nats: how unlikely it has to be that values drawn by their frequencies agree whenever those of the other column come again.
MIN_EVIDENCE = 30.0


def with_dependencies(columns: Sequence[Column], summary: TableSummary) -> list[Column]:
    """Returns the columns of which some are marked as determined by another, which is not: of those that do so one that is there in most of
    the rows, and of these the one with the fewest categories. Conditions neither determine nor are determined."""
    known = summary.dependencies or Dependencies({}, {})
    ranked = sorted((c for c in columns if c.kind == "categorical" and not c.condition), key=lambda column: -column.num_codes)
    marked: dict[str, Column] = {}
    for column in ranked:
        able = [by for by in marked.values() if by.determined_by is None and not by.other and by.num_codes <= MAX_CATEGORIES]
        able = [by for by in able if (by.name, column.name) in known.rules and is_evident(known, by, column, summary)]
        best = max(reversed(able), key=lambda by: known.rows_with_both(by.name, column.name), default=None)
        marked[column.name] = column if best is None else determined(column, best, known, summary)
    return [marked.get(column.name, column) for column in columns]


def is_evident(known: Dependencies, by: Column, column: Column, summary: TableSummary) -> bool:
    """Returns whether values would hardly agree so by chance: in each row with both but the first of each category of the other column.

    A value that comes only where the other column is null speaks against it: it would have next to no probability there.
    """
    counts = summary.columns[column.name].counts
    assert counts is not None
    rule, num_rows = known.rules[by.name, column.name], known.num_rows[by.name, column.name]
    by_value: Counter[Any] = Counter()
    for value, determined_value in rule.items():
        by_value[determined_value] += num_rows[value]
    if len(by_value) < counts.num_distinct:
        return False
    chance = sum(number**2 for number in by_value.values()) / by_value.total() ** 2
    return -(by_value.total() - len(rule)) * math.log(chance) >= MIN_EVIDENCE


def determined(column: Column, by: Column, known: Dependencies, summary: TableSummary) -> Column:
    """Returns a column with the codes that another's categories give it; those never seen with it give its most frequent category."""
    counts = summary.columns[column.name].counts
    assert counts is not None
    rule = known.rules[by.name, column.name]
    code_of = {value: code for code, value in enumerate(column.categories)}
    usual = counts.most_common(1)[0][0]
    codes = [code_of.get(rule.get(value, usual), len(column.categories)) for value in by.categories]
    slack = 1 / (known.rows_with_both(by.name, column.name) + 2)
    return replace(column, determined_by=by.name, determined_codes=codes, slack=slack, reason=f"{column.reason}; determined by {by.name!r}")
