"""Peak memory of preflight, statistics and streaming reads does not grow with the table. Each measured in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tests.running import ROOT

ROWS_PER_GROUP = 20_000

MEASURED = """
import json, resource, sys
from dataclasses import asdict
import pyarrow as pa
from data.columns import Rules, decide_columns
from data.encoding import TableEncoding
from data.plan import Reading
from data.scan import ScanTask, runs, scan_groups
from data.shard import Reader
from data.statistics import merge_all
from data.table import open_table

table = open_table(sys.argv[1])
groups = list(table.row_groups())
names = tuple(table.schema.names)
task = ScanTask(table.filesystem, table.schema, names, None, (0.1, 0.0), (), False, 2**26)
summary = merge_all(scan_groups(task, run).summary for run in runs(groups))
assert sum(summary.num_rows) == table.num_rows
encoding = TableEncoding(table.schema, tuple(decide_columns(table.schema, summary, None, {}, Rules())), None)
reader = Reader(table.filesystem, encoding, (0.0, 0.0), 2**26)
readings = [Reading(group, ((0, 0, group.num_rows, 0),)) for group in groups]
batch = pa.table({"readings": [json.dumps([asdict(reading)]) for reading in readings]})
assert sum(block.num_rows for block in reader.read(batch)) == table.num_rows
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def write(path: Path, num_groups: int) -> Path:
    rng = np.random.default_rng(num_groups)
    with pq.ParquetWriter(path, rows(rng).schema) as writer:
        for _ in range(num_groups):
            writer.write_table(rows(rng))
    return path


def rows(rng: np.random.Generator) -> pa.Table:
    """Returns one row group: numbers, text of many values, codes, pixels."""
    text = pa.array(np.char.add("value ", rng.integers(0, 5_000, ROWS_PER_GROUP).astype(str)))
    pixels = pa.array(rng.integers(0, 256, ROWS_PER_GROUP * 64, dtype=np.uint8))
    columns = {f"x{i}": rng.normal(size=ROWS_PER_GROUP) for i in range(10)}
    more = {"text": text, "code": rng.integers(0, 9, ROWS_PER_GROUP), "pixels": pa.FixedSizeListArray.from_arrays(pixels, 64)}
    return pa.table(columns | more)


def peak_kib(path: Path) -> int:
    done = subprocess.run([sys.executable, "-c", MEASURED, str(path)], cwd=ROOT, capture_output=True, text=True, timeout=300, check=True)
    return int(done.stdout)


def test_a_table_ten_times_as_large_takes_no_more_memory(tmp_path: Path) -> None:
    small, large = (peak_kib(write(tmp_path / f"{num}.parquet", num)) for num in (4, 40))
    assert large < 1.2 * small
