"""Claims about spikes: the value on a grid that many rows have is known exactly, comes back exactly, and leaves the others their scale."""

from __future__ import annotations

from datetime import date
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from data.columns import Rules, decide_columns
from data.encoding import TableEncoding
from data.statistics import merge_all, summarise_table
from vae import VAE
from workflows.architecture import architecture
from workflows.model_config import ModelConfig

N = 4000
LAST_DAY = date(9999, 12, 31)


def fit(column: pa.Array, rows_per_leaf: int = 1000) -> TableEncoding:
    table = pa.table({"x": column})
    leaves = [table.slice(begin, rows_per_leaf) for begin in range(0, len(table), rows_per_leaf)]
    summary = merge_all(summarise_table(leaf, (len(leaf), 0, 0)) for leaf in leaves)
    return TableEncoding(table.schema, tuple(decide_columns(table.schema, summary, None, {}, Rules())), None)


def beside(spike: Any, others: list[Any], kind: pa.DataType) -> pa.Array:
    """Returns a column three in ten of whose values are the spike."""
    where = np.random.default_rng(1).random(len(others)) < 0.3
    return pa.array([spike if here else other for here, other in zip(where, others, strict=True)], kind)


def draws() -> Any:
    return np.random.default_rng(0)


CASES = {
    "prices": (19.99, np.round(draws().normal(50, 15, N), 2).tolist(), pa.float64(), False),
    "decimals": (Decimal("19.99"), [Decimal(int(v)).scaleb(-2) for v in draws().normal(5000, 1500, N)], pa.decimal128(9, 2), False),
    "within": (500, np.rint(draws().normal(500, 150, N)).astype(int).tolist(), pa.int64(), False),
    "far": (999_999, draws().integers(0, 100, N).tolist(), pa.int32(), True),
    "many": (999_999, draws().integers(0, 30_000, N).tolist(), pa.int64(), True),
    "days": (LAST_DAY, [date.fromordinal(737_000 + int(v)) for v in draws().integers(0, 1500, N)], pa.date32(), True),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("rows_per_leaf", [300, N])
def test_a_spike_is_the_value_itself_wherever_it_is(case: str, rows_per_leaf: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data.statistics.MAX_DISTINCT_INTEGERS", 2000)  # fewer than "many" has
    spike, others, kind, far = CASES[case]
    values = beside(spike, others, kind)
    encoding = fit(values, rows_per_leaf)
    (column,) = encoding.columns
    assert column.spike is not None
    share = sum(value == spike for value in values.to_pylist()) / N
    assert column.spike[1] == pytest.approx(share, abs=2 / 2000)  # what is counted of too many values may be so much too low
    assert (column.width is not None) == far
    arrays = encoding.encode(pa.table({"x": values}), "here")
    (name,) = (field.name for field in encoding.fields)
    back = encoding.decode_column("x", arrays[name], np.ones(N, np.bool_))
    assert back.equals(values)


@pytest.mark.parametrize("case", ["far", "days"])
def test_a_far_spike_is_drawn_exactly_and_the_others_keep_their_scale(case: str) -> None:
    spike, others, kind, _ = CASES[case]
    values = beside(spike, others, kind)
    encoding = fit(values)
    torch.manual_seed(0)
    model = VAE(**architecture(encoding, ModelConfig(latent_dim=2, hidden_dims=[8]), N))
    drawn = model.generate(20_000, torch.Generator().manual_seed(0))
    (name,) = (field.name for field in encoding.fields)
    rows = encoding.decode_column("x", drawn.values[name].numpy(), np.ones(20_000, np.bool_))
    number, found = (np.asarray(part.cast(pa.int32())).astype(np.float64) for part in (pa.array([spike], kind), rows))
    assert np.mean(found == number) > 0.2  # the model is not trained
    assert not ((found != number) & (np.abs(found - number) < 1e-6 * number)).any()
    assert encoding.columns[0].width == pytest.approx(np.asarray(values.cast(pa.int32()))[np.asarray(values) != spike].std(), rel=0.2)


def test_a_spike_near_the_others_leaves_the_column_as_it_is() -> None:
    """Of fees, say, which some do not pay: the others lie a few of their deviations away."""
    rng = np.random.default_rng(2)
    values = np.where(rng.random(N) < 0.3, 0, np.rint(rng.normal(5000, 1000, N)).clip(1)).astype(int)
    (column,) = fit(pa.array(values)).columns
    assert (column.spike, column.width) == ([0.0, (values == 0).mean()], None)
