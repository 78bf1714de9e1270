"""Claims about data.scales: which tails are heavy, and that drawing them in standardises the cells."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from data.scales import heavy_tails, usable, warped_moments
from data.sketches import QuantileSketch

Draw = Callable[[np.random.Generator, int], NDArray[np.float64]]

LIGHT: dict[str, Draw] = {
    "normal": lambda random, n: random.normal(size=n),
    "uniform": lambda random, n: random.uniform(-1, 1, n),
    "laplace": lambda random, n: random.laplace(size=n),
    "logistic": lambda random, n: random.logistic(size=n),
    "binomial": lambda random, n: random.binomial(50, 0.3, n).astype(np.float64),
    "rare ones": lambda random, n: (random.random(n) < 0.05).astype(np.float64),
    "two modes": lambda random, n: random.normal(np.where(random.random(n) < 0.5, -100, 100), 1),
}
HEAVY: dict[str, Draw] = {
    "exponential": lambda random, n: random.exponential(size=n),
    "lognormal": lambda random, n: random.lognormal(size=n),
    "cauchy": lambda random, n: random.standard_cauchy(n),
    "t of 3": lambda random, n: random.standard_t(3, n),
    "gains, mostly zero": lambda random, n: np.where(random.random(n) < 0.08, random.lognormal(8.5, 1.0, n).round(), 0),
    "losses, mostly zero": lambda random, n: np.where(random.random(n) < 0.08, -random.lognormal(8.5, 1.0, n).round(), 0),
    "pareto": lambda random, n: random.pareto(1.5, n),
}


def sketch_of(draw: Draw, num_values: int = 100_000) -> tuple[NDArray[np.float64], QuantileSketch]:
    values = draw(np.random.default_rng(7), num_values)
    return values, QuantileSketch.of(values)


@pytest.mark.parametrize("draw", LIGHT.values(), ids=LIGHT)
def test_light_tails_are_left_alone_wherever_they_lie_and_however_wide_they_are(draw: Draw) -> None:
    values, sketch = sketch_of(draw)
    assert heavy_tails(sketch) is None
    for offset in (1e-3, 1.0, 30.0, 1004.0, 1e6, -1e9):
        for width in (1e-6, 1e-3, 1.0, 1e3, 1e12):
            assert heavy_tails(QuantileSketch.of(offset + width * values)) is None
    for width in np.geomspace(1, 1e5, 40):  # down to where the sketch cannot tell any value from another
        assert heavy_tails(QuantileSketch.of(1_004_000 + width * values)) is None


@pytest.mark.parametrize("draw", HEAVY.values(), ids=HEAVY)
def test_heavy_tails_are_found_whatever_their_unit(draw: Draw) -> None:
    values, _ = sketch_of(draw)
    for unit in (1e-200, 1e-3, 1.0, 1e9, -1.0):
        found = heavy_tails(QuantileSketch.of(unit * values))
        assert found is not None
        np.testing.assert_allclose(found[1], abs(unit) * heavy_tails(QuantileSketch.of(values))[1], rtol=0.05)  # type: ignore[index]


@pytest.mark.parametrize("draw", HEAVY.values(), ids=HEAVY)
def test_heavy_tails_drawn_in_have_mean_0_and_variance_1_and_no_far_cells(draw: Draw) -> None:
    values, sketch = sketch_of(draw)
    found = heavy_tails(sketch)
    assert found is not None
    mean, scale = warped_moments(sketch, *found)
    cells = (np.arcsinh((values - found[0]) / found[1]) - mean) / scale
    assert abs(cells.mean()) < 0.02
    assert abs(cells.var() - 1) < 0.03
    assert np.abs(cells).max() < 0.5 * np.abs((values - values.mean()) / values.std()).max()


def test_a_few_values_have_no_tails() -> None:
    assert heavy_tails(QuantileSketch.of(np.append(np.zeros(98), 1e9))) is None
    assert heavy_tails(QuantileSketch.of(np.append(np.random.default_rng(0).normal(size=98), [1e9, 1e9]))) is not None


def test_center_and_width_are_those_of_the_middle_of_the_values() -> None:
    values, sketch = sketch_of(HEAVY["cauchy"])
    center, width = heavy_tails(sketch) or (0, 0)
    low, middle, high = np.quantile(values, [0.1, 0.5, 0.9])
    assert center == pytest.approx(middle, abs=1e-3)
    assert width == pytest.approx((high - low) / 2.563, rel=0.02)


def test_where_most_values_are_one_the_width_is_the_others_median_distance() -> None:
    others = np.array([1.0, 2.0, 3.0, 1e4, 1e5])
    for center in (0.0, 1300.0):
        for sign in (1, -1):
            values = np.concatenate([np.full(950, center), np.repeat(center + sign * 1000 * others, 10)])
            assert heavy_tails(QuantileSketch.of(values)) == pytest.approx((center, 3000), rel=0.02)


finite = st.floats(allow_nan=False, allow_infinity=False)
extremes = st.sampled_from([0.0, -0.0, 5e-324, -5e-324, 2.3e-308, 1e-300, 1.0, 1e300, 1e308, -1e308, 1.7976931348623157e308, -1.7e308])


@example(values=[1e-309, 3e-309, 1e10], times=[40, 60, 2] + [1] * 9)
@given(values=st.lists(st.one_of(finite, extremes), min_size=1, max_size=12), times=st.lists(st.integers(1, 300), min_size=12, max_size=12))
def test_center_width_and_scale_are_finite_and_can_be_divided_by_for_any_values(values: list[float], times: list[int]) -> None:
    sketch = QuantileSketch.of(np.repeat(values, times[: len(values)]))
    found = heavy_tails(sketch)
    if found is None:
        return
    center, width = found
    assert np.isfinite([center, width]).all()
    assert width > 0
    mean, scale = warped_moments(sketch, center, width)
    if max(values) - min(values) < 1e308:  # beyond, differences are no float64, and columns.py refuses by name
        assert np.isfinite([mean, scale, 1 / scale]).all()
        assert scale > 0
        distance = (np.array(values) - center) / width
        assert np.isfinite(distance * distance).all()


@pytest.mark.parametrize("outlier", [1e-300, 1.0, -1e308])
def test_all_but_some_equal_values_leave_a_width(outlier: float) -> None:
    values = np.append(np.full(500, 0.0), [outlier, outlier, *[outlier / 100] * 3])
    found = heavy_tails(QuantileSketch.of(values))
    assert found is not None
    assert found[0] == 0
    assert found[1] == pytest.approx(abs(outlier) / 100, rel=0.02)


@pytest.mark.parametrize(("scale", "used"), [(0.0, 1.0), (1e-320, 1.0), (1e-299, 1e-299), (3.0, 3.0), (float("inf"), float("inf"))])
def test_a_scale_is_one_to_divide_by(scale: float, used: float) -> None:
    assert usable(scale) == used


def test_a_scale_that_is_no_number_is_not_hidden() -> None:
    assert np.isnan(usable(float("nan")))
