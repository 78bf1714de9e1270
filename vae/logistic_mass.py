"""The logarithms of the logistic density and of the logistic mass of an interval, exact to rounding however narrow or far out.

Shapes: any, the same for all arguments or broadcast.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from vae.normal_mass import LOG_2, Interval, residual


def log_logistic_density(values: Tensor, location: Tensor, log_scale: Tensor) -> Tensor:
    """Returns log of sigmoid(z) sigmoid(-z) / scale with z = (values - location) / scale."""
    z = residual(values, location) * torch.exp(-log_scale)
    return F.logsigmoid(z) + F.logsigmoid(-z) - log_scale


def log1mexp(x: Tensor) -> Tensor:
    """Returns log(1 - exp(-x)) for x > 0, to a relative error of some eps (Maechler 2012, "Accurately computing log(1 - exp(-|a|))")."""
    near, far = x.clamp(max=LOG_2), x.clamp(min=LOG_2)
    return torch.where(x < LOG_2, torch.log(-torch.expm1(-near)), torch.log1p(-torch.exp(-far)))


def log_logistic_mass(interval: Interval, location: Tensor, log_scale: Tensor) -> Tensor:
    """Returns log(sigmoid(b) - sigmoid(a)) for the ends a, b of the interval in scales from location, the whole tail where it is marked.

    sigmoid(b) - sigmoid(a) = sigmoid(b) sigmoid(-a) (1 - exp(a - b)): three logarithms of one sign, of which none cancels
    another, in either tail, for an interval of any width.
    """
    middle, half_width, at_lower, at_upper = interval
    inverse, distance = torch.exp(-log_scale), residual(middle, location)
    below_end = F.logsigmoid((distance + half_width) * inverse).masked_fill(at_upper, 0.0)
    above_begin = F.logsigmoid((half_width - distance) * inverse).masked_fill(at_lower, 0.0)
    between = log1mexp(2 * half_width * inverse).masked_fill(at_lower | at_upper, 0.0)
    return below_end + above_begin + between
