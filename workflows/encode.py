"""Embeds every row of a Parquet table with a registered model, one output file per input file.

    python workflows/encode.py --model models:/NAME@champion --data.path TABLE --output.path FOLDER [--section.key value ...]

Reads Parquet and a model version. Writes FOLDER/model_version=N/*.parquet. A second run does nothing; new files only add.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

if not __package__:  # run as a file: imports start at the repository root, not in workflows/
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from data.encoding import TableEncoding
from data.output import OutputFolder, output_name
from data.table import DataError, Table, open_table
from vae.bundle import open_bundle
from workflows.actors import Encoder, EncodeTask, run_units
from workflows.batch import follow, model_files, num_actors, put_manifest, refuse_lost_output, refuse_output_in_input
from workflows.cluster import connected
from workflows.config import EncodeConfig
from workflows.job import logger, run
from workflows.registry import PinnedModel, Registry


def main(config: EncodeConfig) -> dict[str, Any]:
    started = time.monotonic()
    refuse_lost_output(config.output.path, config.model, config.registry.tracking_uri)
    pinned = Registry(config.registry.tracking_uri).pin(config.model)
    encoding = TableEncoding.from_json(open_bundle(pinned.files, where=config.model).table)
    table = open_table(config.data.path)
    key = check_table(table, encoding, config.data.key)
    root = OutputFolder.open(config.output.path)
    refuse_output_in_input(table, root)
    root.claim({"job": "encode", "model_name": pinned.name, "columns": [key or "source_file, source_row", *config.output.columns]})
    output = root.below(f"model_version={pinned.version}")
    manifests = output.manifests()
    done = manifests[-1]["units"] if manifests else {}
    units = units_to_do(table, output, done)
    records: list[dict[str, Any]] = []
    if units:
        logger.info("%d of %d files to encode", len(units), len(table.files))
        task = EncodeTask(table.filesystem, output, key, table.schema.field(key).type if key else None, tuple(config.output.columns))
        with connected(config.cluster.address):
            records = follow(run_units(Encoder, model_files(pinned), task, units, num_actors(config.cluster)), len(units))
        put_manifest(output, pinned, "encode", done | {record["output"]: record for record in records}, len(manifests) + 1)
    return json_line(pinned, output, records, len(table.files) - len(units), time.monotonic() - started)


def check_table(table: Table, encoding: TableEncoding, key: str | None) -> str | None:
    """Returns the key column of the output, None for source_file and source_row. Raises DataError for what does not fit."""
    where = table.files[0].path
    encoding.check_schema(table.schema, where)
    key = key or encoding.key
    if key is not None and key not in table.schema.names:
        raise DataError(f"{where}: the key column {key!r} is missing; name another by --data.key")
    return key


def units_to_do(table: Table, output: OutputFolder, done: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns the files that the manifest lacks, or whose content or output is not what it says."""
    units = []
    for file in table.files:
        name = output_name(file.relative_path)
        known = done.get(name)
        if known is not None and known["identity"] == file.identity and output.exists(name):
            continue
        units.append(
            {
                "output": name,
                "path": file.path,
                "input": file.relative_path,
                "identity": file.identity,
                "num_bytes": file.num_bytes,
                "row_groups": list(file.row_groups),
            }
        )
    return units


def json_line(pinned: PinnedModel, output: OutputFolder, records: list[dict[str, Any]], num_skipped: int, wall_s: float) -> dict[str, Any]:
    num_rows = sum(int(record["num_rows"]) for record in records)
    return {
        "job": "encode",
        "model_name": pinned.name,
        "model_version": pinned.version,
        "num_rows": num_rows,
        "num_units_done": len(records),
        "num_units_skipped": num_skipped,
        "output_path": output.path,
        "manifest": output.last_manifest(),
        "rows_per_s": num_rows / wall_s,
        "wall_s": wall_s,
    }


if __name__ == "__main__":
    run(main, EncodeConfig)
