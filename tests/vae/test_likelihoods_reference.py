"""Claims about numbers: the likelihoods against scipy.stats and mpmath, and what float32 keeps of them."""

from __future__ import annotations

import math

import mpmath  # type: ignore[import-untyped]
import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.vae.likelihood_cases import CASES, disturb, outputs_of
from vae.bernoulli import SMALL_LOGIT, ContinuousBernoulliCells
from vae.continuous import StudentT, StudentTCells
from vae.counts import (
    MAX_LOG_DISPERSION,
    MIN_LOG_DISPERSION,
    NegativeBinomialCells,
    PoissonCells,
    ZeroInflatedCells,
)
from vae.logistic_mass import log1mexp, log_logistic_density, log_logistic_mass
from vae.mixtures import Logistics
from vae.normal_mass import Interval

float64 = torch.float64
both_precisions = pytest.mark.parametrize(("dtype", "tolerance"), [(float64, 1e-12), (torch.float32, 1e-5)])


def assert_values(actual: Tensor, expected: object, rtol: float = 1e-9, atol: float = 1e-9) -> None:
    torch.testing.assert_close(actual.detach().double(), torch.as_tensor(np.asarray(expected), dtype=float64), rtol=rtol, atol=atol)


# Densities


@pytest.mark.parametrize("df", [1.001, 1.5, 5.0, 80.0, 1000.0])
@pytest.mark.parametrize("dtype", [float64, torch.float32])
def test_student_t_is_scipys(df: float, dtype: torch.dtype) -> None:
    values = torch.linspace(-300, 300, 41, dtype=dtype)[:, None]
    cells = StudentTCells(torch.full((1, 1), 0.7, dtype=dtype), torch.tensor([-0.5], dtype=dtype), torch.tensor([df], dtype=dtype))
    held = cells.df.item()
    expected = scipy.stats.t.logpdf(values.double().numpy(), held, cells.location.item(), math.exp(-0.5))
    assert_values(cells.log_prob(values), expected, rtol=1e-9 if dtype == float64 else 2e-6, atol=1e-9 if dtype == float64 else 2e-6)


def test_degrees_of_freedom_start_at_5_and_stay_between_1_and_1000() -> None:
    likelihood = StudentT(2).double()
    assert likelihood(torch.zeros(1, 2)).df.tolist() == pytest.approx([5, 5])
    likelihood.log_excess_df.data = torch.tensor([-1e30, 1e30], dtype=float64)
    low, high = likelihood(torch.zeros(1, 2)).df.tolist()
    assert 1 < low < 1.01
    assert high == pytest.approx(1000)


def test_a_mixture_of_logistics_is_scipys() -> None:
    likelihood = disturb(Logistics(2, 3).double(), 0)
    outputs = outputs_of(likelihood, 4, 1)
    values = torch.linspace(-20, 20, 8, dtype=float64).reshape(4, 2)
    weights, location, log_scale = (part.detach().numpy() for part in likelihood(outputs).components)
    density = np.exp(weights) * scipy.stats.logistic.pdf(values.numpy()[:, None], location, np.exp(log_scale))
    assert_values(likelihood(outputs).log_prob(values), np.log(density.sum(1)))


@pytest.mark.parametrize("num_components", [1, 2, 5, 20])
def test_a_mixture_starts_with_distinct_components_and_with_mean_0_and_variance_1(num_components: int) -> None:
    likelihood = Logistics(1, num_components).double()
    y = torch.linspace(-30, 30, 60_001, dtype=float64)[:, None]
    with torch.no_grad():
        cells = likelihood(torch.zeros(1, likelihood.num_outputs, dtype=float64))
        p = cells.log_prob(y).exp() * 0.001
    assert (p * y).sum().item() == pytest.approx(0, abs=1e-6)
    assert (p * y.square()).sum().item() == pytest.approx(1, abs=1e-4)
    assert cells.components.location.unique().numel() == num_components


def test_components_are_no_narrower_than_they_may_be() -> None:
    likelihood = Logistics(3, 2, min_log_scale=[-1.0, -3.0, -50.0])
    _, _, log_scale = likelihood(torch.full((1, likelihood.num_outputs), -1e6)).components
    assert log_scale[0].tolist() == [[-1.0, -3.0, -7.0]] * 2


# Masses of intervals under a logistic


def exact_log_mass(middle: float, half_width: float, at_lower: bool, at_upper: bool) -> float:
    """log(sigmoid(middle + half_width) - sigmoid(middle - half_width)) to 400 digits, rounded once."""
    with mpmath.workdps(400):
        ends = mpmath.mpf(middle) - mpmath.mpf(half_width), mpmath.mpf(middle) + mpmath.mpf(half_width)
        below = mpmath.mpf(0) if at_lower else 1 / (1 + mpmath.exp(-ends[0]))
        above = mpmath.mpf(1) if at_upper else 1 / (1 + mpmath.exp(-ends[1]))
        return float(mpmath.log(above - below))


@both_precisions
@settings(max_examples=300)
@given(
    middle=st.one_of(st.floats(-20, 20), st.floats(-300, 300)),
    half_width=st.floats(-7, 2).map(lambda e: 10**e),
    end=st.sampled_from([(False, False), (False, False), (True, False), (False, True)]),
)
def test_the_logistic_mass_of_an_interval_is_exact_to_rounding(
    dtype: torch.dtype, tolerance: float, middle: float, half_width: float, end: tuple[bool, bool]
) -> None:
    m, h = torch.tensor([middle], dtype=dtype), torch.tensor([half_width], dtype=dtype)
    zero = torch.zeros(1, dtype=dtype)
    actual = log_logistic_mass(Interval(m, h, torch.tensor([end[0]]), torch.tensor([end[1]])), zero, zero)
    assert actual.dtype == dtype
    exact = exact_log_mass(m.item(), h.item(), *end)
    # Where the nearer end is next to 0, rounding it is a relative error of the distance: eps * middle.
    near_edge = 2 * torch.finfo(dtype).eps * abs(middle)
    tiny = torch.finfo(dtype).tiny
    assert abs(actual.item() - exact) <= tolerance * abs(exact) + near_edge * math.exp(-abs(abs(middle) - half_width)) + tiny


@both_precisions
def test_log1mexp_is_exact_from_the_least_to_the_largest(dtype: torch.dtype, tolerance: float) -> None:
    x = torch.logspace(-30, 1.9, 400, dtype=dtype)
    with mpmath.workdps(60):
        expected = [float(mpmath.log(-mpmath.expm1(-mpmath.mpf(number)))) for number in x.tolist()]
    torch.testing.assert_close(log1mexp(x).double(), torch.tensor(expected, dtype=float64), rtol=tolerance, atol=0)


def test_a_narrow_interval_has_the_density_times_its_width() -> None:
    z = torch.linspace(-30, 30, 61, dtype=float64)
    no = torch.zeros(61, dtype=torch.bool)
    mass = log_logistic_mass(Interval(z, torch.full_like(z, 1e-9), no, no), torch.zeros(()), torch.zeros(()))
    density = log_logistic_density(z, torch.zeros((), dtype=float64), torch.zeros((), dtype=float64))
    assert_values(mass, (density + math.log(2e-9)).numpy(), rtol=1e-12, atol=0)


# Grey levels


@pytest.mark.parametrize("logit", [-3e3, -80.0, -3.0, -SMALL_LOGIT, -0.299, -1e-3, 0.0, 1e-6, 0.2, 0.301, 7.0, 1e4])
@both_precisions
def test_grey_levels_have_the_exact_density_mean_and_slope(logit: float, dtype: torch.dtype, tolerance: float) -> None:
    said = torch.full((5, 1), logit, dtype=dtype, requires_grad=True)
    y = torch.tensor([[0.0], [0.25], [0.5], [0.75], [1.0]], dtype=dtype)
    cells = ContinuousBernoulliCells(said)
    log_p = cells.log_prob(y)
    (slopes,) = torch.autograd.grad(log_p.sum(), said)
    with mpmath.workdps(60):
        eta = mpmath.mpf(said[0].item())
        log_integral = mpmath.log(mpmath.expm1(eta) / eta) if eta else mpmath.mpf(0)
        mean = 1 / (1 - mpmath.exp(-eta)) - 1 / eta if eta else mpmath.mpf(0.5)
        expected = [float(eta * number - log_integral) for number in y[:, 0].tolist()]
        expected_slopes = [float(number - mean) for number in y[:, 0].tolist()]
    assert_values(log_p[:, 0], expected, rtol=tolerance, atol=tolerance)
    assert_values(slopes[:, 0], expected_slopes, rtol=tolerance, atol=1e-9 if dtype == float64 else tolerance)
    assert_values(cells.mean[:, 0], [float(mean)] * 5, rtol=tolerance, atol=tolerance)


def test_grey_bytes_have_the_density_of_grey_levels_per_byte() -> None:
    floats, pixels = (CASES[name].build() for name in ("grey levels", "grey bytes"))
    outputs = torch.linspace(-9, 9, 256, dtype=float64)[:, None]
    stored = torch.arange(256, dtype=torch.uint8)[:, None]
    expected = floats(outputs).log_prob(stored.double() / 255) - math.log(255)
    torch.testing.assert_close(pixels(outputs).log_prob(stored), expected)
    assert pixels.features(stored)[[0, 255]].tolist() == [[-1.0], [1.0]]


# Bits of pixels


def test_binarised_pixels_have_the_probabilities_of_bits_whatever_their_grey() -> None:
    bits, pixels = (CASES[name].build() for name in ("bits", "binarised bytes"))
    stored = torch.tensor([[0], [1], [127], [128], [255]], dtype=torch.uint8)
    as_bits = torch.tensor([[0], [0], [0], [1], [1]], dtype=torch.int8)
    outputs = torch.tensor([[0.7]], dtype=float64)
    assert torch.equal(pixels(outputs).log_prob(stored), bits(outputs).log_prob(as_bits))
    assert pixels.features(stored)[:, 0].tolist() == [-1, -1, -1, 1, 1]
    assert pixels(outputs).mean.item() == round(255 / (1 + math.exp(-0.7)))


# Counts

LARGE = [0, 1, 2, 7, 100, 12_345, 10**6, 2**24 - 1, 2**24]


@pytest.mark.parametrize("log_rate", [-20.0, -3.0, 0.0, 4.0, 13.8, 16.6, 20.0])
@pytest.mark.parametrize(("dtype", "rtol"), [(float64, 1e-11), (torch.float32, 1e-6)])
def test_poisson_is_exact_for_small_and_large_counts_and_rates(log_rate: float, dtype: torch.dtype, rtol: float) -> None:
    said = torch.full((1, 1), log_rate, dtype=dtype)
    actual = PoissonCells(said).log_prob(torch.tensor(LARGE, dtype=torch.float32)[:, None])
    with mpmath.workdps(40):
        eta = mpmath.mpf(said.item())
        expected = [float(k * eta - mpmath.exp(eta) - mpmath.loggamma(k + 1)) for k in LARGE]
    assert actual.dtype == dtype
    assert_values(actual[:, 0], expected, rtol=rtol, atol=1e-6)


@pytest.mark.parametrize("log_rate", [-20.0, 0.0, 6.0, 16.6, 20.0])
@pytest.mark.parametrize("log_dispersion", [MIN_LOG_DISPERSION, -8.0, 0.0, MAX_LOG_DISPERSION])
@pytest.mark.parametrize(("dtype", "rtol"), [(float64, 1e-11), (torch.float32, 1e-6)])
def test_negative_binomial_is_exact_for_small_and_large_counts_rates_and_dispersions(
    log_rate: float, log_dispersion: float, dtype: torch.dtype, rtol: float
) -> None:
    said = torch.full((1, 1), log_rate, dtype=dtype)
    scatter = torch.tensor([log_dispersion], dtype=dtype)
    actual = NegativeBinomialCells(said, scatter).log_prob(torch.tensor(LARGE, dtype=torch.float32)[:, None])
    with mpmath.workdps(60):
        r, rate = mpmath.exp(-mpmath.mpf(scatter.item())), mpmath.exp(mpmath.mpf(said.item()))
        odds = rate / (r + rate)
        ways = [mpmath.loggamma(k + r) - mpmath.loggamma(r) - mpmath.loggamma(k + 1) for k in LARGE]
        expected = [float(w + r * mpmath.log1p(-odds) + k * mpmath.log(odds)) for w, k in zip(ways, LARGE, strict=True)]
    assert_values(actual[:, 0], expected, rtol=rtol, atol=1e-6)


def test_poisson_and_negative_binomial_are_scipys() -> None:
    k = torch.arange(200, dtype=float64)[:, None]
    assert_values(PoissonCells(torch.full((1, 1), 2.3, dtype=float64)).log_prob(k), scipy.stats.poisson.logpmf(k.numpy(), math.exp(2.3)))
    for log_dispersion in (-3.0, 0.0, 2.0):
        cells = NegativeBinomialCells(torch.full((1, 1), 2.3, dtype=float64), torch.tensor([log_dispersion], dtype=float64))
        r = math.exp(-log_dispersion)
        assert_values(cells.log_prob(k), scipy.stats.nbinom.logpmf(k.numpy(), r, r / (r + math.exp(2.3))))


def test_without_dispersion_a_negative_binomial_is_a_poisson() -> None:
    k, log_rate = torch.arange(0, 60, dtype=float64)[:, None], torch.full((1, 1), 2.0, dtype=float64)
    almost = NegativeBinomialCells(log_rate, torch.tensor([MIN_LOG_DISPERSION], dtype=float64)).log_prob(k)
    torch.testing.assert_close(almost, PoissonCells(log_rate).log_prob(k), rtol=0, atol=2e-3)
    likely = slice(0, 20)
    torch.testing.assert_close(almost[likely], PoissonCells(log_rate).log_prob(k)[likely], rtol=0, atol=5e-5)


def test_zero_inflation_adds_zeros_and_nothing_else() -> None:
    k = torch.arange(20, dtype=float64)[:, None]
    log_rate, scatter = torch.full((1, 1), 1.0, dtype=float64), torch.tensor([0.5], dtype=float64)
    share = 1 / (1 + math.exp(-0.3))
    inflated = ZeroInflatedCells(log_rate, scatter, torch.full((1, 1), 0.3, dtype=float64))
    expected = (1 - share) * NegativeBinomialCells(log_rate, scatter).log_prob(k).exp()
    expected[0] += share
    torch.testing.assert_close(inflated.log_prob(k).exp(), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", ["poisson", "negative_binomial", "zero_inflated_negative_binomial"])
def test_counts_are_standardised_logarithms_for_the_encoder_and_a_decoder_that_says_0_says_the_mean(name: str) -> None:
    likelihood = CASES[name].build(torch.float32)  # mean 1.5 and scale 0.75
    features = likelihood.features(torch.tensor([[0.0], [math.expm1(1.5)], [math.expm1(2.25)]]))
    assert features[:, 0].tolist() == pytest.approx([-2.0, 0.0, 1.0], abs=1e-6)
    outputs = torch.zeros(1, likelihood.num_outputs)
    share = 0.5 if name.startswith("zero") else 1.0
    assert likelihood(outputs).mean.item() == pytest.approx(share * math.exp(1.5), rel=1e-6)
