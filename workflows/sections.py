"""What an evaluation is to the parts of its report, and what each part gives it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from workflows.actors import Pool
from workflows.evaluate_config import EvaluateConfig
from workflows.evaluation_job import Scoring
from workflows.totals import Totals


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


@dataclass(frozen=True)
class Section:
    """One part of the report.

    name: its key there; report: plain JSON; headline: what it adds to the JSON line; metrics: numbers with their units, for MLflow's run
    and, with the split's name behind them (not of names with a /), the version's tags; reasons: why the version must not become
    champion; texts: files beside the report, name -> content.
    """

    name: str
    report: Mapping[str, Any]
    headline: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    reasons: tuple[str, ...] = ()
    texts: Mapping[str, str] = field(default_factory=dict)


MakeSection = Callable[[Evaluation], Section]
