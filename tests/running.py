"""Running jobs as a user would: real processes, and how they ended."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Outcome:
    """How a job ended: exit code, the JSON of its last line (None without one), and both streams."""

    code: int
    result: dict[str, Any] | None
    stdout: str
    stderr: str

    @property
    def json(self) -> dict[str, Any]:
        assert self.code == 0, self.stderr
        assert self.result is not None, self.stdout
        return self.result


def job_environment(**extra: str) -> dict[str, str]:
    """Returns this environment without what would send a job to another cluster or store."""
    kept = {name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI")}
    return kept | {"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"} | extra


def start_job(folder: Path, name: str, *arguments: object, **environment: str) -> subprocess.Popen[str]:
    """Starts a job's entry file in `folder` as a user would, from a checkout without installation."""
    command = [sys.executable, str(ROOT / "workflows" / name), *map(str, arguments)]
    return subprocess.Popen(
        command, cwd=folder, env=job_environment(**environment), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def run_job(folder: Path, name: str, *arguments: object, **environment: str) -> Outcome:
    """Runs a job's entry file in `folder` to its end."""
    process = start_job(folder, name, *arguments, **environment)
    stdout, stderr = process.communicate(timeout=500)
    lines = stdout.splitlines()
    return Outcome(process.returncode, json.loads(lines[-1]) if process.returncode == 0 and lines else None, stdout, stderr)


@dataclass(frozen=True)
class Trained:
    """A model trained on digits by the command line: its folder (with mlflow.db), its table, its options and its JSON line."""

    folder: Path
    table: Path
    options: tuple[str, ...]
    outcome: Outcome

    @property
    def json(self) -> dict[str, Any]:
        return self.outcome.json

    @property
    def tracking_uri(self) -> str:
        return f"sqlite:///{self.folder / 'mlflow.db'}"
