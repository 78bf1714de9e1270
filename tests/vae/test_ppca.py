"""A linear VAE of one vector column is probabilistic PCA (Tipping & Bishop 1999): training must end at its closed-form maximum.

Recipe: UCI digits, pixels / 16, rows 0..1436, standardised by their means and one scale; encoder and decoder from random weights, all
parameters by full-batch L-BFGS in float64 on the ELBO in closed form; it stops after 1,500 iterations or at steps below 1e-10 nats.
Shapes: B rows, D features, L latent dimensions.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from tests.vae.linear_models import build_linear, digits, exact_elbo, maximise, standardised
from vae.model import VAE
from vae.oracle import PPCA, fit_ppca
from vae.rows import Rows

# Mean log p(x) at the maximum, computed with scikit-learn's PCA.
MAXIMA = {2: -0.076776, 5: 9.006007, 10: 17.544272}
latent_dims = pytest.mark.parametrize("latent_dim", list(MAXIMA))


class Trained(NamedTuple):
    """A trained linear VAE, the rows, and the maximum in the same standardised units."""

    model: VAE
    rows: Rows
    maximum: PPCA


@cache
def trained(latent_dim: int) -> Trained:
    x = digits()[:1437]
    center = x.mean(0)
    rows = standardised(x, center, (x - center).square().mean().sqrt().item())
    model = build_linear(64, latent_dim)
    maximise(lambda: analytic_elbo(model, rows).mean(), model.parameters(), max_iter=1500, tolerance_change=1e-10)
    return Trained(model, rows, fit_ppca(rows.values["vector"], latent_dim))


def analytic_elbo(model: VAE, rows: Rows) -> Tensor:
    """The ELBO of a linear decoder in closed form, [B]: E_q log p(x|z) = log p(x|E z) - tr(W^T W Var z) / 2 variance."""
    q_z = model.posterior(rows)
    parameters = dict(model.named_parameters())
    spread = (q_z.scale.square() * parameters["decoder.weight"].square().sum(0)).sum(-1)
    precision = torch.exp(-2 * parameters["likelihoods.vector.log_scale"])
    return model.likelihood(q_z.mean).log_prob(rows) - 0.5 * precision * spread - q_z.kl(model.latent_prior())


@latent_dims
def test_a_trained_linear_vae_reaches_the_maximum_of_the_likelihood(latent_dim: int) -> None:
    model, rows, _ = trained(latent_dim)
    maximum = fit_ppca(digits()[:1437], latent_dim).mean_log_evidence.item()
    assert maximum == pytest.approx(MAXIMA[latent_dim], abs=1e-6)
    with torch.no_grad():
        reached = exact_elbo(model, rows).mean().item()
        torch.testing.assert_close(analytic_elbo(model, rows), exact_elbo(model, rows), rtol=0, atol=1e-9)
    assert maximum - 1e-3 < reached < maximum


@latent_dims
def test_its_noise_is_the_mean_of_the_eigenvalues_that_are_left(latent_dim: int) -> None:
    model, _, maximum = trained(latent_dim)
    variance = torch.exp(2 * dict(model.named_parameters())["likelihoods.vector.log_scale"].detach())
    torch.testing.assert_close(variance, maximum.variance[None], rtol=1e-3, atol=0)


@latent_dims
def test_its_decoder_spans_the_principal_components(latent_dim: int) -> None:
    model, _, maximum = trained(latent_dim)
    bases = [torch.linalg.qr(weight.detach()).Q for weight in (dict(model.named_parameters())["decoder.weight"], maximum.weight)]
    # The sine of the largest principal angle; its cosine is 1 to rounding long before the angle is 0.
    outside = bases[0] - bases[1] @ (bases[1].mT @ bases[0])
    assert torch.linalg.matrix_norm(outside, 2) < 1e-2


@latent_dims
def test_evaluation_by_eight_samples_agrees_with_the_closed_form(latent_dim: int) -> None:
    model, rows, _ = trained(latent_dim)
    noise = torch.randn(8, rows.num_rows, latent_dim, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    with torch.no_grad():
        evaluated = model.evaluate_elbo(rows, noise).elbo.mean()
        torch.testing.assert_close(evaluated, analytic_elbo(model, rows).mean(), rtol=0, atol=0.01)
