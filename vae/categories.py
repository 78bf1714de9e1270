"""The likelihood of columns of categories. Shapes: S samples, B rows, C columns, K categories in all (but of determined columns)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vae.cells import CellDistribution, Likelihood
from vae.determined import Determined, Rule
from vae.gradients import of_first_order
from vae.host import may_look_at
from vae.input_layer import OneHot, dense
from vae.precision import without_autocast

# A column's sum of exp(score - highest score of the row) that loses no digit of float32, whose smallest normal number is 1e-38.
SMALLEST_SUM = 1e-20
# Up to so many categories a column is one-hot for the encoder, above it has an embedding of so many numbers at most.
MAX_ONE_HOT = 128
MAX_EMBEDDING = 64
# Elements of a block's membership matrix: up to here one product is the fastest way to all sums (1 MiB of float32).
MAX_MEMBERSHIP = 2**18


def embedding_size(num_categories: int) -> int:
    """Returns how many numbers stand for a column's category: fastai's rule of thumb, 1.6 K^0.56, bounded."""
    return min(MAX_EMBEDDING, round(1.6 * math.pow(num_categories, 0.56)))


def blocks_of(sizes: Sequence[int]) -> list[tuple[int, int]]:
    """Returns runs of columns first..last-1 whose categories x columns are within MAX_MEMBERSHIP; a column above it is a run by itself."""
    firsts, categories = [0], 0
    for column, size in enumerate(sizes):
        categories += size
        if column > firsts[-1] and categories * (column + 1 - firsts[-1]) > MAX_MEMBERSHIP:
            firsts.append(column)
            categories = size
    return list(pairwise([*firsts, len(sizes)]))


class Block(nn.Module):
    """Columns whose scores are normalised together: a product with the matrix that says which category is whose."""

    column_of: Tensor
    membership: Tensor

    def __init__(self, sizes: Sequence[int]) -> None:
        super().__init__()
        self.num_columns, self.num_categories = len(sizes), sum(sizes)
        column_of = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
        self.register_buffer("column_of", column_of, persistent=False)
        self.register_buffer("membership", F.one_hot(column_of, len(sizes)).float(), persistent=False)

    def log_normaliser(self, logits: Tensor) -> Tensor:
        """Returns log sum exp of each column's scores, [.., B, C] from [.., B, K], all columns in one pass."""
        _, sums, highest = self.weights(logits)
        return highest + torch.log(sums)

    def weights(self, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns exp(score - highest) [.., B, K], its sum over each column's categories [.., B, C], and highest, [.., B, 1] or [.., B, C]:
        the row's highest score, or where that would lose digits each column's."""
        if may_look_at(logits):
            highest = logits.detach().amax(-1, keepdim=True)
            weights = torch.exp(logits - highest)
            sums = self._sums(weights)
            if sums.numel() == 0 or bool(sums.min() > SMALLEST_SUM):
                return weights, sums, highest
        column_of = self.column_of.expand_as(logits)
        empty = logits.new_full((*logits.shape[:-1], self.num_columns), -torch.inf)
        highest = empty.scatter_reduce(-1, column_of, logits.detach(), "amax")
        weights = torch.exp(logits - highest.gather(-1, column_of))
        return weights, self._sums(weights), highest

    def _sums(self, weights: Tensor) -> Tensor:
        """Returns weights @ membership, [.., B, C]: transposed, as a product with few columns takes two to three times as long."""
        with without_autocast(weights):
            sums = self.membership.T @ weights.flatten(0, -2).T
        return sums.T.reshape(*weights.shape[:-1], self.num_columns)


class SumLogProb(torch.autograd.Function):
    """The sum of the observed cells' log-probabilities, [.., B], with its gradient in two passes over the scores [.., B, K].

    index: the score of each cell's category, [.., B, C]; observed: 1 where a cell is there, 0 elsewhere, [.., B, C].
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, index: Tensor, observed: Tensor, block: Block) -> Tensor:
        weights, sums, highest = block.weights(logits)
        ctx.block = block
        ctx.save_for_backward(weights, sums, index, observed)
        return logits.gather(-1, index).sub_(sums.log() + highest).mul_(observed).sum(-1)

    @staticmethod
    @of_first_order
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        weights, sums, index, observed = ctx.saved_tensors
        by_cell = observed * gradient[..., None]
        with without_autocast(weights):
            by_score = ((by_cell / sums).neg_() @ ctx.block.membership.T).mul_(weights)
        return by_score.scatter_add_(-1, index, by_cell), None, None, None


class CategoricalCells(CellDistribution):
    """One categorical distribution per column; `logits` [.., B, K] holds the columns' scores side by side."""

    def __init__(self, logits: Tensor, field: Categorical) -> None:
        self.logits, self.field = logits, field

    def log_prob(self, values: Tensor) -> Tensor:
        return self._log_prob(values, None)

    def observed_log_prob(self, values: Tensor, valid: Tensor) -> Tensor:
        return torch.where(valid, self._log_prob(values, valid), 0.0)

    def _log_prob(self, values: Tensor, valid: Tensor | None) -> Tensor:
        """valid: None where all cells are there; one that another determines depends on whether that one is."""
        determined = self.field.determined
        if determined is None:
            return self._free_log_prob(values)
        free = self._free_log_prob(values.index_select(-1, determined.free))
        return determined.joined(free, determined.log_prob(values, valid, self._log_probs))

    def _free_log_prob(self, values: Tensor) -> Tensor:
        index = (values.to(torch.int64) + self.field.offsets).expand(*self.logits.shape[:-1], -1)
        return self.logits.gather(-1, index) - self.log_normaliser()

    def _log_probs(self, place: int) -> Tensor:
        """Returns the log-probabilities of the categories of one of the columns that decide for themselves, [.., B, its size]."""
        return torch.log_softmax(self._scores()[place], -1)

    def sum_log_prob(self, values: Tensor, valid: Tensor) -> Tensor:
        blocks, logits, determined = self.field.blocks(), self.logits, self.field.determined
        if not (len(blocks) == 1 and torch.is_grad_enabled() and may_look_at(logits)):
            return super().sum_log_prob(values, valid)
        codes, there = values, valid.expand(values.shape)
        if determined is not None:
            codes, there = (part.index_select(-1, determined.free) for part in (values, there))
        index = (codes.to(torch.int64) + self.field.offsets).expand(*logits.shape[:-1], -1)
        total: Tensor = SumLogProb.apply(logits, index, there.expand_as(index).to(logits.dtype), blocks[0])  # type: ignore[no-untyped-call]
        if determined is None:
            return total
        rest = determined.log_prob(values, valid, self._log_probs)
        return total + torch.where(valid.expand(values.shape).index_select(-1, determined.columns), rest, 0.0).sum(-1)

    def log_normaliser(self) -> Tensor:
        """Returns log sum exp of each column's scores, [.., B, C]; its cost is linear in K."""
        blocks = self.field.blocks()
        if len(blocks) == 1:
            return blocks[0].log_normaliser(self.logits)
        parts = torch.split(self.logits, [block.num_categories for block in blocks], -1)
        return torch.cat([block.log_normaliser(part) for block, part in zip(blocks, parts, strict=True)], -1)

    @property
    def mean(self) -> Tensor:
        codes, determined = self._codes(scores.argmax(-1) for scores in self._scores()), self.field.determined
        return codes if determined is None else determined.joined(codes, determined.code_of(codes[..., determined.places].long()))

    def sample(self, generator: torch.Generator) -> Tensor:
        """Inverts each column's distribution function: one uniform number per cell."""
        codes, determined = self._free_sample(generator), self.field.determined
        return codes if determined is None else determined.joined(codes, determined.sample(codes, generator))

    def _free_sample(self, generator: torch.Generator) -> Tensor:
        shape = *self.logits.shape[:-1], len(self.field.free_sizes), 1
        uniform = torch.rand(shape, generator=generator, device=generator.device).to(self.logits.device)
        return self._codes(inverse_of_sums(scores, u) for scores, u in zip(self._scores(), uniform.unbind(-2), strict=True))

    def given(self, values: Tensor, valid: Tensor) -> CellDistribution:
        determined = self.field.determined
        return self if determined is None else GivenCells(torch.cat(determined.told(self._scores(), values, valid), -1), self.field)

    def _scores(self) -> tuple[Tensor, ...]:
        """Returns the scores of each column that decides for itself, [.., B, its size]."""
        return torch.split(self.logits, self.field.free_sizes, -1)

    @staticmethod
    def _codes(columns: Iterable[Tensor]) -> Tensor:
        return torch.stack(list(columns), -1).to(torch.int32)


class GivenCells(CategoricalCells):
    """What fills missing cells, given those that are there: what is determined has the value that it should have."""

    def sample(self, generator: torch.Generator) -> Tensor:
        codes, determined = self._free_sample(generator), self.field.determined
        assert determined is not None
        return determined.joined(codes, determined.code_of(codes[..., determined.places].long()))


def inverse_of_sums(scores: Tensor, uniform: Tensor) -> Tensor:
    """Returns the first category up to which softmax(scores) [.., B, K] sums to more than `uniform` [.., B, 1] in [0, 1), [.., B].

    A uniform number of float32 is 1 - 2^-24 at most, whose product with the last sum rounds to less than that sum: there is always one.
    """
    sums = (scores - scores.amax(-1, keepdim=True)).exp_().cumsum(-1)
    return (sums <= uniform * sums[..., -1:]).sum(-1)


class Categorical(Likelihood):
    """Columns of categories, stored as codes 0..size-1; `sizes` counts each column's categories. Other codes are not looked for.

    rules: of each column None, or by which other one it is determined, as Determined takes them.

    For the encoder a column of up to MAX_ONE_HOT categories is one-hot, and one of more an embedding, learned in the
    submodule `embedding` under the column's number. The features of the one-hot columns come first.
    """

    offsets: Tensor
    one_hot_offsets: Tensor
    cell_of: Tensor

    def __init__(self, sizes: Sequence[int], rules: Sequence[Rule | None] | None = None) -> None:
        super().__init__()
        if not sizes or min(sizes) < 1:
            raise ValueError(f"sizes is {list(sizes)}; a column has one category at least, and a field one column")
        self.sizes = list(sizes)
        self.size = len(self.sizes)
        self.determined = None if rules is None else Determined(self.sizes, rules)
        self.free_sizes = self.sizes if self.determined is None else [self.sizes[column] for column in self.determined.free.tolist()]
        self.num_outputs = sum(self.free_sizes)
        self.columns = nn.ModuleList(Block(self.free_sizes[first:last]) for first, last in blocks_of(self.free_sizes))
        self.embedded = [column for column, size in enumerate(self.sizes) if size > MAX_ONE_HOT]
        self.one_hot = [column for column, size in enumerate(self.sizes) if size <= MAX_ONE_HOT]
        if self.embedded:
            embeddings = {str(column): nn.Embedding(self.sizes[column], embedding_size(self.sizes[column])) for column in self.embedded}
            self.embedding = nn.ModuleDict(embeddings)
        widths = torch.tensor([*(self.sizes[c] for c in self.one_hot), *(embedding_size(self.sizes[c]) for c in self.embedded)])
        self.num_features = int(widths.sum())
        self.num_one_hot = sum(self.sizes[column] for column in self.one_hot)
        cell_of = torch.repeat_interleave(torch.tensor([*self.one_hot, *self.embedded]), widths)
        self.register_buffer("cell_of", cell_of, persistent=False)
        for name, counted in (("offsets", self.free_sizes), ("one_hot_offsets", [self.sizes[column] for column in self.one_hot])):
            begins = torch.tensor(counted, dtype=torch.int64)
            self.register_buffer(name, begins.cumsum(0) - begins, persistent=False)

    def blocks(self) -> list[Block]:
        return list(self.columns)  # type: ignore[arg-type]

    def features(self, values: Tensor) -> Tensor:
        return self.observed_features(values, torch.ones_like(values, dtype=torch.bool))

    def observed_features(self, values: Tensor, valid: Tensor) -> Tensor:
        return dense(self.feature_parts(values, valid))

    def feature_parts(self, values: Tensor, valid: Tensor) -> list[Tensor | OneHot]:
        codes, valid = torch.where(valid, values, 0).to(torch.int64), valid.expand(values.shape)
        if not self.embedded:
            return [self._one_hot(codes, valid)]
        parts: list[Tensor | OneHot] = [self._one_hot(codes[:, self.one_hot], valid[:, self.one_hot])] if self.one_hot else []
        for column in self.embedded:
            embedded = self.embedding[str(column)](codes[:, column])
            parts.append(torch.where(valid[:, column, None], embedded, 0.0))
        return parts

    def _one_hot(self, codes: Tensor, valid: Tensor) -> OneHot:
        return OneHot(codes + self.one_hot_offsets, valid.to(self.blocks()[0].membership.dtype), self.num_one_hot)

    def forward(self, outputs: Tensor) -> CategoricalCells:
        return CategoricalCells(outputs, self)

    def cell_of_feature(self) -> Tensor:
        return self.cell_of
