"""A worker's rows: read by Ray Data as compact arrays, and held in memory for every epoch.

Arrays cross the object store as fixed-size binary columns, one value per row, which Arrow neither copies nor converts.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from numpy.typing import NDArray
from pyarrow import fs

from data.encoding import TableEncoding
from data.fields import LOG_JACOBIAN, Arrays
from data.listing import DataError
from data.plan import Reading
from data.reading import MAX_BATCH_BYTES, RowReader
from data.split import split_rows
from data.table import RowGroup

Layout = dict[str, tuple[str, int]]

SIDE, PLACE = "side", "place"
# Encoded rows of one reading task.
BUNDLE_BYTES = 2**25
# Tasks of one dataset that run at once where Ray counts no CPU for them.
MAX_UNCOUNTED_TASKS = 2


def layout(encoding: TableEncoding) -> Layout:
    """Returns array name -> (dtype, width) of the encoded rows; width 0 is an array of one dimension."""
    result: Layout = {LOG_JACOBIAN: ("float64", 0)}
    for field in encoding.fields:
        result[field.name] = (str(field.storage), field.size)
        result[f"{field.name}.valid"] = ("bool", field.valid_size)
    return result


def bytes_per_row(encoding: TableEncoding) -> int:
    """Returns the memory that one resident row takes."""
    return sum(np.dtype(dtype).itemsize * max(width, 1) for dtype, width in layout(encoding).values())


def reading_dataset(reader: Reader, plan: Sequence[Reading], row_bytes: int, num_cpus: int = 1) -> ray.data.Dataset:
    """Returns a dataset whose tasks each read some row groups and give the encoded rows that the plan asks of them.

    num_cpus: what Ray counts for a task; with 0, few run at once.
    """
    items = [{"readings": json.dumps([named(reading) for reading in bundle])} for bundle in bundles(plan, row_bytes)]
    logging.getLogger("ray.data").setLevel(logging.ERROR)  # else it warns that its progress bars are off
    ray.data.DataContext.get_current().enable_progress_bars = False
    compute = None if num_cpus else ray.data.TaskPoolStrategy(MAX_UNCOUNTED_TASKS)
    return ray.data.from_items(items, override_num_blocks=max(1, len(items))).map_batches(
        reader.read, batch_size=1, batch_format="pyarrow", num_cpus=num_cpus, compute=compute
    )


def named(reading: Reading) -> dict[str, Any]:
    """Returns a reading as JSON takes it; dataclasses.asdict says the same in four times the time, and there may be a million."""
    return {"group": {name: getattr(reading.group, name) for name in RowGroup.__slots__}, "targets": reading.targets}


def bundles(plan: Sequence[Reading], row_bytes: int) -> list[list[Reading]]:
    """Returns the readings in runs of about BUNDLE_BYTES of encoded rows: a Ray Data task costs 25 ms however little it reads."""
    result: list[list[Reading]] = []
    size = BUNDLE_BYTES
    for reading in plan:
        if size >= BUNDLE_BYTES:
            result.append([])
            size = 0
        result[-1].append(reading)
        size += row_bytes * sum(end - begin for _, begin, end, _ in reading.targets)
    return result


class Reader:
    """Turns readings into tables of encoded rows; travels to the reading tasks."""

    def __init__(
        self, filesystem: fs.FileSystem, encoding: TableEncoding, fractions: tuple[float, float], max_batch_bytes: int = MAX_BATCH_BYTES
    ) -> None:
        self.filesystem, self.encoding, self.fractions = filesystem, encoding.to_json(), fractions
        self.max_batch_bytes = max_batch_bytes

    def read(self, batch: pa.Table) -> Iterator[pa.Table]:
        encoding = TableEncoding.from_json(self.encoding)
        names = [*encoding.inputs, *([encoding.key] if encoding.key is not None else [])]
        with RowReader(self.filesystem, encoding.schema_of(names), self.max_batch_bytes) as reader:
            for text in batch["readings"].to_pylist():
                for reading in json.loads(text):
                    yield from self._read_group(reader, RowGroup(**reading["group"]), reading["targets"], encoding)

    def _read_group(
        self, reader: RowReader, group: RowGroup, targets: Sequence[Sequence[int]], encoding: TableEncoding
    ) -> Iterator[pa.Table]:
        seen = np.zeros(3, np.int64)  # rows of each side in the slices before
        for part, table in reader.slices(group):
            sides = split_rows(table, part, encoding.key, self.fractions)
            arrays: Arrays | None = None
            for side, begin, end, place in targets:
                ranks = np.flatnonzero(sides == side)
                first, last = np.clip([begin - seen[side], end - seen[side]], 0, len(ranks)).tolist()
                if first < last:
                    arrays = encoding.encode(table, group.path) if arrays is None else arrays
                    wanted = ranks[first:last]
                    whole = len(wanted) == len(table)
                    rows = arrays if whole else {name: array[wanted] for name, array in arrays.items()}
                    yield to_blocks(rows, layout(encoding), side, place + int(seen[side]) + first - begin, len(wanted), group.path)
            seen += np.bincount(sides, minlength=3)


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
