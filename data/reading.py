"""Rows of a table, slice by slice: a row group is decoded within a byte budget, each column once, and widened to the table's types."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from types import TracebackType

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from data.listing import DataError, partition_values
from data.pages import check_pages
from data.table import RowGroup, footer_bytes
from data.types import is_text
from data.widening import widen

MAX_BATCH_BYTES = 256 * 2**20
# Rows of a slice, at most: enough for the calls per column to cost nothing, few enough for a column to stay in the cache.
SLICE_ROWS = 65_536
WIDTHS = {"BOOLEAN": 1, "INT32": 4, "INT64": 8, "INT96": 12, "FLOAT": 4, "DOUBLE": 8, "BYTE_ARRAY": 4, "FIXED_LEN_BYTE_ARRAY": 16}


@dataclass
class RowReader:
    """Reads row groups of a table's files as one schema. Keeps the last file open: row groups come file by file.

    schema: the columns wanted, in this order, with the types to which they are widened; text comes as dictionaries.
    max_bytes: what a slice may take when decoded.
    """

    filesystem: fs.FileSystem
    schema: pa.Schema
    max_bytes: int = MAX_BATCH_BYTES
    _open: tuple[str, pa.NativeFile, pq.ParquetFile] | None = field(default=None, init=False, repr=False)

    def __enter__(self) -> RowReader:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        if self._open is not None:
            self._open[2].close()
            self._open[1].close()
            self._open = None

    def slices(self, group: RowGroup) -> Iterator[tuple[RowGroup, pa.Table]]:
        """Yields consecutive slices of a row group: which rows they are, and the rows.

        Raises DataError naming file and column for what cannot be read, does not fit the types, or would not fit the budget.
        """
        columns = ", ".join(map(repr, self.schema.names))
        place = f"{group.path}: row group {group.index} of columns {columns}"
        try:
            yield from self._slices(group)
        except (pa.ArrowException, OSError, MemoryError) as error:
            raise DataError(f"{place} cannot be read: {error}") from error

    def _slices(self, group: RowGroup) -> Iterator[tuple[RowGroup, pa.Table]]:
        source, file = self._file(group.path)
        if group.index >= file.metadata.num_row_groups:
            raise DataError(f"{group.path}: there is no row group {group.index}: the file changed")
        present = [name for name in self.schema.names if name in file.schema_arrow.names]
        claimed = file.metadata.row_group(group.index).num_rows
        if claimed != group.num_rows:
            raise DataError(f"{group.path}: row group {group.index} has {claimed} rows, its footer said {group.num_rows}: the file changed")
        faults = check_pages(source, file.metadata, group.index, present, self.max_bytes)
        if faults:
            raise DataError(
                f"{group.path}: row group {group.index} cannot be decoded within data.max_batch_bytes:\n  " + "\n  ".join(faults)
            )
        rows = self._slice_rows(file, group, present)
        first = group.first_row
        for batch in (
            file.iter_batches(rows, row_groups=[group.index], columns=present, use_threads=False) if present else bare(group, rows)
        ):
            table = self._widened(batch, group)
            yield replace(group, first_row=first, num_rows=len(table)), table
            first += len(table)
        if first - group.first_row != group.num_rows:
            found = first - group.first_row
            raise DataError(f"{group.path}: row group {group.index} has {found} rows, its footer said {group.num_rows}: the file changed")

    def _file(self, path: str) -> tuple[pa.NativeFile, pq.ParquetFile]:
        if self._open is None or self._open[0] != path:
            self.close()
            source = self.filesystem.open_input_file(path)
            footer = footer_bytes(source)
            if isinstance(footer, str):
                raise DataError(f"{path}: {footer}")
            # Without the stored Arrow schema fixed-size lists are read as lists: pyarrow 25 cannot read the former where rows are null.
            metadata = pq.read_metadata(pa.BufferReader(b"PAR1" + footer.replace(b"ARROW:schema", b"ARROW:unused")))
            text = [name for name in self.schema.names if is_text(self.schema.field(name).type)]
            self._open = path, source, pq.ParquetFile(source, metadata=metadata, read_dictionary=text)
        return self._open[1], self._open[2]

    def _slice_rows(self, file: pq.ParquetFile, group: RowGroup, present: list[str]) -> int:
        """Returns the rows whose cells fit the budget, by the footer's number of values."""
        metadata = file.metadata.row_group(group.index)
        num_bytes = 1
        for index in range(metadata.num_columns):
            chunk = metadata.column(index)
            if chunk.path_in_schema.split(".")[0] in present or chunk.path_in_schema in present:
                num_bytes += chunk.num_values * WIDTHS.get(chunk.physical_type, 16)
        return max(1, min(SLICE_ROWS, group.num_rows * self.max_bytes // num_bytes))

    def _widened(self, batch: pa.RecordBatch | int, group: RowGroup) -> pa.Table:
        num_rows = batch if isinstance(batch, int) else batch.num_rows
        spelled = partition_values(group.partition)
        columns = []
        for item in self.schema:
            index = -1 if isinstance(batch, int) else batch.schema.get_field_index(item.name)
            if index >= 0:
                assert isinstance(batch, pa.RecordBatch)
                try:
                    columns.append(widen(pa.chunked_array([batch.column(index)]), item.type))
                except ValueError as error:
                    raise DataError(f"{group.path}: column {item.name!r}: {error}") from error
            else:
                columns.append(repeated(spelled.get(item.name), item, num_rows, group))
        return pa.table(columns, names=self.schema.names) if columns else pa.table({"": pa.nulls(num_rows)}).select([])


def plain_text(table: pa.Table) -> pa.Table:
    """Returns the table with its dictionaries of text as text, so that slices of several files make one table."""
    columns = [c.cast(c.type.value_type) if pa.types.is_dictionary(c.type) and is_text(c.type) else c for c in table.columns]
    return pa.table(columns, names=table.column_names)


def bare(group: RowGroup, rows: int) -> Iterator[int]:
    """Yields the sizes of slices of which no column is in the file."""
    for begin in range(0, group.num_rows, rows):
        yield min(rows, group.num_rows - begin)


def repeated(value: str | None, item: pa.Field, num_rows: int, group: RowGroup) -> pa.ChunkedArray:
    """Returns a column that the folder spells out, or one of nulls that the file lacks."""
    if value is None:
        return pa.chunked_array([pa.nulls(num_rows, item.type)])
    try:
        scalar = pa.scalar(value).cast(item.type.value_type if pa.types.is_dictionary(item.type) else item.type)
    except pa.ArrowInvalid as error:
        raise DataError(f"{group.path}: its folder says {item.name}={value}, the column is {item.type}: {error}") from error
    return pa.chunked_array([pa.repeat(scalar, num_rows)])
