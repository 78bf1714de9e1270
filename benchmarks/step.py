"""A training step and an encoding step on one device, against the hand-tuned plain loop and the machine's bounds. Neither Ray nor MLflow.

    python benchmarks/step.py [--device cuda] [--workloads W1,W2,W3] [--batch_rows 0,8192] [--precisions float32,bfloat16]
                              [--compile] [--rounds 7] [--steps 50] [--check]

Rows of the workloads of benchmarks/train.py are made, encoded and held on the device, and cut into batches beforehand (of 0 rows: the
workload's own batch). All of these take turns in one process, `steps` steps a round, each round from another one on:

    tuned          benchmarks/lean.py, this model by hand for this one table: forward, backward, a fused Adam
    model          the same loop around vae: what its generality costs
    step           the step that training takes (workflows.steps.take_step): gradient norm and guard against numbers that are not finite
                   as well, rows gathered from their shard, numbers of every step kept
    tuned_encode, encode     means and scales of a batch

Before anything is timed the tuned model's bound is held against vae's. --compile adds each of them compiled (torch.compile; on a GPU with
CUDA graphs). Printed: a table on standard error, and JSON. Times are CPU time on a CPU, else host clock with the device waited for.

    rows_per_s    of the median round
    ratio         to tuned (tuned_encode) of the same precision, not compiled; taken within a round, then the median
    arithmetic    the rate over that of the step's matrix products alone, measured here on the same shapes
    memory        the rate over that at which the device could copy what a step reads and writes at least (training: every weight six
                  times, forward and backward, gradient written, and read with both moments by the optimiser; encoding: once; every row
                  once), by its measured copy
    busy          share of the time in which the device computed (CUDA: time of kernels in a profile; CPU: CPU time)

--check: 50 steps in float32 from the same weights, rows and noise on the CPU and on another device; the ELBO of both and their ratio.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from benchmarks.contest import Contest, Work, fields, gathered, rows_of
from benchmarks.lean import BATCH_ROWS, HIDDEN_DIMS, LATENT_DIM
from vae.model import VAE
from vae.objective import Loss, Objective
from workflows.model_config import TrainingConfig
from workflows.optimization import Optimizer
from workflows.steps import take_step

CHECKED_STEPS = 50
WARM_UP_STEPS = 10


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(work: Work, times: int, device: torch.device) -> float:
    """Returns the seconds that one of so many calls took: CPU time, or host clock with the device waited for."""
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    wait(device)
    began = clock()
    for _ in range(times):
        work()
    wait(device)
    return (clock() - began) / times


def copy_bytes_per_s(device: torch.device) -> float:
    """Returns the bytes read and written per second by a copy of 1 GiB (64 MiB on the CPU)."""
    source = torch.ones(2**28 if device.type == "cuda" else 2**24, device=device)
    target = torch.empty_like(source)
    target.copy_(source)
    return 2 * source.nbytes / seconds(lambda: target.copy_(source), 20, device)


def busy_share(work: Work, times: int, device: torch.device) -> float:
    began, began_cpu = time.perf_counter(), time.process_time()
    if device.type != "cuda":
        for _ in range(times):
            work()
        return (time.process_time() - began_cpu) / (time.perf_counter() - began)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        began = time.perf_counter()
        for _ in range(times):
            work()
        wait(device)
        elapsed_s = time.perf_counter() - began
    return sum(event.self_device_time_total for event in profile.key_averages()) / 1e6 / elapsed_s


def measure(workload: str, device: torch.device, batch_rows: int, precision: str, chosen: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yields one line for everything that is timed."""
    batch_rows = batch_rows or BATCH_ROWS[workload]
    contest = Contest(workload, device, batch_rows, max(chosen.num_rows, 2 * batch_rows), precision)
    works = contest.works(False) | (contest.works(True) if chosen.compile else {})
    works |= {"products": contest.products(True), "encode_products": contest.products(False)}
    for work in works.values():
        seconds(work, WARM_UP_STEPS, device)
    rounds: list[dict[str, float]] = []
    names = list(works)
    for number in range(chosen.rounds):
        turn = names[number % len(names) :] + names[: number % len(names)]
        rounds.append({name: seconds(works[name], chosen.steps, device) for name in turn})
    per_s = copy_bytes_per_s(device)
    for name in names:
        if name.endswith("products"):
            continue
        training = "encode" not in name
        step_s = statistics.median(taken[name] for taken in rounds)
        baseline, bound = ("tuned", "products") if training else ("tuned_encode", "encode_products")
        yield {
            "workload": workload,
            "batch_rows": batch_rows,
            "precision": precision,
            "what": name,
            "rows_per_s": round(batch_rows / step_s),
            "ratio": digits(statistics.median(taken[baseline] / taken[name] for taken in rounds)),
            "arithmetic": digits(statistics.median(taken[bound] / taken[name] for taken in rounds)),
            "memory": digits(contest.least_bytes(training) / per_s / step_s),
            "busy": digits(busy_share(works[name], chosen.steps, device)),
        }


def digits(share: float) -> float:
    """Returns a share to three significant digits, so that a small one is not printed as none."""
    return float(f"{share:.3g}")


def elbo_after_steps(workload: str, device: torch.device) -> float:
    """Returns the mean ELBO of the last 10 of CHECKED_STEPS steps; noise is drawn on the CPU, so that all devices have the same."""
    torch.manual_seed(0)
    model, sums = VAE(fields(workload), LATENT_DIM[workload], HIDDEN_DIMS[workload]), []
    batches = gathered(rows_of(workload, 4096), 256, model)
    optimizer, loss = Optimizer(model.to(device), TrainingConfig()), Loss(model, Objective())
    for number, (rows, noise) in zip(range(CHECKED_STEPS), batches, strict=False):
        weight = 1 / rows.num_rows
        sums.append(take_step(loss, optimizer, rows.to(device), noise.to(device), weight, 1.0, 1e-3, "float32", number))
    num_rows, elbo, *_ = torch.stack(sums[-10:]).sum(0).tolist()
    return elbo / num_rows


def check(workload: str, device: torch.device) -> dict[str, Any]:
    here, there = elbo_after_steps(workload, torch.device("cpu")), elbo_after_steps(workload, device)
    return {"workload": workload, "steps": CHECKED_STEPS, "elbo_cpu": here, f"elbo_{device.type}": there, "ratio": there / here}


def say(line: dict[str, Any]) -> None:
    print("| " + " | ".join(f"{value}" for value in line.values()) + " |", file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--workloads", default="W1,W2,W3")
    parser.add_argument("--batch_rows", default="0", help="rows of a batch, several by commas; 0: the workload's own")
    parser.add_argument("--precisions", default="float32,bfloat16")
    parser.add_argument("--num_rows", type=int, default=65_536, help="rows held")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=50, help="steps of each in a round")
    parser.add_argument("--threads", type=int, default=1, help="PyTorch's threads on a CPU")
    parser.add_argument("--compile", action="store_true", help="training.compile")
    parser.add_argument("--check", action="store_true", help="compare the ELBO with the CPU's instead")
    chosen = parser.parse_args()
    device = torch.device(chosen.device)
    if chosen.check and device.type == "cpu":
        parser.error("--check compares a device with the CPU; name one by --device")
    torch.set_num_threads(chosen.threads)
    torch.set_flush_denormal(True)
    torch.set_float32_matmul_precision("high" if device.type == "cuda" else "highest")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    found = []
    for workload in chosen.workloads.split(","):
        if chosen.check:
            found.append(check(workload, device))
            continue
        for batch_rows in map(int, chosen.batch_rows.split(",")):
            for precision in chosen.precisions.split(","):
                for line in measure(workload, device, batch_rows, precision, chosen):
                    if not found:
                        say({key: key for key in line})
                        say(dict.fromkeys(line, "---"))
                    found.append(line)
                    say(line)
    machine = {"device": name, "threads": torch.get_num_threads(), "python": platform.python_version(), "torch": torch.__version__}
    print(json.dumps({"machine": machine, "results": found}))


if __name__ == "__main__":
    main()
