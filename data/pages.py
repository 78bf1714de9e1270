"""What the pages of a row group decode to, by their headers: Arrow decompresses a page whole, to the size that its header claims."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from typing import Any, NamedTuple, Protocol

import pyarrow.parquet as pq

# Bytes that one compressed byte can become, whatever the footer says. The names are pyarrow's; both LZ4 formats are "LZ4" or "UNKNOWN".
GREATEST_EXPANSION = {
    "UNCOMPRESSED": 1,
    # A copy of 64 bytes takes 3, 64 / 3 < 22: google/snappy, format_description.txt, 2.2.2.
    "SNAPPY": 22,
    # A match grows by 255 bytes with each further byte of its length: lz4/lz4, doc/lz4_Block_format.md, "Match length".
    "LZ4": 256,
    # A match of 258 bytes takes 2 bits: zlib.net/zlib_tech.html, "Maximum Compression Factor".
    "GZIP": 1032,
    # Without a bound worth the name: ZSTD (a block of one repeated byte: RFC 8878, 3.1.1.2.2), BROTLI (a copy of 2^24 bytes: RFC 7932, 5).
}

# Bytes of one decoded value; of BYTE_ARRAY its offset, since its text lies in the page. FIXED_LEN_BYTE_ARRAY says its own.
WIDTHS = {"BOOLEAN": 1, "INT32": 4, "FLOAT": 4, "INT64": 8, "DOUBLE": 8, "INT96": 12, "BYTE_ARRAY": 8}

HEADER_WINDOW_BYTES = 512
# Statistics lengthen a header; Arrow itself gives up at 16 MiB (kDefaultMaxPageHeaderSize in parquet/column_reader.h).
MAX_HEADER_BYTES = 1024 * 1024
# A PageHeader is three structs deep (the page's header, its statistics); a thousand lists in lists would exhaust the stack.
MAX_HEADER_DEPTH = 16

# PageHeader of apache/parquet-format, parquet.thrift: the PageType values, and which field holds the header of each.
DICTIONARY_PAGE = 2
DATA_PAGES = (0, 3)
HEADER_FIELD = {0: 5, 2: 7, 3: 8}

# Types of apache/thrift, doc/specs/thrift-compact-protocol.md; 1 and 2 are true and false.
BYTE, I16, I32, I64, DOUBLE, BINARY, LIST, SET, MAP, STRUCT = range(3, 13)
NUMBER_FIRST = frozenset((I16, I32, I64, BINARY))


# Pages of all columns together, in budgets: honest tables of a thousand columns have as many open pages of a mebibyte.
MAX_OPEN_BUDGETS = 4


class Source(Protocol):
    """What is asked of a file that is read here and there."""

    def read_at(self, num_bytes: int, offset: int) -> bytes | memoryview: ...

    def size(self) -> int: ...


class MalformedHeader(ValueError):
    """A page header does not follow the format; the message says at which byte of the file."""


class PageHeader(NamedTuple):
    """What a page's header claims. num_values is 0 for pages that hold none, such as an index."""

    kind: int
    uncompressed_bytes: int
    compressed_bytes: int
    num_values: int


def check_pages(source: Source, metadata: pq.FileMetaData, row_group: int, columns: Collection[str], max_bytes: int) -> list[str]:
    """Returns what is wrong with the pages of the named top-level columns in a row group, one line per column.

    A line names the column, what was found and what is allowed; no line means that Arrow may decode the pages, each to at most max_bytes.
    Headers are read only where the codec could exceed max_bytes, or where a row may hold any number of values. The footer's
    total_uncompressed_size is never read: nothing holds a writer to it.
    """
    group = metadata.row_group(row_group)
    wanted = frozenset(columns)
    faults: dict[str, str] = {}
    open_bytes = 0  # a page of every column is open at once
    for index in range(group.num_columns):
        chunk = group.column(index)
        names = [name for name in top_level_names(chunk.path_in_schema) if name in wanted and name not in faults]
        if not names:
            continue
        found = chunk_fault(source, chunk, metadata.schema.column(index), group.num_rows, max_bytes)
        open_bytes += found if isinstance(found, int) else 0
        if isinstance(found, int) and open_bytes > MAX_OPEN_BUDGETS * max_bytes:
            found = (
                f"its largest page and those of the columns before it decode to {open_bytes} bytes together, more than {MAX_OPEN_BUDGETS} "
                f"times data.max_batch_bytes, which is {max_bytes}; write the file with smaller pages, or raise it"
            )
        if isinstance(found, str):
            faults |= {name: f"column {name!r}: {found}" for name in names}
    return list(faults.values())


def top_level_names(path: str) -> list[str]:
    """Returns each name that the top-level column of a leaf's dotted path may have: names may themselves hold dots."""
    return [path, *(path[:end] for end, character in enumerate(path) if character == ".")]


def chunk_fault(source: Source, chunk: pq.ColumnChunkMetaData, leaf: pq.ColumnSchema, num_rows: int, max_bytes: int) -> int | str:
    """Returns the bytes of a leaf's largest page (0 where it need not be known), or why its column chunk may not be decoded."""
    repeated = leaf.max_repetition_level > 0
    width = WIDTHS.get(leaf.physical_type) or leaf.length
    if repeated and chunk.num_values * width > num_rows * max_bytes:
        return (
            f"its {num_rows} rows hold {chunk.num_values} values, {chunk.num_values * width} bytes, so that one row is more than "
            f"data.max_batch_bytes, which is {max_bytes}; a row is read whole: shorten its list, or raise data.max_batch_bytes"
        )
    if not repeated and chunk.total_compressed_size * GREATEST_EXPANSION.get(chunk.compression, math.inf) <= max_bytes:
        return 0
    try:
        return walk_pages(source, chunk, width, repeated, max_bytes)
    except MalformedHeader as error:
        return f"its page headers cannot be read ({error}): the file is damaged; write it anew"


def walk_pages(source: Source, chunk: pq.ColumnChunkMetaData, width: int, repeated: bool, max_bytes: int) -> int | str:
    """Returns the bytes of a chunk's largest page, or its pages' first fault. Begins and ends where Arrow does. Raises MalformedHeader."""
    position, num_values, file_bytes = first_page(chunk), chunk.num_values, source.size()
    end = position + chunk.total_compressed_size
    allowed = f"data.max_batch_bytes is {max_bytes}; write the file with smaller pages, or raise it"
    found = largest = 0
    while found < num_values and position < end:
        page, position = read_page_header(source, position, file_bytes)
        # Arrow decompresses neither a page without a codec nor one of version 2 that says so: these are as large as they are stored.
        page_bytes = max(page.uncompressed_bytes, page.compressed_bytes)
        if page_bytes > max_bytes:
            return f"a page decodes to {page_bytes} bytes, {allowed}"
        # A dictionary is decoded whole, and one row may hold a page of a list's values; of other values a row holds one.
        if (repeated or page.kind == DICTIONARY_PAGE) and page.num_values * width > max_bytes:
            return f"a page holds {page.num_values} values, {page.num_values * width} bytes, {allowed}"
        largest = max(largest, page_bytes)
        position += page.compressed_bytes
        found += page.num_values if page.kind in DATA_PAGES else 0
    if found != num_values:
        # Fewer are refused too: Arrow reads on, up to 100 bytes beyond a chunk that an old parquet-mr claims to have written (PARQUET-816).
        return f"its pages hold {found} values, the footer says {num_values}: the file is damaged; write it anew"
    return largest


def chunks_of(metadata: pq.FileMetaData, row_group: int, columns: Collection[str]) -> Iterator[pq.ColumnChunkMetaData]:
    """Yields the column chunks of the named top-level columns."""
    group = metadata.row_group(row_group)
    for chunk in map(group.column, range(group.num_columns)):
        if any(name in columns for name in top_level_names(chunk.path_in_schema)):
            yield chunk


def first_page(chunk: pq.ColumnChunkMetaData) -> int:
    """Returns the position where Arrow begins to read a chunk: at its dictionary, where that comes first."""
    dictionary, data = chunk.dictionary_page_offset, int(chunk.data_page_offset)
    return int(dictionary) if dictionary is not None and 0 < dictionary < data else data


def read_page_header(source: Source, position: int, file_bytes: int) -> tuple[PageHeader, int]:
    """Returns the page header at a position of the file, and the position after it. Raises MalformedHeader."""
    window = HEADER_WINDOW_BYTES
    while 0 <= position < file_bytes:
        try:
            fields, length = read_struct(source.read_at(min(window, file_bytes - position), position), 0)
        except IndexError:
            if window >= min(MAX_HEADER_BYTES, file_bytes - position):
                break
            window = min(8 * window, MAX_HEADER_BYTES)
            continue
        except MalformedHeader as error:
            raise MalformedHeader(f"byte {position}: {error}") from None
        page = page_header(fields)
        if page is None or position + length + page.compressed_bytes > file_bytes:
            break
        return page, position + length
    raise MalformedHeader(f"byte {position}: no page lies there, or not all of it")


def page_header(fields: dict[int, Any]) -> PageHeader | None:
    """Returns the header that a PageHeader struct's fields make, or None where one is missing or no int32 of at least 0."""
    kind = fields.get(1)
    inner = fields.get(HEADER_FIELD[kind]) if isinstance(kind, int) and kind in HEADER_FIELD else {1: 0}
    header = (kind, fields.get(2), fields.get(3), inner.get(1) if isinstance(inner, dict) else None)
    for value in header:
        # Thrift in C++ keeps the low 32 bits of a longer number, so that what is longer here would be another number there.
        if not isinstance(value, int) or not 0 <= value < 2**31:
            return None
    return PageHeader._make(header)


def read_struct(data: bytes | memoryview, at: int, depth: int = 0) -> tuple[dict[int, Any], int]:
    """Returns a struct's int32 values and structs by field, all else skipped, and where it ends.

    Raises MalformedHeader, or IndexError where the data end before the struct.
    """
    fields: dict[int, Any] = {}
    field = 0
    while True:
        head = data[at]
        at += 1
        kind = head & 15
        if kind == 0:
            return fields, at
        if head >> 4:
            field += head >> 4
        else:
            field, at = read_zigzag(data, at)
        if not -(2**15) <= field < 2**15:  # an int16, of which Thrift in C++ would keep the low bits
            raise MalformedHeader(f"field {field}")
        if kind in NUMBER_FIRST:
            number, at = read_varint(data, at)
            if kind == I32:
                fields[field] = (number >> 1) ^ -(number & 1)
            elif kind == BINARY:
                at += number
        elif kind == STRUCT:
            if depth == MAX_HEADER_DEPTH:
                raise MalformedHeader("structs within structs")
            fields[field], at = read_struct(data, at, depth + 1)
        elif kind > 2:
            at = skip(data, at, kind, depth)


def skip(data: bytes | memoryview, at: int, kind: int, depth: int) -> int:
    """Returns where a value of a type ends. Raises as read_struct does."""
    if depth == MAX_HEADER_DEPTH:
        raise MalformedHeader("lists within lists")
    if kind in NUMBER_FIRST:
        number, at = read_varint(data, at)
        return at + number if kind == BINARY else at
    if kind == STRUCT:
        return read_struct(data, at, depth + 1)[1]
    if kind in (LIST, SET):
        kinds, size, at = (data[at] & 15,), data[at] >> 4, at + 1
        if size == 15:
            size, at = read_varint(data, at)
        return skip_all(data, at, kinds, size, depth + 1)
    if kind == MAP:
        size, at = read_varint(data, at)
        return skip_all(data, at + 1, (data[at] >> 4, data[at] & 15), size, depth + 1) if size else at
    if kind in (BYTE, DOUBLE):
        return at + (1 if kind == BYTE else 8)
    raise MalformedHeader(f"type {kind}")


def skip_all(data: bytes | memoryview, at: int, kinds: tuple[int, ...], size: int, depth: int) -> int:
    """Returns where a container of `size` elements ends, each one value of each type. Raises as read_struct does."""
    for _ in range(size):
        for kind in kinds:
            # Each value takes a byte at least, so that a size of 2^60 ends with the data.
            if at >= len(data):
                raise IndexError
            at = at + 1 if kind in (1, 2) else skip(data, at, kind, depth)
    return at


def read_zigzag(data: bytes | memoryview, at: int) -> tuple[int, int]:
    """Returns the signed integer at a position, and where it ends. Raises as read_struct does."""
    value, at = read_varint(data, at)
    return (value >> 1) ^ -(value & 1), at


def read_varint(data: bytes | memoryview, at: int) -> tuple[int, int]:
    """Returns the unsigned integer at a position, and where it ends. Raises as read_struct does."""
    value = data[at]
    at += 1
    if value < 128:
        return value, at
    value &= 127
    for shift in range(7, 70, 7):
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise MalformedHeader("an integer of more than ten bytes")
