"""Likelihoods of integers under a Gaussian: each has the mass of its interval on a grid. Shapes: S samples, B rows, D cells."""

from __future__ import annotations

from typing import Any

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


class GaussianMass(Likelihood):
    """Integers under a Gaussian: each has the mass of its interval. Arguments after `size` are the grid's."""

    grid: Grid
    make_grid: type[Grid]

    def __init__(self, size: int, *grid: Any, **more_of_grid: Any) -> None:
        super().__init__()
        self.size = self.num_features = self.num_outputs = size
        self.grid = self.make_grid(size, *grid, **more_of_grid)
        self.log_scale = nn.Parameter(torch.zeros(size))

    def features(self, values: Tensor) -> Tensor:
        return self.grid.features(values)

    def forward(self, outputs: Tensor) -> GaussianMassCells:
        return GaussianMassCells(outputs, self.log_scale.clamp(MIN_LOG_SCALE, MAX_LOG_SCALE), self.grid)


class DiscretisedGaussian(GaussianMass):
    """On a LinearGrid: [value - half_width, value + half_width]; at the ends of the range, the whole tail."""

    grid: LinearGrid
    make_grid = LinearGrid


class WarpedDiscretisedGaussian(GaussianMass):
    """Heavy-tailed integers, on a WarpedGrid: [T(k - 1/2), T(k + 1/2)]; at the ends, the whole tail."""

    grid: WarpedGrid
    make_grid = WarpedGrid
