"""The fitted prior: expectation maximisation climbs, finds what draws were made of, and raises the ELBO by what it says."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from tests.vae.likelihood_cases import generator
from vae.aggregated import PRIOR_ROWS, expected_sums, maximised, starting_at, with_prior
from vae.model import VAE
from vae.posteriors import DiagonalGaussian
from vae.priors import Mixture, StandardNormal
from vae.rows import Rows

LATENT_DIM = 2


def two_clusters() -> Mixture:
    mean = torch.tensor([[-2.0, 0.5], [1.0, -0.5]], dtype=torch.float64)
    scale = torch.tensor([[0.3, 1.0], [0.6, 0.4]], dtype=torch.float64)
    return Mixture(DiagonalGaussian(mean, scale.log()), torch.tensor([0.3, 0.7], dtype=torch.float64).log())


def climbed(mixture: Mixture, z: Tensor, num_rounds: int) -> Mixture:
    for _ in range(num_rounds):
        mixture = maximised(expected_sums(mixture, z), LATENT_DIM)
    return mixture


def test_it_finds_the_mixture_that_draws_were_made_of() -> None:
    truth = two_clusters()
    z = truth.sample(50_000, generator())
    found = climbed(starting_at(z[:2]), z, 200)
    fresh = truth.sample(50_000, generator(1))
    lost = truth.log_prob(fresh) - found.log_prob(fresh)  # whose expectation is KL(truth || found)
    assert abs(float(lost.mean())) < 4 * float(lost.std()) / math.sqrt(len(fresh)) + 1e-3
    order = found.components.mean[:, 0].argsort()
    torch.testing.assert_close(found.components.mean[order], truth.components.mean, atol=0.03, rtol=0)
    torch.testing.assert_close(found.log_weights.exp()[order], truth.log_weights.exp(), atol=0.01, rtol=0)


def test_every_round_climbs() -> None:
    """What never falls counts, beside the draws, PRIOR_ROWS rows of N(0, I) for each component, and one row for its weight."""
    z, reached = two_clusters().sample(5_000, generator()), []
    mixture = starting_at(z[::715])
    for _ in range(60):
        sums = expected_sums(mixture, z)
        (mean, log_scale), log_weights = mixture.components.parameters, mixture.log_weights
        of_prior_rows = -(log_scale + 0.5 * (1 + mean.square()) * torch.exp(-2 * log_scale)).sum()
        reached.append(float(sums[0] + PRIOR_ROWS * of_prior_rows + log_weights.sum()))
        mixture = maximised(sums, LATENT_DIM)
    assert len(mixture.log_weights) == 7
    assert all(after >= before - 1e-9 * abs(before) for before, after in pairwise(reached))
    assert reached[-1] > reached[0] + 100


def test_sums_of_parts_are_the_sums_of_the_whole() -> None:
    mixture, z = two_clusters(), two_clusters().sample(1_001, generator())
    torch.testing.assert_close(expected_sums(mixture, z[:300]) + expected_sums(mixture, z[300:]), expected_sums(mixture, z))


def test_a_component_of_one_row_does_not_close_in_on_it() -> None:
    z = torch.cat([torch.randn(500, LATENT_DIM, generator=generator(), dtype=torch.float64), torch.full((1, LATENT_DIM), 40.0)])
    mixture = climbed(starting_at(torch.stack([z[0], z[-1]])), z, 50)
    assert mixture.components.scale.min() > 0.1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_model_with_a_fitted_prior_differs_in_its_prior_alone(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = VAE([{"name": "x", "likelihood": "gaussian", "size": 3, "valid_size": 3}], LATENT_DIM, [5]).to(dtype)
    changed = with_prior(model, two_clusters())
    rows = Rows({"x": torch.randn(64, 3, generator=generator())}, {"x": torch.ones(64, 3, dtype=torch.bool)}, torch.zeros(64))
    noise = torch.randn(5, 64, LATENT_DIM, generator=generator(1), dtype=dtype)
    z = model.posterior(rows).rsample(noise)
    before, after = model.evaluate_elbo(rows, noise), changed.evaluate_elbo(rows, noise)
    gain = (two_clusters().log_prob(z) - StandardNormal(LATENT_DIM).log_prob(z)).mean(0)
    torch.testing.assert_close(after.elbo - before.elbo, gain.to(dtype), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(changed.posterior(rows).mean, model.posterior(rows).mean)
    assert changed.architecture | {"prior": "standard", "num_prior_components": 100} == model.architecture
