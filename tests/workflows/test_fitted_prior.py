"""The fitted prior is the same on any number of workers, and of any table: of few rows too, and of more than it looks at."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from data.plan import Plan
from tests.workflows.test_steps import LATENT_DIM, holding_of, rows_of, small_model
from vae.aggregated import with_prior
from vae.objective import SumOverWorkers
from vae.priors import Mixture
from workflows import fitted_prior
from workflows.fitted_prior import draws, draws_of_shards, fit_prior


class Workers:
    """Threads that add up their tensors, as workers do by collectives."""

    def __init__(self, num_workers: int) -> None:
        self.barrier, self.own = threading.Barrier(num_workers, timeout=60), [torch.zeros(0)] * num_workers

    def sum(self, rank: int) -> SumOverWorkers:
        def together(own: Tensor) -> Tensor:
            self.own[rank] = own
            self.barrier.wait()
            total = torch.stack(self.own).sum(0)
            self.barrier.wait()
            return total

        return together


def fitted_by(num_workers: int, plan: Plan, num_components: int = 4) -> list[Mixture]:
    workers, model = Workers(num_workers), small_model()

    def work(rank: int) -> Mixture:
        holding = holding_of(rows_of(plan.num_rows), plan, rank, num_workers)
        return fit_prior(model, plan, holding, num_components, workers.sum(rank))

    with ThreadPoolExecutor(num_workers) as pool:
        return list(pool.map(work, range(num_workers)))


@pytest.mark.parametrize("num_rows", [1, 7, 997])
@pytest.mark.parametrize("max_draws", [200_000, 100])
def test_it_is_the_same_on_any_number_of_workers(num_rows: int, max_draws: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitted_prior, "MAX_DRAWS", max_draws)
    monkeypatch.setattr(fitted_prior, "DRAWS_PER_COMPONENT", 20)
    plan = Plan(num_rows, 8, 64, 0, 10**6)
    (alone,) = fitted_by(1, plan)
    assert len(alone.log_weights) == {1: 1, 7: 1, 997: 4}[num_rows]
    for number in (2, 3):
        for found in fitted_by(number, plan):
            assert torch.equal(found.log_weights, alone.log_weights)
            assert all(torch.equal(a, b) for a, b in zip(found.components.parameters, alone.components.parameters, strict=True))


@pytest.mark.parametrize("max_draws", [10**6, 997, 996, 100, 1])
def test_draws_are_of_rows_evenly_apart_in_every_shard(max_draws: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitted_prior, "MAX_DRAWS", max_draws)
    plan = Plan(997, 8, 64, 0, 10**6)
    found = draws(small_model(), plan, holding_of(rows_of(997), plan, 0, 1))
    assert [len(found[shard]) for shard in range(8)] == draws_of_shards(plan)
    assert sum(map(len, found.values())) <= max_draws + 8


def test_the_elbo_of_the_rows_that_it_is_fitted_to_is_higher_with_it() -> None:
    plan, model = Plan(997, 8, 64, 0, 10**6), small_model()
    (mixture,) = fitted_by(1, plan)
    rows, noise = rows_of(997), torch.randn(16, 997, LATENT_DIM, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    before, after = (each.evaluate_elbo(rows, noise).elbo.mean() for each in (model, with_prior(model, mixture)))
    assert after > before
