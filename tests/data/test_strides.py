"""Claims about the grids of integers and points in time: hours, hundreds and quarters come back as such, exactly, in every type."""

from __future__ import annotations

import json
import math
from datetime import datetime
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
from data.statistics import merge_all, stride_of, summarise_table
from data.types import calendar_range, from_ticks, integer_range, ticks_per_day, ticks_type, to_ticks
from data.wishes import with_likelihoods
from workflows.gates import types_of

TIMES = [
    *(pa.timestamp(unit, zone) for unit in ("s", "ms", "us", "ns") for zone in (None, "Europe/Berlin")),
    *(pa.date32(), pa.date64(), pa.time32("s"), pa.time64("ns")),
]
INTEGERS = [pa.int16(), pa.uint16(), pa.int32(), pa.int64(), pa.uint64()]


def fit(table: pa.Table, rows_per_leaf: int = 100, condition: tuple[str, ...] = ()) -> TableEncoding:
    leaves = [table.slice(begin, rows_per_leaf) for begin in range(0, len(table), rows_per_leaf)]
    summary = merge_all(summarise_table(leaf, (len(leaf), 0, 0)) for leaf in leaves)
    columns = conditioned(decide_columns(table.schema, summary, None, {}, Rules()), condition)
    return TableEncoding(table.schema, tuple(columns), None)


@settings(max_examples=200)
@given(
    origin=st.integers(-(2**62), 2**62),
    step=st.integers(1, 10**6),
    places=st.lists(st.integers(0, 10**6), min_size=2, max_size=50, unique=True),
    cuts=st.lists(st.integers(1, 49), max_size=4),
)
def test_a_stride_is_the_greatest_common_divisor_of_all_differences_in_any_leaves(
    origin: int, step: int, places: list[int], cuts: list[int]
) -> None:
    values = [origin + step * place for place in places]
    edges = [0, *sorted({cut for cut in cuts if cut < len(values)}), len(values)]
    leaves = [summarise_table(pa.table({"x": pa.array(values[a:b], pa.int64())}), (b - a, 0, 0)) for a, b in pairwise(edges)]
    assert merge_all(leaves).columns["x"].stride == (min(values), math.gcd(*(value - values[0] for value in values)))


@pytest.mark.parametrize(("values", "dtype"), [([-(2**63), 2**63 - 1], np.int64), ([0, 2**64 - 1], np.uint64), ([-128, 127], np.int8)])
def test_strides_as_wide_as_their_type(values: list[int], dtype: Any) -> None:
    assert stride_of(np.array(values, dtype)) == (values[0], values[1] - values[0])
    assert stride_of(np.array(values[:1], dtype)) == (values[0], 0)


def random_cells(num_rows: int = 300) -> NDArray[np.float32]:
    return np.random.default_rng(7).normal(0, 2, (num_rows, 1)).astype(np.float32)


@pytest.mark.parametrize("kind", TIMES, ids=str)
@pytest.mark.parametrize("hours", [1, 24, 168])
def test_generated_points_in_time_are_on_the_hour_the_day_or_the_week_as_the_real_ones(kind: pa.DataType, hours: int) -> None:
    """From half past, as they are on UTC's clock in some zones; a type whose unit is larger has its own."""
    day = ticks_per_day(kind)
    step, start = max(1, day * hours // 24), 0 if day == 1 else day // 48
    most = integer_range(kind)[1] if pa.types.is_time(kind) else 20_000 * day
    rng = np.random.default_rng(0)
    ticks = start + step * rng.integers(0, min(500, (most - start) // step + 1), 1000)
    column = from_ticks(pa.array(ticks, ticks_type(kind)), kind)
    if len(np.unique(ticks)) == 1:
        return
    encoding = fit(pa.table({"x": column}))
    decided = encoding.columns[0]
    few = len(np.unique(ticks)) <= 20
    assert decided.resolution == (math.gcd(step, day) if few else step)
    made = to_ticks(encoding.decode_column("x", random_cells(), np.arange(300) % 7 > 0))
    assert made.null_count == 43
    assert {(tick - start) % step for tick in made.drop_null().to_pylist()} == {0}
    assert len(made.unique()) > 5 or few


@pytest.mark.parametrize(
    "kind", TIMES + [pa.timestamp("us", zone) for zone in ("UTC", "-11:00", "Asia/Shanghai", "America/New_York")], ids=str
)
@pytest.mark.parametrize("step", ["unit", "day"])
def test_generated_points_in_time_stay_on_the_calendar_where_the_real_ones_do(kind: pa.DataType, step: str) -> None:
    """With its last day for "valid to": half the rows lie about year 8000 then, and a Gaussian far beyond."""
    first, last = calendar_range(kind)
    size = ticks_per_day(kind) if step == "day" and not pa.types.is_time(kind) else 1
    low, high = (-first // size * -size if first % size else first), last // size * size
    ticks = [low, high, *(size * np.random.default_rng(0).integers(0, min(20_000, high // size), 100)).tolist()]
    table = pa.table({"x": from_ticks(pa.array(ticks, ticks_type(kind)), kind)})
    encoding = fit(table)
    assert (encoding.columns[0].lower, encoding.columns[0].upper) == (low, high)
    made = encoding.decode_column("x", np.array([[-1e18], [-3], [3], [1e18]], np.float32), np.ones(4, np.bool_))
    assert all(low <= tick <= high for tick in to_ticks(made).to_pylist())
    if kind != pa.time64("ns") and getattr(kind, "unit", "s") != "ns":  # Python has no nanoseconds
        assert len(made.to_pylist()) == 4


@pytest.mark.parametrize("end", [0, 1])
def test_points_in_time_beyond_the_calendar_have_their_types_end_on_that_side(end: int) -> None:
    for kind in (pa.date32(), pa.timestamp("s"), pa.timestamp("us", "Europe/Berlin")):
        inner, outer = calendar_range(kind), integer_range(kind)
        beyond = inner[end] + (-(10**3), 10**3)[end]
        (column,) = fit(pa.table({"x": from_ticks(pa.array([beyond, 0, 1], ticks_type(kind)), kind)})).columns
        assert (column.lower, column.upper) == ((outer[0], inner[1]), (inner[0], outer[1]))[end]


def test_steps_are_said_in_words() -> None:
    said = []
    for ticks, kind in ((3600, "s"), (900_000, "ms"), (7 * 86_400_000_000, "us"), (15 * 10**9, "ns"), (2_500_000, "us")):
        column = from_ticks(pa.array(ticks * np.arange(100), pa.int64()), pa.timestamp(kind))
        said.append(fit(pa.table({"x": column})).columns[0].reason.split("; ")[1])
    assert said == ["steps of one hour", "steps of 15 minutes", "steps of 7 days", "steps of 15 seconds", "steps of 2.5 seconds"]


@pytest.mark.parametrize("kind", INTEGERS, ids=str)
def test_integers_come_back_on_their_grid_and_within_its_ends(kind: pa.DataType) -> None:
    values = 5 + 10 * np.random.default_rng(1).integers(0, 60, 500)
    encoding = fit(pa.table({"x": pa.array(values, kind), "one": pa.array(values // 10, kind)}))
    column, one = encoding.columns
    assert (column.kind, column.resolution, column.origin, column.lower) == ("count", 10, 5, 5)
    assert column.reason == "integers from 0, more than 20 values; steps of 10 from 5"
    assert (one.resolution, one.origin, one.lower) == (1.0, 0.0, 0)
    assert column.upper == integer_range(kind)[1] - (integer_range(kind)[1] - 5) % 10
    cells = np.concatenate([random_cells(), [[1e30], [-1e30]]]).astype(np.float32)
    made = encoding.decode_column("x", cells, np.ones(302, np.bool_)).to_pylist()
    assert {value % 10 for value in made} == {5}
    assert made[-1] == 5
    assert made[-2] > 0.99 * column.upper
    back = encoding.encode(pa.table({"x": pa.array(values, kind), "one": pa.array(values // 10, kind)}), "here")
    assert encoding.decode_column("x", back["integer"][:, :1], np.ones(500, np.bool_)).to_pylist() == values.tolist()
    written = json.loads(json.dumps(encoding.to_json()))
    assert TableEncoding.from_json(written) == encoding
    assert "resolution" not in written["columns"][1]


def test_a_whole_number_has_the_mass_of_its_step_divided_by_it() -> None:
    """So that those of all whole numbers, on the grid or off it, sum to one, and models of other steps are comparable."""
    values = 100 * np.random.default_rng(2).integers(-40, 40, 500)
    table = pa.table({"x": values})
    encodings = fit(table), fit(pa.table({"x": values // 100}))
    arrays = encodings[0].encode(table, "here"), encodings[1].encode(pa.table({"x": values // 100}), "here")
    np.testing.assert_allclose(arrays[0]["integer"], arrays[1]["integer"], atol=1e-6)
    np.testing.assert_allclose(arrays[0][LOG_JACOBIAN], -math.log(100))
    np.testing.assert_array_equal(arrays[1][LOG_JACOBIAN], 0)
    other = values.copy()
    other[0] += 1
    assert fit(pa.table({"x": other})).columns[0].resolution == 1
    assert types_of(encodings[0]) == types_of(fit(pa.table({"x": other})))


def test_a_likelihood_of_counts_takes_them_as_they_are() -> None:
    table = pa.table({"x": 10 + 5 * np.random.default_rng(3).poisson(30, 500)})
    summary = summarise_table(table, (500, 0, 0))
    (column,) = with_likelihoods(decide_columns(table.schema, summary, None, {}, Rules()), summary, {"x": "poisson"})
    assert (column.field_kind, column.resolution, column.origin, column.lower) == ("count", 1.0, 0.0, 0)
    encoding = TableEncoding(table.schema, (column,), None)
    assert encoding.encode(table, "here")[LOG_JACOBIAN].tolist() == [0.0] * 500


def test_few_values_have_divisors_by_chance() -> None:
    """Of points in time one that divides a day is none."""
    moments = [datetime(2024, month, 1) for month in (1, 2, 4, 7)] * 5
    assert fit(pa.table({"x": pa.array(moments, pa.timestamp("us"))})).columns[0].resolution == 86_400_000_000
    assert fit(pa.table({"x": pa.array([3, 7 * 10**6 + 3] * 20, pa.timestamp("us"))})).columns[0].resolution == 1_000_000


def test_drawn_conditions_and_quantiles_are_on_the_grid() -> None:
    ticks = 3600 * 10**9 * np.random.default_rng(4).integers(480_000, 490_000, 2000)
    table = pa.table({"x": pa.array(ticks).cast(pa.timestamp("ns")), "n": 50 * np.arange(2000) % 7000, "y": np.arange(2000) % 3})
    encoding = fit(table, condition=("x", "n"))
    known = marginals(encoding, merge_all([summarise_table(table, (2000, 0, 0))]))
    drawn = draw_conditions(encoding, known, 400, np.random.default_rng(5), null_pattern=True)
    assert {tick % (3600 * 10**9) for tick in to_ticks(drawn["x"]).to_pylist()} == {0}
    assert {value % 50 for value in [*drawn["n"].to_pylist(), *known["columns"]["n"]["quantiles"]]} == {0}
