"""An encoder's first layer, which need not multiply the zeros of one-hot columns.

Shapes: B rows, F features, C columns, K categories in all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from vae.host import may_look_at
from vae.linear import Linear, affine


class OneHot(NamedTuple):
    """One-hot columns: a row's features at `places` [B, C] are `there` [B, C], 1, or 0 of a missing cell; its others of all K are 0."""

    places: Tensor
    there: Tensor
    num_categories: int

    def dense(self) -> Tensor:
        """Returns the features, [B, K]."""
        return self.there.new_zeros(len(self.places), self.num_categories).scatter_(1, self.places, self.there)


def dense(parts: Sequence[Tensor | OneHot]) -> Tensor:
    """Returns features as one matrix, [B, F]."""
    tensors = [part.dense() if isinstance(part, OneHot) else part for part in parts]
    return torch.cat(tensors, 1) if len(tensors) > 1 else tensors[0]


def zeros_cost(tensor: Tensor) -> bool:
    """Whether multiplying zeros takes longer than skipping them where a tensor is: not on GPUs, in bfloat16, or with gradients."""
    return may_look_at(tensor) and not torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu")


class InputLayer(Linear):
    """An affine map of features [B, F], or of their parts in order, each of them numbers or one-hot: of these it adds up weights."""

    def forward(self, inputs: Tensor | Sequence[Tensor | OneHot]) -> Tensor:
        if isinstance(inputs, Tensor):
            return super().forward(inputs)
        sizes = [part.num_categories if isinstance(part, OneHot) else part.shape[1] for part in inputs]
        weighted = list(zip(inputs, torch.split(self.weight, sizes, 1), strict=True))
        numbers = [(part, weight) for part, weight in weighted if isinstance(part, Tensor)]
        outputs: Tensor = self.bias
        if numbers:
            outputs = affine(torch.cat([part for part, _ in numbers], 1), torch.cat([weight for _, weight in numbers], 1), self.bias)
        for part, weight in weighted:
            if isinstance(part, OneHot):
                outputs = outputs + F.embedding_bag(part.places, weight.t().contiguous(), mode="sum", per_sample_weights=part.there)
        return outputs
