"""The score of all rows of a side of the split, each counted once. No Ray. Shapes: V logical shards, B rows, L latent dimensions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from data.plan import Plan
from vae.health import ACTIVE_VARIANCE
from vae.model import VAE
from workflows.checkpoint import NUM_SUMS
from workflows.feed import SideRows, evaluation_chunks

NULL_PATTERN = "null_pattern_log_likelihood_nats_per_row"


@torch.no_grad()
def shard_sums(model: VAE, plan: Plan, rows: SideRows, side: int, num_samples: int) -> Tensor:
    """Returns, for every logical shard, sums over its rows, [V, NUM_SUMS + 2 L] in float64; 0 for shards that are not held.

    Their number, their bound and its parts, the posterior means and their squares.
    """
    sums = torch.zeros(plan.num_shards, NUM_SUMS + 2 * model.latent_dim, dtype=torch.float64, device=model.device)
    for shard, chunk, noise in evaluation_chunks(plan, rows, side, num_samples, model):
        q_z = model.posterior(chunk)
        bound = model.evaluate_elbo(chunk, noise, q_z)
        totals = torch.stack([part.double().sum() for part in bound])
        mean = q_z.mean.double()
        sums[shard] += torch.cat([torch.full_like(totals[:1], chunk.num_rows), totals, mean.sum(0), mean.square().sum(0)])
    return sums


def scores(sums: Tensor, model: VAE) -> dict[str, Any]:
    """Returns row-weighted means, and the number of active latent dimensions, from the sums of all shards."""
    num_rows, *totals = sums.sum(0).tolist()
    means = [total / num_rows for total in totals]
    bound, moments = means[: NUM_SUMS - 1], means[NUM_SUMS - 1 :]
    squares = zip(moments[: model.latent_dim], moments[model.latent_dim :], strict=True)
    active_units = sum(square - mean**2 > ACTIVE_VARIANCE for mean, square in squares)
    return metrics(bound, model) | {"num_rows": int(num_rows), "active_units": active_units}


def score_of(found: Mapping[str, float], side: str = "validation") -> float | None:
    """Returns what runs and epochs are compared by, from the metrics of a side: the bound of all that is modelled; None without rows."""
    elbo = found.get(f"{side}/elbo_nats_per_row")
    return None if elbo is None else elbo + found.get(f"{side}/{NULL_PATTERN}", 0.0)


def metrics(means: list[float], model: VAE) -> dict[str, Any]:
    """Returns the means of the ELBO and its two parts, and of the null pattern's bound where it is modelled, by name."""
    pattern = [NULL_PATTERN] if model.null_pattern.flags else []
    names = ["elbo_nats_per_row", "expected_log_likelihood_nats_per_row", "kl_nats_per_row", *pattern]
    return dict(zip(names, means, strict=False))
