"""Gradients that are computed by hand."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch


def of_first_order(backward: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a Function's backward that raises RuntimeError where gradients of its gradients are asked for, with create_graph.

    What it saved would count as constant: they would be wrong without a word. PyTorch's once_differentiable does not tell where the
    incoming gradient is a constant, as that of a sum is.
    """

    @functools.wraps(backward)
    def first_only(ctx: Any, *gradients: torch.Tensor) -> Any:
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            raise RuntimeError("the gradient of this bound is computed by hand and has none of its own: leave out create_graph")
        return backward(ctx, *gradients)

    return first_only
