"""What an evaluation is to the parts of its report, and what each part gives it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, wraps
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from data.encoding import TableEncoding
from vae.rows import Rows
from workflows.actors import Pool
from workflows.errors import logger
from workflows.evaluate_config import EvaluateConfig
from workflows.gates import weight_faults
from workflows.page import Block
from workflows.sampling import Samples
from workflows.scoring_job import Scoring
from workflows.totals import Totals

# Rows of each kind that sections other than the scores are made from, at most.
MAX_SAMPLE_ROWS = 20_000
SEED = 0


@dataclass(frozen=True)
class Evaluation:
    """A model version whose rows are scored. pool: for actors, on a cluster that is connected to.

    files: those of scoring.job.output that hold the rows' scores, one for each file of scoring.job.table that could be read; totals.py
    reads them. totals: what all of them come to.
    """

    config: EvaluateConfig
    scoring: Scoring
    files: list[str]
    totals: Totals
    pool: Pool

    @property
    def no_training_rows(self) -> str:
        """Why the table's training rows are not to be had; empty where they are."""
        record = self.scoring.bundle.table
        if self.scoring.what.own.fraction("train") <= 0:
            return "the table is the model's validation table, which has no training rows"
        if record["key"] is None and self.scoring.job.table.fingerprint != record["fingerprint"]:
            return "the table is not the one that the model was trained on, and without a key its training rows are not known"
        return "" if self.samples.train else "the table has no training rows"

    @cached_property
    def samples(self) -> Samples:
        """Rows of the training and rows that were scored, chosen by hash, enough for every section."""
        limit = max(self.config.baselines.max_rows, MAX_SAMPLE_ROWS)
        return Samples.draw(self.scoring, self.files, self.totals.num_rows, limit, self.pool)


@dataclass(frozen=True)
class Section:
    """One part of the report.

    name: its key there; report: plain JSON; headline: what it adds to the JSON line; metrics: numbers with their units, for MLflow's run
    and, with the split's name behind them (not of names with a /), the version's tags; reasons: why the version must not become
    champion; blocks: what the page shows.
    """

    name: str
    report: Mapping[str, Any]
    headline: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    reasons: tuple[str, ...] = ()
    blocks: Sequence[Block] = ()


@contextmanager
def one_thread() -> Iterator[None]:
    """Computes on one thread while open: small batches are no faster on several, and their sums would depend on how many there are."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


MakeSection = Callable[[Evaluation], Section]


def encoded(encoding: TableEncoding, rows: pa.Table) -> Rows:
    arrays = encoding.encode(rows.select(encoding.inputs), "the chosen rows")
    return Rows.from_arrays({name: np.ascontiguousarray(array) for name, array in arrays.items()})


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(SEED)


def of_finite_weights(name: str) -> Callable[[MakeSection], MakeSection]:
    """Leaves a section out where there is nothing to find: numbers made by weights that are none are none."""

    def checked(make: MakeSection) -> MakeSection:
        @wraps(make)
        def section(evaluation: Evaluation) -> Section:
            faults = weight_faults(evaluation.scoring.bundle.model)
            return left_out(name, faults[0]) if faults else make(evaluation)

        return section

    return checked


def left_out(name: str, reason: str) -> Section:
    logger.info("no %s: %s", name, reason)
    return Section(name, {"left_out": reason})
