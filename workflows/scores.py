"""What encode.py computes of a chunk of rows: one output column, or a few, for each name in --output.columns.

Shapes: B rows of a chunk, L latent dimensions, S samples, C columns of the table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from data.conditions import ConditionError, check_drawable, draw_conditions, encode_conditions
from data.encoding import TableEncoding
from vae.evidence import log_mean_exp, log_weights, surprisal
from vae.model import VAE
from vae.posteriors import Posterior
from vae.rows import Rows
from workflows.embedding_task import reconstruction_fields

ELBO_SAMPLES = 8
NUM_BLAMED = 3
# Generated rows whose average surprisal, by column, is what is to be expected.
REFERENCE_ROWS = 4096


class Scorer:
    """Computes the columns asked for. Noise depends on the place of the rows in their file alone. marginals: as the bundle has them."""

    def __init__(
        self, model: VAE, encoding: TableEncoding, marginals: Mapping[str, Any], columns: Sequence[str], num_importance_samples: int
    ) -> None:
        self.model, self.encoding, self.marginals, self.num_importance_samples = model, encoding, marginals, num_importance_samples
        self.compute = [COMPUTE[name] for name in columns]

    @torch.inference_mode()
    def __call__(self, rows: Rows, first_row: int) -> list[pa.Array]:
        """Returns the columns of a chunk that begins at first_row of its file."""
        q_z = self.model.posterior(rows)
        return [array for compute in self.compute for array in compute(self, rows, q_z, first_row)]

    def mean(self, rows: Rows, q_z: Posterior, first_row: int) -> Iterator[pa.Array]:
        yield vectors(q_z.mean)

    def scale(self, rows: Rows, q_z: Posterior, first_row: int) -> Iterator[pa.Array]:
        yield vectors(q_z.scale)

    def elbo(self, rows: Rows, q_z: Posterior, first_row: int) -> Iterator[pa.Array]:
        yield pa.array(log_weights(self.model, rows, q_z, ELBO_SAMPLES, noise(first_row)).double().mean(0).cpu().numpy())

    def log_evidence_bound(self, rows: Rows, q_z: Posterior, first_row: int) -> Iterator[pa.Array]:
        log_w = log_weights(self.model, rows, q_z, self.num_importance_samples, noise(first_row))
        yield pa.array(log_mean_exp(log_w.double()).cpu().numpy())

    def reconstruction(self, rows: Rows, q_z: Posterior, first_row: int) -> Iterator[pa.Array]:
        fields = self.model.likelihood(q_z.mean, self.model.condition(rows)).fields
        cells = self.encoding.split({name: distribution.mean.cpu().numpy() for name, distribution in fields.items()})
        there = np.ones(rows.num_rows, np.bool_)
        kinds = reconstruction_fields(self.encoding)
        yield pa.StructArray.from_arrays(
            [self.encoding.decode_column(kind.name, cells[kind.name], there, kind.type) for kind in kinds], fields=kinds
        )

    def anomaly(self, rows: Rows, q_z: Posterior, first_row: int) -> Iterator[pa.Array]:
        """Yields -ELBO, and the columns whose surprisal exceeds most what rows of the model have, with the excess; all in nats."""
        yield pa.array(-log_weights(self.model, rows, q_z, ELBO_SAMPLES, noise(first_row)).double().mean(0).cpu().numpy())
        excess = self.by_column(surprisal(self.model, rows, q_z, ELBO_SAMPLES, noise(first_row))) - self.expected
        excess[~self.observed(rows)] = -np.inf
        order = np.argsort(-excess, axis=1, kind="stable")[:, :NUM_BLAMED]
        values = np.take_along_axis(excess, order, 1)
        ends = np.concatenate([[0], np.cumsum(np.isfinite(values).sum(1))]).astype(np.int32)
        there = np.isfinite(values)
        yield pa.ListArray.from_arrays(pa.array(ends), pa.array(self.encoding.field_columns).take(pa.array(order[there])))
        yield pa.ListArray.from_arrays(pa.array(ends), pa.array(values[there]))

    @cached_property
    def expected(self) -> NDArray[np.float64]:
        """The average surprisal of each column over rows that the model itself generates, [C]; 0 where its conditions cannot be drawn."""
        try:
            check_drawable(self.encoding)
        except ConditionError:
            return np.zeros(len(self.encoding.field_columns))
        drawn = draw_conditions(self.encoding, self.marginals, REFERENCE_ROWS, np.random.default_rng(0), null_pattern=True)
        told = Rows.from_arrays(encode_conditions(self.encoding, drawn), self.model.device)
        made = self.model.generate(REFERENCE_ROWS, noise(0), self.model.condition(told))
        valid = {name: torch.ones_like(flags) for name, flags in made.valid.items()}
        rows = Rows(made.values | told.values, valid | told.valid, made.log_jacobian)
        columns: NDArray[np.float64] = self.by_column(surprisal(self.model, rows, self.model.posterior(rows), 1, noise(0))).mean(0)
        return columns

    def by_column(self, cells: dict[str, torch.Tensor]) -> NDArray[np.float64]:
        """Returns the sums over each column's cells, [B, C], columns in the order of encoding.field_columns."""
        split = self.encoding.split({name: values.double().cpu().numpy() for name, values in cells.items()})
        return np.stack([split[name].sum(1) for name in self.encoding.field_columns], 1)

    def observed(self, rows: Rows) -> NDArray[np.bool_]:
        """Returns which columns a row has any cell of, [B, C]."""
        columns: list[NDArray[Any]] = []
        for field in (field for field in self.encoding.fields if not field.condition):
            valid: NDArray[Any] = rows.valid[field.name].cpu().numpy()
            columns.append(np.any(valid, 1, keepdims=True) if len(field.columns) == 1 else valid)
        return np.concatenate(columns, 1)


Compute = Callable[[Scorer, Rows, Posterior, int], Iterator[pa.Array]]
COMPUTE: dict[str, Compute] = {
    "mean": Scorer.mean,
    "scale": Scorer.scale,
    "elbo": Scorer.elbo,
    "log_evidence_bound": Scorer.log_evidence_bound,
    "reconstruction": Scorer.reconstruction,
    "anomaly": Scorer.anomaly,
}


def noise(first_row: int) -> torch.Generator:
    return torch.Generator().manual_seed(first_row % 2**32)


def vectors(values: Any) -> pa.Array:
    """Returns [B, L] as an array of lists of one length."""
    return pa.FixedSizeListArray.from_arrays(pa.array(values.contiguous().cpu().numpy().reshape(-1)), values.shape[1])
