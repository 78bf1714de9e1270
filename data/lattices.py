"""Grids of any step and origin: what integers and decimals become when someone standardises them. Float64. Shapes: D different values."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from data.grids import MAX_OFF_SHARE, MAX_ROUNDING, MAX_STEPS, MIN_SPIKE_SHARE, SUM_ROUNDING, on_grid
from data.scales import median_of_others
from data.statistics import ColumnSummary

# How far from a grid the numbers on it may lie, in steps: by digits that were cut off, and the rounding of what was subtracted and divided.
# That 20 numbers on no grid lie so near to one has a chance of 10^-54.
TOLERANCE = 1e-3
# A grid is fitted to the values within these distances, one after the other.
DISTANCES = 0.1, 0.01, TOLERANCE
# Where values lie off a grid, one of so many of the most frequent is on it.
NUM_ANCHORS = 5
# Inverses and sums of smaller steps leave float64.
MIN_STEP = 1e-150

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]


class Lattice(NamedTuple):
    """Numbers origin + k step for all integers k. off: the share of a column's values that are none of them."""

    origin: float
    step: float
    off: float


def counted_values(summary: ColumnSummary) -> tuple[NDArray[Any], Counts]:
    """Returns a column's different numbers, ascending, and their counts: at least the frequent ones, where all are too many.

    Integers and ticks are integers.
    """
    if summary.repeated is not None:
        values, counts = summary.repeated.entries.values.to_numpy().view(np.float64), summary.repeated.entries.counts
    elif summary.counts is not None:
        values, counts = summary.counts.entries.values.to_numpy(), summary.counts.entries.counts
    else:
        return np.zeros(0), np.zeros(0, np.int64)
    order = np.argsort(values)
    return values[order], counts[order]


@np.errstate(over="ignore", invalid="ignore")  # distances beyond float64 are none of a grid
def lattice_of(values: Floats, counts: Counts, width: float, rounding: float) -> Lattice | None:
    """Returns the grid that values [D], ascending, which come so many times each, lie on; None where there is none.

    As of decimals its step is the largest that holds all values or, where that says nothing, all but MAX_OFF_SHARE of those other than the
    most frequent. It says nothing where one value alone, such as an average that was filled in, makes the step smaller: some fraction of a
    step is near to any value. width: the values' standard deviation, without the tails where these are heavy: it has at most MAX_STEPS
    steps. rounding: the relative one of the values' type, which has to tell neighbours of a typical magnitude apart.
    """
    magnitudes = np.abs(values)
    least = max(width / MAX_STEPS, median_of_others(magnitudes, counts) * rounding / MAX_ROUNDING, MIN_STEP)
    gaps = np.diff(values)
    gaps = np.sort(gaps[gaps > SUM_ROUNDING * rounding * magnitudes.max()])
    if not len(gaps) or not np.isfinite(gaps[-1]):
        return None
    usual = fitted(values, counts, usual_gap(gaps), least)
    if usual is None or len(values) - usual[1] != 1:
        exact = fitted(values, counts, common_divisor(gaps, least), least)
        if exact is not None and exact[1] == len(values):
            return exact[0]
    most_off = MAX_OFF_SHARE * float(counts.sum() - counts.max())
    return usual[0] if usual is not None and usual[0].off * counts.sum() <= most_off else None


def common_divisor(gaps: Floats, least: float) -> float:
    """Returns the largest number of which all gaps, ascending, are multiples but for noise: Euclid's; 0 where it is below `least`."""
    divisor = float(gaps[0])
    for gap in gaps.tolist():
        while divisor >= least and abs(rest := gap - round(gap / divisor) * divisor) > TOLERANCE * divisor:
            gap, divisor = divisor, abs(rest)
        if divisor < least:
            return 0.0
    return divisor


def usual_gap(gaps: Floats) -> float:
    """Returns the gap, of gaps ascending, that comes most often but for noise."""
    ends = np.searchsorted(gaps, gaps * (1 + TOLERANCE), "right")
    first = int(np.argmax(ends - np.arange(len(gaps))))
    return float(np.median(gaps[first : ends[first]]))


def fitted(values: Floats, counts: Counts, step: float, least: float) -> tuple[Lattice, int] | None:
    """Returns the grid of about such a step that holds most of the values, by least squares, and how many different ones it holds.

    None where the step is below `least`, or holds one value.
    """
    best: tuple[int, NDArray[np.bool_], float, float] | None = None
    for anchor in values[np.argsort(-counts, kind="stable")[:NUM_ANCHORS]].tolist() if step >= least else ():
        origin, width = anchor, step
        for farthest in DISTANCES:
            places = np.rint((values - origin) / width)
            near = np.abs((values - origin) / width - places) <= farthest
            x, y = places[near], values[near]
            if len(x) < 2 or x.min() == x.max():
                break
            width = float(((x - x.mean()) * (y - y.mean())).sum() / ((x - x.mean()) ** 2).sum())
            origin = float(y.mean() - width * x.mean())
        else:
            near = np.abs((values - origin) / width - places) <= TOLERANCE
            held = int(counts[near].sum())
            if best is None or held > best[0]:
                best = held, near, origin, width
    if best is None:
        return None
    held, near, origin, width = best
    return simplest(values[near], counts[near], origin, width, 1 - held / int(counts.sum())), int(near.sum())


def simplest(values: Floats, counts: Counts, origin: float, step: float, off: float) -> Lattice:
    """Returns the grid of values on one, counted from 0 if that is on it and else from the most frequent value; of a step n or 1/n where it
    is about that, as fractions come out exactly then."""
    num_steps = max(1.0, float(np.abs(values - origin).max()) / step)
    for nice in (1 / max(1, round(1 / step)), float(max(1, round(step)))):
        if abs(nice - step) * num_steps <= TOLERANCE * step:
            step = nice
            break
    from_zero = origin / step
    at_zero = abs(from_zero - round(from_zero)) <= TOLERANCE and abs(from_zero) * TOLERANCE < num_steps
    return Lattice(0.0 if at_zero else float(values[np.argmax(counts)]) + 0.0, step, off)


def is_coarser(lattice: Lattice, step: float, off: float) -> bool:
    """Returns whether all values are multiples of a step, n or 1/n, that is larger than the decimal one which holds all but a share."""
    return lattice.origin == lattice.off == off == 0 and lattice.step > 1.5 * step and is_exact(lattice.step)


def is_exact(step: float) -> bool:
    """Returns whether multiples of a step come out of on_grid as decimals are written."""
    return step == round(step) or step == 1 / max(1, round(1 / step))


def spike_on(step: float, origin: float, values: NDArray[Any], counts: Counts, total: int) -> list[float] | None:
    """Returns the most frequent of a column's values where it is on the grid and has a considerable share of all, and that share."""
    if not len(counts):
        return None
    most = int(np.argmax(counts))
    share, value = float(counts[most] / total), values[most].item()
    nearest = value if isinstance(value, int) else float(on_grid(values[most : most + 1], step, origin)[0])
    on = abs(nearest - value) <= 2 * TOLERANCE * step
    return [nearest, share] if on and share >= MIN_SPIKE_SHARE else None
