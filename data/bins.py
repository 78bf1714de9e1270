"""How values are summed so that two samples can be compared: bins of numbers, bins of codes, means of random Fourier features.

The sums are whole numbers, so they are the same in whatever batches and order rows come. A bin of numbers holds several of the
reference's rows or none; one of codes is expected to hold several.
Shapes: B values, K bins, D elements of a list, F frequencies.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from data.fixed_noise import standard_normal
from data.two_sample import MIN_EXPECTED, Comparison, compare_codes, compare_means, compare_ordered_counts

Sums = NDArray[np.int64]

# Rows of the reference that a bin has at least, where it has any: what is stored says nothing of fewer.
MIN_BIN_ROWS = 5
# Of the reference, at which numbers are cut: even bins in the middle, small ones in the tails.
LEVELS = (0.01, 0.05, *(level / 20 for level in range(3, 18, 2)), 0.95, 0.99)
# Frequencies for each of three length scales, of which features are cosine and sine.
NUM_FREQUENCIES = 16
LENGTH_SCALES = (0.5, 1.0, 2.0)
# Features are added in steps of this: what is lost is far below the noise of a mean of 10^9 rows.
RESOLUTION = 2.0**-24
# Eigenvalues below this share of the largest are rounding.
LEAST_EIGENVALUE = 1e-9
# Of values in float64 at once, or of their features.
BLOCK_CELLS = 2**19


@dataclass(frozen=True)
class NumberBins:
    """Intervals of the line. edges: ascending; bin i holds edges[i-1] < x <= edges[i]; the first and the last have no end."""

    edges: list[float]
    kind: ClassVar[str] = "numbers"

    @staticmethod
    def of(values: NDArray[Any]) -> NumberBins:
        """Returns bins that end at quantiles of the reference's values [B]; a value that is two of them has a bin of its own."""
        ordered = np.sort(values[np.isfinite(values)].astype(np.float64))
        if not len(ordered):
            return NumberBins([])
        at, times = np.unique(np.quantile(ordered, LEVELS, method="inverted_cdf"), return_counts=True)
        edges: list[float] = []
        reached = 0
        for edge in np.unique([*np.nextafter(at[times > 1], -np.inf), *at]).tolist():
            below = int(np.searchsorted(ordered, edge, "right"))
            above = len(ordered) - below
            if (below - reached >= MIN_BIN_ROWS or below == 0) and (above >= MIN_BIN_ROWS or above == 0):
                edges.append(edge)
                reached = below
        return NumberBins(edges)

    def sums(self, values: NDArray[Any]) -> Sums:
        """Returns the counts of values [B], [K]."""
        return np.bincount(np.searchsorted(self.edges, values.astype(np.float64)), minlength=len(self.edges) + 1)

    def compare(self, reference: Sums, new: Sums, rows: tuple[int, int]) -> Comparison | None:
        return compare_ordered_counts(reference, new)


@dataclass(frozen=True)
class CodeBins:
    """Categories. bins: code -> its bin; the last bin is of rare codes, of codes beyond those, and of values without a code."""

    bins: list[int]
    kind: ClassVar[str] = "codes"

    @staticmethod
    def of(codes: NDArray[Any], shares: Sequence[float]) -> CodeBins:
        """Returns bins for the reference's codes [B], -1 for a value without one.

        shares: each code's share of the training rows, which decides who is rare. The reference's own counts must not: those of the codes
        that they made rare would be too low.
        """
        kept = np.array(shares) * len(codes) >= MIN_EXPECTED[0]
        bins = np.where(kept, np.cumsum(kept) - 1, kept.sum())
        return CodeBins([*bins.tolist(), int(kept.sum())])

    def sums(self, codes: NDArray[Any]) -> Sums:
        """Returns the counts of codes [B], [K]."""
        last = len(self.bins) - 1
        places = np.where((codes < 0) | (codes > last), last, codes)
        return np.bincount(np.asarray(self.bins)[places], minlength=self.bins[-1] + 1)

    def compare(self, reference: Sums, new: Sums, rows: tuple[int, int]) -> Comparison | None:
        return compare_codes(reference, new)


@dataclass(frozen=True)
class FourierFeatures:
    """Cosines and sines of random projections, whose means differ wherever two distributions do (Rahimi and Recht 2007).

    The squared distance of the means, over the frequencies, estimates the squared maximum mean discrepancy (MMD) of a mixture of three
    Gaussian kernels (Gretton et al. 2012). length_scale: of the middle one. eigenvalues: of the features' covariance in the reference.
    """

    size: int
    length_scale: float
    eigenvalues: list[float]
    kind: ClassVar[str] = "features"

    @staticmethod
    def of(values: NDArray[Any]) -> FourierFeatures:
        """Returns features for the reference's values [B, D], as far apart as the root of their mean squared distance."""
        features = FourierFeatures(values.shape[1], 1.0, [])
        if len(values) < 2:
            return features
        center = values.mean(0, dtype=np.float64)
        squares = sum(float(np.square(block - center).sum()) for block in in_blocks(values))
        features = replace(features, length_scale=math.sqrt(2 * squares / len(values)) or 1.0)
        first, second = np.zeros(2 * num_frequencies()), np.zeros((2 * num_frequencies(),) * 2)
        for block in features.blocks(values):
            first += block.sum(0)
            second += block.T @ block
        mean = first / len(values)
        found = np.linalg.eigvalsh((second - len(values) * np.outer(mean, mean)) / (len(values) - 1))[::-1]
        return replace(features, eigenvalues=found[found > LEAST_EIGENVALUE * max(LEAST_EIGENVALUE, found[0])].tolist())

    def blocks(self, values: NDArray[Any]) -> Iterator[NDArray[np.float64]]:
        """Yields the features of values [B, D], some rows at a time, [b, 2 F]."""
        directions = frequencies(self.size) / self.length_scale
        for block in in_blocks(values):
            angles = block @ directions
            yield np.concatenate([np.cos(angles), np.sin(angles)], 1)

    def sums(self, values: NDArray[Any]) -> Sums:
        """Returns the sums of the features of values [B, D] in steps of RESOLUTION, [2 F]."""
        total = np.zeros(2 * num_frequencies(), np.int64)
        for block in self.blocks(values):
            total += np.rint(block / RESOLUTION).astype(np.int64).sum(0)
        return total

    def compare(self, reference: Sums, new: Sums, rows: tuple[int, int]) -> Comparison | None:
        """Returns the test of MMD = 0; effect: the MMD, less what chance alone makes of it."""
        if not min(rows):
            return None
        difference = (reference / rows[0] - new / rows[1]) * RESOLUTION / math.sqrt(num_frequencies())
        return compare_means(difference, np.array(self.eigenvalues) / num_frequencies(), rows)


def in_blocks(values: NDArray[Any]) -> Iterator[NDArray[np.float64]]:
    """Yields values [B, D] in float64, some rows at a time, as all of them might be too large."""
    rows = max(1, BLOCK_CELLS // max(values.shape[1], 2 * num_frequencies()))
    for begin in range(0, len(values), rows):
        yield values[begin : begin + rows].astype(np.float64)


def num_frequencies() -> int:
    return NUM_FREQUENCIES * len(LENGTH_SCALES)


@cache
def frequencies(size: int) -> NDArray[np.float64]:
    """Returns the projections for a length scale of 1, [D, F]."""
    directions = standard_normal(size * num_frequencies(), size).reshape(size, -1)
    directions /= np.repeat(LENGTH_SCALES, NUM_FREQUENCIES)
    return directions


Cut = NumberBins | CodeBins | FourierFeatures
CUTS: dict[str, type[NumberBins] | type[CodeBins] | type[FourierFeatures]] = {
    cut.kind: cut for cut in (NumberBins, CodeBins, FourierFeatures)
}


def cut_of(values: NDArray[Any], shares: Sequence[float] | None = None) -> Cut:
    """Returns how values are summed: lists [B, D] by features; numbers [B], and codes [B] of which shares are given, in bins."""
    if shares is not None:
        return CodeBins.of(values, shares)
    return FourierFeatures.of(values) if values.ndim == 2 else NumberBins.of(values)
