"""Claims about the null pattern: which cells are there is modelled beside the cells, and reported apart. Shapes: B rows."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from vae.model import VAE
from vae.objective import Loss, Objective
from vae.rows import Rows

FIELDS: list[dict[str, Any]] = [
    {"name": "number", "likelihood": "gaussian", "size": 3, "valid_size": 3, "null_pattern": [0, 2]},
    {"name": "code", "likelihood": "categorical", "sizes": [3, 2], "valid_size": 2, "null_pattern": [1]},
    {"name": "vector", "likelihood": "gaussian", "size": 2, "valid_size": 1, "null_pattern": [0], "shared_scale": True},
]


def without_pattern() -> list[dict[str, Any]]:
    return [{key: value for key, value in field.items() if key != "null_pattern"} for field in FIELDS]


def build(fields: list[dict[str, Any]], latent_dim: int = 2) -> VAE:
    torch.manual_seed(0)
    return VAE(fields, latent_dim, [8]).double()


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rows_of(num_rows: int) -> Rows:
    g = torch.Generator().manual_seed(1)
    values = {
        "number": torch.randn(num_rows, 3, generator=g, dtype=torch.float64),
        "code": torch.stack([torch.randint(0, size, (num_rows,), generator=g) for size in (3, 2)], 1),
        "vector": torch.randn(num_rows, 2, generator=g, dtype=torch.float64),
    }
    valid = {field["name"]: torch.rand(num_rows, field["valid_size"], generator=g) > 0.4 for field in FIELDS}
    return Rows(values, valid, torch.zeros(num_rows, dtype=torch.float64))


def test_the_pattern_has_a_bernoulli_for_every_modelled_flag() -> None:
    model, rows, z = build(FIELDS), rows_of(6), randn(6, 2)
    logits = model.decoder(z)[:, -4:]
    flags = torch.cat([rows.valid["number"][:, [0, 2]], rows.valid["code"][:, 1:], rows.valid["vector"]], 1)
    expected = -torch.nn.functional.binary_cross_entropy_with_logits(logits, flags.double(), reduction="none").sum(1)
    torch.testing.assert_close(model.likelihood(z).null_pattern_log_prob(rows), expected)
    samples = randn(3, 6, 2, seed=2)
    apart = torch.stack([model.likelihood(one).null_pattern_log_prob(rows) for one in samples])
    torch.testing.assert_close(model.likelihood(samples).null_pattern_log_prob(rows), apart)


def test_the_elbo_is_that_of_the_cells_whether_the_pattern_is_modelled_or_not() -> None:
    model, plain, rows, noise = build(FIELDS), build(without_pattern()), rows_of(5), randn(5, 2)
    weights = dict(model.state_dict())
    for name in ("decoder.2.weight", "decoder.2.bias"):
        weights[name] = weights[name][:-4]
    plain.load_state_dict(weights)
    for bound, expected in (
        (model.elbo(rows, noise), plain.elbo(rows, noise)),
        (model.evaluate_elbo(rows, noise[None]), plain.evaluate_elbo(rows, noise[None])),
    ):
        for part, other in zip(bound[:3], expected[:3], strict=True):
            torch.testing.assert_close(part, other)
        assert (bound.null_pattern < 0).all()
        assert (expected.null_pattern == 0).all()


@torch.no_grad()
def test_elbo_and_pattern_together_bound_the_evidence_of_both() -> None:
    model, rows = build(FIELDS, latent_dim=1), rows_of(20)
    z = torch.linspace(-9, 9, 2001, dtype=torch.float64)[:, None, None].expand(-1, 20, 1)
    p_x, p_z = model.likelihood(z), model.latent_prior()
    log_joint = p_x.log_prob(rows) + p_x.null_pattern_log_prob(rows) + p_z.log_prob(z)
    log_p = torch.logsumexp(log_joint, 0) + math.log(18 / 2000)
    q_z = model.posterior(rows)
    log_q = q_z.log_prob(z)
    exact = (log_q.exp() * (log_joint - log_q)).sum(0) * (18 / 2000)
    assert (exact < log_p).all()
    bound = model.evaluate_elbo(rows, randn(4000, 20, 1))
    found = bound.elbo + bound.null_pattern
    assert ((found - exact).abs() < 0.2).all()
    assert float(found.mean()) == pytest.approx(float(exact.mean()), abs=0.02)


def test_the_pattern_starts_at_the_rates_of_the_training_rows() -> None:
    torch.manual_seed(0)
    field = {"name": "x", "likelihood": "gaussian", "size": 3, "valid_size": 3, "null_pattern": [0, 2], "null_rates": [0.05, 0.9]}
    made = VAE([field], 2, [32]).generate(20_000, torch.Generator().manual_seed(0))
    rates = 1 - made.valid["x"].double().mean(0)
    torch.testing.assert_close(rates, torch.tensor([0.05, 0.0, 0.9], dtype=torch.float64), rtol=0, atol=0.03)


def test_generated_rows_have_nulls_where_real_ones_would() -> None:
    """The second number is missing where the first is positive, and the third in a fifth of the rows, whatever they hold."""
    g = torch.Generator().manual_seed(0)
    numbers = torch.randn(2000, 3, generator=g)
    valid = torch.stack([torch.ones(2000).bool(), numbers[:, 0] < 0, torch.rand(2000, generator=g) > 0.2], 1)
    rows = Rows({"x": numbers}, {"x": valid}, torch.zeros(2000))
    torch.manual_seed(0)
    model = VAE([{"name": "x", "likelihood": "gaussian", "size": 3, "valid_size": 3, "null_pattern": [1, 2]}], 2, [32])
    loss, adam = Loss(model, Objective()), torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(400):
        adam.zero_grad()
        total = loss(rows, torch.randn(2000, 2, generator=g), 1.0)[0] / 2000
        torch.autograd.backward(total)
        adam.step()
    made = model.generate(20_000, g)
    assert made.valid["x"][:, 0].all()
    rates = made.valid["x"].double().mean(0)
    torch.testing.assert_close(rates[1:], torch.tensor([0.5, 0.8], dtype=torch.float64), rtol=0, atol=0.04)
    first, there = made.values["x"][:, 0], made.valid["x"][:, 1]
    assert first[there].mean() < -0.5 < 0.5 < first[~there].mean()
