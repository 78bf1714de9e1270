"""Whether two samples have one distribution: p-values from counts and from means of features, and an effect size for each.

All take rows as independent draws. A comparison is None where the samples together leave nothing to compare, such as one bin.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special, stats

# Rows that a bin should have in each sample for the chi-squared distribution to hold (Cochran 1954); of the reference twice as many as
# bins.MIN_BIN_ROWS, so that it hardly matters which of its bins chance put above that.
MIN_EXPECTED = (10.0, 5.0)
# Nearer to the mean than this, in standard deviations, the saddlepoint formula divides 0 by 0 and its limit is taken.
NEAR_MEAN = 1e-3
# What p-values are cut to before they are combined.
LARGEST_COMBINED = 0.9


class Comparison(NamedTuple):
    """p_value: the chance of as much difference or more in samples of one distribution; effect: how much it is, 0 to about 1."""

    p_value: float
    effect: float


def compare_counts(reference: NDArray[np.int64], new: NDArray[np.int64]) -> Comparison | None:
    """Returns Pearson's chi-squared test of homogeneity of the counts in K bins, [K] each; effect: total-variation distance of the shares.

    Bins in which too few rows are to be expected are taken together; which they are depends on the sums of both samples alone.
    """
    totals = np.array([reference.sum(), new.sum()], np.float64)
    if not totals.all():
        return None
    effect = 0.5 * float(np.abs(reference / totals[0] - new / totals[1]).sum())
    counts = without_rare(np.stack([reference, new]))
    if counts.shape[1] < 2:
        return None
    expected = totals[:, None] * counts.sum(0) / totals.sum()
    statistic = float(((counts - expected) ** 2 / expected).sum())
    return Comparison(float(stats.chi2.sf(statistic, counts.shape[1] - 1)), effect)


def compare_ordered_counts(reference: NDArray[np.int64], new: NDArray[np.int64]) -> Comparison | None:
    """Returns a test of homogeneity of the counts in K bins that follow each other on a line, [K] each.

    The chi-squared test, which sees a change in any bin, and Anderson and Darling's, which sees small shifts of many, combined. effect: as
    of compare_counts.
    """
    any_bin, shift = compare_counts(reference, new), anderson_darling(reference, new)
    if any_bin is None or shift is None:
        return any_bin
    return any_bin._replace(p_value=combined(any_bin.p_value, shift))


def compare_codes(reference: NDArray[np.int64], new: NDArray[np.int64]) -> Comparison | None:
    """Returns a test of homogeneity of the counts in K bins, [K] each, the last of which holds what is rare or was never there.

    The chi-squared test, and one of the last bin's rate, which need not wait for many rows in it, combined.
    """
    any_bin = compare_counts(reference, new)
    rest = compare_rates(int(reference[-1]), int(reference.sum()), int(new[-1]), int(new.sum()))
    if any_bin is None or rest is None:
        return any_bin or rest
    return any_bin._replace(p_value=combined(any_bin.p_value, rest.p_value))


def combined(*p_values: float) -> float:
    """Returns one p-value of several tests of the same samples: the Cauchy combination (Liu and Xie 2020, J. Am. Stat. Assoc. 115).

    Small ones hardly depend on how the tests do. Values near 1 are cut, as one of them would outweigh all others.
    """
    if min(p_values) <= 0:
        return 0.0
    mean = sum(1 / math.tan(math.pi * min(p, LARGEST_COMBINED)) for p in p_values) / len(p_values)
    return math.atan2(1.0, mean) / math.pi


def anderson_darling(reference: NDArray[np.int64], new: NDArray[np.int64]) -> float | None:
    """Returns the p-value of the two-sample test of Anderson and Darling (Pettitt 1976) on counts in ordered bins, [K] each.

    The statistic is a weighted sum of squared differences of the two distribution functions at the bins' ends. These are jointly normal
    under the null, with the covariance of a Brownian bridge, so it is a weighted sum of chi-squared variables.
    """
    totals = np.array([reference.sum(), new.sum()], np.float64)
    below = (reference + new).cumsum()[:-1] / totals.sum()
    ends = np.flatnonzero(np.minimum(below, 1 - below) * totals.min() >= min(MIN_EXPECTED))
    ends = ends[np.unique(below[ends], return_index=True)[1]]
    if not len(ends):
        return None
    h = below[ends]
    difference = reference.cumsum()[ends] / totals[0] - new.cumsum()[ends] / totals[1]
    mass = np.diff(np.concatenate([[0.0], h, [1.0]]))
    roots = np.sqrt(0.5 * (mass[:-1] + mass[1:]) / (h * (1 - h)))
    bridge = np.minimum.outer(h, h) - np.outer(h, h)
    weights = np.linalg.eigvalsh(roots[:, None] * bridge * roots) * (1 / totals).sum()
    return weighted_chi_squared_tail(float(((roots * difference) ** 2).sum()), weights)


def without_rare(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Returns counts [2, K'] in which the rarest bins of [2, K] are one, with as many of them as it takes to make it large enough."""
    together, totals = counts.sum(0), counts.sum(1)
    counts, together = counts[:, together > 0], together[together > 0]
    needed = (np.array(MIN_EXPECTED) * totals.sum() / totals).max()
    order = np.argsort(together, kind="stable")
    below = np.cumsum(together[order])
    num_rare = int((together < needed).sum())
    if num_rare:
        num_rare = max(num_rare, int(np.searchsorted(below, needed)) + 1)
    rare, others = order[:num_rare], order[num_rare:]
    return np.concatenate([counts[:, others], counts[:, rare].sum(1, keepdims=True)], 1) if num_rare else counts


def compare_rates(num_reference: int, reference_rows: int, num_new: int, new_rows: int) -> Comparison | None:
    """Returns a test of two proportions: chi-squared, or Fisher's exact one where few rows are to be expected; effect: their difference."""
    counts = np.array([[num_reference, reference_rows - num_reference], [num_new, new_rows - num_new]])
    if not counts.sum(0).all() or not counts.sum(1).all():
        return None
    effect = abs(num_reference / reference_rows - num_new / new_rows)
    expected = np.outer(counts.sum(1), counts.sum(0)) / counts.sum()
    if expected.min() < min(MIN_EXPECTED):
        return Comparison(float(stats.fisher_exact(counts).pvalue), effect)
    return Comparison(float(stats.chi2.sf(((counts - expected) ** 2 / expected).sum(), 1)), effect)


def compare_means(difference: NDArray[np.float64], eigenvalues: NDArray[np.float64], rows: tuple[int, int]) -> Comparison | None:
    """Returns a test of |difference|^2, difference [F] being that of the means of F features of both samples.

    eigenvalues: of the features' covariance. The mean of n rows is normal with 1/n of it, so the square is a weighted sum of chi-squared
    variables under the null. effect: the square root of what the square has beyond its expectation there.
    """
    weights = eigenvalues[eigenvalues > 0] * sum(1 / n for n in rows if n) if min(rows) else np.zeros(0)
    if not len(weights):
        return None
    square = float(difference @ difference)
    return Comparison(weighted_chi_squared_tail(square, weights), math.sqrt(max(0.0, square - float(weights.sum()))))


def weighted_chi_squared_tail(x: float, weights: NDArray[np.float64]) -> float:
    """Returns P(sum_i weights_i X_i > x) for independent chi-squared X_i of 1 degree of freedom and positive weights [F].

    By the saddlepoint of Lugannani and Rice, whose relative error stays small far out in the tail (Kuonen 1999, Biometrika 86).
    """
    if x <= 0:
        return 1.0
    largest = float(weights.max())
    weights, x = weights / largest, x / largest

    def slope(s: float) -> float:
        return float((weights / (1 - 2 * weights * s)).sum()) - x

    # The slope of the cumulant generating function rises from 0 at -infinity to infinity at 1/2.
    lower, upper = -len(weights) / (2 * x) - 1.0, 0.5 - 0.25 / max(1.0, x)
    s = float(optimize.brentq(slope, lower, upper, xtol=1e-14, rtol=1e-14))
    ratio = weights / (1 - 2 * weights * s)
    curvature = 2 * float((ratio**2).sum())
    cumulant = -0.5 * float(np.log1p(-2 * weights * s).sum())
    w = math.copysign(math.sqrt(max(0.0, 2 * (s * x - cumulant))), s)
    if abs(w) < NEAR_MEAN:
        skewness = 8 * float((ratio**3).sum()) / curvature**1.5
        return float(special.ndtr(-skewness / 6))
    return float(special.ndtr(-(w + math.log(s * math.sqrt(curvature) / w) / w)))


def false_discovery_adjusted(p_values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns Benjamini and Hochberg's adjusted p-values: taking those up to alpha, at most a share alpha of them is false on average.

    Where nothing changed any discovery is false, so that alpha is also the chance of an alarm: exactly so for independent tests, and at
    most so under positive dependence (Benjamini and Yekutieli 2001, theorem 1.2). That columns, latent means and ELBO of the same rows are
    not otherwise dependent is not proved but measured: benchmarks/drift.py. Benjamini and Yekutieli's own procedure holds for any
    dependence and divides alpha by about log(number of tests): a third of the alarms that were asked for.
    """
    return np.asarray(stats.false_discovery_control(p_values, method="bh"), np.float64)
