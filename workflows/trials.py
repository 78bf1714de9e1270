"""One trial of a search: a run of its own, trained by train.py's function in an actor of Ray Tune, and how it ended."""

from __future__ import annotations

import json
import math
import os
import threading
from dataclasses import dataclass, field, replace
from queue import Queue
from typing import Any, Literal

import ray
from pyarrow import fs
from ray import tune
from ray.actor import ActorHandle

from data.split import TRAIN
from data.stores import address
from workflows.architecture import architecture
from workflows.checkpoint import Checkpoints, progress_of, read
from workflows.cluster import Workers
from workflows.config import TrainConfig
from workflows.errors import ComputationError, logger
from workflows.mailbox import Message
from workflows.runs import Run, object_of
from workflows.scoring import score_of
from workflows.training import Prepared, fit, for_table

# How a trial ended, and what MLflow calls it. ASHA stopped it; or its training failed, which is the trial's fault and not the search's.
Outcome = Literal["finished", "stopped", "failed"]
RECORD = "trial.json"
STATUS: dict[Outcome, str] = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}
# What Ray Tune compares, and over what: the ELBO of a bound that is no number loses against any other.
EPOCH, ELBO, NO_ELBO = "epoch", "elbo", -1e300


@dataclass
class Trial:
    """A trial: its number, its values of what is searched, the configuration that these make, its run.

    outcome: how it ended, None where it has not; elbos: the ELBO after each of its epochs by then; prepared: the table as its likelihoods
    have it, once that is known.
    """

    number: int
    values: dict[str, Any]
    config: TrainConfig
    run: Run
    outcome: Outcome | None = None
    elbos: list[float] = field(default_factory=list)
    error: str | None = None
    prepared: Prepared | None = None

    @staticmethod
    def open(number: int, values: dict[str, Any], config: TrainConfig, run: Run) -> Trial:
        """Returns the trial, new or as its run's folder has it; damaged, it has not ended, and goes on from its checkpoints."""
        path, ended = f"{run.folder}/{RECORD}", None
        if run.filesystem.get_file_info(path).type == fs.FileType.File:
            found = object_of(read(run.filesystem, path)) or {}
            ended = found if found.keys() == {"outcome", "elbos", "error"} else None
            if ended is None:
                logger.warning("%s is damaged: %s goes on from its checkpoints", address(run.filesystem, path), run.name)
        return Trial(number, values, config, run, **(ended or {}))

    def take(self, prepared: Prepared) -> None:
        """Takes what the table is. Raises ConfigError for a model that it has no columns for, before any trial has begun."""
        self.prepared, self.config = prepared, for_table(self.config, prepared)
        architecture(prepared.encoding, self.config.model, prepared.num_rows[TRAIN])

    @property
    def table(self) -> Prepared:
        """The table, which take has made ready."""
        assert self.prepared is not None
        return self.prepared

    @property
    def score(self) -> float:
        """The best ELBO of an epoch, by which trials are compared; without validation rows the last one's."""
        elbos = self.elbos if self.config.data.validation_path or self.config.data.validation_fraction else self.elbos[-1:]
        return max(elbos, default=NO_ELBO)

    def checkpoints(self, held: Checkpoints) -> Checkpoints:
        """Returns the trial's checkpoints, which belong to whoever holds the search."""
        return replace(held, path=f"{self.run.folder}/checkpoints")

    def end(self, outcome: Outcome, elbos: list[float], error: str | None = None) -> None:
        """Writes down how it ended."""
        self.outcome, self.elbos, self.error = outcome, elbos, error
        self.run.write(RECORD, json.dumps({"outcome": outcome, "elbos": elbos, "error": error}).encode())


def measured(entry: dict[str, float]) -> float:
    """Returns the ELBO of an epoch's metrics that trials are compared by: over the validation rows, where there are some."""
    found = [score for side in ("validation", "train") if (score := score_of(entry, side)) is not None]
    return found[0] if found and math.isfinite(found[0]) else NO_ELBO


@dataclass(frozen=True)
class Told:
    """What every trial's actor is told. held: the search's checkpoints; mailbox: says whether the search stops.

    environment: what the driver set for Ray Train, which the actor starts in its place.
    """

    trials: list[Trial]
    workers: Workers
    held: Checkpoints
    mailbox: ActorHandle
    environment: dict[str, str]


class TrialActor(tune.Trainable):
    """Trains a trial from where it stands, in a thread, and tells Ray Tune every epoch, those of earlier starts too.

    The last epoch is told when its checkpoint is finished, so that nothing stops the trial before. However it ends, its workers have
    ended first.
    """

    def setup(self, config: dict[str, Any], told: Told) -> None:
        os.environ.update(told.environment)
        self.told = told
        self.start(config)

    def start(self, config: dict[str, Any]) -> None:
        self.trial, self.num_told, self.stopping, self.interrupted = self.told.trials[config["number"]], 0, False, False
        self.results: Queue[dict[str, Any] | BaseException] = Queue()
        self.thread = threading.Thread(target=self.train_to_the_end, daemon=True)
        self.thread.start()

    def step(self) -> dict[str, Any]:
        result = self.results.get()
        if isinstance(result, BaseException):
            raise result
        return result

    def cleanup(self) -> None:
        self.stopping = True
        self.thread.join()

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Takes the next trial, so that not every one waits for a process of its own."""
        self.cleanup()
        self.start(new_config)
        return True

    def train_to_the_end(self) -> None:
        try:
            self.results.put({EPOCH: self.num_told, ELBO: NO_ELBO, "done": True} | self.train_trial())
        except BaseException as error:  # raised again where Tune asks for the next epoch
            self.results.put(error)

    def train_trial(self) -> dict[str, Any]:
        """Returns what the trial says last."""
        trial, told = self.trial, self.told
        checkpoints = trial.checkpoints(told.held)
        files = checkpoints.newest()
        for entry in progress_of(files).history if files else []:
            self.tell(entry)
        try:
            self.refuse_to_go_on_where_stopping()
            if checkpoints.finished() is None:
                fit(trial.config, trial.table, trial.run, checkpoints, told.workers, self.hear)
        except KeyboardInterrupt:  # the workers have saved where they stood
            return {}
        except ComputationError as error:
            return {EPOCH: self.num_told, "failed": str(error)}
        files = checkpoints.finished()
        if files is None:
            raise ComputationError(f"{trial.run.name} ended without a finished checkpoint")
        history = progress_of(files).history
        return {EPOCH: len(history), ELBO: measured(history[-1]), "finished": history}

    def hear(self, message: Message) -> None:
        if self.interrupted:  # the workers say their last
            return
        self.refuse_to_go_on_where_stopping()
        if message["kind"] == "epoch":
            self.tell(message["metrics"])

    def refuse_to_go_on_where_stopping(self) -> None:
        """Raises KeyboardInterrupt, once, where Tune stops the trial or the driver the search."""
        stop, _ = ray.get(self.told.mailbox.push.remote(self.trial.number, self.num_told, []))
        if stop or self.stopping:
            self.interrupted = True
            raise KeyboardInterrupt

    def tell(self, entry: dict[str, float]) -> None:
        if self.num_told <= entry["epoch"] < self.trial.config.training.num_epochs - 1:
            self.num_told = int(entry["epoch"]) + 1
            self.results.put({EPOCH: self.num_told, ELBO: measured(entry), "entry": entry})
