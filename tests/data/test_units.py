"""Claims about data.units: what is done is not done again, and what is not, is."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import fs

from data.footer import DataFile
from data.output import output_name
from data.table import Table, open_table
from data.units import units_to_do


def write(path: Path, num_rows: int, row_group_size: int = 1000) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"x": list(range(num_rows))}), path, row_group_size=row_group_size)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path / "a.parquet", 5)
    write(tmp_path / "below" / "b.parquet", 7, row_group_size=3)
    return tmp_path


def manifest(table: Table) -> dict[str, Any]:
    """Returns what a manifest says after every file is done."""
    units = {unit["output"]: {**unit, "num_rows": sum(unit["row_groups"])} for unit in units_to_do(table, {}, set())}
    restored: dict[str, Any] = json.loads(json.dumps(units))
    return restored


def inputs(units: list[dict[str, Any]]) -> list[str]:
    return [unit["input"] for unit in units]


def test_without_a_manifest_every_file_is_a_unit_in_the_tables_order(folder: Path) -> None:
    table = open_table(str(folder))
    units = units_to_do(table, {}, set())
    assert units == [
        {
            "output": output_name(file.relative_path),
            "path": str(folder / file.relative_path),
            "input": file.relative_path,
            "identity": file.identity,
            "num_bytes": os.path.getsize(file.path),
            "row_groups": row_groups,
            "partition": "",
        }
        for file, row_groups in zip(table.files, [[5], [3, 3, 1]], strict=True)
    ]
    assert inputs(units) == ["a.parquet", "below/b.parquet"]


def test_an_unchanged_file_with_its_output_is_skipped(folder: Path) -> None:
    table = open_table(str(folder))
    done = manifest(table)
    assert units_to_do(table, done, set(done)) == []
    assert units_to_do(open_table(str(folder)), done, [*done, "_SUCCESS", "something else.parquet"]) == []


def test_a_file_that_was_written_again_as_it_was_is_skipped(folder: Path) -> None:
    done = manifest(open_table(str(folder)))
    write(folder / "a.parquet", 5)
    os.utime(folder / "a.parquet", (0, 0))
    assert units_to_do(open_table(str(folder)), done, set(done)) == []


@pytest.mark.parametrize("change", ["rows", "row groups"])
def test_a_file_of_another_content_is_done_again(folder: Path, change: str) -> None:
    done = manifest(open_table(str(folder)))
    write(folder / "a.parquet", 6 if change == "rows" else 5, row_group_size=1000 if change == "rows" else 2)
    units = units_to_do(open_table(str(folder)), done, set(done))
    assert inputs(units) == ["a.parquet"]
    assert units[0]["row_groups"] == ([6] if change == "rows" else [2, 2, 1])
    assert units[0]["identity"] != done[units[0]["output"]]["identity"]


def test_a_file_whose_output_is_gone_is_done_again(folder: Path) -> None:
    done = manifest(open_table(str(folder)))
    lost = output_name("below/b.parquet")
    assert inputs(units_to_do(open_table(str(folder)), done, set(done) - {lost})) == ["below/b.parquet"]


def test_an_output_that_no_manifest_names_is_not_trusted(folder: Path) -> None:
    done = manifest(open_table(str(folder)))
    known = {name: record for name, record in done.items() if name == output_name("a.parquet")}
    assert inputs(units_to_do(open_table(str(folder)), known, set(done))) == ["below/b.parquet"]


def test_a_new_file_only_adds(folder: Path) -> None:
    done = manifest(open_table(str(folder)))
    write(folder / "0.parquet", 2)
    write(folder / "z" / "a.parquet", 2)
    assert inputs(units_to_do(open_table(str(folder)), done, set(done))) == ["0.parquet", "z/a.parquet"]


def test_a_file_that_is_gone_is_no_unit_and_no_error(folder: Path) -> None:
    done = manifest(open_table(str(folder)))
    (folder / "a.parquet").unlink()
    assert units_to_do(open_table(str(folder)), done, set(done)) == []


def test_a_file_that_was_moved_is_done_under_its_new_name(folder: Path) -> None:
    done = manifest(open_table(str(folder)))
    (folder / "a.parquet").rename(folder / "c.parquet")
    units = units_to_do(open_table(str(folder)), done, set(done))
    assert [(unit["input"], unit["output"]) for unit in units] == [("c.parquet", output_name("c.parquet"))]


def test_a_unit_says_which_folders_spell_out_columns(tmp_path: Path) -> None:
    write(tmp_path / "year=2024" / "a.parquet", 2)
    (unit,) = units_to_do(open_table(str(tmp_path)), {}, set())
    assert unit["partition"] == "year=2024/a.parquet"


@given(states=st.lists(st.sampled_from(["done", "changed", "lost", "unlisted", "new"]), max_size=12))
def test_what_is_to_do_is_everything_but_what_is_done(states: list[str]) -> None:
    files = tuple(DataFile(f"/t/{i}.parquet", f"{i}.parquet", 10, (3,), f"{i:064x}") for i in range(len(states)))
    table = Table(fs.LocalFileSystem(), files, pa.schema([]), 0)
    named = list(zip(files, states, strict=True))
    done = {
        output_name(file.relative_path): {"identity": "other" if state == "changed" else file.identity}
        for file, state in named
        if state in ("done", "changed", "lost")
    }
    present = {output_name(file.relative_path) for file, state in named if state in ("done", "changed", "unlisted")}
    assert inputs(units_to_do(table, done, present)) == [file.relative_path for file, state in named if state != "done"]
