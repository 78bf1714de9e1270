"""A density of whole rows that knows linear correlations alone: a Gaussian of all numbers, beside the frequencies of all categories.

In data units, as the model's: numbers on no grid have a density; integers and decimals a mass, divided by their step, for which a value
drawn uniformly from the step around them stands (a bound: E[log p(x + u)] <= log of the mass / step, by Jensen's inequality);
categories and booleans their smoothed frequency. Missing cells are integrated out. Shapes: B rows, D numbers, C categories.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.column import Column
from data.encoding import TableEncoding
from data.fields import DENSITIES, Field, atom_cells
from data.gaussian import Floats, Gaussian
from data.jacobians import NUMBERS

Arrays = Mapping[str, NDArray[Any]]
HALF_BYTE = 127


@dataclass(frozen=True)
class Cells:
    """Rows as the density takes them: numbers [B, D], NaN where missing; codes [B, C], -1 where missing.

    log_stretch: what turns a density of these numbers into one of data, [B]; sizes: how many codes there are, [C].
    """

    numbers: Floats
    log_stretch: Floats
    codes: NDArray[np.int64]
    sizes: list[int]

    @staticmethod
    def of(encoding: TableEncoding, arrays: Arrays, seed: int) -> Cells:
        """Returns encoded rows, those on grids anywhere in their step."""
        generator = np.random.default_rng(seed)
        num_rows = len(arrays["log_jacobian"])
        numbers, codes, sizes = [np.zeros((num_rows, 0))], [np.zeros((num_rows, 0), np.int64)], list[int]()
        stretch = np.zeros(num_rows)
        for field in (field for field in encoding.fields if not field.condition):
            values = np.asarray(arrays[field.name])
            valid = np.broadcast_to(arrays[f"{field.name}.valid"], values.shape)
            field_sizes = sizes_of(field)
            if field_sizes:
                found = values > HALF_BYTE if field.kind == "image" else values
                codes.append(np.where(valid, found.astype(np.int64), -1))
                sizes += field_sizes
                continue
            apart = np.zeros_like(values, np.bool_)
            if field.kind == "spiked":  # which atom a cell is, or none, is a category; one that is an atom is no number
                for index, column in enumerate(field.columns):
                    which = (values[:, [index]] == atom_cells(column)) @ np.arange(1, 1 + len(column.atoms))
                    codes.append(np.where(valid[:, [index]], which[:, None], -1))
                    sizes.append(1 + len(column.atoms))
                    apart[:, index] = which > 0
            for columns, part in numbers_of(field, values.astype(np.float64), generator):
                there = valid[:, columns] & ~apart[:, columns]
                numbers.append(np.where(there, part[0], np.nan))
                stretch += np.where(there, part[1], 0.0).sum(1)
        return Cells(np.concatenate(numbers, 1), stretch, np.concatenate(codes, 1), sizes)


def sizes_of(field: Field) -> list[int]:
    """Returns how many codes each cell of a field has; empty where it holds numbers."""
    if field.kind == "categorical":
        return [max(1, column.num_codes) for column in field.columns]
    black_and_white = field.kind == "image" and (field.columns[0].binarize or field.likelihood == "bernoulli")
    return [2] * field.size if field.kind == "boolean" or black_and_white else []


def numbers_of(field: Field, cells: Floats, generator: np.random.Generator) -> list[tuple[list[int], tuple[Floats, Floats]]]:
    """Returns a field's cells [B, D] as (their indices, (numbers anywhere in their step, log |d number / dx|))."""
    if field.kind in NUMBERS:
        return [([i], spread(column, cells[:, [i]], generator)) for i, column in enumerate(field.columns)]
    column = field.columns[0]
    if field.kind == "image":
        return [(list(range(field.size)), (cells + generator.random(cells.shape) - 0.5, np.zeros(cells.shape)))]
    if column.integer:
        cells = cells + (generator.random(cells.shape) - 0.5) / column.scale
    return [(list(range(field.size)), (cells, np.full(cells.shape, -np.log(column.scale))))]


def spread(column: Column, cells: Floats, generator: np.random.Generator) -> tuple[Floats, Floats]:
    """Returns standardised cells of a column of numbers, those on a grid anywhere in their step, and log |dy/dx|."""
    step = 0.0 if column.field_kind in DENSITIES else column.resolution or 1.0
    shift = step * (generator.random(cells.shape) - 0.5)
    if column.width is None:
        return cells + shift / column.scale, np.full(cells.shape, -np.log(column.scale))
    x = np.sinh(cells * column.scale + column.mean[0]) + shift / column.width
    return (np.arcsinh(x) - column.mean[0]) / column.scale, -np.log(column.scale * column.width) - np.log(np.hypot(1, x))


@dataclass(frozen=True)
class CorrelatedColumns:
    """The density. log_frequencies: of each categorical cell's codes."""

    gaussian: Gaussian
    log_frequencies: list[Floats]

    @staticmethod
    def fit(cells: Cells) -> CorrelatedColumns:
        """Returns the density of training rows; every code counts one row more than there is."""
        frequencies = []
        for codes, size in zip(cells.codes.T, cells.sizes, strict=True):
            counts = np.bincount(codes[codes >= 0], minlength=size) + 1.0
            frequencies.append(np.log(counts / counts.sum()))
        return CorrelatedColumns(Gaussian.fit(cells.numbers), frequencies)

    def log_prob(self, cells: Cells) -> Floats:
        """Returns log p of each row's observed cells in nats, in data units, [B]."""
        result = self.gaussian.log_prob(cells.numbers) + cells.log_stretch
        for codes, frequencies in zip(cells.codes.T, self.log_frequencies, strict=True):
            result += np.where(codes >= 0, frequencies[codes], 0.0)
        return result


def work_of(cells: Cells) -> float:
    """Returns about how many multiplications log_prob takes."""
    num_rows, num_cells = cells.numbers.shape
    num_patterns = len(np.unique(np.isnan(cells.numbers), axis=0)) if num_rows else 0
    return float(num_patterns * num_cells**3 + num_rows * num_cells**2)
