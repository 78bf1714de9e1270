"""Claims about workflows.reconstruct: which tables it takes."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from data.listing import DataError
from tests.small_models import encoding_of
from workflows.reconstruct import check_schema

TABLE = pa.table(
    {
        "x": np.random.default_rng(0).normal(size=200),
        "note": [f"free text {number}" for number in range(200)],
        "id": pa.array(range(200), pa.int32()),
        "all_null": pa.nulls(200, pa.float64()),
        "nested": [{"a": 1}] * 200,
    }
)


def test_columns_that_the_model_does_not_read_are_of_the_training_tables_types_too_or_refused_from_footers() -> None:
    encoding, others = encoding_of(TABLE), dict[str, None]()
    assert encoding.inputs == ["x"]
    check_schema(encoding, others, TABLE.schema, "here", ())
    stored = [("x", pa.float64()), ("note", pa.large_string()), ("id", pa.int8()), ("all_null", pa.null()), TABLE.schema.field("nested")]
    check_schema(encoding, others, pa.schema(stored), "here", ())  # what becomes the training table's types without loss
    wrong = pa.schema([stored[0], ("note", pa.int64()), ("id", pa.int64()), ("all_null", pa.string()), stored[-1]])
    with pytest.raises(DataError) as refused:
        check_schema(encoding, others, wrong, "here", ())
    for name in ("note", "id", "all_null"):
        assert f"column {name!r} is" in str(refused.value)
    check_schema(encoding, others, wrong, "here", ("note", "id", "all_null"))
