"""Claims about the exact answers of vae.oracle. Shapes: N rows, D features, L latent dimensions, G grid points."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from torch import Tensor
from torch.distributions import Bernoulli, Distribution, MultivariateNormal, Normal

from vae.oracle import PPCA, fit_ppca, free_form_posterior, gauss_hermite_log_evidence, grid_log_evidence, latent_grid
from vae.posteriors import DiagonalGaussian
from vae.priors import StandardNormal

seeds = st.integers(0, 2**32 - 1)
few_examples = settings(max_examples=25)


def randn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def assert_near(actual: Tensor, expected: Tensor | float, atol: float) -> None:
    torch.testing.assert_close(actual, torch.as_tensor(expected, dtype=torch.float64).expand_as(actual), rtol=0, atol=atol)


def log_prob(distribution: Distribution, value: Tensor) -> Tensor:
    """What torch.distributions says, through the one class of it that is typed."""
    return distribution.log_prob(value)


STANDARD_NORMAL = Normal(0.0, 1.0)


def digits() -> Tensor:
    """The 1797 digits, pixels 0..16 divided by 16, [N, 64]: rows 0..1436 fit, the last 360 test."""
    return torch.from_numpy(load_digits().data) / 16


def table(num_rows: int = 200, num_features: int = 7) -> Tensor:
    """Correlated rows away from the origin, [N, D]."""
    return randn(0, num_rows, num_features) @ randn(1, num_features, num_features) + randn(2, num_features)


def rotated(model: PPCA, seed: int = 3) -> PPCA:
    """The same p(x) with a rotated latent space: M, and with it the posterior's covariance, is no longer diagonal."""
    latent_dim = model.weight.shape[1]
    return model._replace(weight=model.weight @ torch.linalg.qr(randn(seed, latent_dim, latent_dim)).Q)


def multivariate_normal(model: PPCA) -> MultivariateNormal:
    eye = torch.eye(len(model.mean), dtype=torch.float64)
    return MultivariateNormal(model.mean, model.weight @ model.weight.mT + model.variance * eye)


def decoder(model: PPCA, z: Tensor) -> Normal:
    """p(x|z), cell by cell, for z [.., L]."""
    return Normal(z @ model.weight.mT + model.mean, model.variance.sqrt())


def log_joint_of(model: PPCA, x: Tensor, z: Tensor) -> Tensor:
    """log p(z) + log p(x|z), factor by factor, [S, N] for z [S, N, L]."""
    return log_prob(STANDARD_NORMAL, z).sum(-1) + log_prob(decoder(model, z), x).sum(-1)


@pytest.mark.parametrize(
    ("latent_dim", "variance", "train", "test"),
    [
        (2, 0.054280, -0.076776, 0.137431),
        (5, 0.036058, 9.006007, 8.017357),
        (10, 0.022672, 17.544272, 16.184839),
        (20, 0.011210, 27.438041, 25.105369),
    ],
)
def test_ppca_reproduces_the_log_likelihoods_of_digits(latent_dim: int, variance: float, train: float, test: float) -> None:
    fitted, held_out = digits()[:1437], digits()[1437:]
    model = fit_ppca(fitted, latent_dim)
    assert_near(model.variance, variance, 1e-6)
    assert_near(model.mean_log_evidence, train, 1e-6)
    assert_near(model.log_evidence(held_out).mean(), test, 1e-6)


@pytest.mark.parametrize("latent_dim", [1, 3, 6])
def test_ppca_closed_form_is_the_mean_of_the_multivariate_normal_log_density(latent_dim: int) -> None:
    model = fit_ppca(table(), latent_dim)
    expected = log_prob(multivariate_normal(model), table())
    assert_near(model.mean_log_evidence, expected.mean(), 1e-9)
    assert_near(model.log_evidence(table()), expected, 1e-9)
    assert_near(rotated(model).log_evidence(table()), expected, 1e-9)
    assert_near(model.covariance, multivariate_normal(model).covariance_matrix, 1e-12)


def test_ppca_accepts_float32_rows_and_answers_in_float64() -> None:
    model = fit_ppca(table().float(), 3)
    assert model.log_evidence(table().float()).dtype == torch.float64
    assert_near(model.mean_log_evidence, fit_ppca(table(), 3).mean_log_evidence, 1e-5)


@pytest.mark.parametrize("latent_dim", [1, 3, 6])
def test_gradient_of_the_log_likelihood_vanishes_at_the_ppca_optimum(latent_dim: int) -> None:
    model = fit_ppca(table(), latent_dim)
    free = PPCA(*[part.clone().requires_grad_() for part in model])
    value = log_prob(multivariate_normal(free), table()).mean()
    for gradient in torch.autograd.grad(value, (free.weight, free.mean, free.variance)):
        assert_near(gradient, 0.0, 1e-10)


@few_examples
@given(seed=seeds, log10_size=st.floats(-3, 0.5))
def test_no_perturbation_of_the_ppca_optimum_gains_likelihood(seed: int, log10_size: float) -> None:
    model, size = fit_ppca(table(), 3), 10**log10_size
    moved = model._replace(
        weight=model.weight + size * randn(seed, 7, 3),
        mean=model.mean + size * randn(seed + 1, 7),
        variance=model.variance * torch.exp(size * randn(seed + 2, 1)[0]),
    )
    assert moved.log_evidence(table()).mean() < model.mean_log_evidence


@few_examples
@given(seed=seeds)
def test_log_joint_minus_log_posterior_is_log_p_of_x_at_every_z(seed: int) -> None:
    x, model = table()[:20], rotated(fit_ppca(table(), 3))
    mean, covariance = model.posterior(x)
    assert covariance[0, 1].abs() > 1e-3
    z = mean + 2 * randn(seed, 5, 20, 3) @ torch.linalg.cholesky(covariance).mT
    difference = log_joint_of(model, x, z) - log_prob(MultivariateNormal(mean, covariance), z)
    assert_near(difference, model.log_evidence(x), 1e-9)


def test_ppca_refuses_what_has_no_maximum_likelihood() -> None:
    with pytest.raises(ValueError, match=r"latent_dim is 7; for 7 features it must be in 1\.\.6"):
        fit_ppca(table(), 7)
    with pytest.raises(ValueError, match="explain 4 rows of 7 features entirely"):
        fit_ppca(table(num_rows=4), 3)


def best_diagonal_gaussian(model: PPCA, x: Tensor) -> DiagonalGaussian:
    """The diagonal Gaussian of least KL(q||p(z|x)): the exact mean, and the precision's diagonal."""
    mean, covariance = model.posterior(x)
    return DiagonalGaussian(mean, -0.5 * torch.linalg.inv(covariance).diagonal().log().expand_as(mean))


def linear_elbo(model: PPCA, x: Tensor, q_z: DiagonalGaussian) -> Tensor:
    """ELBO(q; x) of a linear decoder in closed form, [N]: E_q log p(x|z) loses tr(weight^T weight Var z) / 2 variance."""
    at_mean = log_prob(decoder(model, q_z.mean), x).sum(-1)
    spread = (q_z.scale.square() * model.weight.square().sum(0)).sum(-1) / (2 * model.variance)
    return at_mean - spread - q_z.kl(StandardNormal(model.weight.shape[1]))


def test_a_diagonal_gaussian_reaches_the_log_likelihood_of_a_linear_decoder() -> None:
    x = digits()[:1437]
    model = fit_ppca(x, 5)
    q_z = best_diagonal_gaussian(model, x)
    assert_near(linear_elbo(model, x, q_z), model.log_evidence(x), 1e-9)
    assert_near(linear_elbo(model, x, q_z).mean(), model.mean_log_evidence, 1e-9)
    z = q_z.rsample(randn(5, 3, 1437, 5))
    assert_near(log_joint_of(model, x, z) - q_z.log_prob(z), model.log_evidence(x), 1e-9)


def test_a_rotated_linear_decoder_costs_a_diagonal_gaussian_the_correlation() -> None:
    model = rotated(fit_ppca(table(), 3))
    gap = 0.5 * (model.inner.diagonal().log().sum() - torch.logdet(model.inner))
    assert gap > 0.01
    assert_near(linear_elbo(model, table(), best_diagonal_gaussian(model, table())), model.log_evidence(table()) - gap, 1e-9)


def test_dropping_the_missing_cells_likelihoods_gives_the_observed_cells_density() -> None:
    x, model = table()[0], fit_ppca(table(), 2)
    observed = torch.tensor([True, False, True, True, False, False, True])
    complete = multivariate_normal(model)
    marginal = MultivariateNormal(model.mean[observed], complete.covariance_matrix[observed][:, observed])

    def log_likelihood(z: Tensor) -> Tensor:
        return torch.where(observed, log_prob(decoder(model, z), x), 0.0).sum(-1)

    assert_near(grid_log_evidence(log_likelihood, *latent_grid(2, 401)), log_prob(marginal, x[observed]), 1e-9)


class Problem(NamedTuple):
    """One row x of six bits under a nonlinear decoder, on a grid of z: log-densities are [G]."""

    log_likelihood_at: Callable[[Tensor], Tensor]
    z: Tensor
    cell_volume: float
    log_prior: Tensor
    log_likelihood: Tensor
    log_evidence: Tensor  # log p(x), [], by another rule than the grid's

    @property
    def log_joint(self) -> Tensor:
        return self.log_prior + self.log_likelihood

    @property
    def log_posterior(self) -> Tensor:
        return self.log_joint - self.log_evidence

    def integral(self, values: Tensor) -> Tensor:
        return values.sum() * self.cell_volume

    def kl(self, q: Tensor, log_p: Tensor) -> Tensor:
        return self.integral(torch.special.xlogy(q, q) - q * log_p)

    def functional(self, q: Tensor) -> Tensor:
        """J[q] = integral q (log q - log p(x,z)) dz = -ELBO(q; x)."""
        return self.kl(q, self.log_joint)

    def arbitrary_q(self, seed: int) -> Tensor:
        """A normalised mixture of two Gaussians of random means and widths, [G]."""
        widths = 0.4 + randn(seed, 2, 1, self.z.shape[1]).abs()
        q = log_prob(Normal(randn(seed + 1, 2, 1, self.z.shape[1]), widths), self.z).sum(-1).exp().sum(0)
        return q / self.integral(q)


@cache
def problem(latent_dim: int, num_points: int = 151, limit: float = 9.0) -> Problem:
    x = torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0, 1.0], dtype=torch.float64)
    inner, outer, frequency = randn(7, latent_dim, 4), randn(8, 4, 6), {1: 1.0, 2: 0.7}[latent_dim]

    def log_likelihood_at(z: Tensor) -> Tensor:
        logits = torch.sin(frequency * z @ inner + 0.3) @ outer + 0.1 * z.square().sum(-1, keepdim=True)
        return log_prob(Bernoulli(logits=logits), x).sum(-1)

    z, cell_volume = latent_grid(latent_dim, num_points, limit)
    return Problem(
        log_likelihood_at,
        z,
        cell_volume,
        log_prior=log_prob(STANDARD_NORMAL, z).sum(-1),
        log_likelihood=log_likelihood_at(z),
        log_evidence=gauss_hermite_log_evidence(log_likelihood_at, 150, latent_dim),
    )


one_or_two_latents = pytest.mark.parametrize("latent_dim", [1, 2])


@one_or_two_latents
def test_the_posterior_of_the_problem_is_not_gaussian(latent_dim: int) -> None:
    p = problem(latent_dim)
    q = free_form_posterior(p.log_joint, p.cell_volume).q
    mean = torch.stack([p.integral(q * z) for z in p.z.T])
    covariance = torch.stack([p.integral(q * z) for z in torch.vmap(torch.outer)(p.z - mean, p.z - mean).flatten(1).T])
    gaussian = MultivariateNormal(mean, covariance.reshape(latent_dim, latent_dim))
    assert p.kl(q, log_prob(gaussian, p.z)) > 0.02


@one_or_two_latents
def test_free_form_minimiser_is_the_posterior(latent_dim: int) -> None:
    p = problem(latent_dim)
    q = free_form_posterior(p.log_joint, p.cell_volume).q
    assert_near(p.integral(q), 1.0, 1e-12)
    assert_near(q, p.log_posterior.exp(), 1e-9)


@one_or_two_latents
def test_one_plus_the_multiplier_is_the_log_evidence(latent_dim: int) -> None:
    p = problem(latent_dim)
    assert_near(1 + free_form_posterior(p.log_joint, p.cell_volume).multiplier, p.log_evidence, 1e-9)


@one_or_two_latents
def test_elbo_of_the_free_form_minimiser_is_the_log_evidence(latent_dim: int) -> None:
    p = problem(latent_dim)
    q = free_form_posterior(p.log_joint, p.cell_volume).q
    assert_near(-p.functional(q), p.log_evidence, 1e-9)
    assert_near(p.integral(q * p.log_likelihood) - p.kl(q, p.log_prior), p.log_evidence, 1e-9)


@one_or_two_latents
def test_the_lagrangian_is_stationary_at_the_free_form_minimiser(latent_dim: int) -> None:
    p = problem(latent_dim)
    solution = free_form_posterior(p.log_joint, p.cell_volume)
    q, multiplier = (part.clone().requires_grad_() for part in solution)
    lagrangian = p.integral(q * (q.log() - p.log_joint)) + multiplier * (p.integral(q) - 1)
    for gradient in torch.autograd.grad(lagrangian, (q, multiplier)):
        assert_near(gradient / p.cell_volume, 0.0, 1e-9)


def test_the_second_variation_is_diagonal_and_positive() -> None:
    p = problem(1, num_points=41, limit=4.0)
    q = free_form_posterior(p.log_joint, p.cell_volume).q
    q.requires_grad_()
    (gradient,) = torch.autograd.grad(p.integral(q * (q.log() - p.log_joint)), q, create_graph=True)
    hessian = torch.stack([torch.autograd.grad(slope, q, retain_graph=True)[0] for slope in gradient])
    torch.testing.assert_close(hessian, torch.diag(p.cell_volume / q.detach()), rtol=1e-12, atol=0)
    assert (hessian.diagonal() > 0).all()


@one_or_two_latents
@few_examples
@given(seed=seeds, log10_size=st.floats(-2, 0.5))
def test_every_other_normalised_q_has_a_larger_functional(latent_dim: int, seed: int, log10_size: float) -> None:
    p = problem(latent_dim)
    minimiser = free_form_posterior(p.log_joint, p.cell_volume).q
    perturbed = minimiser * torch.exp(10**log10_size * randn(seed, len(minimiser)))
    for q in (perturbed / p.integral(perturbed), p.arbitrary_q(seed)):
        assert p.functional(q) > p.functional(minimiser)


def test_a_descent_that_knows_no_calculus_of_variations_ends_at_the_same_minimum() -> None:
    p = problem(1, num_points=41, limit=4.0)
    scores = torch.zeros(41, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS(
        [scores], max_iter=600, max_eval=2000, history_size=41, tolerance_grad=1e-13, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def functional() -> Tensor:
        log_mass = scores.log_softmax(0)
        value = (log_mass.exp() * (log_mass - math.log(p.cell_volume) - p.log_joint)).sum()
        (scores.grad,) = torch.autograd.grad(value, scores)
        return value

    optimiser.step(functional)  # type: ignore[no-untyped-call]
    q, multiplier = free_form_posterior(p.log_joint, p.cell_volume)
    assert_near(scores.softmax(0) / p.cell_volume, q, 1e-5)
    assert_near(-functional(), 1 + multiplier, 1e-9)


@one_or_two_latents
def test_with_the_posterior_in_place_of_the_joint_the_multiplier_is_minus_one(latent_dim: int) -> None:
    p = problem(latent_dim)
    solution = free_form_posterior(p.log_posterior, p.cell_volume)
    assert_near(solution.multiplier, -1.0, 1e-9)
    assert_near(solution.q, p.log_posterior.exp(), 1e-9)


@few_examples
@given(shift=st.floats(-1e5, 1e5))
def test_scaling_the_joint_by_e_to_the_c_adds_c_to_the_multiplier_and_leaves_q(shift: float) -> None:
    p = problem(1)
    plain, shifted = (free_form_posterior(p.log_joint + c, p.cell_volume) for c in (0.0, shift))
    assert_near(shifted.multiplier - plain.multiplier, shift, 1e-9)
    assert_near(shifted.q, plain.q, 1e-9)


def test_free_form_gives_no_mass_where_the_joint_is_zero() -> None:
    p = problem(1)
    q = free_form_posterior(torch.where(p.z[:, 0] > 0, p.log_joint, -torch.inf), p.cell_volume).q
    assert (q[p.z[:, 0] <= 0] == 0).all()
    assert_near(p.integral(q), 1.0, 1e-12)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_free_form_refuses_a_joint_that_is_not_finite(bad: float) -> None:
    with pytest.raises(ValueError, match="must be finite"):
        free_form_posterior(torch.tensor([0.0, bad]), 1.0)
    with pytest.raises(ValueError, match="must be finite"):
        free_form_posterior(torch.full((3,), -torch.inf), 1.0)


@one_or_two_latents
@few_examples
@given(seed=seeds)
def test_log_evidence_is_elbo_plus_kl_to_the_posterior_for_any_q(latent_dim: int, seed: int) -> None:
    p = problem(latent_dim)
    q = p.arbitrary_q(seed)
    elbo = p.integral(q * p.log_likelihood) - p.kl(q, p.log_prior)
    assert_near(elbo, -p.functional(q), 1e-9)
    assert_near(elbo + p.kl(q, p.log_posterior), p.log_evidence, 1e-9)
    assert elbo < p.log_evidence


@one_or_two_latents
@few_examples
@given(seed=seeds)
def test_dropping_the_expected_log_likelihood_breaks_the_identity_by_just_that_term(latent_dim: int, seed: int) -> None:
    p = problem(latent_dim)
    q = p.arbitrary_q(seed)
    left, slip = p.kl(q, p.log_posterior), p.kl(q, p.log_prior) + p.log_evidence
    expected_log_likelihood = p.integral(q * p.log_likelihood)
    assert (left - slip).abs() > 0.1
    assert_near(left - slip, -expected_log_likelihood, 1e-9)


@one_or_two_latents
def test_minus_kl_to_the_prior_is_no_lower_bound(latent_dim: int) -> None:
    p = problem(latent_dim)
    assert -p.kl(p.log_prior.exp(), p.log_prior) > p.log_evidence + 1


def test_gauss_hermite_refuses_rules_whose_weights_overflow() -> None:
    assert gauss_hermite_log_evidence(lambda z: torch.zeros(len(z)), 300).abs() < 1e-12
    with pytest.raises(ValueError, match="num_nodes is 301"):
        gauss_hermite_log_evidence(lambda z: torch.zeros(len(z)), 301)


@one_or_two_latents
def test_gauss_hermite_and_the_grid_agree_on_the_log_evidence(latent_dim: int) -> None:
    p = problem(latent_dim)
    assert_near(grid_log_evidence(p.log_likelihood_at, p.z, p.cell_volume), p.log_evidence, 1e-9)


@one_or_two_latents
def test_both_quadratures_reach_the_ppca_log_evidence_of_several_rows(latent_dim: int) -> None:
    x, model = table()[:5], rotated(fit_ppca(table() / 3, latent_dim))._replace(variance=torch.tensor(2.0, dtype=torch.float64))

    def log_likelihood(z: Tensor) -> Tensor:
        return log_prob(decoder(model, z[:, None]), x).sum(-1)

    assert_near(gauss_hermite_log_evidence(log_likelihood, 64, latent_dim), model.log_evidence(x), 1e-9)
    assert_near(grid_log_evidence(log_likelihood, *latent_grid(latent_dim, 201)), model.log_evidence(x), 1e-9)


@one_or_two_latents
def test_gauss_hermite_is_exact_for_polynomials(latent_dim: int) -> None:
    log_evidence = gauss_hermite_log_evidence(lambda z: (z**6).prod(-1).log(), 4, latent_dim)
    assert_near(log_evidence, latent_dim * math.log(15), 1e-12)  # E z^6 = 5!! = 15
