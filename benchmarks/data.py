"""Reading and encoding Parquet, against plain pyarrow in the same process, and the statistics pass.

    python benchmarks/data.py [--rounds 7] [--ray]

Tables are made from a fixed seed in a temporary folder. All figures are rows per CPU-second of this process, one thread, medians over
rounds in which the variants take turns, each round from another one on; what counts is the ratio to pyarrow's reading of the same
columns in the same round. Without --ray nothing here starts Ray; with it, Ray Data's iter_torch_batches reads the same tables in a
process tree of its own.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics as middle
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from data.columns import Rules, decide_columns
from data.encoding import TableEncoding
from data.reading import RowReader
from data.statistics import TableSummary, merge_all, summarise_table
from data.table import Table, open_table

NUM_ROWS = {"tabular": 200_000, "images": 60_000, "numeric": 200_000}


def tabular(num_rows: int, num_categorical: int = 10) -> pa.Table:
    """Returns 20 numeric and some categorical columns (2..50 values), 5 % nulls."""
    rng = np.random.default_rng(0)
    columns = {f"number_{i}": pa.array(rng.normal(i, 10.0 ** (i % 5), num_rows), mask=rng.random(num_rows) < 0.05) for i in range(20)}
    for i, size in enumerate(np.linspace(2, 50, 10).astype(int)[:num_categorical]):
        names = np.array([f"category_{j}" for j in range(size)])
        columns[f"category_{i}"] = pa.array(names[rng.integers(0, size, num_rows)], mask=rng.random(num_rows) < 0.05)
    return pa.table(columns)


def images(num_rows: int) -> pa.Table:
    """Returns 784 pixels as fixed-size lists, three quarters of them black."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, num_rows * 784, dtype=np.uint8)
    pixels[rng.random(len(pixels)) < 0.75] = 0
    return pa.table({"pixels": pa.FixedSizeListArray.from_arrays(pa.array(pixels), 784)})


def write_tables(folder: Path) -> dict[str, Path]:
    made = {"tabular": tabular(NUM_ROWS["tabular"]), "images": images(NUM_ROWS["images"]), "numeric": tabular(NUM_ROWS["numeric"], 0)}
    for name, table in made.items():
        pq.write_table(table, folder / f"{name}.parquet", row_group_size=65_536 if name != "images" else 16_384)
    return {name: folder / f"{name}.parquet" for name in made}


def plain(path: Path, text: list[str]) -> None:
    """Reads all columns with pyarrow alone, row group by row group, strings as dictionaries."""
    with pq.ParquetFile(path, read_dictionary=text) as file:
        for index in range(file.num_row_groups):
            file.read_row_group(index, use_threads=False)


def encoded(table: Table, encoding: TableEncoding) -> None:
    """Reads and encodes all rows, as a reading task does."""
    with RowReader(table.filesystem, encoding.schema_of(encoding.modelled)) as reader:
        for group in table.row_groups():
            for _, rows in reader.slices(group):
                encoding.encode(rows, group.path)


def summarised(table: Table) -> TableSummary:
    """Reads all rows and fits their statistics, as a scanning task does."""
    with RowReader(table.filesystem, table.schema) as reader:
        leaves = (summarise_table(rows, (len(rows), 0, 0)) for group in table.row_groups() for _, rows in reader.slices(group))
        return merge_all(leaves)


def cpu_seconds(work: Callable[[], object]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


def compare(path: Path, num_rows: int, rounds: int) -> dict[str, float]:
    table = open_table(str(path))
    columns = decide_columns(table.schema, summarised(table), None, {}, Rules())
    encoding = TableEncoding(table.schema, tuple(columns), None)
    assert encoding.modelled == table.schema.names
    text = [field.name for field in table.schema if pa.types.is_string(field.type)]
    variants: dict[str, Callable[[], object]] = {
        "pyarrow": lambda: plain(path, text),
        "pyarrow read_table": lambda: pq.read_table(path, read_dictionary=text),
        "read + encode": lambda: encoded(table, encoding),
        "read + statistics": lambda: summarised(table),
    }
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(rounds + 1):
        names = list(variants)
        for name in names[number % len(names) :] + names[: number % len(names)]:  # what one leaves in caches and memory, another finds
            spent = cpu_seconds(variants[name])
            if number:  # the first round warms up
                seconds[name].append(spent)
    result = {f"{name}, k rows per CPU-s": num_rows / 1e3 / middle.median(spent) for name, spent in seconds.items()}
    for name in ("read + encode", "read + statistics"):
        result[f"{name}, ratio to pyarrow"] = middle.median(p / s for p, s in zip(seconds["pyarrow"], seconds[name], strict=True))
    result["statistics, CPU-s"] = middle.median(seconds["read + statistics"])
    return result


def ray_data(path: Path, num_rows: int) -> float:
    """Returns rows per CPU-second of the whole process tree for Ray Data's own way to tensors, numeric columns only."""
    import ray

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, address="local")
    names = [field.name for field in pq.read_schema(path) if not pa.types.is_string(field.type)]
    before = tree_cpu_seconds()
    for _ in ray.data.read_parquet(str(path)).select_columns(names).iter_torch_batches(batch_size=4096):
        pass
    spent = tree_cpu_seconds() - before
    ray.shutdown()
    return num_rows / 1e3 / spent


def tree_cpu_seconds() -> float:
    """Returns the CPU-seconds of this process and all below it, ended workers not included."""
    me = psutil.Process()
    times = [process.cpu_times() for process in [me, *me.children(recursive=True)]]
    return float(sum(t.user + t.system for t in times))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--ray", action="store_true", help="also Ray Data's iter_torch_batches")
    arguments = parser.parse_args()
    pa.set_cpu_count(1)
    result: dict[str, object] = {
        "machine": f"{platform.machine()}, {psutil.cpu_count()} CPUs",
        "versions": f"Python {platform.python_version()}, pyarrow {pa.__version__}, numpy {np.__version__}",
    }
    with tempfile.TemporaryDirectory() as folder:
        for name, path in write_tables(Path(folder)).items():
            measured: dict[str, float] = compare(path, NUM_ROWS[name], arguments.rounds)
            if arguments.ray and name != "numeric":
                measured["Ray Data iter_torch_batches, k rows per CPU-s"] = ray_data(path, NUM_ROWS[name])
            result[name] = {key: round(value, 3) for key, value in measured.items()}
            print(name, json.dumps(result[name], indent=1), file=sys.stderr)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
