"""Columns that share a field to its arrays: numbers standardised, categories as codes, lists as matrices. No Ray, no torch.

Shapes: B rows, D cells of a field, V = D flags, or 1 where a row's cells are there or missing together.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from data.cells import LARGEST_CELL, empty, encode_categories, flags_of, mask_missing, raw_numbers, sums_where
from data.column import Column
from data.listing import DataError
from data.types import counted_from

LOG_JACOBIAN = "log_jacobian"
# Elements that are standardised at once: float64 that a second-level cache holds.
BLOCK_CELLS = 2**17
# Fields of numbers that have a density.
DENSITIES = "numeric", "spiked"
STORAGE: dict[str, np.dtype[Any]] = {"boolean": np.dtype(np.int8), "categorical": np.dtype(np.int32), "image": np.dtype(np.uint8)}

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Field:
    """Columns that are stored in one array and share a likelihood. kind: numeric spiked integer warped count boolean categorical vector
    image.

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


def field_name(column: Column) -> str:
    """Returns the name of the field of a scalar column: its kind, and the likelihood where that is not the default."""
    kind, likelihood = column.field_kind, column.field_likelihood
    return kind if likelihood is None else likelihood if likelihood.startswith(kind) else f"{kind}_{likelihood}"


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
    atoms = np.zeros_like(valid) if field.kind == "spiked" else None
    for index, (column, array, values, flags) in enumerate(zip(field.columns, columns, cells, valid, strict=True)):
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
        if atoms is not None:
            atoms[index] = settle_atoms(column, numbers, values, flags)
        mask_missing(values, flags)
    logs = [log_stretch(column) for column in field.columns]
    if any(logs) and not field.condition:
        batch.arrays[LOG_JACOBIAN] -= sums_where(valid if atoms is None else valid & ~atoms, logs)


def settle_atoms(column: Column, numbers: NDArray[Any], cells: NDArray[np.float32], valid: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Returns which of a column's numbers [B] are atoms; cells of others that round to an atom's are moved to the next one."""
    found = np.zeros(len(numbers), np.bool_)
    for (atom, _), cell in zip(column.atoms, atom_cells(column), strict=True):
        here = valid & (numbers == atom)
        cells[(cells == cell) & ~here] = np.nextafter(cell, np.float32(np.inf))
        cells[here] = cell
        found |= here
    return found


def on_atoms(column: Column, cells: NDArray[Any]) -> NDArray[np.bool_]:
    """Returns which cells are a column's atoms."""
    return np.isin(cells, atom_cells(column))


def atom_cells(column: Column) -> NDArray[np.float32]:
    """Returns the cells of a column's atoms, [A], ascending as they are; of those that round to one cell, the next ones."""
    y = [stored(atom, column) for atom, _ in column.atoms]
    cells: NDArray[np.float32] = np.clip(y, -LARGEST_CELL, LARGEST_CELL).astype(np.float32)
    for index in range(1, len(cells)):
        cells[index] = max(cells[index], np.nextafter(cells[index - 1], np.float32(np.inf)))
    return cells


def stored(value: float, column: Column) -> float:
    """Returns a number as a column of numbers stores it, but for float32's rounding."""
    if column.width is not None:
        value = math.asinh((value - column.center) / column.width)
    return (value - column.base - column.mean[0]) / column.scale


def log_stretch(column: Column) -> float:
    """Returns what an observed cell takes from the log-density: log of the step that has the mass, or of the scale (and the width).

    An atom takes nothing: it has a probability.
    """
    if column.field_kind in DENSITIES:
        return math.log(column.scale) + math.log(column.width or 1.0)
    return math.log(column.resolution or 1.0)


def standardised(numbers: NDArray[Any], column: Column, batch: Batch, valid: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Returns a column's standardised numbers [B], in the batch's scratch, and adds what of the log-Jacobian differs between rows."""
    y = batch.scratch
    if column.base:
        numbers = counted_from(column.base, numbers)
    if column.width is None:
        np.subtract(numbers, column.mean[0], out=y, dtype=np.float64)
    else:
        np.subtract(numbers, column.center, out=y, dtype=np.float64)
        y *= 1 / column.width
        if column.field_kind in DENSITIES and not column.condition:
            stretched = valid & np.isfinite(numbers)
            if column.atoms:
                stretched &= ~np.isin(numbers, [atom for atom, _ in column.atoms])
            batch.arrays[LOG_JACOBIAN] -= np.where(stretched, np.log(np.hypot(1, y)), 0.0)
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
    scratch = empty((min(block, len(cells)), column.size), np.float64)
    squares = 0.0
    for begin in range(0, len(cells), block):
        standard = cells[begin : begin + block]
        y = scratch[: len(standard)]
        y[:] = parts[begin : begin + block]  # at once: subtracting from another type goes by small buffers
        y -= mean
        y *= inverse
        standard[:] = y
        squares += float(np.dot(standard.reshape(-1), standard.reshape(-1)))
    if not squares <= LARGEST_CELL:
        valid = np.ones(numbers.size, np.bool_) if there is None else there
        bad = valid & ~np.isfinite(numbers)
        batch.refuse_nonfinite(column, int(bad.sum()))
        if bad.any():
            there = valid & ~bad
        cells = np.clip(np.nan_to_num(cells), -LARGEST_CELL, LARGEST_CELL)
    return cells.reshape(-1), there
