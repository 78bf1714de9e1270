"""Running jobs as a user would: real processes, and how they ended."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import psutil

ROOT = Path(__file__).resolve().parents[1]
# While this is set, jobs without an address of their own find their Ray there.
SHARED_RAY = "TESTS_SHARED_RAY_ADDRESS"


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
    """Returns this environment without what would send a job to another cluster or store than the one that tests share."""
    kept = {name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI")}
    shared = {"RAY_ADDRESS": os.environ[SHARED_RAY]} if SHARED_RAY in os.environ else {}
    return kept | shared | {"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0", "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.1"} | extra


def job_command(name: str, *arguments: object) -> list[str]:
    """Returns the command line that a user types in a checkout without installation."""
    return [sys.executable, str(ROOT / "workflows" / name), *map(str, arguments)]


def start_job(folder: Path, name: str, *arguments: object, stream: IO[str]) -> subprocess.Popen[str]:
    """Starts a job in `folder`, both its streams going to a file."""
    return subprocess.Popen(job_command(name, *arguments), cwd=folder, env=job_environment(), stdout=stream, stderr=stream, text=True)


@contextmanager
def running_job(folder: Path, name: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """A job in the background that writes to FOLDER/log.txt, ended with the block."""
    with (folder / "log.txt").open("a") as stream:
        process = start_job(folder, name, *arguments, stream=stream)
        try:
            yield process
        finally:
            process.kill()
            process.wait()


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


# Generous: a test fails by it, none takes it.
LONG_S = 240


@dataclass
class Server:
    """An `mlflow server` over a SQLite file, at an address of its own that it keeps when it goes and comes back."""

    folder: Path
    port: int
    processes: list[psutil.Process] = field(default_factory=list)

    @property
    def store(self) -> str:
        return f"sqlite:///{self.folder / 'mlflow.db'}"

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        if self.processes:
            return
        command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", self.store, "--port", str(self.port), "--workers", "1"]
        environment = job_environment(MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false")  # else it starts seven more processes
        with (self.folder / "log.txt").open("a") as log:
            process = psutil.Popen(command, cwd=self.folder, env=environment, stdout=log, stderr=log)
        self.processes = [process]
        wait_until(lambda: process.poll() is not None or self.answers())
        assert process.poll() is None, (self.folder / "log.txt").read_text()
        self.processes += process.children(recursive=True)

    def answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=5):
                return True
        except OSError:
            return False

    @contextmanager
    def hanging(self) -> Iterator[None]:
        """Stops the processes while open: they take connections and do not answer."""
        for process in self.processes:
            process.suspend()
        try:
            yield
        finally:
            for process in self.processes:
                process.resume()

    def kill(self) -> None:
        for process in self.processes:
            process.kill()
        psutil.wait_procs(self.processes, timeout=LONG_S)
        self.processes = []


def wait_until(holds: Callable[[], object]) -> None:
    deadline = time.monotonic() + LONG_S
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
