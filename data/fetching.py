"""A row group's columns, fetched from the file once: page headers, hashes and Arrow's decoder look at the same bytes in memory.

From an object store every look would be a request of its own, and a look at each page's header many of them.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from io import SEEK_CUR, SEEK_END, SEEK_SET

import pyarrow as pa
import pyarrow.parquet as pq

from data.pages import Source, chunks_of, first_page

# What is fetched by one request, at most, unless one column is longer; and what may lie unused between two columns of a request.
REQUEST_BYTES = 2**25
GAP_BYTES = 2**16
# Requests under way at once, for stores that answer each one slowly.
NUM_REQUESTS = 8


class Fetched:
    """A file of which stretches are in memory; what lies elsewhere is read from the file. For pa.PythonFile too, which reads in sequence.

    stretches: (begin, end) in bytes, in order and apart from each other.
    """

    closed = False

    def __init__(self, source: pa.NativeFile, stretches: Collection[tuple[int, int]]) -> None:
        self._source, self._position = source, 0
        self._begins = [begin for begin, _ in stretches]
        self._held = [memoryview(content) for content in fetch(source, stretches)]

    def read_at(self, num_bytes: int, offset: int) -> bytes | memoryview:
        index = bisect_right(self._begins, offset) - 1
        if index >= 0:
            start, held = offset - self._begins[index], self._held[index]
            if start + num_bytes <= len(held):
                return held[start : start + num_bytes]
        content: bytes = self._source.read_at(num_bytes, offset)
        return content

    def size(self) -> int:
        return int(self._source.size())

    def read(self, num_bytes: int) -> bytes | memoryview:
        content = self.read_at(num_bytes, self._position)
        self._position += len(content)
        return content

    def seek(self, offset: int, whence: int = SEEK_SET) -> int:
        self._position = offset + {SEEK_SET: 0, SEEK_CUR: self._position, SEEK_END: self.size()}[whence]
        return self._position

    def tell(self) -> int:
        return self._position

    def close(self) -> None:
        """Leaves the file open, which is not this one's."""


def fetch(source: pa.NativeFile, stretches: Collection[tuple[int, int]]) -> Iterable[bytes]:
    """Returns what each stretch holds."""
    if len(stretches) <= 1:
        return [source.read_at(end - begin, begin) for begin, end in stretches]
    with ThreadPoolExecutor(NUM_REQUESTS) as pool:
        return list(pool.map(lambda stretch: source.read_at(stretch[1] - stretch[0], stretch[0]), stretches))


def fetched(source: pa.NativeFile, metadata: pq.FileMetaData, row_group: int, columns: Collection[str], max_bytes: int) -> Source:
    """Returns the file with named top-level columns of a row group in memory, where they take at most max_bytes, else as it is."""
    chunks = list(chunks_of(metadata, row_group, frozenset(columns)))
    if sum(max(0, chunk.total_compressed_size) for chunk in chunks) > max_bytes:
        whole: Source = source
        return whole
    size = source.size()
    places = ((first_page(chunk), first_page(chunk) + chunk.total_compressed_size) for chunk in chunks)
    return Fetched(source, list(together(sorted((begin, end) for begin, end in places if 0 <= begin < end <= size))))


def together(stretches: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Yields stretches, sorted by where they begin, with those joined that one request fetches."""
    begin = end = -1
    for first, last in stretches:
        if end >= 0 and (first < end or (first - end <= GAP_BYTES and last - begin <= REQUEST_BYTES)):
            end = max(end, last)
            continue
        if end >= 0:
            yield begin, end
        begin, end = first, last
    if end >= 0:
        yield begin, end
