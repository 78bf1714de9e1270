"""Importance-weighted bounds on log p(x) by many samples in bounded memory, and whether their weights can be trusted.

Shapes: S samples, B rows, L latent dimensions, M largest weights of a row.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from vae.evidence import LogJoint
from vae.posteriors import Posterior
from vae.row_noise import RowNoise

# A shape of a distribution needs a few numbers: the tail has five from 25 samples on.
MIN_SAMPLES = 25
# Log weights that differ by less than rounding does have no tail.
ROUNDING = 1e-9


class ImportanceBound(NamedTuple):
    """What weights w = p(x,z) / q(z) say of each row, [B] each in float64.

    elbo: the mean of log w, in nats.
    log_evidence: the log of the mean of w, in nats; in expectation a lower bound on log p(x) that does not decrease with the number of
        samples (Burda et al. 2016). standard_error: of log_evidence, by the delta method.
    effective_sample_size: (sum w)^2 / sum w^2.
    pareto_k: the shape of the largest weights' tail. Above 0.7 log_evidence is not to be trusted (Vehtari et al. 2024); -inf: the largest
        weights are all the same.
    """

    elbo: Tensor
    log_evidence: Tensor
    standard_error: Tensor
    effective_sample_size: Tensor
    pareto_k: Tensor


@torch.no_grad()
def importance_bound(joint: LogJoint, proposal: Posterior, num_samples: int, noise: RowNoise) -> ImportanceBound:
    """Returns the bound by samples of a proposal q(z), one for each of joint's rows. Memory does not depend on num_samples.

    Raises:
        ValueError: num_samples is below 25.
    """

    def weights() -> Iterator[Tensor]:
        for begin in range(0, num_samples, joint.at_once):
            drawn = noise.normal(min(joint.at_once, num_samples - begin), proposal.mean.shape[-1])
            z = proposal.rsample(drawn)
            yield joint(z) - proposal.log_prob_of(z, drawn)

    return bound_of_weights(weights(), num_samples)


def bound_of_weights(parts: Iterable[Tensor], num_samples: int) -> ImportanceBound:
    """Returns the bound that log weights give, which come in parts [s, B] of num_samples in all.

    Raises:
        ValueError: num_samples is below 25.
    """
    if num_samples < MIN_SAMPLES:
        raise ValueError(f"num_importance_samples is {num_samples}; to judge the weights' tail it must be {MIN_SAMPLES} or more")
    num_largest = tail_length(num_samples) + 1
    sums: tuple[Tensor, Tensor, Tensor] | None = None
    largest: Tensor | None = None
    for part in parts:
        log_w = part.double()
        new = log_w.sum(0), log_w.logsumexp(0), (2 * log_w).logsumexp(0)
        sums = new if sums is None else (sums[0] + new[0], torch.logaddexp(sums[1], new[1]), torch.logaddexp(sums[2], new[2]))
        candidates = log_w if largest is None else torch.cat([largest, log_w])
        largest = candidates.topk(min(num_largest, len(candidates)), 0).values
    assert sums is not None
    assert largest is not None
    total, log_sum, log_sum_squares = sums
    effective_sample_size = torch.exp(2 * log_sum - log_sum_squares)
    return ImportanceBound(
        elbo=total / num_samples,
        log_evidence=log_sum - math.log(num_samples),
        standard_error=error_of_log_mean(effective_sample_size, num_samples),
        effective_sample_size=effective_sample_size,
        pareto_k=pareto_k(largest),
    )


def error_of_log_mean(effective_sample_size: Tensor, num_samples: int) -> Tensor:
    """Returns the standard error of the log of a mean of weights, by the delta method: their relative standard deviation over sqrt(S)."""
    return ((1 / effective_sample_size - 1 / num_samples).clamp(min=0) * num_samples / (num_samples - 1)).sqrt()


def tail_length(num_samples: int) -> int:
    """Returns how many of a row's weights are its tail: min(S / 5, 3 sqrt(S)) (Vehtari et al. 2024)."""
    return math.ceil(min(num_samples / 5, 3 * math.sqrt(num_samples)))


def pareto_k(largest: Tensor) -> Tensor:
    """Returns the shape k of the tail of a row's weights, [B], from the logarithms of its M + 1 largest ones, descending, [M + 1, B].

    k = 0 is an exponential tail; the tail has moments of orders below 1 / k. -inf where all M + 1 are the same but for rounding.
    Where most of the largest weights lie on a plateau and few above it, k is far above 0.7 though the mean may be good: it warns only.
    """
    relative = (largest - largest[0]).exp()
    # The weights' own digits end at some 1e-16 of the largest log weight.
    is_constant = largest[0] - largest[-1] < ROUNDING * largest[0].abs().clamp(min=1)
    return generalised_pareto_shape((relative[:-1] - relative[-1]).flip(0)).masked_fill(is_constant, -torch.inf)


def generalised_pareto_shape(excesses: Tensor) -> Tensor:
    """Returns the shape k, [B], of generalised Pareto distributions of which excesses [M, B] were drawn, ascending.

    Zhang & Stephens (2009), "A new and efficient estimation method for the generalized Pareto distribution": the posterior mean of
    b = -k / sigma on a grid; with the weak prior of Vehtari et al. (2024), which adds 10 numbers of k = 1/2.
    """
    count = len(excesses)
    num_points = 30 + int(math.sqrt(count))
    points = 1 - (num_points / (torch.arange(1, num_points + 1, device=excesses.device, dtype=excesses.dtype) - 0.5)).sqrt()
    smallest = 1e-290  # where the first quartile is 0: its inverse is finite
    first_quartile = excesses[int(count / 4 + 0.5) - 1].clamp(min=smallest)
    b = points[:, None] / (3 * first_quartile) + 1 / excesses[-1].clamp(min=smallest)
    k = torch.stack([torch.log1p(-one * excesses).mean(0) for one in b])
    posterior = (count * (torch.log(-b / k) - k - 1)).softmax(0)
    fitted = torch.log1p(-(b * posterior).sum(0) * excesses).mean(0)
    return (count * fitted + 10 * 0.5) / (count + 10)
