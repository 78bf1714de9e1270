"""Training through Ray Train: the same numbers on any number of workers, across kills, and with hardly any rows."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.table import open_table
from tests.running import Outcome, Trained, run_job
from vae.bundle import open_bundle
from workflows.registry import Registry

SMALL = ("--model.hidden_dims", "[32]", "--model.latent_dim", "4", "--training.learning_rate", "3e-3")


GOOD = pa.table({"id": [1, 2, 3, 4], "x": [0.5, 1.5, 2.5, 9.5]})


def train(folder: Path, address: str, *options: object) -> Outcome:
    return run_job(folder, "train.py", *SMALL, "--cluster.address", address, *options)


def history(folder: Path, run_id: str, name: str) -> list[float]:
    """Returns a metric's values in the order of their epochs, each of which must be there once."""
    points = mlflow.MlflowClient(f"sqlite:///{folder / 'mlflow.db'}").get_metric_history(run_id, name)
    assert sorted(point.step for point in points) == list(range(len(points)))
    return [point.value for point in sorted(points, key=lambda point: point.step)]


def versions(folder: Path) -> list[str]:
    """Returns the versions of the model that were registered."""
    found = mlflow.MlflowClient(f"sqlite:///{folder / 'mlflow.db'}").search_model_versions("name = 'vae'")
    return [str(version.version) for version in found]


@pytest.fixture(scope="module")
def prime_table(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """257 digits in two files of uneven row groups: no number of workers, shards or rows per step divides them."""
    folder = tmp_path_factory.mktemp("prime")
    table = pq.read_table(trained.table / "part-0.parquet")
    pq.write_table(table.slice(0, 100), folder / "a.parquet", row_group_size=7)
    pq.write_table(table.slice(100, 157), folder / "b.parquet", row_group_size=64)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    "choices",
    [
        (),
        ("--data.condition", '["label", "ink", "stroke"]', "--model.prior", "conditional"),
        ("--objective.free_bits", 0.7, "--model.network", "residual"),
        ("--objective.kind", "iwae", "--objective.num_importance_samples", 4, "--model.prior", "vamp", "--model.posterior", "full"),
        ("--model.network", "conv", "--model.prior", "mixture", "--objective.kl_warmup_steps", 10, "--objective.kl_warmup_cycles", 2),
        ("--model.prior", "fitted", "--model.num_prior_components", 5, "--data.condition", '["label"]'),
    ],
)
def test_losses_do_not_depend_on_the_number_of_workers(
    choices: tuple[object, ...], prime_table: Path, ray_address: str, tmp_path: Path
) -> None:
    runs: list[dict[str, Any]] = []
    for workers in (1, 3):
        table = ("--data.path", prime_table, "--data.key", "id", *choices)
        options = (*table, "--training.epochs", 4, "--training.global_batch_size", 13)
        runs.append(train(tmp_path, ray_address, *options, "--cluster.num_workers", workers, "--run.name", f"w{workers}").json)
    assert all(run["train"]["num_rows"] + run["validation"]["num_rows"] == 257 for run in runs)
    for name in ("train/elbo_nats_per_row", "validation/elbo_nats_per_row", "validation/kl_nats_per_row"):
        one, three = (history(tmp_path, run["run_id"], name) for run in runs)
        assert len(one) == 4
        assert one[0] != one[-1]
        assert three == pytest.approx(one, rel=1e-5)


def test_many_images_have_the_prior_of_pseudo_rows_where_none_is_named(ray_address: str, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (12_000, 4), np.uint8)
    pq.write_table(pa.table({"pixels": pa.FixedSizeListArray.from_arrays(pa.array(pixels.ravel()), 4)}), tmp_path / "images.parquet")
    trained = train(tmp_path, ray_address, "--data.path", tmp_path / "images.parquet", "--training.epochs", 1).json
    assert trained["train"]["num_rows"] >= 10_000
    bundle = open_bundle(Registry(f"sqlite:///{tmp_path / 'mlflow.db'}").pin(trained["model_uri"]).files)
    assert bundle.model.architecture["prior"] == "vamp"


def test_many_rows_have_a_fitted_prior_where_none_is_named(ray_address: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    cluster = rng.integers(0, 3, 12_000)
    columns = {name: rng.normal(center[cluster], 0.3) for name, center in zip("ab", rng.normal(0, 4, (2, 3)), strict=True)}
    pq.write_table(pa.table(columns), tmp_path / "clusters.parquet")
    outcome = train(tmp_path, ray_address, "--data.path", tmp_path / "clusters.parquet", "--training.epochs", 4, "--model.latent_dim", 2)
    said = re.search(r"prior: validation ELBO (\S+) nats per row with N\(0, I\), (\S+) with a mixture of 100 Gaussians", outcome.stderr)
    assert said is not None, outcome.stderr
    assert float(said[2]) > float(said[1])
    assert outcome.json["validation"]["elbo_nats_per_row"] == pytest.approx(float(said[2]), abs=1e-3)
    bundle = open_bundle(Registry(f"sqlite:///{tmp_path / 'mlflow.db'}").pin(outcome.json["model_uri"]).files)
    assert bundle.model.architecture["prior"] == "mixture"


def people(num_rows: int) -> pa.Table:
    """Returns a table like UCI Adult: counts, heavy tails, categories, a boolean, nulls, and a key."""
    rng = np.random.default_rng(0)
    age, means = rng.integers(17, 91, num_rows), rng.normal(size=num_rows)
    income = np.where(rng.random(num_rows) < 0.9, 0.0, np.exp(8 + 0.02 * age + means))
    jobs = np.array([f"job {number}" for number in range(14)])[(3 * means + rng.normal(size=num_rows)).round().astype(int).clip(-7, 6) + 7]
    hours = (40 + 8 * means + 5 * rng.normal(size=num_rows)).round().clip(1, 99)
    return pa.table(
        {
            "id": np.arange(num_rows),
            "age": age.astype(np.int16),
            "income": pa.array(income.round(), pa.int32()),
            "weight": pa.array(rng.normal(70, 12, num_rows) + 3 * means, mask=rng.random(num_rows) < 0.05),
            "hours": pa.array(hours, pa.int16()),
            "job": pa.array(jobs, mask=rng.random(num_rows) < 0.06).dictionary_encode(),
            "owner": pa.array(means + rng.normal(size=num_rows) > 0),
        }
    )


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float64", "float32"])
def test_a_table_of_the_size_of_adult_has_one_curve_on_any_number_of_workers(precision: str, ray_address: str, tmp_path: Path) -> None:
    """Every step in float64 to 1e-9; in float32, where rounding grows with the steps, 100 to 1e-5, and the final score to 1e-4."""
    table = tmp_path / "people.parquet"
    pq.write_table(people(29_305), table, row_group_size=2_000)
    options = ("--data.path", table, "--data.key", "id", "--training.epochs", 3, "--run.log_interval_steps", 1)
    curves, results = [], []
    for workers in (1, 2, 3, 4):
        named = ("--cluster.num_workers", workers, "--run.name", f"w{workers}", "--training.precision", precision)
        results.append(train(tmp_path, ray_address, *options, *named).json)
        lines = [json.loads(line) for line in (tmp_path / "runs" / f"w{workers}" / "metrics.jsonl").read_text().splitlines()]
        curves.append([line["metrics"]["train_steps/elbo_nats_per_row"] for line in lines if line["kind"] == "steps"])
    assert len(curves[0]) == results[0]["num_steps"] > 300
    compared = (len(curves[0]), 1e-9, 1e-9) if precision == "float64" else (100, 1e-5, 1e-4)
    for curve, result in zip(curves[1:], results[1:], strict=True):
        assert curve[: compared[0]] == pytest.approx(curves[0][: compared[0]], rel=compared[1])
        elbo, expected = (r["validation"]["elbo_nats_per_row"] for r in (result, results[0]))
        assert elbo == pytest.approx(expected, rel=compared[2])


@pytest.mark.slow
def test_a_worker_without_rows_takes_part_with_weight_zero(trained: Trained, ray_address: str, tmp_path: Path) -> None:
    table = tmp_path / "three.parquet"
    pq.write_table(pq.read_table(trained.table / "part-0.parquet").slice(0, 3).drop_columns("id"), table)
    options = ("--data.path", table, "--data.validation_fraction", 0, "--training.epochs", 20)
    result = train(tmp_path, ray_address, *options, "--cluster.num_workers", 4).json
    assert result["train"]["num_rows"] == 3
    assert result["validation"] == {"num_rows": 0} | dict.fromkeys(list(result["validation"])[1:])
    elbo = history(tmp_path, result["run_id"], "train/elbo_nats_per_row")
    assert elbo[0] < elbo[-1] < 0
    assert elbo[0] < result["train"]["elbo_nats_per_row"] < 0


@pytest.mark.slow
def test_training_stops_early_and_keeps_the_best_epoch(prime_table: Path, ray_address: str, tmp_path: Path) -> None:
    options = ("--data.path", prime_table, "--data.key", "id", "--training.learning_rate", "1e-30", "--training.epochs", 50)
    stopped = train(tmp_path, ray_address, *options, "--training.early_stopping_patience", 2).json
    assert stopped["num_epochs"] == 3  # the weights never move: the first epoch stays the best, and two more are waited for


def test_a_bound_that_is_no_number_ends_the_run_at_once(prime_table: Path, ray_address: str, tmp_path: Path) -> None:
    wild = ("--training.learning_rate", "1e30", "--training.global_batch_size", 16)
    ended = train(tmp_path, ray_address, "--data.path", prime_table, "--data.key", "id", *wild)
    assert ended.code == 1
    assert "the loss or its gradient is not finite, 3 steps in a row" in ended.stderr
    assert "epoch 1, step 2" in ended.stderr
    assert "'ink': " in ended.stderr
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name("vae").experiment_id])
    assert run.info.status == "FAILED"


@pytest.mark.slow
def test_a_run_without_a_finite_step_is_not_registered(prime_table: Path, ray_address: str, tmp_path: Path) -> None:
    options = ("--data.path", prime_table, "--data.key", "id", "--objective.beta", "1e300", "--training.max_steps", 2)
    ended = train(tmp_path, ray_address, *options)
    assert ended.code == 1
    assert "none of the 2 steps had a finite loss and gradient: nothing was learned, nothing is registered" in ended.stderr
    assert versions(tmp_path) == []


@pytest.mark.slow
def test_a_run_whose_validation_rows_have_no_finite_elbo_says_so_and_is_not_registered(ray_address: str, tmp_path: Path) -> None:
    for name, largest in (("train", 1.0), ("validation", 1e37)):
        numbers = largest * np.random.default_rng(0).normal(size=20 * 256).astype(np.float32)
        pq.write_table(pa.table({"v": pa.FixedSizeListArray.from_arrays(pa.array(numbers), 256)}), tmp_path / f"{name}.parquet")
    tables = ("--data.path", tmp_path / "train.parquet", "--data.validation_path", tmp_path / "validation.parquet")
    ended = train(tmp_path, ray_address, *tables, "--training.epochs", 1, "--training.learning_rate", 1, "--run.name", "r")
    assert ended.code == 1
    assert "the ELBO of the validation rows was finite after no epoch" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert versions(tmp_path) == []


@pytest.mark.slow
def test_a_model_whose_rows_have_no_finite_elbo_is_not_registered(prime_table: Path, ray_address: str, tmp_path: Path) -> None:
    """One step, so large that the next one would not be finite."""
    wild = ("--training.learning_rate", "1e15", "--training.max_steps", 1, "--data.validation_fraction", 0)
    ended = train(tmp_path, ray_address, "--data.path", prime_table, "--data.key", "id", *wild)
    assert ended.code == 1
    assert "the ELBO of the train rows is not finite under the weights that training ended with: nothing is registered" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert versions(tmp_path) == []


@pytest.mark.slow
def test_a_run_that_ended_before_its_registration_is_registered_once(prime_table: Path, ray_address: str, tmp_path: Path) -> None:
    options = ("--data.path", prime_table, "--data.key", "id", "--training.epochs", 2, "--run.name", "r", "--run.log_interval_steps", 1)
    first = train(tmp_path, ray_address, *options).json
    record, metrics = (tmp_path / "runs" / "r" / name for name in ("run.json", "metrics.jsonl"))
    record.write_text(json.dumps(json.loads(record.read_text()) | {"result": None}))
    lines = metrics.read_text().splitlines(keepends=True)
    said_of_last = [line for line in lines if (json.loads(line)["kind"], json.loads(line)["step"]) == ("steps", first["num_steps"])]
    assert len(said_of_last) == 1
    metrics.write_text("".join(line for line in lines if line not in said_of_last))  # the driver ended before it heard of it
    again = train(tmp_path, ray_address, *options)
    assert len([line for line in metrics.read_text().splitlines() if f'"steps", "step": {first["num_steps"]},' in line]) == 1
    assert "epoch 1/2" not in again.stderr
    assert again.json | {"wall_s": 0} == first | {"wall_s": 0}
    assert versions(tmp_path) == ["1"]


@pytest.mark.slow
def test_a_validation_table_of_its_own_takes_the_place_of_the_split(trained: Trained, ray_address: str, tmp_path: Path) -> None:
    first, second = trained.table / "part-0.parquet", trained.table / "part-1.parquet"
    options = ("--data.path", first, "--data.validation_path", second, "--training.epochs", 1)
    result = train(tmp_path, ray_address, "--data.key", "id", *options).json
    assert (result["train"]["num_rows"], result["validation"]["num_rows"]) == (599, 599)
    files = Registry(f"sqlite:///{tmp_path / 'mlflow.db'}").pin(result["model_uri"]).files
    assert open_bundle(files).table["split"]["validation_fingerprint"] == open_table(str(second)).fingerprint


@pytest.mark.parametrize(
    ("column", "values", "said"),
    [
        ("x", [0.5, float("inf"), 1.0, 2.0], "column 'x' has 1 NaN or infinite values, the first in"),
        pytest.param("id", [11, None, 13, 14], "column 'id' is the key and has nulls (in rows 1", marks=pytest.mark.slow),
        pytest.param("id", [11, 12, 13, 4], "column 'id' is the key, and 1 rows repeat one that another row has", marks=pytest.mark.slow),
    ],
)
def test_bad_rows_are_named_by_file_and_column_with_code_65(
    column: str, values: list[Any], said: str, ray_address: str, tmp_path: Path
) -> None:
    pq.write_table(GOOD, tmp_path / "a.parquet")
    other = GOOD.set_column(0, "id", pa.array([11, 12, 13, 14]))
    bad = other.set_column(GOOD.schema.get_field_index(column), column, pa.array(values, GOOD.schema.field(column).type))
    pq.write_table(bad, tmp_path / "b.parquet")
    ended = train(tmp_path, ray_address, "--data.path", tmp_path / "*.parquet", "--data.key", "id", "--data.validation_fraction", 0)
    assert ended.code == 65, ended.stderr
    assert said in ended.stderr
    assert "b.parquet" in ended.stderr


@pytest.mark.slow
def test_a_kind_that_the_values_cannot_have_is_refused_with_code_2(ray_address: str, tmp_path: Path) -> None:
    pq.write_table(GOOD, tmp_path / "a.parquet")
    pq.write_table(GOOD.set_column(0, "id", pa.array([-1, 12, 13, 14])), tmp_path / "b.parquet")
    wish = json.dumps({"id": {"kind": "count"}})
    ended = train(tmp_path, ray_address, "--data.path", tmp_path / "*.parquet", "--data.columns", wish)
    assert (ended.code, "data.columns.id.kind is 'count', but its values go down to -1" in ended.stderr) == (2, True)


def test_what_the_cluster_cannot_give_fails_at_once_saying_what_is_there(prime_table: Path, ray_address: str, tmp_path: Path) -> None:
    ended = train(tmp_path, ray_address, "--data.path", prime_table, "--cluster.use_gpu", "true")
    assert ended.code == 69
    assert "the cluster cannot give 2 x (1 CPU, 1 GPU), each on one node: it has, or can start, 6 CPU, 0 GPU" in ended.stderr
