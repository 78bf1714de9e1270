"""Tables, checkpoints, bundles and outputs in an object store: what is computed is what it is on a disk, and no password is kept."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlflow
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import fs

from data.stores import StoreError
from tests.object_store import BUCKET, ObjectStore
from tests.running import Trained, run_job, wait_until
from tests.workflows.test_checkpoint import found_step, save
from workflows.checkpoint import WEIGHTS, Checkpoints
from workflows.errors import TryAgain
from workflows.lease import Claims
from workflows.pinned import pin
from workflows.record import metrics_log
from workflows.runs import Run

NOWHERE = "s3://user:password@bucket/x?scheme=http&endpoint_override=127.0.0.1:9&region=us-east-1"


def upload(store: ObjectStore, folder: Path, name: str) -> None:
    fs.copy_files(str(folder), f"{BUCKET}/{name}", destination_filesystem=store.filesystem())


def content(store: ObjectStore, path: str) -> bytes:
    with store.filesystem().open_input_file(f"{BUCKET}/{path}") as stream:
        return bytes(stream.read())


def rows(store: ObjectStore, path: str) -> pa.Table:
    return pq.read_table(f"{BUCKET}/{path}", filesystem=store.filesystem(), partitioning=None)


def test_one_job_at_a_time_holds_a_run(store: ObjectStore) -> None:
    claims = Claims(store.filesystem(), f"{BUCKET}/run/attempts")
    with claims.held("run x") as first, pytest.raises(TryAgain, match="run x is held by another job"), claims.held("run x"):
        pass
    with claims.held("run x") as second:
        assert (first, second) == (1, 2)
        assert not claims.is_current(first)


def test_the_newest_whole_checkpoint_is_found(store: ObjectStore, caplog: pytest.LogCaptureFixture) -> None:
    checkpoints = Checkpoints(store.filesystem(), f"{BUCKET}/checkpoints", 1, lambda: True)
    for step in (10, 20, 30):
        save(checkpoints, step, best_step=10)
    assert [folder.rsplit("/", 1)[-1] for folder in checkpoints.folders()] == [f"{step:012d}-000001-000000" for step in (10, 20, 30)]
    with store.filesystem().open_output_stream(f"{checkpoints.folders()[-1]}/{WEIGHTS}") as stream:
        stream.write(b"cut off")
    with caplog.at_level(logging.WARNING, "vae"):
        assert found_step(checkpoints) == 20
    assert "is damaged" in caplog.text


def test_a_checkpoint_that_cannot_be_fetched_is_not_taken_for_a_damaged_one(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = Checkpoints(store.filesystem(), f"{BUCKET}/kept", 1, lambda: True)
    save(checkpoints, 10)

    def silent(*_: Any) -> bytes:
        raise OSError("AWS Error NETWORK_CONNECTION during GetObject operation: curlCode: 7, Could not connect to server")

    monkeypatch.setattr("workflows.checkpoint.read", silent)
    with pytest.raises(StoreError, match="the same command goes on when it does"):
        checkpoints.newest()


def test_metrics_are_kept_before_mlflow_has_them_so_that_a_kill_loses_none_and_doubles_none(store: ObjectStore) -> None:
    run, kept = Run("one", f"{BUCKET}/runs/one", store.filesystem(), {}), list[bytes]()

    def log_points(run_id: str, lines: Sequence[Mapping[str, Any]]) -> None:
        kept.append(content(store, "runs/one/metrics.jsonl"))

    registry: Any = SimpleNamespace(log_points=log_points)
    with metrics_log(run, registry) as log:
        log.append("epoch", 0, {"elbo": 0.0})
        wait_until(lambda: kept)
        assert json.loads(kept[0])["metrics"] == {"elbo": 0.0}
    with metrics_log(run, registry) as log:
        assert not log.append("epoch", 0, {"elbo": 0.0})


def test_a_model_in_a_store_that_does_not_answer_is_not_taken_for_a_bad_one(tmp_path: Path) -> None:
    outcome = run_job(tmp_path, "encode.py", "--model", NOWHERE, "--data.path", "table", "--output.path", "out")
    assert outcome.code == 69
    assert "Could not connect" in outcome.stderr
    assert "Traceback" not in outcome.stderr
    assert "password" not in outcome.stderr


@pytest.mark.slow
@pytest.mark.usefixtures("shared_ray")
def test_a_table_becomes_a_model_and_embeddings_as_on_a_disk(trained: Trained, store: ObjectStore, tmp_path: Path) -> None:
    upload(store, trained.table, "digits")
    named = ("--data.key", "id", "--data.path")
    training = (*trained.options[4:], *named, store.uri("digits/part-*.parquet"), "--run.storage_path", store.uri("runs"))
    first = run_job(tmp_path, "train.py", *training)
    for name in ("train", "validation"):
        assert first.json[name]["elbo_nats_per_row"] == trained.json[name]["elbo_nats_per_row"]
    again = run_job(tmp_path, "train.py", *training)
    assert again.json == first.json
    assert "nothing to do" in again.stderr
    run = json.loads(content(store, "runs/first/run.json"))
    assert run["result"] == first.json

    bundle = store.uri("runs/first/bundle")
    (tmp_path / "bundle").mkdir()
    for name, written in pin(bundle, None).files.items():
        (tmp_path / "bundle" / name).write_bytes(written)
    local = run_job(tmp_path, "encode.py", "--model", tmp_path / "bundle", *named, trained.table, "--output.path", tmp_path / "out").json
    encoding = ("encode.py", "--model", bundle, *named, store.uri("digits"), "--output.path", store.uri("out"))
    encoded = run_job(tmp_path, *encoding)
    assert encoded.json["output_path"] == f"s3://{BUCKET}/out/model_version={local['model_version']}"
    assert encoded.json["manifest"] == f"{encoded.json['output_path']}/_manifests/000001.json"
    below = encoded.json["output_path"].removeprefix(f"s3://{BUCKET}/")
    assert rows(store, below) == pq.read_table(local["output_path"], partitioning=None)
    assert run_job(tmp_path, *encoding).json["num_units_done"] == 0

    generating = ("generate.py", "--num_rows", "700", "--output.rows_per_file", "500", "--model")
    generated = run_job(tmp_path, *generating, bundle, "--output.path", store.uri("rows"))
    run_job(tmp_path, *generating, tmp_path / "bundle", "--output.path", tmp_path / "rows").json  # noqa: B018
    assert generated.json["report"] == f"s3://{BUCKET}/rows/_report.json"
    assert rows(store, "rows") == pq.read_table(tmp_path / "rows", partitioning=None)

    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    kept = [
        *client.get_run(first.json["run_id"]).data.params.values(),
        json.dumps(run),
        (tmp_path / "mlflow.db").read_bytes().decode("latin1"),
    ]
    said = [outcome.stderr + outcome.stdout for outcome in (first, again, encoded, generated)]
    assert not [text for text in (*kept, *said) if "user:password" in text]
