"""What turns a log-density of stored cells into one of data: log |dy/dx| by column. Shapes: B rows, C columns, D cells."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.column import Column
from data.encoding import TableEncoding
from data.fields import DENSITIES, Field, log_stretch, on_atoms

NUMBERS = ("numeric", "spiked", "integer", "warped", "count")


def column_log_jacobians(encoding: TableEncoding, arrays: Mapping[str, NDArray[Any]]) -> NDArray[np.float64]:
    """Returns the log-Jacobian of each row's observed cells by modelled column, [B, C], whose sums are the rows' log_jacobian.

    arrays: rows as TableEncoding.encode gives them; columns come in the order of encoding.field_columns.
    """
    parts = [
        field_log_jacobians(field, arrays[field.name], arrays[f"{field.name}.valid"]) for field in encoding.fields if not field.condition
    ]
    return np.concatenate(parts, 1)


def field_log_jacobians(field: Field, cells: NDArray[Any], valid: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Returns the same of one field's columns."""
    if field.kind in NUMBERS:
        columns = [np.where(valid[:, i], -stretch(column, cells[:, i]), 0.0) for i, column in enumerate(field.columns)]
        return np.stack(columns, 1)
    (first,) = field.columns if field.kind in ("vector", "image") else (None,)
    if first is None or first.kind == "image" or first.integer:
        return np.zeros((len(cells), len(field.columns)))
    num_observed: NDArray[np.float64] = (valid.sum(1, keepdims=True) * (first.size // valid.shape[1])).astype(np.float64)
    return -math.log(first.scale) * num_observed


def stretch(column: Column, cells: NDArray[Any]) -> NDArray[np.float64]:
    """Returns what observed cells [B] of a column of numbers take from the log-density."""
    found = np.full(len(cells), log_stretch(column))
    if column.field_kind in DENSITIES and column.width is not None:
        found += log_cosh(cells.astype(np.float64) * column.scale + column.mean[0])
    return np.where(on_atoms(column, cells), 0.0, found) if column.field_kind == "spiked" else found


def log_cosh(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns log cosh x without overflow."""
    result: NDArray[np.float64] = np.abs(x) + np.log1p(np.exp(-2 * np.abs(x))) - math.log(2)
    return result
