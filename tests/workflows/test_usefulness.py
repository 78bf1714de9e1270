"""Claims about workflows.usefulness and workflows.measures: what can be read from an embedding, and what cannot."""

from __future__ import annotations

import json
import math
from decimal import Decimal
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch
from numpy.typing import NDArray
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from data.columns import Rules, decide_columns
from data.encoding import TableEncoding
from data.statistics import summarise_table
from tests.small_models import small_model
from vae.evidence import log_evidence_bound
from vae.model import VAE
from vae.rows import Rows
from workflows.architecture import architecture
from workflows.diagnostics import label_values, usefulness_section
from workflows.measures import bootstrap, class_measures, roc_auc, roc_auc_measure
from workflows.model_config import ModelConfig
from workflows.usefulness import (
    LABEL_IS_INPUT,
    LabelError,
    Labelled,
    anomaly_scores,
    find_anomalies,
    usefulness,
    without_column,
)

Values = NDArray[Any]


def sides(label: Values, signal: Values) -> tuple[Labelled, Labelled]:
    """An embedding with the signal in it, and raw features that are noise; the first half trains."""
    random = np.random.default_rng(1)
    embedding = np.column_stack([signal, random.normal(size=(len(label), 2))])
    both = Labelled(embedding, random.normal(size=(len(label), 5)), label)
    half = len(label) // 2
    return both.take(np.arange(half)), both.take(np.arange(half, len(label)))


def within(measure: dict[str, float], expected: float) -> bool:
    return abs(measure["value"] - expected) < 4 * measure["standard_error"] + 1e-3


def test_classes_are_read_where_they_are_and_guessed_where_not() -> None:
    random = np.random.default_rng(0)
    place = random.choice(3, 3000, p=[0.6, 0.3, 0.1])
    result = usefulness(*sides(np.array(["rare", "some", "often"])[2 - place], 10.0 * np.eye(3)[place][:, 1:]), label_is_input=False)
    assert result == json.loads(json.dumps(result, allow_nan=False))
    assert (result["task"], result["num_classes"], result["num_train_rows"], result["num_test_rows"]) == ("classes", 3, 1500, 1500)
    for method in ("linear", "knn"):
        seen, noise = result["probes"]["embedding"][method], result["probes"]["raw"][method]
        assert min(seen[name]["value"] for name in ("accuracy", "balanced_accuracy", "roc_auc")) > 0.99
        assert within(noise["roc_auc"], 0.5)
        assert abs(noise["balanced_accuracy"]["value"] - 1 / 3) < 0.05
    assert within(result["guess"]["accuracy"], 0.6)
    assert result["guess"]["balanced_accuracy"]["value"] == pytest.approx(1 / 3)
    assert result["guess"]["roc_auc"]["value"] == 0.5
    assert result["notes"] == []


def test_booleans_are_classes_and_a_label_in_the_model_is_said() -> None:
    flag = np.random.default_rng(0).random(2000) < 0.3
    result = usefulness(*sides(flag, flag + 0.1), label_is_input=True)
    assert result["num_classes"] == 2
    assert result["probes"]["embedding"]["linear"]["roc_auc"]["value"] == 1
    assert any(LABEL_IS_INPUT in note for note in result["notes"])


def test_numbers_are_explained_by_their_share_of_signal() -> None:
    random = np.random.default_rng(0)
    signal, noise = random.normal(size=(2, 4000))
    train, test = sides(2 * signal + noise + 7, signal)
    result = usefulness(train, test, label_is_input=False)
    assert result["task"] == "number"
    assert within(result["probes"]["embedding"]["linear"]["r2"], 0.8)
    assert 0.6 < result["probes"]["embedding"]["knn"]["r2"]["value"] < 0.8
    assert abs(result["probes"]["raw"]["linear"]["r2"]["value"]) < 0.02
    assert abs(result["guess"]["r2"]["value"]) < 0.01


def test_whole_numbers_of_few_values_are_classes() -> None:
    digit = np.random.default_rng(0).integers(0, 4, 400)
    assert usefulness(*sides(digit, digit), label_is_input=False)["num_classes"] == 4
    many = np.random.default_rng(0).integers(0, 90, 400)
    assert usefulness(*sides(many, many), label_is_input=False)["task"] == "number"


def test_rows_without_a_label_are_left_out_and_counted() -> None:
    label = np.array(["a", "b", None, "a"] * 100, dtype=object)
    assert usefulness(*sides(label, np.arange(400)), label_is_input=False)["num_rows_without_label"] == 100
    number = np.where(np.arange(400) % 4 == 0, np.nan, np.linspace(0, 1, 400))
    assert usefulness(*sides(number, np.arange(400)), label_is_input=False)["num_rows_without_label"] == 100
    infinite = np.array([math.inf if place % 4 == 0 else place / 400 for place in range(400)], dtype=object)
    assert usefulness(*sides(infinite, np.arange(400)), label_is_input=False)["num_rows_without_label"] == 100


def test_a_few_rows_and_a_value_that_one_row_has_are_measured_in_finite_numbers() -> None:
    for label in (np.array([0.5, 1.5, 2.5, 3.5]), np.repeat([[0.5] * 99 + [1.5]], 2, axis=0).ravel()):
        result = usefulness(*sides(label, np.arange(len(label))), label_is_input=False)
        assert (result["task"], json.loads(json.dumps(result, allow_nan=False))) == ("number", result)


def test_rows_without_an_anomaly_cost_nothing_but_the_search_for_anomalies() -> None:
    random = np.random.default_rng(0)
    table = pa.table({"x": random.normal(size=200), "odd": random.random(200) < 0.2})
    normal = table.filter(pc.invert(table["odd"]))
    encoding = encoding_of(table)
    scoring = SimpleNamespace(encoding=encoding, bundle=SimpleNamespace(model=small_model(encoding, table, 1e-2, num_steps=2)))
    config = SimpleNamespace(evaluate=SimpleNamespace(label="odd"), num_importance_samples=2)

    def section(test: pa.Table) -> Any:
        samples = SimpleNamespace(rows=lambda purpose, limit: ({"train": table, "scored": test}[purpose], []))
        evaluation: Any = SimpleNamespace(config=config, scoring=scoring, samples=samples, no_training_rows="")
        return usefulness_section(evaluation)

    assert section(table).report["anomalies"]["num_rows"] == 200
    found = section(normal)
    assert "accuracy" in found.report["probes"]["embedding"]["linear"]
    assert f"anomalies are not looked for: 0 of {len(normal)} rows are anomalies" in found.report["notes"][-1]
    assert "anomalies are not looked for" in found.blocks[0].words


def test_decimals_are_quantities_and_lists_are_no_label() -> None:
    prices = label_values(pa.chunked_array([pa.array([Decimal(cents) / 100 for cents in range(400)], pa.decimal128(9, 2))]))
    assert usefulness(*sides(prices, np.arange(400)), label_is_input=False)["task"] == "number"
    for column in ([[1, 2]] * 40, [[1], [1, 2]] * 20, [{"a": 1}] * 40):
        with pytest.raises(LabelError, match="lists or structs"):
            usefulness(*sides(label_values(pa.chunked_array([column])), np.zeros(40)), label_is_input=False)


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (np.array(["a"] * 20), "1 classes among 10"),
        (np.array([None] * 20, dtype=object), "0 training and 0 test rows"),
        (np.array([f"row {number}" for number in range(3000)]), "1500 classes"),
        (np.array(["a", "b"] * 10 + ["c"] * 20), "none of the 20 test rows"),
        (np.concatenate([np.linspace(0, 1, 30), np.full(30, 0.5)]), "all 30 test rows"),
    ],
)
def test_a_label_that_cannot_be_learned_is_refused(label: Values, message: str) -> None:
    with pytest.raises(LabelError, match=message):
        usefulness(*sides(label, np.zeros(len(label))), label_is_input=False)


def test_measures_of_classes_are_scikit_learns() -> None:
    random = np.random.default_rng(0)
    label, probability = random.integers(0, 3, 500), random.dirichlet(np.ones(3), 500)
    found = class_measures(label, probability)
    assert found["balanced_accuracy"]["value"] == pytest.approx(balanced_accuracy_score(label, probability.argmax(1)))
    assert found["roc_auc"]["value"] == pytest.approx(roc_auc_score(label, probability, multi_class="ovr"))
    assert found["accuracy"]["standard_error"] == pytest.approx(np.sqrt(2 / 9 / 500), rel=0.1)
    for levels in (2, 1000):  # with ties and without
        positive, score = random.random(300) < 0.4, random.integers(0, levels, 300)
        assert roc_auc(positive, score) == pytest.approx(roc_auc_score(positive, score))


def test_bootstrap_errors_are_the_binomials_and_those_of_hanley_and_mcneil() -> None:
    random = np.random.default_rng(0)
    right = random.random(900) < 0.8
    found = bootstrap(lambda index: float(right[index].mean()), np.zeros(900, np.int64))
    assert found["standard_error"] == pytest.approx(np.sqrt(0.8 * 0.2 / 900), rel=0.2)
    positive = np.arange(1000) < 300
    score = random.normal(size=1000) + positive
    area = bootstrap(lambda index: roc_auc(positive[index], score[index]), positive.astype(np.int64))
    assert roc_auc_measure(positive, score)["standard_error"] == pytest.approx(area["standard_error"], rel=0.2)


def test_anomalies_far_away_are_found_and_others_are_not() -> None:
    random = np.random.default_rng(0)
    is_anomaly = random.random(2000) < 0.05
    scores = {"knows": is_anomaly + random.random(2000), "knows not": random.random(2000), "reversed": -1.0 * is_anomaly}
    found = find_anomalies(is_anomaly, scores)
    assert found == json.loads(json.dumps(found, allow_nan=False))
    assert found["scores"]["knows"]["roc_auc"]["value"] == 1
    assert found["scores"]["knows"]["average_precision"]["value"] == pytest.approx(1)
    assert within(found["scores"]["knows not"]["roc_auc"], 0.5)
    assert abs(found["scores"]["knows not"]["average_precision"]["value"] - found["anomaly_share"]) < 0.05
    assert found["scores"]["reversed"]["roc_auc"]["value"] == 0
    with pytest.raises(LabelError, match="0 of 5 rows are anomalies"):
        find_anomalies(np.zeros(5, np.bool_), {})


def mixed_table() -> pa.Table:
    random = np.random.default_rng(0)
    return pa.table(
        {
            "weight": random.normal(70, 9, 400),
            "height": random.normal(1.7, 0.1, 400),
            "town": random.choice(["Bonn", "Ulm", "Rom"], 400),
            "flag": random.random(400) < 0.4,
            "vector": pa.FixedSizeListArray.from_arrays(pa.array(random.normal(size=1200)), 3),
        }
    )


def encoding_of(table: pa.Table) -> TableEncoding:
    summary = summarise_table(table, (table.num_rows, 0, 0))
    return TableEncoding(table.schema, tuple(decide_columns(table.schema, summary, None, {}, Rules())), None)


def model_and_rows() -> tuple[VAE, TableEncoding, Rows]:
    table = mixed_table()
    encoding = encoding_of(table)
    torch.manual_seed(0)
    model = VAE(**architecture(encoding, ModelConfig(latent_dim=2, hidden_dims=[8])))
    return model, encoding, Rows.from_arrays(encoding.encode(table, "table"))


@pytest.mark.parametrize("name", ["weight", "height", "town", "flag", "vector"])
def test_features_say_nothing_of_a_column_that_is_left_out(name: str) -> None:
    model, encoding, rows = model_and_rows()
    hidden, is_input = without_column(encoding, rows, name)
    assert is_input
    features, before = model.features(hidden), model.features(rows)
    changed = (features != before).any(0)
    assert int(changed.sum()) == {"town": 3, "vector": 3}.get(name, 1)
    assert (features[:, changed] == features[:1, changed]).all()
    assert not without_column(encoding, rows, "nobody")[1]


def test_scores_of_anomalies_are_the_bounds_of_their_names() -> None:
    model, _, rows = model_and_rows()
    scores = anomaly_scores(model, rows, 200, torch.Generator().manual_seed(0))
    assert {name: score.shape for name, score in scores.items()} == dict.fromkeys(
        ("negative_elbo", "negative_log_evidence_bound", "reconstruction_error"), (400,)
    )
    with torch.no_grad():
        kl = model.posterior(rows).kl(model.latent_prior()).double().numpy()
        bound = log_evidence_bound(model, rows, 200, torch.Generator().manual_seed(5)).numpy()
    np.testing.assert_allclose(scores["negative_elbo"] - scores["reconstruction_error"], kl, rtol=1e-3, atol=1e-4)
    assert scores["negative_log_evidence_bound"].mean() == pytest.approx(-bound.mean(), abs=0.1)
    assert scores["negative_log_evidence_bound"].mean() < scores["negative_elbo"].mean()
