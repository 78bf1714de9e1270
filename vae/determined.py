"""Columns of categories that another one determines: a code and its name, a town and its country.

Given the category a of the one, the other's is f(a) but for a probability e that it is any of its K:

    p(b | a) = (1 - e) [b = f(a)] + e / K,    and where a is missing    p(b, .. | z) = sum_a p(a | z) p(b | a) ..

over all columns that a determines. So they need nothing of the decoder, and rows that break the rule have a probability too.
Shapes: S samples, B rows, C columns, H of which are determined and F = C - H are not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from vae.host import may_look_at

# Of a column that another one determines: that one's number, f as codes of all its categories, and e.
Rule = tuple[int, Sequence[int], float]


class Determined(nn.Module):
    """Which of some columns are determined, and by what. Its buffers are constants and in no state dict.

    sizes: each column's categories; rules: of each column None, or its rule; who determines is not determined.
    """

    columns: Tensor
    by: Tensor
    free: Tensor
    order: Tensor
    codes: Tensor
    log_kept: Tensor
    log_broken: Tensor

    def __init__(self, sizes: Sequence[int], rules: Sequence[Rule | None]) -> None:
        super().__init__()
        if len(rules) != len(sizes):
            raise ValueError(f"there are {len(rules)} rules for {len(sizes)} columns")
        found = {column: rule for column, rule in enumerate(rules) if rule is not None}
        if not found:
            raise ValueError("no rule determines a column; leave rules out")
        free = [column for column in range(len(sizes)) if column not in found]
        for column, (by, codes, slack) in found.items():
            fits = by in free and len(codes) == sizes[by] and all(0 <= code < sizes[column] for code in codes)
            if not fits or not 0 < slack < 1:
                raise ValueError(
                    f"column {column} of {list(sizes)} categories cannot be determined by {by} with codes {list(codes)}, {slack}"
                )
        self.sizes = [sizes[column] for column in found]
        self.slacks = [slack for _, _, slack in found.values()]
        self.places = [free.index(by) for by, _, _ in found.values()]  # among the free ones
        most = max(len(codes) for _, codes, _ in found.values())
        padded = [[*codes, *[-1] * (most - len(codes))] for _, codes, _ in found.values()]
        constants: dict[str, Sequence[object]] = {
            "columns": [*found],
            "by": [by for by, _, _ in found.values()],
            "free": free,
            "order": torch.tensor([*free, *found]).argsort().tolist(),
            "codes": padded,
            "log_kept": [math.log(1 - slack + slack / size) for slack, size in zip(self.slacks, self.sizes, strict=True)],
            "log_broken": [math.log(slack / size) for slack, size in zip(self.slacks, self.sizes, strict=True)],
        }
        for name, numbers in constants.items():
            self.register_buffer(name, torch.tensor(numbers), persistent=False)

    def code_of(self, codes: Tensor) -> Tensor:
        """Returns f of the determining columns' codes [.., H]."""
        return self.codes.T.gather(0, codes.flatten(0, -2)).view(codes.shape)

    def log_prob(self, values: Tensor, valid: Tensor | None, log_probs: Callable[[int], Tensor]) -> Tensor:
        """Returns log p of the determined columns' codes, [B, H] or [.., B, H]; values, valid [B, C] (None: all are there).

        log_probs: gives those of one free column's categories, [.., B, K]; asked for where one that determines may be missing: then the
        columns that it determines are told one after another, each given those before that are there.
        """
        codes, by = values.index_select(-1, self.columns).long(), values.index_select(-1, self.by).long()
        given = torch.where(self.code_of(by) == codes, self.log_kept, self.log_broken)
        if valid is None:
            return given
        valid = valid.expand(values.shape)
        there = valid.index_select(-1, self.columns)
        missing = there & ~valid.index_select(-1, self.by)
        if may_look_at(missing) and not bool(missing.any()):
            return given
        parts: dict[int, Tensor] = {}
        for place, columns in self.columns_by_place().items():
            scores = log_probs(place)
            total = scores.logsumexp(-1)
            for column in columns:
                scores, before = scores + self.evidence(column, codes, there, scores.shape[-1]), total
                total = scores.logsumexp(-1)
                parts[column] = total - before
        return torch.where(missing, torch.stack([parts[column] for column in range(len(self.sizes))], -1), given)

    def columns_by_place(self) -> dict[int, list[int]]:
        """Returns which determined columns, 0..H-1, each of the free columns that determine some does."""
        return {place: [column for column, by in enumerate(self.places) if by == place] for place in dict.fromkeys(self.places)}

    def evidence(self, column: int, codes: Tensor, there: Tensor, num_categories: int) -> Tensor:
        """Returns log p(b | a) for each category a, [B, its K], of a determined column's codes, where they are there; both [B, H]."""
        is_of = self.codes[column, :num_categories] == codes[:, column, None]
        return torch.where(there[:, column, None], torch.where(is_of, self.log_kept[column], self.log_broken[column]), 0.0)

    def told(self, scores: Sequence[Tensor], values: Tensor, valid: Tensor) -> list[Tensor]:
        """Returns the scores of each free column, [.., B, its K], given the cells of values [B, C] that are valid: of p(a | z, b, ..) where
        a is missing, and where it is there of nothing else."""
        valid = valid.expand(values.shape)
        codes, there = values.index_select(-1, self.columns).long(), valid.index_select(-1, self.columns)
        by, is_given = values.index_select(-1, self.by).long(), valid.index_select(-1, self.by)
        told = list(scores)
        for place, columns in self.columns_by_place().items():
            size = told[place].shape[-1]
            evidence = torch.stack([self.evidence(column, codes, there, size) for column in columns]).sum(0)
            others = torch.arange(size, device=by.device) != by[:, columns[0], None]
            only = torch.zeros_like(evidence).masked_fill(others, -torch.inf)
            told[place] = told[place] + torch.where(is_given[:, columns[0], None], only, evidence)
        return told

    def sample(self, drawn: Tensor, generator: torch.Generator) -> Tensor:
        """Returns draws of the determined columns, [.., B, H], given those of the free ones, [.., B, F]."""
        codes = self.code_of(drawn[..., self.places].long())
        uniform = torch.rand(codes.shape, generator=generator, device=generator.device, dtype=torch.float64).to(codes.device)
        slack, size = (torch.tensor(numbers, dtype=torch.float64, device=codes.device) for numbers in (self.slacks, self.sizes))
        return torch.where(uniform < slack, (uniform / slack * size).floor().clamp(max=size - 1).long(), codes)

    def joined(self, free: Tensor, determined: Tensor) -> Tensor:
        """Returns cells [.., B, C] of those of the free columns and the determined ones."""
        determined = determined.to(free.dtype).expand(*free.shape[:-1], -1)
        return torch.cat([free, determined], -1).index_select(-1, self.order)
