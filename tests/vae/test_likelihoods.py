"""Claims about vae.likelihoods. Shapes: S samples, B rows, D cells, C categorical columns, K categories in all, V values of a range."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import mpmath  # type: ignore[import-untyped]
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import Distribution, Normal

from vae.bernoulli import Bernoulli, BernoulliCells
from vae.categories import Categorical, CategoricalCells
from vae.cells import MAX_LOG_SCALE, MIN_LOG_SCALE, CellDistribution, Likelihood
from vae.continuous import Gaussian
from vae.discretised import DiscretisedGaussian, WarpedDiscretisedGaussian
from vae.grids import asinh_step
from vae.normal_mass import NARROW, Interval, log_ndtr, log_normal_mass, sum_log_mass

some_examples = settings(max_examples=60)
both_precisions = pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
float32s = st.floats(width=32, allow_nan=False, allow_infinity=False, allow_subnormal=False)
Scaled = Gaussian | DiscretisedGaussian | WarpedDiscretisedGaussian
log_scales = st.floats(MIN_LOG_SCALE - 2, MAX_LOG_SCALE + 2)


def column(values: Sequence[float], dtype: torch.dtype = torch.float64) -> Tensor:
    """One cell per row, [V, 1]."""
    return torch.tensor(list(values), dtype=dtype)[:, None]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def with_log_scale(likelihood: Scaled, log_scale: float) -> None:
    likelihood.log_scale.data.fill_(log_scale)


def bytes_field(center: float = 33.0, scale: float = 64.0, size: int = 1) -> DiscretisedGaussian:
    """Pixels 0..255, standardised on the device. A scale that is a power of two makes half_width exact in float32."""
    lower, upper = (0 - center) / scale, (255 - center) / scale
    return DiscretisedGaussian(size, [0.5 / scale], [lower], [upper], center, scale, "uint8")


def integer_field(low: int, high: int, mean: float, scale: float) -> DiscretisedGaussian:
    """Integers low..high, stored standardised."""
    return DiscretisedGaussian(1, [0.5 / scale], [(low - mean) / scale], [(high - mean) / scale])


def warped_field(lower: float, upper: float, width: float = 3.0, mean: float = 0.5, scale: float = 1.25) -> WarpedDiscretisedGaussian:
    """Integers lower..upper after asinh. Unless given others, it has numbers that float32 holds exactly."""
    return WarpedDiscretisedGaussian(1, [width], [mean], [scale], [lower], [upper])


def stored(integers: Sequence[int], width: float = 3.0, mean: float = 0.5, scale: float = 1.25) -> Tensor:
    """What data/ makes of integers, before it rounds to float32: [V, 1]."""
    return column([(math.asinh(k / width) - mean) / scale for k in integers])


def total_mass(likelihood: Likelihood, values: Tensor, location: float, dtype: torch.dtype) -> float:
    """The sum of the probabilities of values [V, 1], which are all that the range holds."""
    log_mass = likelihood.to(dtype)(torch.full((1, 1), location, dtype=dtype)).log_prob(values).detach()
    assert log_mass.shape == values.shape
    assert log_mass.dtype == dtype
    return float(log_mass.exp().sum())


# Gaussian


@pytest.mark.parametrize("shared_scale", [False, True])
@pytest.mark.parametrize("log_scale", [-9.0, MIN_LOG_SCALE, -1.0, 0.0, MAX_LOG_SCALE, 6.0])
def test_gaussian_integrates_to_one(shared_scale: bool, log_scale: float) -> None:
    likelihood = Gaussian(2, shared_scale).double()
    with_log_scale(likelihood, log_scale)
    scale = math.exp(min(max(log_scale, MIN_LOG_SCALE), MAX_LOG_SCALE))
    location = torch.tensor([[0.3, -4.0]], dtype=torch.float64)
    values = location + scale * torch.linspace(-10, 10, 801, dtype=torch.float64)[:, None]
    density = likelihood(location).log_prob(values).exp()
    torch.testing.assert_close(density.sum(0) * scale / 40, torch.ones(2, dtype=torch.float64), rtol=0, atol=1e-12)


def test_gaussian_is_torchs_with_a_scale_per_cell_and_a_sample_dimension() -> None:
    likelihood = Gaussian(3).double()
    likelihood.log_scale.data = torch.tensor([-2.0, 0.0, 1.0], dtype=torch.float64)
    outputs = torch.randn(5, 4, 3, generator=generator(), dtype=torch.float64)
    values = torch.randn(4, 3, generator=generator(1), dtype=torch.float64)
    expected: Distribution = Normal(outputs, likelihood.log_scale.exp())
    torch.testing.assert_close(likelihood(outputs).log_prob(values), expected.log_prob(values), rtol=1e-12, atol=1e-12)


# The mass of an interval


def exact_log_mass(middle: float, half_width: float, at_lower: bool = False, at_upper: bool = False) -> float:
    """log(Phi(middle + half_width) - Phi(middle - half_width)) to 60 digits, rounded once."""
    with mpmath.workdps(60):
        ends = mpmath.mpf(middle) - mpmath.mpf(half_width), mpmath.mpf(middle) + mpmath.mpf(half_width)
        return log_mass_between(-mpmath.inf if at_lower else ends[0], mpmath.inf if at_upper else ends[1])


def log_mass_between(lower: mpmath.mpf, upper: mpmath.mpf) -> float:
    """log(Phi(upper) - Phi(lower)) to mpmath's digits, rounded once."""
    if lower + upper > 0:
        lower, upper = -upper, -lower
    tails = [mpmath.erfc(-end / mpmath.sqrt(2)) / 2 for end in (lower, upper)]
    return float(mpmath.log(tails[1] - tails[0]))


def mass_by_rows(middle: Tensor, half_width: Tensor, at_lower: Tensor, at_upper: Tensor) -> Tensor:
    """The same as log_normal_mass by sum_log_mass, each interval in a row of its own."""
    interval = Interval(*(part.reshape(-1, 1) for part in (torch.zeros_like(middle), half_width, at_lower, at_upper)))
    observed = torch.ones(middle.numel(), 1, dtype=torch.bool)
    return sum_log_mass(-middle.reshape(-1, 1), middle.new_zeros(1), interval, observed).reshape(middle.shape)


def log_mass_of(
    middle: float, half_width: float, dtype: torch.dtype, at_lower: bool = False, at_upper: bool = False
) -> tuple[float, float]:
    """What the code says, the worse of both functions, and the exact answer for the numbers as that precision holds them."""
    m, h = torch.tensor(middle, dtype=dtype), torch.tensor(half_width, dtype=dtype)
    exact = exact_log_mass(m.item(), h.item(), at_lower, at_upper)
    found = [mass(m, h, torch.tensor(at_lower), torch.tensor(at_upper)) for mass in (log_normal_mass, mass_by_rows)]
    assert all(mass.dtype == dtype for mass in found)
    return max((mass.item() for mass in found), key=lambda mass: abs(mass - exact)), exact


interval_middles = st.floats(-50, 50)
interval_half_widths = st.one_of(st.floats(-8, 1).map(lambda e: 10**e), st.floats(0.4 * NARROW, 0.6 * NARROW))


@settings(max_examples=300)
@given(middle=interval_middles, half_width=interval_half_widths)
def test_interval_mass_in_float64_is_exact_to_the_error_that_its_docstring_states(middle: float, half_width: float) -> None:
    actual, exact = log_mass_of(middle, half_width, torch.float64)
    expansion = half_width**2 * ((middle * half_width) ** 2 / 45 + half_width**2 / 90) if half_width < 0.5 * NARROW else 0.0
    assert abs(actual - exact) <= expansion + 5e-10 + 1e-14 * abs(exact)
    assert expansion < 4e-8


@some_examples
@given(middle=interval_middles, half_width=interval_half_widths)
def test_interval_mass_in_float32_keeps_five_digits(middle: float, half_width: float) -> None:
    actual, exact = log_mass_of(middle, half_width, torch.float32)
    assert abs(actual - exact) <= 1e-5 * (1 + abs(exact))


@some_examples
@given(middle=interval_middles, half_width=interval_half_widths, lower=st.booleans())
def test_an_end_of_the_range_has_the_mass_of_its_whole_tail(middle: float, half_width: float, lower: bool) -> None:
    actual, exact = log_mass_of(middle, half_width, torch.float64, at_lower=lower, at_upper=not lower)
    assert abs(actual - exact) <= 1e-14 * (1 + abs(exact))


def test_a_range_of_one_value_has_all_mass_in_it() -> None:
    assert log_mass_of(40.0, 0.1, torch.float64, at_lower=True, at_upper=True)[0] == 0.0


@settings(max_examples=40)
@given(
    middle=st.floats(-30, 30),
    half_width=st.one_of(st.floats(-5, -2.5), st.floats(-2, 1)).map(lambda e: 10**e),
    end=st.sampled_from([(False, False), (True, False), (False, True)]),
)
def test_gradients_of_the_interval_mass_are_its_slopes(middle: float, half_width: float, end: tuple[bool, bool]) -> None:
    def log_mass(m: Tensor, log_h: Tensor) -> Tensor:
        return log_normal_mass(m, log_h.exp(), torch.tensor(end[0]), torch.tensor(end[1]))

    inputs = [torch.tensor(number, dtype=torch.float64, requires_grad=True) for number in (middle, math.log(half_width))]
    assert torch.autograd.gradcheck(log_mass, inputs, eps=1e-6, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("flags", [(1,), (5,)])
def test_sums_of_interval_masses_over_observed_cells_have_the_slopes_of_every_cell(flags: tuple[int, ...]) -> None:
    """Cells in the middle, far out, narrow, and at either end, with samples before rows, rows without any cell, and scales of all sizes."""
    middle = torch.tensor([[0.3, -30.0, 4.0, -2.0, 0.1], [-8.0, 7.0, 200.0, 1.0, 0.0]], dtype=torch.float64)
    width = torch.tensor([0.5, 1.0, 0.02, 1e-4, 0.2], dtype=torch.float64)
    ends = [torch.rand(2, 5, generator=generator(n)) < 0.3 for n in (1, 2)]
    observed = torch.tensor([[True], [False]]) if flags == (1,) else torch.rand(2, 5, generator=generator(3)) < 0.7
    interval = Interval(middle, width, ends[0], ends[1] & ~ends[0])
    location = torch.randn(3, 2, 5, generator=generator(4), dtype=torch.float64, requires_grad=True)
    log_scale = torch.tensor([0.0, -3.0, 1.0, -4.0, 0.5], dtype=torch.float64, requires_grad=True)

    def summed(location: Tensor, log_scale: Tensor) -> Tensor:
        return sum_log_mass(location, log_scale, interval, observed)

    def by_cell(location: Tensor, log_scale: Tensor) -> Tensor:
        return torch.where(observed, log_normal_mass(*interval.standardised(location, log_scale)), 0.0).sum(-1)

    torch.testing.assert_close(summed(location, log_scale), by_cell(location, log_scale), rtol=1e-12, atol=1e-9)
    weights = torch.rand(3, 2, generator=generator(5), dtype=torch.float64)
    found, expected = (torch.autograd.grad((f(location, log_scale) * weights).sum(), (location, log_scale)) for f in (summed, by_cell))
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)
    assert torch.autograd.gradcheck(by_cell, (location, log_scale), eps=1e-7, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("half_width", [1e-6, 1e-3, 0.02, 1.0])
@pytest.mark.parametrize("end", [(False, False), (True, False), (False, True)])
@pytest.mark.parametrize("mass", [log_normal_mass, mass_by_rows])
def test_gradients_of_the_interval_mass_in_float32_hold_far_out_in_the_tails(
    half_width: float, end: tuple[bool, bool], mass: Callable[..., Tensor]
) -> None:
    distances = torch.tensor([0.0, 0.1, 1.0, 10.0, 1e2, 1e3, 5e3, 1e4, 1e5, 1e6, 1e10, 1e11])

    def slopes(dtype: torch.dtype) -> Tensor:
        middle = torch.cat([-distances, distances]).to(dtype).requires_grad_()
        width = torch.full_like(middle, half_width)
        log_mass = mass(middle, width, torch.full(middle.shape, end[0]), torch.full(middle.shape, end[1]))
        return torch.autograd.grad(log_mass.sum(), middle)[0]

    torch.testing.assert_close(slopes(torch.float32).double(), slopes(torch.float64), rtol=1e-4, atol=1e-4)
    towards_the_mean = slopes(torch.float32)[8:12] if end[0] else -slopes(torch.float32)[-4:]
    torch.testing.assert_close(towards_the_mean, distances[-4:], rtol=1e-3, atol=0)


@both_precisions
@pytest.mark.parametrize("x", [-1e6, -1e4, -1e3, -50.0, -5.0, -1.001, -1.0, -0.5, 0.0, 1.0, 5.0])
def test_log_ndtr_and_its_gradient_are_exact_to_rounding(x: float, dtype: torch.dtype) -> None:
    number = torch.tensor(x, dtype=dtype, requires_grad=True)
    value = log_ndtr(number)
    (slope,) = torch.autograd.grad(value, number)
    with mpmath.workdps(60):
        at = mpmath.mpf(number.item())
        phi = mpmath.erfc(-at / mpmath.sqrt(2)) / 2
        exact, exact_slope = float(mpmath.log(phi)), float(mpmath.npdf(at) / phi)
    rtol = 20 * torch.finfo(dtype).eps
    assert value.item() == pytest.approx(exact, rel=rtol)
    assert slope.item() == pytest.approx(exact_slope, rel=rtol)


# Discretised Gaussian

SUM_LOG_SCALES = [-9.0, MIN_LOG_SCALE, -4.0, -1.0, 0.0, 0.43, 0.46, 1.0, 2.0, MAX_LOG_SCALE, 6.0]


def test_the_scales_of_the_sums_below_use_both_branches() -> None:
    widths = [float(bytes_field().grid.half_width) * math.exp(-log_scale) for log_scale in SUM_LOG_SCALES]
    assert {width < 0.5 * NARROW for width in widths} == {True, False}


@pytest.mark.parametrize("log_scale", SUM_LOG_SCALES)
@pytest.mark.parametrize("location", [-30.0, -0.52, 0.0, 1.2345, 3.4, 40.0])
def test_the_probabilities_of_all_bytes_sum_to_one(log_scale: float, location: float) -> None:
    pixels = torch.arange(256, dtype=torch.uint8)[:, None]
    exact, rounded = bytes_field(), bytes_field(center=33.3, scale=78.6)
    for field in (exact, rounded):
        with_log_scale(field, log_scale)
    assert total_mass(exact, pixels, location, torch.float64) == pytest.approx(1, abs=1e-9)
    assert total_mass(rounded, pixels, location, torch.float64) == pytest.approx(1, abs=2e-7)  # half_width is held in float32
    for field in (exact, rounded):
        assert total_mass(field, pixels, location, torch.float32) == pytest.approx(1, abs=1e-4)


@some_examples
@given(
    low=st.integers(-300, 300),
    num_values=st.integers(1, 400),
    mean=st.integers(-4000, 4000).map(lambda n: n / 8),
    log2_scale=st.integers(-4, 9),
    location=st.floats(-10, 10),
    log_scale=log_scales,
)
def test_the_probabilities_of_all_integers_of_a_range_sum_to_one_in_standardised_storage(
    low: int, num_values: int, mean: float, log2_scale: int, location: float, log_scale: float
) -> None:
    scale = 2.0**log2_scale
    field = integer_field(low, low + num_values - 1, mean, scale)
    with_log_scale(field, log_scale)
    values = (column(range(low, low + num_values)) - mean) / scale
    assert total_mass(field, values, location, torch.float64) == pytest.approx(1, abs=1e-9)
    assert total_mass(field, values.float(), location, torch.float32) == pytest.approx(1, abs=2e-4)


def test_cells_have_ranges_and_widths_of_their_own() -> None:
    field = DiscretisedGaussian(2, [0.5, 0.125], [-2.0, -0.25], [2.0, 0.5]).double()
    distribution = field(torch.tensor([[0.7, 0.1]], dtype=torch.float64))
    first, second = column([-2, -1, 0, 1, 2]), column([-0.25, 0, 0.25, 0.5])
    masses = distribution.log_prob(torch.cat([first, torch.zeros_like(first)], 1)).exp()[:, 0]
    others = distribution.log_prob(torch.cat([torch.zeros_like(second), second], 1)).exp()[:, 1]
    assert masses.sum().item() == pytest.approx(1, abs=1e-12)
    assert others.sum().item() == pytest.approx(1, abs=1e-12)


def test_bytes_and_their_standardised_numbers_have_the_same_probabilities() -> None:
    pixels = torch.arange(256, dtype=torch.uint8)[:, None]
    field = bytes_field()
    standardised = integer_field(0, 255, mean=33.0, scale=64.0)
    outputs = torch.randn(3, 256, 1, generator=generator())
    torch.testing.assert_close(field(outputs).log_prob(pixels), standardised(outputs).log_prob(field.features(pixels)))


# Warped discretised Gaussian

LARGEST = 2**63  # int64's range
warp_widths = st.floats(-1, 4).map(lambda e: 10**e)


@both_precisions
@settings(max_examples=200)
@given(twice=st.one_of(st.integers(0, 40), st.floats(1, 63).map(lambda e: int(2**e))), width=st.floats(-3, 9).map(lambda e: 10**e))
def test_a_step_of_asinh_is_exact_to_the_error_that_its_docstring_states(twice: int, width: float, dtype: torch.dtype) -> None:
    start, divisor = torch.tensor(twice / 2, dtype=dtype), torch.tensor(width, dtype=dtype)
    with mpmath.workdps(60):
        at, over = mpmath.mpf(start.item()), mpmath.mpf(divisor.item())
        exact = float(mpmath.asinh((at + 0.5) / over) - mpmath.asinh(at / over))
    actual = asinh_step(start, divisor)
    assert actual.dtype == dtype
    assert actual.item() == pytest.approx(exact, rel=2 * torch.finfo(dtype).eps, abs=0)


@both_precisions
@some_examples
@given(k=st.one_of(st.integers(-3, 3), st.integers(-(2**14), 2**14)), width=st.floats(-3, 9).map(lambda e: 10**e))
def test_the_half_width_of_an_integers_interval_is_exact_to_the_error_that_its_docstring_states(
    k: int, width: float, dtype: torch.dtype
) -> None:
    field = warped_field(-LARGEST, LARGEST, width).to(dtype)
    over = field.grid.width.item()
    half_width = field.grid.interval(stored([k], over).to(dtype))[1]
    with mpmath.workdps(60):
        half = mpmath.mpf(1) / 2
        exact = float((mpmath.asinh((k + half) / over) - mpmath.asinh((k - half) / over)) / 2.5)
    assert half_width.dtype == dtype
    if math.hypot(over, k) < 2**18 or dtype == torch.float64:
        assert half_width.item() == pytest.approx(exact, rel=4 * torch.finfo(dtype).eps, abs=0)
    else:
        assert half_width.item() == pytest.approx(exact, rel=1e-5, abs=0)


@pytest.mark.parametrize("width", [0.5, 3.0, 700.0])
@pytest.mark.parametrize(("lower", "upper"), [(-40, 300), (0, 5000)])
@pytest.mark.parametrize("location", [-30.0, -0.6, 0.1234, 3.0, 40.0])
def test_the_probabilities_of_a_whole_support_sum_to_one_after_the_warp(width: float, lower: int, upper: int, location: float) -> None:
    values = stored(range(lower, upper + 1), width)
    for log_scale in SUM_LOG_SCALES:
        field = warped_field(lower, upper, width)
        with_log_scale(field, log_scale)
        assert total_mass(field, values, location, torch.float64) == pytest.approx(1, abs=1e-9)
        tolerance = 1e-5 if log_scale >= -1 else 2e-4  # a narrower Gaussian sees that float32 rounds the stored numbers
        assert total_mass(field, values.float(), location, torch.float32) == pytest.approx(1, abs=tolerance)


@some_examples
@given(
    lower=st.integers(-300, 300),
    num_values=st.integers(1, 400),
    width=warp_widths,
    mean=st.floats(-12, 12),
    scale=st.floats(0.1, 10),
    location=st.floats(-10, 10),
    log_scale=log_scales,
)
def test_the_probabilities_of_any_support_sum_to_one_after_the_warp(
    lower: int, num_values: int, width: float, mean: float, scale: float, location: float, log_scale: float
) -> None:
    field = warped_field(lower, lower + num_values - 1, width, mean, scale)
    with_log_scale(field, log_scale)
    held = [float(number) for number in (field.grid.width, field.grid.mean, field.grid.scale)]  # in float32
    values = stored(range(lower, lower + num_values), *held)
    assert total_mass(field, values, location, torch.float64) == pytest.approx(1, abs=1e-9)


def exact_warped_log_mass(k: int, width: float, location: float, scale_of_noise: float, lower: int, upper: int) -> float:
    """log P(k) as theory.md defines it, to 60 digits, rounded once; mean 0.5 and scale 1.25."""
    with mpmath.workdps(60):

        def standardised(end: mpmath.mpf) -> mpmath.mpf:
            return ((mpmath.asinh(end / mpmath.mpf(width)) - 0.5) / 1.25 - mpmath.mpf(location)) / mpmath.mpf(scale_of_noise)

        half = mpmath.mpf(1) / 2
        below = -mpmath.inf if k == lower else standardised(k - half)
        return log_mass_between(below, mpmath.inf if k == upper else standardised(k + half))


@settings(max_examples=300)
@given(
    k=st.one_of(st.integers(-50, 50), st.integers(-(10**12), 10**12)),
    width=warp_widths.map(lambda w: round(w * 1024) / 1024),
    distance=st.floats(-30, 30),
    log_scale=st.floats(MIN_LOG_SCALE, MAX_LOG_SCALE),
    end=st.sampled_from([(True, False), (False, False), (False, True), (True, True)]),
)
def test_an_integer_has_the_mass_of_its_unit_interval_after_the_warp(
    k: int, width: float, distance: float, log_scale: float, end: tuple[bool, bool]
) -> None:
    if any(end):
        k %= 10**5  # a larger end and its neighbour have the same float32
    lower, upper = k if end[0] else -LARGEST, k if end[1] else LARGEST
    field = warped_field(lower, upper, width).double()
    field.log_scale.data.fill_(log_scale)
    value = stored([k], width)
    location = value + distance * math.exp(log_scale)
    actual = field(location).log_prob(value).item()
    exact = exact_warped_log_mass(k, width, location.item(), field.log_scale.exp().item(), lower, upper)
    assert abs(actual - exact) <= 4e-8 + 1e-11 * abs(exact)  # the first is log_normal_mass's own


FLOAT32_INTEGERS = [*range(2000), *(int(10 ** (e / 100)) for e in range(330, 600)), 10**6]


def float32_errors(integers: list[int], width: float, distance: float, log_scale: float) -> Tensor:
    """Errors of log P, stored and computed in float32 against float64 throughout, `distance` standard deviations out: [V, 1]."""
    mean, scale = 0.3 + math.asinh(3000 / width), 1.7  # which float32 rounds, too
    exact, rounded = (warped_field(0, LARGEST, width, mean, scale).to(dtype) for dtype in (torch.float64, torch.float32))
    exact.grid.mean[:], exact.grid.scale[:], exact.grid.width[:] = mean, scale, width
    for field in (exact, rounded):
        with_log_scale(field, log_scale)
    values = stored(integers, width, mean, scale)
    location = (values + distance * math.exp(log_scale)).float()
    actual: Tensor = rounded(location).log_prob(values.float()).detach()
    expected: Tensor = exact(location.double()).log_prob(values).detach()
    assert actual.dtype == torch.float32
    return (actual.double() - expected).abs()


@pytest.mark.parametrize("width", [1.0, 10.0, 100.0, 1e3, 1e4])
@pytest.mark.parametrize("distance", [-3.0, -1.0, 0.0, 1.0, 3.0])
def test_float32_loses_little_of_the_warped_log_mass_up_to_a_million(width: float, distance: float) -> None:
    for log_scale, bound in ((1.0, 1e-4), (0.0, 1e-4), (-2.0, 1e-4), (-4.0, 2e-4), (MIN_LOG_SCALE, 2e-3)):
        assert float32_errors(FLOAT32_INTEGERS, width, distance, log_scale).max() < bound


@pytest.mark.parametrize("width", [1.0, 10.0, 1e4])
def test_where_float32_misses_an_integer_it_takes_a_near_one_of_about_the_same_mass(width: float) -> None:
    integers = [int(2 ** (e / 16)) for e in range(320, 992)]  # 2^20 to 2^62
    field = warped_field(0, LARGEST, width)

    def misses(integers: Sequence[int]) -> Tensor:
        found = torch.round(field.grid.width * torch.sinh(stored(integers, width).float() * field.grid.scale + field.grid.mean)).double()
        return (found / column(integers) - 1).abs()

    assert (misses(range(1, 2**18, 7)) == 0).all()
    assert (misses(integers) > 0).double().mean() > 0.5
    assert misses(integers).max() < 1e-5
    for distance in (-3.0, 0.0, 3.0):
        assert float32_errors(integers, width, distance, 0.0).max() < 1e-4


def test_a_larger_location_moves_mass_up() -> None:
    values = stored(range(-40, 301))
    field = warped_field(-40, 300).double()
    with_log_scale(field, -0.5)
    locations = torch.linspace(-4, 4, 17, dtype=torch.float64)[:, None, None]
    at_most = field(locations).log_prob(values).exp().cumsum(1)[:, :-1]  # P(K <= k), [locations, V - 1, 1]
    assert at_most.shape == (17, 340, 1)
    assert (at_most.diff(dim=0) < 1e-12).all()
    assert (at_most[0] - at_most[-1]).max() > 0.99


@both_precisions
def test_the_ends_of_int64_have_their_whole_tails(dtype: torch.dtype) -> None:
    field = warped_field(-LARGEST, LARGEST - 1, width=17.3, mean=0.3, scale=4.1).to(dtype)
    values = stored([-LARGEST, LARGEST - 1], 17.3, 0.3, 4.1).float()
    for end, value in zip((-1, 1), values, strict=True):
        location = value[None].to(dtype) + end * torch.tensor([[-3.0], [0.0], [3.0]], dtype=dtype)
        expected = log_ndtr(end * (location - value))
        torch.testing.assert_close(field(location).log_prob(value[None]), expected, rtol=1e-5, atol=1e-5)


@both_precisions
def test_an_integer_is_not_taken_for_the_end_near_it_if_float32_stores_another_number(dtype: torch.dtype) -> None:
    field = warped_field(-5_000_000, 5_000_000, width=1e6).to(dtype)
    low, high = range(-5_000_000, -4_999_960), range(5_000_000, 4_999_960, -1)
    for integers, at_end in ((low, 2), (high, 3)):
        marks = field.grid.interval(stored(integers, width=1e6).float())[at_end][:, 0].tolist()
        assert marks[0]
        assert not any(marks[3:])  # the next two may round to the same


def test_a_number_outside_the_support_counts_as_its_nearest_end() -> None:
    field = warped_field(-3, 60)
    distribution = field(torch.tensor([[0.4]]))
    ends, outside = stored([-3, 60]).float(), stored([-5, 10**6]).float()
    torch.testing.assert_close(distribution.log_prob(outside), distribution.log_prob(ends), rtol=1e-6, atol=1e-6)


def test_gradients_of_the_warped_mass_are_its_slopes_in_location_and_scale() -> None:
    values = stored([-3, -1, 0, 1, 7, 59, 60])
    field = warped_field(-3, 60).double()

    def log_prob(location: Tensor, log_scale: Tensor) -> Tensor:
        distribution: CellDistribution = torch.func.functional_call(field, {"log_scale": log_scale}, (location,))
        return distribution.log_prob(values)

    for log_scale in (-5.0, -1.0, 1.0):
        inputs = [torch.tensor(number, dtype=torch.float64, requires_grad=True) for number in ([[0.37]], [log_scale])]
        assert torch.autograd.gradcheck(log_prob, inputs, eps=1e-6, atol=1e-4, rtol=1e-5)


def test_maximum_likelihood_puts_the_share_of_zeros_at_zero_when_zero_is_the_lower_end() -> None:
    num_rows = 4000
    normal = -0.4 + 1.5 * torch.randn(num_rows, generator=generator(), dtype=torch.float64)
    counts = (3 * torch.sinh(1.25 * normal + 0.5)).round().clamp(min=0)
    repeats = torch.bincount(counts.long())[:, None]
    share = repeats[0].item() / num_rows
    assert 0.5 < share < 0.6

    def fitted_mass_of_zero(lower: int) -> float:
        field = warped_field(lower, LARGEST).double()
        location = torch.zeros(1, 1, dtype=torch.float64, requires_grad=True)
        values = stored(range(len(repeats)))
        optimiser = torch.optim.Adam([location, field.log_scale], lr=0.05)
        for _ in range(400):
            optimiser.zero_grad()
            (-repeats * field(location).log_prob(values)).sum().div(num_rows).backward()
            optimiser.step()
        return math.exp(field(location).log_prob(values[:1]).item())

    standard_error = math.sqrt(share * (1 - share) / num_rows)
    assert abs(fitted_mass_of_zero(0) - share) < 2 * standard_error
    assert fitted_mass_of_zero(-1000) < share - 20 * standard_error  # a Gaussian alone has no place for such a spike


# Bernoulli and categorical


@given(logit=st.floats(-1e4, 1e4))
def test_bernoulli_probabilities_sum_to_one(logit: float) -> None:
    for dtype, atol in ((torch.float64, 1e-12), (torch.float32, 1e-6)):
        log_probs = BernoulliCells(torch.tensor([[logit]], dtype=dtype)).log_prob(torch.tensor([[0], [1]], dtype=torch.int8))
        assert log_probs.isfinite().all()
        assert log_probs.exp().sum().item() == pytest.approx(1, abs=atol)
        assert (log_probs <= 0).all()


def test_bernoulli_log_odds_are_its_logits() -> None:
    logits = torch.linspace(-30, 30, 61, dtype=torch.float64)[:, None]
    distribution = BernoulliCells(logits)
    log_odds = distribution.log_prob(torch.ones(61, 1)) - distribution.log_prob(torch.zeros(61, 1))
    torch.testing.assert_close(log_odds, logits, rtol=1e-8, atol=0)
    torch.testing.assert_close(distribution.mean, distribution.log_prob(torch.ones(61, 1)).exp(), rtol=1e-8, atol=0)


SIZES = [3, 1, 5, 2]


def categorical_log_probs(distribution: CellDistribution) -> list[Tensor]:
    """log p of each category, per column: [S, B, size] each. The other columns stand at category 0."""
    result = []
    for index, size in enumerate(SIZES):
        codes = torch.zeros(size, len(SIZES), dtype=torch.int32)
        codes[:, index] = torch.arange(size)
        result.append(torch.stack([distribution.log_prob(code[None])[..., index] for code in codes], -1))
    return result


@pytest.mark.parametrize("size_of_logits", [1.0, 30.0, 1e4])
@both_precisions
def test_each_categorical_column_is_a_log_softmax_of_its_own_logits(size_of_logits: float, dtype: torch.dtype) -> None:
    logits = (2 * torch.rand(2, 7, sum(SIZES), generator=generator(), dtype=dtype) - 1) * size_of_logits
    log_probs = categorical_log_probs(Categorical(SIZES).to(dtype)(logits))
    eps = torch.finfo(dtype).eps
    for actual, scores in zip(log_probs, torch.split(logits, SIZES, -1), strict=True):
        assert actual.isfinite().all()
        torch.testing.assert_close(actual, torch.log_softmax(scores, -1), rtol=4 * eps, atol=16 * eps)
        torch.testing.assert_close(actual.exp().sum(-1), torch.ones(2, 7, dtype=dtype), rtol=0, atol=32 * eps)


def test_extreme_logits_stay_finite_with_their_gradients() -> None:
    logits = torch.tensor([[1e4, -1e4, 1e4, -1e4, -1e4, 0.0, 1e4, 1e4, -1e4, 1e4, -1e4]], requires_grad=True)
    for codes in ([0, 0, 0, 0], [1, 0, 4, 1], [2, 0, 2, 0]):
        log_prob = Categorical(SIZES)(logits).log_prob(torch.tensor([codes], dtype=torch.int32))
        (slope,) = torch.autograd.grad(log_prob.sum(), logits)
        assert log_prob.isfinite().all()
        assert (log_prob <= 0).all()
        assert slope.isfinite().all()
        assert slope.sum().item() == pytest.approx(0, abs=1e-5)


def test_categorical_gradients_are_its_slopes() -> None:
    logits = torch.randn(2, 3, sum(SIZES), generator=generator(), dtype=torch.float64, requires_grad=True)
    codes = torch.tensor([[2, 0, 4, 1], [0, 0, 0, 0], [1, 0, 3, 0]], dtype=torch.int32)
    field = Categorical(SIZES).double()
    assert torch.autograd.gradcheck(lambda scores: field(scores).log_prob(codes), [logits])


def test_probabilities_sum_to_one_under_bfloat16_autocast_too() -> None:
    logits = 3 * torch.randn(1, 7, sum(SIZES), generator=generator())
    with torch.autocast("cpu", torch.bfloat16):
        log_probs = categorical_log_probs(Categorical(SIZES)(logits))
        field = bytes_field()
        with_log_scale(field, -1.0)
        masses = field(torch.full((1, 1), 0.3)).log_prob(torch.arange(256, dtype=torch.uint8)[:, None]).exp()
    for log_prob in log_probs:
        torch.testing.assert_close(log_prob.exp().sum(-1), torch.ones(1, 7), rtol=0, atol=1e-5)
    assert masses.sum().item() == pytest.approx(1, abs=1e-4)


# No input makes a NaN or an infinity


def assert_finite(likelihood: Likelihood, output: float, values: Tensor) -> None:
    outputs = torch.full((1, likelihood.num_outputs), output, requires_grad=True)
    log_prob = likelihood(outputs).log_prob(values)
    slopes = torch.autograd.grad(log_prob.sum(), [outputs, *likelihood.parameters()])
    for tensor in (log_prob, *slopes):
        assert tensor.isfinite().all(), (log_prob, slopes)


extremes = st.one_of(float32s, st.sampled_from([0.0, 1e-30, 1.0, 1e6, 1e15, 1e30, 3e38]).flatmap(lambda x: st.sampled_from([x, -x])))


@settings(max_examples=300)
@given(value=extremes, location=extremes, log_scale=extremes)
def test_no_finite_value_location_or_scale_gives_a_nan_or_an_infinity(value: float, location: float, log_scale: float) -> None:
    small, large = integer_field(-128, 127, 3.0, 60.0), integer_field(-(2**63), 2**63 - 1, 1e9, 1e12)
    warped = [warped_field(-3, 60), warped_field(0, LARGEST, 0.5, 12.0, 0.1), warped_field(-LARGEST, LARGEST, 1e4, -3.0, 40.0)]
    fields: list[Scaled] = [Gaussian(1), Gaussian(1, shared_scale=True), small, large, *warped]
    for field in fields:
        with_log_scale(field, log_scale)
        assert_finite(field, location, torch.tensor([[value]]))
    pixels = bytes_field()
    with_log_scale(pixels, log_scale)
    for pixel in (0, 1, 254, 255):
        assert_finite(pixels, location, torch.tensor([[pixel]], dtype=torch.uint8))


@given(logit=st.floats(-(2.0**126), 2.0**126, width=32, allow_subnormal=False))  # differences of logits are floats, too
def test_no_finite_logit_gives_a_nan_or_an_infinity(logit: float) -> None:
    for value in (0, 1):
        assert_finite(Bernoulli(1), logit, torch.tensor([[value]], dtype=torch.int8))
    outputs = torch.tensor([[logit, -logit, 0.0]], requires_grad=True)
    for code in range(3):
        log_prob = Categorical([3])(outputs).log_prob(torch.tensor([[code]], dtype=torch.int32))
        assert log_prob.isfinite().all()
        assert torch.autograd.grad(log_prob.sum(), outputs)[0].isfinite().all()


# Sampling

NUM_DRAWS = 40_000


def assert_frequencies(drawn: Tensor, probabilities: Tensor) -> None:
    """Counts of drawn integers 0..V-1 are within 5 standard errors of their expectation, of which no cell in a million is outside."""
    counts = torch.bincount(drawn.long().flatten(), minlength=len(probabilities)).double()
    assert len(counts) == len(probabilities)
    expected = drawn.numel() * probabilities.double()
    assert ((counts - expected).abs() <= 5 * (expected * (1 - probabilities.double())).sqrt() + 1).all()


def draw(likelihood: Likelihood, outputs: list[float], seed: int = 0) -> Tensor:
    """NUM_DRAWS draws of every cell, [NUM_DRAWS, D]."""
    distribution: CellDistribution = likelihood(torch.tensor([outputs]).expand(NUM_DRAWS, -1))
    return distribution.sample(generator(seed))


@pytest.mark.parametrize(("location", "log_scale"), [(0.3, -3.0), (-0.4, 0.0), (3.6, 0.0), (1.0, 2.0)])
def test_bytes_are_drawn_as_often_as_they_are_probable(location: float, log_scale: float) -> None:
    field = bytes_field(center=33.3, scale=78.6)
    with_log_scale(field, log_scale)
    drawn = draw(field, [location])
    assert drawn.dtype == torch.uint8
    masses = field(torch.tensor([[location]])).log_prob(torch.arange(256, dtype=torch.uint8)[:, None]).exp()[:, 0]
    assert_frequencies(drawn, masses.detach())


@pytest.mark.parametrize(("location", "log_scale"), [(0.1, -1.0), (2.0, 0.0), (0.0, 2.0)])
def test_standardised_integers_are_drawn_as_often_as_they_are_probable(location: float, log_scale: float) -> None:
    field = integer_field(-3, 5, mean=0.7, scale=1.9)
    with_log_scale(field, log_scale)
    drawn = draw(field, [location])
    assert drawn.dtype == torch.float32
    assert (drawn >= field.grid.lower).all()
    assert (drawn <= field.grid.upper).all()
    integers = (drawn.double() * 1.9 + 0.7).round()  # as data/ decodes them
    masses = field(torch.tensor([[location]])).log_prob((column(range(-3, 6), torch.float32) - 0.7) / 1.9).exp()[:, 0]
    assert_frequencies(integers + 3, masses.detach())


@pytest.mark.parametrize(("location", "log_scale"), [(0.1, -1.0), (-0.4, 0.0), (2.6, 0.0), (0.0, 2.0)])
def test_warped_integers_are_drawn_as_often_as_they_are_probable(location: float, log_scale: float) -> None:
    field = warped_field(-3, 60)
    with_log_scale(field, log_scale)
    drawn = draw(field, [location])
    assert drawn.dtype == torch.float32
    integers = (3 * torch.sinh(1.25 * drawn.double() + 0.5)).round()  # as data/ decodes them
    masses = field(torch.tensor([[location]])).log_prob(stored(range(-3, 61)).float()).exp()[:, 0]
    assert_frequencies(integers + 3, masses.detach())


def test_gaussian_draws_have_its_mean_variance_and_quantiles() -> None:
    likelihood = Gaussian(2)
    likelihood.log_scale.data = torch.tensor([-2.0, 1.0])
    drawn = draw(likelihood, [0.5, -3.0])
    assert drawn.dtype == torch.float32
    standardised = (drawn.double() - torch.tensor([0.5, -3.0])) / likelihood.log_scale.detach().exp()
    assert (standardised.mean(0).abs() < 5 / math.sqrt(NUM_DRAWS)).all()
    assert ((standardised.var(0) - 1).abs() < 5 * math.sqrt(2 / NUM_DRAWS)).all()
    deciles = torch.special.ndtr(standardised).mul(10).floor()
    for cell in deciles.T:
        assert_frequencies(cell, torch.full((10,), 0.1))


def test_booleans_are_drawn_as_often_as_they_are_probable() -> None:
    logits = [-6.0, -1.0, 0.0, 2.5]
    drawn = draw(Bernoulli(4), logits)
    assert drawn.dtype == torch.int8
    for cell, probability in zip(drawn.T, torch.tensor(logits).sigmoid(), strict=True):
        assert_frequencies(cell, torch.stack([1 - probability, probability]))


def test_categories_are_drawn_as_often_as_they_are_probable() -> None:
    logits = (2 * torch.randn(sum(SIZES), generator=generator(3))).tolist()
    drawn = draw(Categorical(SIZES), logits)
    assert drawn.dtype == torch.int32
    for cell, scores in zip(drawn.T, torch.split(torch.tensor(logits), SIZES), strict=True):
        assert_frequencies(cell, scores.softmax(-1))


every_likelihood = pytest.mark.parametrize(
    "likelihood",
    [Gaussian(3), bytes_field(size=3), integer_field(-3, 5, 0.7, 1.9), warped_field(-3, 60), Bernoulli(3), Categorical(SIZES)],
    ids=["gaussian", "bytes", "integers", "warped", "bernoulli", "categorical"],
)


@every_likelihood
def test_the_same_seed_draws_the_same_cells_and_another_draws_others(likelihood: Likelihood) -> None:
    outputs = torch.randn(50, likelihood.num_outputs, generator=generator())
    first, again, other = (likelihood(outputs).sample(generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@every_likelihood
def test_draws_and_means_fit_the_features_and_have_finite_log_probabilities(likelihood: Likelihood) -> None:
    distribution = likelihood(torch.randn(50, likelihood.num_outputs, generator=generator()))
    drawn = distribution.sample(generator(1))
    assert drawn.shape == distribution.mean.shape == (50, likelihood.size)
    assert likelihood.features(drawn).shape == (50, likelihood.num_features) == (50, len(likelihood.cell_of_feature()))
    assert distribution.log_prob(drawn).shape == (50, likelihood.size)
    assert distribution.log_prob(drawn).isfinite().all()


@pytest.mark.parametrize("extreme", [-1e30, -1e3, 1e3, 1e30])
def test_draws_stay_in_range_whatever_the_decoder_says(extreme: float) -> None:
    edge = 255 if extreme > 0 else 0
    assert (draw(bytes_field(), [extreme]) == edge).all()
    field = integer_field(-3, 5, 0.7, 1.9)
    assert (draw(field, [extreme]) == (field.grid.upper if extreme > 0 else field.grid.lower)).all()
    assert (draw(warped_field(-3, 60), [extreme]) == stored([60 if extreme > 0 else -3]).float()).all()
    codes = draw(Categorical(SIZES), [extreme, -extreme] * 5 + [extreme])
    assert (codes >= 0).all()
    assert (codes < torch.tensor(SIZES)).all()


def test_means_are_in_stored_units() -> None:
    pixels = bytes_field()(torch.tensor([[0.1], [-9.0], [9.0]])).mean
    assert pixels.dtype == torch.uint8
    assert pixels[:, 0].tolist() == [39, 0, 255]  # round(33 + 6.4), and the ends
    assert Gaussian(2)(torch.tensor([[0.5, -1.0]])).mean.tolist() == [[0.5, -1.0]]
    inside_and_ends = torch.cat([torch.tensor([[0.25]]), stored([-3, 60]).float()])
    assert torch.equal(warped_field(-3, 60)(torch.tensor([[0.25], [-9.0], [9.0]])).mean, inside_and_ends)
    scores = torch.tensor([[0.0, 2.0, 1.0, -5.0, 0.0, 0.0, 0.0, 3.0, 0.0, 1.0, 2.0]])
    modes = Categorical(SIZES)(scores)
    assert isinstance(modes, CategoricalCells)
    assert modes.mean.tolist() == [[1, 0, 3, 1]]


def test_categories_are_one_hot_for_the_encoder() -> None:
    features = Categorical(SIZES).features(torch.tensor([[2, 0, 4, 1]], dtype=torch.int32))
    assert features.tolist() == [[0, 0, 1, 1, 0, 0, 0, 0, 1, 0, 1]]


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_sums_of_masses_are_the_same_without_gradients_in_far_tails_too(context: Callable[[], Any]) -> None:
    location = torch.tensor([[0.0, 900.0, -3.0], [1e4, 0.5, 2.0]], requires_grad=True)
    field = DiscretisedGaussian(3, [1.0, 0.01, 2.0], [-50.0] * 3, [50.0] * 3)
    values, observed = torch.tensor([[0.0, 1.0, -2.0], [1.0, 0.0, 2.0]]), torch.tensor([[True, True, False], [True, True, True]])
    scales = torch.zeros(3)
    with_gradients = sum_log_mass(location, scales, field.grid.interval(values), observed)
    with context():
        assert torch.equal(sum_log_mass(location, scales, field.grid.interval(values), observed), with_gradients)
