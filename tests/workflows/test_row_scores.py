"""Claims about workflows.evaluation: what is said of a row is what the model says of it, by column too, in float64 and data units."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pytest
import torch

from data.columns import Rules, decide_columns
from data.conditions import conditioned
from data.encoding import TableEncoding
from data.marginals import marginals
from data.statistics import summarise_table
from vae import VAE, Rows
from workflows.architecture import architecture
from workflows.evaluation import RowScorer, effective_sample_size, score_fields
from workflows.model_config import ModelConfig
from workflows.scores import ELBO_SAMPLES, noise

NUM_ROWS = 300
NUM_SAMPLES = 40
Prior = Literal["standard", "mixture"]


def mixed_table() -> pa.Table:
    """Returns rows of most kinds of column, many with nulls, one on the scale of millions, one heavy-tailed."""
    random = np.random.default_rng(0)

    def with_nulls(values: Any) -> pa.Array:
        return pa.array(values, mask=random.random(NUM_ROWS) < 0.2)

    return pa.table(
        {
            "large": with_nulls(random.normal(3e6, 7e5, NUM_ROWS)),
            "heavy": with_nulls(np.exp(4 * random.normal(size=NUM_ROWS))),
            "price": with_nulls(np.round(random.normal(20, 5, NUM_ROWS), 2)),
            "count": with_nulls(np.floor(np.exp(3 * random.normal(size=NUM_ROWS))).astype(np.int64)),
            "flag": with_nulls(random.random(NUM_ROWS) < 0.3),
            "letter": pa.array(random.choice(list("abc"), NUM_ROWS)),
            "vector": pa.FixedSizeListArray.from_arrays(pa.array(random.normal(0, 30, NUM_ROWS * 4)), 4),
        }
    )


def scored(prior: Prior, condition: list[str]) -> tuple[VAE, TableEncoding, Rows, pa.Table]:
    """Returns an untrained model, its table's encoding and rows, and their scores."""
    table = mixed_table()
    summary = summarise_table(table, (len(table), 0, 0))
    columns = conditioned(decide_columns(table.schema, summary, None, {}, Rules()), condition)
    encoding = TableEncoding(table.schema, tuple(columns), None)
    torch.manual_seed(0)
    model = VAE(**architecture(encoding, ModelConfig(latent_dim=3, hidden_dims=[8], prior=prior))).double().eval()
    rows = Rows.from_arrays(encoding.encode(table, "table")).contiguous()
    scorer = RowScorer(model, encoding, marginals(encoding, summary), [], NUM_SAMPLES)
    fields = pa.schema(score_fields(3, encoding))
    return model, encoding, rows, pa.table(list(scorer.scores(rows, 5)), schema=fields)


CASES = pytest.mark.parametrize(("prior", "condition"), [("standard", []), ("mixture", []), ("standard", ["letter", "large"])])


@CASES
def test_the_columns_log_likelihoods_sum_to_the_rows_in_data_units(prior: Prior, condition: list[str]) -> None:
    model, encoding, rows, found = scored(prior, condition)
    generator = noise(5)
    with torch.inference_mode():
        q_z, told = model.posterior(rows), model.condition(rows)
        draws = [torch.randn(NUM_ROWS, 3, generator=generator, dtype=torch.float64) for _ in range(ELBO_SAMPLES)]
        expected = torch.stack([model.likelihood(q_z.rsample(one), told).log_prob(rows) for one in draws]).mean(0)
    columns = found["log_likelihood_nats_by_column"].combine_chunks()
    assert [field.name for field in columns.type] == encoding.field_columns
    assert set(encoding.field_columns).isdisjoint(condition)
    sums = sum(np.nan_to_num(part.to_numpy(zero_copy_only=False)) for part in columns.flatten())
    np.testing.assert_allclose(sums, expected.numpy(), rtol=1e-6)


@CASES
def test_elbo_is_expected_log_likelihood_minus_kl_and_the_bound_is_above_it(prior: Prior, condition: list[str]) -> None:
    *_, found = scored(prior, condition)
    values = {name: found[name].to_numpy() for name in found.column_names[:6]}
    np.testing.assert_allclose(values["elbo_nats"], values["expected_log_likelihood_nats"] - values["kl_nats"], rtol=1e-12)
    assert (values["log_evidence_bound_nats"] >= values["elbo_nats"]).all()
    assert (values["null_pattern_log_probability_nats"] < 0).all()
    assert ((values["effective_sample_size"] >= 1) & (values["effective_sample_size"] <= NUM_SAMPLES)).all()


def test_scores_do_not_depend_on_the_unit_of_a_column_but_for_its_logarithm() -> None:
    """What is compared are densities of data: metres for kilometres lower each observed cell's by log 1000."""
    *_, found = scored("standard", [])
    columns = found["log_likelihood_nats_by_column"].combine_chunks()
    large, vector = (columns.field(name).to_numpy(zero_copy_only=False) for name in ("large", "vector"))
    # An untrained decoder has unit scale in standardised units.
    assert np.nanmean(large) == pytest.approx(-np.log(7e5) - 0.5 * np.log(2 * np.pi) - 0.5, abs=0.5)
    assert np.nanmean(vector) == pytest.approx(4 * (-np.log(30) - 0.5 * np.log(2 * np.pi) - 0.5), abs=2.0)


def test_a_missing_cell_has_no_log_likelihood_and_is_not_blamed() -> None:
    *_, found = scored("standard", [])
    table = mixed_table()
    columns = found["log_likelihood_nats_by_column"].combine_chunks()
    for name in ("large", "heavy", "price", "count", "flag"):
        missing = np.asarray(table[name].is_null())
        np.testing.assert_array_equal(np.asarray(columns.field(name).is_null()), missing)
        blamed = found["worst_columns"].to_pylist()
        assert not any(name in names for names, absent in zip(blamed, missing, strict=True) if absent)
    assert all(names for names in found["worst_columns"].to_pylist())


def test_no_rows_have_no_scores() -> None:
    model, encoding, rows, _ = scored("standard", [])
    scorer = RowScorer(model, encoding, {}, [], NUM_SAMPLES)
    columns = list(scorer.scores(rows.slice(0, 0), 0))
    assert [len(column) for column in columns] == [0] * len(score_fields(3, encoding))


def test_the_effective_sample_size_is_k_of_equal_weights_and_1_of_one_that_outweighs_all() -> None:
    log_w = torch.zeros(10, 3, dtype=torch.float64)
    log_w[4, 1] = 500.0
    log_w[:, 2] = -1e5
    assert effective_sample_size(log_w).tolist() == pytest.approx([10.0, 1.0, 10.0])
