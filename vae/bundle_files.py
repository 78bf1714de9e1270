"""A bundle as files: which there are, and that they are those that were saved. No PyTorch, which who passes them on need not load."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

FORMAT_VERSION = 1
WEIGHTS, MODEL, TABLE, MANIFEST = "weights.safetensors", "model.json", "table.json", "manifest.json"


class BundleError(ValueError):
    """A model bundle is not what it says: a missing, foreign or changed file, or a format this version cannot read."""


class Description(NamedTuple):
    """What a bundle says of itself: the model's architecture, what the table was (data/ reads it), and the manifest's sha256."""

    architecture: dict[str, Any]
    table: dict[str, Any]
    sha256: str


def as_json(value: Any) -> bytes:
    return json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False).encode()


def read_bundle(folder: str | Path) -> dict[str, bytes]:
    """Returns the files of a bundle folder, unchecked, so that they can travel; `open_bundle` checks them."""
    folder = Path(folder)
    if not (folder / MANIFEST).is_file():
        raise BundleError(f"{folder}: no model bundle here ({MANIFEST} is missing); name a folder that a training run wrote")
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


def describe(files: Mapping[str, bytes], where: str = "bundle") -> Description:
    """Returns what `files` (name -> content) say of the model, after checking every hash. Raises BundleError with the reason."""
    check_files(files, where)
    try:
        architecture, table = json.loads(files[MODEL]), json.loads(files[TABLE])
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{where}: {MODEL} or {TABLE} is no JSON: {error}") from error
    if not isinstance(architecture, dict) or not isinstance(architecture.get("latent_dim"), int):
        raise BundleError(f"{where}: {MODEL} names no model of this code: it has no latent_dim")
    return Description(architecture, table, hashlib.sha256(files[MANIFEST]).hexdigest())


def check_files(files: Mapping[str, bytes], where: str) -> None:
    try:
        manifest = json.loads(files[MANIFEST])
        version, hashes = manifest["format_version"], dict(manifest["sha256"])
        as_saved = as_json({"format_version": version, "sha256": hashes})
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise BundleError(f"{where}: {MANIFEST} cannot be read: {error!r}") from error
    if version != FORMAT_VERSION:
        raise BundleError(f"{where}: format version {version}, this code reads {FORMAT_VERSION}; use the release that wrote it")
    expected = {WEIGHTS, MODEL, TABLE}
    if set(hashes) != expected or set(files) != expected | {MANIFEST}:
        raise BundleError(f"{where}: found files {sorted(files)}, expected exactly {sorted(expected | {MANIFEST})}")
    if files[MANIFEST] != as_saved:
        raise BundleError(f"{where}: {MANIFEST} is not the file that was saved; fetch the bundle again")
    for name, sha256 in hashes.items():
        if hashlib.sha256(files[name]).hexdigest() != sha256:
            raise BundleError(f"{where}: {name} is not the file that was saved (its sha256 differs); fetch the bundle again")
