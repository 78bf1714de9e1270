"""What the batch jobs share: the pinned model's identity, how many actors, the units' progress, the manifest."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import ray

from data.output import OutputError, OutputFolder
from data.table import Table
from workflows.actors import ModelFiles
from workflows.batch_config import BatchClusterConfig
from workflows.cluster import is_submitted, require_resources
from workflows.config import ConfigError
from workflows.errors import TryAgain, logger
from workflows.registry import PinnedModel, lineage, relative_store


def refuse_lost_output(path: str, model: str, tracking_uri: str | None) -> None:
    """Raises ConfigError where a submitted job would write into, or read its registry from, a folder that goes away with it."""
    if not is_submitted():
        return
    if "://" not in path and not Path(path).is_absolute():
        raise ConfigError(f"output.path is {path!r}, which would be lost with the job's temporary folder; give an absolute path or a URI")
    if model.startswith("models:/") and relative_store(tracking_uri):
        raise ConfigError(
            "registry.tracking_uri is a SQLite file in the job's temporary folder, which holds no model; name the tracking server"
        )


def model_files(pinned: PinnedModel) -> ModelFiles:
    """Returns the model as it travels, with the lines that every output file's footer carries."""
    known = {"model_name": pinned.name, "model_version": pinned.version, "run_id": pinned.run_id, "bundle_sha256": pinned.sha256}
    return ModelFiles(pinned.files, {f"vae.{key}": str(value) for key, value in known.items() if value is not None})


def refuse_output_in_input(table: Table, output: OutputFolder) -> None:
    """Raises OutputError where the next run would read this run's output."""
    folders = {file.path.removesuffix(file.relative_path) for file in table.files}
    inside = [folder for folder in folders if f"{output.path}/".startswith(folder)]
    if inside and table.filesystem == output.filesystem:
        raise OutputError(f"output.path {output.path} lies in the input folder {inside[0]}: the next run would read it; choose one outside")


def num_actors(config: BatchClusterConfig) -> int:
    """Returns how many actors work at once, when there is a CPU for one: by default all but the one left for Ray Data.

    Raises ServiceError where no CPU can come.
    """
    require_resources({"CPU": 1.0}, config.start_timeout_s)
    return config.num_actors or max(1, int(ray.cluster_resources().get("CPU", 2)) - 1)


def follow(results: Iterable[dict[str, Any]], num_units: int) -> list[dict[str, Any]]:
    """Returns the units' records, saying every few seconds how far they are."""
    records: list[dict[str, Any]] = []
    started = said = time.monotonic()
    for record in results:
        records.append(record)
        if time.monotonic() - said > 5:
            said = time.monotonic()
            rows = sum(int(r["num_rows"]) for r in records)
            left = (said - started) * (num_units - len(records)) / len(records)
            logger.info(
                "%d of %d units, %d rows, %.0f rows/s, about %.0f s to go", len(records), num_units, rows, rows / (said - started), left
            )
    return records


def put_manifest(output: OutputFolder, pinned: PinnedModel, job: str, units: dict[str, Any], number: int) -> str:
    """Returns the path of the manifest that now says what the folder holds. Raises TryAgain where another job was first."""
    manifest = {
        "job": job,
        "model_name": pinned.name,
        "model_version": pinned.version,
        "bundle_sha256": pinned.sha256,
        "code": lineage(),
        "units": units,
    }
    try:
        return output.put_manifest(manifest, number)
    except FileExistsError as error:
        raise TryAgain(f"{output.path}: another job wrote manifest {number} meanwhile; run again") from error
