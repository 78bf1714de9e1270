"""Grids of decimals: the step 10^-k of which all of a column's numbers are multiples. Float64. Shapes: n values."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data.scales import RESOLUTION, median_of_others
from data.sketches import QuantileSketch

# Steps are looked for down to a millionth.
MAX_PLACES = 6
# More places than are looked for.
OFF_GRID = MAX_PLACES + 1
INVERSES = 10.0 ** np.arange(OFF_GRID)
# A value with at least this share of the rows is a spike among numbers.
MIN_SPIKE_SHARE = 0.05
# So few values refute nearly every column that is on no grid.
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
def decimal_places(values: NDArray[np.float64], rounding: float) -> int:
    """Returns the fewest decimal places, 0 to 6, that hold all values [n], or OFF_GRID; rounding: the relative one of their type.

    A value's places do not depend on the others, so those of all values are the largest of any grouping's (but for noise).
    """
    places = places_of_few(values[:: -(-len(values) // SAMPLE_VALUES)], rounding)
    if places == OFF_GRID:
        return OFF_GRID
    scratch = np.empty((2, min(BLOCK_VALUES, len(values))))
    for begin in range(0, len(values), BLOCK_VALUES):
        block = values[begin : begin + BLOCK_VALUES]
        while not multiples(block, INVERSES[places], rounding, scratch[:, : len(block)]):
            places += 1
            if places == OFF_GRID:
                return OFF_GRID
    return places


def places_of_few(values: NDArray[np.float64], rounding: float) -> int:
    """Returns the same as decimal_places of so few values that all steps are tried at once."""
    rest = values * INVERSES[:, None]
    nearest = np.rint(rest)
    held = (np.abs(rest - nearest) <= NOISE + rounding * np.abs(nearest)).all(1)
    return int(held.argmax()) if held.any() else OFF_GRID


def multiples(values: NDArray[np.float64], inverse: float, rounding: float, scratch: NDArray[np.float64]) -> bool:
    """Returns whether all values [n] are multiples of 1 / inverse up to relative rounding; scratch [2, n] is overwritten."""
    rest, nearest = scratch
    np.multiply(values, inverse, out=rest)
    np.rint(rest, out=nearest)
    rest -= nearest
    np.abs(rest, out=rest)
    if rounding < NOISE and rest.max() <= NOISE:  # of float64 nearly always, and with half the sums
        return True
    np.abs(nearest, out=nearest)
    nearest *= rounding
    rest -= nearest
    return bool(rest.max() <= NOISE)


def resolution(places: int, sketch: QuantileSketch, deviation: float, width: float | None, rounding: float) -> float | None:
    """Returns the step 10^-places of a column's values, None where it means nothing.

    deviation: their standard deviation; width: theirs without the tails, where these are heavy. It means something where
    - values differ by more than what counts as noise, and none lies between 0 and the step: small numbers are on no grid;
    - the type tells multiples of a typical magnitude apart: all large floats are multiples of 1;
    - values lie not so many steps apart that a mass is a density.
    """
    if places == OFF_GRID:
        return None
    step, magnitudes = 1 / 10.0**places, np.abs(sketch.middles())
    between = (magnitudes > SUM_ROUNDING * rounding * magnitudes.max()) & (magnitudes < 0.5 * step)
    told_apart = median_of_others(magnitudes, sketch.counts) * rounding <= MAX_ROUNDING * step
    near = MIN_STEPS * step <= deviation and (deviation if width is None else width) <= MAX_STEPS * step
    return step if told_apart and near and not between.any() else None


@np.errstate(over="ignore")  # what is beyond float64 ends at its type's limit
def on_grid(numbers: NDArray[np.float64], step: float) -> NDArray[np.float64]:
    """Returns the multiples of a step 10^-k that are nearest to numbers, as the float64 nearest to each decimal."""
    inverse = float(round(1 / step))
    return np.rint(numbers * inverse) / inverse + 0.0  # no negative zero


def spike_of(sketch: QuantileSketch, step: float) -> list[float] | None:
    """Returns the number on the grid that comes most often, and its share; None where that is small, or the sketch mixes it with others."""
    most = int(np.argmax(sketch.counts))
    middle, share = float(sketch.middles()[most]), float(sketch.counts[most]) / sketch.count
    if share < MIN_SPIKE_SHARE or share == 1.0 or abs(middle) * RESOLUTION > step:
        return None
    return [float(on_grid(np.array(middle), step)), share]
