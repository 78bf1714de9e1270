"""Claims about random numbers that belong to rows. Shapes: S samples, B rows, L latent dimensions."""

from __future__ import annotations

import torch

from vae.row_noise import RowNoise


def test_a_row_has_its_numbers_in_whatever_company() -> None:
    whole = RowNoise(1, "test", range(10)).normal(3, 2)
    assert whole.shape == (3, 10, 2)
    assert torch.equal(RowNoise(1, "test", range(4, 6)).normal(3, 2), whole[:, 4:6])


def test_a_stream_goes_on_where_it_stood() -> None:
    whole, parts = RowNoise(1, "test", range(3)), RowNoise(1, "test", range(3))
    assert torch.equal(torch.cat([parts.normal(2, 2), parts.normal(5, 2)]), whole.normal(7, 2))
    assert torch.equal(torch.cat([parts.uniform(1), parts.uniform(4)]), whole.uniform(5))


def test_seeds_purposes_and_rows_have_streams_of_their_own() -> None:
    draws = [RowNoise(seed, purpose, range(3)).normal(1, 1).flatten() for seed in (0, 1) for purpose in ("a", "b")]
    assert len({number.item() for number in torch.cat(draws)}) == 12
    assert len({generator.initial_seed() for generator in RowNoise(0, "a", range(20)).generators()}) == 20


def test_numbers_are_standard_normal_and_uniform() -> None:
    stream = RowNoise(2, "test", range(5))
    normal, uniform = stream.normal(4000, 4), stream.uniform(20_000)
    torch.testing.assert_close(normal.mean((0, 2)), torch.zeros(5, dtype=torch.float64), rtol=0, atol=0.04)
    torch.testing.assert_close(normal.var((0, 2)), torch.ones(5, dtype=torch.float64), rtol=0, atol=0.06)
    torch.testing.assert_close(uniform.mean(0), torch.full((5,), 0.5, dtype=torch.float64), rtol=0, atol=0.01)
    assert uniform.min() >= 0
    assert uniform.max() < 1
