"""Claims about columns of many categories: embeddings, and heads whose memory and cost are linear in the categories."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.vae.likelihood_cases import generator
from vae.categories import MAX_MEMBERSHIP, MAX_ONE_HOT, Categorical, blocks_of, embedding_size

# Few, many in one block, a column that is a block by itself, and columns that need several.
LISTS = [[3, 1, 5, 2], [300, 3, 1, 129, 7], [3, 100_000, 4, 90_000, 200, 1], [300] * 60]
every_list = pytest.mark.parametrize("sizes", LISTS, ids=["few", "embedded", "large", "numerous"])


def codes_of(sizes: list[int], num_rows: int) -> Tensor:
    return torch.stack([torch.randint(0, size, (num_rows,), generator=generator(size)) for size in sizes], 1).int()


@every_list
@pytest.mark.parametrize("size_of_logits", [1.0, 1e4])
def test_every_column_is_a_log_softmax_of_its_own_logits_with_its_slopes(sizes: list[int], size_of_logits: float) -> None:
    codes = codes_of(sizes, 3)
    field = Categorical(sizes).double()
    logits = (size_of_logits * torch.randn(2, 3, sum(sizes), generator=generator(), dtype=torch.float64)).requires_grad_()
    columns = torch.split(logits, sizes, -1)
    index = [column[None, :, None].expand(2, -1, 1) for column in codes.long().T]
    expected = torch.cat([torch.log_softmax(scores, -1).gather(-1, of) for scores, of in zip(columns, index, strict=True)], -1)
    actual = field(logits).log_prob(codes)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)
    slopes = [torch.autograd.grad(log_p.sum(), logits)[0] for log_p in (actual, expected)]
    torch.testing.assert_close(*slopes, rtol=1e-9, atol=1e-12)


@every_list
def test_no_buffer_grows_with_columns_times_categories(sizes: list[int]) -> None:
    field = Categorical(sizes)
    assert all(buffer.numel() <= max(MAX_MEMBERSHIP, sum(sizes)) for buffer in field.buffers())
    assert sum(block.membership.numel() for block in field.blocks()) <= 65 * sum(sizes) + MAX_MEMBERSHIP


def test_blocks_are_runs_of_columns_that_cover_them_all() -> None:
    assert blocks_of([3, 1, 5, 2]) == [(0, 4)]
    assert blocks_of([10**5, 10**5, 10**5]) == [(0, 1), (1, 2), (2, 3)]
    assert blocks_of([3, 10**6, 4, 5]) == [(0, 1), (1, 2), (2, 4)]
    for sizes in LISTS:
        runs = blocks_of(sizes)
        assert [first for first, _ in runs] == [0, *(last for _, last in runs[:-1])]
        assert runs[-1][1] == len(sizes)


def test_the_encoder_sees_a_column_of_many_categories_as_an_embedding_whose_size_does_not_follow_them() -> None:
    assert [embedding_size(count) for count in (129, 1000, 10**6)] == [24, 64, 64]
    for sizes in LISTS:
        field = Categorical(sizes)
        one_hot = [size for size in sizes if size <= MAX_ONE_HOT]
        assert field.num_features == sum(one_hot) + sum(embedding_size(size) for size in sizes if size > MAX_ONE_HOT)
        assert field.features(codes_of(sizes, 2)).shape == (2, field.num_features)
        names = [name for name, _ in field.named_parameters()]
        assert len(names) == len(sizes) - len(one_hot)
        assert all(name.startswith("embedding.") for name in names)


@every_list
def test_features_are_those_of_their_cell_and_0_where_it_is_missing(sizes: list[int]) -> None:
    field, codes = Categorical(sizes), codes_of(sizes, 6)
    valid = torch.rand(codes.shape, generator=generator(1)) < 0.6
    cells = field.cell_of_feature()
    assert cells.shape == (field.num_features,)
    features = field.observed_features(codes.masked_fill(~valid, -(2**31)), valid)
    assert (features[~valid[:, cells]] == 0).all()
    torch.testing.assert_close(features, torch.where(valid[:, cells], field.features(codes), 0.0), rtol=0, atol=0)
    for column in range(min(len(sizes), 6)):
        others = codes.clone()
        others[:, column] = (codes[:, column] + 1) % sizes[column]
        changed = (field.features(others) != field.features(codes)).any(0)
        assert (cells[changed] == column).all()
        assert changed.any() == (sizes[column] > 1)


def test_only_the_embeddings_of_observed_categories_are_learned() -> None:
    field = Categorical([3, 200])
    codes = torch.tensor([[0, 7], [1, 7], [2, 150], [2, 199]], dtype=torch.int32)
    valid = torch.tensor([[True, True], [True, True], [True, True], [True, False]])
    (grad,) = torch.autograd.grad(field.observed_features(codes, valid).sum(), list(field.parameters()))
    assert grad.abs().sum(1).nonzero()[:, 0].tolist() == [7, 150]
    assert (grad[7] == 2.0).all()
