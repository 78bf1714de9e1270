"""Likelihoods of standardised numbers, as densities: Gaussian and Student's t. Shapes: S samples, B rows, D cells."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from vae.cells import MAX_LOG_SCALE, MIN_LOG_SCALE, CellDistribution, Likelihood, uniform_like
from vae.gradients import of_first_order
from vae.normal_mass import LOG_SQRT_2PI, residual
from vae.precision import without_autocast

# Of df - 1. At its lower end the mean still exists in float32; at df = 1000 a t is a Gaussian.
MIN_LOG_EXCESS, START_LOG_EXCESS, MAX_LOG_EXCESS = -7.0, math.log(4.0), math.log(999.0)


def gaussian_sample(location: Tensor, log_scale: Tensor, generator: torch.Generator) -> Tensor:
    """Returns one draw of every cell; the noise is drawn on the generator's device."""
    noise = torch.randn(location.shape, generator=generator, device=generator.device, dtype=location.dtype).to(location.device)
    return noise.mul_(log_scale.exp()).add_(location)


class SumOfGaussians(torch.autograd.Function):
    """The sum of the observed cells' log N(value; location, exp(log_scale)^2), [B], with its gradient in few passes.

    location, values [B, D]; log_scale [D]; observed [B, D]: 1 where a cell is there, 0 elsewhere.
    """

    @staticmethod
    def forward(ctx: Any, location: Tensor, log_scale: Tensor, values: Tensor, observed: Tensor) -> Tensor:
        inverse = torch.exp(-log_scale)
        standardised = residual(values, location).mul_(inverse).mul_(observed)
        ctx.save_for_backward(standardised, inverse, observed)
        with without_autocast(observed):
            constants = observed @ (log_scale + LOG_SQRT_2PI)
        return standardised.square().sum(-1).mul_(-0.5).sub_(constants)

    @staticmethod
    @of_first_order
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
        standardised, inverse, observed = ctx.saved_tensors
        with without_autocast(observed):
            by_log_scale = gradient @ standardised.square().sub_(observed)
        return standardised.mul(inverse).mul_(gradient[:, None]), by_log_scale, None, None


class GaussianCells(CellDistribution):
    """N(location, scale^2) per cell."""

    def __init__(self, location: Tensor, log_scale: Tensor) -> None:
        self.location, self.log_scale = location, log_scale

    def log_prob(self, values: Tensor) -> Tensor:
        standardised = residual(values, self.location) * torch.exp(-self.log_scale)
        return -0.5 * standardised.square() - self.log_scale - LOG_SQRT_2PI

    def sum_log_prob(self, values: Tensor, valid: Tensor) -> Tensor:
        """The same in fewer passes over cells: the constants are summed by column, and one scale multiplies the sum of squares."""
        if self.log_scale.dim() > 1:
            return super().sum_log_prob(values, valid)
        observed = valid.to(self.location.dtype)
        if self.log_scale.shape == self.location.shape[1:] == valid.shape[1:]:
            total: Tensor = SumOfGaussians.apply(self.location, self.log_scale, values, observed)  # type: ignore[no-untyped-call]
            return total
        if len(self.log_scale) == 1 and valid.shape[-1] == 1:
            squares = residual(values, self.location).square().sum(-1) * torch.exp(-2 * self.log_scale)
            return -(0.5 * squares + values.shape[-1] * (self.log_scale + LOG_SQRT_2PI)) * observed.squeeze(-1)
        standardised = residual(values, self.location) * (torch.exp(-self.log_scale) * observed)
        constants = (self.log_scale + LOG_SQRT_2PI).expand(values.shape[-1])
        with without_autocast(observed):
            count = observed @ constants if valid.shape[-1] > 1 else observed.squeeze(-1) * constants.sum()
        return -0.5 * standardised.square().sum(-1) - count

    @property
    def mean(self) -> Tensor:
        return self.location

    def sample(self, generator: torch.Generator) -> Tensor:
        return gaussian_sample(self.location, self.log_scale, generator)


class Gaussian(Likelihood):
    """Gaussian cells whose variance is learned: one per cell, one for the whole field (`shared_scale`), or given by the
    decoder with each location (`per_row`)."""

    def __init__(self, size: int, shared_scale: bool = False, per_row: bool = False) -> None:
        super().__init__()
        if shared_scale and per_row:
            raise ValueError("gaussian: shared_scale and per_row are both true; a scale is the field's or the row's, choose one")
        self.size = self.num_features = size
        self.num_outputs = 2 * size if per_row else size
        self.per_row = per_row
        if not per_row:
            self.log_scale = nn.Parameter(torch.zeros(1 if shared_scale else size))

    def forward(self, outputs: Tensor) -> GaussianCells:
        location, log_scale = outputs.chunk(2, -1) if self.per_row else (outputs, self.log_scale)
        return GaussianCells(location, log_scale.clamp(MIN_LOG_SCALE, MAX_LOG_SCALE))


class StudentTCells(CellDistribution):
    """Student's t with `df` degrees of freedom [D], around location with a scale."""

    def __init__(self, location: Tensor, log_scale: Tensor, df: Tensor) -> None:
        self.location, self.log_scale, self.df = location, log_scale, df

    def log_prob(self, values: Tensor) -> Tensor:
        squared = (residual(values, self.location) * torch.exp(-self.log_scale)).square()
        return self.log_peak() - self.log_scale - 0.5 * (self.df + 1) * torch.log1p(squared / self.df)

    def log_peak(self) -> Tensor:
        """Returns the log of a standard t's density at 0, [D]: in float64, as its two lgamma cancel (at df = 1000 they are 2600)."""
        df = self.df.double()
        log_peak = torch.lgamma(0.5 * df + 0.5) - torch.lgamma(0.5 * df) - 0.5 * torch.log(math.pi * df)
        return log_peak.to(self.df.dtype)

    @property
    def mean(self) -> Tensor:
        return self.location

    def sample(self, generator: torch.Generator) -> Tensor:
        """Bailey (1994), "Polar generation of random variates with the t-distribution": Box and Muller's method for a t."""
        u, v = (uniform_like(self.location, generator) for _ in range(2))
        radius = (self.df * torch.expm1(-2 / self.df * torch.log1p(-u))).sqrt()  # from 1 - u, which is never 0
        return self.location + torch.exp(self.log_scale) * radius * torch.cos(2 * math.pi * v)


class StudentT(Likelihood):
    """Heavy-tailed numbers: a scale (one for the whole field if `shared_scale`) and degrees of freedom, learned per cell.

    df = 1 + exp(log_excess_df) starts at 5.
    """

    def __init__(self, size: int, shared_scale: bool = False) -> None:
        super().__init__()
        self.size = self.num_features = self.num_outputs = size
        self.log_scale = nn.Parameter(torch.zeros(1 if shared_scale else size))
        self.log_excess_df = nn.Parameter(torch.full((size,), START_LOG_EXCESS))

    def forward(self, outputs: Tensor) -> StudentTCells:
        df = 1 + torch.exp(self.log_excess_df.clamp(MIN_LOG_EXCESS, MAX_LOG_EXCESS))
        return StudentTCells(outputs, self.log_scale.clamp(MIN_LOG_SCALE, MAX_LOG_SCALE), df)
