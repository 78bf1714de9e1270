"""Claims about columns of rounded numbers, from the table to the model and back: masses sum to 1, the bound is tight, rounding is kept."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import torch
from numpy.typing import NDArray

from data.encoding import TableEncoding
from data.heaps import told_apart
from tests.small_models import encoding_of, small_model
from vae import VAE, Rows
from vae.mixtures import WarpedDiscretisedLogistics
from workflows.architecture import architecture
from workflows.generation import RowGenerator
from workflows.model_config import ModelConfig

NUM_ROWS = 3000
# The share that each of two instruments rounds to hundreds.
OLD, NEW = 0.95, 0.2


def normal_cdf(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(torch.special.ndtr(torch.from_numpy(x)))


@pytest.fixture(scope="module")
def table() -> pa.Table:
    """Concentrations that one of two instruments mostly rounds to hundreds, and the other seldom."""
    rng = np.random.default_rng(0)
    old = rng.random(NUM_ROWS) < 0.5
    gas = np.exp(rng.normal(6.8, 0.8, NUM_ROWS))
    rounded = rng.random(NUM_ROWS) < np.where(old, OLD, NEW)
    return pa.table({"old": old, "gas": pa.array(np.where(rounded, (gas / 100).round() * 100, gas.round()))})


@pytest.fixture(scope="module")
def encoding(table: pa.Table) -> TableEncoding:
    return encoding_of(table)


@pytest.fixture(scope="module")
def model(table: pa.Table, encoding: TableEncoding) -> VAE:
    return small_model(encoding, table, 5e-3, num_steps=1000)


def exact_log_likelihood(table: pa.Table) -> float:
    """Returns the mean of log p of the rows under what drew them."""
    old, gas = table["old"].to_numpy(), table["gas"].to_numpy()
    mass = [
        normal_cdf((np.log(gas + half) - 6.8) / 0.8) - normal_cdf((np.log(np.maximum(gas - half, 1e-9)) - 6.8) / 0.8)
        for half in (0.5, 50.0)
    ]
    share = np.where(old, OLD, NEW)
    p = (1 - share) * mass[0] + np.where(gas % 100 == 0, share * mass[1], 0.0)
    return float(np.log(0.5 * p).mean())


@torch.no_grad()
def test_masses_of_all_whole_numbers_sum_to_one(encoding: TableEncoding) -> None:
    torch.manual_seed(0)
    model = VAE(**architecture(encoding, ModelConfig(2, [8])))
    x = np.arange(0.0, 400_000)
    rows = Rows.from_arrays(encoding.encode(pa.table({"old": pa.nulls(len(x), pa.bool_()), "gas": x}), "here"))
    for _ in range(3):
        p = model.likelihood(torch.randn(1, 2).expand(len(x), -1)).log_prob(rows).exp().double().numpy()
        assert p.sum() == pytest.approx(1, abs=2e-3)
        assert p[x % 100 == 0].sum() > 0.3


@torch.no_grad()
def test_a_column_and_its_model_tell_the_same_multiples_from_their_neighbours(encoding: TableEncoding) -> None:
    """Two formulas, of NumPy and of torch: what the decision for a column counts on is what the model does."""
    x = 100 * np.unique(np.geomspace(1, 10**7, 2000).round())
    cells = Rows.from_arrays(encoding.encode(pa.table({"old": pa.nulls(len(x), pa.bool_()), "gas": x}), "here")).values["warped"]
    likelihood = VAE(**architecture(encoding, ModelConfig(2, [8]))).likelihoods["warped"]
    assert isinstance(likelihood, WarpedDiscretisedLogistics)
    assert likelihood.heaps is not None
    _, is_multiple, told = likelihood.heaps.intervals(cells)
    assert 0.3 < told.float().mean() < 0.9
    assert told[:, 0].tolist() == told_apart(encoding.columns[1], x).tolist()
    assert is_multiple[told].all()


def test_the_bound_is_near_the_exact_log_likelihood_and_far_above_that_of_single_steps(
    table: pa.Table, encoding: TableEncoding, model: VAE
) -> None:
    column = encoding.columns[1]
    assert column.heap is not None
    assert column.heap[:2] == [100.0, 0.0]
    assert column.heap[2] == pytest.approx((OLD + NEW) / 2, abs=0.03)
    rows = Rows.from_arrays(encoding.encode(table, "here"))
    with torch.no_grad():
        elbo = float(model.evaluate_elbo(rows, torch.randn(8, NUM_ROWS, 4)).elbo.mean())
    exact = exact_log_likelihood(table)
    assert exact - 0.15 < elbo < exact + 0.05  # the rows are those that the model was trained on
    x = np.log(table["gas"].to_numpy() + 0.5)
    of_single_steps = -0.5 * np.log(2 * np.pi * np.e * x.var()) - x.mean() + np.log(0.5)
    assert elbo > of_single_steps + 1


def test_generated_rows_are_rounded_where_real_ones_are(table: pa.Table, encoding: TableEncoding, model: VAE) -> None:
    made = RowGenerator(model, encoding.to_json() | {"null_pattern": True}, 4096, 0, None).chunk(0)
    old, gas = made["old"].to_numpy(zero_copy_only=False), made["gas"].to_numpy()
    assert (gas == gas.round()).all()
    for is_old, share in ((True, OLD), (False, NEW)):
        assert (gas[old == is_old] % 100 == 0).mean() == pytest.approx(share + (1 - share) / 100, abs=0.05)
    real = table["gas"].to_numpy()
    levels = [0.05, 0.25, 0.5, 0.75, 0.95]
    assert np.abs(np.quantile(gas, levels) - np.quantile(real, levels)).max() < 0.05 * np.subtract(*np.quantile(real, [0.95, 0.05]))
