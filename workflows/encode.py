"""Embeds every row of a Parquet table with a registered model, one output file per input file.

    python workflows/encode.py --model models:/NAME@champion --data.path TABLE --output.path FOLDER [--section.key value ...]

Reads Parquet and a model version. Writes FOLDER/model_version=N/*.parquet. A second run does nothing; new files only add; the output
of a changed file is replaced at once.
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
from vae.bundle_files import describe
from workflows.batch_config import EncodeConfig
from workflows.checks import ConfigError
from workflows.embedding_task import Embedded, output_schema, reads_of
from workflows.file_job import FileJob, open_input, perform
from workflows.job import run
from workflows.pinned import PinnedModel


def main(config: EncodeConfig) -> dict[str, Any]:
    return perform(config, embedding_job)


def embedding_job(config: EncodeConfig, pinned: PinnedModel) -> FileJob:
    """Returns what is to become what, once input, model and output fit together. Raises DataError, BundleError, OutputError."""
    described = describe(pinned.files, where=config.model)
    encoding = TableEncoding.from_json(described.table)
    key = config.data.key or encoding.key
    table = open_input(config.data, [*encoding.inputs, *([key] if key else [])], partial(check_schema, encoding, key))
    key_type = table.schema.field(key).type if key else None
    reads = reads_of(encoding, key, key_type)
    what = Embedded(table.filesystem, reads, key, key_type, tuple(config.output.columns), config.num_importance_samples)
    claim: dict[str, Any] = {
        "job": "encode",
        "model_name": pinned.name,
        "columns": [key or "source_file, source_row", *config.output.columns],
    }
    if "log_evidence_bound" in config.output.columns:
        claim["num_importance_samples"] = config.num_importance_samples
    schema = output_schema(described.architecture["latent_dim"], encoding, what)
    if len(set(schema.names)) < len(schema.names):
        raise ConfigError(f"the key is {key!r}, which is the name of a column of the output too: {schema.names}; rename it in the table")
    actor, root = "workflows.embedding:Encoder", OutputFolder.open(config.output.path)
    return FileJob("encode", table, root, claim, pinned, actor, what, schema, config.data, config.output.prune)


def check_schema(encoding: TableEncoding, key: str | None, schema: pa.Schema, where: str, spelled: Collection[str]) -> None:
    """Raises DataError for a file without the key column of the output, or that does not fit the model."""
    encoding.check_schema(schema, where, spelled)
    if key is not None and key not in schema.names:
        raise DataError(f"{where}: the key column {key!r} is missing; name another by --data.key")


if __name__ == "__main__":
    run(main, EncodeConfig)
