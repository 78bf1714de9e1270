"""MLflow goes away while a run trains and is not back when it ends: nothing of the run is lost."""

from __future__ import annotations

import json
from pathlib import Path

import mlflow
import pytest

from tests.running import Server, Trained, free_port, run_job, start_job
from tests.workflows.test_recovery import curve, wait_for_steps


@pytest.mark.slow
def test_a_server_that_dies_costs_no_step_no_metric_and_no_model(trained: Trained, ray_address: str, tmp_path: Path) -> None:
    server = Server(tmp_path, free_port())
    server.start()
    try:
        options = (
            *("--data.path", trained.table, "--data.key", "id", "--cluster.address", ray_address, "--training.epochs", 6),
            *("--model.hidden_dims", "[16]", "--model.latent_dim", 2, "--run.log_interval_steps", 1, "--run.name", "one"),
            *("--training.global_batch_size", 16, "--registry.tracking_uri", server.uri),
        )
        with (tmp_path / "train.txt").open("w") as stream:
            process = start_job(tmp_path, "train.py", *options, stream=stream)
            wait_for_steps(tmp_path, 100, process)
            server.kill()
            assert process.wait(timeout=300) == 69
        log = (tmp_path / "train.txt").read_text()
        assert "epoch 6/6" in log
        assert f"kept in {tmp_path / 'runs' / 'one' / 'bundle'}" in log
        assert json.loads((tmp_path / "runs" / "one" / "bundle" / "manifest.json").read_text())
        server.start()
        again = run_job(tmp_path, "train.py", *options)
        assert "epoch 1/6" not in again.stderr
        client = mlflow.MlflowClient(server.uri)
        assert [version.run_id for version in client.search_model_versions("name = 'vae'")] == [again.json["run_id"]]
        points = client.get_metric_history(again.json["run_id"], "train_steps/elbo_nats_per_row")
        assert {point.step: point.value for point in points} == curve(tmp_path)
        assert len(points) == again.json["num_steps"]
        assert client.get_run(again.json["run_id"]).info.status == "FINISHED"
    finally:
        server.kill()
