"""Fields of every likelihood, and what their cells may hold: what the claims about all of them are tried on. V values of a support."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from vae.likelihoods import LIKELIHOODS, Likelihood

WIDTH, MEAN, SCALE = 3.0, 0.5, 1.25  # of the warp: numbers that float32 holds exactly
BYTES = {"half_width": [0.5 / 64], "lower": [-33 / 64], "upper": [222 / 64], "center": 33.0, "scale": 64.0, "storage": "uint8"}
INTEGERS = {"half_width": [0.125], "lower": [-2.0], "upper": [2.5]}  # -8..10, divided by 4
WARP = {"width": [WIDTH], "mean": [MEAN], "scale": [SCALE], "lower": [-3], "upper": [400]}
COUNTS = {"mean": [1.5], "scale": [0.75]}


class Support(NamedTuple):
    """Values that a cell may hold, [V], and the weights [V] with which sums of p over them are integrals (1 for probabilities)."""

    values: Tensor
    weights: Tensor


class Case(NamedTuple):
    """A field of one cell. integer_of: which of the support's values a drawn cell is, [V] -> int; None where it has a density."""

    name: str
    arguments: dict[str, Any]
    support: Callable[[], Support]
    integer_of: Callable[[Tensor], Tensor] | None = None

    def build(self, dtype: torch.dtype = torch.float64) -> Likelihood:
        return LIKELIHOODS[self.name](**self.arguments).to(dtype)


def numbers(values: Sequence[float] | Tensor) -> Support:
    points = torch.as_tensor(values, dtype=torch.float64)
    return Support(points, torch.ones(len(points), dtype=torch.float64))


def line() -> Support:
    """The line by y = sinh(t): the trapezoidal rule in t is exact to rounding for what is smooth, tails of 1 / y^2 included."""
    t = torch.linspace(-27, 27, 27_001, dtype=torch.float64)
    return Support(torch.sinh(t), torch.cosh(t) * 0.002)


def line_and_atoms(*atoms: float) -> Support:
    """The line, none of whose points is an atom, and the atoms."""
    points, weights = line()
    points, order = torch.cat([points, torch.tensor(atoms).double()]).sort()
    return Support(points, torch.cat([weights, torch.ones(len(atoms)).double()])[order])


def levels(largest: float) -> Support:
    """The interval [0, largest] by Gauss and Legendre."""
    nodes, weights = (torch.from_numpy(array) for array in np.polynomial.legendre.leggauss(300))
    return Support((nodes + 1) * largest / 2, weights * largest / 2)


def pixels() -> Support:
    return Support(torch.arange(256, dtype=torch.uint8), torch.ones(256, dtype=torch.float64))


def warped(low: int, high: int) -> Tensor:
    return torch.tensor([(math.asinh(k / WIDTH) - MEAN) / SCALE for k in range(low, high + 1)], dtype=torch.float64)


def warped_integer(y: Tensor) -> Tensor:
    return (WIDTH * torch.sinh(SCALE * y.double() + MEAN)).round().long() + 3


def as_integer(values: Tensor) -> Tensor:
    return values.long()


CASES: dict[str, Case] = {
    "gaussian": Case("gaussian", {"size": 1}, line),
    "gaussian per row": Case("gaussian", {"size": 1, "per_row": True}, line),
    "student_t": Case("student_t", {"size": 1}, line),
    "student_t shared": Case("student_t", {"size": 1, "shared_scale": True}, line),
    "logistics": Case("logistics", {"size": 1}, line),
    "logistics of 1": Case("logistics", {"size": 1, "num_components": 1, "min_log_scale": [-1.0]}, line),
    "spikes": Case("spiked_logistics", {"size": 1, "atom_shares": [[[-1.5, 0.1], [0.3, 0.2]]]}, lambda: line_and_atoms(-1.5, 0.3)),
    "integers": Case(
        "discretised_gaussian",
        {"size": 1} | INTEGERS,
        lambda: numbers([k / 4 for k in range(-8, 11)]),
        lambda y: (4 * y.double()).round().long() + 8,
    ),
    "bytes": Case("discretised_gaussian", {"size": 1} | BYTES, pixels, as_integer),
    "warped": Case("warped_discretised_gaussian", {"size": 1} | WARP, lambda: numbers(warped(-3, 400)), warped_integer),
    "logistics on integers": Case(
        "discretised_logistics",
        {"size": 1} | INTEGERS,
        lambda: numbers([k / 4 for k in range(-8, 11)]),
        lambda y: (4 * y.double()).round().long() + 8,
    ),
    "heaps of integers": Case(
        "discretised_logistics",
        {"size": 1, "heaps": [[4.0, -7.0, 0.6]]} | INTEGERS,
        lambda: numbers([k / 4 for k in range(-8, 11)]),
        lambda y: (4 * y.double()).round().long() + 8,
    ),
    "heaps beside a spike": Case(
        "discretised_logistics",
        {"size": 1, "heaps": [[4.0, -7.0, 0.6]], "spikes": [[-1.0, 0.3]]} | INTEGERS,
        lambda: numbers([k / 4 for k in range(-8, 11)]),
        lambda y: (4 * y.double()).round().long() + 8,
    ),
    "heaps after a warp": Case(
        "warped_discretised_logistics", {"size": 1, "heaps": [[10.0, 5.0, 0.3]]} | WARP, lambda: numbers(warped(-3, 400)), warped_integer
    ),
    "logistics on bytes": Case("discretised_logistics", {"size": 1, "num_components": 3} | BYTES, pixels, as_integer),
    "logistics after a warp": Case("warped_discretised_logistics", {"size": 1} | WARP, lambda: numbers(warped(-3, 400)), warped_integer),
    "bits": Case("bernoulli", {"size": 1}, lambda: numbers([0.0, 1.0]), as_integer),
    "binarised bytes": Case("bernoulli", {"size": 1, "storage": "uint8"}, lambda: numbers([0.0, 255.0]), lambda y: (y > 127).long()),
    "grey levels": Case("continuous_bernoulli", {"size": 1}, lambda: levels(1.0)),
    "grey bytes": Case("continuous_bernoulli", {"size": 1, "storage": "uint8"}, lambda: levels(255.0)),
    "poisson": Case("poisson", {"size": 1} | COUNTS, lambda: numbers(torch.arange(30_000)), as_integer),
    "negative_binomial": Case("negative_binomial", {"size": 1} | COUNTS, lambda: numbers(torch.arange(30_000)), as_integer),
    "zero_inflated_negative_binomial": Case(
        "zero_inflated_negative_binomial", {"size": 1} | COUNTS, lambda: numbers(torch.arange(30_000)), as_integer
    ),
    "categories": Case("categorical", {"sizes": [7]}, lambda: numbers(torch.arange(7)), as_integer),
    "many categories": Case("categorical", {"sizes": [130]}, lambda: numbers(torch.arange(130)), as_integer),
}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def disturb(likelihood: Likelihood, seed: int, size: float = 0.5) -> Likelihood:
    """Moves the learned parameters to other random numbers."""
    for parameter in likelihood.parameters():
        parameter.data.add_(size * torch.randn(parameter.shape, generator=generator(seed), dtype=parameter.dtype))
    return likelihood


def outputs_of(likelihood: Likelihood, num_rows: int, seed: int, size: float = 1.0) -> Tensor:
    """Decoder outputs [num_rows, num_outputs] at random, in the likelihood's own dtype (float64 where it has no parameter)."""
    dtype = next((p.dtype for p in likelihood.parameters()), torch.float64)
    return size * torch.randn(num_rows, likelihood.num_outputs, generator=generator(seed), dtype=dtype)
