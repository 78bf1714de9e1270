"""Claims about data.table and data.schema: which files make a table, what is widened, and what a broken one is told."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from datetime import date, datetime
from decimal import Decimal
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.footer import TAIL_BYTES
from data.listing import DataError
from data.schema import MAX_FAULTS
from data.table import open_table

ROWS: dict[str, Any] = {"a": [1, 2, 3], "b": ["x", "y", None]}
BEYOND = 2**53 + 1  # the first integer that float64 does not hold
UNKNOWN = "has no statistics that say what it holds"


def write(path: Path, columns: Mapping[str, Any] = ROWS, schema: pa.Schema | None = None, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(dict(columns), schema=schema), path, **options)
    return path


def write_types(folder: Path, *kinds: pa.DataType) -> list[Path]:
    """Files a, b, .. of a column x of each type, null in its one row."""
    return [write(folder / f"{name}.parquet", {"x": pa.nulls(1, kind)}) for name, kind in zip("abcdefgh", kinds, strict=False)]


def relative_paths(path: str | list[str]) -> list[str]:
    return [file.relative_path for file in open_table(path).files]


def refusal(path: Path | str | list[str], **options: Any) -> str:
    with pytest.raises(DataError) as caught:
        open_table(str(path) if isinstance(path, Path) else path, **options)
    return str(caught.value)


def refused_lines(path: Path | str | list[str], **options: Any) -> list[str]:
    """The message's lines below its title."""
    return [line.strip() for line in refusal(path, **options).splitlines()[1:]]


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


def test_names_that_are_no_text_make_a_file_unreadable(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", {"abcd": [1]}, store_schema=False)
    path.write_bytes(path.read_bytes().replace(b"abcd", b"ab\xff\xfe"))
    assert refusal(tmp_path).startswith(f"unreadable Parquet files (mend or remove them):\n  {path}: 'utf-8' codec can't decode")


def test_every_schema_difference_is_listed_by_file_and_column(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", ROWS | {"t": [True] * 3})
    write(tmp_path / "b.parquet", {"a": [1], "c": [2.0], "t": [1]})
    write(tmp_path / "c.parquet", {"a": ["1"], "b": [None], "C": [1.5], "s": [{"x": 1}]}, None)
    a, b, c = (f"{tmp_path}/{name}.parquet" for name in "abc")
    message = refusal(tmp_path)
    assert message.startswith("the files do not make one table:\n")
    assert sorted(message.splitlines()[1:]) == sorted(
        f"  {line}"
        for line in (
            f"{c}: columns 'c' and 'C' have one name, or differ only in case; rename one",
            f"{c}: column 'a' is string, in {a} it is int64",
            f"{b}: column 'b' is missing, {a} has it",
            f"{b}: column 't' is int64, in {a} it is bool",
            f"{c}: column 't' is missing, {a} has it",
            f"{a}: column 'c' is missing, {b} has it",
            f"{c}: column 'c' is missing, {b} has it",
            f"{a}: column 'C' is missing, {c} has it",
            f"{b}: column 'C' is missing, {c} has it",
            f"{a}: column 's' is missing, {c} has it",
            f"{b}: column 's' is missing, {c} has it",
        )
    )


def test_each_of_many_files_is_listed(tmp_path: Path) -> None:
    write(tmp_path / "0.parquet", {"x": [1]})
    for number in range(1, 61):
        write(tmp_path / f"{number}.parquet", {"x": ["1"]})
    said = f"column 'x' is string, in {tmp_path}/0.parquet it is int64"
    assert sorted(refused_lines(tmp_path)) == sorted(f"{tmp_path}/{number}.parquet: {said}" for number in range(1, 61))


def test_a_message_has_an_end(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", {f"x{index}": [{"a": 1}] for index in range(MAX_FAULTS + 2)})
    lines = refused_lines(tmp_path, columns=[f"x{index}" for index in range(MAX_FAULTS + 2)])
    assert len(lines) == MAX_FAULTS + 1
    assert lines[-1] == "and 2 more"


LOSSY = [
    (pa.int64(), pa.string()),
    (pa.float64(), pa.string()),
    (pa.bool_(), pa.int64()),
    (pa.bool_(), pa.string()),
    (pa.uint64(), pa.int64()),
    (pa.decimal128(9, 2), pa.float64()),
    (pa.decimal128(9, 2), pa.int64()),
    (pa.decimal256(76, 0), pa.decimal256(76, 76)),
    (pa.timestamp("us"), pa.timestamp("us", "UTC")),
    (pa.timestamp("us", "Europe/Berlin"), pa.timestamp("us", "UTC")),
    (pa.timestamp("ms"), pa.date32()),
    (pa.timestamp("ms"), pa.int64()),
    (pa.timestamp("us"), pa.time64("us")),
    (pa.duration("s"), pa.int64()),
    (pa.binary(), pa.string()),
    (pa.binary(4), pa.binary(5)),
    (pa.list_(pa.int8(), 2), pa.list_(pa.int8(), 3)),
    (pa.list_(pa.int8()), pa.int8()),
    (pa.list_(pa.uint64()), pa.list_(pa.int64())),
]


@pytest.mark.parametrize(("one", "other"), LOSSY, ids=str)
def test_types_that_cannot_be_widened_are_refused_by_file_and_column(tmp_path: Path, one: pa.DataType, other: pa.DataType) -> None:
    a, b = write_types(tmp_path, one, other)
    found = [pq.read_schema(path).field("x").type for path in (a, b)]
    assert refused_lines(tmp_path) == [f"{b}: column 'x' is {found[1]}, in {a} it is {found[0]}"]


WIDENED = [
    (pa.int8(), pa.int32(), pa.int32()),
    (pa.uint8(), pa.int8(), pa.int16()),
    (pa.uint32(), pa.int64(), pa.int64()),
    (pa.int64(), pa.float64(), pa.float64()),
    (pa.uint64(), pa.float32(), pa.float64()),
    (pa.float32(), pa.float64(), pa.float64()),
    (pa.null(), pa.bool_(), pa.bool_()),
    (pa.null(), pa.list_(pa.int8(), 2), pa.list_(pa.int8(), 2)),
    (pa.string(), pa.large_string(), pa.large_string()),
    (pa.dictionary(pa.int32(), pa.string()), pa.string(), pa.string()),
    (pa.dictionary(pa.int32(), pa.int16()), pa.int64(), pa.int64()),
    (pa.decimal128(5, 2), pa.decimal128(12, 4), pa.decimal128(12, 4)),
    (pa.timestamp("ms", "UTC"), pa.timestamp("us", "UTC"), pa.timestamp("us", "UTC")),
    (pa.time32("ms"), pa.time64("ns"), pa.time64("ns")),
    (pa.binary(), pa.large_binary(), pa.large_binary()),
]


@pytest.mark.parametrize(("one", "other", "both"), WIDENED, ids=str)
def test_types_that_can_be_widened_make_one_table(tmp_path: Path, one: pa.DataType, other: pa.DataType, both: pa.DataType) -> None:
    for name, kinds in (("there", (one, other)), ("back", (other, one)), ("thrice", (one, other, one))):
        write_types(tmp_path / name, *kinds)
        assert open_table(str(tmp_path / name)).schema == pa.schema({"x": both})


def test_lists_are_widened_by_their_elements(tmp_path: Path) -> None:
    write_types(tmp_path, pa.list_(pa.int8(), 2), pa.list_(pa.float32()), pa.large_list(pa.int64()))
    assert open_table(str(tmp_path)).schema.field("x").type == pa.large_list(pa.float64())


@pytest.mark.parametrize("kinds", list(permutations([pa.float64(), pa.int64(), pa.uint64()])), ids=str)
def test_whether_files_make_a_table_does_not_depend_on_their_order(tmp_path: Path, kinds: tuple[pa.DataType, ...]) -> None:
    paths = dict(zip(kinds, write_types(tmp_path, *kinds), strict=True))
    one, two = (kind for kind in kinds if kind != pa.float64())
    assert refused_lines(tmp_path) == [f"{paths[two]}: column 'x' is {two}, in {paths[one]} it is {one}"]


def test_the_file_that_a_type_clashes_with_is_the_one_that_has_the_other_type(tmp_path: Path) -> None:
    a, b, c, d = write_types(tmp_path, pa.null(), pa.int8(), pa.int16(), pa.string())
    assert refused_lines(tmp_path) == [f"{d}: column 'x' is string, in {b} it is int8"]
    assert {a, c}.isdisjoint(refusal(tmp_path).split())


def test_the_order_of_columns_and_the_metadata_of_files_do_not_matter(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet")
    write(tmp_path / "b.parquet", {"b": ["z"], "a": [9]}, pa.schema({"b": pa.string(), "a": pa.int64()}, metadata={"from": "elsewhere"}))
    table = open_table(str(tmp_path))
    assert table.schema == pa.schema({"a": pa.int64(), "b": pa.string()})
    assert table.schema.metadata is None


@pytest.mark.parametrize(("kind", "value"), [(pa.int64(), BEYOND), (pa.int64(), -BEYOND), (pa.uint64(), 2**64 - 1)])
def test_integers_that_double_does_not_hold_are_refused_from_statistics(tmp_path: Path, kind: pa.DataType, value: int) -> None:
    write(tmp_path / "a.parquet", {"x": [0.5], "y": [0.5]})
    path = write(tmp_path / "b.parquet", {"x": pa.array([1, 2, 3, value], kind), "y": pa.array([2**53] * 4, kind)}, row_group_size=2)
    said = f"column 'x' is {kind} and double in other files, which cannot hold its value {value}; store it as one type"
    assert refused_lines(tmp_path) == [f"{path}: {said}"]


def test_integers_that_double_holds_become_double(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", {"x": [2**53, -(2**53), None]})
    write(tmp_path / "b.parquet", {"x": [0.5]})
    write(tmp_path / "c.parquet", {"x": pa.array([255], pa.uint8())})
    assert open_table(str(tmp_path)).schema == pa.schema({"x": pa.float64()})


def test_integers_without_statistics_are_left_to_the_reading(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", {"x": [BEYOND]}, write_statistics=False)
    write(tmp_path / "b.parquet", {"x": [0.5]})
    assert open_table(str(tmp_path)).schema == pa.schema({"x": pa.float64()})


def test_large_integers_that_stay_integers_are_fine(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", {"x": [BEYOND], "y": [0.5]})
    write(tmp_path / "b.parquet", {"x": pa.array([1], pa.int8()), "y": [1.5]})
    assert open_table(str(tmp_path)).schema == pa.schema({"x": pa.int64(), "y": pa.float64()})


@pytest.mark.parametrize("names", [["a", "A"], ["a", "a"], ["größe", "GRÖSSE", "Größe"]])
@pytest.mark.parametrize("first", [True, False])
def test_names_that_differ_only_in_case_are_refused_wherever_they_are(tmp_path: Path, names: list[str], first: bool) -> None:
    path = tmp_path / ("0.parquet" if first else "2.parquet")
    pq.write_table(pa.table([[1]] * len(names), names), path)
    write(tmp_path / "1.parquet", {names[0]: [1]})
    message = refusal(tmp_path)
    assert f"{path}: columns {names[0]!r} and {names[-1]!r} have one name, or differ only in case; rename one" in message


def test_names_of_two_files_that_differ_only_in_case_are_refused_though_columns_may_be_missing(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", {"x": [1]})
    b = write(tmp_path / "b.parquet", {"X": [1]})
    assert refused_lines(tmp_path, allow_missing_columns=True) == [
        f"{b}: columns 'x' and 'X' have one name, or differ only in case; rename one"
    ]


def test_a_folder_and_a_column_whose_names_differ_only_in_case_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "Year=2024/a.parquet", {"year": [2024]})
    assert refused_lines(tmp_path) == [f"{path}: columns 'year' and 'Year' have one name, or differ only in case; rename one"]


@pytest.mark.parametrize("kind", [pa.uuid(), pa.fixed_shape_tensor(pa.float32(), [2])])
def test_extension_types_are_refused_by_file_and_column_where_they_are_asked_for(tmp_path: Path, kind: pa.DataType) -> None:
    for name in ("a", "b"):
        pq.write_table(pa.table({"plain": [1], "odd": pa.nulls(1, kind.storage_type).cast(kind)}), tmp_path / f"{name}.parquet")
    stored = pq.read_schema(tmp_path / "a.parquet").field("odd").type
    assert refused_lines(tmp_path, columns=["plain", "odd"]) == [
        f"{tmp_path}/{name}.parquet: column 'odd' is of extension type {stored}; store it as its storage type, {kind.storage_type}"
        for name in ("a", "b")
    ]
    assert open_table(str(tmp_path)).schema.field("odd").type == stored


NESTED: list[Any] = [
    {"a": 1},
    ["text"],
    [True],
    [[1.5]],
    [{"a": 1}],
    pa.scalar([("key", 1)], pa.map_(pa.string(), pa.int64())),
    pa.scalar([date(2024, 1, 1)]),
]


@pytest.mark.parametrize("value", NESTED, ids=str)
def test_nested_types_are_refused_by_file_and_column_where_they_are_asked_for(tmp_path: Path, value: Any) -> None:
    path = write(tmp_path / "a.parquet", {"plain": [1, 2], "deep": pa.array([value, None])})
    assert open_table(str(tmp_path)).schema.names == ["plain", "deep"]
    (line,) = refused_lines(tmp_path, columns=["plain", "deep"])
    assert line.startswith(f"{path}: column 'deep' is of type ")
    assert line.endswith("; nested types other than lists of numbers cannot be read: flatten it or drop it")


@pytest.mark.parametrize("kind", [pa.list_(pa.float32(), 2), pa.list_(pa.uint8()), pa.large_list(pa.decimal128(5, 2)), pa.list_(pa.null())])
def test_lists_of_numbers_are_columns(tmp_path: Path, kind: pa.DataType) -> None:
    write(tmp_path / "a.parquet", {"x": pa.array([[None, None]], kind)})
    assert open_table(str(tmp_path)).schema.field("x").type == kind


def test_columns_that_do_not_matter_are_not_looked_at(tmp_path: Path) -> None:
    write(tmp_path / "y=2/a.parquet", {"x": [1], "t": [{"a": 1}], "X": [1], "d": [BEYOND], "y": [1]})
    write(tmp_path / "y=2/b.parquet", {"x": [1], "t": [1], "d": [0.5], "more": [1]})
    table = open_table(str(tmp_path), columns=["more", "x", "absent"], allow_missing_columns=True)
    assert table.schema == pa.schema({"x": pa.int64(), "more": pa.int64()})
    assert refused_lines(tmp_path, columns=["x", "t"]) != []
    assert open_table(str(tmp_path), columns=["absent"]).schema == pa.schema([])


@pytest.mark.parametrize("allowed", [False, True])
def test_a_missing_column_is_refused_unless_it_is_allowed_and_then_null(tmp_path: Path, allowed: bool) -> None:
    write(tmp_path / "a.parquet")
    b = write(tmp_path / "b.parquet", {"a": [4]})
    if allowed:
        assert open_table(str(tmp_path), allow_missing_columns=True).schema == pa.schema({"a": pa.int64(), "b": pa.string()})
    else:
        assert refused_lines(tmp_path) == [f"{b}: column 'b' is missing, {tmp_path}/a.parquet has it"]


def test_a_column_that_may_not_be_null_may_not_be_missing(tmp_path: Path) -> None:
    a = write(tmp_path / "a.parquet", {"x": [1], "y": [1]}, pa.schema([pa.field("x", pa.int64(), nullable=False), ("y", pa.int64())]))
    b = write(tmp_path / "b.parquet", {"y": [2]})
    assert refused_lines(tmp_path, allow_missing_columns=True) == [f"{b}: column 'x' is missing, and may not be null in {a}"]


def test_nested_columns_may_differ_as_nobody_reads_them(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", {"plain": [1], "deep": [{"a": 1}]})
    write(tmp_path / "b.parquet", {"plain": [1], "deep": [{"b": ["x"]}]})
    assert open_table(str(tmp_path)).num_rows == 2


def test_empty_files_are_skipped_and_named_whatever_their_schema(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet")
    write(tmp_path / "b.parquet", {"other": pa.array([], pa.int8())})
    write(tmp_path / "c.parquet", {"a": pa.array([], pa.string()), "A": pa.array([], pa.list_(pa.string()))})
    table = open_table(str(tmp_path))
    assert table.empty == ("b.parquet", "c.parquet")
    assert [file.relative_path for file in table.files] == ["a.parquet"]
    assert table.schema.names == ["a", "b"]
    assert table.num_rows == 3


def test_a_table_without_a_row_is_refused(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write(tmp_path / f"{name}.parquet", {"a": pa.array([], pa.int8())})
    assert f"{tmp_path}: 2 Parquet files, none of which has a row" in refusal(tmp_path)


@pytest.mark.parametrize("pattern", ["", "/*", "/*/*/*.parquet", "/**/*.parquet", "/year=*/month=*"])
def test_partition_folders_are_columns_after_all_others(tmp_path: Path, pattern: str) -> None:
    write(tmp_path / "year=2024/month=01/a.parquet")
    write(tmp_path / "year=__HIVE_DEFAULT_PARTITION__/month=12/a.parquet", {"b": ["z"], "a": [1]})
    table = open_table(f"{tmp_path}{pattern}")
    assert table.schema == pa.schema({"a": pa.int64(), "b": pa.string(), "year": pa.int64(), "month": pa.string()})
    assert table.partitions == ("year", "month")
    assert [group.partition for group in table.row_groups()] == [file.relative_path for file in table.files]
    assert all(file.partition for file in table.files)


def test_files_without_partition_folders_say_so(tmp_path: Path) -> None:
    write(tmp_path / "plain/a.parquet")
    table = open_table(str(tmp_path))
    assert table.partitions == ()
    assert [group.partition for group in table.row_groups()] == [""]


def test_partition_folders_above_the_input_root_are_no_columns(tmp_path: Path) -> None:
    write(tmp_path / "year=2024/month=1/a.parquet")
    assert open_table(str(tmp_path / "year=2024")).partitions == ("month",)
    assert open_table(str(tmp_path / "year=2024/month=1")).partitions == ()


def test_a_file_that_lies_in_no_folder_of_a_partition_column_lacks_it(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a.parquet"), write(tmp_path / "year=2024/b.parquet")
    assert refused_lines(tmp_path) == [f"{a}: column 'year' is missing, {b} has it"]
    table = open_table(str(tmp_path), allow_missing_columns=True)
    assert (table.schema.names, table.partitions) == (["a", "b", "year"], ("year",))


def test_a_folder_fills_in_for_a_column_that_its_files_lack(tmp_path: Path) -> None:
    write(tmp_path / "x=1/a.parquet", {"y": [1], "x": pa.array([1], pa.int16())})
    write(tmp_path / "x=2/b.parquet", {"y": [1]})
    table = open_table(str(tmp_path))
    assert table.schema == pa.schema({"y": pa.int64(), "x": pa.int16()})
    assert table.partitions == ()
    c = write(tmp_path / "x=70000/c.parquet", {"y": [1]})
    d = write(tmp_path / "d.parquet", {"y": [1]})
    assert sorted(refused_lines(tmp_path)) == [
        f"{d}: column 'x' is missing, {tmp_path}/x=2/b.parquet has it",
        f"{c}: column 'x' is spelled out by its folder: '70000' is no int16",
    ]


def test_a_folder_whose_files_hold_an_untyped_null_gives_no_type(tmp_path: Path) -> None:
    path = write(tmp_path / "x=1/a.parquet", {"x": pa.nulls(2)})
    assert refused_lines(tmp_path) == [f"{path}: its folder says x=1, its column 'x' {UNKNOWN}; remove one of them"]


CONTRADICTIONS = [
    ("1", [2, 2], "holds 2"),
    ("1", [1, 2], "holds values from 1 to 2"),
    ("1", [1, None], "holds 1 and nulls"),
    ("1", [0, None, 2], "holds values from 0 to 2"),
    ("1", pa.nulls(2, pa.int64()), "holds nulls"),
    ("__HIVE_DEFAULT_PARTITION__", [1], "holds 1"),
    ("__HIVE_DEFAULT_PARTITION__", [1, None], "holds 1 and nulls"),
    ("b", ["a", "a"], "holds 'a'"),
    ("x", [1], "holds 1"),
    ("2", [True], "holds True"),
    ("2024-01-01", [date(2024, 1, 2)], "holds datetime.date(2024, 1, 2)"),
    ("1", [[1], [1]], UNKNOWN),
]


@pytest.mark.parametrize(("spelled", "values", "held"), CONTRADICTIONS, ids=str)
def test_a_folder_that_contradicts_a_column_of_its_name_is_refused(tmp_path: Path, spelled: str, values: Any, held: str) -> None:
    path = write(tmp_path / f"x={spelled}/a.parquet", {"x": values})
    said = "None" if spelled.startswith("__") else spelled
    assert refused_lines(tmp_path) == [f"{path}: its folder says x={said}, its column 'x' {held}; remove one of them"]


AGREEMENTS = [
    ("1", [1, 1]),
    ("01", [1]),
    ("1", [1.0]),
    ("1.5", [1.5]),
    ("true", [True]),
    ("0", [False]),
    ("a%20b", ["a b"]),
    ("a", pa.array(["a"], pa.large_string())),
    ("a", pa.array(["a", "a"]).dictionary_encode()),
    ("a", [b"a"]),
    ("2024-01-01", [date(2024, 1, 1)]),
    ("2024-01-01 10:00:00", [datetime(2024, 1, 1, 10)]),
    ("1.50", [Decimal("1.50")]),
    ("__HIVE_DEFAULT_PARTITION__", pa.nulls(2, pa.int64())),
]


@pytest.mark.parametrize(("spelled", "values"), AGREEMENTS, ids=str)
def test_a_folder_that_agrees_with_a_column_by_its_statistics_is_that_column(tmp_path: Path, spelled: str, values: Any) -> None:
    write(tmp_path / f"x={spelled}/a.parquet", {"x": values, "y": [1] * len(values)})
    table = open_table(str(tmp_path))
    assert table.schema.names == ["x", "y"]
    assert table.partitions == ()


def test_a_column_without_statistics_may_contradict_its_folder(tmp_path: Path) -> None:
    path = write(tmp_path / "x=1/a.parquet", {"x": [1]}, write_statistics=False)
    assert refused_lines(tmp_path) == [f"{path}: its folder says x=1, its column 'x' {UNKNOWN}; remove one of them"]


def test_each_row_group_is_held_against_its_folder(tmp_path: Path) -> None:
    path = write(tmp_path / "x=1/a.parquet", {"x": [1, 1, 2, 2]}, row_group_size=2)
    assert refused_lines(tmp_path) == [f"{path}: its folder says x=1, its column 'x' holds 2; remove one of them"]


def test_statistics_are_those_of_the_column_of_that_name(tmp_path: Path) -> None:
    columns = {"x": [[7, 7]], "x.list": [1.5], "x.y": [3], "y": [4]}
    write(tmp_path / "x.y=3/y=4/a.parquet", columns)
    assert open_table(str(tmp_path)).schema.names == list(columns)


def test_a_folder_said_twice_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "x=1/x=2/a.parquet")
    assert f"{path}: x=1/x=2/a.parquet: two of its folders say what column 'x' is" in refusal(tmp_path)


def test_all_values_that_cannot_be_are_listed_by_file_and_column(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", {"x": [0.5], "y": [0.5], "f": [1]})
    paths = [write(tmp_path / f"f={n}/{n}.parquet", {"x": [BEYOND], "y": [-BEYOND], "f": [n + 1]}) for n in (1, 2)]
    assert [line.split(" is int64")[0].split(" holds")[0] for line in refused_lines(tmp_path)] == [
        line
        for n, path in zip((1, 2), paths, strict=True)
        for line in (f"{path}: column 'x'", f"{path}: column 'y'", f"{path}: its folder says f={n}, its column 'f'")
    ]


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


def test_a_footer_longer_than_the_first_look_is_read(tmp_path: Path) -> None:
    schema = pa.schema({"a": pa.int64()}, metadata={"notes": "x" * 3 * TAIL_BYTES})
    write(tmp_path / "a.parquet", {"a": [1, 2]}, schema)
    write(tmp_path / "b.parquet", {"a": [3]})
    table = open_table(str(tmp_path))
    assert table.num_rows == 3
    assert table.schema == pa.schema({"a": pa.int64()})


def test_a_column_of_any_name_is_a_column(tmp_path: Path) -> None:
    names = ["a", "a.b", "a b", "", "ä", "a.b.c", "list", "ARROW:schema", "x=1", "a/b", "\n"]
    write(tmp_path / "a.parquet", {name: [1] for name in names})
    assert open_table(str(tmp_path)).schema.names == names
