"""Claims about the null pattern: which cells are there is modelled beside the cells, and reported apart. Shapes: B rows."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from vae.model import VAE
from vae.null_pattern import NullPatternDistribution
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


LISTS: list[dict[str, Any]] = [
    {"name": "number", "likelihood": "gaussian", "size": 2, "valid_size": 2, "null_pattern": [1]},
    {"name": "list", "likelihood": "gaussian", "size": 3, "valid_size": 3, "null_pattern": [0, 1, 2], "null_list_rate": 0.2},
    {"name": "holes", "likelihood": "gaussian", "size": 2, "valid_size": 2, "null_pattern": [0, 1], "null_rates": [0.1, 0.6]},
]


def patterns() -> Rows:
    """Returns a row for every pattern of LISTS' modelled flags; the first number is always there."""
    flags = torch.tensor(list(itertools.product([False, True], repeat=6)))
    valid = {"number": torch.stack([torch.ones(64).bool(), flags[:, 0]], 1), "list": flags[:, 1:4], "holes": flags[:, 4:]}
    values = {name: torch.zeros(64, part.shape[1], dtype=torch.float64) for name, part in valid.items()}
    return Rows(values, valid, torch.zeros(64, dtype=torch.float64))


def test_the_probabilities_of_all_patterns_of_lists_sum_to_one() -> None:
    model, rows = build(LISTS), patterns()
    assert model.null_pattern.num_outputs == 7
    z = randn(5, 1, 2).expand(5, 64, 2)
    log_p = model.likelihood(z).null_pattern_log_prob(rows)
    assert log_p.shape == (5, 64)
    torch.testing.assert_close(log_p.exp().sum(1), torch.ones(5, dtype=torch.float64))
    torch.testing.assert_close(model.likelihood(z[2]).null_pattern_log_prob(rows), log_p[2])


def test_drawn_patterns_of_lists_have_their_probabilities() -> None:
    model, rows, num_draws = build(LISTS), patterns(), 40_000
    z = randn(1, 2)
    p = model.likelihood(z.expand(64, 2)).null_pattern_log_prob(rows).exp()
    drawn = model.likelihood(z.expand(num_draws, 2)).sample_valid(rows.take(torch.full((num_draws,), 63)), torch.Generator().manual_seed(0))
    assert drawn["number"][:, 0].all()
    flags = torch.cat([drawn["number"][:, 1:], drawn["list"], drawn["holes"]], 1)
    found = torch.bincount((flags * 2 ** torch.arange(5, -1, -1)).sum(1), minlength=64) / num_draws
    assert ((found - p).abs() <= 4.5 * (p * (1 - p) / num_draws).sqrt() + 1e-9).all()


def test_the_gradient_of_a_list_without_an_element_is_finite_however_sure_the_model_is() -> None:
    for logit in (-200.0, -1.0, 200.0):
        logits = torch.full((1, 4), logit, requires_grad=True)
        pattern = NullPatternDistribution(logits, {"x": [0, 1, 2]}, ["x"])
        log_p = pattern.log_prob({"x": torch.zeros(1, 3).bool()})
        torch.autograd.backward(log_p.sum())
        assert log_p.isfinite().all()
        assert logits.grad is not None
        assert logits.grad.isfinite().all()


def test_lists_start_at_their_rate_and_their_elements_at_theirs() -> None:
    torch.manual_seed(0)
    field = {"name": "x", "likelihood": "gaussian", "size": 3, "valid_size": 3, "null_pattern": [0, 1, 2], "null_rates": [0.05, 0.3, 0.001]}
    made = VAE([field | {"null_list_rate": 0.25}], 2, [32]).generate(20_000, torch.Generator().manual_seed(0)).valid["x"]
    there = made.any(1)
    assert float(there.double().mean()) == pytest.approx(0.75, abs=0.05)
    rates = 1 - made[there].double().mean(0)
    torch.testing.assert_close(rates, torch.tensor([0.05, 0.3, 0.001], dtype=torch.float64), rtol=0, atol=0.05)
