"""What classifiers learn from generated rows: to tell them from real ones, and to predict a label of real ones.

Gradient-boosted trees on histograms (scikit-learn), which take nulls and categories as they are. Shapes: B rows, C cells, K classes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.model_selection import StratifiedKFold

from data.column import Column
from workflows.cells import Cells
from workflows.measures import Measure, class_measures, measure, number_measures, roc_auc_measure

NUM_FOLDS = 5


class ComparisonError(ValueError):
    """The tables cannot be compared as asked; the message says why and what is needed."""


class UseError(ComparisonError):
    """A label cannot be predicted; without it the tables can be compared."""


def two_sample_test(real: Cells, synthetic: Cells, seed: int) -> Measure:
    """Returns the area under the ROC curve of a classifier that tells generated rows from real ones (Lopez-Paz & Oquab 2017).

    As many rows of both. The mean over NUM_FOLDS folds, each judged by a classifier trained on the others; 0.5: it cannot tell.
    """
    size = min(len(real.values), len(synthetic.values))
    values = np.concatenate([real.values[:size], synthetic.values[:size]])
    is_synthetic = np.arange(2 * size) >= size
    areas = []
    for train, test in StratifiedKFold(NUM_FOLDS, shuffle=True, random_state=seed).split(values, is_synthetic):
        model = HistGradientBoostingClassifier(categorical_features=real.is_code, early_stopping=False, random_state=seed)
        score = model.fit(values[train], is_synthetic[train]).predict_proba(values[test])[:, 1]
        areas.append(roc_auc_measure(is_synthetic[test], score))
    error = np.sqrt(sum(area["standard_error"] ** 2 for area in areas)) / NUM_FOLDS
    return measure(float(np.mean([area["value"] for area in areas])), float(error))


def train_on_synthetic(label: Column, training: Cells, synthetic: Cells, test: Cells, seed: int) -> dict[str, Any]:
    """Returns how well a label of real test rows is predicted by who learned from generated rows, and from real ones, plain JSON.

    As many rows of both are learned from. Classes (categories and booleans): accuracy, balanced_accuracy, roc_auc; numbers: r2. "ratio": of
    each measure, synthetic to real; None where the real one is not above 0. Raises UseError.
    """
    place = training.names.index(label.name)
    parts = [cells.take(np.flatnonzero(~np.isnan(cells.values[:, place]))) for cells in (training, synthetic, test)]
    sizes = [len(cells.values) for cells in parts]
    if min(sizes) < 2:
        raise UseError(f"the label {label.name!r} is there in {sizes} training, generated and test rows; each needs 2 at least")
    num_learned = min(sizes[:2])
    learned = [cells.take(np.random.default_rng(seed).permutation(len(cells.values))[:num_learned]) for cells in parts[:2]]
    found = {name: prediction(label, cells, parts[2], seed) for name, cells in zip(("real", "synthetic"), learned, strict=True)}
    return {
        "label": label.name,
        "num_train_rows": num_learned,
        "num_test_rows": sizes[2],
        "train_on_real": found["real"],
        "train_on_synthetic": found["synthetic"],
        "ratio": {name: ratio(found["synthetic"][name]["value"], real["value"]) for name, real in found["real"].items()},
    }


def ratio(synthetic: float, real: float) -> float | None:
    return synthetic / real if real > 0 else None


def prediction(label: Column, train: Cells, test: Cells, seed: int) -> dict[str, Measure]:
    """Returns the measures of one model's predictions of test rows. Cells of the label itself are left out."""
    place = train.names.index(label.name)
    features = np.array([column != label.name for column in train.columns])
    (x, y), (x_test, y_test) = ((cells.select(features), cells.values[:, place]) for cells in (train, test))
    options = {"categorical_features": x.is_code, "early_stopping": False, "random_state": seed}
    if not train.is_code[place]:
        return number_measures(y_test, HistGradientBoostingRegressor(**options).fit(x.values, y).predict(x_test.values))
    num_classes = 2 if label.kind == "boolean" else int(max(y.max(), y_test.max())) + 1
    return class_measures(y_test.astype(np.int64), probabilities(x, y.astype(np.int64), x_test, num_classes, options))


def probabilities(x: Cells, y: NDArray[np.int64], test: Cells, num_classes: int, options: dict[str, Any]) -> NDArray[np.float64]:
    """Returns each test row's probabilities, [B, K]; who learned from one class only expects that one."""
    result = np.zeros((len(test.values), num_classes))
    classes = np.unique(y)
    if len(classes) == 1:
        result[:, classes[0]] = 1
    else:
        result[:, classes] = HistGradientBoostingClassifier(**options).fit(x.values, y).predict_proba(test.values)
    return result
