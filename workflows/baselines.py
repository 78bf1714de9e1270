"""What the model adds: its bound beside the log-densities of independent columns and of linear correlations, on the same rows.

All are of the observed cells of the same rows in data units: a density of numbers on no grid, masses divided by the step of the others.
vae/independent.py and data/correlated.py say how; neither is told what conditions the model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import torch
from numpy.typing import NDArray

from data.correlated import Cells, CorrelatedColumns, work_of
from data.encoding import TableEncoding
from data.hashing import Hashes, mix
from data.reading import RowReader
from data.split import TRAIN, row_hashes, take
from data.table import RowGroup
from data.units import Unit, units_of
from vae.bundle import open_bundle
from vae.independent import fit_independent
from vae.rows import Rows
from workflows.actors import Shared, run_units
from workflows.batch import model_files
from workflows.errors import logger
from workflows.evaluation import Evaluated
from workflows.sections import Evaluation, Section
from workflows.totals import Estimate, scores_at

# Another number than the split's, so that which rows are chosen does not depend on their side.
SAMPLE_KEY = np.uint64(0xD1B54A32D192ED03)
# Multiplications that the density of correlations may take: about a minute.
MAX_WORK = 2e11


@dataclass(frozen=True)
class Sample:
    """Encoded rows of one file: their places in it, and the hashes of which the smallest are kept."""

    output: str
    source_rows: NDArray[np.int64]
    ranks: Hashes
    arrays: dict[str, NDArray[Any]]


@dataclass(frozen=True)
class SampleTask:
    """What every sampling actor is told. shares: of the rows that it takes, by what they are for."""

    what: Evaluated
    max_batch_bytes: int
    shares: Mapping[str, float]


class Sampler:
    """Takes rows of a unit by the hash that their key (or place) has: "train", those of the training; "scored", those that were scored."""

    def __init__(self, shared: Shared) -> None:
        files, self.task = ray.get(shared.reference)
        self.encoding = TableEncoding.from_json(open_bundle(files.files).table)

    def __call__(self, item: Mapping[str, Any]) -> dict[str, Any]:
        unit: Unit = item["unit"]
        found: dict[str, list[Sample]] = {purpose: [] for purpose in self.task.shares}
        first_row = unit.first_row
        with RowReader(self.task.what.filesystem, self.task.what.reads, self.task.max_batch_bytes) as reader:
            for index in range(unit.first_group, unit.end_group):
                file = unit.file
                partition = file.relative_path if file.partition else ""
                group = RowGroup(file.path, file.identity, index, first_row, file.row_groups[index], partition)
                for part, rows in reader.slices(group):
                    for purpose, sample in self.samples(unit.output, part, rows):
                        found[purpose].append(sample)
                first_row += group.num_rows
        return found

    def samples(self, output: str, part: RowGroup, rows: pa.Table) -> Iterator[tuple[str, Sample]]:
        """Yields what is taken of a slice of a row group."""
        what: Evaluated = self.task.what
        ranks = mix(row_hashes(rows, part, what.own.key) ^ SAMPLE_KEY)
        places = np.arange(part.first_row, part.first_row + len(rows))
        masks = {"train": what.own.sides(rows, part) == TRAIN, "scored": what.wanted(rows, part)}
        for purpose, share in self.task.shares.items():
            mask = masks[purpose] & (ranks.astype(np.float64) * 2.0**-64 < share)
            if mask.any():
                yield purpose, Sample(output, places[mask], ranks[mask], self.encoding.encode(take(rows, mask), part.path))


def compare_with_baselines(evaluation: Evaluation) -> Section:
    """Returns the comparison, or why there is none."""
    reason = left_out(evaluation)
    samples = {} if reason else sampled(evaluation)
    if not reason and not samples["train"]:
        reason = "the table has no training rows to fit them to"
    if reason:
        logger.info("no baselines: %s", reason)
        return Section("baselines", {"left_out": reason})
    limit = evaluation.config.baselines.max_rows
    train, _ = kept(samples["train"], limit)
    scored, places = kept(samples["scored"], limit)
    found, model_scores = scores_at(evaluation.scoring.job.output, rows_by_file(places), ["elbo_nats", "log_evidence_bound_nats"])
    assert found == places, "the rows that were chosen are those that were scored"
    logger.info("fitting baselines to %d training rows, comparing on %d", num_rows_of(train), num_rows_of(scored))
    with one_thread():
        others, absent = densities(evaluation, train, scored)
    return section_of(num_rows_of(train), model_scores, others, absent)


def left_out(evaluation: Evaluation) -> str:
    """Returns why there is nothing to compare with; empty where there is."""
    if evaluation.config.baselines.max_rows == 0:
        return "baselines.max_rows is 0"
    scoring, record = evaluation.scoring, evaluation.scoring.bundle.table
    if scoring.what.own.fraction("train") <= 0:
        return "the table is the model's validation table, which has no training rows to fit them to"
    if record["key"] is None and scoring.job.table.fingerprint != record["fingerprint"]:
        return "the table is not the one that the model was trained on, and without a key its training rows are not known"
    return ""


def sampled(evaluation: Evaluation) -> dict[str, list[Sample]]:
    """Returns the rows that the actors take, about twice as many as are needed, or all; in the order of files and rows."""
    data, limit = evaluation.config.data, evaluation.config.baselines.max_rows
    what, table = evaluation.scoring.what, evaluation.scoring.job.table
    num_training = max(1.0, table.num_rows * what.own.fraction("train"))
    shares = {"train": min(1.0, 2 * limit / num_training), "scored": min(1.0, 2 * limit / evaluation.totals.num_rows)}
    scored = set(evaluation.files)
    units = [{"unit": unit} for unit in units_of(list(table.files), data.max_unit_rows, "") if unit.output in scored]
    task = SampleTask(what, data.max_batch_bytes, shares)
    samples: dict[str, list[Sample]] = {purpose: [] for purpose in shares}
    for result in run_units(Sampler, model_files(evaluation.scoring.pinned), task, units, evaluation.pool):
        for purpose, parts in result.items():
            samples[purpose] += parts
    return {purpose: sorted(parts, key=lambda part: (part.output, part.source_rows[0])) for purpose, parts in samples.items()}


def kept(samples: Sequence[Sample], limit: int) -> tuple[dict[str, NDArray[Any]], list[tuple[str, int]]]:
    """Returns the arrays of the rows of the smallest hashes, at most limit, in their order, and their places (output file, source_row)."""
    ranks = np.concatenate([sample.ranks for sample in samples])
    chosen = np.sort(np.argsort(ranks, kind="stable")[:limit])
    arrays = {name: np.concatenate([sample.arrays[name] for sample in samples])[chosen] for name in samples[0].arrays}
    places = [(sample.output, int(row)) for sample in samples for row in sample.source_rows]
    return arrays, [places[index] for index in chosen]


def rows_by_file(places: Sequence[tuple[str, int]]) -> dict[str, NDArray[np.int64]]:
    by_file: dict[str, list[int]] = {}
    for name, row in places:
        by_file.setdefault(name, []).append(row)
    return {name: np.array(rows) for name, rows in by_file.items()}


def num_rows_of(arrays: Mapping[str, NDArray[Any]]) -> int:
    return len(arrays["log_jacobian"])


@contextmanager
def one_thread() -> Iterator[None]:
    """Computes on one thread while open: small batches are no faster on several, and their sums would depend on how many there are."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def densities(
    evaluation: Evaluation, train: Mapping[str, NDArray[Any]], scored: Mapping[str, NDArray[Any]]
) -> tuple[dict[str, NDArray[np.float64]], dict[str, str]]:
    """Returns each baseline's log p of the scored rows [n], and why others are left out."""
    scoring = evaluation.scoring
    independent = fit_independent(scoring.bundle.model.architecture, contiguous(train))
    found = {"independent_columns": independent.score(contiguous(scored)).numpy()}
    cells, others = Cells.of(scoring.encoding, train, seed=0), Cells.of(scoring.encoding, scored, seed=1)
    if work_of(cells) + work_of(others) > MAX_WORK:
        return found, {"correlated_columns": f"{others.numbers.shape[1]} numbers a row, with their patterns of nulls, would take too long"}
    return found | {"correlated_columns": CorrelatedColumns.fit(cells).log_prob(others)}, {}


def contiguous(arrays: Mapping[str, NDArray[Any]]) -> Rows:
    return Rows.from_arrays({name: np.ascontiguousarray(array) for name, array in arrays.items()})


def section_of(
    num_training_rows: int, model: NDArray[np.float64], others: Mapping[str, NDArray[np.float64]], absent: Mapping[str, str]
) -> Section:
    """Returns the means over the rows [n], and the model's minus each other's, paired. model: ELBO and log-evidence bound, [n, 2]."""
    bound = model[:, 1]
    estimates = {"elbo": Estimate.of(model[:, 0]), "log_evidence_bound": Estimate.of(bound)}
    for name, score in others.items():
        estimates |= {name: Estimate.of(score), f"log_evidence_bound_minus_{name}": Estimate.of(bound - score)}
    report: dict[str, Any] = {"num_training_rows": num_training_rows, "num_rows": len(bound)}
    report |= {f"{name}_nats_per_row": estimate.as_json() for name, estimate in estimates.items()}
    report |= {"left_out": dict(absent)} if absent else {}
    compared = {f"{name}_nats_per_row": estimates[name].mean for name in others}
    differences = {f"{name}_nats_per_row": e.mean for name, e in estimates.items() if "_minus_" in name}
    return Section("baselines", report, headline=compared, metrics=compared | differences)
