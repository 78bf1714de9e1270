"""One training step, and what is known of many of them without waiting for each. No Ray. Shapes: B rows of a step, L latent dimensions."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from vae.objective import Loss
from vae.rows import Rows
from workflows.checkpoint import NUM_SUMS, Progress
from workflows.config import RunConfig
from workflows.model_config import TrainingConfig
from workflows.optimization import MAX_NONFINITE_STEPS, Optimizer

# Workers meet, and the host waits for the device, about this often.
SETTLE_S = 0.5
# Columns that a message about a batch names.
MAX_COLUMNS_SHOWN = 8


def take_step(
    loss: nn.Module,
    optimizer: Optimizer,
    rows: Rows,
    noise: Tensor,
    weight: float,
    beta: float,
    learning_rate: float,
    precision: str,
    number: int,
) -> Tensor:
    """Takes optimiser step `number`; returns the number of rows and the sums of the plain bound and its parts over them, [NUM_SUMS].

    loss: a vae.objective.Loss, or what wraps one; noise [B, L], or [B, K, L] of K samples; beta: the KL's weight.
    weight: of a row in what is minimised, 1 / (rows of the step over all workers) times the number of workers.
    """
    # A number would be a part of what is compiled or captured. One that is too large for the dtype is infinite there.
    kl_weight = torch.full((), beta, dtype=torch.float64, device=noise.device).to(noise.dtype)
    with autocast(rows.device, precision):
        minimised, bound = loss(rows, noise, kl_weight)
    optimizer.backward(weight * minimised)
    optimizer.step(learning_rate, number)
    sums = torch.stack(bound).detach().double().sum(1)
    return torch.nn.functional.pad(sums, (1, 0), value=rows.num_rows)


def compiled(loss: Loss) -> nn.Module:
    """Returns the loss compiled; on a GPU its forward and backward passes are captured and replayed whole (CUDA graphs)."""
    mode = "reduce-overhead" if loss.model.device.type == "cuda" else None
    return torch.compile(loss, mode=mode)  # type: ignore[return-value]


def autocast(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    wanted = precision == "bfloat16" or (precision == "auto" and has_bfloat16(device))
    return torch.autocast(device.type, torch.bfloat16) if wanted else nullcontext()


def has_bfloat16(device: torch.device) -> bool:
    """Whether the processor multiplies bfloat16 matrices faster than float32 ones."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


@dataclass(frozen=True)
class Settled:
    """What the workers agreed on: messages for the driver, metrics of steps and how far they are, and what comes next."""

    metrics: list[dict[str, Any]]
    status: dict[str, Any]
    checkpoint: bool
    stop: bool
    late: bool
    halted: bool
    first_nonfinite: int


class Ledger:
    """The steps that were taken and not yet settled. Every worker settles after the same steps, as all know the same times."""

    def __init__(self, training: TrainingConfig, run: RunConfig, num_steps: int, is_first_worker: bool) -> None:
        self.training, self.run, self.num_steps, self.is_first_worker = training, run, num_steps, is_first_worker
        self.precision = training.precision
        self.taken: list[Tensor] = []
        self.due = 1
        self.settled_at = self.saved_at = time.monotonic()

    def note(self, sums: Tensor) -> None:
        self.taken.append(sums)

    @property
    def is_due(self) -> bool:
        return len(self.taken) >= self.due

    def settle(self, progress: Progress, optimizer: Optimizer, stop: bool) -> Settled:
        """Adds the steps' sums over all workers to the progress, and agrees on what the first worker's clock says."""
        now = time.monotonic()
        wishes = [now - self.settled_at, now - self.saved_at >= self.run.checkpoint_interval_s, stop]
        own = torch.tensor([float(wish) * self.is_first_worker for wish in wishes], dtype=torch.float64)
        sums = torch.stack(self.taken)
        told = torch.cat([sums.flatten(), own.to(sums.device), optimizer.nonfinite * self.is_first_worker])
        if dist.is_initialized():
            dist.all_reduce(told)
        *steps, elapsed_s, checkpoint, stopping, in_row, num_skipped, first_nonfinite = told.tolist()
        metrics = self._add(progress, torch.tensor(steps, dtype=torch.float64).reshape(-1, NUM_SUMS).tolist())
        progress.elapsed_s += elapsed_s
        progress.epoch_s += elapsed_s
        progress.num_skipped_steps = int(num_skipped)
        self.due = max(1, min(2 * len(self.taken), int(len(self.taken) * SETTLE_S / max(elapsed_s, 1e-6))))
        self.taken = []
        self.settled_at = time.monotonic()
        if checkpoint:
            self.saved_at = self.settled_at
        late = self.training.max_time_s is not None and progress.elapsed_s >= self.training.max_time_s
        return Settled(
            metrics, self._status(progress), bool(checkpoint), bool(stopping), late, in_row >= MAX_NONFINITE_STEPS, int(first_nonfinite)
        )

    def _add(self, progress: Progress, steps: Sequence[Sequence[float]]) -> list[dict[str, Any]]:
        """Adds steps to the sums, in their order, whatever was settled together; returns a message for every interval that ended."""
        messages: list[dict[str, Any]] = []
        first = progress.step - len(steps)
        for number, sums in enumerate(steps, first + 1):
            if all(map(math.isfinite, sums)):
                progress.sums = [a + b for a, b in zip(progress.sums, sums, strict=True)]
                progress.interval_sums = [a + b for a, b in zip(progress.interval_sums, sums, strict=True)]
            if number % self.run.log_interval_steps == 0:
                num_rows, elbo, _, kl, _ = progress.interval_sums
                if num_rows:
                    means = {"train_steps/elbo_nats_per_row": elbo / num_rows, "train_steps/kl_nats_per_row": kl / num_rows}
                    messages.append({"kind": "steps", "step": number, "metrics": means})
                progress.interval_sums = [0.0] * NUM_SUMS
        return messages

    def _status(self, progress: Progress) -> dict[str, Any]:
        num_rows, elbo, _, kl, _ = progress.sums
        means = {"elbo": elbo / num_rows, "kl": kl / num_rows} if num_rows else {}
        rate = {
            "rows_per_s": num_rows / max(progress.epoch_s, 1e-9),
            "eta_s": progress.elapsed_s / progress.step * (self.num_steps - progress.step),
        }
        return {"kind": "status", "epoch": progress.epoch, "step": progress.step, "num_steps": self.num_steps} | means | rate


def describe_batch(rows: Rows, columns: Mapping[str, Sequence[str]]) -> str:
    """Returns what the columns of a batch hold, one line each, the largest values first; every worker's rows, known to all."""
    own = {}
    for name, values in rows.values.items():
        valid = rows.valid[name].expand(values.shape)
        parts = enumerate(columns[name]) if len(columns[name]) == values.shape[1] else [(slice(None), columns[name][0])]
        for index, column in parts:
            cells = values[:, index][valid[:, index]].double()
            extremes = (cells.min().item(), cells.max().item()) if cells.numel() else (0.0, 0.0)
            own[column] = (*extremes, int((~valid[:, index]).sum()))
    everybody: list[dict[str, tuple[float, float, int]]] = [own]
    if dist.is_initialized():
        everybody = [{} for _ in range(dist.get_world_size())]
        dist.all_gather_object(everybody, own)
    merged = {c: tuple(zip(*(each[c] for each in everybody), strict=True)) for c in own}
    found = {column: (min(lows), max(highs), sum(nulls)) for column, (lows, highs, nulls) in merged.items()}
    largest = sorted(found, key=lambda column: -max(abs(found[column][0]), abs(found[column][1])))
    lines = [f"{column!r}: {found[column][0]:.6g} to {found[column][1]:.6g}, {found[column][2]} nulls" for column in largest]
    return "\n  ".join(lines[:MAX_COLUMNS_SHOWN])
