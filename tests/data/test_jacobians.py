"""Claims about data.jacobians: by column, what the encoding sums by row."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from data.columns import Rules, decide_columns
from data.encoding import TableEncoding
from data.fields import LOG_JACOBIAN
from data.jacobians import column_log_jacobians
from data.statistics import summarise_table

NUM_ROWS = 400
OVERRIDES = {"image": {"kind": "image", "shape": [2, 3]}}


def mixed_table() -> pa.Table:
    """Returns rows of every kind of column, most with nulls."""
    random = np.random.default_rng(0)

    def with_nulls(values: np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> pa.Array:
        return pa.array(values, mask=random.random(NUM_ROWS) < 0.2)

    return pa.table(
        {
            "number": with_nulls(random.normal(3, 7, NUM_ROWS)),
            "heavy": with_nulls(np.exp(4 * random.normal(size=NUM_ROWS))),
            "price": with_nulls(np.round(random.normal(20, 5, NUM_ROWS), 2)),
            "whole": with_nulls(random.integers(-500, 500, NUM_ROWS)),
            "count": with_nulls(np.floor(np.exp(3 * random.normal(size=NUM_ROWS))).astype(np.int64)),
            "flag": with_nulls(random.random(NUM_ROWS) < 0.3),
            "letter": pa.array(random.choice(list("abc"), NUM_ROWS)),
            "vector": pa.FixedSizeListArray.from_arrays(pa.array(random.normal(0, 3, NUM_ROWS * 4)), 4),
            "image": pa.FixedSizeListArray.from_arrays(pa.array(random.integers(0, 256, NUM_ROWS * 6).astype(np.uint8)), 6),
        }
    )


def encoding_of(table: pa.Table) -> TableEncoding:
    summary = summarise_table(table, (len(table), 0, 0))
    return TableEncoding(table.schema, tuple(decide_columns(table.schema, summary, None, OVERRIDES, Rules())), None)


def test_the_columns_log_jacobians_sum_to_the_rows() -> None:
    table = mixed_table()
    encoding = encoding_of(table)
    arrays = encoding.encode(table, "table")
    by_column = column_log_jacobians(encoding, arrays)
    assert by_column.shape == (NUM_ROWS, len(encoding.field_columns))
    np.testing.assert_allclose(by_column.sum(1), arrays[LOG_JACOBIAN], rtol=1e-5, atol=1e-6)
    assert {field.kind for field in encoding.fields} >= {"numeric", "integer", "warped", "boolean", "categorical", "vector", "image"}


def test_a_missing_cell_has_none() -> None:
    table = mixed_table()
    encoding = encoding_of(table)
    by_column = column_log_jacobians(encoding, encoding.encode(table, "table"))
    missing = np.asarray(table["number"].is_null())
    column = by_column[:, encoding.field_columns.index("number")]
    assert (column[missing] == 0).all()
    assert (column[~missing] != 0).all()
