"""What an evaluation finds of a model on rows chosen by hash: health, use of the embedding, generated rows, drift.

Each is a section of the report; what cannot be found says why.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from data.drift import Reference
from data.encoding import TableEncoding
from vae.health import COLLAPSED, HEALTHY, examine
from workflows.blocks import MAX_PLANE_ROWS, drift_block, generated_block, health_block, image_pictures, usefulness_block
from workflows.checks import ConfigError
from workflows.comparison import compare_tables
from workflows.drift import NO_REFERENCE, drift_report, found_drift, quantities, reference_for
from workflows.drift_config import DriftConfig
from workflows.errors import logger
from workflows.generation import GENERATION_CHUNK_ROWS, RowGenerator
from workflows.scoring_job import Scoring
from workflows.sections import (
    MAX_SAMPLE_ROWS,
    SEED,
    Evaluation,
    Section,
    encoded,
    generator,
    left_out,
    of_finite_weights,
)
from workflows.two_sample import ComparisonError, UseError
from workflows.usefulness import LabelError, Labelled, anomaly_scores, find_anomalies, usefulness, without_column

# Images of each kind that the page shows.
NUM_IMAGES = 24


@of_finite_weights("health")
def health_section(evaluation: Evaluation) -> Section:
    """Returns whether the latents say anything of the rows."""
    scoring = evaluation.scoring
    rows, _ = evaluation.samples.rows("scored", MAX_SAMPLE_ROWS)
    if len(rows) < 2:
        return left_out("health", "it needs 2 rows")
    health = examine(scoring.bundle.model, encoded(scoring.encoding, rows), generator())
    if health.verdict != HEALTHY:
        logger.warning("%s", health.words)
    found = health.information
    metrics = {"rate_nats_per_row": found.rate_nats, "mutual_information_nats": found.mutual_information_nats}
    metrics |= {} if found.aggregated_kl_nats is None else {"aggregated_kl_nats": found.aggregated_kl_nats}
    metrics |= {} if health.decoder_use_nats is None else {"decoder_use_nats_per_row": health.decoder_use_nats}
    metrics |= {f"kl_nats_per_row/latent_{index}": value for index, value in enumerate(health.kl_nats_by_dimension or [])}
    reasons = (f"collapsed: {' '.join(health.reasons)}",) if health.verdict == COLLAPSED else ()
    report = health.to_json()
    label = evaluation.config.evaluate.label
    with torch.inference_mode():
        z_mean = scoring.bundle.model.posterior(encoded(scoring.encoding, rows.slice(0, MAX_PLANE_ROWS))).mean.numpy()
    block = health_block(report, z_mean, None if label is None else rows[label].to_pylist(), label)
    return Section("health", report, {"verdict": health.verdict}, metrics, reasons, [block])


@of_finite_weights("usefulness")
def usefulness_section(evaluation: Evaluation) -> Section:
    """Returns what the embedding is good for, by the label."""
    label = evaluation.config.evaluate.label
    if label is None:
        return left_out("usefulness", "no evaluate.label is named")
    if evaluation.no_training_rows:
        return left_out("usefulness", evaluation.no_training_rows)
    train, test = (evaluation.samples.rows(purpose, MAX_SAMPLE_ROWS)[0] for purpose in ("train", "scored"))
    (first, is_input), (second, _) = (labelled(evaluation, rows, label) for rows in (train, test))
    report: dict[str, Any] = {"label": label}
    try:
        report |= usefulness(first, second, is_input)
    except LabelError as error:
        return left_out("usefulness", f"evaluate.label {label!r}: {error}")
    if pa.types.is_boolean(test[label].type):
        report |= anomalies_among(evaluation, test.filter(test[label].is_valid()), report["notes"])
    metrics = {
        f"{name}_by_{method}_of_{sees}": value["value"]
        for sees, methods in report["probes"].items()
        for method, measures in methods.items()
        for name, value in measures.items()
    }
    for name, measures in report.get("anomalies", {}).get("scores", {}).items():
        metrics |= {f"anomaly_{measure}_by_{name}": value["value"] for measure, value in measures.items()}
    return Section("usefulness", report, {}, metrics, blocks=[usefulness_block(report)])


def anomalies_among(evaluation: Evaluation, rows: pa.Table, notes: list[str]) -> dict[str, Any]:
    """Returns what the report has more where the label, which all rows have, says of each whether it is an anomaly: scores, or why not."""
    label, scoring = str(evaluation.config.evaluate.label), evaluation.scoring
    num_samples = evaluation.config.num_importance_samples
    scores = anomaly_scores(scoring.bundle.model, encoded(scoring.encoding, rows), num_samples, generator())
    try:
        return {"anomalies": find_anomalies(np.asarray(rows[label].to_pylist(), np.bool_), scores)}
    except LabelError as error:
        return {"notes": [*notes, f"anomalies are not looked for: {error}"]}


def labelled(evaluation: Evaluation, rows: pa.Table, label: str) -> tuple[Labelled, bool]:
    """Returns rows with their label, and whether the model is told it."""
    scoring = evaluation.scoring
    whole = encoded(scoring.encoding, rows)
    blind, is_input = without_column(scoring.encoding, whole, label)
    model = scoring.bundle.model
    with torch.inference_mode():
        embedding, raw = model.posterior(whole).mean.double().numpy(), model.features(blind).double().numpy()
    return Labelled(embedding, raw, label_values(rows[label])), is_input


def label_values(column: pa.ChunkedArray) -> NDArray[Any]:
    """Returns a label's values, [B]. Decimals are numbers, which are to be predicted as such."""
    values = (column.cast(pa.float64(), safe=False) if pa.types.is_decimal(column.type) else column).to_pylist()
    result = np.empty(len(values), dtype=object)  # of lists of one length NumPy would make a matrix
    result[:] = values
    return result


@of_finite_weights("generated")
def generated_section(evaluation: Evaluation) -> Section:
    """Returns how rows that the model generates compare with the scored ones."""
    num_rows, scoring = evaluation.config.evaluate.num_generated_rows, evaluation.scoring
    if not num_rows:
        return left_out("generated", "evaluate.num_generated_rows is 0")
    held_out = evaluation.samples.rows("scored", MAX_SAMPLE_ROWS)[0]
    training = evaluation.samples.rows("train", MAX_SAMPLE_ROWS)[0] if not evaluation.no_training_rows else None
    label = evaluation.config.evaluate.label
    label = label if label in scoring.encoding.inputs else None
    logger.info("comparing %d generated rows with %d others", num_rows, len(held_out))
    try:
        conditions = conditions_of(scoring.encoding, held_out, training)
        rows = RowGenerator(scoring.bundle.model, scoring.bundle.table, num_rows, SEED, conditions)
        made = pa.concat_tables([rows.chunk(chunk) for chunk in range(-(-num_rows // GENERATION_CHUNK_ROWS))]).slice(0, num_rows)
        report = compared_with_use(scoring.encoding, held_out, made, training, label)
    except ComparisonError as error:
        return left_out("generated", str(error))
    metrics = {"two_sample_test_roc_auc": report["two_sample_test_roc_auc"]["value"]}
    if report["privacy"]:
        metrics["membership_attack_roc_auc"] = report["privacy"]["membership_attack_roc_auc"]["value"]
        metrics["num_copies_of_training_rows"] = float(report["privacy"]["num_copies_of_training_rows"])
    block = generated_block(scoring.encoding, report, held_out, made, images_of(evaluation, held_out, made))
    return Section("generated", report, {"two_sample_test_roc_auc": metrics["two_sample_test_roc_auc"]}, metrics, blocks=[block])


def compared_with_use(
    encoding: TableEncoding, held_out: pa.Table, made: pa.Table, training: pa.Table | None, label: str | None
) -> dict[str, Any]:
    """Returns compare_tables's report; of a label that cannot be predicted it says why. Raises ComparisonError."""
    try:
        return compare_tables(encoding, held_out, made, training, label, SEED)
    except UseError as refused:
        report = compare_tables(encoding, held_out, made, training, None, SEED)
        return report | {"words": [*report["words"], f"No label is predicted from generated rows: {refused}."]}


def conditions_of(encoding: TableEncoding, held_out: pa.Table, training: pa.Table | None) -> pa.Table | None:
    """Returns what generated rows are told: the conditions of held-out and training rows in turn, so that the rows are near neither side
    for what they were told; None where the model has no conditions.
    """
    names = [column.name for column in encoding.conditions]
    if not names:
        return None
    parts = [part.select(names).cast(encoding.schema_of(names)) for part in (held_out, training) if part is not None and len(part)]
    size = min(map(len, parts))
    in_turn = np.arange(size * len(parts)).reshape(len(parts), size).T.ravel()
    return pa.concat_tables([part.slice(0, size) for part in parts]).take(pa.array(in_turn))


def images_of(evaluation: Evaluation, real: pa.Table, made: pa.Table) -> list[Any]:
    """Returns pictures of the image columns: some rows, their reconstructions, and generated ones."""
    scoring = evaluation.scoring
    names = [column.name for column in scoring.encoding.columns if column.kind == "image" and column.name in scoring.encoding.modelled]
    if not names:
        return []
    model, rows = scoring.bundle.model, encoded(scoring.encoding, real.slice(0, NUM_IMAGES))
    with torch.inference_mode():
        fields = model.likelihood(model.posterior(rows).mean, model.condition(rows)).fields
    expected = scoring.encoding.split({name: cells.mean.numpy() for name, cells in fields.items()})
    others = encoded(scoring.encoding, made.slice(0, NUM_IMAGES))
    originals, generated = (scoring.encoding.split({name: cells.numpy() for name, cells in part.values.items()}) for part in (rows, others))
    return image_pictures(scoring.encoding, {name: originals[name] for name in names}, expected, generated)


def why_no_drift(config: DriftConfig, scoring: Scoring) -> str:
    """Returns why drift is not looked for; empty where it is. Raises ConfigError where it was asked for and there is no reference."""
    record = scoring.bundle.table
    if config.reference is not None:
        return ""
    if scoring.what.side != "test" and scoring.job.table.fingerprint == record["fingerprint"]:
        return "the model has seen these rows, or keeps them as its reference"
    if record.get("drift") is not None:
        return ""
    if config.fail or config.ignore:
        raise ConfigError(NO_REFERENCE)
    return NO_REFERENCE


@of_finite_weights("drift")
def drift_section(evaluation: Evaluation) -> Section:
    """Returns whether the rows are drawn from where the reference's were."""
    scoring, config = evaluation.scoring, evaluation.config.drift
    reason = why_no_drift(config, scoring)
    if reason:
        return left_out("drift", reason)
    reference: Reference = reference_for(config, scoring.bundle.model, scoring.encoding, scoring.bundle.table)
    rows = evaluation.samples.rows("scored", config.num_rows)[0].select(scoring.encoding.inputs)
    new = reference.no_rows
    for part in quantities(scoring.bundle.model, scoring.encoding, rows, "the chosen rows"):
        new = new.merge(reference.sketch_of(part))
    report = drift_report(reference, new, config)
    if report["drift"]:
        logger.warning("the rows differ from the %s that they are compared with:\n  %s", report["reference"], found_drift(report))
    found = sum(bool(test["drifted"]) for test in report["tests"])
    return Section("drift", report, {"drift": report["drift"]}, {"num_drifted_quantities": float(found)}, (), [drift_block(report)])
