"""What evaluate.py says: the section of the scores, the JSON line, the report's two files, and what a second run finds of the first."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from data.encoding import TableEncoding
from data.likelihood_names import MASSES
from data.output import OutputFolder
from workflows.evaluation_page import score_blocks
from workflows.sections import Evaluation, Section
from workflows.totals import finite

# The page needs no network; names that begin with an underscore are no data to who reads the folder as a table.
REPORT_JSON, REPORT_PAGE, MODEL_CARD = "_report.json", "_report.html", "_model_card.md"
# How MLflow wants its metrics' names.
NOT_OF_A_NAME = re.compile(r"[^\w\-. :/]")


def score_section(evaluation: Evaluation) -> Section:
    """Returns the means over all rows and their standard errors."""
    totals, scoring = evaluation.totals, evaluation.scoring
    names = {f"{name.removesuffix('_nats')}_nats_per_row" if name.endswith("_nats") else name: e for name, e in totals.scores.items()}
    counts = {"num_rows": totals.num_rows, "num_rows_trained_on": totals.num_trained_on, "num_rows_not_finite": totals.num_not_finite}
    tails = {} if totals.num_heavy_tailed is None else {"num_rows_with_pareto_k_above_0.7": totals.num_heavy_tailed}
    sizes = {"active_units": totals.active_units, "latent_dim": scoring.bundle.model.latent_dim}
    bits = bits_per_dimension(scoring.encoding, totals.scores["log_evidence_bound_nats"].mean)
    more: dict[str, float] = {} if bits is None else {"bits_per_dimension": bits}
    report = {
        **counts,
        **tails,
        **{name: estimate.as_json() for name, estimate in names.items()},
        "distortion_nats_per_row": finite(-totals.scores["expected_log_likelihood_nats"].mean),
        "rate_nats_per_row": finite(totals.scores["kl_nats"].mean),
        **{name: finite(value) for name, value in more.items()},
        **sizes,
        "log_likelihood_nats_per_row_by_column": {name: estimate.as_json() for name, estimate in totals.columns.items()},
    }
    means = {name: estimate.mean for name, estimate in names.items()}
    errors = {f"standard_error_of_{name}": estimate.standard_error for name, estimate in names.items()}
    columns = {f"log_likelihood_nats_per_row/{name}": estimate.mean for name, estimate in totals.columns.items()}
    headline = {"num_rows": totals.num_rows, "active_units": totals.active_units} | means | more
    metrics = {**counts, **tails, **means, **errors, **more, **sizes, **columns}
    return Section("scores", report, headline, metrics, blocks=score_blocks(evaluation))


def bits_per_dimension(encoding: TableEncoding, log_evidence_bound: float) -> float | None:
    """Returns -log2 p(x) per pixel where the modelled columns are one 8-bit image under a likelihood of its bytes; else None."""
    columns = [column for column in encoding.columns if column.name in encoding.modelled]
    if len(columns) != 1 or columns[0].kind != "image" or columns[0].likelihood not in (None, *MASSES):
        return None
    return -log_evidence_bound / (columns[0].size * math.log(2))


def headlines(sections: Sequence[Section]) -> dict[str, Any]:
    """Returns what the sections add to the JSON line; numbers that JSON cannot hold are null."""
    line = {key: value for section in sections for key, value in section.headline.items()}
    return {key: finite(value) if isinstance(value, float) else value for key, value in line.items()}


def metrics_of(sections: Sequence[Section]) -> dict[str, float]:
    """Returns the sections' finite numbers under names that MLflow takes, none of them twice."""
    named: dict[str, float] = {}
    for name, value in ((name, value) for section in sections for name, value in section.metrics.items() if math.isfinite(value)):
        clean = NOT_OF_A_NAME.sub("_", name)[:200]
        named[clean if clean not in named else f"{clean}_{len(named)}"] = float(value)
    return named


def tags_of(sections: Sequence[Section], side: str) -> dict[str, str]:
    """Returns the model version's tags: each number but those of single columns, as NAME.SPLIT."""
    return {f"{name}.{side}": repr(value) for name, value in metrics_of(sections).items() if "/" not in name}


def stored_line(output: OutputFolder, asked: Mapping[str, Any]) -> dict[str, Any] | None:
    """Returns the JSON line of the evaluation that the output holds, if it is of what is asked; None where it is not."""
    if not output.exists(REPORT_JSON):
        return None
    with output.filesystem.open_input_file(f"{output.path}/{REPORT_JSON}") as source:
        found = json.loads(source.read())
    line: dict[str, Any] = found["line"]
    return line if found["asked"] == asked else None


def put_evaluation(
    output: OutputFolder, asked: Mapping[str, Any], sections: Sequence[Section], line: Mapping[str, Any], page: str, card: str
) -> dict[str, str]:
    """Writes the page, the model card and the report, which says what was asked, last of all. Returns them, name -> text."""
    report = {"asked": dict(asked), "line": dict(line), **{section.name: section.report for section in sections}}
    as_json = json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False)
    texts = {REPORT_PAGE: page, MODEL_CARD: card, REPORT_JSON: as_json}
    for name, text in texts.items():
        output.put_text(name, text)
    return texts
