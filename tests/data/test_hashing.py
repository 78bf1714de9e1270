"""Claims about data.hashing: a value has one hash for ever, however it is stored, cut and worked through."""

from __future__ import annotations

import math
import tracemalloc
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from data import hashing
from data.hashing import BYTE_TABLE, INTEGER_KEY, POWER, hash_integers, hash_values

int64s = st.integers(-(2**63), 2**63 - 1)
# Surrogates are no text: Arrow stores UTF-8.
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
block_sizes = st.one_of(st.integers(1, 30), st.just(hashing.BLOCK_BYTES))
TEXT_TYPES = [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string()), pa.dictionary(pa.int8(), pa.large_string())]


def stored(values: Any, kind: pa.DataType) -> pa.Array:
    return pa.array(values, kind.value_type if pa.types.is_dictionary(kind) else kind).cast(kind)


def hashes(values: Any, kind: pa.DataType, block_bytes: int = hashing.BLOCK_BYTES) -> NDArray[np.uint64]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hashing, "BLOCK_BYTES", block_bytes)
        return hash_values(values if isinstance(values, pa.Array) else stored(values, kind))


def uniform_chi_square(hashed: NDArray[np.uint64], num_cells: int = 64) -> float:
    """Returns (chi-square - degrees of freedom) / its standard deviation, over equal cells of [0, 2^64)."""
    counts = np.bincount((hashed >> np.uint64(64 - int(math.log2(num_cells)))).astype(np.int64), minlength=num_cells)
    expected = len(hashed) / num_cells
    return float((((counts - expected) ** 2 / expected).sum() - (num_cells - 1)) / math.sqrt(2 * (num_cells - 1)))


@pytest.mark.parametrize(
    ("kind", "values", "expected"),
    [
        (pa.int64(), [0, 1, -1, 2**63 - 1], [0xF598333D8025F6C3, 0xB53BB8DFC604D611, 0x0A08076432BB3EF3, 0x9B7C436050FB29B9]),
        (pa.uint64(), [2**64 - 1], [0x0A08076432BB3EF3]),
        (
            pa.string(),
            ["", "a", "b", "ab", "ba", "größe", "user-000017"],
            [
                0xFFDAF7D4CA8A1B9A,
                0x07D1A95D521FEB39,
                0xC6C223A43A008671,
                0xBF758E658336288D,
                0x1951CD3A55EB7CFF,
                0xF1252CD8EDF3D2B5,
                0x08F28DEB8984E1EB,
            ],
        ),
    ],
)
def test_the_hash_is_frozen(kind: pa.DataType, values: list[Any], expected: list[int]) -> None:
    """Another number here moves rows between training and validation for every model that was ever trained."""
    assert [hex(value) for value in hashes(values, kind).tolist()] == [hex(value) for value in expected]


def splitmix(x: int) -> int:
    """The finaliser of Steele et al. 2014, in Python's integers."""
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
    return x ^ (x >> 31)


def polynomial(content: bytes) -> int:
    """The definition of a text's hash, in Python's integers."""
    total = sum(int(BYTE_TABLE[byte]) * pow(int(POWER), place + 1, 2**64) for place, byte in enumerate(content)) % 2**64
    return splitmix(total ^ splitmix(len(content) ^ int(INTEGER_KEY)))


@given(values=st.lists(int64s, max_size=10))
def test_integers_are_hashed_by_splitmix64(values: list[int]) -> None:
    assert hashes(values, pa.int64()).tolist() == [splitmix(value % 2**64 ^ int(INTEGER_KEY)) for value in values]


@given(values=st.lists(int64s, max_size=10), key=st.integers(0, 2**64 - 1))
def test_another_key_gives_another_hash_of_integers(values: list[int], key: int) -> None:
    found = hash_integers(np.array(values, np.int64), np.uint64(key)).tolist()
    assert found == [splitmix(value % 2**64 ^ key) for value in values]


@given(values=st.lists(texts, max_size=10), block_bytes=block_sizes)
def test_strings_are_hashed_by_a_polynomial_of_their_bytes(values: list[str], block_bytes: int) -> None:
    assert hashes(values, pa.string(), block_bytes).tolist() == [polynomial(value.encode()) for value in values]


@pytest.mark.parametrize("block_bytes", [1, 2, 7, 64, 99, 100, 101, hashing.BLOCK_BYTES])
def test_a_string_longer_than_the_block_is_hashed_in_pieces_without_a_trace(block_bytes: int) -> None:
    values = ["", "x" * 100, "", "", "short", "y" * 199 + "z", "b", "x" * 99, ""]
    assert hashes(values, pa.string(), block_bytes).tolist() == [polynomial(value.encode()) for value in values]


@given(
    before=st.lists(texts, max_size=8),
    values=st.lists(texts, max_size=8),
    after=st.lists(texts, max_size=8),
    kind=st.sampled_from([*TEXT_TYPES, pa.large_binary()]),
    block_bytes=block_sizes,
)
def test_the_hash_of_a_slice_is_the_slice_of_the_hash(
    before: list[str], values: list[str], after: list[str], kind: pa.DataType, block_bytes: int
) -> None:
    plain = pa.array(before + values + after, pa.string())
    sliced = plain.cast(kind).slice(len(before), len(values))
    assert (hashes(sliced, kind, block_bytes) == hashes(values, pa.string())).all()


@given(values=st.lists(texts, max_size=30), cuts=st.lists(st.integers(0, 30), max_size=4), block_bytes=block_sizes)
def test_the_hash_does_not_depend_on_how_the_values_are_cut(values: list[str], cuts: list[int], block_bytes: int) -> None:
    edges = [0, *sorted(min(cut, len(values)) for cut in cuts), len(values)]
    apart = [hashes(values[a:b], pa.string(), block_bytes) for a, b in pairwise(edges)]
    assert (np.concatenate(apart) == hashes(values, pa.string())).all()


@given(values=st.lists(st.integers(0, 127), min_size=1, max_size=20))
def test_the_width_of_integers_does_not_matter(values: list[int]) -> None:
    expected = hashes(values, pa.int64())
    for kind in (pa.int8(), pa.int16(), pa.int32(), pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64()):
        assert (hashes(values, kind) == expected).all()
        assert (hash_values(pa.array(values, kind).dictionary_encode()) == expected).all()


@given(values=st.lists(texts, min_size=1, max_size=20))
def test_the_storage_of_strings_does_not_matter(values: list[str]) -> None:
    expected = hashes(values, pa.string())
    for kind in TEXT_TYPES:
        assert (hashes(values, kind) == expected).all()
    for kind in (pa.binary(), pa.large_binary()):
        assert (hashes([value.encode() for value in values], kind) == expected).all()


@given(
    dictionary=st.lists(texts, min_size=1, max_size=30, unique=True),
    picks=st.lists(st.integers(0, 29), max_size=12),
    index=st.sampled_from([pa.int8(), pa.uint16(), pa.int64()]),
)
def test_a_dictionary_longer_than_its_rows_gives_the_hashes_of_the_rows(
    dictionary: list[str], picks: list[int], index: pa.DataType
) -> None:
    """Arrow gives every slice of a row group the texts of all slices before it."""
    indices = [pick % len(dictionary) for pick in picks]
    array = pa.DictionaryArray.from_arrays(pa.array(indices, index), pa.array(dictionary))
    assert hashes(array, array.type).tolist() == hashes([dictionary[i] for i in indices], pa.string()).tolist()


@pytest.mark.parametrize("kind", [*TEXT_TYPES, pa.int16(), pa.uint64(), pa.large_binary()], ids=str)
def test_no_values_have_no_hashes(kind: pa.DataType) -> None:
    nothing = [stored([], kind), pa.nulls(0, kind), pa.chunked_array([], kind).combine_chunks()]
    assert [hash_values(array).tolist() for array in nothing] == [[]] * 3


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()], ids=str)
def test_no_values_may_have_no_offsets(kind: pa.DataType) -> None:
    """Arrow allows an empty array without offsets."""
    empty = pa.py_buffer(b"")
    assert hash_values(pa.Array.from_buffers(kind, 0, [None, empty, empty])).tolist() == []


@pytest.mark.parametrize(
    "array", [pa.array([1.0]), pa.array([True]), pa.array([[1]]), pa.array([0], pa.timestamp("s")), pa.array([1.5]).dictionary_encode()]
)
def test_values_that_identify_nothing_are_refused_by_type(array: pa.Array) -> None:
    with pytest.raises(TypeError, match=r"values of type .* are not hashed; integers and strings are"):
        hash_values(array)


@given(values=st.lists(int64s, min_size=1, max_size=20, unique=True))
def test_different_integers_have_different_hashes(values: list[int]) -> None:
    assert len(set(hashes(values, pa.int64()).tolist())) == len(values)


def test_short_strings_do_not_collide() -> None:
    short = [""] + [chr(a) for a in range(1, 128)] + [chr(a) + chr(b) for a in range(1, 128) for b in range(1, 128)]
    longer = [f"{i:x}" for i in range(16**3, 16**3 + 200_000)] + ["\0" * n for n in range(1, 300)] + ["ab" * n for n in range(2, 100)]
    values = sorted({*short, *longer})
    assert len(np.unique(hashes(values, pa.string()))) == len(values)


def test_strings_of_the_same_bytes_in_another_order_do_not_collide() -> None:
    values = ["x" * i + "y" + "x" * (4096 - i) for i in range(4097)]
    assert len(np.unique(hashes(values, pa.string()))) == len(values)


@pytest.mark.parametrize("name", ["sequential", "multiples of 1024", "high bits", "numbered", "padded"])
def test_regular_keys_are_spread_evenly(name: str) -> None:
    n = 50_000
    hashed = {
        "sequential": lambda: hashes(np.arange(n), pa.int64()),
        "multiples of 1024": lambda: hashes(np.arange(n) * 1024, pa.int64()),
        "high bits": lambda: hashes(np.arange(n) << 40, pa.int64()),
        "numbered": lambda: hashes([f"user-{i}" for i in range(n)], pa.string()),
        "padded": lambda: hashes([f"{i:09d}" for i in range(n)], pa.string()),
    }[name]()
    assert_even(hashed)


def assert_even(hashed: NDArray[np.uint64]) -> None:
    """Fails where the hashes, the differences of neighbours or every other hash are spread unevenly, by 5 standard deviations."""
    for part in (hashed, hashed[1:] ^ hashed[:-1], hashed[::2]):
        assert abs(uniform_chi_square(part)) < 5


def test_places_in_a_file_are_spread_evenly() -> None:
    assert_even(hash_integers(np.arange(50_000), np.uint64(0x0123456789ABCDEF)))


def test_the_measure_of_evenness_can_fail() -> None:
    assert uniform_chi_square(np.arange(50_000, dtype=np.uint64) << np.uint64(45)) > 100
    assert uniform_chi_square(np.arange(50_000, dtype=np.uint64)) > 100


@pytest.mark.parametrize(
    "lengths", [[2**22], [2**12] * 2**10, [1] * 2**10 + [2**22]], ids=["one text", "many texts", "one long among short"]
)
def test_memory_is_that_of_a_block_and_not_of_the_text(lengths: list[int]) -> None:
    array = pa.array(["x" * length for length in lengths])
    tracemalloc.start()
    try:
        hash_values(array)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 60 * hashing.BLOCK_BYTES + 100 * len(lengths) < 30 * sum(lengths)
