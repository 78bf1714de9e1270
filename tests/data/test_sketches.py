"""Claims about data.sketches and data.value_counts: sums are exact however grouped, and what is rounded or left out stays bounded."""

from __future__ import annotations

import json
import math
import pickle
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import reduce
from pathlib import Path
from typing import Any, Protocol, Self, TypeVar

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

import data.sketches
import data.value_counts
from data.hashing import INTEGER_KEY, hash_integers
from data.sketches import DistinctSketch, QuantileSketch
from data.value_counts import Entries, ValueCounts
from tests.running import ROOT


class Mergeable(Protocol):
    def merge(self, other: Self) -> Self: ...


Sketch = TypeVar("Sketch", bound=Mergeable)


def merged(leaves: Sequence[Sketch]) -> Sketch:
    return reduce(lambda a, b: a.merge(b), leaves)


def merged_as(tree: Any, leaves: Iterator[Sketch]) -> Sketch:
    """Returns the leaves merged in order, grouped as the nested lists of the tree are."""
    return merged([merged_as(branch, leaves) for branch in tree]) if isinstance(tree, list) else next(leaves)


def num_leaves(tree: Any) -> int:
    return sum(num_leaves(branch) for branch in tree) if isinstance(tree, list) else 1


trees = st.recursive(st.none(), lambda branches: st.lists(branches, min_size=1, max_size=4), max_leaves=12)

finite = st.floats(allow_nan=False, allow_infinity=False)
smallest_normal = sys.float_info.min
edges = st.sampled_from([0.0, -0.0, 5e-324, -smallest_normal, smallest_normal, 1.0, -1.0, 1e308, -sys.float_info.max, sys.float_info.max])
any_floats = st.lists(st.one_of(finite, edges, st.integers(-9, 9).map(float)), min_size=1, max_size=60)


def quantile_sketch(values: Sequence[float]) -> QuantileSketch:
    return QuantileSketch.of(np.array(values, np.float64))


def plain_bins(sketch: QuantileSketch) -> tuple[list[int], list[int]]:
    assert (sketch.bins.dtype.name, sketch.counts.dtype.name) == ("int32", "int64")
    return sketch.bins.tolist(), sketch.counts.tolist()


def bin_by_arithmetic(value: float) -> int:
    """Returns a value's bin from its mantissa and exponent instead of from its bits."""
    if abs(value) < smallest_normal:
        return 0
    mantissa, exponent = math.frexp(abs(value))
    octaves_above_the_smallest = exponent - math.frexp(smallest_normal)[1]
    return int(math.copysign(1 + 64 * octaves_above_the_smallest + math.floor((2 * mantissa - 1) * 64), value))


@given(values=any_floats)
def test_a_bin_is_a_64th_of_an_octave_and_zero_holds_the_subnormals(values: list[float]) -> None:
    expected = Counter(bin_by_arithmetic(value) for value in values)
    assert plain_bins(quantile_sketch(values)) == (sorted(expected), [expected[b] for b in sorted(expected)])


@given(values=any_floats, qs=st.lists(st.floats(0, 1), min_size=1, max_size=5))
def test_a_quantile_is_the_lower_one_of_numpy_to_a_128th_of_itself(values: list[float], qs: list[float]) -> None:
    sketch = quantile_sketch(values)
    exact = np.quantile(np.array(values), qs, method="lower").tolist()
    for found, true in zip(sketch.quantiles(qs), exact, strict=True):
        assert math.isfinite(found)
        assert found == 0 if abs(true) < smallest_normal else abs(found - true) <= abs(true) / 128
    assert sketch.quantiles(qs) == [sketch.quantile(q) for q in qs]
    assert sketch.count == len(values)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("num_values", [1, 1000, 300_000])
def test_quantiles_of_heavy_tails_stay_within_the_bound(num_values: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    columns = [
        rng.standard_cauchy(num_values) ** 5,
        np.exp(30 * rng.normal(size=num_values)),
        rng.poisson(0.7, num_values).astype(np.float64),
    ]
    qs = [0.0, 0.001, 0.1, 0.25, 0.5, 0.9, 0.999, 1.0]
    for values in columns:
        np.testing.assert_allclose(QuantileSketch.of(values).quantiles(qs), np.quantile(values, qs, method="lower"), rtol=1 / 128, atol=0)


@given(tree=trees, order=st.randoms(), draw=st.data())
def test_merged_quantile_sketches_equal_the_sketch_of_all_values(tree: Any, order: Any, draw: st.DataObject) -> None:
    parts = [draw.draw(any_floats) for _ in range(num_leaves(tree))]
    expected = plain_bins(quantile_sketch([value for part in parts for value in part]))
    assert plain_bins(merged_as(tree, iter([quantile_sketch(part) for part in parts]))) == expected
    order.shuffle(parts)
    assert plain_bins(merged([quantile_sketch(part) for part in parts])) == expected


def test_few_values_far_apart_and_many_values_are_counted_alike() -> None:
    values = np.random.default_rng(0).normal(size=50_000)
    expected = plain_bins(QuantileSketch.of(values))
    assert plain_bins(merged([QuantileSketch.of(part) for part in np.array_split(values, 500)])) == expected
    assert plain_bins(QuantileSketch.of(np.stack([values, values], 1)[:, 0])) == expected


@given(values=any_floats)
def test_negated_values_give_the_mirrored_sketch(values: list[float]) -> None:
    bins, counts = plain_bins(quantile_sketch(values))
    assert plain_bins(quantile_sketch([-value for value in values])) == ([-b for b in reversed(bins)], counts[::-1])


@given(values=any_floats)
def test_middles_ascend_and_lie_in_their_own_bins(values: list[float]) -> None:
    sketch = quantile_sketch(values)
    middles = sketch.middles()
    assert (middles[1:] > middles[:-1]).all()  # their differences may be beyond float64
    assert QuantileSketch.of(middles).bins.tolist() == sketch.bins.tolist()


@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused(value: float) -> None:
    for values in ([value], [1.0, value, -1.0], [*[sys.float_info.max] * 99, value]):
        with pytest.raises(ValueError, match="NaN or an infinity"):
            quantile_sketch(values)


def test_no_values_have_no_quantile_and_add_nothing() -> None:
    empty, one = quantile_sketch([]), quantile_sketch([-3.0])
    assert (empty.count, empty.middles().tolist()) == (0, [])
    assert plain_bins(empty.merge(empty)) == ([], [])
    assert plain_bins(empty.merge(one)) == plain_bins(one.merge(empty)) == plain_bins(one)
    with pytest.raises(ValueError, match="no values"):
        empty.quantile(0.5)


@given(values=st.one_of(st.just([]), any_floats))
def test_a_quantile_sketch_survives_json_and_pickle(values: list[float]) -> None:
    sketch = quantile_sketch(values)
    assert plain_bins(QuantileSketch.from_json(json.loads(json.dumps(sketch.to_json())))) == plain_bins(sketch)
    assert plain_bins(pickle.loads(pickle.dumps(sketch))) == plain_bins(sketch)


hashes = st.one_of(
    st.integers(0, 2**64 - 1), st.builds(lambda a, b: a << 52 | b, st.integers(0, 4095), st.sampled_from([0, 1, 2**51, 2**52 - 1]))
)
hash_lists = st.lists(hashes, max_size=30)


def distinct_sketch(values: Sequence[int]) -> DistinctSketch:
    return DistinctSketch.of(np.array(values, np.uint64))


@given(values=hash_lists)
def test_a_register_holds_the_largest_rank_of_its_hashes(values: list[int]) -> None:
    expected = [0] * 4096
    for value in values:
        expected[value >> 52] = max(expected[value >> 52], 53 - (value % 2**52).bit_length())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data.sketches, "HASHES_AT_ONCE", 4)
        assert distinct_sketch(values).registers.tolist() == expected


@given(parts=st.lists(hash_lists, min_size=1, max_size=4))
def test_merged_distinct_sketches_equal_the_sketch_of_all_hashes(parts: list[list[int]]) -> None:
    sketch = merged([distinct_sketch(part) for part in parts])
    assert sketch.registers.tolist() == distinct_sketch([value for part in parts for value in part]).registers.tolist()
    assert sketch.registers.tolist() == merged([distinct_sketch(part) for part in [*reversed(parts), parts[0]]]).registers.tolist()


@pytest.mark.parametrize("num_distinct", [10, 100, 1000, 4000, 10_000, 15_000, 50_000, 1_000_000, 5_000_000])
def test_distinct_values_are_estimated_to_five_percent(num_distinct: int) -> None:
    sketch = DistinctSketch.of(hash_integers(np.arange(num_distinct)))
    assert abs(sketch.estimate() / num_distinct - 1) < 0.05
    again = DistinctSketch.of(hash_integers(np.arange(num_distinct // 2)))
    assert sketch.merge(again).estimate() == sketch.estimate()


@pytest.mark.parametrize("num_distinct", [50, 2000, 6000, 10_240, 14_000, 20_000, 60_000])
def test_the_standard_error_is_below_two_percent_and_the_bias_below_half_of_one(num_distinct: int) -> None:
    keys = [INTEGER_KEY ^ np.uint64(i * 0x1234567) for i in range(100)]
    ratios = [DistinctSketch.of(hash_integers(np.arange(num_distinct), key)).estimate() / num_distinct for key in keys]
    assert np.sqrt(np.mean(np.square(np.array(ratios) - 1))) < 0.02
    assert abs(np.mean(ratios) - 1) < 0.005


@pytest.mark.parametrize("num_distinct", [30.0, 1e4, 1e9, 1e18, 1e19, 4e19])
def test_the_estimate_holds_for_numbers_that_no_test_can_count_to(num_distinct: float) -> None:
    """Registers drawn from their distribution: ranks up to k with probability exp(-n 2^-k / 4096), the last one holding the rest."""
    chances = np.exp(-num_distinct / 4096 * 2.0 ** -np.arange(53))
    uniform = np.random.default_rng(7).random((20, 4096))
    ratios = [DistinctSketch(np.searchsorted(chances, row).astype(np.uint8)).estimate() / num_distinct for row in uniform]
    assert abs(np.mean(ratios) - 1) < (0.05 if num_distinct < 100 else 0.01)


def test_no_hash_is_no_distinct_value_and_one_is_one() -> None:
    assert distinct_sketch([]).estimate() == 0
    assert distinct_sketch([7, 7, 7]).estimate() == pytest.approx(1, rel=1e-3)


def test_a_distinct_sketch_is_four_kilobytes() -> None:
    sketch = DistinctSketch.of(hash_integers(np.arange(100_000)))
    assert len(pickle.dumps(sketch)) < 4500
    assert pickle.loads(pickle.dumps(sketch)).estimate() == sketch.estimate()


UNBOUNDED = 10**6
TEXT = [pa.string(), pa.large_string()]
texts = st.one_of(st.none(), st.sampled_from(["", "a", "b", "ü", "\U0001f600", "a\0"]), st.text(max_size=3))
signed = st.one_of(st.none(), st.integers(-3, 3), st.integers(-(2**63), 2**63 - 1))
unsigned = st.one_of(st.none(), st.integers(0, 3), st.integers(0, 2**64 - 1))
COLUMNS: list[tuple[list[pa.DataType], st.SearchStrategy[Any]]] = [
    (TEXT, texts),
    ([pa.int64()], signed),
    ([pa.int8(), pa.int64(), pa.uint32()], st.one_of(st.none(), st.integers(0, 100))),
    ([pa.uint64()], unsigned),
    ([pa.bool_()], st.one_of(st.none(), st.booleans())),
]


@st.composite
def dictionary_chunk(draw: st.DrawFn, values: list[Any], kind: pa.DataType) -> pa.DictionaryArray:
    """Returns the values by a dictionary in any order that holds nulls, repeats and values without a row."""
    dictionary = draw(
        st.permutations([*values, *values, None, *draw(st.lists(st.sampled_from(values), max_size=2) if values else st.just([]))])
    )
    places = [[place for place, entry in enumerate(dictionary) if entry == value and type(entry) is type(value)] for value in values]
    indices = [
        None if value is None and draw(st.booleans()) else draw(st.sampled_from(found)) for value, found in zip(values, places, strict=True)
    ]
    index_type = draw(st.sampled_from([pa.int16(), pa.int32(), pa.uint64()]))
    return pa.DictionaryArray.from_arrays(pa.array(indices, index_type), pa.array(dictionary, kind))


@st.composite
def leaf_columns(draw: st.DrawFn) -> list[tuple[list[Any], pa.ChunkedArray]]:
    """Returns leaves of one column, each as Python values and as Arrow, in whatever type, chunks and encoding."""
    kinds, values = draw(st.sampled_from(COLUMNS))
    leaves = []
    for _ in range(draw(st.integers(1, 8))):
        kind = draw(st.sampled_from(kinds))
        chunks = draw(st.lists(st.lists(values, max_size=8), max_size=3))
        encoded = draw(st.booleans()) and kind != pa.bool_()
        arrays = [draw(dictionary_chunk(chunk, kind)) if encoded else pa.array(chunk, kind) for chunk in chunks]
        if encoded and arrays:
            arrays = [array.cast(pa.dictionary(pa.int64(), kind)) for array in arrays]
        column = pa.chunked_array(arrays, pa.dictionary(pa.int64(), kind) if encoded else kind)
        begin = draw(st.integers(0, 2))
        leaves.append(([value for chunk in chunks for value in chunk][begin:], column.slice(begin)))
    return leaves


def counts_of(values: Sequence[Any], kind: pa.DataType, capacity: int = UNBOUNDED) -> ValueCounts:
    return ValueCounts.of(pa.chunked_array([pa.array(values, kind)]), capacity)


def as_dict(counts: ValueCounts) -> dict[Any, int]:
    assert counts.entries.counts.dtype == np.int64
    values = counts.entries.values.to_pylist()
    assert len(set(values)) == len(values)
    return dict(zip(values, counts.entries.counts.tolist(), strict=True))


def present(leaves: list[tuple[list[Any], pa.ChunkedArray]]) -> Counter[Any]:
    return Counter(value for values, _ in leaves for value in values if value is not None)


@pytest.fixture(params=["merged parts wait", "every merge consolidates"])
def waiting(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "every merge consolidates":
        monkeypatch.setattr(data.value_counts, "MIN_WAITING_BYTES", 0)
        monkeypatch.setattr(data.value_counts, "PART_BYTES", 0)
    return str(request.param)


def grouped(leaves: list[ValueCounts], cuts: list[int]) -> ValueCounts:
    """Returns the leaves merged in order, in groups that end where the cuts say."""
    ends = sorted({min(cut, len(leaves)) for cut in cuts} | {len(leaves)} - {0})
    groups = [leaves[begin:end] for begin, end in zip([0, *ends], ends, strict=False) if begin < end]
    return merged([merged(group) for group in groups])


cut_lists = st.lists(st.integers(1, 8), max_size=4)


@given(leaves=leaf_columns(), cuts=cut_lists)
def test_counts_equal_a_counter_for_any_chunks_encoding_and_grouping(
    leaves: list[tuple[list[Any], pa.ChunkedArray]], cuts: list[int]
) -> None:
    counts = grouped([ValueCounts.of(column, UNBOUNDED) for _, column in leaves], cuts)
    expected = present(leaves)
    assert as_dict(counts) == expected
    assert (counts.total, counts.num_distinct, counts.error, counts.exact) == (expected.total(), len(expected), 0, True)
    assert counts.is_one_value == (len(expected) == 1)
    assert counts.most_common(UNBOUNDED) == most_common(expected)


def most_common(expected: Counter[Any], n: int = UNBOUNDED, min_count: int = 1) -> tuple[list[Any], list[int]]:
    order = sorted((item for item in expected.items() if item[1] >= min_count), key=lambda item: (-item[1], item[0]))[:n]
    return [value for value, _ in order], [count for _, count in order]


@given(leaves=leaf_columns(), order=st.randoms(), n=st.integers(0, 5), min_count=st.integers(0, 3))
def test_the_most_common_come_in_one_order(leaves: list[tuple[list[Any], pa.ChunkedArray]], order: Any, n: int, min_count: int) -> None:
    expected = most_common(present(leaves), n, min_count)
    assert merged([ValueCounts.of(column, UNBOUNDED) for _, column in leaves]).most_common(n, min_count) == expected
    order.shuffle(leaves)
    assert merged([ValueCounts.of(column, UNBOUNDED) for _, column in leaves]).most_common(n, min_count) == expected


def test_ties_are_ordered_by_value_also_at_the_end_of_the_list() -> None:
    counts = counts_of(["b", "ab", "a", "z", "z", "B", "é"], pa.string())
    assert counts.most_common(4) == (["z", "B", "a", "ab"], [2, 1, 1, 1])
    assert counts_of([3, -5, 2, 2, -7], pa.int32()).most_common(3) == ([2, -7, -5], [2, 1, 1])
    assert counts_of([True, False], pa.bool_()).most_common(9) == ([False, True], [1, 1])


@pytest.mark.usefixtures("waiting")
def test_a_value_of_many_leaves_is_counted_once() -> None:
    leaves = [counts_of([f"shared {i % 3}", f"own {i}"], pa.string()) for i in range(300)]
    expected = {f"own {i}": 1 for i in range(300)} | {f"shared {i}": 100 for i in range(3)}
    for group in (1, 7, 299):
        parts = [merged(leaves[begin : begin + group]) for begin in range(0, 300, group)]
        assert as_dict(merged(parts)) == as_dict(merged(parts[::-1])) == expected


def test_merging_alters_neither_side_and_reading_alters_nothing() -> None:
    a, b = counts_of(["x", "y"], pa.string()), counts_of(["y", "z"], pa.string())
    total = a.merge(b)
    assert as_dict(total) == as_dict(total) == {"x": 1, "y": 2, "z": 1}
    assert (as_dict(a), as_dict(b)) == ({"x": 1, "y": 1}, {"y": 1, "z": 1})
    assert as_dict(total.merge(a)) == {"x": 2, "y": 3, "z": 1}


EMPTY = [
    *(pa.chunked_array([], kind) for kind in (pa.string(), pa.int8(), pa.bool_(), pa.dictionary(pa.int8(), pa.string()))),
    pa.chunked_array([pa.array([None, None], pa.string())]),
    pa.chunked_array([pa.array([None], pa.dictionary(pa.int8(), pa.string()))]),
    pa.chunked_array([pa.DictionaryArray.from_arrays(pa.array([0, 0], pa.int8()), pa.array([None], pa.string()))]),
]


@pytest.mark.parametrize("column", EMPTY, ids=lambda column: f"{column.type} {len(column)}")
def test_a_column_without_values_has_no_counts(column: pa.ChunkedArray) -> None:
    empty = ValueCounts.of(column, 3)
    doubled = empty.merge(empty)
    assert (doubled.total, doubled.num_distinct, doubled.exact, doubled.is_one_value) == (0, 0, True, False)
    assert doubled.most_common(5) == ([], [])


@pytest.mark.parametrize(
    "kind", [pa.float64(), pa.binary(), pa.timestamp("us"), pa.list_(pa.int8()), pa.dictionary(pa.int8(), pa.binary())], ids=str
)
def test_a_type_that_is_not_counted_is_refused_by_name(kind: pa.DataType) -> None:
    with pytest.raises(TypeError, match="text, integers and booleans"):
        ValueCounts.of(pa.chunked_array([], kind), 3)


def assert_bounded(counts: ValueCounts, expected: Counter[Any]) -> None:
    """Asserts the bounds of Agarwal et al. (2012): of each count, of the number kept, and of the error."""
    found = as_dict(counts)
    assert len(found) <= counts.capacity
    assert all(0 < count <= expected[value] for value, count in found.items())
    assert all(count - found.get(value, 0) <= counts.error for value, count in expected.items())
    assert counts.error * (counts.capacity + 1) <= counts.total - sum(found.values())
    assert counts.total == expected.total()
    if len(expected) > counts.capacity:
        assert (counts.exact, counts.num_distinct) == (False, counts.capacity + 1)
    else:
        assert (found, counts.error, counts.num_distinct) == (expected, 0, len(expected))


OVERFLOWING = st.lists(st.lists(st.integers(0, 9).map(lambda i: i * i // 9), max_size=12), min_size=1, max_size=8)


@pytest.mark.parametrize("min_waiting", [0, 100, 1 << 20])
@pytest.mark.parametrize("kind", [pa.string(), pa.int16()], ids=str)
@given(leaves=OVERFLOWING, capacity=st.integers(1, 6), cuts=cut_lists)
def test_beyond_the_capacity_counts_stay_within_the_error(
    kind: pa.DataType, min_waiting: int, leaves: list[list[int]], capacity: int, cuts: list[int]
) -> None:
    value_of: Callable[[int], Any] = str if kind == pa.string() else int
    named = [[value_of(value) for value in leaf] for leaf in leaves]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data.value_counts, "MIN_WAITING_BYTES", min_waiting)
        patch.setattr(data.value_counts, "PART_BYTES", 0)
        counts = grouped([counts_of(leaf, kind, capacity) for leaf in named], cuts)
        assert_bounded(counts, Counter(value for leaf in named for value in leaf))


def test_values_with_one_count_are_kept_or_left_out_together() -> None:
    assert as_dict(counts_of([1, 1, 1, 2, 2, 3, 3], pa.int64(), 2)) == {1: 1}
    assert as_dict(counts_of([1, 1, 1, 2, 2, 2, 3, 3, 4], pa.int64(), 2)) == {1: 1, 2: 1}
    assert as_dict(counts_of([1, 2, 3], pa.int64(), 2)) == {}


@given(leaves=OVERFLOWING, capacity=st.integers(1, 6))
def test_reading_between_merges_does_not_change_what_is_kept(leaves: list[list[int]], capacity: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data.value_counts, "MIN_WAITING_BYTES", 100)
        patch.setattr(data.value_counts, "PART_BYTES", 0)
        unread = merged([counts_of(leaf, pa.int64(), capacity) for leaf in leaves])
        total = counts_of(leaves[0], pa.int64(), capacity)
        for leaf in leaves[1:]:
            total = total.merge(counts_of(leaf, pa.int64(), capacity))
            assert total.num_distinct >= len(total.most_common(3)[0])
    assert (as_dict(total), total.error) == (as_dict(unread), unread.error)


def test_long_text_is_bounded_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data.value_counts, "MAX_VALUE_BYTES", 2000)
    documents = [f"{i:0100d}" for i in range(50)] + ["frequent"] * 20 + [f"{7:0100d}"] * 5
    counts = ValueCounts.of(pa.chunked_array([pa.array(documents)]), UNBOUNDED)
    assert (counts.total, counts.num_distinct, counts.exact) == (75, UNBOUNDED + 1, False)
    assert (as_dict(counts), counts.error) == ({"frequent": 19, f"{7:0100d}": 5}, 1)
    words = counts_of([str(i) for i in range(300) for _ in range(i + 1)], pa.string())
    assert 1900 < words.entries.values.nbytes <= 2008  # an offset each, and one at the end
    assert words.most_common(2) == (["299", "298"], [300 - words.error, 299 - words.error])
    short = counts_of(documents[:18], pa.string())
    assert (short.exact, short.num_distinct) == (True, 18)


def test_each_entry_is_handled_a_few_times_however_many_leaves_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    handled: list[int] = []

    def counting(parts: Sequence[Entries], combined: Callable[[Sequence[Entries]], Entries] = data.value_counts.combined) -> Entries:
        handled.append(sum(len(part.counts) for part in parts))
        return combined(parts)

    monkeypatch.setattr(data.value_counts, "combined", counting)
    leaves = [counts_of(range(i * 500, (i + 1) * 500), pa.int64()) for i in range(1000)]
    assert merged(leaves).num_distinct == 500_000
    assert sum(handled) < 4 * 500_000
    small = [counts_of([i, -i], pa.int64()) for i in range(1000)]
    handled.clear()
    assert merged([merged(leaves).finished(), *small]).total == 502_000
    assert max(handled[-3:]) >= 500_000
    assert sum(size >= 250_000 for size in handled) <= 4


def test_what_waits_weighs_no_more_than_what_is_consolidated() -> None:
    two = same = other = counts_of(["a", "b"], pa.string())
    for i in range(1000):
        same = same.merge(two)
        other = other.merge(counts_of([f"{j}" for j in range(i * 200, i * 200 + 200)], pa.string()))
        for counts in (same, other):
            consolidated = counts.parts[0].num_bytes
            assert counts.num_bytes == sum(part.num_bytes for part in counts.parts)
            assert counts.num_bytes - consolidated <= max(data.value_counts.MIN_WAITING_BYTES, consolidated)


@given(leaves=leaf_columns())
def test_counts_survive_pickling_before_and_after_merging(leaves: list[tuple[list[Any], pa.ChunkedArray]]) -> None:
    counted = [pickle.loads(pickle.dumps(ValueCounts.of(column, UNBOUNDED))) for _, column in leaves]
    assert as_dict(pickle.loads(pickle.dumps(merged(counted)))) == present(leaves)


@pytest.mark.parametrize("encoded", [False, True])
def test_a_leaf_holds_nothing_but_its_own_values(encoded: bool) -> None:
    column = pa.chunked_array([pa.array([f"{i:020d}" for i in range(50_000)])])
    leaf = ValueCounts.of((column.dictionary_encode() if encoded else column).slice(20_000, 100), UNBOUNDED)
    assert len(pickle.dumps(leaf)) < 100 * 36 + 2000
    assert as_dict(leaf) == {f"{i:020d}": 1 for i in range(20_000, 20_100)}


MEMORY = """
import sys
from functools import reduce
import pyarrow as pa
from data.value_counts import ValueCounts

def status(field):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(field))

def leaf(first, rows=20_000):
    values = [f"{i * 2654435761 % 2**64:020d}" for i in range(first, first + rows)]
    heavy = [f"heavy {i}" for i in range(5) for _ in range(10 * (i + 1))] if first >= 100_000 else []
    return ValueCounts.of(pa.chunked_array([pa.array(values + heavy)]), 1_000_000)

num_values = int(sys.argv[1])
leaf(0)
before = status("VmRSS")
total = reduce(ValueCounts.merge, (leaf(first) for first in range(0, num_values, 20_000))).finished()
print((status("VmHWM") - before) // 10**6, total.total, total.num_distinct, total.error, *total.most_common(5)[1])
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from Linux's /proc")
@pytest.mark.parametrize(("num_values", "max_megabytes"), [(999_980, 300), pytest.param(3_000_000, 600, marks=pytest.mark.slow)])
def test_memory_is_bounded_and_heavy_values_survive(num_values: int, max_megabytes: int) -> None:
    """The resident memory of a process of its own: Arrow's pools and NumPy's arrays alike, and what they do not give back."""
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(num_values)], cwd=ROOT, capture_output=True, text=True, timeout=300, check=True
    )
    peak, total, num_distinct, error, *found = (int(number) for number in done.stdout.split())
    num_heavy_leaves = len(range(100_000, num_values, 20_000))
    assert peak < max_megabytes
    true = [10 * num_heavy_leaves * i for i in (5, 4, 3, 2, 1)]
    assert all(count - error <= reported <= count for reported, count in zip(found, true, strict=True))
    assert total == -(-num_values // 20_000) * 20_000 + sum(true)
    assert num_distinct == 1_000_001
    assert 0 < error <= total / 1_000_001
