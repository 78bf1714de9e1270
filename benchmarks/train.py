"""Training speed, memory and start: this product's job against a hand-tuned loop and against Ray's documented pattern.

    python benchmarks/train.py [--workloads W1,W2,W3] [--variants tuned,product1] [--rounds 3] [--epochs 3] [--rows_fraction 1.0]

    W1  60,000 rows of 784 uint8 pixels               MLP 512-256, latent 32, global batch 256, discretised Gaussian
    W2  200,000 rows, 20 numeric and 10 categorical columns, 5 % nulls    MLP 128-128, latent 128, batch 500
    W3  1,000,000 rows of 64 float32                  MLP 256, latent 16, batch 4096

Variants: tuned, tuned_bf16 (1 process, 1 thread), tuned_ddp (2 processes); product1, product1_bf16, product2 (workflows/train.py with 1 or
2 workers and a Ray of its own), product1_streamed (rows that do not fit the memory allowed are read again every epoch); ray1, ray2 (Ray
Data and Ray Train as documented). benchmarks/baselines.py says what the loops that are not the product do; before anything is timed,
their bound and gradients are held against vae.model's.

Tables are made from a fixed seed in a temporary folder. Every run is a subprocess, in a folder of its own, that prints a line for every
epoch. What counts is thousands of rows per CPU-second of its whole process tree, over the whole epochs after the first: batches, steps,
reports, checkpoints, MLflow, and what Ray's own processes take meanwhile, but neither the start nor the final scores ("outside_cpu_s"
is what those take). benchmarks/process_tree.py says how it is counted. --two_runs takes instead the difference of two whole runs, of 1 and
of 1 + EPOCHS epochs: the same quantity, with the noise of two starts in it.

"k_rows_per_worker_cpu_s" counts the training workers alone, without Ray's other processes, which take the same on any number of rows.

Peak memory is the largest sum of the tree's proportional set sizes, every two seconds. Time to the first step is from the start of the
process to the line that says so. Ratios are taken inside a round, in which the variants take turns, each round from another one on;
figures are medians over rounds.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import signal
import statistics
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.data import tabular
from benchmarks.lean import BATCH_ROWS, HIDDEN_DIMS, LATENT_DIM, LIKELIHOODS
from benchmarks.process_tree import Tree, watch

ROOT = Path(__file__).resolve().parents[1]
NUM_ROWS = {"W1": 60_000, "W2": 200_000, "W3": 1_000_000}
VARIANTS = ["tuned", "tuned_bf16", "tuned_ddp", "product1", "product1_bf16", "product1_streamed", "product2", "ray1", "ray2"]
# What makes one worker stream: fewer bytes than the workload's rows take, and the rows of a window of which four fit. A window that is
# smaller than a row group decodes it several times, so there is one logical shard.
STREAMED = {"W1": (32 * 2**20, 8192), "W2": (24 * 2**20, 32_768), "W3": (128 * 2**20, 65_536)}
SPEED_RATIOS = [
    ("product1", "tuned"),
    ("product1_bf16", "tuned_bf16"),
    ("product1_streamed", "tuned"),
    ("product2", "tuned_ddp"),
    ("product1_bf16", "product1"),
    ("tuned_bf16", "tuned"),
    ("ray1", "tuned"),
    ("ray2", "tuned_ddp"),
    ("product1", "ray1"),
    ("product2", "ray2"),
]
COST_RATIOS = [("product1", "ray1"), ("product2", "ray2")]
# The line at an epoch's end; lines within an epoch say "train ELBO so far".
EPOCH = re.compile(r"epoch (\d+)/\d+.*?train ELBO (-?[\d.]+|-?inf|nan)")
# Rates need a hundred clock ticks (of 10 ms each) or more to mean anything.
MIN_CPU_SECONDS = 1.0


def images(num_rows: int) -> pa.Table:
    """Returns 784 pixels that 16 numbers explain up to noise, most of them black."""
    rng = np.random.default_rng(0)
    weight = rng.normal(0, 20, (16, 784)).astype(np.float32)
    pixels = np.empty((num_rows, 784), np.uint8)
    for part in np.array_split(pixels, max(1, num_rows // 5000)):
        bright = rng.standard_normal((len(part), 16), np.float32) @ weight + 10 * rng.standard_normal(part.shape, np.float32) - 50
        part[:] = bright.clip(0, 255)
    return pa.table({"pixels": pa.FixedSizeListArray.from_arrays(pa.array(pixels.ravel()), 784)})


def vectors(num_rows: int) -> pa.Table:
    """Returns 64 numbers that 16 explain up to noise."""
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((16, 64), np.float32)
    elements = rng.standard_normal((num_rows, 16), np.float32) @ weight + rng.standard_normal((num_rows, 64), np.float32) / 2
    return pa.table({"vector": pa.FixedSizeListArray.from_arrays(pa.array(elements.ravel()), 64)})


def write_table(workload: str, num_rows: int, folder: Path) -> Path:
    table = {"W1": images, "W2": tabular, "W3": vectors}[workload](num_rows)
    path = folder / f"{workload}.parquet"
    pq.write_table(table, path, row_group_size=16_384 if workload == "W1" else 65_536, use_dictionary=workload == "W2")
    return path


def command(variant: str, workload: str, table: Path, epochs: int) -> list[str]:
    loop = {"tuned": "tuned", "tuned_bf16": "tuned", "tuned_ddp": "ddp", "ray1": "ray", "ray2": "ray", "check": "check"}.get(variant)
    if loop is not None:
        extra = {"tuned_bf16": ["--bfloat16"], "ray2": ["--num_workers", "2"]}.get(variant, [])
        return [sys.executable, str(ROOT / "benchmarks/baselines.py"), loop, workload, str(table), "--epochs", str(epochs), *extra]
    options = {
        "data.path": table,
        "data.validation_fraction": 0,
        "model.hidden_dims": HIDDEN_DIMS[workload],
        "model.latent_dim": LATENT_DIM[workload],
        "model.likelihoods": json.dumps(LIKELIHOODS.get(workload, {})),
        "model.prior": "standard",
        "model.null_pattern": False,  # nor do they model which cells are there
        "training.global_batch_size": BATCH_ROWS[workload],
        "training.epochs": epochs,
        "training.early_stopping_patience": 0,
        "training.ema_decay": 0,  # the other loops have none
        "training.learning_rate_schedule": "constant",
        "training.precision": "bfloat16" if variant.endswith("bf16") else "float32",
        "cluster.num_workers": 2 if variant == "product2" else 1,
    }
    if variant.endswith("streamed"):
        options["run.shard_memory_bytes"], options["data.shuffle_window_rows"] = STREAMED[workload]
        options["data.num_logical_shards"] = 1
    named = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    return [sys.executable, str(ROOT / "workflows/train.py"), *named]


def is_training_worker(process: psutil.Process) -> bool:
    try:
        return any("RayTrainWorker" in part for part in process.cmdline()[:1])
    except psutil.Error:
        return False


@dataclass
class Epochs:
    """What a run says of itself. ends: (seconds since the start, CPU-seconds of the tree, of the training workers, train ELBO) at every
    epoch's line.
    """

    ends: list[tuple[float, float, float, float]] = field(default_factory=list)
    first_step_s: float | None = None

    def hear(self, line: str, elapsed_s: float, tree: Tree) -> None:
        found = EPOCH.search(line)
        if found and int(found[1]) == len(self.ends) + 1:
            self.ends.append((elapsed_s, tree.cpu_seconds(), tree.seconds_of(is_training_worker), float(found[2])))
        elif "first step" in line and self.first_step_s is None:
            self.first_step_s = elapsed_s


def measure(variant: str, workload: str, table: Path, num_rows: int, chosen: argparse.Namespace) -> dict[str, float]:
    """Returns the figures of one variant in one round."""
    epochs = Epochs()
    run = watch(command(variant, workload, table, 1 + chosen.epochs), table.parent, chosen.timeout_s, epochs.hear)
    assert len(epochs.ends) == 1 + chosen.epochs, f"{variant}: {len(epochs.ends)} epochs were announced, not {1 + chosen.epochs}"
    (first_s, first_cpu_s, first_training_s, _), (last_s, last_cpu_s, last_training_s, elbo) = epochs.ends[0], epochs.ends[-1]
    spent = last_cpu_s - first_cpu_s
    if chosen.two_runs:
        spent = run.cpu_s - watch(command(variant, workload, table, 1), table.parent, chosen.timeout_s).cpu_s
    if spent < MIN_CPU_SECONDS:
        print(f"{workload} {variant}: {spent:.2f} CPU-s are too few for a rate; ask for more --epochs", file=sys.stderr)
    assert epochs.first_step_s is not None, f"{variant}: no first step was announced"
    return {
        "k_rows_per_cpu_s": chosen.epochs * num_rows / 1e3 / spent,
        "k_rows_per_worker_cpu_s": chosen.epochs * num_rows / 1e3 / (last_training_s - first_training_s),
        "k_rows_per_s": chosen.epochs * num_rows / 1e3 / (last_s - first_s),
        "outside_cpu_s": run.cpu_s - (last_cpu_s - first_cpu_s) * (1 + chosen.epochs) / chosen.epochs,
        "first_step_s": epochs.first_step_s,
        "peak_gb": run.peak_bytes / 1e9,
        "train_elbo": elbo,
    }


def rotated(names: list[str], number: int) -> list[str]:
    """Returns the names from another one on in every round: what one leaves in caches and memory, another finds."""
    start = number % len(names)
    return names[start:] + names[:start]


def summary(rounds: list[dict[str, dict[str, float]]]) -> dict[str, object]:
    """Returns medians over rounds, by variant, and medians of the ratios inside a round; rounds: variant -> figure -> number."""
    variants = {
        name: {figure: round(statistics.median(one[name][figure] for one in rounds), 3) for figure in rounds[0][name]} for name in rounds[0]
    }
    speed = [(figure, pair) for figure in ("k_rows_per_cpu_s", "k_rows_per_worker_cpu_s") for pair in SPEED_RATIOS]
    cost = [(figure, pair) for figure in ("peak_gb", "first_step_s", "outside_cpu_s") for pair in COST_RATIOS]
    ratios = {
        f"{figure}: {a}/{b}": round(statistics.median(one[a][figure] / one[b][figure] for one in rounds), 3)
        for figure, (a, b) in speed + cost
        if a in variants and b in variants
    }
    return {"variants": variants, "ratios": ratios}


def benchmark(workload: str, folder: Path, chosen: argparse.Namespace) -> dict[str, object]:
    num_rows = max(2 * BATCH_ROWS[workload], int(NUM_ROWS[workload] * chosen.rows_fraction))
    table = write_table(workload, num_rows, folder)
    watch(command("check", workload, table, 1), folder, chosen.timeout_s)  # fails unless the lean loops have the product's bound
    rounds: list[dict[str, dict[str, float]]] = []
    for number in range(chosen.rounds):
        measured = {}
        for variant in rotated(chosen.variants, number):
            measured[variant] = measure(variant, workload, table, num_rows, chosen)
            figures = {name: round(value, 3) for name, value in measured[variant].items()}
            print(f"{workload} round {number + 1}/{chosen.rounds} {variant}: {figures}", file=sys.stderr, flush=True)
        rounds.append({variant: measured[variant] for variant in chosen.variants})
    result = summary(rounds)
    print(workload, json.dumps(result, indent=1), file=sys.stderr, flush=True)
    return {"num_rows": num_rows, **result}


def versions() -> str:
    import ray
    import torch

    return f"Python {platform.python_version()}, torch {torch.__version__}, ray {ray.__version__}, pyarrow {pa.__version__}"


def names_of(allowed: list[str], text: str) -> list[str]:
    names = text.split(",")
    unknown = [name for name in names if name not in allowed]
    if unknown:
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: not among {', '.join(allowed)}")
    return names


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workloads", type=lambda text: names_of(list(NUM_ROWS), text), default=list(NUM_ROWS))
    parser.add_argument("--variants", type=lambda text: names_of(VARIANTS, text), default=VARIANTS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=3, help="epochs that are timed, after one that is not")
    parser.add_argument("--rows_fraction", "--rows-fraction", type=float, default=1.0)
    parser.add_argument(
        "--two_runs", "--two-runs", action="store_true", help="the difference of two whole runs instead of one run's epochs"
    )
    parser.add_argument("--timeout_s", type=float, default=3600.0, help="seconds after which a run is ended and the benchmark fails")
    chosen = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # through the finally that ends the run under way
    result: dict[str, object] = {
        "machine": f"{platform.machine()}, {psutil.cpu_count()} CPUs, load {psutil.getloadavg()[0]:.1f}",
        "versions": versions(),
        "rounds": chosen.rounds,
        "timed_epochs": chosen.epochs,
    }
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        for workload in chosen.workloads:
            result[workload] = benchmark(workload, Path(folder), chosen)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
