"""Which trial is the best, and what a search leaves of it: the registered model, the MLflow runs and the JSON line."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from data.table import Table
from workflows.checkpoint import Checkpoints, progress_of
from workflows.cluster import Workers
from workflows.errors import ComputationError, ServiceError, logger
from workflows.narration import Narrator
from workflows.pinned import without_password
from workflows.record import LOG_CLOSE_S, metrics_log, record_end
from workflows.registry import Registry
from workflows.runs import Run
from workflows.training import fit
from workflows.trials import NO_ELBO, STATUS, Trial, measured


def best_of(trials: Sequence[Trial]) -> Trial:
    """Returns the trial with the best ELBO of an epoch. Raises ComputationError where none has one."""
    best = max((trial for trial in trials if trial.outcome != "failed"), key=lambda trial: trial.score, default=None)
    if best is None or best.score == NO_ELBO:
        errors = [f"{trial.run.name}: {trial.error}" for trial in trials if trial.error]
        raise ComputationError(
            f"none of the {len(trials)} trials has a model; search elsewhere, under another run.name\n  " + "\n  ".join(errors)
        )
    return best


def is_settled(trials: Sequence[Trial], held: Checkpoints) -> bool:
    """Whether every trial has ended, and the best one finished."""
    return all(trial.outcome for trial in trials) and best_of(trials).checkpoints(held).finished() is not None


def finish_best(trials: Sequence[Trial], workers: Workers, held: Checkpoints, registry: Registry) -> None:
    """Trains the best trial to its end where it was stopped. Raises as fit does."""
    while (best := best_of(trials)).checkpoints(held).finished() is None:
        logger.info("%s is the best, and was stopped: it goes on to its end", best.run.name)
        checkpoints = best.checkpoints(held)
        try:
            with registry.running(str(best.run.mlflow_run_id)), metrics_log(best.run, registry) as log:
                fit(best.config, best.table, best.run, checkpoints, workers, Narrator(best.config, log).hear)
        except ComputationError as error:  # the next best one is
            best.end("failed", best.elbos, str(error))
        else:
            files = checkpoints.finished()
            best.end("finished", [measured(entry) for entry in progress_of(files).history] if files else best.elbos)


def record_search_end(
    this: Run, trials: Sequence[Trial], registry: Registry, held: Checkpoints, table: Table, started: float
) -> dict[str, Any]:
    """Registers the best trial's model, settles every trial's MLflow run, and returns the JSON line.

    table: whose rows the pictures show. Raises ServiceError where MLflow does not answer; the next start comes here again.
    """
    best, run_id = best_of(trials), str(this.mlflow_run_id)
    for trial in trials:
        if trial is not best:
            settle(trial, registry)
    with metrics_log(best.run, registry) as log:
        line = record_end(best.config, best.run, registry, best.checkpoints(held), table, log, started, this.name)
    registry.log_json(run_id, [summary(trial) for trial in trials], "trials.json")
    best_point = {"metrics": {"best/elbo_nats_per_row": best.score}, "step": 0, "timestamp_ms": time.time_ns() // 1_000_000}
    registry.log_points(run_id, [best_point])
    registry.end_run(run_id, "FINISHED")
    logger.info("the best of %d trials is %s: %s", len(trials), best.run.name, best.values)
    counts = {f"num_trials_{outcome}": sum(trial.outcome == outcome for trial in trials) for outcome in ("stopped", "failed")}
    this.result = (
        {"job": "tune", "run_id": run_id, "run_name": this.name, "num_trials": len(trials)}
        | counts
        | {"best": summary(best)}
        | {key: value for key, value in line.items() if key not in ("job", "run_id", "run_name", "wall_s")}
        | {"wall_s": time.monotonic() - started}
    )
    this.save()
    return this.result


def settle(trial: Trial, registry: Registry) -> None:
    """Brings to MLflow what it has not taken of a trial. Raises ServiceError where it still does not."""
    with metrics_log(trial.run, registry) as log:
        if log.close(LOG_CLOSE_S):
            raise ServiceError(
                f"MLflow at {without_password(registry.uri)} does not answer; when it does, the same command ends the search"
            )
    if trial.outcome is not None:
        registry.end_run(str(trial.run.mlflow_run_id), STATUS[trial.outcome])


def summary(trial: Trial) -> dict[str, Any]:
    """Returns a trial in short, as the JSON line and MLflow have it."""
    return {
        "run_id": trial.run.mlflow_run_id,
        "run_name": trial.run.name,
        "options": trial.values,
        "outcome": trial.outcome,
        "num_epochs": len(trial.elbos),
        "elbo_nats_per_row": trial.score if trial.score > NO_ELBO else None,
    }
