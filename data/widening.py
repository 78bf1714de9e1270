"""Column types that differ between files, made one: what is widened without loss, what is refused, and the casts.

Four questions about Arrow types: which type holds both (common_type), is one held by the other (fits), the column as that type
(widen), and can a column have this type at all (unsuitable). Nothing here knows files or column names; callers add them.
"""

from __future__ import annotations

import textwrap

import pyarrow as pa

from data.types import is_list, is_number

UNITS = ("s", "ms", "us", "ns")  # from coarse to fine, as Arrow spells them


def common_type(a: pa.DataType, b: pa.DataType) -> pa.DataType | None:
    """Returns the narrowest type that holds every value of both without loss, None where there is none.

    Two exceptions to "every value", both checked by widen on the values: 64-bit integers beyond 2^53 with floating point, and
    timestamps and durations too far from zero for the finer unit. Names and nullability of list elements make no difference.
    Over more than two types, the order makes no difference either, provided that each two of them have a common type.
    """
    if a == b or pa.types.is_null(b):
        return a
    if pa.types.is_null(a):
        return b
    if pa.types.is_dictionary(a) or pa.types.is_dictionary(b):
        return common_type(without_dictionary(a), without_dictionary(b))
    return next((common(a, b) for holds, common in FAMILIES if holds(a) and holds(b)), None)


def fits(found: pa.DataType, expected: pa.DataType) -> bool:
    """Returns whether a column of type `found` can be given to what expects `expected` without loss.

    How values are stored does not matter: dictionaries, large and view types, decimal widths and list containers count as
    equal, but for two fixed list sizes. Lengths of lists, and integers as floating point, are checked on values.
    """
    if pa.types.is_fixed_size_list(found) and pa.types.is_fixed_size_list(expected) and found.list_size != expected.list_size:
        return False
    if pa.types.is_integer(without_dictionary(found)) and pa.types.is_floating(expected):
        return True
    target = plain(expected)
    return bool(common_type(plain(found), target) == target)


def widen(column: pa.ChunkedArray, target: pa.DataType) -> pa.ChunkedArray:
    """Returns the column as the target type, exactly. Raises ValueError where a value would change, mostly naming it.

    A column of the target type comes back as it is. Three things are not converted: a dictionary of text stays as it is where
    the target is text of any storage; a dictionary target otherwise stands for its value type, as Parquet reads no other
    dictionaries; and lists keep the container that they arrived in, only their elements are widened. An integer becomes
    double only up to 2^53, though some larger ones would be exact: beyond, neighbours that differ would become one value.
    """
    if column.type == target:
        return column
    wanted = without_dictionary(target)
    if pa.types.is_dictionary(column.type):
        if is_plain_text(column.type.value_type) and is_plain_text(wanted):
            return column
        return widen(column.cast(column.type.value_type), wanted)
    if is_list(column.type) and is_list(wanted) and fits(column.type, wanted):
        if column.type.value_type == wanted.value_type:
            return column
        column, wanted = without_hidden_elements(column), with_elements(column.type, wanted.value_type)
    if not (fits(column.type, wanted) or is_stored_as(column.type, wanted)):
        raise ValueError(f"{column.type} does not become {target} without loss")
    try:
        return column.cast(wanted)
    except pa.ArrowException as error:
        raise ValueError(f"{column.type} does not become {target} without loss: {error}") from error


def unsuitable(field: pa.Field) -> str | None:
    """Returns why a column of this type makes a table unreadable, as a phrase after its name; None where it does not."""
    kind, values = field.type, without_dictionary(field.type)
    if isinstance(kind, pa.BaseExtensionType):
        return f"is of extension type {kind}; store it as its storage type, {kind.storage_type}"
    if is_list(kind) and (is_number(kind.value_type) or pa.types.is_null(kind.value_type)):
        return None
    if isinstance(values, pa.BaseExtensionType) or pa.types.is_nested(values) or pa.types.is_run_end_encoded(values):
        short = textwrap.shorten(str(kind), 80, placeholder=" ..")
        return f"is of type {short}; nested types other than lists of numbers cannot be read: flatten it or drop it"
    return None


def common_number(a: pa.DataType, b: pa.DataType) -> pa.DataType | None:
    if pa.types.is_floating(a) != pa.types.is_floating(b):
        return pa.float64()
    if pa.types.is_floating(a) or pa.types.is_signed_integer(a) == pa.types.is_signed_integer(b):
        return a if a.bit_width > b.bit_width else b
    signed, unsigned = (a, b) if pa.types.is_signed_integer(a) else (b, a)
    bits = max(signed.bit_width, 2 * unsigned.bit_width)
    return {16: pa.int16(), 32: pa.int32(), 64: pa.int64()}.get(bits)


def common_decimal(a: pa.DataType, b: pa.DataType) -> pa.DataType | None:
    scale = max(a.scale, b.scale)
    return decimal(max(a.precision - a.scale, b.precision - b.scale) + scale, scale)


def decimal(digits: int, scale: int) -> pa.DataType | None:
    """Returns the decimal of so many digits, None where Arrow has none. 38 and 76 are what 128 and 256 bits hold."""
    return pa.decimal128(digits, scale) if digits <= 38 else pa.decimal256(digits, scale) if digits <= 76 else None


def common_timestamp(a: pa.DataType, b: pa.DataType) -> pa.DataType | None:
    return pa.timestamp(finer_unit(a, b), a.tz) if a.tz == b.tz else None


def common_time(a: pa.DataType, b: pa.DataType) -> pa.DataType:
    unit = finer_unit(a, b)
    return pa.time32(unit) if unit in ("s", "ms") else pa.time64(unit)


def finer_unit(a: pa.DataType, b: pa.DataType) -> str:
    return UNITS[max(UNITS.index(a.unit), UNITS.index(b.unit))]


def common_list(a: pa.DataType, b: pa.DataType) -> pa.DataType | None:
    element = common_type(a.value_type, b.value_type)
    fixed = [kind for kind in (a, b) if pa.types.is_fixed_size_list(kind)]
    if element is None or len({kind.list_size for kind in fixed}) > 1:
        return None
    if len(fixed) == 2:
        return with_elements(a, element)
    return pa.large_list(element) if pa.types.is_large_list(a) or pa.types.is_large_list(b) else pa.list_(element)


def with_elements(container: pa.DataType, element: pa.DataType) -> pa.DataType:
    """Returns a list type as the container is, of other elements, under Arrow's usual element name and nullable."""
    if pa.types.is_fixed_size_list(container):
        return pa.list_(element, container.list_size)
    return pa.large_list(element) if pa.types.is_large_list(container) else pa.list_(element)


def without_hidden_elements(lists: pa.ChunkedArray) -> pa.ChunkedArray:
    """Returns the same lists in new storage; the old one may hold elements outside a slice or behind a null, which casts check too."""
    return pa.chunked_array([chunk.take(pa.arange(0, len(chunk))) for chunk in lists.chunks], lists.type)


def without_dictionary(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def plain(kind: pa.DataType) -> pa.DataType:
    """Returns the usual type of the values that a type holds, however it stores them."""
    kind = without_dictionary(kind)
    if is_plain_text(kind):
        return pa.string()
    if is_plain_bytes(kind):
        return pa.binary()
    if is_list(kind):
        return pa.list_(plain(kind.value_type))
    return decimal(kind.precision, kind.scale) if pa.types.is_decimal(kind) else kind


def is_stored_as(found: pa.DataType, wanted: pa.DataType) -> bool:
    """Returns whether Parquet may give back the wanted type as the found one: other units and zone names, durations as integers."""
    if pa.types.is_timestamp(found) and pa.types.is_timestamp(wanted):
        return (found.tz is None) == (wanted.tz is None)  # with a zone it is an instant, without one a reading of some clock
    if pa.types.is_duration(wanted):
        return bool(pa.types.is_duration(found) or pa.types.is_int64(found))
    return any(holds(found) and holds(wanted) for holds in (pa.types.is_time, pa.types.is_date))


def is_plain_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def is_plain_bytes(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


def is_float_or_integer(kind: pa.DataType) -> bool:
    return bool(pa.types.is_floating(kind) or pa.types.is_integer(kind))


# Two unequal types of one family: what holds both. Types of two families, or of none, have nothing in common.
FAMILIES = (
    (is_float_or_integer, common_number),
    (pa.types.is_decimal, common_decimal),
    (pa.types.is_timestamp, common_timestamp),
    (pa.types.is_time, common_time),
    (pa.types.is_duration, lambda a, b: pa.duration(finer_unit(a, b))),
    (pa.types.is_date, lambda a, b: pa.date64()),
    (is_plain_text, lambda a, b: pa.large_string()),
    (is_plain_bytes, lambda a, b: pa.large_binary()),
    (is_list, common_list),
)
