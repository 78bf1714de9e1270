"""What the sections of an evaluation show on its page, from their reports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data.encoding import TableEncoding
from data.marginals import categories_of, marginals, summarise_rows
from workflows.evaluation_pictures import gap_waterfall, latent_bars, marginal_panels
from workflows.page import Block, Table
from workflows.pictures import image_grid, image_pairs, latent_plane

# Rows that a picture of the latent plane shows, and kinds of label that are told apart.
MAX_PLANE_ROWS, MAX_LABELS = 3000, 20
MAX_TESTS_SHOWN, MAX_PAIRS_SHOWN = 30, 15

Report = Mapping[str, Any]
Picture = tuple[Any, str]


def estimates_table(report: Report, header: str = "nats per row") -> Table:
    """Returns a report's estimates, one a line."""
    found = [(name, value) for name, value in report.items() if isinstance(value, Mapping) and set(value) == {"mean", "standard_error"}]
    return Table([header, "mean", "standard error"], [[in_words(name), value["mean"], value["standard_error"]] for name, value in found])


def in_words(name: str) -> str:
    return name.removesuffix("_nats_per_row").replace("_", " ").replace("elbo", "ELBO")


def baselines_block(report: Report) -> Block:
    words = (
        f"On {report['num_rows']:,} of the rows, densities fitted to {report['num_training_rows']:,} training rows: independent columns, "
        "each with the likelihood that the model gives it, and one Gaussian of all numbers with full covariance. What the model's bound "
        "exceeds them by is what it knows of the columns together."
    )
    return Block("What the model adds", words, tables=[estimates_table(report)])


def health_block(report: Report, z_mean: NDArray[np.float64], labels: Sequence[object] | None, label: str | None) -> Block:
    """z_mean: posterior means [N, L]; labels: of these rows, by which they are coloured where they have few values."""
    plane, named = z_mean[:MAX_PLANE_ROWS].astype(np.float32), None
    if labels is not None and len({str(value) for value in labels}) <= MAX_LABELS:
        named = np.array([str(value) for value in labels[: len(plane)]])
    pictures: list[Picture] = [(latent_bars(report["kl_nats_by_dimension"], report["mean_variance"]), "KL by latent dimension")]
    if np.ptp(plane, axis=0).any():
        drawn = latent_plane(plane, named, label if named is not None else None)
        pictures.append((drawn, "posterior means in the plane of their two main directions"))
    information = report["information"]
    rows: list[list[object]] = [
        ["rate, nats per row", information["rate_nats"]],
        ["mutual information of rows and latents, nats (at least)", information["mutual_information_nats"]],
        ["KL of the aggregated posterior from the prior, nats (at most)", information["aggregated_kl_nats"]],
        ["what the decoder loses with another row's latents, nats per row", report["decoder_use_nats"]],
        ["active latent dimensions", f"{report['active_units']} of {report['latent_dim']}"],
    ]
    return Block("Latent variables", report["words"], pictures, [Table(["what", "value"], rows)], report["verdict"] == "healthy")


def audit_block(report: Report) -> Block:
    elbo, evidence = (report[f"{name}_nats_per_row"]["mean"] for name in ("elbo_of_the_encoder", "log_evidence"))
    approximation, amortisation = (report[f"{name}_gap_nats_per_row"]["mean"] for name in ("approximation", "amortisation"))
    words = (
        f"How far the ELBO of {report['num_rows']} rows lies below log p(x), and why. The amortisation gap is what a better encoder of the "
        "same family would close, the approximation gap what only a richer family of posteriors would. "
        f"{report['num_rows_whose_estimate_is_not_to_be_trusted']} rows have an estimate that is not to be trusted.\n" + report["notes"][0]
    )
    known = all(value is not None for value in (elbo, evidence, approximation, amortisation))
    pictures: list[Picture] = (
        [(gap_waterfall(elbo, amortisation, approximation, evidence), "steps from the ELBO to log p(x)")] if known else []
    )
    return Block("Inference gaps", words, pictures, [estimates_table(report)])


def usefulness_block(report: Report) -> Block:
    rows: list[list[object]] = [
        [f"{method} on {sees}", in_words(name), value["value"], value["standard_error"]]
        for sees, methods in report["probes"].items()
        for method, measures in methods.items()
        for name, value in measures.items()
    ]
    rows += [["guess", in_words(name), value["value"], value["standard_error"]] for name, value in report["guess"].items()]
    tables = [Table(["who predicts", "measure", "value", "standard error"], rows)]
    if "anomalies" in report:
        scores = report["anomalies"]["scores"]
        found = [
            [in_words(name), *(measures[m][k] for m in measures for k in ("value", "standard_error"))] for name, measures in scores.items()
        ]
        tables.append(Table(["anomaly score", "ROC AUC", "standard error", "average precision", "standard error"], found))
    words = f"How well {report['label']!r} is predicted from the embedding, and from the rows' own features."
    return Block("Use of the embedding", "\n".join([words, *report["notes"]]), tables=tables)


def generated_block(encoding: TableEncoding, report: Report, real: pa.Table, made: pa.Table, images: Sequence[Picture]) -> Block:
    """real, made: rows with the model's columns; images: pictures where the table has some."""
    sides = [marginals(encoding, summarise_rows(encoding, rows.select(encoding.inputs)))["columns"] for rows in (real, made)]
    for column in (column for column in encoding.columns if column.kind in ("categorical", "boolean") and column.name in sides[0]):
        for side in sides:
            side[column.name]["categories"] = categories_of(column)
    columns = [[name, entry["kind"], *distance(entry), entry["noise"]] for name, entry in report["marginals"].items()]
    pictures = [(marginal_panels(*sides), "columns of real and generated rows, one by one")] if len(columns) > len(images) else []
    tables = [Table(["column", "kind", "nulls, real", "nulls, generated", "distance", "by chance"], columns)]
    return Block("Generated rows", "\n".join(report["words"]), [*images, *pictures], tables)


def distance(entry: Report) -> tuple[object, ...]:
    nulls = entry["null_rate"]
    return nulls["real"], nulls["synthetic"], entry.get("total_variation", entry.get("kolmogorov_smirnov"))


def image_pictures(
    encoding: TableEncoding, originals: Mapping[str, Any], reconstructions: Mapping[str, Any], generated: Mapping[str, Any]
) -> list[Picture]:
    """Returns originals above reconstructions, and generated images, of every image column; column -> cells [N, D]."""
    pictures: list[Picture] = []
    for column in (column for column in encoding.columns if column.kind == "image" and column.name in originals):
        pairs = image_pairs(originals[column.name], reconstructions[column.name], column)
        pictures.append((pairs, f"{column.name}: originals above their reconstructions"))
        pictures.append((image_grid(generated[column.name], column, f"{column.name}: generated"), f"{column.name}: generated images"))
    return pictures


def drift_block(report: Report) -> Block:
    said = "Some quantities are" if report["drift"] else "None is"
    words = (
        f"{report['num_rows']:,} rows against {report['num_reference_rows']:,} {report['reference']}. {said} distributed otherwise than "
        f"there, at a chance of {report['alpha']:g} of an alarm where nothing changed."
    )
    rows = [
        [test["quantity"], test["what"], test["adjusted"], test["effect"], "drifted" if test["drifted"] else ""]
        for test in report["tests"][:MAX_TESTS_SHOWN]
    ]
    return Block("Drift", words, tables=[Table(["quantity", "of what", "adjusted p", "effect", ""], rows)], verdict=not report["drift"])


def promotion_block(report: Report) -> Block:
    champion = report["champion_version"]
    against = "There was no champion." if champion is None else f"Against champion version {champion}, on the same rows."
    words = "\n".join([against, *(f"Not promoted: {reason}." for reason in report["reasons"])])
    tables = [estimates_table(report)] if "num_rows" in report else []
    if "kl_nats_per_row" in report:
        columns = report["expected_log_likelihood_nats_per_row_by_column"]
        rows: list[list[Any]] = [
            [f"log-likelihood of {name}", value, columns["champion"][name]] for name, value in columns["candidate"].items()
        ]
        rows.append(["KL", *(report["kl_nats_per_row"][who] for who in ("candidate", "champion"))])
        differences = [[*row, None if None in row else row[1] - row[2]] for row in rows]
        tables.append(Table(["all rows, nats per row", "version", "champion", "difference"], differences))
    return Block("Promotion", words, tables=tables, verdict=not report["reasons"])
