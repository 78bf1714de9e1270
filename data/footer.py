"""What the footer of one Parquet file says: its rows, its schema, its identity, and the ranges of its columns."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from data.listing import DataError, FoundFile, partition_values
from data.stores import refuse_silence
from data.types import without_views

TAIL_BYTES = 64 * 1024
FOOTER_THREADS = 16
# Files that a thread is given at once, where there are many: to hand them over one by one takes as long as planning the table.
FILES_AT_ONCE = 32
# Files that are asked for ahead, so that what waits does not grow with the table.
FILES_AHEAD = 8192

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class DataFile:
    """One Parquet file: its path on the filesystem, its path below the input root, and what its footer says.

    partition: whether folders of the relative path spell out columns (year=2024/). mtime_ns: when it was changed last (0: not known).
    """

    path: str
    relative_path: str
    num_bytes: int
    row_groups: tuple[int, ...]
    identity: str
    partition: bool = False
    mtime_ns: int = 0

    @property
    def num_rows(self) -> int:
        return sum(self.row_groups)


@dataclass(frozen=True, slots=True)
class Footer:
    """What a file's footer says: the file, its own schema, and the columns of its folders."""

    file: DataFile
    schema: pa.Schema
    partition: dict[str, str | None]


class Range(NamedTuple):
    """What the statistics say of a column in one row group; None where they do not say it."""

    low: Any
    high: Any
    num_nulls: int | None
    num_rows: int


def in_parallel(work: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
    """Yields work(item) of every item in their order, computed by threads a little ahead."""
    size = max(1, min(FILES_AT_ONCE, len(items) // (4 * FOOTER_THREADS)))
    with ThreadPoolExecutor(FOOTER_THREADS) as pool:
        for ahead in range(0, len(items), FILES_AHEAD):
            end = min(ahead + FILES_AHEAD, len(items))
            parts = (items[begin : min(begin + size, end)] for begin in range(ahead, end, size))
            for results in pool.map(lambda part: [work(item) for item in part], parts):
                yield from results


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


def file_identity(footer: bytes, num_bytes: int) -> str:
    """Returns 64 hex digits for a file's content as far as its footer knows it: by sizes, offsets and statistics."""
    return hashlib.sha256(footer + num_bytes.to_bytes(8, "little")).hexdigest()


def read_footer(filesystem: fs.FileSystem, found: FoundFile, schemas: dict[bytes, pa.Schema]) -> Footer | str:
    """Returns what a file's footer says, or one line on why it cannot be read.

    schemas: those of other files; equal ones are held once, since a million files have few.
    """
    path, relative_path, mtime_ns = found
    try:
        partition = partition_values(relative_path)
        with filesystem.open_input_file(path) as source:
            footer, size = footer_bytes(source), source.size()
        if isinstance(footer, str):
            return f"{path}: {footer}"
        with pq.ParquetFile(pa.BufferReader(b"PAR1" + footer)) as file:
            rows = tuple(file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups))
            found_schema = file.schema_arrow.remove_metadata()
        known_as = found_schema.serialize().to_pybytes()
        if known_as not in schemas:
            schemas[known_as] = pa.schema([field.with_type(without_views(field.type)) for field in found_schema])
        schema = schemas[known_as]
    except (pa.ArrowException, OSError, UnicodeDecodeError, DataError) as error:
        refuse_silence(error)
        return f"{path}: {error}"
    return Footer(DataFile(path, relative_path, size, rows, file_identity(footer, size), bool(partition), mtime_ns), schema, partition)


def column_ranges(filesystem: fs.FileSystem, path: str, names: Collection[str]) -> dict[str, list[Range]]:
    """Returns what the footer's statistics say of columns, by row group; of lists they say nothing."""
    with filesystem.open_input_file(path) as source, pq.ParquetFile(source) as file:
        metadata = file.metadata
        leaves = {metadata.schema.column(i).path: i for i in range(metadata.num_columns)}
        groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
        return {name: [chunk_range(group, leaves.get(name)) for group in groups] for name in names}


def chunk_range(group: pq.RowGroupMetaData, leaf: int | None) -> Range:
    chunk = group.column(leaf) if leaf is not None else None
    statistics = chunk.statistics if chunk is not None else None
    if statistics is None:
        return Range(None, None, None, group.num_rows)
    low, high = (statistics.min, statistics.max) if statistics.has_min_max else (None, None)
    return Range(low, high, statistics.null_count if statistics.has_null_count else None, group.num_rows)
