"""Generates rows from a registered model, in the training table's schema.

    python workflows/generate.py --model models:/NAME@champion --num_rows N --output.path FOLDER [--seed N] [--section.key value ...]

Reads a model version. Writes FOLDER/part-*.parquet, and FOLDER/_report.md and .json: how they compare with the training rows. A second run
does nothing; the same model, seed, condition and count give the same rows. --condition '{"COLUMN": VALUE}' sets what the model is
conditioned on; --data.path TRAINING_TABLE counts the rows that are copies, also of rows that are there already.
Generated rows are drawn from a model of the training rows: synthetic is not anonymous.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

if not __package__:  # run as a file: imports start at the repository root, not in workflows/
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from data.conditions import check_drawable, given_condition
from data.copies import count_copies
from data.encoding import TableEncoding
from data.output import OutputFolder
from data.table import Table, open_table
from vae.bundle_files import describe
from workflows.actors import run_units
from workflows.batch import claim_pool, followed, held, model_files, put_manifest, rate, record_job, refuse_lost_output, where
from workflows.batch_config import GenerateConfig
from workflows.cluster import connected
from workflows.errors import logger
from workflows.generation_task import GenerateTask
from workflows.job import run
from workflows.lease import Fence
from workflows.lineage import parameters
from workflows.pinned import PinnedModel, pin, without_password
from workflows.report import REPORT_JSON, RowsSummary, make_report, put_report, read_report


def main(config: GenerateConfig) -> dict[str, Any]:
    started = time.monotonic()
    refuse_lost_output(config.output.path, config.model, config.registry.tracking_uri)
    pinned = pin(config.model, config.registry.tracking_uri)
    record = describe(pinned.files, where=config.model).table
    encoding = TableEncoding.from_json(record)
    check_condition(config, encoding)
    table = training_table(config, encoding)
    output = OutputFolder.open(config.output.path)
    claim = requested(config, pinned)
    output.claim(claim | {"rows_per_file": config.output.rows_per_file})
    if not is_done(output, table):
        with held(output) as fence:
            if not is_done(output, table):  # another job may have ended just now
                with connected(config.cluster.address):
                    if not is_whole(output):
                        generated(config, pinned, encoding, record, claim, output, fence)
                    if table is not None:
                        count_in(table, config, encoding, output)
                result = json_line(config, pinned, output, started)
                record_job(config.registry, pinned, parameters(asdict(config)), result, {"units": output.newest_manifest()[0]["units"]})
                return result
    logger.info("%s holds these rows already; nothing to do", output.address)
    return json_line(config, pinned, output, started)


def generated(
    config: GenerateConfig,
    pinned: PinnedModel,
    encoding: TableEncoding,
    record: Mapping[str, Any],
    claim: Mapping[str, Any],
    output: OutputFolder,
    fence: Fence,
) -> None:
    """Writes the rows, the report, in which copies are not counted yet, and the manifest. record: the bundle's table."""
    pool, units, summary = claim_pool(config.cluster), units_of(config), RowsSummary()
    task = GenerateTask(output, fence, config.num_rows, config.seed, config.condition or None, pool.use_gpu)
    results = summary.taken_from(run_units("workflows.generation:Generator", model_files(pinned), task, units, pool))
    made = {record["output"]: record for record in followed(results, len(units), config.num_rows)}
    assert summary.total is not None
    put_report(output, make_report(encoding, record.get("marginals"), summary.total, config.condition, claim))
    put_manifest(output, pinned, "generate", {"units": made}, output.newest_manifest()[1] + 1)


def is_done(output: OutputFolder, table: Table | None) -> bool:
    """Whether the rows are there, and copies were counted in the table, where one is given."""
    return is_whole(output) and (table is None or read_report(output)["compared_with"] == table.fingerprint)


def is_whole(output: OutputFolder) -> bool:
    """Whether the files that the newest manifest names are all there, as long as they were made, and the report."""
    said, listed = output.newest_manifest()[0].get("units", {}), output.files()
    files = {name: record.get("output_bytes") for name, record in said.items()}
    return bool(files) and REPORT_JSON in listed and files == {name: listed[name]["output_bytes"] for name in files if name in listed}


def check_condition(config: GenerateConfig, encoding: TableEncoding) -> None:
    """Raises ConditionError where the condition is none of the model's, or has to be given. Warns of nulls that training had not."""
    if config.condition is None:
        check_drawable(encoding)
        return
    row = given_condition(encoding, config.condition)
    for column in encoding.conditions:
        if row[column.name].null_count and not column.null_fraction:
            logger.warning(
                "condition %s is null, which it is in no training row: the rows are of no distribution that was learned", column.name
            )


def training_table(config: GenerateConfig, encoding: TableEncoding) -> Table | None:
    """Returns the table in which copies are looked for. Raises DataError where it does not fit the model."""
    if config.data.path is None:
        return None
    table = open_table(config.data.path, encoding.inputs)
    encoding.check_schema(table.schema, table.files[0].path, table.partitions)
    return table


def requested(config: GenerateConfig, pinned: PinnedModel) -> dict[str, Any]:
    """Returns what decides the rows, plain JSON."""
    condition = json.loads(json.dumps(config.condition, default=str))
    return {
        "job": "generate",
        "model_name": pinned.name,
        "model_version": pinned.version,
        "bundle_sha256": pinned.sha256,
        "num_rows": config.num_rows,
        "seed": config.seed,
        "condition": condition,
    }


def units_of(config: GenerateConfig) -> list[dict[str, Any]]:
    """Returns the output files and the rows that each gets."""
    starts = range(0, config.num_rows, config.output.rows_per_file)
    ends = (min(start + config.output.rows_per_file, config.num_rows) for start in starts)
    return [{"output": f"part-{i:05d}.parquet", "first_row": s, "end_row": e} for i, (s, e) in enumerate(zip(starts, ends, strict=True))]


def count_in(table: Table, config: GenerateConfig, encoding: TableEncoding, output: OutputFolder) -> None:
    """Says in the report how many of the generated rows are in the table."""
    logger.info("looking for copies among %d rows", table.num_rows)
    generated = open_table(config.output.path, encoding.modelled)
    schema = encoding.schema_of(encoding.modelled)
    num_copies = count_copies(generated, table, schema, config.data.max_batch_bytes, encoding.columns)
    paths = [config.data.path] if isinstance(config.data.path, str) else config.data.path or []
    shown = ", ".join(map(without_password, paths))
    copies = {"path": shown, "num_rows": table.num_rows, "columns": encoding.modelled, "num_copies": num_copies}
    put_report(output, read_report(output) | {"compared_with": table.fingerprint, "exact_copies": copies})


def json_line(config: GenerateConfig, pinned: PinnedModel, output: OutputFolder, started: float) -> dict[str, Any]:
    known = {"job": "generate", "model_name": pinned.name, "model_version": pinned.version, "num_rows": config.num_rows}
    return known | where(output) | {"report": f"{output.address}/{REPORT_JSON}"} | rate(known, started)


if __name__ == "__main__":
    run(main, GenerateConfig)
