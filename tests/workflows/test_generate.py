"""A conditional model from train.py to generate.py: conditions heeded, the same rows on any actors, refusals, and a true report."""

from __future__ import annotations

import json
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
import ray
import torch
from sklearn.linear_model import LogisticRegression

from data.conditions import ConditionError
from data.encoding import TableEncoding
from data.marginals import LEVELS
from data.split import TRAIN, hash_key_column, split_of
from data.table import RowGroup
from tests.running import Outcome, Trained, run_job
from vae import Rows, save_bundle
from vae.bundle import open_bundle
from workflows import generate as generate_job
from workflows.batch_config import GenerateConfig
from workflows.diagnostics import conditions_of
from workflows.generation import RowGenerator
from workflows.job import exit_code, parse
from workflows.registry import Registry
from workflows.report import table_line

NUM_ROWS = 3000
THREES = {"label": 3, "stroke": "medium"}


@pytest.fixture(scope="session")
def conditional(trained: Trained, ray_address: str, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Digits given their label and stroke, of which the latter has nulls."""
    folder = tmp_path_factory.mktemp("conditional")
    options = (
        *("--data.path", str(trained.table), "--data.key", "id", "--data.condition", '["label", "stroke"]', "--run.name", "told"),
        *("--registry.model_name", "told", "--training.epochs", "30", "--training.global_batch_size", "64", "--cluster.num_workers", "1"),
        *("--training.learning_rate", "3e-3", "--model.hidden_dims", "[64]", "--model.latent_dim", "8"),
    )
    outcome = run_job(folder, "train.py", *options, "--cluster.address", ray_address)
    assert outcome.code == 0, outcome.stderr
    return Trained(folder, trained.table, options, outcome)


def generate(conditional: Trained, address: str, output: Path, *more: object) -> Outcome:
    options = ("--model", "models:/told@candidate", "--num_rows", NUM_ROWS, "--output.path", output, "--cluster.address", address)
    return run_job(conditional.folder, "generate.py", *options, *more)


def report_of(outcome: Outcome) -> dict[str, Any]:
    report: dict[str, Any] = json.loads(Path(outcome.json["report"]).read_text())
    return report


@pytest.fixture(scope="session")
def threes(conditional: Trained, ray_address: str) -> Outcome:
    condition = ("--condition", json.dumps(THREES))
    return generate(
        conditional, ray_address, conditional.folder / "threes", *condition, "--cluster.num_actors", 1, "--output.rows_per_file", 900
    )


@pytest.fixture(scope="session")
def drawn(conditional: Trained, ray_address: str) -> Outcome:
    return generate(conditional, ray_address, conditional.folder / "drawn", "--data.path", conditional.table, "--seed", 5)


def rows_of(outcome: Outcome) -> pa.Table:
    return ds.dataset(outcome.json["output_path"]).to_table()


def training_rows(conditional: Trained) -> pa.Table:
    table = pq.read_table(conditional.table)
    place = RowGroup("digits", "0" * 16, 0, 0, len(table))
    return table.filter(pa.array(split_of(hash_key_column(table["id"], place, "id"), 0.1, 0.0) == TRAIN))


def pixels(table: pa.Table) -> np.ndarray[Any, Any]:
    return np.stack(table["image"].to_numpy())


def test_the_decision_and_the_bound_are_of_the_modelled_columns(conditional: Trained) -> None:
    before = conditional.outcome.stderr.split("epoch 1/30")[0]
    for column in ("label", "stroke"):
        assert any(line.split()[:1] == [column] and "categorical (condition)" in line for line in before.splitlines())
    bundle = open_bundle(Registry(conditional.tracking_uri).pin("models:/told@candidate").files)
    architecture: dict[str, Any] = bundle.model.architecture
    assert [field["name"] for field in architecture["condition_fields"]] == ["condition_categorical"]
    assert {field["name"] for field in architecture["fields"]} == {"image_0", "numeric"}
    encoding = TableEncoding.from_json(bundle.table)
    table = pq.read_table(conditional.table)
    place = RowGroup("digits", "0" * 16, 0, 0, len(table))
    held = table.filter(pa.array(split_of(hash_key_column(table["id"], place, "id"), 0.1, 0.0) != TRAIN))
    rows = Rows.from_arrays(encoding.encode(held, "digits"))
    with torch.no_grad():
        noise = torch.randn(64, rows.num_rows, 8, generator=torch.Generator().manual_seed(1))
        elbo = float(bundle.model.evaluate_elbo(rows, noise).elbo.double().mean())
        order = torch.randperm(rows.num_rows, generator=torch.Generator().manual_seed(0))
        other = Rows(rows.values | {"condition_categorical": rows.values["condition_categorical"][order]}, rows.valid, rows.log_jacobian)
        permuted = float(bundle.model.evaluate_elbo(other, noise).elbo.double().mean())
    assert conditional.json["validation"]["elbo_nats_per_row"] == pytest.approx(elbo, abs=0.5)
    assert permuted < elbo - 5


def test_pyfunc_takes_the_condition_columns_as_it_takes_the_others(conditional: Trained) -> None:
    mlflow.set_tracking_uri(conditional.tracking_uri)
    info = mlflow.models.get_model_info("models:/told@candidate")
    assert info.signature.inputs.input_names() == ["image", "label", "ink", "stroke"]
    model = mlflow.pyfunc.load_model("models:/told@candidate")
    frame = pd.read_parquet(conditional.table / "part-0.parquet").head(50)
    scores, others = (model.predict(each, params={"task": "score"}) for each in (frame, frame.assign(label=(frame["label"] + 1) % 10)))
    assert others["elbo_nats_per_row"].mean() < scores["elbo_nats_per_row"].mean() - 5
    assert model.predict(frame).shape == (50, 8)
    with pytest.raises(Exception, match="label"):
        model.predict(frame.drop(columns="label"))


def test_embedding_and_filling_take_the_condition_from_the_table(conditional: Trained, ray_address: str, tmp_path: Path) -> None:
    options = ("--model", "models:/told@candidate", "--data.path", conditional.table, "--cluster.address", ray_address)
    embedded = run_job(
        conditional.folder,
        "encode.py",
        *options,
        "--output.path",
        tmp_path / "z",
        "--output.columns",
        "[mean, elbo, reconstruction, anomaly]",
    )
    filled = run_job(conditional.folder, "reconstruct.py", *options, "--output.path", tmp_path / "filled")
    rows = ds.dataset(embedded.json["output_path"]).to_table().sort_by("id")
    frame = pd.read_parquet(conditional.table).sort_values("id")
    mlflow.set_tracking_uri(conditional.tracking_uri)
    predicted = mlflow.pyfunc.load_model("models:/told@candidate").predict(frame).to_numpy()
    np.testing.assert_allclose(np.stack(rows["z_mean"].to_numpy()), predicted, atol=1e-5)
    assert {name for names in rows["anomaly_columns"].to_pylist() for name in names} == {"image", "ink"}
    assert set(rows.schema.field("reconstruction").type.names) == {"image", "ink"}
    after = ds.dataset(filled.json["output_path"]).to_table().sort_by("id")
    assert after["ink"].null_count == 0
    assert after["stroke"].equals(ds.dataset(conditional.table).to_table().sort_by("id")["stroke"])  # what is given is not filled


def test_every_row_has_the_condition_and_looks_like_it(conditional: Trained, threes: Outcome) -> None:
    rows, real = rows_of(threes), pq.read_table(conditional.table)
    assert rows.num_rows == NUM_ROWS
    assert rows.schema.remove_metadata().equals(real.schema.remove_metadata())
    assert rows["label"].to_pylist() == [3] * NUM_ROWS
    assert rows["stroke"].to_pylist() == ["medium"] * NUM_ROWS
    assert rows["id"].to_pylist() == list(range(NUM_ROWS))
    classifier = LogisticRegression(max_iter=5000).fit(pixels(real) / 16, real["label"].to_numpy())
    share = float((classifier.predict(pixels(rows) / 16) == 3).mean())
    assert share > 0.8  # without the condition it is the label's share of the rows, 0.1
    ink = [np.array(table["ink"].drop_null()) for table in (rows, real)]
    assert ink[0].std() < 0.6 * ink[1].std()  # a medium stroke's ink lies in the middle third


def test_drawn_conditions_are_heeded_row_by_row(conditional: Trained, drawn: Outcome) -> None:
    rows, real = rows_of(drawn), pq.read_table(conditional.table)
    classifier = LogisticRegression(max_iter=5000).fit(pixels(real) / 16, real["label"].to_numpy())
    agreed = classifier.predict(pixels(rows) / 16) == rows["label"].to_numpy()
    assert agreed.mean() > 0.7
    training = training_rows(conditional)
    for name in ("label", "stroke"):
        values = training[name].to_pylist()
        expected = {value: values.count(value) / len(values) for value in set(values)}
        found = {item["values"]: item["counts"] / NUM_ROWS for item in rows[name].value_counts().to_pylist()}
        assert found == pytest.approx(expected, abs=0.03), name


def test_actors_and_files_do_not_matter(conditional: Trained, threes: Outcome, ray_address: str, tmp_path: Path) -> None:
    condition = ("--condition", json.dumps(THREES))
    two = generate(conditional, ray_address, tmp_path / "two", *condition, "--cluster.num_actors", 2, "--output.rows_per_file", 900)
    names = sorted(path.name for path in Path(two.json["output_path"]).iterdir() if path.is_file() and path.name != "_SUCCESS")
    assert names == ["_job.json", "_report.json", "_report.md", *(f"part-{i:05d}.parquet" for i in range(4))]
    for name in names:
        assert (tmp_path / "two" / name).read_bytes() == (Path(threes.json["output_path"]) / name).read_bytes(), name
    other = generate(conditional, ray_address, tmp_path / "other", *condition, "--cluster.num_actors", 2, "--output.rows_per_file", 701)
    assert len(list((tmp_path / "other").glob("*.parquet"))) == 5
    assert rows_of(other).equals(rows_of(threes))


def test_a_second_run_does_nothing_and_another_condition_is_refused(conditional: Trained, threes: Outcome, ray_address: str) -> None:
    output, more = Path(threes.json["output_path"]), ("--output.rows_per_file", 900)
    before = {path: path.stat().st_mtime_ns for path in output.rglob("*")}
    again = generate(conditional, ray_address, output, "--condition", json.dumps(THREES), *more)
    assert again.json["report"] == threes.json["report"]
    assert {path: path.stat().st_mtime_ns for path in output.rglob("*")} == before
    code, message = refused(conditional, "--output.path", output, *more, "--condition", json.dumps(THREES | {"label": 4}))
    assert (code, "condition is {'label': 3" in message) == (73, True)


@pytest.mark.parametrize(
    ("kind", "unit"),
    [("timestamp[us, tz=UTC]", "us"), ("date32[day]", "day"), ("time64[ns]", "ns"), ("dictionary<values=time32[s], ..", "s")],
)
def test_the_reports_page_says_the_unit_of_a_standard_deviation_of_points_in_time(kind: str, unit: str) -> None:
    side = {"null_rate": 0.0, "mean": "2024-02-27", "standard_deviation": 1500.0, "quantiles": None}
    entry = {"kind": "timestamp", "type": kind, "condition": False, "real": side, "synthetic": side | {"standard_deviation": 20.5}}
    assert f"| 1500 {unit} / 20.5 {unit} |" in table_line("when", entry)
    assert "| 1500 / 20.5 |" in table_line("number", entry | {"kind": "numeric", "type": "double"})


def test_a_table_given_or_left_out_later_changes_what_the_report_counts_and_no_row(
    conditional: Trained, ray_address: str, tmp_path: Path
) -> None:
    few, counted = ("--num_rows", 20), ("--data.path", conditional.table)
    at_once = report_of(generate(conditional, ray_address, tmp_path / "at_once", *few, *counted))
    first = generate(conditional, ray_address, tmp_path / "out", *few)
    assert report_of(first)["exact_copies"] is None
    rows = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.parquet")}
    assert report_of(generate(conditional, ray_address, tmp_path / "out", *few, *counted)) == at_once
    assert "1,797 rows" in (tmp_path / "out" / "_report.md").read_text()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    for more in (counted, ()):
        assert report_of(generate(conditional, ray_address, tmp_path / "out", *few, *more)) == at_once
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")} == before
    assert rows.items() <= before.items()


def refused(conditional: Trained, *arguments: object) -> tuple[int, str]:
    """Returns exit code and message of a job that must be refused without Ray."""
    options = ("--model", "models:/told@candidate", "--num_rows", NUM_ROWS, "--registry.tracking_uri", conditional.tracking_uri)
    with pytest.raises(Exception) as caught:  # noqa: PT011  its code and message are what is asserted
        generate_job.main(parse(GenerateConfig, [str(argument) for argument in (*options, *arguments)]))
    assert not ray.is_initialized()
    return exit_code(caught.value), str(caught.value)


@pytest.mark.parametrize(
    ("condition", "said"),
    [
        ({"label": 10, "stroke": "bold"}, "'label' is 10, which the model does not know"),
        ({"label": 3}, "'stroke' is missing"),
        (THREES | {"ink": 4.5}, "'ink' is no condition of the model"),
        (THREES | {"label": "three"}, "'label' is 'three': the column is int32"),
    ],
)
def test_a_condition_that_cannot_be_is_refused_with_those_that_can(
    condition: dict[str, Any], said: str, conditional: Trained, tmp_path: Path
) -> None:
    code, message = refused(conditional, "--output.path", tmp_path / "out", "--condition", json.dumps(condition))
    assert code == 2
    assert said in message
    assert "'label' (one of 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, or null), 'stroke' (one of 'bold', 'light', 'medium', or null)" in message
    assert not (tmp_path / "out").exists()


def test_a_table_that_does_not_fit_is_refused_before_a_row_is_made(conditional: Trained, tmp_path: Path) -> None:
    (tmp_path / "table").mkdir()
    pq.write_table(pq.read_table(conditional.table).drop_columns("label"), tmp_path / "table" / "a.parquet")
    code, message = refused(conditional, "--output.path", tmp_path / "out", "--data.path", tmp_path / "table")
    assert (code, "'label' is missing" in message) == (65, True)
    assert not (tmp_path / "out").exists()


def test_the_report_has_the_figures_of_both_tables(conditional: Trained, drawn: Outcome) -> None:
    report = report_of(drawn)
    tables = {"real": training_rows(conditional), "synthetic": rows_of(drawn)}
    assert report["num_training_rows"] == tables["real"].num_rows == conditional.json["train"]["num_rows"]
    assert (report["num_rows"], report["seed"], report["condition"]) == (NUM_ROWS, 5, None)
    assert list(report["columns"]) == ["image", "label", "ink", "stroke"]
    assert [name for name, entry in report["columns"].items() if entry["condition"]] == ["label", "stroke"]
    for side, table in tables.items():
        for name in ("label", "ink", "stroke"):
            assert report["columns"][name][side]["null_rate"] == pytest.approx(table[name].null_count / table.num_rows)
        numbers = {"ink": table["ink"].drop_null().to_numpy(), "image": pixels(table)}
        for name, values in numbers.items():
            figures = report["columns"][name][side]
            assert (figures["mean"], figures["standard_deviation"]) == pytest.approx((values.mean(), values.std()), rel=1e-9)
        exact = np.quantile(numbers["ink"], LEVELS, method="lower")
        np.testing.assert_allclose(report["columns"]["ink"][side]["quantiles"], exact, rtol=1 / 64)
    for name in ("label", "stroke"):
        entry = report["columns"][name]
        shares = []
        for side, table in tables.items():
            values = table[name].to_pylist()
            shares.append(np.array([values.count(value) / len(values) for value in [*entry["categories"], None]]))
            assert entry[side]["frequencies"] == pytest.approx(shares[-1][:-1].tolist())
        assert entry["total_variation"] == pytest.approx(0.5 * np.abs(shares[0] - shares[1]).sum())
    assert any("not anonymous" in note for note in report["notes"])
    assert any("drawn column by column" in note for note in report["notes"])


def test_the_page_says_what_a_person_must_know(threes: Outcome, drawn: Outcome) -> None:
    fixed, free = (Path(outcome.json["report"]).with_suffix(".md").read_text() for outcome in (threes, drawn))
    for page in (fixed, free):
        assert "Synthetic is not anonymous" in page
        assert "| ink | numeric | 0.05" in page
    assert 'condition: {"label": 3, "stroke": "medium"}' in fixed
    assert "real figures are over all training rows" in fixed
    assert "Copies of training rows were not counted" in fixed
    assert f"of {NUM_ROWS:,} rows equal some of the 1,797 rows of {drawn_path(drawn)}" in free


def drawn_path(drawn: Outcome) -> str:
    return str(report_of(drawn)["exact_copies"]["path"])


def test_copies_are_counted_in_all_modelled_columns_and_in_no_others(
    conditional: Trained, threes: Outcome, drawn: Outcome, ray_address: str, tmp_path: Path
) -> None:
    real = {tuple(row.values()) for row in hashable(pq.read_table(conditional.table))}
    copies = report_of(drawn)["exact_copies"]
    assert copies["columns"] == ["image", "ink"]
    assert copies["num_rows"] == 1797
    assert copies["num_copies"] == sum(tuple(row.values()) in real for row in hashable(rows_of(drawn)))
    rows = rows_of(threes)
    planted = rows.slice(100, 40).set_column(rows.schema.get_field_index("label"), "label", pa.array([7] * 40, pa.int32()))
    (tmp_path / "table").mkdir()
    pq.write_table(pa.concat_tables([pq.read_table(conditional.table), planted]), tmp_path / "table" / "a.parquet", row_group_size=300)
    condition = ("--condition", json.dumps(THREES), "--data.path", tmp_path / "table")
    found = report_of(generate(conditional, ray_address, tmp_path / "out", *condition))["exact_copies"]
    known = real | {tuple(row.values()) for row in hashable(planted)}
    assert found["num_copies"] == sum(tuple(row.values()) in known for row in hashable(rows)) >= 40
    assert found["num_rows"] == 1837


def hashable(table: pa.Table) -> list[dict[str, Any]]:
    return [{"image": tuple(row["image"]), "ink": row["ink"]} for row in table.select(["image", "ink"]).to_pylist()]


@pytest.mark.slow
def test_a_bundle_without_marginals_still_generates_and_says_so(trained: Trained, ray_address: str, tmp_path: Path) -> None:
    bundle = open_bundle(Registry(trained.tracking_uri).pin("models:/digits@candidate").files)
    save_bundle(tmp_path / "bundle", bundle.model, {key: value for key, value in bundle.table.items() if key != "marginals"})
    options = ("--model", tmp_path / "bundle", "--num_rows", 50, "--output.path", tmp_path / "out", "--cluster.address", ray_address)
    report = report_of(run_job(tmp_path, "generate.py", *options))
    assert report["num_training_rows"] is report["columns"]["ink"]["real"] is report["columns"]["label"]["total_variation"] is None
    assert report["columns"]["ink"]["synthetic"]["mean"] > 0
    assert any("kept no marginals" in note for note in report["notes"])
    code, message = refused(trained, "--model", tmp_path / "bundle", "--output.path", tmp_path / "other", "--condition", '{"label": 3}')
    assert code == 2
    assert "'label' is no condition of the model; the model has no condition" in message


@pytest.mark.slow
def test_columns_of_every_kind_condition(ray_address: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    size = 400
    gone = rng.random(size) < 0.1
    spots = [None if missing else spot for spot, missing in zip(rng.normal(size=(size, 2)).tolist(), gone, strict=True)]
    table = pa.table(
        {
            "x": rng.normal(size=size),
            "weight": pa.array(rng.normal(size=size), pa.float32(), mask=gone),
            "visits": pa.array(rng.poisson(40, size), pa.uint16()),
            "price": pa.array([Decimal(int(cents)) / 100 for cents in rng.integers(0, 10**5, size)], pa.decimal128(9, 2)),
            "owner": rng.random(size) < 0.5,
            "town": pa.array(rng.choice(["Bonn", "Ulm"], size)).dictionary_encode(),
            "moment": pa.array(rng.integers(10**9, 2 * 10**9, size)).cast(pa.timestamp("s")),
            "spot": pa.array(spots, pa.list_(pa.float32(), 2)),
            "pixels": pa.array(rng.integers(0, 255, (size, 4)).tolist(), pa.list_(pa.uint8(), 4)),
        }
    )
    (tmp_path / "table").mkdir()
    pq.write_table(table, tmp_path / "table" / "a.parquet", row_group_size=100)
    told = [name for name in table.column_names if name != "x"]
    model = ("--model.hidden_dims", "[8]", "--model.latent_dim", 2, "--training.epochs", 2, "--run.name", "kinds", "--data.columns")
    here = ("--cluster.address", ray_address)
    overrides = '{"pixels": {"kind": "image"}, "visits": {"kind": "count"}}'
    trained = run_job(tmp_path, "train.py", *model, overrides, "--data.path", "table", "--data.condition", json.dumps(told), *here)
    assert trained.code == 0, trained.stderr
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path / 'mlflow.db'}")
    served = mlflow.pyfunc.load_model(trained.json["model_uri"])
    assert np.isfinite(served.predict(table.slice(0, 50).to_pandas())).all().all()
    assert isinstance(served.input_example["price"][0], float)
    assert np.isfinite(served.predict(served.input_example)).all().all()
    given = {"weight": None, "visits": 7, "price": "12.34", "owner": True, "town": "Ulm", "moment": "2024-02-29T12:00:00"}
    condition = json.dumps(given | {"spot": None, "pixels": [0, 1, 2, 255]})
    options = ("--model", tmp_path / "runs" / "kinds" / "bundle", "--num_rows", 20, "--output.path", tmp_path / "out")
    rows = rows_of(run_job(tmp_path, "generate.py", *options, "--condition", condition, *here))
    assert rows.column_names == table.column_names
    assert len(set(rows["x"].to_pylist())) == 20
    expected = given | {"price": Decimal("12.34"), "moment": datetime(2024, 2, 29, 12), "spot": None, "pixels": [0, 1, 2, 255]}
    assert all({name: row[name] for name in told} == expected for row in rows.to_pylist())
    with pytest.raises(ConditionError, match=r"\['spot', 'pixels'\] cannot be drawn"):
        generate_job.main(parse(GenerateConfig, [str(option) for option in options]))


@pytest.mark.slow
def test_a_conditional_model_is_evaluated_given_the_rows_own_conditions(conditional: Trained, ray_address: str) -> None:
    few = (
        "--audit.num_rows",
        2,
        "--audit.num_importance_samples",
        50,
        "--num_importance_samples",
        10,
        "--evaluate.num_generated_rows",
        500,
    )
    output = ("--output.path", conditional.folder / "evaluation", "--evaluate.label", "label", "--baselines.max_rows", 300)
    options = ("--model", "models:/told@candidate", "--data.path", conditional.table, "--cluster.address", ray_address)
    line = run_job(conditional.folder, "evaluate.py", *options, *output, *few).json
    report = json.loads((Path(line["output_path"]) / "_report.json").read_text())
    absent = [name for name, section in report.items() if isinstance(section, dict) and "left_out" in section]
    assert absent == ["drift"]  # which keeps these rows as its reference
    columns = set(report["scores"]["log_likelihood_nats_per_row_by_column"])
    assert "image" in columns
    assert not columns & {"label", "stroke"}
    assert report["generated"]["marginals"]["label"]["total_variation"] < 0.1


def test_compared_rows_are_told_the_conditions_of_both_sides_in_turn_and_which_come_together(conditional: Trained) -> None:
    bundle = open_bundle(Registry(conditional.tracking_uri).pin("models:/told@candidate").files)
    encoding, rows = TableEncoding.from_json(bundle.table), pq.read_table(conditional.table)
    told = conditions_of(encoding, rows.slice(0, 70), rows.slice(100, 50))
    assert told is not None
    in_turn = [place for first in range(50) for place in (first, 100 + first)]
    expected = rows.select(["label", "stroke"]).take(in_turn).to_pylist()
    assert told.to_pylist() == expected
    made = RowGenerator(bundle.model, bundle.table, 1000, 0, told)
    of_two_chunks = pa.concat_tables([made.chunk(0), made.chunk(1)]).select(["label", "stroke"]).to_pylist()
    assert of_two_chunks == [expected[place % 100] for place in range(len(of_two_chunks))]
