"""Claims about data.listing: what folders spell out, as which type, and that what cannot be listed is said."""

from __future__ import annotations

import glob
import itertools
import os
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.listing import (
    NULL_PARTITION,
    DataError,
    find_files,
    in_partition,
    is_named,
    open_filesystem,
    partition_type,
    partition_values,
    spelled_scalar,
    takes_in,
)

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)


@given(st.dictionaries(text.filter(bool), st.none() | text.filter(lambda value: value != NULL_PARTITION)))
def test_what_is_spelled_in_folders_is_read_from_them(values: dict[str, str | None]) -> None:
    folders = [f"{quote(name, safe='')}={NULL_PARTITION if value is None else quote(value, safe='')}" for name, value in values.items()]
    assert partition_values("/".join([*folders, "part=0.parquet"])) == values
    assert partition_values("/".join(["plain", *folders, "=nameless", "part.parquet"])) == values
    assert list(partition_values("/".join([*folders, "x"]))) == list(values), "in the order of the folders"


def test_a_column_that_two_folders_spell_out_is_refused() -> None:
    with pytest.raises(DataError, match=r"year=2024/.*x\.parquet: two of its folders say what column 'year' is"):
        partition_values("year=2024/month=1/ye%61r=2025/x.parquet")


@pytest.mark.parametrize("values", [{"1"}, {"0", "-7", "123456789012345678"}, {"2024", None}])
def test_values_spelled_as_integers_are_integers(values: set[str | None]) -> None:
    assert partition_type(values) == pa.int64()


@pytest.mark.parametrize(
    "values",
    [{"007"}, {"1", "007"}, {"-0"}, {"+1"}, {"1.0"}, {"1e3"}, {""}, {" 1"}, {"1_000"}, {"\u0661"}, {"9" * 19}, {None}, set(), {"a", "1"}],
)
def test_other_spellings_are_text(values: set[str | None]) -> None:
    assert partition_type(values) == pa.string()


@given(st.integers(-(10**18) + 1, 10**18 - 1))
def test_integers_come_back_from_their_spelling(number: int) -> None:
    assert partition_type({str(number)}) == pa.int64()
    assert spelled_scalar(str(number), pa.int64()).as_py() == number


@pytest.mark.parametrize(
    ("spelled", "kind", "value"),
    [
        ("1", pa.string(), "1"),
        ("007", pa.large_string(), "007"),
        ("1", pa.dictionary(pa.int32(), pa.string()), "1"),
        ("1", pa.float64(), 1.0),
        ("300", pa.int16(), 300),
        ("true", pa.bool_(), True),
        ("2024-02-29", pa.date32(), date(2024, 2, 29)),
        ("1.50", pa.decimal128(5, 2), Decimal("1.50")),
        (None, pa.int8(), None),
        (None, pa.list_(pa.float32(), 2), None),
        (None, pa.string(), None),
    ],
)
def test_a_spelled_value_becomes_the_columns_type(spelled: str | None, kind: pa.DataType, value: Any) -> None:
    assert spelled_scalar(spelled, kind).as_py() == value


@pytest.mark.parametrize(
    ("spelled", "kind"),
    [
        ("x", pa.int64()),
        ("300", pa.int8()),
        ("1.5", pa.int64()),
        ("2024-02-30", pa.date32()),
        ("x", pa.list_(pa.int8())),
        ("", pa.float64()),
    ],
)
def test_a_spelled_value_of_another_type_is_refused(spelled: str, kind: pa.DataType) -> None:
    with pytest.raises(ValueError, match=f"{spelled!r} is no "):
        spelled_scalar(spelled, kind)


def test_a_path_that_the_filesystem_cannot_look_up_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"{tmp_path}/x+: cannot be listed: .*too long"):
        find_files([f"{tmp_path}/{'x' * 300}"])


def test_files_matched_by_a_glob_are_found_once_however_many_patterns_match_them(tmp_path: Path) -> None:
    for name in ("a/x=1/1.parquet", "a/x=2/1.parquet"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    for paths in (["a/**"], ["a/*"], ["a/x=1", "a/x=2"], ["a", "a/x=1/1.parquet"], ["a/x=*/*.parquet"]):
        _, found = find_files([f"{tmp_path}/{path}" for path in paths])
        assert [file.relative_path for file in found] == ["x=1/1.parquet", "x=2/1.parquet"], paths


def test_what_a_file_is_called_depends_on_the_paths_and_on_no_other_file(tmp_path: Path) -> None:
    (tmp_path / "a/x=1").mkdir(parents=True)
    (tmp_path / "a/x=1/1.parquet").touch()
    for paths in (["a"], ["a", "a"], ["a", "a/x=1"], ["a/x=1", "a"], ["a/*", "a/x=*/*.parquet"]):
        _, found = find_files([f"{tmp_path}/{path}" for path in paths])
        assert [file.relative_path for file in found] == ["x=1/1.parquet"], paths


def test_a_file_that_links_lead_to_is_found_once_under_its_own_name(tmp_path: Path) -> None:
    table = tmp_path / "table"
    for name in ("table/day=2/b.parquet", "elsewhere/c.parquet", "elsewhere/.hidden/d.parquet"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    links = {"alatest": "day=2", "z": "day=2/b.parquet", "a.parquet": "day=2/b.parquet", "itself": "."}
    links |= {"far": "../elsewhere", "farther": "../elsewhere", "d.parquet": "../elsewhere/.hidden/d.parquet"}
    for name, leads_to in links.items():
        (table / name).symlink_to(leads_to)
    (tmp_path / "way").symlink_to("table")
    for paths in (["table"], ["way"], ["table/*"]):
        _, found = find_files([f"{tmp_path}/{path}" for path in paths])
        assert [file.relative_path for file in found] == ["d.parquet", "day=2/b.parquet", "far/c.parquet"], paths


def test_a_files_time_of_change_is_found_with_it(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    for name in ("a.parquet", "b/c.parquet"):
        (tmp_path / name).touch()
    for path in (tmp_path, tmp_path / "a.parquet", tmp_path / "*"):
        _, found = find_files([str(path)])
        assert [file.mtime_ns for file in found] == [Path(file.path).stat().st_mtime_ns for file in found]


def test_a_glob_below_a_file_names_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").touch()
    with pytest.raises(DataError, match="no file matches"):
        find_files([f"{tmp_path}/a.parquet/**"])


@pytest.mark.parametrize(
    ("partition", "named"),
    [
        ("2026-11-22", ["2026-11-22.parquet", "2026-11-22/a.parquet", "2026-11-22/b/c.parquet", "day=2026-11-22/a.parquet"]),
        ("day=2026-11-2*", ["day=2026-11-22/a.parquet", "day=2026-11-23/a.parquet"]),
        ("2026-11-22/b", ["2026-11-22/b/c.parquet"]),
        ("2026-11-22/b/", ["2026-11-22/b/c.parquet"]),
        ("2026-11-22/a.parquet", ["2026-11-22/a.parquet"]),
        ("2026-11-2", []),
    ],
)
def test_a_partition_names_folders_files_and_values(partition: str, named: list[str]) -> None:
    paths = ["2026-11-22.parquet", "2026-11-22/a.parquet", "2026-11-22/b/c.parquet", "day=2026-11-22/a.parquet", "day=2026-11-23/a.parquet"]
    assert [path for path in paths if in_partition(path, partition)] == named


FOLDERS_AND_FILES = [
    "a.parquet",
    "b.x",
    ".h/a.parquet",
    "_u/a.parquet",
    "d/a.parquet",
    "d/e/a.parquet",
    "d/e/b.x",
    "e1/.h.parquet",
    "[z]/a.x",
]


GLOB_PARTS = ["*", "**", "d", "e", "?", "[de]*", "[!d]", ".*", "*.parquet", "a.parquet", "nothing", "[[]z]"]


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_a_glob_names_what_pythons_does(tmp_path: Path, depth: int) -> None:
    for name in FOLDERS_AND_FILES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    paths = [tmp_path, *tmp_path.rglob("*")]
    for parts in itertools.product(GLOB_PARTS, repeat=depth):
        named = {str(path) for path in paths if is_named(parts, path.relative_to(tmp_path).parts, path.is_dir())}
        pythons = glob.glob(f"{tmp_path}/{'/'.join(parts)}", recursive=True)
        # To glob, ** below a file is that file with a slash behind it, which is no path.
        assert named == {os.path.normpath(path) for path in pythons if os.path.exists(path)}, parts


@pytest.mark.parametrize(
    ("path", "folder", "expected"),
    [
        ("", "out", True),
        ("", "../out", False),
        ("a.parquet", "out", False),
        ("*.parquet", "out", False),
        ("*", "out", True),
        ("p*", "out", False),
        ("**/*.parquet", "out", True),
        ("*/*.parquet", "out", True),
        ("*/*/*.parquet", "out", True),
        ("*/*/*.parquet", "a/b/c", False),
        ("b/*", "b/out", True),
        ("b/*", "out", False),
    ],
)
def test_an_input_takes_in_an_output_where_the_next_reading_would_find_its_files(
    path: str, folder: str, expected: bool, tmp_path: Path
) -> None:
    (tmp_path / "table").mkdir()
    pq.write_table(pa.table({"x": [1]}), tmp_path / "table" / "a.parquet")
    filesystem, output = open_filesystem(str(tmp_path / "table" / folder))
    assert takes_in(f"{tmp_path}/table/{path}", filesystem, output) is expected
    (tmp_path / "way").symlink_to("table")
    _, behind_a_link = open_filesystem(str(tmp_path / "way" / folder))
    assert takes_in(f"{tmp_path}/table/{path}", filesystem, behind_a_link) is expected
    assert takes_in(f"{tmp_path}/way/{path}", filesystem, output) is expected
