"""Claims about vae.independent: the best density of independent columns, in data units, whatever is missing."""

from __future__ import annotations

import math

import pytest
import torch

from vae.independent import fit_independent
from vae.rows import Rows

FIELDS = [
    {"name": "x", "likelihood": "gaussian", "valid_size": 2, "size": 2},
    {"name": "c", "likelihood": "categorical", "valid_size": 1, "sizes": [4]},
]
ARCHITECTURE = {"fields": FIELDS, "latent_dim": 2, "hidden_dims": [4]}


def rows(num_rows: int) -> Rows:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(num_rows, 2, generator=generator) * torch.tensor([0.5, 2.0]) + torch.tensor([1.0, -1.0])
    codes = torch.multinomial(torch.tensor([0.7, 0.2, 0.1, 0.0]), num_rows, True, generator=generator)[:, None].int()
    valid = {"x": torch.rand(num_rows, 2, generator=generator) < 0.8, "c": torch.ones(num_rows, 1, dtype=torch.bool)}
    return Rows({"x": x, "c": codes}, valid, torch.full((num_rows,), 0.3, dtype=torch.float64))


def test_the_fit_reaches_the_maximum_likelihood_of_gaussians_and_frequencies() -> None:
    train = rows(4000)
    expected = 0.3
    for i in range(2):
        seen = train.values["x"][:, i][train.valid["x"][:, i]]
        expected -= (0.5 * math.log(2 * math.pi * math.e) + math.log(seen.std(correction=0))) * len(seen) / 4000
    shares = torch.bincount(train.values["c"][:, 0]).double() / 4000
    expected += float((shares * shares.log()).sum())
    score = fit_independent(ARCHITECTURE, train).score(train)
    assert score.dtype == torch.float64
    assert float(score.mean()) == pytest.approx(expected, abs=0.01)
    assert float(score.mean()) <= expected + 1e-6


def test_a_category_of_no_training_row_has_a_small_probability_and_not_none() -> None:
    train = rows(2000)
    fitted = fit_independent(ARCHITECTURE, train)
    unseen = Rows(
        {"x": torch.zeros(1, 2), "c": torch.tensor([[3]])}, {"x": torch.zeros(1, 2).bool(), "c": torch.ones(1, 1).bool()}, torch.zeros(1)
    )
    assert -20 < float(fitted.score(unseen)) < -4


def test_what_a_missing_cell_holds_changes_nothing() -> None:
    train = rows(500)
    fitted = fit_independent(ARCHITECTURE, train)
    other = train._replace(values=train.values | {"x": torch.where(train.valid["x"], train.values["x"], torch.nan)})
    assert torch.equal(fitted.score(train), fitted.score(other))


def test_a_score_leaves_the_density_as_it_was() -> None:
    train = rows(500)
    fitted = fit_independent(ARCHITECTURE, train)
    before = fitted.log_prob(train)
    torch.testing.assert_close(fitted.score(train), before.double(), rtol=1e-5, atol=1e-5)
    assert torch.equal(fitted.log_prob(train), before)


def test_no_rows_have_no_scores() -> None:
    fitted = fit_independent(ARCHITECTURE, rows(50))
    assert fitted.score(rows(50).slice(0, 0)).shape == (0,)


def test_a_column_that_another_one_determines_is_independent_of_it() -> None:
    train = rows(2000)
    both = train._replace(values={"c": train.values["c"].repeat(1, 2)}, valid={"c": torch.ones(2000, 2, dtype=torch.bool)})
    plain = {"name": "c", "likelihood": "categorical", "valid_size": 2, "sizes": [4, 4]}
    ruled = plain | {"rules": [None, [0, [0, 1, 2, 3], 1e-3]]}
    scores = [fit_independent(ARCHITECTURE | {"fields": [field]}, both).score(both) for field in (plain, ruled)]
    torch.testing.assert_close(scores[0], scores[1], rtol=0, atol=0)
