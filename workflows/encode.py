"""Embeds every row of a Parquet table with a registered model, one output file per input file.

    python workflows/encode.py --model models:/NAME@champion --data.path TABLE --output.path FOLDER [--section.key value ...]

Reads Parquet and a model version. Writes FOLDER/model_version=N/*.parquet. A second run does nothing; new files only add.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

if not __package__:  # run as a file: imports start at the repository root, not in workflows/
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from data.encoding import TableEncoding
from data.listing import DataError
from data.output import OutputFolder
from data.table import Table, open_table
from data.units import units_to_do
from vae.bundle import open_bundle
from workflows.actors import run_units
from workflows.batch import follow, model_files, num_actors, put_manifest, refuse_lost_output, refuse_output_in_input
from workflows.batch_config import EncodeConfig
from workflows.cluster import connected
from workflows.embedding import Encoder, EncodeTask
from workflows.errors import logger
from workflows.job import run
from workflows.registry import PinnedModel, Registry


def main(config: EncodeConfig) -> dict[str, Any]:
    started = time.monotonic()
    refuse_lost_output(config.output.path, config.model, config.registry.tracking_uri)
    pinned = Registry(config.registry.tracking_uri).pin(config.model)
    encoding = TableEncoding.from_json(open_bundle(pinned.files, where=config.model).table)
    key = config.data.key or encoding.key
    table = open_table(config.data.path, [*encoding.modelled, *([key] if key else [])])
    check_table(table, encoding, key)
    root = OutputFolder.open(config.output.path)
    refuse_output_in_input(table, root)
    root.claim({"job": "encode", "model_name": pinned.name, "columns": [key or "source_file, source_row", *config.output.columns]})
    output = root.below(f"model_version={pinned.version}")
    manifests = output.manifests()
    done = manifests[-1]["units"] if manifests else {}
    units = units_to_do(table, done, output.names())
    records: list[dict[str, Any]] = []
    if units:
        logger.info("%d of %d files to encode", len(units), len(table.files))
        task = EncodeTask(
            table.filesystem,
            output,
            key,
            table.schema.field(key).type if key else None,
            tuple(config.output.columns),
            config.data.max_batch_bytes,
        )
        with connected(config.cluster.address):
            records = follow(run_units(Encoder, model_files(pinned), task, units, num_actors(config.cluster)), len(units))
        put_manifest(output, pinned, "encode", done | {record["output"]: record for record in records}, len(manifests) + 1)
    say_unseen(records)
    return json_line(pinned, output, records, len(table.files) - len(units), time.monotonic() - started)


def check_table(table: Table, encoding: TableEncoding, key: str | None) -> None:
    """Raises DataError for a table without the key column of the output, or that does not fit the model."""
    where = table.files[0].path
    encoding.check_schema(table.schema, where, table.partitions)
    if key is not None and key not in table.schema.names:
        raise DataError(f"{where}: the key column {key!r} is missing; name another by --data.key")


def say_unseen(records: list[dict[str, Any]]) -> None:
    """Warns of values that the model has no code for; they were encoded as "other", or as missing."""
    unseen: Counter[str] = sum((Counter(record["unseen"]) for record in records), Counter())
    for name, count in unseen.items():
        logger.warning("column %s: %d values that training did not see, encoded as other or missing", name, count)


def json_line(pinned: PinnedModel, output: OutputFolder, records: list[dict[str, Any]], num_skipped: int, wall_s: float) -> dict[str, Any]:
    num_rows = sum(int(record["num_rows"]) for record in records)
    return {
        "job": "encode",
        "model_name": pinned.name,
        "model_version": pinned.version,
        "num_rows": num_rows,
        "num_units_done": len(records),
        "num_units_skipped": num_skipped,
        "num_unseen": sum(sum(record["unseen"].values()) for record in records),
        "output_path": output.path,
        "manifest": output.last_manifest(),
        "rows_per_s": num_rows / wall_s,
        "wall_s": wall_s,
    }


if __name__ == "__main__":
    run(main, EncodeConfig)
