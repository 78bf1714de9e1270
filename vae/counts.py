"""Likelihoods of counts: Poisson, negative binomial, and the latter with more zeros. Shapes: S samples, B rows, D cells.

Counts are stored as themselves in float32, which is exact up to 2^24; a larger number counts as 2^24, a negative one as 0.
Logarithms of factorials are of the order of 10^8 there and their difference of the order of 10: it is taken in float64,
to an error below 10^-6 nats, and returned in the outputs' dtype.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vae.cells import CellDistribution, Likelihood, uniform_like

MAX_COUNT = 2.0**24
# A mean is at most the largest count, and e^-20 of a count is none in 10^8 rows.
MIN_LOG_RATE, MAX_LOG_RATE = -20.0, math.log(MAX_COUNT)
# A variance of rate + e^-15 rate^2 is a Poisson's up to a rate of a million; with e^7 a rate of 1 comes from one row in a thousand.
MIN_LOG_DISPERSION, MAX_LOG_DISPERSION = -15.0, 7.0
MAX_ZERO_LOGIT = 30.0


def poisson_log_prob(k: Tensor, log_rate: Tensor) -> Tensor:
    """Returns log of rate^k e^-rate / k!, in float64 throughout."""
    return k * log_rate - torch.exp(log_rate) - torch.lgamma(k + 1)


def negative_binomial_log_prob(k: Tensor, log_rate: Tensor, log_dispersion: Tensor) -> Tensor:
    """Returns log P(k) for mean `rate` and variance rate + dispersion rate^2, in float64 throughout; r = 1 / dispersion.

    log [Gamma(k + r) / (Gamma(r) k!)] - (k + r) log(1 + rate / r) + k log(rate / r). At the lowest dispersion the two
    lgamma of r are 5 10^7, so that a Poisson comes out to 10^-8.
    """
    r, log_odds = torch.exp(-log_dispersion), log_rate + log_dispersion
    ways = torch.lgamma(k + r) - torch.lgamma(r) - torch.lgamma(k + 1)
    return ways - r * F.softplus(log_odds, threshold=40) - k * F.softplus(-log_odds, threshold=40)


class CountCells(CellDistribution):
    """Counts of mean exp(log_rate) [.., B, D]."""

    def __init__(self, log_rate: Tensor) -> None:
        self.log_rate = log_rate

    @property
    def mean(self) -> Tensor:
        return torch.exp(self.log_rate)


class PoissonCells(CountCells):
    """Counts whose variance is their mean."""

    def log_prob(self, values: Tensor) -> Tensor:
        return poisson_log_prob(counts(values).double(), self.log_rate.double()).to(self.log_rate.dtype)

    def sample(self, generator: torch.Generator) -> Tensor:
        return drawn_counts(torch.exp(self.log_rate), generator)


class NegativeBinomialCells(CountCells):
    """Counts whose variance is rate + dispersion rate^2; log_dispersion [D]."""

    def __init__(self, log_rate: Tensor, log_dispersion: Tensor) -> None:
        super().__init__(log_rate)
        self.log_dispersion = log_dispersion

    def log_prob(self, values: Tensor) -> Tensor:
        return self.in_float64(values).to(self.log_rate.dtype)

    def in_float64(self, values: Tensor) -> Tensor:
        return negative_binomial_log_prob(counts(values).double(), self.log_rate.double(), self.log_dispersion.double())

    def sample(self, generator: torch.Generator) -> Tensor:
        """A Poisson count whose rate has a gamma distribution."""
        r = torch.exp(-self.log_dispersion.double()).expand(self.log_rate.shape)
        # torch.distributions, which is built on it, takes no generator
        gamma = torch._standard_gamma(r.contiguous().to(generator.device), generator=generator).to(r.device)
        return drawn_counts(gamma / r * torch.exp(self.log_rate.double()), generator).to(self.log_rate.dtype)


class ZeroInflatedCells(NegativeBinomialCells):
    """A zero with the log-odds zero_logit [.., B, D], else a negative binomial count, which may be 0 too."""

    def __init__(self, log_rate: Tensor, log_dispersion: Tensor, zero_logit: Tensor) -> None:
        super().__init__(log_rate, log_dispersion)
        self.zero_logit = zero_logit

    def in_float64(self, values: Tensor) -> Tensor:
        zero_logit = self.zero_logit.double()
        counted = F.logsigmoid(-zero_logit) + super().in_float64(values)
        return torch.where(values <= 0, torch.logaddexp(F.logsigmoid(zero_logit), counted), counted)

    @property
    def mean(self) -> Tensor:
        return torch.sigmoid(-self.zero_logit) * torch.exp(self.log_rate)

    def sample(self, generator: torch.Generator) -> Tensor:
        is_zero = uniform_like(self.zero_logit, generator) < torch.sigmoid(self.zero_logit)
        return super().sample(generator).masked_fill(is_zero, 0.0)


def counts(values: Tensor) -> Tensor:
    """Returns stored values as counts, kept in range."""
    return values.clamp(0.0, MAX_COUNT)


def drawn_counts(rate: Tensor, generator: torch.Generator) -> Tensor:
    """Returns Poisson counts of that rate, kept in range, drawn on the generator's device."""
    return counts(torch.poisson(rate.to(generator.device), generator=generator)).to(rate.device)


class Counts(Likelihood):
    """What the likelihoods of counts share. mean and scale are those of log1p(count) in training, per cell.

    They standardise the encoder's features, and a decoder that says 0 says the rate exp(mean).
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, size: int, mean: Sequence[float], scale: Sequence[float]) -> None:
        super().__init__()
        self.size = self.num_features = self.num_outputs = size
        for name, numbers in (("mean", mean), ("scale", scale)):
            self.register_buffer(name, torch.tensor(numbers, dtype=torch.float32), persistent=False)

    def features(self, values: Tensor) -> Tensor:
        return (torch.log1p(counts(values)) - self.mean) / self.scale

    def log_rate(self, outputs: Tensor) -> Tensor:
        """Returns the log of the rate, bounded."""
        return (outputs * self.scale + self.mean).clamp(MIN_LOG_RATE, MAX_LOG_RATE)


class Poisson(Counts):
    """Counts of events that do not depend on one another."""

    def forward(self, outputs: Tensor) -> PoissonCells:
        return PoissonCells(self.log_rate(outputs))


class NegativeBinomial(Counts):
    """Counts that scatter more than a Poisson's, by a dispersion learned per cell; it starts at 1."""

    def __init__(self, size: int, mean: Sequence[float], scale: Sequence[float]) -> None:
        super().__init__(size, mean, scale)
        self.log_dispersion = nn.Parameter(torch.zeros(size))

    def bounded_log_dispersion(self) -> Tensor:
        return self.log_dispersion.clamp(MIN_LOG_DISPERSION, MAX_LOG_DISPERSION)

    def forward(self, outputs: Tensor) -> NegativeBinomialCells:
        return NegativeBinomialCells(self.log_rate(outputs), self.bounded_log_dispersion())


class ZeroInflatedNegativeBinomial(NegativeBinomial):
    """The same with zeros of another origin, whose log-odds the decoder gives after the rates."""

    def __init__(self, size: int, mean: Sequence[float], scale: Sequence[float]) -> None:
        super().__init__(size, mean, scale)
        self.num_outputs = 2 * size

    def forward(self, outputs: Tensor) -> ZeroInflatedCells:
        rates, zero_logit = outputs.chunk(2, -1)
        zero_logit = zero_logit.clamp(-MAX_ZERO_LOGIT, MAX_ZERO_LOGIT)
        return ZeroInflatedCells(self.log_rate(rates), self.bounded_log_dispersion(), zero_logit)
