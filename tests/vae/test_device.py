"""A training step is one graph, in which the host never looks at a device's numbers and no two devices are mixed.

On "meta", which has no numbers, whoever looks at one or mixes devices fails: so this needs no GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from tests.vae.likelihood_cases import CASES
from vae.model import VAE
from vae.objective import Loss, Objective
from vae.rows import Rows

NUM_ROWS, LATENT_DIM = 6, 3
META = torch.device("meta")
IMAGE = {"name": "image", "likelihood": "bernoulli", "size": 64, "valid_size": 1, "with_flags": False, "shape": [8, 8]}
NUMBERS = {"name": "x", "likelihood": "gaussian", "size": 2, "valid_size": 2, "null_pattern": [0]}
REGION = {"name": "region", "likelihood": "categorical", "sizes": [3, 200], "valid_size": 2}


class Trained(NamedTuple):
    """What is trained, of which rows, and to which end."""

    model: VAE
    rows: Rows
    objective: Objective

    def noise(self) -> torch.Tensor:
        samples = [self.objective.num_samples] if self.objective.num_samples > 1 else []
        return torch.zeros(NUM_ROWS, *samples, LATENT_DIM)


def rows_of(values: dict[str, torch.Tensor]) -> Rows:
    sizes = {"image": 1}
    valid = {name: torch.ones(NUM_ROWS, sizes.get(name, cells.shape[1]), dtype=torch.bool) for name, cells in values.items()}
    return Rows(values, valid, torch.zeros(NUM_ROWS))


def every_likelihood() -> Trained:
    fields, values = [], {}
    for number, case in enumerate(CASES.values()):
        name = f"cell_{number}"
        fields.append({"name": name, "likelihood": case.name, "valid_size": 1, "null_pattern": [0]} | case.arguments)
        cells = case.support().values[:1].expand(NUM_ROWS)[:, None].contiguous()
        stored = torch.int32 if case.name == "categorical" else torch.float32 if cells.is_floating_point() else cells.dtype
        values[name] = cells.to(stored)
    fields.append({"name": "town", "likelihood": "categorical", "sizes": [2, 4], "rules": [[1, [0, 1, 1, 0], 0.01], None], "valid_size": 2})
    values["town"] = torch.zeros(NUM_ROWS, 2, dtype=torch.int32)
    return Trained(VAE(fields, LATENT_DIM, [8]), rows_of(values), Objective())


def mixed(network: str, posterior: str, prior: str, objective: Objective) -> Trained:
    """A model of an image and numbers; with a prior that may know of them, told of regions."""
    values = {"image": torch.zeros(NUM_ROWS, 64, dtype=torch.int8), "x": torch.zeros(NUM_ROWS, 2)}
    conditions: list[dict[str, Any]] = []
    if prior in ("conditional", "mixture"):
        conditions, values["region"] = [REGION], torch.zeros(NUM_ROWS, 2, dtype=torch.int32)
    options: dict[str, Any] = {"condition_fields": conditions, "posterior": posterior, "num_prior_components": 4}
    return Trained(VAE([IMAGE, NUMBERS], LATENT_DIM, [8], network, prior, **options), rows_of(values), objective)


STEPS: dict[str, Callable[[], Trained]] = {
    "every likelihood": every_likelihood,
    "linear": lambda: mixed("linear", "diagonal", "standard", Objective()),
    "gated": lambda: mixed("gated", "diagonal", "standard", Objective()),
    "residual": lambda: mixed("residual", "diagonal", "standard", Objective()),
    "conv": lambda: mixed("conv", "diagonal", "standard", Objective()),
    "conditional prior": lambda: mixed("mlp", "diagonal", "conditional", Objective()),
    "full posterior, mixture": lambda: mixed("mlp", "full", "mixture", Objective()),
    "free bits": lambda: mixed("mlp", "diagonal", "standard", Objective(free_bits=0.5)),
    "free bits, mixture": lambda: mixed("mlp", "diagonal", "mixture", Objective(free_bits=0.5)),
    "iwae, full posterior, vamp": lambda: mixed("mlp", "full", "vamp", Objective("iwae", 3)),
    "iwae, one gradient, vamp": lambda: mixed("mlp", "diagonal", "vamp", Objective("iwae", 3, doubly_reparameterised=False)),
}


@pytest.mark.parametrize("step", STEPS)
def test_the_host_looks_at_nothing_and_devices_are_not_mixed(step: str) -> None:
    trained = STEPS[step]()
    model = trained.model.to(META)
    loss, bound = Loss(model, trained.objective)(trained.rows.to(META), trained.noise().to(META), torch.ones((), device=META))
    torch.autograd.backward(loss)
    assert {part.device for part in bound} == {META}
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # by torch.compile itself, as it traces a Function
@pytest.mark.parametrize("step", STEPS)
def test_a_step_is_one_graph_whatever_the_weight_of_the_kl(step: str) -> None:
    trained = STEPS[step]()
    torch.compiler.reset()
    counter = CompileCounter()
    loss = torch.compile(Loss(trained.model, trained.objective), backend=counter, fullgraph=True)
    for beta in (0.1, 0.5, 1.0):
        found, _ = loss(trained.rows, trained.noise(), torch.tensor(beta))
        torch.autograd.backward(found)
    assert counter.frame_count == 1
