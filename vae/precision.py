"""Which arithmetic is at the networks' precision, and which never is."""

from __future__ import annotations

import torch
from torch import Tensor


def without_autocast(tensor: Tensor) -> torch.autocast:
    """Returns a context, for the tensor's device, in which products are taken in the tensors' own precision.

    Autocast is meant for the networks: densities, samples and sums made of their outputs would lose their digits in bfloat16.
    """
    return torch.autocast(tensor.device.type, enabled=False)
