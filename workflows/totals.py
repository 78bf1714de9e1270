"""What many rows' scores come to: means and standard errors over the rows that evaluate.py wrote, in float64, file by file.

Shapes: B rows of a batch, L latent dimensions, C columns.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from data.moments import Moments
from data.output import OutputFolder
from vae.audit import MAX_PARETO_K
from workflows.evaluation import BY_COLUMN, PARETO_K, SCORES

BATCH_ROWS = 65_536
# Burda et al. 2016: a latent dimension whose posterior mean varies by more than this over rows is active.
ACTIVE_VARIANCE = 0.01
# Of the normal distribution, for intervals of 95 %.
TWO_SIDED_95 = 1.959964


@dataclass(frozen=True)
class Estimate:
    """A mean over rows, NaN where one of them has no number, and its standard error, infinite for a single row."""

    mean: float
    standard_error: float
    num_rows: int

    @property
    def interval(self) -> tuple[float, float]:
        """The ends of the 95 % interval."""
        return self.mean - TWO_SIDED_95 * self.standard_error, self.mean + TWO_SIDED_95 * self.standard_error

    @staticmethod
    def of(values: NDArray[np.float64]) -> Estimate:
        """Returns the estimate of numbers [n], n >= 1."""
        found = estimates(Moments.of(values[:, None]))[0]
        return found if found.num_rows == len(values) else Estimate(math.nan, math.nan, found.num_rows)

    def as_json(self) -> dict[str, float | None]:
        """Returns mean and standard error, None where they are no finite numbers."""
        return {"mean": finite(self.mean), "standard_error": finite(self.standard_error)}


def finite(number: float) -> float | None:
    """Returns a number as JSON can hold it."""
    return number if math.isfinite(number) else None


def estimates(moments: Moments) -> list[Estimate]:
    """Returns the estimates that moments [E] make."""
    counts = moments.count
    with np.errstate(divide="ignore", invalid="ignore"):
        errors = np.where(counts > 1, np.sqrt(moments.squares / np.maximum(counts - 1, 1) / np.maximum(counts, 1)), math.inf)
    return [Estimate(float(m), float(e), int(n)) for m, e, n in zip(moments.mean, errors, counts, strict=True)]


@dataclass(frozen=True)
class Totals:
    """All rows' scores. columns: each column's log-likelihood over all rows (0 where it is missing), in nats per row.

    latent_variances: Var_x(E_q[z_j]), [L]. num_not_finite: rows some score of which is no number. num_heavy_tailed: rows whose
    importance weights have a Pareto k above MAX_PARETO_K, None where that is not known for want of samples.
    """

    num_rows: int
    num_trained_on: int
    num_not_finite: int
    num_heavy_tailed: int | None
    scores: dict[str, Estimate]
    columns: dict[str, Estimate]
    latent_variances: NDArray[np.float64]

    @property
    def active_units(self) -> int:
        return int((self.latent_variances > ACTIVE_VARIANCE).sum())


def rows_of(output: OutputFolder, names: Sequence[str], columns: Sequence[str]) -> Iterator[tuple[str, pa.Table]]:
    """Yields the rows of output files, in the order of their names and of their rows, some thousand at once, each with its file."""
    for name in sorted(names):
        with output.filesystem.open_input_file(f"{output.path}/{name}") as source, pq.ParquetFile(source) as file:
            for batch in file.iter_batches(BATCH_ROWS, columns=list(columns)):
                if batch.num_rows:
                    yield name, pa.Table.from_batches([batch])


def total(output: OutputFolder, names: Sequence[str]) -> Totals | None:
    """Returns what all rows of the output's files come to; None where there is no row."""
    num_rows = num_trained_on = num_not_finite = num_heavy_tailed = num_without_tail = 0
    scores: Moments | None = None
    latents: Moments | None = None
    columns: list[str] = []
    for _, rows in rows_of(output, names, [*SCORES, PARETO_K, "trained_on", BY_COLUMN, "z_mean"]):
        cells = rows[BY_COLUMN].combine_chunks()
        columns = [field.name for field in cells.type]
        parts = [*(rows[name].to_numpy() for name in SCORES), *(pc.fill_null(part, 0.0).to_numpy() for part in cells.flatten())]
        values = np.stack(parts, 1)
        num_rows += len(values)
        num_trained_on += int(pc.sum(rows["trained_on"]).as_py())
        num_not_finite += int((~np.isfinite(values)).any(1).sum())
        num_heavy_tailed += int(pc.sum(pc.greater(rows[PARETO_K], MAX_PARETO_K)).as_py() or 0)
        num_without_tail += rows[PARETO_K].null_count
        scores = merged(scores, Moments.of(values))
        latents = merged(latents, Moments.of(matrix(rows["z_mean"])))
    if scores is None or latents is None:
        return None
    scores.mean[scores.count < num_rows] = math.nan
    found = estimates(scores)
    of_rows, by_column = dict(zip(SCORES, found, strict=False)), dict(zip(columns, found[len(SCORES) :], strict=True))
    heavy = None if num_without_tail else num_heavy_tailed
    return Totals(num_rows, num_trained_on, num_not_finite, heavy, of_rows, by_column, latents.squares / np.maximum(latents.count, 1))


def merged(moments: Moments | None, more: Moments) -> Moments:
    return more if moments is None else moments.merge(more)


def matrix(vectors: pa.ChunkedArray) -> NDArray[np.float64]:
    """Returns a column of lists of one length as [B, L]."""
    values: NDArray[np.float64] = vectors.combine_chunks().flatten().to_numpy().astype(np.float64)
    return values.reshape(len(vectors), -1)


def scores_at(
    output: OutputFolder, places: Mapping[str, NDArray[np.int64]], columns: Sequence[str]
) -> tuple[list[tuple[str, int]], NDArray[np.float64]]:
    """Returns the places that were scored, as (output file, source_row), and their scores, [n, columns].

    places: output file -> the rows of its input that are asked for.
    """
    found: list[tuple[str, int]] = []
    scores: list[NDArray[np.float64]] = [np.zeros((0, len(columns)))]
    for name, rows in rows_of(output, list(places), ["source_row", *columns]):
        here = np.isin(rows["source_row"].to_numpy(), places[name])
        found += [(name, int(row)) for row in rows["source_row"].to_numpy()[here]]
        scores.append(np.stack([rows[column].to_numpy()[here] for column in columns], 1))
    return found, np.concatenate(scores)


def paired_bounds(
    first: OutputFolder, second: OutputFolder, names: Sequence[str]
) -> Iterator[tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Yields, file by file, the log-evidence bounds of the rows that both outputs have and neither's model was trained on."""
    columns = ["source_row", "trained_on", "log_evidence_bound_nats"]
    for name in sorted(names):
        bounds = []
        for output in (first, second):
            parts = [rows.filter(pc.invert(rows["trained_on"])) for _, rows in rows_of(output, [name], columns)]
            rows = pa.concat_tables(parts) if parts else pa.table({column: pa.array([], pa.int64()) for column in columns})
            bounds.append((rows["source_row"].to_numpy(), rows["log_evidence_bound_nats"].to_numpy().astype(np.float64)))
        (places, mine), (others, theirs) = bounds
        _, here, there = np.intersect1d(places, others, assume_unique=True, return_indices=True)
        yield mine[here], theirs[there]
