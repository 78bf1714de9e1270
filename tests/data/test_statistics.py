"""Claims about data.statistics: merging leaves loses nothing, whatever the row groups and blocks."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import asdict
from decimal import Decimal
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

import data.statistics
from data.statistics import ColumnSummary, Moments, TableSummary, merge_all, summarise, to_float64

numbers = st.floats(-1e6, 1e6)
maybe_numbers = st.one_of(st.none(), numbers)


def leaf(values: Any, kind: pa.DataType) -> ColumnSummary:
    return summarise(pa.chunked_array([pa.array(values, kind)]))


def merged(leaves: Sequence[ColumnSummary]) -> ColumnSummary:
    return merge_all(TableSummary((s.num_values + s.num_nulls, 0, 0), {"c": s}) for s in leaves).columns["c"]


def moments(summary: ColumnSummary) -> Moments:
    assert summary.moments is not None
    return summary.moments


def plain(summary: ColumnSummary) -> dict[str, Any]:
    """Returns the summary as bytes and Python values, so that == compares every bit."""
    record = asdict(summary)
    if summary.moments is not None:
        record["moments"] = {name: array.tobytes() for name, array in asdict(summary.moments).items()}
    return record


@pytest.mark.parametrize("num_leaves", [1, 2, 7, 100])
@pytest.mark.parametrize(("offset", "spread"), [(0.0, 1.0), (3.0, 2.0), (-500.0, 10.0)])
def test_merged_leaves_equal_one_computation(num_leaves: int, offset: float, spread: float) -> None:
    values = np.random.default_rng(1).normal(offset, spread, 10_000)
    found = moments(merged([leaf(part, pa.float64()) for part in np.array_split(values, num_leaves)]))
    exact = values.astype(np.longdouble)
    np.testing.assert_allclose(found.mean[0], float(exact.mean()), rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(found.squares[0], float(((exact - exact.mean()) ** 2).sum()), rtol=1e-12)
    assert (found.count[0], found.minimum[0], found.maximum[0]) == (10_000, values.min(), values.max())


def test_a_far_offset_costs_no_variance() -> None:
    values = 1e9 + np.random.default_rng(2).normal(size=10_000)
    found = moments(merged([leaf(part, pa.float64()) for part in np.array_split(values, 13)]))
    np.testing.assert_allclose(found.squares[0] / found.count[0], np.var(values - 1e9), rtol=1e-6)


@given(leaves=st.lists(st.lists(maybe_numbers, max_size=6), min_size=1, max_size=6))
def test_merged_leaves_equal_numpy_with_nulls(leaves: list[list[float | None]]) -> None:
    found = merged([leaf(values, pa.float64()) for values in leaves])
    every = [value for values in leaves for value in values]
    present = np.array([value for value in every if value is not None])
    assert (found.num_values, found.num_nulls, found.num_nonfinite) == (len(present), len(every) - len(present), 0)
    if not len(present):
        assert found.moments is None
        return
    size = np.abs(present).max()
    np.testing.assert_allclose(moments(found).mean[0], present.mean(), rtol=0, atol=1e-12 * size)
    squares = ((present - present.mean()) ** 2).sum()
    np.testing.assert_allclose(moments(found).squares[0], squares, rtol=1e-12, atol=1e-14 * size * size * len(present))
    assert moments(found).minimum[0] == present.min()
    assert moments(found).maximum[0] == present.max()


@given(values=st.lists(st.lists(st.one_of(st.none(), numbers), min_size=3, max_size=3), min_size=1, max_size=8), cut=st.integers(0, 8))
def test_merged_vectors_equal_numpy_by_element(values: list[list[float | None]], cut: int) -> None:
    kind = pa.list_(pa.float64())
    found = merged([leaf(part, kind) for part in (values[:cut], values[cut:])])
    array = np.array(values, np.float64)
    assert found.sizes == {3}
    assert found.num_null_elements == np.isnan(array).sum()
    assert (moments(found).count == (~np.isnan(array)).sum(0)).all()
    for element in range(3):
        present = array[:, element][~np.isnan(array[:, element])]
        if len(present):
            np.testing.assert_allclose(moments(found).mean[element], present.mean(), rtol=0, atol=1e-12 * np.abs(present).max())
            assert moments(found).maximum[element] == present.max()


LISTS = [pa.list_(pa.float32()), pa.large_list(pa.float32()), pa.list_(pa.float32(), 2), pa.list_(pa.float16())]


@pytest.mark.parametrize("kind", LISTS, ids=str)
def test_a_null_list_and_a_null_element_are_counted_apart(kind: pa.DataType) -> None:
    found = leaf([[1, 2], None, [3, None], [5, 6]], kind)
    assert (found.num_values, found.num_nulls, found.num_null_elements, found.num_nonfinite) == (3, 1, 1, 0)
    assert found.sizes == {2}
    assert moments(found).count.tolist() == [3, 2]
    assert moments(found).mean.tolist() == [3, 4]
    assert moments(found).squares.tolist() == [8, 8]
    assert moments(found).minimum.tolist() == [1, 2]


def test_lists_of_several_lengths_are_seen_within_and_across_leaves() -> None:
    kind = pa.list_(pa.float64())
    assert leaf([[1], [1, 2], None], kind).sizes == {1, 2}
    assert merged([leaf([[1.0]], kind), leaf([[1.0, 2.0]], kind)]).sizes == {1, 2}
    assert merged([leaf([None], kind), leaf([[1.0, 2.0]], kind), leaf([], kind)]).sizes == {2}


@pytest.mark.parametrize("kind", [pa.float16(), pa.float32(), pa.float64()], ids=str)
def test_nonfinite_values_are_counted_and_move_no_moment(kind: pa.DataType) -> None:
    found = merged([leaf(np.array([1, np.nan, 3, np.inf], kind.to_pandas_dtype()), kind), leaf([None], kind)])
    assert (found.num_values, found.num_nulls, found.num_nonfinite) == (4, 1, 2)
    assert (moments(found).mean[0], moments(found).count[0]) == (2, 2)
    only = leaf(np.array([np.nan, -np.inf], kind.to_pandas_dtype()), kind)
    assert (only.num_nonfinite, only.moments) == (2, None)


def test_nonfinite_elements_are_counted_apart_from_null_ones() -> None:
    found = leaf([[1.0, float("nan")], [None, float("inf")], [3.0, 4.0]], pa.list_(pa.float64()))
    assert (found.num_nonfinite, found.num_null_elements) == (2, 1)
    assert moments(found).mean.tolist() == [2, 4]


ALL_TYPES = [pa.int8(), pa.uint64(), pa.float16(), pa.bool_(), pa.string(), pa.large_string(), pa.dictionary(pa.int8(), pa.string())]
ALL_TYPES += [pa.decimal128(9, 2), pa.timestamp("us"), pa.binary(), *LISTS]


@pytest.mark.parametrize("kind", ALL_TYPES, ids=str)
def test_a_leaf_without_values_changes_nothing(kind: pa.DataType) -> None:
    empty, nulls = summarise(pa.chunked_array([], kind)), leaf([None, None], kind)
    assert plain(empty) == plain(ColumnSummary())
    assert plain(nulls) == plain(ColumnSummary(num_nulls=2))
    one = ColumnSummary(num_values=2, counts={"a": 1, "b": 1})
    assert plain(merged([empty, one, empty])) == plain(one)
    assert merged([nulls, one]).num_nulls == 2


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (pa.int8(), [-128, 127, None, 5]),
        (pa.uint64(), [2**64 - 1, 0, None, 5]),
        (pa.float16(), [0.5, -2.0, None]),
        (pa.decimal128(9, 2), [Decimal("-1.25"), None, Decimal("9.75")]),
        (pa.decimal256(60, 2), [Decimal("-1.25"), None]),
    ],
    ids=str,
)
def test_numbers_of_every_type_become_float64_with_nan_for_null(kind: pa.DataType, values: list[Any]) -> None:
    expected = np.array([np.nan if value is None else float(value) for value in values])
    array = pa.array([None if v is None else np.float16(v) for v in values] if kind == pa.float16() else values, kind)
    np.testing.assert_array_equal(to_float64(array), expected)
    np.testing.assert_array_equal(to_float64(pa.chunked_array([array[:1], array[1:]])), expected)
    assert to_float64(array).dtype == np.float64


@given(
    kind=st.sampled_from([pa.int32(), pa.string(), pa.dictionary(pa.int32(), pa.string())]),
    values=st.lists(st.one_of(st.none(), st.integers(0, 5)), max_size=20),
    cuts=st.lists(st.integers(0, 20), max_size=3),
)
def test_the_summary_does_not_depend_on_blocks(kind: pa.DataType, values: list[int | None], cuts: list[int]) -> None:
    cells = values if kind == pa.int32() else [None if value is None else str(value) for value in values]
    array = pa.array(cells, kind)
    edges = [0, *sorted(min(cut, len(cells)) for cut in cuts), len(cells)]
    blocks = pa.chunked_array([array[a:b] for a, b in pairwise(edges)], kind)
    assert plain(summarise(blocks)) == plain(summarise(pa.chunked_array([array])))


def test_moments_do_not_depend_on_blocks_to_the_last_bit() -> None:
    array = pa.array(np.random.default_rng(3).normal(size=1000), mask=np.arange(1000) % 7 == 0)
    whole = plain(summarise(pa.chunked_array([array])))
    for step in (1, 13, 999):
        assert plain(summarise(pa.chunked_array([array[i : i + step] for i in range(0, 1000, step)]))) == whole


def test_the_fold_in_file_order_is_the_same_to_the_last_bit_and_leaves_its_leaves_alone() -> None:
    leaves = [leaf(part, pa.float64()) for part in np.array_split(np.random.default_rng(4).normal(size=1000), 17)]
    before = [plain(copy.deepcopy(summary)) for summary in leaves]
    once, twice = plain(merged(leaves)), plain(merged(leaves))
    assert once == twice
    assert [plain(summary) for summary in leaves] == before


@given(leaves=st.lists(st.lists(st.one_of(st.none(), st.integers(0, 9)), max_size=8), min_size=1, max_size=5))
def test_values_are_counted_and_known_to_differ(leaves: list[list[int | None]]) -> None:
    found = merged([leaf(values, pa.int64()) for values in leaves])
    present = [value for values in leaves for value in values if value is not None]
    assert found.counts == {value: present.count(value) for value in set(present)}
    assert found.num_distinct == len(set(present))
    assert found.all_distinct == (len(set(present)) == len(present))


def strings(*values: int) -> NDArray[np.str_]:
    return np.array([str(value) for value in values])


def test_more_values_than_are_counted_overflow_for_good(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data.statistics, "MAX_DISTINCT", 3)
    assert leaf(strings(1, 2, 3), pa.string()).counts == {"1": 1, "2": 1, "3": 1}
    within = leaf(strings(1, 2, 3, 4), pa.string())
    across = merged([leaf(strings(1, 2), pa.string()), leaf(strings(3, 4), pa.string())])
    later = merged([across, leaf(strings(1), pa.string()), ColumnSummary()])
    for summary in (within, across, later):
        assert summary.counts is None
        assert summary.num_distinct == 4


def test_a_repeated_value_is_seen_as_long_as_values_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data.statistics, "MAX_DISTINCT", 3)
    assert not merged([leaf(strings(1, 2), pa.string()), leaf(strings(2, 3, 4), pa.string())]).all_distinct
    assert merged([leaf(strings(1, 2), pa.string()), leaf(strings(3, 4), pa.string())]).all_distinct
    assert not leaf(strings(1, 2, 3, 4, 4), pa.string()).all_distinct


def test_past_counting_values_differ_where_they_differ_in_every_leaf(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bounded memory: a key of any length is recognised, at the price of a repeat in another leaf."""
    monkeypatch.setattr(data.statistics, "MAX_DISTINCT", 3)
    long = leaf(strings(1, 2, 3, 4), pa.string())
    assert merged([long, leaf(strings(5, 6), pa.string())]).all_distinct
    assert not merged([long, leaf(strings(5, 5), pa.string())]).all_distinct
    assert not merged([leaf(strings(5, 5), pa.string()), long]).all_distinct


def test_columns_that_are_not_counted_are_never_all_distinct() -> None:
    for kind, values in ((pa.float64(), [1.0, 2.0]), (pa.list_(pa.float64()), [[1.0]]), (pa.timestamp("s"), [1, 2])):
        found = leaf(values, kind)
        assert (found.counts, found.all_distinct) == (None, False)


def test_a_null_in_a_dictionary_is_a_null() -> None:
    coded = pa.DictionaryArray.from_arrays(pa.array([0, 1, None, 0]), pa.array(["a", None]))
    found = summarise(pa.chunked_array([coded]))
    assert (found.num_values, found.num_nulls, found.counts) == (2, 2, {"a": 2})


def test_chunks_with_dictionaries_of_their_own_are_counted_by_value() -> None:
    chunks = [pa.array(["a", "b"]).dictionary_encode(), pa.array(["b", "a", "a"]).dictionary_encode()]
    assert summarise(pa.chunked_array(chunks)).counts == {"a": 3, "b": 2}


def test_rows_per_side_add_up() -> None:
    total = merge_all([TableSummary((1, 2, 3), {}), TableSummary((10, 20, 30), {}), TableSummary((0, 0, 1), {})])
    assert total.num_rows == (11, 22, 34)


def test_values_beyond_the_square_of_float64_give_no_warning_and_no_finite_scale() -> None:
    found = merged([leaf([1e200, -1e200], pa.float64()), leaf([1e308, 1e308], pa.float64())])
    assert not np.isfinite(moments(found).squares[0])
    assert moments(found).minimum[0] == -1e200
