"""Claims about vae.objective: gradients without bias, bounds in their order, the plain ELBO whatever is optimised.

Expectations over the noise of one latent dimension are sums over a grid: no draw, so no tolerance for luck.
"""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from vae.model import VAE
from vae.objective import Loss, Objective
from vae.oracle import gauss_hermite_log_evidence
from vae.priors import GAIN
from vae.rows import Rows

FIELDS: list[dict[str, Any]] = [{"name": "x", "likelihood": "gaussian", "size": 3, "valid_size": 3, "null_pattern": [0, 2]}]


def build(latent_dim: int = 1, spread: float = 0.3, **options: Any) -> VAE:
    """Returns a model whose networks are smooth, as quadrature wants them."""
    torch.manual_seed(0)
    model = VAE(FIELDS, latent_dim, [4], "gated", num_prior_components=3, **options).double()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            gain = GAIN if name.startswith("prior.scaled_") else 1.0
            parameter.add_(spread / gain * torch.randn(parameter.shape, dtype=torch.float64))
    return model


def rows_of(num_rows: int = 2) -> Rows:
    g = torch.Generator().manual_seed(1)
    values = torch.randn(num_rows, 3, generator=g, dtype=torch.float64)
    return Rows({"x": values}, {"x": torch.rand(num_rows, 3, generator=g) > 0.3}, torch.zeros(num_rows, dtype=torch.float64))


def nodes(num_nodes: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Returns points and weights of the trapezoidal rule under a standard normal, which converges faster than any power."""
    at = np.linspace(-8, 8, num_nodes)
    weights = np.exp(-0.5 * at**2)
    return at, weights / weights.sum()


def gradients(model: VAE) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def expected_gradients(objective: Objective, model: VAE, rows: Rows, beta: float) -> dict[str, Tensor]:
    """Returns the expectation over noise of the gradients that training takes."""
    num_samples = objective.num_samples
    at, weights = nodes(121 if num_samples == 1 else 51)
    model.zero_grad()
    loss = Loss(model, objective)
    for index in product(range(len(at)), repeat=num_samples):
        noise = torch.tensor([at[i] for i in index], dtype=torch.float64).expand(rows.num_rows, -1)
        noise = noise if num_samples == 1 else noise[..., None]
        (float(np.prod([weights[i] for i in index])) * loss(rows, noise, beta)[0]).backward()
    return gradients(model)


def exact_gradients(objective: Objective, model: VAE, rows: Rows, beta: float) -> dict[str, Tensor]:
    """Returns the gradients of the bound's own expectation, by quadrature over z under a density that does not depend on the model.

    With z from a fixed N(0, 3^2) nothing is reparameterised: the expectation over q is an integral of q f dz.
    """
    z = torch.linspace(-14, 14, 1121 if objective.num_samples == 1 else 561, dtype=torch.float64)[:, None, None]
    spacing = float(z[1, 0, 0] - z[0, 0, 0])
    model.zero_grad()
    q_z, p_z = model.posterior(rows), model.latent_prior()
    points = z.expand(-1, rows.num_rows, 1)
    p_x, log_q = model.likelihood(points), q_z.log_prob(points)
    log_w = p_x.log_prob(rows) + p_x.null_pattern_log_prob(rows) + beta * (p_z.log_prob(points) - log_q)
    if objective.num_samples == 1:
        bound = (log_q.exp() * log_w).sum(0) * spacing
    else:
        pairs = torch.logaddexp(log_w[:, None], log_w[None]) - np.log(2)
        bound = ((log_q[:, None] + log_q[None]).exp() * pairs).sum((0, 1)) * spacing**2
    torch.autograd.backward(-bound.sum())
    return gradients(model)


@pytest.mark.parametrize(
    ("objective", "prior"),
    [
        *((objective, prior) for objective in (Objective(), Objective("iwae", 1)) for prior in ("standard", "mixture", "vamp")),
        (Objective("iwae", 2, doubly_reparameterised=False), "standard"),
        (Objective("iwae", 2, doubly_reparameterised=True), "vamp"),
    ],
)
@pytest.mark.parametrize("beta", [1.0, 0.2, 1.5])
def test_gradients_are_those_of_the_bound_on_average(objective: Objective, prior: str, beta: float) -> None:
    model, rows = build(spread=0.1, prior=prior), rows_of(1)
    expected = exact_gradients(objective, model, rows, beta)
    found = expected_gradients(objective, model, rows, beta)
    assert found.keys() == expected.keys()
    atol = 1e-9 if objective.num_samples == 1 else 2e-3  # a coarse grid of pairs; a wrong factor leaves 0.1
    for name, gradient in expected.items():
        scale = max(1.0, float(gradient.abs().max()))
        torch.testing.assert_close(found[name] / scale, gradient / scale, rtol=0, atol=atol, msg=name)
    assert max(float(gradient.abs().max()) for gradient in expected.values()) > 0.1


def test_the_doubly_reparameterised_gradient_of_the_encoder_vanishes_at_the_exact_posterior_and_the_plain_one_does_not() -> None:
    """A linear decoder has a Gaussian posterior: where the encoder gives it, every importance weight is the same."""
    torch.manual_seed(0)
    fields = [{"name": "x", "likelihood": "gaussian", "size": 3, "valid_size": 1, "with_flags": False}]
    model = VAE(fields, 1, [], "linear").double()
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    weight = weights["decoder.weight"]  # [3, 1]
    precision = torch.exp(-2 * weights["likelihoods.x.log_scale"])
    variance = 1 / (1 + (weight.square() * precision[:, None]).sum())
    with torch.no_grad():
        gain = variance * weight[:, 0] * precision
        weights["encoder.weight"].copy_(torch.stack([gain, torch.zeros(3, dtype=torch.float64)]))
        weights["encoder.bias"].copy_(torch.stack([-(gain @ weights["decoder.bias"]), 0.5 * variance.log()]))
    rows = rows_of(4)._replace(valid={"x": torch.ones(4, 1, dtype=torch.bool)})
    noise = torch.randn(4, 5, 1, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    found = []
    for twice in (True, False):
        model.zero_grad()
        Loss(model, Objective("iwae", 5, doubly_reparameterised=twice))(rows, noise, 1.0)[0].backward()
        found.append(float(gradients(model)["encoder.weight"].abs().max()))
    assert found[0] < 1e-12
    assert found[1] > 1e-3


def test_the_importance_bound_rises_with_its_samples_up_to_log_p() -> None:
    model, rows = build(spread=0.1), rows_of(4)

    def log_joint(z: Tensor) -> Tensor:
        p_x = model.likelihood(z[:, None].expand(-1, 4, -1))
        return p_x.log_prob(rows) + p_x.null_pattern_log_prob(rows)

    with torch.no_grad():
        log_p = gauss_hermite_log_evidence(log_joint, 150)
        noise = torch.randn(4, 64, 20_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        means, errors = [], []
        for num_samples in (1, 2, 8, 64):
            objective = Objective("iwae", num_samples, doubly_reparameterised=False)
            repeated = Rows(
                {"x": rows.values["x"].repeat(20_000, 1)}, {"x": rows.valid["x"].repeat(20_000, 1)}, rows.log_jacobian.repeat(20_000)
            )
            z_noise = noise[:, :num_samples].permute(2, 0, 1).reshape(80_000, num_samples, 1)
            each = torch.stack([-Loss(model, objective)(repeated.slice(i, i + 4), z_noise[i : i + 4], 1.0)[0] for i in range(0, 4000, 4)])
            means.append(float(each.mean()))
            errors.append(float(each.std() / len(each) ** 0.5))
    assert all(b - a > -4 * (s + t) for a, b, s, t in zip(means, means[1:], errors, errors[1:], strict=False))
    assert means[-1] > means[0] + 4 * errors[0]
    total = float(log_p.sum())
    assert all(mean < total + 4 * error for mean, error in zip(means, errors, strict=True))
    assert means[-1] == pytest.approx(total, abs=0.1)


@pytest.mark.parametrize("posterior", ["diagonal", "full"])
@pytest.mark.parametrize("objective", [Objective(), Objective(free_bits=0.3), Objective("iwae", 3)])
def test_what_is_reported_is_the_plain_bound_whatever_is_optimised(objective: Objective, posterior: str) -> None:
    model, rows = build(latent_dim=2, posterior=posterior), rows_of(5)
    noise = torch.randn(5, objective.num_samples, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    noise = noise[:, 0] if objective.num_samples == 1 else noise
    bounds = [Loss(model, objective)(rows, noise, beta)[1] for beta in (1.0, 0.1)]
    for part, other in zip(*bounds, strict=True):
        assert torch.equal(part, other)
    if objective.num_samples == 1:
        for part, other in zip(bounds[0], model.elbo(rows, noise), strict=True):
            torch.testing.assert_close(part, other)
    else:
        for part, other in zip(bounds[0], model.evaluate_elbo(rows, noise.movedim(1, 0)), strict=True):
            torch.testing.assert_close(part, other)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "IWAE"}, "the kind of objective is 'IWAE'; there are elbo, iwae"),
        ({"kind": "iwae", "num_importance_samples": 0}, "num_importance_samples is 0"),
        ({"kind": "iwae", "free_bits": 0.5}, r"free_bits is 0\.5; it must be 0 with iwae"),
    ],
)
def test_what_would_be_ignored_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Objective(**options)


def test_beta_weighs_the_kl_alone() -> None:
    model, rows, noise = build(), rows_of(), torch.zeros(2, 1, dtype=torch.float64)
    (at_zero, bound), (at_two, _) = (Loss(model, Objective())(rows, noise, beta) for beta in (0.0, 2.0))
    torch.testing.assert_close(at_zero, -(bound.expected_log_likelihood + bound.null_pattern).sum())
    torch.testing.assert_close(at_two - at_zero, 2 * bound.kl.sum())


def test_free_bits_take_the_cost_from_dimensions_below_them_over_the_global_batch() -> None:
    model, rows = build(latent_dim=3), rows_of(6)
    noise = torch.zeros(6, 3, dtype=torch.float64)
    parts = model.posterior(rows).kl_by_dimension(model.latent_prior())
    assert parts is not None
    means = parts.detach().mean(0).sort().values
    threshold = float(means[0] + means[1]) / 2
    (with_bits, bound), (without, _) = (
        Loss(model, Objective(free_bits=bits))(rows, noise, beta) for bits, beta in ((threshold, 1.0), (0.0, 0.0))
    )
    torch.testing.assert_close(with_bits - without, parts[:, parts.mean(0) > threshold].sum())
    torch.testing.assert_close(bound.kl, parts.sum(1))

    def by_two_workers() -> list[Tensor]:
        """Each worker has half of the rows; both know the sums over all six."""
        own = [torch.cat([half.detach().sum(0), torch.full((1,), 3.0, dtype=torch.float64)]) for half in parts.chunk(2)]
        total = own[0] + own[1]
        return [
            Loss(model, Objective(free_bits=threshold), lambda _: total)(half, noise[:3], 1.0)[0]
            for half in (rows.slice(0, 3), rows.slice(3, 6))
        ]

    torch.testing.assert_close(sum(by_two_workers()), with_bits)


def test_free_bits_of_a_kl_without_dimensions_are_those_of_all_of_them() -> None:
    model, rows = build(latent_dim=2, posterior="full"), rows_of(4)
    noise = torch.zeros(4, 2, dtype=torch.float64)
    mean = float(model.posterior(rows).kl(model.latent_prior()).mean().detach())
    for bits, costs in ((mean / 2 * 1.01, False), (mean / 2 * 0.99, True)):
        loss, bound = Loss(model, Objective(free_bits=bits))(rows, noise, 1.0)
        expected = -(bound.expected_log_likelihood + bound.null_pattern).sum() + costs * bound.kl.sum()
        torch.testing.assert_close(loss, expected)
