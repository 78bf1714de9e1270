"""Claims about data.scan: one pass that gives the same bits on any cluster, and finds keys that come twice."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from hypothesis import example, given
from hypothesis import strategies as st

import data.scan
from data.columns import Rules, decide_columns
from data.listing import DataError
from data.scan import ScanTask, refuse_duplicates, runs, scan, scan_groups, suspected_rows
from data.split import TRAIN, row_hashes, split_of
from data.statistics import ColumnSummary, TableSummary, merge_all
from data.table import RowGroup, Table, open_table

FRACTIONS = (0.15, 0.1)


@pytest.fixture(scope="module")
def cluster(ray_address: str) -> Iterator[None]:
    ray.init(address=ray_address, log_to_driver=False)
    yield
    ray.shutdown()


def bits(summary: TableSummary) -> dict[str, Any]:
    """Returns a summary as bytes and Python values, so that == compares every bit."""
    return {"rows": summary.num_rows} | {name: column_bits(column) for name, column in summary.columns.items()}


def column_bits(column: ColumnSummary) -> dict[str, Any]:
    parts = ("moments", "sketch", "counts", "distinct", "repeated")
    record = {name: value for name, value in vars(column).items() if name not in parts}
    entries, repeated = (part.entries if part else None for part in (column.counts, column.repeated))
    arrays = {
        "moments": list(vars(column.moments).values()) if column.moments else [],
        "sketch": [column.sketch.bins, column.sketch.counts] if column.sketch else [],
        "distinct": [column.distinct.registers] if column.distinct else [],
        "counts": [entries.counts] if entries else [],
        "repeated": [repeated.counts] if repeated else [],
    }
    values = {"values": entries and entries.values, "repeated_values": repeated and repeated.values}
    return record | {name: [array.tobytes() for array in found] for name, found in arrays.items()} | values


def write(folder: Path, tables: Sequence[pa.Table], row_group_size: int = 1000) -> Table:
    folder.mkdir(exist_ok=True)
    for number, table in enumerate(tables):
        pq.write_table(table, folder / f"part-{number}.parquet", row_group_size=row_group_size)
    return open_table(str(folder))


def all_kinds(num_rows: int, seed: int) -> pa.Table:
    random = np.random.default_rng(seed)
    holes = random.random(num_rows) < 0.1
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(random.normal(size=num_rows * 3).astype(np.float32)), 3)
    return pa.table(
        {
            "id": pa.array(np.arange(num_rows) + seed * 10**6).cast(pa.string()),
            "x": pa.array(random.normal(1e3, 1, num_rows), mask=holes),
            "heavy": random.lognormal(0, 3, num_rows),
            "nan": np.where(holes, np.nan, random.normal(size=num_rows)),
            "few": random.integers(0, 9, num_rows).astype(np.int8),
            "many": pa.array(random.integers(-(2**60), 2**60, num_rows), mask=holes),
            "text": pa.array(random.integers(0, 3000, num_rows)).cast(pa.string()),
            "coded": pa.array(random.integers(0, 50, num_rows)).cast(pa.string()).dictionary_encode(),
            "flag": random.random(num_rows) < 0.5,
            "when": pa.array(random.integers(0, 2**50, num_rows)).cast(pa.timestamp("us", "UTC")),
            "price": pa.array(random.integers(0, 9999, num_rows)).cast(pa.decimal128(24, 2)),
            "vector": vectors,
            "pixels": pa.FixedSizeListArray.from_arrays(pa.array(random.integers(0, 256, num_rows * 16).astype(np.uint8)), 16),
            "empty": pa.nulls(num_rows, pa.float64()),
        }
    )


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Table:
    folder = tmp_path_factory.mktemp("scan")
    return write(folder, [all_kinds(num_rows, seed) for seed, num_rows in enumerate([2500, 1, 4321, 999, 1000, 1700])], 700)


def task_of(table: Table, key: str | None, fractions: tuple[float, float] = FRACTIONS, compare: bool = False) -> ScanTask:
    names = tuple(name for name in table.schema.names if name != key)
    schema = pa.schema([table.schema.field(name) for name in [*names, *([key] if key else [])]])
    return ScanTask(table.filesystem, schema, names, key, fractions, (), compare, 2**28)


def in_process(table: Table, key: str | None, fractions: tuple[float, float] = FRACTIONS) -> tuple[TableSummary, np.ndarray[Any, Any]]:
    """Returns what one process finds that takes the runs one after the other."""
    found = [scan_groups(task_of(table, key, fractions), run) for run in runs(list(table.row_groups()))]
    return merge_all(part.summary for part in found), np.concatenate([part.counts for part in found])


@pytest.mark.parametrize("key", [None, "id"])
@pytest.mark.parametrize("max_tasks", [1024, 3])
def test_the_summary_is_the_same_to_the_last_bit_on_a_cluster_and_in_one_process(
    table: Table, cluster: None, key: str | None, max_tasks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data.scan, "MAX_TASKS", max_tasks)
    expected, expected_counts = in_process(table, key)
    for _ in range(2):
        summary, counts = scan(table, key, FRACTIONS)
        assert bits(summary) == bits(expected)
        assert (counts == expected_counts).all()


def test_the_decisions_are_the_same_for_any_number_of_runs(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs are a function of the table, so this is not needed for equal bits; moments differ in their last ones, nothing else does."""
    decided = []
    for max_tasks in (1, 4, 1024):
        monkeypatch.setattr(data.scan, "MAX_TASKS", max_tasks)
        decided.append(decide_columns(table.schema, in_process(table, "id")[0], "id", {}, Rules(nonfinite="null")))
    for columns in decided[1:]:
        for column, other in zip(columns, decided[0], strict=True):
            np.testing.assert_allclose([*column.mean, column.scale], [*other.mean, other.scale], rtol=1e-12)
            assert replace(column, mean=other.mean, scale=other.scale) == other


@pytest.mark.parametrize("key", [None, "id"])
def test_the_training_rows_are_summarised_and_all_sides_counted(table: Table, key: str | None) -> None:
    summary, counts = in_process(table, key)
    training = []
    for group, sides_counted in zip(table.row_groups(), counts, strict=True):
        rows = pq.ParquetFile(group.path).read_row_group(group.index)
        sides = split_of(row_hashes(rows, group, key), *FRACTIONS)
        assert np.bincount(sides, minlength=3).tolist() == sides_counted.tolist()
        training.append(rows.filter(pa.array(sides == TRAIN)))
    rows = pa.concat_tables(training, promote_options="default")
    assert summary.num_rows == tuple(counts.sum(0))
    assert summary.num_rows[TRAIN] == len(rows)
    for name in ("x", "many", "heavy"):
        values = rows[name].drop_null().to_numpy().astype(np.longdouble)
        moments = summary.columns[name].moments
        assert moments is not None
        assert (summary.columns[name].num_values, summary.columns[name].num_nulls) == (len(values), rows[name].null_count)
        np.testing.assert_allclose(
            moments.base[0] + moments.mean[0], float(values.mean()), rtol=1e-12, atol=abs(float(values.std())) * 1e-12
        )
        np.testing.assert_allclose(moments.squares[0], float(((values - values.mean()) ** 2).sum()), rtol=1e-12)
    assert summary.columns["nan"].num_nonfinite == np.isnan(rows["nan"].to_numpy()).sum()
    assert summary.columns["text"].num_distinct == len(rows["text"].unique())
    assert summary.columns["coded"].counts is not None
    assert summary.columns["coded"].counts.total == len(rows)


def test_only_rows_are_counted_where_that_is_asked(table: Table, cluster: None) -> None:
    for key in (None, "id"):
        summary, counts = scan(table, key, FRACTIONS, only_rows=True)
        assert summary.columns == {}
        assert (counts == in_process(table, key)[1]).all()
        assert summary.num_rows == tuple(counts.sum(0))


def test_the_first_file_with_a_nonfinite_training_value_is_named(tmp_path: Path) -> None:
    clean, dirty = pa.table({"x": np.arange(50.0)}), pa.table({"x": np.where(np.arange(50) > 3, np.nan, 1.0)})
    table = write(tmp_path / "t", [clean, dirty, dirty])
    assert in_process(table, None)[0].columns["x"].first_nonfinite == str(tmp_path / "t" / "part-1.parquet")


@pytest.mark.parametrize("bad", [None, float("nan"), float("inf")])
def test_a_missing_element_is_noticed_whatever_the_side_of_its_row(tmp_path: Path, bad: float | None) -> None:
    rows = [[1.0, 2.0]] * 40
    sides = sides_of_rows(write(tmp_path / "a", [pa.table({"v": pa.array(rows, pa.list_(pa.float32())), "id": np.arange(40)})]))
    for row in (sides.index(0), sides.index(1), sides.index(2)):
        cells = [*rows[:row], [3.0, bad], *rows[row + 1 :]]
        table = write(tmp_path / f"b{row}", [pa.table({"v": pa.array(cells, pa.list_(pa.float32())), "id": np.arange(40)})])
        summary = in_process(table, "id")[0].columns["v"]
        assert summary.num_missing_elements == 1
        assert summary.num_nonfinite == (bad is not None and sides[row] == TRAIN)


def test_lists_of_another_length_are_noticed_whatever_the_side_of_their_row(tmp_path: Path) -> None:
    rows = [[1, 2]] * 40
    sides = sides_of_rows(write(tmp_path / "a", [pa.table({"v": rows, "id": np.arange(40)})]))
    row = sides.index(1)
    table = write(tmp_path / "b", [pa.table({"v": [*rows[:row], [3, 4, 5], *rows[row + 1 :]], "id": np.arange(40)})])
    assert in_process(table, "id")[0].columns["v"].sizes == {2, 3}


def sides_of_rows(table: Table) -> list[int]:
    (group,) = table.row_groups()
    sides: list[int] = split_of(row_hashes(pq.read_table(group.path), group, "id"), *FRACTIONS).tolist()
    assert set(sides) == {0, 1, 2}
    return sides


def test_row_groups_without_rows_are_counted_as_nothing(tmp_path: Path) -> None:
    schema = pa.schema({"id": pa.int64(), "x": pa.float64()})
    full = pa.table({"id": np.arange(90), "x": np.arange(90) / 7})
    empty = schema.empty_table()
    (tmp_path / "t").mkdir()
    for name, tables in (("a", [empty, full, empty]), ("b", [empty, empty, full.set_column(0, "id", pa.array(np.arange(90, 180)))])):
        with pq.ParquetWriter(tmp_path / "t" / f"{name}.parquet", schema) as writer:
            for rows in tables:
                writer.write_table(rows)
    table = open_table(str(tmp_path / "t"))
    assert [group.num_rows for group in table.row_groups()] == [0, 90, 0, 0, 0, 90]
    for key in (None, "id"):
        summary, counts = in_process(table, key, (0.0, 0.0))
        assert counts.tolist() == [[rows, 0, 0] for rows in (0, 90, 0, 0, 0, 90)]
        assert summary.columns["x"].num_values == 180


def test_a_table_whose_rows_are_all_held_out_has_an_empty_summary(tmp_path: Path) -> None:
    table = write(tmp_path / "t", [pa.table({"id": [1, 2], "x": [1.0, 2.0], "s": ["a", "b"]})])
    summary, counts = in_process(table, "id", (1.0, 0.0))
    assert counts.tolist() == [[0, 2, 0]]
    assert bits(summary) == bits(TableSummary((0, 2, 0), {"x": ColumnSummary(), "s": ColumnSummary()}))


def test_integers_are_counted_where_they_are_to_be_categories(tmp_path: Path, cluster: None) -> None:
    numbers = np.arange(20_000)
    table = write(tmp_path / "t", [pa.table({"a": numbers, "b": numbers})], 20_000)
    summary, _ = scan(table, None, (0.0, 0.0), categorical=["b"])
    assert summary.columns["a"].counts is not None
    assert summary.columns["b"].counts is not None
    assert not summary.columns["a"].counts.exact
    assert summary.columns["b"].counts.num_distinct == 20_000


def group(number: int, num_rows: int) -> RowGroup:
    return RowGroup(f"file-{number}", f"{number:064x}", 0, 0, num_rows)


@example(sizes=[0, 5, 5], max_tasks=2)
@given(sizes=st.lists(st.integers(0, 10**7), min_size=1, max_size=60).filter(any), max_tasks=st.integers(1, 20))
def test_runs_cover_every_row_group_once_in_order_and_are_few(sizes: list[int], max_tasks: int) -> None:
    groups = [group(number, num_rows) for number, num_rows in enumerate(sizes)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data.scan, "MAX_TASKS", max_tasks)
        found = runs(groups)
        assert runs(list(groups)) == found
    assert list(chain.from_iterable(found)) == groups
    assert len(found) <= max_tasks
    assert all(found)
    share = sum(sizes) / min(max_tasks, len(sizes))
    for run in found:
        assert sum(item.num_rows for item in run[1:]) <= share  # beside the group that began before the share did


def test_a_huge_table_has_as_many_runs_as_there_may_be_of_even_sizes() -> None:
    found = runs([group(number, 100_000) for number in range(10_240)])
    assert len(found) == data.scan.MAX_TASKS
    assert {len(run) for run in found} == {10}


KEYS: dict[str, Any] = {
    "integer": pa.array([10, 11, 12, 13, 14, 15]),
    "string": pa.array(["a", "b", "c", "d", "ü", ""]),
    "dictionary": pa.array(["a", "b", "c", "d", "ü", ""]).dictionary_encode(),
}


@pytest.mark.parametrize("keys", KEYS.values(), ids=KEYS)
def test_a_key_that_comes_twice_is_refused_with_keys_files_and_rows(tmp_path: Path, cluster: None, keys: pa.Array) -> None:
    within = keys.take(pa.array([0, 1, 2, 1]))
    across = keys.take(pa.array([3, 4, 5, 0]))
    table = write(tmp_path / "t", [pa.table({"id": rows, "x": [1.0, 2.0, 3.0, 4.0]}) for rows in (within, across)], 3)
    with pytest.raises(DataError) as caught:
        scan(table, "id", FRACTIONS, max_unique_check_rows=8)
    first, second = tmp_path / "t" / "part-0.parquet", tmp_path / "t" / "part-1.parquet"
    message, *examples = str(caught.value).splitlines()
    assert message == ("column 'id' is the key, and 2 rows repeat one that another row has; name another by data.key, or none:")
    assert sorted(examples) == sorted(
        [f"  {keys[1].as_py()!r}: {first} row 1 and {first} row 3", f"  {keys[0].as_py()!r}: {first} row 0 and {second} row 3"]
    )


def test_keys_are_not_compared_beyond_the_limit(tmp_path: Path, cluster: None) -> None:
    table = write(tmp_path / "t", [pa.table({"id": [1, 1, 2], "x": [1.0, 2.0, 3.0]})])
    _, counts = scan(table, "id", (0.0, 0.0), max_unique_check_rows=2)
    assert counts.tolist() == [[3, 0, 0]]
    with pytest.raises(DataError, match="1 rows repeat"):
        scan(table, "id", (0.0, 0.0), max_unique_check_rows=3)


def test_keys_that_all_differ_are_accepted(table: Table, cluster: None) -> None:
    summary, _ = scan(table, "id", FRACTIONS, max_unique_check_rows=10**6)
    assert bits(summary) == bits(in_process(table, "id")[0])


def test_a_table_of_one_key_is_refused_with_a_few_examples(tmp_path: Path, cluster: None) -> None:
    rows = pa.table({"id": ["same"] * 2500, "x": np.arange(2500.0)})
    with pytest.raises(DataError) as caught:
        scan(write(tmp_path / "t", [rows, rows]), "id", FRACTIONS, max_unique_check_rows=10**6)
    assert "4999 rows repeat" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 2
    rows = pa.table({"id": np.arange(2500), "x": np.arange(2500.0)})
    with pytest.raises(DataError) as caught:
        scan(write(tmp_path / "u", [rows, rows]), "id", FRACTIONS, max_unique_check_rows=10**6)
    assert "2500 rows repeat" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1 + 5


def thue_morse(length: int, first: str, second: str) -> str:
    return "".join((first, second)[number.bit_count() % 2] for number in range(length))


def test_different_keys_of_one_hash_are_no_duplicates(tmp_path: Path, cluster: None) -> None:
    """A sum of powers modulo 2^64 gives a Thue-Morse word of 2^11 letters and its complement one hash, whatever the base."""
    twins = [thue_morse(2048, "a", "b"), thue_morse(2048, "b", "a")]
    table = write(tmp_path / "t", [pa.table({"id": [*twins, "c"], "x": [1.0, 2.0, 3.0]})])
    hashes = scan_groups(task_of(table, "id", compare=True), list(table.row_groups())).keys
    assert hashes[0] == hashes[1] != hashes[2]
    scan(table, "id", FRACTIONS, max_unique_check_rows=3)
    table = write(tmp_path / "u", [pa.table({"id": [*twins, "c", twins[1]], "x": [1.0, 2.0, 3.0, 4.0]})])
    with pytest.raises(DataError, match=r"row 1 and .*row 3") as caught:
        scan(table, "id", FRACTIONS, max_unique_check_rows=4)
    assert "row 0" not in str(caught.value)


def test_a_hash_that_no_two_rows_have_is_no_duplicate(tmp_path: Path, cluster: None) -> None:
    table = write(tmp_path / "t", [pa.table({"id": [1, 2, 3], "x": [1.0, 2.0, 3.0]})])
    groups = list(table.row_groups())
    hashes = scan_groups(task_of(table, "id", compare=True), groups).keys
    task = task_of(table, "id")
    assert suspected_rows(task, (hashes[1:2], groups)) == [(2, f"{groups[0].path} row 1")]
    refuse_duplicates(task, groups, np.append(hashes, hashes[1]))
    twice = write(tmp_path / "u", [pa.table({"id": [1, 2, 2], "x": [1.0, 2.0, 3.0]})])
    with pytest.raises(DataError, match=r"row 1 and .*row 2"):  # the same hashes, and this time two rows
        refuse_duplicates(task_of(twice, "id"), list(twice.row_groups()), np.append(hashes, hashes[1]))


def test_a_null_key_is_refused_with_file_and_rows(tmp_path: Path, cluster: None) -> None:
    keys = [*range(1200), None, 1201, None]
    table = write(
        tmp_path / "t", [pa.table({"id": np.arange(5000, 5003), "x": [1.0, 2.0, 3.0]}), pa.table({"id": keys, "x": np.arange(1203.0)})]
    )
    with pytest.raises(DataError) as caught:
        scan(table, "id", FRACTIONS)
    assert str(caught.value) == (
        f"{tmp_path / 't' / 'part-1.parquet'}: column 'id' is the key and has nulls (in rows 1200, 1202, ..); every row needs its key"
    )


def test_a_key_that_is_not_there_is_refused_with_what_is() -> None:
    table = Table(pa.fs.LocalFileSystem(), (), pa.schema({"a": pa.int64()}))
    with pytest.raises(DataError, match=r"column 'id' \(data\.key\) is not in the table; it has \['a'\]"):
        scan(table, "id", FRACTIONS)
