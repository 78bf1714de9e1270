"""Planning on made-up metadata: what the driver does before any row is read, for tables of up to 1,000,000 row groups.

    python benchmarks/plan.py [--sizes 1000x1 10000x1 100000x1 1000000x1 1000x1000] [--workers 512] [--files 20000] [--ray]

A size is FILES x ROW GROUPS PER FILE, of about 10,000 rows each, in 20 float64 and 10 string columns. What runs is the jobs' own code:
data.table.open_table (listing and reading of footers alone are replaced, by footers that are made up), data.scan.runs, data.plan and
data.shard for a training run with one logical shard per worker; data.output and data.units for an encode job that finds half of its
files done. Every size and job has a process of its own, because the peak of a process's memory never falls.

Prints one JSON line. sizes: CPU-seconds of every stage, and the peak of the process's memory after it. exponents: p of
CPU-seconds ~ (row groups)^p, over all sizes with one row group per file, and between the two largest. footers: what a file costs the
driver when it is really read, from --files real ones. resident: what a worker's rows take, for a few shapes. ray, with --ray: what a
reading task costs the driver before it starts, and what a unit of an encode job costs when there is nothing to do. Takes 3 minutes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import ray
from pyarrow import fs

from data.column import Column
from data.encoding import TableEncoding
from data.footer import DataFile, Footer
from data.listing import partition_values
from data.output import OutputFolder, output_name
from data.plan import Plan, readings_by_rank
from data.scan import runs
from data.shard import Reader, bundles, bytes_per_row, reading_dataset
from data.split import TRAIN, VALIDATION
from data.table import RowGroup, Table, open_table
from data.units import of_file, state_of, units_of

T = TypeVar("T")
MEAN_ROWS = 10_000  # of a row group
FRACTIONS = (0.1, 0.0)
ROWS_PER_WORKER = 128  # of a step
NAMES = [*(f"number_{i}" for i in range(20)), *(f"category_{i}" for i in range(10))]
MB = 1e6


@dataclass
class Stages:
    """CPU-seconds of named stages of this process, and the peak of its memory after each."""

    cpu_s: dict[str, float] = field(default_factory=dict)
    peak_mb: dict[str, int] = field(default_factory=dict)

    def run(self, name: str, work: Callable[[], T]) -> T:
        started = time.process_time()
        result = work()
        self.cpu_s[name] = round(time.process_time() - started, 5)
        self.note_peak(name)
        return result

    def note_peak(self, name: str) -> None:
        self.peak_mb[name] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / MB)

    def to_json(self) -> dict[str, Any]:
        return {"cpu_s": self.cpu_s, "peak_mb": self.peak_mb, "total_cpu_s": round(sum(self.cpu_s.values()), 2)}


def memory_mb() -> float:
    """Returns what the process holds now."""
    return float(psutil.Process().memory_info().rss / MB)


def schemas() -> list[pa.Schema]:
    """Returns four schemas that are widened to the first: narrower numbers, dictionaries, and a column of nulls alone."""
    columns = {name: pa.float64() if name.startswith("number") else pa.large_string() for name in NAMES}
    variants: list[dict[str, pa.DataType]] = [
        {},
        {"number_3": pa.int32(), "number_4": pa.float32()},
        {"category_0": pa.string(), "category_1": pa.dictionary(pa.int32(), pa.string())},
        {"category_2": pa.null(), "number_5": pa.int16()},
    ]
    return [pa.schema(columns | variant) for variant in variants]


def made_up(num_files: int, groups_per_file: int) -> dict[str, Footer]:
    """Returns path -> footer of so many files that nobody wrote, in 50 folders of Hive's kind; equal schemas are one object, as if read."""
    variants = schemas()
    rows = np.random.default_rng(0).integers(MEAN_ROWS // 2, MEAN_ROWS * 3 // 2 + 1, (num_files, groups_per_file))
    footers = {}
    for number, of_groups in enumerate(rows):
        name = f"part={number * 50 // num_files}/file-{number:07d}.parquet"
        path, partition = f"/tables/made_up/{name}", partition_values(name)
        identity = hashlib.sha256(name.encode()).hexdigest()
        file = DataFile(path, name, 10**6, tuple(of_groups.tolist()), identity, bool(partition))
        footers[path] = Footer(file, variants[number % len(variants)], partition)
    return footers


def opened(footers: dict[str, Footer]) -> Table:
    """Returns the table that open_table makes of files with these footers."""
    found = fs.LocalFileSystem(), [(path, footer.file.relative_path) for path, footer in footers.items()]
    with patch("data.table.find_files", return_value=found), patch("data.table.read_footer", lambda _, found, *rest: footers[found[0]]):
        return open_table("made up")


def encoding() -> TableEncoding:
    """Returns an encoding of the made-up table, as far as planning asks for it: which array holds what."""
    return encoding_of([Column(name, "numeric" if name.startswith("number") else "categorical", "") for name in NAMES])


def encoding_of(columns: list[Column]) -> TableEncoding:
    return TableEncoding(pa.schema([(column.name, pa.float64()) for column in columns]), tuple(columns), None)


def preflight(num_files: int, groups_per_file: int, stages: Stages) -> Table:
    opened(made_up(100, 1))  # first calls load more code
    stages.note_peak("start")
    footers = made_up(num_files, groups_per_file)
    stages.note_peak("footers")
    return stages.run("preflight", lambda: opened(footers))


def plan_training(num_files: int, groups_per_file: int, num_workers: int) -> dict[str, Any]:
    """Plans a training run whose split is made up too, one logical shard per worker."""
    stages = Stages()
    table = preflight(num_files, groups_per_file, stages)
    stages.run("fingerprint", lambda: table.fingerprint)
    groups = stages.run("row groups", lambda: list(table.row_groups()))
    held = memory_mb() - stages.peak_mb["start"]
    num_runs = len(stages.run("scan runs", lambda: runs(groups)))
    counts = np.random.default_rng(1).multinomial([group.num_rows for group in groups], [1 - sum(FRACTIONS), *FRACTIONS])
    plan = Plan(int(counts[:, TRAIN].sum()), num_workers, ROWS_PER_WORKER * num_workers, 0, 1_000_000)
    num_steps = stages.run("steps of an epoch", lambda: sum(1 for _ in plan.steps()))
    late = plan.num_steps * 9 // 10
    step = stages.run("resume at a late step", lambda: next(replace(plan).steps(late)))
    assert num_steps == plan.num_steps_with_rows
    assert (step.begin == plan.given(late)).all()
    stages.run("order of one shard", lambda: plan.order(0, 0))
    tasks = stages.run("readings of all workers", lambda: num_tasks(groups, counts, num_workers))
    return stages.to_json() | {
        "rows": table.num_rows,
        "held_bytes_per_row_group": round(held * MB / len(groups)),
        "scan_tasks": num_runs,
        "steps_per_epoch": num_steps,
        "reading_tasks": tasks,
    }


def num_tasks(groups: list[RowGroup], counts: np.ndarray[Any, Any], num_workers: int) -> int:
    """Returns the reading tasks of all workers, planned as training does it: side by side, rank after rank."""
    row_bytes = bytes_per_row(encoding())
    sides = [readings_by_rank(groups, counts, [side], num_workers, num_workers) for side in (TRAIN, VALIDATION)]
    return sum(len(bundles(plan, row_bytes)) for plans in sides for plan in plans)


def plan_encoding(num_files: int, groups_per_file: int, num_workers: int) -> dict[str, Any]:
    """Plans an encode job over a folder whose manifest has every other file."""
    stages = Stages()
    table = preflight(num_files, groups_per_file, stages)
    names = [output_name(file.relative_path) for file in table.files]
    with tempfile.TemporaryDirectory() as folder:
        output = OutputFolder.open(folder)
        stages.run("manifest written", lambda: output.put_manifest({"units": dict(records(table, names))}, 1))
        done = stages.run("manifest read", lambda: output.newest_manifest()[0]["units"])
    listed = {name: {"output_bytes": 1, "output_mtime_ns": 1} for name in done}
    with patch.object(OutputFolder, "files", lambda folder: listed):
        state = stages.run("what is done", lambda: state_of(table, output, done, NAMES, None, "model"))
    units = stages.run("units", lambda: list(units_of(state.to_do, 1_000_000, "model")))
    assert len(state.done) == len(done)
    return stages.to_json() | {"files": num_files, "units": len(units)}


def records(table: Table, names: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields what an encoding actor would say of every other file."""
    for file, name in zip(table.files[::2], names[::2], strict=True):
        known = of_file(file) | {"num_rows": file.num_rows, "unseen": {}, "made_by": "model", "content": file.identity}
        yield name, known | {"output_bytes": 1, "output_mtime_ns": 1}


def real_footers(num_files: int) -> dict[str, float]:
    """Opens a folder of so many real files (one file under many names) and says what each costs the driver, reading included."""
    rows = pa.table({name: pa.array([0.5] if name.startswith("number") else ["a"]) for name in NAMES})
    with tempfile.TemporaryDirectory() as folder:
        pq.write_table(rows, f"{folder}/0.parquet")
        for number in range(1, num_files):
            os.link(f"{folder}/0.parquet", f"{folder}/{number}.parquet")
        open_table(f"{folder}/0.parquet")
        stages = Stages()
        stages.note_peak("start")
        table = stages.run("open_table", lambda: open_table(folder))
    assert len(table.files) == num_files
    grown = stages.peak_mb["open_table"] - stages.peak_mb["start"]
    return {
        "cpu_us_per_file": round(stages.cpu_s["open_table"] / num_files * 1e6),
        "peak_kb_per_file": round(grown / num_files * 1e3, 2),
    }


def ray_tasks(num_files: int, num_workers: int) -> dict[str, float]:
    """Makes the real dataset of one worker of a training run, then carries out empty units of an encode job, one task each."""
    table = opened(made_up(num_files, 1))
    groups = list(table.row_groups())
    counts = np.array([[group.num_rows, 0, 0] for group in groups], np.int64)
    readings = next(readings_by_rank(groups, counts, [TRAIN], num_workers, num_workers))
    num_tasks = len(bundles(readings, bytes_per_row(encoding())))
    os.chdir(Path(__file__).resolve().parents[1])  # Ray's workers look here for packages, before they find benchmarks/data.py for data
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    reader, row_bytes = Reader(table.filesystem, encoding(), FRACTIONS), bytes_per_row(encoding())
    reading_dataset(reader, readings[:1], row_bytes)
    before, started = memory_mb(), time.process_time()
    dataset = reading_dataset(reader, readings, row_bytes)
    spent, held = time.process_time() - started, memory_mb() - before
    del dataset
    few, many = seconds_of_units(100), seconds_of_units(1100)
    ray.shutdown()
    return {
        "driver_cpu_ms_per_reading_task": round(spent / num_tasks * 1e3, 2),
        "driver_kb_per_reading_task": round(held / num_tasks * 1e3, 1),
        "wall_ms_per_unit": round(many - few, 2),
    }


class Idle:
    """Does nothing for a unit."""

    def __init__(self, shared: object) -> None:
        pass

    def __call__(self, unit: Mapping[str, Any]) -> dict[str, Any]:
        return {"output": unit["output"]}


def seconds_of_units(num_units: int) -> float:
    """Returns how long Ray takes over units that one actor does nothing for."""
    from workflows.actors import ModelFiles, Pool, run_units

    units: list[dict[str, Any]] = [{"output": f"{number}.parquet"} for number in range(num_units)]
    started = time.monotonic()
    assert len(list(run_units("benchmarks.plan:Idle", ModelFiles({}, {}), None, units, Pool(1, False)))) == num_units
    return time.monotonic() - started


def resident() -> list[dict[str, Any]]:
    """Returns what each worker's rows take for a few shapes of table."""
    shapes = {
        "20 numeric + 10 categorical columns": encoding(),
        "100 numeric columns": encoding_of([Column(f"number_{i}", "numeric", "") for i in range(100)]),
        "28 x 28 pixels": encoding_of([Column("pixels", "image", "", shape=[28, 28])]),
        "a vector of 768 numbers": encoding_of([Column("vector", "vector", "", shape=[768])]),
    }
    result = []
    for shape, columns in shapes.items():
        row_bytes = bytes_per_row(columns)
        for rows, workers in ((10**8, 8), (10**9, 8), (10**10, 8), (10**10, 512)):
            gb = round(rows * row_bytes / workers / 1e9, 1)
            result.append({"shape": shape, "bytes_per_row": row_bytes, "rows": rows, "workers": workers, "gb_per_worker": gb})
    return result


def exponents(results: list[dict[str, Any]], job: str) -> dict[str, float]:
    """Returns how a job's CPU-seconds grow over the sizes with one row group per file; nothing where there is but one."""
    points = sorted((result["row_groups"], result[job]["total_cpu_s"]) for result in results if result["row_groups"] == result["files"])
    if len(points) < 2:
        return {}
    x, y = np.log(np.array(points)).T
    return {"fitted": round(float(np.polyfit(x, y, 1)[0]), 2), "at the end": round(float((y[-1] - y[-2]) / (x[-1] - x[-2])), 2)}


def size(text: str) -> tuple[int, int]:
    files, groups = map(int, text.split("x"))
    return files, groups


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=size, nargs="+", default=[(10**3, 1), (10**4, 1), (10**5, 1), (10**6, 1), (10**3, 10**3)])
    parser.add_argument("--workers", type=int, default=512)
    parser.add_argument("--files", type=int, default=20_000)
    parser.add_argument("--ray", action="store_true", help="also what a task costs")
    arguments = parser.parse_args()
    result: dict[str, Any] = {
        "machine": f"{platform.machine()}, {psutil.cpu_count()} CPUs",
        "versions": f"Python {platform.python_version()}, pyarrow {pa.__version__}, numpy {np.__version__}, ray {ray.__version__}",
        "workers": arguments.workers,
    }
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), max_tasks_per_child=1) as fresh:
        sizes = []
        for files, groups in arguments.sizes:
            jobs = {"training": plan_training, "encode": plan_encoding}
            spent = {name: fresh.submit(job, files, groups, arguments.workers).result() for name, job in jobs.items()}
            sizes.append({"files": files, "row_groups": files * groups} | spent)
            print(json.dumps(sizes[-1]), file=sys.stderr)
        footers = fresh.submit(real_footers, arguments.files).result()
        tasks = {"ray": fresh.submit(ray_tasks, 100_000, 16).result()} if arguments.ray else {}
    result |= {"sizes": sizes, "exponents": {job: exponents(sizes, job) for job in ("training", "encode")}, "footers": footers, **tasks}
    print(json.dumps(result | {"resident": resident()}))


if __name__ == "__main__":
    main()
