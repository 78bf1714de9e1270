"""The search as the driver sees it: Ray Tune starts the trials, ASHA stops those that fall behind, the driver records them all."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, wait
from contextlib import ExitStack
from dataclasses import asdict, replace
from types import SimpleNamespace
from typing import Any

import ray
from ray import tune
from ray.tune.schedulers import ASHAScheduler

from data.output import OutputError
from data.stores import address
from data.table import Table
from workflows.checkpoint import Checkpoints
from workflows.cluster import Workers, claim_workers
from workflows.errors import logger
from workflows.mailbox import Mailbox
from workflows.metrics_log import MetricsLog
from workflows.nodes import Nodes
from workflows.record import epoch_metrics, identity, metrics_log, record_start
from workflows.registry import Registry
from workflows.runs import RECORD, Run
from workflows.space import SearchConfig, TuneConfig
from workflows.trainer import STOP_S
from workflows.training import memory_of_worker
from workflows.trials import ELBO, EPOCH, STATUS, Outcome, Told, Trial, TrialActor, measured

# How long a trial's end waits for MLflow; what it does not take in that time is sent at the search's end.
TRIAL_CLOSE_S = 2.0


def search_identity(config: SearchConfig, table: Table, validation_table: Table | None) -> dict[str, Any]:
    """Returns everything that decides the trials' numbers; how many run at a time is not in it."""
    settings = {f"tune.{key}": value for key, value in asdict(config.tune).items() if key != "max_concurrent_trials"}
    space = {axis.key: axis.given for axis in config.axes()}
    return identity(config.with_values(config.draw()[0]), table, validation_table) | space | settings


def trials_of(config: SearchConfig, this: Run) -> list[Trial]:
    """Returns the search's trials, new or as they stand. Raises ConfigError where a folder holds another, OutputError where they are of a
    search whose record is gone."""
    trials = []
    for number, values in enumerate(config.draw()):
        run = Run.open(config.run.storage_path, f"{this.name}/trial-{number:03d}", {"tune": this.name} | values)
        if this.mlflow_run_id is None and run.mlflow_run_id is not None:
            found = address(this.filesystem, this.folder)
            raise OutputError(f"{found} has trials, and no {RECORD} that says what of; restore it, or choose a new run.name")
        trials.append(Trial.open(number, values, config.with_values(values), run))
    return trials


def record_trials(trials: Sequence[Trial], registry: Registry, parent: str) -> None:
    """Makes every trial's MLflow run before any of them starts, so that the search needs no MLflow later on."""
    for trial in trials:
        if trial.run.mlflow_run_id is None:
            record_start(trial.config, trial.run, registry, trial.table, job="trial", parent=parent)
            registry.show_status(str(trial.run.mlflow_run_id), "SCHEDULED")


def at_once(config: SearchConfig, workers: Workers, num_waiting: int) -> int:
    """Returns how many of the waiting trials run at a time: what is asked, or what the cluster has workers for beside a CPU for reading.

    Raises ServiceError where the cluster cannot have what is asked.
    """
    asked = config.tune.max_concurrent_trials
    if asked is not None:
        claim_workers(replace(config.cluster, num_workers=min(asked, num_waiting) * workers.num_workers))
        return min(asked, num_waiting)
    nodes = Nodes.look()
    most_workers = min(nodes.room(workers.per_worker), int((nodes.room({"CPU": 1.0}) - 1) / workers.per_worker["CPU"]))
    return max(1, min(most_workers // workers.num_workers, num_waiting))


class Watch(tune.Callback):
    """Writes down what trials tell Ray Tune, in their logs and in their runs' folders.

    stopping: whether the search ends before its time, so that a trial which ends now has not been stopped by ASHA.
    """

    def __init__(self, trials: Sequence[Trial], registry: Registry) -> None:
        self.trials, self.registry = trials, registry
        self.running: dict[int, tuple[ExitStack, MetricsLog, list[float]]] = {}
        self.stopping = False

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune keeps a pickle of its settings, from which nothing is read

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        if self.stopping:
            return
        mine, stack = self.trials[trial.config["number"]], ExitStack()
        self.running[mine.number] = stack, stack.enter_context(metrics_log(mine.run, self.registry)), []
        self.registry.show_status(str(mine.run.mlflow_run_id), "RUNNING")
        logger.info("%s: %s", mine.run.name, ", ".join(f"{key} {value}" for key, value in mine.values.items()))

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any) -> None:
        mine = self.trials[trial.config["number"]]
        if mine.number not in self.running:
            return
        _, log, elbos = self.running[mine.number]
        for entry in result.get("finished") or ([result["entry"]] if "entry" in result else []):
            if entry["epoch"] == len(elbos):
                elbos.append(measured(entry))
            if log.append("epoch", int(entry["epoch"]), epoch_metrics(entry)):
                epochs = mine.config.training.num_epochs
                logger.info("%s: epoch %d/%d  ELBO %.3f nats per row", mine.run.name, entry["epoch"] + 1, epochs, measured(entry))

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        mine, last = self.trials[trial.config["number"]], trial.last_result or {}
        if mine.number not in self.running:  # it waited, or started while the search was being stopped
            return
        _, _, elbos = self.running[mine.number]
        outcome: Outcome = "finished" if "finished" in last else "failed" if "failed" in last else "stopped"
        if not self.stopping or outcome != "stopped":
            mine.end(outcome, elbos, last.get("failed"))
            logger.info("%s %s after %d epochs%s", mine.run.name, outcome, len(elbos), f": {last['failed']}" if outcome == "failed" else "")
        self.close(mine, mine.outcome or "stopped")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Notes what is not the trial's own fault: the search ends with it, and the trial has not."""
        self.stopping = True
        self.close(self.trials[trial.config["number"]], "failed")

    def close(self, trial: Trial, outcome: Outcome) -> None:
        if trial.number in self.running:
            stack, log, _ = self.running[trial.number]
            log.close(TRIAL_CLOSE_S)
            stack.close()
            self.registry.show_status(str(trial.run.mlflow_run_id), STATUS[outcome])
            del self.running[trial.number]


def search(config: SearchConfig, this: Run, trials: Sequence[Trial], workers: Workers, held: Checkpoints, registry: Registry) -> None:
    """Runs every trial that has not ended, going on from its last checkpoint.

    Raises what train.py would for what is no trial's own fault, and KeyboardInterrupt once the trials have saved where they stood.
    """
    waiting = [trial.number for trial in trials if trial.outcome is None]
    if not waiting:
        return
    num_at_once = at_once(config, workers, len(waiting))
    logger.info("%s: %d trials, %d of them ended, %d at a time", this.name, len(trials), len(trials) - len(waiting), num_at_once)
    environment = {name: value for name, value in os.environ.items() if name.startswith(("RAY_TRAIN_", "TORCH_"))}
    mailbox = Mailbox.remote()  # type: ignore[attr-defined]
    told = Told([sharing(trial, num_at_once) for trial in trials], workers, held, mailbox, environment)
    watch = Watch(trials, registry)
    os.environ |= {"TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1", "RAY_AIR_NEW_OUTPUT": "0"}  # the log is ours; with verbose=0, Tune's is none
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    tuner = tune.Tuner(
        # CPUs are for the workers and for reading; Tune does not take a trial that asks for nothing.
        tune.with_resources(tune.with_parameters(TrialActor, told=told), {"memory": 1}),
        param_space={"number": tune.grid_search(waiting)},
        tune_config=tune.TuneConfig(scheduler=halving(config.tune, trials), max_concurrent_trials=num_at_once, reuse_actors=True),
        # Checkpoints and what came of the trials are ours, so nothing that Tune keeps of an earlier start is read.
        run_config=tune.RunConfig(
            name=f"attempt-{held.attempt:06d}",
            storage_path=f"{this.folder}/ray",
            storage_filesystem=this.filesystem,
            failure_config=tune.FailureConfig(fail_fast=True),
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            callbacks=[watch],
            verbose=0,
        ),
    )
    run_tuner(tuner, watch, told)


def sharing(trial: Trial, num_at_once: int) -> Trial:
    """Returns the trial with its part of the memory, which trials that run at a time share."""
    num_bytes = memory_of_worker(trial.config) // (1 if trial.config.run.shard_memory_bytes else num_at_once)
    return replace(trial, config=replace(trial.config, run=replace(trial.config.run, shard_memory_bytes=num_bytes)))


def halving(config: TuneConfig, trials: Sequence[Trial]) -> ASHAScheduler:
    """Returns ASHA, which has heard of the trials that ended."""
    num_epochs = max(trial.config.training.num_epochs for trial in trials)
    scheduler = ASHAScheduler(
        time_attr=EPOCH,
        metric=ELBO,
        mode="max",
        max_t=max(num_epochs, config.grace_epochs),
        grace_period=config.grace_epochs,
        reduction_factor=config.reduction_factor,
    )
    for trial in trials:
        if trial.elbos:
            past = SimpleNamespace(trial_id=trial.run.name)
            scheduler.on_trial_add(None, past)
            for epoch, elbo in enumerate(trial.elbos, start=1):
                scheduler.on_trial_result(None, past, {EPOCH: epoch, ELBO: elbo})
    return scheduler


def run_tuner(tuner: tune.Tuner, watch: Watch, told: Told) -> None:
    """Waits for the search, in a thread of its own: on the main thread Ray Tune takes Ctrl-C for itself. Raises as search does."""
    outcome: Future[Any] = Future()

    def fit_all() -> None:
        try:
            outcome.set_result(tuner.fit())
        except BaseException as error:  # raised again where the result is asked for
            outcome.set_exception(error)

    threading.Thread(target=fit_all, daemon=True).start()
    try:
        while not outcome.done():
            wait([outcome], timeout=0.5)
    except KeyboardInterrupt:
        logger.info("stopping: the trials save where they stand")
        watch.stopping = True
        ray.get(told.mailbox.stop.remote())
        deadline, asked = time.monotonic() + STOP_S, set(watch.running)
        while asked & set(watch.running) and not outcome.done() and time.monotonic() < deadline:
            time.sleep(0.1)
        raise
    for error in outcome.result().errors:
        raise getattr(error, "cause", None) or error  # as the trial raised it; as Ray wraps it, its message is a traceback
