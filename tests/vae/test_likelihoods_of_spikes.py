"""Claims about mixtures on a grid: they keep what one Gaussian cannot, a spike and several modes."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.vae.likelihood_cases import CASES, generator
from vae.likelihoods import LIKELIHOODS, Likelihood
from vae.mixtures import DiscretisedLogistics, WarpedDiscretisedLogistics

NUM_ROWS = 4000


def spiked() -> Tensor:
    """Whole numbers of which 92 % are 0, and the others anywhere up to 300."""
    values = torch.randint(1, 301, (NUM_ROWS,), generator=generator(), dtype=torch.float64)
    return values * (torch.rand(NUM_ROWS, generator=generator(1)) >= 0.92)


def fitted(likelihood: Likelihood, cells: Tensor, steps: int = 400) -> Tensor:
    """Returns one row of outputs after maximum likelihood over it and the likelihood's parameters."""
    values, repeats = torch.unique(cells, return_counts=True)
    outputs = torch.zeros(1, likelihood.num_outputs, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.Adam([outputs, *likelihood.parameters()], lr=0.05)
    for _ in range(steps):
        optimiser.zero_grad()
        (-repeats * likelihood(outputs).log_prob(values[:, None])[:, 0]).sum().div(len(cells)).backward()
        optimiser.step()
    return outputs


def mass_of(likelihood: Likelihood, outputs: Tensor, cell: Tensor) -> float:
    return math.exp(likelihood(outputs).log_prob(cell.reshape(1, 1)).item())


def test_maximum_likelihood_keeps_a_spike_of_92_percent_in_the_middle_of_a_range() -> None:
    values = spiked()
    share = (values == 0).double().mean().item()
    mean, scale = values.mean().item(), values.std().item()
    grid = {"half_width": [0.5 / scale], "lower": [(-300 - mean) / scale], "upper": [(300 - mean) / scale]}
    cells = (values - mean) / scale
    likelihood = LIKELIHOODS["discretised_logistics"](1, **grid).double()
    found = mass_of(likelihood, fitted(likelihood, cells), cells.min())
    assert abs(found - share) < 0.01
    gaussian = LIKELIHOODS["discretised_gaussian"](1, **grid).double()
    assert mass_of(gaussian, fitted(gaussian, cells), cells.min()) < share - 0.2


@pytest.mark.parametrize("factor", [100, 10**4])
def test_a_component_that_starts_on_a_spike_stays_however_narrow_it_is(factor: int) -> None:
    """Where a range is 30,000 times as wide as an integer, no gradient leads to it; the default is told where the spike is."""
    values = factor * spiked()
    share = (values == 0).double().mean().item()
    mean, scale = values.mean().item(), values.std().item()
    grid: dict[str, Any] = {
        "half_width": [0.5 / scale],
        "lower": [(-300 * factor - mean) / scale],
        "upper": [(300 * factor - mean) / scale],
    }
    cells = (values - mean) / scale
    start = [[cells.min().item(), share]]
    likelihood = DiscretisedLogistics(1, spikes=start, **grid).double()
    outputs = torch.zeros(1, likelihood.num_outputs, dtype=torch.float64)
    assert mass_of(likelihood, outputs, cells.min()) > 0.9 * share
    found = fitted(likelihood, cells)
    assert abs(mass_of(likelihood, found, cells.min()) - share) < 0.01
    drawn = likelihood(found.expand(20_000, -1)).sample(generator(2))
    assert abs((drawn - cells.min()).abs().lt(0.5 / scale).double().mean().item() - share) < 0.01
    lost = DiscretisedLogistics(1, **grid).double()
    assert mass_of(lost, fitted(lost, cells), cells.min()) < share - 0.1


def test_a_spike_after_a_warp_starts_with_its_share() -> None:
    grid: dict[str, Any] = {"width": [1000.0, 50.0], "mean": [1.0, 0.0], "scale": [2.0, 1.0], "lower": [0, 0], "upper": [10**6, 10**6]}
    cell = (math.asinh(7 / 1000) - 1) / 2
    likelihood = WarpedDiscretisedLogistics(2, spikes=[[cell, 0.6], None], **grid).double()
    outputs = torch.zeros(1, likelihood.num_outputs, dtype=torch.float64)
    masses = likelihood(outputs).log_prob(torch.tensor([[cell, 0.1]], dtype=torch.float64)).exp()
    assert masses[0, 0].item() == pytest.approx(0.6, abs=0.01)
    plain = WarpedDiscretisedLogistics(2, **grid).double()
    assert likelihood(outputs).log_prob(torch.zeros(1, 2).double())[0, 1] == plain(outputs).log_prob(torch.zeros(1, 2).double())[0, 1]


def test_maximum_likelihood_keeps_a_spike_after_a_warp_away_from_0() -> None:
    values = torch.where(spiked() == 0, 10.0, spiked())
    share = (values == 10).double().mean().item()
    u = torch.asinh(values / 50)
    mean, scale = u.mean().item(), u.std().item()
    grid = {"width": [50.0], "mean": [mean], "scale": [scale], "lower": [0], "upper": [10**6]}
    likelihood = LIKELIHOODS["warped_discretised_logistics"](1, **grid).double()
    cells = (u - mean) / scale
    found = mass_of(likelihood, fitted(likelihood, cells), cells[values == 10][0])
    assert abs(found - share) < 0.01


@pytest.mark.parametrize("name", ["logistics on integers", "logistics on bytes", "logistics after a warp"])
def test_a_component_may_put_all_its_mass_into_any_one_integer(name: str) -> None:
    case = CASES[name]
    likelihood, support = case.build(), case.support().values
    assert isinstance(likelihood, DiscretisedLogistics | WarpedDiscretisedLogistics)
    with torch.no_grad():
        for index in (1, len(support) // 2, len(support) - 2):
            middle = likelihood.grid.interval(support[index].reshape(1, 1)).middle
            outputs = torch.zeros(3, likelihood.num_outputs // 3, dtype=torch.float64)
            outputs[1], outputs[2] = middle - likelihood.location[:, 0], -1e3
            assert mass_of(likelihood, outputs.reshape(1, -1), support[index]) > 0.999
