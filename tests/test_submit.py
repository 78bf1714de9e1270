"""What the schedulers of deploy/ start, in action: submit.py on a real Ray head, create.py on what it needs of Kubernetes' API."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import mlflow
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
import yaml
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from deploy import submit
from deploy.kuberay import create
from deploy.submit import night_id
from tests.data.test_encoding import fit
from tests.running import ROOT, wait_until
from tests.workflows.test_ray_jobs import Head, head  # noqa: F401  (head is a fixture)
from vae import VAE, save_bundle
from workflows.architecture import architecture
from workflows.model_config import ModelConfig

NIGHT = "2026-11-22"
ENCODE_YAML = ROOT / "deploy" / "kuberay" / "encode.yaml"


# submit.py


@pytest.fixture(scope="module", autouse=True)
def python_on_the_path() -> Iterator[None]:
    """Makes `python`, as a cluster's nodes find it, the one that runs the tests; before the head starts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
        yield


@dataclass(frozen=True)
class Nights:
    """A table with one night in it, a model of it that nobody trained, and the head that embeds it."""

    head: Head
    folder: Path
    tracking_uri: str

    @property
    def client(self) -> JobSubmissionClient:
        return self.head.client()

    def command(self, model: str, *options: object, partition: str = NIGHT) -> list[str]:
        asked = ("--address", self.head.address, "--job", "encode", "--model", model, "--partition", partition, "--attempts", 1)
        job = ("--output.path", self.folder / "embeddings", "--registry.tracking_uri", self.tracking_uri, *options)
        return [sys.executable, str(ROOT / "deploy" / "submit.py"), *map(str, (*asked, "--", *job))]

    def submit(self, model: str, *options: object, partition: str = NIGHT) -> subprocess.CompletedProcess[str]:
        command = self.command(model, *options, partition=partition)
        environment = self.head.environment | {"RAY_ADDRESS": "http://127.0.0.1:9"}  # the address that is given goes before it
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)

    @property
    def table(self) -> tuple[object, ...]:
        return ("--data.path", self.folder / "table", "--data.partition", "{partition}")

    def submissions(self, model: str, partition: str = NIGHT) -> dict[str, JobDetails]:
        first = night_id("encode", model, partition)
        return {str(job.submission_id): job for job in self.client.list_jobs() if str(job.submission_id).startswith(first)}


@pytest.fixture(scope="module")
def nights(head: Head, tmp_path_factory: pytest.TempPathFactory) -> Nights:  # noqa: F811
    folder = tmp_path_factory.mktemp("nights")
    table = pa.table({"id": pa.array(range(100)), "x": [i / 7 for i in range(100)]})
    (folder / "table" / NIGHT).mkdir(parents=True)
    pq.write_table(table, folder / "table" / NIGHT / "part-0.parquet")
    encoding = fit(table, key="id")
    model = VAE(**architecture(encoding, ModelConfig(latent_dim=2, hidden_dims=[4])))
    sha256 = save_bundle(folder / "model" / "artifacts" / "bundle", model, encoding.to_json())
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    client = mlflow.MlflowClient(uri)
    client.create_registered_model("tiny")
    client.create_model_version("tiny", (folder / "model").as_uri(), tags={"bundle_sha256": sha256})
    client.set_registered_model_alias("tiny", "champion", "1")
    return Nights(head, folder, uri)


def json_of(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    (line,) = done.stdout.splitlines()
    result: dict[str, Any] = json.loads(line)
    return result


def test_a_night_is_embedded_once_however_often_it_is_submitted(nights: Nights, tmp_path: Path) -> None:
    model = "models:/tiny@champion"
    with (tmp_path / "out").open("w") as out, (tmp_path / "log").open("w") as log:
        first = subprocess.Popen(nights.command(model, *nights.table), env=nights.head.environment, stdout=out, stderr=log)
        try:
            wait_until(lambda: nights.submissions(model) or first.poll() is not None)
            second = nights.submit(model, *nights.table)  # while the first runs
            assert first.wait(timeout=300) == 0, (tmp_path / "log").read_text()
        finally:
            first.kill()
            first.wait()
    result = json.loads((tmp_path / "out").read_text())
    assert (result["job"], result["model_version"], result["num_rows"]) == ("encode", "1", 100)
    assert second.returncode == 0
    assert json_of(second) == result
    third = nights.submit(model, *nights.table)
    assert third.returncode == 0
    assert json_of(third) == result
    assert "done already; nothing to do" in third.stderr
    ((name, details),) = nights.submissions(model).items()
    assert name.startswith(f"encode-tiny-champion-{NIGHT}-")
    assert details.status == JobStatus.SUCCEEDED
    assert details.metadata is not None
    assert {"job": "encode", "model": model, "partition": NIGHT}.items() <= details.metadata.items()
    assert sorted(ds.dataset(result["output_path"]).to_table()["id"].to_pylist()) == list(range(100))


def test_a_night_that_failed_ends_with_the_jobs_code(nights: Nights) -> None:
    failed = nights.submit("models:/tiny/1", "--data.path", nights.folder / "nothing" / "{partition}")
    assert failed.returncode == 65, failed.stderr
    assert failed.stdout == ""
    assert f"nothing/{NIGHT}" in failed.stderr
    (job,) = nights.submissions("models:/tiny/1").values()
    assert (job.status, job.driver_exit_code) == (JobStatus.FAILED, 65)


@pytest.mark.slow
def test_a_night_that_somebody_stopped_is_submitted_again_by_hand_and_not_by_itself(nights: Nights, tmp_path: Path) -> None:
    model, options = "models:/tiny/1", ("--data.path", nights.folder / "table" / NIGHT)
    first = night_id("encode", model, "2026-11-20")
    command = [word if word != "1" else "2" for word in nights.command(model, *options, partition="2026-11-20")]
    assert "2" in command  # attempts
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, env=nights.head.environment, stdout=log, stderr=log)
        try:
            wait_until(lambda: any(job.status == JobStatus.RUNNING for job in nights.submissions(model, "2026-11-20").values()))
            nights.client.stop_job(first)
            assert process.wait(timeout=60) == 75, (tmp_path / "log").read_text()
        finally:
            process.kill()
            process.wait()
    assert "stopped by somebody" in (tmp_path / "log").read_text()
    again = nights.submit(model, *options, partition="2026-11-20")
    assert again.returncode == 0, again.stderr
    assert set(nights.submissions(model, "2026-11-20")) == {first, f"{first}-2"}


@pytest.mark.slow
def test_of_submitters_at_the_same_moment_one_submits_and_all_follow(nights: Nights) -> None:
    model, night = "models:/tiny/1", "2026-11-18"
    command = nights.command(model, "--data.path", nights.folder / "table" / NIGHT, partition=night)[2:]
    together = threading.Barrier(4)

    def find_or_submit(client: JobSubmissionClient) -> str:
        together.wait()
        return submit.find_or_submit(client, submit.parse(command))

    with ThreadPoolExecutor(4) as pool:
        found = set(pool.map(find_or_submit, [nights.client for _ in range(4)]))
    assert found == set(nights.submissions(model, night)) == {night_id("encode", model, night)}
    wait_until(lambda: nights.client.get_job_status(*found).is_terminal())
    assert nights.client.get_job_status(*found) == JobStatus.SUCCEEDED


@pytest.mark.slow
def test_the_rayjobs_entrypoint_runs_in_the_image_without_a_working_directory(nights: Nights) -> None:
    """The very command of encode.yaml, where only the places differ; the environment is that of deploy/Dockerfile."""
    rayjob = yaml.safe_load(create.with_partition(ENCODE_YAML.read_text(), NIGHT))
    places = {
        "/app/": f"{ROOT}/",
        "models:/customers@champion": "models:/tiny@champion",
        "s3://my-bucket/customers": str(nights.folder / "table"),
        "customer_id": "id",
        "s3://my-bucket/embeddings": str(nights.folder / "kuberay"),
        "http://mlflow.example.internal:5000": nights.tracking_uri,
    }
    entrypoint = rayjob["spec"]["entrypoint"]
    for there, here in places.items():
        assert there in entrypoint
        entrypoint = entrypoint.replace(there, here)
    name = rayjob["spec"]["jobId"]
    client = nights.client
    client.submit_job(entrypoint=entrypoint, submission_id=name, runtime_env={"env_vars": {"PYTHONPATH": str(ROOT)}})
    wait_until(lambda: client.get_job_status(name).is_terminal())
    assert client.get_job_status(name) == JobStatus.SUCCEEDED, client.get_job_logs(name)
    assert ds.dataset(nights.folder / "kuberay" / "model_version=1").count_rows() == 100


def test_a_cluster_that_does_not_answer_is_exit_code_69() -> None:
    asked = ["--address", "http://127.0.0.1:9", "--job", "encode", "--model", "models:/tiny/1", "--partition", NIGHT]
    command = [sys.executable, str(ROOT / "deploy" / "submit.py"), *asked, "--attempts", "2", "--pause_s", "0.1", "--"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 69
    assert done.stderr.count("the Ray cluster at http://127.0.0.1:9") == 2


def test_other_jobs_models_and_partitions_have_other_ids() -> None:
    asked = [("encode", "models:/a@b", NIGHT), ("encode", "models:/a/b", NIGHT), ("encode", "models:/a@b", "2026-11-21")]
    ids = [night_id(*each) for each in (*asked, ("generate", "models:/a@b", NIGHT))]
    assert len(set(ids)) == 4
    assert all(shlex.quote(each) == each for each in ids)
    assert night_id(*asked[0]) == ids[0]


# create.py


@dataclass
class Kubernetes:
    """The few answers of Kubernetes' API that create.py needs, over HTTP: creating a RayJob once, looking at it, and at the Job."""

    account: Path
    annotations: dict[str, str] = field(default_factory=dict)
    endings: list[dict[str, str]] = field(default_factory=list)
    made: list[dict[str, Any]] = field(default_factory=list)
    allowed: bool = True

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, dict[str, Any]]:
        here = "/namespaces/vae/"
        if not self.allowed:
            return 403, {"message": "forbidden"}
        if (method, path) == ("GET", f"/apis/batch/v1{here}jobs/vae-encode-1"):
            return 200, {"metadata": {"annotations": self.annotations}}
        names = [each["metadata"]["name"] for each in self.made]
        if (method, path) == ("POST", f"/apis/ray.io/v1{here}rayjobs"):
            asked = yaml.safe_load(body)
            if asked["metadata"]["name"] in names:
                return 409, {"reason": "AlreadyExists"}
            self.made.append(asked)
            return 201, asked
        if method == "GET" and path in [f"/apis/ray.io/v1{here}rayjobs/{name}" for name in names]:
            return 200, {"status": self.endings.pop(0)} if self.endings else {}
        return 404, {}

    def serve(self) -> ThreadingHTTPServer:
        kubernetes = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                allowed = self.headers["Authorization"] == "Bearer of the pod"
                code, answer = kubernetes.answer(self.command, self.path, body) if allowed else (401, {})
                self.send_response(code)
                self.end_headers()
                self.wfile.write(json.dumps(answer).encode())

            do_POST = do_GET  # noqa: N815

            def log_message(self, format: str, *args: object) -> None:
                pass

        return ThreadingHTTPServer(("127.0.0.1", 0), Handler)


@pytest.fixture
def kubernetes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kubernetes:
    (tmp_path / "token").write_text("of the pod\n")
    (tmp_path / "namespace").write_text("vae")
    monkeypatch.setenv("JOB_NAME", "vae-encode-1")
    return Kubernetes(tmp_path, annotations={create.SCHEDULED: "2026-11-23T03:17:00Z"})


def run_create(kubernetes: Kubernetes, *arguments: str) -> int:
    server = kubernetes.serve()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        api = create.Api(f"http://127.0.0.1:{server.server_port}", kubernetes.account)
        return create.main([str(ENCODE_YAML), "--poll_s", "0.01", *arguments], api)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


RUNNING = {"jobDeploymentStatus": "Running", "jobStatus": "RUNNING"}
SUCCEEDED = {"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"}
FAILED = {"jobDeploymentStatus": "Failed", "jobStatus": "FAILED", "message": "exit code 65"}
NAME = f"encode-customers-champion-{NIGHT}"


def test_the_rayjob_of_the_scheduled_night_is_made_once_and_waited_for(kubernetes: Kubernetes, capsys: pytest.CaptureFixture[str]) -> None:
    kubernetes.endings = [{}, RUNNING, SUCCEEDED]
    assert run_create(kubernetes) == 0
    assert [each["metadata"]["name"] for each in kubernetes.made] == [NAME]
    assert "{partition}" not in json.dumps(kubernetes.made)
    kubernetes.endings = [SUCCEEDED]
    assert run_create(kubernetes) == 0
    assert len(kubernetes.made) == 1
    said = capsys.readouterr().err
    assert f"{NAME}: created" in said
    assert f"{NAME}: exists already" in said


def test_the_night_is_the_day_before_in_the_schedules_own_time_zone(kubernetes: Kubernetes) -> None:
    kubernetes.annotations[create.SCHEDULED] = "2026-12-01T00:30:00+09:00"
    kubernetes.endings = [SUCCEEDED]
    assert run_create(kubernetes) == 0
    assert kubernetes.made[0]["metadata"]["name"].endswith("2026-11-30")


def test_a_rayjob_that_failed_fails_the_pod_and_says_how_to_run_it_again(
    kubernetes: Kubernetes, capsys: pytest.CaptureFixture[str]
) -> None:
    kubernetes.endings = [FAILED]
    assert run_create(kubernetes) == 1
    said = capsys.readouterr().err
    assert "exit code 65" in said
    assert f"kubectl delete rayjob {NAME}" in said


def test_without_a_scheduled_time_the_partition_must_be_given(
    kubernetes: Kubernetes, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kubernetes.annotations.clear()
    assert run_create(kubernetes) == 2
    monkeypatch.delenv("JOB_NAME")
    assert run_create(kubernetes) == 2
    assert capsys.readouterr().err.count("give --partition") == 2
    kubernetes.endings = [SUCCEEDED]
    assert run_create(kubernetes, "--partition", "2026-11-19") == 0


def test_an_api_that_refuses_or_does_not_answer_is_exit_code_69(kubernetes: Kubernetes, capsys: pytest.CaptureFixture[str]) -> None:
    kubernetes.allowed = False
    assert run_create(kubernetes) == 69
    assert "forbidden" in capsys.readouterr().err
    assert create.main([str(ENCODE_YAML)], create.Api("http://127.0.0.1:9", kubernetes.account)) == 69


def test_by_hand_the_rayjob_is_printed_for_kubectl() -> None:
    command = [sys.executable, str(ROOT / "deploy" / "kuberay" / "create.py"), str(ENCODE_YAML), "--partition", "2026-11-19", "--print"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert yaml.safe_load(done.stdout)["metadata"]["name"] == "encode-customers-champion-2026-11-19"
