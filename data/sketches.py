"""Mergeable summaries of one column in bounded memory: its quantiles and its number of distinct values.

Each is made of a leaf (the rows of one row group) by `of`, and leaves are added by `merge`, which alters neither side. Only integers
are added and compared, so while nothing has overflowed any grouping of the leaves gives the same result, and any machine the same bits.
Shapes: B bins in use.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# A magnitude's bin is its float64's exponent and first 6 mantissa bits: 64 bins per octave, each at most 1/64 of its values wide.
BIN_SHIFT = 52 - 6
SIGN_BIN = 1 << (63 - BIN_SHIFT)
LAST_SUBNORMAL_BIN = (1 << 6) - 1
INFINITE_BIN = (2047 << 6) - LAST_SUBNORMAL_BIN

REGISTER_BITS = 12
RANKS = 64 - REGISTER_BITS + 1  # a register's largest value: all its hash's other bits are zero
HASHES_AT_ONCE = 1 << 16  # temporary arrays that fit a second-level cache


@dataclass(frozen=True, eq=False)
class QuantileSketch:
    """How many values lie in each bin. A value is known to 1/128 of itself: DDSketch (Masson, Rim & Lee, VLDB 2019).

    The mapping to bins is the one that reads the float's bits, not its logarithm, whose last bit differs between machines.
    bins: sorted, [B]; bin -b holds the negatives of bin b. Bin 0 holds zero and the subnormals (below 2.3e-308), as zero.
    counts: above zero, [B].
    """

    bins: NDArray[np.int32]
    counts: NDArray[np.int64]

    @staticmethod
    def of(values: NDArray[np.float64]) -> QuantileSketch:
        """Returns the sketch of values [n]. Raises ValueError for a NaN or an infinity."""
        assert (values.dtype.name, values.ndim) == ("float64", 1)
        if not len(values):
            return QuantileSketch(np.zeros(0, np.int32), np.zeros(0, np.int64))
        raw = values.view(np.int64) >> BIN_SHIFT
        low, span = int(raw.min()), int(raw.max()) - int(raw.min()) + 1
        if span <= 16 * len(raw):  # counting costs 2 ns a value and 1 a place of the table, sorting 20 to 30 a value
            raw -= low
            table = np.bincount(raw)
            used = np.flatnonzero(table)
            bins, counts = used + low, table[used]
        else:
            bins, counts = np.unique(raw, return_counts=True)
        magnitudes = np.maximum(np.where(bins < 0, bins + SIGN_BIN, bins) - LAST_SUBNORMAL_BIN, 0)
        if magnitudes.max() >= INFINITE_BIN:
            raise ValueError("the values hold a NaN or an infinity; a quantile sketch is of finite values")
        return added_up(np.where(bins < 0, -magnitudes, magnitudes).astype(np.int32), counts.astype(np.int64))

    def merge(self, other: QuantileSketch) -> QuantileSketch:
        """Returns the sketch of both sets of values."""
        return added_up(np.concatenate([self.bins, other.bins]), np.concatenate([self.counts, other.counts]))

    @property
    def count(self) -> int:
        return int(self.counts.sum())

    def without(self, value: float) -> QuantileSketch:
        """Returns the sketch of what is in other bins than a value."""
        others = self.bins != QuantileSketch.of(np.array([value], np.float64)).bins[0]
        return QuantileSketch(self.bins[others], self.counts[others])

    def quantile(self, q: float) -> float:
        return self.quantiles([q])[0]

    def quantiles(self, qs: Sequence[float]) -> list[float]:
        """Returns, for each q, the middle of the bin that holds the value of rank floor(q (count - 1)).

        That value is np.quantile's with method="lower". Raises ValueError where there is no value.
        """
        if not len(self.bins):
            raise ValueError("no values, so no quantiles")
        assert all(0 <= q <= 1 for q in qs)
        ends = self.counts.cumsum()
        ranks = [math.floor(q * (int(ends[-1]) - 1)) for q in qs]
        return [float(value) for value in self.middles()[np.searchsorted(ends, ranks, side="right")]]

    def middles(self) -> NDArray[np.float64]:
        """Returns each bin's middle, ascending, [B]; 0 for bin 0. With counts: a histogram of the values."""
        magnitudes = np.abs(self.bins).astype(np.int64) + LAST_SUBNORMAL_BIN
        middles = ((magnitudes << BIN_SHIFT) | (1 << (BIN_SHIFT - 1))).view(np.float64)
        return np.sign(self.bins) * middles

    def to_json(self) -> dict[str, list[int]]:
        return {"bins": self.bins.tolist(), "counts": self.counts.tolist()}

    @staticmethod
    def from_json(record: dict[str, list[int]]) -> QuantileSketch:
        return QuantileSketch(np.array(record["bins"], np.int32), np.array(record["counts"], np.int64))


def added_up(bins: NDArray[np.int32], counts: NDArray[np.int64]) -> QuantileSketch:
    """Returns the sketch with each bin once, sorted, and the sum of its counts."""
    if not len(bins):
        return QuantileSketch(bins, counts)
    order = np.argsort(bins, kind="stable")  # merges two sorted runs in one pass
    bins = bins[order]
    starts = np.flatnonzero(np.diff(bins, prepend=bins[0] - 1))
    return QuantileSketch(bins[starts], np.add.reduceat(counts[order], starts))


@dataclass(frozen=True, eq=False)
class DistinctSketch:
    """The number of distinct hashes, to a standard error of 1.6 %: HyperLogLog (Flajolet et al. 2007) of 64-bit hashes.

    registers: [4096], the largest rank (1 + leading zeros of the other 52 bits) of the hashes that begin with its number, or 0.
    """

    registers: NDArray[np.uint8]

    @staticmethod
    def of(hashes: NDArray[np.uint64]) -> DistinctSketch:
        """Returns the sketch of hashes [n], whose bits are taken to be evenly distributed."""
        seen = np.zeros((1 << REGISTER_BITS, 64), np.bool_)
        seen[:, 0] = True
        flat = seen.reshape(-1)
        for start in range(0, len(hashes), HASHES_AT_ONCE):
            block = hashes[start : start + HASHES_AT_ONCE]
            rest = (block & np.uint64((1 << 52) - 1)).view(np.int64)
            # 52 bits fit a float64's mantissa, so its exponent is the exact place of the first one: 1023 + place, or 0 without any.
            exponents = rest.astype(np.float64).view(np.int64) >> 52
            ranks = np.minimum(1023 + 52 - exponents, RANKS)
            flat[((block >> np.uint64(52)).view(np.int64) << 6) + ranks] = True
        return DistinctSketch((63 - np.argmax(seen[:, ::-1], axis=1)).astype(np.uint8))

    def merge(self, other: DistinctSketch) -> DistinctSketch:
        """Returns the sketch of both sets of hashes."""
        return DistinctSketch(np.maximum(self.registers, other.registers))

    def estimate(self) -> float:
        """Returns the estimated number of distinct hashes, by Ertl's formula (arXiv:1702.01284, algorithm 6).

        It replaces the 2007 estimate and its switch to linear counting, which is biased around the switch and takes a logarithm;
        this has neither threshold nor table, and its sums and square roots give the same bits on every machine.
        """
        num_registers = len(self.registers)
        numbers = [int(number) for number in np.bincount(self.registers, minlength=RANKS + 1)]
        total = num_registers * full_term(1 - numbers[RANKS] / num_registers)
        for number in reversed(numbers[1:RANKS]):
            total = 0.5 * (total + number)
        total += num_registers * empty_term(numbers[0] / num_registers)
        return 0.7213475204444817 * num_registers * num_registers / total  # 1 / (2 ln 2)


def empty_term(share: float) -> float:
    """Returns x + sum of x^(2^k) 2^(k-1) over k >= 1: Ertl's sigma, for the share x of empty registers."""
    if share == 1:
        return math.inf
    power, weight, total, before = share, 1.0, share, -1.0
    while total != before:
        power, before = power * power, total
        total, weight = total + power * weight, 2 * weight
    return total


def full_term(share: float) -> float:
    """Returns (1 - x - sum of (1 - x^(2^-k))^2 2^-k over k >= 1) / 3: Ertl's tau, for the share x of registers that are not full."""
    if share in (0, 1):
        return 0.0
    root, weight, total, before = share, 1.0, 1 - share, -1.0
    while total != before:
        root, weight, before = math.sqrt(root), 0.5 * weight, total
        total -= (1 - root) * (1 - root) * weight
    return total / 3
