"""The three jobs through their command lines, with embedded Ray and a local MLflow store."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
import torch

from data.encoding import TableEncoding
from data.reading import RowReader
from data.split import VALIDATION, split_rows
from data.table import open_table
from tests.running import Outcome, Trained, run_job
from vae import Rows, load_bundle, save_bundle
from workflows.registry import Registry


@pytest.fixture(scope="session")
def encoded(trained: Trained) -> Outcome:
    return encode(trained, trained.folder / "embeddings")


@pytest.fixture(scope="module", autouse=True)
def _only_the_first_jobs_start_a_ray_of_their_own(encoded: Outcome, shared_ray: None) -> None:
    assert encoded.code == 0, encoded.stderr


def encode(trained: Trained, output: Path, *more: object) -> Outcome:
    model = trained.json["model_uri"]
    return run_job(trained.folder, "encode.py", "--model", model, "--data.path", trained.table, "--output.path", output, *more)


def generate(trained: Trained, output: Path, *more: object) -> Outcome:
    return run_job(trained.folder, "generate.py", "--model", "models:/digits@candidate", "--output.path", output, *more)


@pytest.fixture(scope="session")
def client(trained: Trained) -> mlflow.MlflowClient:
    assert trained.json["job"] == "train"
    mlflow.set_tracking_uri(trained.tracking_uri)
    return mlflow.MlflowClient(trained.tracking_uri)


def test_train_prints_one_json_line_with_every_row_counted_once(trained: Trained) -> None:
    result = trained.json
    assert len(trained.outcome.stdout.splitlines()) == 1
    assert result["train"]["num_rows"] + result["validation"]["num_rows"] == 1797
    assert 100 < result["validation"]["num_rows"] < 260
    assert (result["run_name"], result["model_name"], result["model_version"]) == ("first", "digits", "1")
    assert result["model_uri"] == "models:/digits/1"
    assert result["num_epochs"] == 8
    assert result["num_steps"] == 8 * -(-result["train"]["num_rows"] // 64)
    validation = result["validation"]
    parts = validation["expected_log_likelihood_nats_per_row"] - validation["kl_nats_per_row"]
    assert validation["elbo_nats_per_row"] == pytest.approx(parts, abs=1e-9)


def test_the_decision_for_every_column_is_printed_before_training(trained: Trained) -> None:
    before = trained.outcome.stderr.split("epoch 1/8")[0]
    for column, kind in {"id": "key", "image": "image 8 x 8", "label": "categorical", "ink": "numeric", "stroke": "categorical"}.items():
        assert any(line.split()[:1] == [column] and kind in line for line in before.splitlines()), (column, before)


def test_mlflow_has_the_run_with_everything_that_explains_it(trained: Trained, client: mlflow.MlflowClient) -> None:
    run = client.get_run(trained.json["run_id"])
    assert run.info.status == "FINISHED"
    assert run.data.params["training.learning_rate"] == "0.003"
    names = ("train/elbo_nats_per_row", "validation/elbo_nats_per_row", "validation/kl_nats_per_row", "validation/active_units")
    for name in (*names, "train/rows_per_s", "system/worker_0_memory_megabytes"):
        assert [point.step for point in client.get_metric_history(run.info.run_id, name)] == list(range(8)), name
    assert run.data.metrics["final/validation/elbo_nats_per_row"] == trained.json["validation"]["elbo_nats_per_row"]
    artifacts = {item.path for item in client.list_artifacts(run.info.run_id)}
    assert {"config.json", "table.json", "pictures"} <= artifacts
    pictures = {Path(item.path).name for item in client.list_artifacts(run.info.run_id, "pictures")}
    assert pictures >= {"learning_curves.png", "latent_means.png", "reconstructions_image_0.png", "generated_image_0.png"}
    (dataset,) = run.inputs.dataset_inputs
    assert dataset.dataset.digest == open_table(str(trained.table)).fingerprint


def test_the_model_version_carries_alias_signature_example_and_lineage(trained: Trained, client: mlflow.MlflowClient) -> None:
    version = client.get_model_version_by_alias("digits", "candidate")
    assert str(version.version) == trained.json["model_version"]
    assert version.run_id == trained.json["run_id"]
    pinned = Registry(trained.tracking_uri).pin("models:/digits@candidate")
    assert version.tags["bundle_sha256"] == pinned.sha256
    assert version.tags["dataset_fingerprint"] == open_table(str(trained.table)).fingerprint
    assert {"lock_sha256", "torch_version", "ray_version", "num_training_rows"} <= set(version.tags)
    info = mlflow.models.get_model_info("models:/digits@candidate")
    assert info.signature.inputs.input_names() == ["image", "label", "ink", "stroke"]
    assert info.signature.outputs.input_names() == [f"z_mean_{i}" for i in range(8)]
    assert len(mlflow.pyfunc.load_model("models:/digits@candidate").input_example) == 5


def test_the_reported_validation_score_is_that_of_every_validation_row(trained: Trained) -> None:
    bundle, rows = validation_rows(trained)
    assert rows.num_rows == trained.json["validation"]["num_rows"]
    with torch.no_grad():
        kl = bundle.model.posterior(rows).kl(bundle.model.latent_prior()).double().mean()
        noise = torch.randn(64, rows.num_rows, 8, generator=torch.Generator().manual_seed(1))
        elbo = bundle.model.evaluate_elbo(rows, noise).elbo.double()
    assert trained.json["validation"]["kl_nats_per_row"] == pytest.approx(float(kl), rel=1e-6)
    assert trained.json["validation"]["elbo_nats_per_row"] == pytest.approx(float(elbo.mean()), abs=0.5)


def validation_rows(trained: Trained) -> tuple[Any, Rows]:
    version = Registry(trained.tracking_uri).pin("models:/digits@candidate")
    folder = trained.folder / "bundle"
    folder.mkdir(exist_ok=True)
    for name, content in version.files.items():
        (folder / name).write_bytes(content)
    bundle = load_bundle(folder)
    table = open_table(str(trained.table))
    parts = []
    with RowReader(table.filesystem, table.schema) as reader:
        for part, rows in (found for group in table.row_groups() for found in reader.slices(group)):
            parts.append(rows.filter(pa.array(split_rows(rows, part, "id", (0.1, 0.0)) == VALIDATION)))
    return bundle, Rows.from_arrays(TableEncoding.from_json(bundle.table).encode(pa.concat_tables(parts), "digits"))


def test_encode_gives_every_row_once_with_its_key_as_it_came(trained: Trained, encoded: Outcome) -> None:
    result = encoded.json
    assert (result["num_rows"], result["num_units_done"], result["num_units_skipped"]) == (1797, 3, 0)
    rows = ds.dataset(result["output_path"]).to_table()
    assert rows.schema.field("id").type == pa.int64()
    assert sorted(rows["id"].to_pylist()) == list(range(1797))
    assert rows.schema.field("z_mean").type == rows.schema.field("z_scale").type == pa.list_(pa.float32(), 8)
    assert np.isfinite(np.stack(rows["z_mean"].to_numpy())).all()
    assert (np.stack(rows["z_scale"].to_numpy()) > 0).all()
    assert Path(result["output_path"]).name == "model_version=1"
    assert sorted(path.name for path in Path(result["output_path"]).glob("*.parquet")) == [f"part-{i}.parquet" for i in range(3)]


def test_every_output_file_says_which_model_wrote_it(trained: Trained, encoded: Outcome) -> None:
    for path in Path(encoded.json["output_path"]).glob("*.parquet"):
        metadata = pq.read_schema(path).metadata
        assert metadata[b"vae.model_name"] == b"digits"
        assert metadata[b"vae.model_version"] == b"1"
        assert metadata[b"vae.run_id"].decode() == trained.json["run_id"]
        assert len(metadata[b"vae.bundle_sha256"]) == 64


def test_pyfunc_predicts_the_latent_means_of_encode(trained: Trained, encoded: Outcome, client: mlflow.MlflowClient) -> None:
    model = mlflow.pyfunc.load_model("models:/digits@candidate")
    frame = pd.read_parquet(trained.table).sort_values("id")
    rows = ds.dataset(encoded.json["output_path"]).to_table().sort_by("id")
    predicted = model.predict(frame.drop(columns="id"))
    assert list(predicted.columns) == [f"z_mean_{i}" for i in range(8)]
    np.testing.assert_allclose(predicted.to_numpy(), np.stack(rows["z_mean"].to_numpy()), atol=1e-5)


def test_pyfunc_scores_rows_and_refuses_other_tasks(trained: Trained, client: mlflow.MlflowClient) -> None:
    model = mlflow.pyfunc.load_model("models:/digits@candidate")
    frame = pd.read_parquet(trained.table).drop(columns="id")
    scores = model.predict(frame, params={"task": "score"})["elbo_nats_per_row"]
    assert scores.mean() == pytest.approx(trained.json["train"]["elbo_nats_per_row"], abs=2)
    with pytest.raises(ValueError, match="encode, score or reconstruct"):
        model.predict(frame, params={"task": "dance"})


def test_pyfunc_fills_what_is_missing_and_leaves_the_rest(trained: Trained, client: mlflow.MlflowClient) -> None:
    model = mlflow.pyfunc.load_model("models:/digits@candidate")
    frame = pd.read_parquet(trained.table)
    frame.loc[::7, "ink"] = None
    filled = model.predict(frame, params={"task": "reconstruct"})
    assert set(filled.columns) == set(frame.columns) - {"id"}  # MLflow hands over what the model takes
    for name in ("ink", "stroke"):
        there = frame[name].notna()
        assert not there.all()
        assert filled[name].notna().all()
        assert (filled[name][there] == frame[name][there]).all()
    real = pd.read_parquet(trained.table)["ink"]
    holes = frame["ink"].isna() & real.notna()
    errors = (filled["ink"] - real)[holes]
    assert errors.std() < real.std()  # so few epochs do not learn that ink is the pixels' mean, but that it goes with them
    assert np.corrcoef(filled["ink"][holes], real[holes])[0, 1] > 0.3


def test_a_second_encode_does_nothing_and_a_new_file_only_adds(trained: Trained, encoded: Outcome, tmp_path: Path) -> None:
    table, output = tmp_path / "table", tmp_path / "out"
    table.mkdir()
    shutil.copy(trained.table / "part-0.parquet", table)
    arguments = ("encode.py", "--model", "models:/digits@candidate", "--data.path", table, "--output.path", output)
    first = run_job(trained.folder, *arguments).json
    before = {path: path.stat().st_mtime_ns for path in Path(first["output_path"]).rglob("*")}
    again = run_job(trained.folder, *arguments).json
    assert (again["num_rows"], again["num_units_done"], again["num_units_skipped"]) == (0, 0, 1)
    assert {path: path.stat().st_mtime_ns for path in Path(first["output_path"]).rglob("*")} == before
    shutil.copy(trained.table / "part-1.parquet", table)
    more = run_job(trained.folder, *arguments).json
    assert (more["num_rows"], more["num_units_done"], more["num_units_skipped"]) == (599, 1, 1)
    assert ds.dataset(more["output_path"]).count_rows() == 1198
    same = Path(encoded.json["output_path"]) / "part-0.parquet"
    assert (Path(more["output_path"]) / "part-0.parquet").read_bytes() == same.read_bytes()


def keyless_table(trained: Trained, folder: Path) -> Path:
    folder.mkdir()
    pq.write_table(pq.read_table(trained.table / "part-0.parquet").drop_columns("id"), folder / "a.parquet", row_group_size=100)
    return folder


def test_other_orders_extra_columns_narrower_types_and_unseen_values_are_encoded_and_said(
    trained: Trained, encoded: Outcome, tmp_path: Path
) -> None:
    rows = pq.read_table(trained.table / "part-0.parquet")
    stroke = ["unheard of", *rows["stroke"].to_pylist()[1:]]
    changed = pa.table(
        {
            "extra": pa.array([{"nested": 1}] * len(rows)),
            "stroke": pa.array(stroke).dictionary_encode(),
            "ink": rows["ink"],
            "label": rows["label"].cast(pa.int8()),
            "image": rows["image"].cast(pa.list_(pa.uint8())),
            "id": rows["id"].cast(pa.int16()),
        }
    )
    table = tmp_path / "table"
    table.mkdir()
    pq.write_table(changed, table / "part-0.parquet", row_group_size=200)
    done = run_job(
        trained.folder, "encode.py", "--model", "models:/digits@candidate", "--data.path", table, "--output.path", tmp_path / "out"
    )
    assert done.json["num_unseen"] == 1
    assert "column stroke: 1 values" in done.stderr
    here = ds.dataset(done.json["output_path"]).to_table().sort_by("id")
    there = ds.dataset(encoded.json["output_path"]).to_table().filter(ds.field("id") < len(rows)).sort_by("id")
    assert here.schema.field("id").type == pa.int16()
    same = np.isclose(np.stack(here["z_mean"].to_numpy()), np.stack(there["z_mean"].to_numpy()), atol=1e-4).all(1)
    assert same[1:].all()
    assert not same[0]


def test_a_table_without_the_models_key_is_refused(trained: Trained, tmp_path: Path) -> None:
    validation_rows(trained)
    table = keyless_table(trained, tmp_path / "keyless")
    options = ("--model", trained.folder / "bundle", "--data.path", table, "--output.path", tmp_path / "out")
    refused = run_job(trained.folder, "encode.py", *options)
    assert refused.code == 65
    assert "'id' is missing" in refused.stderr
    assert not (tmp_path / "out").exists()


def test_without_a_key_rows_are_named_by_file_and_position(trained: Trained, encoded: Outcome, tmp_path: Path) -> None:
    bundle, _ = validation_rows(trained)
    sha256 = save_bundle(tmp_path / "bundle", bundle.model, bundle.table | {"key": None})
    table = keyless_table(trained, tmp_path / "keyless")
    options = ("--model", tmp_path / "bundle", "--data.path", table, "--output.path", tmp_path / "out")
    result = run_job(trained.folder, "encode.py", *options).json
    assert (result["model_name"], result["model_version"]) == (None, sha256[:12])
    rows = ds.dataset(result["output_path"]).to_table()
    assert rows.schema.names == ["source_file", "source_row", "z_mean", "z_scale"]
    assert set(rows["source_file"].to_pylist()) == {"a.parquet"}
    assert rows["source_row"].to_pylist() == list(range(599))
    expected = np.stack(ds.dataset(encoded.json["output_path"]).to_table().sort_by("id")["z_mean"].to_numpy()[:599])
    np.testing.assert_allclose(np.stack(rows["z_mean"].to_numpy()), expected, atol=1e-5)


def test_two_model_names_do_not_mix_in_one_output(trained: Trained, encoded: Outcome) -> None:
    validation_rows(trained)
    mixed = run_job(
        trained.folder,
        *("encode.py", "--model", trained.folder / "bundle", "--data.path", trained.table, "--output.path", trained.folder / "embeddings"),
    )
    assert mixed.code == 73
    assert "model_name" in mixed.stderr


def test_generate_gives_the_schema_and_the_same_rows_for_any_file_size(trained: Trained, tmp_path: Path) -> None:
    first = generate(trained, tmp_path / "a", "--num_rows", 2500, "--seed", 3).json
    second = generate(trained, tmp_path / "b", "--num_rows", 2500, "--seed", 3, "--output.rows_per_file", 700).json
    rows = ds.dataset(first["output_path"]).to_table()
    assert rows.num_rows == first["num_rows"] == 2500
    assert len(list((tmp_path / "b").glob("*.parquet"))) == 4
    assert rows.equals(ds.dataset(second["output_path"]).to_table())
    original = pq.read_schema(trained.table / "part-0.parquet")
    assert rows.schema.remove_metadata().equals(original.remove_metadata())
    real = pq.read_table(trained.table)
    assert rows["id"].to_pylist() == list(range(2500))
    assert set(rows["label"].to_pylist()) <= set(range(10))
    assert set(rows["stroke"].to_pylist()) <= {"light", "medium", "bold", None}
    for name in ("ink", "stroke"):
        assert rows[name].null_count / 2500 == pytest.approx(real[name].null_count / 1797, abs=0.02)
    assert rows["label"].null_count == rows["image"].null_count == 0
    assert abs(np.stack(rows["image"].to_numpy()).mean() - np.stack(real["image"].to_numpy()).mean()) < 1


def test_a_second_generate_does_nothing_and_another_request_is_refused(trained: Trained, tmp_path: Path) -> None:
    first = generate(trained, tmp_path / "out", "--num_rows", 10).json
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    assert generate(trained, tmp_path / "out", "--num_rows", 10).json["output_path"] == first["output_path"]
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")} == before
    other = generate(trained, tmp_path / "out", "--num_rows", 11)
    assert other.code == 73
    assert "num_rows is 10, asked is 11" in other.stderr


def test_a_finished_run_started_again_does_nothing(trained: Trained, client: mlflow.MlflowClient) -> None:
    again = run_job(trained.folder, "train.py", *trained.options).json
    assert again == trained.json
    assert len(client.search_model_versions("name = 'digits'")) == 1


def test_the_same_run_name_with_another_configuration_lists_the_differences(trained: Trained) -> None:
    other = run_job(trained.folder, "train.py", *trained.options, "--training.epochs", "9", "--model.latent_dim", "4")
    assert other.code == 2
    assert "training.epochs: the run has 8, asked is 9" in other.stderr
    assert "model.latent_dim: the run has 8, asked is 4" in other.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "message"), [(("--data.pth", "x"), 2, "data.pth"), (("--data.path", "nowhere"), 65, "nowhere")]
)
def test_a_wrong_start_ends_before_any_compute_with_its_code(arguments: tuple[str, ...], code: int, message: str, tmp_path: Path) -> None:
    ended = run_job(tmp_path, "train.py", *arguments)
    assert ended.code == code
    assert message in ended.stderr
    assert ended.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_encode_and_generate_say_why_they_cannot(trained: Trained, tmp_path: Path) -> None:
    inside = encode(trained, trained.table / "out")
    assert inside.code == 73
    assert f"lies in the input {trained.table}: the next run would read it" in inside.stderr
    unknown = run_job(trained.folder, "generate.py", "--model", "models:/digits@champion", "--num_rows", 1, "--output.path", tmp_path / "o")
    assert unknown.code == 76
    assert "champion" in unknown.stderr
    dead = generate(trained, tmp_path / "o", "--num_rows", 1, "--registry.tracking_uri", "http://127.0.0.1:9")
    assert dead.code == 69
    assert "127.0.0.1:9" in dead.stderr
    table = tmp_path / "other"
    table.mkdir()
    renamed = pq.read_table(trained.table / "part-0.parquet").rename_columns(["id", "image", "label", "ink", "line"])
    pq.write_table(renamed, table / "a.parquet")
    unfit = run_job(
        trained.folder, "encode.py", "--model", "models:/digits@candidate", "--data.path", table, "--output.path", tmp_path / "o"
    )
    assert unfit.code == 65
    assert "a.parquet" in unfit.stderr
    assert "'stroke' is missing" in unfit.stderr
