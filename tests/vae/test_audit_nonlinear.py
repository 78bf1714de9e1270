"""Claims about inference gaps of nonlinear decoders, against quadrature over z. Shapes: B rows, R simulated rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.vae.audit_models import blank, nonlinear_vae, quadrature, randn, simulated
from vae.annealing import Annealing
from vae.audit import AuditPlan, Estimate, audit
from vae.local_search import LocalSearch
from vae.model import VAE
from vae.row_noise import RowNoise
from vae.rows import Rows
from vae.simulation import simulate

PLAN = AuditPlan(
    num_elbo_samples=500,
    num_importance_samples=3000,
    search=LocalSearch(num_steps=150),
    annealing=Annealing(num_chains=16, num_temperatures=40, num_leapfrog_steps=3),
    num_simulated_rows=12,
)
BITS: list[dict[str, Any]] = [{"name": "bits", "likelihood": "bernoulli", "valid_size": 12, "size": 12}]
NUMBERS: list[dict[str, Any]] = [{"name": "numbers", "likelihood": "gaussian", "valid_size": 6, "size": 6}]
MIXED: list[dict[str, Any]] = [
    {"name": "categories", "likelihood": "categorical", "valid_size": 2, "sizes": [3, 5], "null_pattern": [0, 1]},
    {"name": "numbers", "likelihood": "gaussian", "valid_size": 4, "size": 4},
    {"name": "integers", "likelihood": "discretised_gaussian", "valid_size": 1, "size": 1, "half_width": [0.5]}
    | {"lower": [-9], "upper": [9]},
    {"name": "counts", "likelihood": "poisson", "valid_size": 1, "size": 1, "mean": [1.5], "scale": [0.75]},
]
CONDITION: list[dict[str, Any]] = [{"name": "told", "likelihood": "gaussian", "valid_size": 2, "size": 2}]


def bits() -> tuple[VAE, Rows]:
    return nonlinear_vae(BITS, 2), blank(12, bits=(torch.int8, 12))


def numbers() -> tuple[VAE, Rows]:
    return nonlinear_vae(NUMBERS, 2, "full"), blank(12, numbers=(torch.float32, 6))


def mixed(prior: str) -> tuple[VAE, Rows]:
    """A model of one latent dimension, and rows with nulls in a third of their cells; conditional with the conditional prior."""
    sizes = {"categories": (torch.int32, 2), "numbers": (torch.float32, 4), "integers": (torch.float32, 1), "counts": (torch.float32, 1)}
    with_condition: dict[str, Any] = {"condition_fields": CONDITION} if prior == "conditional" else {}
    model = nonlinear_vae(MIXED, 1, prior=prior, num_prior_components=3, **with_condition)
    if prior == "conditional":
        for parameter in model.prior.parameters():
            parameter.data += 0.1 * randn(2, *parameter.shape)
    rows = blank(12, **sizes, told=(torch.float32, 2)) if with_condition else blank(12, **sizes)
    values = rows.values | {name: 2 * randn(3, *cells.shape) for name, cells in rows.values.items() if name == "told"}
    valid = {name: randn(4, *flags.shape) < 0.5 for name, flags in rows.valid.items()}
    return model, Rows(values | {"integers": values["integers"] + 0.25}, valid, randn(5, 12))


def assert_not_below(larger: Tensor, smaller: Tensor) -> None:
    """In the mean over rows, to 3 standard errors of the difference."""
    difference = Estimate.of(larger - smaller)
    assert difference.mean > -3 * difference.standard_error, difference


@pytest.mark.parametrize("make", [bits, numbers])
@pytest.mark.parametrize("start", ["posterior", "prior"])
def test_both_directions_of_annealing_enclose_the_evidence_closely(make: Callable[[], tuple[VAE, Rows]], start: Any) -> None:
    model, like = make()
    rows = simulated(model, like, 0)
    # From the prior it is a longer way.
    annealing = PLAN.annealing if start == "posterior" else replace(PLAN.annealing, num_temperatures=150)
    found = audit(model, rows, 1, replace(PLAN, annealing_start=start, annealing=annealing))
    drawn, _ = simulate(model, rows, RowNoise(1, "simulated rows", range(12)))
    exact = quadrature(model, drawn)
    lower, upper = found.sandwich
    assert (drawn.values[like_name(like)] != rows.values[like_name(like)]).any()
    assert_not_below(exact, lower)
    assert_not_below(upper, exact)
    assert abs(found.sandwich.width.mean) < 0.1
    assert (upper - exact).abs().mean() < 0.2
    assert (found.log_evidence - quadrature(model, rows)).mean().abs() < 0.05
    assert found.approximation_gap.mean > -0.01
    assert found.amortisation_gap.mean > 0.1  # its encoder has never been trained


def like_name(rows: Rows) -> str:
    return next(iter(rows.values))


@pytest.mark.parametrize(
    "prior", ["standard", "conditional", pytest.param("mixture", marks=pytest.mark.slow), pytest.param("vamp", marks=pytest.mark.slow)]
)
def test_mixed_cells_with_nulls_agree_with_quadrature(prior: str) -> None:
    model, like = mixed(prior)
    rows = simulated(model, like, 0)
    found = audit(model, rows, 2, PLAN)
    exact = quadrature(model, rows)
    error = (found.annealed.log_evidence - exact).abs()
    assert (error < 4 * found.annealed.standard_error + 0.001).all()
    assert found.annealed.standard_error.max() < 0.1
    assert (found.annealed.log_evidence - exact).mean().abs() < 0.02
    assert (found.importance.log_evidence - exact).mean().abs() < 0.02
    assert_not_below(exact, found.best_elbo)
    assert_not_below(found.best_elbo, found.elbo)
    drawn = quadrature(model, simulated_by_audit(model, rows))
    assert (found.sandwich.lower - drawn).mean().abs() < 0.05
    assert (found.sandwich.upper - drawn).mean().abs() < 0.05


def simulated_by_audit(model: VAE, rows: Rows) -> Rows:
    return simulate(model, rows, RowNoise(2, "simulated rows", range(rows.num_rows)))[0]


def test_what_missing_cells_hold_changes_nothing() -> None:
    model, like = mixed("standard")
    rows = simulated(model, like, 0)
    holes = ~rows.valid["numbers"]
    other = rows._replace(values=rows.values | {"numbers": rows.values["numbers"].masked_fill(holes, torch.nan)})
    plan = AuditPlan(50, 50, LocalSearch(5), Annealing(2, 5, 2), num_simulated_rows=3)
    one, another = audit(model, rows, 0, plan), audit(model, other, 0, plan)
    assert holes.any()
    assert torch.equal(one.elbo, another.elbo)
    assert torch.equal(one.log_evidence, another.log_evidence)
    assert torch.equal(one.sandwich.upper, another.sandwich.upper)


def test_simulated_rows_have_the_nulls_and_condition_of_others_and_their_own_cells_on_the_grid() -> None:
    model, like = mixed("conditional")
    rows, z = simulate(model, like, RowNoise(0, "test", range(12)))
    assert z.shape == (12, 1)
    assert all(torch.equal(rows.valid[name], like.valid[name]) for name in like.valid)
    assert torch.equal(rows.values["told"], like.values["told"])
    steps = rows.values["integers"] - 0.25
    torch.testing.assert_close(steps, steps.round())
    assert (steps != steps[0]).any()
    again, _ = simulate(model, like.slice(5, 12), RowNoise(0, "test", range(5, 12)))
    torch.testing.assert_close(again.values["numbers"], rows.values["numbers"][5:])
