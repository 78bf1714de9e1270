"""A model as one folder: weights.safetensors, model.json, table.json and manifest.json with their hashes. No pickle."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from vae.bundle_files import FORMAT_VERSION, MANIFEST, MODEL, TABLE, WEIGHTS, BundleError, as_json, describe, read_bundle
from vae.model import VAE


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


def load_bundle(folder: str | Path, device: torch.device | str = "cpu") -> Bundle:
    """Returns the bundle in `folder` after checking every hash. Raises BundleError with the reason."""
    return open_bundle(read_bundle(folder), device, where=str(folder))


def open_bundle(files: Mapping[str, bytes], device: torch.device | str = "cpu", where: str = "bundle") -> Bundle:
    """Returns the bundle made of `files` (name -> content) after checking every hash. Raises BundleError with the reason."""
    described = describe(files, where)
    try:
        model = VAE(**described.architecture)
    except Exception as error:  # of any type: what a foreign architecture comes to, PyTorch says in many
        raise BundleError(f"{where}: {MODEL} names no model of this code: {error!r}") from error
    try:
        model.load_state_dict(load_tensors(files[WEIGHTS]))
    except (SafetensorError, KeyError, RuntimeError) as error:
        raise BundleError(f"{where}: {WEIGHTS} does not fit {MODEL}: {error}") from error
    return Bundle(model.to(device).eval(), described.table, described.sha256)
