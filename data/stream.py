"""Rows that do not fit a worker's memory: read by Ray tasks window by window, in the order in which they are needed.

Plain tasks, since the executor of a Ray dataset (2.60) keeps most of a core busy while a consumer slower than its readers holds it up.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import pyarrow as pa
import ray

from data.fields import Arrays
from data.listing import DataError
from data.plan import Integers, Window, window_reading
from data.shard import Layout, Reader, ResidentRows, named
from data.table import RowGroup

# Windows that are read, or wait to be used, beside those that a worker holds.
NUM_AHEAD = 2


@dataclass(frozen=True)
class Stream:
    """One side's rows in a table; travels to the workers.

    starts [groups + 1]: rows of the side before each row group; bounds [V + 1]: where the logical shards begin; num_cpus: what Ray counts
    for a task.
    """

    reader: Reader
    shapes: Layout
    groups: list[RowGroup]
    starts: Integers
    side: int
    bounds: Integers
    num_cpus: int = 1

    def windows(self, windows: Sequence[Window]) -> Iterator[tuple[Window, Arrays]]:
        """Yields the arrays of windows of the logical shards, in that order. Raises DataError where the files changed meanwhile."""
        read, reader = ray.remote(num_cpus=self.num_cpus)(read_window), ray.put(self.reader)
        left, coming = iter(windows), deque[tuple[Window, ray.ObjectRef]]()

        def ask(number: int) -> None:
            coming.extend((window, read.remote(reader, self._readings(window))) for window in islice(left, number))

        ask(NUM_AHEAD)
        while coming:
            window, block = coming.popleft()
            rows = ResidentRows(self.shapes, window.num_rows)
            rows.fill(ray.get(block))
            ask(1)
            if rows.num_filled != window.num_rows:
                raise DataError("the files changed while they were read; run again when nothing writes them")
            yield window, rows.arrays

    def _readings(self, window: Window) -> str:
        first = int(self.bounds[window.shard]) + window.start
        found = window_reading(self.groups, self.starts, self.side, first, first + window.num_rows)
        return json.dumps([named(reading) for reading in found])


def read_window(reader: Reader, readings: str) -> pa.Table:
    """Returns the encoded rows that readings name, as one table."""
    return pa.concat_tables(reader.read(pa.table({"readings": [readings]})))
