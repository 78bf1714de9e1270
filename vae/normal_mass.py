"""The logarithm of the normal mass of an interval, and its gradient, exact to rounding however narrow or far out it is.

Shapes: any, the same for all arguments or broadcast.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

LOG_SQRT_2PI = 0.5 * math.log(2 * math.pi)
SQRT_HALF = math.sqrt(0.5)
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


def log_normal_mass(middle: Tensor, half_width: Tensor, at_lower: Tensor, at_upper: Tensor) -> Tensor:
    """Returns log(Phi(middle + half_width) - Phi(middle - half_width)); at_lower and at_upper extend the interval to infinity."""
    arguments = torch.broadcast_tensors(middle, half_width, at_lower, at_upper)  # type: ignore[no-untyped-call]
    if middle.device.type == "cpu":
        result: Tensor = LogNormalMass.apply(*arguments)  # type: ignore[no-untyped-call]
        return result
    return everywhere(*arguments)  # to pick the rare cells would make the host wait for the device


class LogNormalMass(torch.autograd.Function):
    """Most cells by two erfc, which vectorise and whose mass gives the gradient too; the rare ones, picked out, by `everywhere`."""

    @staticmethod
    def forward(ctx: Any, middle: Tensor, half_width: Tensor, at_lower: Tensor, at_upper: Tensor) -> Tensor:
        begin = middle - half_width - TAIL * at_lower
        end = middle + half_width + TAIL * at_upper
        # Mirrored so that the nearer end is `near`: Phi(far) - Phi(near) of the upper tail keeps its precision.
        near, far = torch.maximum(begin, -end), torch.maximum(end, -begin)
        rare = (near > NEAR) | ((half_width < 0.5 * NARROW) & ~(at_lower | at_upper))
        limit = FAR[middle.dtype]
        near, far = near.clamp(-limit, limit), far.clamp(max=limit)
        mass = 0.5 * (torch.special.erfc(SQRT_HALF * near) - torch.special.erfc(SQRT_HALF * far))
        log_mass = mass.log()
        at_near, at_far = (torch.exp(-0.5 * x.square() - LOG_SQRT_2PI) / mass for x in (near, far))
        by_middle, by_half_width = torch.sign(begin + end) * (at_far - at_near), at_far + at_near
        if rare.any():
            with torch.enable_grad():
                rare_middle, rare_half_width = (argument[rare].detach().requires_grad_() for argument in (middle, half_width))
                exact = everywhere(rare_middle, rare_half_width, at_lower[rare], at_upper[rare])
                by_rare_middle, by_rare_half_width = torch.autograd.grad(exact.sum(), (rare_middle, rare_half_width))
            log_mass[rare], by_middle[rare], by_half_width[rare] = exact.detach(), by_rare_middle, by_rare_half_width
        ctx.save_for_backward(by_middle, by_half_width)
        result: Tensor = log_mass
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        by_middle, by_half_width = ctx.saved_tensors
        return gradients[0] * by_middle, gradients[0] * by_half_width, None, None


def everywhere(middle: Tensor, half_width: Tensor, at_lower: Tensor, at_upper: Tensor) -> Tensor:
    """Returns the same by formulas that hold anywhere.

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
