"""Grids: how the integers of a field are stored, and which interval of standardised numbers each of them has.

A grid knows nothing of distributions: any that gives an interval a mass makes probabilities of integers with it.
Shapes: B rows, D cells.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from vae.cells import MIN_LOG_SCALE
from vae.normal_mass import Interval

# A scale of e^-4 of an interval's half-width leaves e^-54 of a distribution outside: narrower ones add nothing.
LOG_WITHIN = -4.0
# e^-16 is the distance of the float32 numbers near 1: narrower than that, a component could not be placed.
NARROWEST_LOG_SCALE = -16.0
# A number is off the grid where it is that far from the nearest integer: more than float32 leaves of an integer that was stored.
LEAST_OFF, ROUNDING_OFF = 0.01, 2.0**-17
# A width so large that in float64 the asinh of all integers that float32 tells apart is the line itself.
STRAIGHT = 1e15


class Warp(NamedTuple):
    """What takes an integer k to T(k) = (asinh(k / width) - mean) / scale, for k from lower to upper; one number per cell each, [D]."""

    width: Sequence[float]
    mean: Sequence[float]
    scale: Sequence[float]
    lower: Sequence[float]
    upper: Sequence[float]


class Grid(nn.Module, ABC):
    """Integers as intervals of the line. Its buffers are constants and in no state dict."""

    size: int

    def constants(self, **numbers: Sequence[float]) -> None:
        """Registers one float32 number per cell (or one for all) under each name, and keeps them with all digits."""
        self.numbers = numbers
        for name, values in numbers.items():
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32), persistent=False)

    def per_cell(self, name: str) -> Sequence[float]:
        """Returns one of these numbers for each cell, [D]."""
        values = self.numbers[name]
        return values if len(values) == self.size else [*values] * self.size

    @abstractmethod
    def features(self, values: Tensor) -> Tensor:
        """Returns stored values as standardised numbers, [B, D]."""

    @abstractmethod
    def interval(self, values: Tensor) -> Interval:
        """Returns the interval of each stored number, standardised, [B, D]; at an end of the range, with the whole tail."""

    @abstractmethod
    def to_storage(self, y: Tensor) -> Tensor:
        """Returns standardised numbers as stored cells, kept in range."""

    @abstractmethod
    def nearest(self, drawn: Tensor, like: Tensor) -> Tensor:
        """Returns drawn cells, [B, D] as stored, at the nearest integers in range; `like`: stored integers' cells, [B, D]."""

    @abstractmethod
    def narrowest(self) -> Tensor:
        """Returns the least half-width of each cell's intervals, [D] or one for all."""

    @abstractmethod
    def warp(self) -> Warp:
        """Returns the same grid as a warped one, with all digits."""

    def min_log_scale(self) -> list[float]:
        """Returns, per cell, a log-scale so low that all mass fits into any one interval, [D]; as low as float32 permits."""
        within = (torch.log(self.narrowest()) + LOG_WITHIN).clamp(NARROWEST_LOG_SCALE, MIN_LOG_SCALE)
        return [float(number) for number in within.expand(self.size)]


class LinearGrid(Grid):
    """Integers, each with its unit interval, the ends of the range with the whole tails.

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
        self.size = size
        self.center, self.scale, self.storage = center, scale, getattr(torch, storage)
        self.constants(half_width=half_width, lower=lower, upper=upper)

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

    def nearest(self, drawn: Tensor, like: Tensor) -> Tensor:
        """The stored numbers lie whole steps from `like`: where the integers are, nothing else here tells."""
        if not drawn.is_floating_point():
            return drawn
        step = 2 * self.half_width
        return like + step * torch.round((drawn - like) / step)

    def narrowest(self) -> Tensor:
        return self.half_width

    def warp(self) -> Warp:
        step, lower, upper = (self.per_cell(name) for name in ("half_width", "lower", "upper"))
        step = [2 * half for half in step]
        lower, upper = ([end / one for end, one in zip(ends, step, strict=True)] for ends in (lower, upper))
        return Warp([STRAIGHT] * self.size, [0.0] * self.size, [1 / (STRAIGHT * one) for one in step], lower, upper)


def asinh_step(start: Tensor, width: Tensor) -> Tensor:
    """Returns asinh((start + 1/2) / width) - asinh(start / width) for start >= 0, to a relative error below 2 eps.

    exp(asinh(x)) = x + sqrt(1 + x^2), and the ratio of two of these less 1 has positive terms only; the difference itself
    cancels (in float32 it has no correct digit from start = 10^6 on).
    """
    root = torch.hypot(start, width)
    growth = 1 + (2 * start + 0.5) / (root + torch.hypot(start + 0.5, width))
    return torch.log1p(0.5 * growth / (start + root))


class WarpedGrid(Grid):
    """Heavy-tailed integers lower..upper, whose tails asinh draws in; lower and upper have the whole tails.

    k is stored as the float32 of T(k) = (asinh(k / width) - mean) / scale, and has the interval from T(k - 1/2) to
    T(k + 1/2). Masses are probabilities of k: T has no Jacobian in them. All arguments are per cell. A stored number
    outside the support counts as its nearest end. off_grid: some stored numbers are T(x) of x between integers, which
    have the interval from T(x - 1/2) to T(x + 1/2): over all x these masses are a density.
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
        off_grid: bool = False,
    ) -> None:
        super().__init__()
        self.size, self.off_grid = size, off_grid
        buffers = {"width": width, "mean": mean, "scale": scale, "lower": lower, "upper": upper}
        for name, ends, shift in (("lowest", lower, 0.0), ("lower_edge", lower, 0.5), ("upper_edge", upper, -0.5), ("highest", upper, 0.0)):
            # T in float64, then float32, as cells are stored
            buffers[name] = [(math.asinh((k + shift) / w) - m) / s for k, w, m, s in zip(ends, width, mean, scale, strict=True)]
        self.constants(**buffers)

    def features(self, values: Tensor) -> Tensor:
        return values

    def interval(self, values: Tensor) -> Interval:
        """Returns [T(k - 1/2), T(k + 1/2)] of each stored number, [B, D].

        The half-width has a relative error below 4 eps. Float32 finds k itself while sqrt(width^2 + k^2) < 2^18, and
        beyond that k, so the half-width too, to a relative 10^-5. The middle starts from the stored number and does not suffer.
        """
        unrounded = self.width * torch.sinh(values * self.scale + self.mean)
        rounded = torch.round(unrounded)
        k = torch.clamp(rounded, self.lower, self.upper)
        stored = torch.where(k == rounded, values, self.to_storage(values))
        if self.off_grid:
            between = (unrounded - k).abs() > LEAST_OFF + unrounded.abs() * ROUNDING_OFF
            k = torch.where(between & (k == rounded), unrounded, k)
        # By symmetry, from |k|: a step away from 0, and one towards it (from k = 0, both lead away).
        outward, inward = asinh_step(k.abs(), self.width), asinh_step((k.abs() - 0.5).clamp(min=0), self.width)
        if self.off_grid:  # a step that ends beyond 0
            beyond = torch.asinh(k.abs() / self.width) + torch.asinh((0.5 - k.abs()) / self.width)
            inward = torch.where(k.abs() < 0.5, beyond, inward)
        middle = stored + 0.5 * torch.sign(k) * (outward - inward) / self.scale
        # Not by k, which may be off: an end like 2^63 would be missed, and integers near an end of 10^6 be taken for it.
        return Interval(middle, 0.5 * (outward + inward) / self.scale, stored <= self.lower_edge, stored >= self.upper_edge)

    def to_storage(self, y: Tensor) -> Tensor:
        """Returns stored numbers, kept between T(lower) and T(upper)."""
        return torch.clamp(y, self.lowest, self.highest)

    def nearest(self, drawn: Tensor, like: Tensor) -> Tensor:
        rounded = torch.round(self.width * torch.sinh(drawn * self.scale + self.mean))
        k = torch.clamp(rounded, self.lower, self.upper)
        return (torch.asinh(k / self.width) - self.mean) / self.scale

    def narrowest(self) -> Tensor:
        farthest = torch.maximum(self.lower.abs(), self.upper.abs())
        return asinh_step(farthest, self.width) / self.scale

    def warp(self) -> Warp:
        return Warp(*(self.per_cell(name) for name in Warp._fields))
