"""Networks between features and parameters. No layer normalises over the batch. Shapes: B rows, W the width of a layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from vae.input_layer import InputLayer, OneHot
from vae.linear import Linear


def linear(num_inputs: int, hidden_dims: Sequence[int], num_outputs: int) -> nn.Module:
    """Returns one affine map [B, num_inputs] -> [B, num_outputs]; hidden_dims has no meaning here."""
    return InputLayer(num_inputs, num_outputs)


def mlp(num_inputs: int, hidden_dims: Sequence[int], num_outputs: int) -> nn.Module:
    """Returns affine maps with ReLU between them, [B, num_inputs] -> [B, num_outputs]."""
    layers: list[nn.Module] = []
    for size_in, size_out in pairwise([num_inputs, *hidden_dims]):
        layers += [InputLayer(size_in, size_out) if not layers else Linear(size_in, size_out), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, Linear([num_inputs, *hidden_dims][-1], num_outputs))


class Gated(nn.Module):
    """(A x + a) * sigmoid(B x + b), [.., W_in] -> [.., W_out] (Dauphin et al. 2017); both maps are one matrix product."""

    def __init__(self, num_inputs: int, num_outputs: int) -> None:
        super().__init__()
        self.maps = InputLayer(num_inputs, 2 * num_outputs)
        for half in self.maps.weight.data.chunk(2):
            nn.init.kaiming_normal_(half)
        nn.init.zeros_(self.maps.bias)

    def forward(self, inputs: Tensor | Sequence[Tensor | OneHot]) -> Tensor:
        return nn.functional.glu(self.maps(inputs))


def gated(num_inputs: int, hidden_dims: Sequence[int], num_outputs: int) -> nn.Module:
    """Returns gated layers and an affine map after them, [B, num_inputs] -> [B, num_outputs]."""
    sizes = [num_inputs, *hidden_dims]
    return nn.Sequential(*(Gated(size_in, size_out) for size_in, size_out in pairwise(sizes)), Linear(sizes[-1], num_outputs))


class Residual(nn.Module):
    """x + B silu(A norm(x)), [.., W] -> [.., W]; the norm is each row's own, and the sum starts as x."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.into, self.out = nn.LayerNorm(width), Linear(width, width), Linear(width, width)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = inputs + self.out(torch.nn.functional.silu(self.into(self.norm(inputs))))
        return outputs


def residual(num_inputs: int, hidden_dims: Sequence[int], num_outputs: int) -> nn.Module:
    """Returns a residual block for every hidden width, an affine map wherever the width changes, [B, num_inputs] -> [B, num_outputs]."""
    layers: list[nn.Module] = []
    width = num_inputs
    for number, size in enumerate(hidden_dims):
        layers += [InputLayer(width, size) if number == 0 else Linear(width, size)] if number == 0 or size != width else []
        layers.append(Residual(size))
        width = size
    return nn.Sequential(*layers, nn.LayerNorm(width), Linear(width, num_outputs))


Build = Callable[[int, Sequence[int], int], nn.Module]
NETWORKS: dict[str, Build] = {"linear": linear, "mlp": mlp, "gated": gated, "residual": residual}
