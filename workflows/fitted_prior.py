"""The prior fitted to the posteriors of all training rows, the same on any number of workers. No Ray.

Shapes: V logical shards, N draws, L latent dimensions, K components.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from data.plan import Plan, shard_bounds
from data.split import TRAIN
from vae.aggregated import expected_sums, maximised, starting_at
from vae.model import VAE
from vae.objective import SumOverWorkers
from vae.priors import Mixture
from workflows.feed import SideRows, evaluation_chunks

# Draws that a mixture of some hundred components is fitted to, and how many each of them needs.
MAX_DRAWS, DRAWS_PER_COMPONENT = 200_000, 100
# The climb ends after so many rounds, or where one gains less, in nats per row.
MAX_ROUNDS, LEAST_GAIN = 100, 1e-4


def fit_prior(model: VAE, plan: Plan, rows: SideRows, num_components: int, sum_over_workers: SumOverWorkers) -> Mixture:
    """Returns the mixture of up to num_components Gaussians that raises the ELBO over the training rows most, or near it.

    rows: those that this worker holds. Shards are summed apart, so the numbers are those of one worker.
    """
    drawn, ends = draws(model, plan, rows), np.cumsum(draws_of_shards(plan))
    num_components = max(1, min(num_components, int(ends[-1]) // DRAWS_PER_COMPONENT))
    mixture = starting_at(sum_over_workers(centers(drawn, ends, num_components, model)))
    reached = -torch.inf
    for _ in range(MAX_ROUNDS):
        found = {shard: expected_sums(mixture, z) for shard, z in drawn.items()}
        sums = torch.zeros(plan.num_shards, 1 + num_components * (1 + 2 * model.latent_dim), dtype=torch.float64, device=model.device)
        for shard, own in found.items():
            sums[shard] = own
        total = sum_over_workers(sums).sum(0)
        mixture, before = maximised(total, model.latent_dim), reached
        reached = float(total[0]) / int(ends[-1])
        if reached - before < LEAST_GAIN:
            break
    return mixture


def stride(plan: Plan) -> int:
    """Returns of how many rows one is drawn for."""
    return -(-plan.num_rows // MAX_DRAWS)


def draws_of_shards(plan: Plan) -> list[int]:
    sizes = np.diff(shard_bounds(plan.num_rows, plan.num_shards))
    return [-(-int(size) // stride(plan)) for size in sizes]


@torch.no_grad()
def draws(model: VAE, plan: Plan, rows: SideRows) -> dict[int, Tensor]:
    """Returns shard -> one draw of q(z|x) for every so many of its rows, [N, L] in float64."""
    parts: dict[int, list[Tensor]] = {shard: [] for shard in rows.size}
    seen = dict.fromkeys(rows.size, 0)
    for shard, chunk, noise in evaluation_chunks(plan, rows, TRAIN, 1, model):
        z = model.posterior(chunk).rsample(noise)[0].double()
        parts[shard].append(z[-seen[shard] % stride(plan) :: stride(plan)])
        seen[shard] += chunk.num_rows
    none = torch.zeros(0, model.latent_dim, dtype=torch.float64, device=model.device)
    return {shard: torch.cat([none, *found]) for shard, found in parts.items()}


def centers(drawn: dict[int, Tensor], ends: np.ndarray, num_components: int, model: VAE) -> Tensor:
    """Returns, of K of all draws, evenly apart, those that this worker holds, 0 for the others, [K, L]."""
    chosen = ((np.arange(num_components) + 0.5) * int(ends[-1]) / num_components).astype(np.int64)
    found = torch.zeros(num_components, model.latent_dim, dtype=torch.float64, device=model.device)
    for shard, z in drawn.items():
        first = int(ends[shard]) - len(z)
        (mine,) = np.nonzero((chosen >= first) & (chosen < ends[shard]))
        found[torch.from_numpy(mine).to(found.device)] = z[torch.from_numpy(chosen[mine] - first).to(z.device)]
    return found
