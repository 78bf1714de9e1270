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
from collections.abc import Callable, Iterator
from itertools import cycle
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor, nn

from benchmarks.lean import BATCH_ROWS, HIDDEN_DIMS, LATENT_DIM, Lean, lean_model
from data.plan import Plan, shard_bounds
from vae.model import VAE
from vae.objective import Loss, Objective
from vae.rows import Rows
from workflows.feed import HeldRows, training_stretches
from workflows.model_config import TrainingConfig
from workflows.optimization import Optimizer
from workflows.steps import autocast, compiled, take_step

CATEGORIES = [2, 3, 5, 8, 10, 12, 20, 30, 40, 50]
CHECKED_STEPS = 50
WARM_UP_STEPS = 10

Work = Callable[[], object]


def fields(workload: str) -> list[dict[str, Any]]:
    """Returns what workflows.architecture makes of the workload's table."""
    if workload == "W1":
        grid = {"half_width": [0.5 / 80], "lower": [-0.5], "upper": [255 / 80 - 0.5], "center": 40.0, "scale": 80.0, "storage": "uint8"}
        return [{"name": "image_0", "likelihood": "discretised_gaussian", "size": 784, "valid_size": 1, "with_flags": False} | grid]
    if workload == "W2":
        categorical = {"name": "categorical", "likelihood": "categorical", "sizes": CATEGORIES, "valid_size": len(CATEGORIES)}
        return [{"name": "numeric", "likelihood": "gaussian", "size": 20, "valid_size": 20}, categorical]
    return [{"name": "vector_0", "likelihood": "gaussian", "size": 64, "valid_size": 1, "with_flags": False, "shared_scale": True}]


def rows_of(workload: str, num_rows: int) -> Rows:
    """Returns rows that 16 numbers explain up to noise, 5 % of the cells of W2 missing, on the CPU."""
    g = torch.Generator().manual_seed(0)

    def explained(size: int) -> Tensor:
        return torch.randn(num_rows, 16, generator=g) @ torch.randn(16, size, generator=g) / 4 + 0.3 * torch.randn(
            num_rows, size, generator=g
        )

    if workload == "W1":
        values = {"image_0": (explained(784) * 60 - 20).clamp(0, 255).to(torch.uint8)}
    elif workload == "W2":
        codes = [((explained(1) * size / 4 + size / 2).clamp(0, size - 1)).int() for size in CATEGORIES]
        values = {"numeric": explained(20), "categorical": torch.cat(codes, 1)}
    else:
        values = {"vector_0": explained(64)}
    valid = {
        name: torch.rand(cells.shape, generator=g) > 0.05 if workload == "W2" else torch.ones(num_rows, 1, dtype=torch.bool)
        for name, cells in values.items()
    }
    values = {name: torch.where(valid[name], cells, torch.zeros_like(cells)) for name, cells in values.items()}
    return Rows(values, valid, torch.zeros(num_rows, dtype=torch.float64))


class Contest:
    """The same model as vae has it and by hand, and what each of them does with the same rows."""

    def __init__(self, workload: str, device: torch.device, batch_rows: int, num_rows: int, precision: str) -> None:
        torch.manual_seed(0)
        self.device, self.batch_rows, self.precision = device, batch_rows, precision
        self.model = VAE(fields(workload), LATENT_DIM[workload], HIDDEN_DIMS[workload]).to(device)
        held = rows_of(workload, num_rows)
        self.lean = lean_model(workload, self.model, precision == "bfloat16").to(device)
        arrays = dict(held.values) | {f"{name}.valid": valid for name, valid in held.valid.items()}
        tensor = self.lean.tensor(arrays).to(device)
        self.rows = held.to(device)
        self.bytes_per_row = held.bytes_per_row
        starts = range(0, num_rows - batch_rows + 1, batch_rows)
        self.tensors = [tensor[begin : begin + batch_rows] for begin in starts]
        self.batches = [self.rows.slice(begin, begin + batch_rows) for begin in starts]
        self.check()

    def noise(self) -> Tensor:
        return torch.randn(self.batch_rows, self.model.latent_dim, device=self.device)

    def check(self) -> None:
        """Raises AssertionError unless both models have one bound."""
        noise = self.noise()
        with torch.no_grad(), autocast(self.device, self.precision):
            expected = self.model.elbo(self.batches[0], noise).elbo
        with torch.no_grad():
            found = self.lean(self.tensors[0], noise)
        tolerance = 1e-4 if self.precision == "float32" else 2e-2
        torch.testing.assert_close(found.double(), expected.double(), rtol=tolerance, atol=tolerance)

    def works(self, compile_models: bool) -> dict[str, Work]:
        """Returns what is timed, by name."""
        loss, lean = Loss(self.model, Objective()), self.lean
        own = compiled(loss) if compile_models else loss
        tuned: Any = torch.compile(lean, mode="reduce-overhead" if self.device.type == "cuda" else None) if compile_models else lean
        steps = self.steps(own)
        works: dict[str, Work] = {
            "tuned": self.tuned(tuned, lean),
            "model": self.plain(own),
            "step": lambda: next(steps),
            "tuned_encode": self.tuned_encode(lean),
            "encode": self.encode(),
        }
        return {f"{name}_compiled": work for name, work in works.items() if "encode" not in name} if compile_models else works

    def tuned(self, model: Any, lean: Lean) -> Work:
        tensors, optimizer = cycle(self.tensors), torch.optim.Adam(lean.parameters(), lr=1e-3, fused=True)

        def step() -> None:
            optimizer.zero_grad(set_to_none=True)
            (-model(next(tensors), self.noise()).mean()).backward()
            optimizer.step()

        return step

    def plain(self, loss: nn.Module) -> Work:
        batches, optimizer = cycle(self.batches), torch.optim.Adam(self.model.parameters(), lr=1e-3, fused=True)

        def step() -> None:
            optimizer.zero_grad(set_to_none=True)
            with autocast(self.device, self.precision):
                minimised, _ = loss(next(batches), self.noise(), 1.0)
            (minimised / self.batch_rows).backward()
            optimizer.step()

        return step

    def steps(self, loss: nn.Module) -> Iterator[Tensor]:
        """Takes a training step whenever it is asked for one; yields the sums of take_step."""
        optimizer = Optimizer(self.model, TrainingConfig(ema_decay=0))  # the other loop averages nothing
        for number, (rows, noise) in enumerate(gathered(self.rows, self.batch_rows, self.model)):
            yield take_step(loss, optimizer, rows, noise, 1 / rows.num_rows, 1.0, 1e-3, self.precision, number)

    def tuned_encode(self, lean: Lean) -> Work:
        tensors = cycle(self.tensors)

        @torch.inference_mode()
        def embed() -> object:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
                return lean.posterior(next(tensors))[:2]

        return embed

    def encode(self) -> Work:
        batches = cycle(self.batches)

        @torch.inference_mode()
        def embed() -> object:
            with autocast(self.device, self.precision):
                q_z = self.model.posterior(next(batches))
            return q_z.mean, q_z.scale

        return embed

    def products(self, training: bool) -> Work:
        """Returns a step's matrix products alone: of every layer, forward and both of its gradients, or the encoder's forward."""
        dtype = torch.bfloat16 if self.precision == "bfloat16" else torch.float32
        parameters = [*self.model.encoder.parameters(), *(self.model.decoder.parameters() if training else [])]
        weights = [w.detach().to(dtype) for w in parameters if w.dim() == 2]
        inputs = [torch.randn(self.batch_rows, w.shape[1], device=w.device).to(dtype) for w in weights]
        outputs = [torch.randn(self.batch_rows, w.shape[0], device=w.device).to(dtype) for w in weights]

        def products() -> None:
            for w, x, y in zip(weights, inputs, outputs, strict=True):
                _ = (x @ w.T, y.T @ x, y @ w) if training else x @ w.T

        return products

    def least_bytes(self, training: bool) -> int:
        weights = sum(p.numel() for p in (self.model if training else self.model.encoder).parameters())
        return 4 * weights * (6 if training else 1) + self.batch_rows * self.bytes_per_row


def gathered(rows: Rows, batch_rows: int, model: VAE) -> Iterator[tuple[Rows, Tensor]]:
    """Yields the batches that training takes of rows that it holds, with their noise, epoch after epoch."""
    plan = Plan(rows.num_rows, 8, batch_rows, 0, rows.num_rows)
    bounds = shard_bounds(rows.num_rows, 8).tolist()
    sizes = {shard: bounds[shard + 1] - bounds[shard] for shard in range(8)}
    held, epoch = HeldRows(rows, dict(enumerate(bounds[:-1])), sizes), 0
    while True:
        for stretch, some, noise in training_stretches(plan, held, epoch, 0, model):
            for begin, end in zip(stretch.offsets[:-1].tolist(), stretch.offsets[1:].tolist(), strict=True):
                if end - begin == batch_rows:  # the last of an epoch is smaller, and would be timed as one of the others
                    yield some.slice(begin, end), noise[begin:end]
        epoch += 1


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
