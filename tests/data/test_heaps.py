"""Claims about columns many of whose numbers are rounded: the coarser step is found where there is one, and nowhere else."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from data.column import Column
from data.columns import Rules, decide_columns
from data.encoding import TableEncoding
from data.heaps import places_of, told_apart
from data.statistics import merge_all, summarise_table

N = 3000
Draw = Callable[[np.random.Generator], NDArray[Any]]


def column_of(values: pa.Array, rows_per_leaf: int = 700) -> Column:
    table = pa.table({"x": values})
    leaves = [table.slice(begin, rows_per_leaf) for begin in range(0, len(table), rows_per_leaf)]
    summary = merge_all(summarise_table(leaf, (len(leaf), 0, 0)) for leaf in leaves)
    (column,) = decide_columns(table.schema, summary, None, {}, Rules())
    return column


def rounded(values: NDArray[Any], step: float, share: float, rng: np.random.Generator, multiple: float = 0.0) -> NDArray[Any]:
    return np.where(rng.random(len(values)) < share, np.round((values - multiple) / step) * step + multiple, values)


RNG = np.random.default_rng(0)
MINUTES = rounded(RNG.integers(0, 7 * 24 * 60, N), 15, 0.8, RNG).astype(np.int64)
HEAPED: dict[str, tuple[pa.Array, float, float, float, str]] = {
    "weights in kilograms, most of them of whole fives": (
        pa.array(rounded(RNG.normal(75, 15, N).round(), 5, 0.7, RNG).astype(np.int32)), 5, 0, 0.7, "steps of 5"
    ),
    "concentrations, all but a few of whole hundreds, in floats": (
        pa.array(rounded(np.exp(RNG.normal(6.8, 0.8, N)).round(), 100, 0.98, RNG)), 100, 0, 0.98, "steps of 100"
    ),
    "tenths, most of them whole": (pa.array(rounded(RNG.normal(20, 8, N).round(1), 1, 0.6, RNG).round(1)), 1, 0, 0.6, "steps of 1"),
    "prices that end in .99": (
        pa.array(rounded(RNG.gamma(4, 20, N).round(2), 1, 0.75, RNG, 0.99).round(2)), 1, 0.99, 0.75, "steps of 1 from 0.99"
    ),
    "salaries of whole thousands, in 64 bits": (
        pa.array(rounded(np.exp(RNG.normal(11, 0.5, N)).round(), 1000, 0.8, RNG).astype(np.int64)), 1000, 0, 0.8, "steps of 1,000"
    ),
    "without a sign": (pa.array(rounded(RNG.poisson(6000, N), 10, 0.5, RNG).astype(np.uint64)), 10, 0, 0.5, "steps of 10"),
    "meetings at quarter hours": (
        pa.array([datetime(2024, 3, 4 + m // 1440, m // 60 % 24, m % 60) for m in MINUTES.tolist()], pa.timestamp("us")),
        15 * 60 * 10**6,
        0,
        0.8,
        "steps of 15 minutes",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", HEAPED)
def test_the_coarser_step_and_the_share_that_is_rounded_to_it_are_found(name: str) -> None:
    values, step, multiple, share, said = HEAPED[name]
    column = column_of(values)
    assert column.heap is not None
    assert column.heap[0] == pytest.approx(step)
    assert column.heap[1] % step == pytest.approx(multiple)
    assert column.heap[2] == pytest.approx(share, abs=0.04)
    assert f" rounded to {said}" in column.reason
    assert Column(**TableEncoding(pa.schema([("x", values.type)]), (column,), None).to_json()["columns"][0]) == column


def test_whole_steps_are_said_in_all_of_their_digits_and_a_share_that_is_not_counted_out_as_a_bound() -> None:
    rng = np.random.default_rng(0)
    millions = column_of(pa.array(rounded(rng.normal(8e6, 2e6, N).round(), 10**6, 0.8, rng, 123_456).astype(np.int64)))
    assert millions.reason.endswith("% rounded to steps of 1,000,000 from 123,456")
    floats = column_of(pa.array(rounded(np.exp(rng.normal(9, 0.7, N)).round(), 100, 0.6, rng)), N)  # more values than are counted
    assert "; at least " in floats.reason


def smooth(kind: str, rng: np.random.Generator, n: int) -> NDArray[Any]:
    match kind:
        case "normal":
            return rng.normal(0, 30, n).round()
        case "lognormal":
            return np.exp(rng.normal(6, 1.5, n)).round()
        case "poisson":
            return rng.poisson(25, n)
        case "uniform":
            return rng.integers(0, 5000, n)
        case "with zeros":
            return np.where(rng.random(n) < 0.7, 0, rng.gamma(2, 50, n)).round()
        case "two peaks":
            return np.concatenate([rng.normal(-100, 2, n // 2), rng.normal(100, 2, n - n // 2)]).round()
        case _:
            return rng.gamma(2, 10, n).round(1)


@settings(max_examples=100)
@given(
    kind=st.sampled_from(["normal", "lognormal", "poisson", "uniform", "with zeros", "two peaks", "tenths"]),
    n=st.integers(30, 3000),
    seed=st.integers(0, 10**6),
    dtype=st.sampled_from([np.int64, np.float64]),
)
def test_numbers_that_nobody_rounded_have_none(kind: str, n: int, seed: int, dtype: Any) -> None:
    values = smooth(kind, np.random.default_rng(seed), n).astype(np.float64 if kind == "tenths" else dtype)
    column = column_of(pa.array([*values, values[0]]))  # one comes twice, as they are no key
    assert column.heap is None, column.reason


def test_what_all_values_are_multiples_of_is_the_grid_itself() -> None:
    column = column_of(pa.array(100 * np.random.default_rng(0).poisson(30, N)))
    assert (column.resolution, column.heap) == (100, None)


def test_a_value_that_comes_often_is_no_rounding() -> None:
    rng = np.random.default_rng(0)
    column = column_of(pa.array(np.where(rng.random(N) < 0.8, 40, rng.integers(1, 99, N))))
    assert column.spike is not None
    assert column.heap is None


def test_integers_beyond_float64_are_rounded_too() -> None:
    rng = np.random.default_rng(0)
    ticks = 1_700_000_000_000_000_000 + rounded(rng.integers(0, 10**6, N), 1000, 0.7, rng).astype(np.int64)
    column = column_of(pa.array(ticks))
    assert column.base > 0
    assert column.heap is not None
    assert column.heap[:2] == [1000, 0]


def test_a_rounding_that_stored_numbers_do_not_show_is_none() -> None:
    """Float32 tells microseconds of some seconds from their neighbours, and not those of a week: the model could not see a rounding."""
    rng = np.random.default_rng(0)
    for span, is_shown in ((5 * 10**6, True), (7 * 86_400 * 10**6, False)):
        ticks = 1_700_000_000_000_000 + rounded(rng.integers(0, span, N), 1000, 0.9, rng).astype(np.int64)
        column = column_of(pa.array(ticks).cast(pa.timestamp("us")))
        assert (column.heap is not None) == is_shown


def test_the_share_is_that_of_the_numbers_that_show_it() -> None:
    rng = np.random.default_rng(0)
    prices = rounded(np.exp(rng.normal(14.5, 0.8, N)).round(), 1000, 0.9, rng).astype(np.int64)
    column = column_of(pa.array(prices))
    told = told_apart(column, prices)
    assert 0.5 < told.mean() < 0.95
    assert column.heap is not None
    assert column.heap[2] == pytest.approx((prices[told] % 1000 == 0).mean(), abs=0.01)


def test_numbers_that_are_told_apart_come_back_as_they_were() -> None:
    rng = np.random.default_rng(0)
    prices = rounded(np.exp(rng.normal(13.5, 1.5, N)).round(), 1000, 0.9, rng).astype(np.int64)
    column = column_of(pa.array(prices))
    encoding = TableEncoding(pa.schema([("x", pa.int64())]), (column,), None)
    cells = encoding.encode(pa.table({"x": prices}), "here")["warped"]
    back = encoding.decode_column("x", cells, np.ones(N, np.bool_)).to_numpy()
    told = told_apart(column, prices)
    assert (back == prices)[told].all()
    assert not (back == prices)[~told].all()


def test_the_least_whole_number_has_its_place() -> None:
    assert places_of(np.array([-(2**63), -(2**63) + 200]), 100, 92).tolist() == [-(2**63) // 100, -(2**63) // 100 + 2]


def test_the_numbers_are_those_of_any_grouping_of_the_rows() -> None:
    values = HEAPED["prices that end in .99"][0]
    assert column_of(values, 97).heap == column_of(values, 3000).heap
