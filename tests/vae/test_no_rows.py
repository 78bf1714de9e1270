"""A worker without rows takes part in every step, whatever the model: its loss is exactly 0 and so are its gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from vae.model import VAE
from vae.objective import Loss, Objective
from vae.rows import Rows

FIELDS: list[dict[str, Any]] = [
    {"name": "image", "likelihood": "bernoulli", "size": 64, "valid_size": 1, "with_flags": False, "shape": [8, 8]},
    {"name": "x", "likelihood": "logistics", "size": 2, "valid_size": 2, "null_pattern": [0]},
]
NO_ROWS = Rows(
    {"image": torch.zeros(0, 64, dtype=torch.int8), "x": torch.zeros(0, 2)},
    {"image": torch.zeros(0, 1, dtype=torch.bool), "x": torch.zeros(0, 2, dtype=torch.bool)},
    torch.zeros(0),
)


@pytest.mark.parametrize("network", ["mlp", "gated", "residual", "linear", "conv"])
@pytest.mark.parametrize(
    ("objective", "posterior", "prior"),
    [
        (Objective(), "diagonal", "standard"),
        (Objective(free_bits=0.5), "diagonal", "mixture"),
        (Objective("iwae", 3), "full", "vamp"),
        (Objective("iwae", 1, doubly_reparameterised=False), "diagonal", "vamp"),
    ],
)
def test_a_worker_without_rows_adds_exactly_nothing(network: str, objective: Objective, posterior: str, prior: str) -> None:
    torch.manual_seed(0)
    model = VAE(FIELDS, 4, [8], network, prior, posterior=posterior, num_prior_components=3)
    noise = torch.zeros(0, 4) if objective.num_samples == 1 else torch.zeros(0, objective.num_samples, 4)
    loss, bound = Loss(model, objective, lambda own: own + 1)(NO_ROWS, noise, 1.0)
    torch.autograd.backward(loss)
    assert loss == 0
    assert all(part.shape == (0,) for part in bound)
    for parameter in model.parameters():
        assert parameter.grad is not None
        assert (parameter.grad == 0).all()
