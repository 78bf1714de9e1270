"""Claims about data.statistics: merging leaves loses nothing, whatever the row groups and blocks."""

from __future__ import annotations

import copy
import tracemalloc
from collections.abc import Sequence
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
from data.moments import Moments
from data.statistics import ColumnSummary, TableSummary, merge_all, summarise, summarise_table
from data.types import to_float64
from data.value_counts import ValueCounts

numbers = st.floats(-1e6, 1e6)
maybe_numbers = st.one_of(st.none(), numbers)


def leaf(values: Any, kind: pa.DataType) -> ColumnSummary:
    return summarise(pa.chunked_array([pa.array(values, kind)]))


def merged(leaves: Sequence[ColumnSummary]) -> ColumnSummary:
    return merge_all(TableSummary((s.num_values + s.num_nulls, 0, 0), {"c": s}) for s in leaves).columns["c"]


def moments(summary: ColumnSummary) -> Moments:
    assert summary.moments is not None
    return summary.moments


def counted(summary: ColumnSummary) -> dict[Any, int] | None:
    """Returns how often each value was counted, None where that is not known."""
    return counts_of(summary.counts)


def counts_of(counts: ValueCounts | None) -> dict[Any, int] | None:
    entries = counts.entries if counts is not None else None
    return None if entries is None else dict(zip(entries.values.to_pylist(), entries.counts.tolist(), strict=True))


def plain(summary: ColumnSummary) -> dict[str, Any]:
    """Returns the summary as bytes and Python values, so that == compares every bit."""
    parts = ("moments", "sketch", "counts", "distinct", "repeated")
    record = {name: value for name, value in vars(summary).items() if name not in parts} | {"repeated": counts_of(summary.repeated)}
    arrays = {
        "moments": list(vars(summary.moments).values()) if summary.moments else [],
        "sketch": [summary.sketch.bins, summary.sketch.counts] if summary.sketch else [],
        "distinct": [summary.distinct.registers] if summary.distinct else [],
    }
    counts = (summary.counts.total, summary.counts.error, counted(summary)) if summary.counts else None
    return record | {name: [array.tobytes() for array in found] for name, found in arrays.items()} | {"counts": counts}


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
    assert found.num_missing_elements == np.isnan(array).sum()
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
    assert (found.num_values, found.num_nulls, found.num_missing_elements, found.num_nonfinite) == (3, 1, 1, 0)
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


def test_nonfinite_elements_are_missing_elements_and_counted() -> None:
    found = leaf([[1.0, float("nan")], [None, float("inf")], [3.0, 4.0]], pa.list_(pa.float64()))
    assert (found.num_nonfinite, found.num_missing_elements) == (2, 3)
    assert moments(found).mean.tolist() == [2, 4]


ALL_TYPES = [pa.int8(), pa.uint64(), pa.float16(), pa.bool_(), pa.string(), pa.large_string(), pa.dictionary(pa.int8(), pa.string())]
ALL_TYPES += [pa.decimal128(9, 2), pa.timestamp("us"), pa.binary(), *LISTS]


@pytest.mark.parametrize("kind", ALL_TYPES, ids=str)
def test_a_leaf_without_values_changes_nothing(kind: pa.DataType) -> None:
    empty, nulls = summarise(pa.chunked_array([], kind)), leaf([None, None], kind)
    assert plain(empty) == plain(ColumnSummary())
    assert plain(nulls) == plain(ColumnSummary(num_nulls=2))
    one = leaf(["a", "b"], pa.string())
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
    assert (counted(found) or {}) == {value: present.count(value) for value in set(present)}
    if present:
        assert found.num_distinct == len(set(present))
        assert found.is_unique == (len(set(present)) == len(present))


COUNTED: list[tuple[pa.DataType, st.SearchStrategy[Any]]] = [
    (pa.int8(), st.integers(-128, 127)),
    (pa.int64(), st.integers(-(2**63), 2**63 - 1)),
    (pa.uint64(), st.integers(0, 2**64 - 1)),
    (pa.int64(), st.integers(2**62, 2**62 + 20)),
    (pa.bool_(), st.booleans()),
    (pa.large_string(), st.text(max_size=3)),
    (pa.dictionary(pa.int32(), pa.string()), st.sampled_from(["", "a", "ü"])),
    (pa.dictionary(pa.int8(), pa.int64()), st.integers(-(2**60), 2**60)),
    (pa.timestamp("us"), st.integers(-(2**60), 2**60)),
    (pa.date32(), st.integers(-1000, 1000)),
    (pa.time64("ns"), st.integers(0, 10**9)),
]


@given(data=st.data(), typed=st.sampled_from(COUNTED))
def test_counts_of_any_type_are_those_of_python(data: st.DataObject, typed: tuple[pa.DataType, st.SearchStrategy[Any]]) -> None:
    kind, cells = typed
    leaves = data.draw(st.lists(st.lists(st.one_of(st.none(), cells), max_size=30), min_size=1, max_size=4))
    coded = pa.types.is_dictionary(kind)
    arrays = [pa.array(values, kind.value_type).dictionary_encode() if coded else pa.array(values, kind) for values in leaves]
    found = merged([summarise(pa.chunked_array([array])) for array in arrays])
    present = [value for values in leaves for value in values if value is not None]
    assert (counted(found) or {}) == {value: present.count(value) for value in set(present)}
    assert found.num_nulls == sum(map(len, leaves)) - len(present)


def strings(*values: int) -> list[str]:
    return [str(value) for value in values]


def test_too_many_strings_are_counted_approximately_within_the_error_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data.statistics, "MAX_DISTINCT", 3)
    assert counted(leaf(strings(1, 2, 3), pa.string())) == {"1": 1, "2": 1, "3": 1}
    for found in (
        leaf(strings(1, 1, 1, 2, 3, 4), pa.string()),
        merged([leaf(strings(1, 1, 2), pa.string()), leaf(strings(1, 3, 4), pa.string())]),
        merged([leaf(strings(1, 1, 2), pa.string()), leaf(strings(1, 3, 4), pa.string()), leaf([None], pa.string())]),
    ):
        assert found.counts is not None
        assert not found.counts.exact
        assert 0 <= 3 - (counted(found) or {})["1"] <= found.counts.error
        assert found.num_distinct == pytest.approx(4, rel=0.02)


def test_of_integers_with_many_values_the_frequent_ones_are_counted_and_of_categories_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(data.statistics, "MAX_DISTINCT_INTEGERS", 3)
    values = [1, 2, 3, 4, 4]
    for found in (leaf(values, pa.int64()), merged([leaf(values[:2], pa.int64()), leaf(values[2:], pa.int64())])):
        assert found.counts is not None
        assert (counted(found), found.counts.error) == ({4: 1}, 1)
        assert found.num_distinct == pytest.approx(4, rel=0.02)
    table = pa.table({"a": values, "b": values})
    summary = summarise_table(table, (5, 0, 0), ["b"])
    assert counted(summary.columns["a"]) == {4: 1}
    assert counted(summary.columns["b"]) == {1: 1, 2: 1, 3: 1, 4: 2}


@pytest.mark.parametrize("kind", [pa.int64(), pa.uint64(), pa.string()], ids=str)
def test_past_counting_values_are_unique_where_none_comes_again(kind: pa.DataType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bounded memory: a key of any length is recognised; a repeat in another leaf is seen as far as the estimate can tell."""
    monkeypatch.setattr(data.statistics, "MAX_DISTINCT", 100)
    monkeypatch.setattr(data.statistics, "MAX_DISTINCT_INTEGERS", 100)

    def part(values: NDArray[np.int64]) -> ColumnSummary:
        return summarise(pa.chunked_array([pa.array(values * 7).cast(kind)]))

    numbers = np.arange(20_000)
    assert merged([part(rows) for rows in np.split(numbers, 4)]).is_unique
    assert not merged([part(rows) for rows in np.split(np.concatenate([numbers, numbers[:8000]]), 4)]).is_unique
    for repeating in range(4):
        leaves = [np.append(rows, rows[: number == repeating]) for number, rows in enumerate(np.split(numbers, 4))]
        assert not merged([part(rows) for rows in leaves]).is_unique
    assert not part(np.append(numbers, 1)).is_unique


def test_within_counting_a_repeat_in_another_leaf_is_always_seen() -> None:
    assert not merged([leaf(strings(*range(99)), pa.string()), leaf(strings(98), pa.string())]).is_unique
    assert merged([leaf(strings(*range(99)), pa.string()), leaf(strings(99), pa.string())]).is_unique


def test_columns_that_are_not_counted_are_never_unique() -> None:
    for kind, values in (
        (pa.float64(), [1.0, 2.0]),
        (pa.list_(pa.float64()), [[1.0]]),
        (pa.binary(), [b"a", b"b"]),
        (pa.duration("s"), [1, 2]),
    ):
        found = leaf(values, kind)
        assert (found.counts, found.is_unique) == (None, False)


@pytest.mark.parametrize(
    "kind", [pa.timestamp("s"), pa.timestamp("ns", "Europe/Paris"), pa.date32(), pa.date64(), pa.time32("ms")], ids=str
)
def test_points_in_time_are_numbers_in_their_own_unit(kind: pa.DataType) -> None:
    unit = 86_400_000 if kind == pa.date64() else 1
    found = leaf([3 * unit, None, 7 * unit], kind)
    assert (found.num_values, found.num_nulls) == (2, 1)
    assert (moments(found).mean[0], moments(found).minimum[0], moments(found).maximum[0]) == (5, 3, 7)
    assert counted(found) == {3: 1, 7: 1}


def test_the_ends_of_decimals_are_exact_beyond_float64() -> None:
    kind = pa.decimal128(30, 2)
    low, high = Decimal("1234567890123456789.01"), Decimal("1234567890123456789.02")
    assert float(low) == float(high)
    assert merged([leaf([high, None], kind), leaf([None], kind), leaf([low, high], kind)]).decimals == (low, high)
    assert leaf([Decimal("-0.5")], pa.decimal256(60, 1)).decimals == (Decimal("-0.5"), Decimal("-0.5"))
    assert leaf([1.0], pa.float64()).decimals is None


finite = st.floats(allow_nan=False, allow_infinity=False, width=64)


@given(leaves=st.lists(st.lists(finite, max_size=20), min_size=1, max_size=5), q=st.floats(0, 1))
def test_quantiles_are_those_of_the_values_to_a_64th(leaves: list[list[float]], q: float) -> None:
    found = merged([leaf(values, pa.float64()) for values in leaves])
    every = np.array([value for values in leaves for value in values])
    if len(every):
        assert found.sketch is not None
        exact = float(np.quantile(every, q, method="lower"))
        np.testing.assert_allclose(found.sketch.quantile(q), exact, rtol=1 / 64, atol=2.3e-308)


@given(
    kind=st.sampled_from([pa.float64(), pa.int64(), pa.int16(), pa.string(), pa.dictionary(pa.int32(), pa.string()), pa.list_(pa.int8())]),
    numbers=st.lists(st.one_of(st.none(), st.integers(-5, 5)), max_size=40),
    cuts=st.lists(st.integers(0, 40), max_size=4),
)
def test_the_integer_parts_do_not_depend_on_the_leaves_and_all_parts_not_on_the_run(
    kind: pa.DataType, numbers: list[int | None], cuts: list[int]
) -> None:
    """Moments are floating point, and what comes again is looked for in leaves: both are the same for the same leaves in the same order,
    which the table alone decides."""
    table = column_of(kind, numbers)
    edges = [0, *sorted(min(cut, len(numbers)) for cut in cuts), len(numbers)]
    leaves = [summarise(table.slice(a, b - a)) for a, b in pairwise(edges)]
    found, whole = plain(merged(leaves)), plain(summarise(table))
    apart = {"moments", "all_distinct", "repeated"}
    assert {name: value for name, value in found.items() if name not in apart} == {n: v for n, v in whole.items() if n not in apart}
    assert plain(merged([copy.deepcopy(summary) for summary in leaves])) == found


def column_of(kind: pa.DataType, numbers: list[int | None]) -> pa.ChunkedArray:
    if pa.types.is_list(kind):
        return pa.chunked_array([pa.array([None if number is None else [number, 1] for number in numbers], kind)])
    cells = numbers if not (pa.types.is_string(kind) or pa.types.is_dictionary(kind)) else [None if n is None else str(n) for n in numbers]
    return pa.chunked_array([pa.array(cells, kind)])


def test_a_null_in_a_dictionary_is_a_null() -> None:
    coded = pa.DictionaryArray.from_arrays(pa.array([0, 1, None, 0]), pa.array(["a", None]))
    found = summarise(pa.chunked_array([coded]))
    assert (found.num_values, found.num_nulls, counted(found)) == (2, 2, {"a": 2})


def test_chunks_with_dictionaries_of_their_own_are_counted_by_value() -> None:
    chunks = [pa.array(["a", "b"]).dictionary_encode(), pa.array(["b", "a", "a"]).dictionary_encode()]
    assert counted(summarise(pa.chunked_array(chunks))) == {"a": 3, "b": 2}


def test_rows_per_side_add_up() -> None:
    total = merge_all([TableSummary((1, 2, 3), {}), TableSummary((10, 20, 30), {}), TableSummary((0, 0, 1), {})])
    assert total.num_rows == (11, 22, 34)


def test_values_beyond_the_square_of_float64_give_no_warning_and_no_finite_scale() -> None:
    found = merged([leaf([1e200, -1e200], pa.float64()), leaf([1e308, 1e308], pa.float64())])
    assert not np.isfinite(moments(found).squares[0])
    assert moments(found).minimum[0] == -1e200


@pytest.mark.parametrize(
    ("kind", "offset", "spread"),
    [(pa.uint8(), 100, 60), (pa.int64(), 2**30, 1000), (pa.float32(), -3.0, 2.0), (pa.float64(), 1e6, 1.0)],
    ids=str,
)
def test_long_lists_are_added_up_in_blocks_as_if_at_once(kind: pa.DataType, offset: float, spread: float) -> None:
    random = np.random.default_rng(5)
    numbers = (offset + spread * random.uniform(-1, 1, (1000, 784))).astype(kind.to_pandas_dtype())
    for container in (pa.list_(kind), pa.large_list(kind), pa.list_(kind, 784)):
        flat = pa.array(numbers.reshape(-1))
        lists = pa.FixedSizeListArray.from_arrays(flat, 784).cast(container)
        found = merged([summarise(pa.chunked_array([lists[:400]])), summarise(pa.chunked_array([lists[400:403], lists[403:]]))])
        exact = numbers.astype(np.longdouble)
        np.testing.assert_allclose(moments(found).mean, exact.mean(0).astype(float), rtol=1e-13)
        np.testing.assert_allclose(moments(found).squares, ((exact - exact.mean(0)) ** 2).sum(0).astype(float), rtol=1e-9)
        assert (moments(found).minimum == numbers.min(0)).all()
        assert (moments(found).maximum == numbers.max(0)).all()
        assert (found.num_values, found.num_missing_elements) == (1000, 0)


def test_a_null_row_of_a_fixed_size_list_has_no_elements() -> None:
    kind = pa.list_(pa.uint8(), 2)
    found = summarise(pa.chunked_array([pa.array([[9, 9], [1, 2], None, [3, 4]], kind)[1:]]))
    assert (found.num_values, found.num_nulls, moments(found).mean.tolist()) == (2, 1, [2, 3])


def test_a_column_of_lists_takes_little_memory_beside_its_own() -> None:
    """float64 copies of a slice of 256 MiB of bytes would take 2 GiB each."""
    lists = pa.chunked_array([pa.FixedSizeListArray.from_arrays(pa.array(np.ones(2**24, np.uint8)), 1024)])
    tracemalloc.start()
    summarise(lists)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**22


def test_many_leaves_of_ever_new_strings_stay_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data.statistics, "MAX_DISTINCT", 10_000)
    total, before, peak = ColumnSummary(), pa.total_allocated_bytes(), 0
    for number in range(200):
        new = pa.array(np.arange(number * 5000, (number + 1) * 5000)).cast(pa.string())
        total = total.merge(summarise(pa.chunked_array([pa.concat_arrays([new, pa.array(["often"] * 600)])])))
        peak = max(peak, pa.total_allocated_bytes() - before)
    assert peak < 2**23  # what is kept is about 10,000 times 30 bytes, what waits 2^20, and Arrow hashes into tables twice as large
    assert total.num_distinct == pytest.approx(1_000_001, rel=0.05)
    assert total.counts is not None
    assert total.counts.most_common(1)[0] == ["often"]


def test_more_than_a_million_strings_are_counted_approximately() -> None:
    leaves = [
        summarise(pa.chunked_array([pa.array(np.arange(first, first + 65_536)).cast(pa.string())])) for first in range(0, 2**20, 65_536)
    ]
    total = merged([*leaves, leaf(["0"] * 100, pa.string())])
    assert total.counts is not None
    assert not total.counts.exact
    assert len(counted(total) or {}) <= data.statistics.MAX_DISTINCT
    assert total.num_distinct == pytest.approx(2**20, rel=0.05)
    assert total.counts.most_common(1) == (["0"], [101 - total.counts.error])
