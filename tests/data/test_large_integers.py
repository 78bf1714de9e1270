"""Claims about integers beyond 2^53 that lie close together: they are told apart as small ones are, and come back exactly."""

from __future__ import annotations

import json
from fractions import Fraction
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from data.columns import Rules, decide_columns
from data.conditions import conditioned, draw_conditions
from data.encoding import TableEncoding
from data.fields import LOG_JACOBIAN
from data.marginals import marginals
from data.moments import Moments
from data.overrides import ColumnOverrideError
from data.statistics import TableSummary, merge_all, summarise_table
from data.types import counted_from, counted_on, from_ticks, to_ticks
from data.wishes import with_likelihoods
from workflows.architecture import grid

NS = pa.timestamp("ns")
STARTS = [
    *((start, pa.int64()) for start in (2**62, -(2**62), 2**53 - 500, -(2**63), 2**63 - 1000, 2**60 + 77)),
    *((start, pa.uint64()) for start in (2**62, 2**63 - 500, 2**64 - 1000)),
    *((start, NS) for start in (1_700_000_000_123_456_789, -(2**62))),
]


def column_of(values: Any, kind: pa.DataType) -> pa.Array:
    return from_ticks(pa.array(values, pa.int64()), kind) if kind == NS else pa.array(values, kind)


def summary_of(table: pa.Table, rows_per_leaf: int) -> TableSummary:
    leaves = [table.slice(begin, rows_per_leaf) for begin in range(0, len(table), rows_per_leaf)]
    return merge_all(summarise_table(leaf, (len(leaf), 0, 0)) for leaf in leaves)


def fit(column: pa.Array, rows_per_leaf: int = 100) -> TableEncoding:
    table = pa.table({"x": column})
    columns = decide_columns(table.schema, summary_of(table, rows_per_leaf), None, {}, Rules())
    return TableEncoding(table.schema, tuple(columns), None)


def cells_of(encoding: TableEncoding, column: pa.Array) -> tuple[NDArray[Any], NDArray[Any]]:
    arrays = encoding.encode(pa.table({"x": column}), "here")
    return arrays["integer"], arrays[LOG_JACOBIAN]


def small_values(step: int = 1) -> list[int]:
    values: list[int] = (step * np.random.default_rng(0).integers(0, 1000 // step, 2000)).tolist()
    return values


@pytest.mark.parametrize("step", [1, 10])
@pytest.mark.parametrize(("start", "kind"), STARTS, ids=str)
def test_they_have_the_cells_that_small_ones_have_and_come_back(start: int, kind: pa.DataType, step: int) -> None:
    small = small_values(step)
    column, near = column_of([start + value for value in small], kind), pa.array([value - 500 for value in small], pa.int64())
    encoding, other = fit(column), fit(near)
    (cells, jacobian), (expected, same) = cells_of(encoding, column), cells_of(other, near)
    np.testing.assert_allclose(cells, expected, atol=1e-6)
    np.testing.assert_array_equal(jacobian, same)
    assert len(np.unique(cells)) == len(set(small))
    assert encoding.decode_column("x", cells, np.ones(2000, np.bool_)).equals(column)
    (decided,) = encoding.columns
    assert decided.scale == pytest.approx(np.std(small), rel=1e-9)
    found = grid((decided,))
    assert found["half_width"] == [0.5 * step / decided.scale]
    assert decided.lower is not None
    assert decided.upper is not None
    ends = [(end - start - np.mean(small)) / decided.scale for end in (decided.lower, decided.upper)]
    np.testing.assert_allclose([*found["lower"], *found["upper"]], ends, rtol=1e-9)
    assert TableEncoding.from_json(json.loads(json.dumps(encoding.to_json()))) == encoding


@pytest.mark.parametrize("rows_per_leaf", [1, 7, 333, 2000])
@pytest.mark.parametrize(("start", "kind"), STARTS, ids=str)
def test_their_encoding_does_not_depend_on_row_groups(start: int, kind: pa.DataType, rows_per_leaf: int) -> None:
    column = column_of([start + value for value in small_values()], kind)
    (found,), (expected,) = fit(column, rows_per_leaf).columns, fit(column).columns
    assert found.base == expected.base != 0
    tolerance = 1e-4 if start == 2**53 - 500 else 1e-9  # sums of a row group below 2^53 are rounded as they always were
    assert found.mean[0] == pytest.approx(expected.mean[0], abs=tolerance * expected.scale)
    assert found.scale == pytest.approx(expected.scale, rel=tolerance)


def test_what_the_encoding_keeps_tells_of_no_single_value() -> None:
    values = [2**62 + 12_345 + value for value in small_values()]
    (column,) = fit(pa.array(values)).columns
    assert column.base == 2**62 + 12 * 1024
    assert not {column.base, column.lower, column.upper} & set(values)


@pytest.mark.parametrize(
    "values",
    [np.arange(2**53 - 2000, 2**53 + 1), np.arange(-(2**53), -(2**53) + 2000), np.random.default_rng(0).integers(-(2**62), 2**62, 2000)],
    ids=["below", "above", "far apart"],
)
def test_integers_that_float64_or_no_float32_tells_apart_have_no_base(values: NDArray[np.int64]) -> None:
    column = pa.array(np.append(values, values[0]))
    encoding = fit(column, 3000)
    (decided,) = encoding.columns
    assert decided.base == 0
    assert "base" not in encoding.to_json()["columns"][0]
    numbers = np.append(values, values[0]).astype(np.float64)
    if abs(numbers).max() <= 2**53:
        assert decided.mean == [numbers.mean()]
        assert decided.scale == numbers.std()
    np.testing.assert_array_equal(
        cells_of(encoding, column)[0][:, 0], ((numbers - decided.mean[0]) * (1 / decided.scale)).astype(np.float32)
    )


@pytest.mark.parametrize(("start", "kind"), STARTS, ids=str)
def test_what_is_generated_stays_within_the_ends(start: int, kind: pa.DataType) -> None:
    encoding = fit(column_of([start + value for value in small_values()], kind))
    lower, upper = encoding.columns[0].lower, encoding.columns[0].upper
    assert lower is not None
    assert upper is not None
    made = encoding.decode_column("x", np.array([[-1e18], [-1], [1], [1e18]], np.float32), np.ones(4, np.bool_))
    ticks = (to_ticks(made) if kind == NS else made).to_pylist()
    assert sorted(ticks) == ticks
    assert lower <= ticks[0] < start + 500 < ticks[-1] <= upper


@settings(max_examples=200)
@given(
    values=st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(2**62, 2**62 + 1000), min_size=2, max_size=20, unique=True),
    cuts=st.lists(st.integers(1, 19), max_size=4),
)
def test_moments_of_large_integers_are_those_of_exact_arithmetic(values: list[int], cuts: list[int]) -> None:
    edges = [0, *sorted({cut for cut in cuts if cut < len(values)}), len(values)]
    leaves = [summarise_table(pa.table({"x": pa.array(values[a:b], pa.int64())}), (b - a, 0, 0)) for a, b in pairwise(edges)]
    found = merge_all(leaves).columns["x"].moments
    assert found is not None
    mean = Fraction(sum(values), len(values))
    squares = sum((value - mean) ** 2 for value in values)
    assert found.squares[0] == pytest.approx(float(squares), rel=1e-9)
    assert float(Fraction(found.base[0]) + Fraction(found.mean[0]) - mean) == pytest.approx(0, abs=1e-9 * float(squares) ** 0.5)
    assert (found.minimum[0], found.maximum[0]) == (float(min(values)), float(max(values)))


def test_moments_of_any_elements_count_their_means_from_zero() -> None:
    assert Moments.of(np.ones((3, 2))).base.tolist() == [0, 0]


@given(
    base=st.integers(-(2**63), 2**64 - 1),
    offsets=st.lists(st.integers(-(2**53), 2**53), min_size=1, max_size=5),
    kind=st.sampled_from([pa.int64(), pa.uint64()]),
)
def test_counting_from_a_whole_number_and_on_is_exact_within_the_type(base: int, offsets: list[int], kind: pa.DataType) -> None:
    bounds = np.iinfo(kind.to_pandas_dtype())
    values = [min(max(base + offset, int(bounds.min)), int(bounds.max)) for offset in offsets]
    np.testing.assert_array_equal(counted_on(base, np.array(offsets, np.float64), kind), np.array(values, kind.to_pandas_dtype()))
    near = [value for value in values if abs(value - base) <= 2**53]
    assert counted_from(base, np.array(near, kind.to_pandas_dtype())).tolist() == [value - base for value in near]


def test_what_wraps_around_is_counted_as_float64_has_it() -> None:
    assert counted_from(2**62, np.array([-(2**63), 2**63 - 1])).tolist() == [-(2.0**63 + 2.0**62), 2.0**62]
    assert counted_from(2**63, np.array([0, 2**64 - 1], np.uint64)).tolist() == [-(2.0**63), 2.0**63]


def test_their_spike_is_exact_and_a_cell_of_its_own() -> None:
    values = [2**62 + value for value in small_values()] + [2**62 + 321] * 1000
    encoding = fit(pa.array(values))
    spike = encoding.columns[0].spike
    assert spike is not None
    assert spike[0] == 2**62 + 321
    assert isinstance(spike[0], int)


def test_an_asinh_cannot_be_named_for_them() -> None:
    table = pa.table({"x": [2**62 + value for value in small_values()]})
    summary = summary_of(table, 100)
    columns = decide_columns(table.schema, summary, None, {}, Rules())
    with pytest.raises(ColumnOverrideError, match="beyond 2\\^53 and so close together that no asinh draws them in"):
        with_likelihoods(columns, summary, {"x": "warped_discretised_gaussian"})
    assert with_likelihoods(columns, summary, {"x": "discretised_gaussian"})[0].base == columns[0].base != 0


def test_marginals_and_drawn_conditions_are_among_the_values() -> None:
    values = [2**62 + value for value in small_values()]
    table = pa.table({"x": values, "y": np.arange(2000) % 3})
    summary = summary_of(table, 100)
    columns = conditioned(decide_columns(table.schema, summary, None, {}, Rules()), ("x",))
    encoding = TableEncoding(table.schema, tuple(columns), None)
    known = json.loads(json.dumps(marginals(encoding, summary)))
    found = known["columns"]["x"]
    assert set(found["quantiles"]) <= set(values)
    assert found["standard_deviation"] == pytest.approx(np.std(small_values()), rel=1e-9)
    assert found["mean"] == pytest.approx(2**62)
    drawn = draw_conditions(encoding, known, 400, np.random.default_rng(5), null_pattern=False)["x"].to_pylist()
    assert min(values) <= min(drawn) < max(drawn) <= max(values)
    assert len(set(drawn)) > 200


def test_lists_of_them_are_ignored_and_told_why() -> None:
    lists = (2**62 + np.random.default_rng(0).integers(0, 1000, (200, 2))).tolist()
    table = pa.table({"x": pa.array(lists, pa.list_(pa.int64(), 2)), "y": np.arange(200) % 3})
    assert decide_columns(table.schema, summary_of(table, 100), None, {}, Rules())[0].reason == (
        "whole numbers beyond 2^53, too close together for float64; store them less some number"
    )
    far = np.random.default_rng(0).integers(-(2**62), 2**62, (200, 2)).tolist()
    table = pa.table({"x": pa.array(far, pa.list_(pa.int64(), 2))})
    assert decide_columns(table.schema, summary_of(table, 100), None, {}, Rules())[0].kind == "vector"
