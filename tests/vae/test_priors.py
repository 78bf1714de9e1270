"""Claims about vae.priors, and about KL to them. Shapes: S samples, B rows, L latent dimensions, K components."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, Distribution, Independent, MixtureSameFamily, MultivariateNormal, Normal, kl_divergence

from vae import priors
from vae.posteriors import POSTERIORS, DiagonalGaussian, FullGaussian, Posterior
from vae.priors import PRIORS, ConditionalNormal, GaussianMixture, Mixture, Sizes, VampPrior

LATENT_DIM, NUM_COMPONENTS = 3, 4


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def diagonal(num_rows: int, seed: int = 0) -> DiagonalGaussian:
    return DiagonalGaussian(randn(num_rows, LATENT_DIM, seed=seed), 0.5 * randn(num_rows, LATENT_DIM, seed=seed + 1) - 1)


def full(num_rows: int, seed: int = 0) -> FullGaussian:
    return FullGaussian.from_outputs(0.7 * randn(num_rows, FullGaussian.num_outputs(LATENT_DIM), seed=seed), LATENT_DIM)


def as_torch(q_z: Posterior) -> MultivariateNormal:
    factor = q_z.factor if isinstance(q_z, FullGaussian) else torch.diag_embed(q_z.scale)
    return MultivariateNormal(q_z.mean, scale_tril=factor)


def log_prob(distribution: Distribution, value: Tensor) -> Tensor:
    """What torch.distributions says, through the one class of it that is typed."""
    return distribution.log_prob(value)


def never(features: Tensor) -> Posterior:
    raise AssertionError("this prior needs no encoder")


def mixture(components: Posterior) -> Mixture:
    return Mixture(components, randn(NUM_COMPONENTS, seed=9).log_softmax(0))


@pytest.mark.parametrize("family", [diagonal, full])
def test_a_mixture_has_torchs_density(family: type) -> None:
    components = family(NUM_COMPONENTS)
    prior = mixture(components)
    reference = MixtureSameFamily(Categorical(logits=prior.log_weights), as_torch(components))
    z = 2 * randn(5, 7, LATENT_DIM, seed=4)
    torch.testing.assert_close(prior.log_prob(z), log_prob(reference, z), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("family", [diagonal, full])
def test_each_component_has_the_density_that_it_has_alone_however_narrow_it_is(family: type) -> None:
    components = family(NUM_COMPONENTS)
    z = 3 * randn(6, LATENT_DIM, seed=5)
    apart = torch.stack([components.take(torch.tensor([k])).log_prob(z) for k in range(NUM_COMPONENTS)], -1)
    torch.testing.assert_close(components.log_prob_each(z), apart, rtol=1e-10, atol=1e-10)
    narrow = DiagonalGaussian(torch.tensor([[1.0, -2.0, 0.5]]), torch.full((1, 3), -9.0))
    at = narrow.mean + 1e-4
    expected = DiagonalGaussian(narrow.mean.double(), narrow.log_scale.double()).log_prob(at.double())
    torch.testing.assert_close(narrow.log_prob_each(at)[:, 0], expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("family", [diagonal, full])
def test_draws_of_a_mixture_have_its_moments(family: type) -> None:
    prior = mixture(family(NUM_COMPONENTS))
    drawn = prior.sample(200_000, generator())
    reference = MixtureSameFamily(Categorical(logits=prior.log_weights), as_torch(prior.components))
    error = 5 * (reference.variance / len(drawn)).sqrt()
    assert ((drawn.mean(0) - reference.mean).abs() < error).all()
    torch.testing.assert_close(drawn.var(0), reference.variance, rtol=0.05, atol=0.0)


@pytest.mark.parametrize("make", [diagonal, full])
def test_kl_to_independent_normals_is_torchs(make: type) -> None:
    q_z = make(6)
    mean, log_scale = randn(6, LATENT_DIM, seed=7), 0.3 * randn(6, LATENT_DIM, seed=8)
    reference = kl_divergence(as_torch(q_z), as_torch(DiagonalGaussian(mean, log_scale)))
    torch.testing.assert_close(q_z.kl(priors.Normal(mean, log_scale)), reference, rtol=1e-10, atol=1e-10)
    standard = kl_divergence(as_torch(q_z), as_torch(DiagonalGaussian(0 * mean, 0 * mean)))
    torch.testing.assert_close(q_z.kl(priors.StandardNormal(LATENT_DIM)), standard, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("make", [diagonal, full])
def test_kl_to_a_mixture_is_estimated_without_bias(make: type) -> None:
    q_z, prior = make(3), mixture(diagonal(NUM_COMPONENTS, seed=3))
    z = as_torch(q_z).rsample(torch.Size([40_000]))
    each = log_prob(as_torch(q_z), z) - prior.log_prob(z)
    noise = torch.linalg.solve_triangular(as_torch(q_z).scale_tril, (z - q_z.mean)[..., None], upper=False).squeeze(-1)
    estimated = q_z.kl(prior, q_z.rsample(noise), noise)
    assert ((estimated - each.mean(0)).abs() < 1e-9).all()
    assert q_z.kl(prior, z[0], noise[0]).shape == (3,)
    with pytest.raises(AssertionError, match="samples are needed"):
        q_z.kl(prior)


def test_a_full_gaussian_draws_with_its_covariance_and_has_torchs_density() -> None:
    q_z = full(2)
    noise = randn(100_000, 2, LATENT_DIM, seed=11)
    z = q_z.rsample(noise)
    for row in range(2):
        covariance = q_z.factor[row] @ q_z.factor[row].T
        torch.testing.assert_close((z[:, row] - q_z.mean[row]).T.cov(), covariance, rtol=0.05, atol=0.02)
        torch.testing.assert_close(q_z.scale[row], covariance.diagonal().sqrt(), rtol=1e-12, atol=0.0)
    torch.testing.assert_close(q_z.log_prob(z[:5]), log_prob(as_torch(q_z), z[:5]), rtol=1e-9, atol=1e-9)
    assert (q_z.factor.triu(1) == 0).all()


@pytest.mark.parametrize("family", ["diagonal", "full"])
def test_the_density_of_a_draw_is_that_of_its_z_and_so_are_its_gradients(family: str) -> None:
    outputs = randn(4, POSTERIORS[family].num_outputs(LATENT_DIM)).requires_grad_()
    q_z, noise = POSTERIORS[family].from_outputs(outputs, LATENT_DIM), randn(5, 4, LATENT_DIM, seed=1)
    z = q_z.rsample(noise)
    for found, expected in (
        (q_z.log_prob_of(z, noise), q_z.log_prob(z)),
        (q_z.path_log_prob(z, noise), q_z.detach().log_prob(z)),
    ):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
        weights = randn(5, 4, seed=2)
        gradients = [torch.autograd.grad((weights * part).sum(), outputs, retain_graph=True)[0] for part in (found, expected)]
        torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-10)


def test_no_encoder_output_makes_a_full_gaussian_without_a_density() -> None:
    for extreme in (-1e30, -50.0, 0.0, 50.0):
        q_z = FullGaussian.from_outputs(torch.full((1, FullGaussian.num_outputs(LATENT_DIM)), extreme).clamp(-1e4, 1e4), LATENT_DIM)
        assert q_z.kl(priors.StandardNormal(LATENT_DIM)).isfinite().all()
        assert q_z.log_prob(q_z.rsample(torch.ones(1, LATENT_DIM))).isfinite().all()


def test_the_vamp_prior_is_the_average_posterior_of_its_pseudo_inputs() -> None:
    torch.manual_seed(0)
    encoder = torch.nn.Linear(5, 2 * LATENT_DIM).double()

    def encode(features: Tensor) -> Posterior:
        return DiagonalGaussian.from_outputs(encoder(features), LATENT_DIM)

    prior = VampPrior(Sizes(LATENT_DIM, num_features=5, num_components=NUM_COMPONENTS)).double()
    z = randn(8, LATENT_DIM)
    each = encode(prior.pseudo_inputs).log_prob(z[:, None])
    torch.testing.assert_close(prior(encode, None).log_prob(z), each.logsumexp(1) - math.log(NUM_COMPONENTS), rtol=1e-9, atol=1e-9)
    prior(encode, None).log_prob(z).sum().backward()
    for parameter in (prior.pseudo_inputs, encoder.weight):
        assert parameter.grad is not None
        assert parameter.grad.abs().max() > 0


def test_a_learned_mixture_integrates_to_one() -> None:
    torch.manual_seed(0)
    prior = GaussianMixture(Sizes(1, num_components=3))
    z = torch.linspace(-15, 15, 3001, dtype=torch.float64)[:, None]
    assert float(prior(never, None).log_prob(z).detach().exp().sum()) * 0.01 == pytest.approx(1, abs=1e-6)


def test_the_conditional_prior_starts_as_the_standard_one_and_follows_its_condition() -> None:
    torch.manual_seed(0)
    prior = ConditionalNormal(Sizes(LATENT_DIM, condition_size=2, hidden_dims=[8]))
    condition, z = torch.randn(4, 2, generator=generator()), torch.randn(5, 4, LATENT_DIM, generator=generator(1))
    torch.testing.assert_close(prior(never, condition).log_prob(z), log_prob(Independent(Normal(0.0 * z, 1.0), 1), z))
    torch.nn.init.normal_(prior.out.weight)
    distribution = prior(never, condition)
    assert distribution.log_prob(z).shape == (5, 4)
    moments = distribution.moments
    assert moments is not None
    assert (moments[0][0] != moments[0][1]).all()
    many = prior(never, condition[:1].expand(100_000, 2))
    drawn = many.sample(100_000, generator(2))
    torch.testing.assert_close(drawn.mean(0), moments[0][0], rtol=0, atol=0.05)
    with pytest.raises(ValueError, match="needs a condition"):
        ConditionalNormal(Sizes(LATENT_DIM))


@pytest.mark.parametrize("name", PRIORS)
def test_draws_follow_the_generator(name: str) -> None:
    torch.manual_seed(0)
    prior = PRIORS[name](Sizes(LATENT_DIM, 6, 2, [8], NUM_COMPONENTS))
    encoder = torch.nn.Linear(6, 2 * LATENT_DIM)
    distribution = prior(lambda features: DiagonalGaussian.from_outputs(encoder(features), LATENT_DIM), torch.ones(10, 2))
    first, again, other = (distribution.sample(10, generator(seed)) for seed in (1, 1, 2))
    assert first.shape == (10, LATENT_DIM)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
