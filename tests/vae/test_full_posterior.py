"""What a full covariance buys: the exact posterior of a linear decoder in any rotation, which independent dimensions cannot express.

Recipe: the decoder of probabilistic PCA at a rotated optimum, fixed; a linear encoder from random weights, trained by full-batch
L-BFGS in float64 on the ELBO without Monte-Carlo error (`exact_noise`). Shapes: B rows, D features, L latent dimensions.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from tests.vae.linear_models import build_linear, exact_elbo, exact_noise, maximise, standardised
from vae.model import VAE
from vae.oracle import PPCA, fit_ppca
from vae.posteriors import FullGaussian
from vae.rows import Rows

LATENT_DIM = 3


def randn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def table() -> Tensor:
    """Correlated rows of different scales, [B, D]."""
    return randn(0, 120, 7) @ randn(1, 7, 7) / 2


def rows() -> Rows:
    return standardised(table(), torch.zeros(7, dtype=torch.float64), 1.0)


@cache
def rotated() -> PPCA:
    """The maximum of the likelihood with a rotated latent space: the covariance of the posterior is not diagonal."""
    ppca = fit_ppca(table(), LATENT_DIM)
    return ppca._replace(weight=ppca.weight @ torch.linalg.qr(randn(3, LATENT_DIM, LATENT_DIM)).Q)


@cache
def trained(posterior: str) -> VAE:
    """A VAE with that decoder, after training its encoder."""
    model, ppca = build_linear(7, LATENT_DIM, posterior), rotated()
    state = model.state_dict() | {
        "decoder.weight": ppca.weight,
        "decoder.bias": ppca.mean,
        "likelihoods.vector.log_scale": 0.5 * ppca.variance.log()[None],
    }
    model.load_state_dict(state)
    maximise(lambda: exact_elbo(model, rows()).mean(), model.encoder.parameters(), max_iter=3000, tolerance_change=1e-13)
    return model


def price_of_independence(ppca: PPCA) -> Tensor:
    """KL(q||p(z|x)) of the best diagonal q, the same for every row: 1/2 (sum log diag M - log det M)."""
    return 0.5 * (ppca.inner.diagonal().log().sum() - torch.logdet(ppca.inner))


def test_noise_of_unit_covariance_gives_the_elbo_of_a_linear_decoder_without_sampling() -> None:
    noise = exact_noise(1, LATENT_DIM)[:, 0]
    torch.testing.assert_close(noise.mean(0), torch.zeros(LATENT_DIM, dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(noise.T @ noise / len(noise), torch.eye(LATENT_DIM, dtype=torch.float64), rtol=0, atol=1e-12)
    model = build_linear(7, LATENT_DIM, "full")
    with torch.no_grad():
        samples = model.elbo(rows(), randn(4, 2_000, 120, LATENT_DIM)).elbo
        error = samples.std(0) / len(samples) ** 0.5
        assert ((samples.mean(0) - exact_elbo(model, rows())).abs() < 5 * error).all()


def test_a_full_posterior_reaches_log_p_of_every_row() -> None:
    torch.testing.assert_close(exact_elbo(trained("full"), rows()), rotated().log_evidence(table()), rtol=0, atol=1e-6)


def test_it_is_the_exact_posterior() -> None:
    q_z, (mean, covariance) = trained("full").posterior(rows()), rotated().posterior(table())
    assert isinstance(q_z, FullGaussian)
    assert (covariance / covariance.diagonal().sqrt() / covariance.diagonal().sqrt()[:, None]).tril(-1).abs().max() > 0.2
    torch.testing.assert_close(q_z.mean, mean, rtol=0, atol=1e-3)
    torch.testing.assert_close(q_z.factor @ q_z.factor.mT, covariance.expand_as(q_z.factor), rtol=1e-2, atol=1e-4)


def test_independent_dimensions_fall_short_by_the_analytic_kl_and_by_no_more() -> None:
    price = price_of_independence(rotated())
    assert price > 0.03
    expected = rotated().log_evidence(table()) - price
    torch.testing.assert_close(exact_elbo(trained("diagonal"), rows()), expected, rtol=0, atol=1e-6)
    difference = exact_elbo(trained("full"), rows()) - exact_elbo(trained("diagonal"), rows())
    torch.testing.assert_close(difference, price.expand_as(difference), rtol=0, atol=1e-6)
