"""Claims about integers that are rounded to multiples of a coarser step with some probability."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.vae.likelihood_cases import generator, outputs_of
from vae.grids import LinearGrid, WarpedGrid
from vae.heaps import Heaps
from vae.likelihoods import LIKELIHOODS

NO_END = 2.0**63
NO_SPIKE = torch.zeros(5, 1, dtype=torch.bool)


def naive_mass(components: Any, begin: Tensor, end: Tensor) -> Tensor:
    """Returns the mass of intervals [B] in each row's mixture, a difference of two values of the distribution function."""
    log_weights, location, log_scale = (part[..., 0] for part in components)
    above, below = (torch.sigmoid((x[:, None] - location) / log_scale.exp()) for x in (end, begin))
    mass: Tensor = (log_weights.exp() * (above - below)).sum(-1)
    return mass


def test_an_integer_is_rounded_with_a_probability_whatever_it_is() -> None:
    """In steps of 0.25 standard deviations, multiples of 4 counted from the step 1.5, against the definition with naive masses."""
    half, share = 0.125, 0.6
    likelihood = LIKELIHOODS["discretised_logistics"](
        size=1, half_width=[half], lower=[-1e3], upper=[1e3], heaps=[[4, 1.5, share]]
    ).double()
    positions = torch.arange(-16.5, 16.5, 1.0, dtype=torch.float64)
    y = positions[:, None] / 4
    outputs = outputs_of(likelihood, len(y), 0)
    distribution = likelihood(outputs)
    components, at = distribution.components, y[:, 0]
    rounded = torch.sigmoid(torch.logit(torch.tensor(share, dtype=torch.float64)) + outputs[:, -1])
    expected = (1 - rounded) * naive_mass(components, at - half, at + half)
    is_multiple = (positions - 1.5) % 4 == 0
    expected += torch.where(is_multiple, rounded * naive_mass(components, at - 4 * half, at + 4 * half), 0.0)
    assert 7 < is_multiple.sum() < 10
    torch.testing.assert_close(distribution.log_prob(y).exp()[:, 0], expected, rtol=1e-6, atol=1e-9)


def test_a_spike_is_not_rounded() -> None:
    """A third of the rows are 99 for what is not known, among multiples of 5; and prices of .99 have some that are 0."""
    spike, grid = -0.75, {"half_width": [0.125], "lower": [-1e3], "upper": [1e3]}
    likelihood = LIKELIHOODS["discretised_logistics"](size=1, **grid, heaps=[[4, 0.0, 0.99]], spikes=[[spike, 0.3]]).double()
    outputs = torch.zeros(4000, likelihood.num_outputs, dtype=torch.float64)
    with torch.no_grad():
        p = likelihood(outputs[:1]).log_prob(torch.tensor([[spike], [0.0]], dtype=torch.float64)).exp()[:, 0].tolist()
        drawn = likelihood(outputs).sample(generator())[:, 0]
    assert p[0] == pytest.approx(0.3, abs=0.01)
    assert ((drawn - spike).abs() < 0.125).double().mean().item() == pytest.approx(p[0], abs=0.03)
    assert (drawn == 0).double().mean().item() == pytest.approx(p[1], abs=0.03)


def test_after_a_warp_the_coarser_step_is_one_of_integers() -> None:
    """Dollars up to some millions, rounded to thousands: both intervals are the warp's of half steps, and multiples are told in float32."""
    width, mean, scale = 30_000.0, 0.4, 1.3
    heaps = Heaps(WarpedGrid(1, [width], [mean], [scale], [0.0], [NO_END]), [[1000, 0, 0.9]], NO_SPIKE)
    k = torch.tensor(
        [0.0, 1.0, 500.0, 999.0, 1000.0, 52_000.0, 52_001.0, 51_999.0, 250_000.0, 999_999.0, 1_000_000.0, 1_000_001.0]
    ).double()
    stored = ((torch.asinh(k / width) - mean) / scale).float()[:, None]
    intervals, is_multiple, told = heaps.intervals(stored)
    assert told.all()
    assert is_multiple[:, 0].tolist() == (k % 1000 == 0).tolist()
    multiple = (k / 1000).round() * 1000
    begin, end = (((torch.asinh((multiple + side) / width) - mean) / scale).float() for side in (-500, 500))
    torch.testing.assert_close((intervals.middle - intervals.half_width)[:, 0], begin, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close((intervals.middle + intervals.half_width)[:, 0], end, rtol=1e-5, atol=1e-6)
    assert intervals.at_lower[:, 0].tolist() == (multiple == 0).tolist()
    assert not intervals.at_upper.any()


@given(
    width=st.floats(0.5, 1e5),
    mean=st.floats(-5, 5),
    scale=st.floats(0.05, 3),
    step=st.integers(2, 1000),
    phase=st.integers(-1000, 1000),
    k=st.integers(-(10**8), 10**8),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_multiples_are_known_where_they_are_told_from_their_neighbours(
    width: float, mean: float, scale: float, step: int, phase: int, k: int, dtype: torch.dtype
) -> None:
    """Whatever float32 does to the stored number, on the model's types; up to 2^16 steps after a warp and 2^22 without one all are told."""
    warped = WarpedGrid(1, [width], [mean], [scale], [-NO_END], [NO_END])
    linear = LinearGrid(1, [0.5 / scale / 1000], [-1e30], [1e30])
    for grid, stored, known in (
        (warped, (math.asinh(k / width) - mean) / scale, abs(k) < 2**16),
        (linear, k / scale / 1000, abs(k) < 2**22),
    ):
        heaps = Heaps(grid, [[step, phase, 0.5]], NO_SPIKE).to(dtype)
        _, is_multiple, told = heaps.intervals(torch.tensor([[stored]], dtype=torch.float32))
        if told:
            assert is_multiple.item() == ((k - phase) % step == 0)
        assert told.item() >= known


def test_far_out_where_float32_does_not_tell_them_no_number_is_rounded_and_all_probabilities_sum_to_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Told are 3 multiples around the mean if cells had 6 digits of 2. No number pays for a rounding that nobody could see."""
    monkeypatch.setattr("vae.heaps.STORED", 2.0**-6)
    k = torch.arange(-300, 301, dtype=torch.float64)
    for name, grid, y in (
        ("discretised_logistics", {"half_width": [0.05], "lower": [-30.0], "upper": [30.0]}, k / 10),
        (
            "warped_discretised_logistics",
            {"width": [3.0], "mean": [0.5], "scale": [1.25], "lower": [-300], "upper": [300]},
            (torch.asinh(k / 3) - 0.5) / 1.25,
        ),
    ):
        plain, heaped = (LIKELIHOODS[name](size=1, **grid, heaps=heaps).double() for heaps in (None, [[9, 0.0, 0.99]]))
        outputs = outputs_of(heaped, 1, 0)
        with torch.no_grad():
            one, other = plain(outputs[:, :-1]).log_prob(y[:, None])[:, 0], heaped(outputs.expand(len(y), -1)).log_prob(y[:, None])[:, 0]
            drawn = heaped(outputs.expand(5000, -1)).sample(generator())[:, 0]
        assert other.exp().sum().item() == pytest.approx(1, abs=1e-6)
        near = one != other
        assert 9 <= near.sum() <= 60
        assert (near.nonzero().diff(dim=0) == 1).all()
        assert k[near].abs().max() < 40
        at = torch.searchsorted(y, drawn.clamp(y[0], y[-1]) - 1e-9)
        for multiple in k[near & (k % 9 == 0)].tolist():
            share = ((y[at] - drawn).abs() < 1e-9)[k[at] == multiple].double().sum() / len(drawn)
            assert share.item() == pytest.approx(other[k == multiple].exp().item(), abs=0.05)


@given(mean=st.floats(50, 200), scale=st.floats(20, 80), multiple=st.integers(0, 9))
def test_bytes_have_all_of_the_mass_though_no_float_holds_the_ends_of_their_range(mean: float, scale: float, multiple: int) -> None:
    ends = {"half_width": [0.5 / scale], "lower": [(0 - mean) / scale], "upper": [(255 - mean) / scale]}
    likelihood = LIKELIHOODS["discretised_logistics"](size=1, **ends, heaps=[[10, multiple - mean, 0.7]])
    y = ((torch.arange(256).double() - mean) / scale).float()[:, None]
    with torch.no_grad():
        p = likelihood(torch.zeros(256, likelihood.num_outputs)).log_prob(y).exp().double()
    assert p.sum().item() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(("output", "end", "multiple"), [(-60.0, 0, 1), (60.0, 18, 17)])
def test_whoever_is_far_out_is_in_the_end_of_the_range_or_its_last_multiple(output: float, end: int, multiple: int) -> None:
    likelihood = LIKELIHOODS["discretised_logistics"](
        size=1, half_width=[0.125], lower=[-2.0], upper=[2.5], heaps=[[4, -7.0, 0.6]]
    ).double()
    outputs = torch.full((1, likelihood.num_outputs), output, dtype=torch.float64)
    outputs[:, 10:15], outputs[:, 15] = -1.0, 0.0
    y = torch.tensor([[k / 4] for k in range(-8, 11)], dtype=torch.float64)
    p = likelihood(outputs.expand(len(y), -1)).log_prob(y).exp()[:, 0]
    assert p[multiple].item() == pytest.approx(0.6, abs=1e-6)
    assert p[end].item() == pytest.approx(0.4, abs=1e-6)
    assert p.sum().item() == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("output", [-1e30, -3.0, 0.0, 30.0, 1e30])
@pytest.mark.parametrize("value", [-3e38, 25.0, 29.3, 1e6, 1e18, 3e38])
def test_cells_so_far_out_that_float64_does_not_hold_the_coarser_step_have_finite_slopes(value: float, output: float) -> None:
    """Such as 2^63 - 1 for what is not known, among salaries of some ten thousands."""
    for name, grid in (
        ("discretised_logistics", {"half_width": [0.001], "lower": [-1e18], "upper": [1e18]}),
        ("warped_discretised_logistics", {"width": [3e4], "mean": [0.2], "scale": [1.3], "lower": [-3e4], "upper": [NO_END]}),
    ):
        likelihood = LIKELIHOODS[name](size=1, **grid, heaps=[[1000, 0.0, 0.7]])
        outputs = torch.full((1, likelihood.num_outputs), output, requires_grad=True)
        cells = torch.tensor([[value]])
        total = likelihood(outputs).sum_log_prob(cells, torch.ones(1, 1, dtype=torch.bool)) + likelihood(outputs).log_prob(cells).sum()
        for tensor in (total, *torch.autograd.grad(total.sum(), [outputs, *likelihood.parameters()])):
            assert tensor.isfinite().all()


def test_cells_without_heaps_are_as_if_no_cell_had_some() -> None:
    grid = {"half_width": [0.1, 0.2, 0.3], "lower": [-1e3] * 3, "upper": [1e3] * 3}
    plain, heaped = (LIKELIHOODS["discretised_logistics"](size=3, **grid, heaps=heaps) for heaps in (None, [None, [5, 0.0, 0.5], None]))
    assert heaped.num_outputs == plain.num_outputs + 1
    outputs = outputs_of(heaped, 50, 0)
    y = (torch.arange(150).reshape(50, 3) % 17 - 8) * 2 * torch.tensor(grid["half_width"])
    with torch.no_grad():
        one, other = plain(outputs[:, :-1]), heaped(outputs)
        first, second = one.log_prob(y), other.log_prob(y)
        torch.testing.assert_close(first[:, [0, 2]], second[:, [0, 2]])
        is_multiple = (y[:, 1] / 0.4).round() % 5 == 0
        assert 5 < is_multiple.sum() < 20
        assert ((second > first)[:, 1] == is_multiple).all()
        torch.testing.assert_close(one.mean, other.mean)
        drawn = [each.sample(generator(1)) for each in (one, other)]
        torch.testing.assert_close(drawn[0][:, [0, 2]], drawn[1][:, [0, 2]])
        valid = torch.ones(50, 1, dtype=torch.bool)
        torch.testing.assert_close(other.sum_log_prob(y, valid), second.sum(-1))


@pytest.mark.parametrize("heaps", [[None], [None, None], [None, [1, 0, 0.5]], [None, [4, 0, 0.5], None]])
def test_steps_that_are_not_coarser_and_other_numbers_of_cells_are_refused(heaps: list[Any]) -> None:
    with pytest.raises(ValueError, match="heaps: None or a step beyond 1, a multiple and a share are needed for 2 cells"):
        LIKELIHOODS["discretised_logistics"](size=2, half_width=[0.1], lower=[-9.0], upper=[9.0], heaps=heaps)
