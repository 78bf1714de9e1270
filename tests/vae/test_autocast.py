"""Under bfloat16 autocast the networks alone are in bfloat16: what is made of their outputs has the numbers that it has without."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.vae.likelihood_cases import CASES, Case, disturb, generator, outputs_of
from vae.continuous import Gaussian
from vae.posteriors import POSTERIORS, DiagonalGaussian
from vae.priors import LatentDistribution, Mixture, Normal, StandardNormal


def assert_autocast_changes_nothing(make: Callable[[], Tensor], *of: Tensor) -> None:
    """Gradients are taken outside of autocast, as PyTorch wants it."""
    expected = make()
    with torch.autocast("cpu", torch.bfloat16):
        found = make()
    assert found.dtype == expected.dtype
    assert torch.equal(found, expected)
    here, there = (torch.autograd.grad(made.sum(), of, allow_unused=True, materialize_grads=True) for made in (found, expected))
    assert all(torch.equal(a, b) for a, b in zip(here, there, strict=True))


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
@pytest.mark.parametrize("observed", ["all cells", "some cells", "rows"])
def test_a_likelihood_is_the_same(case: Case, observed: str) -> None:
    likelihood = disturb(case.build(torch.float32), seed=1)
    values = case.support().values[:64, None]
    outputs = outputs_of(likelihood, len(values), seed=0).float().requires_grad_()
    valid = torch.ones(len(values), 1 if observed == "rows" else likelihood.size, dtype=torch.bool)
    if observed == "some cells":
        valid[::3] = False
    learned = [parameter for name, parameter in likelihood.named_parameters() if "embedding" not in name]
    cells = values if values.dtype in (torch.uint8, torch.int32, torch.int64) else values.float()
    assert_autocast_changes_nothing(lambda: likelihood(outputs).log_prob(cells), outputs, *learned)
    assert_autocast_changes_nothing(lambda: likelihood(outputs).sum_log_prob(cells, valid), outputs, *learned)


@pytest.mark.parametrize("family", POSTERIORS)
@pytest.mark.parametrize("prior", ["standard", "conditional", "mixture"])
def test_posteriors_and_priors_are_the_same(family: str, prior: str) -> None:
    g = generator()
    latent_dim, num_rows = 3, 50
    outputs = torch.randn(num_rows, POSTERIORS[family].num_outputs(latent_dim), generator=g).requires_grad_()
    noise = torch.randn(num_rows, latent_dim, generator=g)
    means = torch.randn(4, latent_dim, generator=g)

    def p_z() -> LatentDistribution:
        if prior == "mixture":
            return Mixture(DiagonalGaussian(means, means / 4), torch.full((4,), 0.25).log())
        return StandardNormal(latent_dim) if prior == "standard" else Normal(noise + 1, noise / 4)

    def q_z() -> Tensor:
        return POSTERIORS[family].from_outputs(outputs, latent_dim).rsample(noise)

    def kl() -> Tensor:
        posterior = POSTERIORS[family].from_outputs(outputs, latent_dim)
        return posterior.kl(p_z(), posterior.rsample(noise), noise)

    assert_autocast_changes_nothing(q_z, outputs)
    assert_autocast_changes_nothing(kl, outputs)


def test_the_constants_of_gaussian_columns_with_holes_are_the_same() -> None:
    likelihood = disturb(Gaussian(5), seed=1)
    outputs = outputs_of(likelihood, 64, seed=0).requires_grad_()
    values, valid = torch.randn(64, 5, generator=generator()), torch.rand(64, 5, generator=generator(1)) > 0.3
    assert_autocast_changes_nothing(lambda: likelihood(outputs).sum_log_prob(values, valid), outputs, *likelihood.parameters())
