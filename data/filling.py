"""Columns with holes, and what fills them; every observed cell stays as it was. Shapes: B rows, D cells of a column."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from data.column import Column
from data.encoding import TableEncoding
from data.types import is_list

# Kinds whose cells are numbers, so that averages and deviations mean something.
NUMBERS = ("numeric", "count", "vector", "image")


class Cells(Protocol):
    """What a model says of cells, field -> [B, D]: at_mean in their storage, average as float64."""

    @property
    def at_mean(self) -> Any: ...

    @property
    def average(self) -> Any: ...


def filling_cells(encoding: TableEncoding, columns: Iterable[Column], found: Cells) -> dict[str, NDArray[Any]]:
    """Returns stored cells [B, D] to fill in, by column: averages of numbers, of the rest what is most probable."""
    at_mean, average = (
        encoding.split({name: np.asarray(cells.cpu()) for name, cells in part.items()}) for part in (found.at_mean, found.average)
    )
    result = {}
    for column in columns:
        cells = at_mean[column.name]
        if column.kind in NUMBERS:
            numbers = average[column.name]
            cells = (np.rint(numbers) if cells.dtype.kind in "iu" else numbers).astype(cells.dtype)
        result[column.name] = cells
    return result


def missing_cells(column: pa.ChunkedArray, about: Column, nonfinite: str) -> NDArray[np.bool_]:
    """Returns which cells are to be filled, [B, D]: nulls, elements of null lists, null elements, and NaN where those stand for nulls."""
    array = column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)
    missing = np.asarray(array.is_null())[:, None]
    if not is_list(column.type):
        return missing | (not_finite(array, nonfinite)[:, None])
    cells = np.repeat(missing, about.size, 1)
    elements = pc.list_flatten(array)
    cells[~missing[:, 0]] = (np.asarray(elements.is_null()) | not_finite(elements, nonfinite)).reshape(-1, about.size)
    return cells


def not_finite(array: pa.Array, nonfinite: str) -> NDArray[np.bool_]:
    if nonfinite == "error" or not pa.types.is_floating(array.type):
        return np.zeros(len(array), np.bool_)
    return ~np.asarray(pc.is_finite(array).fill_null(True))


def merged(column: pa.ChunkedArray, replacement: pa.Array, missing: NDArray[np.bool_], kind: pa.DataType) -> pa.Array | pa.ChunkedArray:
    """Returns a column with the replacement's cells where they are missing, as its type."""
    if not is_list(kind):
        plain = kind.value_type if pa.types.is_dictionary(kind) else kind
        return pc.if_else(pa.array(missing[:, 0]), replacement.cast(plain), column.cast(plain)).cast(kind)
    size = missing.shape[1]
    there = np.asarray(column.is_valid())
    elements = np.asarray(replacement.flatten()).copy()
    observed = pc.list_flatten(column.combine_chunks())
    # Of observed lists every element that is there keeps its bits.
    places = np.flatnonzero(np.repeat(there, size))
    kept = ~missing.reshape(-1)[places]
    elements[places[kept]] = np.asarray(observed.fill_null(0))[kept]
    values = pa.array(elements, kind.value_type)
    if pa.types.is_fixed_size_list(kind):
        return pa.FixedSizeListArray.from_arrays(values, type=kind)
    offsets = np.arange(len(there) + 1, dtype=np.int64) * size
    return pa.LargeListArray.from_arrays(pa.array(offsets), values).cast(kind)
