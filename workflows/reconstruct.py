"""Fills the nulls of a Parquet table from a registered model; what is there stays as it is.

    python workflows/reconstruct.py --model models:/NAME@champion --data.path TABLE --output.path FOLDER [--section.key value ...]

Reads Parquet and a model version. Writes FOLDER/model_version=N/*.parquet with the training table's columns (others are left out, and
named), one output file per input file. A second run does nothing; new files only add; the output of a changed file is replaced at once.
"""

from __future__ import annotations

import sys
from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import Any

if not __package__:  # run as a file: imports start at the repository root, not in workflows/
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import pyarrow as pa

from data.encoding import TableEncoding
from data.listing import DataError
from data.output import OutputFolder
from data.widening import fits
from vae.bundle_files import describe
from workflows.batch_config import ReconstructConfig
from workflows.checks import ConfigError
from workflows.errors import logger
from workflows.file_job import FileJob, open_input, perform
from workflows.imputation_task import Imputed, output_schema
from workflows.job import run
from workflows.pinned import PinnedModel


def main(config: ReconstructConfig) -> dict[str, Any]:
    return perform(config, imputation_job)


def imputation_job(config: ReconstructConfig, pinned: PinnedModel) -> FileJob:
    """Returns what is to become what, once input, model and output fit together. Raises DataError, BundleError, OutputError."""
    encoding = TableEncoding.from_json(describe(pinned.files, where=config.model).table)
    schema = output_schema(encoding, config.output.standard_deviations)
    twice = sorted({name for name in schema.names if schema.names.count(name) > 1})
    if twice:
        raise ConfigError(f"output.standard_deviations adds columns {twice}, which the table has already; leave it out or rename them")
    others: dict[str, None] = {}
    table = open_input(config.data, encoding.schema.names, partial(check_schema, encoding, others))
    if others:
        logger.warning("columns that the training table did not have are left out: %s", ", ".join(map(repr, others)))
    what = Imputed(table.filesystem, encoding.schema, config.output.standard_deviations)
    claim = {"job": "reconstruct", "model_name": pinned.name, "standard_deviations": config.output.standard_deviations}
    root = OutputFolder.open(config.output.path)
    return FileJob(
        "reconstruct", table, root, claim, pinned, "workflows.imputation:Imputer", what, schema, config.data, config.output.prune
    )


def check_schema(encoding: TableEncoding, others: dict[str, None], schema: pa.Schema, where: str, spelled: Collection[str]) -> None:
    """Raises DataError for a file that lacks a column of the training table, or has it in another type; notes columns besides these."""
    encoding.check_schema(schema, where, spelled)
    others.update(dict.fromkeys(name for name in schema.names if name not in encoding.schema.names))
    missing = [name for name in encoding.schema.names if name not in schema.names]
    if missing:
        raise DataError(f"{where}: the training table's columns {missing} are missing")
    types = {name: (schema.field(name).type, encoding.schema.field(name).type) for name in encoding.schema.names if name not in spelled}
    faults = [
        f"column {name!r} is {is_now}, the training table's is {was}" for name, (is_now, was) in types.items() if not fits(is_now, was)
    ]
    if faults:
        raise DataError(f"{where}: what the model does not read is written again, in the training table's types:\n  " + "\n  ".join(faults))


if __name__ == "__main__":
    run(main, ReconstructConfig)
