"""Where a run comes from: versions of what computes, the lock's hash, the commit, and its options as flat names."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import shutil
import subprocess
from collections.abc import Collection, Mapping
from typing import Any

from workflows.cluster import ROOT

# What a registered model needs where it is loaded.
PINNED = ("torch", "numpy", "pyarrow", "pandas", "safetensors", "mlflow")


# Options that are a mapping from columns.
BY_COLUMN = ("data.columns", "model.likelihoods", "condition")


def pinned_requirements() -> list[str]:
    return [f"{name}=={importlib.metadata.version(name).split('+')[0]}" for name in PINNED]


def lineage() -> dict[str, str]:
    """Returns where the code came from: versions of what computes, the lock's hash, and the commit where there is one."""
    tags = {f"{name}_version": importlib.metadata.version(name) for name in ("ray", "torch", "pyarrow", "mlflow")}
    lock = ROOT / "requirements.lock"
    if lock.is_file():
        tags["lock_sha256"] = hashlib.sha256(lock.read_bytes()).hexdigest()
    if shutil.which("git") is None:  # as in the image of deploy/Dockerfile
        return tags
    commit = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    if commit.returncode == 0:
        tags["git_sha"] = commit.stdout.strip()
    return tags


def flatten(config: Mapping[str, Any], prefix: str = "", whole: Collection[str] = ()) -> dict[str, Any]:
    """Returns nested sections as section.key -> value; those named in `whole` as they are."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        is_section = isinstance(value, dict) and value and f"{prefix}{key}" not in whole
        flat |= flatten(value, f"{prefix}{key}.", whole) if is_section else {f"{prefix}{key}": value}
    return flat


def parameters(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns options as parameters of an MLflow run, in whose names the columns' would not all be allowed."""
    flat = flatten(config, whole=BY_COLUMN)
    return flat | {key: json.dumps(flat[key], sort_keys=True) for key in BY_COLUMN if flat.get(key)}
