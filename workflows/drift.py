"""Drift as the jobs see it: what training keeps of its validation rows, what new rows are compared with, and what is said of it.

Shapes: S samples, B rows, L latent dimensions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from data.drift import (
    MIN_REFERENCE_ROWS,
    MIN_ROWS,
    Measured,
    Quantities,
    Reference,
    Sketch,
    category_shares,
    column_quantities,
    num_rows,
)
from data.encoding import TableEncoding
from data.fixed_noise import standard_normal, uniform
from data.listing import DataError
from data.marginals import stored_marginals
from data.reading import MAX_BATCH_BYTES, RowReader
from data.shard import bytes_per_row
from data.split import TRAIN, VALIDATION, split_rows, take
from data.table import Table, open_table
from vae.model import VAE
from vae.rows import Rows
from workflows.checks import ConfigError
from workflows.drift_config import DriftConfig
from workflows.errors import logger
from workflows.feed import binarised
from workflows.file_actor import chunk_rows

LATENT, ELBO = "latent means", "ELBO"
ELBO_SAMPLES = 4
# Rows of the reference that a bundle keeps; their cells are held while it is made.
NUM_ROWS, MAX_BYTES = 20_000, 2**26
# Row groups that are read for them, spread evenly over the table.
MAX_GROUPS = 64
NO_REFERENCE = (
    "the model keeps no reference for drift: it was trained by an earlier version, or on too few rows. Give one by "
    "--drift.reference TABLE, of rows like those that it was trained on but not these themselves"
)
# What is said of drift names as many findings.
MAX_NAMED = 10


@torch.inference_mode()
def model_quantities(model: VAE, rows: Rows) -> Quantities:
    """Returns the posterior means [B, L] and the ELBO of rows, nats per row, [B].

    All rows get the same noise, so that a row's ELBO depends on the row alone: it is made to be compared, not reported.
    """
    rows = rows.to(model.device)
    if model.binarised:
        chances = torch.from_numpy(uniform(model.num_binarised, 1)).to(model.device)
        rows = binarised(rows, model, chances[None])
    q_z = model.posterior(rows)
    samples = [model.evaluate_elbo(rows, noise.expand(1, rows.num_rows, -1), q_z).elbo.double() for noise in fixed_noise(model)]
    elbo = torch.stack(samples).mean(0)
    return {LATENT: Measured(q_z.mean.double().cpu().numpy(), 0), ELBO: Measured(elbo.cpu().numpy(), 0)}


def fixed_noise(model: VAE) -> Tensor:
    """Returns the noise of every row, [S, 1, L]."""
    drawn = standard_normal(ELBO_SAMPLES * model.latent_dim, 0).reshape(ELBO_SAMPLES, 1, model.latent_dim)
    return torch.from_numpy(drawn).to(model.device, model.dtype)


def quantities(model: VAE, encoding: TableEncoding, table: pa.Table, where: str) -> Iterator[Quantities]:
    """Yields, chunk by chunk of a table's rows, all that is compared of them. Raises DataError naming `where` and the column."""
    size = chunk_rows(encoding)
    for begin in range(0, table.num_rows, size):
        part = table.slice(begin, size)
        arrays = encoding.encode(part, where)
        yield column_quantities(encoding, part, arrays) | model_quantities(model, Rows.from_arrays(arrays))


def training_reference(
    model: VAE,
    encoding: TableEncoding,
    table: Table,
    record: Mapping[str, Any],
    is_validation: bool,
    max_batch_bytes: int = MAX_BATCH_BYTES,
) -> dict[str, Any] | None:
    """Returns what the bundle keeps of the table's validation rows for later comparisons; None where there are too few rows.

    is_validation: all rows of the table are. Without enough validation rows it is of training rows, and then without the model's
    quantities: it has seen those rows, and new ones would differ from them where nothing changed.
    """
    fractions = (1.0, 0.0) if is_validation else (record["split"]["validation_fraction"], record["split"]["test_fraction"])
    parts, rows = list(chosen(model, encoding, table, VALIDATION, fractions, NUM_ROWS, max_batch_bytes)), "validation rows"
    if num_rows(parts) < MIN_REFERENCE_ROWS and not is_validation:
        logger.info(
            "%d validation rows: what drift will be compared with are training rows, without latent means and ELBO", num_rows(parts)
        )
        train = chosen(model, encoding, table, TRAIN, fractions, NUM_ROWS, max_batch_bytes)
        parts = [{name: found for name, found in part.items() if name not in (LATENT, ELBO)} for part in train]
        rows = "training rows (without latent means and ELBO)"
    if num_rows(parts) < MIN_REFERENCE_ROWS:
        logger.info("%d rows are too few to find drift by later; at least %d are needed", num_rows(parts), MIN_REFERENCE_ROWS)
        return None
    return Reference.of(parts, rows, category_shares(encoding, stored_marginals(record))).to_json()


def chosen(
    model: VAE,
    encoding: TableEncoding,
    table: Table,
    side: int,
    fractions: tuple[float, float],
    max_rows: int,
    max_batch_bytes: int = MAX_BATCH_BYTES,
) -> Iterator[Quantities]:
    """Yields what is compared of about max_rows rows of a side of the split, chosen by hash from row groups all over the table.

    What it costs does not grow with the table beyond MAX_GROUPS row groups.
    """
    groups = list(table.row_groups())
    groups = groups[:: -(-len(groups) // MAX_GROUPS)]
    max_rows = min(max_rows, max(MIN_REFERENCE_ROWS, MAX_BYTES // bytes_per_row(encoding)))
    validation, test = fractions
    of_side = validation if side == VALIDATION else 1 - validation - test
    expected = of_side * sum(group.num_rows for group in groups)
    if not expected:
        return
    share = min(1.0, max_rows / expected)
    # The rows of these fractions on this side are the wanted share of those that the split has there.
    fewer = (validation * share, 0.0) if side == VALIDATION else (1 - share * of_side, 0.0)
    names = [*encoding.inputs, *([encoding.key] if encoding.key is not None and encoding.key in table.schema.names else [])]
    key = encoding.key if encoding.key in names else None
    with RowReader(table.filesystem, encoding.schema_of(names), max_batch_bytes) as reader:
        for part, rows in (piece for group in groups for piece in reader.slices(group)):
            kept = take(rows, split_rows(rows, part, key, fewer) == side)
            yield from quantities(model, encoding, kept, part.path)


def open_reference(config: DriftConfig, encoding: TableEncoding) -> Table | None:
    """Returns the table that new rows are to be compared with, where one is named.

    Raises ConfigError where a column that is to be ignored is none of the model's; DataError for a table that does not fit it, or that has
    too few rows.
    """
    unknown = sorted(set(config.ignore) - set(encoding.inputs))
    if unknown:
        raise ConfigError(f"drift.ignore names {unknown}, which the model does not read; it reads {encoding.inputs}")
    if config.reference is None:
        return None
    table = open_table(config.reference, encoding.inputs)
    encoding.check_schema(table.schema, str(config.reference), table.partitions)
    if table.num_rows < MIN_REFERENCE_ROWS:
        raise DataError(f"{config.reference}: {table.num_rows} rows; to find drift by, at least {MIN_REFERENCE_ROWS} are needed")
    return table


def reference_for(config: DriftConfig, model: VAE, encoding: TableEncoding, record: Mapping[str, Any]) -> Reference:
    """Returns what new rows are compared with: the configured table's rows, else what the bundle (table.json: record) keeps.

    Raises ConfigError where there is neither, or as open_reference does.
    """
    table = open_reference(config, encoding)
    if table is None:
        if record.get("drift") is None:
            raise ConfigError(NO_REFERENCE)
        return Reference.from_json(record["drift"])
    parts = list(chosen(model, encoding, table, VALIDATION, (1.0, 0.0), config.num_rows))
    return Reference.of(parts, str(config.reference), category_shares(encoding, stored_marginals(record)))


def drift_report(reference: Reference, new: Sketch, config: DriftConfig) -> dict[str, Any]:
    """Returns what the comparison found, plain JSON: "drift", whether anything did, and every test, the smallest p-values first."""
    tests = reference.compare(new, config.alpha, config.min_effect, config.ignore)
    report = {
        "drift": any(test.drifted for test in tests),
        "reference": reference.rows,
        "num_reference_rows": reference.sketch.total_rows,
        "num_rows": new.total_rows,
        "alpha": config.alpha,
        "min_effect": config.min_effect,
        "tests": [asdict(test) for test in tests],
    }
    if new.total_rows < MIN_ROWS:
        logger.warning("%d rows are too few to tell drift from chance; at least %d are needed", new.total_rows, MIN_ROWS)
    return report


def found_drift(report: Mapping[str, Any]) -> str:
    """Returns what drifted, one line each, the surest first."""
    found = [test for test in report["tests"] if test["drifted"]]
    lines = [f"{test['what']} of {test['quantity']}: p {test['adjusted']:.2g} (adjusted), effect {test['effect']:.3f}" for test in found]
    return "\n  ".join([*lines[:MAX_NAMED], *([f"and {len(lines) - MAX_NAMED} more"] if len(lines) > MAX_NAMED else [])])
