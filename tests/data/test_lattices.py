"""Claims about data.lattices: standardised integers are found to be on a grid, and nothing else is, whatever the row groups."""

from __future__ import annotations

import json
import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from data.atoms import MAX_FEW
from data.column import Column
from data.columns import Rules, decide_columns
from data.copies import hash_rows
from data.decoding import settled
from data.encoding import TableEncoding
from data.fields import LOG_JACOBIAN
from data.grids import MAX_STEPS, on_grid, relative_rounding
from data.lattices import TOLERANCE, lattice_of
from data.statistics import merge_all, summarise_table
from workflows.architecture import architecture
from workflows.model_config import ModelConfig

Floats = NDArray[np.float64]
NUM_ROWS = 2000


def fit(table: pa.Table, rows_per_leaf: int = 1000) -> TableEncoding:
    leaves = [table.slice(begin, rows_per_leaf) for begin in range(0, len(table), rows_per_leaf)]
    summary = merge_all(summarise_table(leaf, (len(leaf), 0, 0)) for leaf in leaves)
    return TableEncoding(table.schema, tuple(decide_columns(table.schema, summary, None, {}, Rules())), None)


def column_of(values: Floats, rows_per_leaf: int = 1000) -> Column:
    return fit(pa.table({"x": values}), rows_per_leaf).columns[0]


def integers(seed: int = 0, num_rows: int = NUM_ROWS) -> Floats:
    """Ages, say: 62 different ones."""
    return np.rint(np.clip(np.random.default_rng(seed).normal(40, 15, num_rows), 10, 75))


def standard(values: Floats) -> Floats:
    result: Floats = (values - values.mean()) / values.std()
    return result


@settings(max_examples=60)
@given(
    center=st.floats(-1e4, 1e4),
    log_scale=st.floats(-8, 8),
    spread=st.integers(15, 300),
    kind=st.sampled_from([pa.float32(), pa.float64()]),
    seed=st.integers(0, 99),
)
def test_integers_that_were_shifted_and_scaled_are_on_a_grid(
    center: float, log_scale: float, spread: int, kind: pa.DataType, seed: int
) -> None:
    """Whatever the units; of float32 where it tells neighbours apart by TOLERANCE."""
    scale = math.exp(log_scale)
    whole = np.random.default_rng(seed).integers(-spread, spread, NUM_ROWS).astype(np.float64)
    if relative_rounding(kind) * (spread + abs(center)) > 0.1 * TOLERANCE:
        center = 0.0
    values = ((whole + center) * scale).astype(kind.to_pandas_dtype()).astype(np.float64)
    different, counts = np.unique(values, return_counts=True)
    found = lattice_of(different, counts, float(values.std()), relative_rounding(kind))
    assert found is not None
    assert found.off == 0
    assert found.step == pytest.approx(scale, rel=1e-4)
    np.testing.assert_allclose(on_grid(values, found.step, found.origin), values, rtol=0, atol=2 * TOLERANCE * scale)
    places = np.rint((values - found.origin) / found.step)
    np.testing.assert_array_equal(places - places[0], whole - whole[0])


@settings(max_examples=100)
@given(num_values=st.integers(MAX_FEW + 1, 400), seed=st.integers(0, 10**6), rounded=st.booleans())
def test_numbers_that_repeat_are_on_no_grid_unless_they_lie_on_one(num_values: int, seed: int, rounded: bool) -> None:
    """Values drawn again and again from a few, in single and double precision."""
    rng = np.random.default_rng(seed)
    values = rng.choice(rng.normal(size=num_values), NUM_ROWS)
    values = values.astype(np.float32).astype(np.float64) if rounded else values
    different, counts = np.unique(values, return_counts=True)
    assert lattice_of(different, counts, float(values.std()), relative_rounding(pa.float32() if rounded else pa.float64())) is None


numbers = st.one_of(st.floats(allow_nan=False, allow_infinity=False), st.integers(-50, 50).map(lambda n: 0.3 + n / 7), st.floats(-1, 1))


@settings(max_examples=300)
@given(values=st.lists(numbers, min_size=2, max_size=60, unique=True), seed=st.integers(0, 99))
def test_whatever_the_values_nine_in_ten_are_on_a_grid_that_is_found(values: list[float], seed: int) -> None:
    different = np.sort(np.array(values) + 0.0)
    different = different[np.diff(different, prepend=-math.inf) > 0]
    counts = np.random.default_rng(seed).integers(1, 20, len(different))
    with np.errstate(over="ignore"):
        width = float(min(different.std(), 1e308))
    found = lattice_of(different, counts, width, relative_rounding(pa.float64()))
    if found is not None:
        off = np.abs(on_grid(different, found.step, found.origin) - different) > 3 * TOLERANCE * found.step
        assert counts[off].sum() <= 0.1 * counts.sum()
        assert found.step >= width / MAX_STEPS


def test_logarithms_of_integers_are_on_no_grid() -> None:
    values = standard(np.log1p(integers()))
    assert (column_of(values).resolution, column_of(values).field_kind) == (None, "numeric")


def test_columns_of_few_values_have_probabilities_instead() -> None:
    values = standard(np.random.default_rng(0).integers(0, MAX_FEW, NUM_ROWS).astype(np.float64))
    assert (column_of(values).resolution, column_of(values).field_kind) == (None, "spiked")
    more = standard(np.random.default_rng(0).integers(0, MAX_FEW + 1, NUM_ROWS).astype(np.float64))
    assert column_of(more).resolution is not None


def test_a_grid_so_fine_that_its_masses_are_a_density_is_none() -> None:
    steps = np.random.default_rng(1).integers(0, 3 * 10**6, 200).astype(np.float64)
    values = np.random.default_rng(2).choice(math.pi * steps, NUM_ROWS)
    assert values.std() > 2 * MAX_STEPS
    assert column_of(values).resolution is None


@pytest.mark.parametrize("rows_per_leaf", [7, 100, 999, 1000, NUM_ROWS])
def test_the_row_groups_do_not_matter(rows_per_leaf: int) -> None:
    values = standard(integers())
    whole = column_of(values, rows_per_leaf=NUM_ROWS)
    found = column_of(values, rows_per_leaf=rows_per_leaf)
    assert (found.resolution, found.origin, found.off_grid) == (whole.resolution, whole.origin, whole.off_grid)
    assert found.reason == f"double type; steps of {found.resolution:g} from {found.origin:g}"
    assert found.resolution == pytest.approx(1 / integers().std(), rel=1e-12)


def test_a_column_that_is_mostly_null_has_its_grid_in_any_row_groups() -> None:
    values = [value if row % 50 == 0 else None for row, value in enumerate(np.repeat(standard(integers()), 50).tolist())]
    for rows_per_leaf in (500, 2000):
        assert fit(pa.table({"x": values}), rows_per_leaf).columns[0].resolution == pytest.approx(1 / integers().std(), rel=1e-12)


def test_more_than_a_thousand_values_are_not_counted_and_have_a_density() -> None:
    values = standard(np.random.default_rng(3).integers(0, 5000, 20_000).astype(np.float64))
    assert column_of(values, rows_per_leaf=20_000).field_kind == "numeric"


def test_fractions_of_the_range_come_back_to_the_last_bit() -> None:
    """As a scaler to [0, 1] makes them."""
    values = (integers() - integers().min()) / (integers().max() - integers().min())
    table = pa.table({"x": values})
    encoding = fit(table)
    column = encoding.columns[0]
    assert (column.resolution, column.origin, column.lower) == (1 / 65, 0.0, 0.0)
    cells = encoding.encode(table, "here")["integer"]
    assert encoding.decode_column("x", cells, np.ones(NUM_ROWS, np.bool_)).equals(table["x"].combine_chunks())


@pytest.mark.parametrize("step", [0.25, 0.5, 5.0, 400.0])
def test_multiples_of_several_decimal_steps_are_on_the_coarser_grid(step: float) -> None:
    values = (integers() - 40) * step
    column = column_of(values)
    assert (column.resolution, column.origin, column.reason) == (step, 0.0, f"double type; steps of {step:g}")
    values[7] = 0.7 * step
    assert column_of(values).resolution != step  # one other is enough


@pytest.mark.parametrize(("share", "on"), [(0.002, True), (0.05, True), (0.2, False)])
def test_an_average_that_was_filled_in_leaves_the_others_their_steps(share: float, on: bool) -> None:
    """Which come to 0, with the standardisation; a large share of it is an atom beside a density."""
    values = integers()
    rows = np.random.default_rng(4).random(NUM_ROWS) < share
    values[rows] = values[~rows].mean()
    column = column_of(standard(values))
    if not on:
        assert column.resolution is None
        assert [atom for atom, _ in column.atoms] == [pytest.approx(0, abs=1e-12)]
        return
    assert column.resolution == pytest.approx(1 / values.std(), rel=1e-9)
    assert column.off_grid == pytest.approx(rows.mean())
    assert column.reason.endswith(f", but for {rows.mean():.2%} of the values")


def test_two_values_off_a_grid_are_on_a_finer_one_that_holds_all() -> None:
    """As halves are, among whole numbers."""
    values = integers()
    values[:3] = 41.5, 38.5, 22.5
    column = column_of(standard(values))
    assert column.resolution == pytest.approx(0.5 / values.std(), rel=1e-9)
    assert column.off_grid == 0


def test_the_most_frequent_value_is_a_spike() -> None:
    whole = np.where(np.random.default_rng(5).random(NUM_ROWS) < 0.3, 65.0, integers())
    spike = column_of(standard(whole)).spike
    assert spike == [pytest.approx(standard(whole)[whole == 65][0], rel=1e-12), (whole == 65).mean()]
    assert column_of(standard(integers())).spike is None


def test_what_is_generated_is_on_the_grid_and_not_negative_where_no_value_is() -> None:
    values = 0.3 + integers() * math.pi / 7
    encoding = fit(pa.table({"x": values}))
    column = encoding.columns[0]
    assert column.resolution == pytest.approx(math.pi / 7, rel=1e-12)
    assert column.lower == pytest.approx(0.3, rel=1e-9)
    cells = np.linspace(-9, 9, 200, dtype=np.float32)[:, None]
    made = encoding.decode_column("x", cells, np.ones(200, np.bool_)).to_numpy()
    places = (made - 0.3) / (math.pi / 7)
    np.testing.assert_allclose(places, np.rint(places), atol=1e-9)
    assert made.min() == pytest.approx(0.3)
    assert np.abs(made - np.maximum(cells[:, 0] * column.scale + column.mean[0], 0.3)).max() <= 0.501 * math.pi / 7


def test_heavy_tails_are_drawn_in_around_a_number_on_the_grid() -> None:
    counts = np.minimum(np.rint(np.exp(np.random.default_rng(6).normal(1, 1.5, 5000))), 900)
    values = (counts - 20) / 3.7
    table = pa.table({"x": values})
    encoding = fit(table)
    column = encoding.columns[0]
    assert column.field_kind == "warped"
    assert column.resolution == pytest.approx(1 / 3.7, rel=1e-12)
    place = 3.7 * column.center
    assert place == pytest.approx(round(place), abs=1e-6)
    arrays = encoding.encode(table, "here")
    back = encoding.decode_column("x", arrays["warped"], np.ones(5000, np.bool_)).to_numpy()
    np.testing.assert_allclose(back, values, rtol=1e-12, atol=1e-12)


def test_a_standardised_column_is_the_column_itself_in_another_unit() -> None:
    """Cells and what the model is told are the same, to rounding, and every log p(x) differs by the log of the scale."""
    whole = integers() - 45
    tables = [pa.table({"x": values}) for values in (whole, standard(whole))]
    encodings = [fit(table) for table in tables]
    arrays = [encoding.encode(table, "here") for encoding, table in zip(encodings, tables, strict=True)]
    np.testing.assert_allclose(arrays[0]["integer"], arrays[1]["integer"], atol=1e-6)
    np.testing.assert_allclose(arrays[1][LOG_JACOBIAN] - arrays[0][LOG_JACOBIAN], math.log(whole.std()), rtol=1e-9)
    told = [architecture(encoding, ModelConfig(2, [8]))["fields"][0] for encoding in encodings]
    assert told[0].keys() == told[1].keys()
    for name, value in told[0].items():
        assert value == told[1][name] or value == pytest.approx(told[1][name], rel=1e-9), name


def test_an_encoding_survives_json_and_says_no_origin_where_there_is_none() -> None:
    encoding = fit(pa.table({"x": standard(integers()), "y": integers() / 10}))
    written = json.loads(json.dumps(encoding.to_json()))
    assert TableEncoding.from_json(written) == encoding
    x, y = written["columns"]
    assert x["origin"] == encoding.columns[0].origin != 0
    assert "origin" not in y


@pytest.mark.parametrize("kind", [pa.float32(), pa.float64()], ids=str)
def test_generated_numbers_are_copies_of_those_that_differ_by_rounding(kind: pa.DataType) -> None:
    values = standard(integers())
    mask = np.arange(NUM_ROWS) % 5 == 0
    table = pa.table({"x": pa.array(values.astype(kind.to_pandas_dtype()), kind, mask=mask), "town": ["Bonn"] * NUM_ROWS})
    encoding = fit(table)
    cells = encoding.encode(table, "here")["integer"]
    made = table.set_column(0, "x", encoding.decode_column("x", cells, ~mask))
    real, copy = (hash_rows(settled(rows, encoding.columns)) for rows in (table, made))
    np.testing.assert_array_equal(real, copy)
    others = pa.table({"x": pa.array([math.nan, math.inf, 0.4 * (encoding.columns[0].resolution or 0) + encoding.columns[0].origin], kind)})
    np.testing.assert_array_equal(settled(others, encoding.columns)["x"].to_numpy(), others["x"].to_numpy())
