"""Claims about workflows.architecture: what the model is told of each field, and that it makes densities in data units of it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from data.columns import Rules, decide_columns
from data.conditions import conditioned
from data.encoding import TableEncoding
from data.fields import LOG_JACOBIAN
from data.statistics import summarise_table
from data.wishes import with_likelihoods
from vae import VAE, Rows
from vae.model import build_likelihood
from workflows.architecture import NUM_COMPONENTS, architecture, prior_of
from workflows.checks import ConfigError
from workflows.model_config import ModelConfig

N = 3000


def fit(
    table: pa.Table,
    likelihoods: Mapping[str, str] | None = None,
    overrides: Mapping[str, Mapping[str, Any]] | None = None,
    condition: tuple[str, ...] = (),
) -> TableEncoding:
    summary = summarise_table(table, (len(table), 0, 0))
    columns = conditioned(decide_columns(table.schema, summary, None, overrides or {}, Rules()), condition)
    return TableEncoding(table.schema, tuple(with_likelihoods(columns, summary, likelihoods or {})), None)


def told(encoding: TableEncoding, key: str = "fields") -> dict[str, dict[str, Any]]:
    """Returns what the model is told of each field, by name, as JSON holds it."""
    record = json.loads(json.dumps(architecture(encoding, ModelConfig()), allow_nan=False))
    return {field.pop("name"): field for field in record[key]}


def log_prob(encoding: TableEncoding, values: Any, output: float) -> NDArray[np.float64]:
    """Returns log p of values of the one column x in data units, where the decoder says `output`."""
    (field,) = told(encoding).values()
    likelihood = build_likelihood(field)
    arrays = encoding.encode(pa.table({"x": pa.array(values, encoding.schema.field("x").type)}), "here")
    cells = torch.from_numpy(np.ascontiguousarray(arrays[encoding.fields[0].name]))
    with torch.inference_mode():
        outputs: Tensor = torch.full((len(cells), likelihood.num_outputs), output)
        found = likelihood(outputs).log_prob(cells)[:, 0].double().numpy()
    return np.asarray(found + arrays[LOG_JACOBIAN])


def gaussian(name: str, values: NDArray[Any]) -> TableEncoding:
    """Returns the encoding of a column x whose masses are a Gaussian's, which are known in closed form."""
    return fit(pa.table({"x": values}), {"x": "warped_discretised_gaussian" if "heavy" in name else "discretised_gaussian"})


def tenths(rng: np.random.Generator) -> NDArray[np.float64]:
    return np.round(rng.normal(3, 2, N), 1)


RNG = np.random.default_rng(0)
COLUMNS: dict[str, NDArray[Any]] = {
    "tenths": tenths(RNG),
    "tenths in float32": tenths(RNG).astype(np.float32),
    "tenths from zero": np.abs(tenths(RNG)),
    "whole numbers in float64": np.round(RNG.normal(3, 4, N)),
    "hundredths with heavy tails": np.round(np.exp(RNG.normal(0, 2, N)), 2),
    "tenths with two heavy tails": np.round(RNG.standard_t(1.3, N), 1),
    "integers": RNG.integers(-30, 30, N),
    "counts": RNG.poisson(15, N),
}


@pytest.mark.parametrize("name", COLUMNS)
@pytest.mark.parametrize("output", [-0.7, 0.0, 1.3])
def test_masses_of_all_multiples_of_the_step_sum_to_one_in_data_units(name: str, output: float) -> None:
    """The density is mass / step, so density times step sums to 1; 99 % or more lies within the multiples that are looked at."""
    encoding = gaussian(name, COLUMNS[name])
    (column,) = encoding.columns
    step = column.resolution
    assert step is not None
    assert column.field_kind == ("warped" if "heavy" in name else "integer")
    reach = 6 * column.scale if column.width is None else column.width * math.sinh(column.scale * 5)
    lowest = -reach + column.mean[0] if column.lower is None else max(-reach + column.mean[0], float(column.lower))
    multiples = np.arange(round(lowest / step), round((reach + column.mean[0]) / step)) * step
    multiples = np.round(multiples, 2).astype(COLUMNS[name].dtype)
    total = np.exp(log_prob(encoding, multiples, output)).sum() * step
    assert total == pytest.approx(1, abs=2e-3)


@pytest.mark.parametrize("name", COLUMNS)
def test_a_density_of_values_that_come_again_is_below_one_by_step(name: str) -> None:
    encoding = fit(pa.table({"x": COLUMNS[name]}))
    (column,) = encoding.columns
    assert column.resolution is not None
    for output in (-1.0, 0.0, 2.0):
        assert (log_prob(encoding, COLUMNS[name][:500], output) <= -math.log(column.resolution) + 1e-6).all()


def test_tenths_have_the_normal_mass_of_their_interval() -> None:
    encoding = gaussian("tenths", COLUMNS["tenths"])
    (column,) = encoding.columns
    values = np.array([-2.0, 0.0, 2.9, 3.1, 7.5, 3.14159])  # the last is off the grid: the interval is around it
    middle, scale = column.mean[0] + 0.4 * column.scale, column.scale
    ends = [0.5 * math.erfc(-(value + side - middle) / scale / math.sqrt(2)) for value in values for side in (-0.05, 0.05)]
    expected = np.log((np.array(ends[1::2]) - np.array(ends[::2])) / 0.1)
    np.testing.assert_allclose(log_prob(encoding, values, 0.4), expected, atol=2e-4)


def test_zero_has_all_that_lies_below_where_no_value_is_negative() -> None:
    for name in ("tenths from zero", "hundredths with heavy tails"):
        encoding = gaussian(name, COLUMNS[name])
        (column,) = encoding.columns
        assert (column.lower, column.resolution) == (0, 0.1 if name == "tenths from zero" else 0.01)
        step = float(column.resolution or 0)
        end = 0.5 * step - column.center
        y = (end if column.width is None else math.asinh(end / column.width)) - column.mean[0]
        expected = math.log(0.5 * math.erfc(-y / column.scale / math.sqrt(2)) / step)
        assert log_prob(encoding, np.zeros(1), 0.0)[0] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("name", ["tenths", "hundredths with heavy tails"])
def test_a_step_is_a_change_of_units(name: str) -> None:
    """The same values counted in steps have the same model, and a density lower by the log of the step."""
    values = COLUMNS[name]
    decimals = fit(pa.table({"x": values}))
    step = decimals.columns[0].resolution
    assert step is not None
    whole = fit(pa.table({"x": np.round(values / step)}))
    assert whole.columns[0].resolution == 1
    difference = log_prob(decimals, values[:300], 0.3) - log_prob(whole, np.round(values[:300] / step), 0.3)
    np.testing.assert_allclose(difference, -math.log(step), atol=0.02 if "heavy" in name else 1e-3)  # the sketch knows 1/128


def lists(values: NDArray[Any]) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])


def mixed() -> pa.Table:
    rng = np.random.default_rng(1)
    return pa.table(
        {
            "height": rng.normal(170, 9, N),
            "degrees": tenths(rng),
            "rain": np.round(np.exp(rng.normal(0, 2.5, N)), 1),
            "visits": pa.array(rng.poisson(30, N), mask=rng.random(N) < 0.2),
            "vector": lists(rng.normal(0, 2, (N, 3))),
            "bytes": lists(rng.integers(0, 9, (N, 3), np.uint8)),
            "pixels": lists(255 * rng.integers(0, 2, (N, 4), np.uint8)),
            "flag": rng.random(N) < 0.3,
            "town": rng.choice(["Bonn", "Ulm", "Rom"], N),
        }
    )


PIXELS = {"shape": [2, 2], "binarize": False}
FIELDS: list[tuple[str, str, str, dict[str, Any]]] = [
    ("height", "gaussian", "numeric", {"likelihood": "gaussian", "size": 1}),
    ("height", "gaussian_per_row", "numeric_gaussian_per_row", {"likelihood": "gaussian", "size": 1, "per_row": True}),
    ("height", "student_t", "numeric_student_t", {"likelihood": "student_t", "size": 1}),
    ("degrees", "gaussian", "numeric", {"likelihood": "gaussian", "size": 2}),
    ("vector", "gaussian", "vector_0", {"likelihood": "gaussian", "size": 3, "shared_scale": True}),
    ("vector", "gaussian_per_row", "vector_0", {"likelihood": "gaussian", "size": 3, "per_row": True}),
    ("vector", "student_t", "vector_0", {"likelihood": "student_t", "size": 3, "shared_scale": True}),
    ("pixels", "bernoulli", "image_0", PIXELS | {"likelihood": "bernoulli", "size": 4, "storage": "uint8"}),
    ("pixels", "continuous_bernoulli", "image_0", PIXELS | {"likelihood": "continuous_bernoulli", "size": 4, "storage": "uint8"}),
    ("flag", "bernoulli", "boolean", {"likelihood": "bernoulli", "size": 1}),
    ("town", "categorical", "categorical", {"likelihood": "categorical", "sizes": [3]}),
]


@pytest.mark.parametrize(("column", "wish", "field", "expected"), FIELDS)
def test_the_model_is_told_the_likelihood_that_was_named(column: str, wish: str, field: str, expected: dict[str, Any]) -> None:
    found = told(fit(mixed(), {column: wish}))[field]
    assert found == {"valid_size": found["valid_size"], "with_flags": False} | expected


def test_flags_of_elements_are_modelled_and_whole_lists_where_some_are_null() -> None:
    lists = {"sometimes": [[1.0, None], None, [2.0, 3.5], [4.0, 5.0]], "always": [[1.0, None], [7.0, 2.0], [2.0, 3.5], [4.0, 5.0]]}
    sometimes, always = told(fit(pa.table(lists))).values()
    assert (sometimes["null_pattern"], sometimes["null_rates"], sometimes["null_list_rate"]) == ([0, 1], pytest.approx([0, 1 / 3]), 0.25)
    assert (always["null_pattern"], always["null_rates"]) == ([0, 1], pytest.approx([0, 0.25]))
    assert "null_list_rate" not in always


@pytest.mark.parametrize("wish", ["poisson", "negative_binomial", "zero_inflated_negative_binomial"])
def test_counts_come_with_the_moments_of_their_logarithms(wish: str) -> None:
    logs = np.log1p(mixed()["visits"].drop_null().to_numpy())
    found = told(fit(mixed(), {"visits": wish}))[f"count_{wish}"]
    assert found == {
        "likelihood": wish,
        "size": 1,
        "valid_size": 1,
        "with_flags": True,
        "null_pattern": [0],
        "null_rates": [pytest.approx(mixed()["visits"].null_count / N)],
        "mean": [pytest.approx(logs.mean())],
        "scale": [pytest.approx(logs.std())],
    }


@pytest.mark.parametrize(
    ("column", "field"), [("visits", "integer"), ("degrees", "integer"), ("bytes", "vector_1"), ("pixels", "image_0"), ("rain", "warped")]
)
def test_logistics_are_told_the_grid_that_gaussians_are(column: str, field: str) -> None:
    """Of the column alone, so that no other shares its field."""
    warped = "warped_" if field == "warped" else ""
    table = mixed().select([column])
    field = field.replace("_1", "_0")
    (gaussian,) = told(fit(table, {column: f"{warped}discretised_gaussian"})).values()
    logistics = told(fit(table, {column: f"{warped}discretised_logistics"}))
    (name,) = logistics
    assert name == field
    logistics[name].pop("spikes", None)
    assert logistics[name] == gaussian | {"likelihood": f"{warped}discretised_logistics", "num_components": NUM_COMPONENTS}


def test_components_of_a_density_are_no_narrower_than_half_a_step() -> None:
    found = told(fit(mixed(), {"height": "logistics", "rain": "logistics", "degrees": "logistics", "vector": "logistics"}))
    encoding = fit(mixed(), {"height": "logistics", "rain": "logistics", "degrees": "logistics"})
    (field,) = (field for field in encoding.fields if field.name == "numeric_logistics")
    height, degrees, rain = field.columns
    assert [column.name for column in field.columns] == ["height", "degrees", "rain"]
    expected = [-7.0, math.log(0.05 / degrees.scale), max(-7.0, math.log(0.05 / (rain.scale * (rain.width or 0))))]
    assert found["numeric_logistics"]["min_log_scale"] == pytest.approx(expected)
    assert found["numeric_logistics"]["num_components"] == found["vector_0"]["num_components"] == NUM_COMPONENTS
    assert found["vector_0"]["min_log_scale"] == [-7.0] * 3
    assert height.resolution is None


@pytest.mark.parametrize(("side", "expected"), [(8, "discretised_logistics"), (32, "discretised_logistics"), (33, "discretised_gaussian")])
def test_pixels_have_a_mixture_where_nothing_is_named_and_one_scale_in_large_images(side: int, expected: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, side * side), np.uint8)
    encoding = fit(pa.table({"x": pa.FixedSizeListArray.from_arrays(pa.array(pixels.ravel()), side * side)}))
    assert told(encoding)["image_0"]["likelihood"] == expected


@pytest.mark.parametrize(
    ("columns", "condition", "num_rows", "expected"),
    [
        (["pixels", "degrees"], (), 10_000, "vamp"),
        (["pixels", "degrees"], (), 9_999, "standard"),
        (["pixels", "degrees"], ("degrees",), 10_000, "fitted"),
        (["degrees"], (), 9_999, "standard"),
        (["degrees"], (), 10_000, "fitted"),
    ],
)
def test_the_prior_that_is_left_to_the_table_follows_its_columns_and_rows(
    columns: list[str], condition: tuple[str, ...], num_rows: int, expected: str
) -> None:
    encoding = fit(mixed().select(columns), condition=condition)
    assert prior_of(encoding, ModelConfig(), num_rows) == expected
    assert architecture(encoding, ModelConfig(), num_rows)["prior"] == expected.replace("fitted", "standard")
    assert architecture(encoding, ModelConfig(prior="mixture"), num_rows)["prior"] == "mixture"


def test_binarised_pixels_are_a_bernoullis_where_nothing_is_named() -> None:
    encoding = fit(mixed(), overrides={"pixels": {"kind": "image", "binarize": "per_epoch"}})
    assert told(encoding)["image_0"]["likelihood"] == "bernoulli"
    assert told(encoding)["image_0"]["storage"] == "uint8"


def test_conditions_are_told_as_fields_of_their_own() -> None:
    encoding = fit(mixed(), {"visits": "poisson"}, condition=("degrees", "height", "town"))
    assert set(told(encoding, "condition_fields")) == {"condition_integer", "condition_numeric", "condition_categorical"}
    assert "numeric" not in told(encoding)


def test_a_convolution_without_an_image_is_refused_before_any_compute() -> None:
    with pytest.raises(ConfigError, match=r"no column is an image .* choose another network"):
        architecture(fit(mixed().drop_columns(["pixels"])), ModelConfig(network="conv"))
    encoding = fit(mixed(), overrides={"pixels": {"kind": "image", "shape": [2, 2]}})
    VAE(**architecture(encoding, ModelConfig(decoder_network="conv", hidden_dims=[8])))


def test_every_network_posterior_and_prior_is_a_model_of_a_mixed_table() -> None:
    encoding = fit(mixed(), overrides={"pixels": {"kind": "image", "shape": [2, 2]}}, condition=("town",))
    rows = Rows.from_arrays(encoding.encode(mixed().slice(0, 20), "here"))
    for network in ("mlp", "gated", "residual", "linear", "conv"):
        for posterior, prior in (("diagonal", "vamp"), ("full", "mixture"), ("full", "conditional"), ("diagonal", "conditional")):
            config = ModelConfig(4, [16, 8], network, posterior=posterior, prior=prior, num_prior_components=3)  # type: ignore[arg-type]
            model = VAE(**json.loads(json.dumps(architecture(encoding, config))))
            bound = model.elbo(rows, torch.zeros(20, 4))
            assert bound.elbo.isfinite().all()
            made = model.generate(20, torch.Generator().manual_seed(0), model.condition(rows))
            assert {name: cells.dtype for name, cells in made.values.items()} == {name: rows.values[name].dtype for name in made.values}
