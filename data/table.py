"""What is at a path: the Parquet files, their row groups and the one schema that holds them all, or one error that says why not."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa
from pyarrow import fs

from data.footer import DataFile, Footer, in_parallel, read_footer
from data.listing import DataError, find_files
from data.schema import MAX_EXACT_INTEGER as MAX_EXACT_INTEGER  # data/columns.py looks for it here
from data.schema import one_schema, refuse, refuse_values


@dataclass(frozen=True, slots=True)
class RowGroup:
    """Consecutive rows of one row group of a file (all of them, where nothing else is said): what a reading task is given.

    first_row: the first row's position in the file. partition: the file's path below the input root where its folders spell out columns.
    """

    path: str
    identity: str
    index: int
    first_row: int
    num_rows: int
    partition: str = ""


@dataclass(frozen=True)
class Table:
    """A Parquet table: files in the order of their relative paths, and the schema to which their rows are widened.

    partitions: the columns that only the folders spell out; they come last in the schema.
    """

    filesystem: fs.FileSystem
    files: tuple[DataFile, ...]
    schema: pa.Schema
    num_empty_files: int
    partitions: tuple[str, ...] = ()

    @property
    def num_rows(self) -> int:
        return sum(file.num_rows for file in self.files)

    @property
    def fingerprint(self) -> str:
        """32 hex digits over every file's relative path and identity; the same table has the same one anywhere."""
        digest = hashlib.sha256()
        for number, file in enumerate(self.files):
            digest.update(f"{'' if number == 0 else chr(10)}{file.relative_path} {file.identity}".encode())
        return digest.hexdigest()[:32]

    def row_groups(self) -> Iterator[RowGroup]:
        for file in self.files:
            first_row = 0
            for index, num_rows in enumerate(file.row_groups):
                yield RowGroup(file.path, file.identity, index, first_row, num_rows, file.relative_path if file.partition else "")
                first_row += num_rows


def open_table(path: str | Sequence[str], columns: Collection[str] | None = None, allow_missing_columns: bool = False) -> Table:
    """Returns the table at a file, folder, glob or URI, or at several of them, from its footers alone.

    columns: the ones that matter (those of a model); the others are not looked at and not in the schema.
    allow_missing_columns: a nullable column that some file lacks is null there.
    Raises DataError listing every unreadable file, or every difference between the files' schemas.
    """
    filesystem, files = find_files([path] if isinstance(path, str) else list(path))
    schemas: dict[bytes, pa.Schema] = {}
    read = list(in_parallel(lambda item: read_footer(filesystem, *item, schemas), files))
    refuse([footer for footer in read if isinstance(footer, str)], "unreadable Parquet files (mend or remove them)")
    footers = [footer for footer in read if isinstance(footer, Footer)]
    with_rows = [footer for footer in footers if footer.file.num_rows > 0]
    if not with_rows:
        raise DataError(f"{path}: {len(footers)} Parquet files, none of which has a row; a table needs at least one")
    schema, spelled = one_schema(with_rows, columns, allow_missing_columns)
    refuse_values(filesystem, with_rows, schema)
    return Table(filesystem, tuple(footer.file for footer in with_rows), schema, len(footers) - len(with_rows), spelled)
