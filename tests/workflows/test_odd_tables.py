"""Tables with whatever columns there are: trained on, generated, embedded, served."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from data.split import TRAIN
from tests.running import Trained, run_job
from tests.small_models import encoding_of
from workflows import encode, evaluate_job, generate, reconstruct
from workflows.batch_config import EncodeConfig, GenerateConfig, ReconstructConfig
from workflows.checks import ConfigError
from workflows.evaluate_config import EvaluateConfig
from workflows.job import parse
from workflows.training import show_columns

SIZE = 120


@pytest.fixture(scope="module")
def rows() -> pa.Table:
    rng = np.random.default_rng(0)
    prices = [[Decimal(int(cents)) / 100 for cents in pair] for pair in rng.integers(0, 10**5, (SIZE, 2))]
    return pa.table(
        {
            "key": pa.array(np.arange(SIZE), pa.int8()),
            "x": pa.array(rng.normal(size=SIZE), mask=rng.random(SIZE) < 0.1),
            "x_standard_deviation": rng.random(SIZE),
            "z_mean": rng.normal(size=SIZE),
            "town": pa.array(rng.choice(["Bonn", "Ulm"], SIZE)).cast(pa.string_view()),
            "moment": pa.array(rng.integers(10**12, 2 * 10**12, SIZE)).cast(pa.timestamp("ms")),
            "clock": pa.array(rng.integers(0, 86_400 * 10**9, SIZE)).cast(pa.time64("ns")),
            "prices": pa.array(prices, pa.list_(pa.decimal128(9, 2), 2)),
            "holes": pa.array([[x if rng.random() < 0.7 else None for x in rng.normal(size=3)] if k % 5 else None for k in range(SIZE)]),
            "nested": pa.array([{"a": [number]} for number in range(SIZE)]),
            "words": pa.array([["a", "b"]] * SIZE),
            "uuid": pa.array([number.to_bytes(16, "big") for number in range(SIZE)], pa.uuid()),
        }
    )


@pytest.fixture(scope="module")
def odd(rows: pa.Table, ray_address: str, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("odd")
    (folder / "table").mkdir()
    pq.write_table(rows, folder / "table" / "a.parquet")
    options = ("--data.path", "table", "--data.key", "key", "--training.max_steps", "3", "--registry.model_name", "odd")
    here = ("--cluster.address", ray_address, "--cluster.num_workers", "1")
    return Trained(folder, folder / "table", options, run_job(folder, "train.py", *options, *here))


@pytest.fixture(scope="module")
def common(odd: Trained, ray_address: str) -> list[str]:
    here = ["--cluster.address", ray_address]  # else this process starts a Ray of its own, and leaves its environment to the next tests
    return [*here, "--model", "models:/odd@candidate", "--registry.tracking_uri", odd.tracking_uri, "--output.path"]


def test_columns_of_types_that_are_not_modelled_are_ignored_and_said(odd: Trained) -> None:
    assert odd.json["train"]["num_rows"] + odd.json["validation"]["num_rows"] == SIZE
    assert "Failed to validate serving input example" not in odd.outcome.stderr
    for name in ("nested", "words", "uuid"):
        (line,) = [line for line in odd.outcome.stderr.splitlines() if line.strip().startswith(name)]
        assert "ignored" in line


def test_generated_keys_count_further_than_the_tables_and_files_that_are_lost_are_made_again(common: list[str], tmp_path: Path) -> None:
    options = [*common, str(tmp_path / "out"), "--num_rows", "300", "--output.rows_per_file", "200"]
    generate.main(parse(GenerateConfig, options))
    made = pq.read_table(tmp_path / "out", partitioning=None)
    assert made["key"].to_pylist() == list(range(300))
    assert set(made["town"].to_pylist()) <= {"Bonn", "Ulm"}
    assert made["nested"].null_count == made["uuid"].null_count == 300
    holes = made["holes"].drop_null()
    assert 20 < made["holes"].null_count < 120  # 3 steps from their rate, 60
    assert 0.15 < pc.list_flatten(holes).null_count / (3 * len(holes)) < 0.45
    (line,) = [line for line in (tmp_path / "out" / "_report.md").read_text().splitlines() if line.startswith("| holes")]
    assert ", of elements 0.2" in line or ", of elements 0.3" in line
    files = {path.name: path.read_bytes() for path in (tmp_path / "out").glob("*.parquet")}
    (tmp_path / "out" / "part-00001.parquet").unlink()
    generate.main(parse(GenerateConfig, options))
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").glob("*.parquet")} == files
    fewer = generate.main(parse(GenerateConfig, [*common, str(tmp_path / "few"), "--num_rows", "10"]))
    assert pq.read_schema(Path(fewer["output_path"]) / "part-00000.parquet").field("key").type == pa.int8()


def test_it_is_evaluated(odd: Trained, common: list[str], tmp_path: Path) -> None:
    options = [*common, str(tmp_path / "out"), "--data.path", str(odd.table), "--audit.num_rows", "0"]
    assert evaluate_job.evaluate(parse(EvaluateConfig, options))["num_rows"] == odd.json["validation"]["num_rows"]


def test_names_that_an_output_would_have_twice_are_refused(odd: Trained, common: list[str], tmp_path: Path) -> None:
    options = [*common, str(tmp_path / "out"), "--data.path", str(odd.table)]
    with pytest.raises(ConfigError, match="the key is 'z_mean', which is the name of a column of the output too"):
        encode.main(parse(EncodeConfig, [*options, "--data.key", "z_mean"]))
    with pytest.raises(ConfigError, match=r"adds columns \['x_standard_deviation'\], which the table has already"):
        reconstruct.main(parse(ReconstructConfig, [*options, "--output.standard_deviations", "true"]))


def test_it_is_served(odd: Trained, rows: pa.Table) -> None:
    mlflow.set_tracking_uri(odd.tracking_uri)
    served = mlflow.pyfunc.load_model(odd.json["model_uri"])
    read = rows.set_column(rows.schema.get_field_index("clock"), "clock", rows["clock"].cast(pa.time64("us"), safe=False))
    frame = read.select([name for name in rows.column_names if name not in ("nested", "words", "uuid")]).to_pandas()
    z = served.predict(frame)
    assert np.isfinite(z).all().all()
    some = served.predict(frame[frame.index >= 100])
    assert some.index.tolist() == list(range(100, SIZE))
    np.testing.assert_allclose(some, z[100:], atol=1e-5)
    for name in ("x", "town", "moment", "clock", "prices"):
        without = frame.head(1).assign(**{name: np.nan})
        assert np.isfinite(served.predict(without)).all().all()
        filled = served.predict(without, params={"task": "reconstruct"})
        assert pd.notna(filled[name][0]) if name != "prices" else len(filled[name][0]) == 2


def test_a_column_that_is_not_read_is_not_said_to_be_null(capsys: pytest.CaptureFixture[str]) -> None:
    table = pa.table({"note": pa.array([{"a": 1}] * 4), "x": pa.array([0.5, None, 1.5, 2.0])})
    show_columns(encoding_of(table), {TRAIN: 4})
    note, x = (line.split() for line in capsys.readouterr().err.splitlines() if line.strip().startswith(("note", "x ")))
    assert note[:6] == ["note", "struct<a:", "int64>", "ignored", "not", "read"]
    assert x[:4] == ["x", "double", "numeric", "25.0%"]


def test_columns_are_shown_by_their_names_and_with_their_kinds_whatever_the_names(capsys: pytest.CaptureFixture[str]) -> None:
    names = ["price [/kg]", "speed [km/h]", "a:heart:b", "long" * 70]
    show_columns(encoding_of(pa.table({name: [0.5, 1.25, 2.0] for name in names})), {TRAIN: 3})
    shown = capsys.readouterr().err
    for name in (*names[:3], "long" * 10):
        line = next(line for line in shown.splitlines() if line.strip().startswith(name))
        assert line.strip().removeprefix(name).split()[:3] == ["double", "numeric", "0.0%"]
    assert shown.count("long") == 70
