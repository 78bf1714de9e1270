"""Grids of decimals: the step 10^-k of which a column's numbers are multiples, all or nearly all. Float64. Shapes: n values."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data.scales import median_of_others
from data.sketches import QuantileSketch

# Steps are looked for down to a millionth.
MAX_PLACES = 6
INVERSES = 10.0 ** np.arange(MAX_PLACES + 1)
# What may lie off a column's grid of the values other than its most frequent one.
MAX_OFF_SHARE = 0.1
# A value with at least this share of the rows is a spike among numbers.
MIN_SPIKE_SHARE = 0.05
# So few values tell nearly every column that is on no grid.
SAMPLE_VALUES = 64
# Values that are tested at once: float64 that a second-level cache holds twice.
BLOCK_VALUES = 1 << 15
# A share of a step that is noise, whatever the rounding of the value itself; a standard deviation of values on a grid is far beyond it.
NOISE = 1e-11
MIN_STEPS = 1e-6
# What sums of numbers leave in place of zero, in roundings of the largest.
SUM_ROUNDING = 16
# A multiple of the step is told from its neighbours where rounding is no more than this share of the step.
MAX_ROUNDING = 1 / 8
# Beyond so many steps in a standard deviation a mass is a density: under the least noise that likelihoods have (0.001 standard deviations)
# the two differ by about 1e-5 nats, and float32 cells tell neighbours apart up to 40 standard deviations from the mean, no farther.
MAX_STEPS = 1e5


def relative_rounding(kind: pa.DataType) -> float:
    """Returns the distance of 1 to the next number of a type, that of float64 for decimals."""
    return float(np.finfo(kind.to_pandas_dtype() if pa.types.is_floating(kind) else np.float64).eps)


@np.errstate(over="ignore", invalid="ignore")  # what leaves float64 when multiplied is on no finer grid
def off_grid_counts(values: NDArray[np.float64], rounding: float) -> tuple[int, ...]:
    """Returns how many of the values [n] are no multiple of 10^-p, for p = 0..6; rounding: the relative one of their type.

    Counts of any grouping add up to those of all (but for noise, and for groups that are evidently on no grid: they count whole).
    """
    scratch = np.empty((2, min(BLOCK_VALUES, len(values))))
    few = values[:: -(-len(values) // SAMPLE_VALUES)]
    if len(values) > SAMPLE_VALUES and 2 * num_off(few, INVERSES[-1], rounding, scratch[:, : len(few)]) > len(few):
        return (len(values),) * len(INVERSES)
    counts = [0] * len(INVERSES)
    for begin in range(0, len(values), BLOCK_VALUES):
        block = values[begin : begin + BLOCK_VALUES]
        for places, inverse in enumerate(INVERSES):
            off = num_off(block, inverse, rounding, scratch[:, : len(block)])
            counts[places] += off
            if off == 0:
                break
    return tuple(counts)


def num_off(values: NDArray[np.float64], inverse: float, rounding: float, scratch: NDArray[np.float64]) -> int:
    """Returns how many values [n] are no multiples of 1 / inverse up to relative rounding; scratch [2, n] is overwritten."""
    rest, nearest = scratch
    np.multiply(values, inverse, out=rest)
    np.rint(rest, out=nearest)
    rest -= nearest
    np.abs(rest, out=rest)
    if rounding < NOISE and rest.max() <= NOISE:  # of float64 nearly always, and with half the sums
        return 0
    np.abs(nearest, out=nearest)
    nearest *= rounding
    rest -= nearest
    return len(values) - int(np.count_nonzero(rest <= NOISE))


def resolution(
    off: Sequence[int], sketch: QuantileSketch, deviation: float, width: float | None, rounding: float
) -> tuple[float, float] | None:
    """Returns the step 10^-p of a column's values and the share of them that lies off that grid; None where there is no step.

    off: how many are no multiple of 10^-p, for p = 0..6. The step is the largest that holds all of them or, where that means nothing, the
    largest that holds all but MAX_OFF_SHARE of those other than the most frequent: the spikes of a column that was filled up by
    averages are lost in a density. deviation: the values' standard deviation; width: theirs without the tails, where these are heavy.
    A step means something where
    - values differ by more than what counts as noise, and no more lie between 0 and the step: small numbers are on no grid;
    - the type tells multiples of a typical magnitude apart: all large floats are multiples of 1;
    - values lie not so many steps apart that a mass is a density.
    """
    magnitudes = np.abs(sketch.middles())
    typical, noise = median_of_others(magnitudes, sketch.counts), SUM_ROUNDING * rounding * magnitudes.max()
    for most_off in (0, int(MAX_OFF_SHARE * (sketch.count - int(sketch.counts.max())))):
        places = next((p for p, count in enumerate(off) if count <= most_off), None)
        if places is None:
            continue
        step = 1 / 10.0**places
        between = sketch.counts[(magnitudes > noise) & (magnitudes < 0.5 * step)].sum()
        told_apart = typical * rounding <= MAX_ROUNDING * step
        near = MIN_STEPS * step <= deviation and (deviation if width is None else width) <= MAX_STEPS * step
        if told_apart and near and between <= most_off:
            return step, off[places] / sketch.count
    return None


@np.errstate(over="ignore")  # what is beyond float64 ends at its type's limit
def on_grid(numbers: NDArray[np.float64], step: float, origin: float = 0.0) -> NDArray[np.float64]:
    """Returns the numbers of a grid that are nearest to numbers: multiples of a step, counted from an origin on the grid.

    Of steps 1/n from 0, as decimals have, they are the float64 nearest to each fraction.
    """
    inverse = float(round(1 / step))
    if inverse and step == 1 / inverse:
        return np.rint((numbers - origin) * inverse) / inverse + (origin + 0.0)  # no negative zero
    return np.rint((numbers - origin) / step) * step + (origin + 0.0)
