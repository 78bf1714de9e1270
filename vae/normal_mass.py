"""The logarithm of the normal mass of an interval, and its gradient, exact to rounding however narrow or far out it is.

Shapes: any, the same for all arguments or broadcast.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vae.gradients import of_first_order
from vae.host import may_look_at

LOG_SQRT_2PI = 0.5 * math.log(2 * math.pi)
SQRT_HALF, SQRT_2 = math.sqrt(0.5), math.sqrt(2)
LOG_2 = math.log(2)
LOG_TWO_OVER_SQRT_2PI = math.log(2 / math.sqrt(2 * math.pi))
# Farther than any standardised cell from its location, yet its square and gradients are finite in float32 at every scale.
FARTHEST = 1e12
# In standard deviations: beyond every cell at every scale, yet log Phi(-TAIL) is finite in float32.
TAIL = 1e18
# Below this width (in standard deviations) the difference of two log Phi cancels.
NARROW = 0.01
# An interval that comes within NEAR of 0 has a mass that float32 holds (erfc(9 / sqrt 2) = 2e-19); what lies beyond FAR adds nothing to it.
NEAR = 9.0
FAR = {torch.float32: 12.0, torch.float64: 37.0}


def log_ndtr(x: Tensor) -> Tensor:
    """Returns log Phi(x). The gradient of torch.special.log_ndtr (2.13) has no correct digit below x = -5000 in float32."""
    tail, rest = x.clamp(max=-1), x.clamp(min=-1)
    log_tail = torch.log(0.5 * torch.special.erfcx(-SQRT_HALF * tail)) - 0.5 * tail.square()
    return torch.where(x < -1, log_tail, torch.log1p(-0.5 * torch.special.erfc(SQRT_HALF * rest)))


class Interval(NamedTuple):
    """Intervals middle - half_width .. middle + half_width, [B, D] each or broadcast; at_lower and at_upper extend them to infinity."""

    middle: Tensor
    half_width: Tensor
    at_lower: Tensor
    at_upper: Tensor

    def standardised(self, location: Tensor, log_scale: Tensor) -> Interval:
        """Returns the intervals in standard deviations from location [.., B, D]."""
        inverse = torch.exp(-log_scale)
        return self._replace(middle=residual(self.middle, location) * inverse, half_width=self.half_width * inverse)

    def unsqueezed(self, dim: int) -> Interval:
        """Returns the intervals with a dimension before which distributions may differ, [B, 1, D] for dim -2."""
        parts = (part.unsqueeze(dim) if part.dim() >= -dim else part for part in self)
        return Interval(*parts)

    def at(self, cells: Tensor) -> Interval:
        """Returns the intervals of the cells that a mask [.., B, D] picks, [n]."""
        return Interval(*(part.expand(cells.shape)[cells] for part in self))


def residual(values: Tensor, location: Tensor) -> Tensor:
    """Returns values - location, kept within FARTHEST."""
    difference = values - location
    if difference.numel() and may_look_at(difference):
        least, most = difference.detach().aminmax()
        if least > -FARTHEST and most < FARTHEST:
            return difference  # a clamp's gradient takes several passes
    return difference.clamp(-FARTHEST, FARTHEST)


def sum_log_mass(location: Tensor, log_scale: Tensor, interval: Interval, observed: Tensor) -> Tensor:
    """Returns the sums over a row's observed cells of the log mass that N(location, exp(log_scale)^2) has in an interval, [.., B].

    location [.., B, D], log_scale [D], observed bool [B, D] or [B, 1].
    """
    if may_look_at(location):
        with_gradients = torch.is_grad_enabled()
        result: Tensor = SumLogMass.apply(with_gradients, location, log_scale, observed, *interval)  # type: ignore[no-untyped-call]
        return result
    return torch.where(observed, log_normal_mass(*interval.standardised(location, log_scale)), 0.0).sum(-1)


class SumLogMass(torch.autograd.Function):
    """Most cells by two erfc, which vectorise and whose mass gives the gradients too, in few passes; the rare ones by log_normal_mass."""

    @staticmethod
    def forward(ctx: Any, with_gradients: bool, location: Tensor, log_scale: Tensor, observed: Tensor, *ends: Tensor) -> Tensor:
        interval = Interval(*ends)
        middle, half_width, at_lower, at_upper = interval
        inverse = torch.exp(-log_scale)
        unit = SQRT_HALF * inverse  # ends are in units of sqrt(2) standard deviations: erfc and exp(-x^2) take them as they are
        center, reach = (middle - location).mul_(unit), half_width * unit
        begin = (center - reach).add_(at_lower, alpha=-TAIL)  # a masked fill takes five times as long
        end = center.add_(reach).add_(at_upper, alpha=TAIL)
        # Mirrored so that the nearer end is `near`: Phi(far) - Phi(near) of the upper tail keeps its precision.
        near, far = torch.maximum(begin, -end), torch.maximum(end, -begin)
        direction = begin.add_(end)
        rare = rare_cells(near, half_width * inverse, interval)
        limit = FAR[location.dtype] * SQRT_HALF
        near, far = near.clamp_(-limit, limit), far.clamp_(max=limit)
        log_mass = torch.special.erfc(near).sub_(torch.special.erfc(far)).log_()
        if not with_gradients:  # nor could they be had in inference mode
            log_mass.sub_(LOG_2)
            if rare is not None:
                parts = [part.expand(rare.shape)[rare] for part in (location, log_scale)]
                log_mass[rare] = log_normal_mass(*interval.at(rare).standardised(*parts))
            values: Tensor = log_mass.mul_(observed.to(location.dtype)).sum(-1)
            return values
        per_mass = LOG_TWO_OVER_SQRT_2PI - log_mass
        log_mass.sub_(LOG_2)
        at_near, at_far = (torch.addcmul(per_mass, x, x, value=-1).exp_() for x in (near, far))
        by_log_scale = near.mul_(at_near).addcmul_(far, at_far, value=-1).mul_(SQRT_2)
        by_location = at_near.sub_(at_far).copysign_(direction).mul_(inverse)
        if rare is not None:
            with torch.enable_grad():
                parts = [part.expand(rare.shape)[rare].detach().requires_grad_() for part in (location, log_scale)]
                exact = log_normal_mass(*interval.at(rare).standardised(*parts))
                by_location[rare], by_log_scale[rare] = torch.autograd.grad(exact.sum(), parts)
            log_mass[rare] = exact.detach()
        observed = observed.to(location.dtype)
        if observed.shape[-1] > 1:
            log_mass, by_location, by_log_scale = (part.mul_(observed) for part in (log_mass, by_location, by_log_scale))
            row_observed = observed.new_ones(())
        else:
            row_observed = observed.squeeze(-1)
        ctx.save_for_backward(by_location, by_log_scale, row_observed)
        result: Tensor = log_mass.sum(-1).mul_(row_observed)
        return result

    @staticmethod
    @of_first_order
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        by_location, by_log_scale, row_observed = ctx.saved_tensors
        gradient = gradients[0] * row_observed
        return None, by_location * gradient[..., None], gradient.flatten() @ by_log_scale.flatten(0, -2), None, None, None, None, None


def rare_cells(near: Tensor, half_width: Tensor, interval: Interval) -> Tensor | None:
    """Returns which cells two erfc do not do for, [.., B, D], None where there is none: that is known faster than which they are.

    near: the nearer end, in units of sqrt(2) standard deviations; half_width in standard deviations, [D] or [B, D].
    """
    if not near.numel():
        return None
    narrow = bool(half_width.min() < 0.5 * NARROW)
    if not narrow and near.amax() <= NEAR * SQRT_HALF:
        return None
    rare = near > NEAR * SQRT_HALF
    if narrow:
        rare |= (half_width < 0.5 * NARROW) & ~(interval.at_lower | interval.at_upper)
    return rare if rare.any() else None


def log_normal_mass(middle: Tensor, half_width: Tensor, at_lower: Tensor, at_upper: Tensor) -> Tensor:
    """Returns log(Phi(middle + half_width) - Phi(middle - half_width)); at_lower and at_upper extend the interval to infinity.

    Both ends are mirrored into the lower tail, where log Phi keeps its precision. A narrow interval has the mass
    phi(middle) * 2 * half_width * sinh(u)/u * exp(-half_width^2 / 6) with u = middle * half_width, to a relative error of about
    half_width^2 (u^2 / 45 + half_width^2 / 90), and under half_width^2 / 3 anywhere.
    """
    lower = torch.where(at_lower, -TAIL, middle - half_width)
    upper = torch.where(at_upper, TAIL, middle + half_width)
    flip = lower + upper > 0
    log_b = log_ndtr(torch.where(flip, -lower, upper))
    log_a = log_ndtr(torch.where(flip, -upper, lower))
    wide = log_b + torch.log(-torch.expm1((log_a - log_b).clamp(max=-1e-6)))
    small = half_width.clamp(max=0.5 * NARROW)
    twice_u = (2 * middle * small).abs().clamp(min=1e-4)
    log_sinhc = 0.5 * twice_u + torch.log(-torch.expm1(-twice_u)) - torch.log(twice_u)
    narrow = -0.5 * middle.square() - LOG_SQRT_2PI + torch.log(2 * small) + log_sinhc - small.square() / 6
    return torch.where((half_width < 0.5 * NARROW) & ~at_lower & ~at_upper, narrow, wide)
