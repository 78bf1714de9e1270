"""p(m|z): which cells of a row are there. Shapes: S samples, B rows, N modelled flags, K lists that are null as a whole in some rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from vae.bernoulli import BernoulliCells


class NullPatternDistribution:
    """The distribution of the modelled flags, given log-odds [.., N + K] that they are true.

    flags: field -> those of its flags that are modelled, N in all. They are independent, but for the K fields of `lists`: first comes
    whether the list is there at all, and then which of its elements are. A list without a single element is one that is null.
    """

    def __init__(self, logits: Tensor, flags: Mapping[str, Sequence[int]], lists: Sequence[str]) -> None:
        self.logits, self.flags, self.lists = logits, flags, lists
        self.sizes = [len(index) for index in flags.values()]

    def log_prob(self, valid: Mapping[str, Tensor]) -> Tensor:
        """Returns log p(m|z) in nats, [B] or [S, B], of the rows' flags by field; 0 where none are modelled."""
        if not self.flags:
            return self.logits.new_zeros(self.logits.shape[:-1])
        flags, whole = torch.split(self.logits, [sum(self.sizes), len(self.lists)], -1)
        there = torch.cat([valid[name][:, index] for name, index in self.flags.items()], 1)
        log_prob = BernoulliCells(flags).log_prob(there)
        if not self.lists:
            return log_prob.sum(-1)
        parts = dict(zip(self.flags, torch.split(log_prob, self.sizes, -1), strict=True))
        total = sum((part.sum(-1) for name, part in parts.items() if name not in self.lists), torch.zeros_like(log_prob[..., 0]))
        for name, logit in zip(self.lists, whole.unbind(-1), strict=True):
            listed = logsigmoid(logit) + parts[name].sum(-1)
            total = total + torch.where(valid[name].any(1), listed, torch.logaddexp(listed, logsigmoid(-logit)))
        return total

    def sample(self, valid: Mapping[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        """Returns the rows' flags by field, [B, V] each, drawn where they are modelled."""
        result = dict(valid)
        if not self.flags:
            return result
        *parts, whole = torch.split(BernoulliCells(self.logits).sample(generator).bool(), [*self.sizes, len(self.lists)], -1)
        for (name, index), drawn in zip(self.flags.items(), parts, strict=True):
            result[name] = result[name].clone()
            result[name][:, index] = drawn
        for name, there in zip(self.lists, whole.unbind(-1), strict=True):
            result[name] &= there[:, None]
        return result


class NullPattern(nn.Module):
    """Turns the decoder's last outputs into the distribution of the flags that the model's fields name (vae.VAE says how)."""

    start: Tensor

    def __init__(self, fields: Sequence[Mapping[str, Any]]) -> None:
        super().__init__()
        modelled = [field for field in fields if field.get("null_pattern")]
        self.flags: dict[str, list[int]] = {field["name"]: list(field["null_pattern"]) for field in modelled}
        self.lists: list[str] = [field["name"] for field in modelled if "null_list_rate" in field]
        rates = [rate for field in modelled for rate in field.get("null_rates", [0.5] * len(field["null_pattern"]))]
        rates += [field["null_list_rate"] for field in modelled if "null_list_rate" in field]
        self.num_outputs = len(rates)
        self.register_buffer("start", start_of_flags(rates), persistent=False)

    def forward(self, outputs: Tensor) -> NullPatternDistribution:
        return NullPatternDistribution(outputs + self.start if self.flags else outputs, self.flags, self.lists)


def start_of_flags(null_rates: Sequence[float]) -> Tensor:
    """Returns the log-odds, over all rows, that flags are true."""
    return -torch.logit(torch.tensor(null_rates, dtype=torch.float32).clamp(1e-4, 1 - 1e-4))
