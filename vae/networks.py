"""Networks between features and parameters. No layer normalises over the batch. Shapes: B rows."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import nn


def linear(num_inputs: int, hidden_dims: Sequence[int], num_outputs: int) -> nn.Module:
    """Returns one affine map [B, num_inputs] -> [B, num_outputs]; hidden_dims has no meaning here."""
    return nn.Linear(num_inputs, num_outputs)


def mlp(num_inputs: int, hidden_dims: Sequence[int], num_outputs: int) -> nn.Module:
    """Returns affine maps with ReLU between them, [B, num_inputs] -> [B, num_outputs]."""
    layers: list[nn.Module] = []
    for size_in, size_out in pairwise([num_inputs, *hidden_dims]):
        layers += [nn.Linear(size_in, size_out), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, nn.Linear([num_inputs, *hidden_dims][-1], num_outputs))


NETWORKS = {"linear": linear, "mlp": mlp}
