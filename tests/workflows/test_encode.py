"""encode.py and reconstruct.py on a running cluster: every row once, the same bytes however it is done, and what changed done again."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from pkgutil import resolve_name
from types import SimpleNamespace
from typing import Any

import mlflow
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
import torch

from data.encoding import TableEncoding
from data.listing import DataError
from data.output import OutputError, OutputFolder
from tests.running import Trained
from vae import BundleError, Rows, save_bundle
from vae.bundle import open_bundle
from vae.bundle_files import FORMAT_VERSION, MANIFEST, MODEL, TABLE, WEIGHTS, as_json
from workflows import encode, reconstruct
from workflows.batch import held, model_files
from workflows.batch_config import EncodeConfig, ReconstructConfig
from workflows.errors import Incomplete, ServiceError, TryAgain
from workflows.file_task import FileTask
from workflows.job import exit_code, parse
from workflows.registry import Registry

ALL = "[mean, scale, elbo, log_evidence_bound, reconstruction, anomaly]"


class Jobs:
    """Runs jobs of the trained model in this process, on the tests' cluster."""

    def __init__(self, trained: Trained, address: str) -> None:
        self.common = ["--model", "models:/digits@candidate", "--cluster.address", address, "--registry.tracking_uri", trained.tracking_uri]

    def encode(self, table: Path | list[str], output: Path, *more: object) -> dict[str, Any]:
        options = [*self.common, "--data.path", str(table), "--output.path", str(output), *map(str, more)]
        return encode.main(parse(EncodeConfig, options))

    def reconstruct(self, table: Path, output: Path, *more: object) -> dict[str, Any]:
        options = [*self.common, "--data.path", str(table), "--output.path", str(output), *map(str, more)]
        return reconstruct.main(parse(ReconstructConfig, options))


@pytest.fixture(scope="session")
def jobs(trained: Trained, ray_address: str) -> Jobs:
    return Jobs(trained, ray_address)


@pytest.fixture(scope="session")
def rows(trained: Trained) -> pa.Table:
    return ds.dataset(trained.table).to_table().sort_by("id")


def contents(output: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in output.glob("model_version=1/*.parquet")}


def bundle_of(trained: Trained) -> Any:
    return open_bundle(Registry(trained.tracking_uri).pin("models:/digits@candidate").files)


def manifest(result: dict[str, Any]) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(Path(result["manifest"]).read_text())
    return loaded


def test_the_same_bytes_whatever_the_units_the_slices_and_the_actors(jobs: Jobs, rows: pa.Table, tmp_path: Path) -> None:
    table = tmp_path / "table"
    table.mkdir()
    many = pa.concat_tables([rows] * 6)  # 10,782 rows: chunks end within row groups, row groups within chunks
    many = many.set_column(0, "id", pa.array(range(len(many))))
    pq.write_table(many, table / "large.parquet", row_group_size=5001)
    pq.write_table(many.slice(0, 7), table / "small.parquet", row_group_size=3)
    score = ("--output.columns", ALL, "--num_importance_samples", 3)
    jobs.encode(table, tmp_path / "a", *score, "--cluster.num_actors", 1)
    other = jobs.encode(
        table, tmp_path / "b", *score, "--cluster.num_actors", 3, "--data.max_unit_rows", 4, "--data.max_batch_bytes", 2**21
    )
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert (other["num_rows"], other["num_units_done"]) == (len(many) + 7, 2)
    assert not (tmp_path / "b/model_version=1/_staging").exists()
    assert pq.read_table(tmp_path / "b/model_version=1/large.parquet")["id"].to_pylist() == list(range(len(many)))


def test_threads_that_decode_ahead_and_write_behind_change_no_byte(
    trained: Trained, rows: pa.Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As an actor with a GPU has them."""
    many = pa.concat_tables([rows] * 6)
    (tmp_path / "table").mkdir()
    pq.write_table(many.set_column(0, "id", pa.array(range(len(many)))), tmp_path / "table/a.parquet", row_group_size=5001)
    for name in ("alone", "threads"):
        options = ["--model", "models:/digits@candidate", "--data.path", str(tmp_path / "table"), "--output.path", str(tmp_path / name)]
        config = parse(EncodeConfig, options)
        job = encode.embedding_job(config, Registry(trained.tracking_uri).pin(config.model))
        with held(job.root) as fence, ThreadPoolExecutor(1) as decoding, ThreadPoolExecutor(1) as writing:
            task = FileTask(job.output, fence, job.made_by, False, config.data.max_batch_bytes, False, job.what)
            monkeypatch.setattr("workflows.file_actor.ray.get", lambda told: told)
            actor = resolve_name(job.actor)(SimpleNamespace(reference=(model_files(job.pinned), task)))
            if name == "threads":
                actor.decoding, actor.writing = decoding, writing
            for unit in job.look().units:
                assert actor({"unit": unit})["record"]["num_rows"] == len(many)
    assert contents(tmp_path / "alone") == contents(tmp_path / "threads")
    assert len(contents(tmp_path / "alone")) == 1


def test_a_model_of_other_code_is_refused_by_its_name(jobs: Jobs, trained: Trained, tmp_path: Path) -> None:
    """The actors find it: the driver looks at the files' hashes alone."""
    folder = tmp_path / "bundle"
    bundle = bundle_of(trained)
    save_bundle(folder, bundle.model, bundle.table)
    (folder / MODEL).write_bytes(as_json(bundle.model.architecture | {"strange": 1}))
    hashes = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in (WEIGHTS, MODEL, TABLE)}
    (folder / MANIFEST).write_bytes(as_json({"format_version": FORMAT_VERSION, "sha256": hashes}))
    for make in (jobs.encode, jobs.reconstruct):
        with pytest.raises(BundleError, match=r"bundle [0-9a-f]{12}: model\.json names no model of this code.*strange"):
            make(trained.table, tmp_path / make.__name__, "--model", folder)
        assert not list(tmp_path.glob(f"{make.__name__}/model_version=*/*.parquet"))


def test_scores_are_those_of_the_model(jobs: Jobs, trained: Trained, rows: pa.Table, tmp_path: Path) -> None:
    result = jobs.encode(trained.table, tmp_path, "--output.columns", ALL, "--num_importance_samples", 50)
    found = ds.dataset(result["output_path"]).to_table().sort_by("id")
    bundle = bundle_of(trained)
    encoding = TableEncoding.from_json(bundle.table)
    encoded = Rows.from_arrays(encoding.encode(rows, "digits"))
    with torch.inference_mode():
        q_z = bundle.model.posterior(encoded)
        noise = torch.randn(400, len(rows), 8, generator=torch.Generator().manual_seed(5))
        log_w = torch.cat([bundle.model.evaluate_elbo(encoded, one[None]).elbo[None] for one in noise]).double().numpy()
        likeliest = bundle.model.likelihood(q_z.mean).fields["categorical"].mean.numpy()
    elbo, bound = (np.asarray(found[name]) for name in ("elbo_nats_per_row", "log_evidence_bound_nats_per_row"))
    np.testing.assert_allclose(np.stack(found["z_mean"].to_numpy()), q_z.mean.numpy(), atol=1e-5)
    spread = log_w.std(0) / np.sqrt(8)
    assert (np.abs(elbo - log_w.mean(0)) < 6 * spread).all()
    iwae = np.logaddexp.reduce(log_w.reshape(8, 50, -1), axis=1) - np.log(50)
    assert bound.mean() == pytest.approx(iwae.mean(), abs=6 * iwae.mean(1).std())
    assert (bound > elbo).mean() > 0.9
    np.testing.assert_array_equal(np.asarray(found["anomaly_score_nats"]), -elbo)
    labels = np.asarray(pc.struct_field(found["reconstruction"], "label"))
    index = encoding.field_columns.index("label") - encoding.field_columns.index("image") - 1
    categories = np.array(next(column for column in encoding.columns if column.name == "label").categories)
    np.testing.assert_array_equal(labels, categories[likeliest[:, index]])


def test_the_columns_of_a_planted_anomaly_are_named(jobs: Jobs, rows: pa.Table, tmp_path: Path) -> None:
    table = tmp_path / "table"
    table.mkdir()
    planted = pa.array([*rows["ink"].to_pylist()[:-1], 500.0])
    pq.write_table(rows.set_column(rows.schema.get_field_index("ink"), "ink", planted), table / "a.parquet")
    result = jobs.encode(table, tmp_path / "out", "--output.columns", "[anomaly]")
    found = ds.dataset(result["output_path"]).to_table().sort_by("id")
    scores = np.asarray(found["anomaly_score_nats"])
    assert scores.argmax() == len(rows) - 1
    assert found["anomaly_columns"][len(rows) - 1].as_py()[0] == "ink"
    assert found["anomaly_excess_nats"][len(rows) - 1].as_py()[0] > 1000
    without_ink = np.flatnonzero(np.asarray(rows["ink"].is_null())[:-1])
    assert all("ink" not in found["anomaly_columns"][int(row)].as_py() for row in without_ink)


@pytest.fixture
def table(trained: Trained, tmp_path: Path) -> Path:
    shutil.copytree(trained.table, tmp_path / "table")
    return tmp_path / "table"


def test_what_changed_is_done_again_and_what_vanished_stays_until_pruned(jobs: Jobs, table: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    jobs.encode(table, output)
    before = contents(output)
    os.utime(table / "part-0.parquet", (0, 0))
    touched = jobs.encode(table, output)
    assert (touched["num_units_done"], touched["num_units_skipped"]) == (0, 3)
    changed = pq.read_table(table / "part-1.parquet").slice(10)
    pq.write_table(changed, table / "part-1.parquet")
    (table / "part-2.parquet").unlink()
    again = jobs.encode(table, output)
    assert (again["num_units_done"], again["num_units_skipped"], again["num_files_vanished"]) == (1, 1, 1)
    after = contents(output)
    assert {name for name in before if before[name] != after[name]} == {"part-1.parquet"}
    assert manifest(again)["vanished"] == {"part-2.parquet": "kept"}
    pruned = jobs.encode(table, output, "--output.prune", "true")
    assert sorted(contents(output)) == ["part-0.parquet", "part-1.parquet"]
    assert (pruned["num_units_done"], manifest(pruned)["vanished"]) == (0, {})
    keys = ds.dataset(output / "model_version=1").to_table()["id"].to_pylist()
    assert sorted(keys) == sorted(pq.read_table(table / "part-0.parquet")["id"].to_pylist() + changed["id"].to_pylist())
    nothing = {path: path.stat().st_mtime_ns for path in output.rglob("*")}
    jobs.encode(table, output, "--output.prune", "true")
    assert {path: path.stat().st_mtime_ns for path in output.rglob("*")} == nothing


def test_a_file_that_has_another_path_now_is_there_once(jobs: Jobs, table: Path, tmp_path: Path) -> None:
    """Moved, or named as one of several inputs, whose common folder is another one."""
    output = tmp_path / "out"
    jobs.encode(table, output)
    (table / "later").mkdir()
    (table / "part-2.parquet").rename(table / "later" / "part-9.parquet")
    moved = jobs.encode(table, output)
    assert (moved["num_units_done"], moved["num_units_skipped"], moved["num_files_vanished"]) == (1, 2, 0)
    assert sorted(contents(output)) == sorted(manifest(moved)["units"]) == ["later%2Fpart-9.parquet", "part-0.parquet", "part-1.parquet"]
    shutil.copytree(table / "later", tmp_path / "more")
    rows = pq.read_table(tmp_path / "more" / "part-9.parquet").slice(0, 5)
    pq.write_table(rows, tmp_path / "more" / "part-9.parquet")
    grown = jobs.encode([str(table), str(tmp_path / "more")], output)
    assert grown["num_files_vanished"] == 0
    keys = ds.dataset(output / "model_version=1").to_table()["id"].to_pylist()
    assert sorted(keys) == sorted([*ds.dataset(table).to_table()["id"].to_pylist(), *rows["id"].to_pylist()])


def test_the_output_of_a_file_that_has_no_row_now_goes(jobs: Jobs, table: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    jobs.encode(table, output)
    pq.write_table(pq.read_table(table / "part-0.parquet").slice(0, 0), table / "part-0.parquet")
    again = jobs.encode(table, output)
    assert (again["num_units_done"], again["num_files_vanished"]) == (0, 0)
    assert sorted(contents(output)) == sorted(manifest(again)["units"]) == ["part-1.parquet", "part-2.parquet"]


def test_the_files_of_a_job_that_died_before_its_manifest_are_not_made_again(jobs: Jobs, table: Path, tmp_path: Path) -> None:
    jobs.encode(table, tmp_path / "out")
    shutil.rmtree(tmp_path / "out/model_version=1/_manifests")
    (tmp_path / "out/model_version=1/part-0.parquet").unlink()
    again = jobs.encode(table, tmp_path / "out")
    assert (again["num_units_done"], again["num_units_skipped"]) == (1, 2)
    assert len(manifest(again)["units"]) == 3


def test_bad_files_end_the_job_or_are_put_aside(jobs: Jobs, table: Path, tmp_path: Path) -> None:
    good = {path.name for path in table.glob("*.parquet")}
    (table / "bad-0.parquet").write_bytes(b"no Parquet")
    pq.write_table(pa.table({"id": [1], "image": ["text"]}), table / "bad-1.parquet")
    broken = bytearray((table / "part-0.parquet").read_bytes())
    chunk = pq.read_metadata(table / "part-0.parquet").row_group(0).column(1)
    broken[chunk.data_page_offset : chunk.data_page_offset + 200] = b"\xff" * 200
    (table / "bad-2.parquet").write_bytes(broken)
    with pytest.raises(DataError, match=r"bad-0\.parquet"):
        jobs.encode(table, tmp_path / "out")
    assert not (tmp_path / "out/model_version=1").exists()
    for _ in range(2):
        with pytest.raises(Incomplete, match="put aside") as refused:
            jobs.encode(table, tmp_path / "out", "--data.on_bad_file", "quarantine")
        assert exit_code(refused.value) == 65
        result = refused.value.result
        assert result["num_files_quarantined"] == 3
        said = manifest(result)
        assert set(said["units"]) == good
        assert set(said["quarantined"]) == {f"bad-{i}.parquet" for i in range(3)}
        assert "image" in said["quarantined"]["bad-1.parquet"]
        assert set(contents(tmp_path / "out")) == good
        assert not (tmp_path / "out/model_version=1/_SUCCESS").exists()
    for path in table.glob("bad-*"):
        path.unlink()
    mended = jobs.encode(table, tmp_path / "out")
    assert (mended["num_units_done"], manifest(mended)["quarantined"]) == (0, {})
    assert (tmp_path / "out/model_version=1/_SUCCESS").exists()


def test_a_partition_adds_to_the_same_output(jobs: Jobs, trained: Trained, tmp_path: Path) -> None:
    table, output = tmp_path / "table", tmp_path / "out"
    for number in range(3):
        (table / f"day=2026-11-2{number}").mkdir(parents=True)
        shutil.copy(trained.table / f"part-{number}.parquet", table / f"day=2026-11-2{number}")
    for number in (1, 2):
        night = jobs.encode(table, output, "--data.partition", f"2026-11-2{number}")
        assert (night["num_units_done"], night["num_rows"]) == (1, 599)
    assert len(manifest(night)["units"]) == 2
    rest = jobs.encode(table, output)
    assert (rest["num_units_done"], rest["num_units_skipped"]) == (1, 2)
    keys = ds.dataset(rest["output_path"]).to_table()["id"].to_pylist()
    assert sorted(keys) == list(range(1797))


def test_one_job_at_a_time_writes_an_output(jobs: Jobs, table: Path, tmp_path: Path) -> None:
    with held(OutputFolder.open(str(tmp_path / "out"))), pytest.raises(TryAgain, match="held by another job") as refused:
        jobs.encode(table, tmp_path / "out")
    assert exit_code(refused.value) == 75
    assert jobs.encode(table, tmp_path / "out")["num_units_done"] == 3


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A filesystem of 100 kB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", str(disk)], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("mounting takes the rights of root")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_full_or_read_only_disk_harms_nothing_earlier(jobs: Jobs, table: Path, small_disk: Path, tmp_path: Path) -> None:
    output = small_disk / "out"
    first = jobs.encode(table / "part-0.parquet", output)
    before = contents(output)
    large = pa.concat_tables([pq.read_table(table / "part-1.parquet")] * 20)
    pq.write_table(large, table / "part-1.parquet")
    with pytest.raises(OutputError, match="cannot be written"):
        jobs.encode(table, output)
    assert contents(output)["part-0.parquet"] == before["part-0.parquet"]
    assert pq.read_table(output / "model_version=1/part-0.parquet").num_rows == first["num_rows"]
    assert all(pq.read_table(pa.BufferReader(content)).num_rows in (599, 11_980) for content in contents(output).values())
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(OutputError, match="cannot be written"):
        jobs.encode(table, output)
    assert jobs.encode(table / "part-0.parquet", output)["num_units_skipped"] == 1  # there is nothing to write


@pytest.mark.slow
def test_a_registry_that_takes_connections_and_does_not_answer_is_said(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(ServiceError, match="timed out") as refused:
        Registry(f"http://127.0.0.1:{silent.getsockname()[1]}").pin("models:/digits@champion")
    assert exit_code(refused.value) == 69


def test_mlflow_has_a_run_of_the_job_with_its_counts_and_its_manifest(jobs: Jobs, trained: Trained, table: Path, tmp_path: Path) -> None:
    result = jobs.encode(table, tmp_path / "out")
    client = mlflow.MlflowClient(trained.tracking_uri)
    experiment = client.get_experiment_by_name("vae")
    (run,) = client.search_runs([experiment.experiment_id], f"tags.output_path = '{result['output_path']}'")
    assert run.info.status == "FINISHED"
    assert {key: run.data.tags[key] for key in ("job", "model_name", "model_version", "training_run_id")} == {
        "job": "encode",
        "model_name": "digits",
        "model_version": "1",
        "training_run_id": trained.json["run_id"],
    }
    assert run.data.metrics["num_rows"] == 1797
    kept = json.loads(Path(client.download_artifacts(run.info.run_id, "manifest.json", str(tmp_path))).read_text())
    assert kept["units"] == manifest(result)["units"]
    jobs.encode(table, tmp_path / "out")
    assert len(client.search_runs([experiment.experiment_id], f"tags.output_path = '{result['output_path']}'")) == 1


def posterior_ink(trained: Trained, table: pa.Table) -> tuple[Any, Any]:
    """Returns E_q[E[ink|z]] of every row, in data units, and the standard deviation of E[ink|z] over q, with 1,000 samples."""
    bundle = bundle_of(trained)
    encoding = TableEncoding.from_json(bundle.table)
    image = pa.array(table["image"].to_pylist(), pa.list_(pa.uint8()))
    encoded = Rows.from_arrays(encoding.encode(table.set_column(table.schema.get_field_index("image"), "image", image), "digits"))
    column = next(column for column in encoding.columns if column.name == "ink")
    with torch.inference_mode():
        q_z = bundle.model.posterior(encoded)
        noise = torch.randn(1000, len(table), 8, generator=torch.Generator().manual_seed(7))
        ink = bundle.model.likelihood(q_z.rsample(noise)).fields["numeric"].mean[..., 0].double().numpy()
    ink = ink * column.scale + column.mean[0]
    return ink.mean(0), ink.std(0)


def test_reconstruct_fills_every_hole_and_leaves_the_rest_alone(jobs: Jobs, trained: Trained, rows: pa.Table, tmp_path: Path) -> None:
    table = tmp_path / "table"
    table.mkdir()
    label = pa.array([None if i % 7 == 0 else v for i, v in enumerate(rows["label"].to_pylist())], rows.schema.field("label").type)
    image = pa.array([None if i % 5 == 0 else v for i, v in enumerate(rows["image"].to_pylist())], pa.list_(pa.uint8()))
    holed = rows.set_column(rows.schema.get_field_index("label"), "label", label)
    holed = holed.set_column(rows.schema.get_field_index("image"), "image", image)
    pq.write_table(holed, table / "a.parquet", row_group_size=700)
    result = jobs.reconstruct(table, tmp_path / "out", "--output.standard_deviations", "true")
    filled = ds.dataset(result["output_path"]).to_table()
    assert filled.select(rows.schema.names).schema.remove_metadata().equals(rows.schema.remove_metadata())
    for name in rows.schema.names:
        there = holed[name].is_valid()
        assert filled[name].null_count == 0
        assert filled[name].filter(there).to_pylist() == holed[name].filter(there).to_pylist(), name
    ink_missing = np.asarray(holed["ink"].is_null())
    deviation = filled["ink_standard_deviation"]
    np.testing.assert_array_equal(np.asarray(deviation.is_valid()), ink_missing)
    assert 0.1 < np.asarray(deviation.drop_null()).mean() < 2 * np.nanstd(np.asarray(rows["ink"]).astype(float))
    expected, spread = posterior_ink(trained, holed)
    guess = np.asarray(filled["ink"])[ink_missing]
    assert (np.abs(guess - expected[ink_missing]) < 6 * spread[ink_missing] / np.sqrt(32) + 1e-5).all()
    again = jobs.reconstruct(table, tmp_path / "again", "--output.standard_deviations", "true", "--data.max_unit_rows", 700)
    assert contents(tmp_path / "again") == contents(tmp_path / "out")
    assert again["num_rows"] == len(rows)
