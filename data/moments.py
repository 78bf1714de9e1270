"""Count, mean and variance that can be merged. Float64. Shapes: n rows, E elements of a vector (1 for scalars)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass
class Moments:
    """Count, mean and sum of squared deviations per element, with the range. [E] each.

    base: whole numbers from which the mean is counted, as float64 does not tell large ones that are close together apart.
    """

    count: NDArray[np.float64]
    mean: NDArray[np.float64]
    squares: NDArray[np.float64]
    minimum: NDArray[np.float64]
    maximum: NDArray[np.float64]
    base: NDArray[np.float64]

    @staticmethod
    @np.errstate(over="ignore", invalid="ignore")  # what is not finite here is refused by name, in columns.py
    def of(values: NDArray[np.float64]) -> Moments:
        """Returns the moments of values [n, E], NaN where missing, n >= 1."""
        missing = np.isnan(values)
        if not missing.any():
            count = np.full(values.shape[1], float(len(values)))
            mean = values.mean(0)
            deviations = values - mean
            least, most = values.min(0), values.max(0)
        else:
            count = (~missing).sum(0).astype(np.float64)
            mean = np.where(missing, 0.0, values).sum(0) / np.maximum(count, 1)
            deviations = np.where(missing, 0.0, values - mean)
            least, most = np.where(missing, np.inf, values).min(0), np.where(missing, -np.inf, values).max(0)
        return Moments(count, mean, np.square(deviations, out=deviations).sum(0), least, most, np.zeros_like(mean))

    @property
    def magnitude(self) -> float:
        """The largest one of a number."""
        return float(max(self.maximum.max(), -self.minimum.min()))

    @np.errstate(over="ignore", invalid="ignore")
    def merge(self, other: Moments) -> Moments:
        """Returns the moments of both sets of rows (Chan, Golub & LeVeque 1979)."""
        count = self.count + other.count
        share = other.count / np.maximum(count, 1)
        delta = (other.mean - self.mean) + (other.base - self.base)
        return Moments(
            count,
            self.mean + delta * share,
            self.squares + other.squares + delta * delta * self.count * share,
            np.minimum(self.minimum, other.minimum),
            np.maximum(self.maximum, other.maximum),
            self.base,
        )
