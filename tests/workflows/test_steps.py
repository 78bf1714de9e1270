"""Steps, their sums and their scores, without Ray: the same on any number of workers, and nothing that is not finite gets in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from data.fields import Arrays
from data.plan import Plan, Window, shard_bounds, shards_of_rank
from vae.model import VAE
from vae.objective import Loss, Objective
from vae.rows import Rows
from workflows.checkpoint import Progress, TrainingState
from workflows.config import RunConfig
from workflows.feed import HeldRows, StreamedRows, batch_before, training_stretches
from workflows.model_config import TrainingConfig
from workflows.optimization import Optimizer
from workflows.scoring import scores, shard_sums
from workflows.steps import Ledger, compiled, describe_batch, take_step
from workflows.training_loop import is_last, train_epoch

LATENT_DIM = 2
FIELDS: list[dict[str, Any]] = [{"name": "x", "likelihood": "gaussian", "size": 3, "valid_size": 3}]


def small_model(dtype: torch.dtype = torch.float64) -> VAE:
    torch.manual_seed(0)
    return VAE(FIELDS, LATENT_DIM, [5], "mlp", "standard").to(dtype=dtype)


def rows_of(num_rows: int) -> Rows:
    """Returns rows whose first cell is their number; a tenth of the cells is missing."""
    rng = np.random.default_rng(1)
    values = rng.normal(size=(num_rows, 3)).astype(np.float32)
    values[:, 0] = np.arange(num_rows)
    valid = rng.random((num_rows, 3)) > 0.1
    return Rows.from_arrays({"x": values, "x.valid": valid, "log_jacobian": rng.normal(size=num_rows)})


def holding_of(rows: Rows, plan: Plan, rank: int, num_workers: int) -> HeldRows:
    """Returns what one worker holds of the rows: its shards, one after the other."""
    shards = shards_of_rank(plan.num_shards, rank, num_workers)
    bounds = shard_bounds(rows.num_rows, plan.num_shards)
    index = np.concatenate([np.arange(bounds[v], bounds[v + 1]) for v in shards])
    sizes = np.diff(bounds)[shards].tolist()
    starts = np.cumsum([0, *sizes])[:-1].tolist()
    return HeldRows(rows.take(torch.from_numpy(index)), dict(zip(shards, starts, strict=True)), dict(zip(shards, sizes, strict=True)))


plans = st.builds(
    Plan,
    num_rows=st.integers(1, 257),
    num_shards=st.integers(4, 9),
    global_batch_size=st.integers(1, 64),
    seed=st.integers(0, 2**31),
    shuffle_window_rows=st.one_of(st.integers(1, 20), st.just(10**6)),
)


def steps_of(plan: Plan, num_workers: int, epoch: int, first: int = 0) -> dict[int, list[tuple[int, tuple[float, ...]]]]:
    """Returns step -> its (row, noise) pairs, over all workers, sorted."""
    found: dict[int, list[tuple[int, tuple[float, ...]]]] = {}
    for rank in range(num_workers):
        holding = holding_of(rows_of(plan.num_rows), plan, rank, num_workers)
        for stretch, rows, noise in training_stretches(plan, holding, epoch, first, small_model()):
            for number, step in enumerate(stretch.steps):
                part = slice(*stretch.offsets[number : number + 2].tolist())
                numbers = rows.values["x"][part, 0].int().tolist()
                found.setdefault(step.index, []).extend(zip(numbers, map(tuple, noise[part].tolist()), strict=True))
    return {step: sorted(pairs) for step, pairs in found.items()}


@settings(max_examples=25)
@given(plan=plans, num_workers=st.integers(2, 4), epoch=st.integers(0, 3))
def test_rows_and_noise_of_every_step_do_not_depend_on_the_workers(plan: Plan, num_workers: int, epoch: int) -> None:
    one = steps_of(plan, 1, epoch)
    assert steps_of(plan, num_workers, epoch) == one
    assert sorted(row for pairs in one.values() for row, _ in pairs) == list(range(plan.num_rows))
    assert {step: len(pairs) for step, pairs in one.items()} == {step.index: step.num_rows for step in plan.steps()}


@settings(max_examples=25)
@given(plan=plans, first=st.integers(0, 60), num_workers=st.integers(1, 3))
def test_an_epoch_that_goes_on_from_a_step_takes_the_same_steps_as_the_whole(plan: Plan, first: int, num_workers: int) -> None:
    rest = {step: pairs for step, pairs in steps_of(plan, 1, 1).items() if step >= first}
    assert steps_of(plan, num_workers, 1, first) == rest


@settings(max_examples=25)
@given(plan=plans, num_workers=st.integers(2, 4), stretch_bytes=st.integers(1, 2000))
def test_stretches_have_the_same_steps_on_every_worker(plan: Plan, num_workers: int, stretch_bytes: int) -> None:
    ends: list[list[int]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("workflows.feed.STRETCH_BYTES", stretch_bytes)
        for rank in range(num_workers):
            held = holding_of(rows_of(plan.num_rows), plan, rank, num_workers)
            stretches = training_stretches(plan, held, 0, 0, small_model(), num_workers)
            ends.append([stretch.steps[-1].index for stretch, _, _ in stretches])
    assert all(of_rank == ends[0] for of_rank in ends)


@settings(max_examples=25)
@given(plan=plans, num_workers=st.integers(1, 3), taken=st.integers(1, 60), steps_back=st.integers(1, 70))
def test_the_rows_of_a_step_that_was_taken_are_found_again(plan: Plan, num_workers: int, taken: int, steps_back: int) -> None:
    steps = list(plan.steps())[:taken]
    expected = steps_of(plan, 1, 2)[steps[max(0, len(steps) - steps_back)].index]
    found: list[int] = []
    for rank in range(num_workers):
        held = holding_of(rows_of(plan.num_rows), plan, rank, num_workers)
        rows = batch_before(plan, held, 2, steps[-1].index + 1, steps_back, small_model())
        found += rows.values["x"][:, 0].int().tolist()
    assert sorted(found) == [row for row, _ in expected]


@settings(max_examples=25)
@given(plan=plans, num_workers=st.integers(1, 3), first=st.integers(0, 40))
def test_streamed_rows_are_those_held_in_memory(plan: Plan, num_workers: int, first: int) -> None:
    for rank in range(num_workers):
        held = holding_of(rows_of(plan.num_rows), plan, rank, num_workers)
        opened: list[Window] = []

        def read(windows: Sequence[Window], held: HeldRows = held, opened: list[Window] = opened) -> Iterator[tuple[Window, Arrays]]:
            for window in windows:
                opened.append(window)
                begin = held.start[window.shard] + window.start
                rows = held.rows.slice(begin, begin + window.num_rows)
                arrays = {"x": rows.values["x"].numpy(), "x.valid": rows.valid["x"].numpy(), "log_jacobian": rows.log_jacobian.numpy()}
                yield window, arrays

        streamed = StreamedRows(held.size, rows_of(0), plan.shuffle_window_rows, read)
        for ours, theirs in zip(*(training_stretches(plan, rows, 1, first, small_model()) for rows in (streamed, held)), strict=True):
            assert torch.equal(ours[1].values["x"], theirs[1].values["x"])
            assert torch.equal(ours[1].valid["x"], theirs[1].valid["x"])
            assert torch.equal(ours[2], theirs[2])
        assert len(opened) == len(set(opened))
        for one, other in zip(streamed.chunks(), held.chunks(), strict=True):
            assert one[:2] == other[:2]
            assert torch.equal(one[2].values["x"], other[2].values["x"])


def test_noise_is_standard_normal_and_differs_between_rows_epochs_and_shards() -> None:
    plan = Plan(5000, 3, 64, 7, 10**6)
    drawn = [np.array([noise for pairs in steps_of(plan, 1, epoch).values() for _, noise in pairs]) for epoch in (0, 1)]
    flat = np.concatenate(drawn)
    assert len(np.unique(flat)) == flat.size == 2 * 5000 * LATENT_DIM
    assert abs(flat.mean()) < 4 / np.sqrt(flat.size)
    assert abs(flat.var() - 1) < 4 * np.sqrt(2 / flat.size)


@settings(max_examples=25)
@given(plan=plans, num_workers=st.integers(1, 4), num_samples=st.integers(1, 3))
def test_the_score_is_that_of_one_process_in_float64(plan: Plan, num_workers: int, num_samples: int) -> None:
    model, rows = small_model(), rows_of(plan.num_rows)
    sums = [shard_sums(model, plan, holding_of(rows, plan, rank, num_workers), 1, num_samples) for rank in range(num_workers)]
    whole = shard_sums(model, plan, holding_of(rows, plan, 0, 1), 1, num_samples)
    assert torch.equal(torch.stack(sums).sum(0), whole)
    found = scores(whole, model)
    assert found["num_rows"] == plan.num_rows
    with torch.no_grad():
        kl = float(model.posterior(rows).kl(model.latent_prior()).mean())
        variance = model.posterior(rows).mean.var(0, correction=0)
    assert found["kl_nats_per_row"] == pytest.approx(kl, rel=1e-9)
    assert found["active_units"] == int((variance > 0.01).sum())
    parts = found["expected_log_likelihood_nats_per_row"] - found["kl_nats_per_row"]
    assert found["elbo_nats_per_row"] == pytest.approx(parts, rel=1e-9)


def train_alone(plan: Plan, training: TrainingConfig, settle_after: int | None = None) -> tuple[VAE, Progress, list[dict[str, Any]]]:
    """Trains one epoch in this process; settles after so many steps, or as the ledger likes; returns what it told."""
    model = small_model()
    loss = Loss(model, Objective())
    optimizer, progress, told = Optimizer(model, training), Progress(), []
    ledger = Ledger(training, RunConfig(log_interval_steps=3), plan.num_steps_with_rows, True)
    for stretch, rows, noise in training_stretches(plan, holding_of(rows_of(plan.num_rows), plan, 0, 1), 0, 0, model):
        for number, step in enumerate(stretch.steps):
            part = slice(*stretch.offsets[number : number + 2].tolist())
            batch = rows.slice(part.start, part.stop)
            ledger.note(take_step(loss, optimizer, batch, noise[part], 1 / step.num_rows, 1.0, 1e-2, "float64", progress.step))
            progress.step += 1
            due = ledger.is_due if settle_after is None else progress.step % settle_after == 0
            if due or number + 1 == len(stretch.steps):
                told += ledger.settle(progress, optimizer, stop=False).metrics
    return model, progress, told


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, while it compiles
@pytest.mark.parametrize("name", ["discretised_gaussian", "categorical", "gaussian"])
def test_a_compiled_model_has_the_same_bound_and_gradients(name: str) -> None:
    arguments: dict[str, Any] = {
        "discretised_gaussian": {"size": 3, "half_width": [0.5], "lower": [-2.0], "upper": [2.0]},
        "categorical": {"sizes": [2, 5, 3]},
        "gaussian": {"size": 3},
    }
    torch.manual_seed(0)
    model = VAE([{"name": "x", "likelihood": name, "valid_size": 3} | arguments[name]], LATENT_DIM, [8]).double()
    values = torch.randint(0, 2, (12, 3)).double() if name != "categorical" else torch.randint(0, 2, (12, 3))
    rows = Rows({"x": values}, {"x": torch.rand(12, 3) > 0.2}, torch.zeros(12, dtype=torch.float64))
    found = []
    loss = Loss(model, Objective())
    for forward in (loss, compiled(loss)):
        for num_rows in (12, 7):  # a last batch is smaller
            model.zero_grad()
            minimised, bound = forward(rows.slice(0, num_rows), torch.ones(num_rows, LATENT_DIM, dtype=torch.float64), 1.0)
            minimised.backward()
            found.append([bound.elbo.detach(), *(p.grad for p in model.parameters() if p.grad is not None)])
    torch.testing.assert_close(found[2:], found[:2], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("settle_after", [1, 4, 1000])
def test_what_is_known_of_steps_does_not_depend_on_when_they_are_settled(settle_after: int) -> None:
    plan = Plan(100, 4, 9, 0, 10**6)
    _, progress, told = train_alone(plan, TrainingConfig(), settle_after)
    _, expected, told_before = train_alone(plan, TrainingConfig(), 2)
    assert progress.sums == expected.sums
    assert progress.sums[0] == 100
    assert progress.interval_sums == expected.interval_sums
    assert told == told_before
    assert [(message["kind"], message["step"]) for message in told] == [("steps", number) for number in (3, 6, 9, 12)]


def gradients(model: VAE, scale: float) -> None:
    generator = torch.Generator().manual_seed(3)
    for parameter in model.parameters():
        parameter.grad = scale * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_clipped_steps_are_those_of_clip_grad_norm(scale: float) -> None:
    ours, theirs = small_model(), small_model()
    training = TrainingConfig(learning_rate=0.1, max_gradient_norm=0.5, weight_decay=0.01)
    optimizer, plain = Optimizer(ours, training), torch.optim.AdamW(theirs.parameters(), lr=0.1, weight_decay=0.01)
    for number in range(3):
        gradients(ours, scale)
        gradients(theirs, scale)
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), 0.5)
        optimizer.step(0.1, number)
        plain.step()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-8)


def snapshot(model: VAE, optimizer: Optimizer) -> dict[str, Tensor]:
    kept = {name: tensor for name, tensor in optimizer.tensors().items() if name.startswith("adam")}
    return {name: tensor.clone() for name, tensor in (model.state_dict() | kept).items()}


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), -float("inf")])
def test_a_step_whose_gradient_is_not_finite_changes_nothing_and_is_counted(poison: float) -> None:
    model = small_model()
    optimizer = Optimizer(model, TrainingConfig())
    gradients(model, 1.0)
    optimizer.step(1e-3, 0)
    before = snapshot(model, optimizer)
    gradients(model, 1.0)
    next(model.parameters()).grad.view(-1)[0] = poison  # type: ignore[union-attr]
    optimizer.step(1e-3, 1)
    after = snapshot(model, optimizer)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert optimizer.nonfinite.tolist() == [1, 1, 1]
    gradients(model, 1.0)
    optimizer.step(1e-3, 2)
    assert optimizer.nonfinite.tolist() == [0, 1, 1]
    assert not torch.equal(snapshot(model, optimizer)["encoder.0.weight"], before["encoder.0.weight"])


def test_a_loss_that_is_not_finite_spoils_every_gradient_so_that_all_workers_skip_the_step() -> None:
    model = small_model()
    optimizer = Optimizer(model, TrainingConfig())
    before = snapshot(model, optimizer)
    loss = torch.stack([parameter.sum() for parameter in model.parameters()]).sum() + torch.tensor(float("inf"))
    optimizer.backward(loss)
    assert all(parameter.grad is not None and parameter.grad.isnan().all() for parameter in model.parameters())
    optimizer.step(1e-3, 0)
    after = snapshot(model, optimizer)
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_after_three_such_steps_in_a_row_nothing_changes_any_more() -> None:
    model = small_model()
    optimizer = Optimizer(model, TrainingConfig())
    before = snapshot(model, optimizer)
    for number in range(4, 7):
        gradients(model, float("nan"))
        optimizer.step(1e-3, number)
    for number in range(7, 9):
        gradients(model, 1.0)
        optimizer.step(1e-3, number)
    assert optimizer.nonfinite.tolist() == [3, 5, 4]
    after = snapshot(model, optimizer)
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_the_average_follows_the_weights_and_is_what_is_kept() -> None:
    model = small_model()
    optimizer = Optimizer(model, TrainingConfig(ema_decay=0.9))
    expected = [parameter.detach().clone() for parameter in model.parameters()]
    for number in range(30):
        gradients(model, 1.0)
        optimizer.step(0.1, number)
        decay = min(0.9, (1 + number) / (10 + number))
        expected = [decay * old + (1 - decay) * new.detach() for old, new in zip(expected, model.parameters(), strict=True)]
    state = TrainingState(model, optimizer, {}, Progress())
    averaged = state.averaged()
    for (name, parameter), mean in zip(model.named_parameters(), expected, strict=True):
        torch.testing.assert_close(averaged[name], mean)
        assert not torch.allclose(averaged[name], parameter)


@pytest.mark.parametrize("ema_decay", [0.0, 0.99])
def test_training_goes_on_from_a_checkpoint_as_if_nothing_had_happened(ema_decay: float) -> None:
    training = TrainingConfig(ema_decay=ema_decay)
    states = []
    for interrupted in (False, True):
        model = small_model()
        state = TrainingState(model, Optimizer(model, training), {}, Progress())
        for number in range(6):
            if interrupted and number == 3:
                state.keep_as_best()
                files = state.files()
                model = small_model()
                state = TrainingState(model, Optimizer(model, training), {}, Progress())
                state.load(files)
            gradients(model, 1.0 + number)
            state.optimizer.step(1e-2, number)
        states.append(state)
    for part in (TrainingState.averaged, lambda state: state.optimizer.tensors()):
        one, other = map(part, states)
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_bad_batch_is_described_by_column_the_largest_values_first() -> None:
    values = torch.tensor([[1.0, 1e9, 3.0], [2.0, -1.0, float("nan")]])
    valid = torch.tensor([[True, True, True], [True, True, False]])
    rows = Rows({"x": values}, {"x": valid}, torch.zeros(2))
    assert describe_batch(rows, {"x": ["a", "b", "c"]}).splitlines() == [
        "'b': -1 to 1e+09, 0 nulls",
        "  'c': 3 to 3, 1 nulls",
        "  'a': 1 to 2, 0 nulls",
    ]
    assert describe_batch(rows, {"x": ["vector"]}).startswith("'vector': -1 to 1e+09, 1 nulls")


def image_model() -> VAE:
    torch.manual_seed(0)
    fields: list[dict[str, Any]] = [
        {"name": "image", "likelihood": "bernoulli", "size": 4, "valid_size": 1, "with_flags": False, "storage": "uint8", "binarize": True},
        {"name": "x", "likelihood": "gaussian", "size": 1, "valid_size": 1},
    ]
    return VAE(fields, LATENT_DIM, [5])


def grey_rows(num_rows: int) -> Rows:
    """Returns rows of four pixels, 0, 51, 204 and 255, beside the row's number."""
    values = {"image": torch.tensor([0, 51, 204, 255], dtype=torch.uint8).repeat(num_rows, 1), "x": torch.arange(float(num_rows))[:, None]}
    return Rows(values, {name: torch.ones(num_rows, 1, dtype=torch.bool) for name in values}, torch.zeros(num_rows))


def drawn_pixels(plan: Plan, num_workers: int, epoch: int) -> dict[int, tuple[int, ...]]:
    """Returns row -> its pixels as an epoch's steps take them."""
    found: dict[int, tuple[int, ...]] = {}
    for rank in range(num_workers):
        holding = holding_of(grey_rows(plan.num_rows), plan, rank, num_workers)
        for _, rows, _ in training_stretches(plan, holding, epoch, 0, image_model()):
            found |= dict(zip(rows.values["x"][:, 0].int().tolist(), map(tuple, rows.values["image"].tolist()), strict=True))
    return found


def test_pixels_are_drawn_anew_in_every_epoch_and_the_same_on_any_number_of_workers() -> None:
    plan = Plan(2000, 8, 64, 3, 500)
    pixels = drawn_pixels(plan, 1, 0)
    assert drawn_pixels(plan, 3, 0) == pixels
    assert drawn_pixels(plan, 1, 1) != pixels
    table = torch.tensor(list(pixels.values()))
    assert set(table.flatten().tolist()) == {0, 255}
    torch.testing.assert_close(table.double().mean(0) / 255, torch.tensor([0.0, 0.2, 0.8, 1.0], dtype=torch.float64), rtol=0, atol=0.04)
    noise = [noise for _, _, noise in training_stretches(plan, holding_of(grey_rows(2000), plan, 0, 1), 0, 0, image_model())]
    assert abs(float(torch.corrcoef(torch.stack([noise[0][:, 0], noise[0][:, 1]]))[0, 1])) < 0.1


@pytest.mark.parametrize("model", [small_model(), image_model()], ids=["numbers", "pixels"])
@pytest.mark.parametrize("num_samples", [1, 50])
def test_a_stretch_is_bounded_with_its_noise(model: VAE, num_samples: int, monkeypatch: pytest.MonkeyPatch) -> None:
    max_bytes = 2**14
    monkeypatch.setattr("workflows.feed.STRETCH_BYTES", max_bytes)
    plan = Plan(3000, 8, 10, 0, 500)
    held = holding_of(grey_rows(plan.num_rows), plan, 0, 1)
    sizes = []
    for _, rows, noise in training_stretches(plan, held, 0, 0, model, num_samples=num_samples):
        pixels = rows.num_rows * sum(model.binarised.values())
        sizes.append(rows.num_rows * rows.bytes_per_row + noise.nbytes + pixels * torch.float32.itemsize)
    assert max_bytes / 2 < max(sizes) <= max_bytes


def test_several_samples_per_row_follow_it_to_any_worker() -> None:
    plan = Plan(50, 4, 8, 0, 20)
    found: list[dict[int, tuple[float, ...]]] = []
    for num_workers in (1, 2):
        pairs: dict[int, tuple[float, ...]] = {}
        for rank in range(num_workers):
            holding = holding_of(rows_of(50), plan, rank, num_workers)
            for _, rows, noise in training_stretches(plan, holding, 0, 0, small_model(), num_samples=3):
                assert noise.shape == (rows.num_rows, 3, LATENT_DIM)
                pairs |= dict(zip(rows.values["x"][:, 0].int().tolist(), map(tuple, noise.flatten(1).tolist()), strict=True))
        found.append(pairs)
    assert found[0] == found[1]
    assert len(found[0]) == 50


def test_a_run_that_stopped_with_its_last_step_scores_that_epoch_and_takes_no_step_more() -> None:
    training = TrainingConfig(epochs=1, early_stopping_patience=0)
    progress = Progress(step=30, position=30)
    assert not is_last(progress, training, 30)
    state: Any = SimpleNamespace(progress=progress)
    assert train_epoch(small_model(), state, SimpleNamespace(task=None), None, 30) == "end"  # type: ignore[arg-type]
    assert is_last(Progress(step=30, epoch=1), training, 30)
    assert is_last(Progress(step=30, best_elbo=0.0), training, 30)
