"""Claims about columns of categories that another one determines: they are found where all rows say so, and nowhere else."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.column import Column
from data.columns import Rules, decide_columns
from data.conditions import conditioned
from data.dependencies import MAX_CATEGORIES, MAX_COLUMNS, Dependencies
from data.determined import with_dependencies
from data.encoding import TableEncoding
from data.statistics import TableSummary, merge_all, summarise_table

N = 600
TOWNS = ["Bonn", "Ulm", "Rom", "Bari", "Graz"]
COUNTRY = {"Bonn": "Germany", "Ulm": "Germany", "Rom": "Italy", "Bari": "Italy", "Graz": "Austria"}
CONTINENT = dict.fromkeys(COUNTRY.values(), "Europe") | {"Austria": "Alps"}


def places(n: int = N, seed: int = 0) -> pa.Table:
    rng = np.random.default_rng(seed)
    town = rng.choice(TOWNS, n)
    return pa.table(
        {
            "continent": [CONTINENT[COUNTRY[name]] for name in town],
            "country": [COUNTRY[name] for name in town],
            "code": [10 * TOWNS.index(name) for name in town],
            "town": pa.array(town).dictionary_encode(),
            "colour": rng.choice(["red", "green", "blue"], n),
            "size": rng.normal(size=n),
        }
    )


def summary_of(table: pa.Table, rows_per_leaf: int = 100, categorical: tuple[str, ...] = ()) -> TableSummary:
    leaves = [table.slice(begin, rows_per_leaf) for begin in range(0, len(table), rows_per_leaf)]
    return merge_all(
        replace(summarise_table(leaf, (len(leaf), 0, 0), categorical), dependencies=Dependencies.of(leaf, categorical)) for leaf in leaves
    )


def decided(table: pa.Table, rows_per_leaf: int = 100, rules: Rules | None = None) -> dict[str, Column]:
    summary = summary_of(table, rows_per_leaf)
    columns = with_dependencies(decide_columns(table.schema, summary, None, {}, rules or Rules()), summary)
    return {column.name: column for column in columns}


def determined_by(columns: dict[str, Column]) -> dict[str, str]:
    return {name: column.determined_by for name, column in columns.items() if column.determined_by is not None}


def test_what_all_rows_say_is_found_and_who_determines_is_not_determined() -> None:
    columns = decided(places())
    assert determined_by(columns) == {"town": "code", "country": "code", "continent": "code"}
    town, country = columns["town"], columns["country"]
    assert country.categories == ["Austria", "Germany", "Italy"]
    assert [country.categories[code] for code in country.determined_codes] == [COUNTRY[name] for name in TOWNS]
    assert [town.categories[code] for code in town.determined_codes] == TOWNS
    assert country.slack == 1 / (N + 2)
    assert country.reason == "text, 3 values; determined by 'code'"
    encoding = TableEncoding(places().schema, tuple(columns.values()), None)
    assert TableEncoding.from_json(encoding.to_json()) == encoding


@settings(max_examples=60)
@given(
    codes=st.lists(st.integers(0, 3), min_size=4, max_size=4),
    seed=st.integers(0, 10**6),
    rows_per_leaf=st.integers(1, 150),
    broken=st.booleans(),
    null_share=st.sampled_from([0.0, 0.3]),
)
def test_a_rule_holds_in_any_leaves_and_one_row_breaks_it(
    codes: list[int], seed: int, rows_per_leaf: int, broken: bool, null_share: float
) -> None:
    rng = np.random.default_rng(seed)
    a = rng.integers(0, 4, 120)
    b = np.array(codes)[a]
    missing = rng.random((2, 120)) < null_share
    if broken:
        missing[:, 7] = False
        b[7] = 9
        a[:2], b[:2], missing[:, :2] = a[7], codes[a[7]], False
    table = pa.table({"a": pa.array(a, mask=missing[0]), "b": pa.array(b, mask=missing[1])})
    found = summary_of(table, rows_per_leaf).dependencies
    assert found is not None
    assert found.rules.keys() == summary_of(table, 120).dependencies.rules.keys()  # type: ignore[union-attr]
    rule = found.rules.get(("a", "b"))
    assert (rule is None) == broken
    there = ~missing.any(0)
    if rule is not None:
        assert rule == dict(zip(a[there].tolist(), b[there].tolist(), strict=True))


def test_what_few_rows_say_is_chance() -> None:
    rng = np.random.default_rng(0)
    few = pa.table({"a": rng.integers(0, 15, 25), "b": np.arange(25) % 2})
    rule = {value: value % 2 for value in range(15)}
    few = few.set_column(1, "b", pa.array([rule[value] for value in few["a"].to_pylist()]))
    assert determined_by(decided(few)) == {}
    many = pa.concat_tables([few] * 10)
    assert determined_by(decided(many)) == {"b": "a"}


def test_a_column_that_hardly_varies_is_not_determined_by_chance() -> None:
    rng = np.random.default_rng(0)
    rare = np.where(np.arange(N) == 5, "yes", "no")
    group = np.where(rare == "yes", "z", rng.choice(list("abcd"), N))
    assert determined_by(decided(pa.table({"group": group, "rare": rare}))) == {}


def test_values_that_come_only_where_the_other_column_is_null_are_not_determined_by_it() -> None:
    has_loan = np.arange(N) % 3 == 0
    purpose = pa.array(np.random.default_rng(0).choice(list("abcd"), N), mask=~has_loan)
    assert determined_by(decided(pa.table({"purpose": purpose, "has_loan": np.where(has_loan, "yes", "no")}))) == {}


@pytest.mark.parametrize("num_both", [0, 8, 80])
def test_only_rows_with_both_values_are_evidence(num_both: int) -> None:
    a = np.arange(N) % 4
    first, second = np.arange(N) < N // 2, np.arange(N) < N // 2 - num_both
    table = pa.table({"a": pa.array(a, mask=~first), "b": pa.array([f"b{n % 2}" for n in a], mask=second)})
    columns = decided(table)
    assert determined_by(columns) == ({"b": "a"} if num_both == 80 else {})
    assert columns["b"].slack == (1 / (num_both + 2) if num_both == 80 else 0)


def test_a_column_that_hardly_varies_where_the_other_is_there_is_not_determined_by_chance() -> None:
    there = np.arange(N) < 60
    group = pa.array(["z" if n == 5 else f"g{n % 3}" for n in range(N)], mask=~there)
    rare = np.where(np.arange(N) == 5, "yes", np.where(there | (np.arange(N) % 2 == 0), "no", "yes"))
    assert determined_by(decided(pa.table({"group": group, "rare": rare}))) == {}


def test_many_categories_determine_nothing_and_neither_do_categories_together() -> None:
    rng = np.random.default_rng(0)
    number = rng.integers(0, MAX_CATEGORIES + 1, 20_000)
    table = pa.table({"many": [f"n{n}" for n in number], "parity": [f"p{n % 2}" for n in number]})
    assert determined_by(decided(table, 5000)) == {}
    assert determined_by(decided(places(), rules=Rules(max_categories=4))) == {"continent": "country"}


def test_wide_tables_are_not_looked_through() -> None:
    columns = {f"c{number}": ["a", "b"] * 100 for number in range(MAX_COLUMNS + 1)}
    assert Dependencies.of(pa.table(columns)).rules == {}
    assert len(Dependencies.of(pa.table(columns).drop_columns("c0")).rules) == MAX_COLUMNS * (MAX_COLUMNS - 1)


def test_a_category_of_the_one_that_never_came_with_the_other_gives_the_most_frequent() -> None:
    table = places()
    country = table["country"].to_pylist()
    table = table.select(["code", "country"]).set_column(1, "country", pa.array([None if name == "Austria" else name for name in country]))
    columns = decided(table)
    assert columns["country"].determined_by == "code"
    most = max(("Germany", "Italy"), key=country.count)
    assert columns["country"].categories[columns["country"].determined_codes[4]] == most


def test_conditions_determine_nothing_and_are_not_determined() -> None:
    table = places().select(["code", "town", "country"])
    summary = summary_of(table)
    columns = decide_columns(table.schema, summary, None, {}, Rules())
    for condition, left in ((("code",), {"country": "town"}), (("town",), {"country": "code"}), (("code", "town"), {})):
        marked = with_dependencies(conditioned(columns, condition), summary)
        assert determined_by({column.name: column for column in marked}) == left


def test_the_column_that_is_there_in_most_rows_determines_and_of_these_the_one_with_the_fewest_categories() -> None:
    rng = np.random.default_rng(0)
    kind = rng.integers(0, 2, N)
    wide, narrow = kind + 2 * rng.integers(0, 4, N), kind + 2 * rng.integers(0, 2, N)
    for share, expected in ((0.0, "narrow"), (0.5, "wide")):
        table = pa.table({"kind": kind, "narrow": pa.array(narrow, mask=rng.random(N) < share), "wide": wide})
        assert determined_by(decided(table)) == {"kind": expected}


@pytest.mark.parametrize("num_rows", [0, 1])
def test_no_row_and_one_row(num_rows: int) -> None:
    table: Any = places().slice(0, num_rows)
    assert isinstance(Dependencies.of(table), Dependencies)
