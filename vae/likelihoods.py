"""Likelihoods p(x|z) of one field: modules that turn decoder outputs into distributions over the field's cells.

Shapes: S samples (optional leading dimension), B rows, D cells of the field, C categorical columns, K categories in all.
Every log-probability is in nats, normalised, per cell. Missing cells hold arbitrary values and are masked by the caller.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vae.normal_mass import LOG_SQRT_2PI, Interval, log_normal_mass, may_look_at, residual, sum_log_mass

# Standardised cells have unit variance: a noise of e^-7 of that is 0.1 %, beyond which a density only chases rounding.
MIN_LOG_SCALE, MAX_LOG_SCALE = -7.0, 4.0


def without_missing(values: Tensor, valid: Tensor) -> Tensor:
    """Returns values [B, n] with 0 where valid [B, n] or [B, 1] is false: the values themselves where it is seen to be true throughout."""
    if may_look_at(valid) and bool(valid.all()):
        return values
    return torch.where(valid, values, torch.zeros((), dtype=values.dtype, device=values.device))


class CellDistribution(ABC):
    """A distribution over the cells of one field."""

    @abstractmethod
    def log_prob(self, values: Tensor) -> Tensor:
        """Returns log p of the stored values [B, D] in nats, [B, D] or [S, B, D]."""

    def sum_log_prob(self, values: Tensor, valid: Tensor) -> Tensor:
        """Returns the sum of log p over a row's observed cells, [B] or [S, B]; valid is [B, D] or [B, 1]."""
        return torch.where(valid, self.log_prob(values), 0.0).sum(-1)

    @property
    @abstractmethod
    def mean(self) -> Tensor:
        """The expected value (for categories: the probabilities' mode), in the field's stored units."""

    @abstractmethod
    def sample(self, generator: torch.Generator) -> Tensor:
        """Returns one draw of every cell, in the field's storage."""


def gaussian_sample(location: Tensor, log_scale: Tensor, generator: torch.Generator) -> Tensor:
    """Returns one draw of every cell; the noise is drawn on the generator's device."""
    noise = torch.randn(location.shape, generator=generator, device=generator.device, dtype=location.dtype).to(location.device)
    return noise.mul_(log_scale.exp()).add_(location)


class GaussianCells(CellDistribution):
    """N(location, scale^2) per cell."""

    def __init__(self, location: Tensor, log_scale: Tensor) -> None:
        self.location, self.log_scale = location, log_scale

    def log_prob(self, values: Tensor) -> Tensor:
        standardised = residual(values, self.location) * torch.exp(-self.log_scale)
        return -0.5 * standardised.square() - self.log_scale - LOG_SQRT_2PI

    def sum_log_prob(self, values: Tensor, valid: Tensor) -> Tensor:
        """The same with one pass over cells instead of five: the constants are summed by column."""
        observed = valid.to(self.location.dtype)
        standardised = residual(values, self.location) * (torch.exp(-self.log_scale) * observed)
        constants = (self.log_scale + LOG_SQRT_2PI).expand(values.shape[-1])
        count = observed.expand(values.shape) @ constants if valid.shape[-1] > 1 else observed.squeeze(-1) * constants.sum()
        return -0.5 * standardised.square().sum(-1) - count

    @property
    def mean(self) -> Tensor:
        return self.location

    def sample(self, generator: torch.Generator) -> Tensor:
        return gaussian_sample(self.location, self.log_scale, generator)


class Likelihood(nn.Module, ABC):
    """What the model asks of a field's likelihood: its sizes, its encoder features and a distribution."""

    size: int  # cells
    num_features: int  # encoder inputs
    num_outputs: int  # decoder outputs

    def features(self, values: Tensor) -> Tensor:
        """Returns encoder features [B, num_features] of stored values [B, D] without missing cells."""
        return values

    def observed_features(self, values: Tensor, valid: Tensor) -> Tensor:
        """Returns the same of stored values [B, D] that hold anything where a cell is missing: 0 there; valid is [B, D] or [B, 1]."""
        return without_missing(self.features(values), valid)

    def cell_of_feature(self) -> Tensor:
        """Returns the cell that each feature comes from, [num_features]."""
        return torch.arange(self.size)

    @abstractmethod
    def forward(self, outputs: Tensor) -> CellDistribution:
        """Returns the distribution that decoder outputs [.., B, num_outputs] name."""


class Gaussian(Likelihood):
    """Gaussian cells whose variance is learned: one per cell, or one for the whole field (`shared_scale`)."""

    def __init__(self, size: int, shared_scale: bool = False) -> None:
        super().__init__()
        self.size = self.num_features = self.num_outputs = size
        self.log_scale = nn.Parameter(torch.zeros(1 if shared_scale else size))

    def forward(self, outputs: Tensor) -> GaussianCells:
        return GaussianCells(outputs, self.log_scale.clamp(MIN_LOG_SCALE, MAX_LOG_SCALE))


class GaussianMassCells(CellDistribution):
    """The mass that a Gaussian has in the interval of each cell's value."""

    def __init__(self, location: Tensor, log_scale: Tensor, field: DiscretisedGaussian | WarpedDiscretisedGaussian) -> None:
        self.location, self.log_scale, self.field = location, log_scale, field

    def log_prob(self, values: Tensor) -> Tensor:
        return log_normal_mass(*self.field.interval(values).standardised(self.location, self.log_scale))

    def sum_log_prob(self, values: Tensor, valid: Tensor) -> Tensor:
        return sum_log_mass(self.location, self.log_scale, self.field.interval(values), valid)


class DiscretisedGaussianCells(GaussianMassCells):
    """The Gaussian mass of [value - half_width, value + half_width]; at the ends of the range, of the whole tail."""

    field: DiscretisedGaussian

    @property
    def mean(self) -> Tensor:
        return self.field.to_storage(self.location)

    def sample(self, generator: torch.Generator) -> Tensor:
        return self.field.to_storage(gaussian_sample(self.location, self.log_scale, generator))


class DiscretisedGaussian(Likelihood):
    """Integers under a Gaussian: each has the mass of its unit interval, the ends of the range the whole tails.

    Cells are stored either standardised (float32; center 0, scale 1) or as they are (uint8 pixels; center and scale
    standardise them here, on the device). half_width, lower and upper are in standardised units, per cell or shared.
    """

    half_width: Tensor
    lower: Tensor
    upper: Tensor

    def __init__(
        self,
        size: int,
        half_width: Sequence[float],
        lower: Sequence[float],
        upper: Sequence[float],
        center: float = 0.0,
        scale: float = 1.0,
        storage: str = "float32",
    ) -> None:
        super().__init__()
        self.size = self.num_features = self.num_outputs = size
        self.center, self.scale, self.storage = center, scale, getattr(torch, storage)
        for name, numbers in (("half_width", half_width), ("lower", lower), ("upper", upper)):
            self.register_buffer(name, torch.tensor(numbers, dtype=torch.float32), persistent=False)
        self.log_scale = nn.Parameter(torch.zeros(size))

    def features(self, values: Tensor) -> Tensor:
        if values.is_floating_point():
            return values
        return values.to(self.half_width.dtype).sub_(self.center).div_(self.scale)

    def interval(self, values: Tensor) -> Interval:
        """Returns the unit interval of each stored number, standardised, [B, D]."""
        y = self.features(values)
        return Interval(y, self.half_width, y < self.lower + self.half_width, y > self.upper - self.half_width)

    def to_storage(self, y: Tensor) -> Tensor:
        """Returns standardised numbers as stored cells; numbers stored as integers are rounded and kept in range."""
        y = torch.minimum(torch.maximum(y, self.lower), self.upper)
        return y if self.storage.is_floating_point else (y * self.scale + self.center).round().to(self.storage)

    def forward(self, outputs: Tensor) -> DiscretisedGaussianCells:
        return DiscretisedGaussianCells(outputs, self.log_scale.clamp(MIN_LOG_SCALE, MAX_LOG_SCALE), self)


def asinh_step(start: Tensor, width: Tensor) -> Tensor:
    """Returns asinh((start + 1/2) / width) - asinh(start / width) for start >= 0, to a relative error below 2 eps.

    exp(asinh(x)) = x + sqrt(1 + x^2), and the ratio of two of these less 1 has positive terms only; the difference itself
    cancels (in float32 it has no correct digit from start = 10^6 on).
    """
    root = torch.hypot(start, width)
    growth = 1 + (2 * start + 0.5) / (root + torch.hypot(start + 0.5, width))
    return torch.log1p(0.5 * growth / (start + root))


class WarpedDiscretisedGaussianCells(GaussianMassCells):
    """The Gaussian mass of [T(k - 1/2), T(k + 1/2)] for the integer k of each cell; at the ends, of the whole tail."""

    field: WarpedDiscretisedGaussian

    @property
    def mean(self) -> Tensor:
        """The expected value of the Gaussian in stored units: in data units it is the median."""
        return self.field.in_support(self.location)

    def sample(self, generator: torch.Generator) -> Tensor:
        """Returns stored numbers between those of integers; each rounds (in data units) to k with probability P(k)."""
        return self.field.in_support(gaussian_sample(self.location, self.log_scale, generator))


class WarpedDiscretisedGaussian(Likelihood):
    """Heavy-tailed integers lower..upper, Gaussian after asinh draws their tails in; lower and upper have the whole tails.

    k is stored as the float32 of T(k) = (asinh(k / width) - mean) / scale, and has the Gaussian mass between T(k - 1/2) and
    T(k + 1/2). These are probabilities of k: T has no Jacobian in them. All arguments are per cell. A stored number
    outside the support counts as its nearest end.
    """

    width: Tensor
    mean: Tensor
    scale: Tensor
    lower: Tensor
    upper: Tensor
    lowest: Tensor
    lower_edge: Tensor
    upper_edge: Tensor
    highest: Tensor

    def __init__(
        self,
        size: int,
        width: Sequence[float],
        mean: Sequence[float],
        scale: Sequence[float],
        lower: Sequence[float],
        upper: Sequence[float],
    ) -> None:
        super().__init__()
        self.size = self.num_features = self.num_outputs = size
        buffers = {"width": width, "mean": mean, "scale": scale, "lower": lower, "upper": upper}
        for name, ends, shift in (("lowest", lower, 0.0), ("lower_edge", lower, 0.5), ("upper_edge", upper, -0.5), ("highest", upper, 0.0)):
            # T in float64, then float32, as cells are stored
            buffers[name] = [(math.asinh((k + shift) / w) - m) / s for k, w, m, s in zip(ends, width, mean, scale, strict=True)]
        for name, numbers in buffers.items():
            self.register_buffer(name, torch.tensor(numbers, dtype=torch.float32), persistent=False)
        self.log_scale = nn.Parameter(torch.zeros(size))

    def interval(self, values: Tensor) -> Interval:
        """Returns [T(k - 1/2), T(k + 1/2)] of each stored number, [B, D].

        The half-width has a relative error below 4 eps. Float32 finds k itself while sqrt(width^2 + k^2) < 2^18, and
        beyond that k, so the half-width too, to a relative 10^-5. The middle starts from the stored number and does not suffer.
        """
        rounded = torch.round(self.width * torch.sinh(values * self.scale + self.mean))
        k = torch.clamp(rounded, self.lower, self.upper)
        stored = torch.where(k == rounded, values, self.in_support(values))
        # By symmetry, from |k|: a step away from 0, and one towards it (from k = 0, both lead away).
        outward, inward = asinh_step(k.abs(), self.width), asinh_step((k.abs() - 0.5).clamp(min=0), self.width)
        middle = stored + 0.5 * torch.sign(k) * (outward - inward) / self.scale
        # Not by k, which may be off: an end like 2^63 would be missed, and integers near an end of 10^6 be taken for it.
        return Interval(middle, 0.5 * (outward + inward) / self.scale, stored <= self.lower_edge, stored >= self.upper_edge)

    def in_support(self, y: Tensor) -> Tensor:
        """Returns stored numbers, kept between T(lower) and T(upper)."""
        return torch.clamp(y, self.lowest, self.highest)

    def forward(self, outputs: Tensor) -> WarpedDiscretisedGaussianCells:
        return WarpedDiscretisedGaussianCells(outputs, self.log_scale.clamp(MIN_LOG_SCALE, MAX_LOG_SCALE), self)


class BernoulliCells(CellDistribution):
    """Cells in {0, 1} with log-odds `logits`."""

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits

    def log_prob(self, values: Tensor) -> Tensor:
        return -F.softplus((1 - 2 * values.to(self.logits.dtype)) * self.logits)

    @property
    def mean(self) -> Tensor:
        return torch.sigmoid(self.logits)

    def sample(self, generator: torch.Generator) -> Tensor:
        uniform = torch.rand(self.logits.shape, generator=generator, device=generator.device).to(self.logits.device)
        return (uniform < torch.sigmoid(self.logits)).to(torch.int8)


class Bernoulli(Likelihood):
    """Boolean cells, stored as 0 or 1."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = self.num_features = self.num_outputs = size

    def features(self, values: Tensor) -> Tensor:
        return 2.0 * values - 1.0

    def forward(self, outputs: Tensor) -> BernoulliCells:
        return BernoulliCells(outputs)


# A column's sum of exp(score - highest score of the row) that loses no digit of float32, whose smallest normal number is 1e-38.
SMALLEST_SUM = 1e-20


class CategoricalCells(CellDistribution):
    """One categorical distribution per column; `logits` [.., B, K] holds the columns' scores side by side."""

    def __init__(self, logits: Tensor, field: Categorical) -> None:
        self.logits, self.field = logits, field

    def log_prob(self, values: Tensor) -> Tensor:
        index = (values.to(torch.int64) + self.field.offsets).expand(*self.logits.shape[:-1], -1)
        return self.logits.gather(-1, index) - self.log_normaliser()

    def log_normaliser(self) -> Tensor:
        """Returns log sum exp of each column's scores, [.., B, C], all columns in one pass."""
        if may_look_at(self.logits):
            highest = self.logits.detach().amax(-1, keepdim=True)
            sums = self._sums(torch.exp(self.logits - highest))
            if sums.numel() == 0 or bool(sums.min() > SMALLEST_SUM):
                return highest + torch.log(sums)
        column_of = self.field.column_of.expand_as(self.logits)
        empty = self.logits.new_full((*self.logits.shape[:-1], len(self.field.sizes)), -torch.inf)
        highest = empty.scatter_reduce(-1, column_of, self.logits.detach(), "amax")
        return highest + torch.log(self._sums(torch.exp(self.logits - highest.gather(-1, column_of))))

    def _sums(self, weights: Tensor) -> Tensor:
        with torch.autocast(weights.device.type, enabled=False):  # sums in bfloat16 would not normalise
            return weights @ self.field.membership

    @property
    def mean(self) -> Tensor:
        return self._codes(scores.argmax(-1) for scores in self._scores())

    def sample(self, generator: torch.Generator) -> Tensor:
        """Inverts each column's distribution function: one uniform number per cell."""
        shape = (*self.logits.shape[:-1], self.field.size, 1)
        uniform = torch.rand(shape, generator=generator, device=generator.device).to(self.logits.device)
        return self._codes(inverse_of_sums(scores, u) for scores, u in zip(self._scores(), uniform.unbind(-2), strict=True))

    def _scores(self) -> tuple[Tensor, ...]:
        """Returns each column's scores, [.., B, its size]."""
        return torch.split(self.logits, self.field.sizes, -1)

    @staticmethod
    def _codes(columns: Iterable[Tensor]) -> Tensor:
        return torch.stack(list(columns), -1).to(torch.int32)


def inverse_of_sums(scores: Tensor, uniform: Tensor) -> Tensor:
    """Returns the first category up to which softmax(scores) [.., B, K] sums to more than `uniform` [.., B, 1] in [0, 1), [.., B].

    A uniform number of float32 is 1 - 2^-24 at most, whose product with the last sum rounds to less than that sum: there is always one.
    """
    sums = (scores - scores.amax(-1, keepdim=True)).exp_().cumsum(-1)
    return (sums <= uniform * sums[..., -1:]).sum(-1)


class Categorical(Likelihood):
    """Columns of categories, stored as codes 0..size-1; `sizes` counts each column's categories."""

    offsets: Tensor
    column_of: Tensor
    membership: Tensor

    def __init__(self, sizes: Sequence[int]) -> None:
        super().__init__()
        self.sizes = list(sizes)
        self.size = len(self.sizes)
        self.num_features = self.num_outputs = sum(self.sizes)
        column_of = torch.repeat_interleave(torch.arange(self.size), torch.tensor(self.sizes))
        self.register_buffer("column_of", column_of, persistent=False)
        self.register_buffer("offsets", torch.tensor(self.sizes).cumsum(0) - torch.tensor(self.sizes), persistent=False)
        self.register_buffer("membership", F.one_hot(column_of, self.size).float(), persistent=False)

    def features(self, values: Tensor) -> Tensor:
        return self.observed_features(values, torch.ones_like(values, dtype=torch.bool))

    def observed_features(self, values: Tensor, valid: Tensor) -> Tensor:
        one_hot = self.membership.new_zeros(values.shape[0], self.num_features)
        index = torch.where(valid, values, 0).to(torch.int64) + self.offsets
        return one_hot.scatter_(1, index, valid.expand(values.shape).to(one_hot.dtype))

    def forward(self, outputs: Tensor) -> CategoricalCells:
        return CategoricalCells(outputs, self)

    def cell_of_feature(self) -> Tensor:
        return self.column_of


LIKELIHOODS: dict[str, type[Likelihood]] = {
    "gaussian": Gaussian,
    "discretised_gaussian": DiscretisedGaussian,
    "warped_discretised_gaussian": WarpedDiscretisedGaussian,
    "bernoulli": Bernoulli,
    "categorical": Categorical,
}
