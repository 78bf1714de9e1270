"""A model as one folder: weights.safetensors, model.json, table.json and manifest.json with their hashes. No pickle."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from vae.model import VAE

FORMAT_VERSION = 1
WEIGHTS, MODEL, TABLE, MANIFEST = "weights.safetensors", "model.json", "table.json", "manifest.json"


class BundleError(ValueError):
    """A model bundle is not what it says: a missing, foreign or changed file, or a format this version cannot read."""


class Bundle(NamedTuple):
    """A loaded model: the VAE in evaluation mode and in float32, what the table was (data/ reads it), and the manifest's sha256."""

    model: VAE
    table: dict[str, Any]
    sha256: str


def save_bundle(folder: str | Path, model: VAE, table: Mapping[str, Any]) -> str:
    """Writes the bundle and returns its sha256 (that of manifest.json, which holds every other file's)."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.detach().to("cpu").contiguous() for name, tensor in model.state_dict().items()}
    files = {WEIGHTS: save_tensors(weights), MODEL: as_json(model.architecture), TABLE: as_json(table)}
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    files[MANIFEST] = as_json({"format_version": FORMAT_VERSION, "sha256": hashes})
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return hashlib.sha256(files[MANIFEST]).hexdigest()


def as_json(value: Any) -> bytes:
    return json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False).encode()


def read_bundle(folder: str | Path) -> dict[str, bytes]:
    """Returns the files of a bundle folder, unchecked, so that they can travel; `open_bundle` checks them."""
    folder = Path(folder)
    if not (folder / MANIFEST).is_file():
        raise BundleError(f"{folder}: no model bundle here ({MANIFEST} is missing); name a folder that a training run wrote")
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


def load_bundle(folder: str | Path, device: torch.device | str = "cpu") -> Bundle:
    """Returns the bundle in `folder` after checking every hash. Raises BundleError with the reason."""
    return open_bundle(read_bundle(folder), device, where=str(folder))


def open_bundle(files: Mapping[str, bytes], device: torch.device | str = "cpu", where: str = "bundle") -> Bundle:
    """Returns the bundle made of `files` (name -> content) after checking every hash. Raises BundleError with the reason."""
    check_files(files, where)
    try:
        model = VAE(**json.loads(files[MODEL]))
    except (KeyError, TypeError, ValueError) as error:
        raise BundleError(f"{where}: {MODEL} names no model of this code: {error!r}") from error
    try:
        model.load_state_dict(load_tensors(files[WEIGHTS]))
    except (SafetensorError, RuntimeError) as error:
        raise BundleError(f"{where}: {WEIGHTS} does not fit {MODEL}: {error}") from error
    sha256 = hashlib.sha256(files[MANIFEST]).hexdigest()
    return Bundle(model.to(device).eval(), json.loads(files[TABLE]), sha256)


def check_files(files: Mapping[str, bytes], where: str) -> None:
    try:
        manifest = json.loads(files[MANIFEST])
        version, hashes = manifest["format_version"], dict(manifest["sha256"])
    except (ValueError, KeyError, TypeError) as error:
        raise BundleError(f"{where}: {MANIFEST} cannot be read: {error!r}") from error
    if version != FORMAT_VERSION:
        raise BundleError(f"{where}: format version {version}, this code reads {FORMAT_VERSION}; use the release that wrote it")
    expected = {WEIGHTS, MODEL, TABLE}
    if set(hashes) != expected or set(files) != expected | {MANIFEST}:
        raise BundleError(f"{where}: found files {sorted(files)}, expected exactly {sorted(expected | {MANIFEST})}")
    if files[MANIFEST] != as_json({"format_version": version, "sha256": hashes}):
        raise BundleError(f"{where}: {MANIFEST} is not the file that was saved; fetch the bundle again")
    for name, sha256 in hashes.items():
        if hashlib.sha256(files[name]).hexdigest() != sha256:
            raise BundleError(f"{where}: {name} is not the file that was saved (its sha256 differs); fetch the bundle again")
