"""Models whose log p(x) is known exactly, for what is said of inference gaps. Shapes: B rows, D features, L latent dimensions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tests.vae.linear_models import build_linear
from vae.evidence import LogJoint
from vae.model import VAE
from vae.oracle import PPCA, latent_grid
from vae.row_noise import RowNoise
from vae.rows import Rows
from vae.simulation import simulate


def randn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def ppca_vae(ppca: PPCA, posterior: str = "diagonal", shift: float = 0.0, log_factor: float = 0.0) -> VAE:
    """A linear VAE with a PPCA's decoder and the best diagonal q(z|x) as encoder, damaged: means + shift, scales e^log_factor times."""
    latent_dim = ppca.weight.shape[1]
    model = build_linear(len(ppca.mean), latent_dim, posterior)
    parameters = dict(model.named_parameters())
    to_mean = torch.linalg.solve(ppca.inner, ppca.weight.mT)
    weight, bias = torch.zeros_like(parameters["encoder.weight"]), torch.zeros_like(parameters["encoder.bias"])
    weight[:latent_dim] = to_mean
    bias[:latent_dim] = shift - to_mean @ ppca.mean
    bias[latent_dim : 2 * latent_dim] = 0.5 * (ppca.variance / ppca.inner.diagonal()).log() + log_factor
    state = {
        "decoder.weight": ppca.weight,
        "decoder.bias": ppca.mean,
        "likelihoods.vector.log_scale": 0.5 * ppca.variance.log()[None],
        "encoder.weight": weight,
        "encoder.bias": bias,
    }
    model.load_state_dict(model.state_dict() | state)
    return model


def planted_kl(ppca: PPCA, shift: float, log_factor: float) -> float:
    """KL(damaged q || best diagonal q) in nats, the same for every row, from which their ELBOs differ by it where that q is exact."""
    variance = ppca.variance / ppca.inner.diagonal()
    return float(0.5 * (shift**2 / variance + math.exp(2 * log_factor) - 1 - 2 * log_factor).sum())


def nonlinear_vae(fields: Sequence[Mapping[str, Any]], latent_dim: int, posterior: str = "diagonal", **arguments: Any) -> VAE:
    """A VAE from random weights, of which the decoder's are doubled: posteriors that are no Gaussians."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = VAE(fields, latent_dim, hidden_dims=[16], posterior=posterior, **arguments).double()
    for parameter in model.decoder.parameters():
        parameter.data *= 2
    return model


def blank(num_rows: int, **fields: tuple[torch.dtype, int]) -> Rows:
    """Rows of zeros without nulls, for `simulate`; fields: name -> type and number of cells."""
    values = {name: torch.zeros(num_rows, size, dtype=dtype) for name, (dtype, size) in fields.items()}
    valid = {name: torch.ones(num_rows, size, dtype=torch.bool) for name, (_, size) in fields.items()}
    return Rows(values, valid, torch.zeros(num_rows, dtype=torch.float64))


def simulated(model: VAE, like: Rows, seed: int) -> Rows:
    return simulate(model, like, RowNoise(seed, "rows of a test", range(like.num_rows)))[0]


@torch.no_grad()
def quadrature(model: VAE, rows: Rows) -> Tensor:
    """Returns log p(x_observed), [B], by the sum over a grid in z of one or two dimensions."""
    points, volume = latent_grid(model.latent_dim, {1: 2001, 2: 251}[model.latent_dim], limit=8.0)
    each = [LogJoint(model, rows.slice(row, row + 1))(points[:, None]).logsumexp(0) for row in range(rows.num_rows)]
    return torch.cat(each) + math.log(volume)
