"""Rows of a table, slice by slice: a row group is decoded within a byte budget, each column once, and widened to the table's types."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import fs

from data.content import content_of_group
from data.fetching import fetched
from data.footer import file_identity, footer_bytes
from data.listing import DataError, partition_values, spelled_scalar
from data.pages import Source, check_pages
from data.slicing import open_row_group
from data.stores import refuse_silence
from data.table import RowGroup
from data.types import is_text, without_views
from data.widening import widen

MAX_BATCH_BYTES = 256 * 2**20
# How a footer spells the key under which Arrow stores the schema that it wrote: Thrift's compact protocol, a text of 12 bytes, then a text.
SCHEMA_KEY, OTHER_KEY = b"\x0cARROW:schema\x18", b"\x0cARROW:unused\x18"


class OpenFile(NamedTuple):
    """A file that is being read, its footer without the schema that Arrow stored, and its columns' types with it."""

    path: str
    identity: str
    source: pa.NativeFile
    metadata: pq.FileMetaData
    types: dict[str, pa.DataType]


class FetchedGroup(NamedTuple):
    """A row group with its columns in memory, where they fit. source: the file, which holds them so."""

    group: RowGroup
    file: OpenFile
    source: Source


@dataclass
class RowReader:
    """Reads row groups of a table's files as one schema. Keeps the last file open: row groups come file by file.


    schema: the columns wanted, in this order, with the types to which they are widened; text comes as dictionaries.
    max_bytes: what a slice may take when decoded.
    """

    filesystem: fs.FileSystem
    schema: pa.Schema
    max_bytes: int = MAX_BATCH_BYTES
    _open: OpenFile | None = field(default=None, init=False, repr=False)

    def __enter__(self) -> RowReader:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        if self._open is not None:
            self._open.source.close()
            self._open = None
        pa.default_memory_pool().release_unused()  # a process that read goes on to live idle

    def slices(self, group: RowGroup) -> Iterator[tuple[RowGroup, pa.Table]]:
        """Yields consecutive slices of a row group: which rows they are, and the rows.

        Raises DataError naming file and column for what cannot be read, does not fit the types, or would not fit the budget.
        """
        yield from self.decode(self.fetch(group))

    def fetch(self, group: RowGroup) -> FetchedGroup:
        """Returns a row group as its file holds it; good until one of another file is fetched. Raises DataError."""
        with errors_say_where(group):
            opened = self._opened(group)
            # Half, so that one can be fetched while another is decoded.
            source = fetched(opened.source, opened.metadata, group.index, self.schema.names, self.max_bytes // 2)
            return FetchedGroup(group, opened, source)

    def content(self, fetched: FetchedGroup) -> str:
        """Returns the hash of what a row group's file holds of the columns wanted. Raises DataError."""
        group, opened, source = fetched
        with errors_say_where(group):
            return content_of_group(source, opened.metadata, group.index, self.schema.names)

    def decode(self, fetched: FetchedGroup) -> Iterator[tuple[RowGroup, pa.Table]]:
        """Yields what `slices` does, of a row group that was fetched."""
        group, opened, source = fetched
        with errors_say_where(group):
            present = [name for name in self.schema.names if name in opened.types]
            faults = check_pages(source, opened.metadata, group.index, present, self.max_bytes)
            if faults:
                raise DataError(f"{place(group)} cannot be decoded within data.max_batch_bytes:\n  " + "\n  ".join(faults))
            file, rows = open_row_group(source, opened.metadata, group.index, self.schema, self.max_bytes)
        first = group.first_row
        for batch in decoded(file, group, present, rows):
            for piece in pieces(batch, self.max_bytes):
                table = self._widened(piece, opened.types, group)
                yield replace(group, first_row=first, num_rows=len(table)), table
                first += len(table)
        found = first - group.first_row
        if found != group.num_rows:
            raise DataError(f"{place(group)} has {found} rows, its footer says {group.num_rows}: the file is damaged; write it anew")

    def _opened(self, group: RowGroup) -> OpenFile:
        """Returns a row group's file. Raises DataError where it is not the one that the row group was found in."""
        if self._open is None or (self._open.path, self._open.identity) != (group.path, group.identity):
            self.close()
            source = self.filesystem.open_input_file(group.path)
            footer = footer_bytes(source)
            if isinstance(footer, str) or file_identity(footer, source.size()) != group.identity:
                raise DataError(f"{place(group)}: the file changed since its footer was read; run again when nothing writes it")
            # Without the stored schema fixed-size lists are read as lists: pyarrow 25 cannot read the former where rows are null.
            with_schema, without = (
                pq.read_metadata(pa.BufferReader(b"PAR1" + spelled)) for spelled in (footer, footer.replace(SCHEMA_KEY, OTHER_KEY))
            )
            types = {column.name: column.type for column in with_schema.schema.to_arrow_schema()}
            self._open = OpenFile(group.path, group.identity, source, without, types)
        return self._open

    def _widened(self, batch: pa.RecordBatch, types: Mapping[str, pa.DataType], group: RowGroup) -> pa.Table:
        spelled, in_file = partition_values(group.partition), dict(zip(batch.schema.names, batch.columns, strict=True))
        columns = []
        for name, kind in zip(self.schema.names, self.schema.types, strict=True):
            try:
                if name in in_file:
                    columns.append(widened(in_file[name], types[name], kind))
                else:
                    columns.append(repeated(spelled_scalar(spelled.get(name), kind), batch.num_rows))
            except ValueError as error:
                raise DataError(f"{group.path}: column {name!r}: {error}") from error
        return pa.table([*columns, pa.nulls(batch.num_rows)], [*self.schema.names, ""]).select(range(len(columns)))


def place(group: RowGroup) -> str:
    return f"{group.path}: row group {group.index}"


@contextmanager
def errors_say_where(group: RowGroup) -> Iterator[None]:
    """Makes a DataError that names the row group of any other error that a file may raise."""
    try:
        yield
    except DataError:
        raise
    except (pa.ArrowException, OSError, ValueError) as error:
        refuse_silence(error)
        raise DataError(f"{place(group)} cannot be read: {error}") from error


def decoded(file: pq.ParquetFile, group: RowGroup, names: Sequence[str], rows: int) -> Iterator[pa.RecordBatch]:
    """Yields columns of a row group as the file holds them, so many rows at once."""
    if not names:
        for begin in range(0, group.num_rows, rows):
            yield pa.record_batch({"": pa.nulls(min(rows, group.num_rows - begin))}).select([])
        return
    try:
        yield from file.iter_batches(rows, row_groups=[group.index], columns=names, use_threads=False)
    except (pa.ArrowException, OSError, MemoryError) as error:
        refuse_silence(error)
        broken = list(undecodable(file, group.index, names, rows)) or names
        raise DataError(f"{place(group)}, columns {', '.join(map(repr, broken))} cannot be read: {error}") from error


def undecodable(file: pq.ParquetFile, row_group: int, names: Sequence[str], rows: int) -> Iterator[str]:
    """Yields the columns that cannot be decoded."""
    for name in names:
        try:
            for _ in file.iter_batches(rows, row_groups=[row_group], columns=[name], use_threads=False):
                pass
        except (pa.ArrowException, OSError, MemoryError):
            yield name


def pieces(batch: pa.RecordBatch, max_bytes: int) -> Iterator[pa.RecordBatch]:
    """Yields the batch in pieces whose bytes, which came as dictionaries, can be given out one by one within the budget."""
    dictionaries = [c.dictionary for c in batch.columns if pa.types.is_dictionary(c.type) and not is_text(c.type)]
    longest = sum(pc.max(pc.binary_length(dictionary)).as_py() or 0 for dictionary in dictionaries)
    rows = batch.num_rows if longest * batch.num_rows <= max_bytes else max(1, max_bytes // longest)
    for begin in range(0, batch.num_rows, max(1, rows)):
        yield batch.slice(begin, rows)


def widened(column: pa.Array, meant: pa.DataType, kind: pa.DataType) -> pa.ChunkedArray:
    """Returns a column as the table's type, text as a dictionary of valid text. Raises ValueError for what the type does not hold.

    meant: the file's own type, which Parquet may store as another, such as a duration as an integer.
    """
    if without_views(column.type) != column.type:
        column, meant = column.cast(without_views(column.type)), without_views(meant)
    if is_text(column.type):
        column = column.dictionary_encode()
        column.dictionary.validate(full=True)
    if pa.types.is_dictionary(column.type):
        refuse_broken_indices(column)
    return widen(widen(pa.chunked_array([column]), meant), kind)


def refuse_broken_indices(column: pa.DictionaryArray) -> None:
    """Raises ValueError where an index leads out of the dictionary; Arrow does not look."""
    size, indices = len(column.dictionary), column.indices
    numbers = np.frombuffer(indices.buffers()[1], np.uint32, len(indices), 4 * indices.offset) if len(indices) else np.zeros(0)
    if numbers.max(initial=0) >= size:  # a null's index may be anything, and a negative one is large here
        first, last = pc.min_max(indices).values()
        if last.is_valid and not 0 <= first.as_py() <= last.as_py() < size:
            raise ValueError(f"its dictionary of {size} values has none at {last}: the file is damaged; write it anew")


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
