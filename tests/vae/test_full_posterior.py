"""What a full covariance buys: the exact posterior of a linear decoder in any rotation, which independent dimensions cannot express.

Recipe: the decoder of probabilistic PCA at a rotated optimum, fixed; a linear encoder from random weights, trained by full-batch
L-BFGS in float64 on the ELBO without Monte-Carlo error (`exact_noise`). Shapes: B rows, D features, L latent dimensions.
"""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import Tensor

from tests.vae.linear_models import build_linear, exact_elbo, exact_noise, maximise, standardised
from vae.evidence import LogJoint, log_weights
from vae.importance import importance_bound
from vae.information import information
from vae.local_search import mean_elbo
from vae.model import VAE
from vae.objective import Loss, Objective
from vae.oracle import PPCA, fit_ppca
from vae.posteriors import FullGaussian, Posterior
from vae.priors import Mixture, StandardNormal
from vae.row_noise import RowNoise
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


FAR = 1e6
MANY_LATENTS = 6


def oblique(dtype: torch.dtype) -> tuple[VAE, Rows, Tensor]:
    """A decoder with its maximum of the likelihood, whose encoder makes of rows far from all others a factor that no number inverts.

    Returns it with such rows, and their log p(x), [B].
    """
    ppca, x = fit_ppca(table(), MANY_LATENTS), table()[:10] + FAR
    model = build_linear(7, MANY_LATENTS, "full")
    model.load_state_dict(
        model.state_dict()
        | {"decoder.weight": ppca.weight, "decoder.bias": ppca.mean, "likelihoods.vector.log_scale": 0.5 * ppca.variance.log()[None]}
    )
    return model.to(dtype), standardised(x.to(dtype), torch.zeros(7, dtype=dtype), 1.0), ppca.log_evidence(x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@torch.no_grad()
def test_no_reported_bound_exceeds_log_p_of_a_row_far_from_all_others(dtype: torch.dtype) -> None:
    model, far, log_p = oblique(dtype)
    q_z, joint, noise = model.posterior(far), LogJoint(model, far), randn(0, 200, 10, MANY_LATENTS).to(dtype)
    assert isinstance(q_z, FullGaussian)
    assert (q_z.standardise(q_z.rsample(noise)) - noise).abs().max() > 1  # z has not a digit left of the noise
    bounds = {
        "reported": model.evaluate_elbo(far, noise).elbo,
        "in training": Loss(model, Objective("iwae", 200))(far, noise.movedim(0, 1), 1.0)[1].elbo,
        "of weights": log_weights(model, far, q_z, 200, torch.Generator().manual_seed(0)).mean(0),
        "of an audit": mean_elbo(joint, q_z, noise),
    }
    if dtype == torch.float64:
        found = importance_bound(joint, q_z, 200, RowNoise(0, "here", range(10)))
        bounds |= {"of many samples": found.elbo, "importance-weighted": found.log_evidence}
    for name, bound in bounds.items():
        assert (bound < log_p).all(), name


def test_the_kl_to_a_mixture_is_that_to_the_normal_distribution_that_it_is_however_oblique_the_posterior() -> None:
    model, far, _ = oblique(torch.float32)
    with torch.no_grad():
        q_z, noise = model.posterior(far), exact_noise(10, MANY_LATENTS).float()
    origin = FullGaussian(torch.zeros(1, MANY_LATENTS), torch.eye(MANY_LATENTS)[None])
    prior = Mixture(origin, torch.zeros(1))
    torch.testing.assert_close(q_z.kl(prior, q_z.rsample(noise), noise), q_z.kl(StandardNormal(MANY_LATENTS)), rtol=1e-5, atol=0)


@torch.no_grad()
def test_rows_far_from_all_others_leave_the_information_within_its_limit() -> None:
    model, far, _ = oblique(torch.float32)
    parts: list[Posterior] = [model.posterior(rows) for rows in (far, standardised(table().float(), torch.zeros(7), 1.0))]
    q_z = FullGaussian(*map(torch.cat, zip(*(part.parameters for part in parts), strict=True)))
    found = information(q_z, model.latent_prior(), torch.Generator().manual_seed(0))
    assert 0 < found.mutual_information_nats <= found.mutual_information_limit_nats
