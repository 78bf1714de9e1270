"""How numbers are brought to mean 0 and variance 1: by a shift and a scale, after an asinh where their tails are heavy."""

from __future__ import annotations

import sys

import numpy as np
from numpy.typing import NDArray

from data.sketches import QuantileSketch

# Quantiles of heavy tails are told from outliers by this many values.
MIN_TAIL_VALUES = 100
# How far the 0.1 % quantiles lie from the median, in standard deviations judged by the 10 % quantiles: Gaussian 3.1, Laplace 4.9,
# exponential 7.2, lognormal 16. Beyond this a Gaussian's tail is too light to hold them.
HEAVY_TAIL = 6.0
GAUSSIAN_DECILES = 2.563
# A value that many rows have is far from the others beyond so many of their standard deviations.
FAR_SPIKE = 10.0
# What a sketch cannot tell apart, as a share of the value.
RESOLUTION = 1 / 64
# A scale to divide by: its inverse is finite in float64.
MIN_SCALE = 1e-300
# Distances in widths, at most: their square, which the Jacobian takes, is finite in float64.
MAX_DISTANCE = 1e150


def usable(scale: float) -> float:
    """Returns a scale to divide by: 1 where the values' differences are beyond what float64 holds."""
    return 1.0 if scale <= MIN_SCALE else float(scale)


def heavy_tails(sketch: QuantileSketch) -> tuple[float, float] | None:
    """Returns center and width of the asinh that draws heavy tails in, None where the tails are light."""
    if sketch.count < MIN_TAIL_VALUES:
        return None
    least, center, most = sketch.quantiles([0.001, 0.5, 0.999])
    if not max(most - center, center - least) > HEAVY_TAIL * max(spread_of(sketch), RESOLUTION * abs(center)):
        return None
    return center_and_width(sketch)


def tails_beside(spike: float, sketch: QuantileSketch) -> tuple[float, float] | None:
    """Returns center and width of the asinh that draws in a value which many rows have, far from the others; None where it is not far.

    So -999 for what is not known leaves the others their scale.
    """
    others = sketch.without(spike)
    if others.count < MIN_TAIL_VALUES:
        return None
    center, width = center_and_width(others)
    return (center, width) if abs(spike - center) > FAR_SPIKE * max(width, RESOLUTION * abs(center)) else None


@np.errstate(over="ignore")  # distances beyond float64 are infinite
def center_and_width(sketch: QuantileSketch) -> tuple[float, float]:
    """Returns center and width of an asinh, both finite; a width of 0 where the sketch tells no value from the others."""
    center = sketch.quantile(0.5)
    farthest = float(np.abs(sketch.middles() - center).max())
    return center, max(spread_of(sketch), min(farthest, sys.float_info.max) / MAX_DISTANCE)


@np.errstate(over="ignore")
def spread_of(sketch: QuantileSketch) -> float:
    """Returns the standard deviation that the 10 % quantiles tell.

    Where these are one value, as in counts that are mostly zero, it is the other values' median distance from it.
    """
    low, center, high = sketch.quantiles([0.1, 0.5, 0.9])
    if high > low:
        return (high - low) / GAUSSIAN_DECILES
    return median_of_others(np.abs(sketch.middles() - center), sketch.counts)


def median_of_others(distances: NDArray[np.float64], counts: NDArray[np.int64]) -> float:
    """Returns the median of the distances above zero, 0 where there is none."""
    order = np.argsort(distances)
    order = order[distances[order] > 0]
    ends = counts[order].cumsum()
    return float(distances[order][np.searchsorted(ends, ends[-1] / 2)]) if len(ends) else 0.0


@np.errstate(over="ignore", invalid="ignore")  # what is not finite here is refused by name, in columns.py
def warped_moments(sketch: QuantileSketch, center: float, width: float) -> tuple[float, float]:
    """Returns mean and standard deviation of asinh((x - center) / width), as the sketch knows x."""
    warped: NDArray[np.float64] = np.arcsinh((sketch.middles() - center) / width)
    mean = float(np.average(warped, weights=sketch.counts))
    return mean, usable(float(np.sqrt(np.average((warped - mean) ** 2, weights=sketch.counts))))


def log1p_moments(numbers: NDArray[np.float64], counts: NDArray[np.int64]) -> tuple[float, float]:
    """Returns mean and standard deviation of log(1 + k) of numbers k that come so many times each."""
    logs: NDArray[np.float64] = np.log1p(numbers)
    mean = float(np.average(logs, weights=counts))
    return mean, usable(float(np.sqrt(np.average((logs - mean) ** 2, weights=counts))))
