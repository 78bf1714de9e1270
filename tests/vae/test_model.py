"""Claims about vae.model. Shapes: S samples, B rows, L latent dimensions, D cells of a field."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.vae.linear_models import standardised, vector_field
from vae.evidence import log_evidence_bound
from vae.model import VAE, Bound
from vae.oracle import PPCA, fit_ppca
from vae.rows import Rows

LATENT_DIM = 3
BYTES = {"half_width": [0.5 / 64], "lower": [-33 / 64], "upper": [222 / 64], "center": 33.0, "scale": 64.0, "storage": "uint8"}
FIELDS: list[dict[str, Any]] = [
    {"name": "numeric", "likelihood": "gaussian", "valid_size": 2, "size": 2},
    {"name": "integer", "likelihood": "discretised_gaussian", "valid_size": 2, "size": 2}
    | {"half_width": [0.125, 0.001], "lower": [-2.0, -1e9], "upper": [2.0, 1e9]},
    {"name": "boolean", "likelihood": "bernoulli", "valid_size": 2, "size": 2},
    {"name": "categorical", "likelihood": "categorical", "valid_size": 3, "sizes": [3, 1, 5]},
    {"name": "vector_0", "likelihood": "gaussian", "valid_size": 1, "size": 4, "shared_scale": True},
    {"name": "vector_1", "likelihood": "gaussian", "valid_size": 3, "size": 3, "shared_scale": True},
    {"name": "image_0", "likelihood": "discretised_gaussian", "valid_size": 1, "size": 6} | BYTES,
    {"name": "image_1", "likelihood": "discretised_gaussian", "valid_size": 4, "size": 4} | BYTES,
]
NAMES = [str(field["name"]) for field in FIELDS]
STORAGE = {"boolean": torch.int8, "categorical": torch.int32, "image_0": torch.uint8, "image_1": torch.uint8}
ONE: dict[str, Any] = {"name": "one", "likelihood": "gaussian", "size": 2, "valid_size": 2}
few_examples = settings(max_examples=20)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def build(fields: list[dict[str, Any]], seed: int = 0, latent_dim: int = LATENT_DIM, network: str = "mlp") -> VAE:
    """A model whose posterior and likelihood depend on their inputs in earnest."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return VAE(fields, latent_dim, hidden_dims=[16, 8], network=network)


def make_rows(num_rows: int = 12, seed: int = 0, missing: float = 0.3) -> Rows:
    """Rows of FIELDS with about that share of missing cells."""
    g = generator(seed)
    values = {
        "numeric": torch.randn(num_rows, 2, generator=g),
        "integer": torch.randn(num_rows, 2, generator=g).mul(4).round() / 4,
        "boolean": torch.randint(0, 2, (num_rows, 2), generator=g, dtype=torch.int8),
        "categorical": torch.stack([torch.randint(0, k, (num_rows,), generator=g) for k in (3, 1, 5)], 1).int(),
        "vector_0": torch.randn(num_rows, 4, generator=g),
        "vector_1": torch.randn(num_rows, 3, generator=g),
        "image_0": torch.randint(0, 256, (num_rows, 6), generator=g, dtype=torch.uint8),
        "image_1": torch.randint(0, 256, (num_rows, 4), generator=g, dtype=torch.uint8),
    }
    valid = {str(f["name"]): torch.rand(num_rows, f["valid_size"], generator=g) >= missing for f in FIELDS}
    return Rows(values, valid, torch.zeros(num_rows))


def noise(*shape: int, seed: int = 5, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=dtype)


def replaced(rows: Rows, name: str, values: Tensor | None = None, valid: Tensor | None = None) -> Rows:
    """The rows with other values or validity of one field."""
    return Rows(
        rows.values if values is None else rows.values | {name: values},
        rows.valid if valid is None else rows.valid | {name: valid},
        rows.log_jacobian,
    )


def gradients(model: VAE, rows: Rows, eps: Tensor) -> dict[str, Tensor]:
    model.zero_grad(set_to_none=True)
    (-model(rows, eps).elbo.sum()).backward()
    found = {name: parameter.grad for name, parameter in model.named_parameters()}
    return {name: grad.clone() for name, grad in found.items() if grad is not None}


def assert_identical(actual: Any, expected: Any) -> None:
    """Bit for bit, over tuples and dicts of tensors."""
    assert len(actual) == len(expected)
    pairs = [(actual[n], expected[n]) for n in expected] if isinstance(expected, dict) else list(zip(actual, expected, strict=True))
    for found, wanted in pairs:
        assert torch.equal(found, wanted)
        assert found.isfinite().all()


# The parts of the bound


@few_examples
@given(seed=st.integers(0, 1000))
def test_elbo_is_the_expected_log_likelihood_less_the_kl(seed: int) -> None:
    model, rows, eps = build(FIELDS, seed), make_rows(seed=seed), noise(12, LATENT_DIM)
    q_z = model.posterior(rows)
    bound = model.elbo(rows, eps)
    assert_identical(bound, model(rows, eps))
    assert torch.equal(bound.elbo, bound.expected_log_likelihood - bound.kl)
    assert torch.equal(bound.kl, q_z.kl(model.latent_prior()))
    assert torch.equal(bound.expected_log_likelihood, model.likelihood(q_z.rsample(eps)).log_prob(rows))
    assert (bound.kl > 0).all()


def test_the_log_likelihood_of_a_row_is_the_sum_over_its_observed_cells() -> None:
    rows = make_rows()
    p_x = build(FIELDS).likelihood(noise(12, LATENT_DIM))
    by_hand = torch.zeros(12, dtype=torch.float64)
    for name, cells in p_x.fields.items():
        log_prob = cells.log_prob(rows.values[name]).double()  # every stored value is a possible one here
        by_hand += (log_prob * rows.valid[name].expand_as(log_prob)).sum(-1)
    torch.testing.assert_close(p_x.log_prob(rows).double(), by_hand, rtol=1e-6, atol=1e-4)


def test_a_sample_dimension_gives_what_each_sample_gives() -> None:
    model, rows, eps = build(FIELDS).double(), make_rows(), noise(4, 12, LATENT_DIM, dtype=torch.float64)
    together = model.elbo(rows, eps).expected_log_likelihood
    apart = torch.stack([model.elbo(rows, one).expected_log_likelihood for one in eps])
    torch.testing.assert_close(together, apart, rtol=1e-12, atol=1e-12)


def test_log_jacobian_shifts_the_bound_by_itself_and_leaves_the_gradients() -> None:
    model, rows, eps = build(FIELDS).double(), make_rows(), noise(12, LATENT_DIM, dtype=torch.float64)
    shift = torch.linspace(-300, 200, 12, dtype=torch.float64)
    shifted = rows._replace(log_jacobian=shift)
    pairs: list[tuple[Bound, Bound]] = [
        (model.elbo(rows, eps), model.elbo(shifted, eps)),
        (model.evaluate_elbo(rows, eps[None]), model.evaluate_elbo(shifted, eps[None])),
    ]
    for plain, moved in pairs:
        torch.testing.assert_close(moved.elbo - plain.elbo, shift, rtol=1e-12, atol=1e-10)
        torch.testing.assert_close(moved.expected_log_likelihood - plain.expected_log_likelihood, shift, rtol=1e-12, atol=1e-10)
        assert torch.equal(moved.kl, plain.kl)
    assert_identical(gradients(model, shifted, eps), gradients(model, rows, eps))


# Missing cells

POISONS: dict[torch.dtype, list[float]] = {
    torch.float32: [math.nan, math.inf, -math.inf, 1e30, -1.0],
    torch.int8: [-1, 2, 127, -128],
    torch.int32: [-1, 5, 10**6, -(2**31)],
    torch.uint8: [255, 0],
}


@pytest.mark.parametrize(("name", "poison"), [(name, p) for name in NAMES for p in POISONS[STORAGE.get(name, torch.float32)]])
def test_the_value_stored_in_a_missing_cell_changes_nothing_bit_for_bit(name: str, poison: float) -> None:
    model, rows, eps = build(FIELDS), make_rows(), noise(12, LATENT_DIM)
    missing = ~rows.valid[name].expand_as(rows.values[name])
    assert 0 < missing.sum() < missing.numel()
    poisoned = replaced(rows, name, values=rows.values[name].masked_fill(missing, poison))
    assert not torch.equal(poisoned.values[name], rows.values[name])
    assert_identical(model.posterior(poisoned).parameters, model.posterior(rows).parameters)
    assert_identical(model.elbo(poisoned, eps), model.elbo(rows, eps))
    assert_identical(model.evaluate_elbo(poisoned, eps[None]), model.evaluate_elbo(rows, eps[None]))
    assert_identical(gradients(model, poisoned, eps), gradients(model, rows, eps))


@pytest.mark.parametrize("name", NAMES)
def test_the_value_of_an_observed_cell_changes_the_bound_and_the_posterior(name: str) -> None:
    rows, model = make_rows(missing=0), build(FIELDS)
    cells = rows.values[name]
    values = cells.flip(0)
    other = replaced(rows, name, values=values)
    differs = (values != cells).any(1)
    assert differs.any()
    assert ((model.elbo(other, noise(12, LATENT_DIM)).elbo != model.elbo(rows, noise(12, LATENT_DIM)).elbo) == differs).all()
    assert ((model.posterior(other).mean != model.posterior(rows).mean).any(1) == differs).all()


@pytest.mark.parametrize("name", NAMES)
def test_the_encoder_tells_a_missing_cell_from_an_observed_one(name: str) -> None:
    rows, model = make_rows(missing=0), build(FIELDS)
    hidden = replaced(rows, name, valid=torch.zeros_like(rows.valid[name]))
    assert (model.posterior(hidden).mean != model.posterior(rows).mean).any(1).all()


def test_a_missing_cell_has_features_of_zero_and_a_flag() -> None:
    rows = make_rows()
    model = build(FIELDS)
    features = model.features(rows)
    sizes = [(lik.num_features, model.flag_sizes[name]) for name, lik in model._likelihoods().items()]
    parts = iter(torch.split(features, [size for pair in sizes for size in pair], 1))
    for name, likelihood in model._likelihoods().items():
        cells, flags = next(parts), next(parts)
        assert torch.equal(flags, rows.valid[name].float())
        seen = rows.valid[name].expand(-1, likelihood.size)[:, likelihood.cell_of_feature()]
        assert (cells[~seen] == 0).all()
        assert torch.equal(cells[seen], likelihood.features(rows.values[name])[seen].float())
    assert next(parts, None) is None


def test_a_field_without_nulls_has_no_flags_and_a_cell_missing_for_the_first_time_counts_as_the_mean() -> None:
    model = build([{**field, "with_flags": False} for field in FIELDS])
    rows = make_rows()
    features = model.features(rows)
    assert features.shape[1] == sum(lik.num_features for lik in model._likelihoods().values())
    likelihood = model._likelihoods()["numeric"]
    assert torch.equal(features[:, : likelihood.num_features], likelihood.observed_features(rows.values["numeric"], rows.valid["numeric"]))
    assert not rows.valid["numeric"].all()


def test_a_row_without_a_cell_has_a_log_likelihood_of_exactly_its_log_jacobian() -> None:
    rows = make_rows(missing=1.1)
    bound = build(FIELDS).elbo(rows, noise(12, LATENT_DIM))
    assert (bound.expected_log_likelihood == 0).all()
    assert torch.equal(bound.elbo, -bound.kl)
    jacobian = torch.linspace(-3, 3, 12)
    assert torch.equal(build(FIELDS).elbo(rows._replace(log_jacobian=jacobian), noise(12, LATENT_DIM)).expected_log_likelihood, jacobian)


def test_a_column_that_is_always_missing_adds_nothing_whatever_it_holds() -> None:
    extra = {"name": "extra", "likelihood": "gaussian", "valid_size": 1, "size": 1}
    model, rows, z = build([*FIELDS[:1], extra]), make_rows(), noise(12, LATENT_DIM)
    never = torch.zeros(12, 1, dtype=torch.bool)
    bounds = []
    for value in (0.0, math.nan, 1e9):
        with_extra = Rows(
            {"numeric": rows.values["numeric"], "extra": torch.full((12, 1), value)},
            {"numeric": rows.valid["numeric"], "extra": never},
            rows.log_jacobian,
        )
        bounds.append(model.elbo(with_extra, noise(12, LATENT_DIM)))
        p_x = model.likelihood(z)
        torch.testing.assert_close(p_x.log_prob(with_extra), p_x.cell_log_probs(with_extra)["numeric"].sum(-1))
    for bound in bounds[1:]:
        assert_identical(bound, bounds[0])


@pytest.mark.parametrize("name", ["vector_0", "image_0", "categorical", "boolean"])
def test_one_flag_for_a_row_equals_the_same_flag_for_each_cell(name: str) -> None:
    rows, model, eps = make_rows(), build(FIELDS), noise(12, LATENT_DIM)
    flag = rows.valid[name][:, :1]
    for_row = replaced(rows, name, valid=flag)
    for_cells = replaced(rows, name, valid=flag.expand_as(rows.values[name]))
    assert_identical(model.posterior(for_row).parameters, model.posterior(for_cells).parameters)
    assert_identical(model.elbo(for_row, eps), model.elbo(for_cells, eps))


# Batches


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
def test_a_rows_bound_does_not_depend_on_the_other_rows(dtype: torch.dtype, tolerance: float) -> None:
    model, rows = build(FIELDS).to(dtype), make_rows(num_rows=40)
    eps = noise(40, LATENT_DIM, dtype=dtype)
    whole = model.elbo(rows, eps)
    for pieces in (1, 7, 40):
        for index in torch.split(torch.randperm(40, generator=generator(pieces)), pieces):
            for part, of_all in zip(model.elbo(rows.take(index), eps[index]), whole, strict=True):
                torch.testing.assert_close(part, of_all[index], rtol=tolerance, atol=tolerance)


def test_a_batch_without_rows_has_empty_bounds_and_gradients_of_exactly_zero() -> None:
    model = build(FIELDS)
    rows = make_rows(num_rows=0)
    assert [part.shape for part in model.elbo(rows, noise(0, LATENT_DIM))] == [(0,)] * 4
    assert [part.shape for part in model.evaluate_elbo(rows, noise(2, 0, LATENT_DIM))] == [(0,)] * 4
    found = gradients(model, rows, noise(0, LATENT_DIM))
    assert found.keys() == dict(model.named_parameters()).keys()
    assert all((grad == 0).all() for grad in found.values())


def test_every_parameter_gets_a_gradient() -> None:
    model = build(FIELDS)
    found = gradients(model, make_rows(num_rows=200, missing=0.1), noise(200, LATENT_DIM))
    assert found.keys() == dict(model.named_parameters()).keys()
    for name, grad in found.items():
        assert grad.isfinite().all()
        assert grad.abs().sum() > 0, name
    assert len(found) == 2 * 3 + 2 * 3 + 6  # two networks of three layers, and the six fields with a scale


def test_gradients_are_the_slopes_of_the_elbo() -> None:
    model, rows, eps = build(FIELDS).double(), make_rows(num_rows=5), noise(5, LATENT_DIM, dtype=torch.float64)
    found = gradients(model, rows, eps)
    direction = {name: torch.randn(p.shape, generator=generator(1), dtype=torch.float64) for name, p in model.named_parameters()}
    slope = sum(float((found[name] * direction[name]).sum()) for name in found)

    def moved(size: float) -> float:
        with torch.no_grad():
            state = {name: parameter + size * direction[name] for name, parameter in model.named_parameters()}
            bound = torch.func.functional_call(model, state, (rows, eps))
            return -float(bound.elbo.sum())

    assert slope == pytest.approx((moved(1e-7) - moved(-1e-7)) / 2e-7, rel=1e-5)


def test_a_model_in_float64_answers_in_float64() -> None:
    model, rows = build(FIELDS).double(), make_rows()
    bound = model.elbo(rows, noise(12, LATENT_DIM, dtype=torch.float64))
    assert {part.dtype for part in bound} == {torch.float64}
    assert {part.dtype for part in model.posterior(rows).parameters} == {torch.float64}
    for part, single in zip(bound, build(FIELDS).elbo(rows, noise(12, LATENT_DIM, dtype=torch.float64).float()), strict=True):
        torch.testing.assert_close(part, single.double(), rtol=1e-4, atol=1e-3)


def test_under_bfloat16_autocast_the_bound_stays_in_float32() -> None:
    model, rows, eps = build(FIELDS), make_rows(), noise(12, LATENT_DIM)
    with torch.autocast("cpu", torch.bfloat16):
        bound = model(rows, eps)
    assert {part.dtype for part in bound} == {torch.float32}
    for part, single in zip(bound[:3], model(rows, eps)[:3], strict=True):
        assert not torch.equal(part, single)
        torch.testing.assert_close(part, single, rtol=0.05, atol=0.5)


# Generation


def test_generated_rows_are_in_the_fields_storage_and_follow_the_seed() -> None:
    model = build(FIELDS)
    first, again, other = (model.generate(200, generator(seed)).values for seed in (1, 1, 2))
    assert list(first) == NAMES
    for name, cells in first.items():
        stored = make_rows().values[name]
        assert cells.dtype == stored.dtype
        assert cells.shape == (200, stored.shape[1])
        assert torch.equal(cells, again[name])
        assert not torch.equal(cells, other[name])
    assert (first["categorical"].amax(0) == torch.tensor([2, 0, 4])).all()
    everything = Rows(first, {name: torch.ones(200, 1, dtype=torch.bool) for name in NAMES}, torch.zeros(200))
    assert model.elbo(everything, noise(200, LATENT_DIM)).elbo.isfinite().all()


# Evaluation, and the exact answers


def test_evaluate_elbo_has_the_same_expectation_as_elbo_and_less_noise() -> None:
    model = build(FIELDS)
    row = make_rows(num_rows=1, seed=3, missing=0.2).take(torch.zeros(20_000, dtype=torch.int64))
    with torch.no_grad():
        plain: Bound = model.elbo(row, noise(20_000, LATENT_DIM, seed=1))
        better = model.evaluate_elbo(row, noise(1, 20_000, LATENT_DIM, seed=2))
    for a, b in ((plain.elbo.double(), better.elbo.double()), (plain[1].double(), better[1].double())):
        standard_error = ((a.var() + b.var()) / 20_000).sqrt()
        assert standard_error < 0.1
        assert (a.mean() - b.mean()).abs() < 4 * standard_error
    torch.testing.assert_close(better.elbo, better.expected_log_likelihood - better.kl, rtol=0, atol=1e-4)


def test_evaluate_elbo_averages_over_its_samples() -> None:
    model, rows, eps = build(FIELDS).double(), make_rows(), noise(4, 12, LATENT_DIM, dtype=torch.float64)
    apart = torch.stack([model.evaluate_elbo(rows, one[None]).elbo for one in eps])
    torch.testing.assert_close(model.evaluate_elbo(rows, eps).elbo, apart.mean(0), rtol=1e-12, atol=1e-12)
    assert apart.std(0).min() > 0


def exact_vae(ppca: PPCA) -> VAE:
    """The linear VAE that has the decoder of probabilistic PCA and, as encoder, its exact posterior (R = I: it is diagonal)."""
    num_features, latent_dim = ppca.weight.shape
    model = VAE([vector_field(num_features)], latent_dim, network="linear").double()
    to_mean = torch.linalg.solve(ppca.inner, ppca.weight.mT)
    state = {
        "likelihoods.vector.log_scale": 0.5 * ppca.variance.log()[None],
        "decoder.weight": ppca.weight,
        "decoder.bias": ppca.mean,
        "encoder.weight": torch.zeros(2 * latent_dim, num_features + 1, dtype=torch.float64),  # the last feature is the flag
        "encoder.bias": torch.cat([-to_mean @ ppca.mean, 0.5 * (ppca.variance / ppca.inner.diagonal()).log()]),
    }
    state["encoder.weight"][:latent_dim, :num_features] = to_mean
    model.load_state_dict(state)
    return model


def correlated(num_rows: int = 60, num_features: int = 7) -> Tensor:
    mixing = noise(num_features, num_features, seed=1, dtype=torch.float64)
    return noise(num_rows, num_features, seed=2, dtype=torch.float64) @ mixing + 3 * noise(num_features, seed=3, dtype=torch.float64)


@pytest.mark.parametrize("scale", [1.0, 0.01, 250.0])
@pytest.mark.parametrize("centred", [True, False])
def test_a_model_with_the_exact_posterior_reports_the_log_evidence_in_data_units_without_noise(scale: float, centred: bool) -> None:
    x = correlated() * scale * 1.7
    center = x.mean(0) if centred else torch.zeros(7, dtype=torch.float64)
    rows = standardised(x, center, scale)
    model = exact_vae(fit_ppca(rows.values["vector"], 3))
    in_data_units = fit_ppca(x, 3)
    q_z = model.posterior(rows)
    for seed in range(3):
        z = q_z.mean + 3 * noise(60, 3, seed=seed, dtype=torch.float64)  # any z, not only likely ones
        log_joint = model.likelihood(z).log_prob(rows) + model.latent_prior().log_prob(z)
        torch.testing.assert_close(log_joint - q_z.log_prob(z), in_data_units.log_evidence(x), rtol=1e-9, atol=1e-9)
        bound = model.evaluate_elbo(rows, noise(2, 60, 3, seed=seed, dtype=torch.float64))
        torch.testing.assert_close(bound.elbo, in_data_units.log_evidence(x), rtol=1e-9, atol=1e-9)
    assert model.elbo(rows, noise(60, 3, dtype=torch.float64)).elbo.sub(in_data_units.log_evidence(x)).abs().min() > 1e-6


def test_no_other_parameters_report_more_than_the_maximum_likelihood() -> None:
    x = correlated()
    ppca = fit_ppca(x, 3)
    rows = standardised(x, torch.zeros(7, dtype=torch.float64), 1.0)
    for seed in range(20):
        model = exact_vae(ppca)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator(seed), dtype=torch.float64), alpha=0.03)
            elbo = model.evaluate_elbo(rows, noise(200, 60, 3, seed=seed, dtype=torch.float64)).elbo.mean()
        assert elbo < ppca.mean_log_evidence - 1e-3


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"network": "transformer"}, "network is 'transformer'; there are conv, gated"),
        ({"decoder_network": "transformer"}, "network is 'transformer'"),
        ({"prior": "flow"}, "prior is 'flow'; there are conditional, mixture, standard, vamp"),
        ({"posterior": "flow"}, "posterior is 'flow'; there are diagonal, full"),
        ({"fields": [ONE | {"likelihood": "gausian"}]}, "the likelihood of field 'one' is 'gausian'; there are bernoulli,"),
        ({"fields": [ONE, ONE]}, "several fields are named 'one'"),
        ({"fields": [ONE], "condition_fields": [ONE]}, "several fields are named 'one'"),
        ({"fields": [{"name": "one", "size": 2}]}, r"field 0 \(one\) lacks likelihood, valid_size"),
        ({"fields": [ONE | {"name": "a.b"}]}, "has a dot in its name"),
        ({"fields": [{"name": "one", "likelihood": "categorical", "sizes": [2, 0], "valid_size": 2}]}, r"sizes is \[2, 0\]"),
    ],
)
def test_what_makes_no_model_is_refused_by_its_name(options: dict[str, Any], said: str) -> None:
    made: dict[str, Any] = {"fields": FIELDS, "latent_dim": 2} | options
    with pytest.raises(ValueError, match=said):
        VAE(**made)


def test_noise_of_another_shape_is_refused() -> None:
    model = VAE([ONE], 2, [4])
    rows = Rows({"one": torch.zeros(3, 2)}, {"one": torch.ones(3, 2, dtype=torch.bool)}, torch.zeros(3))
    with pytest.raises(ValueError, match=r"noise is of shape \[1, 2\]; 3 rows need \[3, 2\]"):
        model.elbo(rows, torch.zeros(1, 2))
    with pytest.raises(ValueError, match=r"noise is of shape \[3, 2\]; 3 rows need \[S, 3, 2\]"):
        model.evaluate_elbo(rows, torch.zeros(3, 2))
    with pytest.raises(ValueError, match="num_importance_samples is 0"):
        log_evidence_bound(model, rows, 0, torch.Generator())
    assert not log_evidence_bound(model, rows, 3, torch.Generator()).requires_grad
