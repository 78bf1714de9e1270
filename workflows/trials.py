"""One trial of a search: a run of its own, trained by train.py's function in an actor of Ray Tune, and how it ended."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import ray
from pyarrow import fs
from ray import tune
from ray.actor import ActorHandle

from workflows.checkpoint import Checkpoints, progress_of, read
from workflows.cluster import Workers
from workflows.config import TrainConfig
from workflows.errors import ComputationError
from workflows.mailbox import Message
from workflows.runs import Run
from workflows.training import Prepared, fit

# How a trial ended, and what MLflow calls it. ASHA stopped it; or its training failed, which is the trial's fault and not the search's.
Outcome = Literal["finished", "stopped", "failed"]
RECORD = "trial.json"
STATUS: dict[Outcome, str] = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}
# What Ray Tune compares, and over what: the ELBO of a bound that is no number loses against any other.
EPOCH, ELBO, NO_ELBO = "epoch", "elbo", -1e300


@dataclass
class Trial:
    """A trial: its number, its values of what is searched, the configuration that these make, its run.

    outcome: how it ended, None where it has not; elbos: the ELBO after each of its epochs by then.
    """

    number: int
    values: dict[str, Any]
    config: TrainConfig
    run: Run
    outcome: Outcome | None = None
    elbos: list[float] = field(default_factory=list)
    error: str | None = None

    @staticmethod
    def open(number: int, values: dict[str, Any], config: TrainConfig, run: Run) -> Trial:
        """Returns the trial, new or as its run's folder has it."""
        path = f"{run.folder}/{RECORD}"
        ended = run.filesystem.get_file_info(path).type == fs.FileType.File
        return Trial(number, values, config, run, **(json.loads(read(run.filesystem, path)) if ended else {}))

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
    elbo = entry.get("validation/elbo_nats_per_row", entry.get("train/elbo_nats_per_row", NO_ELBO))
    return elbo if math.isfinite(elbo) else NO_ELBO


@dataclass(frozen=True)
class Told:
    """What every trial's actor is told. held: the search's checkpoints; mailbox: says whether to stop."""

    trials: list[Trial]
    prepared: Prepared
    workers: Workers
    held: Checkpoints
    mailbox: ActorHandle


def run_trial(parameters: dict[str, int], told: Told) -> None:
    """Trains one trial from where it stands, and tells Ray Tune every epoch, those of earlier starts too.

    Its last epoch is told when its checkpoint is finished, so that nothing stops it before.
    """
    trial = told.trials[parameters["number"]]
    checkpoints = trial.checkpoints(told.held)
    num_told, stopping = 0, False

    def is_stopping() -> bool:
        return bool(ray.get(told.mailbox.push.remote(trial.number, num_told, []))[0])

    def tell(entry: dict[str, float], **more: Any) -> None:
        nonlocal num_told
        if entry["epoch"] >= num_told:
            num_told = int(entry["epoch"]) + 1
            tune.report({EPOCH: num_told, ELBO: measured(entry), "entry": entry, **more})

    def hear(message: Message) -> None:
        nonlocal stopping
        if stopping:  # the workers say their last
            return
        if is_stopping():
            stopping = True
            raise KeyboardInterrupt
        if message["kind"] == "epoch" and message["metrics"]["epoch"] + 1 < trial.config.training.epochs:
            tell(message["metrics"])

    if is_stopping():
        return
    files = checkpoints.newest()
    for entry in progress_of(files).history[: trial.config.training.epochs - 1] if files else []:
        tell(entry)
    try:
        if checkpoints.finished() is None:
            fit(trial.config, told.prepared, trial.run, checkpoints, told.workers, hear)
    except KeyboardInterrupt:  # the search stops: the workers have saved where they stood
        return
    except ComputationError as error:
        tune.report({EPOCH: num_told, ELBO: NO_ELBO, "failed": str(error)})
        return
    files = checkpoints.finished()
    if files is None:
        raise ComputationError(f"{trial.run.name} ended without a finished checkpoint")
    history = progress_of(files).history
    tune.report({EPOCH: len(history), ELBO: measured(history[-1]), "finished": history})
