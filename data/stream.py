"""Rows that do not fit a worker's memory: read by Ray Data window by window, in the order in which they are needed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ray.data import ExecutionResources

from data.encoding import Arrays
from data.listing import DataError
from data.plan import Integers, Window, window_reading
from data.shard import NUMBER, Layout, Reader, ResidentRows, map_items, named
from data.table import RowGroup


@dataclass(frozen=True)
class Stream:
    """One side's rows in a table; travels to the workers.

    starts [groups + 1]: rows of the side before each row group; bounds [V + 1]: where the logical shards begin; max_bytes: of encoded rows
    that wait to be used, in the object store; num_cpus: what Ray counts for a task.
    """

    reader: Reader
    shapes: Layout
    groups: list[RowGroup]
    starts: Integers
    side: int
    bounds: Integers
    max_bytes: int
    num_cpus: int = 1

    def windows(self, windows: Sequence[Window]) -> Iterator[tuple[Window, Arrays]]:
        """Yields the arrays of windows of the logical shards, in that order. Raises DataError where the files changed meanwhile."""
        if not windows:
            return
        items = [{"number": number, "readings": self._readings(window)} for number, window in enumerate(windows)]
        dataset = map_items(items, self.reader.read_window, self.num_cpus)
        options = dataset.context.execution_options
        options.preserve_order, options.resource_limits = True, ExecutionResources(object_store_memory=self.max_bytes)
        expected = iter(enumerate(windows))
        for block in dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=1):
            number, window = next(expected)
            rows = ResidentRows(self.shapes, window.num_rows)
            rows.fill(block)
            if block[NUMBER][0].as_py() != number or rows.num_filled != window.num_rows:
                raise DataError("the files changed while they were read; run again when nothing writes them")
            yield window, rows.arrays

    def _readings(self, window: Window) -> str:
        first = int(self.bounds[window.shard]) + window.start
        found = window_reading(self.groups, self.starts, self.side, first, first + window.num_rows)
        return json.dumps([named(reading) for reading in found])
