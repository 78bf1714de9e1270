"""Claims about data.units: what is to be done follows from input and output alone, and a content that did not change is not done again."""

from __future__ import annotations

import json
import os
import shutil
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.content import content_of_file
from data.footer import DataFile
from data.output import OutputError, OutputFolder, output_name
from data.table import open_table
from data.units import Record, State, finished, footer_line, state_of, units_of

COLUMNS = ["x"]
SCHEMA = pa.schema([("z", pa.int64())])
BY = "this model"


def write(path: Path, num_rows: int, row_group_size: int = 1000, first: int = 0, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = pa.table({"x": list(range(first, first + num_rows)), "other": [0.0] * num_rows})
    pq.write_table(rows, path, row_group_size=row_group_size, **options)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path / "in/a.parquet", 5)
    write(tmp_path / "in/below/b.parquet", 7, row_group_size=3)
    return tmp_path


def look(folder: Path, known: dict[str, Record], partition: str | None = None, made_by: str = BY) -> State:
    table = open_table(str(folder / "in"), COLUMNS, partition=partition)
    return state_of(table, OutputFolder.open(str(folder / "out")), known, COLUMNS, partition, made_by)


def carry_out(folder: Path, state: State) -> dict[str, Record]:
    """Does what is to be done as an actor does, and returns what a manifest then holds."""
    output, filesystem = OutputFolder.open(str(folder / "out")), open_table(str(folder / "in")).filesystem
    records = dict(state.done)
    for unit in units_of(state.to_do, 1000, BY):
        with output.staged(unit.output, SCHEMA) as writer:
            writer.write_table(pa.table({"z": range(unit.num_rows)}, SCHEMA))
            record = finished(unit, BY, {}, []) | {"content": content_of_file(filesystem, unit.file, COLUMNS)}
            writer.annotate(footer_line(record))
        records[unit.output] = record | output.stat(unit.output)
    restored: dict[str, Record] = json.loads(json.dumps(records))
    return restored


def inputs(state: State) -> list[str]:
    return [file.relative_path for file in state.to_do]


@pytest.fixture
def done(folder: Path) -> dict[str, Record]:
    return carry_out(folder, look(folder, {}))


def test_at_first_everything_is_to_be_done_in_the_tables_order(folder: Path) -> None:
    state = look(folder, {})
    assert inputs(state) == ["a.parquet", "below/b.parquet"]
    assert state.done == state.vanished == {}


def test_what_is_done_is_not_done_again(folder: Path, done: dict[str, Record]) -> None:
    state = look(folder, done)
    assert (inputs(state), state.done) == ([], done)


def test_a_manifest_that_was_lost_with_its_job_is_made_good_by_the_footers(folder: Path, done: dict[str, Record]) -> None:
    state = look(folder, {})
    assert (inputs(state), state.done) == ([], done)


def test_another_models_output_is_not_taken_for_this_ones(folder: Path, done: dict[str, Record]) -> None:
    assert inputs(look(folder, {}, made_by="another")) == ["a.parquet", "below/b.parquet"]


def test_what_the_manifest_says_of_another_model_does_not_count_but_for_files_elsewhere(folder: Path, done: dict[str, Record]) -> None:
    state = look(folder, done, made_by="another")
    assert (inputs(state), state.done) == (["a.parquet", "below/b.parquet"], {})
    elsewhere = look(folder, done, partition="below", made_by="another")
    assert (inputs(elsewhere), list(elsewhere.done)) == (["below/b.parquet"], ["a.parquet"])


def test_a_file_that_was_written_again_as_it_was_is_not_done_again(folder: Path, done: dict[str, Record]) -> None:
    write(folder / "in/a.parquet", 5)
    os.utime(folder / "in/a.parquet", (0, 0))
    state = look(folder, done)
    assert inputs(state) == []
    assert state.done["a.parquet"] == done["a.parquet"] | {"mtime_ns": 0}


def test_a_column_that_is_not_read_changes_nothing(folder: Path, done: dict[str, Record]) -> None:
    rows = pq.read_table(folder / "in/a.parquet")
    pq.write_table(rows.append_column("new", pa.array(["text"] * 5)).drop_columns("other"), folder / "in/a.parquet")
    state = look(folder, done)
    assert inputs(state) == []
    assert state.done["a.parquet"]["identity"] != done["a.parquet"]["identity"]


def test_a_file_of_that_name_in_another_table_replaces_nothing(folder: Path, done: dict[str, Record]) -> None:
    (folder / "in").rename(folder / "yesterday")
    write(folder / "in/a.parquet", 5, first=100)
    here = {name: record | {"path": record["path"].replace("/in/", "/yesterday/")} for name, record in done.items()}
    with pytest.raises(OutputError, match=rf"holds the rows of {folder}/yesterday/a.parquet, which those of {folder}/in/a.parquet would"):
        look(folder, here)
    (folder / "yesterday/a.parquet").unlink()  # it was moved, and changed then
    assert inputs(look(folder, here)) == ["a.parquet"]


def test_a_copy_of_the_table_is_not_done_again(folder: Path, done: dict[str, Record]) -> None:
    shutil.copytree(folder / "in", folder / "original")
    here = {name: record | {"path": record["path"].replace("/in/", "/original/")} for name, record in done.items()}
    os.utime(folder / "in/a.parquet", (0, 0))
    assert inputs(look(folder, here)) == []


def test_the_output_of_a_file_that_has_no_row_now_is_to_go(folder: Path, done: dict[str, Record]) -> None:
    write(folder / "in/a.parquet", 0)
    state = look(folder, done)
    assert (inputs(state), state.vanished, state.emptied) == ([], {}, ["a.parquet"])
    assert list(state.done) == [output_name("below/b.parquet")]


@pytest.mark.parametrize(("before", "after"), [(pa.decimal128(8, 1), pa.decimal128(9, 2)), (pa.timestamp("ms"), pa.timestamp("us"))])
def test_the_same_bytes_as_another_type_are_another_content(tmp_path: Path, before: pa.DataType, after: pa.DataType) -> None:
    hashes = set()
    for kind in (before, after):
        stored = pa.array([15, 25, 35], pa.int64() if pa.types.is_timestamp(kind) else None)
        values = (
            stored.cast(kind) if pa.types.is_timestamp(kind) else pa.array([Decimal(n).scaleb(-kind.scale) for n in (15, 25, 35)], kind)
        )
        pq.write_table(pa.table({"x": values}), tmp_path / "a.parquet", use_dictionary=False, write_statistics=False, store_schema=False)
        table = open_table(str(tmp_path))
        hashes.add(content_of_file(table.filesystem, table.files[0], COLUMNS))
    assert len(hashes) == 2


@pytest.mark.parametrize("change", ["rows", "row groups", "values"])
def test_a_file_of_another_content_is_done_again(folder: Path, done: dict[str, Record], change: str) -> None:
    write(folder / "in/a.parquet", 6 if change == "rows" else 5, 2 if change == "row groups" else 1000, first=int(change == "values"))
    assert inputs(look(folder, done)) == ["a.parquet"]


def test_a_change_that_neither_size_nor_footer_shows_is_found_by_the_content(tmp_path: Path) -> None:
    plain: dict[str, Any] = {"compression": "none", "use_dictionary": False, "write_statistics": False}
    write(tmp_path / "in/a.parquet", 5, **plain)
    before = open_table(str(tmp_path / "in")).files[0]
    done = carry_out(tmp_path, look(tmp_path, {}))
    write(tmp_path / "in/a.parquet", 5, first=1, **plain)
    after = open_table(str(tmp_path / "in")).files[0]
    assert (after.identity, after.num_bytes) == (before.identity, before.num_bytes)
    assert inputs(look(tmp_path, done)) == ["a.parquet"]


def test_output_that_is_gone_or_was_changed_is_made_again(folder: Path, done: dict[str, Record]) -> None:
    (folder / "out" / output_name("below/b.parquet")).unlink()
    assert inputs(look(folder, done)) == ["below/b.parquet"]
    pq.write_table(pa.table({"z": [1]}), folder / "out/a.parquet")
    assert inputs(look(folder, done)) == ["a.parquet", "below/b.parquet"]


def test_output_of_a_newer_input_is_not_taken_for_that_of_the_old_one_which_came_back(folder: Path, done: dict[str, Record]) -> None:
    old = (folder / "in/a.parquet").read_bytes()
    stat = (folder / "in/a.parquet").stat()
    write(folder / "in/a.parquet", 5, first=9)
    carry_out(folder, look(folder, done))  # and its job was killed before the manifest
    (folder / "in/a.parquet").write_bytes(old)
    os.utime(folder / "in/a.parquet", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert inputs(look(folder, done)) == ["a.parquet"]


def test_a_copied_output_is_known_by_its_footers(folder: Path, done: dict[str, Record]) -> None:
    for path in (folder / "out").glob("*.parquet"):
        os.utime(path, (0, 0))
    state = look(folder, done)
    assert inputs(state) == []
    assert all(record["output_mtime_ns"] == 0 for record in state.done.values())


def test_a_record_that_does_not_know_its_output_counts_for_nothing(folder: Path, done: dict[str, Record]) -> None:
    old = {name: {key: value for key, value in record.items() if not key.startswith("output_")} for name, record in done.items()}
    pq.write_table(pa.table({"z": [1]}), folder / "out/a.parquet")
    assert inputs(look(folder, old)) == ["a.parquet"]


def test_a_new_file_only_adds(folder: Path, done: dict[str, Record]) -> None:
    write(folder / "in/0.parquet", 2)
    write(folder / "in/z/a.parquet", 2)
    state = look(folder, done)
    assert inputs(state) == ["0.parquet", "z/a.parquet"]
    assert state.done == done


def test_a_file_that_is_gone_is_said_and_its_record_stays(folder: Path, done: dict[str, Record]) -> None:
    (folder / "in/a.parquet").unlink()
    state = look(folder, done)
    assert (inputs(state), list(state.vanished), state.done) == ([], ["a.parquet"], done)


def test_a_look_at_one_partition_leaves_the_others_alone(folder: Path, done: dict[str, Record]) -> None:
    (folder / "in/a.parquet").unlink()
    write(folder / "in/below/c.parquet", 1)
    state = look(folder, done, partition="below")
    assert (inputs(state), state.vanished, state.done) == (["below/c.parquet"], {}, done)


@given(row_groups=st.lists(st.integers(0, 9), min_size=1, max_size=12).filter(any), max_unit_rows=st.integers(1, 30))
def test_units_hold_every_row_group_once_and_few_rows(row_groups: list[int], max_unit_rows: int) -> None:
    file = DataFile("/t/a.parquet", "a.parquet", 10, tuple(row_groups), "0" * 64)
    units = list(units_of([file], max_unit_rows, BY))
    assert [index for unit in units for index in range(unit.first_group, unit.end_group)] == list(range(len(row_groups)))
    assert [unit.first_row for unit in units] == [sum(row_groups[: unit.first_group]) for unit in units]
    assert sum(unit.num_rows for unit in units) == sum(row_groups)
    assert all(unit.num_rows <= max_unit_rows or sum(map(bool, row_groups[unit.first_group : unit.end_group])) == 1 for unit in units)
    assert len({unit.part for unit in units}) == len(units)
    assert (units[0].part is None) == (len(units) == 1)
