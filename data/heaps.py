"""Heaps: numbers on a grid many of which somebody rounded to multiples of a coarser step. Shapes: D different values."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.column import Column
from data.types import counted_from

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
# Tables of so many residues fit a second-level cache; of more it is faster to sort those that there are.
MAX_TABLE = 1 << 17
# Storing moves a number by half the distance of float32 numbers near 1, relatively, and that has to be less than this share of a step for
# the model to see whether it is a multiple: vae/heaps.py.
STORED, TOLD = 2.0**-24, 0.4


def heap_of(column: Column, values: NDArray[Any], counts: Counts, total: int) -> list[float] | None:
    """Returns the coarser step that most of a column's numbers are on, one of its multiples, and their share; None where there is none.

    values, counts [D]: at least the frequent numbers and how often they come; total: how many there are. Their standard deviation, without
    the tails where these are heavy, has to span the coarser step. Of several, it is the one by which a value gains the most: the
    Kullback-Leibler divergence of the share s from 1 / c, which any c neighbours would have. The most frequent value is not counted (what
    is one value may be a spike); what is not among `values`, or not told from its neighbours when it is stored, gains nothing.
    """
    if len(counts) <= MIN_MULTIPLES:
        return None
    assert column.resolution is not None
    step, origin, told = column.resolution, column.origin, told_apart(column, values)
    places = places_of(values, step, origin)
    others = counts.astype(np.float64)
    others[np.argmax(counts)] = 0.0
    num_others = float(total - counts.max())
    num_told = num_others - float(others[~told].sum())
    others[~told] = 0.0
    best, found = max(MIN_GAIN, MIN_EVIDENCE / num_others), None
    for stride in STRIDES[STRIDES * step <= (column.width or column.scale)].tolist():
        residue, weights = largest_class(places % stride, others, stride)
        gain = divergence(weights.sum() / num_others, 1 / stride)
        if gain > best and weights.sum() ** 2 >= MIN_MULTIPLES * np.square(weights).sum():  # inverse Simpson index
            best, found = gain, (stride, residue, float(weights.sum()) / num_told)
    if found is None:
        return None
    stride, residue, share = found
    return [stride * step, origin + residue * step, (share - 1 / stride) / (1 - 1 / stride)]


def largest_class(residues: Counts, weights: NDArray[np.float64], stride: int) -> tuple[int, NDArray[np.float64]]:
    """Returns the residue, of residues [D] of a stride, whose values weigh the most, and these weights."""
    if stride <= MAX_TABLE:
        residue = int(np.argmax(np.bincount(residues, weights=weights)))
    else:
        classes, place = np.unique(residues, return_inverse=True)
        residue = int(classes[np.argmax(np.bincount(place, weights=weights))])
    return residue, weights[residues == residue]


@np.errstate(over="ignore")  # what is beyond float64 is told from nothing
def told_apart(column: Column, values: NDArray[Any]) -> NDArray[np.bool_]:
    """Returns which numbers [D] a column's float32 cells tell from their neighbours on its grid."""
    assert column.resolution is not None
    numbers = counted_from(column.base, values) if column.base else values.astype(np.float64)
    if column.width is None:
        moved = np.abs(numbers - column.mean[0])
    else:
        numbers -= column.center
        moved = np.abs(np.arcsinh(numbers / column.width) - column.mean[0]) * np.hypot(numbers, column.width)
    told: NDArray[np.bool_] = STORED * moved < TOLD * column.resolution
    return told


def places_of(values: NDArray[Any], step: float, origin: float) -> Counts:
    """Returns which numbers of the grid the values are, counted from its origin; whole numbers exactly, whose origin is below the step."""
    if values.dtype.kind in "iu":
        places = values // values.dtype.type(step)
    else:
        places = np.rint((values - origin) / step).clip(-MAX_PLACE, MAX_PLACE)
    return np.asarray(places, np.int64)


def divergence(p: float, q: float) -> float:
    """Returns the divergence of one Bernoulli distribution from another, in nats; q is neither 0 nor 1. Negative where p is below q."""
    first = p * math.log(p / q) if p > 0 else 0.0
    second = (1 - p) * math.log((1 - p) / (1 - q)) if p < 1 else 0.0
    return first + second if p > q else -(first + second)
