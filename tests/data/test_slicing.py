"""Claims about data.slicing: what reading takes, measured in processes of their own, keeps within the byte budget."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.reading import RowReader
from data.table import RowGroup, open_table
from tests.running import ROOT

MIB = 2**20
MEASURED = """
import json, resource, sys
import pyarrow as pa
from data.listing import DataError
from data.reading import RowReader
from data.table import open_table

table = open_table(sys.argv[1])
found = {"rows": 0, "slices": 0, "largest": 0, "error": None}
try:
    with RowReader(table.filesystem, table.schema, int(sys.argv[2])) as reader:
        for group in table.row_groups():
            for part, rows in reader.slices(group):
                found["rows"] += rows.num_rows
                found["slices"] += 1
                found["largest"] = max(found["largest"], rows.nbytes)
except DataError as error:
    found["error"] = str(error)
found["peak"] = pa.default_memory_pool().max_memory()
found["resident"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps(found))
"""
BUDGET = 16 * MIB
WHOLE = {"data_page_size": 1 << 30, "max_rows_per_page": 1 << 30, "write_batch_size": 1 << 30, "use_dictionary": False}


def write(path: Path, columns: Mapping[str, Any] | pa.Table, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(columns if isinstance(columns, pa.Table) else pa.table(dict(columns)), path, **options)
    return path


def measured(path: Path, max_bytes: int) -> dict[str, Any]:
    """What reading all of a table takes in a process of its own: Arrow's peak and the process's (KiB), the largest slice."""
    command = [sys.executable, "-c", MEASURED, str(path), str(max_bytes)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=True)
    return dict(json.loads(done.stdout))


def slices(path: Path, schema: pa.Schema, max_bytes: int) -> list[tuple[RowGroup, pa.Table]]:
    table = open_table(str(path))
    with RowReader(table.filesystem, schema, max_bytes) as reader:
        return [found for group in table.row_groups() for found in reader.slices(group)]


def repeated(value: Any, num_rows: int) -> pa.Array:
    return pa.DictionaryArray.from_arrays(np.zeros(num_rows, np.int32), pa.array([value]))


def random_text(num_rows: int, num_bytes: int) -> list[str]:
    rng = np.random.default_rng(0)
    return [rng.bytes(num_bytes // 2).hex() for _ in range(num_rows)]


def lists_of_lengths(lengths: Sequence[int]) -> pa.Array:
    offsets = np.cumsum([0, *lengths])
    return pa.ListArray.from_arrays(offsets, np.random.default_rng(0).random(offsets[-1]))


# Row groups that decode to five times the budget or more.
LARGE: dict[str, tuple[Callable[[], Mapping[str, Any]], dict[str, Any]]] = {
    "numbers": (lambda: {f"x{i}": np.arange(2_000_000) % 9 for i in range(6)}, {}),
    "numbers larger in the file": (
        lambda: {f"x{i}": np.random.default_rng(i).random(2_000_000) for i in range(6)},
        {"use_dictionary": False},
    ),
    "text that comes once": (lambda: {"x": random_text(100_000, 800)}, {}),
    "text that comes once, packed": (lambda: {"x": random_text(100_000, 800)}, {"compression": "zstd"}),
    "long text among short": (lambda: {"x": [*["s"] * 90_000, *random_text(400, 200_000), *["s"] * 90_000]}, {"write_batch_size": 10}),
    "text by differences": (
        lambda: {"x": ["x" * MIB] * 200},
        {"use_dictionary": False, "column_encoding": "DELTA_BYTE_ARRAY", "compression": "zstd"},
    ),
    "bytes that come again": (lambda: {"x": repeated(b"x" * MIB, 1_000)}, {"store_schema": False}),
    "bytes of one length": (lambda: {"x": pa.array([b"x" * 1_000] * 100_000, pa.binary(1_000))}, {}),
    "lists of one length": (lambda: {"x": lists_of_lengths([500] * 20_000)}, {}),
    "lists ever longer": (lambda: {"x": lists_of_lengths([i // 20 for i in range(20_000)])}, {}),
}


@pytest.mark.parametrize("kind", LARGE)
def test_a_row_group_larger_than_the_budget_is_read_in_slices_that_keep_within_it(tmp_path: Path, kind: str) -> None:
    make, options = LARGE[kind]
    rows = pa.table(dict(make()))
    found = measured(write(tmp_path / "t.parquet", rows, row_group_size=rows.num_rows, **options), BUDGET)
    assert (found["error"], found["rows"]) == (None, rows.num_rows)
    assert found["largest"] <= 1.001 * BUDGET, "and a bit for each row"
    assert found["slices"] > 4
    assert found["peak"] <= 3.5 * BUDGET, "pages, and the buffers in which Arrow builds a slice"


def test_long_text_that_comes_again_is_not_expanded(tmp_path: Path) -> None:
    path = write(tmp_path / "t.parquet", {"x": repeated("x" * MIB, 20_000)})
    found = measured(path, BUDGET)
    assert (found["error"], found["rows"]) == (None, 20_000)
    assert found["peak"] < BUDGET


def test_what_is_widened_stays_within_the_budget(tmp_path: Path) -> None:
    columns = {f"x{i}": np.arange(100_000) % 100 for i in range(10)}
    path = write(tmp_path / "t.parquet", {name: values.astype(np.int8) for name, values in columns.items()}, row_group_size=100_000)
    for names in (columns, [f"missing {i}" for i in range(10)]):
        found = [rows.nbytes for _, rows in slices(path, pa.schema({name: pa.float64() for name in names}), MIB)]
        assert len(found) == 8
        assert max(found) <= 1.02 * MIB, "and a bit for each cell that may be null"


def test_slices_depend_on_the_file_and_the_budget_alone(tmp_path: Path) -> None:
    columns = {"x": np.arange(100_000), "t": random_text(100_000, 20)}
    path = write(tmp_path / "t.parquet", columns, row_group_size=50_000, data_page_size=10_000, use_dictionary=False)
    first, again = ([part for part, _ in slices(path, open_table(str(path)).schema, 100_000)] for _ in range(2))
    assert first == again
    assert len(first) > 10


BOMBS: dict[str, tuple[Callable[[], Mapping[str, Any]], dict[str, Any]]] = {
    "a page of zeros": (lambda: {"bomb": np.zeros(8 * MIB)}, WHOLE | {"compression": "zstd"}),
    "a page of one text": (lambda: {"bomb": ["x" * 1_000] * 100_000}, WHOLE | {"compression": "gzip"}),
    "a long value in a dictionary": (lambda: {"bomb": repeated("x" * 40 * MIB, 2)}, {"compression": "brotli"}),
    "a row of a long list": (lambda: {"bomb": pa.ListArray.from_arrays([0, 1, 20 * MIB], np.zeros(20 * MIB, np.int8))}, {}),
    "a page of long lists": (lambda: {"bomb": pa.ListArray.from_arrays([0, 9 * MIB, 10 * MIB], np.zeros(10 * MIB, np.int8))}, {}),
}


@pytest.mark.parametrize("kind", BOMBS)
def test_a_small_file_that_decodes_beyond_the_budget_is_refused_before_it_is_decoded(tmp_path: Path, kind: str) -> None:
    make, options = BOMBS[kind]
    rows = pa.table(dict(make()))
    rows = rows.add_column(0, "good", pa.array(np.zeros(rows.num_rows, np.bool_)))
    path = write(tmp_path / "t.parquet", rows, row_group_size=rows.num_rows, **options)
    found = measured(path, BUDGET)
    assert found["error"].startswith(f"{path}: row group 0 cannot be decoded within data.max_batch_bytes:\n  column 'bomb': ")
    assert re.search(r"data\.max_batch_bytes(, which)? is 16777216", found["error"])
    assert "'good'" not in found["error"]
    assert found["slices"] == 0
    assert found["peak"] < BUDGET


def test_lists_packed_so_tightly_that_one_row_may_hold_them_all_are_refused(tmp_path: Path) -> None:
    rows = pa.table({"good": range(40_000), "bomb": pa.ListArray.from_arrays(np.arange(40_001) * 1_000, np.zeros(40_000_000, np.int8))})
    path = write(tmp_path / "t.parquet", rows, row_group_size=40_000, max_rows_per_page=1_000, compression="zstd")
    found = measured(path, BUDGET)
    assert found["error"].startswith(f"{path}: row group 0 cannot be read: column 'bomb': ")
    assert "data.max_batch_bytes is 16777216: write row groups of fewer rows, or raise it" in found["error"]
    assert found["peak"] < BUDGET
    assert measured(path, 512 * MIB)["rows"] == 40_000


@pytest.mark.slow  # test_memory.py measures the same with statistics besides
def test_a_table_ten_times_as_large_is_opened_and_read_in_the_same_memory(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pixels = pa.FixedSizeListArray.from_arrays(pa.array(rng.integers(0, 256, 30_000 * 64, np.uint8)), 64)
    columns = {f"x{i}": rng.random(30_000) for i in range(10)} | {"text": random_text(30_000, 30), "pixels": pixels}
    for number in range(40):
        for folder in ("large", "small")[: 1 + (number < 4)]:
            write(tmp_path / folder / f"{number}.parquet", columns, row_group_size=10_000)
    small, large = (measured(tmp_path / folder, BUDGET) for folder in ("small", "large"))
    assert (small["error"], large["error"]) == (None, None)
    assert large["rows"] == 10 * small["rows"] == 1_200_000
    assert large["resident"] < 1.2 * small["resident"]
    assert large["peak"] < 1.2 * small["peak"]
