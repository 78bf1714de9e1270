"""Claims about data.gaussian and data.correlated: densities of whole rows in data units, with missing cells integrated out."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from scipy.special import logsumexp
from scipy.stats import multivariate_normal, norm

from data.column import Column
from data.columns import Rules, decide_columns
from data.correlated import Cells, CorrelatedColumns, spread
from data.encoding import TableEncoding
from data.gaussian import Gaussian, patterns
from data.statistics import summarise_table

COVARIANCE = np.array([[2.0, 1.2, 0.0], [1.2, 1.0, -0.3], [0.0, -0.3, 3.0]])
MEAN = np.array([1.0, -2.0, 0.5])


def correlated_rows(num_rows: int, missing: float = 0.0) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    random = np.random.default_rng(1)
    cells = random.multivariate_normal(MEAN, COVARIANCE, num_rows)
    cells[random.random(cells.shape) < missing] = np.nan
    return cells


def encoding_of(table: pa.Table) -> TableEncoding:
    summary = summarise_table(table, (len(table), 0, 0))
    return TableEncoding(table.schema, tuple(decide_columns(table.schema, summary, None, {}, Rules())), None)


def test_log_prob_is_the_marginal_over_the_observed_cells() -> None:
    gaussian = Gaussian(MEAN, COVARIANCE)
    cells = correlated_rows(50, missing=0.4)
    for row, found in zip(cells, gaussian.log_prob(cells), strict=True):
        there = np.flatnonzero(~np.isnan(row))
        expected = multivariate_normal(MEAN[there], COVARIANCE[np.ix_(there, there)]).logpdf(row[there]) if len(there) else 0.0
        assert found == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("missing", [0.0, 0.3])
def test_the_fit_finds_mean_and_covariance_also_where_cells_are_missing(missing: float) -> None:
    fitted = Gaussian.fit(correlated_rows(40_000, missing))
    np.testing.assert_allclose(fitted.mean, MEAN, atol=0.05)
    np.testing.assert_allclose(fitted.covariance, COVARIANCE, atol=0.08)


def test_many_cells_of_few_rows_are_told_of_no_worse_than_by_independent_ones() -> None:
    random = np.random.default_rng(4)
    train, other = random.normal(size=(50, 40)), random.normal(size=(500, 40))
    independent = Gaussian(train.mean(0), np.diag(train.var(0)))
    assert Gaussian.fit(train).log_prob(other).mean() > independent.log_prob(other).mean() - 1.0


def test_fewer_rows_than_cells_make_a_proper_density() -> None:
    cells = np.random.default_rng(0).normal(size=(5, 30))
    cells[:, 3] = 7.0
    assert np.isfinite(Gaussian.fit(cells).log_prob(np.random.default_rng(1).normal(size=(9, 30)))).all()


@pytest.mark.parametrize("num_rows", [0, 1, 2, 4])
def test_so_few_rows_that_none_can_be_held_out_make_independent_cells(num_rows: int) -> None:
    random = np.random.default_rng(0)
    cells = random.normal(size=(num_rows, 3))
    cells[:1, 1] = np.nan
    fitted = Gaussian.fit(cells)
    np.testing.assert_allclose(fitted.covariance, np.diag(np.diag(fitted.covariance)))
    assert np.isfinite(fitted.log_prob(random.normal(size=(9, 3)))).all()


def test_no_rows_have_no_densities() -> None:
    assert Gaussian(MEAN, COVARIANCE).log_prob(np.zeros((0, 3))).shape == (0,)


def test_patterns_cut_the_rows_into_those_with_the_same_missing_cells() -> None:
    cells = correlated_rows(200, missing=0.5)
    seen = []
    for there, rows in patterns(cells):
        assert (~np.isnan(cells[rows][:, there])).all()
        assert np.isnan(np.delete(cells[rows], there, 1)).all()
        seen += rows.tolist()
    assert sorted(seen) == list(range(200))


@pytest.mark.parametrize("width", [None, 3.0])
def test_a_number_on_a_grid_has_a_bound_on_the_mass_of_its_step(width: float | None) -> None:
    """The mean over places in the step of log p is below the log of the mean of p, and near it where the density is smooth."""
    column = Column("x", "numeric", "", integer=True, mean=[0.4], scale=2.0, center=1.0, width=width, resolution=0.5)
    assert column.field_kind == ("integer" if width is None else "warped")
    x = 2.5
    y = (x - 0.4) / 2.0 if width is None else (np.arcsinh((x - 1.0) / width) - 0.4) / 2.0
    moved, stretch = spread(column, np.full((20_000, 1), y), np.random.default_rng(0))
    density = (norm.logpdf(moved) + stretch).ravel()
    if width is None:
        mass = (norm.cdf((x + 0.25 - 0.4) / 2) - norm.cdf((x - 0.25 - 0.4) / 2)) / 0.5
    else:
        ends = [(np.arcsinh((x + d - 1.0) / width) - 0.4) / 2.0 for d in (-0.25, 0.25)]
        mass = (norm.cdf(ends[1]) - norm.cdf(ends[0])) / 0.5
    assert density.mean() < np.log(mass)
    assert density.mean() == pytest.approx(np.log(mass), abs=0.02)
    assert logsumexp(density) - np.log(len(density)) == pytest.approx(np.log(mass), abs=2e-3)


def test_scores_of_a_mixed_table_are_the_sum_of_gaussian_and_smoothed_frequencies_in_data_units() -> None:
    random = np.random.default_rng(2)
    x = random.normal(50, 10, 3000)
    table = pa.table({"x": x, "y": 3 * x + random.normal(0, 1, 3000), "c": random.choice(["a", "b"], 3000, p=[0.8, 0.2])})
    encoding = encoding_of(table)
    cells = Cells.of(encoding, encoding.encode(table, "table"), seed=0)
    fitted = CorrelatedColumns.fit(cells)
    both = np.stack([x, np.asarray(table["y"])], 1)
    gaussian = multivariate_normal(both.mean(0), np.cov(both.T, bias=True)).logpdf(both)
    share = (np.asarray(table["c"]) == "a").mean()
    frequency = np.where(np.asarray(table["c"]) == "a", np.log((3000 * share + 1) / 3002), np.log((3000 * (1 - share) + 1) / 3002))
    assert fitted.log_prob(cells).mean() == pytest.approx((gaussian + frequency).mean(), abs=0.05)


def test_the_unit_of_a_column_moves_the_score_by_its_logarithm() -> None:
    random = np.random.default_rng(3)
    x, y = random.normal(size=(2, 1000))
    scores: list[float] = []
    for unit in (1.0, 1000.0):
        table = pa.table({"x": x * unit, "y": y})
        encoding = encoding_of(table)
        cells = Cells.of(encoding, encoding.encode(table, "table"), seed=0)
        scores.append(float(CorrelatedColumns.fit(cells).log_prob(cells).mean()))
    assert scores[0] - scores[1] == pytest.approx(np.log(1000), abs=1e-4)
