"""Missing cells against the exact answer, through the whole path: Parquet, training, bundle, reconstruction.

The figures are those of tests/vae/test_missing.py: probabilistic PCA fitted by EM to the observed cells has a mean log p(x_observed) of
6.7611 nats per row, the best diagonal posterior an ELBO of 6.7354, and EM a root mean squared error of imputation of 0.2115.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from data.encoding import TableEncoding
from tests.running import run_job
from tests.vae.linear_models import digits, observed_digits, observed_log_evidence
from vae import Rows
from vae.bundle import open_bundle
from workflows.registry import Registry

# The bound of 8 samples makes the decoder's gradients less noisy; what is reported is the plain ELBO.
OPTIONS = (
    *("--model.network", "mlp", "--model.decoder_network", "linear", "--model.hidden_dims", "[256]", "--model.latent_dim", 5),
    *("--model.null_pattern", "false", "--data.validation_fraction", 0, "--objective.kind", "iwae", "--cluster.num_workers", 1),
    *("--training.epochs", 300, "--training.global_batch_size", 128, "--training.learning_rate", "1e-2", "--training.ema_decay", "0.99"),
)


@pytest.mark.slow
def test_training_with_missing_cells_reaches_the_exact_density_through_the_whole_path(ray_address: str, tmp_path: Path) -> None:
    x, observed = digits().float().numpy(), observed_digits().numpy()
    table = pa.table({"pixels": pa.FixedSizeListArray.from_arrays(pa.array(x.reshape(-1), mask=~observed.reshape(-1)), 64)})
    path = tmp_path / "table" / "digits.parquet"
    path.parent.mkdir()
    pq.write_table(table, path, row_group_size=300)

    trained = run_job(tmp_path, "train.py", "--data.path", path, *OPTIONS, "--cluster.address", ray_address).json
    bundle = open_bundle(Registry(f"sqlite:///{tmp_path / 'mlflow.db'}").pin(trained["model_uri"]).files)
    rows = Rows.from_arrays(TableEncoding.from_json(bundle.table).encode(table, "digits"))
    (name,) = rows.values
    assert (rows.valid[name].numpy() == observed).all()
    assert 6.75 < observed_log_evidence(bundle.model, rows, name).mean() < 6.7612
    assert 6.5 < trained["train"]["elbo_nats_per_row"] < 6.7354 + 0.01  # eight samples a row leave less noise than that

    filled = ("--data.path", path, "--output.path", tmp_path / "filled", "--cluster.address", ray_address)
    assert run_job(tmp_path, "reconstruct.py", "--model", "models:/vae@candidate", *filled).json
    (file,) = (tmp_path / "filled").rglob("*.parquet")
    after = np.asarray(pc.list_flatten(pq.read_table(file)["pixels"].combine_chunks())).reshape(x.shape)
    assert after.dtype == np.float32
    assert after[observed].tobytes() == x[observed].tobytes()
    assert np.sqrt(np.square(after - x)[~observed].mean()) < 0.2125
