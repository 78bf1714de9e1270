"""Arrow rows to compact arrays and back, both ways exact up to float32. No Ray, no torch.

A field is a group of columns stored side by side: "numeric", "integer", "boolean", "categorical", and one field for each
vector ("vector_0", ..) and image ("image_0", ..). Arrays: FIELD [B, D], FIELD.valid [B, V] and log_jacobian [B];
B rows, D cells, V = D flags, or 1 where a row's cells are there or missing together.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from data.columns import Column
from data.statistics import to_float64
from data.table import DataError

FORMAT_VERSION = 1
LOG_JACOBIAN = "log_jacobian"

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Field:
    """Columns that are stored in one array and share a likelihood. kind: numeric integer boolean categorical vector image."""

    name: str
    kind: str
    columns: tuple[Column, ...]

    @property
    def size(self) -> int:
        return sum(column.size for column in self.columns)

    @property
    def valid_size(self) -> int:
        return sum(column.valid_size for column in self.columns)


@dataclass(frozen=True)
class TableEncoding:
    """How the rows of one table are encoded: its schema and its columns. Stored in the bundle as table.json."""

    schema: pa.Schema
    columns: tuple[Column, ...]
    key: str | None

    @property
    def modelled(self) -> list[str]:
        """The columns that encoding reads."""
        return [column.name for column in self.columns if column.kind not in ("key", "ignored")]

    @property
    def fields(self) -> list[Field]:
        """The fields, in the order in which the model holds them."""
        groups: dict[str, list[Column]] = {}
        for column in self.columns:
            if column.kind in ("vector", "image"):
                number = sum(name.startswith(column.kind) for name in groups)
                groups[f"{column.kind}_{number}"] = [column]
            elif column.kind not in ("key", "ignored"):
                name = "integer" if column.kind == "numeric" and column.integer else column.kind
                groups.setdefault(name, []).append(column)
        return [Field(name, name.split("_")[0], tuple(columns)) for name, columns in groups.items()]

    def to_json(self) -> dict[str, Any]:
        schema = base64.b64encode(self.schema.serialize().to_pybytes()).decode()
        return {"format_version": FORMAT_VERSION, "schema": schema, "key": self.key, "columns": [asdict(column) for column in self.columns]}

    @staticmethod
    def from_json(table: Mapping[str, Any]) -> TableEncoding:
        schema = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(table["schema"])))
        return TableEncoding(schema, tuple(Column(**column) for column in table["columns"]), table["key"])

    def encode(self, table: pa.Table, where: str) -> Arrays:
        """Returns the arrays of a table's rows. Raises DataError naming `where` (a file) and the column."""
        arrays: Arrays = {LOG_JACOBIAN: np.zeros(table.num_rows)}
        for field in self.fields:
            encode_field(field, table, where, arrays)
        return arrays

    def check_schema(self, schema: pa.Schema, where: str) -> None:
        """Raises DataError listing every modelled column that is missing or of another type; other columns do not matter."""
        faults = []
        for name in self.modelled:
            expected = self.schema.field(name).type
            if name not in schema.names:
                faults.append(f"column {name!r} is missing")
            elif schema.field(name).type != expected:
                faults.append(f"column {name!r} is {schema.field(name).type}, the model was trained on {expected}")
        if faults:
            raise DataError(f"{where}: does not fit the model:\n  " + "\n  ".join(faults))

    def decode_column(self, name: str, cells: NDArray[Any], valid: NDArray[np.bool_]) -> pa.Array:
        """Returns stored cells [B, size] as the column's own Arrow type, null where valid [B] is false."""
        column = next(column for column in self.columns if column.name == name)
        return decode(column, self.schema.field(name).type, cells, valid)


def encode_field(field: Field, table: pa.Table, where: str, arrays: Arrays) -> None:
    num_rows = table.num_rows
    storage = {"boolean": np.int8, "categorical": np.int32, "image": np.uint8}.get(field.kind, np.float32)
    cells = np.zeros((num_rows, field.size), storage)
    valid = np.zeros((num_rows, field.valid_size), np.bool_)
    for index, column in enumerate(field.columns):
        place = f"{where}: column {column.name!r}"
        values = table[column.name]
        match field.kind:
            case "boolean":
                valid[:, index] = present(values)
                cells[:, index] = np.asarray(pc.fill_null(values, False).to_numpy())
            case "categorical":
                cells[:, index], valid[:, index] = encode_categories(values, column)
            case "numeric" | "integer":
                numbers = finite_numbers(values, place)
                valid[:, index] = present(values)
                cells[:, index] = np.where(valid[:, index], (numbers - column.mean[0]) / column.scale, 0)
                if field.kind == "numeric":
                    arrays[LOG_JACOBIAN] -= math.log(column.scale) * valid[:, index]
            case _:
                cells, valid = encode_lists(values, column, place)
                if column.kind == "vector" and not column.integer:
                    observed = valid.sum(1) * (column.size // valid.shape[1])
                    arrays[LOG_JACOBIAN] -= math.log(column.scale) * observed
    arrays[field.name], arrays[f"{field.name}.valid"] = cells, valid


def present(values: pa.ChunkedArray) -> NDArray[np.bool_]:
    return np.asarray(pc.is_valid(values).to_numpy(), dtype=np.bool_)


def finite_numbers(values: pa.ChunkedArray | pa.Array, place: str) -> NDArray[np.float64]:
    """Returns float64 numbers, NaN where null. Raises DataError for a NaN or infinity that is a value."""
    numbers = to_float64(values)
    bad = int((~np.isfinite(numbers)).sum()) - values.null_count
    if bad:
        raise DataError(f"{place} has {bad} NaN or infinite values; store them as null")
    return numbers


def encode_categories(values: pa.ChunkedArray, column: Column) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
    """Returns codes (0 where missing) and validity; a category that training did not see counts as missing."""
    plain = values.cast(values.type.value_type) if pa.types.is_dictionary(values.type) else values
    codes = pc.index_in(plain, pa.array(column.categories, plain.type))
    return np.asarray(pc.fill_null(codes, 0).to_numpy(), dtype=np.int32), present(codes)


def encode_lists(values: pa.ChunkedArray, column: Column, place: str) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Returns the elements [B, D] (standardised for vectors, bytes for images) and their validity [B, 1] or [B, D]."""
    lengths = pc.unique(pc.list_value_length(values).drop_null()).to_pylist()
    if lengths not in ([], [column.size]):
        raise DataError(f"{place} holds lists of lengths {sorted(lengths)[:5]}; the model has {column.size}")
    rows = present(values)
    elements = pc.list_flatten(values)
    image = column.kind == "image"
    cells = np.zeros((len(rows), column.size), np.uint8 if image else np.float32)
    valid = rows[:, None]
    if column.element_nulls or elements.null_count:
        valid = np.zeros((len(rows), column.size), np.bool_)
        valid[rows] = present(pa.chunked_array([elements]) if isinstance(elements, pa.Array) else elements).reshape(-1, column.size)
    if image:
        cells[rows] = np.asarray(pc.fill_null(elements, 0).to_numpy(), dtype=np.uint8).reshape(-1, column.size)
    else:
        numbers = (finite_numbers(elements, place).reshape(-1, column.size) - np.asarray(column.mean)) / column.scale
        cells[rows] = np.nan_to_num(numbers, nan=0.0)
    return cells, valid


def decode(column: Column, kind: pa.DataType, cells: NDArray[Any], valid: NDArray[np.bool_]) -> pa.Array:
    missing = ~valid
    match column.kind:
        case "boolean":
            return pa.array(cells[:, 0] != 0, mask=missing)
        case "categorical":
            values = kind.value_type if pa.types.is_dictionary(kind) else kind
            return pa.array(column.categories, values).take(pa.array(cells[:, 0], mask=missing)).cast(kind)
        case "numeric":
            return numbers_to_arrow(cells[:, 0].astype(np.float64) * column.scale + column.mean[0], kind, missing)
        case "vector":
            flat = (cells.astype(np.float64) * column.scale + np.asarray(column.mean)).reshape(-1)
            return lists_to_arrow(numbers_to_arrow(flat, kind.value_type, np.zeros(len(flat), np.bool_)), kind, column.size, missing)
        case _:
            return lists_to_arrow(pa.array(cells.reshape(-1), pa.uint8()), kind, column.size, missing)


def numbers_to_arrow(numbers: NDArray[np.float64], kind: pa.DataType, missing: NDArray[np.bool_]) -> pa.Array:
    """Returns numbers in the column's type, rounded to what it holds and kept in its range."""
    if pa.types.is_integer(kind):
        bounds = np.iinfo(kind.to_pandas_dtype())
        inside = np.clip(np.rint(numbers), float(bounds.min), np.nextafter(float(bounds.max), 0) if bounds.bits > 52 else bounds.max)
        return pa.array(inside.astype(bounds.dtype), kind, mask=missing)
    if pa.types.is_decimal(kind):
        end = 10.0 ** (kind.precision - kind.scale)
        limit = min(end - 10.0**-kind.scale, np.nextafter(end, 0))  # a larger one would come out of the cast as zero
        return pa.array(np.clip(numbers, -limit, limit), mask=missing).cast(kind, safe=False)
    limit = float(np.finfo(kind.to_pandas_dtype()).max)
    return pa.array(np.clip(numbers, -limit, limit), mask=missing).cast(kind, safe=False)


def lists_to_arrow(elements: pa.Array, kind: pa.DataType, size: int, missing: NDArray[np.bool_]) -> pa.Array:
    mask = pa.array(missing) if missing.any() else None
    if pa.types.is_fixed_size_list(kind):
        return pa.FixedSizeListArray.from_arrays(elements, type=kind, mask=mask)
    offsets = np.arange(len(missing) + 1, dtype=np.int64) * size
    plain = pa.LargeListArray.from_arrays(pa.array(offsets), elements, mask=mask)
    return plain.cast(kind)
