"""A full-covariance Gaussian of rows with missing cells. Float64. Shapes: B rows, D cells, NaN where missing."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# Directions in which training rows do not vary keep this share of a cell's variance: their density stays finite.
LEAST_SHARE = 1e-6
# By which correlations may be drawn towards 0; the last is for fewer rows than cells.
SHRINKAGES = (0.0, 1e-4, 1e-3, 1e-2, 0.05, 0.2, 0.5, 1.0)

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Gaussian:
    """N(mean, covariance), [D] and [D, D]."""

    mean: Floats
    covariance: Floats

    @staticmethod
    def fit(cells: Floats) -> Gaussian:
        """Returns the Gaussian of training rows [B, D]: the shrinkage with which four fifths of them tell most of the last fifth.

        Fewer than five rows have no last fifth: their cells are independent.
        """
        held_out = np.arange(len(cells)) % 5 == 4
        if not held_out.any():
            return Moments.of(cells).gaussian(SHRINKAGES[-1])
        some = Moments.of(cells[~held_out])
        scores = [some.gaussian(shrinkage).log_prob(cells[held_out]).sum() for shrinkage in SHRINKAGES]
        return Moments.of(cells).gaussian(SHRINKAGES[int(np.argmax(scores))])

    def log_prob(self, cells: Floats) -> Floats:
        """Returns log p of each row's observed cells [B, D] in nats, [B]: the others are integrated out."""
        result = np.zeros(len(cells))
        for there, rows in patterns(cells):
            factor = np.linalg.cholesky(self.covariance[np.ix_(there, there)])
            standardised = np.linalg.solve(factor, (cells[np.ix_(rows, there)] - self.mean[there]).T)
            constant = np.log(np.diag(factor)).sum() + 0.5 * len(there) * math.log(2 * math.pi)
            result[rows] = -0.5 * (standardised**2).sum(0) - constant
        return result


@dataclass(frozen=True)
class Moments:
    """Mean and scale of each cell [D], and correlations [D, D] of the pairs of cells that rows have."""

    mean: Floats
    scale: Floats
    correlation: Floats

    @staticmethod
    def of(cells: Floats) -> Moments:
        """Returns the moments of rows [B, D], each row's missing cells left out."""
        there = ~np.isnan(cells)
        count = np.maximum(there.sum(0), 1)
        mean = np.where(there, cells, 0.0).sum(0) / count
        deviations = np.where(there, cells - mean, 0.0)
        scale = np.sqrt((deviations**2).sum(0) / count)
        scale[scale == 0] = 1.0
        deviations /= scale
        flags = there.astype(np.float64)
        return Moments(mean, scale, (deviations.T @ deviations) / np.maximum(flags.T @ flags, 1))

    def gaussian(self, shrinkage: float) -> Gaussian:
        """Returns the Gaussian whose correlations are that share nearer to 0, made positive definite."""
        correlation = (1 - shrinkage) * self.correlation
        np.fill_diagonal(correlation, 1.0)
        values, vectors = np.linalg.eigh(correlation)
        correlation = (vectors * np.maximum(values, LEAST_SHARE)) @ vectors.T
        return Gaussian(self.mean, correlation * np.outer(self.scale, self.scale))


def patterns(cells: Floats) -> Iterator[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """Yields, for each pattern of missing cells, the indices of the cells that are there and of the rows that have it."""
    there, of_row = np.unique(~np.isnan(cells), axis=0, return_inverse=True)
    order = np.argsort(of_row.ravel(), kind="stable")
    ends = np.cumsum(np.bincount(of_row.ravel(), minlength=len(there)))
    for flags, rows in zip(there, np.split(order, ends)[:-1], strict=True):
        yield np.flatnonzero(flags), rows
