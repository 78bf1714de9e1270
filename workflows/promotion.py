"""Whether an evaluated version becomes champion: the champion's score of the same rows, all gates, and the move."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from data.encoding import TableEncoding
from data.listing import DataError
from data.reading import RowReader
from vae.bundle import open_bundle
from vae.bundle_files import BundleError
from vae.model import VAE
from vae.rows import Rows
from workflows.blocks import promotion_block
from workflows.champion import make_champion, noted_change
from workflows.checks import ConfigError
from workflows.errors import logger
from workflows.evaluate_config import EvaluateConfig
from workflows.file_actor import chunk_rows
from workflows.file_job import Done
from workflows.gates import (
    Comparison,
    collapse_faults,
    comparison_faults,
    embedding_faults,
    finite_faults,
    pickle_faults,
    schema_faults,
    score_faults,
    split_faults,
    weight_faults,
)
from workflows.registry import Registry
from workflows.scoring_job import Scoring, champion_scoring
from workflows.sections import Evaluation, Section
from workflows.totals import Totals, finite, paired_bounds, total

# Chunks of the first row group that are embedded twice.
CHUNKS_EMBEDDED = 2


@dataclass(frozen=True)
class Rival:
    """The champion at the job's start. version and sha256 are empty where there is none; scoring: of the candidate's rows under it.

    reasons: why it cannot be compared with.
    """

    version: str = ""
    sha256: str = ""
    is_candidate: bool = False
    scoring: Scoring | None = None
    reasons: tuple[str, ...] = ()


def find_rival(registry: Registry, config: EvaluateConfig, candidate: Scoring) -> Rival:
    """Returns the champion of the candidate's registered model. Raises ConfigError where the candidate is no registered version."""
    pinned = candidate.pinned
    if pinned.name is None:
        raise ConfigError(f"model is {config.model!r}, which is no version of a registered model; only those can be promoted")
    version = registry.aliases(pinned.name).get("champion")
    if version is None:
        return Rival()
    if version == pinned.version:
        return Rival(version, pinned.sha256, is_candidate=True)
    try:
        champion = registry.pin(f"models:/{pinned.name}/{version}")
        bundle = open_bundle(champion.files, where=f"champion version {version}")
        reasons = schema_faults(candidate.encoding, TableEncoding.from_json(bundle.table))
        reasons += split_faults(bundle.table, candidate.job.table.fingerprint, f"champion version {version}")
        scoring = None if reasons else champion_scoring(config, candidate, champion, bundle)
    except (BundleError, DataError) as error:
        return Rival(version, reasons=(f"champion version {version} cannot be compared with: {error}",))
    return Rival(version, champion.sha256, False, scoring, tuple(reasons))


def judge(registry: Registry, evaluation: Evaluation, done: Done, sections: list[Section], rival: Rival) -> Section:
    """Returns the section of the promotion, whose reasons are those of all gates; a connection to the cluster is open."""
    if rival.is_candidate:
        return Section("promotion", {"champion_version": rival.version, "reasons": ["the version is champion already"]})
    scoring, gates = evaluation.scoring, evaluation.config.gates
    comparison, champion = compared(evaluation, rival)
    reasons = [
        *pickle_faults(registry.version_files(str(scoring.pinned.name), scoring.pinned.version)),
        *weight_faults(scoring.bundle.model),
        *split_faults(scoring.bundle.table, scoring.job.table.fingerprint, "the version"),
        *score_faults(evaluation.totals, gates),
        *collapse_faults(evaluation.totals, gates),
        *embedding_faults(embedding_of(scoring.bundle.model), first_rows(scoring), chunk_rows(scoring.encoding)),
        *(f"input files that cannot be read were put aside: {len(bad)}" for bad in [done.contents["quarantined"]] if bad),
        *rival.reasons,
        *(comparison_faults(comparison, gates) if comparison else []),
        *finite_faults({name: value for section in sections for name, value in section.metrics.items() if "standard_error" not in name}),
        *(reason for section in sections for reason in section.reasons),
    ]
    for reason in reasons:
        logger.warning("not promoted: %s", reason)
    return promotion_section(rival, comparison, reasons, {"candidate": evaluation.totals, "champion": champion} if champion else {})


def promotion_section(rival: Rival, comparison: Comparison | None, reasons: list[str], totals: Mapping[str, Totals]) -> Section:
    """totals: of both versions over all rows, empty where there is nothing to compare with."""
    report: dict[str, Any] = {"champion_version": rival.version or None, "reasons": reasons}
    metrics: dict[str, float] = {}
    if comparison is not None and comparison.difference is not None:
        lower, upper = comparison.difference.interval
        report |= {
            "num_rows": comparison.difference.num_rows,
            "log_evidence_bound_minus_champion_nats_per_row": comparison.difference.as_json(),
            "interval_95": [lower, upper] if comparison.difference.num_rows > 1 else None,
        }
        metrics = {"log_evidence_bound_minus_champion_nats_per_row": comparison.difference.mean}
    if totals:
        report["expected_log_likelihood_nats_per_row_by_column"] = {
            who: {name: finite(estimate.mean) for name, estimate in of.columns.items()} for who, of in totals.items()
        }
        report["kl_nats_per_row"] = {who: finite(of.scores["kl_nats"].mean) for who, of in totals.items()}
    return Section(
        "promotion",
        report,
        {"champion_version_before": rival.version or None} | metrics,
        metrics,
        tuple(reasons),
        [promotion_block(report)],
    )


def compared(evaluation: Evaluation, rival: Rival) -> tuple[Comparison | None, Totals | None]:
    """Returns the candidate beside the champion, whose rows are scored where they are not yet, and the champion's totals; None where that
    cannot be."""
    if rival.scoring is None:
        return None, None
    logger.info("scoring the same rows under champion version %s", rival.version)
    candidate, champion = evaluation.scoring, rival.scoring
    scored = champion.job.run(evaluation.config.cluster).contents["units"]
    files = [name for name in evaluation.files if name in scored]
    pairs = paired_bounds(candidate.job.output, champion.job.output, files)
    totals = total(champion.job.output, files) if files == evaluation.files else None
    return Comparison.of(rival.version, pairs), totals


def embedding_of(model: VAE) -> Any:
    @torch.inference_mode()
    def embed(rows: Rows) -> NDArray[Any]:
        q_z = model.posterior(rows)
        return np.ascontiguousarray(torch.cat([q_z.mean, q_z.scale], 1).numpy())

    return embed


def first_rows(scoring: Scoring) -> Rows:
    """Returns the table's first rows, a few chunks of the first row group."""
    table, wanted = scoring.job.table, CHUNKS_EMBEDDED * chunk_rows(scoring.encoding)
    group = next(table.row_groups())
    parts: list[Rows] = []
    with RowReader(table.filesystem, scoring.what.reads, scoring.job.data.max_batch_bytes) as reader:
        for part, rows in reader.slices(group):
            parts.append(Rows.from_arrays(scoring.encoding.encode(rows.slice(0, wanted), part.path)))
            if sum(part.num_rows for part in parts) >= wanted:
                break
    return Rows.cat(parts).slice(0, wanted)


def promote(registry: Registry, scoring: Scoring, rival: Rival, verdict: Section) -> None:
    """Moves the aliases. Raises TryAgain where another promotion came between."""
    if rival.is_candidate:
        logger.info("%s version %s is champion already", scoring.pinned.name, rival.version)
        return
    difference = verdict.metrics.get("log_evidence_bound_minus_champion_nats_per_row")
    against = "no champion before" if difference is None else f"{difference:+.4g} nats per row against version {rival.version}"
    why = f"passed the gates of evaluate.py on split {scoring.what.side}: {against}"
    make_champion(registry, str(scoring.pinned.name), noted_change("promotion", rival.version, scoring.pinned.version, why, None))
