"""Approximate posteriors q(z|x). Shapes: S samples, B rows, L latent dimensions."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from vae.priors import StandardNormal

LOG_SQRT_2PI = 0.5 * math.log(2 * math.pi)
# exp(-10) of the prior's width is far below what any decoder resolves; exp(5) far above what any prior explains.
MIN_LOG_SCALE, MAX_LOG_SCALE = -10.0, 5.0


class DiagonalGaussian(NamedTuple):
    """q(z|x) = N(mean, diag(scale^2)); mean and log_scale are [B, L]."""

    mean: Tensor
    log_scale: Tensor

    @staticmethod
    def from_outputs(outputs: Tensor) -> DiagonalGaussian:
        """Returns the posterior that an encoder's [B, 2 L] outputs name; the log scale is bounded."""
        mean, log_scale = outputs.chunk(2, dim=-1)
        return DiagonalGaussian(mean, log_scale.clamp(MIN_LOG_SCALE, MAX_LOG_SCALE))

    @property
    def scale(self) -> Tensor:
        return self.log_scale.exp()

    def rsample(self, noise: Tensor) -> Tensor:
        """Returns z = mean + scale * noise, differentiable in the parameters; noise [B, L] or [S, B, L] is standard normal."""
        return self.mean + self.scale * noise

    def log_prob(self, z: Tensor) -> Tensor:
        """Returns log q(z|x) in nats, [B] or [S, B]."""
        standardised = (z - self.mean) * torch.exp(-self.log_scale)
        return (-0.5 * standardised.square() - self.log_scale - LOG_SQRT_2PI).sum(-1)

    def kl(self, prior: StandardNormal) -> Tensor:
        """Returns KL(q(z|x) || p(z)) in nats, [B], in closed form (Kingma & Welling 2014, appendix B)."""
        assert isinstance(prior, StandardNormal)
        return 0.5 * (self.mean.square() + torch.exp(2 * self.log_scale) - 1 - 2 * self.log_scale).sum(-1)
