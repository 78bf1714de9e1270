"""How strongly columns depend on each other, pair by pair, and where two tables differ in it.

Numbers: Spearman's rank correlation, -1 to 1. Codes: Cramer's V with Bergsma's bias correction (2013), 0 to 1. A number and a code: the
correlation ratio of the number's ranks with Kelley's correction (1935), 0 to 1. Each over the rows that have both cells.
Shapes: B rows, C cells, N numbers and K codes among them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from workflows.cells import Cells

Matrix = NDArray[np.float64]
SPEARMAN, CRAMER, RATIO = "Spearman's rank correlation", "Cramer's V", "correlation ratio of ranks"
# Pairs that are named, those that differ most.
MAX_PAIRS = 10
# A difference of so many standard errors is not chance, though there be thousands of pairs.
NOTABLE_ERRORS = 4.0


def compare_dependence(real: Cells, synthetic: Cells) -> dict[str, Any]:
    """Returns how two tables' associations differ, plain JSON.

    A pair that has no association in one table, a column being constant there, has 0. "noise": the standard error of a difference of two
    associations that are both 0. Rows of the two should be about as many.
    """
    first, second = associations(real), associations(synthetic)
    defined = ~(np.isnan(first) & np.isnan(second))
    a, b = np.nan_to_num(first), np.nan_to_num(second)
    of = np.array(real.columns)
    pairs = [(i, j) for i, j in zip(*np.triu_indices(len(of), 1), strict=True) if defined[i, j] and of[i] != of[j]]
    differences = np.array([abs(a[pair] - b[pair]) for pair in pairs])
    noise = float(np.sqrt(1 / len(real.values) + 1 / len(synthetic.values)))
    order = np.argsort(-differences, kind="stable")[:MAX_PAIRS]
    return {
        "measures": [SPEARMAN, CRAMER, RATIO],
        "num_pairs": len(pairs),
        "noise": noise,
        "num_notable_pairs": int((differences > NOTABLE_ERRORS * noise).sum()),
        "mean_absolute_difference": float(differences.mean()) if pairs else None,
        "largest": [
            {
                "columns": [real.names[i], real.names[j]],
                "measure": measure_of(bool(real.is_code[i]), bool(real.is_code[j])),
                "real": float(a[i, j]),
                "synthetic": float(b[i, j]),
            }
            for i, j in (pairs[place] for place in order)
        ],
    }


def measure_of(first_is_code: bool, second_is_code: bool) -> str:
    return CRAMER if first_is_code and second_is_code else RATIO if first_is_code or second_is_code else SPEARMAN


def associations(cells: Cells) -> Matrix:
    """Returns the association of every pair of cells, [C, C], symmetric; NaN where one is constant among the rows that have both."""
    numbers, codes = np.flatnonzero(~cells.is_code), np.flatnonzero(cells.is_code)
    ranks = np.stack([average_ranks(cells.values[:, i]) for i in numbers], 1) if len(numbers) else np.zeros((len(cells.values), 0))
    result = np.full((len(cells.names), len(cells.names)), np.nan)
    result[np.ix_(numbers, numbers)] = correlations(ranks)
    for place, i in enumerate(codes):
        for j in codes[place + 1 :]:
            result[i, j] = result[j, i] = cramers_v(cells.values[:, i], cells.values[:, j])
        for column, j in enumerate(numbers):
            result[i, j] = result[j, i] = correlation_ratio(cells.values[:, i], ranks[:, column])
    return result


def average_ranks(values: Matrix) -> Matrix:
    """Returns ranks from 0 to 1 of the values that are there, ties sharing theirs, NaN elsewhere, [B]."""
    result, there = np.full(len(values), np.nan), ~np.isnan(values)
    _, place, counts = np.unique(values[there], return_inverse=True, return_counts=True)
    result[there] = ((counts.cumsum() - (counts + 1) / 2) / max(1, there.sum() - 1))[place] if len(counts) else 0
    return result


def correlations(x: Matrix) -> Matrix:
    """Returns the correlations of columns [B, N], each pair over the rows that have both, [N, N]."""
    there = (~np.isnan(x)).astype(np.float64)
    x = np.nan_to_num(x - 0.5)
    count, total, squares = there.T @ there, x.T @ there, (x * x).T @ there
    with np.errstate(invalid="ignore", divide="ignore"):
        covariance = x.T @ x / count - total * total.T / count**2
        variance = squares / count - (total / count) ** 2
        result: Matrix = covariance / np.sqrt(variance * variance.T)
    result[(variance < 1e-12) | (variance.T < 1e-12)] = np.nan
    return np.clip(result, -1, 1)


def cramers_v(first: Matrix, second: Matrix) -> float:
    """Returns Cramer's V of two columns of codes, corrected for what chance adds to it; NaN where one is constant."""
    (a, b), (num_a, num_b) = joint_codes(first, second)
    if min(num_a, num_b) < 2:
        return float("nan")
    count = len(a)
    table = np.bincount(a * num_b + b, minlength=num_a * num_b).reshape(num_a, num_b) / count
    expected = table.sum(1, keepdims=True) * table.sum(0)
    chance = (num_a - 1) * (num_b - 1) / (count - 1)
    squared = max(0.0, float(((table - expected) ** 2 / expected).sum()) - chance)
    least = min(size - (size - 1) ** 2 / (count - 1) for size in (num_a, num_b)) - 1
    return float(min(1.0, np.sqrt(squared / least))) if least > 0 else float("nan")


def joint_codes(first: Matrix, second: Matrix) -> tuple[tuple[NDArray[np.int64], NDArray[np.int64]], tuple[int, int]]:
    """Returns two columns of codes where both are there, numbered without gaps, and how many codes each has."""
    both = ~(np.isnan(first) | np.isnan(second))
    (names_a, a), (names_b, b) = (np.unique(column[both], return_inverse=True) for column in (first, second))
    return (a, b), (len(names_a), len(names_b))


def correlation_ratio(codes: Matrix, numbers: Matrix) -> float:
    """Returns the square root of the share of the numbers' variance that lies between codes, corrected for chance; NaN if undefined."""
    both = ~(np.isnan(codes) | np.isnan(numbers))
    names, group = np.unique(codes[both], return_inverse=True)
    x = numbers[both]
    if len(names) < 2 or len(x) <= len(names) or np.ptp(x) == 0:
        return float("nan")
    counts, sums = np.bincount(group), np.bincount(group, x)
    within = 1 - ((sums**2 / counts).sum() - x.sum() ** 2 / len(x)) / np.square(x - x.mean()).sum()
    return float(np.sqrt(max(0.0, 1 - within * (len(x) - 1) / (len(x) - len(names)))))
