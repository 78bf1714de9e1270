"""Whether rows are drawn from where a reference's rows were: what is kept of the reference, of the new rows, and the tests between them.

Neither side keeps rows: counts in bins, counts of nulls, and means of random features. Counts and means are sums of whole numbers, so that
parts of a table are added in any order. Shapes: B rows, D elements of a list.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data.bins import CUTS, Cut, Sums, cut_of
from data.cells import codes_of, raw_numbers
from data.column import Column
from data.encoding import TableEncoding
from data.fields import Arrays, one_array
from data.listing import DataError
from data.two_sample import Comparison, compare_rates, false_discovery_adjusted

FORMAT_VERSION = 1
COLUMN = "column "
NULL_CODE = -2
# Fewer rows than this say too little for distributions that hold for many.
MIN_REFERENCE_ROWS, MIN_ROWS = 100, 50


class Measured(NamedTuple):
    """One quantity of some rows. values: of the rows that have it; numbers [B], codes [B] (-1: a value without one) or lists [B, D]."""

    values: NDArray[Any]
    num_nulls: int

    @property
    def num_rows(self) -> int:
        return len(self.values) + self.num_nulls


# By name; each is of all rows.
Quantities = dict[str, Measured]


def num_rows(parts: Iterable[Quantities]) -> int:
    return sum(next(iter(part.values())).num_rows for part in parts)


def column_quantities(encoding: TableEncoding, table: pa.Table, arrays: Arrays) -> Quantities:
    """Returns what the model's columns hold in rows of a table, by "column NAME"; arrays: the same rows, encoded."""
    return {COLUMN + name: measured for name, measured in columns_in(encoding, table, arrays)}


def columns_in(encoding: TableEncoding, table: pa.Table, arrays: Arrays) -> Iterator[tuple[str, Measured]]:
    for field in encoding.fields:
        valid = arrays[f"{field.name}.valid"]
        if field.kind in ("vector", "image"):
            there = valid.any(1)
            yield field.columns[0].name, Measured(arrays[field.name][there], int((~there).sum()))
            continue
        for number, column in enumerate(field.columns):
            cells, there = arrays[field.name][:, number], valid[:, number]
            if column.kind == "categorical":  # what has no code is encoded as "other" or as missing, and is neither here
                cells = category_codes(one_array(table[column.name]), column)
                there = cells != NULL_CODE
            yield column.name, Measured(cells[there], int((~there).sum()))


def category_codes(array: pa.Array, column: Column) -> NDArray[np.int64]:
    """Returns each value's code [B]; -1 for one that training did not see or keep, NULL_CODE for a null."""
    if not pa.types.is_dictionary(array.type):
        return codes_of(array, column).astype(np.int64)
    by_index = np.append(codes_of(array.dictionary, column), NULL_CODE).astype(np.int64)
    places = array.indices.fill_null(len(array.dictionary)) if array.null_count else array.indices
    codes: NDArray[np.int64] = by_index[raw_numbers(places)]
    return codes


@dataclass(frozen=True)
class Sketch:
    """What is kept of rows. num_rows, num_nulls: by quantity, rows that have it and rows that do not; sums: as its cut makes them."""

    num_rows: dict[str, int]
    num_nulls: dict[str, int]
    sums: dict[str, Sums]

    def merge(self, other: Sketch) -> Sketch:
        """Returns the sketch of both parts' rows."""
        return Sketch(
            {name: count + other.num_rows[name] for name, count in self.num_rows.items()},
            {name: count + other.num_nulls[name] for name, count in self.num_nulls.items()},
            {name: sums + other.sums[name] for name, sums in self.sums.items()},
        )

    @property
    def total_rows(self) -> int:
        return next(count + self.num_nulls[name] for name, count in self.num_rows.items())


@dataclass(frozen=True)
class Finding:
    """One test of the report. what: "values" or "nulls" of a quantity; adjusted: the p-value with all tests of the report in mind."""

    quantity: str
    what: str
    p_value: float
    adjusted: float
    effect: float
    drifted: bool


@dataclass(frozen=True)
class Reference:
    """What new rows are compared with. rows: which rows they were, in words; cuts: how each quantity is summed."""

    rows: str
    cuts: dict[str, Cut]
    sketch: Sketch

    @staticmethod
    def of(parts: Sequence[Quantities], rows: str, shares: Mapping[str, Sequence[float]]) -> Reference:
        """Returns the reference that the rows of all parts make. Raises DataError where they are too few.

        shares: of categorical and boolean columns, code -> its share of the training rows.
        """
        if num_rows(parts) < MIN_REFERENCE_ROWS:
            raise DataError(f"{rows}: {num_rows(parts)} rows; to find drift by, at least {MIN_REFERENCE_ROWS} are needed")
        whole = {name: np.concatenate([part[name].values for part in parts]) for name in parts[0]}
        cuts = {name: cut_of(values, shares.get(name.removeprefix(COLUMN))) for name, values in whole.items()}
        sketch = Sketch(
            {name: len(values) for name, values in whole.items()},
            {name: sum(part[name].num_nulls for part in parts) for name in whole},
            {name: cuts[name].sums(values) for name, values in whole.items()},
        )
        return Reference(rows, cuts, sketch)

    def sketch_of(self, rows: Quantities) -> Sketch:
        """Returns the sketch of some new rows; those of others can be merged with it."""
        return Sketch(
            {name: len(rows[name].values) for name in self.cuts},
            {name: rows[name].num_nulls for name in self.cuts},
            {name: cut.sums(rows[name].values) for name, cut in self.cuts.items()},
        )

    @property
    def no_rows(self) -> Sketch:
        """The sketch of no rows, with which merging begins."""
        zero = dict.fromkeys(self.cuts, 0)
        return Sketch(zero, zero, {name: np.zeros_like(sums) for name, sums in self.sketch.sums.items()})

    def compare(self, new: Sketch, alpha: float = 0.05, min_effect: float = 0.0, ignored: Collection[str] = ()) -> list[Finding]:
        """Returns every test between the reference and the new rows, the smallest p-values first; none for fewer than MIN_ROWS rows.

        A quantity has drifted where its p-value, adjusted for all of them (Benjamini and Hochberg), is at most alpha, and its effect at
        least min_effect: the total-variation distance of its bins' shares, the difference of its shares of nulls, or the MMD.
        Without drift the chance that any of them does is alpha, for rows that are independent draws. ignored: columns left out.
        """
        if new.total_rows < MIN_ROWS:
            return []
        left_out = {COLUMN + name for name in ignored}
        made = [test for name in self.cuts if name not in left_out for test in self._tests(name, new)]
        if not made:
            return []
        adjusted = false_discovery_adjusted(np.array([found.p_value for _, _, found in made])).tolist()
        tests = [
            Finding(name, what, found.p_value, q, found.effect, q <= alpha and found.effect >= min_effect)
            for (name, what, found), q in zip(made, adjusted, strict=True)
        ]
        return sorted(tests, key=lambda test: (test.p_value, -test.effect))

    def _tests(self, name: str, new: Sketch) -> Iterator[tuple[str, str, Comparison]]:
        old = self.sketch
        rows, nulls = (old.num_rows[name], new.num_rows[name]), (old.num_nulls[name], new.num_nulls[name])
        values = self.cuts[name].compare(old.sums[name], new.sums[name], rows)
        missing = compare_rates(nulls[0], rows[0] + nulls[0], nulls[1], rows[1] + nulls[1])
        found: Iterable[tuple[str, Comparison | None]] = (("values", values), ("nulls", missing))
        yield from ((name, what, comparison) for what, comparison in found if comparison is not None)

    def to_json(self) -> dict[str, Any]:
        """Returns what a bundle's table.json keeps."""
        old = self.sketch
        return {
            "format_version": FORMAT_VERSION,
            "rows": self.rows,
            "quantities": {
                name: {"kind": cut.kind, "cut": vars(cut), "num_rows": old.num_rows[name], "num_nulls": old.num_nulls[name]}
                | {"sums": old.sums[name].tolist()}
                for name, cut in self.cuts.items()
            },
        }

    @staticmethod
    def from_json(record: Mapping[str, Any]) -> Reference:
        """Returns the reference that to_json wrote. Raises DataError for another format version."""
        if record["format_version"] != FORMAT_VERSION:
            found = f"the model's drift reference has format version {record['format_version']}, this code reads {FORMAT_VERSION}"
            raise DataError(f"{found}; give a table by --drift.reference")
        quantities = record["quantities"]
        sketch = Sketch(
            {name: found["num_rows"] for name, found in quantities.items()},
            {name: found["num_nulls"] for name, found in quantities.items()},
            {name: np.array(found["sums"], np.int64) for name, found in quantities.items()},
        )
        return Reference(record["rows"], {name: CUTS[found["kind"]](**found["cut"]) for name, found in quantities.items()}, sketch)


def category_shares(encoding: TableEncoding, marginals: Mapping[str, Any] | None) -> dict[str, list[float]]:
    """Returns, for every categorical and boolean column, code -> its share of the training rows (1 where that was not kept)."""
    kept = (marginals or {}).get("columns", {})
    sizes = {c.name: 2 if c.kind == "boolean" else len(c.categories) for c in encoding.columns if c.kind in ("boolean", "categorical")}
    return {name: kept.get(name, {}).get("frequencies") or [1.0] * size for name, size in sizes.items()}
