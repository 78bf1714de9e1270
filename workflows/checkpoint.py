"""What the next epoch depends on, as a folder without pickle: weights, best weights, optimiser, and a JSON state."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from vae.model import VAE

WEIGHTS, BEST, OPTIMIZER, STATE, BUNDLE = "weights.safetensors", "best.safetensors", "optimizer.safetensors", "state.json", "bundle"


@dataclass
class Progress:
    """Where a run stands. step: optimiser steps taken; history: one dict of metrics per finished epoch."""

    epoch: int = 0
    step: int = 0
    best_epoch: int = -1
    best_elbo: float | None = None
    history: list[dict[str, float]] = field(default_factory=list)
    finished: bool = False
    scores: dict[str, dict[str, Any]] = field(default_factory=dict)


@dataclass
class TrainingState:
    """The model, its optimiser, the best weights so far, and the progress."""

    model: VAE
    optimizer: torch.optim.Optimizer
    best: dict[str, Tensor]
    progress: Progress

    def keep_as_best(self) -> None:
        self.best = {name: tensor.detach().clone() for name, tensor in self.model.state_dict().items()}

    def save(self, folder: Path) -> None:
        save_file({name: tensor.contiguous() for name, tensor in self.model.state_dict().items()}, folder / WEIGHTS)
        save_file({name: tensor.contiguous() for name, tensor in self.best.items()}, folder / BEST)
        save_file(optimizer_tensors(self.optimizer), folder / OPTIMIZER)
        (folder / STATE).write_text(json.dumps(asdict(self.progress)))

    def load(self, folder: Path) -> None:
        device = str(self.model.device)
        self.model.load_state_dict(load_file(folder / WEIGHTS, device))
        self.best = load_file(folder / BEST, device)
        load_optimizer_tensors(self.optimizer, load_file(folder / OPTIMIZER, device))
        self.progress = Progress(**json.loads((folder / STATE).read_text()))


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Returns the optimiser's state as PARAMETER.NAME -> tensor."""
    state = optimizer.state_dict()["state"]
    return {f"{index}.{name}": tensor.contiguous() for index, values in state.items() for name, tensor in values.items()}


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def read_progress(folder: Path) -> Progress:
    """Returns the progress of a saved checkpoint without its tensors."""
    return Progress(**json.loads((folder / STATE).read_text()))
