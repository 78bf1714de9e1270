"""Claims about vae.posteriors. Shapes: S samples, B rows, L latent dimensions."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import Distribution, Independent, Normal, kl_divergence

from vae.posteriors import MAX_LOG_SCALE, MIN_LOG_SCALE, DiagonalGaussian
from vae.priors import StandardNormal

cells = st.tuples(st.floats(-8, 8), st.floats(MIN_LOG_SCALE, MAX_LOG_SCALE), st.floats(-6, 6))
tables = st.tuples(st.integers(1, 4), st.integers(1, 5)).flatmap(
    lambda shape: st.lists(cells, min_size=shape[0] * shape[1], max_size=shape[0] * shape[1]).map(
        lambda drawn: torch.tensor(drawn, dtype=torch.float64).reshape(*shape, 3).unbind(-1)
    )
)


def torch_normal(mean: Tensor, log_scale: Tensor) -> Distribution:
    return Independent(Normal(mean, log_scale.exp()), 1)


def cdf(distribution: Distribution, value: Tensor) -> Tensor:
    """What torch.distributions says, through the one class of it that is typed."""
    return distribution.cdf(value)


def assert_equal(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


@given(table=tables)
def test_kl_to_the_standard_normal_is_torchs(table: tuple[Tensor, Tensor, Tensor]) -> None:
    q_z = DiagonalGaussian(table[0], table[1])
    prior = torch_normal(torch.zeros_like(q_z.mean), torch.zeros_like(q_z.mean))
    kl = q_z.kl(StandardNormal(q_z.mean.shape[1]))
    assert kl.shape == q_z.mean.shape[:1]
    assert_equal(kl, kl_divergence(torch_normal(*q_z.parameters), prior))
    assert (kl > -1e-15).all()


@given(table=tables)
def test_kl_to_the_standard_normal_is_the_sum_of_its_parts_and_so_are_its_gradients(table: tuple[Tensor, Tensor, Tensor]) -> None:
    q_z = DiagonalGaussian(table[0].clone().requires_grad_(), table[1].clone().requires_grad_())
    prior = StandardNormal(q_z.mean.shape[1])
    parts = q_z.kl_by_dimension(prior)
    assert parts is not None
    expected, found = parts.sum(-1), q_z.kl(prior)
    assert_equal(found, expected)
    weights = torch.linspace(-1, 2, len(found), dtype=torch.float64)
    for one, other in zip(*(torch.autograd.grad((weights * kl).sum(), q_z.parameters) for kl in (found, expected)), strict=True):
        assert_equal(one, other)


@given(table=tables)
def test_a_sample_with_its_kl_is_both_and_so_are_their_gradients(table: tuple[Tensor, Tensor, Tensor]) -> None:
    mean, log_scale, noise = table
    outputs = torch.cat([mean, log_scale], -1).requires_grad_()  # some of them beyond the bounds
    q_z, prior = DiagonalGaussian.from_outputs(outputs, mean.shape[1]), StandardNormal(mean.shape[1])
    apart = DiagonalGaussian(*q_z.parameters)
    expected, found = (apart.rsample(noise), apart.kl(prior)), q_z.rsample_with_kl(noise, prior)
    assert_equal(found[0], expected[0])
    assert_equal(found[1], expected[1])
    weights = torch.linspace(-1, 2, len(mean), dtype=torch.float64)
    sums = [(weights * kl).sum() + (weights[:, None] * z.sin()).sum() for z, kl in (found, expected)]
    assert_equal(*(torch.autograd.grad(total, outputs)[0] for total in sums))


def test_a_bounded_log_scale_gets_no_gradient_from_a_sample_with_its_kl() -> None:
    outputs = torch.tensor([[0.5, -0.5, MAX_LOG_SCALE + 1, MIN_LOG_SCALE - 1]], dtype=torch.float64, requires_grad=True)
    z, kl = DiagonalGaussian.from_outputs(outputs, 2).rsample_with_kl(torch.ones(1, 2, dtype=torch.float64), StandardNormal(2))
    (gradient,) = torch.autograd.grad(z.sum() + kl.sum(), outputs)
    assert (gradient[0, :2] != 0).all()
    assert (gradient[0, 2:] == 0).all()


def test_second_gradients_of_a_sample_with_its_kl_are_refused_and_not_wrong() -> None:
    outputs = torch.ones(3, 4, dtype=torch.float64, requires_grad=True)
    _, kl = DiagonalGaussian.from_outputs(outputs, 2).rsample_with_kl(torch.zeros(3, 2, dtype=torch.float64), StandardNormal(2))
    with pytest.raises(RuntimeError, match="leave out create_graph"):
        torch.autograd.grad(kl.sum(), outputs, create_graph=True)


def test_kl_is_zero_at_the_prior_and_only_there() -> None:
    zeros = torch.zeros(3, 2, dtype=torch.float64)
    assert (DiagonalGaussian(zeros, zeros).kl(StandardNormal(2)) == 0).all()
    assert (DiagonalGaussian(zeros + 1e-3, zeros).kl(StandardNormal(2)) > 0).all()
    assert (DiagonalGaussian(zeros, zeros + 1e-3).kl(StandardNormal(2)) > 0).all()


def test_kl_is_the_integral_of_q_times_log_q_over_p() -> None:
    q_z = DiagonalGaussian(torch.tensor([[0.7], [-2.0]], dtype=torch.float64), torch.tensor([[-0.4], [0.3]], dtype=torch.float64))
    z = torch.linspace(-20, 20, 4001, dtype=torch.float64)[:, None, None].expand(-1, 2, 1)
    log_q = q_z.log_prob(z)
    integral = (log_q.exp() * (log_q - StandardNormal(1).log_prob(z))).sum(0) * 0.01
    assert_equal(q_z.kl(StandardNormal(1)), integral)


@given(table=tables)
def test_log_prob_is_torchs_with_and_without_a_sample_dimension(table: tuple[Tensor, Tensor, Tensor]) -> None:
    q_z = DiagonalGaussian(table[0], table[1])
    z = q_z.rsample(table[2])
    assert_equal(q_z.log_prob(z), torch_normal(*q_z.parameters).log_prob(z))
    samples = torch.stack([z, q_z.mean, 2 * z])
    assert q_z.log_prob(samples).shape == samples.shape[:2]
    assert_equal(q_z.log_prob(samples), torch_normal(*q_z.parameters).log_prob(samples))


@given(table=tables)
def test_rsample_carries_the_noises_quantiles_to_the_posterior(table: tuple[Tensor, Tensor, Tensor]) -> None:
    mean, log_scale, noise = table
    q_z = DiagonalGaussian(mean, log_scale)
    quantiles = cdf(Normal(mean, log_scale.exp()), q_z.rsample(noise))
    atol = 1e-15 * (1 + float((mean.abs() / q_z.scale).max()))  # z - mean rounds to 1e-16 of the mean, over a scale of 1
    torch.testing.assert_close(quantiles, cdf(Normal(0.0, 1.0), noise), rtol=0, atol=atol)
    assert q_z.rsample(torch.stack([noise, -noise])).shape == (2, *mean.shape)


def test_rsample_is_torchs_draw_for_the_same_noise() -> None:
    mean, log_scale = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        drawn = torch_normal(mean, log_scale).rsample(torch.Size([5]))
        torch.manual_seed(1)
        noise = torch_normal(0 * mean, 0 * log_scale).rsample(torch.Size([5]))
    assert drawn.std() > 0.1
    assert_equal(DiagonalGaussian(mean, log_scale).rsample(noise), drawn)


@given(table=tables)
def test_rsample_passes_gradients_to_mean_and_scale(table: tuple[Tensor, Tensor, Tensor]) -> None:
    mean, log_scale, noise = table
    q_z = DiagonalGaussian(mean.clone().requires_grad_(), log_scale.clone().requires_grad_())
    by_mean, by_log_scale = torch.autograd.grad(q_z.rsample(noise).sum(), (q_z.mean, q_z.log_scale))
    assert_equal(by_mean, torch.ones_like(mean))
    assert_equal(by_log_scale, log_scale.exp() * noise)


def test_encoder_outputs_are_means_and_then_bounded_log_scales() -> None:
    q_z = DiagonalGaussian.from_outputs(torch.tensor([[1e6, -3.0, 1e6, -1e6], [0.5, 2.0, 0.1, -0.2]], dtype=torch.float64), 2)
    assert_equal(q_z.mean, torch.tensor([[1e6, -3.0], [0.5, 2.0]], dtype=torch.float64))
    assert_equal(q_z.log_scale, torch.tensor([[MAX_LOG_SCALE, MIN_LOG_SCALE], [0.1, -0.2]], dtype=torch.float64))
    assert_equal(q_z.scale, q_z.log_scale.exp())
