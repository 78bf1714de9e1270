"""Rows as classifiers and distances take them: one number per cell, NaN where it is missing. Shapes: B rows, C cells of a row, K codes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data.encoding import TableEncoding

# Codes of a column that are told apart; scikit-learn's trees take 255.
MAX_CODES = 255
# Elements taken of a list, evenly spaced.
MAX_ELEMENTS = 32


@dataclass(frozen=True)
class Cells:
    """values: [B, C] in float64; by cell: its name, the column it comes from, and whether it is a code rather than a number."""

    values: NDArray[np.float64]
    names: list[str]
    columns: list[str]
    is_code: NDArray[np.bool_]

    def take(self, index: NDArray[Any]) -> Cells:
        """Returns the rows at `index`."""
        return Cells(self.values[index], self.names, self.columns, self.is_code)

    def select(self, keep: NDArray[np.bool_]) -> Cells:
        """Returns some of the cells of every row, [C]."""
        chosen = np.flatnonzero(keep)
        return Cells(self.values[:, chosen], [self.names[i] for i in chosen], [self.columns[i] for i in chosen], self.is_code[chosen])


def cells_of(encoding: TableEncoding, rows: pa.Table, where: str) -> Cells:
    """Returns the cells of all columns that the model has, conditions too, as encoding standardises them.

    Codes are places among the column's categories. Raises DataError naming `where` (whose rows they are).
    """
    arrays = encoding.encode(rows, where)
    parts: list[NDArray[np.float64]] = []
    names: list[str] = []
    columns: list[str] = []
    is_code: list[bool] = []
    for field in encoding.fields:
        values = np.where(arrays[f"{field.name}.valid"], arrays[field.name].astype(np.float64), np.nan)
        begin = 0
        for column in field.columns:
            places = np.unique(np.linspace(0, column.size - 1, min(column.size, MAX_ELEMENTS)).astype(np.int64))
            parts.append(values[:, begin + places])
            names += [column.name] if column.size == 1 else [f"{column.name}[{place}]" for place in places]
            columns += [column.name] * len(places)
            is_code += [column.kind in ("categorical", "boolean")] * len(places)
            begin += column.size
    return Cells(np.concatenate(parts, 1), names, columns, np.array(is_code, np.bool_))


def with_few_codes(tables: Sequence[Cells]) -> list[Cells]:
    """Returns tables of the same columns in which columns of more than MAX_CODES codes keep the most frequent; the others are one."""
    values = [cells.values.copy() for cells in tables]
    for place in np.flatnonzero(tables[0].is_code):
        codes, counts = np.unique(np.concatenate([part[:, place] for part in values]), return_counts=True)
        codes, counts = codes[~np.isnan(codes)], counts[~np.isnan(codes)]
        if len(codes) > MAX_CODES:
            rank = np.full(int(codes.max()) + 1, MAX_CODES - 1.0)
            rank[codes[np.argsort(-counts, kind="stable")[: MAX_CODES - 1]].astype(np.int64)] = np.arange(MAX_CODES - 1)
            for part in values:
                there = ~np.isnan(part[:, place])
                part[there, place] = rank[part[there, place].astype(np.int64)]
    return [replace(cells, values=part) for cells, part in zip(tables, values, strict=True)]


def drawn(num_rows: int, most: int, seed: int) -> NDArray[np.int64]:
    """Returns the numbers of at most `most` rows, drawn without replacement and in order."""
    return np.sort(np.random.default_rng(seed).permutation(num_rows)[:most])
