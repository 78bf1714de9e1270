"""Claims about data.table: which files make a table, what a broken one is told, and what its fingerprint says."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import fs

from data.table import TAIL_BYTES, DataError, RowGroup, open_table, read_row_group

ROWS: dict[str, Any] = {"a": [1, 2, 3], "b": ["x", "y", None]}


def write(path: Path, columns: Mapping[str, Any] = ROWS, schema: pa.Schema | None = None, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(dict(columns), schema=schema), path, **options)
    return path


def relative_paths(path: str | list[str]) -> list[str]:
    return [file.relative_path for file in open_table(path).files]


def refusal(path: str | list[str]) -> str:
    with pytest.raises(DataError) as caught:
        open_table(path)
    return str(caught.value)


def test_a_file_is_a_table(tmp_path: Path) -> None:
    table = open_table(str(write(tmp_path / "one.parquet")))
    assert [(file.relative_path, file.num_rows) for file in table.files] == [("one.parquet", 3)]
    assert table.schema == pa.schema({"a": pa.int64(), "b": pa.string()})
    assert table.files[0].num_bytes == (tmp_path / "one.parquet").stat().st_size


def test_an_explicit_file_needs_no_extension(tmp_path: Path) -> None:
    assert relative_paths(str(write(tmp_path / "_table"))) == ["_table"]


def test_a_folder_is_read_to_its_depths_in_the_order_of_relative_paths(tmp_path: Path) -> None:
    for name in ("z.parquet", "b/x.parq", "b/a/y.pq", "a.parquet"):
        write(tmp_path / name)
    (tmp_path / "readme.txt").write_text("no table")
    assert relative_paths(str(tmp_path)) == ["a.parquet", "b/a/y.pq", "b/x.parq", "z.parquet"]


@pytest.mark.parametrize("pattern", ["*/[xy].parquet", "**/[xy].parquet", "?/*.parquet", "*"])
def test_a_glob_finds_what_the_folder_finds_and_names_it_the_same(tmp_path: Path, pattern: str) -> None:
    write(tmp_path / "a/x.parquet")
    write(tmp_path / "b/y.parquet")
    assert relative_paths(f"{tmp_path}/{pattern}") == ["a/x.parquet", "b/y.parquet"] == relative_paths(str(tmp_path))


def test_a_folder_whose_name_has_brackets_is_a_folder_and_no_glob(tmp_path: Path) -> None:
    write(tmp_path / "run[1]/a.parquet")
    assert relative_paths(str(tmp_path / "run[1]")) == ["a.parquet"]


def test_a_list_names_files_by_their_path_below_the_common_folder(tmp_path: Path) -> None:
    one, two = write(tmp_path / "a/x.parquet"), write(tmp_path / "b/x.parquet")
    assert relative_paths([str(two), str(one)]) == ["a/x.parquet", "b/x.parquet"]
    assert relative_paths([str(tmp_path / "a"), str(two), str(one)]) == ["a/x.parquet", "b/x.parquet"]
    assert relative_paths([str(one)]) == ["x.parquet"]


def test_a_file_uri_is_a_path(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet")
    assert open_table(tmp_path.as_uri()).fingerprint == open_table(str(tmp_path)).fingerprint


def test_a_relative_path_starts_at_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "table/a.parquet")
    monkeypatch.chdir(tmp_path)
    assert relative_paths("table") == relative_paths("./table/*.parquet") == ["a.parquet"]


@pytest.mark.parametrize("hidden", ["_x.parquet", ".x.parquet", "_staging/x.parquet", "a/.tmp/x.parquet", "_SUCCESS"])
@pytest.mark.parametrize("ending", ["", "/*", "/**", "/**/*.parquet"])
def test_hidden_names_are_ignored(tmp_path: Path, hidden: str, ending: str) -> None:
    write(tmp_path / "a/seen.parquet")
    (tmp_path / hidden).parent.mkdir(exist_ok=True)
    (tmp_path / hidden).write_bytes(b"no Parquet")
    assert relative_paths(f"{tmp_path}{ending}") == ["a/seen.parquet"]


def test_what_lies_above_the_given_folder_hides_nothing(tmp_path: Path) -> None:
    write(tmp_path / "_cache/year=2024/a.parquet")
    assert relative_paths(str(tmp_path / "_cache/year=2024")) == ["a.parquet"]


def test_nothing_to_read_says_what_was_looked_for(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("text")
    assert f"{tmp_path}/absent: nothing is there" in refusal(f"{tmp_path}/absent")
    assert f"{tmp_path}/*.parquet: no file matches" in refusal(f"{tmp_path}/*.parquet")
    assert f"{tmp_path}: the folder holds no .parquet file (1 other files)" in refusal(str(tmp_path))
    assert "no path" in refusal([])
    assert "nowhere://x: cannot be opened" in refusal("nowhere://x")


def test_every_unreadable_file_is_listed(tmp_path: Path) -> None:
    whole = write(tmp_path / "good.parquet").read_bytes()
    broken = {
        "empty": b"",
        "tiny": b"PAR1PAR1",
        "truncated": whole[:-20],
        "csv": b"a,b\n" + b"1,2\n" * 20,
        "long_footer": whole[:-8] + (2**31 - 1).to_bytes(4, "little") + b"PAR1",
        "scrambled": whole[: len(whole) - 200] + bytes(192) + whole[-8:],
    }
    for name, content in broken.items():
        (tmp_path / f"{name}.parquet").write_bytes(content)
    message = refusal(str(tmp_path))
    for name in broken:
        assert message.count(f"{tmp_path}/{name}.parquet") == 1
    assert "good.parquet" not in message


def test_every_prefix_of_a_file_is_refused(tmp_path: Path) -> None:
    whole = write(tmp_path / "good.parquet").read_bytes()
    for length in range(0, len(whole), 7):
        (tmp_path / "good.parquet").write_bytes(whole[:length])
        assert f"{tmp_path}/good.parquet" in refusal(str(tmp_path))


def test_every_schema_difference_is_listed_by_file_and_column(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet")
    write(tmp_path / "b.parquet", {"a": [1], "c": [2.0]})
    write(tmp_path / "c.parquet", {"a": ["1"], "b": [None]}, pa.schema({"a": pa.string(), "b": pa.large_string()}))
    message = refusal(str(tmp_path))
    for line in (
        f"{tmp_path}/b.parquet: column 'b' is missing",
        f"{tmp_path}/b.parquet: column 'c' is not in {tmp_path}/a.parquet",
        f"{tmp_path}/c.parquet: column 'a' is string, in {tmp_path}/a.parquet it is int64",
        f"{tmp_path}/c.parquet: column 'b' is large_string, in {tmp_path}/a.parquet it is string",
    ):
        assert message.count(line) == 1


def test_the_order_of_columns_and_the_metadata_of_files_do_not_matter(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet")
    write(tmp_path / "b.parquet", {"b": ["z"], "a": [9]}, pa.schema({"b": pa.string(), "a": pa.int64()}, metadata={"from": "elsewhere"}))
    table = open_table(str(tmp_path))
    assert table.schema == pa.schema({"a": pa.int64(), "b": pa.string()})
    assert table.schema.metadata is None
    assert read_row_group(table.filesystem, list(table.row_groups())[1], ["a", "b"]).to_pylist() == [{"a": 9, "b": "z"}]


@pytest.mark.parametrize("names", [["a", "A"], ["a", "a"], ["größe", "GRÖSSE", "Größe"]])
@pytest.mark.parametrize("first", [True, False])
def test_names_that_differ_only_in_case_are_refused_wherever_they_are(tmp_path: Path, names: list[str], first: bool) -> None:
    pq.write_table(pa.table([[1]] * len(names), names), tmp_path / ("0.parquet" if first else "2.parquet"))
    write(tmp_path / "1.parquet", {names[0]: [1]})
    message = refusal(str(tmp_path))
    assert f"{names[0]!r} and {names[-1]!r} have one name, or differ only in case" in message


@pytest.mark.parametrize("kind", [pa.uuid(), pa.fixed_shape_tensor(pa.float32(), [2])])
def test_extension_types_are_refused_by_column(tmp_path: Path, kind: pa.DataType) -> None:
    pq.write_table(pa.table({"plain": [1], "odd": pa.nulls(1, kind.storage_type).cast(kind)}), tmp_path / "a.parquet")
    message = refusal(str(tmp_path))
    assert f"{tmp_path}/a.parquet: column 'odd' is of extension type" in message
    assert "plain" not in message


def test_empty_files_are_skipped_and_counted(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet")
    write(tmp_path / "b.parquet", {"other": pa.array([], pa.int8())})
    table = open_table(str(tmp_path))
    assert table.num_empty_files == 1
    assert [file.relative_path for file in table.files] == ["a.parquet"]
    assert table.num_rows == 3


def test_a_table_without_a_row_is_refused(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write(tmp_path / f"{name}.parquet", {"a": pa.array([], pa.int8())})
    assert f"{tmp_path}: 2 Parquet files, none of which has a row" in refusal(str(tmp_path))


@pytest.mark.parametrize("pattern", ["", "/*", "/*/*.parquet", "/**/*.parquet"])
def test_partition_folders_are_refused(tmp_path: Path, pattern: str) -> None:
    write(tmp_path / "year=2024/a.parquet")
    message = refusal(f"{tmp_path}{pattern}")
    assert "year=2024/a.parquet lies in a partition folder" in message


def test_an_equals_sign_in_a_file_name_is_no_partition(tmp_path: Path) -> None:
    assert relative_paths(str(write(tmp_path / "a=1.parquet").parent)) == ["a=1.parquet"]


def test_the_fingerprint_does_not_depend_on_where_the_table_lies(tmp_path: Path) -> None:
    write(tmp_path / "here/x/a.parquet")
    write(tmp_path / "here/b.parquet", {"a": [7], "b": ["q"]})
    shutil.copytree(tmp_path / "here", tmp_path / "there/below")
    os.utime(tmp_path / "there/below/b.parquet", (0, 0))
    one, two = open_table(str(tmp_path / "here")), open_table(str(tmp_path / "there/below"))
    assert one.fingerprint == two.fingerprint
    assert [f.identity for f in one.files] == [f.identity for f in two.files]
    assert len(one.fingerprint) == 32


def test_the_fingerprint_changes_with_values_names_and_files(tmp_path: Path) -> None:
    def fingerprint() -> str:
        return open_table(str(tmp_path)).fingerprint

    write(tmp_path / "a.parquet")
    seen = [fingerprint()]
    write(tmp_path / "a.parquet", ROWS | {"a": [1, 2, 4]})
    seen.append(fingerprint())
    write(tmp_path / "a.parquet", ROWS | {"b": ["x", "z", None]})
    seen.append(fingerprint())
    write(tmp_path / "b.parquet")
    seen.append(fingerprint())
    (tmp_path / "b.parquet").rename(tmp_path / "c.parquet")
    seen.append(fingerprint())
    assert len(set(seen)) == len(seen)


def test_row_groups_say_where_they_start(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", {"a": np.arange(10)}, row_group_size=4)
    write(tmp_path / "b.parquet", {"a": np.arange(10, 13)}, row_group_size=4)
    table = open_table(str(tmp_path))
    groups = list(table.row_groups())
    assert [(Path(g.path).name, g.index, g.first_row, g.num_rows) for g in groups] == [
        ("a.parquet", 0, 0, 4),
        ("a.parquet", 1, 4, 4),
        ("a.parquet", 2, 8, 2),
        ("b.parquet", 0, 0, 3),
    ]
    assert [g.identity for g in groups] == [table.files[0].identity] * 3 + [table.files[1].identity]
    assert pa.concat_tables(read_row_group(table.filesystem, g, ["a"]) for g in groups)["a"].to_pylist() == list(range(13))


def test_a_footer_longer_than_the_first_look_is_read(tmp_path: Path) -> None:
    schema = pa.schema({"a": pa.int64()}, metadata={"notes": "x" * 3 * TAIL_BYTES})
    write(tmp_path / "a.parquet", {"a": [1, 2]}, schema)
    write(tmp_path / "b.parquet", {"a": [3]})
    table = open_table(str(tmp_path))
    assert table.num_rows == 3
    assert table.schema == pa.schema({"a": pa.int64()})


def test_columns_are_read_by_their_whole_name_and_in_the_order_asked(tmp_path: Path) -> None:
    columns: dict[str, list[Any]] = {"a": [1], "a.b": [2], "a b": [3], "": [4], "ä": [5], "s": [{"b": 6}]}
    table = open_table(str(write(tmp_path / "a.parquet", columns)))
    (group,) = table.row_groups()
    for names in (["a"], ["a.b"], ["a.b", "a"], ["ä", "", "a b"], ["s", "a"]):
        assert read_row_group(table.filesystem, group, names).to_pylist() == [{name: columns[name][0] for name in names}]


def test_a_file_that_changed_is_named_when_it_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", {"a": np.arange(10), "b": np.arange(10)}, row_group_size=5)
    table = open_table(str(path))
    groups = list(table.row_groups())
    changes: list[dict[str, Any]] = [{"a": np.arange(4), "b": np.arange(4)}, {"a": np.arange(10)}]
    for change in changes:
        write(path, change, row_group_size=5)
        with pytest.raises(DataError, match=r"a\.parquet: row group 1"):
            read_row_group(table.filesystem, groups[1], ["a", "b"])
    path.unlink()
    with pytest.raises(DataError, match=r"a\.parquet: row group 0"):
        read_row_group(table.filesystem, groups[0], ["a"])


def test_damaged_pages_are_named_when_they_are_read(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", {"a": np.random.default_rng(0).normal(size=1000)}, compression="zstd")
    content = path.read_bytes()
    path.write_bytes(content[:4] + bytes(2000) + content[2004:])
    table = open_table(str(path))
    with pytest.raises(DataError, match=r"a\.parquet: row group 0 of columns \['a'\] cannot be read"):
        read_row_group(table.filesystem, next(table.row_groups()), ["a"])


def test_a_row_group_that_is_not_there_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet")
    with pytest.raises(DataError, match="row group 5"):
        read_row_group(fs.LocalFileSystem(), RowGroup(str(path), "0" * 64, 5, 0, 3), ["a"])
