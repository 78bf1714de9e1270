"""A worker's rows: read by Ray Data as compact arrays, and held in memory for every epoch.

Arrays cross the object store as fixed-size binary columns, one value per row, which Arrow neither copies nor converts.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from numpy.typing import NDArray
from pyarrow import fs

from data.encoding import LOG_JACOBIAN, Arrays, TableEncoding
from data.plan import Reading
from data.split import split_rows
from data.table import DataError, RowGroup, Table, read_row_group

Layout = dict[str, tuple[str, int]]

SIDE, PLACE = "side", "place"


def layout(encoding: TableEncoding) -> Layout:
    """Returns array name -> (dtype, width) of the encoded rows; width 0 is an array of one dimension."""
    storage = {"boolean": "int8", "categorical": "int32", "image": "uint8"}
    result: Layout = {LOG_JACOBIAN: ("float64", 0)}
    for field in encoding.fields:
        result[field.name] = (storage.get(field.kind, "float32"), field.size)
        result[f"{field.name}.valid"] = ("bool", field.valid_size)
    return result


def bytes_per_row(encoding: TableEncoding) -> int:
    """Returns the memory that one resident row takes."""
    return sum(np.dtype(dtype).itemsize * max(width, 1) for dtype, width in layout(encoding).values())


def reading_dataset(table: Table, plan: Sequence[Reading], encoding: TableEncoding, fractions: tuple[float, float]) -> ray.data.Dataset:
    """Returns a dataset whose tasks each read one row group and give the encoded rows that the plan asks of it."""
    items = [{"reading": json.dumps(asdict(reading))} for reading in plan]
    reader = Reader(table.filesystem, encoding, fractions)
    return ray.data.from_items(items, override_num_blocks=max(1, len(items))).map_batches(
        reader.read, batch_size=1, batch_format="pyarrow", num_cpus=1
    )


class Reader:
    """Turns readings into tables of encoded rows; travels to the reading tasks."""

    def __init__(self, filesystem: fs.FileSystem, encoding: TableEncoding, fractions: tuple[float, float]) -> None:
        self.filesystem, self.encoding, self.fractions = filesystem, encoding.to_json(), fractions

    def read(self, batch: pa.Table) -> Iterator[pa.Table]:
        encoding = TableEncoding.from_json(self.encoding)
        for text in batch["reading"].to_pylist():
            reading = json.loads(text)
            group = RowGroup(**reading["group"])
            yield from self._read_group(group, reading["targets"], encoding)

    def _read_group(self, group: RowGroup, targets: Sequence[Sequence[int]], encoding: TableEncoding) -> Iterator[pa.Table]:
        columns = encoding.modelled + ([encoding.key] if encoding.key is not None else [])
        table = read_row_group(self.filesystem, group, columns)
        sides = split_rows(table, group, encoding.key, self.fractions)
        for side, begin, end, place in targets:
            rows = np.flatnonzero(sides == side)[begin:end]
            arrays = encoding.encode(table.select(encoding.modelled).take(rows), group.path)
            yield to_blocks(arrays, layout(encoding), side, place, len(rows), group.path)


def to_blocks(arrays: Arrays, shapes: Layout, side: int, place: int, num_rows: int, where: str) -> pa.Table:
    """Returns encoded rows as an Arrow table that says where they belong."""
    columns: dict[str, pa.Array] = {
        SIDE: pa.array(np.full(num_rows, side, np.int8)),
        PLACE: pa.array(np.arange(place, place + num_rows, dtype=np.int64)),
    }
    for name, (dtype, width) in shapes.items():
        array = arrays[name] if width else arrays[name][:, None]
        if array.shape[1] != max(width, 1):
            raise DataError(f"{where}: {name} has null elements where the scanned table had none: the file changed")
        num_bytes = np.dtype(dtype).itemsize * array.shape[1]
        buffer = pa.py_buffer(np.ascontiguousarray(array, dtype))
        columns[name] = pa.FixedSizeBinaryArray.from_buffers(pa.binary(num_bytes), num_rows, [None, buffer])
    return pa.table(columns)


class ResidentRows:
    """All rows of one side that a worker owns, as arrays in the order of its logical shards."""

    def __init__(self, shapes: Layout, num_rows: int) -> None:
        self.num_rows = num_rows
        self.num_filled = 0
        self.arrays: Arrays = {name: np.zeros((num_rows, width) if width else num_rows, dtype) for name, (dtype, width) in shapes.items()}

    def fill(self, block: pa.Table) -> None:
        places = block[PLACE].to_numpy()
        for name, array in self.arrays.items():
            cells = from_block(block[name], array.dtype)
            array[places] = cells.reshape(len(places), *array.shape[1:])
        self.num_filled += len(places)


def from_block(column: pa.ChunkedArray, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Returns the numbers of a fixed-size binary column, flat, without a copy where it is one chunk."""
    chunks = []
    for chunk in column.chunks:
        width = chunk.type.byte_width // dtype.itemsize
        flat = np.frombuffer(chunk.buffers()[1], dtype, len(chunk) * width, chunk.offset * chunk.type.byte_width)
        chunks.append(flat)
    return chunks[0] if len(chunks) == 1 else np.concatenate(chunks)


def fill_resident(blocks: Iterator[pa.Table], shapes: Layout, num_rows: Mapping[int, int]) -> dict[int, ResidentRows]:
    """Returns side -> the worker's rows of that side, after every block has arrived; num_rows: side -> rows planned."""
    sides = {side: ResidentRows(shapes, count) for side, count in num_rows.items()}
    for block in blocks:
        arrived = block[SIDE].to_numpy()
        for side in np.unique(arrived):
            whole = (arrived == side).all()
            sides[int(side)].fill(block if whole else block.filter(pa.array(arrived == side)))
    short = {side: rows for side, rows in sides.items() if rows.num_filled != rows.num_rows}
    if short:
        found = ", ".join(f"{rows.num_filled} of {rows.num_rows} rows of side {side}" for side, rows in short.items())
        raise DataError(f"the files changed while they were read: {found} arrived; run again when nothing writes them")
    return sides
