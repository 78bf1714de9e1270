"""Which arithmetic is at the networks' precision, and which never is."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def without_autocast(tensor: Tensor) -> AbstractContextManager[object]:
    """Returns a context, for the tensor's device, in which products are taken in the tensors' own precision.

    Autocast is meant for the networks: densities, samples and sums made of their outputs would lose their digits in bfloat16.
    """
    device = tensor.device.type
    in_autocast = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    return torch.autocast(device, enabled=False) if in_autocast else nullcontext()
