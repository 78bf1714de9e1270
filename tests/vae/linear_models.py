"""Linear VAEs of one vector column, whose answers are known. Shapes: S samples, B rows, D features, L latent dimensions."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor

from vae.model import VAE
from vae.oracle import LOG_2PI
from vae.rows import Rows


def digits() -> Tensor:
    """The 1797 digits, pixels 0..16 divided by 16, [1797, 64] in float64."""
    pixels: Tensor = torch.from_numpy(load_digits().data) / 16
    return pixels


def observed_digits() -> Tensor:
    """Which pixels of them are observed when 20 % are missing at random, bool [1797, 64]."""
    return torch.from_numpy(np.random.default_rng(20260101).random((1797, 64)) > 0.2)


def observed_log_evidence(model: VAE, rows: Rows, name: str) -> Tensor:
    """Returns log p(x_observed) of a linear decoder of one field in nats in data units, exact, [B] in float64.

    It is N(x_o; b_o, (W W^T + variance I)_oo), o being the row's observed cells; missing ones have unit variance and no residual here.
    """
    parameters = {key: value.detach().double() for key, value in model.named_parameters()}
    weight, variance = parameters["decoder.weight"], torch.exp(2 * parameters[f"likelihoods.{name}.log_scale"])
    observed, eye = rows.valid[name], torch.eye(len(weight), dtype=torch.float64)
    covariance = torch.where(observed[:, :, None] & observed[:, None], weight @ weight.mT + variance * eye, eye)
    residual = torch.where(observed, rows.values[name].double() - parameters["decoder.bias"], 0.0)
    factor = torch.linalg.cholesky(covariance)
    standardised = torch.linalg.solve_triangular(factor, residual[..., None], upper=False).squeeze(-1)
    log_determinant = 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    log_p: Tensor = -0.5 * (observed.sum(-1) * LOG_2PI + log_determinant + standardised.square().sum(-1))
    return log_p + rows.log_jacobian.double()


def vector_field(size: int) -> dict[str, Any]:
    return {"name": "vector", "likelihood": "gaussian", "valid_size": 1, "size": size, "shared_scale": True}


def standardised(x: Tensor, center: Tensor, scale: float) -> Rows:
    """Rows of y = (x - center) / scale with the Jacobian that brings log p(y) back to data units."""
    log_jacobian = torch.full((len(x),), -x.shape[1] * math.log(scale), dtype=x.dtype)
    return Rows({"vector": (x - center) / scale}, {"vector": torch.ones(len(x), 1, dtype=torch.bool)}, log_jacobian)


def build_linear(size: int, latent_dim: int, posterior: str = "diagonal") -> VAE:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return VAE([vector_field(size) | {"with_flags": False}], latent_dim, network="linear", posterior=posterior).double()


def exact_noise(num_rows: int, latent_dim: int) -> Tensor:
    """Noise of L + 1 samples with mean 0 and covariance I: the corners of a regular simplex, the same for all rows, [S, B, L].

    The average of a quadratic over them is its expectation over the standard normal, and a linear decoder's log-likelihood is
    quadratic in z: with them the one-sample bound, averaged, is the ELBO and has no Monte-Carlo error.
    """
    corners: Tensor = math.sqrt(latent_dim + 1) * torch.linalg.svd(torch.eye(latent_dim + 1, dtype=torch.float64) - 1 / (latent_dim + 1)).U
    return corners[:, None, :latent_dim].expand(-1, num_rows, -1)


def exact_elbo(model: VAE, rows: Rows) -> Tensor:
    """Returns the ELBO of a linear decoder without Monte-Carlo error, [B]."""
    noise = exact_noise(rows.num_rows, model.latent_dim).to(model.dtype)
    elbo: Tensor = model.elbo(rows, noise).elbo.mean(0)
    return elbo


def maximise(objective: Callable[[], Tensor], parameters: Iterable[Tensor], max_iter: int, tolerance_change: float) -> None:
    """Full-batch L-BFGS with a strong Wolfe line search, until a step changes less than tolerance_change."""
    optimiser = torch.optim.LBFGS(
        parameters, max_iter=max_iter, history_size=50, tolerance_grad=0, tolerance_change=tolerance_change, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        optimiser.zero_grad()
        value = -objective()
        value.backward()  # type: ignore[no-untyped-call]
        return value.detach()

    optimiser.step(loss)  # type: ignore[no-untyped-call]
