"""Checkpoints: everything that the next step depends on, as folders without pickle that are complete or not there.

A checkpoint is RUN/checkpoints/STEP-ATTEMPT-EPOCH/ with weights, best weights, the optimiser's tensors, state.json and, written last,
manifest.json with the sha256 of each; a folder without it is none. The names' order is that of training, and no two saves share one: at an
epoch's last step EPOCH still goes on or has ended, and the last save of all is STEP-ATTEMPT-EPOCH-finished. Folders of earlier versions are
STEP-ATTEMPT.
"""

from __future__ import annotations

import hashlib
import json
import platform
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import Any

from pyarrow import fs
from safetensors.torch import load, save
from torch import Tensor

from data.stores import refuse_silence, replace, sync_folder
from vae.model import VAE, Bound
from workflows.errors import ComputationError, logger
from workflows.optimization import Optimizer, with_weights

WEIGHTS, BEST, OPTIMIZER, STATE, MANIFEST = (
    "weights.safetensors",
    "best.safetensors",
    "optimizer.safetensors",
    "state.json",
    "manifest.json",
)
# STEP-ATTEMPT-EPOCH; whatever else lies beside is not ours.
NAME = re.compile(r"\d{12}-\d{6}(-\d{6})?(-finished)?")
# What is summed over rows: their number, and the parts of vae.model.Bound.
NUM_SUMS = 1 + len(Bound._fields)


@dataclass
class Progress:
    """Where a run stands. epoch: the one that is going on; step: optimiser steps taken; position: number of the epoch's next step.

    sums: rows, and the sums of a bound over them, of the epoch so far; interval_sums: since the last line for a number
    of steps; unkept: what was said of steps and may be lost with the driver. history: one dict of metrics per finished epoch; elapsed_s:
    seconds of training, restarts included. prior: the arguments of vae.VAE that the trained model has another prior by.
    """

    epoch: int = 0
    step: int = 0
    position: int = 0
    sums: list[float] = field(default_factory=lambda: [0.0] * NUM_SUMS)
    interval_sums: list[float] = field(default_factory=lambda: [0.0] * NUM_SUMS)
    unkept: list[dict[str, Any]] = field(default_factory=list)
    elapsed_s: float = 0.0
    epoch_s: float = 0.0
    num_skipped_steps: int = 0
    best_epoch: int = -1
    best_step: int = -1
    best_elbo: float | None = None
    history: list[dict[str, float]] = field(default_factory=list)
    finished: bool = False
    scores: dict[str, dict[str, Any]] = field(default_factory=dict)
    prior: dict[str, Any] = field(default_factory=dict)


@dataclass
class TrainingState:
    """The model, its optimiser, the best weights so far, and the progress."""

    model: VAE
    optimizer: Optimizer
    best: dict[str, Tensor]
    progress: Progress

    def averaged(self) -> dict[str, Tensor]:
        """Returns the weights that are evaluated and registered: the average where there is one, else the model's."""
        return with_weights(self.model, self.optimizer.average or [p.detach() for p in self.model.parameters()])

    def keep_as_best(self) -> None:
        self.best = {name: tensor.clone() for name, tensor in self.averaged().items()}

    def files(self) -> dict[str, bytes]:
        """Returns the checkpoint's files. Raises ComputationError for weights that are not finite: those are never saved."""
        weights = {name: tensor.detach() for name, tensor in self.model.state_dict().items()}
        broken = [name for name, tensor in weights.items() if not tensor.isfinite().all()]
        if broken:
            raise ComputationError(
                f"step {self.progress.step}: weights are not finite ({broken[0]}); nothing was saved after the last checkpoint"
            )
        tensors = {WEIGHTS: weights, BEST: self.best, OPTIMIZER: self.optimizer.tensors()}
        files = {name: save({key: tensor.contiguous().cpu() for key, tensor in part.items()}) for name, part in tensors.items()}
        return files | {STATE: json.dumps(asdict(self.progress)).encode()}

    def load(self, files: dict[str, bytes]) -> None:
        """Takes over what a checkpoint's files hold. Raises ComputationError where it is of another model."""
        device = self.model.device
        refuse_other_model(self.model, load(files[WEIGHTS]))
        weights, best, optimizer = ({k: t.to(device) for k, t in load(files[name]).items()} for name in (WEIGHTS, BEST, OPTIMIZER))
        self.model.load_state_dict(weights)
        self.best = best
        self.optimizer.load(optimizer)
        self.progress = progress_of(files)


def refuse_other_model(model: VAE, weights: dict[str, Tensor]) -> None:
    """Raises ComputationError where weights are not a model's, as where a later version of the code makes another one of the same table."""
    saved, own = ({name: list(tensor.shape) for name, tensor in tensors.items()} for tensors in (weights, model.state_dict()))
    differing = [name for name in sorted(saved.keys() | own.keys()) if saved.get(name) != own.get(name)]
    if differing:
        name = differing[0]
        raise ComputationError(
            f"the run's checkpoint is of another model than this version of the code makes of the table ({len(differing)} of its tensors, "
            f"first {name}: {saved.get(name, 'none')} there, {own.get(name, 'none')} here); end the run with the version that began it "
            "(git_sha of its MLflow run), or choose a new run.name"
        )


def progress_of(files: dict[str, bytes]) -> Progress:
    """Returns the progress that a checkpoint's files hold."""
    return Progress(**json.loads(files[STATE]))


@dataclass(frozen=True)
class Checkpoints:
    """A run's checkpoints in its storage. Travels to the workers.

    attempt: the number of this start of the run. current: whether no later start has taken the run over; asked before anything is
    published or removed, since the workers of a driver that was killed go on for seconds.
    """

    filesystem: fs.FileSystem
    path: str
    attempt: int
    current: Callable[[], bool]

    def save(self, files: dict[str, bytes], progress: Progress) -> None:
        """Writes a checkpoint, its manifest last, and removes all but this one, the one before it and that of the best epoch."""
        folder = f"{self.path}/{progress.step:012d}-{self.attempt:06d}-{progress.epoch:06d}"
        if progress.finished:
            folder += "-finished"
        hashes = {}
        self.filesystem.create_dir(folder, recursive=True)
        sync_folder(self.filesystem, self.path)
        for name, content in files.items():
            replace(self.filesystem, f"{folder}/{name}", content)
            hashes[name] = hashlib.sha256(content).hexdigest()
        if not self.current():
            raise ComputationError("another start of this run took over; this one saves nothing more")
        manifest = {
            "step": progress.step,
            "epoch": progress.epoch,
            "attempt": self.attempt,
            "best_step": progress.best_step,
            "sha256": hashes,
        }
        replace(self.filesystem, f"{folder}/{MANIFEST}", json.dumps(manifest).encode())
        self._remove_others(folder, progress.best_step)

    def _remove_others(self, written: str, best_step: int) -> None:
        """Removes older checkpoints but one and the best, and those ahead, which were damaged where training goes on before them.

        What a later start writes stays.
        """
        folders = self.folders()
        complete = [folder for folder in folders if folder <= written and self._exists(f"{folder}/{MANIFEST}")]
        before = (folder for folder in reversed(complete) if folder != written and self._is_reserve(folder))
        best = [folder for folder in complete if step_of(folder) == best_step]
        kept = {written, *islice(before, 1), *best[-1:]}
        for folder in folders:
            if folder not in kept and attempt_of(folder) <= self.attempt:
                self.filesystem.delete_dir(folder)

    def _is_reserve(self, folder: str) -> bool:
        """Whether training can go on from a checkpoint. Those of this start were not read since; of an earlier one some may be damaged."""
        return attempt_of(folder) == self.attempt or self._read(folder)[1] is None

    def finished(self) -> dict[str, bytes] | None:
        """Returns the files of the run's last checkpoint where its training is finished, else None."""
        files = self.newest()
        return files if files is not None and progress_of(files).finished else None

    def newest(self) -> dict[str, bytes] | None:
        """Returns the files of the newest checkpoint that is whole, None where the run has none yet.

        A damaged one is skipped, saying so. Raises ComputationError where there are checkpoints and every one is damaged, and on a node
        that joined later and does not have the run's folder: there nothing must start over.
        """
        folder = self.path.rpartition("/")[0]
        if isinstance(self.filesystem, fs.LocalFileSystem) and self.filesystem.get_file_info(folder).type != fs.FileType.Directory:
            raise ComputationError(
                f"{folder} is not there on {platform.node()}: checkpoints need a folder that every node mounts; mount it there or take the "
                "node away, and start the run again: it goes on from its last checkpoint"
            )
        damaged = []
        for folder in reversed(self.folders()):
            if not self._exists(f"{folder}/{MANIFEST}"):
                continue  # its writer was stopped
            files, fault = self._read(folder)
            if fault is None:
                return files
            logger.warning("checkpoint %s is damaged (%s); going back to the one before", folder, fault)
            damaged.append(folder)
        if damaged:
            raise ComputationError(f"every checkpoint of the run is damaged: {', '.join(damaged)}; restore one, or choose a new run.name")
        return None

    def _read(self, folder: str) -> tuple[dict[str, bytes], str | None]:
        files: dict[str, bytes] = {}
        try:
            hashes = json.loads(read(self.filesystem, f"{folder}/{MANIFEST}"))["sha256"]
            for name, expected in hashes.items():
                files[name] = read(self.filesystem, f"{folder}/{name}")
                if hashlib.sha256(files[name]).hexdigest() != expected:
                    return files, f"{name} is not what was written"
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:  # the last two of JSON of another shape
            refuse_silence(error)
            return files, str(error)
        return files, None

    def folders(self) -> list[str]:
        """Returns the checkpoints' folders by step and attempt, complete or not."""
        selector = fs.FileSelector(self.path, allow_not_found=True, recursive=True)
        found = self.filesystem.get_file_info(selector)
        # Of a store's folders only the files that are in them are sure to be listed.
        listed = {info.path if info.type == fs.FileType.Directory else info.path.rpartition("/")[0] for info in found}
        return sorted(folder for folder in listed if NAME.fullmatch(folder.rpartition("/")[2]))

    def _exists(self, path: str) -> bool:
        return bool(self.filesystem.get_file_info(path).type == fs.FileType.File)


def step_of(folder: str) -> int:
    return int(folder.rsplit("/", 1)[-1].split("-")[0])


def attempt_of(folder: str) -> int:
    return int(folder.rsplit("/", 1)[-1].split("-")[1])


def read(filesystem: fs.FileSystem, path: str) -> bytes:
    with filesystem.open_input_file(path) as stream:
        return bytes(stream.read())
