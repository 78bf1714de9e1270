"""Claims about data.encoding: rows go to arrays and come back, exact up to float32 of the standardised value."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from decimal import Decimal
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.columns import Column, decide_columns
from data.encoding import LOG_JACOBIAN, TableEncoding, numbers_to_arrow
from data.shard import layout
from data.statistics import TableSummary, summarise, to_float64
from data.table import DataError

FLOAT32_EPS = float(np.finfo(np.float32).eps)
FLOAT64_EPS = float(np.finfo(np.float64).eps)


def fit(table: pa.Table, overrides: Mapping[str, Mapping[str, Any]] | None = None, key: str | None = None) -> TableEncoding:
    summary = TableSummary((len(table), 0, 0), {name: summarise(table[name]) for name in table.column_names})
    return TableEncoding(table.schema, tuple(decide_columns(table.schema, summary, key, overrides or {})), key)


def round_trip(encoding: TableEncoding, table: pa.Table) -> pa.Table:
    """Returns the table's modelled columns, encoded and decoded; a row of a list is there when any element of it is."""
    arrays = encoding.encode(table, "here")
    decoded = {}
    for field in encoding.fields:
        begin, flags = 0, 0
        for column in field.columns:
            cells = arrays[field.name][:, begin : begin + column.size]
            valid = arrays[f"{field.name}.valid"]
            width = valid.shape[1] if column.kind in ("vector", "image") else 1
            there = np.asarray(valid[:, flags : flags + width].any(1))
            decoded[column.name] = encoding.decode_column(column.name, cells, there)
            begin, flags = begin + column.size, flags + width
    return pa.table([decoded[name] for name in encoding.modelled], schema=pa.schema([encoding.schema.field(n) for n in encoding.modelled]))


def column_named(encoding: TableEncoding, name: str) -> Column:
    return next(column for column in encoding.columns if column.name == name)


def rounding(kind: pa.DataType, values: np.ndarray[Any, Any]) -> Any:
    """Returns what the column's own type may round away."""
    if pa.types.is_integer(kind):
        return 0.5
    if pa.types.is_decimal(kind):
        return 0.5 * 10.0**-kind.scale
    return np.maximum(np.finfo(kind.to_pandas_dtype()).eps * np.abs(values), float(np.finfo(kind.to_pandas_dtype()).smallest_subnormal))


def assert_close(decoded: pa.Array, original: pa.Array, mean: Any, scale: float, kind: pa.DataType) -> None:
    """Equal up to float32 of y, float64 of the sum mean + scale y, and the type's own step."""
    found, expected = to_float64(decoded), to_float64(original)
    assert (np.isnan(found) == np.isnan(expected)).all()
    found, expected, mean = (np.broadcast_to(a, expected.shape)[~np.isnan(expected)] for a in (found, expected, np.asarray(mean)))
    y = np.abs(expected - mean) / scale
    in_float32 = 2 * FLOAT32_EPS * scale * np.maximum(1, y)
    in_float64 = 8 * FLOAT64_EPS * (np.abs(expected) + np.abs(mean))
    assert (np.abs(found - expected) <= in_float32 + in_float64 + rounding(kind, expected)).all()
    if pa.types.is_integer(kind):
        exact = in_float32 + in_float64 < 0.49
        assert (found[exact] == expected[exact]).all()


INTEGERS = [pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64()]
DECIMALS = [pa.decimal128(5, 2), pa.decimal128(38, 10), pa.decimal128(18, 18), pa.decimal128(20, 0), pa.decimal256(50, 3)]


def numbers_of(kind: pa.DataType) -> st.SearchStrategy[Any]:
    if pa.types.is_integer(kind):
        bounds = np.iinfo(kind.to_pandas_dtype())
        low, high = int(bounds.min), int(bounds.max)
        return st.one_of(st.integers(low, high), st.integers(max(low, -100), 100), st.sampled_from([low, high]))
    if pa.types.is_decimal(kind):
        whole = min(10**kind.precision - 1, 10**30)
        return st.integers(-whole, whole).map(lambda value: Decimal(value).scaleb(-kind.scale))
    if pa.types.is_float16(kind):
        return st.floats(width=16, allow_nan=False, allow_infinity=False).map(np.float16)
    if pa.types.is_float32(kind):
        return st.floats(-(2.0**100), 2.0**100, width=32)
    return st.floats(-1e100, 1e100)


@st.composite
def numeric_columns(draw: st.DrawFn) -> pa.Array:
    kind = draw(st.sampled_from([*INTEGERS, *DECIMALS, pa.float16(), pa.float32(), pa.float64()]))
    values = draw(st.lists(st.one_of(st.none(), numbers_of(kind)), min_size=2, max_size=12))
    return pa.array(values, kind)


@settings(max_examples=300, deadline=None)
@given(column=numeric_columns())
def test_numbers_of_every_type_come_back(column: pa.Array) -> None:
    table = pa.table({"x": column, "beside": pa.array([True] + [False] * (len(column) - 1))})
    encoding = fit(table, {"x": {"kind": "numeric"}})
    if "x" not in encoding.modelled:
        assert column_named(encoding, "x").reason in ("constant", "all null in the training rows")
        return
    decided = column_named(encoding, "x")
    decoded = round_trip(encoding, table)
    assert decoded.schema.field("x").type == column.type
    assert_close(decoded["x"].combine_chunks(), column, decided.mean[0], decided.scale, column.type)


ELEMENTS = [pa.float16(), pa.float32(), pa.float64(), pa.uint8(), pa.int8(), pa.int64(), pa.uint64(), pa.decimal128(9, 2)]


@st.composite
def vector_columns(draw: st.DrawFn) -> pa.Array:
    element = draw(st.sampled_from(ELEMENTS))
    size = draw(st.integers(1, 5))
    make = draw(st.sampled_from([pa.list_, pa.large_list, lambda kind: pa.list_(kind, size)]))
    cell = st.one_of(st.none(), numbers_of(element)) if draw(st.booleans()) else numbers_of(element)
    row = st.lists(cell, min_size=size, max_size=size)
    values = draw(st.lists(st.one_of(st.none(), row), min_size=2, max_size=8))
    return pa.array(values, make(element))


@settings(max_examples=300, deadline=None)
@given(column=vector_columns(), shape=st.booleans())
def test_vectors_and_images_of_every_type_come_back(column: pa.Array, shape: bool) -> None:
    table = pa.table({"v": column, "beside": pa.array([True] + [False] * (len(column) - 1))})
    as_image = shape and column.type.value_type == pa.uint8() and any(row is not None for row in column.to_pylist())
    size = next((len(row) for row in column.to_pylist() if row is not None), 1)
    encoding = fit(table, {"v": {"kind": "image", "shape": [1, size]}} if as_image else {})
    if "v" not in encoding.modelled:
        assert column_named(encoding, "v").reason.startswith(("all null", "lists without elements"))
        return
    decided = column_named(encoding, "v")
    name = "image_0" if decided.kind == "image" else "vector_0"
    arrays = encoding.encode(table, "here")
    rows = column.to_pylist()
    present = np.array([[row is not None and row[i] is not None for i in range(size)] for row in rows])
    assert (np.broadcast_to(arrays[f"{name}.valid"], present.shape) == present).all()
    assert (arrays[name][~present] == 0).all()
    back = encoding.decode_column("v", arrays[name], np.array([row is not None for row in rows]))
    assert back.type == column.type
    assert [row is None for row in back.to_pylist()] == [row is None for row in rows]
    kind = column.type.value_type
    for index in range(size):
        cells = [(a[index], b[index]) for a, b in zip(back.to_pylist(), rows, strict=True) if b is not None and b[index] is not None]
        found, expected = (pa.array([pair[i] for pair in cells], kind) for i in (0, 1))
        if decided.kind == "image":
            assert found == expected
        else:
            assert_close(found, expected, decided.mean[index], decided.scale, kind)


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
EXACT: list[tuple[pa.DataType, st.SearchStrategy[Any], str]] = [
    (pa.bool_(), st.booleans(), "boolean"),
    (pa.string(), texts, "categorical"),
    (pa.large_string(), texts, "categorical"),
    (pa.dictionary(pa.int8(), pa.string()), texts, "categorical"),
    (pa.dictionary(pa.int32(), pa.large_string()), texts, "categorical"),
    *((kind, numbers_of(kind), "categorical") for kind in INTEGERS),
]


@settings(max_examples=200, deadline=None)
@given(drawn=st.sampled_from(EXACT).flatmap(lambda e: st.tuples(st.just(e), st.lists(st.one_of(st.none(), e[1]), min_size=1, max_size=12))))
def test_booleans_and_categories_of_every_type_come_back_exactly(drawn: Any) -> None:
    (kind, _, wish), values = drawn
    plain = pa.array(values, kind.value_type if pa.types.is_dictionary(kind) else kind)
    table = pa.table({"x": plain.cast(kind), "beside": pa.array(np.arange(len(values)) / 3.0)})
    if len(values) < 2:
        table = pa.concat_tables([table, pa.table({"x": pa.nulls(1, kind), "beside": pa.array([9.0])})])
    encoding = fit(table, {"x": {"kind": wish}})
    if "x" in encoding.modelled:
        decoded = round_trip(encoding, table)["x"]
        assert decoded.type == kind
        assert decoded.to_pylist() == table["x"].to_pylist()
    else:
        assert len(set(values) - {None}) < 2


@cache
def mixed(num_rows: int = 40) -> pa.Table:
    """A table with a column of every kind, nulls in all of them."""
    random = np.random.default_rng(5)

    def with_nulls(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
        lost = random.random(num_rows) < 0.3
        return pa.array([None if gone else value for gone, value in zip(lost, values, strict=True)], kind)

    vectors = [[None if random.random() < 0.2 else float(x) for x in row] for row in random.normal(3, 2, (num_rows, 3))]
    return pa.table(
        {
            "id": pa.array([f"row {i}" for i in range(num_rows)]),
            "price": with_nulls(random.normal(100, 7, num_rows).tolist(), pa.float64()),
            "weight": with_nulls(random.normal(-1, 0.01, num_rows).tolist(), pa.float32()),
            "amount": with_nulls([int(x) % 90 for x in random.integers(0, 10**9, num_rows)], pa.int32()),
            "flag": with_nulls((random.random(num_rows) < 0.4).tolist(), pa.bool_()),
            "colour": with_nulls(random.choice(["red", "green", "blue"], num_rows).tolist(), pa.string()),
            "code": with_nulls([int(x) for x in random.integers(0, 4, num_rows)], pa.int8()),
            "coded": with_nulls(random.choice(["x", "y"], num_rows).tolist(), pa.string()).dictionary_encode(),
            "whole_vector": with_nulls(random.normal(0, 5, (num_rows, 2)).tolist(), pa.list_(pa.float32())),
            "holed_vector": with_nulls(vectors, pa.list_(pa.float64())),
            "bytes": with_nulls([[int(b) for b in row] for row in random.integers(0, 9, (num_rows, 5))], pa.list_(pa.uint8())),
            "pixels": with_nulls([[int(b) for b in row] for row in random.integers(0, 256, (num_rows, 4))], pa.list_(pa.uint8())),
            "free": pa.array([f"text {i}" for i in range(num_rows)]),
        }
    )


@cache
def mixed_encoding() -> TableEncoding:
    return fit(mixed(), {"amount": {"kind": "numeric"}}, "id")


def test_every_kind_is_in_the_mixed_table() -> None:
    fields = {field.name: [column.name for column in field.columns] for field in mixed_encoding().fields}
    assert fields == {
        "numeric": ["price", "weight"],
        "integer": ["amount"],
        "boolean": ["flag"],
        "categorical": ["colour", "code", "coded"],
        "vector_0": ["whole_vector"],
        "vector_1": ["holed_vector"],
        "vector_2": ["bytes"],
        "image_0": ["pixels"],
    }


def test_flags_say_what_is_there_and_missing_cells_are_zero() -> None:
    table, encoding = mixed(), mixed_encoding()
    arrays = encoding.encode(table, "here")
    for field in encoding.fields:
        cells, valid = arrays[field.name], arrays[f"{field.name}.valid"]
        assert valid.shape[1] == field.valid_size
        flags = np.repeat(valid, field.size // valid.shape[1], 1)
        assert (cells[~flags] == 0).all()
        assert (~flags).any()
        if field.kind not in ("vector", "image"):
            for index, column in enumerate(field.columns):
                assert valid[:, index].tolist() == table[column.name].is_valid().to_pylist()


def test_standardised_cells_have_mean_zero_and_variance_one() -> None:
    arrays = mixed_encoding().encode(mixed(), "here")
    for name in ("numeric", "integer"):
        for index in range(arrays[name].shape[1]):
            observed = arrays[name][arrays[f"{name}.valid"][:, index], index].astype(np.float64)
            assert abs(observed.mean()) < 1e-6
            assert abs(observed.var() - 1) < 1e-6
    vector = arrays["vector_1"].astype(np.float64)
    valid = arrays["vector_1.valid"]
    assert (np.abs((vector * valid).sum(0) / valid.sum(0)) < 1e-6).all()
    assert abs((vector[valid] ** 2).mean() - 1) < 1e-6


def test_the_log_jacobian_is_minus_the_log_scale_of_every_observed_continuous_cell() -> None:
    table, encoding = mixed(), mixed_encoding()
    expected = np.zeros(len(table))
    for row, values in enumerate(table.to_pylist()):
        for name in ("price", "weight", "whole_vector", "holed_vector"):
            cells = values[name] if isinstance(values[name], list) else [values[name]]
            observed = sum(cell is not None for cell in cells)
            expected[row] -= observed * math.log(column_named(encoding, name).scale)
    found = encoding.encode(table, "here")[LOG_JACOBIAN]
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert len(set(found.tolist())) > 10


def test_arrays_are_what_the_layout_says_and_can_be_written() -> None:
    for table in (mixed(), mixed().slice(0, 0), mixed().schema.empty_table(), mixed().slice(3, 1)):
        arrays = mixed_encoding().encode(table, "here")
        shapes = layout(mixed_encoding())
        assert set(arrays) == set(shapes)
        for name, (dtype, width) in shapes.items():
            assert arrays[name].dtype == dtype
            assert arrays[name].shape == ((len(table), width) if width else (len(table),))
            assert arrays[name].flags.writeable


@settings(max_examples=40, deadline=None)
@given(begin=st.integers(0, 40), length=st.integers(0, 40), step=st.integers(1, 9))
def test_slices_and_chunks_are_encoded_as_the_rows_they_hold(begin: int, length: int, step: int) -> None:
    table, encoding = mixed(), mixed_encoding()
    whole = encoding.encode(table, "here")
    sliced = table.slice(begin, length)
    chunked = pa.concat_tables([sliced.slice(i, step) for i in range(0, max(len(sliced), 1), step)])
    taken = table.take(pa.array(range(begin, min(begin + length, 40)), pa.int64()))
    for rows in (sliced, chunked, taken):
        for name, array in encoding.encode(rows, "here").items():
            assert array.tobytes() == whole[name][begin : begin + length].tobytes()


@pytest.mark.parametrize("make", [lambda k: pa.list_(k), lambda k: pa.large_list(k), lambda k: pa.list_(k, 2)])
def test_what_lies_under_a_null_list_is_not_read(make: Any) -> None:
    kind = make(pa.float32())
    rows = pa.array([[1, 2], [77, 88], [3, 4], [5, 7]], kind)
    if pa.types.is_fixed_size_list(kind):
        masked = pa.FixedSizeListArray.from_arrays(rows.values, type=kind, mask=pa.array([False, True, False, False]))
    else:
        masked = type(rows).from_arrays(rows.offsets, rows.values, mask=pa.array([False, True, False, False]))
    encoding = fit(pa.table({"v": masked}))
    assert column_named(encoding, "v").mean == pytest.approx([3, 13 / 3])
    arrays = encoding.encode(pa.table({"v": masked}), "here")
    assert arrays["vector_0"][1].tolist() == [0, 0]
    assert arrays["vector_0.valid"][:, 0].tolist() == [True, False, True, True]


def test_an_unseen_category_is_missing() -> None:
    encoding = fit(pa.table({"c": ["a", "b"], "n": pa.array([1, 2], pa.int8())}), {"c": {"kind": "categorical"}})
    arrays = encoding.encode(pa.table({"c": ["b", "z", None], "n": pa.array([9, 2, None], pa.int8())}), "here")
    assert arrays["categorical"].tolist() == [[1, 0], [0, 1], [0, 0]]
    assert arrays["categorical.valid"].tolist() == [[True, False], [False, True], [False, False]]


def test_a_dictionary_of_its_own_does_not_change_the_codes() -> None:
    kind = pa.dictionary(pa.int8(), pa.string())
    encoding = fit(pa.table({"c": pa.array(["a", "b", "c", "a"]).cast(kind)}))
    other = pa.DictionaryArray.from_arrays(pa.array([0, 1, 2, 3], pa.int8()), pa.array(["c", "z", None, "a"]))
    arrays = encoding.encode(pa.table({"c": other}), "here")
    assert arrays["categorical"][:, 0].tolist() == [2, 0, 0, 0]
    assert arrays["categorical.valid"][:, 0].tolist() == [True, False, False, True]


@pytest.mark.parametrize("kind", [pa.float32(), pa.uint8()], ids=str)
def test_a_list_of_another_length_is_refused_by_file_and_column(kind: pa.DataType) -> None:
    encoding = fit(pa.table({"v": pa.array([[1, 2, 3, 4], [2, 3, 4, 5]], pa.list_(kind))}))
    with pytest.raises(DataError, match=r"file\.parquet: column 'v' holds lists of lengths \[3, 4\]; the model has 4"):
        encoding.encode(pa.table({"v": pa.array([[1, 2, 3, 4], None, [1, 2, 3]], pa.list_(kind))}), "file.parquet")


@pytest.mark.parametrize("kind", [pa.float64(), pa.list_(pa.float64())], ids=str)
def test_nonfinite_values_are_refused_by_file_column_and_count(kind: pa.DataType) -> None:
    wrap = (lambda x: x) if kind == pa.float64() else (lambda x: [x])
    encoding = fit(pa.table({"x": pa.array([wrap(1.0), wrap(2.0)], kind)}))
    values = [wrap(float("nan")), None, wrap(float("inf")), wrap(1.0)]
    with pytest.raises(DataError, match=r"file\.parquet: column 'x' has 2 NaN or infinite values; store them as null"):
        encoding.encode(pa.table({"x": pa.array(values, kind)}), "file.parquet")


def test_elements_that_are_null_for_the_first_time_are_flagged_one_by_one() -> None:
    encoding = fit(pa.table({"v": pa.array([[1.0, 2.0], [3.0, 4.0]])}))
    arrays = encoding.encode(pa.table({"v": pa.array([[1.0, None], None, [1.0, 2.0]])}), "here")
    assert arrays["vector_0.valid"].tolist() == [[True, False], [False, False], [True, True]]
    assert arrays["vector_0"][0, 1] == 0
    log_scale = math.log(encoding.columns[0].scale)
    np.testing.assert_allclose(arrays[LOG_JACOBIAN], [-log_scale, 0, -2 * log_scale])


def test_check_schema_lists_every_difference_of_modelled_columns_and_no_other() -> None:
    encoding = mixed_encoding()
    encoding.check_schema(mixed().drop_columns(["id", "free"]).schema, "here")
    other = mixed().drop_columns(["flag", "free"]).set_column(1, "price", pa.array(["x"] * 40))
    with pytest.raises(DataError) as caught:
        encoding.check_schema(other.schema, "file.parquet")
    lines = str(caught.value).splitlines()
    assert lines[0] == "file.parquet: does not fit the model:"
    assert [line.strip() for line in lines[1:]] == [
        "column 'price' is string, the model was trained on double",
        "column 'flag' is missing",
    ]


def test_an_encoding_survives_json_to_the_last_bit() -> None:
    table, encoding = mixed(), mixed_encoding()
    back = TableEncoding.from_json(json.loads(json.dumps(encoding.to_json(), allow_nan=False)))
    assert back == encoding
    assert back.schema.equals(encoding.schema, check_metadata=True)
    once, twice = encoding.encode(table, "here"), back.encode(table, "here")
    assert {name: array.tobytes() for name, array in once.items()} == {name: array.tobytes() for name, array in twice.items()}


FINITE = [
    *INTEGERS,
    *DECIMALS,
    pa.decimal128(38, 38),
    pa.decimal128(38, 0),
    pa.decimal256(76, 0),
    pa.decimal128(5, -2),
    pa.float16(),
    pa.float32(),
    pa.float64(),
]


@pytest.mark.parametrize("kind", FINITE, ids=str)
def test_numbers_out_of_a_types_range_become_its_ends(kind: pa.DataType) -> None:
    found = to_float64(numbers_to_arrow(np.array([1e300, -1e300, 0.0]), kind, np.zeros(3, np.bool_)))
    assert np.isfinite(found).all()
    if pa.types.is_integer(kind):
        low, high = float(np.iinfo(kind.to_pandas_dtype()).min), float(np.iinfo(kind.to_pandas_dtype()).max)
    elif pa.types.is_decimal(kind):
        high = 10.0 ** (kind.precision - kind.scale) - 10.0**-kind.scale
        low = -high
    else:
        high = min(float(np.finfo(kind.to_pandas_dtype()).max), 1e300)
        low = -high
    np.testing.assert_allclose(found, [high, low, 0.0], rtol=1e-12)


@settings(max_examples=200, deadline=None)
@given(kind=st.sampled_from([pa.decimal128(5, 2), pa.decimal128(9, 0), pa.decimal128(12, 6)]), value=st.floats(-2e3, 2e3))
def test_decimals_are_rounded_to_their_scale(kind: pa.DataType, value: float) -> None:
    (found,) = numbers_to_arrow(np.array([value]), kind, np.zeros(1, np.bool_)).to_pylist()
    limit = 10.0 ** (kind.precision - kind.scale) - 10.0**-kind.scale
    assert abs(float(found) - min(max(value, -limit), limit)) <= 0.5 * 10.0**-kind.scale + 1e-12
