"""One evaluation: scores, the report of them, and whether the version becomes champion."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from typing import Any

from data.listing import DataError
from data.table import Table
from workflows.baselines import compare_with_baselines
from workflows.batch import claim_pool, held, rate, record_job, refuse_lost_output, where
from workflows.cluster import connected
from workflows.diagnostics import drift_section, generated_section, health_section, usefulness_section, why_no_drift
from workflows.drift import open_reference
from workflows.errors import CheckFailed, Incomplete, ServiceError, logger
from workflows.evaluate_config import EvaluateConfig
from workflows.evaluation_page import model_card, page_of
from workflows.evaluation_report import REPORT_JSON, REPORT_PAGE, headlines, metrics_of, put_evaluation, score_section, stored_line, tags_of
from workflows.file_job import Done, refuse_bad_files, say
from workflows.inference_gaps import audit_section
from workflows.lineage import flatten, parameters
from workflows.pinned import pin, without_passwords
from workflows.promotion import find_rival, judge, promote
from workflows.registry import Registry
from workflows.scoring_job import Scoring, candidate_scoring
from workflows.sections import Evaluation, MakeSection, Section, one_thread
from workflows.totals import total

# The parts of the report, in its order. One more is a function of an Evaluation, and a line here.
SECTIONS: list[MakeSection] = [
    score_section,
    compare_with_baselines,
    health_section,
    audit_section,
    usefulness_section,
    generated_section,
    drift_section,
]
# Options that decide where and how, and no number.
UNDECIDING = ("model", "force", "data", "output", "registry", "cluster")


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    started = time.monotonic()
    refuse_lost_output(config.output.path, config.model, config.registry.tracking_uri)
    scoring = candidate_scoring(config, pin(config.model, config.registry.tracking_uri))
    reference = open_reference(config.drift, scoring.encoding)
    why_no_drift(config.drift, scoring)  # refuses what cannot be looked for, before hours of scoring
    registry = Registry(config.registry.tracking_uri)
    rival = find_rival(registry, config, scoring) if config.promote else None
    known = None if config.force else stored_line(scoring.job.output, asked(config, scoring, reference, rival.sha256 if rival else ""))
    if known is not None and not scoring.job.look().units:
        logger.info("%s holds this evaluation already; nothing to do", scoring.job.output.path)
        refuse_bad_files(known | {"repeated": True}, dict(scoring.job.table.bad))
        return checked(config, known | {"repeated": True})
    scoring.job.root.claim(scoring.job.claim)
    with connected(config.cluster.address), one_thread():
        evaluation, done = evaluated(config, scoring)
        sections = [make(evaluation) for make in SECTIONS]
        if rival is not None:
            sections.append(judge(registry, evaluation, done, sections, rival))
    promoted = rival is not None and not sections[-1].reasons
    if rival is not None and promoted:
        promote(registry, scoring, rival, sections[-1])
    line = json_line(scoring, sections, promoted, started)
    champion = scoring.pinned.sha256 if promoted else rival.sha256 if rival else ""
    page = page_of(evaluation, sections, line, training_curves(registry, scoring))
    card = model_card(line, sections, evaluation)
    texts = put_evaluation(scoring.job.output, asked(config, scoring, reference, champion), sections, line, page, card)
    record(registry, config, scoring, sections, line, texts)
    refuse_bad_files(line, done.contents["quarantined"])
    return checked(config, line)


def asked(config: EvaluateConfig, scoring: Scoring, reference: Table | None, champion_sha256: str) -> dict[str, Any]:
    """Returns what decides an evaluation's numbers, plain JSON: a second one of the same would find the same."""
    table = scoring.job.table
    options = {key: value for key, value in flatten(without_passwords(asdict(config))).items() if key.split(".")[0] not in UNDECIDING}
    more = ({"bad": dict(table.bad)} if table.bad else {}) | ({"reference": reference.fingerprint} if reference is not None else {})
    return {"made_by": scoring.job.made_by, "data": table.fingerprint, "champion": champion_sha256, "options": options} | more


def evaluated(config: EvaluateConfig, scoring: Scoring) -> tuple[Evaluation, Done]:
    """Scores what is not scored yet. Raises DataError where the table has no row of the side."""
    job = scoring.job
    if config.force:
        with held(job.root):
            for name in job.output.files():
                if name.endswith(".parquet"):
                    job.output.remove(name)
    done = job.run(config.cluster)
    say(done, job.prune)
    files = [name for name in scoring.files if name in done.contents["units"]]
    totals = total(job.output, files)
    if totals is None:
        raise DataError(f"{config.data.path}: none of its {job.table.num_rows} rows is on the side {scoring.what.side!r} (data.split)")
    return Evaluation(config, scoring, files, totals, claim_pool(config.cluster)), done


def json_line(scoring: Scoring, sections: list[Section], promoted: bool, started: float) -> dict[str, Any]:
    pinned, output = scoring.pinned, scoring.job.output
    line: dict[str, Any] = {"job": "evaluate", "model_name": pinned.name, "model_version": pinned.version, "split": scoring.what.side}
    line |= headlines(sections) | {"promoted": promoted}
    line |= {"reasons": list(sections[-1].reasons)} if sections[-1].name == "promotion" else {}
    return line | {"repeated": False} | where(output) | {"report": f"{output.address}/{REPORT_PAGE}"} | rate(line, started)


def training_curves(registry: Registry, scoring: Scoring) -> list[dict[str, float]]:
    """Returns the bounds of the training's epochs, as far as MLflow knows them."""
    if scoring.pinned.run_id is None:
        return []
    try:
        return registry.epochs(scoring.pinned.run_id)
    except ServiceError as unreachable:
        logger.warning("the report is without learning curves: %s", unreachable)
        return []


def record(
    registry: Registry, config: EvaluateConfig, scoring: Scoring, sections: list[Section], line: dict[str, Any], texts: dict[str, str]
) -> None:
    """Logs every number to an MLflow run of the job and to the model version's tags, as far as MLflow answers."""
    pinned = scoring.pinned
    numbers = line | metrics_of(sections)
    record_job(
        config.registry,
        pinned,
        parameters(asdict(config)),
        numbers,
        json.loads(texts[REPORT_JSON]),
        texts,
    )
    if pinned.name is None:
        return
    try:
        registry.tag_version(pinned.name, pinned.version, tags_of(sections, scoring.what.side))
    except ServiceError as unreachable:
        logger.warning("the evaluation is done, but the model version's tags are not set: %s", unreachable)


def checked(config: EvaluateConfig, line: dict[str, Any]) -> dict[str, Any]:
    """Returns the JSON line. Raises Incomplete, which exits with 3 after it, where a promotion was refused, or rows drifted, and that is
    to fail."""
    if config.gates.fail and line.get("reasons"):
        raise Incomplete(line, CheckFailed("not promoted: " + "; ".join(line["reasons"])))
    if config.drift.fail and line.get("drift"):
        raise Incomplete(line, CheckFailed(f"the rows differ from the reference; {line['report']} says in what"))
    return line
