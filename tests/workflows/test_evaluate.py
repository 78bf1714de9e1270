"""evaluate.py on a running cluster: means over every row once, whatever the actors and units; nothing done twice; gates."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
import ray
import torch
from numpy.typing import NDArray

from data.encoding import TableEncoding
from data.listing import DataError
from data.output import OutputError
from data.split import split_rows
from data.table import open_table
from tests.running import Trained
from vae import VAE, Rows, save_bundle
from vae.bundle import open_bundle
from workflows import evaluate_job
from workflows.checks import ConfigError
from workflows.errors import Incomplete
from workflows.evaluate_config import EvaluateConfig
from workflows.job import exit_code, parse
from workflows.registry import Registry

NUM_SAMPLES = 30
# What takes long is left out where nothing is claimed of it.
FEW = {"num_importance_samples": NUM_SAMPLES, "audit.num_rows": 0, "evaluate.num_generated_rows": 0, "baselines.max_rows": 0}


class Jobs:
    """Runs evaluate.py in this process, on the tests' cluster."""

    def __init__(self, trained: Trained, address: str) -> None:
        self.common = ["--cluster.address", address, "--registry.tracking_uri", trained.tracking_uri]
        self.common += [f"--{name}={value}" for name, value in FEW.items()]

    def evaluate(self, model: str, table: Path, output: Path, *more: object) -> dict[str, Any]:
        options = ["--model", model, "--data.path", str(table), "--output.path", str(output)]
        return evaluate_job.evaluate(parse(EvaluateConfig, [*self.common, *options, *map(str, more)]))


@pytest.fixture(scope="module")
def jobs(trained: Trained, ray_address: str) -> Jobs:
    return Jobs(trained, ray_address)


@pytest.fixture(scope="module")
def table(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits in two files of several row groups."""
    folder = tmp_path_factory.mktemp("table")
    rows = ds.dataset(trained.table).to_table().sort_by("id")
    pq.write_table(rows.slice(0, 1200), folder / "a.parquet", row_group_size=500)
    pq.write_table(rows.slice(1200), folder / "b.parquet", row_group_size=350)
    return folder


def by_hand(trained: Trained, table: Path) -> dict[str, NDArray[np.float64]]:
    """Returns the scores of the validation rows, in float64, computed row group by row group in this process."""
    bundle = open_bundle(Registry(trained.tracking_uri).pin("models:/digits/1").files)
    model, encoding = bundle.model.double(), TableEncoding.from_json(bundle.table)
    found: dict[str, list[torch.Tensor]] = {"elbo": [], "bound": [], "kl": [], "null_pattern": [], "mean": []}
    opened = open_table(str(table))
    for group in opened.row_groups():
        rows = pq.ParquetFile(group.path).read_row_group(group.index)
        image = pa.array(rows["image"].to_pylist(), pa.list_(pa.uint8()))
        rows = rows.set_column(rows.schema.get_field_index("image"), "image", image)
        mask = split_rows(rows, group, "id", (0.1, 0.0)) == 1
        encoded = Rows.from_arrays(encoding.encode(rows.filter(pa.array(mask)), "digits"))
        with torch.inference_mode():
            q_z, p_z = model.posterior(encoded), torch.distributions.Normal(0.0, torch.ones((), dtype=torch.float64))
            noise = torch.randn(
                NUM_SAMPLES, encoded.num_rows, 8, generator=torch.Generator().manual_seed(group.first_row), dtype=torch.float64
            )
            z = q_z.mean + q_z.scale * noise
            q = torch.distributions.Normal(q_z.mean, q_z.scale)
            log_prior, log_q = (distribution.log_prob(z).sum(-1) for distribution in (p_z, q))  # type: ignore[no-untyped-call]
            log_w = model.likelihood(z).log_prob(encoded) + log_prior - log_q
            generator = torch.Generator().manual_seed(group.first_row)
            eight = [torch.randn(encoded.num_rows, 8, generator=generator, dtype=torch.float64) for _ in range(8)]
            null_pattern = torch.stack([model.likelihood(q_z.rsample(one)).null_pattern_log_prob(encoded) for one in eight])
            found["elbo"].append(log_w.mean(0))
            found["bound"].append(log_w.logsumexp(0) - np.log(NUM_SAMPLES))
            found["kl"].append(torch.distributions.kl_divergence(q, p_z).sum(-1))
            found["null_pattern"].append(null_pattern.mean(0))
            found["mean"].append(q_z.mean)
    return {name: torch.cat(parts).numpy() for name, parts in found.items()}


def report_of(line: dict[str, Any]) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((Path(line["output_path"]) / "_report.json").read_text())
    return report


def files_of(line: dict[str, Any]) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(line["output_path"]).glob("*.parquet")}


@pytest.fixture(scope="module")
def first(jobs: Jobs, table: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """An evaluation by one actor, with baselines."""
    options = ("--cluster.num_actors", 1, "--baselines.max_rows", 500, "--evaluate.label", "label")
    return jobs.evaluate("models:/digits/1", table, tmp_path_factory.mktemp("first"), *options)


def test_means_are_those_of_a_computation_in_one_process_in_float64(trained: Trained, table: Path, first: dict[str, Any]) -> None:
    expected, scores = by_hand(trained, table), report_of(first)["scores"]
    assert first["num_rows"] == scores["num_rows"] == len(expected["elbo"]) == trained.json["validation"]["num_rows"]
    assert scores["num_rows_trained_on"] == 0
    log_likelihood = expected["elbo"] + expected["kl"]
    names = {"elbo": "elbo", "log_evidence_bound": "bound", "kl": "kl", "null_pattern_log_probability": "null_pattern"}
    for name, values in {**{key: expected[value] for key, value in names.items()}, "expected_log_likelihood": log_likelihood}.items():
        found = scores[f"{name}_nats_per_row"]
        assert found["mean"] == pytest.approx(values.mean(), rel=1e-6), name
        assert found["standard_error"] == pytest.approx(values.std(ddof=1) / np.sqrt(len(values)), rel=1e-6), name
    assert scores["distortion_nats_per_row"] == pytest.approx(-log_likelihood.mean(), rel=1e-6)
    assert scores["active_units"] == (expected["mean"].var(0) > 0.01).sum()
    assert first["elbo_nats_per_row"] == scores["elbo_nats_per_row"]["mean"]


def test_the_same_bytes_by_other_actors_in_other_units(jobs: Jobs, table: Path, first: dict[str, Any], tmp_path: Path) -> None:
    options = ("--cluster.num_actors", 3, "--data.max_unit_rows", 400, "--evaluate.label", "label")
    other = jobs.evaluate("models:/digits/1", table, tmp_path, *options)
    assert files_of(other) == files_of(first)
    assert report_of(other)["scores"] == report_of(first)["scores"]
    assert report_of(other)["baselines"] == {"left_out": "baselines.max_rows is 0"}


def test_every_row_of_the_split_comes_once_with_its_label_and_what_its_bound_is_made_of(table: Path, first: dict[str, Any]) -> None:
    found = ds.dataset(first["output_path"]).to_table().sort_by("id")
    rows = ds.dataset(table).to_table().sort_by("id")
    assert len(set(found["id"].to_pylist())) == len(found) == first["num_rows"]
    assert found["label"].to_pylist() == rows.take(found["id"])["label"].to_pylist()
    sums = sum(
        np.nan_to_num(part.to_numpy(zero_copy_only=False)) for part in found["log_likelihood_nats_by_column"].combine_chunks().flatten()
    )
    np.testing.assert_allclose(sums.mean(), np.mean(found["expected_log_likelihood_nats"]), rtol=2e-2)
    assert 1 <= np.min(found["effective_sample_size"]) <= np.max(found["effective_sample_size"]) <= NUM_SAMPLES + 1e-9
    assert {len(names) for names in found["worst_columns"].to_pylist()} == {3}
    missing = np.asarray(rows.take(found["id"])["ink"].is_null())
    columns = found["log_likelihood_nats_by_column"].combine_chunks()
    np.testing.assert_array_equal(np.asarray(columns.field("ink").is_null()), missing)


def test_baselines_are_of_the_same_rows_and_differences_are_paired(first: dict[str, Any]) -> None:
    found = report_of(first)["baselines"]
    assert (found["num_training_rows"], found["num_rows"]) == (500, first["num_rows"])
    assert found["log_evidence_bound_nats_per_row"]["mean"] == pytest.approx(first["log_evidence_bound_nats_per_row"], rel=1e-12)
    for name in ("independent_columns", "correlated_columns"):
        difference = found["log_evidence_bound_nats_per_row"]["mean"] - found[f"{name}_nats_per_row"]["mean"]
        assert found[f"log_evidence_bound_minus_{name}_nats_per_row"]["mean"] == pytest.approx(difference, rel=1e-9)
        assert first[f"{name}_nats_per_row"] == found[f"{name}_nats_per_row"]["mean"]


def test_a_second_evaluation_of_the_same_prints_the_same_line_and_needs_no_cluster(
    trained: Trained, table: Path, first: dict[str, Any]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in Path(first["output_path"]).rglob("*")}
    nowhere = Jobs(trained, "127.0.0.1:1")
    output = Path(first["output_path"]).parents[1]
    again = nowhere.evaluate("models:/digits/1", table, output, "--baselines.max_rows", 500, "--evaluate.label", "label")
    assert again == first | {"repeated": True}
    assert not ray.is_initialized()
    assert {path: path.stat().st_mtime_ns for path in Path(first["output_path"]).rglob("*")} == before


def test_other_samples_in_the_same_output_are_refused(jobs: Jobs, table: Path, first: dict[str, Any]) -> None:
    output = Path(first["output_path"]).parents[1]
    with pytest.raises(OutputError, match="num_importance_samples is 30, asked is 7"):
        jobs.evaluate("models:/digits/1", table, output, "--num_importance_samples", 7, "--evaluate.label", "label")


def test_every_number_is_in_mlflow_and_beside_the_version(trained: Trained, first: dict[str, Any]) -> None:
    client = mlflow.MlflowClient(trained.tracking_uri)
    experiment = client.get_experiment_by_name("vae")
    (run,) = client.search_runs([experiment.experiment_id], f"tags.output_path = '{first['output_path']}'")
    assert run.data.tags["job"] == "evaluate"
    assert run.data.metrics["elbo_nats_per_row"] == first["elbo_nats_per_row"]
    assert "log_likelihood_nats_per_row/ink" in run.data.metrics
    tags = client.get_model_version("digits", "1").tags
    assert float(tags["log_evidence_bound_nats_per_row.validation"]) == first["log_evidence_bound_nats_per_row"]


def untouched(model: VAE) -> None:
    """Leaves a model as it is."""


def worse(model: VAE) -> None:
    with torch.no_grad():
        for parameter in model.decoder.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)), alpha=0.05)


def collapsed(model: VAE) -> None:
    with torch.no_grad():
        for parameter in model.encoder.parameters():
            parameter.zero_()


def broken(model: VAE) -> None:
    with torch.no_grad():
        next(iter(model.decoder.parameters())).view(-1)[0] = torch.nan


@pytest.fixture(scope="module")
def register(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """Registers what is made of the trained model and its table.json as a new version of a model, and returns the version."""
    client = mlflow.MlflowClient(trained.tracking_uri)
    files = Registry(trained.tracking_uri).pin("models:/digits/1").files

    def registered(name: str, change: Callable[[VAE], None], **record: Any) -> str:
        if not client.search_registered_models(f"name = '{name}'"):
            client.create_registered_model(name)
        bundle = open_bundle(files)
        change(bundle.model)
        folder = tmp_path_factory.mktemp("version")
        sha256 = save_bundle(folder / "artifacts" / "bundle", bundle.model, bundle.table | record)
        return str(client.create_model_version(name, folder.as_uri(), tags={"bundle_sha256": sha256}).version)

    return registered


def test_gates_let_the_first_and_an_equal_version_pass_and_refuse_regressions_with_their_reasons(
    jobs: Jobs, trained: Trained, table: Path, tmp_path: Path, register: Callable[..., str]
) -> None:
    registry = Registry(trained.tracking_uri)

    def promoted(change: Callable[[VAE], None], *more: object) -> dict[str, Any]:
        options = ("--promote", "true", "--baselines.max_rows", 0, "--cluster.num_actors", 1, *more)
        return jobs.evaluate(f"models:/gated/{register('gated', change)}", table, tmp_path, *options)

    first = promoted(untouched)
    assert (first["promoted"], first["reasons"], registry.aliases("gated")) == (True, [], {"champion": "1"})
    equal = promoted(untouched)
    assert (equal["promoted"], equal["log_evidence_bound_minus_champion_nats_per_row"]) == (True, 0.0)
    champions = {"champion": "2", "previous": "1"}
    assert registry.aliases("gated") == champions
    assert "passed the gates" in registry.last_champion_change("gated")["why"]
    refused = promoted(worse)
    assert refused["promoted"] is False
    sides = report_of(refused)["promotion"]["expected_log_likelihood_nats_per_row_by_column"]
    assert (
        sides["candidate"]["image"]
        < sides["champion"]["image"]
        == report_of(equal)["scores"]["log_likelihood_nats_per_row_by_column"]["image"]["mean"]
    )
    assert refused["reasons"][0].startswith("worse than the champion: ")
    with pytest.raises(Incomplete, match="not promoted: collapsed") as failed:
        promoted(collapsed, "--gates.fail", "true")
    assert exit_code(failed.value) == 3
    assert failed.value.result["promoted"] is False
    nan = promoted(broken)
    assert nan["elbo_nats_per_row"] is None
    assert any("weights that are no finite numbers: decoder" in reason for reason in nan["reasons"])
    assert any("have a score that is no finite number" in reason for reason in nan["reasons"])
    assert registry.aliases("gated") == champions
    again = Jobs(trained, "127.0.0.1:1").evaluate(
        "models:/gated/2", table, tmp_path, "--promote", "true", "--baselines.max_rows", 0, "--cluster.num_actors", 1
    )
    assert again == equal | {"repeated": True}


@pytest.mark.slow
def test_rows_that_the_champion_was_trained_on_are_left_out_of_the_comparison(
    jobs: Jobs, trained: Trained, table: Path, tmp_path: Path, register: Callable[..., str]
) -> None:
    client = mlflow.MlflowClient(trained.tracking_uri)
    register("other_split", untouched, split={"validation_fraction": 0.06, "test_fraction": 0.0})
    register("other_split", untouched, split={"validation_fraction": 0.0, "test_fraction": 0.0})
    version = register("other_split", untouched)
    reasons, rows = [], []
    for champion in ("1", "2"):
        client.set_registered_model_alias("other_split", "champion", champion)
        options = ("--promote", "true", "--baselines.max_rows", 0, "--gates.min_rows", 150)
        line = jobs.evaluate(f"models:/other_split/{version}", table, tmp_path, *options)
        reasons.append(line["reasons"])
        rows.append(report_of(line)["promotion"].get("num_rows", 0))
    assert 0 < rows[0] < 150
    assert rows[1] == 0
    assert [len(each) for each in reasons] == [1, 1]
    assert f"only {rows[0]} rows that neither the version nor champion version 1 was trained on" in reasons[0][0]
    assert "only 0 rows that neither the version nor champion version 2 was trained on" in reasons[1][0]


@pytest.mark.slow
def test_without_a_key_places_decide_the_side_and_name_the_rows(
    jobs: Jobs, table: Path, tmp_path: Path, register: Callable[..., str]
) -> None:
    opened = open_table(str(table))
    version = register("no_key", untouched, key=None, fingerprint=opened.fingerprint)
    line = jobs.evaluate(f"models:/no_key/{version}", table, tmp_path, "--promote", "true", "--baselines.max_rows", 20_000)
    found = ds.dataset(line["output_path"]).to_table()
    expected = []
    for group in opened.row_groups():
        rows = pq.ParquetFile(group.path).read_row_group(group.index)
        sides = split_rows(rows, group, None, (0.1, 0.0))
        expected += [(Path(group.path).name, group.first_row + int(row)) for row in np.flatnonzero(sides == 1)]
    assert sorted(zip(found["source_file"].to_pylist(), found["source_row"].to_pylist(), strict=True)) == sorted(expected)
    assert (line["num_rows"], line["promoted"]) == (len(expected), True)
    assert report_of(line)["baselines"]["num_training_rows"] == opened.num_rows - len(expected)
    shutil.copytree(table, tmp_path / "grown")
    shutil.copy(table / "a.parquet", tmp_path / "grown" / "c.parquet")
    refused = jobs.evaluate(f"models:/no_key/{version}", tmp_path / "grown", tmp_path / "out", "--promote", "true", "--data.split", "all")
    assert refused["promoted"] is True  # it is champion already
    version = register("no_key", untouched, key=None)
    options = ("--promote", "true", "--data.split", "all")
    other = jobs.evaluate(f"models:/no_key/{version}", tmp_path / "grown", tmp_path / "out", *options)
    assert other["promoted"] is False
    assert any("which of these rows champion version 1 was trained on cannot be known" in reason for reason in other["reasons"])
    assert any("which of these rows the version was trained on cannot be known" in reason for reason in other["reasons"])


@pytest.mark.slow
def test_a_bad_file_is_put_aside_and_named_and_what_was_scored_is_scored_again_on_request(
    jobs: Jobs, table: Path, first: dict[str, Any], tmp_path: Path
) -> None:
    shutil.copytree(table, tmp_path / "table")
    (tmp_path / "table" / "c.parquet").write_bytes(b"PAR1 and nothing more")
    options = ("--data.on_bad_file", "quarantine", "--evaluate.label", "label")
    with pytest.raises(Incomplete, match=r"c\.parquet") as stopped:
        jobs.evaluate("models:/digits/1", tmp_path / "table", tmp_path / "out", *options)
    assert exit_code(stopped.value) == 65
    line = stopped.value.result
    assert report_of(line)["scores"] == report_of(first)["scores"]
    with pytest.raises(Incomplete, match=r"c\.parquet") as stopped:
        jobs.evaluate("models:/digits/1", tmp_path / "table", tmp_path / "out", *options)
    assert (exit_code(stopped.value), stopped.value.result) == (65, line | {"repeated": True})
    (tmp_path / "table" / "c.parquet").unlink()
    output = tmp_path / "out"
    again = jobs.evaluate("models:/digits/1", tmp_path / "table", output, "--evaluate.label", "label", "--force", "true")
    assert (again["repeated"], again["num_rows"]) == (False, first["num_rows"])
    assert files_of(again) == files_of(first)


def test_what_does_not_fit_is_refused_before_any_compute(trained: Trained, table: Path, tmp_path: Path) -> None:
    nowhere = Jobs(trained, "127.0.0.1:1")
    with pytest.raises(
        ConfigError, match=r"data.split is 'test', and the model's training left no such rows.*it has train, validation, all"
    ):
        nowhere.evaluate("models:/digits/1", table, tmp_path / "out", "--data.split", "test")
    with pytest.raises(DataError, match=r"column 'target' \(evaluate.label\) is missing"):
        nowhere.evaluate("models:/digits/1", table, tmp_path / "out", "--evaluate.label", "target")
    shutil.copytree(table, tmp_path / "table")
    rows = pq.read_table(table / "b.parquet").drop_columns(["ink"])
    pq.write_table(rows, tmp_path / "table" / "b.parquet")
    with pytest.raises(DataError, match="column 'ink' is missing"):
        nowhere.evaluate("models:/digits/1", tmp_path / "table", tmp_path / "out")
    with pytest.raises(ConfigError, match=r"drift.ignore names \['ikn'\], which the model does not read"):
        nowhere.evaluate("models:/digits/1", table, tmp_path / "out", "--drift.ignore", "[ikn]")
    with pytest.raises(DataError, match="nowhere: nothing is there"):
        nowhere.evaluate("models:/digits/1", table, tmp_path / "out", "--drift.reference", tmp_path / "nowhere")
    with pytest.raises(SystemExit):
        nowhere.evaluate("models:/digits/1", table, tmp_path / "out", "--data.split", "holdout")
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def whole(jobs: Jobs, table: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """An evaluation with every section, of few rows each."""
    options = {"audit.num_rows": 3, "audit.num_importance_samples": 100, "evaluate.num_generated_rows": 300, "baselines.max_rows": 300}
    named = [f"--{name}={value}" for name, value in options.items()]
    more = ("--evaluate.label", "label", "--cluster.num_actors", 2)
    return jobs.evaluate("models:/digits/1", table, tmp_path_factory.mktemp("whole"), *more, *named)


def test_every_section_says_what_it_found(whole: dict[str, Any]) -> None:
    report = report_of(whole)
    assert not [name for name, section in report.items() if isinstance(section, dict) and "left_out" in section]
    assert whole["verdict"] == report["health"]["verdict"] == "healthy"
    gaps = {name: gap["mean"] for name, gap in whole["gaps"].items()}
    assert gaps["total_gap_nats_per_row"] == pytest.approx(gaps["approximation_gap_nats_per_row"] + gaps["amortisation_gap_nats_per_row"])
    assert report["audit"]["num_rows"] == 3
    probes = report["usefulness"]["probes"]["embedding"]
    assert probes["knn"]["accuracy"]["value"] > 0.5 > report["usefulness"]["guess"]["accuracy"]["value"]
    assert report["generated"]["num_rows"]["generated"] == 300
    assert report["generated"]["privacy"]["num_copies_of_training_rows"] == 0
    assert not report["drift"]["drift"]


def test_the_page_has_every_part_and_all_of_it_reaches_mlflow(trained: Trained, whole: dict[str, Any]) -> None:
    page = Path(whole["report"]).read_text()
    headings = re.findall("<h2>(.*?)</h2>", page)
    wanted = ["Scores", "Columns", "What the model adds", "Latent variables", "Inference gaps", "Use of the embedding", "Generated rows"]
    assert [heading for heading in headings if heading in wanted] == wanted
    assert {"Training", "Drift", "Where it comes from", "Rows with the lowest ELBO"} <= set(headings)
    assert page.count("data:image/png") >= 7
    client = mlflow.MlflowClient(trained.tracking_uri)
    (experiment,) = client.search_experiments(filter_string="name = 'vae'")
    run = next(run for run in client.search_runs([experiment.experiment_id]) if run.data.tags.get("output_path") == whole["output_path"])
    assert {"manifest.json", "report.html", "report.json", "model_card.md"} <= {
        item.path for item in client.list_artifacts(run.info.run_id)
    }
    assert run.data.metrics["amortisation_gap_nats_per_row"] == whole["gaps"]["amortisation_gap_nats_per_row"]["mean"]
    tags = client.get_model_version("digits", "1").tags
    assert float(tags["mutual_information_nats.validation"]) > 1
    assert Path(whole["output_path"], "_model_card.md").read_text().startswith("# Model card: digits version 1")


def test_drift_can_stop_a_schedule(jobs: Jobs, table: Path, tmp_path: Path) -> None:
    rows = ds.dataset(table).to_table()
    index = rows.schema.get_field_index("ink")
    moved = tmp_path / "in" / "moved.parquet"
    moved.parent.mkdir()
    pq.write_table(rows.set_column(index, "ink", pc.multiply(rows["ink"], 2)), moved)
    with pytest.raises(Incomplete) as stopped:
        jobs.evaluate("models:/digits/1", moved, tmp_path / "out", "--data.split", "all", "--drift.fail", "true")
    assert exit_code(stopped.value) == 3
    line = stopped.value.result
    drifted = [
        test["quantity"] for test in json.loads(Path(line["output_path"], "_report.json").read_text())["drift"]["tests"] if test["drifted"]
    ]
    assert "column ink" in drifted
    said = jobs.evaluate("models:/digits/1", moved, tmp_path / "out", "--data.split", "all")
    assert said["drift"] is True
    reference = tmp_path / "reference.parquet"
    named = ("--data.split", "all", "--drift.reference", reference)
    for of, drift in ((moved, False), (next(table.glob("*.parquet")), True)):  # under one name, another table is another evaluation
        shutil.copy(of, reference)
        line = jobs.evaluate("models:/digits/1", moved, tmp_path / "out", *named)
        assert (line["drift"], line["repeated"]) == (drift, False)
