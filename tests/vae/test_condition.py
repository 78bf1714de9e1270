"""Claims about conditional models: a bound on log p(x|c). Shapes: S samples, B rows, L latent dimensions, D features of x, C of c."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from vae.model import VAE
from vae.oracle import LOG_2PI, PPCA, fit_ppca
from vae.rows import Rows

NUM_FEATURES, NUM_CONDITIONS, LATENT_DIM = 7, 2, 3
X: dict[str, Any] = {"name": "vector_0", "likelihood": "gaussian", "valid_size": 1, "size": NUM_FEATURES, "shared_scale": True}
C: dict[str, Any] = {"name": "condition_numeric", "likelihood": "gaussian", "valid_size": NUM_CONDITIONS, "size": NUM_CONDITIONS}
MIXED: list[dict[str, Any]] = [
    C,
    {"name": "condition_integer", "likelihood": "discretised_gaussian", "valid_size": 1, "size": 1}
    | {"half_width": [0.1], "lower": [-9.0], "upper": [9.0]},
    {"name": "condition_boolean", "likelihood": "bernoulli", "valid_size": 1, "size": 1},
    {"name": "condition_categorical", "likelihood": "categorical", "valid_size": 2, "sizes": [3, 5]},
]


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def make_rows(x: Tensor, c: Tensor, valid: Tensor | None = None) -> Rows:
    """Rows of X and C; valid: which cells of c are there, [B, C]."""
    known = torch.ones(len(c), NUM_CONDITIONS, dtype=torch.bool) if valid is None else valid
    flags = {"vector_0": torch.ones(len(x), 1, dtype=torch.bool), "condition_numeric": known}
    return Rows({"vector_0": x, "condition_numeric": c}, flags, torch.zeros(len(x), dtype=x.dtype))


def sample(num_rows: int = 400) -> tuple[Tensor, Tensor]:
    """x = W z + A c + mean + noise, and c."""
    c = noise(num_rows, NUM_CONDITIONS, seed=1)
    weights = noise(NUM_FEATURES, LATENT_DIM, seed=2), noise(NUM_FEATURES, NUM_CONDITIONS, seed=3)
    x = noise(num_rows, LATENT_DIM, seed=4) @ weights[0].mT + c @ weights[1].mT + noise(NUM_FEATURES, seed=5)
    return x + 0.5 * noise(num_rows, NUM_FEATURES, seed=6), c


def regression(x: Tensor, c: Tensor) -> Tensor:
    """Returns the least-squares A of x = A c + constant, [D, C], the maximum of the likelihood whatever the noise's covariance."""
    inverse: Tensor = torch.linalg.pinv(c - c.mean(0))
    return (inverse @ (x - x.mean(0))).mT


def exact_vae(ppca: PPCA, effect: Tensor) -> VAE:
    """The linear VAE with decoder N(W z + effect c + mean, variance I) and its exact posterior as encoder."""
    model = VAE([X], LATENT_DIM, network="linear", condition_fields=[C]).double()
    to_mean = torch.linalg.solve(ppca.inner, ppca.weight.mT)
    encoder = torch.zeros(2 * LATENT_DIM, NUM_FEATURES + 1 + 2 * NUM_CONDITIONS, dtype=torch.float64)  # x, its flag, c, its flags
    encoder[:LATENT_DIM, :NUM_FEATURES] = to_mean
    encoder[:LATENT_DIM, NUM_FEATURES + 1 : NUM_FEATURES + 1 + NUM_CONDITIONS] = -to_mean @ effect
    state = {
        "likelihoods.vector_0.log_scale": 0.5 * ppca.variance.log()[None],
        "decoder.weight": torch.cat([ppca.weight, effect, torch.zeros_like(effect)], 1),  # z, c, the flags of c
        "decoder.bias": ppca.mean,
        "encoder.weight": encoder,
        "encoder.bias": torch.cat([-to_mean @ ppca.mean, 0.5 * (ppca.variance / ppca.inner.diagonal()).log()]),
    }
    model.load_state_dict(state)
    return model


def exact_model() -> tuple[VAE, Rows, Tensor, PPCA]:
    """The model of greatest likelihood of a sample: it, the rows, A, and the distribution of what A c leaves."""
    x, c = sample()
    effect = regression(x, c)
    ppca = fit_ppca(x - c @ effect.mT, LATENT_DIM)
    return exact_vae(ppca, effect), make_rows(x, c), effect, ppca


def conditional_density(rows: Rows, effect: Tensor, ppca: PPCA) -> Tensor:
    """Returns log N(x; A c + mean, W W^T + variance I), with the c of missing cells 0, [B], by the full covariance."""
    valid = rows.valid["condition_numeric"]
    mean = torch.where(valid, rows.values["condition_numeric"], 0.0) @ effect.mT + ppca.mean
    residual = rows.values["vector_0"] - mean
    squared_distance: Tensor = (residual * torch.linalg.solve(ppca.covariance, residual.mT).mT).sum(-1)
    return -0.5 * (NUM_FEATURES * LOG_2PI + torch.logdet(ppca.covariance) + squared_distance)


def analytic_elbo(model: VAE, rows: Rows) -> Tensor:
    """The ELBO of a linear decoder in closed form, [B]: E_q log p(x|z,c) = log p(x|E z,c) - tr(W^T W Var z) / 2 variance."""
    q_z = model.posterior(rows)
    weight = model.decoder.weight
    assert isinstance(weight, Tensor)
    precision = torch.exp(-2 * dict(model.named_parameters())["likelihoods.vector_0.log_scale"])
    spread = 0.5 * precision * (q_z.scale.square() * weight[:, :LATENT_DIM].square().sum(0)).sum(-1)
    return model.likelihood(q_z.mean, model.condition(rows)).log_prob(rows) - spread - q_z.kl(model.latent_prior())


def test_with_the_exact_posterior_the_bound_is_the_conditional_density_without_noise() -> None:
    model, rows, effect, ppca = exact_model()
    exact = conditional_density(rows, effect, ppca)
    torch.testing.assert_close(exact.mean(), ppca.mean_log_evidence, rtol=1e-10, atol=1e-10)
    for seed in range(3):
        bound = model.evaluate_elbo(rows, noise(2, rows.num_rows, LATENT_DIM, seed=seed))
        torch.testing.assert_close(bound.elbo, exact, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(analytic_elbo(model, rows), exact, rtol=1e-9, atol=1e-9)


def test_a_missing_condition_is_zero_whatever_is_stored_there() -> None:
    model, rows, effect, ppca = exact_model()
    valid = torch.rand(rows.num_rows, NUM_CONDITIONS, generator=torch.Generator().manual_seed(1)) < 0.5
    eps = noise(2, rows.num_rows, LATENT_DIM)
    bounds = []
    for stored in (0.0, float("nan"), 1e9):
        c = torch.where(valid, rows.values["condition_numeric"], stored)
        holed = make_rows(rows.values["vector_0"], c, valid)
        bounds.append(model.evaluate_elbo(holed, eps).elbo)
        torch.testing.assert_close(bounds[-1], conditional_density(holed, effect, ppca), rtol=1e-9, atol=1e-9)
    assert torch.equal(bounds[0], bounds[1])
    assert torch.equal(bounds[0], bounds[2])


def test_no_encoder_and_no_row_gets_more_than_the_conditional_density() -> None:
    model, rows, effect, ppca = exact_model()
    exact = conditional_density(rows, effect, ppca)
    for seed in range(10):
        other = exact_vae(ppca, effect)
        with torch.no_grad():
            for number, parameter in enumerate(other.encoder.parameters()):
                parameter.add_(noise(*parameter.shape, seed=100 * seed + number), alpha=0.03)
            gap = exact - analytic_elbo(other, rows)
            draws = noise(40, 5, rows.num_rows, LATENT_DIM, seed=seed)
            sampled = torch.stack([other.evaluate_elbo(rows, draw).elbo.mean() for draw in draws])
        assert gap.min() > 0
        standard_error = float(sampled.std()) / 40**0.5
        assert standard_error < 0.05
        assert abs(float(sampled.mean() - (exact - gap).mean())) < 4.5 * standard_error
    assert (exact - analytic_elbo(model, rows)).abs().max() < 1e-9


def test_other_rows_conditions_lower_the_bound() -> None:
    model, rows, effect, ppca = exact_model()
    order = torch.randperm(rows.num_rows, generator=torch.Generator().manual_seed(0))
    shuffled = make_rows(rows.values["vector_0"], rows.values["condition_numeric"][order])
    eps = noise(1, rows.num_rows, LATENT_DIM)
    own, others = (model.evaluate_elbo(each, eps).elbo for each in (rows, shuffled))
    torch.testing.assert_close(others, conditional_density(shuffled, effect, ppca), rtol=1e-9, atol=1e-9)
    assert own.mean() - others.mean() > 5


def test_a_model_that_does_not_heed_its_condition_bounds_the_density_without_it() -> None:
    """The condition itself has no term in the bound: with no weight on it, it changes no bit."""
    x, c = sample()
    ppca = fit_ppca(x, LATENT_DIM)
    model = exact_vae(ppca, torch.zeros(NUM_FEATURES, NUM_CONDITIONS, dtype=torch.float64))
    eps = noise(1, len(x), LATENT_DIM)
    own, far = (model.evaluate_elbo(make_rows(x, values), eps) for values in (c, 100 + 7 * c))
    torch.testing.assert_close(own.elbo, ppca.log_evidence(x), rtol=1e-9, atol=1e-9)
    assert all(torch.equal(a, b) for a, b in zip(own, far, strict=True))
    assert list(model.likelihood(eps[0], model.condition(make_rows(x, c))).cell_log_probs(make_rows(x, c))) == ["vector_0"]


def test_a_trained_linear_model_reaches_the_maximum_of_the_conditional_likelihood() -> None:
    _, rows, effect, ppca = exact_model()
    torch.manual_seed(0)
    model = VAE([X], LATENT_DIM, network="linear", condition_fields=[C]).double()
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=400, history_size=50, line_search_fn="strong_wolfe")

    def loss() -> float:
        optimizer.zero_grad()
        value = -analytic_elbo(model, rows).mean()
        torch.autograd.backward(value)
        return float(value.detach())

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    reached, maximum = float(analytic_elbo(model, rows).mean().detach()), float(ppca.mean_log_evidence)
    assert maximum - 0.01 < reached < maximum + 1e-9
    weight = model.decoder.weight
    assert isinstance(weight, Tensor)
    torch.testing.assert_close(weight[:, LATENT_DIM : LATENT_DIM + NUM_CONDITIONS], effect, rtol=0, atol=0.02)
    unconditional = float(fit_ppca(rows.values["vector_0"], LATENT_DIM).mean_log_evidence)
    assert reached > unconditional + 0.5


def mixed_rows(num_rows: int, c: Tensor) -> Rows:
    g = torch.Generator().manual_seed(0)
    values = {
        "vector_0": torch.randn(num_rows, NUM_FEATURES, generator=g),
        "condition_numeric": c.float(),
        "condition_integer": torch.randn(num_rows, 1, generator=g),
        "condition_boolean": torch.randint(0, 2, (num_rows, 1), generator=g, dtype=torch.int8),
        "condition_categorical": torch.stack([torch.randint(0, k, (num_rows,), generator=g) for k in (3, 5)], 1).int(),
    }
    valid = {str(field["name"]): torch.rand(num_rows, field["valid_size"], generator=g) < 0.8 for field in [X, *MIXED]}
    return Rows(values, valid, torch.zeros(num_rows))


def test_only_what_is_modelled_has_parameters_and_each_of_them_a_gradient() -> None:
    """DistributedDataParallel waits for the gradient of every parameter."""
    model = VAE([X], LATENT_DIM, [16], condition_fields=MIXED)
    assert [name for name, _ in model.named_parameters() if name.startswith(("likelihoods", "conditions"))] == [
        "likelihoods.vector_0.log_scale"
    ]
    rows = mixed_rows(50, noise(50, NUM_CONDITIONS))
    torch.autograd.backward(-model(rows, noise(50, LATENT_DIM).float()).elbo.mean())
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("name", [str(field["name"]) for field in MIXED])
def test_encoder_and_decoder_see_every_kind_of_condition_and_that_it_is_missing(name: str) -> None:
    torch.manual_seed(0)
    model = VAE([X], LATENT_DIM, [16], condition_fields=MIXED)
    rows = mixed_rows(50, noise(50, NUM_CONDITIONS))
    here, gone = (
        Rows(rows.values, rows.valid | {name: torch.full_like(rows.valid[name], there)}, rows.log_jacobian) for there in (True, False)
    )
    z = noise(50, LATENT_DIM).float()
    assert (model.posterior(here).mean != model.posterior(gone).mean).any(1).all()
    given, lost = (model.likelihood(z, model.condition(each)).fields["vector_0"].mean for each in (here, gone))
    assert (given != lost).any(1).all()


def test_generated_rows_follow_their_own_condition() -> None:
    model, _, effect, ppca = exact_model()
    c = noise(20_000, NUM_CONDITIONS, seed=9)
    condition = model.condition(make_rows(torch.zeros(20_000, NUM_FEATURES, dtype=torch.float64), c))
    cells = model.generate(20_000, torch.Generator().manual_seed(0), condition).values
    assert list(cells) == ["vector_0"]
    residuals = cells["vector_0"] - c @ effect.mT - ppca.mean
    assert residuals.mean(0).abs().max() < 0.1
    torch.testing.assert_close(residuals.mT.cov(), ppca.covariance, rtol=0, atol=0.3)
    assert torch.linalg.lstsq(c, cells["vector_0"]).solution.mT.sub(effect).abs().max() < 0.1


@pytest.mark.parametrize("prior", ["standard", "conditional"])
@pytest.mark.parametrize("num_told", [None, 1, 4])
def test_rows_are_not_generated_from_the_conditions_of_others(prior: str, num_told: int | None) -> None:
    model = VAE([X], LATENT_DIM, [8], prior=prior, condition_fields=[C])
    condition = None if num_told is None else torch.zeros(num_told, model.condition_size)
    found = "None" if num_told is None else rf"of shape \[{num_told}, {model.condition_size}\]"
    with pytest.raises(ValueError, match=rf"condition is {found}; 3 rows need \[3, {model.condition_size}\]"):
        model.generate(3, torch.Generator(), condition)


def test_a_model_without_a_condition_is_the_one_it_was() -> None:
    models = []
    for build in (VAE, partial(VAE, condition_fields=[])):
        torch.manual_seed(0)
        models.append(build([X], LATENT_DIM, [16]))
    assert "condition_fields" not in models[0].architecture
    assert models[0].architecture == models[1].architecture
    states = [model.state_dict() for model in models]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert models[0].condition(make_rows(noise(2, NUM_FEATURES), noise(2, NUM_CONDITIONS))) is None
