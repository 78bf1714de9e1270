"""Arrow rows to compact arrays and back, both ways exact up to float32. No Ray, no torch.

A field is a group of columns stored side by side: "numeric", "spiked" (numbers with atoms), "integer" (multiples of a step: whole
numbers, decimals and points in time), "warped" (the same with heavy tails), "boolean", "categorical", and one field for each vector
("vector_0", ..) and image ("image_0", ..). Scalar columns of another likelihood than the default have fields of their own
("numeric_student_t", "count_poisson", ..; counts of such a likelihood are stored as they are). Columns that condition the model have such
fields of their own ("condition_numeric", ..), which add nothing to the log-Jacobian.
Arrays: FIELD [B, D], FIELD.valid [B, V] and log_jacobian [B]; B rows, D cells, V = D flags, or 1 where a row's cells are there or
missing together. Fields of scalar columns are encoded column by column, so their arrays lie in Fortran order.
"""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data.cells import empty
from data.column import Column
from data.decoding import decode
from data.fields import LOG_JACOBIAN, Arrays, Batch, Field, encode_list_field, encode_scalar_field, field_name
from data.listing import DataError
from data.widening import fits

FORMAT_VERSION = 2


class EncodingFormatError(ValueError):
    """A stored encoding was written by another version of this code, or is none."""


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
        """Returns the encoding that to_json wrote. Raises EncodingFormatError for another format version, and for what is no encoding."""
        try:
            version = table["format_version"]
            if version == FORMAT_VERSION:
                schema = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(table["schema"])))
                return TableEncoding(schema, tuple(Column(**column) for column in table["columns"]), table["key"], table["nonfinite"])
        except (TypeError, KeyError, ValueError, OSError) as error:
            raise EncodingFormatError(f"table.json does not describe a table's columns ({error!r}); train the model again") from error
        raise EncodingFormatError(f"table.json has format version {version}, this code reads {FORMAT_VERSION}; train the model again")

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
        """Returns stored cells [B, size] as the column's own Arrow type (or another list type), null where valid is false.

        valid is [B], or [B, size] of a list whose elements may be null one by one.
        """
        column = next(column for column in self.columns if column.name == name)
        return decode(column, kind or self.schema.field(name).type, cells, valid)


# What few columns have: written where it is so, so that the others read as they always did.
OPTIONAL: dict[str, Any] = {
    "condition": False,
    "likelihood": None,
    "log_mean": 0.0,
    "log_scale": 1.0,
    "binarize": False,
    "spike": None,
    "heap": None,
    "off_grid": 0.0,
    "origin": 0.0,
    "element_null_fractions": [],
    "atoms": [],
    "base": 0,
    "determined_by": None,
    "determined_codes": [],
    "slack": 0.0,
}


def column_json(column: Column) -> dict[str, Any]:
    """Returns a column's numbers, without those that say nothing of it."""
    usual = OPTIONAL | {"resolution": 1.0 if column.integer else None}
    return {name: value for name, value in asdict(column).items() if name not in usual or value != usual[name]}
