"""Claims about vae.spiked: cells with atoms. Others are in test_likelihoods_of_all_kinds and test_likelihoods_oracle."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tests.vae.likelihood_cases import disturb, generator, outputs_of
from vae.mixtures import Logistics
from vae.model import VAE
from vae.spiked import SpikedLogistics

ATOMS = [[[0.0, 0.5]], [[-1.25, 0.125], [2.0, 0.25], [3.0, 0.5]]]
NUM_DRAWS = 40_000


def likelihood() -> SpikedLogistics:
    return SpikedLogistics(2, ATOMS).double()


def cells(*values: float) -> Tensor:
    return torch.tensor([values], dtype=torch.float64)


def test_it_starts_with_the_atoms_shares_and_a_standard_density_of_the_rest() -> None:
    found = likelihood()
    cells_at = found(torch.zeros(1, found.num_outputs, dtype=torch.float64))
    assert cells_at.log_prob(cells(0.0, 2.0)).exp().tolist() == [pytest.approx([0.5, 0.25], rel=1e-6)]
    rest = Logistics(2).double()
    density = rest(torch.zeros(1, rest.num_outputs, dtype=torch.float64)).log_prob(cells(0.7, 2.1)).exp()
    assert cells_at.log_prob(cells(0.7, 2.1)).exp().tolist() == [
        pytest.approx((density[0] * torch.tensor([0.5, 0.125])).tolist(), rel=1e-6)
    ]


def test_atoms_are_drawn_as_often_as_they_are_probable_and_a_cells_own_alone() -> None:
    found = disturb(likelihood(), 0)
    with torch.no_grad():
        outputs = outputs_of(found, 1, 0)
        drawn = found(outputs.expand(NUM_DRAWS, -1)).sample(generator())
        for cell, atoms in enumerate(ATOMS):
            others = [value for value, _ in ATOMS[1 - cell]]
            assert not torch.isin(drawn[:, cell], torch.tensor(others, dtype=torch.float64)).any()
            for value, _ in atoms:
                p = float(found(outputs).log_prob(cells(value, value))[0, cell].exp())
                share = float((drawn[:, cell] == value).double().mean())
                assert abs(share - p) <= 4.5 * math.sqrt(p * (1 - p) / NUM_DRAWS)


def test_neither_the_density_nor_its_gradient_depends_on_rows_at_an_atom() -> None:
    """Rows that are equal would draw a density to a peak without end."""
    found = likelihood()
    outputs = outputs_of(found, 1, 3).requires_grad_()
    found(outputs).log_prob(cells(0.0, -1.25)).sum().backward()
    assert outputs.grad is not None
    assert (outputs.grad[:, : found.num_rest] == 0).all()
    assert (outputs.grad[:, found.num_rest :] != 0).sum() == 2 + 4  # an absent atom has none
    assert found.location.grad is not None
    assert (found.location.grad == 0).all()


@pytest.mark.parametrize("value", [0.0, 0.7, 3.0e38])
def test_scores_at_the_ends_of_float32_leave_everything_finite(value: float) -> None:
    found = SpikedLogistics(1, [[[0.0, 0.5]]])
    for signs in ((1.0, -1.0), (-1.0, 1.0)):
        said = torch.zeros(1, found.num_outputs)
        said[0, found.num_rest :] = 3.4e38 * torch.tensor(signs)
        said.requires_grad_()
        log_prob = found(said).log_prob(torch.tensor([[value]]))
        assert log_prob.isfinite().all()
        assert torch.autograd.grad(log_prob.sum(), said)[0].isfinite().all()


def test_the_encoder_sees_the_number_or_which_atom_it_is() -> None:
    found = likelihood().float()
    values = torch.tensor([[0.0, 0.5], [1.0, 2.0], [torch.nan, 3.0]])
    valid = torch.tensor([[True, True], [True, True], [False, True]])
    of_rows = [[0, 0.5, 1, 0, 0, 0], [1, 0, 0, 0, 1, 0], [0, 0, 0, 0, 0, 1]]
    assert found.observed_features(values, valid).tolist() == of_rows
    assert found.observed_features(values[:2], torch.tensor([[True], [False]])).tolist() == [of_rows[0], [0] * 6]
    assert found.cell_of_feature().tolist() == [0, 1, 0, 1, 1, 1]


def test_what_the_encoder_sees_does_not_depend_on_which_number_stands_for_an_atom() -> None:
    seen = [SpikedLogistics(1, [[[atom, 0.2]]]).features(torch.tensor([[atom], [0.7]])).tolist() for atom in (0.0, -999.0)]
    assert seen[0] == seen[1] == [[0, 1], [pytest.approx(0.7), 0]]


@pytest.mark.parametrize("atoms", [[], [[[0.0, 0.5]]], [[[0.0, 0.5]], []]])
def test_atoms_that_are_none_are_refused(atoms: list[list[list[float]]]) -> None:
    with pytest.raises(ValueError, match="spiked_logistics: atoms of 2 cells are needed, one or more each"):
        SpikedLogistics(2, atoms)


def test_a_model_that_saw_atoms_as_numbers_is_refused() -> None:
    with pytest.raises(TypeError, match="atoms"):
        VAE([{"name": "x", "likelihood": "spiked_logistics", "size": 1, "valid_size": 1, "atoms": [[[0.0, 0.5]]]}], 1)
