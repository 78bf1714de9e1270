"""Claims about data.encoding: rows go to arrays and come back, exact up to float32 of the standardised value."""

from __future__ import annotations

import datetime
import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from data import reading
from data.cells import LARGEST_CELL
from data.column import Column
from data.columns import Rules, decide_columns
from data.decoding import constant_array, numbers_to_arrow
from data.encoding import EncodingFormatError, TableEncoding
from data.fields import LOG_JACOBIAN
from data.listing import DataError
from data.reading import RowReader
from data.shard import layout
from data.statistics import TableSummary, summarise
from data.table import open_table
from data.types import from_ticks, integer_range, is_temporal, ticks_type, to_float64, to_ticks

FLOAT32_EPS = float(np.finfo(np.float32).eps)
FLOAT64_EPS = float(np.finfo(np.float64).eps)
DAY_MS = 86_400_000

INTEGERS = [pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64()]
DECIMALS = [
    *(pa.decimal32(7, 2), pa.decimal64(15, 4), pa.decimal128(5, 2), pa.decimal128(38, 10), pa.decimal128(18, 18), pa.decimal128(20, 0)),
    pa.decimal256(50, 3),
]
FLOATS = [pa.float16(), pa.float32(), pa.float64()]
UNITS = ["s", "ms", "us", "ns"]
TEMPORAL = [
    *(pa.date32(), pa.date64(), pa.time32("s"), pa.time32("ms"), pa.time64("us"), pa.time64("ns")),
    *(pa.timestamp(unit, zone) for unit in UNITS for zone in (None, "UTC", "Europe/Berlin", "+05:30")),
]


def fit(
    table: pa.Table,
    overrides: Mapping[str, Mapping[str, Any]] | None = None,
    key: str | None = None,
    nonfinite: str = "error",
    **rules: Any,
) -> TableEncoding:
    """Returns the encoding that training on all rows of a table would decide on."""
    summary = TableSummary((len(table), 0, 0), {name: summarise(table[name]) for name in table.column_names})
    columns = decide_columns(table.schema, summary, key, overrides or {}, Rules(nonfinite=nonfinite, **rules))  # type: ignore[arg-type]
    return TableEncoding(table.schema, tuple(columns), key, nonfinite)


def by_hand(kind: str, arrow: pa.DataType, nonfinite: str = "error", **numbers: Any) -> TableEncoding:
    """Returns the encoding of one column x of given numbers."""
    integer = arrow is not None and not (pa.types.is_floating(arrow) or pa.types.is_decimal(arrow) or pa.types.is_list(arrow))
    lower, upper = integer_range(arrow) if integer and kind in ("numeric", "count", "timestamp") else (None, None)
    given: dict[str, Any] = {"integer": integer, "shape": [1], "lower": lower, "upper": upper}
    column = Column("x", kind, "by hand", **given | numbers)
    return TableEncoding(pa.schema([("x", arrow)]), (column,), None, nonfinite)


def encode_x(encoding: TableEncoding, values: Any, unseen: Counter[str] | None = None) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Returns cells, flags and log-Jacobian of values of the one column x."""
    array = values if isinstance(values, pa.Array | pa.ChunkedArray) else pa.array(values, encoding.schema.field("x").type)
    arrays = encoding.encode(pa.table({"x": array}), "file.parquet", unseen)
    (field,) = encoding.fields
    return arrays[field.name], arrays[f"{field.name}.valid"], arrays[LOG_JACOBIAN]


def back_and_forth(encoding: TableEncoding, values: Any) -> pa.Array:
    cells, valid, _ = encode_x(encoding, values)
    return encoding.decode_column("x", cells, np.asarray(valid.any(1)))


def round_trip(encoding: TableEncoding, table: pa.Table) -> pa.Table:
    """Returns the table's modelled columns, encoded and decoded."""
    arrays = encoding.encode(table, "here")
    decoded = {}
    for field in encoding.fields:
        begin, flags = 0, 0
        for column in field.columns:
            cells = arrays[field.name][:, begin : begin + column.size]
            valid = arrays[f"{field.name}.valid"]
            width = valid.shape[1] if column.kind in ("vector", "image") else 1
            there = np.asarray(valid if column.element_nulls else valid[:, flags : flags + width].any(1))
            decoded[column.name] = encoding.decode_column(column.name, cells, there)
            begin, flags = begin + column.size, flags + width
    return pa.table([decoded[name] for name in encoding.modelled], schema=encoding.schema_of(encoding.modelled))


def column_named(encoding: TableEncoding, name: str) -> Column:
    return next(column for column in encoding.columns if column.name == name)


def rounding(kind: pa.DataType, values: NDArray[np.float64]) -> Any:
    """Returns what the column's own type may round away."""
    if pa.types.is_integer(kind) or is_temporal(kind):
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
    if pa.types.is_integer(kind) or is_temporal(kind):
        exact = in_float32 + in_float64 < 0.98 * rounding(kind, expected)
        assert (found[exact] == expected[exact]).all()


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


def columns_of(kinds: Sequence[pa.DataType], values_of: Callable[[pa.DataType], st.SearchStrategy[Any]]) -> st.SearchStrategy[pa.Array]:
    """Draws arrays of some type, with nulls, sliced out of larger ones and thus at any offset."""

    def arrays(kind: pa.DataType) -> st.SearchStrategy[pa.Array]:
        cells = st.lists(st.one_of(st.none(), values_of(kind)), min_size=2, max_size=12)
        return st.builds(lambda values, begin: pa.array([None] * begin + values, kind).slice(begin), cells, st.integers(0, 9))

    return st.sampled_from(kinds).flatmap(arrays)


@settings(max_examples=120)
@given(column=columns_of([*INTEGERS, *DECIMALS, *FLOATS], numbers_of))
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


@settings(max_examples=60)
@given(base=st.integers(-(2**50), 2**50), offsets=st.lists(st.integers(-(10**6), 10**6), min_size=2, max_size=30, unique=True))
def test_integers_far_beyond_float32_come_back_exactly_where_they_lie_close_together(base: int, offsets: list[int]) -> None:
    """Standardised in float64: 2^50 + 1 would be 2^50 in float32."""
    values = pa.array([base + offset for offset in offsets], pa.int64())
    mean, scale = float(np.mean(offsets)) + base, float(np.std(offsets))
    assert back_and_forth(by_hand("numeric", pa.int64(), mean=[mean], scale=scale), values).equals(values)


@settings(max_examples=60)
@given(values=st.lists(st.integers(0, 2**62), min_size=2, max_size=12, unique=True))
def test_large_integers_keep_their_relative_precision(values: list[int]) -> None:
    array = pa.array(values, pa.int64())
    mean, scale = float(np.mean(values)), float(np.std(values))
    found = back_and_forth(by_hand("numeric", pa.int64(), mean=[mean], scale=scale), array).to_pylist()
    for there, back in zip(values, found, strict=True):
        assert abs(there - back) <= 2 * FLOAT32_EPS * max(scale, abs(there - mean)) + 1


@settings(max_examples=100)
@given(column=columns_of(INTEGERS, lambda kind: numbers_of(kind).filter(lambda value: value >= 0)))
def test_counts_of_every_type_come_back(column: pa.Array) -> None:
    assume(len(set(column.to_pylist()) - {None}) > 1)
    table = pa.table({"x": column})
    encoding = fit(table, {"x": {"kind": "count"}})
    assert [field.name for field in encoding.fields] == ["integer"]
    decided = column_named(encoding, "x")
    assert_close(round_trip(encoding, table)["x"].combine_chunks(), column, decided.mean[0], decided.scale, column.type)


def test_a_count_never_comes_back_negative() -> None:
    encoding = by_hand("count", pa.int32(), mean=[10.0], scale=5.0, lower=0)
    cells = np.array([[-1e18], [-50.0], [-2.1], [-2.0], [0.0]], np.float32)
    assert encoding.decode_column("x", cells, np.ones(5, np.bool_)).to_pylist() == [0, 0, 0, 0, 10]


@pytest.mark.parametrize("width", [None, 2.0])
def test_a_negative_value_of_a_count_is_missing_and_counted(width: float | None) -> None:
    unseen: Counter[str] = Counter()
    encoding = by_hand("count", pa.int64(), mean=[10.0], scale=5.0, lower=0, width=width)
    cells, valid, _ = encode_x(encoding, [3, -1, None, 0, -(2**63)], unseen)
    assert valid[:, 0].tolist() == [True, False, False, True, False]
    assert cells[~valid].tolist() == [0, 0, 0]
    assert unseen == {"x": 2}


def test_what_lies_under_a_null_count_is_not_counted() -> None:
    below = pa.Array.from_buffers(pa.int64(), 2, [pa.py_buffer(b"\x02"), pa.py_buffer(np.array([-7, 3], np.int64).tobytes())])
    unseen: Counter[str] = Counter()
    cells, valid, _ = encode_x(by_hand("count", pa.int64(), lower=0), below, unseen)
    assert (cells[:, 0].tolist(), valid[:, 0].tolist(), dict(+unseen)) == ([0, 3], [False, True], {})


def ticks(array: pa.Array | pa.ChunkedArray) -> NDArray[np.int64]:
    """Returns the integers that points in time count, 0 where null."""
    array = array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array
    return np.asarray(to_ticks(array).fill_null(0).cast(pa.int64()).to_numpy())


def times_of(kind: pa.DataType) -> st.SearchStrategy[int]:
    low, high = integer_range(kind)
    near = st.integers(max(low, -5000), min(high, 5000))
    return st.one_of(st.integers(low, high), near, st.sampled_from([low, high]))


def temporal_columns() -> st.SearchStrategy[pa.Array]:
    def arrays(kind: pa.DataType) -> st.SearchStrategy[pa.Array]:
        cells = st.lists(st.one_of(st.none(), times_of(kind)), min_size=2, max_size=12)
        build = lambda values, begin: from_ticks(pa.array([0] * begin + values, ticks_type(kind)), kind).slice(begin)  # noqa: E731
        return st.builds(build, cells, st.integers(0, 9))

    return st.sampled_from(TEMPORAL).flatmap(arrays)


@settings(max_examples=120)
@given(column=temporal_columns())
def test_points_in_time_of_every_type_unit_and_zone_come_back(column: pa.Array) -> None:
    stored = to_ticks(column).to_pylist()
    assume(len(set(stored) - {None}) > 1)
    table = pa.table({"x": column})
    encoding = fit(table)
    decided = column_named(encoding, "x")
    assert (decided.kind, [field.name for field in encoding.fields]) == ("timestamp", ["integer"])
    decoded = round_trip(encoding, table)["x"].combine_chunks()
    assert decoded.type == column.type
    assert decoded.is_null().equals(column.is_null())
    found, expected = to_ticks(decoded), to_ticks(column)
    assert_close(found, expected, decided.mean[0], decided.scale, column.type)


@pytest.mark.parametrize("kind", TEMPORAL, ids=str)
def test_a_month_of_points_in_time_comes_back_to_the_day_or_second(kind: pa.DataType) -> None:
    step = 1 if pa.types.is_date(kind) else {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[kind.unit]
    now = 0 if pa.types.is_time(kind) else 20_000 * (86_400 if pa.types.is_timestamp(kind) else 1)
    column = from_ticks(pa.array([(now + 7 * i) * step for i in range(100)] + [None], ticks_type(kind)), kind)
    decoded = round_trip(fit(pa.table({"x": column})), pa.table({"x": column}))["x"]
    assert decoded.type == kind
    assert decoded.null_count == 1
    assert (np.abs(ticks(decoded) - ticks(column)) <= (0 if step == 1 else 1e-4 * step)).all()


@settings(max_examples=60)
@given(cells=st.lists(st.floats(-10, 10, width=32), min_size=1, max_size=10))
def test_date64_comes_back_as_whole_days(cells: list[float]) -> None:
    """Arrow requires it of the type, and Parquet stores days: anything between them would become the day before."""
    encoding = by_hand("timestamp", pa.date64(), mean=[20_000.0], scale=400.0)
    array = encoding.decode_column("x", np.array(cells, np.float32)[:, None], np.ones(len(cells), np.bool_))
    array.validate(full=True)
    assert (array.view(pa.int64()).to_numpy() % DAY_MS == 0).all()


@pytest.mark.parametrize("kind", TEMPORAL, ids=str)
def test_points_in_time_stay_in_their_types_range(kind: pa.DataType) -> None:
    encoding = by_hand("timestamp", kind, mean=[0.0], scale=1e6)
    array = encoding.decode_column("x", np.array([[-1e18], [1e18]], np.float32), np.ones(2, np.bool_))
    low, high = integer_range(kind)
    found = ticks(array).astype(np.float64)
    np.testing.assert_allclose(found, [low, high], rtol=1e-9)
    assert (low <= found).all()
    assert (found <= high).all()


ELEMENTS = [pa.float16(), pa.float32(), pa.float64(), pa.uint8(), pa.int8(), pa.int64(), pa.uint64(), pa.decimal128(9, 2)]


@st.composite
def vector_columns(draw: st.DrawFn) -> pa.Array:
    element = draw(st.sampled_from(ELEMENTS))
    size = draw(st.integers(1, 5))
    make = draw(st.sampled_from([pa.list_, pa.large_list, lambda kind: pa.list_(kind, size)]))
    cell = st.one_of(st.none(), numbers_of(element)) if draw(st.booleans()) else numbers_of(element)
    row = st.lists(cell, min_size=size, max_size=size)
    values = draw(st.lists(st.one_of(st.none(), row), min_size=2, max_size=8))
    begin = draw(st.integers(0, 3))
    return pa.array([None] * begin + values, make(element)).slice(begin)


@settings(max_examples=120)
@given(column=vector_columns(), shape=st.booleans())
def test_vectors_and_images_of_every_type_come_back(column: pa.Array, shape: bool) -> None:
    table = pa.table({"v": column, "beside": pa.array([True] + [False] * (len(column) - 1))})
    as_image = shape and column.type.value_type == pa.uint8() and any(row is not None for row in column.to_pylist())
    size = next((len(row) for row in column.to_pylist() if row is not None), 1)
    encoding = fit(table, {"v": {"kind": "image", "shape": [1, size]}} if as_image else {})
    if "v" not in encoding.modelled:
        assert column_named(encoding, "v").reason.startswith(("all null", "lists without", "constant", "whole numbers beyond 2^53"))
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
    (pa.dictionary(pa.int32(), pa.string(), ordered=True), texts, "categorical"),
    *((kind, numbers_of(kind), "categorical") for kind in INTEGERS),
]


@settings(max_examples=120)
@given(
    drawn=st.sampled_from(EXACT).flatmap(lambda e: st.tuples(st.just(e), st.lists(st.one_of(st.none(), e[1]), min_size=1, max_size=12))),
    begin=st.integers(0, 9),
)
def test_booleans_and_categories_of_every_type_come_back_exactly(drawn: Any, begin: int) -> None:
    (kind, _, wish), values = drawn
    plain = pa.array([None] * begin + values, kind.value_type if pa.types.is_dictionary(kind) else kind)
    table = pa.table({"x": plain.cast(kind).slice(begin), "beside": pa.array(np.arange(len(values)) / 3.0)})
    if len(values) < 2:
        table = pa.concat_tables([table, pa.table({"x": pa.nulls(1, kind), "beside": pa.array([9.0])})])
    encoding = fit(table, {"x": {"kind": wish}})
    if "x" in encoding.modelled:
        decoded = round_trip(encoding, table)["x"]
        assert decoded.type == kind
        assert decoded.to_pylist() == table["x"].to_pylist()
    else:
        assert len(set(values) - {None}) < 2


def test_a_probability_decodes_as_the_boolean_that_is_more_probable() -> None:
    """So are missing booleans filled, and reconstructed ones read."""
    encoding = fit(pa.table({"x": [True, False], "beside": [0.1, 0.7]}))
    probabilities = np.array([[0.05], [0.49], [0.51], [1.0]], np.float32)
    assert encoding.decode_column("x", probabilities, np.ones(4, np.bool_)).to_pylist() == [False, False, True, True]


@settings(max_examples=100)
@given(values=st.lists(st.one_of(st.none(), st.sampled_from("abcdefg")), min_size=1, max_size=30), kept=st.sets(st.sampled_from("abcde")))
def test_categories_that_are_not_kept_are_one_other_and_come_back_as_null(values: list[str | None], kept: set[str]) -> None:
    categories = sorted(kept)
    encoding = by_hand("categorical", pa.string(), categories=categories, other=True)
    unseen: Counter[str] = Counter()
    for column in (pa.array(values, pa.string()), pa.array(values, pa.string()).dictionary_encode()):
        unseen.clear()
        cells, valid, _ = encode_x(encoding, column, unseen)
        assert valid[:, 0].tolist() == [value is not None for value in values]
        codes = [0 if v is None else categories.index(v) if v in kept else len(kept) for v in values]
        assert cells[:, 0].tolist() == codes
        assert unseen["x"] == sum(value is not None and value not in kept for value in values)
        decoded = encoding.decode_column("x", cells, valid[:, 0])
        assert decoded.to_pylist() == [value if value in kept else None for value in values]


@pytest.mark.parametrize("categories", [[0, 2**63], [5, 2**64 - 1], [2**63, 2**64 - 2]])
def test_categories_of_unsigned_integers_beyond_int64_come_back(categories: list[int]) -> None:
    values = [categories[1], None, categories[0]]
    assert back_and_forth(by_hand("categorical", pa.uint64(), categories=categories), values).to_pylist() == values


def test_fitting_with_few_categories_keeps_the_most_frequent_and_the_rest_becomes_other() -> None:
    table = pa.table({"x": ["b"] * 5 + ["a"] * 3 + ["c", "d"]})
    encoding = fit(table, max_categories=2)
    assert (column_named(encoding, "x").categories, column_named(encoding, "x").other) == (["a", "b"], True)
    cells, valid, _ = encode_x(encoding, table["x"])
    assert cells[:, 0].tolist() == [1] * 5 + [0] * 3 + [2, 2]
    assert valid.all()


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string()), pa.int16()], ids=str)
def test_an_unseen_category_is_missing_and_counted_where_there_is_no_other(kind: pa.DataType) -> None:
    known, strange = ([10, 20], 30) if kind == pa.int16() else (["a", "b"], "z")
    encoding = by_hand("categorical", kind, categories=known)
    unseen: Counter[str] = Counter()
    plain = pa.array([known[1], strange, None, known[0], strange], kind.value_type if pa.types.is_dictionary(kind) else kind)
    cells, valid, _ = encode_x(encoding, plain.cast(kind), unseen)
    assert cells[:, 0].tolist() == [1, 0, 0, 0, 0]
    assert valid[:, 0].tolist() == [True, False, False, True, False]
    assert unseen == {"x": 2}


def test_unseen_values_are_counted_by_column_and_over_calls() -> None:
    encoding = fit(
        pa.table({"c": ["a", "b"], "d": ["a", "b"], "n": pa.array([1, 2], pa.int8())}), {name: {"kind": "categorical"} for name in "cd"}
    )
    unseen: Counter[str] = Counter()
    for _ in range(2):
        table = pa.table({"c": ["b", "z", None], "d": ["a", "a", "b"], "n": pa.array([9, 2, None], pa.int8())})
        arrays = encoding.encode(table, "here", unseen)
    assert +unseen == {"c": 2, "n": 2}
    assert arrays["categorical"].tolist() == [[1, 0, 0], [0, 0, 1], [0, 1, 0]]
    assert arrays["categorical.valid"].tolist() == [[True, True, False], [False, True, True], [False, True, False]]


@pytest.mark.parametrize("other", [False, True])
def test_nulls_in_and_beside_a_dictionary_are_missing_and_not_unseen(other: bool) -> None:
    kind = pa.dictionary(pa.int8(), pa.string())
    encoding = by_hand("categorical", kind, categories=["a", "b", "c"], other=other)
    column = pa.DictionaryArray.from_arrays(pa.array([0, 1, 2, None, 3, 0], pa.int8()), pa.array(["c", "z", None, "a"]))
    unseen: Counter[str] = Counter()
    cells, valid, _ = encode_x(encoding, column, unseen)
    assert cells[:, 0].tolist() == [2, 3 if other else 0, 0, 0, 0, 2]
    assert valid[:, 0].tolist() == [True, other, False, False, True, True]
    assert unseen == {"x": 1}


def test_chunks_with_dictionaries_of_their_own_have_the_codes_of_their_values() -> None:
    """As slices of several files have them, when they are put together."""
    encoding = by_hand("categorical", pa.string(), categories=["a", "b", "c"])
    column = pa.chunked_array([pa.array(part).dictionary_encode() for part in (["c", "a", None], ["b", "c"], ["z", "a"])])
    cells, valid, _ = encode_x(encoding, column)
    assert cells[:, 0].tolist() == [2, 0, 0, 1, 2, 0, 0]
    assert valid[:, 0].tolist() == [True, True, False, True, True, False, True]


@pytest.mark.parametrize("column", [pa.nulls(3, pa.dictionary(pa.int32(), pa.string())), pa.array([None, None, None], pa.string())])
def test_a_column_of_nulls_is_missing(column: pa.Array) -> None:
    """What a file gives that lacks the column."""
    cells, valid, _ = encode_x(by_hand("categorical", column.type, categories=["a"]), column)
    assert (cells.tolist(), valid.tolist()) == ([[0], [0], [0]], [[False], [False], [False]])


def test_more_categories_than_an_index_type_counts_come_back() -> None:
    """Pandas writes int8 indices; the categories of two files may be more than 127."""
    kind = pa.dictionary(pa.int8(), pa.string())
    categories = [f"{i:03d}" for i in range(200)]
    encoding = by_hand("categorical", kind, categories=categories)
    decoded = encoding.decode_column("x", np.arange(200, dtype=np.int32)[:, None], np.ones(200, np.bool_))
    assert decoded.to_pylist() == categories


numbers = st.floats(-8, 8)
# Centers, widths and scales over many orders of magnitude.
warps = st.builds(
    lambda center, width, mean, scale: {"center": center * 10**width, "width": 10**width, "mean": [mean], "scale": scale},
    st.floats(-100, 100),
    st.floats(-6, 6),
    st.floats(-3, 3),
    st.floats(0.3, 3),
)


def data_of(warp: Mapping[str, Any], us: Sequence[float]) -> NDArray[np.float64]:
    """Returns x = center + width sinh(u)."""
    return np.asarray(warp["center"] + warp["width"] * np.sinh(np.asarray(us)))


@settings(max_examples=100)
@given(warp=warps, us=st.lists(numbers, min_size=2, max_size=30))
def test_warped_cells_rise_with_the_values(warp: dict[str, Any], us: list[float]) -> None:
    x = np.sort(data_of(warp, us))
    cells = encode_x(by_hand("numeric", pa.float64(), **warp), x.tolist())[0][:, 0]
    assert (np.diff(cells) >= 0).all()
    apart = np.diff((np.arcsinh((x - warp["center"]) / warp["width"])) / warp["scale"]) > 1e-4
    assert (np.diff(cells)[apart] > 0).all()


@settings(max_examples=100)
@given(warp=warps, us=st.lists(st.one_of(st.none(), st.floats(-30, 30)), min_size=1, max_size=30))
def test_warped_numbers_come_back(warp: dict[str, Any], us: list[float | None]) -> None:
    """Up to float32 of y: du = scale dy, dx = sqrt(width^2 + (x - center)^2) du."""
    values = [None if u is None else float(data_of(warp, [u])[0]) for u in us]
    found = back_and_forth(by_hand("numeric", pa.float64(), **warp), values).to_pylist()
    for x, back in zip(values, found, strict=True):
        assert (x is None) == (back is None)
        if x is not None:
            u = math.asinh((x - warp["center"]) / warp["width"])
            y = (u - warp["mean"][0]) / warp["scale"]
            du = warp["scale"] * 2 * FLOAT32_EPS * max(1, abs(y)) + 16 * FLOAT64_EPS * (abs(u) + 3)
            assert abs(back - x) <= 1.5 * math.hypot(warp["width"], x - warp["center"]) * du + 8 * FLOAT64_EPS * abs(warp["center"])


@settings(max_examples=60)
@given(
    values=st.lists(st.one_of(st.none(), st.integers(0, 50), st.integers(0, 10**6)), min_size=1, max_size=30),
    kind=st.sampled_from(["count", "numeric"]),
    width=st.floats(0.5, 1000),
)
def test_warped_integers_come_back_up_to_a_millionth(values: list[int | None], kind: str, width: float) -> None:
    encoding = by_hand(kind, pa.int64(), center=3.0, width=width, mean=[1.0], scale=2.0)
    assert [field.name for field in encoding.fields] == ["warped"]
    for x, back in zip(values, back_and_forth(encoding, values).to_pylist(), strict=True):
        assert (x is None) == (back is None)
        assert x is None or abs(x - back) <= 2e-6 * x
        assert x is None or x > 10**5 or x == back


@settings(max_examples=100)
@given(warp=warps, us=st.lists(numbers, min_size=1, max_size=20))
def test_the_log_jacobian_is_the_derivative_of_the_cells(warp: dict[str, Any], us: list[float]) -> None:
    """By central differences of the float32 cells: steps of u = 0.02 make truncation and rounding both below 1e-3."""
    encoding = by_hand("numeric", pa.float64(), **warp)
    x = data_of(warp, us)
    step = 0.02 * np.hypot(warp["width"], x - warp["center"])
    above, below = (encode_x(encoding, (x + sign * step).tolist())[0][:, 0].astype(np.float64) for sign in (1, -1))
    found = encode_x(encoding, x.tolist())[2]
    np.testing.assert_allclose(found, np.log((above - below) / (2 * step)), atol=2e-3)


@settings(max_examples=100)
@given(warp=warps, us=st.lists(st.one_of(st.none(), st.floats(-30, 30)), min_size=1, max_size=20))
def test_the_log_jacobian_of_a_warp_is_its_formula_to_the_last_digits(warp: dict[str, Any], us: list[float | None]) -> None:
    values = [None if u is None else float(data_of(warp, [u])[0]) for u in us]
    expected = [0.0 if x is None else -math.log(warp["scale"] * math.hypot(warp["width"], x - warp["center"])) for x in values]
    np.testing.assert_allclose(encode_x(by_hand("numeric", pa.float64(), **warp), values)[2], expected, rtol=1e-12, atol=1e-12)


@settings(max_examples=30)
@given(warp=warps, location=st.floats(-1, 1), spread=st.floats(0.3, 2))
def test_a_density_of_cells_and_the_log_jacobian_are_a_density_of_data(warp: dict[str, Any], location: float, spread: float) -> None:
    """sum p(y(x)) exp(log_jacobian) dx = 1, by the trapezoid rule over x itself."""
    u = np.linspace(-1, 1, 4001) * 10 * (spread + abs(location)) * warp["scale"] + warp["mean"][0]
    x = data_of(warp, u.tolist())
    cells, _, log_jacobian = encode_x(by_hand("numeric", pa.float64(), **warp), x.tolist())
    z = (cells[:, 0].astype(np.float64) - location) / spread
    density = np.exp(log_jacobian - 0.5 * z**2) / (spread * math.sqrt(2 * math.pi))
    assert abs(float(np.trapezoid(density, x)) - 1) < 1e-3


@pytest.mark.parametrize("kind", [pa.float32(), pa.float64(), pa.decimal128(12, 4)], ids=str)
def test_a_density_of_unwarped_cells_is_a_density_of_data_too(kind: pa.DataType) -> None:
    x = np.linspace(-500, 700, 6001)
    values = pa.array(x).cast(kind, safe=False)
    cells, _, log_jacobian = encode_x(by_hand("numeric", kind, mean=[100.0], scale=40.0), values)
    density = np.exp(log_jacobian - 0.5 * cells[:, 0].astype(np.float64) ** 2) / math.sqrt(2 * math.pi)
    assert abs(float(np.trapezoid(density, x)) - 1) < 1e-4


@pytest.mark.parametrize("width", [None, 3.0])
@pytest.mark.parametrize(("kind", "arrow"), [("numeric", pa.int32()), ("count", pa.uint16()), ("timestamp", pa.date32())])
def test_whole_numbers_have_no_jacobian(kind: str, arrow: pa.DataType, width: float | None) -> None:
    values = pa.array([1, 5, None, 900], pa.int32()).cast(arrow)
    assert encode_x(by_hand(kind, arrow, mean=[2.0], scale=7.0, width=width), values)[2].tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("width", [1e-3, 1.0, 1e6])
def test_the_log_jacobian_of_the_largest_numbers_is_finite(width: float) -> None:
    x = [1e300, -1e300, 2e160, -3e155]
    cells, valid, log_jacobian = encode_x(by_hand("numeric", pa.float64(), width=width), x)
    assert valid.all()
    np.testing.assert_allclose(cells[:, 0], np.arcsinh(np.array(x) / width), rtol=1e-6)
    np.testing.assert_allclose(log_jacobian, -np.log(np.abs(x)), rtol=1e-9)


@pytest.mark.parametrize("kind", FLOATS, ids=str)
@pytest.mark.parametrize("width", [None, 0.5])
def test_nan_and_infinities_are_missing_where_they_are_to_be_nulls(kind: pa.DataType, width: float | None) -> None:
    encoding = by_hand("numeric", kind, "null", mean=[1.0], scale=2.0, width=width)
    values = pa.array(np.array([3, np.nan, np.inf, -np.inf, 0, 5], kind.to_pandas_dtype()), mask=np.arange(6) == 4)
    cells, valid, log_jacobian = encode_x(encoding, values)
    assert valid[:, 0].tolist() == [True, False, False, False, False, True]
    assert (cells[~valid] == 0).all()
    assert np.isfinite(cells).all()
    assert log_jacobian[1:5].tolist() == [0, 0, 0, 0]
    assert (log_jacobian[[0, 5]] != 0).all()
    back = encoding.decode_column("x", cells, valid[:, 0])
    assert [value is None for value in back.to_pylist()] == [False, True, True, True, True, False]


@pytest.mark.parametrize("kind", FLOATS, ids=str)
@pytest.mark.parametrize("element_nulls", [False, True])
def test_nan_and_infinities_in_lists_are_missing_elements_where_they_are_to_be_nulls(kind: pa.DataType, element_nulls: bool) -> None:
    encoding = by_hand("vector", pa.list_(kind), "null", mean=[1.0, 2.0], scale=2.0, shape=[2], element_nulls=element_nulls, integer=False)
    flat = np.array([3, np.nan, np.inf, -np.inf, 5, 7], kind.to_pandas_dtype())
    values = pa.ListArray.from_arrays(pa.array([0, 2, 2, 4, 6]), pa.array(flat), mask=pa.array([False, True, False, False]))
    cells, valid, log_jacobian = encode_x(encoding, values)
    assert valid.tolist() == [[True, False], [False, False], [False, False], [True, True]]
    assert cells.tolist() == [[1, 0], [0, 0], [0, 0], [2, 2.5]]
    np.testing.assert_allclose(log_jacobian, -math.log(2) * np.array([1, 0, 0, 2]))


@pytest.mark.parametrize("nonfinite", ["error", "null"])
def test_nan_under_a_null_is_not_looked_at(nonfinite: str) -> None:
    values = pa.array(np.array([np.nan, 1.0, np.inf]), mask=np.array([True, False, True]))
    cells, valid, _ = encode_x(by_hand("numeric", pa.float64(), nonfinite), values)
    assert (cells[:, 0].tolist(), valid[:, 0].tolist()) == ([0, 1, 0], [False, True, False])
    lists = pa.ListArray.from_arrays(pa.array([0, 3]), values)
    cells, valid, _ = encode_x(by_hand("vector", pa.list_(pa.float64()), nonfinite, mean=[0.0] * 3, shape=[3], integer=False), lists)
    assert (cells.tolist(), valid.tolist()) == ([[0, 1, 0]], [[False, True, False]])


@pytest.mark.parametrize("kind", [pa.float64(), pa.list_(pa.float64())], ids=str)
def test_nonfinite_values_are_refused_by_file_column_and_count(kind: pa.DataType) -> None:
    wrap = (lambda x: x) if kind == pa.float64() else (lambda x: [x])
    encoding = fit(pa.table({"x": pa.array([wrap(1.0), wrap(2.0)], kind)}))
    values = [wrap(float("nan")), None, wrap(float("inf")), wrap(1.0)]
    with pytest.raises(DataError, match=r"file\.parquet: column 'x' has 2 NaN or infinite values; store them as null, or train with"):
        encoding.encode(pa.table({"x": pa.array(values, kind)}), "file.parquet")


@settings(max_examples=100)
@given(
    xs=st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=10),
    scale=st.sampled_from([1e-300, 1e-30, 1e-3, 1.0, 1e30]),
    mean=st.sampled_from([0.0, 1e10, -1e300]),
    width=st.sampled_from([None, 1e-10, 1.0]),
    vector=st.booleans(),
)
def test_cells_are_kept_within_what_float32_can_square(
    xs: list[float], scale: float, mean: float, width: float | None, vector: bool
) -> None:
    numbers: dict[str, Any] = {"mean": [mean if width is None else 0.0], "scale": scale}
    if vector:
        encoding = by_hand("vector", pa.list_(pa.float64()), shape=[1], integer=False, **numbers)
        values = [[x] for x in xs]
    else:
        encoding = by_hand("numeric", pa.float64(), width=width, **numbers)
        values = xs  # type: ignore[assignment]
    cells, valid, _ = encode_x(encoding, values)
    assert valid.all()
    assert (np.abs(cells) <= np.float32(LARGEST_CELL)).all()
    assert np.isfinite(cells * cells).all()


@pytest.mark.parametrize("kind", [pa.float64(), pa.list_(pa.float64())], ids=str)
def test_a_clipped_cell_does_not_depend_on_the_other_rows_of_its_slice(kind: pa.DataType) -> None:
    wrap = (lambda x: x) if kind == pa.float64() else (lambda x: [x])
    listed: dict[str, Any] = {"shape": [1], "integer": False} if kind != pa.float64() else {}
    encoding = by_hand("numeric" if kind == pa.float64() else "vector", kind, **listed)
    xs = [wrap(x) for x in (1e300, 1e25, -1e19, 2.0)]
    together = encode_x(encoding, xs)[0]
    alone = np.concatenate([encode_x(encoding, [x])[0] for x in xs])
    assert together[:, 0].tolist() == alone[:, 0].tolist() == [float(np.float32(x)) for x in (1e18, 1e18, -1e18, 2.0)]


def test_a_vector_that_is_clipped_has_no_null_elements() -> None:
    encoding = by_hand("vector", pa.list_(pa.float64()), mean=[0.0, 0.0], shape=[2], integer=False)
    cells, valid, _ = encode_x(encoding, [[1e300, 2.0], [3.0, 4.0]])
    assert cells.tolist() == [[float(np.float32(LARGEST_CELL)), 2.0], [3.0, 4.0]]
    assert valid.tolist() == [[True], [True]]


def test_a_cell_beyond_the_types_range_comes_back_as_its_end() -> None:
    cells, both = np.array([[1e18], [-1e18]], np.float32), np.ones(2, np.bool_)
    assert by_hand("numeric", pa.int8()).decode_column("x", cells, both).to_pylist() == [127, -128]
    largest = float(np.finfo(np.float32).max)
    assert by_hand("numeric", pa.float32(), width=1e-3).decode_column("x", cells, both).to_pylist() == [largest, -largest]


@cache
def mixed(num_rows: int = 150) -> pa.Table:
    """A table with a column of every kind, nulls in all of them."""
    random = np.random.default_rng(5)

    def with_nulls(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
        lost = random.random(num_rows) < 0.3
        return pa.array([None if gone else value for gone, value in zip(lost, values, strict=True)], kind)

    start = datetime.datetime(2024, 1, 1)
    vectors = [[None if random.random() < 0.2 else float(x) for x in row] for row in random.normal(3, 2, (num_rows, 3))]
    return pa.table(
        {
            "id": pa.array([f"row {i}" for i in range(num_rows)]),
            "price": with_nulls(random.normal(100, 7, num_rows).tolist(), pa.float64()),
            "weight": with_nulls(random.normal(-1, 0.01, num_rows).tolist(), pa.float32()),
            "cost": with_nulls([Decimal(int(x)) / 100 for x in random.integers(-9999, 9999, num_rows)], pa.decimal128(9, 2)),
            "income": with_nulls(random.lognormal(3, 2, num_rows).tolist(), pa.float64()),
            "amount": with_nulls([int(x) % 90 - 5 for x in random.integers(0, 10**9, num_rows)], pa.int32()),
            "seats": with_nulls([int(x) for x in random.integers(0, 400, num_rows)], pa.uint16()),
            "visits": with_nulls([int(x) for x in random.lognormal(3, 2, num_rows)], pa.int64()),
            "day": with_nulls([(start + datetime.timedelta(days=i % 60)).date() for i in range(num_rows)], pa.date32()),
            "moment": with_nulls([start + datetime.timedelta(minutes=7 * i) for i in range(num_rows)], pa.timestamp("us", "Europe/Berlin")),
            "flag": with_nulls((random.random(num_rows) < 0.4).tolist(), pa.bool_()),
            "colour": with_nulls(random.choice(["red", "green", "blue"], num_rows).tolist(), pa.string()),
            "code": with_nulls([int(x) for x in random.integers(0, 4, num_rows)], pa.int8()),
            "coded": with_nulls(random.choice(["x", "y"], num_rows).tolist(), pa.string()).dictionary_encode(),
            "town": with_nulls([f"town {int(i)}" for i in random.integers(0, 9, num_rows)], pa.large_string()),
            "whole_vector": with_nulls(random.normal(0, 5, (num_rows, 2)).tolist(), pa.list_(pa.float32())),
            "holed_vector": with_nulls(vectors, pa.list_(pa.float64())),
            "bytes": with_nulls([[int(b) for b in row] for row in random.integers(0, 9, (num_rows, 5))], pa.list_(pa.uint8())),
            "pixels": with_nulls([[int(b) for b in row] for row in random.integers(0, 256, (num_rows, 4))], pa.list_(pa.uint8())),
            "free": pa.array([f"text {i}" for i in range(num_rows)]),
        }
    )


WARPED = {"income": {"center": 20.0, "width": 15.5, "mean": [0.4], "scale": 1.7}, "visits": {"center": 20.0, "width": 4.0}}


@cache
def mixed_encoding() -> TableEncoding:
    """The columns as they are decided, but warps and "other" are set: what decides on them is no matter here."""
    encoding = fit(mixed(), {"amount": {"kind": "numeric"}}, "id")
    plain = {column.name: replace(column, center=0.0, width=None) for column in encoding.columns}
    for name, warp in WARPED.items():
        plain[name] = replace(plain[name], **warp)  # type: ignore[arg-type]
    for name in ("price", "weight", "cost", "amount", "seats"):
        values = to_float64(mixed()[name].drop_null())
        plain[name] = replace(plain[name], mean=[float(values.mean())], scale=float(values.std()))
    plain["town"] = replace(plain["town"], categories=["town 1", "town 2", "town 5"], other=True)
    return replace(encoding, columns=tuple(plain.values()))


def test_every_kind_is_in_the_mixed_table() -> None:
    fields = {field.name: [column.name for column in field.columns] for field in mixed_encoding().fields}
    assert fields == {
        "numeric": ["price", "weight", "income"],
        "integer": ["cost", "amount", "seats", "day", "moment"],
        "warped": ["visits"],
        "boolean": ["flag"],
        "categorical": ["colour", "code", "coded", "town"],
        "vector_0": ["whole_vector"],
        "vector_1": ["holed_vector"],
        "vector_2": ["bytes"],
        "image_0": ["pixels"],
    }
    assert {column.kind for column in mixed_encoding().columns} == {
        *("key", "ignored", "numeric", "count", "timestamp", "boolean", "categorical", "vector", "image")
    }


def test_a_field_is_one_kind_of_columns_in_the_tables_order() -> None:
    assert [field.kind for field in mixed_encoding().fields] == [
        *("numeric", "integer", "warped", "boolean", "categorical", "vector", "vector", "vector", "image")
    ]
    assert list(mixed_encoding().modelled) == [name for name in mixed().column_names if name not in ("id", "free")]


def test_the_rows_of_a_mixed_table_come_back() -> None:
    table, encoding = mixed(), mixed_encoding()
    back = round_trip(encoding, table)
    assert back.schema == encoding.schema_of(encoding.modelled)
    for name in encoding.modelled:
        found, expected = back[name].to_pylist(), table[name].to_pylist()
        column = column_named(encoding, name)
        if column.other:
            expected = [value if value in column.categories else None for value in expected]
        if column.element_nulls:  # a row of missing elements only is a missing row
            expected = [None if value is None or value == [None] * column.size else value for value in expected]
            holes = [[[cell is None for cell in value] for value in values if value is not None] for values in (found, expected)]
            assert holes[0] == holes[1]
        assert [value is None for value in found] == [value is None for value in expected]
        if name in ("amount", "seats", "day", "flag", "colour", "code", "coded", "town", "bytes", "pixels"):
            assert found == expected


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
    encoding = fit(mixed().select(["price", "weight", "cost", "day", "moment", "holed_vector"]))
    arrays = encoding.encode(mixed(), "here")
    for name in ("numeric", "integer"):
        for index in range(arrays[name].shape[1]):
            observed = arrays[name][arrays[f"{name}.valid"][:, index], index].astype(np.float64)
            assert abs(observed.mean()) < 1e-6
            assert abs(observed.var() - 1) < 1e-6
    vector = arrays["vector_0"].astype(np.float64)
    valid = arrays["vector_0.valid"]
    assert (np.abs((vector * valid).sum(0) / valid.sum(0)) < 1e-6).all()
    assert abs((vector[valid] ** 2).mean() - 1) < 1e-6


def test_the_log_jacobian_is_that_of_every_observed_continuous_cell() -> None:
    table, encoding = mixed(), mixed_encoding()
    expected = np.zeros(len(table))
    for row, values in enumerate(table.to_pylist()):
        for name in ("price", "weight", "cost", "income", "moment", "whole_vector", "holed_vector"):
            cells = values[name] if isinstance(values[name], list) else [values[name]]
            column = column_named(encoding, name)
            for cell in cells:
                if cell is not None:
                    stretch = 1.0 if column.width is None else math.hypot(column.width, cell - column.center)
                    expected[row] -= math.log({"cost": 0.01, "moment": 7 * 60e6}.get(name) or column.scale * stretch)
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


def test_the_columns_of_scalar_fields_are_contiguous_and_so_are_the_rows_of_lists() -> None:
    arrays = mixed_encoding().encode(mixed(), "here")
    for field in mixed_encoding().fields:
        rows = field.kind in ("vector", "image")
        assert arrays[field.name].flags.c_contiguous if rows else arrays[field.name].flags.f_contiguous


def test_cells_come_back_from_arrays_of_either_order() -> None:
    encoding = mixed_encoding()
    arrays = encoding.encode(mixed(), "here")
    for field in encoding.fields:
        begin = 0
        for column in field.columns:
            cells = arrays[field.name][:, begin : begin + column.size]
            flags = np.ones(len(cells), np.bool_)
            decoded = [encoding.decode_column(column.name, order(cells), flags) for order in (np.ascontiguousarray, np.asfortranarray)]
            assert decoded[0].equals(decoded[1])
            begin += column.size


@settings(max_examples=60)
@given(begin=st.integers(0, 150), length=st.integers(0, 60), step=st.integers(1, 20))
def test_slices_and_chunks_are_encoded_as_the_rows_they_hold(begin: int, length: int, step: int) -> None:
    table, encoding = mixed(), mixed_encoding()
    whole = encoding.encode(table, "here")
    sliced = table.slice(begin, length)
    chunked = pa.concat_tables([sliced.slice(i, step) for i in range(0, max(len(sliced), 1), step)])
    taken = table.take(pa.array(range(begin, min(begin + length, len(table))), pa.int64()))
    for rows in (sliced, chunked, taken):
        for name, array in encoding.encode(rows, "here").items():
            assert array.tobytes() == whole[name][begin : begin + length].tobytes()


@pytest.mark.parametrize("max_bytes", [reading.MAX_BATCH_BYTES, 2000])
def test_rows_are_encoded_from_files_as_from_memory(tmp_path: Path, max_bytes: int) -> None:
    """Text comes from files as dictionaries, lists without their sizes, and all of it in slices."""
    table, encoding = mixed(), mixed_encoding()
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=70, data_page_size=64, write_batch_size=4, use_dictionary=False)
    opened = open_table(str(tmp_path))
    assert opened.schema == encoding.schema
    whole = encoding.encode(table, "here")
    begin = 0
    with RowReader(opened.filesystem, encoding.schema_of(encoding.modelled), max_bytes) as reader:
        for group in opened.row_groups():
            for part, rows in reader.slices(group):
                for name, array in encoding.encode(rows, part.path).items():
                    assert array.tobytes() == whole[name][begin : begin + len(rows)].tobytes()
                begin += len(rows)
    assert begin == len(table)


def test_extra_columns_and_another_order_are_fine() -> None:
    encoding = mixed_encoding()
    other = mixed().drop_columns(["id", "free"]).select(list(reversed(encoding.modelled))).append_column("extra", pa.nulls(len(mixed())))
    encoding.check_schema(other.schema, "here")
    arrays = encoding.encode(other, "here")
    assert {name: array.tobytes() for name, array in arrays.items()} == {
        name: array.tobytes() for name, array in encoding.encode(mixed(), "here").items()
    }


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


@pytest.mark.parametrize("kind", [pa.float32(), pa.uint8()], ids=str)
def test_a_list_of_another_length_is_refused_by_file_and_column(kind: pa.DataType) -> None:
    encoding = fit(pa.table({"v": pa.array([[1, 2, 3, 4], [2, 3, 4, 5]], pa.list_(kind))}))
    with pytest.raises(DataError, match=r"file\.parquet: column 'v' holds lists of lengths \[3, 4\]; the model has 4"):
        encoding.encode(pa.table({"v": pa.array([[1, 2, 3, 4], None, [1, 2, 3]], pa.list_(kind))}), "file.parquet")


@pytest.mark.parametrize("kind", [pa.list_(pa.float32()), pa.list_(pa.int16(), 2), pa.large_list(pa.float64())], ids=str)
def test_a_list_without_an_element_is_null_only_where_the_column_has_null_lists(kind: pa.DataType) -> None:
    cells, valid = np.zeros((3, 2), np.float32), np.array([[True, False], [False, True], [False, False]])
    without = by_hand("vector", kind, mean=[3.0, 5.0], shape=[2], element_nulls=True)
    assert without.decode_column("x", cells, valid).to_pylist() == [[3, None], [None, 5], [None, None]]
    some = by_hand("vector", kind, mean=[3.0, 5.0], shape=[2], element_nulls=True, null_fraction=0.1)
    assert some.decode_column("x", cells, valid).to_pylist() == [[3, None], [None, 5], None]


def test_pixels_may_be_null_one_by_one() -> None:
    encoding = by_hand("image", pa.list_(pa.uint8()), shape=[1, 2], element_nulls=True)
    found = encoding.decode_column("x", np.array([[7, 8]], np.uint8), np.array([[False, True]]))
    assert found.to_pylist() == [[None, 8]]


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
    other = mixed().drop_columns(["flag", "free"]).set_column(1, "price", pa.array(["x"] * 150))
    with pytest.raises(DataError) as caught:
        encoding.check_schema(other.schema, "file.parquet")
    lines = str(caught.value).splitlines()
    assert lines[0] == "file.parquet: does not fit the model:"
    assert [line.strip() for line in lines[1:]] == [
        "column 'price' is string, the model was trained on double",
        "column 'flag' is missing",
    ]


def test_check_schema_takes_what_can_be_widened_and_what_folders_spell_out() -> None:
    encoding = mixed_encoding()
    stored = {"price": pa.int32(), "amount": pa.int8(), "colour": pa.dictionary(pa.int8(), pa.string()), "weight": pa.float16()}
    narrow = pa.schema([pa.field(field.name, stored.get(field.name, field.type)) for field in mixed().schema])
    encoding.check_schema(narrow, "here")
    wide = pa.schema([pa.field("code", pa.int16()) if field.name == "code" else field for field in mixed().schema])
    with pytest.raises(DataError, match=r"column 'code' is int16, the model was trained on int8"):
        encoding.check_schema(wide, "here")
    encoding.check_schema(wide, "here", spelled=["code"])


def test_an_encoding_survives_json_to_the_last_bit() -> None:
    table, encoding = mixed(), replace(mixed_encoding(), nonfinite="null")
    back = TableEncoding.from_json(json.loads(json.dumps(encoding.to_json(), allow_nan=False)))
    assert back == encoding
    assert back.schema.equals(encoding.schema, check_metadata=True)
    once, twice = encoding.encode(table, "here"), back.encode(table, "here")
    assert {name: array.tobytes() for name, array in once.items()} == {name: array.tobytes() for name, array in twice.items()}


def test_an_encoding_of_another_format_version_is_refused_by_number() -> None:
    stored = mixed_encoding().to_json()
    assert stored["format_version"] == 2
    with pytest.raises(EncodingFormatError, match=r"table\.json has format version 1, this code reads 2; train the model again"):
        TableEncoding.from_json({"format_version": 1})


@pytest.mark.parametrize("change", [{"schema": "AAAA"}, {"schema": 7}, {"columns": [{"name": "x"}]}, {"columns": None}, {"columns": [3]}])
def test_what_is_no_encoding_is_refused(change: dict[str, Any]) -> None:
    stored = fit(pa.table({"x": [0.5, 1.5, 2.5]})).to_json()
    assert TableEncoding.from_json(stored).to_json() == stored
    damaged: Any
    for damaged in (stored | change, {}, [], 7):
        with pytest.raises(EncodingFormatError, match=r"table\.json does not describe a table's columns .*; train the model again"):
            TableEncoding.from_json(damaged)


FINITE = [
    *INTEGERS,
    *DECIMALS,
    pa.decimal128(38, 38),
    pa.decimal128(38, 0),
    pa.decimal256(76, 0),
    pa.decimal128(5, -2),
    *FLOATS,
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


@settings(max_examples=120)
@given(
    kind=st.sampled_from([pa.decimal32(7, 2), pa.decimal64(15, 4), pa.decimal128(5, 2), pa.decimal128(9, 0), pa.decimal128(12, 6)]),
    value=st.one_of(st.floats(-2e3, 2e3), st.floats(-1, 1).map(lambda value: value * 1e-10)),
)
def test_decimals_are_rounded_to_their_scale(kind: pa.DataType, value: float) -> None:
    (found,) = numbers_to_arrow(np.array([value]), kind, np.zeros(1, np.bool_)).to_pylist()
    limit = 10.0 ** (kind.precision - kind.scale) - 10.0**-kind.scale
    assert abs(float(found) - min(max(value, -limit), limit)) <= 0.5 * 10.0**-kind.scale + 1e-12


CONSTANTS = [
    pa.array([True]),
    pa.array(["größe"]),
    pa.array(["größe"]).cast(pa.large_string()),
    pa.array(["größe"]).cast(pa.dictionary(pa.int8(), pa.string())),
    *(pa.array([7], kind) for kind in INTEGERS),
    pa.array([2**64 - 1], pa.uint64()),
    pa.array([-(2**63)], pa.int64()),
    *(pa.array([np.float16(-2.5)], kind) for kind in FLOATS),
    pa.array([0.1], pa.float32()),
    pa.array([Decimal("-12.34")], pa.decimal128(9, 2)),
    pa.array([Decimal("12345678901234567890.12")], pa.decimal128(30, 2)),
    *(from_ticks(pa.array([8_000], ticks_type(kind)), kind) for kind in TEMPORAL),
    pa.array([[1.5, -2.5]], pa.list_(pa.float32())),
    pa.array([[3, 200, 7]], pa.list_(pa.uint8(), 3)),
]


@pytest.mark.parametrize("value", CONSTANTS, ids=lambda value: f"{value.type} {value[0]}")
def test_a_constant_comes_back_as_it_was(value: pa.Array) -> None:
    table = pa.table({"x": pa.concat_arrays([value, value, pa.nulls(1, value.type)]), "beside": [1.5, 2.5, 0.5]})
    encoding = fit(table)
    column = column_named(encoding, "x")
    assert (column.kind, column.reason) == ("ignored", "constant")
    constant = json.loads(json.dumps(column.constant))
    found = constant_array(constant, value.type, np.array([False, True, False]))
    assert found.type == value.type
    assert found.to_pylist() == [value[0].as_py(), None, value[0].as_py()]
