"""Model references, resolved once. A bundle's folder needs no registry, and costs neither MLflow's import nor its store."""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyarrow import fs

from data.listing import open_filesystem
from data.stores import refuse_silence
from vae.bundle_files import MANIFEST, BundleError, read_bundle


@dataclass(frozen=True)
class PinnedModel:
    """A model reference, resolved once: the bundle's files, and what to call it. name is None for a folder."""

    files: dict[str, bytes]
    name: str | None
    version: str
    run_id: str | None
    sha256: str


def pin(reference: str, tracking_uri: str | None) -> PinnedModel:
    """Returns the model that a reference names: models:/NAME@ALIAS, models:/NAME/VERSION, runs:/RUN_ID/PATH, or a bundle's folder
    or its URI.

    Raises BundleError where it names nothing or the files are not those that were registered, ServiceError where the registry does not
    answer.
    """
    if "://" in reference:
        return stored_model(reference)
    if not is_registered(reference):
        return folder_model(Path(reference))
    from workflows.registry import Registry  # a second of imports

    return Registry.of_models(tracking_uri).pin(reference)


def is_registered(reference: str) -> bool:
    """Whether a reference is the registry's to resolve."""
    return reference.startswith(("models:/", "runs:/"))


def folder_model(folder: Path) -> PinnedModel:
    logged = folder / "artifacts" / "bundle"
    try:
        files = read_bundle(logged if (logged / MANIFEST).is_file() else folder)
    except OSError as error:
        raise BundleError(f"{folder}: cannot be read: {error}") from error
    sha256 = hashlib.sha256(files[MANIFEST]).hexdigest()
    return PinnedModel(files, None, sha256[:12], None, sha256)


def stored_model(uri: str) -> PinnedModel:
    """Returns the model of a bundle's folder in an object store. Raises BundleError, StoreError."""
    filesystem, root = open_filesystem(uri)
    with tempfile.TemporaryDirectory() as folder:
        try:
            fs.copy_files(root, folder, source_filesystem=filesystem)
        except OSError as error:
            refuse_silence(error)
            raise BundleError(f"{uri}: no model bundle here: {error}; name a folder that a training run wrote") from error
        if not (Path(folder) / MANIFEST).is_file():
            raise BundleError(f"{uri}: no model bundle here ({MANIFEST} is missing); name a folder that a training run wrote")
        return folder_model(Path(folder))


def relative_store(given: str | None) -> re.Match[str] | None:
    """Returns the match of a SQLite file's relative path, where that is the store that a job uses."""
    return re.fullmatch(r"sqlite:///(?!/)(.+)", given or os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db")


def default_tracking_uri(given: str | None) -> str:
    """Returns the tracking URI that a job uses, a local SQLite file's path made absolute."""
    uri = given or os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"
    relative = relative_store(given)
    return f"sqlite:///{Path(relative[1]).absolute()}" if relative else uri


def without_password(text: str) -> str:
    """Returns a text without the users and passwords of the URIs in it."""
    return re.sub(r"//[^/@\s]*@", "//", text)


def without_passwords(options: Any) -> Any:
    """Returns options with every text in them as it may be recorded."""
    if isinstance(options, dict):
        return {key: without_passwords(value) for key, value in options.items()}
    if isinstance(options, list | tuple):
        return [without_passwords(value) for value in options]
    return without_password(options) if isinstance(options, str) else options
