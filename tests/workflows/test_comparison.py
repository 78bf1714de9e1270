"""Claims about workflows.comparison and what it is made of: a difference is found by the measure that is made for it, and by no other."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from data.columns import Rules, decide_columns
from data.encoding import TableEncoding
from data.statistics import summarise_table
from tests.small_models import encoding_of
from workflows.cells import MAX_CODES, Cells, cells_of, with_few_codes
from workflows.comparison import compare_null_patterns, compare_tables, kolmogorov_smirnov
from workflows.dependence import CRAMER, RATIO, SPEARMAN, associations
from workflows.diagnostics import compared_with_use
from workflows.leakage import NO_GUARANTEE, features, membership_attack, num_copies
from workflows.two_sample import ComparisonError, UseError

NUM_ROWS = 1000


def people(seed: int, num_rows: int = NUM_ROWS) -> pa.Table:
    """Rows in which height depends on sex, weight on height, the town on the flag; weight and town have nulls, often together."""
    random = np.random.default_rng(seed)
    is_woman, flag = random.random(num_rows) < 0.5, random.random(num_rows) < 0.4
    height = 1.8 - 0.15 * is_woman + 0.06 * random.normal(size=num_rows)
    weight = 70 + 80 * (height - 1.7) + 5 * random.normal(size=num_rows)
    town = np.where(flag & (random.random(num_rows) < 0.7), "Ulm", random.choice(["Bonn", "Rom"], num_rows))
    unasked = random.random(num_rows) < 0.1
    return pa.table(
        {
            "height": height,
            "weight": pa.array(weight, mask=unasked | (random.random(num_rows) < 0.05)),
            "visits": random.poisson(30, num_rows),
            "sex": np.where(is_woman, "f", "m"),
            "town": pa.array(town, mask=unasked),
            "flag": flag,
            "vector": pa.FixedSizeListArray.from_arrays(pa.array(random.normal(size=3 * num_rows)), 3),
        }
    )


def replaced(table: pa.Table, **columns: Any) -> pa.Table:
    for name, values in columns.items():
        table = table.set_column(table.column_names.index(name), name, values)
    return table


def permuted(table: pa.Table, name: str) -> pa.Table:
    return replaced(table, **{name: table[name].take(np.random.default_rng(5).permutation(table.num_rows))})


@pytest.fixture(scope="module")
def encoding() -> TableEncoding:
    table = people(100, 5000)
    summary = summarise_table(table, (table.num_rows, 0, 0))
    return TableEncoding(table.schema, tuple(decide_columns(table.schema, summary, None, {}, Rules())), None)


@pytest.fixture(scope="module")
def same(encoding: TableEncoding) -> dict[str, Any]:
    """Three independent samples of one distribution."""
    return compare_tables(encoding, people(1), people(2), people(3), label="sex")


def excess(measure: dict[str, float], of: float = 0.5) -> float:
    """By how many standard errors a measure exceeds a value."""
    return (measure["value"] - of) / measure["standard_error"]


def test_samples_of_one_distribution_agree_in_everything(same: dict[str, Any]) -> None:
    assert same == json.loads(json.dumps(same, allow_nan=False))
    assert abs(excess(same["two_sample_test_roc_auc"])) < 4
    assert same["dependence"]["num_notable_pairs"] == 0
    assert same["dependence"]["mean_absolute_difference"] < 1.5 * same["dependence"]["noise"]
    assert same["null_patterns"]["total_variation"] < 3 * same["null_patterns"]["noise"]
    for name, entry in same["marginals"].items():
        assert entry.get("total_variation", entry.get("kolmogorov_smirnov")) < 3 * entry["noise"], name
        assert abs(entry["null_rate"]["real"] - entry["null_rate"]["synthetic"]) < 0.05
    assert same["num_rows"] == {"held-out": NUM_ROWS, "generated": NUM_ROWS, "training": NUM_ROWS}


def test_an_independent_sample_leaks_nothing_and_that_is_called_no_guarantee(same: dict[str, Any]) -> None:
    privacy = same["privacy"]
    assert (privacy["num_copies_of_training_rows"], privacy["num_held_out_rows_that_equal_training_rows"]) == (0, 0)
    assert abs(excess(privacy["membership_attack_roc_auc"])) < 4
    assert NO_GUARANTEE in same["words"][-1]
    assert "no guarantee" in NO_GUARANTEE


def test_a_sample_of_the_distribution_is_worth_as_much_as_real_rows(same: dict[str, Any]) -> None:
    use = same["train_on_synthetic"]
    assert use["num_train_rows"] == use["num_test_rows"] == NUM_ROWS
    assert use["train_on_real"]["roc_auc"]["value"] > 0.9
    assert use["ratio"]["accuracy"] == pytest.approx(1, abs=0.05)


def test_copies_of_training_rows_are_counted_and_found_by_the_attack(encoding: TableEncoding) -> None:
    training = people(3, 200)
    result = compare_tables(encoding, people(1, 200), pa.concat_tables([training, people(2, 100)]), training)
    assert result["privacy"]["num_copies_of_training_rows"] == 200
    assert result["privacy"]["membership_attack_roc_auc"]["value"] > 0.99
    assert "200 of 300 generated rows equal a training row" in result["words"][-1]


def test_rows_near_training_rows_are_found_by_the_attack_though_none_is_a_copy(encoding: TableEncoding) -> None:
    training, random = people(3, 200), np.random.default_rng(0)
    near = replaced(training, height=pa.array(training["height"].to_numpy() + 0.005 * random.normal(size=200)))
    privacy = compare_tables(encoding, people(1, 200), near, training)["privacy"]
    assert privacy["num_copies_of_training_rows"] == 0
    assert privacy["membership_attack_roc_auc"]["value"] > 0.99


def test_a_shifted_column_is_found_by_its_marginal_and_by_the_classifier(encoding: TableEncoding) -> None:
    made = people(2)
    result = compare_tables(encoding, people(1), replaced(made, height=pa.array(made["height"].to_numpy() + 0.1)))
    assert excess(result["two_sample_test_roc_auc"]) > 10
    assert result["marginals"]["height"]["kolmogorov_smirnov"] > 3 * result["marginals"]["height"]["noise"]
    assert result["marginals"]["visits"]["kolmogorov_smirnov"] < result["marginals"]["visits"]["noise"]
    assert result["privacy"] is None


@pytest.mark.parametrize(
    ("column", "other", "measure"), [("weight", "height", SPEARMAN), ("height", "sex", RATIO), ("flag", "town", CRAMER)]
)
def test_broken_dependence_is_found_by_pairs_and_classifier_and_not_by_marginals(
    encoding: TableEncoding, column: str, other: str, measure: str
) -> None:
    result = compare_tables(encoding, people(1), permuted(people(2), column))
    for entry in result["marginals"].values():
        assert entry.get("total_variation", entry.get("kolmogorov_smirnov")) < 3 * entry["noise"]
    pairs = {frozenset(pair["columns"]): pair for pair in result["dependence"]["largest"]}
    pair = pairs[frozenset((column, other))]
    assert pair["measure"] == measure
    assert abs(pair["real"]) > 0.4
    assert abs(pair["synthetic"]) < 0.1
    assert result["dependence"]["num_notable_pairs"] >= 1
    assert excess(result["two_sample_test_roc_auc"]) > 5


def test_nulls_at_the_right_rate_in_the_wrong_rows_are_found_by_their_patterns(encoding: TableEncoding) -> None:
    real, made = people(1), permuted(people(2), "town")
    nulls = compare_null_patterns(encoding, real, made)
    assert nulls["columns_with_nulls"] == ["weight", "town"]
    assert nulls["total_variation"] > 3 * nulls["noise"]
    assert made["town"].null_count == people(2)["town"].null_count
    (both,) = [pattern for pattern in nulls["patterns"] if pattern["null_columns"] == ["weight", "town"]]
    assert both["real"] > 3 * both["synthetic"]


def test_rows_without_any_null_are_told_from_rows_with_nulls(encoding: TableEncoding) -> None:
    made = people(2)
    filled = replaced(made, weight=made["weight"].fill_null(70.0), town=made["town"].fill_null("Bonn"))
    result = compare_tables(encoding, people(1), filled)
    assert result["null_patterns"]["num_patterns"] == {"real": 3, "synthetic": 1}
    assert result["null_patterns"]["total_variation"] == pytest.approx(1 - result["null_patterns"]["patterns"][0]["real"])
    assert result["marginals"]["town"]["null_rate"]["synthetic"] == 0
    assert excess(result["two_sample_test_roc_auc"]) > 2.5


def test_rows_of_which_the_label_is_noise_are_worth_less(encoding: TableEncoding) -> None:
    result = compare_tables(encoding, people(1), permuted(people(2), "sex"), people(3), label="sex")
    assert result["train_on_synthetic"]["ratio"]["roc_auc"] < 0.7
    assert result["train_on_synthetic"]["train_on_real"]["accuracy"]["value"] > 0.85


def test_numbers_are_predicted_too_and_halves_of_held_out_rows_stand_in_for_training_rows(encoding: TableEncoding) -> None:
    use = compare_tables(encoding, people(1), people(2), label="weight")["train_on_synthetic"]
    assert set(use["ratio"]) == {"r2"}
    assert use["train_on_real"]["r2"]["value"] > 0.4
    assert use["ratio"]["r2"] == pytest.approx(1, abs=0.2)
    assert use["num_train_rows"] < NUM_ROWS / 2


def test_generated_rows_of_one_class_predict_that_class(encoding: TableEncoding) -> None:
    made = replaced(people(2, 200), sex=pa.array(["f"] * 200))
    use = compare_tables(encoding, people(1, 200), made, people(3, 200), label="sex")["train_on_synthetic"]
    assert use["train_on_synthetic"]["balanced_accuracy"]["value"] == 0.5


@pytest.mark.parametrize(
    ("label", "message"), [("nobody", "is not a column of the model; name .*'height', 'weight'"), ("vector", "is a vector")]
)
def test_a_label_that_cannot_be_predicted_is_refused(encoding: TableEncoding, label: str, message: str) -> None:
    with pytest.raises(ComparisonError, match=message):
        compare_tables(encoding, people(1, 100), people(2, 100), label=label)


def test_a_label_that_cannot_be_predicted_costs_nothing_but_its_prediction(encoding: TableEncoding) -> None:
    rows = people(1, 100)
    unlabelled = replaced(rows, town=pa.nulls(100, pa.string()))
    alone = encoding_of(rows.select(["height"]))
    with pytest.raises(UseError, match="'height' is the model's only column"):
        compare_tables(alone, rows, people(2, 100), label="height")
    for held_out, label, message in ((rows, "vector", "is a vector"), (unlabelled, "town", "is there in")):
        report = compared_with_use(encoding, held_out, people(2, 100), people(3, 100), label)
        assert (report["train_on_synthetic"], report["privacy"]["num_synthetic_rows"]) == (None, 100)
        assert message in report["words"][-1]


def test_too_few_rows_are_refused(encoding: TableEncoding) -> None:
    with pytest.raises(ComparisonError, match="3 generated rows"):
        compare_tables(encoding, people(1), people(2, 3))


def test_the_same_rows_and_seed_give_the_same_comparison(encoding: TableEncoding) -> None:
    first, second = (compare_tables(encoding, people(1, 200), people(2, 200), people(3, 200), "height", seed=7) for _ in range(2))
    assert first == second


def cells(values: list[list[float]], is_code: list[bool]) -> Cells:
    names = [f"c{place}" for place in range(len(is_code))]
    return Cells(np.array(values, np.float64), names, names, np.array(is_code))


def test_associations_are_those_of_exact_and_of_absent_dependence() -> None:
    random = np.random.default_rng(0)
    number, code = random.normal(size=4000), random.integers(0, 4, 4000)
    columns = [number, np.exp(number), -(number**3), random.normal(size=4000), code, (code + 1) % 4, random.integers(0, 30, 4000)]
    found = associations(cells(np.stack(columns, 1).tolist(), [False] * 4 + [True] * 3))
    np.testing.assert_array_equal(found, found.T)
    assert found[0, 1] == pytest.approx(1)
    assert found[0, 2] == pytest.approx(-1)
    assert found[4, 5] == pytest.approx(1)
    assert np.abs(found[[0, 0, 4, 4, 3], [3, 4, 6, 0, 6]]).max() < 0.08


def test_associations_of_cells_that_are_missing_are_those_of_the_others() -> None:
    random = np.random.default_rng(0)
    x = random.normal(size=(3000, 2))
    x[:, 1] += x[:, 0]
    expected = associations(cells(x.tolist(), [False, False]))[0, 1]
    x[random.random((3000, 2)) < 0.3] = np.nan
    assert associations(cells(x.tolist(), [False, False]))[0, 1] == pytest.approx(expected, abs=0.04)
    constant = np.where(np.isnan(x[:, :1]), 3.0, np.nan)  # there only where the other is not
    assert np.isnan(associations(cells(np.hstack([x, constant]).tolist(), [False] * 3))[0, 2])


def test_kolmogorov_smirnov_is_the_largest_step() -> None:
    distance, noise = kolmogorov_smirnov(np.array([1.0, 2, 3, np.nan]), np.array([2.5, 3, 4, 5]))
    assert distance == 0.75 - 1 / 12  # at 2: 2/3 against 0
    assert noise == pytest.approx(1.628 * np.sqrt(7 / 12))
    assert kolmogorov_smirnov(np.full(3, np.nan), np.ones(3)) == (None, None)


def test_distances_count_codes_nulls_and_standard_deviations() -> None:
    table = cells([[0, 0], [0, 1], [2, 0], [np.nan, 0], [2, np.nan]], [False, True])
    (found,) = features([table])
    distance = np.linalg.norm(found[:, None] - found, axis=-1)
    spread = np.nanstd([0, 0, 2, 2])
    assert distance[0, 1] == pytest.approx(1)
    assert distance[0, 2] == pytest.approx(2 / spread)
    assert distance[0, 3] == pytest.approx(np.hypot(1, 1))  # the number's mean is 1, and it is missing
    assert distance[2, 4] == pytest.approx(np.sqrt(1.5))


def test_the_attack_is_blind_where_generated_rows_are_far_from_all() -> None:
    random = np.random.default_rng(0)
    known, unknown = (cells(random.normal(size=(400, 2)).tolist(), [False, False]) for _ in range(2))
    assert membership_attack(known, unknown, known)["value"] == 1
    assert abs(excess(membership_attack(known, unknown, cells([[0.0, 0.0]], [False, False])))) < 4


def test_copies_are_rows_that_are_equal_in_every_cell_nulls_included() -> None:
    table = pa.table({"a": [1.0, 2, None, 2], "b": ["x", "y", "z", None]})
    other = pa.table({"a": [2.0, None, 2, 2], "b": ["y", "z", "x", "y"]})
    assert num_copies(table, other) == 2
    assert num_copies(other, table) == 3


def test_codes_beyond_what_trees_take_are_one_and_the_frequent_ones_stay() -> None:
    random = np.random.default_rng(0)
    codes = np.concatenate([np.arange(400), np.full(50, 399), random.integers(0, 400, 100)])[:, None]
    few, other = with_few_codes([cells(codes.tolist(), [True]), cells([[399.0], [np.nan]], [True])])
    assert len(np.unique(few.values)) == MAX_CODES
    assert few.values.max() == MAX_CODES - 1
    assert (few.values[400:450] == 0).all()
    assert other.values[0, 0] == 0
    assert np.isnan(other.values[1, 0])


def test_cells_are_the_columns_with_nan_where_nothing_is(encoding: TableEncoding) -> None:
    table = people(1, 50)
    found = cells_of(encoding, table, "rows")
    assert set(found.columns) == set(encoding.inputs)
    assert [name for name in found.names if name.startswith("vector")] == ["vector[0]", "vector[1]", "vector[2]"]
    town = found.values[:, found.names.index("town")]
    np.testing.assert_array_equal(np.isnan(town), table["town"].is_null().to_numpy())
    weight, there = found.values[:, found.names.index("weight")], table["weight"].is_valid().to_numpy()
    assert np.corrcoef(weight[there], table["weight"].drop_null().to_numpy())[0, 1] == pytest.approx(1)
    assert found.is_code.sum() == 3
