"""Writing rows so that the bytes depend on them alone: Parquet in row groups of a fixed size, and parts that become such a file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import TracebackType

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from data.types import is_list, is_text

# Rows of a row group, at most, and the bytes that it takes at most in memory.
ROW_GROUP_ROWS = 65_536
ROW_GROUP_BYTES = 2**27
# What a value without a fixed width is taken to need.
TYPICAL_BYTES = 32
# How the path of a list's elements ends.
ELEMENT = ".list.element"


class RowGroupWriter:
    """Writes a Parquet file in row groups of a size that its schema decides, however the rows come.

    Only text is dictionary-encoded: numbers, of which most are different, take longer and come out no smaller. Vectors of floats are
    written byte by byte (BYTE_STREAM_SPLIT), a tenth smaller and faster to read, and without statistics of their elements.
    """

    def __init__(self, stream: pa.NativeFile, schema: pa.Schema) -> None:
        leaves = {path: kind for field in schema for path, kind in leaves_of(field.name, field.type)}
        self.writer = pq.ParquetWriter(
            stream,
            schema,
            compression="zstd",
            use_dictionary=[path for path, kind in leaves.items() if is_text(kind)],
            use_byte_stream_split=[path for path, kind in leaves.items() if is_element(path) and kind in (pa.float32(), pa.float64())],
            write_statistics=[path for path in leaves if not is_element(path)],
        )
        self.schema, self.size = schema, row_group_rows(schema)
        self.waiting: list[pa.Table] = []
        self.num_waiting = 0

    def write_table(self, table: pa.Table) -> None:
        self.waiting.append(table)
        self.num_waiting += len(table)
        if self.num_waiting >= self.size:
            rows = pa.concat_tables(self.waiting)
            whole = len(rows) // self.size * self.size
            for begin in range(0, whole, self.size):
                self._write(rows.slice(begin, self.size))
            self.waiting, self.num_waiting = [rows.slice(whole)], len(rows) - whole

    def annotate(self, lines: Mapping[str, str]) -> None:
        """Adds lines to the footer's metadata."""
        self.writer.add_key_value_metadata(dict(lines))

    def __enter__(self) -> RowGroupWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with self.writer:
            if self.num_waiting and kind is None:
                self._write(pa.concat_tables(self.waiting))

    def _write(self, rows: pa.Table) -> None:
        # Pages end where chunks do.
        columns = [one_dictionary(c) if pa.types.is_dictionary(c.type) else c.combine_chunks() for c in rows.columns]
        self.writer.write_table(pa.table(columns, schema=self.schema), row_group_size=self.size)


def one_dictionary(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Returns a column with one dictionary, its values in the order in which they come first; it may have come with one per slice."""
    return column.cast(column.type.value_type).combine_chunks().dictionary_encode().cast(column.type)


def leaves_of(path: str, kind: pa.DataType) -> Iterator[tuple[str, pa.DataType]]:
    """Yields the path of each of a type's leaves as Parquet has it, and the leaf's type."""
    if is_list(kind):
        yield from leaves_of(f"{path}{ELEMENT}", kind.value_type)
    elif pa.types.is_struct(kind):
        for field in kind:
            yield from leaves_of(f"{path}.{field.name}", field.type)
    else:
        yield path, kind


def is_element(path: str) -> bool:
    return path.endswith(ELEMENT)


def row_group_rows(schema: pa.Schema) -> int:
    return max(1, min(ROW_GROUP_ROWS, ROW_GROUP_BYTES // sum(width(kind) for kind in schema.types)))


def width(kind: pa.DataType) -> int:
    """Returns the bytes that a value takes, or about that."""
    if pa.types.is_fixed_size_list(kind):
        return int(kind.list_size * width(kind.value_type))
    if pa.types.is_struct(kind):
        return sum(width(field.type) for field in kind)
    try:
        return max(1, int(kind.bit_width) // 8)
    except ValueError:
        return TYPICAL_BYTES


class PartWriter:
    """Writes a part as an Arrow stream, which costs next to nothing to write and to read again."""

    def __init__(self, stream: pa.NativeFile, schema: pa.Schema) -> None:
        self.writer = pa.ipc.new_stream(stream, schema)
        self.schema = schema

    def __enter__(self) -> PartWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.writer.close()

    def write_table(self, table: pa.Table) -> None:
        self.writer.write_table(table)


def read_part(filesystem: fs.FileSystem, path: str) -> Iterator[pa.Table]:
    """Yields the rows of a part, batch by batch."""
    with filesystem.open_input_file(path) as source, pa.ipc.open_stream(source) as reader:
        for batch in reader:
            yield pa.Table.from_batches([batch])
