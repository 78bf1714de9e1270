"""The page of an evaluation: what it found in short, each section's pictures and tables, how the model was trained and where it is from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from workflows.evaluation_pictures import column_bars, score_histogram
from workflows.page import Block, Table, html_page
from workflows.pictures import learning_curves
from workflows.sections import Evaluation, Section
from workflows.totals import Estimate, rows_of

NUM_WORST_ROWS = 10
# Rows whose scores a histogram shows.
MAX_HISTOGRAM_ROWS = 200_000
TITLES = {
    "scores": "Scores",
    "baselines": "What the model adds",
    "health": "Latent variables",
    "audit": "Inference gaps",
    "usefulness": "Use of the embedding",
    "generated": "Generated rows",
    "drift": "Drift",
    "promotion": "Promotion",
}


def page_of(evaluation: Evaluation, sections: Sequence[Section], line: Mapping[str, Any], history: Sequence[Mapping[str, float]]) -> str:
    """Returns the page as HTML. line: the job's JSON line; history: metrics of the training's epochs, as far as they are known."""
    name = f"{line['model_name'] or 'a model'} version {line['model_version']}"
    blocks = [in_short(sections, line)]
    blocks += [block for section in reversed(sections) if section.name == "promotion" for block in section.blocks]
    for section in (section for section in sections if section.name != "promotion"):
        absent = section.report.get("left_out")
        blocks += [Block(TITLES[section.name], f"Left out: {absent}.")] if isinstance(absent, str) else section.blocks
    if history:
        blocks.append(Block("Training", "", [(learning_curves(history), "ELBO and KL by epoch, of training and validation rows")]))
    blocks.append(lineage(evaluation, line))
    return html_page(f"{name}, {line['split']} rows", f"{line['num_rows']:,} rows of {spelled_path(evaluation)}", blocks)


def in_short(sections: Sequence[Section], line: Mapping[str, Any]) -> Block:
    """Returns the findings that a reader must not miss."""
    found = [
        f"ELBO {nats(line['elbo_nats_per_row'])}, log-evidence bound {nats(line['log_evidence_bound_nats_per_row'])}: the higher, the "
        f"better the model foretells such rows. {line['active_units']} latent dimensions are active."
    ]
    if "bits_per_dimension" in line:
        found.append(f"{line['bits_per_dimension']:.4g} bits per dimension.")
    reports = {section.name: section.report for section in sections}
    bad = bool(line.get("reasons"))
    if "words" in reports.get("health", {}) and reports["health"]["verdict"] != "healthy":
        found.append(reports["health"]["words"])
        bad = True
    if reports.get("drift", {}).get("drift"):
        found.append("These rows are not drawn from where the reference's were; see Drift.")
        bad = True
    if "promotion" in reports:
        found.append("Promoted to champion." if line["promoted"] else "Not promoted: " + "; ".join(line["reasons"]) + ".")
    return Block("In short", "\n".join(found), verdict=not bad)


def nats(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.4f} nats per row"


def score_blocks(evaluation: Evaluation) -> list[Block]:
    """Returns how scores are spread, the columns' shares of them, and the rows that score worst."""
    totals = evaluation.totals
    names = {
        "elbo_nats": "ELBO",
        "log_evidence_bound_nats": "log-evidence bound",
        "expected_log_likelihood_nats": "expected log-likelihood (minus distortion)",
        "kl_nats": "KL (rate)",
        "null_pattern_log_probability_nats": "log-probability of which cells are null",
    }
    rows: list[list[object]] = [[title, *estimated(totals.scores[name])] for name, title in names.items()]
    scores, worst = spread(evaluation)
    blocks = [Block(TITLES["scores"], "", histograms(scores), [Table(["nats per row", "mean", "standard error"], rows)])]
    by_column = {name: estimate.mean for name, estimate in totals.columns.items()}
    if all(np.isfinite(list(by_column.values()))):
        words = "Each column's share of the expected log-likelihood, over all rows; a column that is null in a row adds nothing."
        blocks.append(Block("Columns", words, [(column_bars(by_column, None), "log-likelihood by column")]))
    header = [evaluation.scoring.what.key or "file", "row", "ELBO, nats", "columns that are stranger than rows of the model, most first"]
    blocks.append(Block("Rows with the lowest ELBO", "", tables=[Table(header, worst)]))
    return blocks


def histograms(scores: NDArray[np.float64]) -> list[tuple[Any, str]]:
    finite = scores[np.isfinite(scores).all(1)]
    return [(score_histogram(finite[:, 0], finite[:, 1]), "how ELBO and log-evidence bound are spread over rows")] if len(finite) else []


def spread(evaluation: Evaluation) -> tuple[NDArray[np.float64], list[list[object]]]:
    """Returns ELBO and log-evidence bound of rows [n, 2], and those with the lowest ELBO as a table's rows."""
    output = evaluation.scoring.job.output
    key = evaluation.scoring.job.schema.field(0).name
    parts: list[NDArray[np.float64]] = []
    lowest: pa.Table | None = None
    for _, rows in rows_of(output, evaluation.files, [key, "source_row", "elbo_nats", "log_evidence_bound_nats", "worst_columns"]):
        if sum(map(len, parts)) < MAX_HISTOGRAM_ROWS:
            parts.append(np.stack([rows["elbo_nats"].to_numpy(), rows["log_evidence_bound_nats"].to_numpy()], 1))
        both = rows if lowest is None else pa.concat_tables([lowest, rows])
        lowest = both.take(pc.select_k_unstable(both, NUM_WORST_ROWS, [("elbo_nats", "ascending")]))
    assert lowest is not None
    columns = [lowest[name].to_pylist() for name in (key, "source_row", "elbo_nats", "worst_columns")]
    return np.concatenate(parts), [[str(k), str(r), float(e), ", ".join(w)] for k, r, e, w in zip(*columns, strict=True)]


def estimated(estimate: Estimate) -> tuple[object, object]:
    return tuple("not finite" if value is None else value for value in estimate.as_json().values())  # type: ignore[return-value]


def lineage(evaluation: Evaluation, line: Mapping[str, Any]) -> Block:
    """Returns where model and rows come from."""
    pinned, record = evaluation.scoring.pinned, evaluation.scoring.bundle.table
    rows: list[list[object]] = [
        ["model", f"{pinned.name or 'a folder'} version {pinned.version}"],
        ["bundle (sha256)", pinned.sha256],
        ["training run (MLflow)", pinned.run_id or "not known"],
        ["training table", f"fingerprint {record['fingerprint']}"],
        ["this table", f"{spelled_path(evaluation)}, fingerprint {evaluation.scoring.job.table.fingerprint}"],
        ["split", f"{line['split']}, {line['num_rows']:,} rows"],
        ["scores by row", evaluation.scoring.job.output.path],
    ]
    return Block("Where it comes from", tables=[Table(["what", "which"], rows)])


def spelled_path(evaluation: Evaluation) -> str:
    path = evaluation.config.data.path
    return path if isinstance(path, str) else ", ".join(path)


def model_card(line: Mapping[str, Any], sections: Iterable[Section], evaluation: Evaluation) -> str:
    """Returns the model card in Markdown: what the model is of, what it is for, how good it is, and what it must not be taken for."""
    scoring = evaluation.scoring
    reports = {section.name: section.report for section in sections}
    modelled, conditions = scoring.encoding.modelled, [column.name for column in scoring.encoding.conditions]
    model = scoring.bundle.model
    lines = [
        f"# Model card: {line['model_name'] or 'a model'} version {line['model_version']}",
        "",
        f"A variational autoencoder of {model.latent_dim} latent dimensions over {len(modelled)} columns of a table: {shown(modelled)}."
        + (f" It is told {shown(conditions)}." if conditions else ""),
        "",
        "For: embeddings of rows, synthetic rows, filling nulls, scores of how unusual a row is. Not for: decisions about persons by "
        "themselves, or as anonymous data: synthetic rows are drawn from a model of real ones and may resemble some of them.",
        "",
        f"Evaluated on {line['num_rows']:,} rows ({line['split']}): ELBO {nats(line['elbo_nats_per_row'])}, log-evidence bound "
        f"{nats(line['log_evidence_bound_nats_per_row'])}.",
        "",
        *(f"- {sentence}" for sentence in findings(reports)),
        "",
        f"Bundle {scoring.pinned.sha256}; training run {scoring.pinned.run_id or 'not known'}; training table fingerprint "
        f"{scoring.bundle.table['fingerprint']}.",
    ]
    return "\n".join(lines) + "\n"


def shown(names: Sequence[str], most: int = 30) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def findings(reports: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Returns the sections' own words, and why others say nothing."""
    found: list[str] = []
    for name, report in reports.items():
        words = report.get("words", [])
        found += [words] if isinstance(words, str) else words
        if isinstance(report.get("left_out"), str):
            found.append(f"{TITLES[name]}: left out, {report['left_out']}.")
    return found
