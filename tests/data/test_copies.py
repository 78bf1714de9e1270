"""Claims about data.copies, with real Ray tasks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from decimal import Decimal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray

from data import copies
from data.copies import CompareTask, count_copies, count_known, hash_rows, suspected_digests
from data.table import open_table
from workflows.leakage import num_copies


def table(num_rows: int, seed: int = 0) -> pa.Table:
    rng = np.random.default_rng(seed)
    mask = rng.random((2, num_rows)) < 0.3
    return pa.table(
        {
            "x": pa.array(rng.normal(size=num_rows), mask=mask[0]),
            "small": pa.array(rng.integers(0, 50, num_rows), pa.int16()),
            "town": pa.array(rng.choice(["Bonn", "Ulm", ""], num_rows), mask=mask[1]),
            "flag": rng.random(num_rows) < 0.5,
            "moment": pa.array([datetime(2024, 1, 1 + int(day)) for day in rng.integers(0, 28, num_rows)], pa.timestamp("us")),
            "price": pa.array([Decimal(int(cents)) / 100 for cents in rng.integers(0, 999, num_rows)], pa.decimal128(9, 2)),
            "vector": pa.array(rng.integers(0, 3, (num_rows, 4)).tolist(), pa.list_(pa.uint8(), 4)),
        }
    )


def test_rows_have_one_hash_if_and_only_if_they_are_equal() -> None:
    rows = table(3000).select(["small", "town", "flag"])
    hashes = hash_rows(rows)
    of: dict[tuple[object, ...], set[int]] = {}
    for row, number in zip(rows.to_pylist(), hashes.tolist(), strict=True):
        of.setdefault(tuple(row.values()), set()).add(number)
    assert all(len(numbers) == 1 for numbers in of.values())
    assert len(set().union(*of.values())) == len(of)


def test_every_column_order_and_place_matters() -> None:
    rows = table(500)
    assert len(np.unique(hash_rows(rows))) == 500
    for name in rows.column_names:
        assert (hash_rows(rows.drop_columns([name])) != hash_rows(rows)).all()
    lists = pa.table({"v": [[1, 2], [2, 1], [1], [], [1, 2, 0], None, [None], [0]]})
    assert len(np.unique(hash_rows(lists))) == 8


def test_hashes_do_not_depend_on_dictionaries_chunks_and_offsets() -> None:
    rows = table(200)
    town = pa.chunked_array(
        [rows["town"].combine_chunks().slice(0, 90).dictionary_encode(), rows["town"].combine_chunks().slice(90).dictionary_encode()]
    )
    other = pa.concat_tables([rows.slice(0, 33), rows.slice(33)]).set_column(rows.column_names.index("town"), "town", town)
    np.testing.assert_array_equal(hash_rows(other), hash_rows(rows))
    np.testing.assert_array_equal(hash_rows(rows.slice(17, 40)), hash_rows(rows)[17:57])
    zeros = pa.table({"x": [0.0, -0.0]})
    assert len(np.unique(hash_rows(zeros))) == 1


TICKS = [2**62, 1, -(2**62), 10**15]


@pytest.mark.parametrize(
    "column",
    [
        *(pa.array(TICKS, pa.int64()).cast(pa.timestamp(unit, zone)) for unit in ("s", "us", "ns") for zone in (None, "Europe/Berlin")),
        pa.array([2**31 - 1, 1, -(2**31), 10**6], pa.int32()).cast(pa.date32()),
        pa.array([[tick, None] for tick in TICKS], pa.list_(pa.int64())).cast(pa.list_(pa.timestamp("us"))),
        pa.array(TICKS, pa.int64()).cast(pa.timestamp("us")).dictionary_encode(),
    ],
    ids=lambda column: str(column.type),
)
def test_points_in_time_beyond_the_calendar_are_compared_too(column: pa.Array) -> None:
    rows = pa.table({"x": column})
    assert num_copies(rows, rows) == 4
    assert num_copies(rows, rows.slice(1, 2)) == 2


@pytest.mark.parametrize("kind", [pa.float16(), pa.float32(), pa.float64()], ids=str)
def test_both_zeros_are_one_number_also_in_lists(kind: pa.DataType) -> None:
    columns = [pa.array([zero, 1, None], kind) for zero in (0.0, -0.0)]
    assert num_copies(*(pa.table({"x": column}) for column in columns)) == 3
    for of in (pa.list_(kind), pa.list_(kind, 2), pa.large_list(kind)):
        lists = [pa.array([[zero, 1], None, [None, zero], [2, 3]], of) for zero in (0.0, -0.0)]
        assert num_copies(*(pa.table({"x": column}) for column in lists)) == 4
        assert num_copies(pa.table({"x": lists[0]}).slice(1), pa.table({"x": lists[1]}).slice(0, 3)) == 2
    assert num_copies(pa.table({"x": columns[0]}), pa.table({"x": pa.array([0.5, 2, 3], kind)})) == 0


@pytest.fixture
def connected(ray_address: str) -> Iterator[None]:
    ray.init(address=ray_address, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.mark.usefixtures("connected")
def test_copies_are_counted_as_sets_of_rows_count_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, fresh = table(2000), table(1500, seed=1)
    planted = pa.concat_tables([fresh.slice(0, 700), real.slice(100, 250), real.slice(100, 3), fresh.slice(700)])
    for name, rows, size in (("real", real, 333), ("made", planted, 100)):
        (tmp_path / name).mkdir()
        pq.write_table(rows.slice(0, 1000), tmp_path / name / "a.parquet", row_group_size=size)
        pq.write_table(rows.slice(1000), tmp_path / name / "b.parquet", row_group_size=size)
    made, there = (open_table(str(tmp_path / name)) for name in ("made", "real"))
    assert count_copies(made, there, real.schema) == 253
    assert count_copies(there, made, real.schema) == 250
    few = ["small", "town", "flag"]
    known = {tuple(row.values()) for row in real.select(few).to_pylist()}
    expected = sum(tuple(row.values()) in known for row in planted.select(few).to_pylist())
    schema = pa.schema([real.schema.field(name) for name in few])
    assert 253 < expected < len(planted)
    assert count_copies(made, there, schema) == expected
    monkeypatch.setattr(copies, "MAX_HELD_ROWS", 150)
    assert count_copies(made, there, schema) == expected


def test_rows_of_one_hash_that_differ_are_no_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SHA-256 decides: by a hash that is always 0, every row would be a copy."""
    monkeypatch.setattr(copies, "hash_rows", lambda rows: np.zeros(rows.num_rows, np.uint64))
    tasks = {}
    for name, rows in (("made", table(1)), ("real", table(1, seed=1)), ("same", table(1))):
        pq.write_table(rows, tmp_path / f"{name}.parquet")
        opened = open_table(str(tmp_path / f"{name}.parquet"))
        one = np.zeros(1, np.uint64)
        tasks[name] = CompareTask(opened.filesystem, opened.schema, 2**28, one, frozenset()), list(opened.row_groups())
    for name, expected in (("real", 0), ("same", 1)):
        digests = frozenset(suspected_digests(*tasks[name]))
        assert len(digests) == 1
        made, groups = tasks["made"]
        assert count_known(replace(made, digests=digests), groups) == expected
