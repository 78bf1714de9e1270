"""What missing cells may hold, given those that are there, by q(z|x). Shapes: S samples, B rows, D cells of a field."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from vae.model import VAE
from vae.rows import Rows


class PosteriorCells(NamedTuple):
    """field -> cells in their storage. at_mean [B, D]: what p(x|z) expects at the mean of q (categories: the most probable).

    average [B, D] in float64: E_q[E[x|z]] by samples; draws [S, B, D]: cells of p(x|z) for these samples, where they were asked for.
    """

    at_mean: dict[str, Tensor]
    average: dict[str, Tensor]
    draws: dict[str, Tensor]


@torch.no_grad()
def posterior_cells(model: VAE, rows: Rows, num_samples: int, generator: torch.Generator, with_draws: bool = False) -> PosteriorCells:
    """Returns what every cell of the rows may hold, those that are there included."""
    q_z, condition = model.posterior(rows), model.condition(rows)
    at_mean = {name: cells.mean for name, cells in model.likelihood(q_z.mean, condition).given(rows).items()}
    sums: dict[str, Tensor] = {name: torch.zeros_like(cells, dtype=torch.float64) for name, cells in at_mean.items()}
    draws: dict[str, list[Tensor]] = {name: [] for name in at_mean} if with_draws else {}
    for _ in range(num_samples):
        noise = torch.randn(rows.num_rows, model.latent_dim, generator=generator, dtype=model.dtype)
        fields = model.likelihood(q_z.rsample(noise.to(model.device)), condition).given(rows)
        for name, cells in fields.items():
            sums[name] += cells.mean
            if with_draws:
                draws[name].append(cells.sample(generator))
    average = {name: total / max(1, num_samples) for name, total in sums.items()}
    return PosteriorCells(at_mean, average, {name: torch.stack(found) for name, found in draws.items() if found})
