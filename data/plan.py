"""Which rows in which step, on which worker: a pure function of the row counts, V, the batch size and the seed.

The table's training rows are cut into V logical shards of consecutive rows. In step t shard v gives its next
floor((u+1)B/V) - floor(uB/V) rows, u = (v+t) mod V, in the order of its own permutation for the epoch; an exhausted shard
gives none. So every row comes once an epoch, and neither the batch, its order nor its noise depends on the workers.
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


@dataclass(frozen=True)
class Step:
    """One step's rows: positions begin[v]..end[v]-1 of every logical shard's order; num_rows over all shards."""

    index: int
    begin: Integers
    end: Integers
    num_rows: int


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

    def order(self, epoch: int, shard: int) -> Integers:
        """Returns the order of a shard's rows in an epoch, [rows of the shard]: windows permuted, and rows within each."""
        order = np.empty(self._sizes[shard], np.int64)
        generator = np.random.Generator(np.random.Philox(np.random.SeedSequence([self.seed, epoch, shard])))
        done = 0
        for start in generator.permutation(np.arange(0, len(order), self.shuffle_window_rows)).tolist():
            num_rows = min(self.shuffle_window_rows, len(order) - start)
            order[done : done + num_rows] = start + generator.permutation(num_rows)
            done += num_rows
        return order

    def noise_seed(self, epoch: int, step: int, shard: int) -> int:
        """Returns the seed of the noise of a shard's rows in a step."""
        return int(np.random.SeedSequence([self.seed, epoch, step, shard]).generate_state(1)[0])


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
