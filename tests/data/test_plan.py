"""Claims about data.plan: every row once an epoch, in an order that no number of workers can change."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.plan import Integers, Plan, Reading, Step, readings, readings_by_rank, shard_bounds, shards_of_rank
from data.table import RowGroup

plans = st.builds(
    Plan,
    num_rows=st.integers(1, 257),
    num_shards=st.integers(1, 24),
    global_batch_size=st.integers(1, 64),
    seed=st.integers(0, 2**31),
    shuffle_window_rows=st.one_of(st.integers(1, 20), st.just(10**6)),
)


def batches(plan: Plan, epoch: int) -> list[list[int]]:
    """Returns the training rows of every step of an epoch, in shard order."""
    orders = [plan.order(epoch, shard) + plan.bounds[shard] for shard in range(plan.num_shards)]
    return [np.concatenate([o[a:b] for o, a, b in zip(orders, s.begin, s.end, strict=True)]).tolist() for s in plan.steps()]


@settings(max_examples=100)
@given(plan=plans, epoch=st.integers(0, 3))
def test_every_row_comes_once_an_epoch(plan: Plan, epoch: int) -> None:
    rows = [row for batch in batches(plan, epoch) for row in batch]
    assert sorted(rows) == list(range(plan.num_rows))


@settings(max_examples=100)
@given(plan=plans)
def test_no_step_exceeds_the_global_batch_and_none_is_empty(plan: Plan) -> None:
    steps = list(plan.steps())
    assert [len(batch) for batch in batches(plan, 0)] == [step.num_rows for step in steps]
    assert all(0 < step.num_rows <= plan.global_batch_size for step in steps)
    assert [step.index for step in steps] == sorted({step.index for step in steps})
    assert steps[-1].index == plan.num_steps - 1


@settings(max_examples=100)
@given(plan=plans, first=st.integers(0, 300))
def test_steps_from_a_later_one_on_are_the_rest_of_the_epoch(plan: Plan, first: int) -> None:
    rest = [step for step in plan.steps() if step.index >= first]
    assert [as_lists(step) for step in plan.steps(first)] == [as_lists(step) for step in rest]


def as_lists(step: Step) -> tuple[int, list[int], list[int], int]:
    return step.index, step.begin.tolist(), step.end.tolist(), step.num_rows


@settings(max_examples=200)
@given(plan=plans)
def test_steps_with_rows_are_counted_without_taking_them(plan: Plan) -> None:
    assert plan.num_steps_with_rows == len(list(plan.steps()))


@settings(max_examples=60)
@given(plan=plans)
def test_a_shard_gives_its_rotated_share_until_it_is_exhausted(plan: Plan) -> None:
    """The formula of architecture.md, written out with no shortcut."""
    num_shards, size = plan.num_shards, plan.global_batch_size
    given_rows = [0] * num_shards
    for step in range(plan.num_steps + 2):
        assert plan.given(step).tolist() == given_rows
        for shard in range(num_shards):
            turn = (shard + step) % num_shards
            quota = (turn + 1) * size // num_shards - turn * size // num_shards
            given_rows[shard] = min(given_rows[shard] + quota, int(plan.bounds[shard + 1] - plan.bounds[shard]))
    assert sum(given_rows) == plan.num_rows


@settings(max_examples=100)
@given(num_rows=st.integers(64, 257), num_shards=st.integers(1, 8), size=st.integers(8, 64))
def test_batches_are_full_until_shards_run_out(num_rows: int, num_shards: int, size: int) -> None:
    steps = list(Plan(num_rows, num_shards, size, 0, 10**6).steps())
    full = (num_rows // num_shards) // -(-size // num_shards)
    assert [step.num_rows for step in steps[:full]] == [size] * full


@settings(max_examples=100)
@given(plan=plans, epoch=st.integers(0, 3))
def test_rows_are_permuted_within_windows_and_windows_too(plan: Plan, epoch: int) -> None:
    for shard in range(plan.num_shards):
        order = plan.order(epoch, shard)
        size = int(plan.bounds[shard + 1] - plan.bounds[shard])
        assert sorted(order.tolist()) == list(range(size))
        windows = (order // plan.shuffle_window_rows).tolist()
        runs = [window for i, window in enumerate(windows) if i == 0 or windows[i - 1] != window]
        assert len(runs) == len(set(runs))


def test_the_order_differs_between_epochs_seeds_and_shards_and_is_the_same_again() -> None:
    plan, other = Plan(400, 4, 32, 7, 10**6), Plan(400, 4, 32, 8, 10**6)
    orders = [plan.order(0, 0), plan.order(1, 0), plan.order(0, 1), other.order(0, 0)]
    assert len({order.tobytes() for order in orders}) == 4
    assert plan.order(1, 0).tobytes() == Plan(400, 4, 32, 7, 10**6).order(1, 0).tobytes()
    assert all((order != np.arange(100)).any() for order in orders)


def test_windows_come_in_another_order_every_epoch() -> None:
    plan = Plan(100, 1, 10, 0, 10)
    firsts = [tuple((plan.order(epoch, 0)[::10] // 10).tolist()) for epoch in range(5)]
    assert len(set(firsts)) == 5


def test_noise_seeds_differ_by_seed_epoch_step_and_shard() -> None:
    seeds = {Plan(10, 4, 4, seed, 10).noise_seed(e, t, v) for seed in range(3) for e in range(3) for t in range(5) for v in range(4)}
    assert len(seeds) == 3 * 3 * 5 * 4


@given(num_rows=st.integers(0, 500), num_shards=st.integers(1, 40))
def test_shards_are_consecutive_and_differ_by_at_most_one_row(num_rows: int, num_shards: int) -> None:
    sizes = np.diff(shard_bounds(num_rows, num_shards))
    assert sizes.sum() == num_rows
    assert sizes.min() >= 0
    assert sizes.max() - sizes.min() <= 1


@given(num_shards=st.integers(1, 40), num_workers=st.integers(1, 45))
def test_every_shard_has_one_owner(num_shards: int, num_workers: int) -> None:
    owned = [shard for rank in range(num_workers) for shard in shards_of_rank(num_shards, rank, num_workers)]
    assert sorted(owned) == list(range(num_shards))


def row_groups(num_groups: int) -> list[RowGroup]:
    return [RowGroup(f"{index}.parquet", "0" * 64, 0, 0, 0) for index in range(num_groups)]


def rows_of_groups(counts: Integers) -> list[list[list[int]]]:
    """Returns, for every group and side, the numbers of its rows among all rows of that side."""
    starts = counts.cumsum(0) - counts
    return [
        [list(range(a, a + n)) for a, n in zip(start, count, strict=True)]
        for start, count in zip(starts.tolist(), counts.tolist(), strict=True)
    ]


def all_rows(counts: Integers, sides: Sequence[int], num_shards: int, num_workers: int) -> list[dict[int, list[int | None]]]:
    """Returns, for every worker, side -> what it holds after it carried out its readings; None where nothing was put."""
    plans = list(readings_by_rank(row_groups(len(counts)), counts, sides, num_shards, num_workers))
    assert len(plans) == num_workers
    return [worker_rows(counts, sides, num_shards, rank, num_workers, plan) for rank, plan in enumerate(plans)]


def worker_rows(
    counts: Integers, sides: Sequence[int], num_shards: int, rank: int, num_workers: int, plan: list[Reading]
) -> dict[int, list[int | None]]:
    rows = rows_of_groups(counts)
    totals = counts.sum(0)
    held: dict[int, list[int | None]] = {}
    for side in sides:
        bounds = shard_bounds(int(totals[side]), num_shards)
        held[side] = [None] * sum(int(bounds[v + 1] - bounds[v]) for v in shards_of_rank(num_shards, rank, num_workers))
    assert [reading.group.path for reading in plan] == sorted({r.group.path for r in plan}, key=lambda path: int(path.split(".")[0]))
    for reading in plan:
        assert reading.targets
        for side, begin, end, place in reading.targets:
            arrived = rows[int(reading.group.path.split(".")[0])][side][begin:end]
            assert len(arrived) == end - begin > 0
            for offset, row in enumerate(arrived):
                assert held[side][place + offset] is None
                held[side][place + offset] = row
    return held


group_counts = st.lists(st.tuples(*[st.one_of(st.just(0), st.integers(0, 12))] * 3), min_size=1, max_size=12).map(
    lambda rows: np.array(rows, np.int64)
)


@settings(max_examples=100)
@given(
    counts=group_counts, num_shards=st.integers(1, 12), num_workers=st.integers(1, 6), sides=st.sampled_from([[0], [1], [0, 1], [0, 1, 2]])
)
def test_readings_put_every_row_at_its_place_and_none_twice(counts: Integers, num_shards: int, num_workers: int, sides: list[int]) -> None:
    for rank, held in enumerate(all_rows(counts, sides, num_shards, num_workers)):
        for side in sides:
            bounds = shard_bounds(int(counts[:, side].sum()), num_shards)
            expected = [row for v in shards_of_rank(num_shards, rank, num_workers) for row in range(int(bounds[v]), int(bounds[v + 1]))]
            assert held[side] == expected


@settings(max_examples=60)
@given(counts=group_counts.filter(lambda counts: counts[:, 0].sum() > 0), num_shards=st.integers(1, 12), size=st.integers(1, 20))
def test_the_global_batch_does_not_depend_on_the_workers(counts: Integers, num_shards: int, size: int) -> None:
    plan = Plan(int(counts[:, 0].sum()), num_shards, size, 3, 5)
    expected = [sorted(batch) for batch in batches(plan, 1)]
    for num_workers in {1, 2, 3, num_shards, num_shards + 2}:
        found: list[list[int | None]] = [[] for _ in expected]
        for rank, sides in enumerate(all_rows(counts, [0], num_shards, num_workers)):
            held, start = sides[0], 0
            for shard in shards_of_rank(num_shards, rank, num_workers):
                order = plan.order(1, shard) + start
                for batch, step in zip(found, plan.steps(), strict=True):
                    batch += [held[place] for place in order[step.begin[shard] : step.end[shard]]]
                start += int(plan.bounds[shard + 1] - plan.bounds[shard])
        assert [sorted(row for row in batch if row is not None) for batch in found] == expected


def test_more_workers_than_rows_leave_some_with_nothing_to_read() -> None:
    counts = np.array([[0, 0, 0], [2, 1, 0], [0, 0, 0]], np.int64)
    plans = list(readings_by_rank(row_groups(3), counts, [0, 1], 5, 5))
    assert [[target for reading in plan for target in reading.targets] for plan in plans] == [
        [],
        [],
        [(0, 0, 1, 0)],
        [],
        [(0, 1, 2, 0), (1, 0, 1, 0)],
    ]


@pytest.mark.parametrize("num_workers", [1, 3])
def test_a_side_without_rows_is_read_by_nobody(num_workers: int) -> None:
    counts = np.array([[4, 0, 0], [3, 0, 0]], np.int64)
    assert list(readings_by_rank(row_groups(2), counts, [1], 4, num_workers)) == [[]] * num_workers


@settings(max_examples=60)
@given(counts=group_counts, num_shards=st.integers(1, 12), num_workers=st.integers(1, 6))
def test_what_one_worker_reads_is_its_part_of_what_all_read(counts: Integers, num_shards: int, num_workers: int) -> None:
    groups = row_groups(len(counts))
    together = list(readings_by_rank(groups, counts, [1, 0], num_shards, num_workers))
    assert together == [readings(groups, counts, [1, 0], num_shards, rank, num_workers) for rank in range(num_workers)]
