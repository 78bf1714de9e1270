"""Arrow rows to compact arrays and back, both ways exact up to float32. No Ray, no torch.

A field is a group of columns stored side by side: "numeric", "integer" (multiples of a step: whole numbers, decimals and points in
time), "warped" (the same with heavy tails), "boolean", "categorical", and one field for each vector ("vector_0", ..) and image
("image_0", ..). Scalar columns of another likelihood than the default have fields of their own ("numeric_student_t", "count_poisson",
..; counts of such a likelihood are stored as they are). Columns that condition the model have such fields of their own
("condition_numeric", ..), which add nothing to the log-Jacobian.
Arrays: FIELD [B, D], FIELD.valid [B, V] and log_jacobian [B]; B rows, D cells, V = D flags, or 1 where a row's cells are there or
missing together. Fields of scalar columns are encoded column by column, so their arrays lie in Fortran order.
"""

from __future__ import annotations

import base64
import math
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from data.cells import LARGEST_CELL, empty, encode_categories, flags_of, mask_missing, raw_numbers, sums_where
from data.column import Column
from data.decoding import decode
from data.listing import DataError
from data.widening import fits

FORMAT_VERSION = 2
LOG_JACOBIAN = "log_jacobian"
# Elements that are standardised at once: float64 that a second-level cache holds.
BLOCK_CELLS = 2**15
STORAGE: dict[str, np.dtype[Any]] = {"boolean": np.dtype(np.int8), "categorical": np.dtype(np.int32), "image": np.dtype(np.uint8)}

Arrays = dict[str, NDArray[Any]]


class EncodingFormatError(ValueError):
    """A stored encoding was written by another version of this code."""


@dataclass(frozen=True)
class Field:
    """Columns that are stored in one array and share a likelihood. kind: numeric integer warped count boolean categorical vector image.

    likelihood: its name where it is not the kind's default.
    condition: the columns condition the model and have no likelihood; their arrays make features alone.
    """

    name: str
    kind: str
    columns: tuple[Column, ...]
    condition: bool = False
    likelihood: str | None = None

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
    def inputs(self) -> list[str]:
        """The columns that encoding reads: those that are modelled and those that condition the model."""
        return [column.name for column in self.columns if column.kind not in ("key", "ignored")]

    @property
    def modelled(self) -> list[str]:
        """The columns that have a likelihood."""
        return [column.name for column in self.columns if column.kind not in ("key", "ignored") and not column.condition]

    @property
    def conditions(self) -> tuple[Column, ...]:
        """The columns that condition the model."""
        return tuple(column for column in self.columns if column.condition)

    def schema_of(self, names: Iterable[str]) -> pa.Schema:
        """Returns the named columns' types, as a reader needs them."""
        return pa.schema([self.schema.field(name) for name in names])

    @property
    def fields(self) -> list[Field]:
        """The fields, in the order in which the model holds them: the modelled ones, then those of the condition."""
        return [field for condition in (False, True) for field in self._fields(condition)]

    def _fields(self, condition: bool) -> Iterator[Field]:
        groups: dict[str, list[Column]] = {}
        for column in (column for column in self.columns if column.condition == condition and column.kind not in ("key", "ignored")):
            if column.kind in ("vector", "image"):
                number = sum(name.startswith(column.kind) for name in groups)
                groups[f"{column.kind}_{number}"] = [column]
            else:
                groups.setdefault(field_name(column), []).append(column)
        for name, columns in groups.items():
            first = columns[0]
            yield Field(f"condition_{name}" if condition else name, first.field_kind, tuple(columns), condition, first.field_likelihood)

    @property
    def field_columns(self) -> list[str]:
        """The modelled columns in the order of the fields' cells."""
        return [column.name for field in self.fields if not field.condition for column in field.columns]

    def split(self, cells: Mapping[str, NDArray[Any]]) -> Arrays:
        """Returns column name -> [B, size] from field name -> [B, D], of what is modelled."""
        arrays: Arrays = {}
        for field in (field for field in self.fields if not field.condition):
            ends = np.cumsum([column.size for column in field.columns])[:-1]
            arrays |= dict(zip((column.name for column in field.columns), np.split(cells[field.name], ends, axis=1), strict=True))
        return arrays

    def to_json(self) -> dict[str, Any]:
        schema = base64.b64encode(self.schema.serialize().to_pybytes()).decode()
        return {
            "format_version": FORMAT_VERSION,
            "schema": schema,
            "key": self.key,
            "nonfinite": self.nonfinite,
            "columns": [column_json(column) for column in self.columns],
        }

    @staticmethod
    def from_json(table: Mapping[str, Any]) -> TableEncoding:
        """Returns the encoding that to_json wrote. Raises EncodingFormatError for another format version."""
        version = table["format_version"]
        if version != FORMAT_VERSION:
            raise EncodingFormatError(f"table.json has format version {version}, this code reads {FORMAT_VERSION}; train the model again")
        schema = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(table["schema"])))
        return TableEncoding(schema, tuple(Column(**column) for column in table["columns"]), table["key"], table["nonfinite"])

    def encode(self, table: pa.Table, where: str, unseen: Counter[str] | None = None, fields: Sequence[Field] | None = None) -> Arrays:
        """Returns the arrays of a table's rows; unseen: counts, by column, the values that the model has no code for.

        fields: those of which the table has the columns; default: all. Raises DataError naming `where` (a file) and the column.
        """
        arrays: Arrays = {LOG_JACOBIAN: np.zeros(table.num_rows)}
        batch = Batch(table, where, self.nonfinite, Counter() if unseen is None else unseen, arrays, empty((table.num_rows,), np.float64))
        for field in self.fields if fields is None else fields:
            if field.kind in ("vector", "image"):
                encode_list_field(field, batch)
            else:
                encode_scalar_field(field, batch)
        return arrays

    def check_schema(self, schema: pa.Schema, where: str, spelled: Collection[str] = ()) -> None:
        """Raises DataError listing every input column that is missing or of a type that cannot be widened; others do not matter.

        spelled: columns that folders spell out, which are read as the type that is expected.
        """
        faults = []
        for name in self.inputs:
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


def field_name(column: Column) -> str:
    """Returns the name of the field of a scalar column: its kind, and the likelihood where that is not the default."""
    kind, likelihood = column.field_kind, column.field_likelihood
    return kind if likelihood is None else likelihood if likelihood.startswith(kind) else f"{kind}_{likelihood}"


# What few columns have: written where it is so, so that the others read as they always did.
OPTIONAL = {"condition": False, "likelihood": None, "log_mean": 0.0, "log_scale": 1.0, "binarize": False, "spike": None}


def column_json(column: Column) -> dict[str, Any]:
    """Returns a column's numbers, without those that say nothing of it."""
    usual = OPTIONAL | {"resolution": 1.0 if column.integer else None}
    return {name: value for name, value in asdict(column).items() if name not in usual or value != usual[name]}


@dataclass(frozen=True)
class Batch:
    """Rows while they are encoded. scratch: float64 [B] that every column of numbers uses anew, as fresh memory costs more than sums."""

    table: pa.Table
    where: str
    nonfinite: str
    unseen: Counter[str]
    arrays: Arrays
    scratch: NDArray[np.float64]

    def refuse_nonfinite(self, column: Column, count: int) -> None:
        """Raises DataError where NaN and infinities are errors and there are some."""
        if count and self.nonfinite == "error":
            place = f"{self.where}: column {column.name!r}"
            raise DataError(f"{place} has {count} NaN or infinite values; store them as null, or train with --data.nonfinite null")


def encode_scalar_field(field: Field, batch: Batch) -> None:
    """Adds a field's arrays. Each column is contiguous while it is made."""
    columns = [one_array(batch.table[column.name]) for column in field.columns]
    cells = empty((field.size, batch.table.num_rows), field.storage)
    valid = flags_of(columns)
    if field.kind in ("boolean", "categorical"):
        for column, array, values, flags in zip(field.columns, columns, cells, valid, strict=True):
            if field.kind == "boolean":
                values[:] = array.fill_null(False).to_numpy(zero_copy_only=False)
            else:
                encode_categories(array, column, values, flags, batch.unseen)
    else:
        encode_numbers(field, columns, batch, cells, valid)
    batch.arrays[field.name], batch.arrays[f"{field.name}.valid"] = cells.T, valid.T


@np.errstate(over="ignore", invalid="ignore")  # null cells hold anything; the others are checked
def encode_numbers(field: Field, columns: list[pa.Array], batch: Batch, cells: NDArray[Any], valid: NDArray[np.bool_]) -> None:
    """Writes standardised cells [D, B], 0 where not valid, and adds the log-Jacobian of the observed cells (of whole numbers: 0)."""
    for column, array, values, flags in zip(field.columns, columns, cells, valid, strict=True):
        numbers = raw_numbers(array)
        if column.kind == "count" and len(numbers) and numbers.min() < 0:
            negative = flags & (numbers < 0)
            batch.unseen[column.name] += int(negative.sum())
            flags &= ~negative
        y = standardised(numbers, column, batch, flags)
        values[:] = y
        if not np.dot(values, values) <= LARGEST_CELL:
            bad = flags & ~np.isfinite(numbers)
            batch.refuse_nonfinite(column, int(bad.sum()))
            flags &= ~bad
            values[:] = np.clip(np.where(flags, y, 0.0), -LARGEST_CELL, LARGEST_CELL)  # numbers beyond float32 are its largest cells
        mask_missing(values, flags)
    logs = [log_stretch(column) for column in field.columns]
    if any(logs) and not field.condition:
        batch.arrays[LOG_JACOBIAN] -= sums_where(valid, logs)


def log_stretch(column: Column) -> float:
    """Returns what an observed cell takes from the log-density: log of the step that has the mass, or of the scale (and the width)."""
    if column.field_kind == "numeric":
        return math.log(column.scale) + math.log(column.width or 1.0)
    return math.log(column.resolution or 1.0)


def standardised(numbers: NDArray[Any], column: Column, batch: Batch, valid: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Returns a column's standardised numbers [B], in the batch's scratch, and adds what of the log-Jacobian differs between rows."""
    y = batch.scratch
    if column.width is None:
        np.subtract(numbers, column.mean[0], out=y, dtype=np.float64)
    else:
        np.subtract(numbers, column.center, out=y, dtype=np.float64)
        y *= 1 / column.width
        if column.field_kind == "numeric" and not column.condition:
            batch.arrays[LOG_JACOBIAN] -= np.where(valid & np.isfinite(numbers), np.log(np.hypot(1, y)), 0.0)
        np.arcsinh(y, out=y)
        y -= column.mean[0]
    y *= 1 / column.scale
    return y


def one_array(column: pa.ChunkedArray) -> pa.Array:
    """Returns a column as one array; dictionaries of other types than text as their values."""
    if pa.types.is_dictionary(column.type) and column.num_chunks != 1:
        column = column.unify_dictionaries()
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def encode_list_field(field: Field, batch: Batch) -> None:
    """Adds the elements [B, D] (standardised for vectors, bytes for images), their validity [B, 1] or [B, D], and the log-Jacobian."""
    (column,) = field.columns
    lists = batch.table[column.name]
    lengths = pc.unique(pc.list_value_length(lists).drop_null()).to_pylist()
    if lengths not in ([], [column.size]):
        place = f"{batch.where}: column {column.name!r}"
        raise DataError(f"{place} holds lists of lengths {sorted(lengths)[:5]}; the model has {column.size}")
    elements = one_array(pc.list_flatten(lists))
    there = flags_of([elements])[0] if elements.null_count else None
    if column.kind == "image":
        cells = empty((len(elements),), np.uint8)
        cells[:] = raw_numbers(elements)
    else:
        cells, there = standardised_elements(raw_numbers(elements), there, column, batch)
    if there is not None:
        cells[~there] = 0
    rows = np.asarray(pc.is_valid(lists).to_numpy(), dtype=np.bool_)
    valid = rows[:, None]
    if column.element_nulls or there is not None:
        valid = np.repeat(valid, column.size, 1)
        valid[rows] = True if there is None else there.reshape(-1, column.size)
    if not rows.all():
        spread = np.zeros((len(rows), column.size), cells.dtype)
        spread[rows] = cells.reshape(-1, column.size)
        cells = spread
    if column.kind == "vector" and not column.integer and not column.condition:
        batch.arrays[LOG_JACOBIAN] -= math.log(column.scale) * (valid.sum(1) * (column.size // valid.shape[1]))
    batch.arrays[field.name], batch.arrays[f"{field.name}.valid"] = cells.reshape(-1, column.size), valid


@np.errstate(over="ignore", invalid="ignore")  # null elements hold anything; the others are checked
def standardised_elements(
    numbers: NDArray[Any], there: NDArray[np.bool_] | None, column: Column, batch: Batch
) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:
    """Returns a vector column's elements, flat and standardised in float64 block by block, and which of them are there (None: all)."""
    parts = numbers.reshape(-1, column.size)
    cells = empty(parts.shape, np.float32)
    mean, inverse = np.asarray(column.mean), 1 / column.scale
    block = max(1, BLOCK_CELLS // column.size)
    for begin in range(0, len(cells), block):
        y = parts[begin : begin + block] - mean
        y *= inverse
        cells[begin : begin + block] = y
    if cells.size and not (cells.max() <= LARGEST_CELL and cells.min() >= -LARGEST_CELL):
        valid = np.ones(numbers.size, np.bool_) if there is None else there
        bad = valid & ~np.isfinite(numbers)
        batch.refuse_nonfinite(column, int(bad.sum()))
        there = valid & ~bad
        cells = np.clip(np.nan_to_num(cells), -LARGEST_CELL, LARGEST_CELL)
    return cells.reshape(-1), there
