"""What latents say of rows: rate, mutual information I_q(x;z), and the aggregated posterior's distance from the prior, in nats.

rate = E_x KL(q(z|x) || p(z)) = I_q(x;z) + KL(q(z) || p(z)) with q(z) = E_x q(z|x), the aggregated posterior (Hoffman & Johnson 2016).
Shapes: B rows, S of them sampled, M mixed, L latent dimensions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from vae.posteriors import DiagonalGaussian, FullGaussian, Posterior
from vae.priors import LatentDistribution

# A standard error of 0.01 nats where log q(z|x) - log q(z) varies by 0.6 between rows; more rows in the mixture raise the limit log M.
MAX_SAMPLED, MAX_MIXED = 4096, 16384
# Floats in one block of densities, 32 MiB; those of full covariances are of L numbers each.
BLOCK_CELLS = 2**22
# Nearer than this to log M, a sample's mixture is mostly its own row's posterior: the lower bound is that limit, not the information.
LIMIT_MARGIN_NATS = 1.0


@dataclass(frozen=True)
class Information:
    """Nats per row, over `num_rows` rows of which `num_sampled` were sampled and `num_mixed` make the aggregated posterior.

    mutual_information_nats: the mixture includes the row itself: at most log(num_mixed), a lower bound in expectation on the information
        of rows drawn from the population, and that between rows and latents if these rows are the population.
    mutual_information_upper_nats: the row itself is left out: an upper bound in expectation (Poole et al. 2019, equations 12 and 13).
    aggregated_kl_nats, aggregated_kl_lower_nats: the rate less either, so an upper and a lower bound, which noise may put below 0; None
        where each row has a prior of its own, p(z|c).
    is_limited: the lower bound is within LIMIT_MARGIN_NATS of log(num_mixed), so that the information may be any number above it.
    """

    num_rows: int
    num_sampled: int
    num_mixed: int
    rate_nats: float
    mutual_information_nats: float
    mutual_information_upper_nats: float
    mutual_information_standard_error: float
    mutual_information_limit_nats: float
    is_limited: bool
    aggregated_kl_nats: float | None
    aggregated_kl_lower_nats: float | None


@torch.no_grad()
def information(
    q_z: Posterior, prior: LatentDistribution, generator: torch.Generator, max_sampled: int = MAX_SAMPLED, max_mixed: int = MAX_MIXED
) -> Information:
    """Returns the information that posteriors of B rows hold, in float64, by one sample z of each of at most max_sampled rows.

    prior: p(z), or p(z|c) with moments for these rows. generator: on the CPU; it decides the samples and, where B exceeds max_mixed, the
    rows. Memory does not grow with B beyond the posteriors' own. Raises ValueError for fewer than 2 rows.
    """
    num_rows = len(q_z.mean)
    if num_rows < 2:
        raise ValueError(f"{num_rows} rows were given; the information that latents hold takes at least 2, and some hundred to be of use")
    q_z = in_float64(q_z)
    mixed = q_z.take(torch.randperm(num_rows, generator=generator)[:max_mixed].to(q_z.mean.device))
    num_mixed = len(mixed.mean)
    num_sampled = min(max_sampled, num_mixed)
    noise = standard_normal(mixed.mean, generator)
    own, aggregated, others = densities(mixed, mixed.rsample(noise)[:num_sampled], noise[:num_sampled])
    lower, upper = own - aggregated, own - others
    noise = standard_normal(q_z.mean, generator)
    rate = float(q_z.kl(prior, q_z.rsample(noise), noise).mean())
    by_row = prior.moments is not None and prior.moments[0].dim() > 1
    limit = math.log(num_mixed)
    return Information(
        num_rows,
        num_sampled,
        num_mixed,
        rate,
        float(lower.mean()),
        float(upper.mean()),
        float(lower.std() / math.sqrt(num_sampled)),
        limit,
        float(lower.mean()) > limit - LIMIT_MARGIN_NATS,
        None if by_row else rate - float(lower.mean()),
        None if by_row else rate - float(upper.mean()),
    )


def densities(mixed: Posterior, z: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns, for z [S, L] that the first S of M posteriors made of noise [S, L], log q(z|x) of its own, of all M mixed, and of the
    others, [S] each."""
    num_mixed, latent_dim = mixed.mean.shape
    cells = num_mixed * (latent_dim if isinstance(mixed, FullGaussian) else 1)
    at_once, parts = max(1, BLOCK_CELLS // cells), []
    highest = mixed.log_prob(mixed.mean)  # which sums that cancel exceed by any number of nats where rows are far from all others
    for begin in range(0, len(z), at_once):
        some = slice(begin, begin + at_once)
        place = torch.arange(len(z), device=z.device)[some]
        own = mixed.take(place).log_prob_of(z[some], noise[some])
        each = torch.minimum(mixed.log_prob_each(z[some]), highest)
        others = each.scatter(1, place[:, None], -math.inf).logsumexp(1)
        parts.append((own, torch.logaddexp(own, others) - math.log(num_mixed), others - math.log(num_mixed - 1)))
    own, aggregated, rest = (torch.cat(part) for part in zip(*parts, strict=True))
    return own, aggregated, rest


def in_float64(q_z: Posterior) -> Posterior:
    """Returns the same posterior in float64."""
    return type(q_z)(*(parameter.double() for parameter in q_z.parameters))


def standard_normal(like: Tensor, generator: torch.Generator) -> Tensor:
    """Returns noise of a tensor's shape, type and device, drawn on the generator's."""
    return torch.randn(like.shape, generator=generator, dtype=like.dtype).to(like.device)


@torch.no_grad()
def kl_by_dimension(q_z: Posterior, prior: LatentDistribution) -> list[float] | None:
    """Returns the mean over rows of KL(q(z_j|x) || p(z_j)) in nats by latent dimension; None where the prior does not factorise.

    Of a full covariance these are the marginals', whose sum is at most the rate.
    """
    q_z = in_float64(q_z)
    by_dimension = DiagonalGaussian(q_z.mean, q_z.scale.log()).kl_by_dimension(prior)
    return None if by_dimension is None else [float(part) for part in by_dimension.mean(0)]
