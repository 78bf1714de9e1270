"""The training step alone, on one device: rows/s against the arithmetic and memory bounds. Needs neither Ray nor MLflow.

    python benchmarks/step.py [--device cuda] [--workloads W1,W2,W3] [--batch_rows 256,1024,8192] [--precisions float32,bfloat16]
                              [--compile] [--steps 100] [--check]

Rows of the workloads of benchmarks/train.py are made on the device, encoded, and stay there, as a worker's rows do. A step is the one that
training takes (workflows.steps.take_step), on rows gathered in stretches as training gathers them. Printed for each, as JSON:

    rows_per_s    host clock over all steps, the device waited for at the end
    arithmetic    that rate over the rate of the step's matrix products alone, measured here on the same shapes
    memory        that rate over the rate at which the device could copy what a step reads and writes at least (every weight six times: read
                  forward and backward, gradient written, and read with both moments by the optimiser; every row once), by its measured copy
    busy          share of the time in which the device computed (CUDA: time of kernels in a profile; CPU: CPU time)

--check: 50 steps in float32 from the same weights, rows and noise on the CPU and on another device; the ELBO of both and their ratio.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor

from data.plan import Plan, shard_bounds
from vae.model import VAE
from vae.objective import Loss, Objective
from vae.rows import Rows
from workflows.config import TrainingConfig
from workflows.feed import HeldRows, training_stretches
from workflows.optimization import Optimizer
from workflows.steps import compiled, take_step

HIDDEN_DIMS = {"W1": [512, 256], "W2": [128, 128], "W3": [256]}
LATENT_DIM = {"W1": 32, "W2": 128, "W3": 16}
CATEGORIES = [2, 3, 5, 8, 10, 12, 20, 30, 40, 50]
CHECKED_STEPS = 50


def fields(workload: str) -> list[dict[str, Any]]:
    """Returns what workflows.architecture makes of the workload's table."""
    if workload == "W1":
        grid = {"half_width": [0.5 / 80], "lower": [-0.5], "upper": [255 / 80 - 0.5], "center": 40.0, "scale": 80.0, "storage": "uint8"}
        return [{"name": "x", "likelihood": "discretised_gaussian", "size": 784, "valid_size": 1, "with_flags": False} | grid]
    if workload == "W2":
        categorical = {"name": "c", "likelihood": "categorical", "sizes": CATEGORIES, "valid_size": len(CATEGORIES)}
        return [{"name": "n", "likelihood": "gaussian", "size": 20, "valid_size": 20}, categorical]
    return [{"name": "x", "likelihood": "gaussian", "size": 64, "valid_size": 1, "with_flags": False, "shared_scale": True}]


def rows_of(workload: str, num_rows: int, device: torch.device) -> Rows:
    """Returns rows that 16 numbers explain up to noise, 5 % of the cells of W2 missing."""
    g = torch.Generator().manual_seed(0)

    def explained(size: int) -> Tensor:
        return torch.randn(num_rows, 16, generator=g) @ torch.randn(16, size, generator=g) / 4 + 0.3 * torch.randn(
            num_rows, size, generator=g
        )

    if workload == "W1":
        values = {"x": (explained(784) * 60 - 20).clamp(0, 255).to(torch.uint8)}
    elif workload == "W2":
        codes = [((explained(1) * size / 4 + size / 2).clamp(0, size - 1)).int() for size in CATEGORIES]
        values = {"n": explained(20), "c": torch.cat(codes, 1)}
    else:
        values = {"x": explained(64)}
    valid = {
        name: torch.rand(cells.shape, generator=g) > 0.05 if workload == "W2" else torch.ones(num_rows, 1, dtype=torch.bool)
        for name, cells in values.items()
    }
    return Rows(values, valid, torch.zeros(num_rows, dtype=torch.float64)).to(device)


class Training:
    """Steps of one model on rows that it holds, epoch after epoch."""

    def __init__(self, workload: str, device: torch.device, batch_rows: int, num_rows: int, precision: str, compile_model: bool) -> None:
        torch.manual_seed(0)
        self.model = VAE(fields(workload), LATENT_DIM[workload], HIDDEN_DIMS[workload]).to(device)
        loss = Loss(self.model, Objective())
        self.loss = compiled(loss) if compile_model else loss
        self.precision = precision
        self.optimizer = Optimizer(self.model, TrainingConfig())
        self.plan = Plan(num_rows, 8, batch_rows, 0, num_rows)
        bounds = shard_bounds(num_rows, 8).tolist()
        sizes = {shard: bounds[shard + 1] - bounds[shard] for shard in range(8)}
        self.rows = HeldRows(rows_of(workload, num_rows, device), dict(enumerate(bounds[:-1])), sizes)

    def batches(self) -> Iterator[tuple[Rows, Tensor]]:
        epoch = 0
        while True:
            for stretch, rows, noise in training_stretches(self.plan, self.rows, epoch, 0, self.model):
                for begin, end in zip(stretch.offsets[:-1].tolist(), stretch.offsets[1:].tolist(), strict=True):
                    yield rows.slice(begin, end), noise[begin:end]
            epoch += 1

    def steps(self) -> Iterator[Tensor]:
        """Takes a step whenever it is asked for one; yields the sums of take_step."""
        for number, (rows, noise) in enumerate(self.batches()):
            yield take_step(self.loss, self.optimizer, rows, noise, 1 / rows.num_rows, 1.0, 1e-3, self.precision, number)


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(work: Callable[[], object], times: int, device: torch.device) -> float:
    """Returns the seconds that one of so many calls took, the device waited for at the end."""
    work()
    wait(device)
    began = time.perf_counter()
    for _ in range(times):
        work()
    wait(device)
    return (time.perf_counter() - began) / times


def products_seconds(model: VAE, batch_rows: int, precision: str, times: int) -> float:
    """Returns the seconds of a step's matrix products alone: of every layer, forward and both of its gradients."""
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    weights = [w.detach().to(dtype) for w in [*model.encoder.parameters(), *model.decoder.parameters()] if w.dim() == 2]
    inputs = [torch.randn(batch_rows, w.shape[1], device=w.device).to(dtype) for w in weights]
    outputs = [torch.randn(batch_rows, w.shape[0], device=w.device).to(dtype) for w in weights]

    def products() -> None:
        for w, x, y in zip(weights, inputs, outputs, strict=True):
            _ = x @ w.T, y.T @ x, y @ w

    return seconds(products, times, model.device)


def copy_bytes_per_s(device: torch.device) -> float:
    """Returns the bytes read and written per second by a copy of 1 GiB (64 MiB on the CPU)."""
    source = torch.ones(2**28 if device.type == "cuda" else 2**24, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / seconds(lambda: target.copy_(source), 20, device)


def busy_share(training: Training, steps: Iterator[Tensor], times: int) -> float:
    device = training.model.device
    if device.type != "cuda":
        began, began_cpu = time.perf_counter(), time.process_time()
        for _ in range(times):
            next(steps)
        return (time.process_time() - began_cpu) / (time.perf_counter() - began)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        began = time.perf_counter()
        for _ in range(times):
            next(steps)
        wait(device)
        elapsed_s = time.perf_counter() - began
    return sum(event.self_device_time_total for event in profile.key_averages()) / 1e6 / elapsed_s


def measure(workload: str, device: torch.device, batch_rows: int, precision: str, chosen: argparse.Namespace) -> dict[str, Any]:
    training = Training(workload, device, batch_rows, max(chosen.num_rows, 2 * batch_rows), precision, chosen.compile)
    steps = training.steps()
    for _ in range(20):
        next(steps)
    step_s = seconds(lambda: next(steps), chosen.steps, device)
    num_weights = sum(p.numel() for p in training.model.parameters())
    least_bytes = 6 * 4 * num_weights + batch_rows * training.rows.bytes_per_row
    return {
        "workload": workload,
        "batch_rows": batch_rows,
        "precision": precision,
        "compiled": chosen.compile,
        "rows_per_s": round(batch_rows / step_s),
        "arithmetic": digits(products_seconds(training.model, batch_rows, precision, chosen.steps) / step_s),
        "memory": digits(least_bytes / copy_bytes_per_s(device) / step_s),
        "busy": digits(busy_share(training, steps, chosen.steps)),
    }


def digits(share: float) -> float:
    """Returns a share to three significant digits, so that a small one is not printed as none."""
    return float(f"{share:.3g}")


def elbo_after_steps(workload: str, device: torch.device) -> float:
    """Returns the mean ELBO of the last 10 of CHECKED_STEPS steps; noise is drawn on the CPU, so that all devices have the same."""
    training = Training(workload, torch.device("cpu"), 256, 4096, "float32", False)
    model, sums = training.model.to(device), []
    optimizer, loss = Optimizer(model, TrainingConfig()), Loss(model, Objective())
    for number, (rows, noise) in zip(range(CHECKED_STEPS), training.batches(), strict=False):
        weight = 1 / rows.num_rows
        sums.append(take_step(loss, optimizer, rows.to(device), noise.to(device), weight, 1.0, 1e-3, "float32", number))
    num_rows, elbo, *_ = torch.stack(sums[-10:]).sum(0).tolist()
    return elbo / num_rows


def check(workload: str, device: torch.device) -> dict[str, Any]:
    here, there = elbo_after_steps(workload, torch.device("cpu")), elbo_after_steps(workload, device)
    return {"workload": workload, "steps": CHECKED_STEPS, "elbo_cpu": here, f"elbo_{device.type}": there, "ratio": there / here}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--workloads", default="W1,W2,W3")
    parser.add_argument("--batch_rows", default="256,1024,8192")
    parser.add_argument("--precisions", default="float32,bfloat16")
    parser.add_argument("--num_rows", type=int, default=65_536, help="rows held")
    parser.add_argument("--steps", type=int, default=100, help="steps measured")
    parser.add_argument("--compile", action="store_true", help="training.compile")
    parser.add_argument("--check", action="store_true", help="compare the ELBO with the CPU's instead")
    chosen = parser.parse_args()
    device = torch.device(chosen.device)
    if chosen.check and device.type == "cpu":
        parser.error("--check compares a device with the CPU; name one by --device")
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
                found.append(measure(workload, device, batch_rows, precision, chosen))
                print(found[-1], file=sys.stderr, flush=True)
    machine = {"device": name, "threads": torch.get_num_threads(), "python": platform.python_version(), "torch": torch.__version__}
    print(json.dumps({"machine": machine, "results": found}))


if __name__ == "__main__":
    main()
