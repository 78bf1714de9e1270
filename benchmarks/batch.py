"""Embedding and generating: this product's jobs against a hand-tuned script and against Ray's documented pattern.

    python benchmarks/batch.py [--jobs encode,generate] [--workloads W1,W2,W3] [--variants tuned,product,product2,ray] [--rounds 3]
                               [--rows_fraction 1.0]

    encode    W1  784 uint8 pixels           MLP 512-256, latent 32
              W3  64 float32                 MLP 256, latent 16
    generate  W2  20 numeric and 10 categorical columns, 5 % nulls    MLP 128-128, latent 128
              W3

Variants: tuned (one process, one thread), product and product2 (workflows/encode.py and generate.py by their command lines, with one or two
actors and a Ray of their own), ray (Ray Data's batch inference, one actor); benchmarks/batch_baselines.py holds the first and the last. All
take the same bundle, whose weights are random by a fixed seed. A table is one file made from a fixed seed, under as many names as its size
asks for. Before anything is timed the variants' embeddings of a file are held against each other (tuned and product: to 1e-4; ray the
same), and the schemas of the rows that they generate.

Every run is a process in a folder of its own, Parquet to Parquet, from its start to its end. Each variant runs at two sizes, and

    cost(rows) = fixed + rows / rate

gives both parts, in CPU-seconds of the whole process tree and in wall-clock seconds (benchmarks/process_tree.py says how they are
counted). Memory is the largest sum of the tree's proportional set sizes, looked at every half second, at either size. Ratios are taken
inside a round, in which the variants take turns, each round from another one on; figures are medians over rounds. Rates of wall-clock time,
so the ratio of two actors to one, mean nothing on a machine with other work.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import statistics
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from benchmarks.baselines import encoded
from benchmarks.data import tabular
from benchmarks.process_tree import Run, watch
from benchmarks.train import images, names_of, rotated, vectors, versions
from vae.bundle import save_bundle

ROOT = Path(__file__).resolve().parents[1]
VARIANTS = ["tuned", "product", "product2", "ray"]
FILE_ROWS = {"W1": 16_384, "W2": 65_536, "W3": 131_072}
TICK_S = 0.01
# job and workload -> files (of FILE_ROWS rows, when generating too) at the two sizes.
NUM_FILES = {
    ("encode", "W1"): (2, 16),
    ("encode", "W3"): (2, 24),
    ("generate", "W2"): (2, 10),
    ("generate", "W3"): (2, 18),
}
# figure -> which variant's, over which one's, and the floor (a ceiling where costs are compared).
RATIOS: dict[str, list[tuple[str, str, float | None]]] = {
    "k_rows_per_cpu_s": [("product", "tuned", 0.8), ("product", "ray", None)],
    "k_rows_per_s": [("product2", "product", 1.7)],
    "fixed_cpu_s": [("product", "ray", 0.5)],
    "fixed_s": [("product", "ray", 0.5)],
    "peak_gb": [("product", "ray", None)],
}


@dataclass(frozen=True)
class Task:
    """What all variants are asked to do. folder: where tables, the bundle and the outputs are."""

    job: str
    workload: str
    file_rows: int
    folder: Path

    @property
    def bundle(self) -> Path:
        return self.folder / "bundle"

    def table(self, num_files: int) -> Path:
        return self.folder / f"table_{num_files}"

    def prepare(self, sizes: list[int]) -> None:
        """Writes the bundle and the tables of so many files."""
        made = {"W1": images, "W2": tabular, "W3": vectors}[self.workload](self.file_rows)
        file = self.folder / "file.parquet"
        pq.write_table(made.add_column(0, "id", pa.array(np.arange(len(made)))), file, row_group_size=min(len(made), 65_536))
        model, encoding, _ = encoded(self.workload, str(file), "id")
        save_bundle(self.bundle, model, encoding.to_json() | {"null_pattern": True})
        for num_files in sizes:
            self.table(num_files).mkdir(exist_ok=True)
            for number in range(num_files):
                os.link(file, self.table(num_files) / f"file-{number:04d}.parquet")

    def command(self, variant: str, num_files: int, output: str) -> list[str]:
        if variant.startswith("product"):
            options = ["--model", self.bundle, "--output.path", output, "--cluster.num_actors", "2" if variant == "product2" else "1"]
            rows = ["--data.path", self.table(num_files)] if self.job == "encode" else ["--num_rows", num_files * self.file_rows]
            return [sys.executable, str(ROOT / f"workflows/{self.job}.py"), *map(str, options + rows)]
        script = [sys.executable, str(ROOT / "benchmarks/batch_baselines.py"), variant, self.job, str(self.bundle), output]
        return [*script, "--table", str(self.table(num_files)), "--num_rows", str(num_files * self.file_rows)]


def check(task: Task, variants: list[str], timeout_s: float) -> None:
    """Raises AssertionError unless the variants make the same of one file: embeddings of its rows, or rows of its schema."""
    made = {}
    for variant in variants:
        output = task.folder / f"checked_{variant}"
        watch(task.command(variant, 1, str(output)), task.folder, timeout_s)
        made[variant] = ds.dataset(sorted(map(str, output.rglob("[!._]*.parquet")))).to_table().sort_by("id")
    expected = made["tuned"]
    for variant, found in made.items():
        assert found["id"].to_pylist() == list(range(task.file_rows)), f"{variant}: rows are missing, or there are too many"
        if task.job == "generate":
            assert found.schema.equals(expected.schema), f"{variant}: {found.schema}\ninstead of\n{expected.schema}"
            continue
        for name in ("z_mean", "z_scale"):
            ours, theirs = (pc.list_flatten(storage(table[name])).to_numpy() for table in (found, expected))
            np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=1e-4, err_msg=f"{variant}: {name}")
    print(f"{task.job} {task.workload}: {', '.join(made)} make the same of {task.file_rows} rows", file=sys.stderr, flush=True)


def storage(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Returns a column of lists as Arrow's own, whether or not Ray made a tensor of it."""
    return pa.chunked_array([getattr(chunk, "storage", chunk) for chunk in column.chunks])


def costs(small: Run, large: Run, rows: list[int]) -> dict[str, float]:
    """Returns one variant's figures in one round, from its runs on two numbers of rows."""
    more = rows[1] - rows[0]
    # A clock tick at least: of sizes too near each other noise may make the larger one cheaper.
    cpu_s, wall_s = max(large.cpu_s - small.cpu_s, TICK_S), max(large.wall_s - small.wall_s, TICK_S)
    return {
        "k_rows_per_cpu_s": more / 1e3 / cpu_s,
        "k_rows_per_s": more / 1e3 / wall_s,
        "fixed_cpu_s": small.cpu_s - cpu_s * rows[0] / more,
        "fixed_s": small.wall_s - wall_s * rows[0] / more,
        "peak_gb_small": small.peak_bytes / 1e9,
        "peak_gb": large.peak_bytes / 1e9,
    }


def benchmark(task: Task, chosen: argparse.Namespace) -> dict[str, object]:
    files = [max(1, round(number * chosen.rows_fraction)) for number in NUM_FILES[task.job, task.workload]]
    files[1] = max(files[1], files[0] + 1)
    rows = [number * task.file_rows for number in files]
    task.prepare(sorted({1, *files}))
    check(task, list(dict.fromkeys(["tuned", *chosen.variants])), chosen.timeout_s)
    rounds = []
    for number in range(chosen.rounds):
        measured = {}
        for variant in rotated(chosen.variants, number):
            runs = [watch(task.command(variant, n, "output"), task.folder, chosen.timeout_s, memory_interval_s=0.5) for n in files]
            measured[variant] = costs(runs[0], runs[1], rows)
            seen = ", ".join(f"{n} rows {run.cpu_s:.2f} CPU-s {run.wall_s:.1f} s" for n, run in zip(rows, runs, strict=True))
            print(f"{task.job} {task.workload} round {number + 1}/{chosen.rounds} {variant}: {seen}", file=sys.stderr, flush=True)
        rounds.append({variant: measured[variant] for variant in chosen.variants})
    return {"num_rows": rows, **summary(rounds)}


def summary(rounds: list[dict[str, dict[str, float]]]) -> dict[str, object]:
    """Returns medians over rounds, by variant, and medians of the ratios inside a round; rounds: variant -> figure -> number."""
    variants = {
        name: {figure: round(statistics.median(one[name][figure] for one in rounds), 3) for figure in rounds[0][name]} for name in rounds[0]
    }
    ratios = {
        f"{figure}: {a}/{b}": round(statistics.median(one[a][figure] / one[b][figure] for one in rounds), 3)
        for figure, pairs in RATIOS.items()
        for a, b, _ in pairs
        if a in variants and b in variants
    }
    growth = {
        f"peak_gb: {name}, larger table / smaller": round(figures["peak_gb"] / figures["peak_gb_small"], 3)
        for name, figures in variants.items()
    }
    return {"variants": variants, "ratios": ratios | growth}


def show(name: str, result: dict[str, Any]) -> None:
    """Prints a table that can be read."""
    lines = [[name, *next(iter(result["variants"].values()))]]
    lines += [[variant, *(f"{value:.2f}" for value in figures.values())] for variant, figures in result["variants"].items()]
    for line in lines:
        print(f"{line[0]:14}", *(f"{cell:>17}" for cell in line[1:]), file=sys.stderr)
    floors = {f"{figure}: {a}/{b}": floor for figure, pairs in RATIOS.items() for a, b, floor in pairs}
    for ratio, value in result["ratios"].items():
        print(f"  {ratio:50} {value:6.2f}  {'aim ' + str(floors[ratio]) if floors.get(ratio) else ''}", file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=lambda text: names_of(["encode", "generate"], text), default=["encode", "generate"])
    parser.add_argument("--workloads", type=lambda text: names_of(list(FILE_ROWS), text), default=list(FILE_ROWS))
    parser.add_argument("--variants", type=lambda text: names_of(VARIANTS, text), default=VARIANTS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows_fraction", "--rows-fraction", type=float, default=1.0, help="of the files of either size, one at least")
    parser.add_argument("--file_rows", "--file-rows", type=int, help="rows of a file, instead of the workload's")
    parser.add_argument("--timeout_s", type=float, default=3600.0, help="seconds after which a run is ended and the benchmark fails")
    chosen = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # through the finally that ends the run under way
    result: dict[str, object] = {
        "machine": f"{platform.machine()}, {psutil.cpu_count()} CPUs, load {psutil.getloadavg()[0]:.1f}",
        "versions": versions(),
        "rounds": chosen.rounds,
    }
    for job, workload in NUM_FILES:
        if job in chosen.jobs and workload in chosen.workloads:
            with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
                measured = benchmark(Task(job, workload, chosen.file_rows or FILE_ROWS[workload], Path(folder)), chosen)
            show(f"{job} {workload}", measured)
            result[f"{job} {workload}"] = measured
    print(json.dumps(result))


if __name__ == "__main__":
    main()
