"""Heaps: numbers on a grid many of which somebody rounded to multiples of a coarser step. Shapes: D different values."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

Counts = NDArray[np.int64]

# How many steps of the grid a coarser one may be: round numbers, and beside them what clocks count by.
ROUND = {n * 10**power // 10 for power in range(7) for n in (20, 25, 50, 100)}
CLOCKS = {3, 6, 7, 12, 15, 24, 30, 60, 300, 600, 900, 1440, 1800, 3600, 7200, 21_600, 43_200, 86_400}
STRIDES = np.array(sorted(ROUND | CLOCKS))
# Nats that a value has to gain by its rounding, and all values together. How many multiples the rounded ones have to be spread over, as if
# evenly: of a column with some frequent values, a few are multiples of something by chance.
MIN_GAIN, MIN_EVIDENCE, MIN_MULTIPLES = 0.2, 30.0, 6.0
# Whole numbers below are exact in float64.
MAX_PLACE = 2.0**53


def heap_of(step: float, origin: float, values: NDArray[Any], counts: Counts, total: int, width: float) -> list[float] | None:
    """Returns the coarser step that most of a column's numbers are on, one of its multiples, and their share; None where there is none.

    step, origin: the grid; values, counts [D]: at least the frequent numbers and how often they come; total: how many there are; width:
    their standard deviation, without the tails where these are heavy, which has to span the coarser step. Of several, it is the one
    by which a value gains the most: the Kullback-Leibler divergence of the share s from 1 / c, which any c neighbours would have.
    The most frequent value is not counted (what is one value may be a spike), and what is not among `values` counts as on no coarser step.
    """
    if len(counts) <= MIN_MULTIPLES:
        return None
    places = places_of(values, step, origin)
    others = counts.astype(np.float64)
    others[np.argmax(counts)] = 0.0
    num_others = float(total - counts.max())
    best, found = max(MIN_GAIN, MIN_EVIDENCE / num_others), None
    for stride in STRIDES[STRIDES * step <= width].tolist():
        rest = places % stride
        sums = np.bincount(rest, weights=others)
        residue = int(np.argmax(sums))
        share, gain = float(sums[residue]) / num_others, divergence(sums[residue] / num_others, 1 / stride)
        if gain > best and sums[residue] ** 2 >= MIN_MULTIPLES * np.square(others[rest == residue]).sum():  # inverse Simpson index
            best, found = gain, (stride, residue, share)
    if found is None:
        return None
    stride, residue, share = found
    return [stride * step, origin + residue * step, (share - 1 / stride) / (1 - 1 / stride)]


def places_of(values: NDArray[Any], step: float, origin: float) -> Counts:
    """Returns which numbers of the grid the values are, counted from its origin; whole numbers exactly."""
    if values.dtype.kind in "iu":
        places = (values - values.dtype.type(origin)) // values.dtype.type(step)
    else:
        places = np.rint((values - origin) / step).clip(-MAX_PLACE, MAX_PLACE)
    return np.asarray(places, np.int64)


def divergence(p: float, q: float) -> float:
    """Returns the divergence of one Bernoulli distribution from another, in nats; q is neither 0 nor 1. Negative where p is below q."""
    first = p * math.log(p / q) if p > 0 else 0.0
    second = (1 - p) * math.log((1 - p) / (1 - q)) if p < 1 else 0.0
    return first + second if p > q else -(first + second)
