"""What is at a path: the Parquet files, their row groups and their one schema, or one error that says why not."""

from __future__ import annotations

import glob
import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import PurePosixPath

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

TAIL_BYTES = 64 * 1024
FOOTER_THREADS = 16


class DataError(ValueError):
    """The input data is unreadable or unsuitable; the message names file and column and says what to do."""


@dataclass(frozen=True)
class DataFile:
    """One Parquet file: its path on the filesystem, its path below the input root, and what its footer says."""

    path: str
    relative_path: str
    num_bytes: int
    row_groups: tuple[int, ...]
    identity: str

    @property
    def num_rows(self) -> int:
        return sum(self.row_groups)


@dataclass(frozen=True)
class RowGroup:
    """One row group of a file: what a reading task is given. first_row is its first row's position in the file."""

    path: str
    identity: str
    index: int
    first_row: int
    num_rows: int


@dataclass(frozen=True)
class Table:
    """A Parquet table: files in the order of their relative paths, and the schema that they share."""

    filesystem: fs.FileSystem
    files: tuple[DataFile, ...]
    schema: pa.Schema
    num_empty_files: int

    @property
    def num_rows(self) -> int:
        return sum(file.num_rows for file in self.files)

    @property
    def fingerprint(self) -> str:
        """32 hex digits over every file's relative path and identity; the same table has the same one anywhere."""
        lines = "\n".join(f"{file.relative_path} {file.identity}" for file in self.files)
        return hashlib.sha256(lines.encode()).hexdigest()[:32]

    def row_groups(self) -> Iterator[RowGroup]:
        for file in self.files:
            first_row = 0
            for index, num_rows in enumerate(file.row_groups):
                yield RowGroup(file.path, file.identity, index, first_row, num_rows)
                first_row += num_rows


def read_row_group(filesystem: fs.FileSystem, group: RowGroup, columns: Sequence[str]) -> pa.Table:
    """Returns the named columns of one row group, in that order. Raises DataError naming the file."""
    try:
        with filesystem.open_input_file(group.path) as source, pq.ParquetFile(source) as file:
            table = file.read_row_group(group.index, columns=list(columns), use_threads=False).select(list(columns))
    except (pa.ArrowException, OSError, KeyError) as error:
        raise DataError(f"{group.path}: row group {group.index} of columns {list(columns)} cannot be read: {error}") from error
    if table.num_rows != group.num_rows:
        raise DataError(
            f"{group.path}: row group {group.index} has {table.num_rows} rows, its footer said {group.num_rows}: the file changed"
        )
    return table


def open_table(path: str | Sequence[str]) -> Table:
    """Returns the table at a file, folder, glob or URI, or at several of them, from its footers alone.

    Raises DataError listing every unreadable file, or every difference between the files' schemas.
    """
    filesystem, files = find_files([path] if isinstance(path, str) else list(path))
    with ThreadPoolExecutor(FOOTER_THREADS) as pool:
        footers = list(pool.map(lambda item: read_footer(filesystem, *item), files))
    broken = [footer for footer in footers if isinstance(footer, str)]
    if broken:
        raise DataError("unreadable Parquet files (mend or remove them):\n  " + "\n  ".join(broken))
    read = [footer for footer in footers if not isinstance(footer, str)]
    with_rows = [(file, schema) for file, schema in read if file.num_rows > 0]
    if not with_rows:
        raise DataError(f"{path}: {len(read)} Parquet files, none of which has a row; a table needs at least one")
    schema = one_schema(with_rows)
    return Table(filesystem, tuple(file for file, _ in with_rows), schema, len(read) - len(with_rows))


def find_files(paths: Sequence[str]) -> tuple[fs.FileSystem, list[tuple[str, str]]]:
    """Returns the filesystem and the (path, path below the input root) of every Parquet file, sorted by the latter."""
    if not paths:
        raise DataError("no path is given; name a Parquet file, a folder of them, or a glob")
    filesystem: fs.FileSystem | None = None
    found: dict[str, str] = {}
    for path in paths:
        this, root = open_filesystem(path)
        if filesystem is not None and this != filesystem:
            raise DataError(f"{path}: is on another filesystem than {paths[0]}; one table lies on one filesystem")
        filesystem = this
        found.update(list_root(this, root, path))
    assert filesystem is not None
    common = os.path.commonpath([os.path.dirname(p) for p in found]) if len(paths) > 1 else None
    pairs = [(p, os.path.relpath(p, common) if common is not None else below) for p, below in found.items()]
    return filesystem, sorted(pairs, key=lambda pair: pair[1])


def open_filesystem(path: str) -> tuple[fs.FileSystem, str]:
    """Returns the filesystem of a path or URI and the path on it."""
    if "://" not in path:
        return fs.LocalFileSystem(), os.path.abspath(os.path.expanduser(path))
    try:
        return fs.FileSystem.from_uri(path)  # type: ignore[no-any-return]
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be opened: {error}; give a path, file://, s3:// or gs:// URI") from error


def list_root(filesystem: fs.FileSystem, root: str, given: str) -> dict[str, str]:
    """Returns path -> path below the root of what a file, folder or glob names; hidden names (_x, .x) only where named in full."""
    named: list[str] = []
    if isinstance(filesystem, fs.LocalFileSystem) and glob.has_magic(root) and not os.path.exists(root):
        named = glob.glob(root, recursive=True)
        if not named:
            raise DataError(f"{given}: no file matches")
        root = os.path.dirname(root[: min(root.index(c) for c in "*?[" if c in root)])
    info = filesystem.get_file_info(root)
    if info.type == fs.FileType.NotFound:
        raise DataError(f"{given}: nothing is there; give a Parquet file, a folder of them, or a glob")
    if info.type == fs.FileType.File:
        return {root: PurePosixPath(root).name}
    files = {p: os.path.relpath(p, root) for top in named or [root] for p in files_below(filesystem, top)}
    visible = {p: below for p, below in files.items() if not any(part.startswith(("_", ".")) for part in PurePosixPath(below).parts)}
    parquet = {p: below for p, below in visible.items() if p in named or below.endswith((".parquet", ".parq", ".pq"))}
    if not parquet:
        raise DataError(f"{given}: the folder holds no .parquet file ({len(visible)} other files); is it the right one?")
    partitioned = sorted(below for below in parquet.values() if any("=" in part for part in PurePosixPath(below).parts[:-1]))
    if partitioned:
        raise DataError(
            f"{given}: {partitioned[0]} lies in a partition folder, whose column would be lost; store it as a column of the files"
        )
    return parquet


def files_below(filesystem: fs.FileSystem, path: str) -> list[str]:
    """Returns all files of a folder and of its folders, or the one file that the path is."""
    if filesystem.get_file_info(path).type != fs.FileType.Directory:
        return [path]
    listed = filesystem.get_file_info(fs.FileSelector(path, recursive=True))
    return [info.path for info in listed if info.type == fs.FileType.File]


def read_footer(filesystem: fs.FileSystem, path: str, relative_path: str) -> tuple[DataFile, pa.Schema] | str:
    """Returns what a file's footer says, or one line on why it cannot be read."""
    try:
        with filesystem.open_input_file(path) as source:
            size = source.size()
            if size < 12:
                return f"{path}: {size} bytes, which is no Parquet file"
            tail = source.read_at(min(size, TAIL_BYTES), size - min(size, TAIL_BYTES))
            footer_bytes = 8 + int.from_bytes(tail[-8:-4], "little")
            if tail[-4:] != b"PAR1" or footer_bytes + 4 > size:
                return f"{path}: does not end as a Parquet file does (truncated, or of another format)"
            if footer_bytes > len(tail):
                tail = source.read_at(footer_bytes, size - footer_bytes)
            footer = tail[-footer_bytes:]
        with pq.ParquetFile(pa.BufferReader(b"PAR1" + footer)) as file:
            rows = tuple(file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups))
            schema = file.schema_arrow.remove_metadata()
    except (pa.ArrowException, OSError) as error:
        return f"{path}: {error}"
    return DataFile(path, relative_path, size, rows, hashlib.sha256(footer + size.to_bytes(8, "little")).hexdigest()), schema


def one_schema(files: Sequence[tuple[DataFile, pa.Schema]]) -> pa.Schema:
    """Returns the schema that all files share. Raises DataError listing every difference by file and column."""
    first_file, first = files[0]
    unsuitable = {fault: file.path for file, schema in reversed(files) for fault in unsuitable_columns(schema)}
    faults = [f"{path}: {fault}" for fault, path in unsuitable.items()]
    types = {field.name: field.type for field in first}
    for file, schema in files[1:]:
        here = {field.name: field.type for field in schema}
        faults += [f"{file.path}: column {name!r} is missing" for name in types if name not in here]
        faults += [f"{file.path}: column {name!r} is not in {first_file.path}" for name in here if name not in types]
        faults += [
            f"{file.path}: column {name!r} is {here[name]}, in {first_file.path} it is {types[name]}"
            for name in types
            if name in here and here[name] != types[name]
        ]
    if faults:
        raise DataError("the files do not make one table:\n  " + "\n  ".join(faults))
    return pa.schema([pa.field(field.name, field.type) for field in first])


def unsuitable_columns(schema: pa.Schema) -> list[str]:
    faults = []
    seen: dict[str, str] = {}
    for field in schema:
        if field.name.lower() in seen:
            faults.append(f"columns {seen[field.name.lower()]!r} and {field.name!r} have one name, or differ only in case; rename one")
        seen[field.name.lower()] = field.name
        if isinstance(field.type, pa.BaseExtensionType):
            faults.append(f"column {field.name!r} is of extension type {field.type}; store it as its storage type")
    return faults
