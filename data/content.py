"""What a file holds: a hash of the stored bytes of the columns that a job reads, which tells a changed file from a touched one."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow.parquet as pq
import xxhash
from pyarrow import fs

from data.footer import DataFile
from data.pages import Source, chunks_of, first_page

# Read and hashed at once: little enough for a cache, and for an object store a request that is worth its round trip.
HASHED_BYTES = 2**22


def content_of_group(source: Source, metadata: pq.FileMetaData, index: int, names: Sequence[str]) -> str:
    """Returns 32 hex digits of a row group's number of rows, and of the stored bytes and types of its columns of these names.

    XXH3 with 128 bits: files are not compared with those of somebody who wants them to look alike.
    """
    digest = xxhash.xxh3_128(str(metadata.row_group(index).num_rows).encode())
    chunks = {chunk.path_in_schema: chunk for chunk in chunks_of(metadata, index, frozenset(names))}
    leaves = map(metadata.schema.column, range(metadata.num_columns))
    types = {leaf.path: f"{leaf.physical_type} {leaf.logical_type}" for leaf in leaves if leaf.path in chunks}
    for path, chunk in sorted(chunks.items()):
        digest.update(f"\n{path} {types[path]} {chunk.compression} {chunk.total_compressed_size}\n".encode())
        start = first_page(chunk)
        end = start + chunk.total_compressed_size
        for begin in range(start, end, HASHED_BYTES):
            digest.update(source.read_at(min(HASHED_BYTES, end - begin), begin))
    return digest.hexdigest()


def content_of_file(filesystem: fs.FileSystem, file: DataFile, names: Sequence[str]) -> str:
    """Returns the hash of the file's content as far as a job reads it."""
    with filesystem.open_input_file(file.path) as source, pq.ParquetFile(source) as parquet:
        return content_of([content_of_group(source, parquet.metadata, i, names) for i in range(len(file.row_groups))])


def content_of(groups: Sequence[str]) -> str:
    """Returns one hash of the hashes of a file's row groups."""
    return xxhash.xxh3_128("\n".join(groups).encode()).hexdigest()
