"""Rows drawn from the model together with their z, which is therefore an exact sample of p(z|x). Shapes: B rows, L latent dimensions."""

from __future__ import annotations

import torch
from torch import Tensor

from vae.grids import Grid
from vae.model import VAE
from vae.row_noise import RowNoise
from vae.rows import Rows


@torch.no_grad()
def simulate(model: VAE, like: Rows, noise: RowNoise) -> tuple[Rows, Tensor]:
    """Returns rows (x, z) ~ p(x|z) p(z), one for each of `like`, and their z, [B, L].

    They have the condition and the nulls of `like`, which owe nothing to z: so z is an exact sample of p(z|x_observed). Integers lie on the
    grid of the cells that they replace. The Jacobian is of `like` too: a constant of the row.
    """
    condition = model.condition(like)
    parts, latents = [], []
    for number, generator in enumerate(noise.generators()):
        told = None if condition is None else condition[number : number + 1]
        z = model.latent_prior(told).sample(1, generator).to(model.device, model.dtype)
        drawn = {name: cells.sample(generator) for name, cells in model.likelihood(z, told).fields.items()}
        row = like.slice(number, number + 1)
        parts.append(row._replace(values=row.values | {name: on_grid(model, name, cells, row) for name, cells in drawn.items()}))
        latents.append(z)
    return Rows.cat(parts), torch.cat(latents)


def on_grid(model: VAE, name: str, drawn: Tensor, row: Rows) -> Tensor:
    """Returns drawn cells of a field [1, D], each rounded to its grid where the field has one."""
    grid = getattr(model.likelihoods[name], "grid", None)
    return grid.nearest(drawn, row.values[name]) if isinstance(grid, Grid) else drawn
