"""What one training worker does: hold its rows, step, validate, checkpoint, report. The numbers do not depend on the workers.

Shapes: B rows of a step on this worker, L latent dimensions, S samples.
"""

from __future__ import annotations

import math
import tempfile
import time
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import ray.train
import torch
import torch.distributed as dist
from ray.train.torch import get_device, prepare_model
from ray.util.queue import Queue
from torch import Tensor

from data.encoding import Arrays
from data.plan import Plan, Step, shard_bounds, shards_of_rank
from data.shard import Layout, fill_resident
from data.split import TRAIN, VALIDATION
from vae.bundle import save_bundle
from vae.model import VAE
from vae.rows import Rows
from workflows.checkpoint import BUNDLE, Progress, TrainingState
from workflows.config import ObjectiveConfig, TrainingConfig
from workflows.job import ComputationError

EVALUATION_ROWS = 1024
# The noise of evaluation is the same in every epoch, so that epochs differ by their weights alone; no epoch has this number.
EVALUATION_EPOCH = 2**31
EPOCH_SAMPLES, FINAL_SAMPLES = 1, 8


@dataclass(frozen=True)
class WorkerTask:
    """Everything that a worker is told. num_rows: side of the split -> rows of the whole table."""

    architecture: dict[str, Any]
    table: dict[str, Any]
    layout: Layout
    plan: Plan
    num_rows: dict[int, int]
    objective: ObjectiveConfig
    training: TrainingConfig
    progress: Queue


@dataclass(frozen=True)
class Holding:
    """One side's rows on this worker, in the order of the logical shards that it owns; start: shard -> its first row here."""

    rows: Rows
    start: dict[int, int]
    size: dict[int, int]


def train_worker(config: dict[str, Any]) -> None:
    """Trains until the last epoch or early stopping, then scores the best weights; every epoch leaves a checkpoint."""
    task: WorkerTask = config["task"]
    device = get_device()
    torch.set_flush_denormal(True)
    state = start_state(task, device)
    if not state.progress.finished:
        try:
            train(state, task, device)
        except ComputationError as error:  # the same on every worker, and on every retry: no failure of a worker
            if ray.train.get_context().get_world_rank() == 0:
                task.progress.put({"failure": str(error)})


def train(state: TrainingState, task: WorkerTask, device: torch.device) -> None:
    holdings = hold_rows(task, device)
    model = prepare_model(state.model)
    num_steps = total_steps(task.training, task.plan.num_steps_with_rows)
    while not is_last(state.progress, task.training, num_steps):
        training = train_epoch(model, state, task, holdings[TRAIN], num_steps)
        validation = evaluate(state.model, task, holdings.get(VALIDATION), VALIDATION, EPOCH_SAMPLES)
        finish_epoch(state, training, validation)
        save_checkpoint(state, task)
    state.model.load_state_dict(state.best)
    for name, side in (("train", TRAIN), ("validation", VALIDATION)):
        state.progress.scores[name] = evaluate(state.model, task, holdings.get(side), side, FINAL_SAMPLES)
    state.progress.finished = True
    save_checkpoint(state, task)


def start_state(task: WorkerTask, device: torch.device) -> TrainingState:
    """Returns the state of the last checkpoint, or a new one that is the same on every worker."""
    torch.manual_seed(task.training.seed)
    model = VAE(**task.architecture).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=task.training.learning_rate, fused=True)
    state = TrainingState(model, optimizer, {}, Progress())
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is not None:
        with checkpoint.as_directory() as folder:
            state.load(Path(folder))
    return state


def hold_rows(task: WorkerTask, device: torch.device) -> dict[int, Holding]:
    """Returns this worker's rows of each side, decoded once; on the GPU where they fit beside the model."""
    context = ray.train.get_context()
    shards = shards_of_rank(task.plan.num_shards, context.get_world_rank(), context.get_world_size())
    holdings = {}
    for side, count in task.num_rows.items():
        sizes = np.diff(shard_bounds(count, task.plan.num_shards))[shards].tolist()
        arrays = read_rows(f"{side}-{context.get_world_rank()}", task, side, sum(sizes))
        num_bytes = sum(array.nbytes for array in arrays.values())
        resident = device.type == "cuda" and num_bytes < 0.5 * torch.cuda.mem_get_info(device)[0]
        starts = np.cumsum([0, *sizes])[:-1].tolist()
        rows = Rows.from_arrays(arrays, device if resident else "cpu")
        holdings[side] = Holding(rows, dict(zip(shards, starts, strict=True)), dict(zip(shards, sizes, strict=True)))
    return holdings


def read_rows(dataset: str, task: WorkerTask, side: int, num_rows: int) -> Arrays:
    """Returns this worker's rows of one side, from the dataset that the driver planned for it (none for no rows)."""
    blocks = ray.train.get_dataset_shard(dataset).iter_batches(batch_size=None, batch_format="pyarrow") if num_rows else iter(())
    return fill_resident(blocks, task.layout, {side: num_rows})[side].arrays


def total_steps(training: TrainingConfig, steps_per_epoch: int) -> int:
    planned = training.epochs * steps_per_epoch
    return min(planned, training.max_steps) if training.max_steps is not None else planned


def is_last(progress: Progress, training: TrainingConfig, num_steps: int) -> bool:
    """Whether training ends here: out of epochs or steps, or without a better validation ELBO for too long."""
    patience = training.early_stopping_patience
    stale = progress.best_elbo is not None and patience > 0 and progress.epoch - 1 - progress.best_epoch >= patience
    return progress.epoch >= training.epochs or progress.step >= num_steps or stale


def train_epoch(model: torch.nn.Module, state: TrainingState, task: WorkerTask, holding: Holding, num_steps: int) -> dict[str, float]:
    """Takes one epoch's steps; returns its row-weighted means over all workers."""
    started = time.monotonic()
    progress, device = state.progress, state.model.device
    order = {shard: torch.from_numpy(task.plan.order(progress.epoch, shard)) + start for shard, start in holding.start.items()}
    sums = torch.zeros(4, dtype=torch.float64, device=device)
    model.train()
    for step in islice(task.plan.steps(), num_steps - progress.step):
        rows = step_rows(holding, order, step, device)
        noise = step_noise(task.plan, holding, progress.epoch, step, state.model)
        beta = task.objective.beta_at(progress.step)
        set_learning_rate(state.optimizer, task.training.learning_rate_at(progress.step, num_steps))
        state.optimizer.zero_grad(set_to_none=True)
        with autocast(device, task.training.precision):
            bound = model(rows, noise)
        # DDP averages gradients over workers: the mean over the global batch needs each worker's sum times their number.
        loss = -(bound.expected_log_likelihood - beta * bound.kl).sum() * (world_size() / step.num_rows)
        loss.backward()
        state.optimizer.step()
        sums += torch.stack([bound.elbo.new_tensor(rows.num_rows), *(part.detach().sum() for part in bound)]).double()
        progress.step += 1
    num_rows, *means = row_means(all_reduced(sums))
    if not all(map(math.isfinite, means)):
        raise ComputationError(f"epoch {progress.epoch}: the training ELBO is {means[0]}; try a lower training.learning_rate")
    return metrics(means) | {"num_rows": num_rows, "rows_per_s": num_rows / (time.monotonic() - started)}


def step_rows(holding: Holding, order: dict[int, Tensor], step: Step, device: torch.device) -> Rows:
    """Returns this worker's rows of a step, gathered from its shards in their order."""
    index = torch.cat([order[shard][step.begin[shard] : step.end[shard]] for shard in order])
    rows = holding.rows.take(index.to(holding.rows.log_jacobian.device))
    return rows if holding.rows.log_jacobian.device == device else Rows(*map_tensors(rows, device))


def map_tensors(rows: Rows, device: torch.device) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
    values = {name: tensor.to(device, non_blocking=True) for name, tensor in rows.values.items()}
    valid = {name: tensor.to(device, non_blocking=True) for name, tensor in rows.valid.items()}
    return values, valid, rows.log_jacobian.to(device, non_blocking=True)


def step_noise(plan: Plan, holding: Holding, epoch: int, step: Step, model: VAE) -> Tensor:
    """Returns the step's noise [B, L]: each shard's from its own generator, so that it follows the rows to any worker."""
    counts = {shard: int(step.end[shard] - step.begin[shard]) for shard in holding.start}
    return torch.cat(
        [noise(plan.noise_seed(epoch, step.index, shard), (count, model.latent_dim), model) for shard, count in counts.items()]
    )


def noise(seed: int, shape: tuple[int, ...], model: VAE) -> Tensor:
    generator = torch.Generator(model.device).manual_seed(seed)
    return torch.randn(shape, generator=generator, device=model.device, dtype=model.dtype)


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = learning_rate


def autocast(device: torch.device, precision: str) -> Any:
    wanted = precision == "bfloat16" or (precision == "auto" and device.type == "cuda" and torch.cuda.is_bf16_supported())
    return torch.autocast(device.type, torch.bfloat16) if wanted else nullcontext()


@torch.no_grad()
def evaluate(model: VAE, task: WorkerTask, holding: Holding | None, side: int, num_samples: int) -> dict[str, Any]:
    """Returns the row-weighted means of the plain ELBO and its parts over all rows of a side, each counted once.

    Shards are summed apart, in chunks of their own, so the result is the same to the last bit on any number of workers.
    """
    if holding is None:
        return {"num_rows": 0}
    device = model.device
    sums = torch.zeros(task.plan.num_shards, 4, dtype=torch.float64, device=device)
    for shard, start in holding.start.items():
        for begin in range(0, holding.size[shard], EVALUATION_ROWS):
            end = min(begin + EVALUATION_ROWS, holding.size[shard])
            rows = Rows(*map_tensors(holding.rows.slice(start + begin, start + end), device))
            seed = task.plan.noise_seed(EVALUATION_EPOCH + side, begin, shard)
            bound = model.evaluate_elbo(rows, noise(seed, (num_samples, end - begin, model.latent_dim), model))
            sums[shard] += torch.stack([bound.elbo.new_tensor(end - begin).double(), *(part.double().sum() for part in bound)])
    num_rows, *means = row_means(all_reduced(sums).sum(0))
    return metrics(means) | {"num_rows": int(num_rows)}


def metrics(means: list[float]) -> dict[str, Any]:
    names = ("elbo_nats_per_row", "expected_log_likelihood_nats_per_row", "kl_nats_per_row")
    return dict(zip(names, means, strict=True))


def row_means(sums: Tensor) -> list[float]:
    num_rows, *totals = sums.tolist()
    return [num_rows, *(total / num_rows for total in totals)]


def all_reduced(sums: Tensor) -> Tensor:
    if dist.is_initialized():
        dist.all_reduce(sums)
    return sums


def world_size() -> int:
    return int(ray.train.get_context().get_world_size())


def finish_epoch(state: TrainingState, training: dict[str, float], validation: dict[str, Any]) -> None:
    """Notes the epoch's metrics, and keeps its weights where they are the best (without validation rows: the last)."""
    progress = state.progress
    entry = {f"train/{name}": value for name, value in training.items() if name != "num_rows"}
    if validation["num_rows"]:
        entry |= {f"validation/{name}": value for name, value in validation.items() if name != "num_rows"}
        elbo = validation["elbo_nats_per_row"]
        better = math.isfinite(elbo) and (progress.best_elbo is None or elbo > progress.best_elbo)
    else:
        elbo, better = None, True
    if better:
        progress.best_epoch, progress.best_elbo = progress.epoch, elbo
        state.keep_as_best()
    progress.history.append({"epoch": progress.epoch, "step": progress.step, **entry})
    progress.epoch += 1


def save_checkpoint(state: TrainingState, task: WorkerTask) -> None:
    """Reports to Ray Train on every worker; the first saves the state, and once finished the bundle."""
    latest = state.progress.history[-1]
    if ray.train.get_context().get_world_rank() != 0:
        ray.train.report(latest)
        return
    with tempfile.TemporaryDirectory() as folder:
        state.save(Path(folder))
        if state.progress.finished:
            save_bundle(Path(folder) / BUNDLE, state.model, task.table)
        ray.train.report(latest, checkpoint=ray.train.Checkpoint.from_directory(folder))
    if not state.progress.finished:
        task.progress.put(latest)
