"""Claims about data.fetching: a row group's bytes are asked for once, and reading them from memory gives what the file does."""

from __future__ import annotations

import io
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data import fetching
from data.fetching import GAP_BYTES, REQUEST_BYTES, Fetched, fetched, together
from data.reading import RowReader
from data.table import open_table

CONTENT = bytes(range(251)) * 4


class Recorder:
    """A file of these bytes that notes what is read."""

    def __init__(self, content: bytes) -> None:
        self.content, self.requests = content, list[tuple[int, int]]()

    def read_at(self, num_bytes: int, offset: int) -> bytes:
        self.requests.append((offset, num_bytes))
        return self.content[offset : offset + num_bytes]

    def size(self) -> int:
        return len(self.content)

    def close(self) -> None:
        pass


@given(
    cuts=st.lists(st.integers(0, len(CONTENT)), max_size=6),
    reads=st.lists(st.tuples(st.integers(0, len(CONTENT)), st.integers(0, len(CONTENT))), max_size=8),
)
def test_reads_are_those_of_the_file(cuts: list[int], reads: list[tuple[int, int]]) -> None:
    ends = sorted(cuts)[: len(cuts) // 2 * 2]
    stretches = [(begin, end) for begin, end in zip(ends[::2], ends[1::2], strict=True) if begin < end]
    source, plain = Recorder(CONTENT), io.BytesIO(CONTENT)
    file = Fetched(source, stretches)
    assert sorted(source.requests) == [(begin, end - begin) for begin, end in stretches]
    source.requests.clear()
    for offset, num_bytes in reads:
        assert bytes(file.read_at(num_bytes, offset)) == CONTENT[offset : offset + num_bytes]
        assert file.seek(offset) == plain.seek(offset) == file.tell()
        assert bytes(file.read(num_bytes)) == plain.read(num_bytes)
        assert file.tell() == plain.tell()
        if any(begin <= offset and offset + num_bytes <= end for begin, end in stretches):
            assert not source.requests
        source.requests.clear()


@given(st.lists(st.tuples(st.integers(0, 2**27), st.integers(1, 2**26)), max_size=12))
def test_requests_cover_every_column_and_neither_overlap_nor_grow_without_need(places: list[tuple[int, int]]) -> None:
    columns = sorted((begin, begin + size) for begin, size in places)
    requests = list(together(columns))
    assert all(any(begin <= first and last <= end for begin, end in requests) for first, last in columns)
    for (_, end), (begin, _) in pairwise(requests):
        assert end <= begin
    for begin, end in requests:
        inside = [(first, last) for first, last in columns if begin <= first < end]
        overlapping = any(first < last for (_, last), (first, _) in pairwise(inside))
        assert end - begin <= REQUEST_BYTES or len(inside) == 1 or overlapping
    if all(last <= first for (_, last), (first, _) in pairwise(columns)):
        covered = sum(last - first for first, last in columns)
        assert sum(end - begin for begin, end in requests) <= covered + len(columns) * GAP_BYTES


def wide_table(path: Path, groups: int) -> pa.Table:
    rng = np.random.default_rng(0)
    columns = {f"n{k}": pa.array(rng.normal(size=4_000)) for k in range(6)}
    columns |= {"text": pa.array([f"word {k % 700}" for k in range(4_000)]), "unused": pa.array(rng.normal(size=4_000))}
    columns["vector"] = pa.FixedSizeListArray.from_arrays(pa.array(rng.normal(size=32_000).astype(np.float32)), 8)
    table = pa.table(columns)
    path.mkdir()
    pq.write_table(table, path / "a.parquet", row_group_size=len(table) // groups, data_page_size=4_096)
    return table


def test_hash_headers_and_rows_of_a_row_group_take_one_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "GAP_BYTES", 0)
    written = wide_table(tmp_path / "t", 4)
    wanted = written.select([name for name in written.column_names if name != "unused"])
    table = open_table(str(tmp_path / "t"))
    source = Recorder((tmp_path / "t/a.parquet").read_bytes())
    reader = RowReader(SimpleNamespace(open_input_file=lambda _: source), wanted.schema)
    rows, hashes = [], set()
    for number, group in enumerate(table.row_groups()):
        found = reader.fetch(group)
        hashes.add(reader.content(found))
        rows += [part for _, part in reader.decode(found)]
        # The footer, and on each side of the unused column.
        assert len(source.requests) == 1 + 2 * (number + 1)
    assert len(hashes) == 4
    read = pa.concat_tables([part.set_column(6, "text", part["text"].cast(pa.string())) for part in rows])
    assert read.cast(wanted.schema).equals(wanted)
    unused = pq.read_metadata(tmp_path / "t/a.parquet").row_group(0).column(7)
    assert unused.path_in_schema == "unused"
    assert not any(begin <= unused.data_page_offset < begin + size for begin, size in source.requests)


def test_columns_that_do_not_fit_are_left_in_the_file(tmp_path: Path) -> None:
    wide_table(tmp_path / "t", 1)
    path = tmp_path / "t/a.parquet"
    metadata, source = pq.read_metadata(path), Recorder(path.read_bytes())
    size = metadata.row_group(0).column(0).total_compressed_size
    assert fetched(source, metadata, 0, ["n0"], size - 1) is source
    assert not source.requests
    assert isinstance(fetched(source, metadata, 0, ["n0"], size), Fetched)
    assert source.requests == [(metadata.row_group(0).column(0).dictionary_page_offset or 4, size)]
