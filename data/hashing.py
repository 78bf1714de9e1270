"""64-bit hashes of keys, the same on every machine and for ever: they decide on which side of a split a row is."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data.types import is_text

Hashes = NDArray[np.uint64]

# Numbers of our own, fixed for ever: another number would move rows between the sides of every model's split.
INTEGER_KEY = np.uint64(0x9AE16A3B2F90404F)
BYTE_TABLE = np.random.Generator(np.random.Philox(key=20260101)).integers(0, 2**64, 256, dtype=np.uint64)
POWER = np.uint64(0x9E3779B97F4A7C15)
# Bytes of text that are hashed at once: what they take on the way is 30 times as much, which should fit the cache (measured: half
# the time of 2^22).
BLOCK_BYTES = 2**18


def mix(x: Hashes) -> Hashes:
    """Returns the splitmix64 finaliser of x (Steele et al. 2014): every input bit moves every output bit."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def hash_integers(values: NDArray[np.int64], key: np.uint64 = INTEGER_KEY) -> Hashes:
    return mix(values.view(np.uint64) ^ key)


def hash_strings(values: pa.LargeBinaryArray) -> Hashes:
    """Returns a 64-bit hash per string: random numbers of its bytes, times powers of an odd number by place, mixed."""
    offsets = np.frombuffer(values.buffers()[1], np.int64, len(values) + 1, values.offset * 8)
    buffer = values.buffers()[2]
    content = np.frombuffer(buffer, np.uint8) if buffer is not None else np.zeros(0, np.uint8)
    lengths = np.diff(offsets)
    sums = np.zeros(len(values), np.uint64)
    first = 0
    while first < len(values):
        last = max(first + 1, int(np.searchsorted(offsets, offsets[first] + BLOCK_BYTES, "right")) - 1)
        begin, end = int(offsets[first]), int(offsets[last])
        for piece in range(begin, end, BLOCK_BYTES):  # more than one piece only where the block is one long string
            terms = sums_of_terms(content[piece : min(piece + BLOCK_BYTES, end)], offsets[first : last + 1] - piece)
            sums[first:last] += terms * np.uint64(pow(int(POWER), piece - begin, 2**64))
        first = last
    return mix(sums ^ mix(lengths.astype(np.uint64) ^ INTEGER_KEY))


def sums_of_terms(content: NDArray[np.uint8], offsets: NDArray[np.int64]) -> Hashes:
    """Returns, for each string between offsets, the sum of its bytes' numbers times the powers of their places in it."""
    inside = offsets.clip(0, len(content))
    lengths = np.diff(inside)
    places = np.arange(len(content)) - np.repeat(inside[:-1], lengths)
    powers = np.full(int(lengths.max(initial=0)) + 1, POWER, np.uint64).cumprod(dtype=np.uint64)
    terms = np.concatenate([np.zeros(1, np.uint64), (BYTE_TABLE[content] * powers[places]).cumsum(dtype=np.uint64)])
    sums: Hashes = terms[inside[1:]] - terms[inside[:-1]]
    return sums


def hash_values(array: pa.Array) -> Hashes:
    """Returns the hash of each value of an array of integers or strings without nulls. Raises TypeError for other types."""
    if pa.types.is_dictionary(array.type):
        # Each distinct text is hashed once; a long one that occurs often is never expanded.
        indices = array.indices.to_numpy(zero_copy_only=False)
        dictionary = array.dictionary
        if len(dictionary) > len(array):  # slices of a row group come with the dictionary of all slices before
            used, indices = np.unique(indices, return_inverse=True)
            dictionary = dictionary.take(pa.array(used))
        hashes: Hashes = hash_values(dictionary)[indices]
        return hashes
    if pa.types.is_integer(array.type):
        unsigned = array.type == pa.uint64()
        return hash_integers(
            array.to_numpy(zero_copy_only=False).view(np.int64) if unsigned else array.cast(pa.int64()).to_numpy(zero_copy_only=False)
        )
    if is_text(array.type) or pa.types.is_binary(array.type) or pa.types.is_large_binary(array.type):
        return hash_strings(array.cast(pa.large_binary()))
    raise TypeError(f"values of type {array.type} are not hashed; integers and strings are")
