"""Arrow rows to compact arrays and back, both ways exact up to float32. No Ray, no torch.

A field is a group of columns stored side by side: "numeric", "integer" (whole numbers and points in time), "warped" (whole numbers
with heavy tails), "boolean", "categorical", and one field for each vector ("vector_0", ..) and image ("image_0", ..).
Arrays: FIELD [B, D], FIELD.valid [B, V] and log_jacobian [B]; B rows, D cells, V = D flags, or 1 where a row's cells are there or
missing together. Fields of scalar columns are encoded column by column, so their arrays lie in Fortran order.
"""

from __future__ import annotations

import base64
import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from data.cells import LARGEST_CELL, encode_categories, finite_numbers, mask_missing, present, raw_numbers
from data.columns import Column
from data.listing import DataError
from data.types import integer_range, is_temporal, ticks_type
from data.widening import fits

FORMAT_VERSION = 2
LOG_JACOBIAN = "log_jacobian"
STORAGE: dict[str, np.dtype[Any]] = {"boolean": np.dtype(np.int8), "categorical": np.dtype(np.int32), "image": np.dtype(np.uint8)}

Arrays = dict[str, NDArray[Any]]


class EncodingFormatError(ValueError):
    """A stored encoding was written by another version of this code."""


@dataclass(frozen=True)
class Field:
    """Columns that are stored in one array and share a likelihood. kind: numeric integer warped boolean categorical vector image."""

    name: str
    kind: str
    columns: tuple[Column, ...]

    @property
    def size(self) -> int:
        return sum(column.size for column in self.columns)

    @property
    def valid_size(self) -> int:
        return sum(column.valid_size for column in self.columns)

    @property
    def storage(self) -> np.dtype[Any]:
        return STORAGE.get(self.kind, np.dtype(np.float32))


@dataclass(frozen=True)
class TableEncoding:
    """How the rows of one table are encoded: its schema and its columns. Stored in the bundle as table.json.

    nonfinite: whether NaN and infinities are an "error" or a "null".
    """

    schema: pa.Schema
    columns: tuple[Column, ...]
    key: str | None
    nonfinite: str = "error"

    @property
    def modelled(self) -> list[str]:
        """The columns that encoding reads."""
        return [column.name for column in self.columns if column.kind not in ("key", "ignored")]

    def schema_of(self, names: Iterable[str]) -> pa.Schema:
        """Returns the named columns' types, as a reader needs them."""
        return pa.schema([self.schema.field(name) for name in names])

    @property
    def fields(self) -> list[Field]:
        """The fields, in the order in which the model holds them."""
        groups: dict[str, list[Column]] = {}
        for column in self.columns:
            if column.kind in ("vector", "image"):
                number = sum(name.startswith(column.kind) for name in groups)
                groups[f"{column.kind}_{number}"] = [column]
            elif column.kind in ("boolean", "categorical"):
                groups.setdefault(column.kind, []).append(column)
            elif column.kind not in ("key", "ignored"):
                name = "numeric" if not column.integer else "integer" if column.width is None else "warped"
                groups.setdefault(name, []).append(column)
        return [Field(name, name.split("_")[0], tuple(columns)) for name, columns in groups.items()]

    def to_json(self) -> dict[str, Any]:
        schema = base64.b64encode(self.schema.serialize().to_pybytes()).decode()
        return {
            "format_version": FORMAT_VERSION,
            "schema": schema,
            "key": self.key,
            "nonfinite": self.nonfinite,
            "columns": [asdict(column) for column in self.columns],
        }

    @staticmethod
    def from_json(table: Mapping[str, Any]) -> TableEncoding:
        """Returns the encoding that to_json wrote. Raises EncodingFormatError for another format version."""
        version = table["format_version"]
        if version != FORMAT_VERSION:
            raise EncodingFormatError(f"table.json has format version {version}, this code reads {FORMAT_VERSION}; train the model again")
        schema = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(table["schema"])))
        return TableEncoding(schema, tuple(Column(**column) for column in table["columns"]), table["key"], table["nonfinite"])

    def encode(self, table: pa.Table, where: str, unseen: Counter[str] | None = None) -> Arrays:
        """Returns the arrays of a table's rows; unseen: counts, by column, the values that the model has no code for.

        Raises DataError naming `where` (a file) and the column.
        """
        arrays: Arrays = {LOG_JACOBIAN: np.zeros(table.num_rows)}
        counter: Counter[str] = Counter() if unseen is None else unseen
        for field in self.fields:
            if field.kind in ("vector", "image"):
                encode_list_field(field, table, where, arrays, self.nonfinite)
            else:
                encode_scalar_field(field, table, where, arrays, self.nonfinite, counter)
        return arrays

    def check_schema(self, schema: pa.Schema, where: str, spelled: Collection[str] = ()) -> None:
        """Raises DataError listing every modelled column that is missing or of a type that cannot be widened; others do not matter.

        spelled: columns that folders spell out, which are read as the type that is expected.
        """
        faults = []
        for name in self.modelled:
            expected = self.schema.field(name).type
            if name not in schema.names:
                faults.append(f"column {name!r} is missing")
            elif name not in spelled and not fits(schema.field(name).type, expected):
                faults.append(f"column {name!r} is {schema.field(name).type}, the model was trained on {expected}")
        if faults:
            raise DataError(f"{where}: does not fit the model:\n  " + "\n  ".join(faults))

    def decode_column(self, name: str, cells: NDArray[Any], valid: NDArray[np.bool_], kind: pa.DataType | None = None) -> pa.Array:
        """Returns stored cells [B, size] as the column's own Arrow type (or another list type), null where valid [B] is false."""
        column = next(column for column in self.columns if column.name == name)
        return decode(column, kind or self.schema.field(name).type, cells, valid)


def encode_scalar_field(field: Field, table: pa.Table, where: str, arrays: Arrays, nonfinite: str, unseen: Counter[str]) -> None:
    """Adds a field's arrays, and its log-Jacobian. Each column is contiguous while it is made."""
    cells = np.empty((field.size, table.num_rows), field.storage)
    valid = np.empty((field.size, table.num_rows), np.bool_)
    for column, values, flags in zip(field.columns, cells, valid, strict=True):
        place = f"{where}: column {column.name!r}"
        array = one_array(table[column.name])
        match field.kind:
            case "boolean":
                present(array, flags)
                values[:] = array.fill_null(False).to_numpy(zero_copy_only=False)
            case "categorical":
                encode_categories(array, column, values, flags, unseen)
            case _:
                encode_numbers(array, column, place, values, flags, nonfinite, unseen, arrays[LOG_JACOBIAN])
    arrays[field.name], arrays[f"{field.name}.valid"] = cells.T, valid.T


@np.errstate(over="ignore", invalid="ignore")  # null cells hold anything; the others are checked
def encode_numbers(
    array: pa.Array,
    column: Column,
    place: str,
    cells: NDArray[Any],
    valid: NDArray[np.bool_],
    nonfinite: str,
    unseen: Counter[str],
    log_jacobian: NDArray[np.float64],
) -> None:
    """Writes standardised cells [B] and flags [B], and adds the log-Jacobian of a continuous column's observed cells."""
    numbers = raw_numbers(array)
    present(array, valid)
    if column.kind == "count":
        negative = valid & (numbers < 0)
        if negative.any():
            unseen[column.name] += int(negative.sum())
            valid &= ~negative
    if column.width is None:
        y = np.subtract(numbers, column.mean[0], dtype=np.float64)
    else:
        t = np.subtract(numbers, column.center, dtype=np.float64) / column.width
        y = np.arcsinh(t)
        y -= column.mean[0]
    y *= 1 / column.scale
    cells[:] = y
    if array.null_count or not valid.all():
        mask_missing(cells, valid)
    if not np.isfinite(cells).all():
        settle_nonfinite(numbers, y, cells, valid, place, nonfinite)
    if not column.integer:
        jacobian = np.full(len(cells), -math.log(column.scale))
        if column.width is not None:
            jacobian -= math.log(column.width) + 0.5 * np.log1p(t * t)
        log_jacobian += np.where(valid, jacobian, 0.0) if not valid.all() else jacobian


def settle_nonfinite(
    numbers: NDArray[Any], y: NDArray[np.float64], cells: NDArray[Any], valid: NDArray[np.bool_], place: str, nonfinite: str
) -> None:
    """Makes all cells finite: NaN and infinities are refused or missing; numbers beyond float32 are its largest cells."""
    bad = valid & ~np.isfinite(numbers)
    if bad.any() and nonfinite == "error":
        raise DataError(f"{place} has {int(bad.sum())} NaN or infinite values; store them as null, or train with --data.nonfinite null")
    valid &= ~bad
    cells[:] = np.clip(np.where(valid, y, 0.0), -LARGEST_CELL, LARGEST_CELL)


def one_array(column: pa.ChunkedArray) -> pa.Array:
    """Returns a column as one array; dictionaries of other types than text as their values."""
    if pa.types.is_dictionary(column.type) and column.num_chunks != 1:
        column = column.unify_dictionaries()
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def encode_list_field(field: Field, table: pa.Table, where: str, arrays: Arrays, nonfinite: str) -> None:
    (column,) = field.columns
    cells, valid = encode_lists(table[column.name], column, f"{where}: column {column.name!r}", nonfinite)
    if column.kind == "vector" and not column.integer:
        observed = valid.sum(1) * (column.size // valid.shape[1])
        arrays[LOG_JACOBIAN] -= math.log(column.scale) * observed
    arrays[field.name], arrays[f"{field.name}.valid"] = cells, valid


def encode_lists(values: pa.ChunkedArray, column: Column, place: str, nonfinite: str) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Returns the elements [B, D] (standardised for vectors, bytes for images) and their validity [B, 1] or [B, D]."""
    lengths = pc.unique(pc.list_value_length(values).drop_null()).to_pylist()
    if lengths not in ([], [column.size]):
        raise DataError(f"{place} holds lists of lengths {sorted(lengths)[:5]}; the model has {column.size}")
    rows = np.asarray(pc.is_valid(values).to_numpy(), dtype=np.bool_)
    elements = one_array(pc.list_flatten(values))
    numbers, there = elements_and_flags(elements, column, place, nonfinite)
    image = column.kind == "image"
    if not image:
        standardised = (numbers.reshape(-1, column.size) - np.asarray(column.mean)) * (1 / column.scale)
        numbers = np.clip(standardised, -LARGEST_CELL, LARGEST_CELL)
    if column.element_nulls or not there.all():
        numbers = np.where(there, numbers.reshape(-1), 0)
        valid = np.zeros((len(rows), column.size), np.bool_)
        valid[rows] = there.reshape(-1, column.size)
    else:
        valid = rows[:, None]
    if rows.all():
        return numbers.reshape(-1, column.size).astype(np.uint8 if image else np.float32), valid
    cells = np.zeros((len(rows), column.size), np.uint8 if image else np.float32)
    cells[rows] = numbers.reshape(-1, column.size)
    return cells, valid


def elements_and_flags(elements: pa.Array, column: Column, place: str, nonfinite: str) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Returns a list column's elements, flat, and which of them are there."""
    there = np.empty(len(elements), np.bool_)
    present(elements, there)
    numbers = raw_numbers(elements) if column.kind == "image" else finite_numbers(elements, there, place, nonfinite)
    return numbers, there


def decode(column: Column, kind: pa.DataType, cells: NDArray[Any], valid: NDArray[np.bool_]) -> pa.Array:
    missing = ~valid
    match column.kind:
        case "boolean":
            return pa.array(cells[:, 0] != 0, mask=missing)
        case "categorical":
            # "Other" stands for values that are not kept, so it comes back as null.
            values = pa.array([*column.categories, None] if column.other else column.categories, plain_values(kind))
            return values.take(pa.array(cells[:, 0], mask=missing)).cast(kind)
        case "numeric" | "count" | "timestamp":
            y = cells[:, 0].astype(np.float64) * column.scale + column.mean[0]
            return numbers_to_arrow(
                np.maximum(unwarped(y, column), column.lower if column.lower is not None else -np.inf), plain_values(kind), missing
            ).cast(kind)
        case "vector":
            flat = (cells.astype(np.float64) * column.scale + np.asarray(column.mean)).reshape(-1)
            return lists_to_arrow(numbers_to_arrow(flat, kind.value_type, np.zeros(len(flat), np.bool_)), kind, column.size, missing)
        case _:
            return lists_to_arrow(pa.array(np.ascontiguousarray(cells).reshape(-1), pa.uint8()), kind, column.size, missing)


@np.errstate(over="ignore")  # what is beyond float64 ends at its type's limit
def unwarped(u: NDArray[np.float64], column: Column) -> NDArray[np.float64]:
    """Returns x of u = asinh((x - center) / width), or u itself where the column has no width."""
    return u if column.width is None else column.center + column.width * np.sinh(u)


def plain_values(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def constant_array(constant: Any, kind: pa.DataType, missing: NDArray[np.bool_]) -> pa.Array:
    """Returns a constant column's rows: its value in the column's type, null where it is missing."""
    values = plain_values(kind)
    stored = ticks_type(values) if is_temporal(values) else None
    one = pa.array([constant], stored).cast(values, safe=False) if stored or isinstance(constant, float) else pa.array([constant], values)
    return one.take(pa.array(np.zeros(len(missing), np.int64), mask=missing)).cast(kind)


def numbers_to_arrow(numbers: NDArray[np.float64], kind: pa.DataType, missing: NDArray[np.bool_]) -> pa.Array:
    """Returns numbers in the column's type, rounded to what it holds and kept in its range."""
    if is_temporal(kind):
        return whole_numbers(numbers, kind, ticks_type(kind), missing).cast(kind)
    if pa.types.is_integer(kind):
        return whole_numbers(numbers, kind, kind, missing)
    if pa.types.is_decimal(kind):
        end = 10.0 ** (kind.precision - kind.scale)
        limit = min(end - 10.0**-kind.scale, np.nextafter(end, 0))  # a larger one would come out of the cast as zero
        return pa.array(np.clip(numbers, -limit, limit), mask=missing).cast(kind, safe=False)
    limit = float(np.finfo(kind.to_pandas_dtype()).max)
    return pa.array(np.clip(numbers, -limit, limit), mask=missing).cast(kind, safe=False)


def whole_numbers(numbers: NDArray[np.float64], kind: pa.DataType, stored: pa.DataType, missing: NDArray[np.bool_]) -> pa.Array:
    """Returns rounded numbers in the integer type that stores a type, within the latter's range."""
    low, high = integer_range(kind)
    highest = np.nextafter(float(high), 0) if high > 2**53 else float(high)
    return pa.array(np.clip(np.rint(numbers), float(low), highest).astype(stored.to_pandas_dtype()), stored, mask=missing)


def lists_to_arrow(elements: pa.Array, kind: pa.DataType, size: int, missing: NDArray[np.bool_]) -> pa.Array:
    mask = pa.array(missing) if missing.any() else None
    if pa.types.is_fixed_size_list(kind):
        return pa.FixedSizeListArray.from_arrays(elements, type=kind, mask=mask)
    offsets = np.arange(len(missing) + 1, dtype=np.int64) * size
    plain = pa.LargeListArray.from_arrays(pa.array(offsets), elements, mask=mask)
    return plain.cast(kind)
