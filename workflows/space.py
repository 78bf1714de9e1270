"""What a search tries: train.py's options, where a list may stand in place of a value, and the trials that are drawn from them."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping
from dataclasses import MISSING, Field, asdict, dataclass, field, fields, make_dataclass
from types import GenericAlias
from typing import Any, get_args, get_origin, get_type_hints

import numpy as np

from workflows.checks import ConfigError, require
from workflows.config import ClusterConfig, DataConfig, RegistryConfig, RunConfig, TrainConfig
from workflows.model_config import ModelConfig, ObjectiveConfig, TrainingConfig

SECTIONS: dict[str, type] = {"model": ModelConfig, "objective": ObjectiveConfig, "training": TrainingConfig}
# What is searched where nothing is asked to be, as far as it has its default.
DEFAULT_SPACE: dict[str, list[Any]] = {
    "training.learning_rate": [1e-4, 1e-2],
    "model.latent_dim": [8, 16, 32],
    "model.hidden_dims": [[128], [256, 256], [512, 512]],
}


def widened(subclass: type) -> type:
    """Returns a section's class with every option also as a list, under the section's own name, where --help finds its descriptions."""
    (section,) = subclass.__bases__
    hints = get_type_hints(section)
    options = [(f.name, hints[f.name] | GenericAlias(list, (hints[f.name],)), copied(f)) for f in fields(section)]
    wide = make_dataclass(section.__name__, options, frozen=True)
    wide.__doc__, wide.__module__, wide.__qualname__ = section.__doc__, section.__module__, section.__qualname__
    return wide


def copied(option: Field[Any]) -> Any:
    return field(default=option.default) if option.default_factory is MISSING else field(default_factory=option.default_factory)


@widened
class WideModel(ModelConfig): ...


@widened
class WideObjective(ObjectiveConfig): ...


@widened
class WideTraining(TrainingConfig): ...


@dataclass(frozen=True)
class Axis:
    """One option that is searched: a range between two ends, or a list of choices."""

    key: str
    given: list[Any]

    @property
    def is_range(self) -> bool:
        return len(self.given) == 2 and all(map(is_number, self.given)) and self.given[0] < self.given[1]

    @property
    def is_whole(self) -> bool:
        section, option = self.key.split(".")
        kind = get_type_hints(SECTIONS[section])[option]
        return float not in (kind, *get_args(kind))

    @property
    def size(self) -> float:
        """How many values can be drawn."""
        if not self.is_range:
            return len(self.given)
        return self.given[1] - self.given[0] + 1 if self.is_whole else math.inf

    def values(self) -> list[Any]:
        """Returns every value that can be drawn, of an axis of finite size."""
        return list(range(self.given[0], self.given[1] + 1)) if self.is_range else self.given

    def draw(self, generator: np.random.Generator) -> Any:
        """Returns a choice, or a number of the range: log-uniform where both ends are above 0, else uniform; integers are rounded."""
        if not self.is_range:
            return self.given[int(generator.integers(len(self.given)))]
        low, high = self.given
        value = math.exp(generator.uniform(math.log(low), math.log(high))) if low > 0 else generator.uniform(low, high)
        value = min(max(value, low), high)
        return round(value) if self.is_whole else float(value)


def is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


@dataclass(frozen=True)
class TuneConfig:
    """The search."""

    num_trials: int = 16
    """Trials; of a space with fewer points every point is tried once."""
    max_concurrent_trials: int | None = None
    """Trials at once; default: as many as the cluster has CPUs and GPUs for, less one CPU for reading."""
    grace_epochs: int = 5
    """Epochs that every trial may take before it can be stopped."""
    reduction_factor: int = 3
    """After grace_epochs epochs, and each time that many times as many, one trial in so many goes on (ASHA)."""
    seed: int = 0
    """Decides which trials are drawn."""

    def check(self) -> None:
        for name in ("num_trials", "grace_epochs"):
            require(getattr(self, name) >= 1, f"tune.{name}", getattr(self, name), "at least 1")
        at_once = self.max_concurrent_trials
        require(at_once is None or at_once >= 1, "tune.max_concurrent_trials", at_once, "at least 1")
        require(self.reduction_factor >= 2, "tune.reduction_factor", self.reduction_factor, "at least 2")
        require(self.seed >= 0, "tune.seed", self.seed, "at least 0")


@dataclass(frozen=True)
class SearchConfig:
    """Search the options that train best on a Parquet table, and register the best trial's model.

    Every option of model, objective and training may be a list. Two numbers, the first below the second, are a range: drawn
    log-uniformly where both are above 0, else uniformly; integers are rounded. Any other list holds choices. hidden_dims is a list
    itself: a list of lists holds its choices. Without any such list, learning_rate, latent_dim and hidden_dims are searched, as far
    as they have their defaults.
    """

    data: DataConfig
    model: WideModel = field(default_factory=WideModel)
    objective: WideObjective = field(default_factory=WideObjective)
    training: WideTraining = field(default_factory=WideTraining)
    tune: TuneConfig = field(default_factory=TuneConfig)
    run: RunConfig = field(default_factory=RunConfig)
    registry: RegistryConfig = field(default_factory=RegistryConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)

    def check(self) -> None:
        """Raises ConfigError for what train.py refuses, of every end, choice and trial."""
        self.tune.check()
        axes = self.axes()
        require(bool(axes), "model, objective and training", "values only", "searched somewhere; give an option as a list")
        first = {axis.key: axis.given[0] for axis in axes}
        for axis in axes:
            for value in axis.given:
                try:
                    self.with_values(first | {axis.key: value}).check()
                except ConfigError as error:
                    raise ConfigError(f"{axis.key} is searched in {axis.given}: {error}") from error
        for values in self.draw():
            try:
                self.with_values(values).check()
            except ConfigError as error:
                raise ConfigError(f"the trial {values}: {error}") from error

    def axes(self) -> list[Axis]:
        """Returns what is searched. Raises ConfigError for a list that is neither a range nor different choices."""
        asked = [Axis(key, value) for key, value in self._options() if is_searched(key, value)]
        for axis in asked:
            different = len({json.dumps(value) for value in axis.given}) == len(axis.given) > 0
            finite = all(math.isfinite(value) for value in axis.given if is_number(value))
            require(different and finite, axis.key, axis.given, "a range [low, high], or a list of choices that differ, all of them finite")
        defaults = {f"{name}.{f.name}": getattr(section(), f.name) for name, section in SECTIONS.items() for f in fields(section)}
        unused = {"model.hidden_dims"} if self.model.network == "linear" else set()
        return asked or [
            Axis(key, DEFAULT_SPACE[key])
            for key, value in self._options()
            if key in DEFAULT_SPACE and key not in unused and value == defaults[key]
        ]

    def _options(self) -> list[tuple[str, Any]]:
        return [(f"{name}.{f.name}", getattr(getattr(self, name), f.name)) for name, section in SECTIONS.items() for f in fields(section)]

    def with_values(self, values: Mapping[str, Any]) -> TrainConfig:
        """Returns train.py's configuration with these values of what is searched."""
        options = dict(self._options()) | dict(values)
        model, objective, training = (
            section(**{f.name: options[f"{name}.{f.name}"] for f in fields(section)}) for name, section in SECTIONS.items()
        )
        return TrainConfig(self.data, model, objective, training, self.run, self.registry, self.cluster)

    def resolved(self) -> dict[str, Any]:
        """Returns every option as it is searched or set, by section."""
        sections = asdict(self)
        for axis in self.axes():
            section, option = axis.key.split(".")
            sections[section][option] = axis.given
        return sections

    def draw(self) -> list[dict[str, Any]]:
        """Returns the trials' values, all different: always the same ones for the same space, number and seed."""
        axes, number = self.axes(), self.tune.num_trials
        if math.prod(axis.size for axis in axes) <= number:
            points = itertools.product(*(axis.values() for axis in axes))
            return [dict(zip([axis.key for axis in axes], point, strict=True)) for point in points]
        found: dict[str, dict[str, Any]] = {}
        for draw in itertools.count():
            generator = np.random.default_rng([self.tune.seed, draw])
            values = {axis.key: axis.draw(generator) for axis in axes}
            found.setdefault(json.dumps(values), values)
            if len(found) == number:
                break
        return list(found.values())


def is_searched(key: str, value: Any) -> bool:
    """Whether an option's value is a list in its place: of an option that is a list itself, a list of lists."""
    section, option = key.split(".")
    if get_origin(get_type_hints(SECTIONS[section])[option]) is list:
        return bool(value) and all(isinstance(item, list) for item in value)
    return isinstance(value, list)
