"""Claims about atoms: floats that many of a column's values are exactly equal to have a probability each, beside a density."""

from __future__ import annotations

import math
from dataclasses import replace
from decimal import Decimal
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from data.atoms import atoms_of, without_atoms
from data.column import Column
from data.columns import Rules, decide_columns
from data.encoding import TableEncoding
from data.fields import LOG_JACOBIAN, atom_cells
from data.jacobians import column_log_jacobians
from data.statistics import ColumnSummary, TableSummary, merge_all, summarise_table

N = 2000


def numbers(seed: int = 0, size: int = N) -> NDArray[np.float64]:
    return np.random.default_rng(seed).normal(size=size)


def summary_of(values: Any, kind: pa.DataType | None = None, leaves: int = 1) -> ColumnSummary:
    array = pa.array(values, kind or pa.float64())
    size = max(1, -(-len(array) // leaves))
    parts = [pa.table({"x": array.slice(begin, size)}) for begin in range(0, len(array), size)]
    return merge_all(summarise_table(part, (len(part), 0, 0)) for part in parts).columns["x"]


def decide(values: Any, kind: pa.DataType | None = None) -> tuple[TableEncoding, Column]:
    table = pa.table({"x": pa.array(values, kind or pa.float64())})
    summary = TableSummary((len(table), 0, 0), {"x": summary_of(values, kind)})
    encoding = TableEncoding(table.schema, tuple(decide_columns(table.schema, summary, None, {}, Rules())), None)
    return encoding, encoding.columns[0]


@pytest.mark.parametrize("kind", [pa.float64(), pa.float32()], ids=str)
def test_values_that_come_often_are_atoms(kind: pa.DataType) -> None:
    x = np.clip(numbers(), -1.0, 1.5)
    x[:200], x[200:400] = 0.0, 0.125
    _, column = decide(x, kind)
    assert column.field_kind == "spiked"
    assert [atom for atom, _ in column.atoms] == [-1.0, 0.0, 0.125, 1.5]
    assert [share for _, share in column.atoms] == pytest.approx([float((x == atom).mean()) for atom, _ in column.atoms])
    assert (column.lower, column.upper) == (-1.0, 1.5)
    assert f"exactly 1.5 in {(x == 1.5).mean():.1%} of the values" in column.reason


def test_four_atoms_are_named_and_the_others_counted() -> None:
    _, column = decide(np.repeat(np.arange(7) / 7, 20))
    assert len(column.atoms) == 7
    assert column.reason.endswith("exactly 0.428571 in 14.3% of the values, and 3 such values more")


def test_few_equal_values_make_no_atom() -> None:
    x = numbers()
    x[:99] = 0.0  # of 2,000: below 5 %
    assert atoms_of(summary_of(x)) == []
    x[:100] = 0.0
    assert atoms_of(summary_of(x)) == [[0.0, 0.05]]
    short = numbers(size=40)
    short[:9] = 0.0
    assert atoms_of(summary_of(short)) == []
    assert atoms_of(summary_of(numbers())) == []


def test_columns_on_a_grid_and_named_densities_have_no_atoms() -> None:
    tenths = np.round(numbers(), 1)
    tenths[:400] = 0.0
    _, column = decide(tenths)
    assert (column.atoms, column.field_kind, column.spike is not None) == ([], "integer", True)


@settings(max_examples=60)
@given(leaves=st.integers(1, 20), shares=st.lists(st.floats(0.07, 0.3), min_size=1, max_size=3), seed=st.integers(0, 9))
def test_atoms_are_found_in_any_number_of_leaves_with_about_their_shares(leaves: int, shares: list[float], seed: int) -> None:
    x = numbers(seed)
    ends = np.cumsum([0, *(math.ceil(share * N) for share in shares)])
    for atom, (begin, end) in enumerate(pairwise(ends.tolist())):
        x[begin:end] = atom / 3
    atoms = atoms_of(summary_of(np.random.default_rng(seed).permutation(x), leaves=leaves))
    assert [value for value, _ in atoms] == [atom / 3 for atom in range(len(shares))]
    assert [share for _, share in atoms] == pytest.approx([int(end - begin) / N for begin, end in pairwise(ends)], abs=0.01)


@settings(max_examples=60)
@given(leaves=st.integers(1, 40), rounded=st.lists(st.sampled_from([-1.5, -0.0, 0.0, 0.1, 2.5, 1 / 3]), min_size=1, max_size=60))
def test_ends_are_counted_the_same_in_any_number_of_leaves(leaves: int, rounded: list[float]) -> None:
    found, x = summary_of(rounded, leaves=leaves), np.array(rounded)
    assert found.at_ends == ((x == x.min()).sum(), (x == x.max()).sum())


@pytest.mark.parametrize("leaves", [1, 7, 40])
def test_sentinels_leave_the_others_moments_alone_however_the_table_is_sorted(leaves: int) -> None:
    x = np.sort(np.where(numbers(1) < 0.3, -999.0, 20 + numbers()))
    summary = summary_of(x, leaves=leaves)
    atoms = atoms_of(summary)
    assert atoms == [[-999.0, float((x == -999).mean())]]
    left = without_atoms(summary, atoms).moments
    assert left is not None
    assert (left.mean[0], left.squares[0] / left.count[0]) == pytest.approx((x[x > 0].mean(), x[x > 0].var()), rel=1e-6)


def test_a_column_of_few_values_has_no_density_whatever_their_shares() -> None:
    """Numbers that someone standardised, of a scale of four: half a percent of them are the least."""
    x = np.random.default_rng(0).choice([-2.1266, -0.4932, 1.1400, 2.7733], N, p=[0.005, 0.5, 0.4, 0.095]) / 3
    x[:10] = x.min()
    _, column = decide(x)
    assert [atom for atom, _ in column.atoms] == np.unique(x).tolist()
    assert sum(share for _, share in column.atoms) == pytest.approx(1)


@settings(max_examples=60)
@given(share=st.floats(0.05, 0.95), atom=st.sampled_from([0.0, -999.0, 50.0]), center=st.floats(-100, 100), spread=st.floats(0.01, 50))
def test_what_is_left_has_the_moments_of_the_other_values(share: float, atom: float, center: float, spread: float) -> None:
    x = center + spread * numbers(1)
    rest, x = x[int(share * N) :], np.concatenate([np.full(int(share * N), atom), x[int(share * N) :]])
    summary = summary_of(x)
    atoms = [[atom, float((x == atom).mean())]]
    left = without_atoms(summary, atoms)
    assert left.moments is not None
    assert left.sketch is not None
    assert left.moments.count[0] == left.sketch.count == len(rest)
    assert left.moments.mean[0] == pytest.approx(rest.mean(), rel=1e-9, abs=1e-9)
    assert math.sqrt(left.moments.squares[0] / len(rest)) == pytest.approx(rest.std(), rel=1e-4)


@pytest.mark.parametrize("sentinel", [1e7, -1e9, 1e20, 9.96921e36, -3.4028235e38, -1.7e308])
def test_what_stands_for_no_data_however_far_leaves_the_others_apart(sentinel: float) -> None:
    x = 10 + 3 * numbers()
    x[: N // 3] = sentinel
    encoding, column = decide(x)
    assert (column.atoms, column.field_kind) == ([[sentinel, pytest.approx(1 / 3, abs=1e-3)]], "spiked")
    arrays = encoding.encode(pa.table({"x": x}), "here")
    back = np.asarray(encoding.decode_column("x", arrays["spiked"], np.ones(N, np.bool_)))
    assert (back[: N // 3] == sentinel).all()
    assert np.abs(back - x)[N // 3 :].max() < 1e-5


@pytest.mark.parametrize("kind", [pa.decimal128(12, 2), pa.decimal128(38, 9)], ids=str)
def test_decimals_have_atoms_as_floats_have(kind: pa.DataType) -> None:
    cents = np.rint(np.abs(np.random.default_rng(0).normal(1e6, 5e5, N)))
    cents[::2] = 0
    _, column = decide([Decimal(int(value)).scaleb(-2) for value in cents], kind)
    _, expected = decide(cents / 100)
    assert expected.atoms == [[0.0, 0.5]]
    assert replace(column, reason=expected.reason) == expected


def test_a_column_of_nothing_but_atoms_keeps_the_moments_of_all() -> None:
    x = np.repeat([1 / 3, 2 / 3], 50)
    encoding, column = decide(x)
    assert column.atoms == [[1 / 3, 0.5], [2 / 3, 0.5]]
    arrays = encoding.encode(pa.table({"x": x}), "here")
    assert (arrays[LOG_JACOBIAN] == 0).all()
    assert encoding.decode_column("x", arrays["spiked"], arrays["spiked.valid"][:, 0]).to_pylist() == x.tolist()


def heavy(seed: int = 0) -> NDArray[np.float64]:
    """Rain: none in most rows, else of several orders of magnitude."""
    random = np.random.default_rng(seed)
    return np.where(random.random(N) < 0.6, 0.0, np.exp(random.normal(0, 2.5, N)))


@pytest.mark.parametrize("kind", [pa.float64(), pa.float32()], ids=str)
@pytest.mark.parametrize("make", [heavy, lambda: np.clip(1e6 + numbers(), 1e6 - 1, 1e6 + 1.5), lambda: np.maximum(numbers(), -1 / 3)])
def test_atoms_come_back_exactly_and_the_others_as_exactly_as_ever(make: Any, kind: pa.DataType) -> None:
    x = np.asarray(pa.array(make()).cast(kind), np.float64)
    encoding, column = decide(x, kind)
    assert column.atoms
    arrays = encoding.encode(pa.table({"x": pa.array(x, kind)}), "here")
    back = np.asarray(encoding.decode_column("x", arrays["spiked"], np.ones(N, np.bool_)), np.float64)
    atoms = np.isin(x, [atom for atom, _ in column.atoms])
    assert (back[atoms] == x[atoms]).all()
    assert not np.isin(back[~atoms], [atom for atom, _ in column.atoms]).any() or kind == pa.float32()
    np.testing.assert_allclose(back, x, rtol=1e-5, atol=1e-6 * column.scale)


def test_the_log_jacobian_is_that_of_the_cells_that_have_a_density() -> None:
    x = heavy()
    x[5], x[7] = np.nan, 3.0
    table = pa.table({"x": pa.array(x, mask=np.isnan(x))})
    encoding, column = decide(x[~np.isnan(x)])
    assert column.width is not None
    arrays = encoding.encode(table, "here")
    density = (x != 0) & ~np.isnan(x)
    expected = np.where(density, -np.log(column.scale * np.hypot(column.width, x - column.center)), 0.0)
    np.testing.assert_allclose(arrays[LOG_JACOBIAN], expected, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(column_log_jacobians(encoding, arrays)[:, 0], expected, rtol=1e-5, atol=1e-5)


def test_a_number_whose_cell_would_be_an_atoms_is_no_atom() -> None:
    """Cells are float32: 1e-9 and 0 are one cell where the mean is 100."""
    encoding, column = decide(np.concatenate([np.zeros(500), 100 + numbers()]))
    (cell,) = atom_cells(column)
    arrays = encoding.encode(pa.table({"x": [0.0, 1e-9, -0.0]}), "here")
    assert (arrays["spiked"][:, 0] == cell).tolist() == [True, False, True]
    assert arrays[LOG_JACOBIAN].tolist() == [0.0, pytest.approx(-math.log(column.scale)), 0.0]


def test_atoms_that_float32_cannot_tell_apart_are_told_apart() -> None:
    x = np.concatenate([np.zeros(300), np.full(300, 1e-9), np.full(300, 2e-9), 100 + numbers()])
    encoding, column = decide(x)
    assert [atom for atom, _ in column.atoms] == [0.0, 1e-9, 2e-9]
    arrays = encoding.encode(pa.table({"x": x[[0, 300, 600, 900]]}), "here")
    back = encoding.decode_column("x", arrays["spiked"], np.ones(4, np.bool_)).to_pylist()
    assert back == [0.0, 1e-9, 2e-9, pytest.approx(x[900])]
    assert (arrays[LOG_JACOBIAN][:3] == 0).all()


def test_numbers_beyond_an_end_that_is_an_atom_come_out_as_it() -> None:
    encoding, column = decide(np.clip(numbers(), -1.0, 1.5))
    cells = ((np.array([-3.0, 0.2, 9.0]) - column.mean[0]) / column.scale).astype(np.float32)[:, None]
    assert encoding.decode_column("x", cells, np.ones(3, np.bool_)).to_pylist() == [-1.0, pytest.approx(0.2), 1.5]
    free = replace(column, lower=None, upper=None)
    assert replace(encoding, columns=(free,)).decode_column("x", cells, np.ones(3, np.bool_)).to_pylist()[2] == pytest.approx(9.0)


def test_an_encoding_with_atoms_survives_json() -> None:
    encoding, _ = decide(heavy())
    assert TableEncoding.from_json(encoding.to_json()) == encoding
