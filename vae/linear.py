"""Affine maps whose products take the faster of PyTorch's two libraries of matrix products.

On CPUs nn.Linear multiplies float32 by MKL, which gives its AVX-512 code to Intel's own processors only; oneDNN, which PyTorch holds too
and takes for bfloat16 and convolutions, gives it to any: on AMD's it multiplies 2.2 times as fast.

Shapes: B rows, I inputs, O outputs.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CPUINFO = Path("/proc/cpuinfo")  # where it is none, everything is left to PyTorch
# Multiplications of a product below which a call of oneDNN costs more than it saves.
MIN_MULTIPLICATIONS = 3_000_000
# For every number of rows that it meets oneDNN keeps code, 2 MB for two layers, as long as the process lives. Training meets a few numbers;
# without gradients there are as many as row groups: oneDNN gets multiples of this, or below it a power of two, and MKL what is left.
INFERENCE_ROWS = 1024


@functools.cache
def prefers_onednn() -> bool:
    """Whether oneDNN multiplies float32 faster than nn.Linear on this processor: one with AVX-512 that is not Intel's."""
    backends = torch.backends
    both = backends.mkl.is_available() and backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return both and backends.cpu.get_cpu_capability() == "AVX512" and CPUINFO.exists() and "GenuineIntel" not in CPUINFO.read_text()


def product(left: Tensor, right: Tensor, bias: Tensor | None = None) -> Tensor:
    """Returns left [B, I] times right [O, I] transposed, plus bias [O], by oneDNN."""
    return torch.ops.mkldnn._linear_pointwise(left, right, bias, "none", [], "")  # type: ignore[no-any-return]


def transposed_product(left: Tensor, right: Tensor) -> Tensor:
    """Returns left [B, O] transposed times right [B, I]; of the two, what is transposed first is copied: here the smaller one."""
    if right.shape[1] < left.shape[1]:
        return product(right.t(), left.t()).t().contiguous()
    return product(left.t(), right.t())


class Affine(torch.autograd.Function):
    """inputs [B, I] times weight [O, I] transposed plus bias [O], with its gradients, by oneDNN."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(inputs, weight)
        return product(inputs, weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        inputs, weight = ctx.saved_tensors
        by_inputs, by_weight, by_bias = ctx.needs_input_grad
        gradient = gradient.contiguous()  # with a sum's, which is one number many times, oneDNN takes a hundred times as long
        by_onednn = not torch.is_grad_enabled()  # its products have no gradients, which may be asked for where these are enabled
        return (
            (product(gradient, weight.t()) if by_onednn else gradient @ weight) if by_inputs else None,
            (transposed_product(gradient, inputs) if by_onednn else gradient.t() @ inputs) if by_weight else None,
            gradient.sum(0) if by_bias else None,
        )


def inferred(inputs: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Returns inputs [B, I] times weight [O, I] transposed plus bias [O], of one row or more and without gradients."""
    unit = min(INFERENCE_ROWS, 1 << (len(inputs).bit_length() - 1))
    whole = len(inputs) - len(inputs) % unit
    outputs = product(inputs[:whole], weight, bias)
    return torch.cat([outputs, F.linear(inputs[whole:], weight, bias)]) if whole < len(inputs) else outputs


def affine(inputs: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Returns inputs [.., I] times weight [O, I] transposed plus bias [O], as torch.nn.functional.linear does."""
    float32 = inputs.is_cpu and inputs.dtype == weight.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    worth_it = inputs.numel() * len(bias) >= MIN_MULTIPLICATIONS
    if torch.compiler.is_compiling() or not (float32 and worth_it and prefers_onednn() and torch.backends.mkldnn.enabled):
        return F.linear(inputs, weight, bias)
    # Rows that overlap, as windows of a series, are no layout of oneDNN's once they are transposed.
    rows = inputs.reshape(-1, inputs.shape[-1]).contiguous()
    outputs: Tensor = (Affine.apply if torch.is_grad_enabled() else inferred)(rows, weight, bias)
    if inputs.dim() == 2:
        return outputs
    # Of a view that is known as one, gradients take several passes where it is changed in place.
    return torch.ops.aten._unsafe_view(outputs, [*inputs.shape[:-1], len(bias)])  # type: ignore[no-any-return]


class Linear(nn.Linear):
    """nn.Linear, by the faster library."""

    def forward(self, inputs: Tensor) -> Tensor:
        return affine(inputs, self.weight, self.bias)
