"""Claims about data.columns: what kind a column gets and why, and which wishes are refused."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import data.statistics
from data.column import MAX_INTEGER_CATEGORIES, Column
from data.columns import Rules, decide_columns
from data.listing import DataError
from data.overrides import ColumnOverrideError, check_overrides, counted_columns, key_column
from data.statistics import TableSummary, merge_all, summarise_table

Overrides = Mapping[str, Mapping[str, Any]]
RULES = Rules()
N = 60


def summary_of(table: pa.Table, rows_per_group: int, counted: Sequence[str] = ()) -> TableSummary:
    groups = [table.slice(begin, rows_per_group) for begin in range(0, table.num_rows, rows_per_group)]
    return merge_all(summarise_table(group, (len(group), 0, 0), counted) for group in groups)


def decide_table(table: pa.Table, overrides: Overrides | None = None, rules: Rules = RULES, key: str | None = None) -> dict[str, Column]:
    """Returns the decision for each column of a table, by name."""
    overrides = overrides or {}
    columns = decide_columns(table.schema, summary_of(table, 17, counted_columns(overrides)), key, overrides, rules)
    assert [column.name for column in columns] == table.schema.names
    return {column.name: column for column in columns}


def decide(values: Any, kind: pa.DataType, override: Mapping[str, Any] | None = None, rules: Rules = RULES, num_rows: int = N) -> Column:
    """Returns the decision for one column "c" of some rows (its values repeated)."""
    cells = [values[i % len(values)] for i in range(num_rows)]
    coded = pa.types.is_dictionary(kind) and not pa.types.is_string(kind.value_type) and not pa.types.is_large_string(kind.value_type)
    array = pa.array(cells, kind.value_type).dictionary_encode() if coded else pa.array(cells, kind)
    table = pa.table({"beside": np.arange(num_rows) % 2 == 0, "c": array})
    return decide_table(table, {"c": override} if override is not None else {}, rules)["c"]


def refusal(values: Any, kind: pa.DataType, override: Mapping[str, Any]) -> str:
    with pytest.raises(ColumnOverrideError, match=r"data\.columns\.c\b") as caught:
        decide(values, kind, override)
    return str(caught.value)


WIDE = [*range(21), 25, 27, 25]
INTEGERS = [pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64()]
FLOATS = [pa.float16(), pa.float32(), pa.float64(), pa.decimal128(9, 2), pa.decimal256(50, 2)]
TEXTS = [pa.string(), pa.large_string(), pa.dictionary(pa.int8(), pa.string()), pa.dictionary(pa.int32(), pa.large_string())]


def as_values(values: list[Any], kind: pa.DataType) -> list[Any]:
    convert: Any = np.float16 if pa.types.is_float16(kind) else Decimal if pa.types.is_decimal(kind) else lambda value: value
    return [None if value is None else convert(value) for value in values]


@pytest.mark.parametrize("kind", FLOATS, ids=str)
def test_floats_and_decimals_are_numeric(kind: pa.DataType) -> None:
    column = decide(as_values([1, 2, None, 3], kind), kind)
    assert (column.kind, column.integer, column.shape, column.valid_size) == ("numeric", False, [1], 1)
    assert column.reason == f"{kind} type; steps of 1"
    assert column.null_fraction == 0.25
    assert column.mean == pytest.approx([2.0], rel=1e-12)
    assert column.scale == pytest.approx(np.sqrt(2 / 3), rel=1e-12)


@pytest.mark.parametrize("kind", [*INTEGERS, pa.dictionary(pa.int32(), pa.int64()), pa.dictionary(pa.int32(), pa.uint8())], ids=str)
def test_integers_of_few_values_are_categories_and_from_zero_counts(kind: pa.DataType) -> None:
    values = kind.value_type if pa.types.is_dictionary(kind) else kind
    few = decide([3, 1, 2, None], kind)
    assert (few.kind, few.categories, few.shape, few.other) == ("categorical", [1, 2, 3], [1], False)
    assert few.reason == "integers, 3 values"
    many = decide(WIDE, kind)
    assert (many.kind, many.integer, many.shape, many.lower) == ("count", True, [1], 0)
    assert many.upper == np.iinfo(values.to_pandas_dtype()).max
    assert many.reason == f"integers from 0, more than {MAX_INTEGER_CATEGORIES} values"


@pytest.mark.parametrize("kind", [*INTEGERS[:4], pa.dictionary(pa.int32(), pa.int16())], ids=str)
def test_integers_below_zero_are_numeric(kind: pa.DataType) -> None:
    values = kind.value_type if pa.types.is_dictionary(kind) else kind
    column = decide([*WIDE, -1], kind)
    assert (column.kind, column.integer) == ("numeric", True)
    assert (column.lower, column.upper) == (np.iinfo(values.to_pandas_dtype()).min, np.iinfo(values.to_pandas_dtype()).max)
    assert column.reason == f"integers, more than {MAX_INTEGER_CATEGORIES} values"
    assert decide([*WIDE, 0], kind).kind == "count"


def test_the_bounds_of_few_are_exact() -> None:
    at, over = list(range(MAX_INTEGER_CATEGORIES)), list(range(MAX_INTEGER_CATEGORIES + 1))
    assert decide(at, pa.int64()).kind == "categorical"
    assert decide(over, pa.int64()).kind == "count"


@pytest.mark.parametrize(
    "kind",
    [
        *(pa.timestamp(unit, zone) for unit in ("s", "ms", "us", "ns") for zone in (None, "UTC", "Asia/Shanghai")),
        *(pa.time32("s"), pa.time32("ms"), pa.time64("us"), pa.time64("ns")),
        *(pa.date32(), pa.date64(), pa.dictionary(pa.int32(), pa.timestamp("ms", "UTC"))),
    ],
    ids=str,
)
def test_dates_times_and_timestamps_are_points_in_time_of_any_number_of_values(kind: pa.DataType) -> None:
    values = kind.value_type if pa.types.is_dictionary(kind) else kind
    unit = 86_400_000 if values == pa.date64() else 1
    for num_values in (2, 30, N):
        column = decide([*(unit * i for i in range(num_values)), None][:N], kind)
        assert (column.kind, column.integer, column.shape, column.width) == ("timestamp", True, [1], None)
        assert column.reason == f"{values} type"
        assert 0 <= column.mean[0] <= unit * num_values
        assert column.lower is not None
        assert column.upper is not None
        assert column.lower <= 0 < column.upper
    if pa.types.is_time(values):
        assert (column.lower, column.upper) == (0, {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[values.unit] * 86_400 - 1)


def test_unique_integers_are_proposed_as_a_key_unless_named() -> None:
    unique = list(range(N))
    column = decide(unique, pa.int64())
    assert (column.kind, column.reason) == ("ignored", "every value is different: a key? then name it by data.key")
    assert decide([*range(N - 1), 0], pa.int64()).kind == "count"
    assert decide(unique, pa.int64(), {"kind": "count"}).kind == "count"
    assert decide(unique, pa.int64(), {"kind": "numeric"}).kind == "numeric"
    assert decide(unique, pa.int64(), {"kind": "categorical"}).categories == unique


def test_a_named_numeric_column_of_integers_may_have_few_values_and_a_count_none_below_zero() -> None:
    column = decide([0, 1, 2], pa.int16(), {"kind": "count"})
    assert (column.kind, column.integer, column.lower, column.reason) == ("count", True, 0, "named by data.columns")
    column = decide([0, -1, 2], pa.int16(), {"kind": "numeric"})
    assert (column.kind, column.integer, column.lower) == ("numeric", True, -(2**15))
    assert "'count', but its values go down to -1; counts are 0 or more" in refusal([0, -1, 2], pa.int16(), {"kind": "count"})


def test_integers_too_large_for_float64_stay_exact_categories() -> None:
    values = [2**60, 2**60 + 1, 2**60 + 2]
    assert decide(values, pa.int64()).categories == values
    assert decide([2**64 - 1, 2**64 - 2], pa.uint64()).categories == [2**64 - 2, 2**64 - 1]


def test_quantities_that_float64_cannot_tell_apart_have_a_scale_that_can_be_divided_by() -> None:
    column = decide([2**60 + i for i in range(30)], pa.int64())
    assert column.kind == "count"
    assert column.scale > 0
    assert decide([1e-200, 2e-200], pa.float64()).scale > 0


def test_booleans_are_boolean() -> None:
    column = decide([True, None, False, True], pa.bool_())
    assert (column.kind, column.reason, column.shape, column.null_fraction) == ("boolean", "boolean type", [1], 0.25)


@pytest.mark.parametrize("kind", TEXTS, ids=str)
def test_repeated_text_is_categorical(kind: pa.DataType) -> None:
    column = decide(["b", "a", None, "ü"], kind)
    assert (column.kind, column.categories, column.shape) == ("categorical", ["a", "b", "ü"], [1])
    assert column.reason == "text, 3 values"


def test_text_that_never_repeats_is_free_text_unless_named() -> None:
    unique = [f"text {i:02d}" for i in range(N)]
    column = decide(unique, pa.string())
    assert (column.kind, column.reason) == ("ignored", "every value is different: free text, or a key to name by data.key")
    assert decide(unique, pa.string(), {"kind": "categorical"}).categories == unique


def test_text_of_nearly_as_many_values_as_rows_is_free_text_unless_named() -> None:
    def texts(num_distinct: int) -> list[str]:
        return [f"text {i % num_distinct}" for i in range(1000)]

    column = decide(texts(901), pa.string(), num_rows=1000)
    assert (column.kind, column.reason) == ("ignored", "free text: 901 different values in 1000 rows")
    assert decide(texts(900), pa.string(), num_rows=1000).kind == "categorical"
    assert len(decide(texts(901), pa.string(), {"kind": "categorical"}, num_rows=1000).categories) == 901


def test_a_short_table_has_no_free_text_but_unique_text() -> None:
    values = [*(f"text {i}" for i in range(MAX_INTEGER_CATEGORIES)), "text 0"]
    assert decide(values, pa.string(), num_rows=len(values)).kind == "categorical"
    assert decide(values[:-1], pa.string(), num_rows=len(values) - 1).kind == "ignored"


@pytest.mark.parametrize(
    ("kind", "spell"), [(pa.string(), "{:02d}".format), (pa.dictionary(pa.int32(), pa.string()), "{:02d}".format), (pa.int64(), int)]
)
def test_the_most_frequent_categories_are_kept_in_ascending_order_and_the_rest_is_other(kind: pa.DataType, spell: Any) -> None:
    values = [spell(number) for number in [3, 1, 1, 1, 2, 2, 9, 9, 7, 8]]  # 1: three times, 2 and 9: twice, the others once
    named = {"kind": "categorical"}
    for kept, numbers, share in ((1, [1], "70.0%"), (2, [1, 2], "50.0%"), (3, [1, 2, 9], "30.0%"), (4, [1, 2, 3, 9], "20.0%")):
        column = decide(values, kind, named, Rules(max_categories=kept))
        assert (column.kind, column.categories, column.other) == ("categorical", [spell(number) for number in numbers], True)
        assert column.num_codes == kept + 1
        said = f"named by data.columns, 6 values, the {kept} most frequent kept; {share} of the rows are one category 'other'"
        assert column.reason == said
    column = decide(values, kind, named, Rules(max_categories=6))
    assert (column.num_codes, column.other, column.reason) == (6, False, "named by data.columns, 6 values")


def test_text_is_in_the_order_of_its_code_points() -> None:
    assert decide(["ü", "a", "Z", "\U0001f600", "\uffff", ""], pa.string()).categories == ["", "Z", "a", "ü", "\uffff", "\U0001f600"]


def test_a_thousand_categories_are_kept_where_nothing_is_said() -> None:
    values = [f"{i:04d}" for i in [*range(1001), *range(1000)]]
    column = decide(values, pa.string(), num_rows=2001)
    assert column.categories == [f"{i:04d}" for i in range(1000)]
    assert column.reason == "text, 1001 values, the 1000 most frequent kept; 0.0% of the rows are one category 'other'"


def test_a_category_of_too_few_rows_is_part_of_other() -> None:
    values = ["a"] * 3 + ["b"] * 2 + ["c"]
    column = decide(values, pa.string(), rules=Rules(min_category_count=11))
    assert (column.categories, column.other) == (["a", "b"], True)
    assert column.reason == "text, 3 values, the 2 most frequent kept; 16.7% of the rows are one category 'other'"
    assert decide(values, pa.string(), rules=Rules(min_category_count=10)).other is False
    column = decide(values, pa.string(), rules=Rules(min_category_count=31))
    assert (column.kind, column.reason) == ("ignored", "no value comes in 31 rows (data.min_category_count)")


def test_counts_that_are_approximate_are_said_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data.statistics, "MAX_DISTINCT", 50)
    values = [*(f"{i:03d}" for i in range(200)), *["often"] * 800]
    column = decide(values, pa.string(), num_rows=1000, rules=Rules(max_categories=3))
    assert "often" in column.categories
    assert column.other
    found = re.fullmatch(
        r"text, about (\d+) values, the 1 most frequent kept; (\d+\.\d)% of the rows are one category 'other' "
        r"\(counts are approximate, by up to (\d+) rows\)",
        column.reason,
    )
    assert found is not None, column.reason
    assert abs(int(found[1]) - 201) <= 10
    assert 20.0 <= float(found[2]) <= 20.0 + int(found[3]) / 10


CONSTANTS: list[tuple[Any, pa.DataType]] = [
    ("x", pa.string()),
    ("x", pa.dictionary(pa.int8(), pa.string())),
    (True, pa.bool_()),
    (False, pa.bool_()),
    (7, pa.int8()),
    (2**53 + 1, pa.int64()),
    (-(2**63), pa.int64()),
    (2**64 - 1, pa.uint64()),
    (2**60 + 1, pa.dictionary(pa.int8(), pa.int64())),
    (0.25, pa.float32()),
    (0.1, pa.float64()),
    (1e308, pa.float64()),
    (2**62 + 1, pa.timestamp("ns", "UTC")),
    (-5, pa.date32()),
    (86_399_999_999_999, pa.time64("ns")),
    ([3, 4], pa.list_(pa.uint8())),
    ([2**53, -1], pa.list_(pa.int64(), 2)),
    ([0.5, 0.1], pa.large_list(pa.float64())),
]


@pytest.mark.parametrize(("value", "kind"), CONSTANTS, ids=str)
def test_a_constant_column_is_ignored_and_its_exact_value_kept(value: Any, kind: pa.DataType) -> None:
    column = decide([value, None, value, value], kind)
    assert (column.kind, column.reason, column.null_fraction) == ("ignored", "constant", 0.25)
    assert column.constant == value
    assert type(column.constant) is type(value)
    assert Column(**json.loads(json.dumps(asdict(column)))) == column


@pytest.mark.parametrize(
    ("value", "kept"), [("2.50", 2.5), ("0.10", 0.1), ("999999999999999", "999999999999999.00"), ("1234567890123456789.01",) * 2]
)
def test_a_constant_decimal_is_kept_as_a_float_where_that_is_exact_and_else_as_text(value: str, kept: Any) -> None:
    kind = pa.decimal128(38, 2)
    column = decide([Decimal(value), None], kind)
    assert (column.reason, column.constant) == ("constant", kept)
    assert pa.array([column.constant]).cast(kind, safe=False).to_pylist() == [Decimal(value)]
    assert Column(**json.loads(json.dumps(asdict(column)))) == column


def test_values_that_float64_cannot_tell_apart_are_no_constant() -> None:
    decimals = [Decimal("1234567890123456789.01"), Decimal("1234567890123456789.02")]
    assert decide(decimals, pa.decimal128(30, 2)).kind == "numeric"
    assert decide([2**60, 2**60 + 1], pa.int64()).kind == "categorical"
    assert decide([2**62, 2**62 + 1], pa.timestamp("ns")).kind == "timestamp"


def test_lists_that_float64_does_not_hold_are_constant_without_a_value() -> None:
    for value, kind in (([2**53 + 2, 0], pa.list_(pa.int64())), ([Decimal("0.1")], pa.list_(pa.decimal128(9, 1)))):
        column = decide([value], kind)
        assert (column.kind, column.reason, column.constant) == ("ignored", "constant", None)


@pytest.mark.parametrize("kind", [*INTEGERS, *TEXTS, *FLOATS, pa.bool_(), pa.list_(pa.float32()), pa.null(), pa.date32()], ids=str)
def test_an_all_null_column_is_ignored(kind: pa.DataType) -> None:
    column = decide([None], kind)
    assert (column.kind, column.reason, column.null_fraction) == ("ignored", "all null in the training rows", 1.0)


OTHERS: list[tuple[pa.DataType, list[Any]]] = [
    (pa.binary(), [b"a", b"b"]),
    (pa.large_binary(), [b"a", b"b"]),
    (pa.binary(1), [b"a", b"b"]),
    (pa.duration("s"), [1, 2]),
    (pa.list_(pa.string()), [["a"], ["b"]]),
    (pa.list_(pa.bool_()), [[True], [False]]),
    (pa.list_(pa.date32()), [[1], [2]]),
    (pa.list_(pa.list_(pa.int8())), [[[1]], [[2]]]),
    (pa.struct({"a": pa.int8()}), [{"a": 1}, {"a": 2}]),
]


@pytest.mark.parametrize(("kind", "values"), OTHERS, ids=str)
def test_other_types_are_ignored_by_name(kind: pa.DataType, values: list[Any]) -> None:
    column = decide(values, kind)
    assert (column.kind, column.reason) == ("ignored", f"columns of type {kind} are not modelled")


@pytest.mark.parametrize(("kind", "values"), [(pa.float64(), [1.5, 2.5]), (pa.bool_(), [True, False]), (pa.string(), ["a", "b"])], ids=str)
def test_a_dictionary_is_what_its_values_are(kind: pa.DataType, values: list[Any]) -> None:
    coded, plain = decide(values, pa.dictionary(pa.int32(), kind)), decide(values, kind)
    assert coded == plain


@pytest.mark.parametrize(
    "kind", [pa.list_(pa.float32()), pa.large_list(pa.float64()), pa.list_(pa.int16(), 3), pa.list_(pa.float16())], ids=str
)
def test_lists_of_one_length_are_vectors_with_one_scale(kind: pa.DataType) -> None:
    column = decide([[1, 2, 10], [3, 6, 10], None], kind)
    assert (column.kind, column.shape, column.size, column.valid_size) == ("vector", [3], 3, 1)
    assert column.mean == pytest.approx([2, 4, 10], rel=1e-12)
    assert column.scale == pytest.approx(np.sqrt((1 + 4 + 0) / 3), rel=1e-12)
    assert column.integer == pa.types.is_integer(kind.value_type)
    assert column.null_fraction == pytest.approx(1 / 3)
    assert column.reason == "lists of 3 numbers"


def test_null_elements_give_every_element_its_own_flag() -> None:
    column = decide([[1.0, None], [2.0, 3.0], [2.5, 4.0]], pa.list_(pa.float64()))
    assert (column.element_nulls, column.valid_size) == (True, 2)
    assert column.element_null_fractions == [pytest.approx(0), pytest.approx(1 / 3)]
    column = decide([[1.0, None], [1.0, 3.0]], pa.list_(pa.float64()))
    assert (column.kind, column.element_nulls, column.mean) == ("vector", True, [1.0, 3.0])


@pytest.mark.parametrize("kind", [pa.list_(pa.float64()), pa.list_(pa.uint8(), 4)], ids=str)
def test_elements_are_null_so_often_in_the_lists_that_are_there(kind: pa.DataType) -> None:
    column = decide([[1, None, 3, 4], None, [2, 3, None, 5], [7, None, 9, 1], None], kind)
    assert column.kind == ("image" if pa.types.is_uint8(kind.value_type) else "vector")
    assert column.element_null_fractions == pytest.approx([0, 2 / 3, 1 / 3, 0])
    assert column.null_fraction == pytest.approx(2 / 5)
    assert decide([[1, 2, 3, 4], None, [2, 3, 4, 5]], kind).element_null_fractions == []


def test_a_vector_with_an_element_that_never_is_still_has_a_scale() -> None:
    column = decide([[1.0, None]], pa.list_(pa.float64()))
    assert (column.kind, column.scale) == ("vector", 1.0)
    image = decide([[1, None, 1, 1]], pa.list_(pa.uint8()))
    assert (image.kind, image.scale) == ("image", 1.0)


@pytest.mark.parametrize("element", [pa.float32(), pa.uint8()], ids=str)
def test_lists_that_cannot_be_vectors_are_ignored(element: pa.DataType) -> None:
    kind = pa.list_(element)
    several = decide([[1], [1, 2]], kind)
    assert (several.kind, several.reason) == ("ignored", "lists of several lengths (1, 2, ..)")
    assert decide([[]], kind).reason == decide([[None, None]], kind).reason == "lists without a number"


def pixels(size: int) -> list[list[int]]:
    return np.random.default_rng(0).integers(0, 256, (20, size)).tolist()  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    "make", [lambda size: pa.list_(pa.uint8()), lambda size: pa.list_(pa.uint8(), size), lambda size: pa.large_list(pa.uint8())]
)
def test_a_square_of_bytes_is_an_image(make: Any) -> None:
    values = pixels(16)
    column = decide(values, make(16))
    assert (column.kind, column.shape, column.integer, column.valid_size) == ("image", [4, 4], True, 1)
    assert column.mean == pytest.approx([np.mean(values)], rel=1e-12)
    assert column.scale == pytest.approx(np.std(values), rel=1e-12)
    assert column.reason == "lists of 16 bytes"


def test_bytes_that_make_no_square_are_a_vector_unless_their_shape_is_given() -> None:
    kind, values = pa.list_(pa.uint8()), pixels(12)
    assert (decide(values, kind).kind, decide(values, kind).shape) == ("vector", [12])
    for shape in ([3, 4], [2, 2, 3], [1, 12]):
        for override in ({"shape": shape}, {"kind": "image", "shape": shape}):
            column = decide(values, kind, override)
            assert (column.kind, column.shape) == ("image", shape)


def test_a_square_of_bytes_can_be_named_a_vector() -> None:
    column = decide(pixels(16), pa.list_(pa.uint8()), {"kind": "vector"})
    assert (column.kind, column.shape, column.integer, column.reason) == ("vector", [16], True, "named by data.columns")


@pytest.mark.parametrize(
    ("kind", "values", "wish"),
    [
        (pa.int64(), [1, 2, 3], "numeric"),
        (pa.int64(), [1, 2, 3], "count"),
        (pa.decimal128(9, 2), [Decimal(1), Decimal(2)], "numeric"),
        (pa.time32("s"), [1, 2], "timestamp"),
        (pa.bool_(), [True, False], "boolean"),
        (pa.float32(), [1.0, 2.0], "numeric"),
        (pa.list_(pa.float32()), [[1.0], [2.0]], "vector"),
        (pa.list_(pa.uint8()), pixels(9), "image"),
        (pa.float32(), [1.0, 2.0], "ignored"),
        (pa.binary(), [b"a", b"b"], "ignored"),
    ],
    ids=str,
)
def test_a_kind_that_the_type_allows_is_granted(kind: pa.DataType, values: list[Any], wish: str) -> None:
    column = decide(values, kind, {"kind": wish})
    assert (column.kind, column.reason.split("; steps")[0]) == (wish, "named by data.columns")


@pytest.mark.parametrize(
    ("kind", "values", "wish", "possible"),
    [
        (pa.string(), ["a", "b"], "numeric", ["categorical", "ignored"]),
        (pa.string(), ["2024-01-01", "2024-01-02"], "timestamp", ["categorical", "ignored"]),
        (pa.dictionary(pa.int8(), pa.string()), ["a", "b"], "count", ["categorical", "ignored"]),
        (pa.int64(), [1, 2], "boolean", ["numeric", "count", "categorical", "ignored"]),
        (pa.float64(), [1.0, 2.0], "count", ["numeric", "ignored"]),
        (pa.int64(), [1, 2], "timestamp", ["numeric", "count", "categorical", "ignored"]),
        (pa.timestamp("s"), [1, 2], "numeric", ["timestamp", "ignored"]),
        (pa.duration("s"), [1, 2], "timestamp", ["ignored"]),
        (pa.float64(), [1.0, 2.0], "categorical", ["numeric", "ignored"]),
        (pa.bool_(), [True, False], "categorical", ["boolean", "ignored"]),
        (pa.list_(pa.float32()), [[1.0], [2.0]], "image", ["vector", "ignored"]),
        (pa.list_(pa.uint8()), pixels(4), "numeric", ["vector", "image", "ignored"]),
        (pa.list_(pa.string()), [["a"], ["b"]], "vector", ["ignored"]),
        (pa.binary(), [b"a", b"b"], "categorical", ["ignored"]),
        (pa.int64(), [1, 2], "numbers", ["numeric", "count", "categorical", "ignored"]),
        (pa.int64(), [1, 2], "key", ["numeric", "count", "categorical", "ignored"]),
    ],
    ids=str,
)
def test_a_kind_that_the_type_forbids_is_refused_with_those_it_allows(
    kind: pa.DataType, values: list[Any], wish: str, possible: list[str]
) -> None:
    message = refusal(values, kind, {"kind": wish})
    assert f"data.columns.c.kind is {wish!r}; a column of type {kind} can be one of {possible}" in message


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ({"shap": [3, 4]}, r"unknown keys \['shap'\]; known are kind, shape and binarize"),
        ({"kind": "image"}, r"12 pixels are no square; give its shape, such as \[height, width\]"),
        ({"kind": "image", "shape": [12]}, "give its shape"),
        ({"shape": [3, 5]}, r"shape is \[3, 5\], which makes 15 cells; the lists hold 12"),
        ({"shape": [-3, -4]}, "positive numbers"),
        ({"shape": []}, "positive numbers"),
        ({"shape": 12}, "positive numbers"),
        ({"shape": ["3", "4"]}, "positive numbers"),
    ],
    ids=str,
)
def test_a_wish_that_cannot_be_is_refused(override: dict[str, Any], said: str) -> None:
    assert re.search(said, refusal(pixels(12), pa.list_(pa.uint8()), override))


def test_a_shape_is_for_images() -> None:
    for kind, values in ((pa.float64(), [1.0, 2.0]), (pa.list_(pa.float32()), [[1.0, 2.0]])):
        assert "no image" in refusal(values, kind, {"shape": [1, 2]})


@pytest.mark.parametrize("wish", ["vector", "image"])
def test_lists_of_several_lengths_cannot_be_wished_into_one(wish: str) -> None:
    assert "several lengths, among them [1, 4]" in refusal([[1], [1, 2, 3, 4]], pa.list_(pa.uint8()), {"kind": wish})


def test_a_shape_that_does_not_multiply_out_is_refused_even_where_all_lists_are_alike() -> None:
    assert "shape is [3, 5], which makes 15 cells; the lists hold 12" in refusal([[1] * 12], pa.list_(pa.uint8()), {"shape": [3, 5]})


def test_an_override_of_a_column_that_is_not_there_is_refused() -> None:
    table = pa.table({"a": [1.0, 2.0]})
    with pytest.raises(ColumnOverrideError, match=r"data\.columns names \['b', 'x'\], which the table does not have; it has \['a'\]"):
        decide_table(table, {"x": {}, "a": {}, "b": {"kind": "numeric"}})


def test_what_types_alone_forbid_is_refused_before_any_value_is_read_and_all_at_once() -> None:
    schema = pa.schema({"a": pa.string(), "b": pa.float64(), "c": pa.int64()})
    with pytest.raises(ColumnOverrideError) as caught:
        check_overrides(schema, None, {"a": {"kind": "timestamp"}, "b": {"shape": [2, 2]}, "c": {"kind": "count"}})
    assert str(caught.value).splitlines() == [
        "data.columns.a.kind is 'timestamp'; a column of type string can be one of ['categorical', 'ignored']",
        "data.columns.b.shape: a column of type double is no image; images are lists of uint8",
    ]


def test_the_key_is_the_key_whatever_its_values() -> None:
    table = pa.table({"id": ["x", "x"], "a": [1.0, 2.0]})
    summary = summary_of(table.select(["a"]), 5)
    for overrides, named in (({}, "data.key"), ({"id": {"kind": "key"}}, "data.columns")):
        columns = decide_columns(table.schema, summary, "id", overrides, RULES)
        assert [(column.name, column.kind) for column in columns] == [("id", "key"), ("a", "numeric")]
        assert columns[0].reason == f"named by {named}"
    with pytest.raises(ColumnOverrideError, match=r"data\.columns\.id\.kind is 'categorical', but data\.key names this column"):
        decide_table(table, {"id": {"kind": "categorical"}}, key="id")
    with pytest.raises(ColumnOverrideError, match=r"data\.columns\.id: unknown keys \['kin'\]"):
        decide_table(table, {"id": {"kin": "key"}}, key="id")


def test_a_key_is_named_by_data_key_or_as_a_kind_and_there_is_one() -> None:
    assert key_column(None, {"a": {"kind": "numeric"}}) is None
    assert key_column("id", {"a": {"kind": "numeric"}}) == "id"
    assert key_column(None, {"id": {"kind": "key"}}) == "id"
    assert key_column("id", {"id": {"kind": "key"}}) == "id"
    with pytest.raises(ColumnOverrideError, match=r"data\.key and data\.columns name several keys: \['id', 'other'\]"):
        key_column("id", {"other": {"kind": "key"}})
    with pytest.raises(ColumnOverrideError, match=r"several keys: \['a', 'b'\]"):
        key_column(None, {"a": {"kind": "key"}, "b": {"kind": "key"}})


NAN, INF = float("nan"), float("inf")


def test_nonfinite_values_are_refused_by_column_count_and_file_all_at_once() -> None:
    table = pa.table({"a": [1.0, NAN, INF, 2.0], "fine": [1.0, 2.0, 3.0, None], "v": [[1.0, NAN], [2.0, 3.0], [1.0, 1.0], None]})
    summary = summary_of(table, 2)
    summary.columns["a"] = replace(summary.columns["a"], first_nonfinite="part-7.parquet")
    with pytest.raises(DataError) as caught:
        decide_columns(table.schema, summary, None, {}, RULES)
    assert "column 'a' has 2 NaN or infinite values, the first in part-7.parquet; store them as null" in str(caught.value)
    assert "--data.nonfinite null" in str(caught.value)
    assert "column 'v' has 1 NaN or infinite values" in str(caught.value)
    assert "fine" not in str(caught.value)


@pytest.mark.parametrize("kind", FLOATS[:3], ids=str)
def test_nonfinite_values_may_count_as_nulls_and_that_is_said(kind: pa.DataType) -> None:
    column = decide(as_values([1, 2, None, 3, NAN], kind), kind, rules=Rules(nonfinite="null"))
    assert column == replace(
        decide(as_values([1, 2, None, 3, None], kind), kind),
        reason=f"{kind} type; steps of 1; {N // 5} NaN or infinite values count as nulls",
    )


def test_a_vector_whose_elements_may_be_nonfinite_has_a_flag_for_each() -> None:
    rows = [[1.0, 2.0], [INF, 3.0], [5.0, NAN], None]
    column = decide(rows, pa.list_(pa.float32()), rules=Rules(nonfinite="null"))
    as_nulls = decide([[1.0, 2.0], [None, 3.0], [5.0, None], None], pa.list_(pa.float32()))
    assert column == replace(as_nulls, reason=f"lists of 2 numbers; {N // 2} NaN or infinite values count as nulls")
    assert (column.element_nulls, column.valid_size, column.null_fraction) == (True, 2, 0.25)


def test_a_column_of_one_number_and_nan_is_constant_where_nan_is_null_and_else_refused() -> None:
    assert decide([1.5, NAN], pa.float64(), rules=Rules(nonfinite="null")).constant == 1.5
    with pytest.raises(DataError, match="column 'c' has 30 NaN"):
        decide([1.5, NAN], pa.float64())


def test_nonfinite_values_of_an_ignored_column_do_not_matter() -> None:
    column = decide([1.0, NAN, 2.0], pa.float64(), {"kind": "ignored"})
    assert (column.kind, column.reason) == ("ignored", "named by data.columns")


def test_a_column_of_nan_alone_is_ignored() -> None:
    column = decide([NAN], pa.float64())
    assert (column.kind, column.reason, column.null_fraction) == ("ignored", "no finite value in the training rows", 1.0)


def test_values_too_large_to_standardise_are_refused_with_their_size() -> None:
    said = r"column 'c' has values too large to standardise \(up to 1e\+300\)"
    for values, kind in (([-1e300, 1.0], pa.float64()), ([[-1e300, 1.0], [1.0, 2.0]], pa.list_(pa.float64()))):
        with pytest.raises(DataError, match=said):
            decide(values, kind)


def test_a_vector_too_large_to_standardise_is_refused_even_where_an_element_was_missing_at_first() -> None:
    with pytest.raises(DataError, match="too large to standardise"):
        decide([*[[None, 1.0]] * 17, *[[1e200, 2.0]] * 17], pa.list_(pa.float64()))


def test_heavy_tails_are_drawn_in_and_that_is_said() -> None:
    random = np.random.default_rng(0)
    for kind in (pa.float32(), pa.float64()):
        column = decide(random.lognormal(size=2000).tolist(), kind, num_rows=2000)
        assert (column.kind, column.reason) == ("numeric", f"{kind} type; heavy tails, drawn in")
        assert column.width == pytest.approx(1.29, rel=0.1)
        assert column.center == pytest.approx(1.0, rel=0.1)
    light = decide(random.normal(size=2000).tolist(), pa.float64(), num_rows=2000)
    assert (light.width, light.center, light.reason) == (None, 0.0, "double type")


def test_heavy_tails_of_integers_lie_about_a_whole_number() -> None:
    random = np.random.default_rng(1)
    gains = np.where(random.random(2000) < 0.08, random.lognormal(8.5, 1, 2000).round(), 0).astype(np.int64)
    column = decide(gains.tolist(), pa.int32(), num_rows=2000)
    assert (column.kind, column.integer, column.center, column.lower) == ("count", True, 0.0, 0)
    assert column.reason == f"integers from 0, more than {MAX_INTEGER_CATEGORIES} values; heavy tails, drawn in"
    for offset in (100, 1000):
        far = decide((gains + offset).tolist(), pa.int32(), num_rows=2000)
        assert far.width is not None
        assert far.center == round(far.center) == pytest.approx(offset, rel=1 / 64)


def test_tails_of_times_are_left_alone() -> None:
    values = np.random.default_rng(2).lognormal(10, 2, 2000).astype(np.int64).tolist()
    column = decide(values, pa.timestamp("s"), num_rows=2000)
    assert (column.kind, column.width) == ("timestamp", None)


def test_a_table_without_a_column_to_model_is_refused_with_the_reasons() -> None:
    table = pa.table({"id": [1, 2], "same": ["x", "x"], "free": ["a", "b"]})
    with pytest.raises(
        DataError, match=r"no column is left to model \(id: named by data\.key; same: constant; free: every value is different"
    ):
        decide_table(table, key="id")


def test_each_reason_is_said_once_whatever_the_number_of_leaves() -> None:
    table = pa.table({"a": ["x"] * 100, "b": [f"t{i}" for i in range(100)], "c": [1.5, NAN] * 50, "d": [1.0, 2.0] * 50})
    columns = decide_table(table, rules=Rules(nonfinite="null"))
    for column in columns.values():
        parts = re.split("; |, ", column.reason)
        assert len(parts) == len(set(parts))


def test_a_column_without_a_name_is_ignored() -> None:
    """As spreadsheets and R write their row numbers; MLflow takes no such column."""
    table = pa.table({"": [1.5, 2.5, 1.5], "x": [0.1, 0.7, 0.3]})
    column = decide_columns(table.schema, summarise_table(table, (3, 0, 0)), None, {}, Rules())[0]
    assert (column.kind, column.reason) == ("ignored", "it has no name; give it one to have it modelled")
