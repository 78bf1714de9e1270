"""Claims about data.reading: slices together are what pyarrow reads, as the types asked for, and each within the byte budget."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime, time
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import fs

from data.listing import DataError
from data.reading import MAX_BATCH_BYTES, RowReader, plain_text
from data.slicing import SLICE_ROWS
from data.table import RowGroup, Table, open_table

MIB = 2**20
BEYOND = 2**53 + 1  # the first integer that float64 does not hold


def in_utc(moment: datetime) -> datetime:
    return moment.replace(tzinfo=UTC)


# Column types, values of each, and a wider type to which such a column may be widened.
small = st.integers(-100, 100)
moments = st.datetimes(datetime(1900, 1, 1), datetime(2200, 1, 1))
whole_seconds = moments.map(lambda moment: moment.replace(microsecond=0))
floats = st.floats(width=32, allow_nan=False)
TYPES: list[tuple[pa.DataType, st.SearchStrategy[Any], pa.DataType]] = [
    (pa.int8(), small, pa.int64()),
    (pa.int16(), small, pa.float64()),
    (pa.int64(), st.integers(-(2**53), 2**53), pa.float64()),
    (pa.int64(), st.integers(-(2**63), 2**63 - 1), pa.int64()),
    (pa.uint8(), st.integers(0, 255), pa.int16()),
    (pa.uint32(), st.integers(0, 2**32 - 1), pa.int64()),
    (pa.uint64(), st.integers(0, 2**64 - 1), pa.uint64()),
    (pa.float16(), st.floats(width=16, allow_nan=False), pa.float32()),
    (pa.float32(), floats, pa.float64()),
    (pa.float64(), st.floats(allow_nan=False), pa.float64()),
    (pa.bool_(), st.booleans(), pa.bool_()),
    (pa.string(), st.text(max_size=10), pa.large_string()),
    (pa.large_string(), st.text(max_size=10), pa.large_string()),
    (pa.dictionary(pa.int32(), pa.string()), st.sampled_from(["", "a", "bc"]), pa.string()),
    (pa.dictionary(pa.int8(), pa.int64()), small, pa.float64()),
    (pa.binary(), st.binary(max_size=10), pa.large_binary()),
    (pa.binary(3), st.binary(min_size=3, max_size=3), pa.binary(3)),
    (pa.decimal128(9, 2), st.decimals(-9999, 9999, places=2), pa.decimal128(20, 4)),
    (pa.decimal128(38, 10), st.decimals(-9999, 9999, places=10), pa.decimal256(60, 12)),
    (pa.decimal256(50, 3), st.decimals(-9999, 9999, places=3), pa.decimal256(50, 3)),
    (pa.timestamp("s"), whole_seconds, pa.timestamp("us")),
    (
        pa.timestamp("ms", "Europe/Berlin"),
        whole_seconds.map(lambda moment: moment.replace(tzinfo=UTC)),
        pa.timestamp("ns", "Europe/Berlin"),
    ),
    (pa.timestamp("us", "UTC"), moments.map(lambda moment: moment.replace(tzinfo=UTC)), pa.timestamp("us", "UTC")),
    (pa.timestamp("ns", "+02:00"), moments.map(lambda moment: moment.replace(tzinfo=UTC)), pa.timestamp("ns", "+02:00")),
    (pa.date32(), st.dates(), pa.date64()),
    (pa.date64(), st.dates(), pa.date64()),
    (pa.time32("s"), st.times().map(lambda t: t.replace(microsecond=0)), pa.time64("us")),
    (pa.time32("ms"), st.times().map(lambda t: t.replace(microsecond=0)), pa.time32("ms")),
    (pa.time64("ns"), st.times(), pa.time64("ns")),
    (pa.duration("s"), st.integers(-(10**6), 10**6), pa.duration("ms")),
    (pa.null(), st.none(), pa.int32()),
    (pa.list_(pa.int8()), st.lists(small | st.none(), max_size=4), pa.list_(pa.float64())),
    (pa.large_list(pa.float32()), st.lists(floats, max_size=4), pa.list_(pa.float64())),
    (pa.list_(pa.decimal128(9, 2)), st.lists(st.decimals(-9999, 9999, places=2), max_size=3), pa.list_(pa.decimal128(20, 4))),
    (pa.list_(pa.uint8(), 3), st.lists(st.integers(0, 255) | st.none(), min_size=3, max_size=3), pa.list_(pa.int64(), 3)),
]


def write(path: Path, columns: Mapping[str, Any] | pa.Table, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(columns if isinstance(columns, pa.Table) else pa.table(dict(columns)), path, **options)
    return path


def slices(table: Table, schema: pa.Schema | None = None, max_bytes: int = MAX_BATCH_BYTES) -> list[tuple[RowGroup, pa.Table]]:
    """All slices of a table; checked to be all its rows, in their order."""
    found = []
    with RowReader(table.filesystem, table.schema if schema is None else schema, max_bytes) as reader:
        for group in table.row_groups():
            parts = list(reader.slices(group))
            assert all((part.path, part.identity, part.index) == (group.path, group.identity, group.index) for part, _ in parts)
            assert [part.num_rows for part, _ in parts] == [rows.num_rows for _, rows in parts]
            ends = np.cumsum([group.first_row, *(part.num_rows for part, _ in parts)]).tolist()
            assert [part.first_row for part, _ in parts] == ends[:-1]
            assert ends[-1] == group.first_row + group.num_rows
            assert all(0 < part.num_rows <= SLICE_ROWS for part, _ in parts)
            found += parts
    return found


def read(path: Path | str, schema: pa.Schema | None = None, max_bytes: int = MAX_BATCH_BYTES) -> pa.Table:
    return pa.concat_tables(plain_text(rows) for _, rows in slices(open_table(str(path)), schema, max_bytes))


def refusal(path: Path | str, schema: pa.Schema | None = None, max_bytes: int = MAX_BATCH_BYTES) -> str:
    table = open_table(str(path))
    with pytest.raises(DataError) as caught:
        slices(table, schema, max_bytes)
    return str(caught.value)


def plain(column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    """The column as a type, whatever dictionary or list container it came in."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return column.cast(pa.list_(column.type.value_type)).cast(pa.list_(kind.value_type))
    return column.cast(kind)


def assert_same(found: pa.Table, expected: pa.Table, schema: pa.Schema) -> None:
    assert found.column_names == schema.names
    for field in schema:
        assert plain(found[field.name], field.type).equals(plain(expected[field.name], field.type)), field


def read_by_pyarrow(path: Path, written: pa.Table) -> pa.Table:
    """What pyarrow reads; what was written, where it cannot read it back."""
    try:
        return pq.ParquetFile(path).read()
    except pa.ArrowInvalid as error:
        if "Expected all lists to be of size" not in str(error):
            raise
        return written


@st.composite
def tables(draw: st.DrawFn) -> tuple[pa.Table, pa.Schema]:
    """A table of one to four columns, and a schema that holds it."""
    num_rows = draw(st.sampled_from([1, 2, 17, 60, 300]))
    order = np.random.default_rng(draw(st.integers(0, 2**32)))
    columns, fields = {}, []
    for name, (kind, values, wider) in enumerate(draw(st.lists(st.sampled_from(TYPES), min_size=1, max_size=4))):
        few = pa.array(draw(st.lists(st.none() | values, min_size=1, max_size=12)), kind)
        columns[f"{name}"] = few.take(pa.array(order.integers(0, len(few), num_rows)))
        fields.append(pa.field(f"{name}", draw(st.sampled_from([kind, wider]))))
    return pa.table(columns), pa.schema(fields)


layouts = st.fixed_dictionaries(
    {
        "row_group_size": st.sampled_from([7, 100, 1000]),
        "compression": st.sampled_from(["none", "snappy", "zstd", "gzip"]),
        "data_page_version": st.sampled_from(["1.0", "2.0"]),
        "version": st.sampled_from(["2.4", "2.6"]),
        "use_dictionary": st.booleans(),
        "store_decimal_as_integer": st.booleans(),
        "write_statistics": st.booleans(),
        "write_page_index": st.booleans(),
    }
)
# Small pages, so that small budgets hold them.
PAGES = {"max_rows_per_page": 5, "write_batch_size": 5, "data_page_size": 100, "dictionary_pagesize_limit": 100}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("t")


@settings(max_examples=300)
@given(made=tables(), layout=layouts, max_bytes=st.sampled_from([700, 2_000, 10_000, MAX_BATCH_BYTES]))
def test_slices_together_are_what_pyarrow_reads(
    folder: Path, made: tuple[pa.Table, pa.Schema], layout: dict[str, Any], max_bytes: int
) -> None:
    written, schema = made
    path = write(folder / "t.parquet", written, **PAGES, **layout)
    expected, table = read_by_pyarrow(path, written), open_table(str(path))
    if layout["version"] == "2.4":  # which holds no nanoseconds
        schema = pa.schema([field if "ns" not in str(field.type) else table.schema.field(field.name) for field in schema])
    for wanted in (table.schema, schema):
        assert_same(pa.concat_tables(plain_text(rows) for _, rows in slices(table, wanted, max_bytes)), expected, wanted)


@pytest.mark.parametrize("options", [{"use_deprecated_int96_timestamps": True}, {"version": "1.0"}, {"store_schema": False}], ids=str)
def test_other_ways_to_store_a_type_are_read_as_pyarrow_reads_them(tmp_path: Path, options: dict[str, Any]) -> None:
    columns = {
        "moment": pa.array([datetime(2024, 1, 2, 3, 4, 5, 678901), None]),
        "zoned": pa.array([datetime(2024, 1, 2, tzinfo=UTC), None], pa.timestamp("s", "Europe/Berlin")),
        "u8": pa.array([255, None], pa.uint8()),
        "u32": pa.array([2**32 - 1, None], pa.uint32()),
        "u64": pa.array([2**64 - 1, None], pa.uint64()),
        "day": pa.array([date(2024, 1, 2), None], pa.date64()),
        "time": pa.array([time(1, 2, 3), None], pa.time32("s")),
        "text": pa.array(["a", None], pa.large_string()),
        "view": pa.array(["a", None], pa.string_view()),
        "bytes": pa.array([b"a", None], pa.binary_view()),
        "half": pa.array([0.5, None], pa.float16()),
        "wide": pa.array([Decimal("1.5"), None], pa.decimal256(70, 1)),
    }
    path = write(tmp_path / "t.parquet", columns, **options)
    expected = pq.ParquetFile(path).read()
    plain = {pa.string_view(): pa.string(), pa.binary_view(): pa.binary()}
    assert open_table(str(path)).schema.types == [plain.get(kind, kind) for kind in expected.schema.types]
    assert_same(read(path), expected, expected.schema)


@pytest.mark.parametrize("encoding", ["DELTA_BYTE_ARRAY", "DELTA_LENGTH_BYTE_ARRAY", "PLAIN"])
@pytest.mark.parametrize("max_bytes", [20_000, MAX_BATCH_BYTES])
def test_text_of_every_encoding_is_read(tmp_path: Path, encoding: str, max_bytes: int) -> None:
    """pyarrow 25 does not read the first two as dictionaries."""
    text = pa.array([f"value {i * i}" if i % 7 else None for i in range(2_000)])
    columns = {"text": text, "bytes": text.cast(pa.binary()), "coded": pa.array(["a", "b"] * 1_000)}
    encodings = dict.fromkeys(("text", "bytes"), encoding)
    path = write(
        tmp_path / "t.parquet", columns, use_dictionary=["coded"], column_encoding=encodings, data_page_size=1_000, row_group_size=600
    )
    assert encoding in pq.read_metadata(path).row_group(0).column(0).encodings
    assert read(path, max_bytes=max_bytes).equals(pa.table(columns))


@pytest.mark.parametrize("max_bytes", [2_000, MAX_BATCH_BYTES])
def test_text_comes_as_dictionaries_however_it_is_stored(tmp_path: Path, max_bytes: int) -> None:
    text = pa.array([f"{i % 5}" for i in range(1_000)])
    columns = {"string": text, "large": text.cast(pa.large_string()), "dictionary": text.dictionary_encode()}
    for path in (write(tmp_path / "dictionary.parquet", columns), write(tmp_path / "plain.parquet", columns, use_dictionary=False)):
        for _, rows in slices(open_table(str(path)), max_bytes=64_000 if max_bytes == 2_000 else max_bytes):
            assert rows.schema.types == [pa.dictionary(pa.int32(), pa.string())] * 3


def test_fixed_size_lists_with_null_rows_are_read(tmp_path: Path) -> None:
    """What pyarrow 25 writes and does not read back."""
    values = [[1, 2], None, [3, None], None, [None, None]]
    path = write(tmp_path / "t.parquet", {"x": pa.array(values, pa.list_(pa.int8(), 2)), "y": range(5)}, row_group_size=3)
    with pytest.raises(pa.ArrowInvalid, match="Expected all lists to be of size=2"):
        pq.read_table(path)
    assert open_table(str(path)).schema.field("x").type == pa.list_(pa.int8(), 2)
    assert read(path)["x"].to_pylist() == values
    assert read(path, pa.schema({"x": pa.list_(pa.float64(), 2)}))["x"].to_pylist() == values


def test_columns_are_read_by_their_whole_name_and_in_the_order_asked(tmp_path: Path) -> None:
    columns: dict[str, list[Any]] = {"a": [1], "a.b": [2], "a b": [3], "": [4], "ä": [5], "a.b.c": ["x"], "ARROW:schema": ["ARROW:schema"]}
    path = write(tmp_path / "a.parquet", columns)
    schema = open_table(str(path)).schema
    for names in (["a"], ["a.b"], ["a.b", "a"], ["ä", "", "a b"], ["a.b.c", "a"], ["ARROW:schema"], list(columns)):
        found = read(path, pa.schema([schema.field(name) for name in names]))
        assert found.to_pylist() == [{name: columns[name][0] for name in names}]


def test_a_column_with_a_dot_is_not_the_part_of_another(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", {"a": [{"b": 1}], "a.b": ["text"], "b": [2.5]})
    table = open_table(str(path), columns=["a.b", "b"])
    assert [rows.to_pylist() for _, rows in slices(table)] == [[{"a.b": "text", "b": 2.5}]]


def test_a_column_named_as_arrows_own_metadata_leaves_fixed_size_lists_as_they_are(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", {"ARROW:schema": pa.array([[1, 2], None], pa.list_(pa.int8(), 2))})
    assert read(path).to_pylist() == [{"ARROW:schema": [1, 2]}, {"ARROW:schema": None}]


def test_no_column_is_read_as_rows_without_columns(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", {"a": range(10)}, row_group_size=4)
    found = slices(open_table(str(path)), pa.schema([]))
    assert [(part.first_row, rows.num_rows, rows.num_columns) for part, rows in found] == [(0, 4, 0), (4, 4, 0), (8, 2, 0)]


def test_a_row_group_without_rows_has_no_slices(tmp_path: Path) -> None:
    with pq.ParquetWriter(tmp_path / "a.parquet", pa.schema({"a": pa.string()}), use_dictionary=False) as writer:
        for values in ([], ["x"], []):
            writer.write_table(pa.table({"a": pa.array(values, pa.string())}))
    table = open_table(str(tmp_path))
    assert table.files[0].row_groups == (0, 1, 0)
    assert [rows["a"].to_pylist() for _, rows in slices(table)] == [["x"]]


@pytest.mark.parametrize("kind", [kind for kind, _, _ in TYPES], ids=str)
def test_a_column_that_a_file_lacks_is_null(tmp_path: Path, kind: pa.DataType) -> None:
    path = write(tmp_path / "a.parquet", {"y": range(5)}, row_group_size=2)
    schema = pa.schema({"x": kind, "y": pa.int64()})
    for wanted in (schema, schema.remove(1)):
        found = slices(open_table(str(path)), wanted)
        assert pa.concat_tables(rows for _, rows in found)["x"].to_pylist() == [None] * 5
        assert {rows.schema.field("x").type for _, rows in found} == {kind}


def test_files_are_widened_to_one_table(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", {"x": pa.array([1, None], pa.int8()), "s": ["a", "b"], "n": pa.nulls(2)})
    write(tmp_path / "b.parquet", {"x": [2**53], "s": pa.array(["c"], pa.large_string()), "n": [True]})
    write(tmp_path / "c.parquet", {"n": [False], "s": pa.array(["c"]).dictionary_encode(), "x": [0.5]})
    table = open_table(str(tmp_path))
    assert table.schema == pa.schema({"x": pa.float64(), "s": pa.large_string(), "n": pa.bool_()})
    found = read(tmp_path)
    assert found["x"].to_pylist() == [1.0, None, 2.0**53, 0.5]
    assert found["s"].to_pylist() == ["a", "b", "c", "c"]
    assert found["n"].to_pylist() == [None, None, True, False]
    assert [found.schema.field(name).type for name in ("x", "n")] == [pa.float64(), pa.bool_()]


@pytest.mark.parametrize(("kind", "value"), [(pa.int64(), BEYOND), (pa.int64(), -BEYOND), (pa.uint64(), 2**64 - 1)])
def test_integers_that_double_does_not_hold_are_refused_on_reading(tmp_path: Path, kind: pa.DataType, value: int) -> None:
    path = write(tmp_path / "a.parquet", {"y": [1, 2], "x": pa.array([1, value], kind)}, write_statistics=False)
    write(tmp_path / "b.parquet", {"y": [1], "x": [0.5]})
    assert open_table(str(tmp_path)).schema == pa.schema({"y": pa.int64(), "x": pa.float64()})
    message = refusal(tmp_path)
    assert message.startswith(f"{path}: column 'x': {kind} does not become double without loss")
    assert str(value) in message


def test_integers_in_lists_that_double_does_not_hold_are_refused_on_reading(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", {"x": [[1, BEYOND]]})
    write(tmp_path / "b.parquet", {"x": [[0.5, 1.5]]})
    assert refusal(tmp_path).startswith(f"{path}: column 'x': ")


def test_a_type_that_cannot_be_widened_is_refused_by_file_and_column(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", {"x": ["1"], "y": [1]})
    schema = pa.schema({"y": pa.int64(), "x": pa.int64()})
    assert refusal(path, schema).startswith(f"{path}: column 'x': ")


def test_text_that_is_no_utf_8_is_refused_by_file_and_column(tmp_path: Path) -> None:
    for options in ({}, {"use_dictionary": False, "column_encoding": "DELTA_LENGTH_BYTE_ARRAY"}):
        path = write(tmp_path / "a.parquet", {"good": ["ä"], "bad": pa.array([b"M\xfcller"]).view(pa.string())}, **options)
        assert refusal(path).startswith(f"{path}: column 'bad': ")
        assert "UTF8" in refusal(path)


PARTITIONED = {
    "x=1/a.parquet": "1",
    "x=2/y=b/a.parquet": "2",
    "x=__HIVE_DEFAULT_PARTITION__/a.parquet": None,
    "x=3/deep/y=__HIVE_DEFAULT_PARTITION__/a.parquet": "3",
}


@pytest.mark.parametrize(
    ("kind", "become"),
    [
        (pa.int64(), int),
        (pa.string(), str),
        (pa.large_string(), str),
        (pa.float64(), float),
        (pa.int8(), int),
        (pa.decimal128(3, 1), Decimal),
    ],
)
def test_values_that_folders_spell_out_are_read_as_the_type_asked_for(
    tmp_path: Path, kind: pa.DataType, become: Callable[[str], Any]
) -> None:
    for name in PARTITIONED:
        write(tmp_path / name, {"v": range(5)}, row_group_size=3)
    table = open_table(str(tmp_path), allow_missing_columns=True)
    assert table.schema == pa.schema({"v": pa.int64(), "x": pa.int64(), "y": pa.string()})
    schema = pa.schema({"y": pa.string(), "x": kind, "v": pa.int64()})
    by_path = {Path(part.path).relative_to(tmp_path).as_posix(): plain_text(rows) for part, rows in slices(table, schema)}
    assert {name: set(rows["x"].to_pylist()) for name, rows in by_path.items()} == {
        name: {None if spelled is None else become(spelled)} for name, spelled in PARTITIONED.items()
    }
    assert {name: set(rows["y"].to_pylist()) for name, rows in by_path.items()} == {
        name: {"b" if "y=b" in name else None} for name in PARTITIONED
    }


def test_spelled_text_keeps_its_zeros_spaces_and_quoted_characters(tmp_path: Path) -> None:
    spelled = {"x=007": "007", "x=1": "1", "x=a%20b": "a b", "x=a%2Fb": "a/b", "x=": "", "x=a=b": "a=b", "x=%C3%A4": "ä", "x=%25": "%"}
    for folder in spelled:
        write(tmp_path / folder / "a.parquet", {"v": [1, 2]})
    table = open_table(str(tmp_path))
    assert table.schema == pa.schema({"v": pa.int64(), "x": pa.string()})
    found = {Path(part.path).parent.name: rows["x"] for part, rows in slices(table)}
    assert {name: column.to_pylist() for name, column in found.items()} == {name: [value] * 2 for name, value in spelled.items()}
    assert {column.type for column in found.values()} == {pa.dictionary(pa.int32(), pa.string())}


def test_a_spelled_value_that_is_none_of_the_type_asked_for_is_refused_by_file_and_column(tmp_path: Path) -> None:
    path = write(tmp_path / "x=abc/a.parquet", {"v": [1]})
    assert refusal(tmp_path, pa.schema({"v": pa.int64(), "x": pa.int64()})) == f"{path}: column 'x': 'abc' is no int64"


def test_a_column_that_agrees_with_its_folder_is_read_from_the_file_and_fills_in_where_it_lacks(tmp_path: Path) -> None:
    write(tmp_path / "x=01/a.parquet", {"v": [1], "x": pa.array([1], pa.int16())})
    write(tmp_path / "x=02/a.parquet", {"v": [2]})
    found = read(tmp_path)
    assert found.schema.field("x").type == pa.int16()
    assert found.to_pylist() == [{"v": 1, "x": 1}, {"v": 2, "x": 2}]


CHANGES: dict[str, Callable[[Path], object]] = {
    "rows differ": lambda path: write(path, {"a": range(9), "b": range(9)}, row_group_size=5),
    "row group gone": lambda path: write(path, {"a": range(5), "b": range(5)}, row_group_size=5),
    "column gone": lambda path: write(path, {"a": range(10)}, row_group_size=5),
    "type differs": lambda path: write(path, {"a": range(10), "b": [0.5] * 10}, row_group_size=5),
    "values differ": lambda path: write(path, {"a": range(10), "b": range(1, 11)}, row_group_size=5),
    "file truncated": lambda path: os.truncate(path, path.stat().st_size - 10),
    "file emptied": lambda path: os.truncate(path, 0),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_file_that_changed_since_its_footer_was_read_is_named(tmp_path: Path, change: str) -> None:
    path = write(tmp_path / "a.parquet", {"a": range(10), "b": range(10)}, row_group_size=5)
    table = open_table(str(path))
    CHANGES[change](path)
    for group in table.row_groups():
        with RowReader(table.filesystem, table.schema) as reader, pytest.raises(DataError) as caught:
            list(reader.slices(group))
        assert (
            str(caught.value)
            == f"{path}: row group {group.index}: the file changed since its footer was read; run again when nothing writes it"
        )


def test_a_file_that_is_gone_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", {"a": range(10)}, row_group_size=5)
    table = open_table(str(path))
    path.unlink()
    with (
        RowReader(table.filesystem, table.schema) as reader,
        pytest.raises(DataError, match=rf"^{path}: row group 1 cannot be read: .*No such"),
    ):
        list(reader.slices(list(table.row_groups())[1]))


def test_a_row_group_of_another_file_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", {"a": [1]})
    reader = RowReader(fs.LocalFileSystem(), pa.schema({"a": pa.int64()}))
    with pytest.raises(DataError, match=rf"^{path}: row group 5: the file changed"):
        list(reader.slices(RowGroup(str(path), "0" * 64, 5, 0, 3)))


def test_damaged_pages_are_named_by_file_and_column(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    columns = {"good": rng.normal(size=1000), "bad": rng.normal(size=1000)}
    path = write(tmp_path / "a.parquet", columns, compression="zstd", use_dictionary=False)
    chunk = pq.read_metadata(path).row_group(0).column(1)
    with path.open("r+b") as file:
        file.seek(chunk.data_page_offset + 200)
        file.write(bytes(2000))
    assert refusal(path).startswith(f"{path}: row group 0, columns 'bad' cannot be read: ")
    assert read(path, pa.schema({"good": pa.float64()})).num_rows == 1000


def test_damaged_text_that_is_too_long_for_dictionaries_is_named_by_file_and_column(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    columns = {"good": ["x"] * 1000, "bad": [rng.bytes(100).hex() for _ in range(1000)]}
    path = write(tmp_path / "a.parquet", columns, compression="zstd", use_dictionary=False, data_page_size=1000)
    chunk = pq.read_metadata(path).row_group(0).column(1)
    with path.open("r+b") as file:
        file.seek(chunk.data_page_offset + 5_000)
        file.write(bytes(500))
    assert f"{path}: row group 0" in refusal(path, max_bytes=300_000)
    assert "column 'bad'" in refusal(path, max_bytes=300_000)


def test_a_reader_holds_one_file_open_and_none_after_it_is_closed(tmp_path: Path) -> None:
    def num_open() -> int:
        return sum(
            os.readlink(f"/proc/self/fd/{fd}").startswith(str(tmp_path))
            for fd in os.listdir("/proc/self/fd")
            if os.path.exists(f"/proc/self/fd/{fd}")
        )

    for name in "abc":
        write(tmp_path / f"{name}.parquet", {"x": range(10)}, row_group_size=2)
    table = open_table(str(tmp_path))
    assert num_open() == 0
    with RowReader(table.filesystem, table.schema) as reader:
        for group in table.row_groups():
            list(reader.slices(group))
            assert num_open() == 1
    assert num_open() == 0


def test_the_rows_that_a_footer_claims_are_counted(tmp_path: Path) -> None:
    lists = [[i, i * i] for i in range(500)] + [[i] for i in range(500)]
    path = write(tmp_path / "t.parquet", {"x": lists}, write_statistics=False, compression="none")
    content = path.read_bytes()
    footer = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    assert content.count(b"\xd0\x0f", footer) >= 2, "1000 as Thrift spells it: the file's rows and the row group's"
    path.write_bytes(content[:footer] + content[footer:].replace(b"\xd0\x0f", b"\x98\x11"))
    assert open_table(str(path)).num_rows == 1100
    assert refusal(path) == f"{path}: row group 0 has 1000 rows, its footer says 1100: the file is damaged; write it anew"


@pytest.mark.parametrize("kind", [pa.string(), pa.binary()], ids=str)
def test_codes_that_a_dictionary_does_not_hold_are_refused_by_file_and_column(tmp_path: Path, kind: pa.DataType) -> None:
    """pyarrow 25 reads them; casts would look behind the dictionary."""
    codes = np.random.default_rng(0).integers(0, 3, 1000)
    columns = {"good": codes, "bad": pa.DictionaryArray.from_arrays(codes, pa.array(["a", "b", "c"], kind))}
    path = write(tmp_path / "t.parquet", columns, compression="none")
    chunk = pq.read_metadata(path).row_group(0).column(1)
    content = bytearray(path.read_bytes())
    content[chunk.dictionary_page_offset + chunk.total_compressed_size - 100] = 255  # four codes of two bits
    path.write_bytes(content)
    damaged = "its dictionary of 3 values has none at 3: the file is damaged; write it anew"
    assert refusal(path) == f"{path}: column 'bad': {damaged}"


MIXED = pa.table(
    {
        "int": pa.array(range(300), pa.int16()),
        "text": [f"value {i % 40}" for i in range(300)],
        "bytes": [b"x" * (i % 20) for i in range(300)],
        "list": [[i, None] for i in range(300)],
        "pair": pa.array([[1, 2] if i % 5 else None for i in range(300)], pa.list_(pa.int8(), 2)),
        "flag": [i % 3 == 0 for i in range(300)],
    }
)


@settings(max_examples=200)
@given(codec=st.sampled_from(["none", "snappy", "zstd"]), max_bytes=st.sampled_from([30_000, MIB]), data=st.data())
def test_a_file_with_damaged_pages_is_read_or_refused_by_name(folder: Path, codec: str, max_bytes: int, data: st.DataObject) -> None:
    path = write(folder / f"{codec}.parquet", MIXED, compression=codec, row_group_size=120)
    content = bytearray(path.read_bytes())
    footer = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(4, footer - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    table = open_table(str(path))
    with RowReader(table.filesystem, table.schema, max_bytes) as reader:
        for group in table.row_groups():
            try:
                assert sum(rows.num_rows for _, rows in reader.slices(group)) == group.num_rows
            except DataError as error:
                assert str(error).startswith(f"{path}: ")  # noqa: PT017  either is fine
