"""Claims that hold for every likelihood: probabilities sum to one, draws follow them, means and slopes are theirs, nothing overflows."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.vae.likelihood_cases import CASES, INTEGERS, Case, Support, disturb, generator, outputs_of
from vae.categories import Categorical
from vae.cells import CellDistribution
from vae.likelihoods import LIKELIHOODS, Likelihood, without_missing

every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
NUM_DRAWS = 100_000


def test_every_likelihood_has_a_case() -> None:
    assert {case.name for case in CASES.values()} == set(LIKELIHOODS)


@every_case
def test_what_only_a_density_needs_is_a_parameter_of_the_likelihood_itself_and_no_buffer_is_stored(case: Case) -> None:
    """A condition's likelihood is stripped of these by name, and keeps its embeddings; a bundle holds what is learned."""
    likelihood = case.build()
    names = [name for name, _ in likelihood.named_parameters()]
    assert all("." not in name or name.startswith("embedding.") for name in names)
    assert sorted(likelihood.state_dict()) == sorted(names)


def probabilities(likelihood: Likelihood, outputs: Tensor, support: Support) -> Tensor:
    """Returns p of each value, times its weight: rows whose sums are 1, [B, V]."""
    of_value = outputs[:, None].expand(-1, len(support.values) if isinstance(likelihood, Categorical) else 1, -1)
    with torch.no_grad():
        p: Tensor = likelihood(of_value).log_prob(support.values[:, None])[..., 0].exp() * support.weights
    return p


@every_case
@pytest.mark.parametrize("size", [0.0, 1.0, 2.0])
def test_probabilities_sum_to_one(case: Case, size: float) -> None:
    support = case.support()
    for seed in range(3):
        likelihood = disturb(case.build(), seed)
        total = probabilities(likelihood, outputs_of(likelihood, 6, seed, size).clamp(-3, 3), support).sum(-1)
        torch.testing.assert_close(total, torch.ones(6, dtype=torch.float64), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "name",
    [
        name
        for name, case in CASES.items()
        if case.name.endswith(("discretised_gaussian", "discretised_logistics")) and "heaps" not in case.arguments  # whose end may be none
    ],
)
@pytest.mark.parametrize("output", [-60.0, 60.0])
def test_whoever_is_far_out_is_in_the_end_of_the_range(name: str, output: float) -> None:
    likelihood = CASES[name].build()
    outputs = torch.full((1, likelihood.num_outputs), output, dtype=torch.float64)
    if likelihood.num_outputs > 1:
        outputs.view(3, -1)[2] = -1.0
    p = probabilities(likelihood, outputs, CASES[name].support())[0]
    assert p[-1 if output > 0 else 0].item() == pytest.approx(1, abs=1e-6)
    assert p.sum().item() == pytest.approx(1, abs=1e-9)


# Sampling


def distribution_of(likelihood: Likelihood, seed: int) -> tuple[Tensor, CellDistribution]:
    """One row's outputs and NUM_DRAWS times their distribution."""
    outputs = outputs_of(likelihood, 1, seed)
    with torch.no_grad():
        return outputs, likelihood(outputs.expand(NUM_DRAWS, -1))


@every_case
def test_draws_are_as_frequent_as_they_are_probable(case: Case) -> None:
    """Frequencies within 5 standard errors, and where there is a density, Kolmogorov and Smirnov's distance: a chance of 10^-6."""
    support = case.support()
    for seed in range(2):
        likelihood = disturb(case.build(), seed)
        outputs, distribution = distribution_of(likelihood, seed)
        drawn = distribution.sample(generator(seed))[:, 0]
        p = probabilities(likelihood, outputs, support)[0]
        if case.integer_of is None:
            at = torch.searchsorted(drawn.double().sort().values, support.values.double(), right=True) / NUM_DRAWS
            steps = 0.5 / 255 if drawn.dtype == torch.uint8 else 0.0  # a density's draws, rounded to pixels
            distance = (at - (p.cumsum(0) - 0.5 * p)).abs().max().item()
            assert distance < 2.7 / math.sqrt(NUM_DRAWS) + 0.5 * p.max().item() + steps * 255 * (p / support.weights).max().item()
        else:
            counts = torch.bincount(case.integer_of(drawn), minlength=len(p)).double()
            expected, error = NUM_DRAWS * p, (NUM_DRAWS * p * (1 - p)).sqrt()
            assert len(counts) == len(p)
            assert ((counts - expected).abs() <= 5 * error + 1).all()


def inside_the_range(case: Case, likelihood: Likelihood, outputs: Tensor) -> Tensor:
    """Narrows what has a range, and moves it inside: there the values of a grid are the means of their intervals."""
    if "lower" not in case.arguments:
        return outputs
    for name, parameter in likelihood.named_parameters():
        if name.endswith("log_scale"):
            parameter.data.fill_(-2.2)
    shift = torch.zeros_like(outputs[:1]).view(1, 3 if case.name.endswith("logistics") else 1, -1)
    shift[:, shift.shape[1] // 2] = 0.0 if case.arguments["lower"] == INTEGERS["lower"] else 1.5
    return outputs + shift.flatten(1)


@every_case
def test_the_mean_is_the_expected_value_in_stored_units(case: Case) -> None:
    if case.name == "categorical":
        pytest.skip("its mean is the mode")
    if "heaps" in case.arguments:
        pytest.skip("its mean is what it would be if nothing was rounded")
    support = case.support()
    likelihood = case.build()
    outputs = inside_the_range(case, likelihood, outputs_of(likelihood, 8, 1, size=0.1))
    expected = (probabilities(likelihood, outputs, support) * support.values.double()).sum(-1)
    mean = likelihood(outputs).mean[:, 0]
    tolerance = 0.6 if mean.dtype == torch.uint8 else 0.01 if "lower" in case.arguments else 0.0
    assert mean.double().tolist() == pytest.approx(expected.tolist(), abs=tolerance + 1e-6)
    assert (mean.double() - mean.double().mean()).abs().max() > 0  # it follows the outputs


@every_case
def test_the_same_seed_draws_the_same_cells_and_they_fit_the_encoder(case: Case) -> None:
    likelihood = disturb(case.build(torch.float32), 0, 0.1)
    with torch.no_grad():
        distribution = likelihood(outputs_of(likelihood, 200, 0).float())
        first, again, other = (distribution.sample(generator(seed)) for seed in (1, 1, 2))
        assert torch.equal(first, again)
        assert not torch.equal(first, other)
        assert first.shape == distribution.mean.shape == (200, 1)
        features = likelihood.features(first)
    assert features.shape == (200, likelihood.num_features)
    assert len(likelihood.cell_of_feature()) == likelihood.num_features
    assert features.isfinite().all()
    assert distribution.log_prob(first).isfinite().all()


# Slopes


@every_case
def test_gradients_of_log_prob_are_its_slopes(case: Case) -> None:
    support = case.support()
    likelihood = disturb(case.build(), 0, 0.1)
    density = {name: parameter for name, parameter in likelihood.named_parameters() if not name.startswith("embedding.")}
    near = support.values[(support.values.double().abs() < 40) | (support.values == 255)]
    values = near[torch.linspace(0, len(near) - 1, 5).long()][:, None]

    def log_prob(outputs: Tensor, *parameters: Tensor) -> Tensor:
        distribution: CellDistribution = torch.func.functional_call(likelihood, dict(zip(density, parameters, strict=True)), (outputs,))
        return distribution.log_prob(values)

    inputs = [outputs_of(likelihood, 5, 3), *(parameter.detach().clone() for parameter in density.values())]
    for tensor in inputs:
        tensor.requires_grad_()
    assert torch.autograd.gradcheck(log_prob, inputs, eps=1e-6, atol=1e-5, rtol=1e-5)


def drawn(case: Case) -> tuple[Likelihood, Tensor, Tensor]:
    """Returns a case's likelihood, outputs for 40 rows whose gradients are asked for, and values drawn from it."""
    likelihood = disturb(case.build(), 0, 0.1)
    outputs = outputs_of(likelihood, 40, 3).requires_grad_()
    with torch.no_grad():
        values = likelihood(outputs).sample(generator())
    return likelihood, outputs, values


@every_case
def test_a_sum_over_observed_cells_has_the_values_and_slopes_of_every_cell(case: Case) -> None:
    likelihood, outputs, values = drawn(case)
    valid = torch.rand(40, 1, generator=generator(1)) < 0.7
    parts = [likelihood(outputs).sum_log_prob(values, valid), torch.where(valid, likelihood(outputs).log_prob(values), 0.0).sum(-1)]
    torch.testing.assert_close(*parts, rtol=1e-9, atol=1e-9)
    slopes = [torch.autograd.grad(part.sum(), outputs)[0] for part in parts]
    torch.testing.assert_close(*slopes, rtol=1e-7, atol=1e-9)


@every_case
def test_second_slopes_are_those_of_every_cell_or_refused_and_never_wrong(case: Case) -> None:
    likelihood, outputs, values = drawn(case)
    valid = torch.ones(40, 1, dtype=torch.bool)
    total, apart = likelihood(outputs).sum_log_prob(values, valid).sum(), likelihood(outputs).log_prob(values).sum()
    try:
        found = second_slopes(total, outputs)
    except RuntimeError as error:
        if "leave out create_graph" not in str(error):
            raise
        return
    torch.testing.assert_close(found, second_slopes(apart, outputs), rtol=1e-7, atol=1e-9)


def second_slopes(total: Tensor, outputs: Tensor) -> Tensor:
    """Returns the gradient of the sum of the squared gradient."""
    (gradient,) = torch.autograd.grad(total, outputs, create_graph=True)
    (second,) = torch.autograd.grad(gradient.square().sum(), outputs, materialize_grads=True)
    return second


# No input makes a NaN or an infinity

LARGEST = 3.4028234663852886e38
extremes = st.sampled_from([x for size in (0.0, 1e-30, 0.3, 5.0, 90.0, 1e6, 1e15, 1e30, LARGEST) for x in (size, -size)])
# Scores of categories are compared with one another: their differences are floats, too.
LARGEST_SCORE = 2.0**126


def stored_extremes(case: Case, value: float) -> Tensor:
    """Cells [V, 1] that the storage of a case can hold."""
    if case.name == "categorical":
        return torch.tensor([[0], [3], [6]], dtype=torch.int32)
    if case.arguments.get("storage") == "uint8":
        return torch.tensor([[0], [1], [127], [128], [254], [255]], dtype=torch.uint8)
    return torch.tensor([[0], [1]], dtype=torch.int8) if case.name == "bernoulli" else torch.tensor([[value]])


@every_case
@settings(max_examples=60)
@given(value=extremes, outputs=st.lists(extremes, min_size=15, max_size=15), parameter=extremes, bfloat16=st.booleans())
def test_no_finite_value_output_or_parameter_gives_a_nan_or_an_infinity(
    case: Case, value: float, outputs: list[float], parameter: float, bfloat16: bool
) -> None:
    likelihood = case.build(torch.float32)
    largest = LARGEST_SCORE if case.name in ("categorical", "bernoulli") else LARGEST
    said = torch.tensor(outputs).clamp(-largest, largest).repeat(1 + likelihood.num_outputs // 15)[None, : likelihood.num_outputs]
    if bfloat16:
        said = said.bfloat16().float().nan_to_num()  # as the model takes what a decoder computes in bfloat16
    said = said.requires_grad_()
    learned = [p for name, p in likelihood.named_parameters() if not name.startswith("embedding.")]
    for tensor in learned:
        tensor.data.fill_(parameter)
    values = stored_extremes(case, value)
    distribution = likelihood(said.expand(len(values), -1))
    log_prob = distribution.log_prob(values)
    total = distribution.sum_log_prob(values, torch.ones(len(values), 1, dtype=torch.bool))
    if abs(value) <= 90:  # beyond, float32 does not tell the ends of an interval apart, and two ways to subtract them differ
        torch.testing.assert_close(total, log_prob.sum(-1), rtol=1e-5, atol=1e-4)
    slopes = torch.autograd.grad(log_prob.sum() + total.sum(), [said, *learned]) if case.name != "bernoulli" else ()
    for tensor in (log_prob, *slopes):
        assert not tensor.isnan().any()
        assert tensor.isfinite().all(), (log_prob, slopes)


@every_case
def test_the_value_stored_in_a_missing_cell_changes_nothing_bit_for_bit(case: Case) -> None:
    likelihood = disturb(case.build(torch.float32), 0, 0.1)
    outputs = outputs_of(likelihood, 60, 3).float().requires_grad_()
    with torch.no_grad():
        values = likelihood(outputs).sample(generator())
    valid = torch.rand(60, 1, generator=generator(1)) < 0.7
    found = []
    for poison in (None, 0, 1, 117) if not values.is_floating_point() else (None, math.nan, -math.inf, 1e30, -5.0):
        stored = values if poison is None else values.masked_fill(~valid, poison)
        total = likelihood(outputs).sum_log_prob(without_missing(stored, valid), valid)
        slopes = torch.autograd.grad(total.sum(), outputs)[0]
        with torch.no_grad():
            found.append((total, slopes, likelihood.observed_features(stored, valid)))
    for others in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], others, strict=True))
    assert (found[0][0][~valid[:, 0]] == 0).all()
    assert (found[0][2][~valid[:, 0]] == 0).all()
