"""Claims about vae.information and vae.health: estimates against closed forms, planted collapses found, healthy models left alone.

The oracle is probabilistic PCA with its exact posterior and rows of its own distribution: q(z) is the prior, so I(x;z) is the rate, and
with A = M^-1 weight^T weight it is -1/2 log det(I - A). Shapes: B rows, D features, L latent dimensions.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from tests.vae.linear_models import build_linear, digits, vector_field
from vae.health import ACTIVE_VARIANCE, COLLAPSED, HEALTHY, PARTLY, examine, health_of
from vae.information import MAX_MIXED, information
from vae.model import VAE
from vae.oracle import PPCA
from vae.posteriors import DiagonalGaussian, FullGaussian, Posterior
from vae.priors import GAIN, ConditionalNormal, GaussianMixture, Sizes, StandardNormal
from vae.rows import Rows


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rows_of(x: Tensor) -> Rows:
    return Rows({"vector": x}, {"vector": torch.ones(len(x), 1, dtype=torch.bool)}, torch.zeros(len(x), dtype=x.dtype))


class Truth(NamedTuple):
    """A model of which all is known, rows drawn from it, and I(x;z) in nats."""

    ppca: PPCA
    x: Tensor
    mutual_information: float


def truth(seed: int, num_features: int, num_factors: int, latent_dim: int, num_rows: int = 1500, noise: float = 0.5) -> Truth:
    """Orthogonal factors, so that the exact posterior is diagonal; latent dimensions beyond them are without weight."""
    drawn = generator(seed)
    basis = torch.linalg.qr(torch.randn(num_features, num_features, generator=drawn, dtype=torch.float64)).Q[:, :num_factors]
    weight = torch.zeros(num_features, latent_dim, dtype=torch.float64)
    weight[:, :num_factors] = basis * (0.5 + 1.5 * torch.rand(num_factors, generator=drawn, dtype=torch.float64))
    z = torch.randn(num_rows, latent_dim, generator=drawn, dtype=torch.float64)
    x = z @ weight.T + noise * torch.randn(num_rows, num_features, generator=drawn, dtype=torch.float64)
    variance = torch.tensor(noise**2, dtype=torch.float64)
    ppca = PPCA(weight, torch.zeros(num_features, dtype=torch.float64), variance, torch.tensor(math.nan))
    return Truth(ppca, x, float(0.5 * torch.logdet(ppca.inner / variance)))


def posterior_of(ppca: PPCA, x: Tensor) -> DiagonalGaussian:
    mean, covariance = ppca.posterior(x)
    return DiagonalGaussian(mean, 0.5 * covariance.diagonal().log().expand_as(mean))


def exact_vae(ppca: PPCA, posterior: str = "diagonal") -> VAE:
    """The linear VAE that is the oracle: its decoder, and the exact posterior as its encoder."""
    num_features, latent_dim = ppca.weight.shape
    model = build_linear(num_features, latent_dim, posterior)
    inverse = torch.linalg.inv(ppca.inner)
    log_scale = 0.5 * (ppca.variance * inverse.diagonal()).log()
    below = torch.zeros(latent_dim * (latent_dim - 1) // 2 if posterior == "full" else 0, dtype=torch.float64)
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        parameters["encoder.weight"].zero_()[:latent_dim] = inverse @ ppca.weight.T
        parameters["encoder.bias"].copy_(torch.cat([-inverse @ ppca.weight.T @ ppca.mean, log_scale, below]))
        parameters["decoder.weight"].copy_(ppca.weight)
        parameters["decoder.bias"].copy_(ppca.mean)
        parameters["likelihoods.vector.log_scale"].fill_(0.5 * math.log(ppca.variance))
    return model


def train(model: VAE, x: Tensor, num_steps: int, beta: float, seed: int) -> None:
    drawn, optimiser = generator(seed), torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(num_steps):
        rows = rows_of(x[torch.randint(len(x), (128,), generator=drawn)])
        bound = model.elbo(rows, torch.randn(128, model.latent_dim, generator=drawn, dtype=x.dtype))
        optimiser.zero_grad()
        (beta * bound.kl - bound.expected_log_likelihood).mean().backward()  # type: ignore[no-untyped-call]
        optimiser.step()


def network(x: Tensor, latent_dim: int, seed: int, posterior: str = "diagonal", prior: str = "standard") -> VAE:
    torch.manual_seed(seed)
    field = vector_field(x.shape[1]) | {"with_flags": False}
    return VAE([field], latent_dim, hidden_dims=[32], posterior=posterior, prior=prior, num_prior_components=5).to(x.dtype)


def last_of(module: torch.nn.Module) -> torch.nn.Linear:
    return [layer for layer in module.modules() if isinstance(layer, torch.nn.Linear)][-1]


# Twenty collapses. Each returns a model and rows.


def encoder_ignores_rows(seed: int) -> tuple[VAE, Tensor]:
    """All rows have one posterior, away from the prior: the rate is high and says nothing."""
    _, x, _ = truth(seed, 8, 3, 4)
    model = network(x, 4, seed)
    with torch.no_grad():
        last_of(model.encoder).weight.zero_()
        last_of(model.encoder).bias.copy_(torch.randn(8, generator=generator(seed), dtype=x.dtype))
    return model, x


def posterior_is_the_prior(seed: int) -> tuple[VAE, Tensor]:
    """Up to a thousandth, with a full covariance for odd seeds."""
    _, x, _ = truth(seed, 8, 3, 4)
    model = network(x, 4, seed, posterior="full" if seed % 2 else "diagonal")
    with torch.no_grad():
        for parameter in last_of(model.encoder).parameters():
            parameter.mul_(1e-3)
    return model, x


def decoder_ignores_latents(seed: int) -> tuple[VAE, Tensor]:
    """The encoder tells what there is, in vain."""
    ppca, x, _ = truth(seed, 8, 3, 4)
    model = exact_vae(ppca)
    with torch.no_grad():
        dict(model.named_parameters())["decoder.weight"].zero_()
    return model, x


def trained_under_a_heavy_weight_of_the_kl(seed: int) -> tuple[VAE, Tensor]:
    _, x, _ = truth(seed, 8, 3, 4)
    model = network(x, 4, seed)
    train(model, x, num_steps=300, beta=30.0, seed=seed)
    return model, x


def mixture_prior_and_one_posterior(seed: int) -> tuple[VAE, Tensor]:
    """Under a learned prior too; the scales differ by row and say nothing worth a hundredth of a nat."""
    _, x, _ = truth(seed, 8, 3, 4)
    model = network(x, 4, seed, prior="mixture")
    with torch.no_grad():
        last_of(model.encoder).weight.mul_(1e-2)
        last_of(model.encoder).bias.fill_(-0.5)
    return model, x


PLANTED: list[Callable[[int], tuple[VAE, Tensor]]] = [
    encoder_ignores_rows,
    posterior_is_the_prior,
    decoder_ignores_latents,
    trained_under_a_heavy_weight_of_the_kl,
    mixture_prior_and_one_posterior,
]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("plant", PLANTED)
def test_planted_collapses_are_found(plant: Callable[[int], tuple[VAE, Tensor]], seed: int) -> None:
    model, x = plant(seed)
    health = examine(model, rows_of(x), generator())
    assert health.verdict == COLLAPSED, health.words
    assert health.words.startswith("THE MODEL IS COLLAPSED. ")
    assert health.reasons


# Twenty healthy models, some with more latent dimensions than the data has factors.


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("num_features", "num_factors", "latent_dim"), [(4, 1, 1), (8, 3, 3), (8, 2, 6), (30, 5, 16)])
def test_exact_encoders_are_healthy_whatever_dimensions_the_data_leaves_unused(
    seed: int, num_features: int, num_factors: int, latent_dim: int
) -> None:
    ppca, x, _ = truth(seed, num_features, num_factors, latent_dim)
    health = examine(exact_vae(ppca, "full" if seed == 2 and latent_dim < 6 else "diagonal"), rows_of(x), generator())
    assert health.verdict == HEALTHY, health.words
    assert health.reasons == []
    assert health.active_units == num_factors
    assert [variance > ACTIVE_VARIANCE for variance in health.mean_variance] == [j < num_factors for j in range(latent_dim)]
    unused = latent_dim - num_factors
    assert (f"{unused} of {latent_dim} latent dimensions are not active" in health.words) == bool(unused)


@pytest.mark.parametrize("latent_dim", [2, 10])
@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("prior", ["standard", "mixture"])
def test_trained_networks_are_healthy(prior: str, seed: int, latent_dim: int) -> None:
    x = ((digits() - 0.3) / 0.37).float()
    model = network(x, latent_dim, seed, prior=prior)
    train(model, x, num_steps=200, beta=1.0, seed=seed)
    health = examine(model, rows_of(x), generator())
    assert health.verdict == HEALTHY, health.words


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("num_factors", [1, 3, 8])
def test_information_and_aggregated_kl_are_those_of_the_exact_posterior(num_factors: int, seed: int) -> None:
    """The two bounds bracket the truth up to noise, and meet where log M is far above it."""
    ppca, x, exact = truth(seed, 12, num_factors, 8, num_rows=6000)
    found = information(posterior_of(ppca, x), StandardNormal(8), generator())
    noise = 4 * found.mutual_information_standard_error
    assert found.rate_nats == pytest.approx(exact, abs=0.03 * exact)
    assert found.mutual_information_nats - noise < exact < found.mutual_information_upper_nats + noise
    assert found.aggregated_kl_lower_nats is not None
    assert found.aggregated_kl_nats is not None
    assert found.aggregated_kl_lower_nats - noise < 0 < found.aggregated_kl_nats + noise
    if num_factors == 1:
        assert found.mutual_information_nats == pytest.approx(exact, abs=noise)
        assert found.mutual_information_upper_nats == pytest.approx(exact, abs=noise)
        assert abs(found.aggregated_kl_nats) < noise + 0.03


def test_aggregated_kl_is_the_closed_form_where_posteriors_are_away_from_the_prior() -> None:
    """Means of N(m, s^2) with posteriors of scale t: q(z) = N(m, s^2 + t^2), I = 1/2 log(1 + s^2 / t^2)."""
    m, s, t = 1.5, 0.8, 0.4
    mean = m + s * torch.randn(8000, 1, generator=generator(), dtype=torch.float64)
    found = information(DiagonalGaussian(mean, torch.full_like(mean, math.log(t))), StandardNormal(1), generator())
    noise = 4 * found.mutual_information_standard_error + 0.03
    assert found.mutual_information_nats == pytest.approx(0.5 * math.log(1 + (s / t) ** 2), abs=noise)
    assert found.aggregated_kl_nats == pytest.approx(0.5 * (s**2 + t**2 + m**2 - 1 - math.log(s**2 + t**2)), abs=noise)


def test_a_full_covariance_gives_the_same_as_the_diagonal_one_that_it_is() -> None:
    ppca, x, _ = truth(1, 8, 3, 4, num_rows=500)
    diagonal = posterior_of(ppca, x)
    full: Posterior = FullGaussian(diagonal.mean, torch.diag_embed(diagonal.scale))
    first, second = (information(q_z, StandardNormal(4), generator()) for q_z in (diagonal, full))
    assert second.mutual_information_nats == pytest.approx(first.mutual_information_nats, abs=1e-9)
    assert second.mutual_information_upper_nats == pytest.approx(first.mutual_information_upper_nats, abs=1e-9)
    assert second.rate_nats == pytest.approx(first.rate_nats, abs=1e-9)


def test_information_near_the_logarithm_of_the_rows_is_said_to_be_limited() -> None:
    mean = 100 * torch.randn(64, 2, generator=generator(), dtype=torch.float64)
    q_z = DiagonalGaussian(mean, torch.full_like(mean, -3.0))
    health = health_of(q_z, StandardNormal(2), generator())
    assert health.information.is_limited
    assert health.information.mutual_information_nats == pytest.approx(math.log(64), abs=1e-3)
    assert health.information.mutual_information_upper_nats > health.information.mutual_information_limit_nats
    assert "the logarithm of their number, 4.16" in health.words
    ppca, x, _ = truth(0, 8, 1, 1)
    assert not information(posterior_of(ppca, x), StandardNormal(1), generator()).is_limited


def test_copies_of_a_row_far_from_all_others_leave_the_information_within_its_limit() -> None:
    """Of their posteriors' densities in each other's samples, by products, no digit is right."""
    mean = torch.randn(100, 4, generator=generator(), dtype=torch.float64)
    mean[:10] = 1e9
    q_z = DiagonalGaussian(mean, torch.full_like(mean, -3.0).index_fill(0, torch.arange(10), -10.0))
    found = information(q_z, StandardNormal(4), generator())
    assert 0 < found.mutual_information_nats <= found.mutual_information_limit_nats


def test_rows_beyond_the_limits_are_drawn_and_change_little() -> None:
    ppca, x, exact = truth(0, 8, 2, 2, num_rows=4000)
    found = information(posterior_of(ppca, x), StandardNormal(2), generator(), max_sampled=1000, max_mixed=2000)
    assert (found.num_rows, found.num_sampled, found.num_mixed) == (4000, 1000, 2000)
    assert found.mutual_information_limit_nats == math.log(2000)
    assert found.mutual_information_nats == pytest.approx(exact, abs=4 * found.mutual_information_standard_error + 0.1)
    assert MAX_MIXED > 4000


def test_latents_that_cost_more_than_they_tell_are_a_partial_collapse() -> None:
    """One informative dimension and one that is constant away from the prior."""
    ppca, x, _ = truth(0, 8, 1, 1)
    informative = posterior_of(ppca, x)
    mean = torch.cat([informative.mean, torch.full_like(informative.mean, 3.0)], 1)
    q_z = DiagonalGaussian(mean, informative.log_scale.expand(-1, 2))
    health = health_of(q_z, StandardNormal(2), generator())
    assert health.verdict == PARTLY
    assert any("Latent dimensions [1] cost more" in reason for reason in health.reasons)
    assert any("tell rows apart" in reason for reason in health.reasons)
    assert health.words.startswith("THE MODEL IS PARTLY COLLAPSED. ")


def test_latents_of_which_the_decoder_uses_less_than_they_hold_are_a_partial_collapse() -> None:
    ppca, x, exact = truth(0, 8, 3, 3)
    health = health_of(posterior_of(ppca, x), StandardNormal(3), generator(), decoder_use_nats=0.5 * exact)
    assert health.verdict == PARTLY
    assert any("does not use what the encoder tells" in reason for reason in health.reasons)


def test_the_decoder_loses_at_least_the_information_with_an_exact_posterior() -> None:
    """It is I(x;z) + E_x KL(p(z) || p(z|x)): for one dimension of which a share rho is signal, rho / (1 - rho)."""
    ppca, x, _ = truth(2, 8, 1, 1, num_rows=20_000)
    health = examine(exact_vae(ppca), rows_of(x), generator())
    share = 1 - float(posterior_of(ppca, x[:1]).scale.square())
    assert health.decoder_use_nats == pytest.approx(share / (1 - share), rel=0.05)


def test_a_prior_of_each_rows_own_has_no_aggregated_kl() -> None:
    torch.manual_seed(0)
    prior = ConditionalNormal(Sizes(2, 4, 3, [8], 1)).double()
    condition = torch.randn(500, 3, generator=generator(), dtype=torch.float64)
    mean = torch.randn(500, 2, generator=generator(), dtype=torch.float64)
    q_z = DiagonalGaussian(mean, torch.full_like(mean, -0.5))
    health = health_of(q_z, prior(lambda features: q_z, condition), generator())
    assert health.information.aggregated_kl_nats is None
    assert health.verdict == HEALTHY


def test_a_small_latent_scale_is_no_collapse_where_the_prior_has_it_too() -> None:
    torch.manual_seed(0)
    prior = GaussianMixture(Sizes(1, num_components=1)).double()
    with torch.no_grad():
        prior.scaled_mean.zero_()
        prior.scaled_log_scale.fill_(math.log(0.01) / GAIN)
    mean = 0.01 * torch.randn(2000, 1, generator=generator(), dtype=torch.float64)
    q_z = DiagonalGaussian(mean, torch.full_like(mean, math.log(0.003)))
    health = health_of(q_z, prior(lambda features: q_z, None), generator())
    assert health.active_units == 0
    assert health.kl_nats_by_dimension is None
    assert health.verdict == HEALTHY, health.words


def test_health_is_plain_json() -> None:
    ppca, x, _ = truth(0, 8, 2, 4)
    found = examine(exact_vae(ppca), rows_of(x), generator()).to_json()
    assert found == json.loads(json.dumps(found, allow_nan=False))
    assert len(found["kl_nats_by_dimension"]) == 4
    assert sum(found["kl_nats_by_dimension"]) == pytest.approx(found["information"]["rate_nats"])


def test_one_row_says_nothing_of_information() -> None:
    q_z = DiagonalGaussian(torch.zeros(1, 2), torch.zeros(1, 2))
    with pytest.raises(ValueError, match="1 rows were given"):
        health_of(q_z, StandardNormal(2), generator())
