"""Claims about importance weights and the shape of their tail. Shapes: S samples, B rows, M largest weights."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.vae.audit_models import blank, nonlinear_vae, randn, simulated
from vae import evidence
from vae.evidence import LogJoint, log_mean_exp, log_weights
from vae.importance import bound_of_weights, generalised_pareto_shape, importance_bound, tail_length
from vae.model import VAE
from vae.row_noise import RowNoise

BITS = {"name": "bits", "likelihood": "bernoulli", "valid_size": 12, "size": 12}


def uniform(seed: int, *shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def zhang_and_stephens(x: np.ndarray) -> float:
    """Their estimate of k of one ascending sample, by the formulas of the paper's section 3 and the prior of Vehtari et al., in loops."""
    n, m = len(x), 30 + int(np.sqrt(len(x)))
    theta = [1 / x[-1] + (1 - np.sqrt(m / (j - 0.5))) / (3 * x[int(n / 4 + 0.5) - 1]) for j in range(1, m + 1)]
    k = [-np.log(1 - t * x).mean() for t in theta]
    profile = [n * (np.log(t / s) + s - 1) for t, s in zip(theta, k, strict=True)]
    weight = [1 / sum(np.exp(other - own) for other in profile) for own in profile]
    mean = sum(w * t for w, t in zip(weight, theta, strict=True))
    return float((n * np.log(1 - mean * x).mean() + 5) / (n + 10))


@pytest.mark.parametrize("k", [-0.5, 0.3, 0.7, 1.5])
def test_the_shape_of_generalised_pareto_numbers_is_found(k: float) -> None:
    numbers = ((1 - uniform(0, 400, 300)).pow(-k) - 1) / k
    found = generalised_pareto_shape(numbers.sort(0).values)
    assert abs(found.mean().item() - (400 * k + 5) / 410) < 0.03
    assert found.std() < 1.5 * max(1 + k, 0.8) / math.sqrt(400)  # the asymptotic standard deviation is (1 + k) / sqrt(M)


def test_it_is_zhang_and_stephens_estimate_row_by_row() -> None:
    numbers = randn(1, 57, 6).abs().pow(torch.arange(1, 7)).sort(0).values
    expected = [zhang_and_stephens(column.numpy()) for column in numbers.unbind(1)]
    torch.testing.assert_close(generalised_pareto_shape(numbers), torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-10)


@pytest.mark.parametrize("k", [0.25, 0.5, 1.0])
def test_the_tail_of_pareto_weights_has_their_index(k: float) -> None:
    log_w = -k * torch.log1p(-uniform(2, 20_000, 40)) - 1000
    found = bound_of_weights([log_w], 20_000).pareto_k
    assert abs(found.mean().item() - k) < 0.05


def test_bounded_weights_have_no_heavy_tail_and_those_with_one_giant_have() -> None:
    log_w = torch.log(uniform(3, 5000, 3))
    log_w[7, 1] = 30.0
    log_w[7, 2] = 800.0  # beside which the others are 0
    low, high, highest = bound_of_weights([log_w], 5000).pareto_k.tolist()
    assert low < 0
    assert high > 0.7
    assert highest > 0.7


def test_the_same_weights_throughout_are_exact() -> None:
    bound = bound_of_weights([torch.full((50, 2), -321.5) + 1e-12 * randn(0, 50, 2)], 50)
    torch.testing.assert_close(bound.log_evidence, torch.full((2,), -321.5, dtype=torch.float64))
    torch.testing.assert_close(bound.effective_sample_size, torch.full((2,), 50.0, dtype=torch.float64))
    assert bound.standard_error.max() < 1e-6
    assert bound.pareto_k.tolist() == [-math.inf, -math.inf]


@pytest.mark.parametrize("size", [1, 64, 700])
def test_weights_may_come_in_any_parts(size: int) -> None:
    log_w = 3 * randn(4, 1000, 5) - 1e4
    whole, parts = bound_of_weights([log_w], 1000), bound_of_weights(torch.split(log_w, size), 1000)
    for expected, found in zip(whole, parts, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(whole.elbo, log_w.mean(0))
    torch.testing.assert_close(whole.log_evidence, log_mean_exp(log_w))
    w = (log_w - log_w.max(0).values).exp()
    torch.testing.assert_close(whole.effective_sample_size, w.sum(0).square() / w.square().sum(0))
    torch.testing.assert_close(whole.standard_error, w.std(0) / w.mean(0) / math.sqrt(1000))


def test_a_weight_that_is_not_a_number_is_seen() -> None:
    log_w = randn(5, 100, 2)
    log_w[3, 0] = math.nan
    bound = bound_of_weights([log_w], 100)
    assert bound.log_evidence.isnan().tolist() == [True, False]
    assert bound.pareto_k.isnan().tolist() == [True, False]


def test_too_few_samples_for_a_tail_are_refused() -> None:
    with pytest.raises(ValueError, match=r"num_importance_samples is 24; .* must be 25 or more"):
        bound_of_weights([randn(0, 24, 1)], 24)
    assert tail_length(25) == 5
    assert tail_length(5000) == 213


@pytest.mark.parametrize("posterior", ["diagonal", "full"])
@pytest.mark.parametrize("prior", ["standard", "mixture", "vamp"])
def test_no_step_takes_more_memory_than_samples_at_once_may(prior: str, posterior: str, monkeypatch: pytest.MonkeyPatch) -> None:
    max_numbers = 2**16
    monkeypatch.setattr(evidence, "MAX_OUTPUTS", max_numbers)
    model = VAE([BITS], 6, [16], prior=prior, posterior=posterior, num_prior_components=200).double()
    rows = simulated(model, blank(10, bits=(torch.int8, 12)), 0)
    with torch.no_grad(), torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        log_weights(model, rows, model.posterior(rows), 200, torch.Generator().manual_seed(0))
    largest = max(event.cpu_memory_usage for event in profile.events() or [])
    assert largest <= 2 * max_numbers * torch.float64.itemsize


def test_the_bound_depends_on_neither_memory_nor_batches() -> None:
    model = nonlinear_vae([BITS], 2)
    rows = simulated(model, blank(6, bits=(torch.int8, 12)), 0)

    def bound(first: int, end: int, at_once: int) -> Tensor:
        joint = LogJoint(model, rows.slice(first, end))
        joint.at_once = at_once
        return importance_bound(joint, model.posterior(rows.slice(first, end)), 100, RowNoise(3, "test", range(first, end))).log_evidence

    whole = bound(0, 6, 1000)
    torch.testing.assert_close(bound(0, 6, 7), whole, rtol=0, atol=1e-10)
    torch.testing.assert_close(torch.cat([bound(0, 1, 33), bound(1, 6, 33)]), whole, rtol=0, atol=1e-10)
    assert whole.requires_grad is False
