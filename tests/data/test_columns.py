"""Claims about data.columns: what kind a column gets and why, and which wishes are refused."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from data.columns import MAX_CATEGORIES, MAX_INTEGER_CATEGORIES, Column, ColumnOverrideError, decide_columns
from data.statistics import TableSummary, merge_all, summarise
from data.table import DataError

# A column that can always be modelled, so that the one beside it may be ignored.
BESIDE = pa.array([True, False] * 30)
N = len(BESIDE)


def summary_of(table: pa.Table, rows_per_group: int) -> TableSummary:
    groups = [table.slice(begin, rows_per_group) for begin in range(0, table.num_rows, rows_per_group)]
    return merge_all(TableSummary((len(group), 0, 0), {name: summarise(group[name]) for name in group.column_names}) for group in groups)


def decide(values: Any, kind: pa.DataType, override: Mapping[str, Any] | None = None, rows_per_group: int = 17) -> Column:
    """Returns the decision for one column "c" of N rows (its values repeated)."""
    array = pa.array([values[i % len(values)] for i in range(N)], kind)
    table = pa.table({"beside": BESIDE, "c": array})
    columns = decide_columns(table.schema, summary_of(table, rows_per_group), None, {"c": override} if override is not None else {})
    assert [column.name for column in columns] == ["beside", "c"]
    return columns[1]


def refusal(values: Any, kind: pa.DataType, override: Mapping[str, Any]) -> str:
    with pytest.raises(ColumnOverrideError, match=r"data\.columns\.c\b") as caught:
        decide(values, kind, override)
    return str(caught.value)


WIDE = [*range(0, 40, 2), 5, 7, 5]
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
    assert column.reason == f"{kind} type"
    assert column.null_fraction == 0.25
    assert column.mean == pytest.approx([2.0], rel=1e-12)
    assert column.scale == pytest.approx(np.sqrt(2 / 3), rel=1e-12)


@pytest.mark.parametrize("kind", INTEGERS, ids=str)
def test_integers_of_few_values_are_categories_and_of_many_are_quantities(kind: pa.DataType) -> None:
    few = decide([3, 1, 2, None], kind)
    assert (few.kind, few.categories, few.shape) == ("categorical", [1, 2, 3], [1])
    assert few.reason == "integers with 3 values"
    many = decide(WIDE, kind)
    assert (many.kind, many.integer, many.shape) == ("numeric", True, [1])
    assert many.reason == f"integers with more than {MAX_INTEGER_CATEGORIES} values"


def test_the_bounds_of_few_are_exact() -> None:
    at, over = list(range(MAX_INTEGER_CATEGORIES)), list(range(MAX_INTEGER_CATEGORIES + 1))
    assert decide(at, pa.int64()).kind == "categorical"
    assert decide(over, pa.int64()).kind == "numeric"


def test_unique_integers_are_taken_for_a_key_unless_named() -> None:
    unique = list(range(N))
    column = decide(unique, pa.int64())
    assert (column.kind, column.reason) == ("ignored", "every value is different: a key? then name it by data.key")
    assert decide(unique, pa.int64(), {"kind": "numeric"}).kind == "numeric"
    assert decide(unique, pa.int64(), {"kind": "categorical"}).categories == unique


def test_integers_too_large_for_float64_stay_exact_categories() -> None:
    values = [2**60, 2**60 + 1, 2**60 + 2]
    assert decide(values, pa.int64()).categories == values
    assert decide([2**64 - 1, 2**64 - 2], pa.uint64()).categories == [2**64 - 2, 2**64 - 1]


def test_quantities_that_float64_cannot_tell_apart_have_a_scale_that_can_be_divided_by() -> None:
    column = decide([2**60 + i for i in range(30)], pa.int64())
    assert column.kind == "numeric"
    assert column.scale > 0
    assert decide([1e-200, 2e-200], pa.float64()).scale > 0


def test_booleans_are_boolean() -> None:
    column = decide([True, None, False, True], pa.bool_())
    assert (column.kind, column.reason, column.shape, column.null_fraction) == ("boolean", "boolean type", [1], 0.25)


@pytest.mark.parametrize("kind", TEXTS, ids=str)
def test_repeated_text_is_categorical(kind: pa.DataType) -> None:
    column = decide(["b", "a", None, "ü"], kind)
    assert (column.kind, column.categories, column.shape) == ("categorical", ["a", "b", "ü"], [1])
    assert column.reason == "text with 3 values"


def test_text_that_never_repeats_is_free_text_unless_named() -> None:
    unique = [f"text {i:02d}" for i in range(N)]
    column = decide(unique, pa.string())
    assert (column.kind, column.reason) == ("ignored", "every value is different: free text, or a key to name by data.key")
    assert decide(unique, pa.string(), {"kind": "categorical"}).categories == unique


def many(kind: pa.DataType, num_distinct: int) -> tuple[pa.Schema, TableSummary]:
    numbers = np.arange(num_distinct + 1) % num_distinct
    table = pa.table({"c": pa.array(numbers).cast(kind), "beside": pa.array(numbers % 2 == 0)})
    return table.schema, summary_of(table, 500)


def test_text_has_a_largest_number_of_categories() -> None:
    schema, summary = many(pa.string(), MAX_CATEGORIES)
    assert len(decide_columns(schema, summary, None, {})[0].categories) == MAX_CATEGORIES
    schema, summary = many(pa.string(), MAX_CATEGORIES + 1)
    column = decide_columns(schema, summary, None, {})[0]
    assert (column.kind, column.reason) == ("ignored", f"text with more than {MAX_CATEGORIES} different values")


@pytest.mark.parametrize("kind", [pa.string(), pa.int64()], ids=str)
def test_too_many_categories_cannot_be_wished(kind: pa.DataType) -> None:
    schema, summary = many(kind, MAX_CATEGORIES + 1)
    with pytest.raises(ColumnOverrideError, match=rf"data\.columns\.c: more than {MAX_CATEGORIES} different values"):
        decide_columns(schema, summary, None, {"c": {"kind": "categorical"}})


CONSTANTS: list[tuple[Any, pa.DataType]] = [
    ("x", pa.string()),
    ("x", pa.dictionary(pa.int8(), pa.string())),
    (True, pa.bool_()),
    (7, pa.int8()),
    (2**64 - 1, pa.uint64()),
    (0.25, pa.float32()),
    (Decimal("2.50"), pa.decimal128(9, 2)),
]


@pytest.mark.parametrize(("value", "kind"), CONSTANTS, ids=str)
def test_a_constant_column_is_ignored_and_its_value_kept(value: Any, kind: pa.DataType) -> None:
    column = decide([value, None, value, value], kind)
    assert (column.kind, column.reason, column.null_fraction) == ("ignored", "constant", 0.25)
    assert column.constant == value
    assert Column(**json.loads(json.dumps(asdict(column)))) == column


@pytest.mark.parametrize("kind", [*INTEGERS, *TEXTS, *FLOATS, pa.bool_(), pa.list_(pa.float32()), pa.null(), pa.date32()], ids=str)
def test_an_all_null_column_is_ignored(kind: pa.DataType) -> None:
    column = decide([None], kind)
    assert (column.kind, column.reason, column.null_fraction) == ("ignored", "all null in the training rows", 1.0)


OTHERS: list[tuple[pa.DataType, list[Any]]] = [
    (pa.binary(), [b"a", b"b"]),
    (pa.date32(), [1, 2]),
    (pa.time32("s"), [1, 2]),
    (pa.list_(pa.string()), [["a"], ["b"]]),
    (pa.list_(pa.list_(pa.int8())), [[[1]], [[2]]]),
    (pa.struct({"a": pa.int8()}), [{"a": 1}, {"a": 2}]),
    (pa.dictionary(pa.int8(), pa.int64()), [1, 2]),
]


@pytest.mark.parametrize(("kind", "values"), OTHERS, ids=str)
def test_other_types_are_ignored_by_name(kind: pa.DataType, values: list[Any]) -> None:
    column = decide(values, kind)
    assert (column.kind, column.reason) == ("ignored", f"columns of type {kind} are not modelled")


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
    alike: list[list[list[int | None]]] = [[[]], [[3, 4]], [[None, None]]]
    for values in alike:
        assert decide(values, kind).reason == "lists without elements, or all the same"


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
        (pa.int64(), WIDE, "categorical"),
        (pa.string(), ["a", "b"], "categorical"),
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
    assert (column.kind, column.reason) == (wish, "named by data.columns")


@pytest.mark.parametrize(
    ("kind", "values", "wish", "possible"),
    [
        (pa.string(), ["a", "b"], "numeric", ["categorical", "ignored"]),
        (pa.int64(), [1, 2], "boolean", ["numeric", "categorical", "ignored"]),
        (pa.float64(), [1.0, 2.0], "categorical", ["numeric", "ignored"]),
        (pa.bool_(), [True, False], "categorical", ["boolean", "ignored"]),
        (pa.list_(pa.float32()), [[1.0], [2.0]], "image", ["vector", "ignored"]),
        (pa.list_(pa.uint8()), pixels(4), "numeric", ["vector", "image", "ignored"]),
        (pa.date32(), [1, 2], "numeric", ["ignored"]),
        (pa.int64(), [1, 2], "numbers", ["numeric", "categorical", "ignored"]),
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
        ({"shap": [3, 4]}, r"unknown keys \['shap'\]; known are kind and shape"),
        ({"kind": "key"}, "name the key column by data.key"),
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


def test_an_override_of_a_column_that_is_not_there_is_refused() -> None:
    table = pa.table({"a": [1.0, 2.0]})
    with pytest.raises(ColumnOverrideError, match=r"data\.columns names \['b', 'x'\], which the table does not have; it has \['a'\]"):
        decide_columns(table.schema, summary_of(table, 5), None, {"x": {}, "a": {}, "b": {"kind": "numeric"}})


def test_the_key_is_the_key_whatever_its_values() -> None:
    table = pa.table({"id": ["x", "x"], "a": [1.0, 2.0]})
    summary = summary_of(table, 5)
    del summary.columns["id"]
    for overrides in ({}, {"id": {"kind": "key"}}):
        columns = decide_columns(table.schema, summary, "id", overrides)
        assert [(column.name, column.kind) for column in columns] == [("id", "key"), ("a", "numeric")]
    with pytest.raises(ColumnOverrideError, match=r"data\.columns\.id\.kind is 'categorical', but data\.key names this column"):
        decide_columns(table.schema, summary, "id", {"id": {"kind": "categorical"}})


def test_nonfinite_values_are_refused_by_column_and_count_all_at_once() -> None:
    inf, nan = float("inf"), float("nan")
    table = pa.table({"a": [1.0, nan, inf, 2.0], "fine": [1.0, 2.0, 3.0, None], "v": [[1.0, nan], [2.0, 3.0], [1.0, 1.0], None]})
    with pytest.raises(DataError) as caught:
        decide_columns(table.schema, summary_of(table, 2), None, {})
    assert "column 'a' has 2 NaN or infinite values, the first in None; store them as null" in str(caught.value)
    assert "column 'v' has 1 NaN or infinite values" in str(caught.value)
    assert "fine" not in str(caught.value)


def test_nonfinite_values_of_an_ignored_column_do_not_matter() -> None:
    assert decide([1.0, float("nan"), 2.0], pa.float64(), {"kind": "ignored"}).kind == "ignored"


def test_a_column_of_nan_alone_is_ignored() -> None:
    column = decide([float("nan")], pa.float64())
    assert (column.kind, column.reason) == ("ignored", "no finite value in the training rows")


def test_values_too_large_to_standardise_are_refused_with_their_size() -> None:
    with pytest.raises(DataError, match=r"column 'c' has values too large to standardise \(up to 1e\+300\)"):
        decide([-1e300, 1.0], pa.float64())


def test_a_table_without_a_column_to_model_is_refused_with_the_reasons() -> None:
    table = pa.table({"id": [1, 2], "same": ["x", "x"], "free": ["a", "b"]})
    with pytest.raises(
        DataError, match=r"no column is left to model \(id: named by data\.key; same: constant; free: every value is different"
    ):
        decide_columns(table.schema, summary_of(table, 5), "id", {})
