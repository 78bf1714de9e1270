"""Claims about columns of categories that another one determines."""

from __future__ import annotations

import math
from itertools import combinations, product
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.vae.likelihood_cases import generator
from vae import VAE, Rows
from vae.categories import Categorical
from vae.imputation import posterior_cells

SIZES = [2, 4, 3]  # a country, its town, a colour
COUNTRY_OF_TOWN = [0, 1, 1, 0]
SLACK = 0.2
RULES: list[Any] = [[1, COUNTRY_OF_TOWN, SLACK], None, None]
EVERY = torch.tensor(list(product(*map(range, SIZES))), dtype=torch.int32)


def field() -> Categorical:
    return Categorical(SIZES, RULES).double()


def logits_of(*shape: int) -> Tensor:
    return torch.randn(*shape, sum(SIZES[1:]), generator=generator(), dtype=torch.float64)


def joint(logits: Tensor) -> Tensor:
    """Returns p of every triple under one row's scores [K], by definition."""
    town, colour = torch.log_softmax(logits[:4], -1).exp(), torch.log_softmax(logits[4:], -1).exp()
    found = []
    for country, place, hue in EVERY.tolist():
        of_country = (1 - SLACK) * (country == COUNTRY_OF_TOWN[place]) + SLACK / 2
        found.append(of_country * town[place] * colour[hue])
    return torch.stack(found)


def test_cells_that_are_there_have_the_joint_probability() -> None:
    logits = logits_of()
    expected = joint(logits)
    assert expected.sum().item() == pytest.approx(1, abs=1e-12)
    cells = field()(logits.expand(len(EVERY), -1))
    torch.testing.assert_close(cells.log_prob(EVERY).sum(-1).exp(), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("missing", [(), (0,), (1,), (2,), (0, 1), (1, 2), (0, 1, 2)])
def test_missing_cells_are_summed_out(missing: tuple[int, ...]) -> None:
    logits = logits_of()
    p = joint(logits).reshape(SIZES)
    expected = p.sum(missing, keepdim=True).expand(SIZES).flatten() if missing else p.flatten()
    valid = torch.ones_like(EVERY, dtype=torch.bool)
    valid[:, list(missing)] = False
    cells = field()(logits.expand(len(EVERY), -1).clone().requires_grad_())
    values = torch.where(valid, EVERY, 0)
    by_hand = cells.sum_log_prob(values, valid)
    with torch.no_grad():
        plain = cells.sum_log_prob(values, valid)
    torch.testing.assert_close(by_hand.exp(), expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(plain, by_hand.detach())
    torch.testing.assert_close(cells.observed_log_prob(values, valid).sum(-1), by_hand)


@pytest.mark.parametrize("missing", [held for n in range(5) for held in combinations(range(4), n)])
def test_columns_that_one_determines_are_summed_out_together(missing: tuple[int, ...]) -> None:
    sizes, cells = [2, 5, 3, 2], torch.tensor([*product(range(2), range(5), range(3), range(2))], dtype=torch.int32)
    rules: list[Any] = [[1, [0, 1, 1, 0, 0], 0.2], None, [1, [2, 0, 1, 1, 0], 0.1], [1, [0, 1, 0, 1, 0], 0.3]]
    logits = torch.randn(5, generator=generator(), dtype=torch.float64)
    p = torch.softmax(logits, -1)[cells[:, 1].long()]
    for column, rule in enumerate(rules):
        if rule is not None:
            keeps = torch.tensor(rule[1])[cells[:, 1].long()] == cells[:, column]
            p = p * ((1 - rule[2]) * keeps + rule[2] / sizes[column])
    expected = p.reshape(sizes).sum(missing, keepdim=True).expand(sizes).flatten() if missing else p
    valid = torch.ones_like(cells, dtype=torch.bool)
    valid[:, list(missing)] = False
    found = Categorical(sizes, rules).double()(logits.expand(2, len(cells), -1).clone().requires_grad_())
    values = torch.where(valid, cells, 0)
    by_hand = found.sum_log_prob(values, valid)
    torch.testing.assert_close(by_hand.exp(), expected.expand(2, -1), rtol=1e-6, atol=0)
    torch.testing.assert_close(found.observed_log_prob(values, valid).sum(-1), by_hand)


def test_slopes_are_those_of_the_probabilities() -> None:
    logits = logits_of(2, len(EVERY)).requires_grad_()
    valid = torch.rand(EVERY.shape, generator=generator()) < 0.6
    values = torch.where(valid, EVERY, 0)
    total = field()(logits).sum_log_prob(values, valid)
    assert total.shape == (2, len(EVERY))
    expected = []
    for sample, row in product(range(2), range(len(EVERY))):
        p = joint(logits[sample, row])
        agrees = ((EVERY[row] == EVERY) | ~valid[row]).all(-1)
        expected.append(torch.log(p[agrees].sum()))
    first, second = (torch.autograd.grad(x, logits)[0] for x in (total.sum(), torch.stack(expected).sum()))
    torch.testing.assert_close(first, second, rtol=1e-5, atol=1e-9)


def test_draws_follow_the_joint_probability_and_the_mode_keeps_the_rule() -> None:
    logits, n = logits_of(), 40_000
    cells = field()(logits.expand(n, -1))
    drawn = cells.sample(generator(1))
    assert (drawn.dtype, drawn.shape) == (torch.int32, (n, 3))
    counts = torch.bincount(((drawn[:, 0] * 4 + drawn[:, 1]) * 3 + drawn[:, 2]).long(), minlength=24).double()
    p = joint(logits)
    assert ((counts - n * p).abs() <= 5 * (n * p * (1 - p)).sqrt() + 1).all()
    mode = field()(logits_of(50)).mean
    assert mode[:, 0].tolist() == [COUNTRY_OF_TOWN[town] for town in mode[:, 1].tolist()]


def test_the_decoder_says_nothing_of_a_determined_column_and_the_encoder_sees_it() -> None:
    plain, ruled = Categorical(SIZES), field()
    assert (plain.num_outputs, ruled.num_outputs) == (9, 7)
    assert plain.num_features == ruled.num_features == 9
    assert [*ruled.state_dict()] == []


@pytest.mark.parametrize(
    "rules",
    [
        [[2, [0, 0, 0], 0.1], None, None][:2],
        [None, None, None],
        [[1, [0, 1, 1], 0.1], None, None],
        [[1, [0, 1, 2, 0], 0.1], None, None],
        [[1, COUNTRY_OF_TOWN, 0.0], None, None],
        [[1, COUNTRY_OF_TOWN, 0.1], [0, [1, 2], 0.1], None],
    ],
)
def test_rules_that_cannot_be_are_refused(rules: list[Any]) -> None:
    with pytest.raises(ValueError, match=r"cannot be determined by|there are 2 rules for 3 columns|no rule determines"):
        Categorical(SIZES, rules)


def rows_of(values: Tensor, valid: Tensor) -> Rows:
    return Rows({"c": values}, {"c": valid}, torch.zeros(len(values)))


@pytest.fixture
def model() -> VAE:
    torch.manual_seed(0)
    return VAE(
        [{"name": "c", "likelihood": "categorical", "sizes": SIZES, "rules": RULES, "valid_size": 3, "null_pattern": [0, 1]}], 2, [8]
    )


def test_a_bound_does_not_depend_on_what_missing_cells_hold(model: VAE) -> None:
    valid = torch.rand(EVERY.shape, generator=generator()) < 0.6
    noise = torch.randn(4, len(EVERY), 2, generator=generator())
    other = torch.where(valid, EVERY, (EVERY + 1) % torch.tensor(SIZES)).int()
    with torch.no_grad():
        first, second = (model.evaluate_elbo(rows_of(values, valid), noise).elbo for values in (EVERY, other))
    assert first.isfinite().all()
    torch.testing.assert_close(first, second, rtol=0, atol=0)


def test_a_missing_cell_is_filled_with_what_the_one_that_is_there_determines(model: VAE) -> None:
    valid = torch.ones_like(EVERY, dtype=torch.bool)
    valid[:, 0] = False
    found = posterior_cells(model, rows_of(torch.zeros_like(EVERY) + EVERY * valid, valid), 3, generator(), with_draws=True)
    expected = torch.tensor(COUNTRY_OF_TOWN)[EVERY[:, 1].long()]
    assert found.at_mean["c"][:, 0].tolist() == expected.tolist()
    assert (found.draws["c"][..., 0] == expected).all()
    valid[:, 1] = False  # now the town is anybody's guess, and the country is that of the guess
    found = posterior_cells(model, rows_of(EVERY * valid, valid), 0, generator())
    assert found.at_mean["c"][:, 0].tolist() == [COUNTRY_OF_TOWN[town] for town in found.at_mean["c"][:, 1].tolist()]


@pytest.mark.parametrize("there", [(0,), (1,), (0, 2), (2,), ()])
def test_missing_cells_are_filled_given_what_is_there(there: tuple[int, ...]) -> None:
    logits, n = logits_of(), 40_000
    row, valid = torch.tensor([[1, 2, 0]], dtype=torch.int32).expand(n, -1), torch.zeros(n, 3, dtype=torch.bool)
    valid[:, list(there)] = True
    filling = field()(logits.expand(n, -1)).given(row, valid)
    agrees = (row[0] == EVERY)[:, list(there)].all(-1)
    p_town = torch.stack([(joint(logits) * agrees * (EVERY[:, 1] == town)).sum() for town in range(4)])
    p_town = p_town / p_town.sum()
    drawn = filling.sample(generator(1))
    counts = torch.bincount(drawn[:, 1].long(), minlength=4).double()
    assert ((counts - n * p_town).abs() <= 5 * (n * p_town * (1 - p_town)).sqrt() + 1e-9).all()
    assert (filling.mean[:, 1] == p_town.argmax()).all()
    for found in (drawn, filling.mean):
        assert (found[:, 0] == torch.tensor(COUNTRY_OF_TOWN)[found[:, 1].long()]).all()


def test_a_missing_cell_is_filled_with_what_gives_the_one_that_is_there() -> None:
    values = EVERY[:12].clone()
    valid = torch.tensor([True, False, True]).expand(12, -1)
    rules = [[1, COUNTRY_OF_TOWN, 1e-9], None, None]
    model = VAE([{"name": "c", "likelihood": "categorical", "sizes": SIZES, "rules": rules, "valid_size": 3}], 2, [8])
    for country in (0, 1):
        values[:, 0] = country
        found = posterior_cells(model, rows_of(values, valid), 5, generator(), with_draws=True)
        for towns in (found.at_mean["c"][:, 1], found.draws["c"][..., 1]):
            assert (torch.tensor(COUNTRY_OF_TOWN)[towns.long()] == country).all()


def test_rows_that_break_the_rule_cost_the_log_of_the_slack() -> None:
    cells = field()(logits_of().expand(2, -1))
    kept, broken = cells.log_prob(torch.tensor([[0, 0, 0], [1, 0, 0]], dtype=torch.int32))[:, 0].tolist()
    assert kept == pytest.approx(math.log(1 - SLACK / 2), rel=1e-6)
    assert broken == pytest.approx(math.log(SLACK / 2), rel=1e-6)
