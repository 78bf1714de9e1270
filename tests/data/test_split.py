"""Claims about data.split: a row's side follows from its key's value, or its place, and from nothing else."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from data.split import BYTE_TABLE, INTEGER_KEY, POWER, TEST, TRAIN, VALIDATION, hash_key_column, hash_places, split_of, split_rows, take
from data.table import DataError, RowGroup

int64s = st.integers(-(2**63), 2**63 - 1)
# Surrogates are no text: Arrow stores UTF-8.
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
TEXT_TYPES = [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string()), pa.dictionary(pa.int8(), pa.large_string())]


def hashes(values: Any, kind: pa.DataType) -> NDArray[np.uint64]:
    plain = pa.array(values, kind.value_type if pa.types.is_dictionary(kind) else kind)
    return hash_key_column(pa.chunked_array([plain.cast(kind)]), "here")


def group(identity: str = "0123456789abcdef", first_row: int = 0, num_rows: int = 100) -> RowGroup:
    return RowGroup("folder/file.parquet", identity, 0, first_row, num_rows)


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


def test_the_hash_of_places_is_frozen() -> None:
    assert [hex(value) for value in hash_places(group(first_row=5, num_rows=2)).tolist()] == ["0x1225a54271d70c75", "0x2870956ec7d3fcc7"]


def test_sides_are_frozen() -> None:
    sides = split_rows(pa.table({"id": [f"user-{i}" for i in range(30)]}), group(), "id", (0.2, 0.2))
    assert "".join("tvT"[side] for side in sides) == "vttttvvttTvTtttvttTvTtttttttvv"


def splitmix(x: int) -> int:
    """The finaliser of Steele et al. 2014, in Python's integers."""
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
    return x ^ (x >> 31)


@given(values=st.lists(int64s, max_size=10))
def test_integers_are_hashed_by_splitmix64(values: list[int]) -> None:
    assert hashes(values, pa.int64()).tolist() == [splitmix(value % 2**64 ^ int(INTEGER_KEY)) for value in values]


@given(values=st.lists(texts, max_size=10))
def test_strings_are_hashed_by_a_polynomial_of_their_bytes(values: list[str]) -> None:
    table, power = BYTE_TABLE.tolist(), int(POWER)
    expected = []
    for content in (value.encode() for value in values):
        polynomial = sum(table[byte] * power ** (place + 1) for place, byte in enumerate(content)) % 2**64
        expected.append(splitmix(polynomial ^ splitmix(len(content) ^ int(INTEGER_KEY))))
    assert hashes(values, pa.string()).tolist() == expected


@given(values=st.lists(texts, max_size=30), cuts=st.lists(st.integers(0, 30), max_size=4))
def test_the_hash_does_not_depend_on_blocks(values: list[str], cuts: list[int]) -> None:
    whole = hashes(values, pa.string())
    edges = [0, *sorted(min(cut, len(values)) for cut in cuts), len(values)]
    apart = [hashes(values[a:b], pa.string()) for a, b in pairwise(edges)]
    assert (np.concatenate(apart) == whole).all()
    chunks = [pa.array(values[a:b], pa.string()) for a, b in pairwise(edges)]
    assert (hash_key_column(pa.chunked_array(chunks, pa.string()), "here") == whole).all()


@given(
    before=st.lists(texts, max_size=8),
    values=st.lists(texts, max_size=8),
    after=st.lists(texts, max_size=8),
    kind=st.sampled_from([*TEXT_TYPES, pa.large_binary()]),
)
def test_the_hash_of_a_slice_is_the_slice_of_the_hash(before: list[str], values: list[str], after: list[str], kind: pa.DataType) -> None:
    plain = kind.value_type if pa.types.is_dictionary(kind) else pa.string()
    sliced = pa.array(before + values + after, plain).cast(kind).slice(len(before), len(values))
    assert (hash_key_column(pa.chunked_array([sliced]), "here") == hashes(values, pa.string())).all()


@given(order=st.permutations(range(20)))
def test_the_split_does_not_depend_on_row_order(order: list[int]) -> None:
    keys = [f"key {i}" for i in range(20)]
    assert (hashes([keys[i] for i in order], pa.string()) == hashes(keys, pa.string())[order]).all()


def test_the_split_of_keyed_rows_does_not_depend_on_the_file() -> None:
    table = pa.table({"id": np.arange(100)})
    one = split_rows(table, group("0" * 64), "id", (0.3, 0.2))
    two = split_rows(table, RowGroup("other.parquet", "f" * 64, 3, 1000, 100), "id", (0.3, 0.2))
    assert (one == two).all()


@given(values=st.lists(st.integers(0, 127), min_size=1, max_size=20))
def test_the_width_of_integers_does_not_matter(values: list[int]) -> None:
    expected = hashes(values, pa.int64())
    for kind in (pa.int8(), pa.int16(), pa.int32(), pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64()):
        assert (hashes(values, kind) == expected).all()
    coded = pa.array(values, pa.int32()).dictionary_encode()
    assert (hash_key_column(pa.chunked_array([coded]), "here") == expected).all()


@given(values=st.lists(int64s, min_size=1, max_size=20, unique=True))
def test_different_integers_have_different_hashes(values: list[int]) -> None:
    assert len(set(hashes(values, pa.int64()).tolist())) == len(values)


@given(values=st.lists(texts, min_size=1, max_size=20))
def test_the_storage_of_strings_does_not_matter(values: list[str]) -> None:
    expected = hashes(values, pa.string())
    for kind in TEXT_TYPES:
        assert (hashes(values, kind) == expected).all()
    for kind in (pa.binary(), pa.large_binary()):
        assert (hashes([value.encode() for value in values], kind) == expected).all()


def test_short_strings_do_not_collide() -> None:
    short = [""] + [chr(a) for a in range(1, 128)] + [chr(a) + chr(b) for a in range(1, 128) for b in range(1, 128)]
    longer = [f"{i:x}" for i in range(16**3, 16**3 + 200_000)] + ["\0" * n for n in range(1, 300)] + ["ab" * n for n in range(2, 100)]
    values = sorted({*short, *longer})
    assert len(np.unique(hashes(values, pa.string()))) == len(values)


def test_strings_of_the_same_bytes_in_another_order_do_not_collide() -> None:
    values = ["x" * i + "y" + "x" * (4096 - i) for i in range(4097)]
    assert len(np.unique(hashes(values, pa.string()))) == len(values)


@pytest.mark.parametrize("name", ["sequential", "multiples of 1024", "high bits", "numbered", "padded", "places"])
def test_regular_keys_are_spread_evenly(name: str) -> None:
    n = 50_000
    hashed = {
        "sequential": lambda: hashes(np.arange(n), pa.int64()),
        "multiples of 1024": lambda: hashes(np.arange(n) * 1024, pa.int64()),
        "high bits": lambda: hashes(np.arange(n) << 40, pa.int64()),
        "numbered": lambda: hashes([f"user-{i}" for i in range(n)], pa.string()),
        "padded": lambda: hashes([f"{i:09d}" for i in range(n)], pa.string()),
        "places": lambda: hash_places(group(num_rows=n)),
    }[name]()
    assert abs(uniform_chi_square(hashed)) < 5
    neighbours = hashed[1:] ^ hashed[:-1]
    assert abs(uniform_chi_square(neighbours)) < 5
    parity = hashed[np.arange(0, n, 2)]
    assert abs(uniform_chi_square(parity)) < 5


def test_the_measure_of_evenness_can_fail() -> None:
    assert uniform_chi_square(np.arange(50_000, dtype=np.uint64) << np.uint64(45)) > 100
    assert uniform_chi_square(np.arange(50_000, dtype=np.uint64)) > 100


@pytest.mark.parametrize("fractions", [(0.1, 0.0), (0.25, 0.25), (0.0, 0.3), (0.5, 0.5), (0.001, 0.002)])
def test_fractions_hold_up_to_sampling_error(fractions: tuple[float, float]) -> None:
    n = 200_000
    sides = split_of(hashes(np.arange(n), pa.int64()), *fractions)
    for side, fraction in ((VALIDATION, fractions[0]), (TEST, fractions[1]), (TRAIN, 1 - sum(fractions))):
        error = abs((sides == side).mean() - fraction)
        assert error <= 5 * math.sqrt(fraction * (1 - fraction) / n)


def test_fractions_of_zero_and_one_are_exact() -> None:
    hashed = np.array([0, 1, 2**63, 2**64 - 1], np.uint64)
    assert (split_of(hashed, 0.0, 0.0) == TRAIN).all()
    assert (split_of(hashed, 1.0, 0.0) == VALIDATION).all()
    assert (split_of(hashed, 0.0, 1.0) == TEST).all()


def test_a_test_side_takes_no_row_from_validation() -> None:
    hashed = hashes(np.arange(10_000), pa.int64())
    without, with_test = split_of(hashed, 0.1, 0.0), split_of(hashed, 0.1, 0.2)
    assert ((without == VALIDATION) == (with_test == VALIDATION)).all()
    assert (with_test == TEST).any()


def null_in_dictionary() -> pa.Array:
    return pa.DictionaryArray.from_arrays(pa.array([0, 1, 0]), pa.array(["a", None]))


@pytest.mark.parametrize(
    "keys", [pa.array([1, None, 3]), pa.array(["a", None, "b"]), pa.array(["a", None]).dictionary_encode(), null_in_dictionary()]
)
def test_a_null_key_is_refused_by_file_and_column(keys: pa.Array) -> None:
    with pytest.raises(DataError, match=r"folder/file\.parquet: column 'id': the key column has 1 nulls"):
        split_rows(pa.table({"id": keys}), group(num_rows=len(keys)), "id", (0.1, 0.1))


@pytest.mark.parametrize("keys", [pa.array([1.0]), pa.array([True]), pa.array([[1]]), pa.array([0], pa.timestamp("s"))])
def test_a_key_that_identifies_nothing_is_refused_by_file_and_column(keys: pa.Array) -> None:
    with pytest.raises(DataError, match=r"folder/file\.parquet: column 'id': the key column is .*; a key is an integer or a string"):
        split_rows(pa.table({"id": keys}), group(num_rows=1), "id", (0.1, 0.1))


@given(num_rows=st.integers(0, 60), cut=st.integers(0, 60))
def test_rows_without_a_key_go_by_their_place_in_the_file_and_not_by_row_groups(num_rows: int, cut: int) -> None:
    cut = min(cut, num_rows)
    whole = split_rows(pa.table({}), group(num_rows=num_rows), None, (0.3, 0.3))
    parts = [group(num_rows=cut), group(first_row=cut, num_rows=num_rows - cut)]
    assert (np.concatenate([split_rows(pa.table({}), part, None, (0.3, 0.3)) for part in parts]) == whole).all()


def test_rows_without_a_key_depend_on_the_content_of_their_file_and_not_on_its_path() -> None:
    here = hash_places(group("a" * 64))
    moved = hash_places(RowGroup("moved.parquet", "a" * 64, 0, 0, 100))
    other = hash_places(group("b" * 64))
    assert (here == moved).all()
    assert not np.isin(here, other).any()


@given(mask=st.lists(st.booleans(), max_size=20))
def test_take_gives_the_rows_of_the_mask(mask: list[bool]) -> None:
    table = pa.table({"a": pa.array(range(len(mask)), pa.int64())})
    assert take(table, np.array(mask, np.bool_))["a"].to_pylist() == [i for i, taken in enumerate(mask) if taken]
