"""Claims about annealed importance sampling, on posteriors that are known. Shapes: C chains, B rows, L latent dimensions."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.vae.audit_models import blank, nonlinear_vae, ppca_vae, quadrature, randn, simulated
from tests.vae.linear_models import standardised
from vae.annealing import Annealed, AnnealedBound, Annealing, prior_start
from vae.evidence import LogJoint
from vae.oracle import PPCA
from vae.posteriors import DiagonalGaussian, FullGaussian, Posterior
from vae.row_noise import RowNoise

BITS = {"name": "bits", "likelihood": "bernoulli", "valid_size": 12, "size": 12}
NUM_ROWS = 4


def decoder() -> PPCA:
    """Three features of two correlated latent dimensions."""
    weight = torch.tensor([[1.0, 0.6], [0.4, 1.0], [0.8, 0.8]], dtype=torch.float64)
    return PPCA(weight, torch.zeros(3, dtype=torch.float64), torch.tensor(0.5, dtype=torch.float64), torch.tensor(math.nan))


def x() -> Tensor:
    return randn(0, NUM_ROWS, 3)


def noise(purpose: str, num_rows: int = NUM_ROWS) -> RowNoise:
    return RowNoise(11, purpose, range(num_rows))


def bad_start(family: str) -> Posterior:
    """Not the posterior, nor near it."""
    mean = 0.5 + 0.2 * randn(1, NUM_ROWS, 2)
    if family == "diagonal":
        return DiagonalGaussian(mean, 0.2 * randn(2, NUM_ROWS, 2))
    return FullGaussian(mean, torch.eye(2, dtype=torch.float64) + 0.3 * randn(3, NUM_ROWS, 2, 2).tril())


def annealed(start: Posterior, **arguments: int) -> Annealed:
    model = ppca_vae(decoder()).requires_grad_(False)
    joint = LogJoint(model, standardised(x(), torch.zeros(3, dtype=torch.float64), 1.0))
    return Annealed(joint, start, replace(Annealing(num_chains=4000, num_temperatures=4, num_leapfrog_steps=2), **arguments))


def assert_mean_is(numbers: Tensor, expected: float | Tensor) -> None:
    """Of numbers [C, ..], to 4 standard errors, which are small."""
    error = numbers.std(0) / math.sqrt(len(numbers))
    assert error.max() < 0.1
    assert ((numbers.mean(0) - expected).abs() < 4 * error).all()


@pytest.mark.parametrize("family", ["diagonal", "full"])
def test_the_mean_weight_is_the_evidence_after_a_few_temperatures_already(family: str) -> None:
    run = annealed(bad_start(family))
    bound = run.forward(torch.full((3, NUM_ROWS), 0.7, dtype=torch.float64), noise("forward"))
    assert bound.acceptance.min() > 0.2
    assert bound.acceptance.max() < 0.99  # the step is long enough to be refused at times
    assert_mean_is((bound.log_weights - decoder().log_evidence(x())).exp(), 1.0)
    assert bound.log_weights.std() > 0.1


def test_a_transition_leaves_the_posterior_as_it_is() -> None:
    mean, covariance = decoder().posterior(x())
    start = bad_start("full")
    run = annealed(start)
    factor = torch.linalg.cholesky(covariance)
    before = run.state(start.standardise(mean + randn(4, 4000, NUM_ROWS, 2) @ factor.mT))
    after, acceptance = run.transition(before, 1.0, torch.full((NUM_ROWS,), 0.6, dtype=torch.float64), noise("transition"))
    assert 0.3 < acceptance.mean() < 0.95
    assert ((after.u - before.u).abs().sum(-1) > 0.1).float().mean() > 0.3
    standardised_z = torch.linalg.solve_triangular(factor, (start.rsample(after.u) - mean)[..., None], upper=False).squeeze(-1)
    assert_mean_is(standardised_z, 0.0)
    assert_mean_is(standardised_z[..., :, None] * standardised_z[..., None, :], torch.eye(2, dtype=torch.float64))
    torch.testing.assert_close(after.log_w, run.state(after.u).log_w)


def test_in_reverse_the_mean_of_the_inverse_weight_is_that_of_the_evidence() -> None:
    """From a start that is narrower than the posterior, with which inverse weights have a variance; one row, 3,000 times."""
    one = x()[:1].expand(3000, -1)
    (mean, covariance), exact = decoder().posterior(one), decoder().log_evidence(one)
    joint = LogJoint(ppca_vae(decoder()).requires_grad_(False), standardised(one, torch.zeros(3, dtype=torch.float64), 1.0))
    run = Annealed(joint, DiagonalGaussian(mean + 0.3, torch.full_like(mean, -1.2)), Annealing(1, num_temperatures=4, num_leapfrog_steps=2))
    z = mean + randn(5, 3000, 2) @ torch.linalg.cholesky(covariance).mT
    upper = run.reverse(z, torch.full((3, 3000), 0.6, dtype=torch.float64), noise("reverse", 3000))
    assert_mean_is((exact - upper).exp(), 1.0)
    assert upper.std() > 0.1
    assert (upper - exact).mean() > 4 * upper.std() / math.sqrt(3000)


def test_the_pilot_run_finds_steps_that_are_accepted_as_often_as_wished() -> None:
    run = annealed(bad_start("full"), num_chains=50, num_temperatures=60, num_pilot_chains=8)
    step_sizes = run.tuned_step_sizes(noise("pilot"))
    assert step_sizes.shape == (59, NUM_ROWS)
    bound = run.forward(step_sizes, noise("forward"))
    torch.testing.assert_close(bound.acceptance, torch.full((NUM_ROWS,), 0.8, dtype=torch.float64), rtol=0, atol=0.08)
    assert ((bound.log_evidence - decoder().log_evidence(x())).abs() < 4 * bound.standard_error).all()
    assert bound.standard_error.max() < 0.1


def test_a_path_that_leaves_the_numbers_is_refused() -> None:
    run = annealed(bad_start("diagonal"), num_chains=3)
    before = run.state(randn(6, 3, NUM_ROWS, 2))
    after, acceptance = run.transition(before, 1.0, torch.full((NUM_ROWS,), 1e200, dtype=torch.float64), noise("far"))
    assert acceptance.max() == 0
    assert all(torch.equal(one, other) for one, other in zip(after, before, strict=True))


def test_temperatures_rise_from_0_to_1() -> None:
    betas = torch.tensor(Annealing(num_temperatures=50).betas())
    assert betas[[0, -1]].tolist() == [0.0, 1.0]
    assert (betas.diff() > 0).all()
    with pytest.raises(ValueError, match="num_temperatures is 1; annealing needs 2"):
        Annealing(num_temperatures=1)


def test_the_error_of_a_mean_weight_is_its_own_standard_deviation_and_unknown_of_one_chain() -> None:
    log_w = 0.01 * randn(7, 200, 3) - 500
    expected = (log_w + 500).exp().std(0) / math.sqrt(200) / (log_w + 500).exp().mean(0)
    torch.testing.assert_close(AnnealedBound(log_w, torch.ones(3)).standard_error, expected)
    assert AnnealedBound(log_w[:1], torch.ones(3)).standard_error.tolist() == [math.inf] * 3


@pytest.mark.parametrize("prior", ["standard", "mixture", "vamp"])
def test_annealing_from_the_prior_reaches_log_p_of_any_prior(prior: str) -> None:
    model = nonlinear_vae([BITS], 2, prior=prior, num_prior_components=3).requires_grad_(False)
    rows = simulated(model, blank(5, bits=(torch.int8, 12)), 1)
    joint = LogJoint(model, rows)
    start = prior_start(joint.prior, model.posterior(rows))
    z = joint.prior.sample(40_000, torch.Generator().manual_seed(0)).double()
    torch.testing.assert_close(start.mean, z.mean(0).expand(5, -1), rtol=0, atol=0.04)
    torch.testing.assert_close(start.scale, z.std(0).expand(5, -1), rtol=0.03, atol=0)
    run = Annealed(joint, start, Annealing(num_chains=32, num_temperatures=60, num_leapfrog_steps=3))
    bound = run.forward(run.tuned_step_sizes(noise("pilot", 5)), noise("forward", 5))
    error = (bound.log_evidence - quadrature(model, rows)).abs()
    assert (error < 4 * bound.standard_error).all()
    assert bound.standard_error.max() < 0.3
