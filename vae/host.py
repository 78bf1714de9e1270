"""What the host may do while a device computes."""

from __future__ import annotations

import torch
from torch import Tensor


def may_look_at(tensor: Tensor) -> bool:
    """Whether code may branch on numbers: elsewhere than on the CPU the host would wait for them, and torch.compile cannot follow."""
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling()
