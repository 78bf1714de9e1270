"""Heaps: integers many of which are rounded to multiples of a coarser step, by whoever wrote them down.

An integer is rounded with a probability of its row, whatever it is: with the mass P of an interval,

    p(k) = (1 - r) P[k - 1/2, k + 1/2] + r P[k - c/2, k + c/2] where k is a multiple of c (counted from some integer), else the first alone.

Both sum to 1 over the integers that they are of. So far out that float32 does not tell a multiple from its neighbours, no integer nearest
to it is rounded: these have P[k - 1/2, k + 1/2], whose sum is that of their multiple's interval. Nor is what a mixture's component on a
spike draws: -999 for what is not known, among weights of whole fives.
Shapes: S samples, B rows, D cells, K components, H cells with heaps among the cells.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vae.cells import uniform_like
from vae.grids import Grid
from vae.normal_mass import Interval

# Of both: what training rows never held may come.
MIN_SHARE = 1e-4
# Scores are bounded for sums with them to be finite.
MAX_SCORE = 1e30
# Half the distance of the float32 numbers near 1: how much, relatively, storing moves a number.
STORED = 2.0**-24
# Where storing moves a multiple by less than this share of a step of the grid it is told from its neighbours: by less than a half.
TOLD = 0.4
# Where float64 leaves nothing of a coarser step, none is told; the logarithm of its mass and its slopes are finite nevertheless.
NARROWEST = 2.0**-100


class Heaps(nn.Module):
    """Which cells of a grid have heaps, and where.

    heaps: of every cell None, or a step of more than one of the grid's, the position of a multiple of it (counted from the standardised 0
    of a linear grid, the center of a warped one), and the share of rows that are rounded; start: the log-odds of these shares, [H].
    on_spike: which components of the cells [K, D] are on a spike, and not rounded.
    """

    cells: Tensor
    on_spike: Tensor
    warp: Tensor
    start: Tensor

    def __init__(self, grid: Grid, heaps: Sequence[Sequence[float] | None], on_spike: Tensor) -> None:
        super().__init__()
        found = {cell: heap for cell, heap in enumerate(heaps) if heap is not None}
        if len(heaps) != grid.size or not found or any(step <= 1 for step, _, _ in found.values()):
            raise ValueError(
                f"heaps: None or a step beyond 1, a multiple and a share are needed for {grid.size} cells, not all None; they are {heaps}"
            )
        warp = grid.warp()
        rows = []
        for cell, (step, multiple, _) in found.items():
            *numbers, lower, upper = (part[cell] for part in warp)
            phase = math.remainder(multiple, step)
            first, last = math.ceil((lower - phase) / step - STORED), math.floor((upper - phase) / step + STORED)
            rows.append([*numbers, step, phase, phase + step * first, phase + step * last])
        exact = torch.tensor(rows, dtype=torch.float64).T
        upper_digits = exact.float()
        # Two float32 numbers that make one of 48 bits, whatever type the model is moved to; they are constants and in no state dict.
        self.register_buffer("warp", torch.stack([upper_digits, (exact - upper_digits.double()).float()]), persistent=False)
        self.register_buffer("cells", torch.tensor([*found]), persistent=False)
        self.register_buffer("on_spike", on_spike[:, [*found]], persistent=False)
        self.start = torch.logit(torch.tensor([share for _, _, share in found.values()]).clamp(MIN_SHARE, 1 - MIN_SHARE))

    def numbers(self) -> Tensor:
        """Returns width, mean, scale, step, phase and the first and last multiple of every cell, float64 [7, H]."""
        return self.warp.double().sum(0)

    def intervals(self, values: Tensor) -> tuple[Interval, Tensor, Tensor]:
        """Returns the intervals of the multiples that are nearest to stored numbers [B, D], which of these are multiples, and which of the
        multiples float32 tells from their neighbours, [B, H]."""
        width, mean, scale, step, phase, first, last = self.numbers()
        position = width * torch.sinh(values.index_select(-1, self.cells).double() * scale + mean)
        multiple = nearest(position, step, phase, first, last)
        begin, end = (((torch.asinh((multiple + by * step) / width)) - mean) / scale for by in (-0.5, 0.5))
        middle, half_width = (part.to(values.dtype) for part in (0.5 * (begin + end), (0.5 * (end - begin)).clamp(min=NARROWEST)))
        interval = Interval(middle, half_width, multiple < first + 0.5, multiple > last - 0.5)
        return interval, (position - multiple).abs() < 0.5, is_told(torch.asinh(multiple / width), width, mean)

    def log_weights(self, log_weights: Tensor, told: Tensor, log_shares: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Returns the log-weights that components [.., B, K, H] have among the rounded numbers, and among the others."""
        rounded, unrounded = log_shares
        coarse = torch.where(self.on_spike, -MAX_SCORE, log_weights + rounded.unsqueeze(-2))
        return coarse, log_weights + torch.where(self.on_spike, 0.0, torch.where(told, unrounded, 0.0).unsqueeze(-2))

    def rounded(self, drawn: Tensor, component: Tensor, log_share: Tensor, generator: torch.Generator) -> Tensor:
        """Returns drawn stored numbers [.., B, D] of which those cells that have heaps are rounded with their probability [.., B, H].

        component: that drew each, [.., B, D].
        """
        width, mean, scale, step, phase, first, last = self.numbers()
        y = drawn.index_select(-1, self.cells)
        multiple = nearest(width * torch.sinh(y.double() * scale + mean), step, phase, first, last)
        warped = torch.asinh(multiple / width)
        on_multiple = ((warped - mean) / scale).to(drawn.dtype)
        on_spike = self.on_spike.mT.expand(*y.shape, -1).gather(-1, component.index_select(-1, self.cells).unsqueeze(-1)).squeeze(-1)
        is_rounded = (uniform_like(y, generator) < log_share.exp()) & is_told(warped, width, mean) & ~on_spike
        return drawn.index_copy(-1, self.cells, torch.where(is_rounded, on_multiple, y))


def nearest(position: Tensor, step: Tensor, phase: Tensor, first: Tensor, last: Tensor) -> Tensor:
    """Returns the multiples, from the first to the last, that are nearest to positions, float64 [.., H]."""
    return torch.clamp(torch.round((position - phase) / step) * step + phase, first, last)


def is_told(warped: Tensor, width: Tensor, mean: Tensor) -> Tensor:
    """Returns which positions float32 tells from their neighbours, bool [.., B, H], of their asinh."""
    return STORED * (warped - mean).abs() * width * torch.cosh(warped) < TOLD


def log_shares(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the log-probabilities that a cell is rounded, and that it is not, of log-odds [.., B, H]."""
    scores = scores.clamp(-MAX_SCORE, MAX_SCORE)
    return F.logsigmoid(scores), F.logsigmoid(-scores)
