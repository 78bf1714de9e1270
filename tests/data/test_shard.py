"""Claims about data.shard: encoded rows cross as blocks, in any order and any cut, and lie in memory as they were."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from random import Random

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.columns import decide_columns
from data.encoding import LOG_JACOBIAN, Arrays, TableEncoding
from data.plan import Integers, readings, shard_bounds, shards_of_rank
from data.scan import rows_per_side
from data.shard import Layout, Reader, ResidentRows, bytes_per_row, fill_resident, from_block, layout, to_blocks
from data.split import split_rows
from data.statistics import TableSummary, summarise
from data.table import DataError, RowGroup, open_table, read_row_group

SHAPES: Layout = {
    LOG_JACOBIAN: ("float64", 0),
    "numeric": ("float32", 3),
    "numeric.valid": ("bool", 3),
    "categorical": ("int32", 1),
    "boolean": ("int8", 2),
    "image_0": ("uint8", 4),
    "image_0.valid": ("bool", 1),
}


def arrays_of(num_rows: int, seed: int = 0) -> Arrays:
    random = np.random.default_rng(seed)
    return {
        name: random.integers(0, 2 if dtype == "bool" else 100, (num_rows, width) if width else num_rows).astype(dtype)
        for name, (dtype, width) in SHAPES.items()
    }


def rows(arrays: Arrays, begin: int, end: int) -> Arrays:
    return {name: array[begin:end] for name, array in arrays.items()}


def assert_same(found: Arrays, expected: Arrays) -> None:
    assert set(found) == set(expected)
    for name, array in expected.items():
        assert found[name].dtype == array.dtype
        assert found[name].shape == array.shape
        assert found[name].tobytes() == array.tobytes()


@settings(max_examples=60, deadline=None)
@given(
    num_rows=st.integers(1, 40),
    cuts=st.lists(st.integers(0, 40), max_size=5),
    order=st.randoms(use_true_random=False),
    recut=st.integers(1, 9),
)
def test_rows_are_what_they_were_whatever_the_blocks_and_their_order(num_rows: int, cuts: list[int], order: Random, recut: int) -> None:
    arrays = arrays_of(num_rows)
    edges = [0, *sorted(min(cut, num_rows) for cut in cuts), num_rows]
    blocks = [to_blocks(rows(arrays, a, b), SHAPES, 0, a, b - a, "here") for a, b in pairwise(edges)]
    order.shuffle(blocks)
    whole = pa.concat_tables(blocks)
    cut_again = [whole.slice(begin, recut) for begin in range(0, num_rows, recut)]
    for arrived in (blocks, [whole], cut_again, [whole.combine_chunks()]):
        assert_same(fill_resident(iter(arrived), SHAPES, {0: num_rows})[0].arrays, arrays)


def test_a_block_of_two_sides_fills_both() -> None:
    train, validation = arrays_of(5, 1), arrays_of(3, 2)
    mixed = pa.concat_tables([to_blocks(validation, SHAPES, 1, 0, 3, "here"), to_blocks(train, SHAPES, 0, 0, 5, "here")])
    shuffled = mixed.take(pa.array([7, 0, 3, 1, 6, 2, 5, 4]))
    sides = fill_resident(iter([shuffled]), SHAPES, {0: 5, 1: 3})
    assert_same(sides[0].arrays, train)
    assert_same(sides[1].arrays, validation)


def test_rows_that_did_not_arrive_are_counted() -> None:
    block = to_blocks(arrays_of(3), SHAPES, 1, 0, 3, "here")
    with pytest.raises(DataError, match=r"3 of 4 rows of side 1 arrived; run again when nothing writes them"):
        fill_resident(iter([block]), SHAPES, {0: 0, 1: 4})
    with pytest.raises(DataError, match=r"0 of 2 rows of side 0"):
        fill_resident(iter([]), SHAPES, {0: 2})


def test_a_worker_without_rows_holds_empty_arrays() -> None:
    assert_same(fill_resident(iter([]), SHAPES, {0: 0})[0].arrays, arrays_of(0))
    assert to_blocks(arrays_of(0), SHAPES, 0, 0, 0, "here").num_rows == 0


def test_an_array_of_another_width_is_refused_by_file() -> None:
    arrays = arrays_of(2)
    arrays["image_0.valid"] = np.ones((2, 4), np.bool_)
    with pytest.raises(DataError, match=r"file\.parquet: image_0\.valid has null elements where the scanned table had none"):
        to_blocks(arrays, SHAPES, 0, 0, 2, "file.parquet")


@settings(max_examples=40, deadline=None)
@given(begin=st.integers(0, 10), length=st.integers(0, 10), dtype=st.sampled_from(["float32", "bool", "int32", "float64"]))
def test_numbers_leave_a_sliced_and_chunked_block_unchanged(begin: int, length: int, dtype: str) -> None:
    numbers = (np.arange(30).reshape(10, 3) % (2 if dtype == "bool" else 100)).astype(dtype)
    block = to_blocks({"a": numbers}, {"a": (dtype, 3)}, 0, 0, 10, "here")["a"]
    one = block.slice(begin, length)
    expected = numbers[begin : begin + length].reshape(-1)
    if one.num_chunks == 1:
        assert from_block(one, np.dtype(dtype)).tolist() == expected.tolist()
    two = pa.chunked_array([*block.slice(0, begin).chunks, *block.slice(begin).chunks], block.type)
    assert from_block(two, np.dtype(dtype)).tolist() == numbers.reshape(-1).tolist()


def test_a_block_of_one_chunk_is_not_copied() -> None:
    block = to_blocks(arrays_of(4), SHAPES, 0, 0, 4, "here")["numeric"]
    assert from_block(block, np.dtype("float32")).ctypes.data == block.chunk(0).buffers()[1].address


def test_resident_rows_are_zero_until_they_arrive() -> None:
    resident = ResidentRows(SHAPES, 4)
    resident.fill(to_blocks(arrays_of(1), SHAPES, 0, 2, 1, "here"))
    assert resident.num_filled == 1
    assert (resident.arrays["numeric"][[0, 1, 3]] == 0).all()
    assert (resident.arrays["numeric"][2] == arrays_of(1)["numeric"]).all()


def some_table(num_rows: int) -> pa.Table:
    random = np.random.default_rng(9)
    return pa.table(
        {
            "id": [f"row {i}" for i in range(num_rows)],
            "x": pa.array(random.normal(size=num_rows), mask=random.random(num_rows) < 0.2),
            "n": random.integers(0, 50, num_rows) * 2,
            "c": pa.array(random.choice(["a", "b", "c"], num_rows)).dictionary_encode(),
            "v": pa.array(random.normal(size=(num_rows, 3)).tolist(), pa.list_(pa.float32())),
            "p": pa.array(random.integers(0, 256, (num_rows, 4)).tolist(), pa.list_(pa.uint8())),
        }
    )


def encoding_of(table: pa.Table, key: str | None) -> TableEncoding:
    summary = TableSummary((len(table), 0, 0), {name: summarise(table[name]) for name in table.column_names})
    return TableEncoding(table.schema, tuple(decide_columns(table.schema, summary, key, {})), key)


def test_a_resident_row_takes_the_bytes_that_were_announced() -> None:
    table = some_table(50)
    encoding = encoding_of(table, "id")
    arrays = ResidentRows(layout(encoding), 10).arrays
    assert sum(array.nbytes for array in arrays.values()) == 10 * bytes_per_row(encoding)
    assert {name: array.shape[1:] for name, array in encoding.encode(table, "here").items()} == {n: a.shape[1:] for n, a in arrays.items()}


@pytest.mark.parametrize("key", ["id", None])
@pytest.mark.parametrize("num_workers", [1, 3, 5])
def test_files_end_up_as_each_workers_shards_in_order(tmp_path: Path, key: str | None, num_workers: int) -> None:
    """The way of a row without Ray: row group, side, reading, encoding, block, place."""
    fractions, num_shards = (0.3, 0.1), 5
    whole = some_table(100)
    for index, (begin, end) in enumerate(pairwise([0, 3, 60, 100])):
        pq.write_table(whole.slice(begin, end - begin), tmp_path / f"{index}.parquet", row_group_size=11)
    table = open_table(str(tmp_path))
    groups = list(table.row_groups())
    encoding = encoding_of(whole, key)
    group_sides = [split_rows(read_row_group(table.filesystem, group, ["id"]), group, key, fractions) for group in groups]
    counts: Integers = np.array([rows_per_side(sides) for sides in group_sides], np.int64)
    of_side = np.concatenate(group_sides)
    assert set(of_side.tolist()) == {0, 1, 2}

    def blocks(rank: int) -> Iterator[pa.Table]:
        reader = Reader(table.filesystem, encoding, fractions)
        for reading in readings(groups, counts, [0, 1], num_shards, rank, num_workers):
            yield from reader.read(pa.table({"reading": [json.dumps(asdict(reading))]}))

    for rank in range(num_workers):
        expected, num_rows = {}, {}
        for side in (0, 1):
            bounds = shard_bounds(int((of_side == side).sum()), num_shards)
            mine = np.concatenate([np.arange(bounds[v], bounds[v + 1]) for v in shards_of_rank(num_shards, rank, num_workers)])
            expected[side] = encoding.encode(whole.take(np.flatnonzero(of_side == side)[mine]), "here")
            num_rows[side] = len(mine)
        held = fill_resident(blocks(rank), layout(encoding), num_rows)
        for side in (0, 1):
            assert_same(held[side].arrays, expected[side])


def test_keys_that_changed_between_scan_and_reading_are_found_out(tmp_path: Path) -> None:
    path, whole = tmp_path / "a.parquet", some_table(30)
    pq.write_table(whole, path)
    table = open_table(str(path))
    (group,) = table.row_groups()
    encoding = encoding_of(whole, "id")
    counts = np.array([[30, 0, 0]], np.int64)  # as if the scan had seen every row on one side
    (reading,) = readings([group], counts, [0], 1, 0, 1)
    arrived = Reader(table.filesystem, encoding, (0.5, 0.0)).read(pa.table({"reading": [json.dumps(asdict(reading))]}))
    with pytest.raises(DataError, match=r"the files changed while they were read: \d+ of 30 rows of side 0"):
        fill_resident(arrived, layout(encoding), {0: 30})
    everything = Reader(table.filesystem, encoding, (1.0, 0.0)).read(pa.table({"reading": [json.dumps(asdict(reading))]}))
    with pytest.raises(DataError, match="0 of 30 rows of side 0"):
        fill_resident(everything, layout(encoding), {0: 30})


def test_a_reading_survives_json() -> None:
    counts = np.array([[4, 2, 0]], np.int64)
    (reading,) = readings([RowGroup("a.parquet", "0" * 64, 2, 7, 6)], counts, [0, 1], 2, 0, 1)
    back = json.loads(json.dumps(asdict(reading)))
    assert RowGroup(**back["group"]) == reading.group
    assert (
        [tuple(target) for target in back["targets"]] == list(reading.targets) == [(0, 0, 2, 0), (0, 2, 4, 2), (1, 0, 1, 0), (1, 1, 2, 1)]
    )
