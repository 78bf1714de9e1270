"""Claims about data.widening: a common type loses nothing, whatever the values, and what would lose something is refused."""

from __future__ import annotations

import io
import math
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from itertools import pairwise, permutations
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from data.widening import common_type, fits, unsuitable, widen, without_dictionary

BEYOND = 2**53 + 1  # the first integer that float64 does not hold
UNIT_NS = {"s": 10**9, "ms": 10**6, "us": 10**3, "ns": 1}
SIGNED = [pa.int8(), pa.int16(), pa.int32(), pa.int64()]
UNSIGNED = [pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64()]
FLOATING = [pa.float16(), pa.float32(), pa.float64()]
TEXT = [pa.string(), pa.large_string(), pa.string_view()]
BYTES = [pa.binary(), pa.large_binary(), pa.binary_view()]
TIMES = [pa.time32("s"), pa.time32("ms"), pa.time64("us"), pa.time64("ns")]
DURATIONS = [pa.duration(unit) for unit in UNIT_NS]
TIMESTAMPS = [pa.timestamp(unit, zone) for unit in UNIT_NS for zone in (None, "UTC", "Europe/Berlin")]
DATES = [pa.date32(), pa.date64()]
ODD = [pa.bool_(), pa.binary(3), pa.struct([("a", pa.int8())]), pa.map_(pa.string(), pa.int8()), pa.uuid(), pa.month_day_nano_interval()]


@st.composite
def decimals(draw: st.DrawFn) -> pa.DataType:
    make, most = draw(st.sampled_from([(pa.decimal32, 9), (pa.decimal64, 18), (pa.decimal128, 38), (pa.decimal256, 76)]))
    precision = draw(st.integers(1, most))
    return make(precision, draw(st.integers(0, precision)))


numbers = st.sampled_from(SIGNED + UNSIGNED + FLOATING)


@st.composite
def lists(draw: st.DrawFn, elements: st.SearchStrategy[pa.DataType]) -> pa.DataType:
    kind = draw(elements)
    element = pa.field(draw(st.sampled_from(["item", "element"])), kind, pa.types.is_null(kind) or draw(st.booleans()))
    make = draw(st.sampled_from([pa.list_, pa.large_list, lambda item: pa.list_(item, 2), lambda item: pa.list_(item, 3)]))
    return make(element)


def dictionaries(values: st.SearchStrategy[pa.DataType]) -> st.SearchStrategy[pa.DataType]:
    return st.builds(pa.dictionary, st.sampled_from([pa.int8(), pa.int32()]), values, st.booleans())


def with_dictionaries(values: st.SearchStrategy[pa.DataType]) -> st.SearchStrategy[pa.DataType]:
    return values | dictionaries(values)


FAMILIES = [
    with_dictionaries(numbers),
    decimals(),
    with_dictionaries(st.sampled_from(TEXT[:2])) | st.just(pa.string_view()),
    st.sampled_from(BYTES),
    st.sampled_from(TIMES),
    st.sampled_from(DURATIONS),
    with_dictionaries(st.sampled_from(TIMESTAMPS)),
    st.sampled_from(DATES),
    lists(numbers | st.just(pa.null())),
    lists(decimals()),
]
any_type = st.one_of(*FAMILIES, st.sampled_from([pa.null(), *ODD]))


def several_types(count: int) -> st.SearchStrategy[list[pa.DataType]]:
    """Types that often have a common one: most are of one family, which types drawn at random seldom are."""
    kin = st.sampled_from(FAMILIES).flatmap(lambda family: st.lists(family | st.just(pa.null()), min_size=count, max_size=count))
    return kin | st.lists(any_type, min_size=count, max_size=count)


@given(several_types(2))
def test_common_type_is_commutative(types: list[pa.DataType]) -> None:
    a, b = types
    assert common_type(a, b) == common_type(b, a)


@given(any_type)
def test_equal_types_stay_as_they_are(kind: pa.DataType) -> None:
    assert common_type(kind, kind) == kind
    assert common_type(kind, pa.null()) == kind
    assert fits(kind, kind)
    assert fits(pa.null(), kind)


@given(several_types(3))
def test_common_type_does_not_depend_on_the_order_of_files(types: list[pa.DataType]) -> None:
    assume(all(common_type(a, b) is not None for a, b in permutations(types, 2)))
    results = []
    for a, b, c in permutations(types):
        ab = common_type(a, b)
        results.append(common_type(ab, c))
    assert results[0] is not None
    assert all(result == results[0] for result in results)


@given(several_types(2))
def test_a_common_type_absorbs_what_it_holds(types: list[pa.DataType]) -> None:
    a, b = types
    both = common_type(a, b)
    assume(both is not None)
    assert fits(a, both)
    assert fits(b, both)
    assert fits(common_type(both, a), both)


@given(several_types(2))
def test_what_fits_has_a_common_type_that_fits_too(types: list[pa.DataType]) -> None:
    a, b = types
    assume(fits(a, b) and not (pa.types.is_integer(without_dictionary(a)) and pa.types.is_floating(b)))  # these are checked on values
    both = common_type(a, b)
    assert both is not None
    assert fits(both, b)


@given(several_types(3))
def test_what_fits_into_what_fits_fits(types: list[pa.DataType]) -> None:
    a, b, c = types
    other_length = pa.types.is_fixed_size_list(a) and pa.types.is_fixed_size_list(c) and a.list_size != c.list_size
    if fits(a, b) and fits(b, c):
        assert fits(a, c) != other_length


COMMON = [
    (pa.int8(), pa.int64(), pa.int64()),
    (pa.uint8(), pa.int8(), pa.int16()),
    (pa.uint8(), pa.int32(), pa.int32()),
    (pa.uint16(), pa.int16(), pa.int32()),
    (pa.uint32(), pa.int8(), pa.int64()),
    (pa.uint32(), pa.int64(), pa.int64()),
    (pa.uint8(), pa.uint64(), pa.uint64()),
    (pa.int8(), pa.float16(), pa.float64()),
    (pa.uint64(), pa.float32(), pa.float64()),
    (pa.float16(), pa.float32(), pa.float32()),
    (pa.float16(), pa.float64(), pa.float64()),
    (pa.string(), pa.large_string(), pa.large_string()),
    (pa.string_view(), pa.string(), pa.large_string()),
    (pa.binary(), pa.binary_view(), pa.large_binary()),
    (pa.dictionary(pa.int8(), pa.string()), pa.dictionary(pa.int32(), pa.string()), pa.string()),
    (pa.dictionary(pa.int8(), pa.string()), pa.large_string(), pa.large_string()),
    (pa.dictionary(pa.int8(), pa.int8()), pa.int16(), pa.int16()),
    (pa.decimal128(5, 2), pa.decimal128(5, 4), pa.decimal128(7, 4)),
    (pa.decimal32(5, 2), pa.decimal64(12, 0), pa.decimal128(14, 2)),
    (pa.decimal128(38, 0), pa.decimal128(9, 1), pa.decimal256(39, 1)),
    (pa.decimal128(37, 0), pa.decimal128(9, 1), pa.decimal128(38, 1)),
    (pa.decimal128(38, 0), pa.decimal128(38, 38), pa.decimal256(76, 38)),
    (pa.timestamp("ms", "UTC"), pa.timestamp("ns", "UTC"), pa.timestamp("ns", "UTC")),
    (pa.timestamp("s"), pa.timestamp("ms"), pa.timestamp("ms")),
    (pa.time32("s"), pa.time32("ms"), pa.time32("ms")),
    (pa.time32("ms"), pa.time64("us"), pa.time64("us")),
    (pa.duration("s"), pa.duration("us"), pa.duration("us")),
    (pa.date32(), pa.date64(), pa.date64()),
    (pa.list_(pa.int8()), pa.list_(pa.float32()), pa.list_(pa.float64())),
    (pa.list_(pa.int8(), 3), pa.list_(pa.int16(), 3), pa.list_(pa.int16(), 3)),
    (pa.list_(pa.uint8(), 3), pa.list_(pa.uint8()), pa.list_(pa.uint8())),
    (pa.list_(pa.uint8(), 3), pa.large_list(pa.uint8()), pa.large_list(pa.uint8())),
    (pa.list_(pa.null()), pa.large_list(pa.uint8()), pa.large_list(pa.uint8())),
    (pa.list_(pa.field("element", pa.int8(), False)), pa.list_(pa.int8()), pa.list_(pa.int8())),
]


@pytest.mark.parametrize(("a", "b", "both"), COMMON, ids=str)
def test_the_common_type_is_the_narrowest(a: pa.DataType, b: pa.DataType, both: pa.DataType) -> None:
    assert common_type(a, b) == both


REFUSED = [
    (pa.uint64(), pa.int8()),
    (pa.int8(), pa.decimal128(5, 2)),
    (pa.float64(), pa.decimal128(5, 2)),
    (pa.decimal256(76, 0), pa.decimal128(5, 1)),
    (pa.timestamp("us"), pa.timestamp("us", "UTC")),
    (pa.timestamp("us", "Europe/Berlin"), pa.timestamp("us", "UTC")),
    (pa.date32(), pa.timestamp("us")),
    (pa.time64("us"), pa.timestamp("us")),
    (pa.duration("s"), pa.int64()),
    (pa.bool_(), pa.int8()),
    (pa.bool_(), pa.string()),
    (pa.int64(), pa.string()),
    (pa.string(), pa.binary()),
    (pa.binary(3), pa.binary()),
    (pa.dictionary(pa.int8(), pa.string()), pa.int64()),
    (pa.list_(pa.int8(), 2), pa.list_(pa.int8(), 3)),
    (pa.list_(pa.int8()), pa.int8()),
    (pa.list_(pa.int8()), pa.list_(pa.string())),
    (pa.list_view(pa.int8()), pa.list_(pa.int8())),
    (pa.struct([("a", pa.int8())]), pa.struct([("b", pa.int8())])),
    (pa.uuid(), pa.binary(16)),
]


@pytest.mark.parametrize(("a", "b"), REFUSED, ids=str)
def test_types_with_nothing_in_common_are_refused(a: pa.DataType, b: pa.DataType) -> None:
    assert common_type(a, b) is None
    assert not fits(a, b)
    assert not fits(b, a)


FITTING = [
    (pa.int16(), pa.int32()),
    (pa.int64(), pa.float64()),
    (pa.int16(), pa.float32()),
    (pa.string(), pa.dictionary(pa.int32(), pa.string())),
    (pa.dictionary(pa.int32(), pa.large_string()), pa.string()),
    (pa.large_string(), pa.string_view()),
    (pa.large_binary(), pa.binary()),
    (pa.decimal256(5, 2), pa.decimal32(5, 2)),
    (pa.decimal128(5, 2), pa.decimal256(10, 4)),
    (pa.list_(pa.uint8()), pa.list_(pa.uint8(), 784)),
    (pa.large_list(pa.float32()), pa.list_(pa.float64())),
    (pa.list_(pa.decimal128(5, 2)), pa.list_(pa.decimal256(5, 2))),
    (pa.list_(pa.field("element", pa.int8())), pa.list_(pa.field("item", pa.int16(), False))),
    (pa.timestamp("ms"), pa.timestamp("us")),
]


@pytest.mark.parametrize(("found", "expected"), FITTING, ids=str)
def test_how_values_are_stored_does_not_keep_them_from_fitting(found: pa.DataType, expected: pa.DataType) -> None:
    assert fits(found, expected)


NOT_FITTING = [
    (pa.float64(), pa.int32()),
    (pa.int32(), pa.int16()),
    (pa.int8(), pa.uint8()),
    (pa.float64(), pa.float32()),
    (pa.decimal128(5, 2), pa.decimal128(5, 3)),
    (pa.list_(pa.int8(), 2), pa.list_(pa.int8(), 3)),
    (pa.list_(pa.float64()), pa.list_(pa.float32())),
    (pa.timestamp("us"), pa.timestamp("ms")),
    (pa.date64(), pa.date32()),
    (pa.int8(), pa.null()),
]


@pytest.mark.parametrize(("found", "expected"), NOT_FITTING, ids=str)
def test_a_wider_type_does_not_fit_a_narrower_one(found: pa.DataType, expected: pa.DataType) -> None:
    assert not fits(found, expected)


def storage_bits(kind: pa.DataType) -> pa.DataType:
    return pa.int32() if kind.bit_width == 32 else pa.int64()


def raw_values(kind: pa.DataType) -> st.SearchStrategy[Any]:
    """Python values of a type; for temporal types the integers that Arrow stores."""
    if pa.types.is_null(kind):
        return st.none()
    if pa.types.is_dictionary(kind):
        return raw_values(kind.value_type)
    if pa.types.is_integer(kind):
        low, bits = (0, kind.bit_width) if pa.types.is_unsigned_integer(kind) else (-(2 ** (kind.bit_width - 1)), kind.bit_width - 1)
        wide = [n for n in (low, 2**bits - 1, 2**53, BEYOND, -(2**53), -BEYOND) if low <= n < 2**bits]
        return st.integers(low, 2**bits - 1) | st.sampled_from(wide)
    if pa.types.is_floating(kind):
        return st.floats(width=kind.bit_width)
    if pa.types.is_decimal(kind):
        end = 10**kind.precision - 1
        return st.integers(-end, end).map(lambda n: Decimal((int(n < 0), tuple(map(int, str(abs(n)))), -kind.scale)))
    if pa.types.is_time(kind):
        return st.integers(0, 86_400 * (10**9 // UNIT_NS[kind.unit]) - 1)
    if pa.types.is_date64(kind):
        return st.integers(-(10**8), 10**8).map(lambda days: days * 86_400_000)
    if pa.types.is_temporal(kind):
        return st.integers(-(2 ** (kind.bit_width - 1)), 2 ** (kind.bit_width - 1) - 1) | st.integers(-(10**10), 10**10).filter(
            lambda n: abs(n) < 2 ** (kind.bit_width - 1)
        )
    if kind in TEXT:
        return st.text("aé😀", max_size=5)
    if kind in BYTES:
        return st.binary(max_size=5)
    size = kind.list_size if pa.types.is_fixed_size_list(kind) else None
    element = raw_values(kind.value_type)
    nullable = element | st.none() if kind.value_field.nullable else element
    return st.lists(nullable, min_size=size or 0, max_size=4 if size is None else size)


def to_array(raw: list[Any], kind: pa.DataType) -> pa.Array:
    if pa.types.is_dictionary(kind):
        codes = pa.array([None if value is None else code for code, value in enumerate(raw)], kind.index_type)
        return pa.DictionaryArray.from_arrays(codes, to_array(raw, kind.value_type), ordered=kind.ordered)
    if pa.types.is_temporal(kind):
        return pa.array(raw, storage_bits(kind)).view(kind)
    return pa.array(raw, kind)


def exact(column: pa.ChunkedArray | pa.Array) -> list[Any]:
    """What a column means, exactly, whatever its type: temporal values as nanoseconds, NaN as text, since it equals nothing."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        return exact(column.cast(kind.value_type))
    if pa.types.is_temporal(kind) and not pa.types.is_interval(kind):
        chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
        raw = [value for chunk in chunks for value in chunk.view(storage_bits(kind)).to_pylist()]
        unit = 86_400 * 10**9 if pa.types.is_date32(kind) else 10**6 if pa.types.is_date64(kind) else UNIT_NS[kind.unit]
        return [None if value is None else value * unit for value in raw]
    return [comparable(value) for value in column.to_pylist()]


def comparable(value: Any) -> Any:
    if isinstance(value, list):
        return [comparable(element) for element in value]
    return "nan" if isinstance(value, float) and math.isnan(value) else value


@st.composite
def columns(draw: st.DrawFn, kind: pa.DataType) -> pa.ChunkedArray:
    """A column of several chunks, some empty, each a slice of a longer array."""
    array = to_array(draw(st.lists(raw_values(kind) | st.none(), max_size=8)), kind)
    ends = sorted({0, *draw(st.lists(st.integers(0, len(array)), max_size=4))})
    return pa.chunked_array([array.slice(start, end - start) for start, end in pairwise(ends)], kind)


def holds(target: pa.DataType, value: Any) -> bool:
    """The oracle: whether a type that is said to be common holds this exact value."""
    if value is None:
        return True
    if isinstance(value, list):
        return all(holds(target.value_type, element) for element in value)
    if pa.types.is_floating(target):
        return not isinstance(value, int) or abs(value) <= 2**53
    if pa.types.is_timestamp(target) or pa.types.is_duration(target):
        return bool(-(2**63) <= value // UNIT_NS[target.unit] < 2**63)
    return True


@st.composite
def column_and_target(draw: st.DrawFn) -> tuple[pa.ChunkedArray, pa.DataType]:
    a, b = draw(several_types(2).filter(lambda types: types[0] not in ODD and common_type(*types) is not None))
    return draw(columns(a)), common_type(a, b)


def is_text_dictionary(kind: pa.DataType) -> bool:
    return pa.types.is_dictionary(kind) and kind.value_type in TEXT


@given(column_and_target())
def test_every_value_survives_widening_to_a_common_type_or_is_refused(given: tuple[pa.ChunkedArray, pa.DataType]) -> None:
    column, target = given
    if not all(holds(target, value) for value in exact(column)):
        with pytest.raises(ValueError, match=r"does not become .* without loss"):
            widen(column, target)
        return
    result = widen(column, target)
    assert exact(result) == exact(column)
    result.validate(full=True)
    if pa.types.is_nested(column.type):
        assert result.type.value_type == target.value_type
        assert pa.types.is_fixed_size_list(result.type) == pa.types.is_fixed_size_list(column.type)
        assert pa.types.is_large_list(result.type) == pa.types.is_large_list(column.type)
    elif not is_text_dictionary(column.type):
        assert result.type == (target if column.type == target or not pa.types.is_dictionary(target) else target.value_type)


@given(several_types(2).filter(lambda types: types[0] not in ODD).flatmap(lambda types: st.tuples(columns(types[0]), st.just(types[1]))))
def test_widening_to_any_type_at_all_never_changes_a_value(given: tuple[pa.ChunkedArray, pa.DataType]) -> None:
    column, target = given
    try:
        result = widen(column, target)
    except ValueError:
        return
    if pa.types.is_duration(target) and pa.types.is_int64(column.type):
        assert result.cast(pa.int64()) == column
    else:
        assert exact(result) == exact(column)


def column(values: list[Any], kind: pa.DataType) -> pa.ChunkedArray:
    return pa.chunked_array([pa.array(values, kind)])


def test_an_integer_beyond_two_to_the_53_is_named() -> None:
    values = column([1, None, 2**53, BEYOND], pa.int64())
    assert widen(values.slice(0, 3), pa.float64()).to_pylist() == [1.0, None, 2.0**53]
    with pytest.raises(ValueError, match=f"int64 does not become double without loss: .*{BEYOND}"):
        widen(values, pa.float64())
    with pytest.raises(ValueError, match=str(BEYOND)):
        widen(column([[1], [BEYOND]], pa.list_(pa.int64())), pa.list_(pa.float64()))


@pytest.mark.parametrize("kind", [pa.list_(pa.int64(), 1), pa.list_(pa.int64()), pa.large_list(pa.int64())], ids=str)
def test_elements_outside_a_slice_or_behind_a_null_are_not_checked(kind: pa.DataType) -> None:
    sliced = pa.array([[BEYOND], [1], None], kind).slice(1)
    assert widen(pa.chunked_array([sliced, sliced]), pa.list_(pa.float64())).to_pylist() == [[1.0], None] * 2
    behind = pa.array([BEYOND, 1])
    if pa.types.is_fixed_size_list(kind):
        hidden = pa.FixedSizeListArray.from_arrays(behind, 1, mask=pa.array([True, False]))
    else:
        hidden = pa.ListArray.from_arrays(pa.array([0, 1, 2], pa.int32()), behind, mask=pa.array([True, False]))
    assert widen(pa.chunked_array([hidden]), pa.list_(pa.float64())).to_pylist() == [None, [1.0]]


def test_a_value_that_only_an_unused_dictionary_entry_holds_is_not_checked() -> None:
    coded = pa.DictionaryArray.from_arrays(pa.array([1, None, 1], pa.int8()), pa.array([BEYOND, 7]))
    assert widen(pa.chunked_array([coded]), pa.float64()).to_pylist() == [7.0, None, 7.0]


@given(columns(pa.int16()))
def test_a_column_of_the_target_type_is_not_copied(values: pa.ChunkedArray) -> None:
    assert widen(values, pa.int16()) is values


@pytest.mark.parametrize("target", [*TEXT, pa.dictionary(pa.int8(), pa.string()), pa.dictionary(pa.int32(), pa.large_string())], ids=str)
def test_a_dictionary_of_text_stays_one_for_any_text_target(target: pa.DataType) -> None:
    coded = column(["b", None, "a", "b"], pa.string()).dictionary_encode()
    assert widen(coded, target) is coded
    written = widen(column(["b", None], pa.string()), target)
    assert written.type == (target.value_type if pa.types.is_dictionary(target) else target)
    assert written.to_pylist() == ["b", None]


def test_lists_keep_their_container() -> None:
    bytes_ = column([[1, 2], None], pa.list_(pa.uint8()))
    assert widen(bytes_, pa.list_(pa.uint8(), 2)) is bytes_
    assert widen(bytes_, pa.list_(pa.field("element", pa.uint8(), False))) is bytes_
    for container in (pa.list_(pa.uint8()), pa.large_list(pa.uint8()), pa.list_(pa.uint8(), 2)):
        kept = widen(column([[1, 2], None], container), pa.list_(pa.int16()))
        assert str(kept.type) == str(container).replace("uint8", "int16")
        assert kept.to_pylist() == [[1, 2], None]
    with pytest.raises(ValueError, match="fixed_size_list"):
        widen(column([[1, 2]], pa.list_(pa.uint8(), 2)), pa.list_(pa.uint8(), 3))


@pytest.mark.parametrize("kind", [*TEXT, *TIMESTAMPS, *DATES, pa.list_(pa.int8(), 2), pa.bool_()], ids=str)
def test_a_column_without_type_becomes_nulls(kind: pa.DataType) -> None:
    assert widen(pa.chunked_array([pa.nulls(2), pa.nulls(0)]), kind).equals(pa.chunked_array([pa.nulls(2, kind)]))
    assert widen(pa.chunked_array([], pa.null()), kind).type == kind


STORED_OTHERWISE = [
    (pa.timestamp("s"), [datetime(2020, 2, 29, 12)]),
    (pa.timestamp("us", "Europe/Berlin"), [datetime(2020, 2, 29, 12)]),
    (pa.timestamp("s", "Europe/Berlin"), [datetime(2020, 2, 29, 12)]),
    (pa.time32("s"), [time(23, 59, 59)]),
    (pa.date64(), [date(2020, 2, 29)]),
    (pa.duration("ms"), [timedelta(milliseconds=1001)]),
    (pa.decimal256(9, 2), [Decimal("1234567.89")]),
    (pa.large_string(), ["a"]),
    (pa.string_view(), ["a"]),
    (pa.binary_view(), [b"\xff"]),
]


@pytest.mark.parametrize(("kind", "values"), STORED_OTHERWISE, ids=str)
@pytest.mark.parametrize("store_schema", [True, False])
def test_what_parquet_stores_as_another_type_is_widened_back(kind: pa.DataType, values: list[Any], store_schema: bool) -> None:
    written, file = pa.table({"c": pa.array([*values, None], kind)}), io.BytesIO()
    pq.write_table(written, file, store_schema=store_schema)
    read = pq.read_table(file)["c"]
    assert store_schema or read.type != kind, "nothing is tested where Parquet gives back the type"
    assert widen(read, kind).equals(written["c"])


LOSSY = [
    ([1500], pa.timestamp("ms"), pa.timestamp("s"), "1500"),
    ([2**62], pa.timestamp("s"), pa.timestamp("ns"), str(2**62)),
    ([0], pa.timestamp("us"), pa.timestamp("us", "UTC"), "does not become"),
    ([0], pa.timestamp("us", "UTC"), pa.timestamp("us"), "does not become"),
    ([1], pa.time64("us"), pa.time32("ms"), "would lose data"),
    ([1], pa.date64(), pa.date32(), "would lose data"),
    ([1], pa.int32(), pa.duration("s"), "int32 does not become"),
    ([0.1], pa.float64(), pa.float32(), "double does not become float"),
    ([1.0], pa.float64(), pa.int8(), "double does not become int8"),
    ([1], pa.int64(), pa.int8(), "int64 does not become int8"),
    ([1], pa.int64(), pa.string(), "int64 does not become string"),
    (["1"], pa.string(), pa.int64(), "string does not become int64"),
    ([2], pa.int64(), pa.bool_(), "int64 does not become bool"),
    ([1], pa.decimal128(5, 2), pa.float64(), "does not become double"),
    ([b"a"], pa.binary(), pa.string(), "binary does not become string"),
]


@pytest.mark.parametrize(("values", "kind", "target", "reason"), LOSSY, ids=str)
def test_a_cast_that_pyarrow_might_do_with_loss_is_refused(values: list[Any], kind: pa.DataType, target: pa.DataType, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        widen(column(values, kind), target)


def test_another_zone_keeps_the_instant() -> None:
    instants = column([0, None, 1_600_000_000_000_000], pa.timestamp("us", "UTC"))
    there = widen(instants, pa.timestamp("us", "Europe/Berlin"))
    assert there.type == pa.timestamp("us", "Europe/Berlin")
    assert there.cast(pa.int64()) == instants.cast(pa.int64())
    assert pc.hour(there).to_pylist() == [1, None, 14]


class OwnType(pa.ExtensionType):
    def __init__(self) -> None:
        super().__init__(pa.int64(), "tests.own")

    def __arrow_ext_serialize__(self) -> bytes:
        return b""


UNSUITABLE = [
    (pa.uuid(), r"is of extension type extension<arrow.uuid>; store it as its storage type, fixed_size_binary\[16\]"),
    (OwnType(), "store it as its storage type, int64"),
    (pa.struct([("a", pa.int8())]), "is of type struct<a: int8>; nested types other than lists of numbers .* flatten it or drop it"),
    (pa.struct([(f"field_{i}", pa.int8()) for i in range(99)]), r"is of type struct<[^;]{1,80} \.\.; nested"),
    (pa.map_(pa.string(), pa.int8()), "nested types"),
    (pa.dense_union([pa.field("a", pa.int8())]), "nested types"),
    (pa.list_(pa.string()), "nested types"),
    (pa.list_(pa.bool_()), "nested types"),
    (pa.list_(pa.list_(pa.int8())), "nested types"),
    (pa.list_(pa.struct([("a", pa.int8())]), 2), "nested types"),
    (pa.list_(pa.bool8()), "nested types"),
    (pa.list_view(pa.int8()), "nested types"),
    (pa.run_end_encoded(pa.int32(), pa.int8()), "nested types"),
    (pa.dictionary(pa.int8(), pa.list_(pa.int8())), "nested types"),
    (pa.dictionary(pa.int8(), pa.uuid()), "nested types"),
]


@pytest.mark.parametrize(("kind", "reason"), UNSUITABLE, ids=str)
def test_extension_and_nested_types_can_be_no_column(kind: pa.DataType, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        raise ValueError(unsuitable(pa.field("c", kind)))


SUITABLE = [*SIGNED, *UNSIGNED, *FLOATING, *TEXT, *BYTES, *TIMES, *DURATIONS, *TIMESTAMPS, *DATES]
SUITABLE += [pa.null(), pa.bool_(), pa.binary(3), pa.decimal32(5, 2), pa.decimal256(50, 2), pa.month_day_nano_interval()]
SUITABLE += [pa.list_(pa.uint8()), pa.list_(pa.float16(), 2), pa.large_list(pa.decimal128(5, 2)), pa.list_(pa.null())]
SUITABLE += [pa.dictionary(pa.int8(), pa.string()), pa.dictionary(pa.int8(), pa.int64())]


@pytest.mark.parametrize("kind", SUITABLE, ids=str)
def test_plain_types_and_lists_of_numbers_can_be_columns(kind: pa.DataType) -> None:
    assert unsuitable(pa.field("c", kind)) is None
