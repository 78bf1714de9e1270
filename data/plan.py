"""Which rows in which step, on which worker: a pure function of the row counts, V, the batch size and the seed.

The table's training rows are cut into V logical shards of consecutive rows. In step t shard v gives its next
floor((u+1)B/V) - floor(uB/V) rows, u = (v+t) mod V, in the order of its own permutation for the epoch; an exhausted shard
gives none. So every row comes once an epoch, and neither the batch, its order nor its noise depends on the workers.
A worker takes its steps in stretches whose rows lie side by side in memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice, pairwise

import numpy as np
from numpy.typing import NDArray

from data.table import RowGroup

Integers = NDArray[np.int64]
# Rows of a shard's order whose noise one generator makes.
NOISE_ROWS = 1024


@dataclass(frozen=True)
class Step:
    """One step's rows: positions begin[v]..end[v]-1 of every logical shard's order; num_rows over all shards."""

    index: int
    begin: Integers
    end: Integers
    num_rows: int


@dataclass(frozen=True)
class Window:
    """Consecutive rows of a logical shard that are read, and permuted, together: num_rows from row `start` of the shard on, which come
    from place `begin` on in the shard's order of an epoch.
    """

    shard: int
    start: int
    num_rows: int
    begin: int


@dataclass(frozen=True)
class Plan:
    """The order of training. num_rows: training rows of the table; shuffle_window_rows: rows permuted together."""

    num_rows: int
    num_shards: int
    global_batch_size: int
    seed: int
    shuffle_window_rows: int

    @cached_property
    def bounds(self) -> Integers:
        """Shard v holds training rows bounds[v]..bounds[v+1]-1, in table order. [V + 1]"""
        return shard_bounds(self.num_rows, self.num_shards)

    @cached_property
    def _sizes(self) -> Integers:
        return np.diff(self.bounds)

    @cached_property
    def _given(self) -> Integers:
        """Rows that each shard has given after j of V steps, j = 0..V. [V + 1, V]"""
        cuts = shard_bounds(self.global_batch_size, self.num_shards)
        quota = np.diff(cuts)
        turns = (np.arange(self.num_shards)[None, :] + np.arange(self.num_shards)[:, None]) % self.num_shards
        return np.concatenate([np.zeros((1, self.num_shards), np.int64), quota[turns].cumsum(0)])

    def given(self, step: int) -> Integers:
        """Returns how many rows each shard has given before a step, [V]."""
        cycles, rest = divmod(step, self.num_shards)
        given: Integers = np.minimum(cycles * self.global_batch_size + self._given[rest], self._sizes)
        return given

    @cached_property
    def num_steps(self) -> int:
        """Steps of one epoch, empty ones included (they occur where a batch is smaller than V)."""
        cycles, rest = np.divmod(self._sizes - 1, self.global_batch_size)
        after = (self._given <= rest[None, :]).sum(0)
        return int((cycles * self.num_shards + after).max())

    @cached_property
    def num_steps_with_rows(self) -> int:
        """Steps of one epoch that have rows: what `steps` yields, counted without going through an epoch."""
        full = int(self._sizes.min()) // self.global_batch_size * self.num_shards  # before any shard is exhausted
        return full + sum(1 for _ in self.steps(full))

    def steps(self, first: int = 0) -> Iterator[Step]:
        """Yields the epoch's steps from number `first` that have rows; the same in every epoch, only the shards' orders differ."""
        end = self.given(first)
        for index in range(first, self.num_steps):
            begin, end = end, self.given(index + 1)
            num_rows = int((end - begin).sum())
            if num_rows:
                yield Step(index, begin, end, num_rows)

    def windows(self, epoch: int, shard: int) -> list[Window]:
        """Returns a shard's windows in the epoch's order."""
        size, rows = int(self._sizes[shard]), self.shuffle_window_rows
        found: list[Window] = []
        for start in self._generator(epoch, shard, 0).permutation(np.arange(0, size, rows)).tolist():
            begin = found[-1].begin + found[-1].num_rows if found else 0
            found.append(Window(shard, start, min(rows, size - start), begin))
        return found

    def window_order(self, epoch: int, window: Window) -> Integers:
        """Returns the order in which a window's rows come, [rows of the window]."""
        return self._generator(epoch, window.shard, 1 + window.start // self.shuffle_window_rows).permutation(window.num_rows)

    def order(self, epoch: int, shard: int) -> Integers:
        """Returns the order of a shard's rows in an epoch, [rows of the shard]: windows permuted, and rows within each."""
        parts = [window.start + self.window_order(epoch, window) for window in self.windows(epoch, shard)]
        return np.concatenate([np.empty(0, np.int64), *parts])

    def _generator(self, epoch: int, shard: int, number: int) -> np.random.Generator:
        return np.random.Generator(np.random.Philox(np.random.SeedSequence([self.seed, epoch, shard, number])))

    def noise_seed(self, epoch: int, block: int, shard: int) -> int:
        """Returns the seed of the noise of a shard's rows number block * NOISE_ROWS and on in the epoch's order."""
        return int(np.random.SeedSequence([self.seed, epoch, block, shard]).generate_state(1)[0])

    def stretches(self, shards: Sequence[int], max_rows: int, first: int = 0) -> Iterator[Stretch]:
        """Yields an epoch's steps from number `first` on in stretches of at most max_rows rows of all shards, or of one step.

        They begin and end at the same steps whatever the shards.
        """
        steps: list[Step] = []
        num_rows = 0
        for step in self.steps(first):
            if steps and num_rows + step.num_rows > max_rows:
                yield Stretch.of(steps, shards)
                steps, num_rows = [], 0
            steps.append(step)
            num_rows += step.num_rows
        if steps:
            yield Stretch.of(steps, shards)


@dataclass(frozen=True)
class Stretch:
    """Consecutive steps of a worker. Its shards give the rows begin[v]..end[v]-1 of their orders, together R rows.

    merge [R]: which of these rows, shard after shard, come one after the other; offsets [steps + 1]: where each step's begin.
    """

    steps: tuple[Step, ...]
    begin: dict[int, int]
    end: dict[int, int]
    merge: Integers
    offsets: Integers

    @staticmethod
    def of(steps: Sequence[Step], shards: Sequence[int]) -> Stretch:
        counts = np.stack([(step.end - step.begin)[shards] for step in steps])
        step_of_row = np.concatenate([np.repeat(np.arange(len(steps)), column) for column in counts.T])
        offsets = np.concatenate([np.zeros(1, np.int64), counts.sum(1).cumsum()])
        begin, end = steps[0].begin[shards].tolist(), steps[-1].end[shards].tolist()
        merge = np.argsort(step_of_row, kind="stable")
        return Stretch(tuple(steps), dict(zip(shards, begin, strict=True)), dict(zip(shards, end, strict=True)), merge, offsets)


def shard_bounds(num_rows: int, num_shards: int) -> Integers:
    """Returns floor(v * num_rows / num_shards) for v = 0..num_shards."""
    return np.array([v * num_rows // num_shards for v in range(num_shards + 1)], np.int64)


def shards_of_rank(num_shards: int, rank: int, num_workers: int) -> list[int]:
    """Returns the logical shards that a worker owns; every shard has one owner."""
    return list(range(rank, num_shards, num_workers))


@dataclass(frozen=True, slots=True)
class Reading:
    """What one worker needs of one row group. targets: (side of the split, first and last + 1 among the group's rows of
    that side, place of the first in the worker's rows of that side)."""

    group: RowGroup
    targets: tuple[tuple[int, int, int, int], ...]


def readings(
    groups: Sequence[RowGroup], counts: Integers, sides: Sequence[int], num_shards: int, rank: int, num_workers: int
) -> list[Reading]:
    """Returns what one worker reads; who asks for every worker's takes readings_by_rank, which goes over the counts once."""
    return next(islice(readings_by_rank(groups, counts, sides, num_shards, num_workers), rank, None))


def readings_by_rank(
    groups: Sequence[RowGroup], counts: Integers, sides: Sequence[int], num_shards: int, num_workers: int
) -> Iterator[list[Reading]]:
    """Yields what each worker reads to hold its logical shards, in the order of ranks; counts [groups, 3] are the groups' rows per side."""
    found = np.concatenate([pieces(counts[:, side], side, num_shards, num_workers) for side in sides])
    found = found[np.lexsort((found[:, 1], found[:, 0]))]  # by rank, then row group; stable, so sides and shards keep their order
    for begin, end in pairwise(np.searchsorted(found[:, 0], np.arange(num_workers + 1)).tolist()):
        _, indices, *numbers = found[begin:end].T.tolist()
        targets: dict[int, tuple[tuple[int, int, int, int], ...]] = {}
        for index, target in zip(indices, zip(*numbers, strict=True), strict=True):
            targets[index] = (*targets.get(index, ()), target)
        yield [Reading(groups[index], of_group) for index, of_group in targets.items()]


def window_reading(groups: Sequence[RowGroup], starts: Integers, side: int, begin: int, end: int) -> list[Reading]:
    """Returns what holds rows begin..end-1 of a side in table order, their places counted from begin.

    starts [groups + 1]: how many rows of that side come before each row group.
    """
    first, last = np.searchsorted(starts, [begin, end - 1], "right") - 1
    found = []
    for index in range(int(first), int(last) + 1):
        low, high = max(begin, int(starts[index])), min(end, int(starts[index + 1]))
        if low < high:
            found.append(Reading(groups[index], ((side, low - int(starts[index]), high - int(starts[index]), low - begin),)))
    return found


def pieces(counts: Integers, side: int, num_shards: int, num_workers: int) -> Integers:
    """Returns the pieces into which row groups and logical shards together cut a side's rows, in table order, [pieces, 6]:
    the owner's rank, the row group, and the four numbers of a Reading's target. counts [groups]: the groups' rows of that side.
    """
    starts = np.concatenate([np.zeros(1, np.int64), counts.cumsum()])
    bounds = shard_bounds(int(starts[-1]), num_shards)
    sizes = np.diff(bounds)
    owner, place = np.zeros((2, num_shards), np.int64)
    for rank in range(num_workers):
        shards = shards_of_rank(num_shards, rank, num_workers)
        owner[shards] = rank
        place[shards] = sizes[shards].cumsum() - sizes[shards]
    cuts = np.unique(np.concatenate([starts, bounds]))
    begin, end = cuts[:-1], cuts[1:]
    group = np.searchsorted(starts, begin, "right") - 1
    shard = np.searchsorted(bounds, begin, "right") - 1
    first = starts[group]
    return np.stack(
        [owner[shard], group, np.full_like(group, side), begin - first, end - first, place[shard] + begin - bounds[shard]], axis=1
    )
