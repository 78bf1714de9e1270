"""Rows of a table, slice by slice: a row group is decoded within a byte budget, each column once, and widened to the table's types."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from types import TracebackType

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import fs

from data.footer import file_identity, footer_bytes
from data.listing import DataError, partition_values, spelled_scalar
from data.pages import check_pages
from data.slicing import open_row_group
from data.table import RowGroup
from data.types import is_text
from data.widening import widen

MAX_BATCH_BYTES = 256 * 2**20
# How a footer spells the key under which Arrow stores the schema that it wrote: Thrift's compact protocol, a text of 12 bytes, then a text.
SCHEMA_KEY, OTHER_KEY = b"\x0cARROW:schema\x18", b"\x0cARROW:unused\x18"


@dataclass
class RowReader:
    """Reads row groups of a table's files as one schema. Keeps the last file open: row groups come file by file.

    schema: the columns wanted, in this order, with the types to which they are widened; text comes as dictionaries.
    max_bytes: what a slice may take when decoded.
    """

    filesystem: fs.FileSystem
    schema: pa.Schema
    max_bytes: int = MAX_BATCH_BYTES
    _open: tuple[tuple[str, str], pa.NativeFile, pq.FileMetaData] | None = field(default=None, init=False, repr=False)

    def __enter__(self) -> RowReader:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        if self._open is not None:
            self._open[1].close()
            self._open = None

    def slices(self, group: RowGroup) -> Iterator[tuple[RowGroup, pa.Table]]:
        """Yields consecutive slices of a row group: which rows they are, and the rows.

        Raises DataError naming file and column for what cannot be read, does not fit the types, or would not fit the budget.
        """
        first = group.first_row
        for batch in self._batches(group):
            table = self._widened(batch, group)
            yield replace(group, first_row=first, num_rows=len(table)), table
            first += len(table)
        found = first - group.first_row
        if found != group.num_rows:
            raise DataError(f"{place(group)} has {found} rows, its footer says {group.num_rows}: the file is damaged; write it anew")

    def _batches(self, group: RowGroup) -> Iterator[pa.RecordBatch]:
        """Yields a row group's rows as the file holds them, in pieces that keep within the budget."""
        try:
            source, metadata = self._file(group)
            in_file = frozenset(metadata.schema.to_arrow_schema().names)
            present = [name for name in self.schema.names if name in in_file]
            faults = check_pages(source, metadata, group.index, present, self.max_bytes)
            if faults:
                raise DataError(f"{place(group)} cannot be decoded within data.max_batch_bytes:\n  " + "\n  ".join(faults))
            file, rows = open_row_group(source, metadata, group.index, self.schema, self.max_bytes)
        except DataError:
            raise
        except (pa.ArrowException, OSError, ValueError) as error:
            raise DataError(f"{place(group)} cannot be read: {error}") from error
        if not present:
            yield from bare(group.num_rows, rows)
            return
        try:
            for batch in file.iter_batches(rows, row_groups=[group.index], columns=present, use_threads=False):
                yield from pieces(batch, self.max_bytes)
        except (pa.ArrowException, OSError, MemoryError) as error:
            broken = list(undecodable(file, group.index, present, rows)) or present
            raise DataError(f"{place(group)}, columns {', '.join(map(repr, broken))} cannot be read: {error}") from error

    def _file(self, group: RowGroup) -> tuple[pa.NativeFile, pq.FileMetaData]:
        """Returns a row group's file, opened, and its footer. Raises DataError where it is not the one that the row group was found in."""
        if self._open is None or self._open[0] != (group.path, group.identity):
            self.close()
            source = self.filesystem.open_input_file(group.path)
            footer = footer_bytes(source)
            if isinstance(footer, str) or file_identity(footer, source.size()) != group.identity:
                raise DataError(f"{place(group)}: the file changed since its footer was read; run again when nothing writes it")
            # Without the stored schema fixed-size lists are read as lists: pyarrow 25 cannot read the former where rows are null.
            metadata = pq.read_metadata(pa.BufferReader(b"PAR1" + footer.replace(SCHEMA_KEY, OTHER_KEY)))
            self._open = (group.path, group.identity), source, metadata
        return self._open[1], self._open[2]

    def _widened(self, batch: pa.RecordBatch, group: RowGroup) -> pa.Table:
        spelled, in_file = partition_values(group.partition), frozenset(batch.schema.names)
        columns = []
        for item in self.schema:
            try:
                if item.name in in_file:
                    columns.append(widened(batch.column(item.name), item.type))
                else:
                    columns.append(repeated(spelled_scalar(spelled.get(item.name), item.type), batch.num_rows))
            except ValueError as error:
                raise DataError(f"{group.path}: column {item.name!r}: {error}") from error
        return pa.table([*columns, pa.nulls(batch.num_rows)], [*self.schema.names, ""]).select(range(len(columns)))


def place(group: RowGroup) -> str:
    return f"{group.path}: row group {group.index}"


def bare(num_rows: int, rows: int) -> Iterator[pa.RecordBatch]:
    """Yields slices of a row group of which no column is in the file."""
    for begin in range(0, num_rows, rows):
        yield pa.record_batch({"": pa.nulls(min(rows, num_rows - begin))}).select([])


def pieces(batch: pa.RecordBatch, max_bytes: int) -> Iterator[pa.RecordBatch]:
    """Yields the batch in pieces whose bytes, which came as dictionaries, can be given out one by one within the budget."""
    dictionaries = [c.dictionary for c in batch.columns if pa.types.is_dictionary(c.type) and not is_text(c.type)]
    longest = sum(pc.max(pc.binary_length(dictionary)).as_py() or 0 for dictionary in dictionaries)
    rows = batch.num_rows if longest * batch.num_rows <= max_bytes else max(1, max_bytes // longest)
    for begin in range(0, batch.num_rows, max(1, rows)):
        yield batch.slice(begin, rows)


def undecodable(file: pq.ParquetFile, row_group: int, names: list[str], rows: int) -> Iterator[str]:
    """Yields the columns that cannot be decoded."""
    for name in names:
        try:
            for _ in file.iter_batches(rows, row_groups=[row_group], columns=[name], use_threads=False):
                pass
        except (pa.ArrowException, OSError, MemoryError):
            yield name


def widened(column: pa.Array, kind: pa.DataType) -> pa.ChunkedArray:
    """Returns a column as the table's type, text as a dictionary of valid text. Raises ValueError for what the type does not hold."""
    if is_text(column.type):
        column = column.dictionary_encode()
        column.dictionary.validate(full=True)
    return widen(pa.chunked_array([column]), kind)


def repeated(value: pa.Scalar, num_rows: int) -> pa.ChunkedArray:
    """Returns a column that the folder spells out, or one of nulls that the file lacks."""
    if not value.is_valid:
        return pa.chunked_array([pa.nulls(num_rows, value.type)])
    if is_text(value.type):
        indices = pa.repeat(pa.scalar(0, pa.int32()), num_rows)
        return pa.chunked_array([pa.DictionaryArray.from_arrays(indices, pa.array([value.as_py()], value.type))])
    return pa.chunked_array([pa.repeat(value, num_rows)])


def plain_text(table: pa.Table) -> pa.Table:
    """Returns the table with its dictionaries of text as text, so that slices of several files make one table."""
    columns = [c.cast(c.type.value_type) if pa.types.is_dictionary(c.type) and is_text(c.type) else c for c in table.columns]
    return pa.table(columns, names=table.column_names)
