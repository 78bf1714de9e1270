"""Claims about workflows.served_model: what MLflow's pyfunc makes of frames, without a store."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from tests.small_models import encoding_of, small_model
from vae.rows import Rows
from workflows.served_model import ROWS_AT_ONCE, ServedVAE

NUM_ROWS = 2 * ROWS_AT_ONCE + 100


@pytest.fixture(scope="module")
def table() -> pa.Table:
    random = np.random.default_rng(0)
    x, missing = random.normal(size=NUM_ROWS), random.random(NUM_ROWS) < 0.1
    return pa.table({"x": pa.array(x, mask=missing), "c": np.where(x + random.normal(size=NUM_ROWS) > 0, "a", "b")})


@pytest.fixture(scope="module")
def served(table: pa.Table) -> ServedVAE:
    model = ServedVAE()
    model.encoding = encoding_of(table)
    model.model = small_model(model.encoding, table.slice(0, 500), 1e-2, num_steps=50)
    return model


@pytest.fixture
def sizes(served: ServedVAE, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows the encoder was given at a time."""
    found: list[int] = []
    posterior = served.model.posterior

    def counted(rows: Rows) -> Any:
        found.append(rows.num_rows)
        return posterior(rows)

    monkeypatch.setattr(served.model, "posterior", counted)
    return found


@pytest.mark.parametrize("task", ["encode", "score", "reconstruct"])
def test_what_the_layers_take_does_not_grow_with_the_frame(served: ServedVAE, table: pa.Table, sizes: list[int], task: str) -> None:
    frame = table.to_pandas()
    found = served.predict(None, frame, {"task": task})
    assert (len(found), max(sizes), sum(sizes)) == (NUM_ROWS, ROWS_AT_ONCE, NUM_ROWS)
    first = served.predict(None, frame.iloc[:ROWS_AT_ONCE], {"task": task})
    if task == "encode":  # of a row alone; the other tasks draw noise, which depends on the frame
        pd.testing.assert_frame_equal(found.iloc[:ROWS_AT_ONCE], first)
    assert len(served.predict(None, frame.iloc[:0], {"task": task})) == 0
