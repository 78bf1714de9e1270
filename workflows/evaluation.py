"""What an actor of evaluate.py does: the rows of one side of the split, scored in float64, one line each.

Shapes: B rows of a chunk, L latent dimensions, K importance samples, C columns of the table.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from pyarrow import fs
from torch import Tensor

from data.encoding import TableEncoding
from data.jacobians import column_log_jacobians
from data.split import SPLITS, TRAIN, SplitRule
from data.table import RowGroup
from vae.evidence import log_mean_exp, log_weights
from vae.importance import MIN_SAMPLES, pareto_k, tail_length
from vae.model import VAE
from vae.posteriors import Posterior
from vae.rows import Rows
from workflows.actors import Shared
from workflows.embedding_task import name_fields
from workflows.file_actor import Chunk, FileActor
from workflows.scores import ELBO_SAMPLES, NUM_BLAMED, Scorer, noise, vectors

BY_COLUMN = "log_likelihood_nats_by_column"
# Above 0.7 a row's log-evidence bound is not to be trusted; null for fewer than 25 importance samples, -inf where weights have no tail.
PARETO_K = "pareto_k"
# The scores that are one number a row, in the order of the output.
SCORES = (
    "elbo_nats",
    "log_evidence_bound_nats",
    "expected_log_likelihood_nats",
    "kl_nats",
    "null_pattern_log_probability_nats",
    "effective_sample_size",
)


@dataclass(frozen=True)
class Evaluated:
    """What is read and which rows count. reads: the columns that are needed; side: train, validation, test or all, as `chosen` cuts it.

    own: how the scored model's training cut the table. label: a column that is kept beside the scores.
    """

    filesystem: fs.FileSystem
    reads: pa.Schema
    key: str | None
    key_type: pa.DataType | None
    label: str | None
    label_type: pa.DataType | None
    chosen: SplitRule
    side: str
    own: SplitRule
    num_importance_samples: int

    def wanted(self, rows: pa.Table, part: RowGroup) -> NDArray[np.bool_]:
        """Returns which rows of a slice of a row group count, [B]."""
        if self.side == "all":
            return np.ones(len(rows), np.bool_)
        wanted: NDArray[np.bool_] = self.chosen.sides(rows, part) == SPLITS[self.side]
        return wanted


class Evaluator(FileActor):
    """Scores row groups of one Parquet file."""

    def __init__(self, shared: Shared) -> None:
        super().__init__(shared)
        self.model.double()
        self.scorer = RowScorer(self.model, self.encoding, self.marginals, [], self.task.what.num_importance_samples)

    def output_schema(self) -> pa.Schema:
        return output_schema(self.model, self.encoding, self.task.what)

    def kept(self, table: pa.Table, part: RowGroup, relative_path: str) -> list[pa.ChunkedArray]:
        """Returns what names rows, whether the model was trained on them, the label where one is asked for, and which rows count."""
        what: Evaluated = self.task.what
        first = table[what.key].cast(self.schema.field(0).type) if what.key else pa.repeat(relative_path, len(table))
        places = np.arange(part.first_row, part.first_row + len(table))
        columns = [first, places, what.own.sides(table, part) == TRAIN]
        labels = [table[what.label].cast(self.schema.field("label").type)] if what.label else []
        return [as_chunked(column) for column in [*columns, *labels, what.wanted(table, part)]]

    def columns(self, chunk: Chunk) -> list[pa.Array | pa.ChunkedArray]:
        *kept, wanted = chunk.kept
        index = torch.from_numpy(np.flatnonzero(wanted.to_numpy())).to(self.device)
        return [*(column.filter(wanted) for column in kept), *self.scorer.scores(chunk.rows.take(index), chunk.first_row)]


def as_chunked(column: pa.ChunkedArray | pa.Array | NDArray[np.generic]) -> pa.ChunkedArray:
    if isinstance(column, pa.ChunkedArray):
        return column
    return pa.chunked_array([column if isinstance(column, pa.Array) else pa.array(column)])


class RowScorer(Scorer):
    """Scores rows; noise depends on the place of their chunk in its file alone."""

    @torch.inference_mode()
    def scores(self, rows: Rows, first_row: int) -> Iterator[pa.Array]:
        """Yields the columns of score_fields for rows of a chunk that begins at first_row of its file."""
        q_z = self.model.posterior(rows)
        log_w = log_weights(self.model, rows, q_z, self.num_importance_samples, noise(first_row))
        elbo = log_w.mean(0)
        kl, null_pattern, cells = self.expectations(rows, q_z, first_row)
        yield from map(numbers, (elbo, log_mean_exp(log_w), elbo + kl, kl, null_pattern, effective_sample_size(log_w)))
        yield tail_of_weights(log_w)
        stored, observed = self.by_column(cells), self.observed(rows)
        in_data_units = stored + column_log_jacobians(self.encoding, arrays_of(rows))
        columns = [pa.array(values, mask=~there) for values, there in zip(in_data_units.T, observed.T, strict=True)]
        yield pa.StructArray.from_arrays(columns, self.encoding.field_columns)
        yield from self.worst(-stored, observed)
        yield from (vectors(part.float()) for part in (q_z.mean, q_z.scale))

    def expectations(self, rows: Rows, q_z: Posterior, first_row: int) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Returns what the bound is made of in nats: KL and E_q[log p(m|z)] [B], and E_q[log p(cell|z)] by field, in stored units.

        The KL is exact where there is a closed form, else, as the other two, a mean over samples of q.
        """
        condition, generator = self.model.condition(rows), noise(first_row)
        p_z = self.model.latent_prior(condition)
        kl, null_pattern = torch.zeros_like(rows.log_jacobian), torch.zeros_like(rows.log_jacobian)
        total: dict[str, Tensor] = {}
        for _ in range(ELBO_SAMPLES):
            drawn = torch.randn(rows.num_rows, self.model.latent_dim, generator=generator, dtype=self.model.dtype).to(rows.device)
            z = q_z.rsample(drawn)
            p_x = self.model.likelihood(z, condition)
            kl += q_z.kl(p_z, z, drawn) / ELBO_SAMPLES
            null_pattern += p_x.null_pattern_log_prob(rows) / ELBO_SAMPLES
            for name, log_prob in p_x.cell_log_probs(rows).items():
                total[name] = total.get(name, 0.0) + log_prob / ELBO_SAMPLES
        return kl, null_pattern, total

    def worst(self, surprisal: NDArray[np.float64], observed: NDArray[np.bool_]) -> Iterator[pa.Array]:
        """Yields the names of the columns whose surprisal exceeds most what rows of the model have, and the excess in nats."""
        excess = np.where(observed, surprisal - self.expected, -np.inf)
        order = np.argsort(-excess, axis=1, kind="stable")[:, :NUM_BLAMED]
        values = np.take_along_axis(excess, order, 1)
        there = np.isfinite(values)
        ends = pa.array(np.concatenate([[0], np.cumsum(there.sum(1))]).astype(np.int32))
        yield pa.ListArray.from_arrays(ends, pa.array(self.encoding.field_columns).take(pa.array(order[there])))
        yield pa.ListArray.from_arrays(ends, pa.array(values[there]))


def effective_sample_size(log_w: Tensor) -> Tensor:
    """Returns (sum w)^2 / sum w^2 of importance weights [K, B], between 1 and K, [B] (Kong 1992)."""
    return torch.exp(2 * torch.logsumexp(log_w, 0) - torch.logsumexp(2 * log_w, 0))


def tail_of_weights(log_w: Tensor) -> pa.Array:
    """Returns the Pareto k of importance weights [K, B]; null for fewer samples than have a tail."""
    if len(log_w) < MIN_SAMPLES:
        return pa.nulls(log_w.shape[1], pa.float64())
    return numbers(pareto_k(log_w.double().topk(tail_length(len(log_w)) + 1, 0).values))


def numbers(values: Tensor) -> pa.Array:
    return pa.array(values.double().cpu().numpy())


def arrays_of(rows: Rows) -> dict[str, NDArray[np.generic]]:
    """Returns rows as TableEncoding.encode gives them, without their log-Jacobian."""
    values = {name: tensor.cpu().numpy() for name, tensor in rows.values.items()}
    return values | {f"{name}.valid": tensor.cpu().numpy() for name, tensor in rows.valid.items()}


def output_schema(model: VAE, encoding: TableEncoding, what: Evaluated) -> pa.Schema:
    """Returns the output's columns: what names the rows, where they are, and their scores."""
    named = name_fields(what.key, what.key_type)[:1]
    label = [pa.field("label", name_fields("label", what.label_type)[0].type)] if what.label else []
    places = [pa.field("source_row", pa.int64()), pa.field("trained_on", pa.bool_()), *label]
    return pa.schema([*named, *places, *score_fields(model.latent_dim, encoding)])


def score_fields(latent_dim: int, encoding: TableEncoding) -> list[pa.Field]:
    """Returns the fields of the scores, all in nats in data units but for the worst columns' excess, which has none."""
    vector = pa.list_(pa.float32(), latent_dim)
    return [
        *(pa.field(name, pa.float64()) for name in SCORES),
        pa.field(PARETO_K, pa.float64()),
        pa.field(BY_COLUMN, pa.struct([pa.field(name, pa.float64()) for name in encoding.field_columns])),
        pa.field("worst_columns", pa.list_(pa.string())),
        pa.field("worst_excess_nats", pa.list_(pa.float64())),
        pa.field("z_mean", vector),
        pa.field("z_scale", vector),
    ]
