"""What an embedding is good for when a label is named: probes of it and of the rows themselves, and anomalies found by the model's scores.

No Ray, no MLflow. Shapes: B rows, L latent dimensions, F features, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.metrics import average_precision_score
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from data.encoding import TableEncoding
from vae.evidence import log_mean_exp, log_weights
from vae.model import VAE
from vae.rows import Rows
from workflows.measures import Values, bootstrap, class_measures, number_measures, roc_auc_measure

# Whole numbers with at most so many different values are classes, as they are categories to the model.
MAX_CLASSES_OF_NUMBERS = 20
# More classes than this are names of rows rather than a label.
MAX_CLASSES = 1000
# Rows per side, drawn where there are more: probes of so many are known to about half a percent.
MAX_ROWS = 10_000
NUM_NEIGHBOURS = 10
RIDGE_PENALTIES = np.logspace(-3, 4, 15)
MAX_LOGISTIC_ITERATIONS = 10_000
# Samples of z per row for the ELBO and the reconstruction error, as encode.py takes; rows scored at once.
ELBO_SAMPLES, ROWS_AT_ONCE = 8, 1024
LABEL_IS_INPUT = "label is among the model's columns"


class LabelError(ValueError):
    """The label cannot be learned; the message says why and what is needed."""


class Labelled(NamedTuple):
    """Rows with a label: embedding [B, L], raw features [B, F], label [B] (booleans, numbers or texts; None, NaN, infinite: not known)."""

    embedding: Values
    raw: Values
    label: Values

    def known(self) -> Labelled:
        """Returns the rows whose label is known."""
        return self.take(np.flatnonzero([is_known(value) for value in self.label.tolist()]))

    def drawn(self) -> Labelled:
        """Returns at most MAX_ROWS of the rows."""
        return self.take(np.random.default_rng(0).permutation(len(self.label))[:MAX_ROWS])

    def take(self, index: NDArray[np.int64]) -> Labelled:
        return Labelled(self.embedding[index], self.raw[index], self.label[index])


def is_known(value: object) -> bool:
    return value is not None and not (isinstance(value, float) and not math.isfinite(value))


def usefulness(train: Labelled, test: Labelled, label_is_input: bool) -> dict[str, Any]:
    """Returns how well a label is predicted from the embedding and from the rows' own features, plain JSON.

    "probes": by what they see ("embedding", "raw"), by method ("linear": logistic or ridge regression of standardised features; "knn": the
    nearest neighbours), accuracy, balanced_accuracy and roc_auc (of several classes: mean of one against the rest) or r2, with
    standard errors over test rows. "guess": the same of the most frequent class, or of the mean. Raises LabelError.
    """
    known = train.known(), test.known()
    first, second = (part.drawn() for part in known)
    if len(first.label) and isinstance(first.label[0], list | dict):
        raise LabelError("its values are lists or structs; name a column of numbers, booleans or texts")
    is_number = is_numeric(first.label)
    targets, classes = encoded(first.label, second.label, is_number)
    sees = {"embedding": (first.embedding, second.embedding), "raw": (first.raw, second.raw)}
    methods = ("linear", "knn")
    probe = probe_number if is_number else probe_class
    return {
        "task": "number" if is_number else "classes",
        "num_classes": None if is_number else len(classes),
        "num_train_rows": len(targets[0]),
        "num_test_rows": len(targets[1]),
        "num_rows_without_label": sum(len(part.label) for part in (train, test)) - sum(len(part.label) for part in known),
        "label_is_input": label_is_input,
        "notes": [f"{LABEL_IS_INPUT}: the embedding was told it, the raw features were not"] if label_is_input else [],
        "probes": {name: {method: probe(method, *features, *targets) for method in methods} for name, features in sees.items()},
        "guess": guess(*targets, is_number),
    }


def is_numeric(label: Values) -> bool:
    """Whether a label is a quantity; booleans, texts and whole numbers of few values are classes."""
    if label.dtype == np.bool_ or not np.issubdtype(np.asarray(label.tolist()).dtype, np.number):
        return False
    numbers = label.astype(np.float64)
    return bool((numbers % 1 != 0).any()) or len(np.unique(numbers)) > MAX_CLASSES_OF_NUMBERS


def encoded(train: Values, test: Values, is_number: bool) -> tuple[tuple[Values, Values], Values]:
    """Returns the targets, and the classes among training rows. Targets are numbers, or places among the classes, -1: none of these.

    Raises LabelError.
    """
    if not len(train) or not len(test):
        raise LabelError(f"{len(train)} training and {len(test)} test rows have a label; both need some: name a column that has values")
    if is_number:
        if len(np.unique(test)) < 2:
            raise LabelError(f"all {len(test)} test rows have the label {test[0]}; numbers need to differ: give more rows")
        return (train.astype(np.float64), test.astype(np.float64)), np.zeros(0)
    classes, places = np.unique(np.asarray(train.tolist()), return_inverse=True)
    if not 2 <= len(classes) <= MAX_CLASSES:
        raise LabelError(f"the label has {len(classes)} classes among {len(train)} training rows; 2 to {MAX_CLASSES} can be learned")
    place_of = {value: place for place, value in enumerate(classes.tolist())}
    found = np.array([place_of.get(value, -1) for value in test.tolist()])
    if found.max() < 0:
        raise LabelError(f"none of the {len(test)} test rows has a label that a training row has; split the rows at random")
    return (places, found), classes


def probe_class(method: str, train: Values, test: Values, train_label: Values, test_label: Values) -> dict[str, Any]:
    model = (
        make_pipeline(StandardScaler(), LogisticRegression(max_iter=MAX_LOGISTIC_ITERATIONS))
        if method == "linear"
        else KNeighborsClassifier(min(NUM_NEIGHBOURS, len(train)))
    )
    return class_measures(test_label, model.fit(train, train_label).predict_proba(test))


def probe_number(method: str, train: Values, test: Values, train_label: Values, test_label: Values) -> dict[str, Any]:
    model = (
        make_pipeline(StandardScaler(), RidgeCV(RIDGE_PENALTIES))
        if method == "linear"
        else KNeighborsRegressor(min(NUM_NEIGHBOURS, len(train)))
    )
    return number_measures(test_label, model.fit(train, train_label).predict(test))


def guess(train_label: Values, test_label: Values, is_number: bool) -> dict[str, Any]:
    """Returns what who sees nothing reaches."""
    if is_number:
        return number_measures(test_label, np.full(len(test_label), train_label.mean()))
    shares = np.bincount(train_label) / len(train_label)
    return class_measures(test_label, np.tile(shares, (len(test_label), 1)))


def find_anomalies(is_anomaly: Values, scores: Mapping[str, Values]) -> dict[str, Any]:
    """Returns how well scores, higher for what is stranger, tell anomalies from other rows, plain JSON.

    By score: roc_auc and average_precision with standard errors. average_precision of a score that knows nothing is
    "anomaly_share". Raises LabelError where all rows are anomalies, or none.
    """
    is_anomaly = is_anomaly.astype(np.bool_)
    if is_anomaly.all() or not is_anomaly.any():
        raise LabelError(f"{int(is_anomaly.sum())} of {len(is_anomaly)} rows are anomalies; both kinds of rows are needed")
    return {
        "num_rows": len(is_anomaly),
        "anomaly_share": float(is_anomaly.mean()),
        "scores": {name: ranking(is_anomaly, score) for name, score in scores.items()},
    }


def ranking(positive: Values, score: Values) -> dict[str, Any]:
    def average_precision(index: NDArray[np.int64]) -> float:
        return float(average_precision_score(positive[index], score[index]))

    return {
        "roc_auc": roc_auc_measure(positive, score),
        "average_precision": bootstrap(average_precision, positive.astype(np.int64)),
    }


@torch.inference_mode()
def anomaly_scores(model: VAE, rows: Rows, num_importance_samples: int, generator: torch.Generator) -> dict[str, NDArray[np.float64]]:
    """Returns scores in nats, higher for what is stranger, [B] each.

    negative_elbo, negative_log_evidence_bound (importance-weighted, of num_importance_samples), and reconstruction_error, which is
    -E_q[log p(x|z)]: the first without the KL.
    """
    parts = []
    for begin in range(0, rows.num_rows, ROWS_AT_ONCE):
        part = rows.slice(begin, min(begin + ROWS_AT_ONCE, rows.num_rows))
        noise = torch.randn(ELBO_SAMPLES, part.num_rows, model.latent_dim, generator=generator, dtype=model.dtype).to(model.device)
        q_z = model.posterior(part)
        bound = model.evaluate_elbo(part, noise, q_z)
        evidence = log_mean_exp(log_weights(model, part, q_z, num_importance_samples, generator).double())
        parts.append(-torch.stack([bound.elbo.double(), evidence, bound.expected_log_likelihood.double()]))
    scores = torch.cat(parts, 1).cpu().numpy()
    return dict(zip(("negative_elbo", "negative_log_evidence_bound", "reconstruction_error"), scores, strict=True))


def without_column(encoding: TableEncoding, rows: Rows, name: str) -> tuple[Rows, bool]:
    """Returns the rows with a column's cells missing, and whether the model has that column at all.

    VAE.features of these rows say nothing of the column.
    """
    for field in encoding.fields:
        begin = 0
        for column in field.columns:
            if column.name == name:
                valid = rows.valid[field.name].clone()
                valid[:, begin : begin + column.valid_size] = False
                return rows._replace(valid=rows.valid | {field.name: valid}), True
            begin += column.valid_size
    return rows, False
