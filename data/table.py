"""What is at a path: the Parquet files, their row groups and the one schema that holds them all, or one error that says why not."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import pyarrow as pa
from pyarrow import fs

from data.footer import DataFile, Footer, in_parallel, read_footer
from data.listing import DataError, find_files, in_partition
from data.schema import alike, one_schema, refuse, refuse_values


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

    empty: relative paths of files without rows. partitions: the columns that only the folders spell out; they come last in the schema.
    bad: relative path of each file that was left out -> why it cannot be used.
    """

    filesystem: fs.FileSystem
    files: tuple[DataFile, ...]
    schema: pa.Schema
    empty: tuple[str, ...] = ()
    partitions: tuple[str, ...] = ()
    bad: Mapping[str, str] = field(default_factory=dict)

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


def open_table(
    path: str | Sequence[str],
    columns: Collection[str] | None = None,
    allow_missing_columns: bool = False,
    partition: str | None = None,
    fault_of: Callable[[Footer], str | None] = lambda footer: None,
    quarantine: bool = False,
) -> Table:
    """Returns the table at a file, folder, glob or URI, or at several of them, from its footers alone.

    columns: the ones that matter (those of a model); the others are not looked at and not in the schema.
    allow_missing_columns: a nullable column that some file lacks is null there. partition: only the files that it names.
    fault_of: why a file with rows cannot be used, None where it can. quarantine: what cannot be used is left out and listed.
    Raises DataError listing every unreadable or unusable file, or every difference between the files' schemas.
    """
    filesystem, files = find_files([path] if isinstance(path, str) else list(path))
    chosen = [file for file in files if partition is None or in_partition(file.relative_path, partition)]
    if not chosen:
        raise DataError(f"{path}: none of the {len(files)} Parquet files is in data.partition {partition!r}")
    schemas: dict[bytes, pa.Schema] = {}
    read = list(in_parallel(lambda file: read_footer(filesystem, file, schemas), chosen))
    unreadable = {file.relative_path: footer for file, footer in zip(chosen, read, strict=True) if isinstance(footer, str)}
    footers = [footer for footer in read if isinstance(footer, Footer)]
    with_rows = [footer for footer in footers if footer.file.num_rows > 0]
    unfit = {footer.file.relative_path: fault for footer in with_rows if (fault := fault_of(footer)) is not None}
    with_rows = [footer for footer in with_rows if footer.file.relative_path not in unfit]
    if quarantine:
        with_rows, others = largest_table(with_rows, columns)
        unfit |= others
    else:
        refuse(list(unreadable.values()), "unreadable Parquet files (mend or remove them)")
        refuse(list(unfit.values()), "files that do not fit")
    if not with_rows:
        raise DataError(f"{path}: {len(chosen)} Parquet files, none of which has a row that can be used; a table needs at least one")
    schema, spelled = one_schema(with_rows, columns, allow_missing_columns)
    refuse_values(filesystem, with_rows, schema)
    empty = tuple(footer.file.relative_path for footer in footers if footer.file.num_rows == 0)
    return Table(filesystem, tuple(footer.file for footer in with_rows), schema, empty, spelled, unreadable | unfit)


def largest_table(footers: Sequence[Footer], columns: Collection[str] | None) -> tuple[list[Footer], dict[str, str]]:
    """Returns the files that make one table, schemas of many files first, and why each of the others does not fit them."""
    kept: list[Footer] = []
    bad: dict[str, str] = {}
    for group in sorted(alike(footers), key=lambda group: -len(group.footers)):
        try:
            one_schema([*kept, *group.footers], columns, allow_missing=False)
        except DataError as error:
            bad |= {footer.file.relative_path: str(error) for footer in group.footers}
        else:
            kept += group.footers
    return sorted(kept, key=lambda footer: footer.file.relative_path), bad
