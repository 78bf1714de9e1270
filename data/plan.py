"""Which rows in which step, on which worker: a pure function of the row counts, V, the batch size and the seed.

The table's training rows are cut into V logical shards of consecutive rows. In step t shard v gives its next
floor((u+1)B/V) - floor(uB/V) rows, u = (v+t) mod V, in the order of its own permutation for the epoch; an exhausted shard
gives none. So every row comes once an epoch, and neither the batch, its order nor its noise depends on the workers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

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
    def _given(self) -> Integers:
        """Rows that each shard has given after j of V steps, j = 0..V. [V + 1, V]"""
        cuts = shard_bounds(self.global_batch_size, self.num_shards)
        quota = np.diff(cuts)
        turns = (np.arange(self.num_shards)[None, :] + np.arange(self.num_shards)[:, None]) % self.num_shards
        return np.concatenate([np.zeros((1, self.num_shards), np.int64), quota[turns].cumsum(0)])

    def given(self, step: int) -> Integers:
        """Returns how many rows each shard has given before a step, [V]."""
        cycles, rest = divmod(step, self.num_shards)
        given: Integers = np.minimum(cycles * self.global_batch_size + self._given[rest], np.diff(self.bounds))
        return given

    @cached_property
    def num_steps(self) -> int:
        """Steps of one epoch, empty ones included (they occur where a batch is smaller than V)."""
        cycles, rest = np.divmod(np.diff(self.bounds) - 1, self.global_batch_size)
        after = (self._given <= rest[None, :]).sum(0)
        return int((cycles * self.num_shards + after).max())

    def steps(self) -> Iterator[Step]:
        """Yields the epoch's steps that have rows; the same in every epoch, only the shards' orders differ."""
        end = self.given(0)
        for index in range(self.num_steps):
            begin, end = end, self.given(index + 1)
            num_rows = int((end - begin).sum())
            if num_rows:
                yield Step(index, begin, end, num_rows)

    def order(self, epoch: int, shard: int) -> Integers:
        """Returns the order of a shard's rows in an epoch, [rows of the shard]: windows permuted, and rows within each."""
        size = int(self.bounds[shard + 1] - self.bounds[shard])
        generator = np.random.Generator(np.random.Philox(np.random.SeedSequence([self.seed, epoch, shard])))
        starts = np.arange(0, size, self.shuffle_window_rows)
        windows = [start + generator.permutation(min(self.shuffle_window_rows, size - start)) for start in generator.permutation(starts)]
        return np.concatenate([np.zeros(0, np.int64), *windows])

    def noise_seed(self, epoch: int, step: int, shard: int) -> int:
        """Returns the seed of the noise of a shard's rows in a step."""
        return int(np.random.SeedSequence([self.seed, epoch, step, shard]).generate_state(1)[0])


def shard_bounds(num_rows: int, num_shards: int) -> Integers:
    """Returns floor(v * num_rows / num_shards) for v = 0..num_shards."""
    return np.array([v * num_rows // num_shards for v in range(num_shards + 1)], np.int64)


def shards_of_rank(num_shards: int, rank: int, num_workers: int) -> list[int]:
    """Returns the logical shards that a worker owns; every shard has one owner."""
    return list(range(rank, num_shards, num_workers))


@dataclass(frozen=True)
class Reading:
    """What one worker needs of one row group. targets: (side of the split, first and last + 1 among the group's rows of
    that side, place of the first in the worker's rows of that side)."""

    group: RowGroup
    targets: tuple[tuple[int, int, int, int], ...]


def readings(
    groups: Sequence[RowGroup], counts: Integers, sides: Sequence[int], num_shards: int, rank: int, num_workers: int
) -> list[Reading]:
    """Returns what a worker reads to hold its logical shards; counts [groups, 3] are the groups' rows per side."""
    starts = np.concatenate([np.zeros((1, counts.shape[1]), np.int64), counts.cumsum(0)])
    targets: dict[int, list[tuple[int, int, int, int]]] = {}
    for side in sides:
        bounds = shard_bounds(int(starts[-1, side]), num_shards)
        place = 0
        for shard in shards_of_rank(num_shards, rank, num_workers):
            low, high = int(bounds[shard]), int(bounds[shard + 1])
            first = int(np.searchsorted(starts[:, side], low, "right")) - 1
            for index in range(first, len(groups)):
                begin, end = max(low, int(starts[index, side])), min(high, int(starts[index + 1, side]))
                if int(starts[index, side]) >= high:
                    break
                if begin < end:
                    offset = int(starts[index, side])
                    targets.setdefault(index, []).append((side, begin - offset, end - offset, place + begin - low))
            place += high - low
    return [Reading(groups[index], tuple(found)) for index, found in sorted(targets.items())]
