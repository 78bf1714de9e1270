"""Which columns of categories another one determines in all rows, as a code does its name. Mergeable, in bounded memory.

Shapes: n rows, C columns.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data.column import MAX_INTEGER_CATEGORIES
from data.types import is_text
from data.widening import without_dictionary

# A column that determines others has so many categories at most, so that rules are small and most pairs are out at once; of a table with
# more columns of text and integers none is looked at.
MAX_CATEGORIES, MAX_COLUMNS = 128, 50
# Rows by which most pairs are seen to be none.
SAMPLE_ROWS = 2048

Rules = dict[tuple[str, str], dict[Any, Any]]


@dataclass(frozen=True)
class Dependencies:
    """Of rows: (a, b) -> the value of column b for each value of a, for all pairs of columns where there is one alone.

    Rows in which one of both is null say nothing; num_rows: for each pair and value of a, those that do.
    """

    rules: Rules
    num_rows: dict[tuple[str, str], dict[Any, int]]

    def rows_with_both(self, a: str, b: str) -> int:
        """Returns how many rows speak for b being determined by a."""
        return sum(self.num_rows[a, b].values())

    @staticmethod
    def of(table: pa.Table, categorical: Collection[str] = ()) -> Dependencies:
        """Returns those of text and of integers of few values; categorical: integer columns that are categories whatever their number."""
        kinds = {item.name: without_dictionary(item.type) for item in table.schema}
        names = [name for name, kind in kinds.items() if is_text(kind) or pa.types.is_integer(kind)]
        if len(names) > MAX_COLUMNS:
            return Dependencies({}, {})
        every = max(1, len(table) // SAMPLE_ROWS)
        coded = {name: codes_of(table[name].take(np.arange(0, len(table), every))) for name in names}
        names = [name for name in names if is_text(kinds[name]) or name in categorical or len(coded[name][1]) <= MAX_INTEGER_CATEGORIES]
        pairs = agreeing({name: coded[name][0] for name in names}, [name for name in names if len(coded[name][1]) <= MAX_CATEGORIES])
        if every > 1:
            coded = {name: codes_of(table[name]) for name in {name for pair in pairs for name in pair}}
        found = {(a, b): rule for a, b in pairs if (rule := rule_of(*coded[a], *coded[b])) is not None}
        return Dependencies({pair: rule for pair, (rule, _) in found.items()}, {pair: counts for pair, (_, counts) in found.items()})

    def merge(self, other: Dependencies) -> Dependencies:
        """Returns the dependencies of both sets of rows."""
        rules: Rules = {}
        num_rows: dict[tuple[str, str], dict[Any, int]] = {}
        for pair in self.rules.keys() & other.rules.keys():
            first, second = self.rules[pair], other.rules[pair]
            both = first | second
            if len(both) <= MAX_CATEGORIES and all(both[value] == determined for value, determined in first.items()):
                counts, more = self.num_rows[pair], other.num_rows[pair]
                rules[pair], num_rows[pair] = both, {value: counts.get(value, 0) + more.get(value, 0) for value in both}
        return Dependencies(rules, num_rows)


def codes_of(column: pa.ChunkedArray) -> tuple[NDArray[np.int32], list[Any]]:
    """Returns a number for each value of a column, [n], -1 for null, and the values by number."""
    coded = column.cast(without_dictionary(column.type)).combine_chunks().dictionary_encode()
    return np.asarray(coded.indices.fill_null(-1), np.int32), coded.dictionary.to_pylist()


def agreeing(codes: Mapping[str, NDArray[np.int32]], names: Sequence[str]) -> list[tuple[str, str]]:
    """Returns the pairs (a, b), a among names, of which no two rows, neighbours when sorted by a, have one value of a and two of b."""
    found: list[tuple[str, str]] = []
    every = np.stack(list(codes.values()), 1) if codes else np.zeros((0, 0), np.int32)
    for name in names:
        order = np.argsort(codes[name], kind="stable")
        own, others = codes[name][order], every[order]
        same, after, before = (own[1:] == own[:-1]) & (own[1:] >= 0), others[1:], others[:-1]
        broken = (same[:, None] & (after != before) & (after >= 0) & (before >= 0)).any(0)
        found += [(name, other) for other, is_broken in zip(codes, broken.tolist(), strict=True) if not is_broken and other != name]
    return found


def rule_of(
    a: NDArray[np.int32], values: Sequence[Any], b: NDArray[np.int32], determined: Sequence[Any]
) -> tuple[dict[Any, Any], dict[Any, int]] | None:
    """Returns the value of one column for each of the other, of their codes [n], and in how many rows it is so; None where there are two,
    or where they are too many."""
    there = (a >= 0) & (b >= 0)
    a, b = a[there], b[there]
    of = np.full(len(values), -1, np.int32)
    of[a] = b
    counts = np.bincount(a, minlength=len(values))
    codes = np.flatnonzero(counts).tolist()
    if (of[a] != b).any() or len(codes) > MAX_CATEGORIES:
        return None
    return {values[code]: determined[of[code]] for code in codes}, {values[code]: int(counts[code]) for code in codes}
