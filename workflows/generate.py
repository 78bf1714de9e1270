"""Generates rows from a registered model, in the training table's schema.

    python workflows/generate.py --model models:/NAME@champion --num_rows N --output.path FOLDER [--seed N] [--section.key value ...]

Reads a model version. Writes FOLDER/part-*.parquet. A second run does nothing; the same model, seed and count give the same rows.
Generated rows are drawn from a model of the training rows: synthetic is not anonymous.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

if not __package__:  # run as a file: imports start at the repository root, not in workflows/
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from data.output import OutputFolder
from vae.bundle import open_bundle
from workflows.actors import run_units
from workflows.batch import claim_pool, follow, model_files, put_manifest, refuse_lost_output
from workflows.batch_config import GenerateConfig
from workflows.cluster import connected
from workflows.errors import logger
from workflows.generation import GenerateTask, Generator
from workflows.job import run
from workflows.registry import Registry


def main(config: GenerateConfig) -> dict[str, Any]:
    started = time.monotonic()
    refuse_lost_output(config.output.path, config.model, config.registry.tracking_uri)
    pinned = Registry(config.registry.tracking_uri).pin(config.model)
    open_bundle(pinned.files, where=config.model)
    output = OutputFolder.open(config.output.path)
    per_file = config.output.rows_per_file
    request = {"num_rows": config.num_rows, "seed": config.seed, "rows_per_file": per_file}
    output.claim({"job": "generate", "model_name": pinned.name, "model_version": pinned.version, "bundle_sha256": pinned.sha256} | request)
    if output.last_manifest() is None:
        starts = range(0, config.num_rows, per_file)
        units = [
            {"output": f"part-{i:05d}.parquet", "first_row": s, "end_row": min(s + per_file, config.num_rows)} for i, s in enumerate(starts)
        ]
        with connected(config.cluster.address):
            results = run_units(Generator, model_files(pinned), GenerateTask(output, config.seed), units, claim_pool(config.cluster))
            records = follow(results, len(units))
        put_manifest(output, pinned, "generate", {"units": {record["output"]: record for record in records}}, 1)
    else:
        logger.info("%s holds these rows already; nothing to do", output.path)
    wall_s = time.monotonic() - started
    return {
        "job": "generate",
        "model_name": pinned.name,
        "model_version": pinned.version,
        "num_rows": config.num_rows,
        "output_path": output.path,
        "manifest": output.last_manifest(),
        "rows_per_s": config.num_rows / wall_s,
        "wall_s": wall_s,
    }


if __name__ == "__main__":
    run(main, GenerateConfig)
