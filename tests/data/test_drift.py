"""Claims about data.two_sample, data.bins and data.drift: exact tails, calibrated tests, and sketches that depend on rows alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from data.bins import MIN_BIN_ROWS, CodeBins, FourierFeatures, NumberBins
from data.columns import Rules, decide_columns
from data.conditions import conditioned
from data.drift import Finding, Measured, Quantities, Reference, Sketch, category_shares, column_quantities
from data.encoding import TableEncoding
from data.fixed_noise import standard_normal, uniform
from data.listing import DataError
from data.marginals import marginals, summarise_rows
from data.statistics import summarise_table
from data.two_sample import (
    anderson_darling,
    combined,
    compare_codes,
    compare_counts,
    compare_ordered_counts,
    compare_rates,
    false_discovery_adjusted,
    weighted_chi_squared_tail,
    without_rare,
)

CONFIDENCE = 0.999


def test_the_tail_of_equal_weights_is_the_chi_squared_one_far_out() -> None:
    for degrees in (2, 5, 50):
        for p in (0.9, 0.05, 1e-8, 1e-30):
            found = weighted_chi_squared_tail(3 * float(stats.chi2.isf(p, degrees)), 3 * np.ones(degrees))
            assert found == pytest.approx(p, rel=0.07)


def test_the_tail_of_weights_in_pairs_is_the_one_of_a_sum_of_exponentials() -> None:
    """Two chi-squared variables of one weight w make an exponential one of mean 2 w; different ones add up hypoexponentially."""
    means = 2 * np.array([1.0, 0.5, 0.2, 0.1])
    shares = [np.prod([m / (m - other) for other in means if other != m]) for m in means]
    for x in (0.5, 2.0, float(means.sum()), 5.0, 20.0):
        exact = sum(share * np.exp(-x / m) for share, m in zip(shares, means, strict=True))
        assert weighted_chi_squared_tail(x, np.repeat(means / 2, 2)) == pytest.approx(exact, rel=0.05)


def test_counts_are_compared_as_scipy_does_where_no_bin_is_rare() -> None:
    a, b = np.array([100, 200, 50]), np.array([300, 500, 250])
    found = compare_counts(a, b)
    assert found is not None
    assert found.p_value == pytest.approx(stats.chi2_contingency(np.stack([a, b]), correction=False).pvalue, rel=1e-10)
    assert found.effect == pytest.approx(0.5 * np.abs(a / 350 - b / 1050).sum())


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), min_size=1, max_size=12))
def test_which_bins_are_taken_together_depends_on_the_sums_alone(pairs: list[tuple[int, int]]) -> None:
    counts = np.array(pairs).T
    if not counts.sum(1).all():
        return
    kept = without_rare(counts)
    assert kept.sum(1).tolist() == counts.sum(1).tolist()
    mixed = np.stack([counts.sum(0) // 2, counts.sum(0) - counts.sum(0) // 2])
    if (mixed.sum(1) == counts.sum(1)).all():
        assert without_rare(mixed).sum(0).tolist() == kept.sum(0).tolist()


def test_one_bin_and_no_rows_leave_nothing_to_compare() -> None:
    assert compare_counts(np.array([50]), np.array([70])) is None
    assert compare_counts(np.array([50, 20]), np.array([0, 0])) is None
    assert compare_rates(0, 100, 0, 200) is None
    assert compare_rates(100, 100, 200, 200) is None


def test_rates_of_few_rows_are_compared_exactly_and_those_of_many_by_chi_squared() -> None:
    few, many = compare_rates(0, 200, 3, 300), compare_rates(100, 1000, 160, 1000)
    assert few is not None
    assert many is not None
    assert few.p_value == pytest.approx(stats.fisher_exact([[0, 200], [3, 297]]).pvalue)
    assert many.p_value == pytest.approx(stats.chi2_contingency([[100, 900], [160, 840]], correction=False).pvalue)
    assert many.effect == pytest.approx(0.06)


def test_anderson_darling_is_uniform_over_all_ways_to_share_out_the_same_bins() -> None:
    together, rng = np.array([40, 300, 5, 800, 400, 0, 700, 30]), np.random.default_rng(0)
    first = rng.multivariate_hypergeometric(together, 700, 1000)
    p_values = [anderson_darling(counts, together - counts) for counts in first]
    for level in (0.05, 0.25, 0.75):
        found, (lower, upper) = number_of_small([p for p in p_values if p is not None], level)
        assert lower <= found <= upper
    assert None not in p_values


def test_of_bins_in_order_a_shift_and_a_spike_are_both_seen() -> None:
    old = np.full(10, 200)
    shift, spike = np.array([160, 170, 180, 190, 200, 200, 210, 220, 230, 240]), np.array([185] * 5 + [335] + [185] * 4)
    for new in (shift, spike):
        found, any_bin, shifted = compare_ordered_counts(old, new), compare_counts(old, new), anderson_darling(old, new)
        assert found is not None
        assert any_bin is not None
        assert shifted is not None
        assert found.p_value <= 2.01 * min(any_bin.p_value, shifted) < 0.01
        assert (shifted < any_bin.p_value) == (new is shift)


def test_a_combination_of_p_values_keeps_what_agrees_and_is_uniform_for_independent_ones() -> None:
    for p in (1e-200, 1e-9, 0.03, 0.5):
        assert combined(p, p) == pytest.approx(p, rel=1e-9)
    assert combined(0.0, 0.7) == 0.0
    assert combined(0.001, 1.0) < 0.0021
    uniform_ones = np.random.default_rng(0).random((5000, 2))
    found, (lower, upper) = number_of_small([combined(*pair) for pair in uniform_ones.tolist()], 0.05)
    assert lower <= found <= upper


def test_a_few_new_codes_are_seen_where_the_reference_is_small() -> None:
    """2 % of 5,000 rows have a code that none of 500 has: too few to be expected among these for a chi-squared test."""
    old, new = np.array([200, 175, 125, 0]), np.array([1960, 1715, 1225, 100])
    found, alone = compare_codes(old, new), compare_counts(old, new)
    assert found is not None
    assert alone is not None
    assert found.p_value < 0.005 < 0.1 < alone.p_value


def test_an_adjusted_p_value_is_at_most_alpha_where_benjamini_and_hochberg_reject() -> None:
    p_values = np.random.default_rng(0).random(40) ** 3
    for alpha in (0.01, 0.05, 0.3):
        ordered = np.sort(p_values)
        passed = np.flatnonzero(ordered <= alpha * np.arange(1, 41) / 40)
        limit = ordered[passed[-1]] if len(passed) else -1.0
        assert ((false_discovery_adjusted(p_values) <= alpha) == (p_values <= limit)).all()


@settings(max_examples=50)
@given(st.lists(st.one_of(st.sampled_from([0.0, 1.0, 5.0]), st.floats(-100, 100, width=32)), min_size=1, max_size=400))
def test_a_bin_of_numbers_holds_none_or_several_of_the_references_rows(values: list[float]) -> None:
    numbers = np.array(values, np.float32)
    bins = NumberBins.of(numbers)
    counts = bins.sums(numbers)
    assert bins.edges == sorted(set(bins.edges))
    assert counts.sum() == len(values)
    assert len(counts) == 1 or all(count == 0 or count >= MIN_BIN_ROWS for count in counts)


def test_a_value_that_most_rows_have_is_told_from_those_beside_it() -> None:
    numbers = np.array([3.0] * 900 + [7.0] * 100, np.float32)
    bins = NumberBins.of(numbers)
    assert bins.sums(np.array([2.9, 3.0, 3.1, 7.0, 8.0], np.float32)).tolist() == [1, 1, 2, 1]
    constant = NumberBins.of(np.full(500, 4.0, np.float32))
    assert constant.sums(np.array([3.0, 4.0, 4.0, 5.0], np.float32)).tolist() == [1, 2, 1]


def test_codes_that_are_rare_new_or_without_a_category_share_a_bin() -> None:
    codes = np.array([0] * 600 + [1] * 390 + [2] * 9 + [-1])
    bins = CodeBins.of(codes, [0.6, 0.39, 0.009])
    assert bins.sums(np.array([0, 0, 1, 2, 3, 99, -1])).tolist() == [2, 1, 4]


def number_of_small(p_values: Sequence[float], level: float) -> tuple[int, tuple[float, float]]:
    """Returns how many p-values are at most the level, and the interval for it where they are uniform."""
    return int((np.array(p_values) <= level).sum()), stats.binom.interval(CONFIDENCE, len(p_values), level)


@pytest.mark.parametrize("rows", [(300, 5000), (3000, 1000)])
@pytest.mark.parametrize("kind", ["continuous", "rounded", "categories", "lists"])
def test_p_values_are_uniform_where_nothing_changed(kind: str, rows: tuple[int, int]) -> None:
    """Among them the cases where bins that the reference's own counts chose would not be: rare categories, and values that come again."""
    rng, p_values = np.random.default_rng(1), []
    for _ in range(150 if kind == "lists" else 400):
        old, new = (draw(kind, rng, count) for count in rows)
        if kind == "categories":
            cut: Any = CodeBins.of(old, (np.bincount(draw(kind, rng, 20_000), minlength=1000) / 20_000).tolist())
        else:
            cut = FourierFeatures.of(old) if kind == "lists" else NumberBins.of(old)
        p_values.append(cut.compare(cut.sums(old), cut.sums(new), rows).p_value)
    for level in (0.05, 0.25, 0.75):
        found, (lower, upper) = number_of_small(p_values, level)
        assert lower <= found <= upper


def draw(kind: str, rng: np.random.Generator, count: int) -> Any:
    if kind == "categories":
        return np.minimum(rng.zipf(1.5, count), 1000) - 1
    if kind == "lists":
        return rng.normal(size=(count, 3)) @ np.array([[1, 0.5, 0.0], [0, 1, 0.1], [0, 0, 0.05]])
    values = rng.normal(size=count)
    return np.round(values, 1) if kind == "rounded" else values


def test_features_find_a_dependence_that_no_element_shows_alone() -> None:
    rng = np.random.default_rng(0)
    old, new = (rng.multivariate_normal(np.zeros(2), [[1, rho], [rho, 1]], 3000) for rho in (0.0, 0.3))
    cut = FourierFeatures.of(old)
    found = cut.compare(cut.sums(old), cut.sums(new), (3000, 3000))
    assert found is not None
    assert found.p_value < 1e-4
    assert found.effect > 0.02


def test_fixed_noise_never_changes_and_is_normal() -> None:
    """The numbers are those of splitmix64 in Python's own integers."""
    np.testing.assert_allclose(uniform(4, 0), [0.9994349379, 0.5123401167, 0.7477574056, 0.9877679700], atol=1e-9)
    for stream in range(3):
        assert stats.kstest(standard_normal(2000, stream), "norm").pvalue > 0.001
    assert abs(np.corrcoef(standard_normal(2000, 0), standard_normal(2000, 1))[0, 1]) < 0.1


NUM_ROWS = 4000


def table(seed: int = 0, num_rows: int = NUM_ROWS, **changed: Any) -> pa.Table:
    rng = np.random.default_rng(seed)
    columns = {
        "weight": pa.array(rng.normal(2, 12, num_rows), mask=rng.random(num_rows) < 0.1),
        "visits": rng.poisson(30, num_rows),
        "town": pa.array(rng.choice(["Bonn", "Ulm", "Rom"], num_rows, p=[0.6, 0.35, 0.05]), mask=rng.random(num_rows) < 0.2),
        "code": pa.array(rng.choice([3, 7], num_rows), pa.int8()),
        "flag": pa.array(rng.random(num_rows) < 0.3, mask=rng.random(num_rows) < 0.01),
        "vector": pa.FixedSizeListArray.from_arrays(pa.array(rng.normal([0, 5, 9], 2, (num_rows, 3)).reshape(-1)), 3),
    }
    rows = pa.table(columns | changed)
    return rows.set_column(2, "town", rows["town"].dictionary_encode())


def encoding_of(rows: pa.Table, **rules: Any) -> TableEncoding:
    columns = decide_columns(rows.schema, summarise_table(rows, (rows.num_rows, 0, 0)), None, {}, Rules(**rules))
    return TableEncoding(rows.schema, tuple(columns), None)


ENCODING = encoding_of(table())


def quantities(rows: pa.Table, encoding: TableEncoding = ENCODING) -> Quantities:
    return column_quantities(encoding, rows, encoding.encode(rows, "the rows"))


def reference(rows: pa.Table | None = None, encoding: TableEncoding = ENCODING) -> Reference:
    rows = table() if rows is None else rows
    shares = category_shares(encoding, marginals(encoding, summarise_rows(encoding, rows)))
    return Reference.of([quantities(rows, encoding)], "reference rows", shares)


def compared(new: pa.Table, **options: Any) -> dict[tuple[str, str], Finding]:
    against = reference()
    found = against.compare(against.sketch_of(quantities(new)), **options)
    return {(finding.quantity.removeprefix("column "), finding.what): finding for finding in found}


def drifted(new: pa.Table, **options: Any) -> set[tuple[str, str]]:
    return {name for name, finding in compared(new, **options).items() if finding.drifted}


def test_every_column_and_every_null_rate_has_a_test() -> None:
    found = compared(table(1))
    assert set(found) == {(name, "values") for name in table().column_names} | {(name, "nulls") for name in ("weight", "town", "flag")}
    assert drifted(table(1)) == set()
    assert all(0 <= finding.p_value <= finding.adjusted <= 1 for finding in found.values())


def test_a_change_is_found_where_it_is_and_nowhere_else() -> None:
    rng = np.random.default_rng(5)
    weight = np.array(table(1)["weight"].to_numpy(zero_copy_only=False))
    assert drifted(table(1, weight=pa.array(weight + 2.4, mask=np.isnan(weight)))) == {("weight", "values")}
    assert drifted(table(1, weight=pa.array(weight, mask=np.isnan(weight) | (rng.random(NUM_ROWS) < 0.05)))) == {("weight", "nulls")}
    visits = table(1)["visits"].to_numpy()
    assert drifted(table(1, visits=pa.array(visits, mask=rng.random(NUM_ROWS) < 0.01))) == {("visits", "nulls")}
    assert drifted(table(1, flag=rng.random(NUM_ROWS) < 0.4)) == {("flag", "values"), ("flag", "nulls")}
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(rng.normal([0, 5.4, 9], 2, (NUM_ROWS, 3)).reshape(-1)), 3)
    assert drifted(table(1, vector=vectors)) == {("vector", "values")}


def test_a_category_that_training_did_not_see_is_a_new_value_and_no_null() -> None:
    rng = np.random.default_rng(5)
    towns = table(1)["town"].cast(pa.string()).to_numpy(zero_copy_only=False)
    towns = np.where((rng.random(NUM_ROWS) < 0.02) & (towns == "Bonn"), "Oslo", towns)
    new = table(1, town=pa.array(towns, from_pandas=True))
    assert new["town"].null_count == table(1)["town"].null_count
    assert ("town", "values") in drifted(new)
    assert ("town", "nulls") not in drifted(new)


def test_a_null_is_no_category_whether_text_comes_as_a_dictionary_or_not() -> None:
    rows = table()
    plain = rows.set_column(2, "town", rows["town"].cast(pa.string()))
    for name, measured in quantities(rows).items():
        other = quantities(plain)[name]
        assert measured.num_nulls == other.num_nulls
        assert (measured.values == other.values).all()
    assert quantities(rows)["column town"].num_nulls == rows["town"].null_count
    assert quantities(rows)["column town"].num_rows == NUM_ROWS


def test_of_rows_that_are_kept_as_other_and_of_new_ones_the_shares_are_compared() -> None:
    encoding = encoding_of(table(), max_categories=2)
    against = reference(encoding=encoding)
    same = against.compare(against.sketch_of(quantities(table(1), encoding)))
    assert not any(finding.drifted for finding in same)
    more = table(1, town=pa.array(["Rom"] * 400 + ["Bonn"] * (NUM_ROWS - 400)))
    found = against.compare(against.sketch_of(quantities(more, encoding)))
    assert ("column town", "values") in {(finding.quantity, finding.what) for finding in found if finding.drifted}


def test_a_sketch_depends_neither_on_how_rows_are_cut_nor_on_their_order() -> None:
    rows, against = table(1), reference()
    whole = against.sketch_of(quantities(rows))
    order = np.random.default_rng(0).permutation(NUM_ROWS)
    parts = against.no_rows
    for piece in (order[:1], order[1:700], order[700:700], order[700:]):
        parts = parts.merge(against.sketch_of(quantities(rows.take(pa.array(piece)))))
    assert (parts.num_rows, parts.num_nulls) == (whole.num_rows, whole.num_nulls)
    for name, sums in whole.sums.items():
        # Sums of features are exact, but products of matrices of another shape may round an angle, and rarely a step, otherwise.
        np.testing.assert_allclose(parts.sums[name], sums, atol=2 if "vector" in name else 0)
    assert against.compare(parts)[0].quantity == against.compare(whole)[0].quantity


def test_a_reference_comes_back_from_json_and_holds_no_rows_of_few() -> None:
    against = reference()
    text = json.dumps(against.to_json(), allow_nan=False)
    back = Reference.from_json(json.loads(text))
    new = against.sketch_of(quantities(table(2)))
    assert back.compare(new) == against.compare(new)
    assert back.to_json() == against.to_json()
    assert len(text) < 20_000
    for name in ("weight", "visits", "town", "code", "flag"):
        counts = against.sketch.sums[f"column {name}"]
        assert all(count == 0 or count >= MIN_BIN_ROWS for count in counts)


def test_another_format_version_is_refused_with_a_way_out() -> None:
    with pytest.raises(DataError, match=r"format version 0, this code reads 1; give a table by --drift.reference"):
        Reference.from_json(reference().to_json() | {"format_version": 0})


def test_too_few_rows_make_no_reference_and_no_tests() -> None:
    with pytest.raises(DataError, match="99 rows; to find drift by, at least 100 are needed"):
        reference(table(num_rows=99))
    assert compared(table(1, num_rows=49)) == {}
    assert compared(table(1, num_rows=50)) != {}


def test_effects_below_the_least_and_ignored_columns_are_no_drift() -> None:
    weight = np.array(table(1)["weight"].to_numpy(zero_copy_only=False))
    new = table(1, weight=pa.array(weight + 3, mask=np.isnan(weight)))
    assert 0.05 < compared(new)["weight", "values"].effect < 0.15
    assert drifted(new, min_effect=0.05) == {("weight", "values")}
    assert drifted(new, min_effect=0.15) == set()
    assert {name for name, _ in compared(new, ignored=["weight"])} == set(table().column_names) - {"weight"}


def test_lists_that_are_null_and_columns_without_a_value_are_compared_by_their_nulls() -> None:
    vectors = pa.array([None] * 100 + table(1)["vector"].to_pylist()[100:], pa.list_(pa.float64(), 3))
    assert drifted(table(1, vector=vectors)) == {("vector", "nulls")}
    against = reference()
    empty = {name: Measured(m.values[:0], m.num_rows) if name == "column weight" else m for name, m in quantities(table(1)).items()}
    found = against.compare(against.sketch_of(empty))
    assert {(f.quantity, f.what) for f in found if f.drifted} == {("column weight", "nulls")}
    assert ("column weight", "values") not in {(f.quantity, f.what) for f in found}


def test_columns_that_condition_the_model_are_compared_too() -> None:
    told = TableEncoding(ENCODING.schema, tuple(conditioned(list(ENCODING.columns), ["town", "weight"])), None)
    assert told.modelled != told.inputs
    found, expected = quantities(table(), told), quantities(table())
    assert set(found) == set(expected)
    for name in ("column town", "column weight"):
        assert (found[name].values == expected[name].values).all()


def test_a_sketch_says_how_many_rows_it_has() -> None:
    sketch: Sketch = reference().sketch_of(quantities(table(1, num_rows=70)))
    assert sketch.total_rows == 70
    assert replace(sketch).merge(reference().no_rows).total_rows == 70
