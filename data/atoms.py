"""Atoms: values that so many of a column's floats are exactly equal to that each has a probability, and no density. Float64."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from data.grids import MIN_SPIKE_SHARE
from data.sketches import QuantileSketch
from data.statistics import ColumnSummary

# A float that comes so often is no coincidence, whatever the number of rows.
MIN_ATOM_VALUES = 10
# A column of so many different values at most has no density.
MAX_FEW = 20
# What is left of a sum of squares when the atoms' part is taken away, as a share: below it, it is rounding.
MIN_REST = 1e-12


def atoms_of(summary: ColumnSummary) -> list[list[float]]:
    """Returns the atoms of a column of floats, ascending, with their shares of the values.

    They are the values of at least MIN_SPIKE_SHARE, and all of a column that has few different ones. Zero and the ends are counted
    exactly, as the others' moments need it: -999 for what is not known is far from them.
    """
    moments, sketch = summary.moments, summary.sketch
    if summary.repeated is None or moments is None or sketch is None:
        return []
    entries = summary.repeated.entries
    counts = dict(zip(entries.values.to_numpy().view(np.float64).tolist(), entries.counts.tolist(), strict=True))
    has_few = len(counts) <= MAX_FEW and sum(counts.values()) == sketch.count
    counts[0.0] = int(sketch.counts[sketch.bins == 0].sum())
    counts |= dict(zip((float(moments.minimum[0]), float(moments.maximum[0])), summary.at_ends, strict=True))
    least = max(MIN_ATOM_VALUES, 0 if has_few else MIN_SPIKE_SHARE * sketch.count)
    return [[value, count / sketch.count] for value, count in sorted(counts.items()) if count >= least]


@np.errstate(over="ignore", invalid="ignore")  # squares beyond float64 are no better than rounding
def without_atoms(summary: ColumnSummary, atoms: Sequence[Sequence[float]]) -> ColumnSummary:
    """Returns the moments and the sketch of the other values; those of all where nothing is left, or nothing but rounding.

    Where the atoms are so far away that sums without them are rounding, the moments are as the sketch knows the others.
    """
    moments, sketch = summary.moments, summary.sketch
    assert moments is not None
    assert sketch is not None
    values, counts = np.array([value for value, _ in atoms]), np.rint(np.array([share for _, share in atoms]) * sketch.count)
    left = moments.count - counts.sum()
    if not left[0]:
        return summary
    mean = (moments.count * moments.mean - counts @ values) / left
    squares = moments.squares - counts @ (values - moments.mean) ** 2 - left * (mean - moments.mean) ** 2
    taken = sketch.counts.copy()
    for value, count in zip(values, counts, strict=True):
        taken[sketch.bins == QuantileSketch.of(np.array([value])).bins[0]] -= int(count)
    rest = QuantileSketch(sketch.bins[taken > 0], taken[taken > 0])
    if not squares[0] > MIN_REST * moments.squares[0]:
        mean = np.atleast_1d(np.average(rest.middles(), weights=rest.counts))
        squares = np.atleast_1d(rest.counts @ (rest.middles() - mean) ** 2)
        if not squares[0]:
            return summary
    return replace(summary, moments=replace(moments, count=left, mean=mean, squares=squares), sketch=rest)
