"""What every likelihood p(x|z) of a field is: a module that turns decoder outputs into a distribution over the field's cells.

Shapes: S samples (optional leading dimension), B rows, D cells of the field.
Every log-probability is in nats, normalised, per cell. Missing cells hold arbitrary values and are masked by the caller.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from vae.host import may_look_at
from vae.input_layer import OneHot

# Standardised cells have unit variance: a noise of e^-7 of that is 0.1 %, beyond which a density only chases rounding.
MIN_LOG_SCALE, MAX_LOG_SCALE = -7.0, 4.0


def without_missing(values: Tensor, valid: Tensor) -> Tensor:
    """Returns values [B, n] with 0 where valid [B, n] or [B, 1] is false: the values themselves where whole rows are seen to be there."""
    if valid.shape[1] == 1 and may_look_at(valid) and bool(valid.all()):
        return values
    return torch.where(valid, values, torch.zeros((), dtype=values.dtype, device=values.device))


class CellDistribution(ABC):
    """A distribution over the cells of one field."""

    @abstractmethod
    def log_prob(self, values: Tensor) -> Tensor:
        """Returns log p of the stored values [B, D] in nats, [B, D] or [S, B, D]."""

    def observed_log_prob(self, values: Tensor, valid: Tensor) -> Tensor:
        """Returns the same of the observed cells, 0 of the others; valid is [B, D] or [B, 1]."""
        return torch.where(valid, self.log_prob(values), 0.0)

    def sum_log_prob(self, values: Tensor, valid: Tensor) -> Tensor:
        """Returns the sum of log p over a row's observed cells, [B] or [S, B]; valid is [B, D] or [B, 1]."""
        return self.observed_log_prob(values, valid).sum(-1)

    @property
    @abstractmethod
    def mean(self) -> Tensor:
        """The expected value (for categories: the probabilities' mode), in the field's stored units."""

    @abstractmethod
    def sample(self, generator: torch.Generator) -> Tensor:
        """Returns one draw of every cell, in the field's storage."""

    def given(self, values: Tensor, valid: Tensor) -> CellDistribution:
        """Returns the distribution of missing cells given those that are there, values [B, D] where valid: this one unless they depend."""
        return self


class Likelihood(nn.Module, ABC):
    """What the model asks of a field's likelihood: its sizes, its encoder features and a distribution."""

    size: int  # cells
    num_features: int  # encoder inputs
    num_outputs: int  # decoder outputs

    def features(self, values: Tensor) -> Tensor:
        """Returns encoder features [B, num_features] of stored values [B, D] without missing cells."""
        return values

    def observed_features(self, values: Tensor, valid: Tensor) -> Tensor:
        """Returns the same of stored values [B, D] that hold anything where a cell is missing: 0 there; valid is [B, D] or [B, 1]."""
        return without_missing(self.features(values), valid)

    def feature_parts(self, values: Tensor, valid: Tensor) -> list[Tensor | OneHot]:
        """Returns the same features in parts, some of which may be one-hot."""
        return [self.observed_features(values, valid)]

    def cell_of_feature(self) -> Tensor:
        """Returns the cell that each feature comes from, [num_features]."""
        return torch.arange(self.size)

    @abstractmethod
    def forward(self, outputs: Tensor) -> CellDistribution:
        """Returns the distribution that decoder outputs [.., B, num_outputs] name."""


def uniform_like(parameter: Tensor, generator: torch.Generator) -> Tensor:
    """Returns uniform numbers of [0, 1) in a parameter's shape, dtype and place, drawn on the generator's device."""
    return torch.rand(parameter.shape, generator=generator, device=generator.device, dtype=parameter.dtype).to(parameter.device)
