"""Claims about data.pages: honest files pass, what decodes beyond the budget is refused by column, and no bytes make it fail or hang."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.pages import DATA_PAGES, MAX_HEADER_BYTES, MalformedHeader, check_pages, first_page, read_page_header, read_struct

MIB = 1 << 20
CODECS = ("none", "snappy", "gzip", "zstd", "brotli", "lz4")


class CountingFile(pa.OSFile):
    """A file that knows what was read of it."""

    def __init__(self, path: str) -> None:
        self.reads: list[int] = []

    def read_at(self, nbytes: int, offset: int) -> bytes:
        self.reads.append(nbytes)
        return super().read_at(nbytes, offset)  # type: ignore[no-any-return]


def mixed(num_rows: int = 5_000) -> pa.Table:
    """Numbers, text, booleans, lists and structs, each with nulls."""
    rng = np.random.default_rng(0)
    null = rng.random(num_rows) < 0.1
    lists = [None if i % 7 == 0 else [None if j % 5 == 4 else j for j in range(i % 11)] for i in range(num_rows)]
    return pa.table(
        {
            "float": pa.array(rng.normal(size=num_rows), mask=null),
            "integer": pa.array(rng.integers(0, 50, num_rows), pa.int16(), mask=null),
            "text": pa.array([f"category {i % 30}" for i in range(num_rows)], mask=null),
            "flag": pa.array(rng.random(num_rows) < 0.5, mask=null),
            "list": pa.array(lists, pa.list_(pa.int64())),
            "a.list": pa.array([[str(i)] * (i % 3) for i in range(num_rows)]),
            "struct": pa.array([{"x": i, "y": [float(i)]} for i in range(num_rows)]),
            "fixed": pa.array([i.to_bytes(3, "big") for i in range(num_rows)], pa.binary(3)),
            "nothing": pa.nulls(num_rows),
        }
    )


def write(path: Path, table: pa.Table, **options: Any) -> Path:
    pq.write_table(table, path, **options)
    return path


def write_one_page(path: Path, table: pa.Table, **options: Any) -> Path:
    rows = table.num_rows
    return write(path, table, data_page_size=1 << 30, max_rows_per_page=rows, write_batch_size=rows, row_group_size=rows, **options)


def faults(path: Path, max_bytes: int, columns: list[str] | None = None) -> list[str]:
    metadata = pq.read_metadata(path)
    with pa.OSFile(str(path)) as source:
        names = columns if columns is not None else metadata.schema.to_arrow_schema().names
        return [fault for group in range(metadata.num_row_groups) for fault in check_pages(source, metadata, group, names, max_bytes)]


def varint(value: int, length: int = 0) -> bytes:
    """A varint, made longer than it need be where a length is given: that leaves all other bytes of a file where they are."""
    count = max(length, (value.bit_length() + 6) // 7, 1)
    return bytes((value >> 7 * i) & 127 | (128 if i < count - 1 else 0) for i in range(count))


def integer(value: int, length: int = 0) -> bytes:
    return varint(value << 1 if value >= 0 else (-value << 1) - 1, length)


def replace_integer(content: bytes, begin: int, end: int, old: int, new: int) -> bytes:
    """The content with each integer `old` between two positions replaced by one of as many bytes."""
    encoded = integer(old)
    assert encoded in content[begin:end], "the test's file does not hold what the test means to change"
    return content[:begin] + content[begin:end].replace(encoded, integer(new, len(encoded))) + content[end:]


@pytest.mark.parametrize("dictionary", [True, False])
@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("codec", CODECS)
def test_an_honest_file_passes(tmp_path: Path, codec: str, version: str, dictionary: bool) -> None:
    path = write(
        tmp_path / "honest.parquet", mixed(), compression=codec, data_page_version=version, use_dictionary=dictionary, row_group_size=2_000
    )
    assert faults(path, 64 * MIB) == []
    assert faults(path, MIB // 8) == [], "where the codecs' bounds do not spare the reading of headers"


@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("codec", CODECS)
def test_the_headers_read_add_up_to_what_an_honest_footer_says(tmp_path: Path, codec: str, version: str) -> None:
    path = write(tmp_path / "honest.parquet", mixed(), compression=codec, data_page_version=version, data_page_size=4096)
    group = pq.read_metadata(path).row_group(0)
    with pa.OSFile(str(path)) as source:
        for chunk in map(group.column, range(group.num_columns)):
            begin = position = first_page(chunk)
            decoded = values = 0
            while position < begin + chunk.total_compressed_size:
                page, end = read_page_header(source, position, source.size())
                decoded += end - position + page.uncompressed_bytes
                values += page.num_values if page.kind in DATA_PAGES else 0
                position = end + page.compressed_bytes
            assert (position, values, decoded) == (begin + chunk.total_compressed_size, chunk.num_values, chunk.total_uncompressed_size)


def test_a_header_longer_than_the_first_window_is_read(tmp_path: Path) -> None:
    text = pa.table({"text": [f"{i}" * 1_000 for i in range(10, 14)]})
    path = write(tmp_path / "t.parquet", text, compression="zstd", use_dictionary=False, write_statistics=True)
    first = first_page(pq.read_metadata(path).row_group(0).column(0))
    with pa.OSFile(str(path)) as source:
        assert read_page_header(source, first, source.size())[1] - first > 4_000
    assert faults(path, MIB) == []


def test_files_whose_codec_cannot_exceed_the_budget_are_not_read(tmp_path: Path) -> None:
    flat = mixed().select(["float", "integer", "text", "flag", "fixed"])
    for codec in ("none", "snappy"):
        path = write(tmp_path / f"{codec}.parquet", flat, compression=codec)
        source = CountingFile(str(path))
        assert check_pages(source, pq.read_metadata(path), 0, flat.column_names, 64 * MIB) == []
        assert source.reads == []
        check_pages(source, pq.read_metadata(path), 0, flat.column_names, 1_000)
        assert source.reads != [], "the same file is read where the budget is smaller"


@pytest.mark.parametrize("codec", ["gzip", "zstd", "brotli", "lz4", "snappy"])
def test_a_page_that_decodes_beyond_the_budget_is_refused_from_its_header(tmp_path: Path, codec: str) -> None:
    bomb = pa.table({"good": np.arange(8 * MIB, dtype=np.int8), "bomb": np.zeros(8 * MIB)})
    path = write_one_page(tmp_path / "bomb.parquet", bomb, compression=codec, use_dictionary=False)
    metadata = pq.read_metadata(path)
    assert metadata.row_group(0).column(1).total_compressed_size < 4 * MIB
    source = CountingFile(str(path))
    (fault,) = check_pages(source, metadata, 0, ["bomb"], 8 * MIB)
    assert re.fullmatch(
        r"column 'bomb': a page decodes to (\d+) bytes, data\.max_batch_bytes is 8388608; write the file with smaller pages, or raise it",
        fault,
    )
    assert sum(source.reads) < 4096
    assert faults(path, 65 * MIB) == []


@pytest.mark.parametrize("codec", ["gzip", "zstd"])
def test_a_footer_that_claims_little_hides_nothing(tmp_path: Path, codec: str) -> None:
    path = write_one_page(tmp_path / "bomb.parquet", pa.table({"bomb": np.zeros(8 * MIB)}), compression=codec, use_dictionary=False)
    chunk = pq.read_metadata(path).row_group(0).column(0)
    footer = chunk.data_page_offset + chunk.total_compressed_size
    content = path.read_bytes()
    path.write_bytes(replace_integer(content, footer, len(content), chunk.total_uncompressed_size, 1_000))
    group = pq.read_metadata(path).row_group(0)
    assert (group.column(0).total_uncompressed_size, group.total_byte_size) == (1_000, 1_000)
    assert [fault[:34] for fault in faults(path, 8 * MIB)] == ["column 'bomb': a page decodes to 6"]
    assert pq.read_table(path).nbytes >= 64 * MIB, "Arrow decodes it all the same"


def test_pages_of_many_columns_may_not_add_up_to_many_budgets(tmp_path: Path) -> None:
    zeros = pa.array(np.zeros(MIB // 8))
    path = write_one_page(tmp_path / "a.parquet", pa.table({f"x{i}": zeros for i in range(12)}), compression="zstd", use_dictionary=False)
    assert faults(path, 4 * MIB) == []
    (line, *more) = faults(path, 2 * MIB)
    assert line.startswith("column 'x7': its largest page and those of the columns before it decode to ")
    assert "data.max_batch_bytes" in line
    assert len(more) == 4


def test_an_uncompressed_page_is_as_large_as_it_is_stored(tmp_path: Path) -> None:
    path = write_one_page(tmp_path / "t.parquet", pa.table({"a": np.zeros(MIB)}), compression="none", use_dictionary=False)
    position = first_page(pq.read_metadata(path).row_group(0).column(0))
    with pa.OSFile(str(path)) as source:
        page, _ = read_page_header(source, position, source.size())
    content = path.read_bytes()
    uncompressed = content.index(integer(page.uncompressed_bytes), position)
    path.write_bytes(replace_integer(content, uncompressed, uncompressed + 4, page.uncompressed_bytes, 1_000))
    assert [fault[:34] for fault in faults(path, MIB)] == ["column 'a': a page decodes to 8388"]


def test_a_dictionary_that_decodes_beyond_the_budget_is_refused(tmp_path: Path) -> None:
    wide = pa.table({"wide": ["x" * MIB * 4, "y" * MIB * 4, "x"]})
    path = write(tmp_path / "t.parquet", wide, compression="zstd", dictionary_pagesize_limit=1 << 30)
    assert "RLE_DICTIONARY" in pq.read_metadata(path).row_group(0).column(0).encodings
    assert [fault[:37] for fault in faults(path, MIB)] == ["column 'wide': a page decodes to 8388"]


def test_a_row_of_twenty_million_equal_values_is_refused(tmp_path: Path) -> None:
    values = pa.array(np.zeros(20_000_000, np.uint8))
    path = write(tmp_path / "t.parquet", pa.table({"few": [[1]], "many": pa.ListArray.from_arrays([0, len(values)], values)}))
    assert path.stat().st_size < MIB
    (fault,) = faults(path, 64 * MIB)
    assert fault.startswith(
        "column 'many': its 1 rows hold 20000000 values, 80000000 bytes, so that one row is more than data.max_batch_bytes"
    )
    assert faults(path, 80_000_000) == []


def test_a_page_of_too_many_values_is_refused_where_a_row_may_hold_them_all(tmp_path: Path) -> None:
    values = pa.array(np.zeros(1_000_000, np.uint8))
    offsets = [*range(1_000), len(values)]
    path = write_one_page(tmp_path / "t.parquet", pa.table({"lists": pa.ListArray.from_arrays(offsets, values)}))
    assert faults(path, 4_000_000) == []
    (fault,) = faults(path, 3_999_999)
    assert fault.startswith("column 'lists': a page holds 1000000 values, 4000000 bytes, data.max_batch_bytes is 3999999; write")
    flat = write_one_page(tmp_path / "flat.parquet", pa.table({"flat": values}), compression="zstd")
    assert faults(flat, MIB) == [], "without a list the rows that are read at once bound the values"


@pytest.mark.parametrize("claim", [1, 99_999, 100_001, 1_000_000])
def test_a_page_that_lies_about_its_values_is_refused(tmp_path: Path, claim: int) -> None:
    lists = pa.table({"lists": [[i % 10] * 10 for i in range(10_000)]})
    path = write_one_page(tmp_path / "t.parquet", lists, compression="snappy")
    begin = pq.read_metadata(path).row_group(0).column(0).data_page_offset
    path.write_bytes(replace_integer(path.read_bytes(), begin, begin + 32, 100_000, claim))
    fault = f"column 'lists': its pages hold {claim} values, the footer says 100000: the file is damaged; write it anew"
    assert faults(path, 64 * MIB) == [fault]


def test_a_dictionary_that_lies_about_its_values_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "t.parquet", pa.table({"a": np.arange(20_000)}), compression="zstd", row_group_size=20_000)
    begin = first_page(pq.read_metadata(path).row_group(0).column(0))
    assert faults(path, MIB) == []
    path.write_bytes(replace_integer(path.read_bytes(), begin, begin + 32, 20_000, 1_000_000))
    (fault,) = faults(path, MIB)
    assert fault.startswith("column 'a': a page holds 1000000 values, 8000000 bytes, data.max_batch_bytes is 1048576; write")


@pytest.mark.parametrize("offset", [0, 63])
def test_a_dictionary_that_does_not_lie_before_the_data_is_not_looked_for(tmp_path: Path, offset: int) -> None:
    path = write(tmp_path / "t.parquet", pa.table({"a": [1, 1, 1]}), compression="zstd")
    first = pq.read_metadata(path).row_group(0).column(0)
    offsets = b"\x26" + integer(first.data_page_offset) + b"\x26" + integer(first.dictionary_page_offset)
    content = path.read_bytes()
    assert content.count(offsets) == 1
    path.write_bytes(content.replace(offsets, offsets[:-1] + integer(offset)))
    assert pq.read_metadata(path).row_group(0).column(0).dictionary_page_offset == offset
    assert faults(path, MIB) == []


def test_each_column_has_one_line_and_columns_that_are_not_named_are_not_read(tmp_path: Path) -> None:
    zeros = np.zeros(MIB)
    pair = pa.StructArray.from_arrays([pa.array(zeros), pa.array(zeros, pa.int32())], ["x", "y"])
    table = pa.table({"a": zeros, "a.b": zeros, "s": pair, "good": np.zeros(MIB, bool)})
    path = write_one_page(tmp_path / "t.parquet", table, compression="zstd", use_dictionary=False)
    assert [fault.split(":")[0] for fault in faults(path, MIB)] == ["column 'a'", "column 'a.b'", "column 's'"]
    assert [fault.split(":")[0] for fault in faults(path, MIB, ["good", "s"])] == ["column 's'"]
    assert "a page decodes to 8388" in faults(path, MIB, ["s"])[0], "the first of its leaves"
    assert [fault.split(":")[0] for fault in faults(path, MIB, ["a.b"])] == ["column 'a.b'"]
    assert faults(path, MIB, ["good", "x", "s.", "list"]) == []


@pytest.mark.parametrize("codec", ["zstd", "gzip"])
def test_a_file_cut_short_is_refused(tmp_path: Path, codec: str) -> None:
    path = write(tmp_path / "t.parquet", mixed(), compression=codec)
    metadata = pq.read_metadata(path)
    for size in (0, 4, 40, metadata.row_group(0).column(0).total_compressed_size // 2):
        (fault,) = check_pages(pa.BufferReader(path.read_bytes()[:size]), metadata, 0, ["float"], 1_000_000 if codec == "gzip" else MIB)
        assert fault.startswith("column 'float': its page headers cannot be read (byte ")


def header(**fields: bytes) -> bytes:
    """A dictionary page's header, as Thrift's compact protocol writes it, with some of its parts as given."""
    parts = {
        "kind": b"\x15" + integer(2),
        "uncompressed": b"\x15" + integer(100),
        "compressed": b"\x15" + integer(90),
        "inner": b"\x4c\x15" + integer(7) + b"\x00",
        "more": b"",
    }
    return b"".join((parts | fields).values()) + b"\x00"


def read(content: bytes, behind: int = 1_000) -> tuple[int, ...]:
    padded = content + bytes(behind)
    page, length = read_page_header(pa.BufferReader(padded), 0, len(padded))
    assert length == len(content)
    return tuple(page)


def test_a_header_is_read_whatever_fields_it_adds() -> None:
    assert read(header()) == (2, 100, 90, 7)
    added = {
        "true and false": b"\x11\x12",
        "byte, int16, int64, double": b"\x13\xff\x14" + integer(-5) + b"\x16" + integer(1 << 60) + b"\x17" + bytes(8),
        "text": b"\x18" + varint(600) + b"x" * 600,
        "list of 3 and set of 20": b"\x19\x35\x01\x01\x01\x1a\xf1\x14" + bytes(20),
        "maps, of none and of 2": b"\x1b\x00\x1b\x02\x85\x01a\x02\x01b\x02",
        "list of true and false": b"\x19\x22\x01\x02",
        "list of structs": b"\x19\x2c\x15\x02\x00\x00",
        "a field by its full number, again before it": b"\x05" + integer(1_000) + b"\x02\x05" + integer(20) + b"\x02",
    }
    for what, more in added.items():
        assert read(header(more=more)) == (2, 100, 90, 7), what


@pytest.mark.parametrize(
    "fields",
    [
        {"kind": b"\x15" + integer(-1)},
        {"kind": b"\x15" + integer(0)},
        {"kind": b"\x1c\x00"},
        {"uncompressed": b"\x15" + integer(-1)},
        {"uncompressed": b"\x15" + integer((1 << 32) + 100)},
        {"uncompressed": b"\x16" + integer(100)},
        {"uncompressed": b""},
        {"compressed": b"\x15" + integer(-90)},
        {"compressed": b"\x15" + integer(5_000)},
        {"compressed": b"\x15" + integer((1 << 32) + 90)},
        {"inner": b""},
        {"inner": b"\x4c\x00"},
        {"inner": b"\x4c\x15" + integer(-7) + b"\x00"},
        {"inner": b"\x45" + integer(7)},
        {"more": b"\x05" + integer((1 << 16) + 2) + integer(1_000_000)},
        {"more": b"\x15" + b"\xff" * 11},
        {"more": b"\x18" + varint(1 << 62)},
        {"more": b"\x19\xf1" + varint(1 << 62)},
        {"more": b"\x19\xfc" + varint(1 << 62)},
        {"more": b"\x1b" + varint(1 << 62) + b"\x33"},
        {"more": b"\x19\x10\x00"},
        {"more": b"\x1d\x00"},
        {"more": b"\x1c" * 100_000},
        {"more": b"\x19" + b"\x19" * 100_000},
    ],
    ids=lambda fields: " ".join(f"{name}={value[:8].hex()}" for name, value in fields.items()),
)
def test_what_is_no_header_is_refused(fields: dict[str, bytes]) -> None:
    with pytest.raises(MalformedHeader, match="byte 0"):
        read(header(**fields))


def test_a_header_has_a_greatest_length() -> None:
    read(header(more=b"\x18" + varint(MAX_HEADER_BYTES - 50) + b"x" * (MAX_HEADER_BYTES - 50)))
    with pytest.raises(MalformedHeader):
        read(header(more=b"\x18" + varint(MAX_HEADER_BYTES) + b"x" * MAX_HEADER_BYTES))


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    try:
        _, end = read_struct(data, 0)
    except (MalformedHeader, IndexError):
        return
    assert 0 < end <= len(data)


def in_memory(codec: str) -> tuple[bytes, pq.FileMetaData]:
    sink = pa.BufferOutputStream()
    pq.write_table(mixed(500), sink, compression=codec, data_page_size=512)
    content = sink.getvalue().to_pybytes()
    return content, pq.read_metadata(pa.BufferReader(content))


FILES = {codec: in_memory(codec) for codec in CODECS}


def headers_of(content: bytes, metadata: pq.FileMetaData) -> list[tuple[int, int]]:
    """Where each page header of the file begins and ends."""
    source, found = pa.BufferReader(content), []
    for chunk in map(metadata.row_group(0).column, range(metadata.num_columns)):
        begin = position = first_page(chunk)
        while position < begin + chunk.total_compressed_size:
            page, end = read_page_header(source, position, len(content))
            found.append((position, end))
            position = end + page.compressed_bytes
    return found


HEADERS = {codec: headers_of(*file) for codec, file in FILES.items()}


@settings(max_examples=200)
@given(codec=st.sampled_from(CODECS), budget=st.sampled_from([100, 10_000, 64 * MIB]), data=st.data())
def test_a_damaged_file_is_passed_or_refused_by_column_and_never_raises(codec: str, budget: int, data: st.DataObject) -> None:
    content, metadata = FILES[codec]
    damaged = bytearray(content)
    for _ in range(data.draw(st.integers(1, 4))):
        begin, end = data.draw(st.sampled_from([*HEADERS[codec], (4, HEADERS[codec][-1][1])]))
        patch = data.draw(st.binary(min_size=1, max_size=6))
        at = data.draw(st.integers(begin, end - 1))
        damaged[at : at + len(patch)] = patch
    names = metadata.schema.to_arrow_schema().names
    found = check_pages(pa.BufferReader(bytes(damaged)), metadata, 0, names, budget)
    columns = [re.match(r"column '([a-z.]+)': \S", fault) for fault in found]
    assert all(match and match[1] in names for match in columns)
    assert len(columns) == len({match[1] for match in columns if match})
