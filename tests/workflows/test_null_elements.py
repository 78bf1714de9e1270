"""Claims about lists that are null in some rows, and in others have null elements: generated rows have them where real ones would."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from data.marginals import marginals, summarise_rows
from tests.small_models import encoding_of, small_model
from workflows.generation import RowGenerator

NUM_ROWS = 3000


@pytest.fixture(scope="module")
def table() -> pa.Table:
    """Lists are null in a fifth of the rows; their second element where the number is positive, their third in 3 of 10 rows of either."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=NUM_ROWS)
    holes = np.stack([np.zeros(NUM_ROWS), x > 0, rng.random(NUM_ROWS) < 0.3], 1).astype(bool)
    elements = pa.array(rng.normal([5, 0, -3], 1, (NUM_ROWS, 3)).reshape(-1), pa.float32(), mask=holes.reshape(-1))
    lists = pa.FixedSizeListArray.from_arrays(elements, 3, mask=pa.array(rng.random(NUM_ROWS) < 0.2))
    return pa.table({"x": x, "list": lists})


@pytest.fixture(scope="module")
def made(table: pa.Table) -> pa.Table:
    encoding = encoding_of(table)
    model = small_model(encoding, table, 1e-2)
    return RowGenerator(model, encoding.to_json() | {"null_pattern": True}, 4096, 0, None).chunk(0)


def test_lists_and_their_elements_are_null_as_often_as_real_ones(table: pa.Table, made: pa.Table) -> None:
    assert made.schema.field("list").type == pa.list_(pa.float32())  # fixed-size lists that are null cannot be read back
    sides = [[row for row in rows["list"].to_pylist() if row is not None] for rows in (table, made)]
    assert len(sides[1]) / made.num_rows == pytest.approx(0.8, abs=0.04)
    assert {len(row) for row in sides[1]} == {3}
    real, generated = ([np.mean([row[place] is None for row in side]) for place in range(3)] for side in sides)
    assert generated == pytest.approx(real, abs=0.04)
    assert generated[0] == pytest.approx(0, abs=0.005)


def test_elements_are_null_in_the_rows_in_which_real_ones_would_be(made: pa.Table) -> None:
    there = made.filter(pc.is_valid(made["list"]))
    second = np.array([row[1] is None for row in there["list"].to_pylist()])
    x = there["x"].to_numpy()
    assert x[second].mean() > 0.5
    assert x[~second].mean() < -0.5
    values = np.array([[np.nan if cell is None else cell for cell in row] for row in there["list"].to_pylist()])
    assert np.nanmean(values, 0) == pytest.approx([5, 0, -3], abs=0.25)


def test_marginals_of_generated_rows_count_them(table: pa.Table, made: pa.Table) -> None:
    encoding = encoding_of(table)
    real, generated = (marginals(encoding, summarise_rows(encoding, rows))["columns"]["list"] for rows in (table, made))
    assert generated["element_null_rate"] == pytest.approx(real["element_null_rate"], abs=0.03)
    assert generated["null_rate"] == pytest.approx(real["null_rate"], abs=0.04)
