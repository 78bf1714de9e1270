"""A reader of a row group that keeps within a byte budget: what is read as dictionaries, and how many rows are decoded at once."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from data.fetching import Fetched
from data.pages import DATA_PAGES, GREATEST_EXPANSION, PageHeader, Source, first_page, read_page_header, top_level_names
from data.types import is_list

# Rows of a slice, at most: enough for the calls per column to cost nothing, few enough for a column to stay in the cache.
SLICE_ROWS = 65_536
# Bytes of one decoded value by its physical type; of BYTE_ARRAY, its index in a dictionary. FIXED_LEN_BYTE_ARRAY has its type's.
WIDTHS = {"BOOLEAN": 1, "INT32": 4, "FLOAT": 4, "INT64": 8, "DOUBLE": 8, "INT96": 12, "BYTE_ARRAY": 4}
# Besides, a value in a list takes two int16 while it is decoded.
LEVELS_BYTES = 4
# Arrow's builders take up to three times what text takes in the end (pyarrow 25, measured); lists may differ in length by as much.
MARGIN = 4
# What lists may decode to per byte in the file, if they are to be read in slices: where more is packed, one row may hold nearly all of it.
LIST_EXPANSION = 1000
HARMLESS_BYTES = 2**24
# What is fetched of a column at once, at least.
MIN_BUFFER_BYTES = 2**16
# Arrow 25 does not read these as dictionaries ("Not yet implemented: DecodeArrow of DictAccumulator").
PLAIN_ENCODINGS = frozenset(("DELTA_BYTE_ARRAY", "DELTA_LENGTH_BYTE_ARRAY"))

# Running totals from 0: rows, and the bytes that they decode to. [2, n]
Totals = NDArray[np.int64]


class Leaf(NamedTuple):
    """One leaf of a top-level column in one row group."""

    name: str
    chunk: pq.ColumnChunkMetaData
    column: pq.ColumnSchema

    @property
    def is_list(self) -> bool:
        return bool(self.column.max_repetition_level > 0)

    @property
    def is_text(self) -> bool:
        """Whether it holds text or bytes, one per row."""
        return bool(self.column.physical_type == "BYTE_ARRAY" and not self.is_list and self.column.logical_type.type != "DECIMAL")


def leaves(metadata: pq.FileMetaData, row_group: int, names: Collection[str]) -> list[Leaf]:
    """Returns the leaves of the named top-level columns."""
    group, found = metadata.row_group(row_group), []
    for index in range(group.num_columns):
        chunk = group.column(index)
        name = next((name for name in top_level_names(chunk.path_in_schema) if name in names), None)
        if name is not None:
            found.append(Leaf(name, chunk, metadata.schema.column(index)))
    return found


def open_row_group(
    source: Source, metadata: pq.FileMetaData, row_group: int, schema: pa.Schema, max_bytes: int
) -> tuple[pq.ParquetFile, int]:
    """Returns a reader of a row group, and how many rows it may decode at once, at least 1, so that they take at most max_bytes.

    schema: the columns to be read, those included that the file lacks. Raises ValueError naming a column whose rows may be too large.
    """
    found, num_rows = leaves(metadata, row_group, frozenset(schema.names)), metadata.row_group(row_group).num_rows
    texts = [leaf for leaf in found if leaf.is_text]
    dictionaries = held_as_dictionaries(source, texts, max_bytes // (2 * MARGIN))
    names = [leaf.chunk.path_in_schema for leaf in dictionaries]
    # What is in memory is taken whole, else each column bit by bit.
    buffer_size = 0 if isinstance(source, Fetched) else max(MIN_BUFFER_BYTES, max_bytes // (4 * len(found)))
    file = pq.ParquetFile(source, metadata=metadata, read_dictionary=names, pre_buffer=False, buffer_size=buffer_size)
    held = {leaf.name for leaf in dictionaries}
    totals = [text_totals(source, file, row_group, leaf, max_bytes) for leaf in texts if leaf.name not in held]
    row_bytes = {field.name: float(value_bytes(field.type)) for field in schema}
    for leaf in found:
        width = max(value_bytes(schema.field(leaf.name).type), WIDTHS.get(leaf.column.physical_type, 0))
        row_bytes[leaf.name] = list_bytes(leaf, width, max_bytes) / max(1, num_rows) if leaf.is_list else width
    per_row = max(1.0, sum(row_bytes.values()))
    rows = max(1, min(SLICE_ROWS, num_rows, int(max_bytes / per_row)))
    while rows > 1 and rows * per_row + MARGIN * largest_slice(totals, rows) > max_bytes:
        rows = (rows + 1) // 2
    return file, rows


def value_bytes(kind: pa.DataType) -> int:
    """Returns the bytes of one value, of a list's one element; of text, those of its index in a dictionary."""
    if is_list(kind):
        return value_bytes(kind.value_type)
    try:
        return (int(kind.bit_width) + 7) // 8
    except ValueError:
        return WIDTHS["BYTE_ARRAY"]


def list_bytes(leaf: Leaf, width: int, max_bytes: int) -> int:
    """Returns what a row group's lists take, with a margin for their lengths where they are to be read in slices."""
    num_bytes = int(leaf.chunk.num_values * (width + LEVELS_BYTES))
    if num_bytes <= max_bytes:
        return num_bytes
    if num_bytes > max(HARMLESS_BYTES, LIST_EXPANSION * leaf.chunk.total_compressed_size):
        raise ValueError(
            f"column {leaf.name!r}: {leaf.chunk.total_compressed_size} bytes of lists decode to {num_bytes}, and one row may hold nearly "
            f"all of them; data.max_batch_bytes is {max_bytes}: write row groups of fewer rows, or raise it"
        )
    return MARGIN * num_bytes


def held_as_dictionaries(source: Source, texts: Sequence[Leaf], max_bytes: int) -> list[Leaf]:
    """Returns the columns of text that are read as dictionaries, in which Arrow holds all their text until the row group ends."""
    readable = [leaf for leaf in texts if PLAIN_ENCODINGS.isdisjoint(leaf.chunk.encodings)]
    if sum(leaf.chunk.total_compressed_size * GREATEST_EXPANSION.get(leaf.chunk.compression, math.inf) for leaf in readable) <= max_bytes:
        return readable
    sizes = {leaf.name: sum(page.uncompressed_bytes for page in page_headers(source, leaf.chunk)) for leaf in readable}
    smallest_first = sorted(readable, key=lambda leaf: sizes[leaf.name])
    ends = np.cumsum([sizes[leaf.name] for leaf in smallest_first])
    return smallest_first[: int(np.searchsorted(ends, max_bytes, "right"))]


def text_totals(source: Source, file: pq.ParquetFile, row_group: int, leaf: Leaf, max_bytes: int) -> Totals:
    """Returns running totals of a column of text, [2, n]: rows, and their bytes.

    A value may be as long as the longest page (a dictionary, or a prefix that all share), so that only decoding them tells.
    """
    longest = max((page.uncompressed_bytes for page in page_headers(source, leaf.chunk)), default=0)
    rows = max(1, max_bytes // max(1, MARGIN * longest))
    try:
        batches = file.iter_batches(rows, row_groups=[row_group], columns=[leaf.name], use_threads=False)
        return np.cumsum([(0, 0), *((batch.num_rows, batch.nbytes) for batch in batches)], axis=0).T
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"column {leaf.name!r}: {error}") from error


def page_headers(source: Source, chunk: pq.ColumnChunkMetaData) -> Iterator[PageHeader]:
    """Yields the headers of the pages that Arrow decodes. Raises MalformedHeader."""
    position, file_bytes, found = first_page(chunk), source.size(), 0
    end = position + chunk.total_compressed_size
    while found < chunk.num_values and position < end:
        page, position = read_page_header(source, position, file_bytes)
        position += page.compressed_bytes
        found += page.num_values if page.kind in DATA_PAGES else 0
        yield page


def largest_slice(totals: Sequence[Totals], rows: int) -> float:
    """Returns the most bytes that any slice of so many rows takes, if rows between two totals are of one size."""
    if not totals:
        return 0.0
    edges = np.arange(0, totals[0][0, -1] + rows, rows)
    return float(np.diff(sum(np.interp(edges, *total) for total in totals)).max(initial=0))
