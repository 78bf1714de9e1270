"""Claims about determined columns from the table to the model and back: generated and filled rows keep the rule, the bound knows it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from data.encoding import TableEncoding
from tests.running import run_job
from tests.small_models import encoding_of, small_model
from vae import Rows
from workflows.generation import RowGenerator

NUM_ROWS = 2000
SCHOOLS = ["none", "primary", "secondary", "college", "university", "doctorate"]


@pytest.fixture(scope="module")
def table() -> pa.Table:
    """Schooling twice, by name and in years, and an income that follows it."""
    rng = np.random.default_rng(0)
    level = rng.choice(6, NUM_ROWS, p=[0.05, 0.15, 0.4, 0.2, 0.15, 0.05])
    return pa.table(
        {
            "school": np.array(SCHOOLS)[level],
            "years": pa.array(np.array([0, 6, 12, 14, 16, 20])[level], mask=rng.random(NUM_ROWS) < 0.1),
            "income": rng.normal(level, 1.0),
        }
    )


def test_generated_rows_keep_the_rule_and_the_bound_knows_it(table: pa.Table) -> None:
    ruled = encoding_of(table)
    plain = replace(ruled, columns=tuple(replace(column, determined_by=None) for column in ruled.columns))
    assert [column.determined_by for column in ruled.columns] == [None, "school", None]
    assert TableEncoding.from_json(ruled.to_json()) == ruled
    elbos = {}
    for name, encoding in (("ruled", ruled), ("plain", plain)):
        model = small_model(encoding, table, 5e-3)
        rows = Rows.from_arrays(encoding.encode(table, "here"))
        with torch.no_grad():
            elbos[name] = float(
                model.evaluate_elbo(rows, torch.randn(8, NUM_ROWS, 4, generator=torch.Generator().manual_seed(1))).elbo.mean()
            )
        made = RowGenerator(model, encoding.to_json() | {"null_pattern": True}, 4096, 0, None).chunk(0).to_pandas().dropna()
        broken = (made["years"] != made["school"].map(dict(zip(SCHOOLS, [0, 6, 12, 14, 16, 20], strict=True)))).mean()
        assert broken < 0.003 if name == "ruled" else broken > 0.003
    assert elbos["ruled"] > elbos["plain"]


def test_what_is_trained_by_the_job_fills_in_what_is_determined(table: pa.Table, ray_address: str, tmp_path: Path) -> None:
    pq.write_table(table, tmp_path / "people.parquet", row_group_size=300)
    common = ("--cluster.address", ray_address)
    options = ("--training.epochs", 1, "--model.hidden_dims", "[8]", "--model.latent_dim", 2, "--cluster.num_workers", 1)
    trained = run_job(tmp_path, "train.py", *common, "--data.path", tmp_path / "people.parquet", *options)
    assert "determined by 'school'" in " ".join(trained.stderr.split())
    reading = ("--model", trained.json["model_uri"], "--data.path", tmp_path / "people.parquet", "--output.path", tmp_path / "filled")
    filled = run_job(tmp_path, "reconstruct.py", *common, *reading).json
    assert filled["num_rows"] == NUM_ROWS
    rows = pq.read_table(tmp_path / "filled").to_pandas()
    assert (rows["years"] == rows["school"].map(dict(zip(SCHOOLS, [0, 6, 12, 14, 16, 20], strict=True)))).all()
