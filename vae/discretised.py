"""Likelihoods of integers under a Gaussian: each has the mass of its interval on a grid. Shapes: S samples, B rows, D cells."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vae.cells import MAX_LOG_SCALE, MIN_LOG_SCALE, CellDistribution, Likelihood
from vae.continuous import gaussian_sample
from vae.grids import Grid, LinearGrid, WarpedGrid
from vae.normal_mass import log_normal_mass, sum_log_mass


class GaussianMassCells(CellDistribution):
    """The mass that a Gaussian has in the interval of each cell's value."""

    def __init__(self, location: Tensor, log_scale: Tensor, grid: Grid) -> None:
        self.location, self.log_scale, self.grid = location, log_scale, grid

    def log_prob(self, values: Tensor) -> Tensor:
        return log_normal_mass(*self.grid.interval(values).standardised(self.location, self.log_scale))

    def sum_log_prob(self, values: Tensor, valid: Tensor) -> Tensor:
        return sum_log_mass(self.location, self.log_scale, self.grid.interval(values), valid)

    @property
    def mean(self) -> Tensor:
        """The expected value of the Gaussian in stored units: after a warp, the median in data units."""
        return self.grid.to_storage(self.location)

    def sample(self, generator: torch.Generator) -> Tensor:
        """Returns stored numbers; where these lie between those of integers, each rounds (in data units) to k with probability P(k)."""
        return self.grid.to_storage(gaussian_sample(self.location, self.log_scale, generator))


class DiscretisedGaussian(Likelihood):
    """Integers under a Gaussian, on a LinearGrid: [value - half_width, value + half_width]; at the ends of the range, the whole tail."""

    def __init__(
        self,
        size: int,
        half_width: Sequence[float],
        lower: Sequence[float],
        upper: Sequence[float],
        center: float = 0.0,
        scale: float = 1.0,
        storage: str = "float32",
    ) -> None:
        super().__init__()
        self.size = self.num_features = self.num_outputs = size
        self.grid = LinearGrid(size, half_width, lower, upper, center, scale, storage)
        self.log_scale = nn.Parameter(torch.zeros(size))

    def features(self, values: Tensor) -> Tensor:
        return self.grid.features(values)

    def forward(self, outputs: Tensor) -> GaussianMassCells:
        return GaussianMassCells(outputs, self.log_scale.clamp(MIN_LOG_SCALE, MAX_LOG_SCALE), self.grid)


class WarpedDiscretisedGaussian(Likelihood):
    """Heavy-tailed integers under a Gaussian, on a WarpedGrid: [T(k - 1/2), T(k + 1/2)]; at the ends, the whole tail."""

    def __init__(
        self,
        size: int,
        width: Sequence[float],
        mean: Sequence[float],
        scale: Sequence[float],
        lower: Sequence[float],
        upper: Sequence[float],
    ) -> None:
        super().__init__()
        self.size = self.num_features = self.num_outputs = size
        self.grid = WarpedGrid(size, width, mean, scale, lower, upper)
        self.log_scale = nn.Parameter(torch.zeros(size))

    def forward(self, outputs: Tensor) -> GaussianMassCells:
        return GaussianMassCells(outputs, self.log_scale.clamp(MIN_LOG_SCALE, MAX_LOG_SCALE), self.grid)
