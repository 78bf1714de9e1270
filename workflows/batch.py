"""What the batch jobs share: the pinned model's identity, how many actors, the units' progress, the manifest."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray

from data.listing import takes_in
from data.output import OutputError, OutputFolder
from data.stores import address
from workflows.actors import ModelFiles, Pool
from workflows.batch_config import BatchClusterConfig, BatchRegistryConfig
from workflows.checks import ConfigError
from workflows.cluster import choose_gpu, is_submitted, require_room
from workflows.errors import ServiceError, TryAgain, logger
from workflows.lease import Claims, Fence
from workflows.lineage import lineage
from workflows.pinned import PinnedModel, is_registered, relative_store, without_passwords

CLAIMS = "_attempts"
PROGRESS_S = 5.0


def refuse_lost_output(path: str, model: str, tracking_uri: str | None) -> None:
    """Raises ConfigError where a submitted job would write into, or read its registry from, a folder that goes away with it."""
    if not is_submitted():
        return
    if "://" not in path and not Path(path).is_absolute():
        raise ConfigError(f"output.path is {path!r}, which would be lost with the job's temporary folder; give an absolute path or a URI")
    if is_registered(model):
        refuse_lost_registry(tracking_uri)


def refuse_lost_registry(tracking_uri: str | None) -> None:
    """Raises ConfigError where a submitted job would look for a model in the folder that goes away with it."""
    if is_submitted() and relative_store(tracking_uri):
        raise ConfigError(
            "registry.tracking_uri is a SQLite file in the job's temporary folder, which holds no model; name the tracking server"
        )


def model_files(pinned: PinnedModel) -> ModelFiles:
    """Returns the model as it travels, with the lines that every output file's footer carries."""
    known = {"model_name": pinned.name, "model_version": pinned.version, "run_id": pinned.run_id, "bundle_sha256": pinned.sha256}
    return ModelFiles(pinned.files, {f"vae.{key}": str(value) for key, value in known.items() if value is not None})


def refuse_output_in_input(paths: str | list[str], output: OutputFolder) -> None:
    """Raises OutputError where the next run would read this run's output."""
    for path in [paths] if isinstance(paths, str) else paths:
        if takes_in(path, output.filesystem, output.path):
            raise OutputError(f"output.path {output.address} lies in the input {path}: the next run would read it; choose another")


def claim_pool(config: BatchClusterConfig) -> Pool:
    """Returns the actors that work at once, when the cluster has room for one: by default all CPUs but the one left for other tasks.

    Raises ServiceError where what one actor needs cannot come.
    """
    use_gpu = choose_gpu({"CPU": 1.0}, 1) if config.use_gpu == "auto" else config.use_gpu
    require_room({"CPU": 1.0} | ({"GPU": 1.0} if use_gpu else {}), 1, config.start_timeout_s)
    there = ray.cluster_resources()
    fitting = int(there.get("GPU", 1)) if use_gpu else int(there.get("CPU", 2)) - 1
    return Pool(config.num_actors or max(1, fitting), use_gpu)


@contextmanager
def held(root: OutputFolder) -> Iterator[Fence]:
    """Holds an output while open, so that one job at a time writes it.

    Raises TryAgain where another job holds it and lives, OutputError where it cannot be written.
    """
    claims = Claims(root.filesystem, f"{root.path}/{CLAIMS}", unwritable=OutputError)
    with claims.held(f"the output {root.address}") as attempt:
        yield Fence(claims, attempt)


def followed(results: Iterable[dict[str, Any]], num_units: int, num_rows: int | None = None) -> Iterator[dict[str, Any]]:
    """Yields the units' records, saying every few seconds how far they are. num_rows: of all units, where that is known."""
    rows = 0
    started = said = time.monotonic()
    for done, record in enumerate(results, 1):
        rows += int(record["num_rows"])
        if time.monotonic() - said > PROGRESS_S:
            said = time.monotonic()
            # Units that were put aside have no rows.
            share = rows / num_rows if num_rows and rows and done < num_units else done / num_units
            left = (said - started) * (1 - share) / share
            logger.info("%d of %d units, %d rows, %.0f rows/s, about %.0f s to go", done, num_units, rows, rows / (said - started), left)
        yield record


def put_manifest(
    output: OutputFolder, pinned: PinnedModel, job: str, contents: Mapping[str, Any], number: int, complete: bool = True
) -> str:
    """Returns the path of the manifest that now says what the folder holds. Raises TryAgain where another job was first.

    contents: the records of the output's files under "units", and what else is to be said.
    """
    manifest = {
        "job": job,
        "model_name": pinned.name,
        "model_version": pinned.version,
        "bundle_sha256": pinned.sha256,
        "code": lineage(),
        **contents,
    }
    try:
        return output.put_manifest(manifest, number, complete)
    except FileExistsError as error:
        raise TryAgain(f"{output.address}: another job wrote manifest {number} meanwhile; run again") from error


def where(output: OutputFolder) -> dict[str, Any]:
    """Returns where the output lies, for the JSON line."""
    manifest = output.last_manifest()
    return {"output_path": output.address, "manifest": None if manifest is None else address(output.filesystem, manifest)}


def rate(result: Mapping[str, Any], started: float) -> dict[str, float]:
    """Returns how fast the job was, for the JSON line."""
    wall_s = time.monotonic() - started
    return {"rows_per_s": result["num_rows"] / wall_s, "wall_s": wall_s}


def record_job(
    registry: BatchRegistryConfig,
    pinned: PinnedModel,
    options: Mapping[str, Any],
    result: Mapping[str, Any],
    manifest: Mapping[str, Any],
    texts: Mapping[str, str] | None = None,
) -> None:
    """Logs what a job did as an MLflow run that is linked to the model version, as far as MLflow answers.

    result: the job's JSON line; manifest and texts (name -> content): what is kept as the run's artifacts.
    A folder's model has no version to link to.
    """
    if pinned.name is None:
        return
    from workflows.registry import Registry  # a second of imports, which a folder's model does without

    tags = {key: str(result[key]) for key in ("job", "model_name", "model_version", "output_path")} | lineage()
    metrics = {key: float(value) for key, value in result.items() if isinstance(value, int | float)}
    try:
        name = f"{result['job']} {pinned.name} {pinned.version}"
        store = Registry(registry.tracking_uri)
        store.log_job(registry.experiment, name, without_passwords(options), tags, metrics, manifest, pinned.run_id, texts or {})
    except (ServiceError, ConfigError) as refused:  # which costs nothing of what the job did
        logger.warning("the job is done, but its MLflow run is not recorded: %s", refused)
