"""What one training worker does: step, validate, save, report. The numbers do not depend on the workers.

Shapes: B rows of a step on this worker, L latent dimensions, S samples.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import psutil
import torch
import torch.distributed as dist
from ray.train.torch import prepare_model
from torch import nn

from data.split import TRAIN, VALIDATION
from vae.aggregated import with_prior
from vae.model import VAE
from vae.objective import Loss, Objective
from workflows.checkpoint import NUM_SUMS, Progress, TrainingState
from workflows.errors import ComputationError
from workflows.feed import SideRows, batch_before, training_stretches
from workflows.fitted_prior import fit_prior
from workflows.mailbox import Message
from workflows.memory import keep_freed_memory
from workflows.model_config import ObjectiveConfig, TrainingConfig
from workflows.optimization import MAX_NONFINITE_STEPS, Optimizer
from workflows.scoring import metrics, score_of, scores, shard_sums
from workflows.steps import Ledger, Settled, compiled, describe_batch, take_step
from workflows.worker import Worker, open_rows, sum_over_workers

EPOCH_SAMPLES, FINAL_SAMPLES = 1, 8
# Gradients are reduced all at once and in place; the model's buffers are constants, which need not be sent at every step.
ONE_BUCKET = {"bucket_cap_mb": 1024, "gradient_as_bucket_view": True, "broadcast_buffers": False}
# How long a worker waits at its end for what it said to arrive.
FAREWELL_S = 30


def train_worker(config: dict[str, Any]) -> None:
    """Trains until the last epoch or early stopping, then scores the best weights. Checkpoints are left on the way."""
    worker = Worker.here(config["task"])
    torch.set_flush_denormal(True)
    keep_freed_memory()
    if worker.device.type == "cuda":
        torch.set_float32_matmul_precision("high")
    try:
        state = start_state(worker)
        if not state.progress.finished:
            train(state, worker)
    except ComputationError as error:  # no failure of a worker: every retry would end here; the driver ends the run
        worker.line.send(worker.line.step, [{"kind": "failure", "message": str(error)}])
    worker.line.flush(FAREWELL_S)


def train(state: TrainingState, worker: Worker) -> None:
    task, progress = worker.task, state.progress
    sides = open_rows(worker)
    loss = Loss(state.model, objective_of(task.objective), sum_over_workers)
    loss = prepare_model(compiled(loss) if task.training.compile else loss, parallel_strategy_kwargs=ONE_BUCKET)
    num_steps = total_steps(task.training, task.plan.num_steps_with_rows)
    started = {"kind": "started", "step": progress.step, "epoch": progress.epoch, "workers": worker.world_size}
    worker.tell(progress.step, started, *progress.unkept, *map(told_of, progress.history))
    while not is_last(progress, task.training, num_steps):
        if train_epoch(loss, state, worker, sides[TRAIN], num_steps) == "stop":
            worker.save(state)
            worker.tell(progress.step, {"kind": "stopped"})
            return
        validation = evaluate(scored_model(state, worker), worker, sides.get(VALIDATION), VALIDATION, EPOCH_SAMPLES)
        entry = finish_epoch(state, validation)
        worker.save(state)
        worker.tell(progress.step, told_of(entry))
    if not state.best:
        raise ComputationError(
            "the ELBO of the validation rows was finite after no epoch, so that no weights are the best and nothing is registered; look "
            "for outliers among these rows, or try a lower training.learning_rate under another run.name"
        )
    state.model.load_state_dict(state.best)
    progress.scores = final_scores(state.model, worker, sides)
    if task.fits_prior:
        take_fitted_prior(state, worker, sides)
    progress.finished = True
    worker.save(state)


def told_of(entry: dict[str, float]) -> Message:
    """Returns what the driver is told of an epoch; once more after a restart, for it may have been saved and not said."""
    return {"kind": "epoch", "step": entry["epoch"], "metrics": entry}


def final_scores(model: VAE, worker: Worker, sides: Mapping[int, SideRows]) -> dict[str, dict[str, Any]]:
    """Returns what is registered of a model: its scores over all rows of each side."""
    chosen = (("train", TRAIN, 1), ("validation", VALIDATION, FINAL_SAMPLES))
    return {name: evaluate(model, worker, sides.get(side), side, num_samples) for name, side, num_samples in chosen}


def take_fitted_prior(state: TrainingState, worker: Worker, sides: Mapping[int, SideRows]) -> None:
    """Has the trained model get the prior that its training rows ask for, where the ELBO of the validation rows is higher with it."""
    task, progress = worker.task, state.progress
    num_components = task.architecture["num_prior_components"]
    model = with_prior(state.model, fit_prior(state.model, task.plan, sides[TRAIN], num_components, sum_over_workers))
    scored = final_scores(model, worker, sides)
    side = "validation" if scored["validation"]["num_rows"] else "train"
    before, after = (found[side]["elbo_nats_per_row"] for found in (progress.scores, scored))
    if after > before:
        progress.scores, state.best = scored, model.state_dict()
        progress.prior = {name: model.architecture[name] for name in ("prior", "num_prior_components")}
    fitted = {"side": side, "standard": before, "fitted": after, "num_components": model.architecture["num_prior_components"]}
    worker.tell(progress.step, {"kind": "prior", "step": progress.step} | fitted)


def objective_of(config: ObjectiveConfig) -> Objective:
    return Objective(config.kind, config.num_importance_samples, config.free_bits, config.doubly_reparameterised)


def start_state(worker: Worker) -> TrainingState:
    """Returns the state of the last checkpoint, which the first worker chooses, or a new one that is the same on every worker."""
    training = worker.task.training
    torch.manual_seed(training.seed)
    model = VAE(**worker.task.architecture).to(worker.device, torch.float64 if training.precision == "float64" else torch.float32)
    state = TrainingState(model, Optimizer(model, training), {}, Progress())
    found = [worker.task.checkpoints.newest() if worker.rank == 0 else None]
    if dist.is_initialized():
        dist.broadcast_object_list(found, src=0)
    if found[0] is not None:
        state.load(found[0])
    return state


def total_steps(training: TrainingConfig, steps_per_epoch: int) -> int:
    planned = training.num_epochs * steps_per_epoch
    return min(planned, training.max_steps) if training.max_steps is not None else planned


def is_last(progress: Progress, training: TrainingConfig, num_steps: int) -> bool:
    """Whether training ends here: out of epochs, steps or time, or without a better validation ELBO for too long."""
    patience = training.patience
    stale = progress.best_elbo is not None and patience > 0 and progress.epoch - 1 - progress.best_epoch >= patience
    late = training.max_time_s is not None and progress.elapsed_s >= training.max_time_s
    return progress.epoch >= training.num_epochs or stale or (progress.position == 0 and (late or progress.step >= num_steps))


def train_epoch(loss: nn.Module, state: TrainingState, worker: Worker, side_rows: SideRows, num_steps: int) -> str:
    """Takes the epoch's steps that are left; returns why it ended: "end" of the epoch, steps or time, or "stop"."""
    task, progress = worker.task, state.progress
    if progress.step >= num_steps:  # a stop came with the last step: the epoch is to be scored yet
        return "end"
    ledger = Ledger(task.training, task.run, num_steps, worker.rank == 0)
    loss.train()
    num_samples = objective_of(task.objective).num_samples
    stretches = training_stretches(task.plan, side_rows, progress.epoch, progress.position, state.model, worker.world_size, num_samples)
    for stretch, rows, noise in stretches:
        for number, step in enumerate(stretch.steps):
            begin, end = stretch.offsets[number : number + 2].tolist()
            settings = task.objective.beta_at(progress.step), task.training.learning_rate_at(progress.step, num_steps)
            weight = worker.world_size / step.num_rows  # DDP averages gradients over workers
            taken = take_step(
                loss, state.optimizer, rows.slice(begin, end), noise[begin:end], weight, *settings, ledger.precision, progress.step
            )
            ledger.note(taken)
            progress.step += 1
            progress.position = step.index + 1
            last = progress.step >= num_steps
            if last or ledger.is_due or progress.position == task.plan.num_steps:
                settled = ledger.settle(progress, state.optimizer, worker.line.stop)
                refuse_nonfinite(settled, side_rows, state, worker)
                progress.unkept = [m for m in progress.unkept if m["step"] > worker.line.kept] + settled.metrics
                worker.tell(progress.step, *settled.metrics, settled.status)
                if settled.stop:
                    return "stop"
                if last or settled.late:
                    return "end"
                if settled.checkpoint:
                    worker.save(state)
    return "end"


def refuse_nonfinite(settled: Settled, side_rows: SideRows, state: TrainingState, worker: Worker) -> None:
    """Raises ComputationError, on every worker, where too many steps in a row were not finite."""
    if not settled.halted:
        return
    progress, first = state.progress, int(settled.first_nonfinite)
    rows = batch_before(worker.task.plan, side_rows, progress.epoch, progress.position, progress.step - first, state.model)
    found = describe_batch(rows, worker.task.columns)
    raise ComputationError(
        f"epoch {progress.epoch + 1}, step {first + 1} and those after it: the loss or its gradient is not finite, "
        f"{MAX_NONFINITE_STEPS} steps in a row, so training ends; what was saved is from before. Try a lower training.learning_rate. "
        f"Columns of the batch, standardised, the largest first:\n  {found}"
    )


def scored_model(state: TrainingState, worker: Worker) -> VAE:
    """Returns the model with the weights that are scored: the averaged ones where there are some."""
    if not state.optimizer.average:
        return state.model
    model = VAE(**worker.task.architecture).to(state.model.device, state.model.dtype)
    model.load_state_dict(state.averaged())
    return model


def evaluate(model: VAE, worker: Worker, rows: SideRows | None, side: int, num_samples: int) -> dict[str, Any]:
    """Returns the row-weighted means of the plain ELBO and its parts over all rows of a side, each counted once, and active units.

    Shards are summed apart, in chunks of their own, so the result is the same to the last bit on any number of workers.
    """
    if rows is None:
        return {"num_rows": 0}
    return scores(sum_over_workers(shard_sums(model, worker.task.plan, rows, side, num_samples)), model)


def system_metrics(device: torch.device) -> dict[str, float]:
    """Returns what the first worker and its machine use, by the names under which MLflow shows system metrics."""
    memory = {"system/worker_0_memory_megabytes": psutil.Process().memory_info().rss / 1e6}
    if device.type == "cuda":
        memory["system/gpu_0_memory_usage_megabytes"] = torch.cuda.max_memory_allocated(device) / 1e6
    machine = psutil.virtual_memory().percent
    return memory | {"system/cpu_utilization_percentage": psutil.cpu_percent(), "system/system_memory_usage_percentage": machine}


def finish_epoch(state: TrainingState, validation: dict[str, Any]) -> dict[str, float]:
    """Notes the epoch's metrics, which it returns, and keeps its weights where they are the best (without validation rows: the last)."""
    progress = state.progress
    num_rows, *sums = progress.sums
    training = metrics([total / num_rows for total in sums], state.model) if num_rows else {}
    training |= {"rows_per_s": num_rows / max(progress.epoch_s, 1e-9), "skipped_steps": progress.num_skipped_steps}
    entry = {f"train/{name}": value for name, value in training.items()}
    if validation["num_rows"]:
        entry |= {f"validation/{name}": value for name, value in validation.items() if name != "num_rows"}
        elbo = score_of(entry)
        assert elbo is not None
        better = math.isfinite(elbo) and (progress.best_elbo is None or elbo > progress.best_elbo)
    else:
        elbo, better = None, True
    if better:
        progress.best_epoch, progress.best_step, progress.best_elbo = progress.epoch, progress.step, elbo
        state.keep_as_best()
    entry = {"epoch": progress.epoch, "step": progress.step, **entry, **system_metrics(state.model.device)}
    progress.history.append(entry)
    progress.epoch, progress.position, progress.sums, progress.epoch_s = progress.epoch + 1, 0, [0.0] * NUM_SUMS, 0.0
    return entry
