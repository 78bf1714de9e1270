"""Claims about data.writing: a file's bytes depend on its rows alone, not on how they came."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import given, settings
from hypothesis import strategies as st

import data.writing
from data.output import OutputFolder
from data.writing import row_group_rows

NUM_ROWS = 50
TEXT = [None, "b", "a", "c", "a"] * 10
SCHEMA = pa.schema(
    [
        ("id", pa.int64()),
        ("text", pa.string()),
        ("words", pa.dictionary(pa.int32(), pa.string())),
        ("z", pa.list_(pa.float32(), 2)),
    ]
)


def rows(begin: int, end: int) -> pa.Table:
    """Returns rows whose dictionary holds what comes in them alone, as slices of a file have it."""
    z = pa.FixedSizeListArray.from_arrays(pa.array(np.arange(2 * begin, 2 * end, dtype=np.float32)), 2)
    words = pa.array(TEXT[begin:end], pa.string()).dictionary_encode()
    return pa.table([pa.array(range(begin, end)), pa.array(TEXT[begin:end], pa.string()), words, z], schema=SCHEMA)


@settings(deadline=None, max_examples=30)
@given(cuts=st.sets(st.integers(1, NUM_ROWS - 1)), size=st.integers(1, 60), in_parts=st.booleans())
def test_bytes_do_not_depend_on_how_rows_came(cuts: set[int], size: int, in_parts: bool) -> None:
    with TemporaryDirectory() as folder, patch("data.writing.ROW_GROUP_ROWS", size):
        check_bytes(Path(folder), cuts, size, in_parts)


def check_bytes(folder: Path, cuts: set[int], size: int, in_parts: bool) -> None:
    output = OutputFolder.open(str(folder))
    with output.staged("whole.parquet", SCHEMA) as writer:
        writer.write_table(rows(0, NUM_ROWS))
    ends = [0, *sorted(cuts), NUM_ROWS]
    pieces = [rows(begin, end) for begin, end in pairwise(ends)]
    if in_parts:
        for number, piece in enumerate(pieces):
            with output.staged_part(str(number), SCHEMA) as part:
                part.write_table(piece)
        pieces = list(output.parts([str(number) for number in range(len(pieces))]))
    with output.staged("pieces.parquet", SCHEMA) as writer:
        for piece in pieces:
            writer.write_table(piece)
    assert (folder / "pieces.parquet").read_bytes() == (folder / "whole.parquet").read_bytes()
    assert pq.read_table(folder / "pieces.parquet").to_pylist() == rows(0, NUM_ROWS).to_pylist()
    metadata = pq.read_metadata(folder / "pieces.parquet")
    assert [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)][:-1] == [size] * ((NUM_ROWS - 1) // size)


def test_row_groups_of_wide_rows_are_smaller(tmp_path: Path) -> None:
    assert row_group_rows(SCHEMA) == data.writing.ROW_GROUP_ROWS
    wide = pa.schema([("z", pa.list_(pa.float32(), 2**20)), ("inside", pa.struct([("x", pa.list_(pa.uint8(), 2**22))]))])
    assert row_group_rows(wide) == 2**27 // (2**22 + 2**22)
    with OutputFolder.open(str(tmp_path)).staged("empty.parquet", SCHEMA):
        pass
    assert pq.read_table(tmp_path / "empty.parquet").num_rows == 0


def test_vectors_of_floats_are_split_by_byte_and_only_text_has_a_dictionary(tmp_path: Path) -> None:
    vector = pa.list_(pa.float32(), 2)
    schema = pa.schema(
        [
            ("id", pa.int64()),
            ("z", vector),
            ("text", pa.string()),
            ("words", pa.list_(pa.string())),
            ("part", pa.struct([("number", pa.float64()), ("z", pa.list_(pa.float64(), 2))])),
            ("pixels", pa.list_(pa.uint8(), 2)),
        ]
    )
    row = {"id": 1, "z": [0.5, -1.5], "text": "a", "words": ["b", "c"], "part": {"number": 2.0, "z": [3.0, 4.0]}, "pixels": [5, 6]}
    table = pa.Table.from_pylist([row] * 3, schema)
    with OutputFolder.open(str(tmp_path)).staged("a.parquet", schema) as writer:
        writer.write_table(table)
    assert pq.read_table(tmp_path / "a.parquet").equals(table)
    group = pq.read_metadata(tmp_path / "a.parquet").row_group(0)
    chunks = [group.column(index) for index in range(group.num_columns)]
    split = {chunk.path_in_schema for chunk in chunks if "BYTE_STREAM_SPLIT" in chunk.encodings}
    assert split == {"z.list.element", "part.z.list.element"}
    assert {chunk.path_in_schema for chunk in chunks if "RLE_DICTIONARY" in chunk.encodings} == {"text", "words.list.element"}
    assert {chunk.path_in_schema for chunk in chunks if chunk.is_stats_set} == {"id", "text", "part.number"}
