"""Likelihoods of bits and of grey levels. Shapes: S samples, B rows, D cells."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from vae.cells import CellDistribution, Likelihood, uniform_like

LARGEST_BYTE = 255
HALF_BYTE = 127
# Below this |logit| the normaliser of grey levels is a series: the first term left out is below 2e-14 there, and above it 1 / logit, in
# the slope, loses no more than a digit.
SMALL_LOGIT = 0.3


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


class PixelBernoulliCells(BernoulliCells):
    """The same of binarised pixels, stored as 0 and 255."""

    def log_prob(self, values: Tensor) -> Tensor:
        return super().log_prob(values > HALF_BYTE)

    @property
    def mean(self) -> Tensor:
        return to_bytes(super().mean)

    def sample(self, generator: torch.Generator) -> Tensor:
        return to_bytes(super().sample(generator))


def to_bytes(levels: Tensor) -> Tensor:
    """Returns numbers of [0, 1] as pixels 0..255."""
    return (levels * float(LARGEST_BYTE)).round().to(torch.uint8)


class Bernoulli(Likelihood):
    """Boolean cells, stored as 0 or 1 (int8), or as the pixels of a binarised image (uint8; what is above 127 counts as 1)."""

    def __init__(self, size: int, storage: str = "int8") -> None:
        super().__init__()
        self.size = self.num_features = self.num_outputs = size
        self.cells = {"int8": BernoulliCells, "uint8": PixelBernoulliCells}[storage]

    def features(self, values: Tensor) -> Tensor:
        return 2.0 * (values if self.cells is BernoulliCells else values > HALF_BYTE) - 1.0

    def forward(self, outputs: Tensor) -> BernoulliCells:
        return self.cells(outputs)


def log_sinhc_of_half(logits: Tensor) -> Tensor:
    """Returns log(sinh(t) / t) of t = logit / 2, as its series, for small logits."""
    squared = logits.square()
    return squared * (1 / 24 - squared * (1 / 2880 - squared * (1 / 181440 - squared / 9676800)))


class ContinuousBernoulliCells(CellDistribution):
    """The density proportional to exp(logit * y) on [0, 1] (Loaiza-Ganem & Cunningham 2019, "The continuous Bernoulli")."""

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits
        self.small = logits.abs() < SMALL_LOGIT

    def log_prob(self, values: Tensor) -> Tensor:
        """The integral of exp(-size * distance) over the distance from the end that is favoured is (1 - exp(-size)) / size."""
        y = values.clamp(0.0, 1.0)
        size = self.large().abs()
        distance = torch.where(self.logits > 0, 1 - y, y)
        far_from_zero = -size * distance - torch.log(-torch.expm1(-size)) + torch.log(size)
        near_zero = self.logits * (y - 0.5) - log_sinhc_of_half(torch.where(self.small, self.logits, 0.0))
        return torch.where(self.small, near_zero, far_from_zero)

    def large(self) -> Tensor:
        """Returns the logits, and 1 where they are small."""
        return torch.where(self.small, 1.0, self.logits)

    @property
    def mean(self) -> Tensor:
        """1 / (1 - e^-logit) - 1 / logit; near 0, its series."""
        squared = torch.where(self.small, self.logits, 0.0).square()
        slope = 1 / 12 - squared * (1 / 720 - squared * (1 / 30240 - squared / 1209600))
        return torch.where(self.small, 0.5 + self.logits * slope, -1 / torch.expm1(-self.large()) - 1 / self.large())

    def sample(self, generator: torch.Generator) -> Tensor:
        """Inverts the distribution function, of the distance to the end that is favoured."""
        size = self.logits.abs().clamp(min=1e-6)  # below, it is uniform to rounding
        distance = -torch.log1p(uniform_like(self.logits, generator) * torch.expm1(-size)) / size
        return torch.where(self.logits > 0, 1 - distance, distance).clamp(0.0, 1.0)


class PixelContinuousBernoulliCells(ContinuousBernoulliCells):
    """The same of pixels 0..255, as a density of the pixel: y = pixel / 255 makes it 255 times lower."""

    def log_prob(self, values: Tensor) -> Tensor:
        return super().log_prob(values.to(self.logits.dtype) / LARGEST_BYTE) - math.log(LARGEST_BYTE)

    @property
    def mean(self) -> Tensor:
        return to_bytes(super().mean)

    def sample(self, generator: torch.Generator) -> Tensor:
        return to_bytes(super().sample(generator))


class ContinuousBernoulli(Likelihood):
    """Grey levels, stored as numbers of [0, 1] (float32) or as pixels 0..255 (uint8).

    It is a density of what is stored: of a pixel, per unit of 1 / 255. It is no probability of a pixel, and has no place
    beside a likelihood that is one (discretised_gaussian), whose bits per dimension are comparable with others'.
    """

    def __init__(self, size: int, storage: str = "float32") -> None:
        super().__init__()
        self.size = self.num_features = self.num_outputs = size
        self.cells = {"float32": ContinuousBernoulliCells, "uint8": PixelContinuousBernoulliCells}[storage]

    def features(self, values: Tensor) -> Tensor:
        return values * (2 / LARGEST_BYTE) - 1.0 if self.cells is PixelContinuousBernoulliCells else 2.0 * values - 1.0

    def forward(self, outputs: Tensor) -> ContinuousBernoulliCells:
        return self.cells(outputs)
