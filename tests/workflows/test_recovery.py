"""Runs that are killed, stopped, starved or damaged, and go on as if nothing had happened. Real processes."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import mlflow
import psutil
import pyarrow.parquet as pq
import pytest
from ray.cluster_utils import Cluster

from tests.running import LONG_S, Outcome, Trained, run_job, running_job, wait_until

EPOCHS, BATCH, ROWS = 12, 2, 257
# Bytes in which so many workers cannot hold these rows, and can stream them.
STREAMED_BYTES = {1: 13_000, 2: 9_000, 3: 8_000}


@pytest.fixture(scope="module")
def table(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """257 digits in uneven row groups, so that nothing divides them."""
    path = tmp_path_factory.mktemp("prime") / "table.parquet"
    pq.write_table(pq.read_table(trained.table / "part-0.parquet").slice(0, ROWS), path, row_group_size=60)
    return path


def options(table: Path, address: str, num_workers: int = 2, *more: object) -> tuple[object, ...]:
    """A run in float64 of over a thousand steps, each of which leaves its ELBO, with a checkpoint at every breath."""
    return (
        *("--data.path", table, "--data.key", "id", "--cluster.address", address, "--cluster.num_workers", num_workers),
        *("--model.hidden_dims", "[16]", "--model.latent_dim", 2, "--training.precision", "float64", "--training.epochs", EPOCHS),
        *("--training.global_batch_size", BATCH, "--data.shuffle_window_rows", 8, "--run.log_interval_steps", 1),
        *("--run.checkpoint_interval_s", 0.01, "--run.name", "one"),
        *more,
    )


def curve(folder: Path) -> dict[int, float]:
    """Returns step -> its ELBO, as the run's folder has it."""
    lines = [json.loads(line) for line in (folder / "runs" / "one" / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if line["kind"] == "steps"]
    assert len(steps) == len({line["step"] for line in steps})
    return {line["step"]: line["metrics"]["train_steps/elbo_nats_per_row"] for line in steps}


@pytest.fixture(scope="module")
def undisturbed(table: Path, ray_address: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[int, float], Outcome]:
    folder = tmp_path_factory.mktemp("undisturbed")
    outcome = run_job(folder, "train.py", *options(table, ray_address, 1))
    assert outcome.json["num_steps"] == len(curve(folder)) > 1000
    return curve(folder), outcome


def assert_same_curve(folder: Path, outcome: Outcome, undisturbed: tuple[dict[int, float], Outcome]) -> None:
    expected, whole = undisturbed
    assert curve(folder) == pytest.approx(expected, rel=1e-9)
    for side in ("train", "validation"):
        rates = ("rows_per_s",)
        found = {name: value for name, value in outcome.json[side].items() if name not in rates}
        assert found == pytest.approx({name: value for name, value in whole.json[side].items() if name not in rates}, rel=1e-9)
    client = mlflow.MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    runs = client.search_runs([client.get_experiment_by_name("vae").experiment_id])
    assert [(run.info.run_id, run.info.status) for run in runs] == [(outcome.json["run_id"], "FINISHED")]
    assert [version.run_id for version in client.search_model_versions("name = 'vae'")] == [outcome.json["run_id"]]
    epochs = client.get_metric_history(outcome.json["run_id"], "validation/elbo_nats_per_row")
    assert sorted(point.step for point in epochs) == list(range(outcome.json["num_epochs"]))
    logged = client.get_metric_history(outcome.json["run_id"], "train_steps/elbo_nats_per_row")
    assert {point.step: point.value for point in logged} == curve(folder)
    assert len(logged) == len(expected)


def wait_for_steps(folder: Path, number: int, process: subprocess.Popen[str]) -> None:
    path, deadline = folder / "runs" / "one" / "metrics.jsonl", time.monotonic() + 200
    while not path.exists() or path.read_text().count('"steps"') < number:
        assert process.poll() is None, (folder / "log.txt").read_text()
        assert time.monotonic() < deadline, (folder / "log.txt").read_text()
        time.sleep(0.02)


def workers() -> list[psutil.Process]:
    """Returns the training workers on this machine, by rank of their start."""
    return sorted(actors("RayTrainWorker"), key=lambda process: process.create_time())


def actors(*names: str) -> list[psutil.Process]:
    """Returns the processes on this machine of Ray actors with these names."""
    wanted = tuple(f"ray::{name}" for name in names)
    return [process for process in psutil.process_iter(["cmdline"]) if (process.info["cmdline"] or [""])[0].startswith(wanted)]


Undisturbed = tuple[dict[int, float], Outcome]


@pytest.mark.slow
def test_a_killed_driver_goes_on_with_other_workers_even_from_damaged_files(
    table: Path, ray_address: str, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    with running_job(tmp_path, "train.py", *options(table, ray_address, 2)) as process:
        wait_for_steps(tmp_path, 350, process)
        second = run_job(tmp_path, "train.py", *options(table, ray_address, 2))
        assert (second.code, "run one is held by another job" in second.stderr) == (75, True)
        orphans = workers()
        os.kill(process.pid, signal.SIGKILL)
    psutil.wait_procs(orphans, timeout=60)  # they go on for seconds, and may write another checkpoint
    wait_until(
        lambda: not actors("TrainController", "PlacementGroupCleaner", "SynchronizationActor", "Mailbox")
    )  # the cluster is others' too
    run = tmp_path / "runs" / "one"
    newest = max(path.parent for path in (run / "checkpoints").glob("*/manifest.json"))
    (newest / "weights.safetensors").write_bytes((newest / "weights.safetensors").read_bytes()[:100])
    for snapshot in (run / "ray").rglob("*.json"):
        snapshot.write_bytes(snapshot.read_bytes()[:10])
    outcome = run_job(tmp_path, "train.py", *options(table, ray_address, 3))
    assert_same_curve(tmp_path, outcome, undisturbed)
    assert f"{newest} is damaged (weights.safetensors is not what was written); going back" in outcome.stderr


@pytest.mark.slow
def test_a_killed_worker_costs_nothing_but_time(table: Path, ray_address: str, undisturbed: Undisturbed, tmp_path: Path) -> None:
    with running_job(tmp_path, "train.py", *options(table, ray_address, 2)) as process:
        wait_for_steps(tmp_path, 300, process)
        workers()[-1].kill()
        assert process.wait(timeout=200) == 0, (tmp_path / "log.txt").read_text()
    assert "workers were lost; 2 go on after step" in (tmp_path / "log.txt").read_text()
    assert_same_curve(tmp_path, run_job(tmp_path, "train.py", *options(table, ray_address, 2)), undisturbed)


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_run_that_is_asked_to_stop_saves_at_once_and_says_try_again(number: int, table: Path, ray_address: str, tmp_path: Path) -> None:
    rare = ("--run.checkpoint_interval_s", 1000)
    with running_job(tmp_path, "train.py", *options(table, ray_address, 2, *rare)) as process:
        wait_for_steps(tmp_path, 150, process)
        process.send_signal(number)
        assert process.wait(timeout=60) == 75
    assert "goes on from what was saved" in (tmp_path / "log.txt").read_text()
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name("vae").experiment_id])
    assert run.info.status == "KILLED"
    steps_before = len(curve(tmp_path))
    saved = max(int(path.name.split("-")[0]) for path in (tmp_path / "runs" / "one" / "checkpoints").iterdir())
    assert saved >= steps_before  # with a checkpoint every 1000 seconds, only the stop can have saved the last step that was told


@pytest.mark.slow
def test_an_epoch_that_the_driver_did_not_hear_of_comes_before_the_next(table: Path, ray_address: str, tmp_path: Path) -> None:
    metrics = tmp_path / "runs" / "one" / "metrics.jsonl"

    def epochs() -> list[str]:
        return [line for line in metrics.read_text().splitlines(keepends=True) if '"epoch"' in line]

    with running_job(tmp_path, "train.py", *options(table, ray_address, 2)) as process:
        wait_for_steps(tmp_path, 350, process)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 75
    *_, last = epochs()
    metrics.write_text(metrics.read_text().replace(last, ""))
    again = run_job(tmp_path, "train.py", *options(table, ray_address, 2))
    assert again.code == 0, again.stderr
    assert [json.loads(line)["step"] for line in epochs()] == list(range(EPOCHS))
    assert "epoch 1/12 " not in again.stderr


@pytest.mark.slow
def test_a_stop_of_all_processes_together_is_a_stop(table: Path, ray_address: str, undisturbed: Undisturbed, tmp_path: Path) -> None:
    """As service managers and schedulers do: the job's own Ray gets the signal too, and there is nobody left to save."""
    given = options(table, ray_address, 2)
    alone = (*given[:4], *given[6:])
    assert ray_address not in alone
    with running_job(tmp_path, "train.py", *alone) as process:
        wait_for_steps(tmp_path, 300, process)
        for member in [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]:
            with suppress(psutil.NoSuchProcess):
                member.terminate()
        assert process.wait(timeout=120) == 75, (tmp_path / "log.txt").read_text()
    assert "Traceback" not in (tmp_path / "log.txt").read_text()
    assert_same_curve(tmp_path, run_job(tmp_path, "train.py", *given), undisturbed)


@pytest.mark.slow
def test_rows_that_do_not_fit_are_streamed_and_the_numbers_stay(
    table: Path, ray_address: str, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    little = options(table, ray_address, 2, "--run.shard_memory_bytes", STREAMED_BYTES[2])
    outcome = run_job(tmp_path, "train.py", *little)
    assert "more than the 9000 that it may hold: every epoch reads them again" in outcome.stderr
    assert_same_curve(tmp_path, outcome, undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_kills_at_any_moment_leave_the_same_run(seed: int, table: Path, ray_address: str, undisturbed: Undisturbed, tmp_path: Path) -> None:
    for kill in range(3):
        num_workers = 1 + (seed + kill) % 3
        streamed = ("--run.shard_memory_bytes", STREAMED_BYTES[num_workers]) if (seed + kill) % 2 else ()
        with running_job(tmp_path, "train.py", *options(table, ray_address, num_workers, *streamed)) as process:
            wait_for_steps(tmp_path, 1, process)
            time.sleep(0.37 * (1 + 5 * seed + 7 * kill) % 4)
            assert process.poll() in (None, 0), (tmp_path / "log.txt").read_text()
            process.kill()
    assert_same_curve(tmp_path, run_job(tmp_path, "train.py", *options(table, ray_address, 2)), undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [2, 3, 4])
def test_every_step_is_the_same_on_any_number_of_workers(
    num_workers: int, table: Path, ray_address: str, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    assert_same_curve(tmp_path, run_job(tmp_path, "train.py", *options(table, ray_address, num_workers)), undisturbed)


@pytest.mark.slow
def test_a_worker_that_stands_still_ends_the_run_by_its_rank(table: Path, ray_address: str, tmp_path: Path) -> None:
    limits = ("--cluster.collective_timeout_s", 10, "--cluster.max_failures", 0)
    with running_job(tmp_path, "train.py", *options(table, ray_address, 2, *limits)) as process:
        wait_for_steps(tmp_path, 100, process)
        silent = workers()[-1]
        silent.suspend()
        try:
            assert process.wait(timeout=40 + 20) == 1
        finally:
            with suppress(psutil.NoSuchProcess):  # Ray has ended it, as it should
                silent.kill()
    log = (tmp_path / "log.txt").read_text()
    (failed,) = re.findall(r"worker of rank (\d): ", log)
    (silent_rank,) = re.findall(r"worker of rank (\d) was last heard of \d+ s ago, after step \d+", log)
    assert {failed, silent_rank} == {"0", "1"}


@pytest.mark.slow
def test_nodes_that_come_and_leave_change_nothing_but_the_number_of_workers(table: Path, tmp_path: Path) -> None:
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    folders = [tmp_path / "alone", tmp_path / "elastic"]
    for folder in folders:
        folder.mkdir()
    longer = ("--training.epochs", 120, "--cluster.min_workers", 1)
    elastic = ("--cluster.resize_interval_s", 2, "--cluster.collective_timeout_s", 30)
    try:
        whole = run_job(folders[0], "train.py", *options(table, cluster.address, 2, *longer))
        assert whole.code == 0, whole.stderr
        with running_job(folders[1], "train.py", *options(table, cluster.address, 2, *longer, *elastic)) as process:

            def wait_for(text: str) -> None:
                wait_until(lambda: process.poll() is not None or text in (folders[1] / "log.txt").read_text())
                assert text in (folders[1] / "log.txt").read_text()

            wait_for_steps(folders[1], 100, process)
            node = cluster.add_node(num_cpus=1)
            wait_for("workers came; 2 go on after step")
            wait_for_steps(folders[1], len(curve(folders[1])) + 500, process)
            cluster.remove_node(node)
            wait_for("workers were lost; 1 go on after step")
            assert process.wait(timeout=LONG_S) == 0, (folders[1] / "log.txt").read_text()
        outcome = run_job(folders[1], "train.py", *options(table, cluster.address, 2, *longer, *elastic))
        assert_same_curve(folders[1], outcome, (curve(folders[0]), whole))
    finally:
        cluster.shutdown()
