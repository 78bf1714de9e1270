"""Claims about numbers between those of a grid: each has the mass of the step around it, and over all numbers these are a density."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import assume, example, given
from hypothesis import strategies as st
from torch import Tensor

from vae.grids import LEAST_OFF, ROUNDING_OFF, WarpedGrid
from vae.likelihoods import LIKELIHOODS

WIDTH, MEAN, SCALE = 7.0, 0.25, 1.25  # which float32 holds
NO_END = 2.0**60
STEP = 0.25


def stored(x: Tensor) -> Tensor:
    return (torch.asinh(x.double() / WIDTH) - MEAN) / SCALE


def warp(lower: float = -NO_END, off_grid: bool = True) -> dict[str, object]:
    ends = {"lower": [lower], "upper": [NO_END]}
    return {"size": 1, "width": [WIDTH], "mean": [MEAN], "scale": [SCALE], "off_grid": off_grid} | ends


@given(x=st.floats(-1e4, 1e4))
@example(x=0.0)
@example(x=0.02)
@example(x=-0.49)
@example(x=0.5)
def test_a_number_between_integers_has_the_interval_from_half_below_to_half_above(x: float) -> None:
    assume(x == round(x) or abs(x - round(x)) > LEAST_OFF + 1.01 * abs(x) * ROUNDING_OFF)
    grid = WarpedGrid(**warp()).double()  # type: ignore[arg-type]
    middle, half_width, at_lower, at_upper = grid.interval(stored(torch.tensor([[x]], dtype=torch.float64)))
    ends = stored(torch.tensor([x - 0.5, x + 0.5], dtype=torch.float64))
    torch.testing.assert_close(torch.stack([middle - half_width, middle + half_width]).flatten(), ends, rtol=1e-9, atol=1e-9)
    assert not at_lower.any()
    assert not at_upper.any()


def test_integers_that_were_stored_in_float32_are_not_taken_for_numbers_between() -> None:
    k = torch.cat([torch.arange(-3000, 3000), torch.arange(3000, 2**17, 7)])[:, None]
    values = stored(k).float()
    some, none = (WarpedGrid(**warp(off_grid=off_grid)).interval(values) for off_grid in (True, False))  # type: ignore[arg-type]
    for ours, theirs in zip(some, none, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)


@torch.no_grad()
@pytest.mark.parametrize("name", ["warped_discretised_gaussian", "warped_discretised_logistics"])
@pytest.mark.parametrize("lower", [-NO_END, 0.0])
def test_masses_of_all_numbers_are_a_density_after_a_warp(name: str, lower: float) -> None:
    likelihood = LIKELIHOODS[name](**warp(lower)).double()
    outputs = torch.zeros(1, likelihood.num_outputs, dtype=torch.float64)
    outputs[0, 0] = 0.2
    x = torch.arange(max(lower, -2e4), 2e4, 0.1, dtype=torch.float64) + 0.05
    density = likelihood(outputs).log_prob(stored(x)[:, None]).exp()
    total = float(density.sum()) * 0.1
    if lower == 0:  # below 1/2 every number has the whole lower tail, of which the parts overlap
        assert 0.5 < total <= 1
    else:
        assert total == pytest.approx(1, abs=2e-3)


@torch.no_grad()
@pytest.mark.parametrize("name", ["discretised_gaussian", "discretised_logistics"])
def test_masses_of_all_numbers_divided_by_the_step_are_a_density(name: str) -> None:
    likelihood = LIKELIHOODS[name](size=1, half_width=[STEP / 2], lower=[-1e9], upper=[1e9]).double()
    outputs = torch.zeros(1, likelihood.num_outputs, dtype=torch.float64)
    outputs[0, 0] = 0.1
    y = torch.arange(-60, 60, 0.01, dtype=torch.float64)[:, None]
    total = float(likelihood(outputs).log_prob(y).exp().sum()) * 0.01 / STEP
    assert total == pytest.approx(1, abs=1e-3)
    assert math.isfinite(float(likelihood(outputs).log_prob(y).min()))
