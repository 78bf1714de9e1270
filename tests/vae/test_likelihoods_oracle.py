"""The oracle of every likelihood: with one latent dimension log p(x) is an integral over a grid, and bounds are held to it."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.vae.likelihood_cases import CASES, generator
from vae.evidence import log_mean_exp, log_weights
from vae.likelihoods import LIKELIHOODS
from vae.model import VAE
from vae.rows import Rows

NUM_ROWS, NUM_SAMPLES = 256, 10_000
CHOSEN = [name for name in CASES if name not in ("student_t shared", "logistics of 1", "logistics on bytes", "many categories")]


def test_every_likelihood_is_held_to_the_oracle() -> None:
    assert {CASES[name].name for name in CHOSEN} == set(LIKELIHOODS)


def build(field: dict[str, Any], seed: int) -> VAE:
    """A model of one field whose decoder bends in earnest and whose posterior is near the prior, so that weights have a variance."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = VAE([field], 1, hidden_dims=[8]).double()
        for parameter in model.decoder.parameters():
            torch.nn.init.normal_(parameter, std=0.6)
        for parameter in model.encoder.parameters():
            torch.nn.init.normal_(parameter, std=0.05)
    return model


def generated(model: VAE, field: dict[str, Any], seed: int, missing: float = 0.0) -> Rows:
    values = model.generate(NUM_ROWS, generator(seed)).values[field["name"]]
    valid = torch.rand(NUM_ROWS, 1, generator=generator(seed + 1)) >= missing
    return Rows({field["name"]: values}, {field["name"]: valid}, torch.zeros(NUM_ROWS, dtype=torch.float64))


def grid_log_evidence(model: VAE, rows: Rows, num_points: int) -> Tensor:
    """Returns log of the integral of p(x|z) p(z) over z in [-9, 9] by the trapezoidal rule, [B]; cell by cell, not by sum_log_prob."""
    z = torch.linspace(-9, 9, num_points, dtype=torch.float64)
    parts = []
    for some in torch.split(z, 256):
        cells = model.likelihood(some[:, None, None].expand(-1, NUM_ROWS, 1)).cell_log_probs(rows)
        parts.append(torch.stack([log_p.sum(-1) for log_p in cells.values()]).sum(0) + model.latent_prior().log_prob(some[:, None, None]))
    return torch.logsumexp(torch.cat(parts), 0) + math.log(18 / (num_points - 1))


@pytest.mark.parametrize("name", CHOSEN)
@torch.no_grad()
def test_the_importance_bound_is_the_log_evidence_and_the_elbo_below_it(name: str) -> None:
    case = CASES[name]
    field = {"name": "cell", "likelihood": case.name, "valid_size": 1} | case.arguments
    if case.name.endswith("logistics"):
        field["num_components"] = 2
    model = build(field, seed=len(name))
    rows = generated(model, field, 7)
    log_p = grid_log_evidence(model, rows, 1601)
    coarse_log_p = grid_log_evidence(model, rows, 801)
    assert log_p.std() > 0.02  # rows differ, which a decoder that says one thing of all would not show

    log_w = log_weights(model, rows, model.posterior(rows), NUM_SAMPLES, generator(3))
    assert log_w.shape == (NUM_SAMPLES, NUM_ROWS)
    relative = torch.exp(log_w - log_mean_exp(log_w))
    errors = relative.std(0) / math.sqrt(NUM_SAMPLES)
    error_of_mean = errors.square().sum().sqrt() / NUM_ROWS
    assert 0.5 * errors.square().mean() < error_of_mean  # what so many samples leave of the bound's bias
    assert (log_p - coarse_log_p).mean().abs() < error_of_mean  # the error of the finer grid is a third of this, as the decoder has kinks
    assert (log_mean_exp(log_w) - log_p).mean().abs() < 4 * error_of_mean

    elbo, elbo_error = log_w.mean(0), log_w.std(0) / math.sqrt(NUM_SAMPLES)
    assert (elbo <= log_p + 4 * elbo_error).all()
    gap = log_p.mean() - elbo.mean()
    assert gap > 0
    bound = model.elbo(rows, torch.randn(400, NUM_ROWS, 1, generator=generator(4), dtype=torch.float64)).elbo.mean()
    assert bound.item() == pytest.approx(elbo.mean().item(), abs=0.02 + 0.05 * gap.item())
