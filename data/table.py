"""What is at a path: the Parquet files, their row groups and the one schema that holds them all, or one error that says why not."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from data.listing import DataError, find_files, partition_type, partition_values
from data.widening import common_type, unsuitable

TAIL_BYTES = 64 * 1024
FOOTER_THREADS = 16
# The largest number of faults of one message; more do not help who mends them.
MAX_FAULTS = 50
# Integers up to here are exact in float64.
MAX_EXACT_INTEGER = 2**53


@dataclass(frozen=True, slots=True)
class DataFile:
    """One Parquet file: its path on the filesystem, its path below the input root, and what its footer says.

    partition: whether folders of the relative path spell out columns (year=2024/).
    """

    path: str
    relative_path: str
    num_bytes: int
    row_groups: tuple[int, ...]
    identity: str
    partition: bool = False

    @property
    def num_rows(self) -> int:
        return sum(self.row_groups)


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

    partitions: the columns that the folders spell out; they come last in the schema.
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


@dataclass(frozen=True, slots=True)
class Footer:
    """What a file's footer says: the file, its own schema, and the columns of its folders."""

    file: DataFile
    schema: pa.Schema
    partition: dict[str, str | None]


def open_table(path: str | Sequence[str], columns: Collection[str] | None = None, allow_missing_columns: bool = False) -> Table:
    """Returns the table at a file, folder, glob or URI, or at several of them, from its footers alone.

    columns: the ones that matter (those of a model); the others are not looked at and not in the schema.
    allow_missing_columns: a column that some file lacks is null there.
    Raises DataError listing every unreadable file, or every difference between the files' schemas.
    """
    filesystem, files = find_files([path] if isinstance(path, str) else list(path))
    with ThreadPoolExecutor(FOOTER_THREADS) as pool:
        read = list(pool.map(lambda item: read_footer(filesystem, *item), files))
    refuse([footer for footer in read if isinstance(footer, str)], "unreadable Parquet files (mend or remove them)")
    footers = [footer for footer in read if isinstance(footer, Footer)]
    with_rows = [footer for footer in footers if footer.file.num_rows > 0]
    if not with_rows:
        raise DataError(f"{path}: {len(footers)} Parquet files, none of which has a row; a table needs at least one")
    schema, spelled = one_schema(with_rows, columns, allow_missing_columns)
    refuse(
        contradictions(filesystem, with_rows, schema) + inexact_integers(filesystem, with_rows, schema),
        "the files do not make one table",
    )
    return Table(filesystem, tuple(footer.file for footer in with_rows), schema, len(footers) - len(with_rows), spelled)


def refuse(faults: Sequence[str], title: str) -> None:
    """Raises DataError with all faults, where there are any."""
    if faults:
        more = [f"and {len(faults) - MAX_FAULTS} more"] if len(faults) > MAX_FAULTS else []
        raise DataError(f"{title}:\n  " + "\n  ".join([*faults[:MAX_FAULTS], *more]))


def footer_bytes(source: pa.NativeFile) -> bytes | str:
    """Returns the footer of an open Parquet file with its closing magic, or one phrase on why it has none."""
    size = source.size()
    if size < 12:
        return f"{size} bytes, which is no Parquet file"
    tail = source.read_at(min(size, TAIL_BYTES), size - min(size, TAIL_BYTES))
    num_bytes = 8 + int.from_bytes(tail[-8:-4], "little")
    if tail[-4:] != b"PAR1" or num_bytes + 4 > size:
        return "does not end as a Parquet file does (truncated, or of another format)"
    if num_bytes > len(tail):
        tail = source.read_at(num_bytes, size - num_bytes)
    return bytes(tail[-num_bytes:])


def read_footer(filesystem: fs.FileSystem, path: str, relative_path: str) -> Footer | str:
    """Returns what a file's footer says, or one line on why it cannot be read."""
    try:
        with filesystem.open_input_file(path) as source:
            footer, size = footer_bytes(source), source.size()
        if isinstance(footer, str):
            return f"{path}: {footer}"
        with pq.ParquetFile(pa.BufferReader(b"PAR1" + footer)) as file:
            rows = tuple(file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups))
            schema = file.schema_arrow.remove_metadata()
    except (pa.ArrowException, OSError) as error:
        return f"{path}: {error}"
    partition = partition_values(relative_path)
    identity = hashlib.sha256(footer + size.to_bytes(8, "little")).hexdigest()
    return Footer(DataFile(path, relative_path, size, rows, identity, bool(partition)), schema, partition)


def one_schema(footers: Sequence[Footer], columns: Collection[str] | None, allow_missing: bool) -> tuple[pa.Schema, tuple[str, ...]]:
    """Returns the schema that holds every file's rows, and which of its columns the folders spell out.

    Raises DataError listing every difference by file and column.
    """
    shapes: dict[pa.Schema, list[Footer]] = {}
    for footer in footers:  # a million files have few schemas
        shapes.setdefault(footer.schema, []).append(footer)
    refuse(
        [f"{files[0].file.path}: {fault}" for schema, files in shapes.items() for fault in unsuitable_columns(schema, columns)],
        "the files do not make one table",
    )
    partitions = partition_types(footers)
    names = dict.fromkeys(name for schema in shapes for name in schema.names)
    wanted = [name for name in names if columns is None or name in columns]
    faults: list[str] = []
    fields = []
    for name in wanted:
        kind, missing = widened_type(name, shapes, faults)
        if missing and not (allow_missing or name in partitions):
            faults += [f"{file.file.path}: column {name!r} is missing, {first_with(name, shapes)} has it" for file in missing]
        fields.append(pa.field(name, kind))
    spelled = {name: kind for name, kind in partitions.items() if name not in names and (columns is None or name in columns)}
    for name in spelled:
        lacking = [footer for footer in footers if name not in footer.partition]
        faults += [f"{footer.file.path}: lies in no {name}=.. folder, other files do" for footer in lacking if not allow_missing]
    refuse(faults, "the files do not make one table")
    return pa.schema([*fields, *(pa.field(name, kind) for name, kind in spelled.items())]), tuple(spelled)


def widened_type(name: str, shapes: Mapping[pa.Schema, list[Footer]], faults: list[str]) -> tuple[pa.DataType, list[Footer]]:
    """Returns the type that holds a column's values in every file, and the files without the column; notes what no type holds."""
    kind, missing = pa.null(), []
    for schema, files in shapes.items():
        if name not in schema.names:
            missing += files
            continue
        found = schema.field(name).type
        wider = common_type(kind, found)
        if wider is None:
            faults += [f"{f.file.path}: column {name!r} is {found}, in {first_with(name, shapes)} it is {kind}" for f in files]
        else:
            kind = wider
    return kind, missing


def first_with(name: str, shapes: Mapping[pa.Schema, list[Footer]]) -> str:
    """Returns the path of the first file that has a column."""
    return next(files[0].file.path for schema, files in shapes.items() if name in schema.names)


def partition_types(footers: Sequence[Footer]) -> dict[str, pa.DataType]:
    """Returns the columns that folders spell out, with their types."""
    values: dict[str, set[str | None]] = {}
    for footer in footers:
        for name, value in footer.partition.items():
            values.setdefault(name, set()).add(value)
    return {name: partition_type(found) for name, found in values.items()}


def unsuitable_columns(schema: pa.Schema, columns: Collection[str] | None) -> list[str]:
    faults = []
    seen: dict[str, str] = {}
    for field in schema:
        if columns is not None and field.name not in columns:
            continue
        if field.name.lower() in seen:
            faults.append(f"columns {seen[field.name.lower()]!r} and {field.name!r} have one name, or differ only in case; rename one")
        seen[field.name.lower()] = field.name
        fault = unsuitable(field)
        if fault is not None:
            faults.append(f"column {field.name!r} {fault}")
    return faults


def contradictions(filesystem: fs.FileSystem, footers: Sequence[Footer], schema: pa.Schema) -> list[str]:
    """Returns the folders that contradict their files' columns of the same name, which must hold just that value by their statistics."""
    faults = []
    for footer in footers:
        for name in footer.partition.keys() & set(footer.schema.names) & set(schema.names):
            value = footer.partition[name]
            for low, high, nulls in column_ranges(filesystem, footer.file, name):
                if low != high or nulls or str(low) != value:
                    held = f"{low!r}{' and nulls' if nulls else ''}" if low == high else f"values from {low!r} to {high!r}"
                    said = f"its folder says {name}={value}, its column {name!r} holds {held}"
                    faults.append(f"{footer.file.path}: {said}; remove one of them")
                    break
    return faults


def inexact_integers(filesystem: fs.FileSystem, footers: Sequence[Footer], schema: pa.Schema) -> list[str]:
    """Returns the 64-bit integer columns to be widened to double whose statistics show values that double does not hold.

    Files without statistics are checked as they are read.
    """
    faults = []
    doubles = {field.name for field in schema if pa.types.is_float64(field.type)}
    for footer in footers:
        for field in footer.schema:
            if field.name in doubles and field.type in (pa.int64(), pa.uint64()):
                ranges = column_ranges(filesystem, footer.file, field.name)
                beyond = [x for low, high, _ in ranges for x in (low, high) if x is not None and abs(x) > MAX_EXACT_INTEGER]
                if beyond:
                    faults.append(
                        f"{footer.file.path}: column {field.name!r} is {field.type} and double in other files, "
                        f"which cannot hold its value {beyond[0]}; store it as one type"
                    )
    return faults


def column_ranges(filesystem: fs.FileSystem, file: DataFile, name: str) -> list[tuple[Any, Any, bool]]:
    """Returns minimum, maximum and whether there may be nulls of a column in each row group, by its footer; None where it does not say."""
    ranges = []
    with filesystem.open_input_file(file.path) as source, pq.ParquetFile(source) as parquet:
        metadata = parquet.metadata
        index = [metadata.schema.column(i).path for i in range(metadata.num_columns)].index(name)
        for group in range(metadata.num_row_groups):
            statistics = metadata.row_group(group).column(index).statistics
            known = statistics is not None and statistics.has_min_max
            nulls = statistics is None or not statistics.has_null_count or statistics.null_count > 0
            ranges.append((statistics.min, statistics.max, nulls) if known else (None, None, nulls))
    return ranges
