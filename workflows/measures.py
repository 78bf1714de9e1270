"""Measures of predictions and rankings, with their standard errors. Shapes: B rows, K classes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Values = NDArray[Any]
Measure = dict[str, float]
# Resamples of the rows: the standard error itself is then known to 5 %.
NUM_RESAMPLES = 200


def measure(value: float, standard_error: float) -> Measure:
    return {"value": float(value), "standard_error": float(standard_error)}


def bootstrap(statistic: Callable[[NDArray[np.int64]], float], strata: NDArray[np.int64]) -> Measure:
    """Returns a statistic of all rows and its bootstrap standard error (Efron 1979).

    statistic: of rows by their numbers. strata: [B]; each keeps its number of rows in every resample, so that no class is ever absent.
    The resamples are the same in every run.
    """
    random = np.random.default_rng(0)
    groups = [np.flatnonzero(strata == stratum) for stratum in np.unique(strata)]
    resampled = [statistic(np.concatenate([random.choice(group, len(group)) for group in groups])) for _ in range(NUM_RESAMPLES)]
    return measure(statistic(np.arange(len(strata))), float(np.std(resampled, ddof=1)))


def roc_auc(positive: NDArray[np.bool_], score: Values) -> float:
    """Returns the area under the ROC curve: how often a positive row has the higher score than another, ties counting half."""
    _, place, counts = np.unique(score, return_inverse=True, return_counts=True)
    rank = (counts.cumsum() - (counts - 1) / 2)[place]
    num_positive = int(positive.sum())
    num_negative = len(positive) - num_positive
    return float((rank[positive].sum() - num_positive * (num_positive + 1) / 2) / (num_positive * num_negative))


def roc_auc_measure(positive: NDArray[np.bool_], score: Values) -> Measure:
    """Returns the area under the ROC curve with its standard error (Hanley & McNeil 1982)."""
    area, num_positive = roc_auc(positive, score), int(positive.sum())
    num_negative = len(positive) - num_positive
    first, second = area / (2 - area), 2 * area**2 / (1 + area)
    variance = area * (1 - area) + (num_positive - 1) * (first - area**2) + (num_negative - 1) * (second - area**2)
    return measure(area, np.sqrt(max(variance, 0.0) / (num_positive * num_negative)))


def class_measures(label: Values, probability: Values) -> dict[str, Measure]:
    """Returns accuracy, balanced accuracy (the classes' mean) and ROC AUC (of more than two classes: the mean of each against the rest).

    label: [B], places among the classes, -1: none of these; probability: [B, K]. Standard errors are binomial, of the area bootstrap ones;
    there is no area where all rows have one label.
    """
    right = probability.argmax(1) == label
    present, strata, counts = np.unique(label, return_inverse=True, return_counts=True)
    shares = np.bincount(strata, right) / counts
    accuracy = right.mean()
    found = {
        "accuracy": measure(accuracy, np.sqrt(accuracy * (1 - accuracy) / len(label))),
        "balanced_accuracy": measure(shares.mean(), np.sqrt((shares * (1 - shares) / counts).sum()) / len(counts)),
    }
    if len(present) == 1:
        return found
    scored = [1] if probability.shape[1] == 2 and set(present.tolist()) == {0, 1} else [place for place in present if place >= 0]

    def area(index: NDArray[np.int64]) -> float:
        return float(np.mean([roc_auc(label[index] == place, probability[index, place]) for place in scored]))

    return found | {"roc_auc": bootstrap(area, strata)}


def number_measures(label: Values, predicted: Values) -> dict[str, Measure]:
    """Returns R^2, the share of the rows' variance that predictions explain, with its standard error.

    Resamples whose rows all have one label, as few rows or a rare value give, have nothing to explain: their R^2 is 0.
    """

    def r2(index: NDArray[np.int64]) -> float:
        truth = label[index]
        if np.ptp(truth) == 0:
            return 0.0
        return float(1 - np.square(truth - predicted[index]).sum() / np.square(truth - truth.mean()).sum())

    return {"r2": bootstrap(r2, np.zeros(len(label), np.int64))}
