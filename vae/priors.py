"""Priors p(z). Shapes: B rows, L latent dimensions."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class StandardNormal(nn.Module):
    """p(z) = N(0, I)."""

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        self.latent_dim = latent_dim

    def log_prob(self, z: Tensor) -> Tensor:
        """Returns log p(z) in nats, over the last dimension of z [..., L]."""
        return -0.5 * (z.square() + math.log(2 * math.pi)).sum(-1)

    def sample(self, num_rows: int, generator: torch.Generator) -> Tensor:
        """Returns num_rows draws, [num_rows, L], on the generator's device."""
        return torch.randn(num_rows, self.latent_dim, generator=generator, device=generator.device)


PRIORS = {"standard": StandardNormal}
