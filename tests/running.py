"""Running jobs as a user would: real processes, and how they ended."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

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


def job_command(name: str, *arguments: object) -> list[str]:
    """Returns the command line that a user types in a checkout without installation."""
    return [sys.executable, str(ROOT / "workflows" / name), *map(str, arguments)]


def start_job(folder: Path, name: str, *arguments: object, stream: IO[str]) -> subprocess.Popen[str]:
    """Starts a job in `folder`, both its streams going to a file."""
    return subprocess.Popen(job_command(name, *arguments), cwd=folder, env=job_environment(), stdout=stream, stderr=stream, text=True)


def run_job(folder: Path, name: str, *arguments: object, **environment: str) -> Outcome:
    """Runs a job in `folder` to its end."""
    command = job_command(name, *arguments)
    done = subprocess.run(command, cwd=folder, env=job_environment(**environment), capture_output=True, text=True, timeout=500, check=False)
    lines = done.stdout.splitlines()
    return Outcome(done.returncode, json.loads(lines[-1]) if done.returncode == 0 and lines else None, done.stdout, done.stderr)


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
