"""What the model adds: its bound beside the log-densities of independent columns and of linear correlations, on the same rows.

All are of the observed cells of the same rows in data units: a density of numbers on no grid, masses divided by the step of the others.
vae/independent.py and data/correlated.py say how; neither is told what conditions the model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.correlated import Cells, CorrelatedColumns, work_of
from vae.independent import fit_independent
from vae.rows import Rows
from workflows.blocks import baselines_block
from workflows.errors import logger
from workflows.sections import Evaluation, Section
from workflows.totals import Estimate, scores_at

# Multiplications that the density of correlations may take: about a minute.
MAX_WORK = 2e11


def compare_with_baselines(evaluation: Evaluation) -> Section:
    """Returns the comparison, or why there is none."""
    limit = evaluation.config.baselines.max_rows
    reason = evaluation.no_training_rows if limit else "baselines.max_rows is 0"
    if reason:
        logger.info("no baselines: %s", reason)
        return Section("baselines", {"left_out": reason})
    (training_rows, _), (scored_rows, places) = (evaluation.samples.rows(purpose, limit) for purpose in ("train", "scored"))
    encoding = evaluation.scoring.encoding
    train, scored = (encoding.encode(rows.select(encoding.inputs), "the chosen rows") for rows in (training_rows, scored_rows))
    found, model_scores = scores_at(evaluation.scoring.job.output, rows_by_file(places), ["elbo_nats", "log_evidence_bound_nats"])
    assert found == places, "the rows that were chosen are those that were scored"
    logger.info("fitting baselines to %d training rows, comparing on %d", num_rows_of(train), num_rows_of(scored))
    others, absent = densities(evaluation, train, scored)
    return section_of(num_rows_of(train), model_scores, others, absent)


def rows_by_file(places: Sequence[tuple[str, int]]) -> dict[str, NDArray[np.int64]]:
    by_file: dict[str, list[int]] = {}
    for name, row in places:
        by_file.setdefault(name, []).append(row)
    return {name: np.array(rows) for name, rows in by_file.items()}


def num_rows_of(arrays: Mapping[str, NDArray[Any]]) -> int:
    return len(arrays["log_jacobian"])


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
    return Section("baselines", report, compared, compared | differences, blocks=[baselines_block(report)])
