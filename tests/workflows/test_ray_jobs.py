"""`ray job submit` against a running cluster where the package is not installed, as README.md says it."""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pyarrow.dataset as ds
import pytest
from ray.job_submission import JobSubmissionClient

from tests.running import ROOT, Trained, job_environment, run_job

RAY = str(Path(sys.executable).parent / "ray")


@dataclass(frozen=True)
class Head:
    """A Ray head with token authentication: its job address, that of its control plane, and the environment that its users need."""

    address: str
    control: str
    environment: dict[str, str]

    def client(self) -> JobSubmissionClient:
        token = Path(self.environment["RAY_AUTH_TOKEN_PATH"]).read_text()
        return JobSubmissionClient(self.address, headers={"Authorization": f"Bearer {token}"})

    def submit(self, submission_id: str, *entrypoint: object) -> subprocess.CompletedProcess[str]:
        command = [RAY, "job", "submit", "--address", self.address, "--submission-id", submission_id, "--working-dir", ".", "--"]
        command += [sys.executable, *map(str, entrypoint)]
        return subprocess.run(command, cwd=ROOT, env=self.environment, capture_output=True, text=True, timeout=400, check=False)


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    folder = tmp_path_factory.mktemp("head")
    token = folder / "token"
    token.write_text(secrets.token_hex(32))
    token.chmod(0o600)
    port, dashboard, agent, metrics, client = free_ports(5)
    environment = job_environment(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN_PATH=str(token), RAY_USAGE_STATS_ENABLED="0")
    environment.pop("PYTHONPATH", None)
    command = [RAY, "start", "--head", "--block", f"--port={port}", f"--dashboard-port={dashboard}", "--dashboard-host=127.0.0.1"]
    command += [f"--dashboard-agent-listen-port={agent}", f"--metrics-export-port={metrics}", "--num-cpus=4", "--disable-usage-stats"]
    command += [f"--ray-client-server-port={client}", "--temp-dir", f"/tmp/vae-{secrets.token_hex(4)}"]  # its sockets' paths must be short
    with (folder / "log.txt").open("w") as log:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True)
    address = f"http://127.0.0.1:{dashboard}"
    try:
        wait_for_jobs(address, environment, process, folder / "log.txt")
        yield Head(address, f"127.0.0.1:{port}", environment)
    finally:
        end_tree(process)


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [int(each.getsockname()[1]) for each in sockets]
    for each in sockets:
        each.close()
    return ports


def wait_for_jobs(address: str, environment: dict[str, str], process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 120
    while True:
        listed = subprocess.run([RAY, "job", "list", "--address", address], env=environment, capture_output=True, text=True, check=False)
        if listed.returncode == 0:
            return
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, listed.stderr
        time.sleep(1)


def end_tree(process: subprocess.Popen[bytes]) -> None:
    """Ends the head and every process that it started, by their ids."""
    if process.poll() is not None:
        return
    started = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGTERM)
    _, alive = psutil.wait_procs(started, timeout=20)
    for each in alive:
        with suppress(psutil.NoSuchProcess):  # it ended meanwhile
            each.kill()
    process.wait(timeout=20)


def json_line(output: str) -> dict[str, Any]:
    result: dict[str, Any] = json.loads(next(line for line in reversed(output.splitlines()) if line.startswith("{")))
    return result


def test_train_and_encode_run_as_submitted_jobs(head: Head, trained: Trained, tmp_path: Path) -> None:
    store = ("--registry.tracking_uri", f"sqlite:///{tmp_path / 'mlflow.db'}")
    options = ("--data.path", trained.table, "--data.key", "id", "--training.epochs", 2, "--model.hidden_dims", "[32]")
    submitted = head.submit("train-1", "workflows/train.py", *options, *store, "--run.storage_path", tmp_path / "runs")
    assert submitted.returncode == 0, submitted.stdout + submitted.stderr
    result = json_line(submitted.stdout)
    assert result["job"] == "train"
    assert result["train"]["num_rows"] + result["validation"]["num_rows"] == 1797

    client = head.client()
    assert client.get_job_status("train-1") == "SUCCEEDED"
    assert client.get_job_info("train-1").driver_exit_code == 0
    assert "epoch 2/2" in client.get_job_logs("train-1")

    encode = ("--model", result["model_uri"], "--data.path", trained.table, *store, "--output.path", tmp_path / "out")
    embedded = head.submit("encode-1", "workflows/encode.py", *encode)
    assert embedded.returncode == 0, embedded.stdout + embedded.stderr
    rows = ds.dataset(json_line(embedded.stdout)["output_path"]).to_table()
    assert sorted(rows["id"].to_pylist()) == list(range(1797))


def test_a_failing_job_is_reported_as_failed_with_its_exit_code(head: Head, tmp_path: Path) -> None:
    store = ("--registry.tracking_uri", f"sqlite:///{tmp_path / 'mlflow.db'}", "--run.storage_path", tmp_path / "runs")
    failed = head.submit("fails-1", "workflows/train.py", "--data.path", tmp_path / "nothing", *store)
    assert failed.returncode == 1
    client = head.client()
    assert client.get_job_status("fails-1") == "FAILED"
    assert client.get_job_info("fails-1").driver_exit_code == 65
    assert "nothing is there" in client.get_job_logs("fails-1")


def test_who_has_no_token_is_told_how_to_send_it(head: Head, trained: Trained, tmp_path: Path) -> None:
    options = ("--model", "models:/digits@candidate", "--data.path", trained.table, "--output.path", tmp_path / "out")
    refused = run_job(trained.folder, "encode.py", *options, "--cluster.address", head.control, RAY_AUTH_MODE="disabled")
    assert refused.code == 69
    assert refused.stderr.splitlines()[-1].endswith("; if the cluster asks for a token, set RAY_AUTH_MODE=token")


def test_a_submitted_job_refuses_defaults_that_would_be_lost_and_gives_a_complete_line(head: Head, trained: Trained) -> None:
    refused = head.submit("lost-1", "workflows/train.py", "--data.path", trained.table)
    assert refused.returncode == 1
    log = refused.stdout
    assert "registry.tracking_uri" in log
    assert "run.storage_path" in log
    line = next(line for line in log.splitlines() if line.strip().startswith("ray job submit"))
    assert f"--data.path {trained.table} --registry.tracking_uri http://" in line
    assert "--run.storage_path s3://" in line


def test_what_a_submission_carries_is_small_and_holds_no_data() -> None:
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True)
    carried = [ROOT / name for name in listed.stdout.splitlines() if (ROOT / name).is_file()]
    assert sum(path.stat().st_size for path in carried) < 10 * 2**20
    assert not [path for path in carried if path.suffix in (".parquet", ".db", ".env", ".safetensors")]
    assert os.path.exists(ROOT / ".rayignore")
