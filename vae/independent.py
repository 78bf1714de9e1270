"""What a model's bound must exceed: the density of independent columns, each with the likelihood that the model gives it.

The decoder is one vector of outputs, the same for all rows: a VAE whose latent says nothing, and with no determined columns, ends here.
Shapes: B rows, F decoder outputs.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vae.likelihoods import Likelihood
from vae.model import VAE
from vae.null_pattern import NullPatternDistribution
from vae.row_distribution import RowDistribution
from vae.rows import Rows

BATCH_ROWS = 512
NUM_STEPS = 600
LEARNING_RATE = 0.05


class IndependentColumns(NamedTuple):
    """p(x) = product over columns: the fields' likelihoods under one vector of outputs [F]."""

    likelihoods: dict[str, Likelihood]
    outputs: Tensor

    def log_prob(self, rows: Rows) -> Tensor:
        """Returns log p of the rows' observed cells in nats in data units, [B]."""
        sizes = [likelihood.num_outputs for likelihood in self.likelihoods.values()]
        parts = torch.split(self.outputs.expand(rows.num_rows, -1), sizes, -1)
        fields = {name: likelihood(part) for (name, likelihood), part in zip(self.likelihoods.items(), parts, strict=True)}
        return RowDistribution(fields, NullPatternDistribution(self.outputs[:0], {}, [])).log_prob(rows)

    @torch.inference_mode()
    def score(self, rows: Rows) -> Tensor:
        """Returns the same batch by batch, in float64."""
        likelihoods = {name: copy.deepcopy(likelihood).double() for name, likelihood in self.likelihoods.items()}
        wide = IndependentColumns(likelihoods, self.outputs.double())
        starts = range(0, rows.num_rows, BATCH_ROWS)
        empty = torch.zeros(0, dtype=torch.float64)
        return torch.cat([empty, *(wide.log_prob(rows.slice(start, start + BATCH_ROWS)).double() for start in starts)])


def fit_independent(architecture: Mapping[str, Any], rows: Rows, seed: int = 0) -> IndependentColumns:
    """Returns the likelihoods and outputs that fit training rows best, by Adam. architecture: the arguments of the model's VAE.

    No column determines another here, as it may do in the model.
    A normal prior on the outputs, which weighs as much as one row, keeps what no training row has from probability 0.
    """
    fields = [{key: value for key, value in field.items() if key != "rules"} for field in architecture["fields"]]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = VAE(**{**architecture, "fields": fields})
    likelihoods: dict[str, Likelihood] = dict(model.likelihoods.items())  # type: ignore[arg-type]
    outputs = torch.zeros(sum(likelihood.num_outputs for likelihood in likelihoods.values()), requires_grad=True)
    optimizer = torch.optim.Adam([outputs, *model.likelihoods.parameters()], lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, NUM_STEPS)
    generator = torch.Generator().manual_seed(seed)
    independent = IndependentColumns(likelihoods, outputs)
    for _ in range(NUM_STEPS):
        batch = rows.take(torch.randint(rows.num_rows, (min(BATCH_ROWS, rows.num_rows),), generator=generator))
        optimizer.zero_grad()
        loss = 0.5 * outputs.square().sum() / rows.num_rows - independent.log_prob(batch).mean()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return IndependentColumns(likelihoods, outputs.detach())
