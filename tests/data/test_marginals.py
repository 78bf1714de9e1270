"""Claims about data.marginals."""

from __future__ import annotations

import json
import sys

import numpy as np
import pyarrow as pa
import pytest

from data.columns import Rules, decide_columns
from data.encoding import TableEncoding
from data.marginals import LEVELS, marginals, summarise_rows, total_variation
from data.statistics import merge_all, summarise_table

NUM_ROWS = 20_000


def table() -> pa.Table:
    rng = np.random.default_rng(0)
    return pa.table(
        {
            "id": np.arange(NUM_ROWS),
            "weight": pa.array(rng.normal(2, 12, NUM_ROWS), mask=rng.random(NUM_ROWS) < 0.1),
            "stamp": pa.array(1_700_000_000 + rng.integers(0, 10**6, NUM_ROWS)).cast(pa.timestamp("s")),
            "visits": pa.array(rng.poisson(30, NUM_ROWS), pa.int16()),
            "town": pa.array(rng.choice(["Bonn", "Ulm", "Rom"], NUM_ROWS, p=[0.6, 0.39, 0.01]), mask=rng.random(NUM_ROWS) < 0.2),
            "code": pa.array(rng.choice([3, 7], NUM_ROWS), pa.int8()).dictionary_encode(),
            "flag": rng.random(NUM_ROWS) < 0.3,
            "vector": pa.FixedSizeListArray.from_arrays(pa.array(rng.normal([0, 5, 9], 2, (NUM_ROWS, 3)).reshape(-1)), 3),
        }
    )


def encoding() -> TableEncoding:
    rows = table()
    summary = summarise_table(rows, (NUM_ROWS, 0, 0))
    columns = decide_columns(rows.schema, summary, "id", {}, Rules(min_category_count=1000))
    return TableEncoding(rows.schema, tuple(columns), "id")


def test_lists_with_null_elements_have_their_rate() -> None:
    rows = pa.table({"holed": pa.array([[1.0, None], None, [2.0, 3.0], [None, None]]), "whole": [[1.0, 2.0], [3.0, 4.0], None, [5.0, 7.0]]})
    summary = summarise_table(rows, (4, 0, 0))
    of = TableEncoding(rows.schema, tuple(decide_columns(rows.schema, summary, None, {}, Rules())), None)
    found = marginals(of, summarise_rows(of, rows))["columns"]
    assert found["holed"]["null_rate"] == found["whole"]["null_rate"] == 0.25
    assert found["holed"]["element_null_rate"] == 0.5
    assert "element_null_rate" not in found["whole"]


def test_marginals_are_those_of_the_rows() -> None:
    rows, of = table(), encoding()
    found = marginals(of, summarise_rows(of, rows))
    assert found == json.loads(json.dumps(found, allow_nan=False))
    assert found["num_rows"] == NUM_ROWS
    columns = found["columns"]
    assert list(columns) == [name for name in rows.column_names if name != "id"]
    weight = rows["weight"].drop_null().to_numpy()
    assert columns["weight"]["null_rate"] == rows["weight"].null_count / NUM_ROWS
    assert columns["weight"]["mean"] == pytest.approx(weight.mean(), rel=1e-12)
    assert columns["weight"]["standard_deviation"] == pytest.approx(weight.std(), rel=1e-12)
    exact = np.quantile(weight, LEVELS, method="lower")
    np.testing.assert_allclose(columns["weight"]["quantiles"], exact, rtol=1 / 64)
    assert columns["visits"]["quantiles"] == np.quantile(rows["visits"].to_numpy(), LEVELS, method="lower").tolist()
    towns = rows["town"].to_pylist()
    assert next(column.categories for column in of.columns if column.name == "town") == ["Bonn", "Ulm"]
    assert columns["town"]["frequencies"] == [towns.count(town) / NUM_ROWS for town in ("Bonn", "Ulm")]
    flags = rows["flag"].to_pylist()
    assert columns["flag"]["frequencies"] == [flags.count(flag) / NUM_ROWS for flag in (False, True)]
    assert sum(columns["code"]["frequencies"]) == pytest.approx(1)
    elements = rows["vector"].combine_chunks().flatten().to_numpy()
    assert columns["vector"]["mean"] == pytest.approx(elements.mean(), rel=1e-9)
    assert columns["vector"]["standard_deviation"] == pytest.approx(elements.std(), rel=1e-9)


def test_quantiles_that_the_sketch_cannot_tell_apart_are_not_given() -> None:
    """1.7e9 seconds are known to 2 %, a year; the stamps lie within 12 days."""
    of = encoding()
    stamp = marginals(of, summarise_rows(of, table()))["columns"]["stamp"]
    assert stamp["quantiles"] is None
    assert stamp["standard_deviation"] == pytest.approx(10**6 / np.sqrt(12), rel=0.02)


def test_no_extreme_value_and_no_rare_category_is_kept() -> None:
    of, rows = encoding(), table()
    kept = json.dumps(marginals(of, summarise_rows(of, rows)))
    assert "Rom" not in kept
    weight = rows["weight"].drop_null().to_numpy()
    quantiles = json.loads(kept)["columns"]["weight"]["quantiles"]
    assert weight.min() < quantiles[0]
    assert quantiles[-1] < weight.max()


def test_parts_merged_in_their_order_are_the_whole() -> None:
    of, rows = encoding(), table()
    parts = [summarise_rows(of, rows.slice(begin, 777)) for begin in range(0, NUM_ROWS, 777)]
    whole, merged = marginals(of, summarise_rows(of, rows)), marginals(of, merge_all(parts))
    assert merged["num_rows"] == NUM_ROWS
    for name, column in whole["columns"].items():
        for key, value in column.items():
            assert merged["columns"][name][key] == (value if not isinstance(value, float) else pytest.approx(value, rel=1e-12)), (name, key)


def test_a_column_without_a_value_has_no_figures() -> None:
    of, rows = encoding(), table()
    empty = pa.table([pa.nulls(5, field.type) for field in rows.schema], schema=rows.schema)
    columns = marginals(of, summarise_rows(of, empty))["columns"]
    assert all(column["null_rate"] == 1 for column in columns.values())
    assert columns["town"]["frequencies"] == [0, 0]
    assert columns["weight"]["mean"] is columns["vector"]["mean"] is None


def test_total_variation_counts_what_is_left_of_one() -> None:
    assert total_variation([0.5, 0.5], [0.5, 0.5]) == 0
    assert total_variation([1.0, 0.0], [0.0, 1.0]) == 1
    assert total_variation([1.0], [0.0]) == 1
    assert total_variation([0.5, 0.2], [0.4, 0.2]) == pytest.approx(0.1)


@pytest.mark.parametrize("sentinel", [1e300, sys.float_info.max, -sys.float_info.max])
def test_figures_that_no_float_holds_are_left_out_and_quantiles_stay(sentinel: float) -> None:
    rng = np.random.default_rng(0)
    rows = pa.table({"x": np.where(rng.random(NUM_ROWS) < 0.1, sentinel, rng.normal(size=NUM_ROWS)), "y": rng.normal(size=NUM_ROWS)})
    summary = summarise_table(rows, (NUM_ROWS, 0, 0))
    of = TableEncoding(rows.schema, tuple(decide_columns(rows.schema, summary, None, {}, Rules())), None)
    found = marginals(of, summary)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["columns"]["x"]["standard_deviation"] is None
    assert found["columns"]["x"]["quantiles"][LEVELS.index(0.5)] == pytest.approx(0, abs=0.2)
