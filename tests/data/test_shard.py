"""Claims about data.shard: encoded rows cross as blocks, in any order and any cut, and lie in memory as they were."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from random import Random

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import fs

from data import reading
from data.column import Column
from data.columns import Rules, decide_columns
from data.encoding import TableEncoding
from data.fields import LOG_JACOBIAN, Arrays
from data.hashing import hash_values
from data.listing import DataError
from data.plan import Integers, Reading, readings, shard_bounds, shards_of_rank
from data.reading import RowReader
from data.scan import ScanTask, scan_groups
from data.shard import (
    BUNDLE_BYTES,
    PLACE,
    SIDE,
    Layout,
    Reader,
    ResidentRows,
    bundles,
    bytes_per_row,
    fill_resident,
    from_block,
    layout,
    to_blocks,
)
from data.split import hash_places, split_of, split_rows
from data.statistics import TableSummary, summarise
from data.table import RowGroup, Table, open_table

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


@settings(max_examples=60)
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


@settings(max_examples=40)
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
    return TableEncoding(table.schema, tuple(decide_columns(table.schema, summary, key, {}, Rules())), key)


def test_a_resident_row_takes_the_bytes_that_were_announced() -> None:
    table = some_table(50)
    encoding = encoding_of(table, "id")
    arrays = ResidentRows(layout(encoding), 10).arrays
    assert sum(array.nbytes for array in arrays.values()) == 10 * bytes_per_row(encoding)
    assert {name: array.shape[1:] for name, array in encoding.encode(table, "here").items()} == {n: a.shape[1:] for n, a in arrays.items()}


def read(
    table: Table, encoding: TableEncoding, fractions: tuple[float, float], plan: Sequence[Reading], max_bytes: int
) -> Iterator[pa.Table]:
    """Yields the blocks of the tasks of a plan."""
    reader = Reader(table.filesystem, encoding, fractions, max_bytes)
    for bundle in bundles(plan, bytes_per_row(encoding)):
        yield from reader.read(pa.table({"readings": [json.dumps([asdict(reading) for reading in bundle])]}))


def sides_of_groups(table: Table, key: str | None, fractions: tuple[float, float]) -> list[np.ndarray[tuple[int], np.dtype[np.int8]]]:
    """Returns the side of every row, by row group."""
    schema = pa.schema([table.schema.field("id")])
    with RowReader(table.filesystem, schema) as reader:
        return [
            np.concatenate([split_rows(rows, part, key, fractions) for part, rows in reader.slices(group)]) for group in table.row_groups()
        ]


def counts_of(sides: Sequence[np.ndarray[tuple[int], np.dtype[np.int8]]]) -> Integers:
    return np.array([np.bincount(of_group, minlength=3) for of_group in sides], np.int64)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Table:
    """Three files of 100 rows together, in row groups of 11 and small pages."""
    folder = tmp_path_factory.mktemp("files")
    whole = some_table(100)
    for index, (begin, end) in enumerate(pairwise([0, 3, 60, 100])):
        path = folder / f"{index}.parquet"
        pq.write_table(
            whole.slice(begin, end - begin), path, row_group_size=11, data_page_size=16, write_batch_size=2, use_dictionary=False
        )
    return open_table(str(folder))


@pytest.mark.parametrize("max_bytes", [reading.MAX_BATCH_BYTES, 400, 120])
@pytest.mark.parametrize("key", ["id", None])
@pytest.mark.parametrize("num_workers", [1, 3, 5])
def test_files_end_up_as_each_workers_shards_in_order_whatever_the_slices(
    files: Table, key: str | None, num_workers: int, max_bytes: int
) -> None:
    """The way of a row without Ray: row group, slice, side, reading, encoding, block, place."""
    fractions, num_shards = (0.3, 0.1), 5
    whole = some_table(100)
    groups = list(files.row_groups())
    encoding = encoding_of(whole, key)
    sides = sides_of_groups(files, key, fractions)
    of_side = np.concatenate(sides)
    assert set(of_side.tolist()) == {0, 1, 2}
    for rank in range(num_workers):
        expected, num_rows = {}, {}
        for side in (0, 1):
            bounds = shard_bounds(int((of_side == side).sum()), num_shards)
            mine = np.concatenate([np.arange(bounds[v], bounds[v + 1]) for v in shards_of_rank(num_shards, rank, num_workers)])
            expected[side] = encoding.encode(whole.take(np.flatnonzero(of_side == side)[mine]), "here")
            num_rows[side] = len(mine)
        plan = readings(groups, counts_of(sides), [0, 1], num_shards, rank, num_workers)
        held = fill_resident(read(files, encoding, fractions, plan, max_bytes), layout(encoding), num_rows)
        for side in (0, 1):
            assert_same(held[side].arrays, expected[side])


def test_small_budgets_make_more_blocks(files: Table) -> None:
    encoding, fractions = encoding_of(some_table(100), "id"), (0.3, 0.1)
    plan = readings(list(files.row_groups()), counts_of(sides_of_groups(files, "id", fractions)), [0], 1, 0, 1)
    num_blocks = [len(list(read(files, encoding, fractions, plan, max_bytes))) for max_bytes in (reading.MAX_BATCH_BYTES, 400, 120)]
    assert num_blocks[0] == len(plan) == 11
    assert num_blocks[2] > num_blocks[1] > 2 * num_blocks[0]


class CutReader(RowReader):
    """Cuts the slices of a row group once more, at any rows."""

    def __init__(self, filesystem: fs.FileSystem, schema: pa.Schema, cuts: Sequence[int]) -> None:
        super().__init__(filesystem, schema)
        self.cuts = cuts

    def slices(self, group: RowGroup) -> Iterator[tuple[RowGroup, pa.Table]]:
        for part, rows in super().slices(group):
            edges = [0, *sorted(cut for cut in set(self.cuts) if cut < part.num_rows), part.num_rows]
            for begin, end in pairwise(edges):
                yield replace(part, first_row=part.first_row + begin, num_rows=end - begin), rows.slice(begin, end - begin)


NUMBERED = Column("x", "numeric", "by hand", shape=[1])


@pytest.fixture(scope="module")
def numbered(tmp_path_factory: pytest.TempPathFactory) -> tuple[Table, TableEncoding]:
    """A table of row groups of 1 to 30 rows, and an encoding that leaves the number x of each row as it is."""
    path = tmp_path_factory.mktemp("numbered") / "a.parquet"
    schema = pa.schema([("x", pa.float64())])
    first = 0
    with pq.ParquetWriter(path, schema) as writer:
        for size in (1, 30, 7, 2, 25):
            writer.write_table(pa.table({"x": np.arange(first, first + size, dtype=np.float64)}, schema=schema))
            first += size
    return open_table(str(path)), TableEncoding(schema, (NUMBERED,), None)


@settings(max_examples=150)
@given(
    fractions=st.sampled_from([(0.0, 0.0), (0.5, 0.2), (0.3, 0.0), (0.05, 0.9), (1.0, 0.0)]),
    sides=st.sampled_from([[0], [1], [0, 1], [0, 1, 2]]),
    num_shards=st.integers(1, 12),
    num_workers=st.integers(1, 4),
    cuts=st.lists(st.integers(1, 29), max_size=8),
)
def test_every_place_is_filled_once_by_the_row_that_belongs_there_whatever_the_slices(
    numbered: tuple[Table, TableEncoding],
    fractions: tuple[float, float],
    sides: list[int],
    num_shards: int,
    num_workers: int,
    cuts: list[int],
) -> None:
    table, encoding = numbered
    groups = list(table.row_groups())
    of_groups = [split_of(hash_places(group), *fractions) for group in groups]
    of_side = np.concatenate(of_groups)
    assert encoding.key is None
    for rank in range(num_workers):
        found: dict[tuple[int, int], float] = {}
        with CutReader(table.filesystem, encoding.schema, cuts) as reader:
            for item in readings(groups, counts_of(of_groups), sides, num_shards, rank, num_workers):
                targets = json.loads(json.dumps(item.targets))
                for block in Reader(table.filesystem, encoding, fractions)._read_group(reader, item.group, targets, encoding):
                    numbers = from_block(block["numeric"], np.dtype(np.float32)).tolist()
                    for side, place, number in zip(block[SIDE].to_pylist(), block[PLACE].to_pylist(), numbers, strict=True):
                        assert (side, place) not in found
                        found[side, place] = number
        expected: dict[tuple[int, int], float] = {}
        for side in sides:
            rows = np.flatnonzero(of_side == side)
            bounds = shard_bounds(len(rows), num_shards)
            mine = [rows[row] for v in shards_of_rank(num_shards, rank, num_workers) for row in range(bounds[v], bounds[v + 1])]
            expected |= {(side, place): float(row) for place, row in enumerate(mine)}
        assert found == expected


@settings(max_examples=40)
@given(begin=st.integers(0, 30), length=st.integers(0, 30), place=st.integers(0, 10**12), cuts=st.lists(st.integers(1, 29), max_size=8))
def test_a_target_of_any_rows_of_a_group_is_read_from_any_slices(
    numbered: tuple[Table, TableEncoding], begin: int, length: int, place: int, cuts: list[int]
) -> None:
    table, encoding = numbered
    group = list(table.row_groups())[1]
    end = min(begin + length, 30)
    with CutReader(table.filesystem, encoding.schema, cuts) as reader:
        blocks = list(Reader(table.filesystem, encoding, (0.0, 0.0))._read_group(reader, group, [[0, begin, end, place]], encoding))
    places = [number for block in blocks for number in block[PLACE].to_pylist()]
    numbers = [number for block in blocks for number in from_block(block["numeric"], np.dtype(np.float32)).tolist()]
    assert places == list(range(place, place + max(end - begin, 0)))
    assert numbers == [1 + row for row in range(begin, end)]
    assert all(block.num_rows for block in blocks)


def reading_of(index: int, num_rows: Sequence[int]) -> Reading:
    return Reading(RowGroup("a.parquet", "0" * 64, index, 0, sum(num_rows)), tuple((0, 0, n, 0) for n in num_rows))


@given(
    plan=st.lists(st.lists(st.integers(1, 2**16), min_size=1, max_size=3), max_size=40),
    row_bytes=st.integers(1, 2**14),
)
def test_bundles_hold_every_reading_once_in_order_and_each_but_the_last_is_large(plan: list[list[int]], row_bytes: int) -> None:
    made = [reading_of(index, rows) for index, rows in enumerate(plan)]
    found = bundles(made, row_bytes)
    assert [item for bundle in found for item in bundle] == made
    sizes = [[row_bytes * sum(end - begin for _, begin, end, _ in item.targets) for item in bundle] for bundle in found]
    assert all(sizes)
    assert all(sum(of_bundle) >= BUNDLE_BYTES for of_bundle in sizes[:-1])
    # None is larger than it must be: without its last reading it would be too small.
    assert all(sum(of_bundle[:-1]) < BUNDLE_BYTES for of_bundle in sizes)


def test_a_plan_of_nothing_has_no_bundles() -> None:
    assert bundles([], 100) == []


def test_keys_that_changed_between_scan_and_reading_are_found_out(tmp_path: Path) -> None:
    path, whole = tmp_path / "a.parquet", some_table(30)
    pq.write_table(whole, path)
    table = open_table(str(path))
    encoding = encoding_of(whole, "id")
    counts = np.array([[30, 0, 0]], np.int64)  # as if the scan had seen every row on one side
    plan = readings(list(table.row_groups()), counts, [0], 1, 0, 1)
    arrived = read(table, encoding, (0.5, 0.0), plan, reading.MAX_BATCH_BYTES)
    with pytest.raises(DataError, match=r"the files changed while they were read: \d+ of 30 rows of side 0"):
        fill_resident(arrived, layout(encoding), {0: 30})
    everything = read(table, encoding, (1.0, 0.0), plan, reading.MAX_BATCH_BYTES)
    with pytest.raises(DataError, match="0 of 30 rows of side 0"):
        fill_resident(everything, layout(encoding), {0: 30})


def test_elements_that_are_nan_only_in_validation_rows_are_missing_there(tmp_path: Path) -> None:
    """Whether elements may be missing is the structure of all rows, and NaN count as nulls where they are to be nulls."""
    fractions = (0.5, 0.0)
    keys, rows = pa.array(range(20)), np.arange(40.0).reshape(20, 2)
    lost = int(np.flatnonzero(split_of(hash_values(keys), *fractions) == 1)[0])

    def with_element(value: float | None) -> dict[int, ResidentRows]:
        path, values = tmp_path / f"{value}.parquet", rows.tolist()
        values[lost][0] = value
        pq.write_table(pa.table({"id": keys, "v": pa.array(values, pa.list_(pa.float64()))}), path)
        table = open_table(str(path))
        groups = list(table.row_groups())
        task = ScanTask(table.filesystem, table.schema, ("v",), "id", fractions, (), False, reading.MAX_BATCH_BYTES)
        scanned = scan_groups(task, groups)
        columns = decide_columns(table.schema, scanned.summary, "id", {}, Rules(nonfinite="null"))
        encoding = TableEncoding(table.schema, tuple(columns), "id", "null")
        plan = readings(groups, scanned.counts, [0, 1], 1, 0, 1)
        num_rows = {side: int(scanned.counts[0, side]) for side in (0, 1)}
        return fill_resident(read(table, encoding, fractions, plan, reading.MAX_BATCH_BYTES), layout(encoding), num_rows)

    by_null, by_nan = with_element(None), with_element(float("nan"))
    assert by_null[1].arrays["vector_0.valid"].tolist()[0] == [False, True]
    for side in (0, 1):
        assert_same(by_nan[side].arrays, by_null[side].arrays)


def test_a_reading_survives_json() -> None:
    counts = np.array([[4, 2, 0]], np.int64)
    (reading,) = readings([RowGroup("a.parquet", "0" * 64, 2, 7, 6)], counts, [0, 1], 2, 0, 1)
    back = json.loads(json.dumps(asdict(reading)))
    assert RowGroup(**back["group"]) == reading.group
    assert (
        [tuple(target) for target in back["targets"]] == list(reading.targets) == [(0, 0, 2, 0), (0, 2, 4, 2), (1, 0, 1, 0), (1, 1, 2, 1)]
    )
