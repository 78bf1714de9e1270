"""The exact answer that training must reach, through the whole path: Parquet, Ray, DDP, MLflow."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from sklearn.datasets import load_digits

from data.encoding import TableEncoding
from tests.running import run_job
from vae import Rows
from vae.bundle import open_bundle
from vae.oracle import fit_ppca
from workflows.registry import Registry


@pytest.mark.slow
def test_training_reaches_the_closed_form_maximum_through_the_whole_path(ray_address: str, tmp_path: Path) -> None:
    """A linear VAE on one vector column is probabilistic PCA (Tipping & Bishop 1999), whose maximum likelihood is known."""
    pixels = (load_digits().data[:1437] / 16).astype(np.float32)
    table = pa.table({"pixels": pa.FixedSizeListArray.from_arrays(pa.array(pixels.reshape(-1)), 64)})
    pq.write_table(table, tmp_path / "digits.parquet", row_group_size=300)
    maximum = fit_ppca(torch.from_numpy(pixels).double(), 5).mean_log_evidence
    assert abs(maximum - 9.006) < 1e-3

    options = ("--model.network", "linear", "--model.latent_dim", 5, "--data.validation_fraction", 0)
    schedule = ("--training.epochs", 100, "--training.learning_rate", "5e-2", "--training.global_batch_size", 64)
    trained = run_job(
        tmp_path, "train.py", "--data.path", tmp_path / "digits.parquet", *options, *schedule, "--cluster.address", ray_address
    ).json
    reported = trained["train"]["elbo_nats_per_row"]
    assert maximum - 0.05 < reported < maximum + 0.01  # eight samples a row leave 0.002 of noise above the bound

    bundle = open_bundle(Registry(f"sqlite:///{tmp_path / 'mlflow.db'}").pin(trained["model_uri"]).files)
    rows = Rows.from_arrays(TableEncoding.from_json(bundle.table).encode(table, "digits"))
    noise = torch.randn(100, 1437, 5, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        elbo = bundle.model.evaluate_elbo(rows, noise).elbo.double().mean()
    assert maximum - 0.05 < elbo < maximum + 0.003
