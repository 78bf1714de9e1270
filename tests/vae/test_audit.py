"""Claims about inference gaps, where log p(x) and the best posterior of a family are known. Shapes: B rows."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.vae.audit_models import planted_kl, ppca_vae, randn
from tests.vae.linear_models import standardised
from vae.annealing import AnnealedBound, Annealing
from vae.audit import Audit, AuditPlan, Sandwich, audit
from vae.evidence import LogJoint
from vae.importance import ImportanceBound
from vae.local_search import LocalSearch, best_in_family
from vae.oracle import PPCA, fit_ppca
from vae.posteriors import FullGaussian
from vae.row_noise import RowNoise
from vae.rows import Rows

NUM_ROWS = 20
PLAN = AuditPlan(
    num_elbo_samples=4000,
    num_importance_samples=1000,
    search=LocalSearch(num_steps=300),
    annealing=Annealing(num_chains=4, num_temperatures=40, num_leapfrog_steps=3),
    num_simulated_rows=0,
)

PRECISE = replace(PLAN, num_elbo_samples=30_000, annealing=Annealing(num_chains=100, num_temperatures=300, num_leapfrog_steps=3))


def table() -> Tensor:
    return randn(0, 120, 7) @ randn(1, 7, 7) / 2


def rows() -> Rows:
    return standardised(table()[:NUM_ROWS], torch.zeros(7, dtype=torch.float64), 1.0)


def fitted() -> PPCA:
    """At R = I: the exact posterior is diagonal."""
    return fit_ppca(table(), 3)


def correlated() -> PPCA:
    """Two latent dimensions that the posterior correlates by -0.91."""
    first, second = randn(2, 7), randn(3, 7)
    weight = 2 * torch.stack([first, first + 0.5 * second], 1) / first.norm()
    return PPCA(weight, torch.zeros(7, dtype=torch.float64), torch.tensor(0.3, dtype=torch.float64), torch.tensor(math.nan))


def price_of_independence(ppca: PPCA) -> float:
    """KL(q||p(z|x)) of the best diagonal q, the same for every row: 1/2 (sum log diag M - log det M)."""
    return float(0.5 * (ppca.inner.diagonal().log().sum() - torch.logdet(ppca.inner)))


def assert_near(found: float, expected: float, tolerance: float) -> None:
    assert abs(found - expected) <= tolerance, f"{found} is not within {tolerance} of {expected}"


def mean_error(found: Tensor, ppca: PPCA) -> float:
    return (found - ppca.log_evidence(table()[:NUM_ROWS])).mean().abs().item()


def test_an_exact_encoder_has_no_gap() -> None:
    """All estimates have no variance there but the search's own noise: so to 0.001 nats, and not to standard errors of 0."""
    found = audit(ppca_vae(fitted()), rows(), 0, replace(PLAN, num_simulated_rows=5))
    for bound in (found.elbo, found.best_elbo, found.importance.log_evidence, found.annealed.log_evidence):
        assert mean_error(bound, fitted()) < 0.001
    for gap in (found.total_gap, found.approximation_gap, found.amortisation_gap):
        assert_near(gap.mean, 0, 0.001)
        assert gap.standard_error < 0.001
    assert_near(found.sandwich.width.mean, 0, 0.001)
    assert not found.is_suspect.any()


@pytest.mark.parametrize(("shift", "log_factor"), [(0.3, 0.2), (3.0, 1.6), (3.0, -3.0)])
def test_what_is_wrong_with_the_encoder_is_amortisation(shift: float, log_factor: float) -> None:
    planted = planted_kl(fitted(), shift, log_factor)
    found = audit(ppca_vae(fitted(), "diagonal", shift, log_factor), rows(), 0, PLAN)
    assert_near(found.amortisation_gap.mean, planted, 0.01 * planted)
    assert_near(found.total_gap.mean, planted, 0.01 * planted)
    assert_near(found.approximation_gap.mean, 0, 0.005)
    assert mean_error(found.log_evidence, fitted()) < 0.01


def test_what_the_family_cannot_express_is_approximation() -> None:
    price = price_of_independence(correlated())
    assert price > 0.8
    found = audit(ppca_vae(correlated()), rows(), 0, PRECISE)
    assert_near(found.approximation_gap.mean, price, 0.01 * price)
    assert_near(found.amortisation_gap.mean, 0, 0.001)
    assert mean_error(found.log_evidence, correlated()) < 0.01


def test_both_gaps_are_told_apart_where_there_are_both() -> None:
    price, planted = price_of_independence(correlated()), planted_kl(correlated(), 0.5, -1.0)
    found = audit(ppca_vae(correlated(), "diagonal", 0.5, -1.0), rows(), 0, PRECISE)
    assert_near(found.approximation_gap.mean, price, 0.01 * price)
    exact_elbo = correlated().log_evidence(table()[:NUM_ROWS]) - found.elbo
    assert_near(found.total_gap.mean, exact_elbo.mean().item(), 0.01)
    # The shift moves along the posterior's correlation too: the price of it is by the full precision M / variance.
    by_correlation = 0.25 * (correlated().inner.sum() - correlated().inner.diagonal().sum()) / (2 * correlated().variance)
    assert_near(found.amortisation_gap.mean, planted + by_correlation.item(), 0.01 * planted)


@pytest.mark.parametrize(("shift", "log_factor"), [(0.5, -1.0), (-4.0, 2.0)])
def test_the_search_finds_a_full_covariance_from_a_bad_start(shift: float, log_factor: float) -> None:
    model = ppca_vae(correlated(), "full", shift, log_factor).requires_grad_(False)
    found = best_in_family(LogJoint(model, rows()), model.posterior(rows()), LocalSearch(), RowNoise(0, "search", range(NUM_ROWS)))
    assert isinstance(found, FullGaussian)
    mean, covariance = correlated().posterior(table()[:NUM_ROWS])
    whitened = torch.linalg.solve(covariance, found.factor @ found.factor.mT)
    distance = ((mean - found.mean) * torch.linalg.solve(covariance, (mean - found.mean).mT).mT).sum(-1)
    kl = 0.5 * (whitened.diagonal(dim1=-2, dim2=-1).sum(-1) - 2 - torch.logdet(whitened) + distance)
    assert 0 < kl.max() < 0.005


def test_the_search_never_ends_below_its_start_in_rows_where_it_finds_nothing_better() -> None:
    model = ppca_vae(fitted()).requires_grad_(False)
    start = model.posterior(rows())
    astray = LocalSearch(num_steps=3, first_step_size=2.0, last_step_size=1.0)
    found = best_in_family(LogJoint(model, rows()), start, astray, RowNoise(0, "search", range(NUM_ROWS)))
    torch.testing.assert_close(found.outputs, start.outputs, rtol=0, atol=1e-12)


def test_rows_answer_for_themselves_in_whatever_batches_they_come(monkeypatch: pytest.MonkeyPatch) -> None:
    model = ppca_vae(correlated(), "full", 0.5, -1.0)
    plan = AuditPlan(200, 100, LocalSearch(20), Annealing(2, 5, 2, num_pilot_chains=2), num_simulated_rows=5)
    whole = audit(model, rows(), 3, plan)
    parts = Audit.join([audit(model, rows().slice(0, 3), 3, plan), audit(model, rows().slice(3, NUM_ROWS), 3, plan, first_row=3)])
    monkeypatch.setattr("vae.audit.MAX_OUTPUTS", 7 * 8 * 6)
    in_blocks = audit(model, rows(), 3, plan)
    another_seed = audit(model, rows(), 4, plan)
    assert len(whole.sandwich.upper) == 5
    assert_same(parts, whole)
    assert_same(in_blocks, whole)
    assert (another_seed.elbo != whole.elbo).all()
    assert (another_seed.sandwich.upper != whole.sandwich.upper).all()


def assert_same(found: Audit, expected: Audit) -> None:
    everything = [(a.elbo, a.best_elbo, *a.importance, *a.annealed, *a.sandwich) for a in (found, expected)]
    for one, other in zip(*everything, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-7)


def handmade(elbo: list[float], importance: list[float], annealed: list[float], pareto_k: list[float]) -> Audit:
    """An audit whose annealing has two chains 0.02 nats apart, [B] each."""
    numbers = torch.tensor([elbo, importance, annealed, pareto_k], dtype=torch.float64)
    nothing = torch.zeros(len(elbo), dtype=torch.float64)
    chains = torch.stack([numbers[2] - 0.01, numbers[2] + 0.01])
    weights = ImportanceBound(nothing, numbers[1], nothing, nothing + 100, numbers[3])
    return Audit(numbers[0], numbers[0] + 0.25, weights, AnnealedBound(chains, nothing), Sandwich(nothing[:0], nothing[:0]))


def test_the_larger_mean_stands_for_the_evidence_and_not_the_larger_row_by_row() -> None:
    found = handmade([-3.0, -3.0], [-1.0, -2.0], [-2.0, -1.1], [0.1, 0.1])
    assert found.estimator == "importance"
    assert found.log_evidence.tolist() == [-1.0, -2.0]
    assert found.total_gap.mean == 1.5
    assert found.total_gap.standard_error == pytest.approx(0.5)
    assert found.approximation_gap.mean == 1.25
    assert found.amortisation_gap == (0.25, 0.0)
    assert handmade([-3.0, -3.0], [-1.0, -2.0], [-2.0, -0.9], [0.1, 0.1]).estimator == "annealed"
    assert math.isnan(found.sandwich.width.mean)


def test_suspect_rows_are_those_with_heavy_tails_disagreement_or_no_number() -> None:
    nan, inf = math.nan, math.inf
    found = handmade(
        [-3.0] * 6, [-1.0, -1.0, -1.0, -1.0, -inf, -1.0], [-1.0, -1.0, -1.1, nan, -1.0, -1.02], [0.1, 0.8, 0.1, 0.1, 0.1, -inf]
    )
    assert found.is_suspect.tolist() == [False, True, True, True, True, False]
    assert found.is_finite.tolist() == [True, True, True, False, False, True]
    assert found.total_gap.mean == pytest.approx(2.0)
    assert handmade([-3.0], [-1.0], [-1.0], [nan]).is_suspect.tolist() == [True]


def test_an_audit_leaves_the_model_as_it_is() -> None:
    model = ppca_vae(fitted()).float()
    before = [(parameter.clone(), parameter.requires_grad) for parameter in model.parameters()]
    found = audit(model, rows(), 0, AuditPlan(50, 50, LocalSearch(2), Annealing(2, 3, 1), num_simulated_rows=1))
    assert found.elbo.dtype == torch.float64
    for parameter, (values, requires_grad) in zip(model.parameters(), before, strict=True):
        assert torch.equal(parameter, values)
        assert parameter.requires_grad == requires_grad


def test_an_audit_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="an audit needs rows, and got none"):
        audit(ppca_vae(fitted()), rows().slice(0, 0), 0, PLAN)
    with pytest.raises(ValueError, match="num_importance_samples is 10"):
        audit(ppca_vae(fitted()), rows(), 0, AuditPlan(10, 10, LocalSearch(1)))
