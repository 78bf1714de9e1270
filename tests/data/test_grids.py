"""Claims about data.grids: decimal steps are found where all values are multiples, and only there, whatever the blocks and files."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from decimal import Decimal
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from data.column import Column
from data.columns import Rules, decide_columns
from data.conditions import conditioned, draw_conditions
from data.encoding import TableEncoding
from data.fields import LOG_JACOBIAN
from data.grids import BLOCK_VALUES, MAX_PLACES, MAX_STEPS, off_grid_counts, on_grid, relative_rounding, resolution
from data.listing import DataError
from data.marginals import marginals
from data.sketches import QuantileSketch
from data.statistics import merge_all, summarise, summarise_table

EPS = relative_rounding(pa.float64())


def fit(table: pa.Table, rows_per_leaf: int = 1000, condition: tuple[str, ...] = ()) -> TableEncoding:
    leaves = [table.slice(begin, rows_per_leaf) for begin in range(0, len(table), rows_per_leaf)]
    summary = merge_all(summarise_table(leaf, (len(leaf), 0, 0)) for leaf in leaves)
    columns = conditioned(decide_columns(table.schema, summary, None, {}, Rules()), condition)
    return TableEncoding(table.schema, tuple(columns), None)


def column_of(values: Any, kind: pa.DataType) -> Column:
    return fit(pa.table({"x": pa.array(values, kind)})).columns[0]


def places_written(value: float) -> int:
    """Returns the decimal places of the shortest text that reads as the float."""
    exponent = Decimal(repr(value)).normalize().as_tuple().exponent
    assert isinstance(exponent, int)
    return max(0, -exponent)


def decimal_places(values: NDArray[np.float64]) -> int:
    """Returns the fewest places that hold all values, MAX_PLACES + 1 where none do."""
    return [*off_grid_counts(values, EPS), 0].index(0)


decimals = st.builds(lambda n, k: n / 10**k, st.integers(-(10**7), 10**7), st.integers(0, 6))


@settings(max_examples=200)
@given(values=st.lists(decimals, min_size=1, max_size=200))
def test_the_places_of_decimals_are_those_of_their_shortest_text(values: list[float]) -> None:
    assert decimal_places(np.array(values)) == max(map(places_written, values))


@settings(max_examples=200)
@given(values=st.lists(st.one_of(decimals, st.floats(-1e9, 1e9)), min_size=1, max_size=60), cuts=st.lists(st.integers(1, 59), max_size=4))
def test_places_do_not_depend_on_the_leaves(values: list[float], cuts: list[int]) -> None:
    whole = summarise(pa.chunked_array([pa.array(values, pa.float64())]))
    edges = [0, *sorted({cut for cut in cuts if cut < len(values)}), len(values)]
    parts = [summarise_table(pa.table({"x": pa.array(values[a:b], pa.float64())}), (b - a, 0, 0)) for a, b in pairwise(edges)]
    assert merge_all(parts).columns["x"].off_grid == whole.off_grid


@settings(max_examples=100)
@given(steps=st.lists(st.integers(-4000, 4000), min_size=2, max_size=50, unique=True), places=st.integers(0, 4))
@example(steps=[1, 3], places=1)
def test_float32_decimals_are_decimals(steps: list[int], places: int) -> None:
    """0.1 in float32 is 0.10000000149; the smallest type that holds the values decides what is rounding."""
    values = np.array([step / 10**places for step in steps], np.float32)
    column = column_of(values, pa.float32())
    assert column.resolution is not None
    assert column.resolution >= 1 / 10**places
    assert set(steps) <= {round(float(n) * 10**places) for n in on_grid(values.astype(np.float64), column.resolution)}


def test_sums_of_decimals_are_decimals_in_spite_of_their_rounding() -> None:
    values = np.array([0.1 + 0.2, 0.1 * 3, 1.1 + 2.2, 4.35 * 100 / 1000, 0.3 - 0.1 - 0.2, -0.0])
    assert any(places_written(value) > 10 for value in values.tolist())
    assert decimal_places(values) == 3


def test_one_value_off_the_grid_is_found_wherever_it_lies() -> None:
    values = np.round(np.random.default_rng(0).normal(0, 50, 3 * BLOCK_VALUES + 17), 1)
    assert decimal_places(values) == 1
    for place in (0, 1, BLOCK_VALUES - 1, BLOCK_VALUES, 2 * BLOCK_VALUES + 5, len(values) - 1):
        for value, places in ((0.25, 2), (-1.001, 3), (math.pi, MAX_PLACES + 1), (1e-7, MAX_PLACES + 1)):
            other = values.copy()
            other[place] = value
            assert decimal_places(other) == places
            assert off_grid_counts(other, EPS)[1:places] == (1,) * (places - 1)


@pytest.mark.parametrize("kind", [pa.float16(), pa.float32(), pa.float64()], ids=str)
@pytest.mark.parametrize("scale", [1e-8, 1e-3, 1.0, 30.0, 1e4])
def test_a_continuum_has_no_resolution(kind: pa.DataType, scale: float) -> None:
    values = np.clip(np.random.default_rng(1).normal(0, scale, 500), -6e4, 6e4).astype(kind.to_pandas_dtype())
    column = column_of(values, kind)
    assert column.resolution is None
    if (values == 0).mean() > 0.05:  # below what float16 holds
        assert column.field_kind == "spiked"
    else:
        assert (column.field_kind, column.lower, column.upper, column.reason) == ("numeric", None, None, f"{kind} type")


@pytest.mark.parametrize("kind", [pa.float32(), pa.float64()], ids=str)
def test_whole_numbers_too_large_for_their_type_to_tell_apart_are_no_grid(kind: pa.DataType) -> None:
    """All floats beyond 2^24 or 2^53 are whole."""
    values = np.random.default_rng(2).normal(0, 1e25, 300).astype(kind.to_pandas_dtype())
    assert sum(summarise(pa.chunked_array([pa.array(values)])).off_grid) == 0
    assert column_of(values, kind).resolution is None


def test_a_step_says_something_up_to_a_hundred_thousand_in_a_standard_deviation() -> None:
    for step, places in ((1.0, 0), (0.01, 2), (1e-6, 6)):
        sketch = QuantileSketch.of(np.array([step, 2 * step]))
        off = [1] * places + [0] * (MAX_PLACES + 1 - places)
        assert resolution(off, sketch, MAX_STEPS * step, None, EPS) == (step, 0.0)
        assert resolution(off, sketch, 1.01 * MAX_STEPS * step, None, EPS) is None
        assert resolution(off, sketch, 1.01 * MAX_STEPS * step, MAX_STEPS * step, EPS) == (step, 0.0)
        assert resolution([1] * (MAX_PLACES + 1), sketch, step, None, EPS) is None


@pytest.mark.parametrize("values", [[0.0, 1e-10], [1.0, 1 + 1e-12], [0.0, 1.0, 2.0, 1e-14], [1e-12, 3e-12], [0.0, 5e-8]])
def test_numbers_that_are_small_or_differ_by_little_are_on_no_grid(values: list[float]) -> None:
    assert column_of(values * 100, pa.float64()).resolution is None


@settings(max_examples=150)
@given(values=st.lists(st.one_of(st.floats(-1e12, 1e12), decimals, st.floats(-1e-7, 1e-7)), min_size=2, max_size=30, unique=True))
def test_a_column_on_a_grid_has_no_value_off_it(values: list[float]) -> None:
    try:
        column = column_of(values, pa.float64())
    except DataError:  # constant
        return
    if column.resolution is not None:
        rest = np.abs(on_grid(np.array(values), column.resolution) - values)
        rest = np.sort(rest)[: len(rest) - round(column.off_grid * len(rest))]
        assert len(rest) >= 0.9 * len(values)
        assert (rest <= 1e-5 * column.scale if column.width is None else rest <= 1e-5).all()
        assert (rest <= 1e-10 * column.resolution + 1e-15 * np.abs(values).max()).all()


def test_beyond_the_largest_number_of_steps_a_mass_is_a_density() -> None:
    """Under the least noise, e^-7 standard deviations, within two of it."""
    noise, half = math.exp(-7), 0.5 / MAX_STEPS
    for z in (0.0, 0.5, 1.0, 2.0):
        upper, lower = ((z * noise + sign * half) / (noise * math.sqrt(2)) for sign in (1, -1))
        log_mass = math.log(0.5 * (math.erf(upper) - math.erf(lower)) / (2 * half))
        log_density = -0.5 * z * z - math.log(noise * math.sqrt(2 * math.pi))
        assert abs(log_mass - log_density) < 2e-5


@pytest.mark.parametrize(
    ("kind", "step"),
    [(pa.decimal128(9, 2), 0.01), (pa.decimal128(12, 6), 0.01), (pa.decimal64(9, 2), 0.01), (pa.decimal128(20, 10), 0.01)],
    ids=str,
)
def test_decimals_have_the_step_that_their_values_have(kind: pa.DataType, step: float) -> None:
    origin = Decimal(1).scaleb(-10) if kind.scale == 10 else Decimal(0)  # with it no decimal step is left
    values = [Decimal(n) / 100 + origin for n in range(-300, 300)]
    assert column_of([value.quantize(Decimal(1).scaleb(-kind.scale)) for value in values], kind).resolution == step


def test_integers_have_the_resolution_one() -> None:
    for kind in (pa.int16(), pa.timestamp("s"), pa.date32()):
        column = column_of([*range(-5, 95), 3], kind)
        assert (column.integer, column.resolution, column.field_kind) == (True, 1.0, "integer")


def tenths(num_rows: int = 4000) -> NDArray[np.float64]:
    return np.round(np.random.default_rng(3).normal(3, 12, num_rows), 1)


KINDS = [pa.float32(), pa.float64(), pa.decimal128(9, 1)]


def as_kind(values: NDArray[np.float64], kind: pa.DataType) -> pa.Array:
    return pa.array(
        [Decimal(f"{value:.1f}") for value in values] if pa.types.is_decimal(kind) else values.astype(kind.to_pandas_dtype()), kind
    )


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_decimals_are_in_the_field_of_whole_numbers_and_come_back_exactly(kind: pa.DataType) -> None:
    table = pa.table({"x": as_kind(tenths(), kind), "n": pa.array(range(4000), pa.int32())})
    encoding = fit(table)
    column = encoding.columns[0]
    assert (column.kind, column.integer, column.resolution, column.lower, column.upper) == ("numeric", False, 0.1, None, None)
    assert column.reason == f"{kind} type; steps of 0.1"
    arrays = encoding.encode(table, "here")
    assert [field.name for field in encoding.fields] == ["integer"]
    assert encoding.decode_column("x", arrays["integer"][:, :1], np.ones(4000, np.bool_)).equals(table["x"].combine_chunks())


@pytest.mark.parametrize("kind", KINDS, ids=str)
@settings(max_examples=30)
@given(cells=st.lists(st.floats(-3, 3, width=32), min_size=1, max_size=30))
def test_what_is_generated_is_on_the_grid(kind: pa.DataType, cells: list[float]) -> None:
    encoding = fit(pa.table({"x": as_kind(tenths(), kind)}))
    found = encoding.decode_column("x", np.array(cells, np.float32)[:, None], np.ones(len(cells), np.bool_))
    written = [Decimal(str(value)) for value in (found.to_pylist() if pa.types.is_decimal(kind) else found.to_numpy(zero_copy_only=False))]
    assert all(value == round(value, 1) and str(value) != "-0.0" for value in written)
    exact = np.array(cells) * encoding.columns[0].scale + encoding.columns[0].mean[0]
    assert (np.abs(np.array(written, float) - exact) <= 0.0501).all()


def test_float16_tells_tenths_of_small_numbers_apart() -> None:
    near, far = np.clip(tenths(), -12, 12), np.round(10 * tenths(), 1) + 0.1
    assert fit(pa.table({"x": as_kind(near, pa.float16())})).columns[0].resolution == 0.1
    assert fit(pa.table({"x": as_kind(far, pa.float16())})).columns[0].resolution is None
    encoding = fit(pa.table({"x": as_kind(near, pa.float16())}))
    arrays = encoding.encode(pa.table({"x": as_kind(near, pa.float16())}), "here")
    assert encoding.decode_column("x", arrays["integer"], np.ones(4000, np.bool_)).equals(as_kind(near, pa.float16()))


def test_values_off_the_grid_of_the_training_rows_are_encoded_as_they_are() -> None:
    encoding = fit(pa.table({"x": tenths()}))
    column = encoding.columns[0]
    new = np.array([0.1, 0.13, -7.77, math.pi])
    arrays = encoding.encode(pa.table({"x": new}), "here")
    np.testing.assert_array_equal(arrays["integer"][:, 0], ((new - column.mean[0]) * (1 / column.scale)).astype(np.float32))
    assert arrays["integer.valid"].all()


def averaged(share: float, num_rows: int = 4000) -> NDArray[np.float64]:
    """Tenths of which so many, and no more, were filled in by averages of others; a fifth of all are exactly 2."""
    values = np.abs(tenths(num_rows))
    values[::5] = 2.0
    rows = np.random.default_rng(10).permutation(num_rows)
    rows = rows[rows % 5 > 0][: int(share * num_rows)]
    values[rows] = values[rows] / math.pi + 0.01
    return values


def test_a_few_averages_among_decimals_leave_the_others_their_steps_and_spike() -> None:
    table = pa.table({"x": averaged(0.03)})
    encoding = fit(table)
    column = encoding.columns[0]
    assert (column.field_kind, column.resolution, column.off_grid, column.lower) == ("integer", 0.1, 0.03, 0)
    assert column.reason == "double type; steps of 0.1, but for 3.00% of the values"
    assert column.spike == [2.0, pytest.approx(0.2, abs=0.02)]
    cells = encoding.encode(table, "here")["integer"]
    np.testing.assert_allclose(cells[:, 0] * column.scale + column.mean[0], table["x"].to_numpy(), atol=1e-5)
    found = encoding.decode_column("x", cells, np.ones(4000, np.bool_)).to_numpy()
    assert found.tolist() == [round(value, 1) for value in table["x"].to_pylist()]
    assert TableEncoding.from_json(json.loads(json.dumps(encoding.to_json()))) == encoding


@pytest.mark.parametrize("rows_per_leaf", [50, 1000, 4000])
def test_more_averages_than_a_tenth_of_the_other_values_are_a_continuum(rows_per_leaf: int) -> None:
    assert fit(pa.table({"x": averaged(0.07)}), rows_per_leaf).columns[0].resolution == 0.1
    assert fit(pa.table({"x": averaged(0.09)}), rows_per_leaf).columns[0].resolution is None


def test_averages_in_few_places_are_off_the_grid_of_the_others_where_a_step_for_all_means_nothing() -> None:
    """Float32 holds their four places, but lies 100,000 such steps wide and more."""
    values = np.round(np.random.default_rng(13).normal(1000, 12, 4000), 1)
    values[::100] = np.round(values[::100] + 0.0137, 4)
    column = column_of(values, pa.float64())
    assert (column.resolution, column.off_grid) == (0.1, 0.01)


def test_amounts_that_are_mostly_zero_are_no_integers() -> None:
    """All but 3 % of the values are multiples of 1, as they are 0; of the others none is."""
    values = np.where(np.random.default_rng(11).random(4000) < 0.97, 0.0, np.random.default_rng(12).lognormal(0, 1, 4000))
    assert fit(pa.table({"x": values})).columns[0].resolution is None


def test_all_values_of_tenths_are_tenths_even_if_most_are_whole() -> None:
    values = np.round(tenths())
    values[:40] += 0.1
    column = fit(pa.table({"x": values})).columns[0]
    assert (column.resolution, column.off_grid) == (0.1, 0.0)


def test_the_log_jacobian_is_minus_the_log_of_the_step_of_every_observed_cell() -> None:
    rng = np.random.default_rng(4)
    heavy = np.round(np.exp(rng.normal(0, 2.5, 4000)), 2)
    table = pa.table(
        {
            "x": pa.array(tenths(), mask=rng.random(4000) < 0.3),
            "n": pa.array(rng.integers(-500, 500, 4000)),
            "heavy": pa.array(heavy, mask=rng.random(4000) < 0.3),
        }
    )
    encoding = fit(table)
    assert [field.name for field in encoding.fields] == ["integer", "warped"]
    there = {name: table[name].is_valid().to_numpy() for name in table.column_names}
    expected = -math.log(0.1) * there["x"] - math.log(0.01) * there["heavy"]
    np.testing.assert_allclose(encoding.encode(table, "here")[LOG_JACOBIAN], expected, rtol=1e-12)


def test_a_density_of_tenths_has_no_bound_and_their_mass_by_step_has() -> None:
    """What a model that knows the value reaches: a Gaussian around it, as narrow as it likes."""
    table = pa.table({"x": tenths()})
    gridded = fit(table)
    column = gridded.columns[0]
    dense = replace(gridded, columns=(replace(column, resolution=None),))
    jacobian = {name: encoding.encode(table, "here")[LOG_JACOBIAN] for name, encoding in (("dense", dense), ("gridded", gridded))}
    bests = []
    for log_scale in (0.0, -3.0, -6.0, -12.0, -24.0):
        noise = math.exp(log_scale)
        density = -math.log(noise * math.sqrt(2 * math.pi)) + jacobian["dense"]
        mass = math.log(math.erf(0.5 * 0.1 / column.scale / (noise * math.sqrt(2)))) + jacobian["gridded"]
        assert (mass <= -math.log(0.1)).all()
        bests.append((float(density.mean()), float(mass.mean())))
    assert [round(after - before) for (before, _), (after, _) in pairwise(bests)] == [3, 3, 6, 12]
    assert bests[-1][1] == pytest.approx(-math.log(0.1))
    assert bests[0][0] == pytest.approx(bests[0][1], abs=1e-4)  # wide, the two are one


def test_without_negative_values_the_range_ends_at_zero() -> None:
    values = np.abs(tenths())
    encoding = fit(pa.table({"x": values}))
    assert encoding.columns[0].lower == 0
    cells = np.linspace(-9, 9, 50, dtype=np.float32)[:, None]
    found = encoding.decode_column("x", cells, np.ones(50, np.bool_)).to_numpy()
    assert (found >= 0).all()
    assert (found[:20] == 0).all()
    new = encoding.encode(pa.table({"x": [-5.0]}), "here")
    assert new["integer.valid"].all()
    assert new["integer"][0, 0] < (0 - encoding.columns[0].mean[0]) / encoding.columns[0].scale
    assert fit(pa.table({"x": values - 0.1})).columns[0].lower is None


def test_heavy_tails_of_decimals_are_drawn_in_around_a_multiple_of_the_step() -> None:
    values = np.round(np.exp(np.random.default_rng(5).normal(1, 2, 5000)), 2)
    table = pa.table({"x": values})
    encoding = fit(table)
    column = encoding.columns[0]
    assert (column.field_kind, column.resolution, column.lower) == ("warped", 0.01, 0)
    assert column.center == round(column.center, 2)
    arrays = encoding.encode(table, "here")
    back = encoding.decode_column("x", arrays["warped"], np.ones(5000, np.bool_)).to_numpy()
    assert (np.abs(back - values) <= 1e-6 * values + 1e-12).all()
    assert (back == [round(value, 2) for value in back]).all()


def test_a_few_large_outliers_do_not_hide_the_steps_of_the_others() -> None:
    """Their standard deviation is beyond 100,000 steps, and float32 does not tell hundredths of the largest apart."""
    values = np.round(np.exp(np.random.default_rng(9).normal(0, 5, 5000)), 2)
    assert values.std() > 1.1 * MAX_STEPS * 0.01
    for kind in (pa.float32(), pa.float64()):
        column = column_of(values.astype(kind.to_pandas_dtype()), kind)
        assert (column.field_kind, column.resolution) == ("warped", 0.01)


def test_quantiles_and_drawn_conditions_are_on_the_grid() -> None:
    table = pa.table({"x": tenths(), "y": np.random.default_rng(6).normal(size=4000)})
    encoding = fit(table, condition=("x",))
    assert [field.name for field in encoding.fields] == ["numeric", "condition_integer"]
    known = marginals(encoding, merge_all([summarise_table(table, (4000, 0, 0))]))
    quantiles = known["columns"]["x"]["quantiles"]
    assert quantiles == [round(value, 1) for value in quantiles]
    assert known == json.loads(json.dumps(known, allow_nan=False))
    drawn = draw_conditions(encoding, known, 500, np.random.default_rng(7), null_pattern=True)
    assert drawn["x"].to_pylist() == [round(value, 1) for value in drawn["x"].to_pylist()]
    without = encoding.encode(table, "here")[LOG_JACOBIAN]
    y = next(column for column in encoding.columns if column.name == "y")
    np.testing.assert_allclose(without, -math.log(y.scale))


def test_columns_of_earlier_tables_read_as_they_were() -> None:
    """Written before there were steps: integers have 1, floats a density, and what they say is all that is written of them today."""
    old: dict[str, Any] = {"name": "x", "kind": "count", "reason": "", "integer": True, "shape": [1], "lower": 0, "upper": 9}
    assert (Column(**old).resolution, Column(**old).field_kind) == (1.0, "integer")
    old = {"name": "x", "kind": "numeric", "reason": "double type", "shape": [1]}
    assert (Column(**old).resolution, Column(**old).field_kind) == (None, "numeric")
    for column in (column_of([*range(-5, 95), 3], pa.int16()), column_of(np.random.default_rng(8).normal(size=100), pa.float64())):
        encoding = TableEncoding(pa.schema([("x", pa.int16())]), (column,), None)
        (written,) = encoding.to_json()["columns"]
        assert not {"resolution", "likelihood", "log_mean", "log_scale", "binarize", "condition"} & set(written)
        assert TableEncoding.from_json(json.loads(json.dumps(encoding.to_json()))) == encoding
    gridded = fit(pa.table({"x": tenths()}))
    assert gridded.to_json()["columns"][0]["resolution"] == 0.1
    assert TableEncoding.from_json(json.loads(json.dumps(gridded.to_json()))) == gridded
