"""p(x|z) of whole rows, and of which of their cells are there. Shapes: S samples, B rows, D cells of a field."""

from __future__ import annotations

import torch
from torch import Tensor

from vae.likelihoods import CellDistribution, without_missing
from vae.null_pattern import NullPatternDistribution
from vae.rows import Rows


class RowDistribution:
    """p(x|z): one distribution per field, independent given z, and p(m|z) of the flags that are modelled."""

    def __init__(self, fields: dict[str, CellDistribution], null_pattern: NullPatternDistribution) -> None:
        self.fields, self.null_pattern = fields, null_pattern

    def log_prob(self, rows: Rows) -> Tensor:
        """Returns log p(x_observed|z) in nats in data units, [B] or [S, B]; missing cells contribute exactly 0."""
        total = rows.log_jacobian
        for name, distribution in self.fields.items():
            valid = rows.valid[name]
            total = total + distribution.sum_log_prob(without_missing(rows.values[name], valid), valid)
        return total

    def null_pattern_log_prob(self, rows: Rows) -> Tensor:
        """Returns log p(m|z) in nats, [B] or [S, B]; 0 where no flags are modelled."""
        return self.null_pattern.log_prob(rows.valid)

    def sample_valid(self, rows: Rows, generator: torch.Generator) -> dict[str, Tensor]:
        """Returns the rows' flags by field, drawn where they are modelled."""
        return self.null_pattern.sample(rows.valid, generator)

    def cell_log_probs(self, rows: Rows) -> dict[str, Tensor]:
        """Returns log p of every cell in its stored units, 0 where it is missing: field -> [B, D] or [S, B, D]."""
        result = {}
        for name, distribution in self.fields.items():
            valid = rows.valid[name]
            result[name] = distribution.observed_log_prob(without_missing(rows.values[name], valid), valid)
        return result

    def given(self, rows: Rows) -> dict[str, CellDistribution]:
        """Returns the distributions of missing cells given z and the rows' cells that are there."""
        return {
            name: cells.given(without_missing(rows.values[name], rows.valid[name]), rows.valid[name]) for name, cells in self.fields.items()
        }
