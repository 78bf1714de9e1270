"""The log of the mass that a mixture of logistics has in an interval, with its gradient, in few passes over components.

Shapes: S samples, B rows, D cells, K components.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vae.gradients import of_first_order
from vae.host import may_look_at
from vae.logistic_mass import log_logistic_mass
from vae.normal_mass import Interval, residual

# A mass that float32 holds with all of its components that matter; its smallest normal number is 1e-38.
SMALLEST_MASS = 1e-25


def log_mixture_mass(interval: Interval, log_weights: Tensor, location: Tensor, log_scale: Tensor) -> Tensor:
    """Returns the log mass of each interval [B, D] in its cell's mixture, parameters [.., B, K, D]: [.., B, D].

    log_weights are normalised over K, or the mass is that of as many of all rows as their sum says.
    """
    log_masses = log_logistic_mass(interval.unsqueezed(-2), location, log_scale)
    return torch.logsumexp(log_weights + log_masses, -2)


def log_mixture_mass_by_hand(interval: Interval, log_weights: Tensor, location: Tensor, log_scale: Tensor) -> Tensor:
    """Returns the same by fewer operations, with its gradient by hand, where the host may look at numbers."""
    if not may_look_at(location):
        return log_mixture_mass(interval, log_weights, location, log_scale)
    result: Tensor = LogMixtureMass.apply(torch.is_grad_enabled(), log_weights, location, log_scale, *interval)  # type: ignore[no-untyped-call]
    return result


class LogMixtureMass(torch.autograd.Function):
    """Most cells by the masses themselves, whose factors give the gradients too; those of hardly any mass log_mixture_mass."""

    @staticmethod
    def forward(ctx: Any, with_gradients: bool, log_weights: Tensor, location: Tensor, log_scale: Tensor, *ends: Tensor) -> Tensor:
        interval = Interval(*ends)
        middle, half_width, at_lower, at_upper = interval.unsqueezed(-2)
        inverse = torch.exp(-log_scale)
        distance = residual(middle, location)
        to_end, to_begin = (distance + half_width).mul_(inverse), (half_width - distance).mul_(inverse)
        width = inverse * (2 * half_width)
        # sigmoid(b) - sigmoid(a) = sigmoid(b) sigmoid(-a) (1 - exp(a - b)); at an end of the range some of these are 1.
        below_end = torch.sigmoid(to_end).masked_fill_(at_upper, 1.0)
        above_begin = torch.sigmoid(to_begin).masked_fill_(at_lower, 1.0)
        between = torch.expm1(-width).neg_().masked_fill_(at_lower | at_upper, 1.0)
        masses = torch.exp(log_weights).mul_(below_end).mul_(above_begin).mul_(between)
        mass = masses.sum(-2)
        rare = ~(mass > SMALLEST_MASS)
        log_mass = torch.log(mass)
        if not with_gradients:  # nor could they be had in inference mode
            if rare.any():
                log_mass[rare] = log_mixture_mass(*of_cells(rare, interval, log_weights, location, log_scale))[:, 0]
            return log_mass
        share = masses.div_(mass.unsqueeze(-2))
        past_end, before_begin = below_end.neg_().add_(1).mul_(share), above_begin.neg_().add_(1).mul_(share)
        by_location = (before_begin - past_end).mul_(inverse)
        by_width = width.mul_(share).mul_(1 - between).div_(between)
        by_log_scale = by_width.addcmul_(to_end, past_end).addcmul_(to_begin, before_begin).neg_()
        gradients = [share, by_location, by_log_scale]
        if rare.any():
            with torch.enable_grad():
                of_rare, *parts = of_cells(rare, interval, log_weights, location, log_scale)
                parts = [part.detach().requires_grad_() for part in parts]
                exact = log_mixture_mass(of_rare, *parts)[:, 0]
                for gradient, slopes in zip(gradients, torch.autograd.grad(exact.sum(), parts), strict=True):
                    gradient.movedim(-2, -1)[rare] = slopes[:, :, 0]
            log_mass[rare] = exact.detach()
        ctx.save_for_backward(*gradients)
        return log_mass

    @staticmethod
    @of_first_order
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        of_cell = gradients[0].unsqueeze(-2)
        by_log_weights, by_location, by_log_scale = (part * of_cell for part in ctx.saved_tensors)
        return None, by_log_weights, by_location, by_log_scale, None, None, None, None


def of_cells(cells: Tensor, interval: Interval, *parameters: Tensor) -> tuple[Any, ...]:
    """Returns the intervals of the cells that a mask [.., B, D] picks, [n, 1], and their mixtures' parameters, [n, K, 1]."""
    picked = Interval(*(part[:, None] for part in interval.at(cells)))
    return picked, *(part.movedim(-2, -1)[cells][:, :, None] for part in parameters)
