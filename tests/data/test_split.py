"""Claims about data.split: a row's side follows from its key's value, or its place, and from nothing else."""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from data import reading, slicing
from data.hashing import hash_values
from data.listing import DataError
from data.reading import RowReader
from data.split import (
    TEST,
    TRAIN,
    VALIDATION,
    SplitRule,
    hash_key_column,
    hash_places,
    knows_rows,
    row_hashes,
    split_of,
    split_rows,
    take,
)
from data.table import RowGroup, open_table

FRACTIONS = (0.3, 0.2)

# Surrogates are no text: Arrow stores UTF-8.
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
TEXT_TYPES = [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string()), pa.dictionary(pa.int8(), pa.large_string())]


def group(identity: str = "0123456789abcdef", first_row: int = 0, num_rows: int = 100) -> RowGroup:
    return RowGroup("folder/file.parquet", identity, 0, first_row, num_rows)


def sides_of_keys(keys: Sequence[Any], fractions: tuple[float, float] = FRACTIONS) -> dict[Any, int]:
    """Returns key -> side, of keys as they lie in memory."""
    return dict(zip(keys, split_of(hash_values(pa.array(keys)), *fractions).tolist(), strict=True))


def read_sides(path: Path, key: str | None, max_bytes: int = reading.MAX_BATCH_BYTES) -> list[tuple[Any, int]]:
    """Returns (key, side), or (file and position, side), of every row of the table at a path, as slices come."""
    table = open_table(str(path))
    names = [key] if key is not None else ["x"]
    found: list[tuple[Any, int]] = []
    with RowReader(table.filesystem, pa.schema([table.schema.field(name) for name in names]), max_bytes) as reader:
        for whole in table.row_groups():
            for part, rows in reader.slices(whole):
                sides = split_rows(rows, part, key, FRACTIONS).tolist()
                places = range(part.first_row, part.first_row + part.num_rows)
                rows_named = rows[key].to_pylist() if key is not None else [(part.identity, place) for place in places]
                found += zip(rows_named, sides, strict=True)
    return found


def write(path: Path, table: pa.Table, row_group_size: int = 1000, use_dictionary: bool = False) -> None:
    """Writes small pages, so that small budgets can slice them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=row_group_size, data_page_size=64, write_batch_size=4, use_dictionary=use_dictionary)


def test_sides_are_frozen() -> None:
    """Another side here moves rows between training and validation for every model that was ever trained."""
    sides = split_rows(pa.table({"id": [f"user-{i}" for i in range(30)]}), group(), "id", (0.2, 0.2))
    assert "".join("tvT"[side] for side in sides) == "vttttvvttTvTtttvttTvTtttttttvv"


def test_the_hash_of_places_is_frozen() -> None:
    assert [hex(value) for value in hash_places(group(first_row=5, num_rows=2)).tolist()] == ["0x1225a54271d70c75", "0x2870956ec7d3fcc7"]


@pytest.mark.parametrize("hash_seed", ["0", "1"])
def test_another_process_and_another_hash_seed_give_the_same_sides(hash_seed: str) -> None:
    program = (
        "import pyarrow as pa; from data.split import split_rows; from data.table import RowGroup;"
        "print(split_rows(pa.table({'id': [f'user-{i}' for i in range(30)]}), RowGroup('', '0' * 64, 0, 0, 30), 'id', (0.2, 0.2)).tolist())"
    )
    environment = os.environ | {"PYTHONHASHSEED": hash_seed, "PYTHONPATH": os.getcwd()}
    printed = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True).stdout
    assert printed.strip() == str(["tvT".index(side) for side in "vttttvvttTvTtttvttTvTtttttttvv"])


KEYS = [f"user-{i * 7919 % 3001:05d}" for i in range(300)]
INTEGER_KEYS = [i * 37 % 101 + 7 for i in range(101)]


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same 300 rows in several layouts, one folder each."""
    root = tmp_path_factory.mktemp("keyed")
    whole = pa.table({"id": KEYS, "x": np.arange(300.0)})
    write(root / "one" / "a.parquet", whole)
    write(root / "row groups" / "a.parquet", whole, row_group_size=7)
    for index, (begin, end) in enumerate(pairwise([0, 1, 90, 300])):
        write(root / "files" / f"{index}.parquet", whole.slice(begin, end - begin), row_group_size=50)
        write(root / "files the other way round" / f"{9 - index}.parquet", whole.slice(begin, end - begin))
    write(root / "dictionary pages" / "a.parquet", whole, row_group_size=20, use_dictionary=True)
    write(root / "dictionaries" / "a.parquet", whole.set_column(0, "id", whole["id"].dictionary_encode()), row_group_size=110)
    write(root / "large strings" / "a.parquet", whole.set_column(0, "id", whole["id"].cast(pa.large_string())))
    write(root / "another order of rows" / "a.parquet", whole.take(np.random.default_rng(1).permutation(300)))
    return root


LAYOUTS = ["one", "row groups", "files", "files the other way round", "dictionary pages", "dictionaries", "large strings"]
SMALL_BYTES = 400


@pytest.mark.parametrize("max_bytes", [reading.MAX_BATCH_BYTES, SMALL_BYTES])
@pytest.mark.parametrize("layout", [*LAYOUTS, "another order of rows"])
def test_a_keyed_rows_side_does_not_depend_on_files_row_groups_slices_or_storage(keyed: Path, layout: str, max_bytes: int) -> None:
    found = read_sides(keyed / layout, "id", max_bytes)
    assert dict(found) == sides_of_keys(KEYS)
    assert len(found) == 300
    assert set(dict(found).values()) == {TRAIN, VALIDATION, TEST}


def test_the_small_budget_makes_slices(keyed: Path) -> None:
    table = open_table(str(keyed / "one"))
    (whole,) = table.row_groups()
    with RowReader(table.filesystem, pa.schema([table.schema.field("id")]), SMALL_BYTES) as reader:
        parts = [part for part, _ in reader.slices(whole)]
    assert len(parts) > 2
    assert [part.first_row for part in parts] == [0, *np.cumsum([part.num_rows for part in parts])[:-1]]


@pytest.mark.parametrize("kind", [pa.int8(), pa.uint8(), pa.int32(), pa.uint32(), pa.int64(), pa.uint64()], ids=str)
def test_a_keyed_rows_side_does_not_depend_on_the_width_of_integers(tmp_path: Path, kind: pa.DataType) -> None:
    write(tmp_path / "a.parquet", pa.table({"id": pa.array(INTEGER_KEYS, kind)}), row_group_size=40)
    assert dict(read_sides(tmp_path, "id")) == sides_of_keys(INTEGER_KEYS)


def test_a_keyed_rows_side_does_not_change_when_a_file_widens_the_key(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", pa.table({"id": pa.array(INTEGER_KEYS, pa.int8())}))
    before = dict(read_sides(tmp_path, "id"))
    write(tmp_path / "b.parquet", pa.table({"id": pa.array([2**40, -5], pa.int64())}))
    assert open_table(str(tmp_path)).schema.field("id").type == pa.int64()
    assert before.items() <= dict(read_sides(tmp_path, "id")).items()


@pytest.mark.parametrize("key", ["id", None])
def test_a_rows_side_does_not_change_when_files_are_added_or_removed(tmp_path: Path, key: str | None) -> None:
    whole = pa.table({"id": [f"row {i}" for i in range(120)], "x": np.arange(120.0)})
    before: dict[Any, int] = {}
    for name, begin in (("m", 0), ("a", 40), ("z", 80)):  # the later ones sort before and after the first
        write(tmp_path / f"{name}.parquet", whole.slice(begin, 40), row_group_size=13)
        after = dict(read_sides(tmp_path, key))
        assert len(after) == begin + 40
        assert before.items() <= after.items()
        before = after
    (tmp_path / "m.parquet").unlink()
    left = dict(read_sides(tmp_path, key))
    assert len(left) == 80
    assert left.items() <= before.items()


@pytest.mark.parametrize("rows_per_slice", [1, 3, 11, 10**6])
def test_without_a_key_a_rows_side_is_that_of_its_place_whatever_the_slices(
    tmp_path: Path, rows_per_slice: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slicing, "SLICE_ROWS", rows_per_slice)
    for name in ("a", "b"):
        write(tmp_path / f"{name}.parquet", pa.table({"x": [f"{name}{i}" for i in range(50)]}), row_group_size=17)
    found = read_sides(tmp_path, None)
    files = open_table(str(tmp_path)).files
    expected = {
        (file.identity, place): side
        for file in files
        for place, side in enumerate(split_of(hash_places(group(file.identity, 0, 50)), *FRACTIONS).tolist())
    }
    assert dict(found) == expected
    assert len(found) == 100


def test_without_a_key_a_copied_or_renamed_file_keeps_its_rows_sides(tmp_path: Path) -> None:
    write(tmp_path / "here" / "a.parquet", pa.table({"x": np.arange(60)}))
    (tmp_path / "there" / "year=2024").mkdir(parents=True)
    shutil.copy(tmp_path / "here" / "a.parquet", tmp_path / "there" / "year=2024" / "renamed.parquet")
    assert read_sides(tmp_path / "here", None) == read_sides(tmp_path / "there", None)


def test_without_a_key_two_files_have_sides_of_their_own() -> None:
    here, there = hash_places(group("a" * 64)), hash_places(group("b" * 64))
    assert not np.isin(here, there).any()


@given(num_rows=st.integers(0, 60), cuts=st.lists(st.integers(0, 60), max_size=4))
def test_without_a_key_rows_go_by_their_place_in_the_file_and_not_in_the_slice(num_rows: int, cuts: list[int]) -> None:
    edges = [0, *sorted(min(cut, num_rows) for cut in cuts), num_rows]
    whole = split_rows(pa.table({}), group(num_rows=num_rows), None, (0.3, 0.3))
    parts = [split_rows(pa.table({}), group(first_row=a, num_rows=b - a), None, (0.3, 0.3)) for a, b in pairwise(edges)]
    assert (np.concatenate(parts) == whole).all()


@given(
    values=st.lists(texts, max_size=30),
    cuts=st.lists(st.integers(0, 30), max_size=4),
    kinds=st.sampled_from(TEXT_TYPES),
)
def test_keys_in_chunks_have_the_hashes_of_their_values(values: list[str], cuts: list[int], kinds: pa.DataType) -> None:
    edges = [0, *sorted(min(cut, len(values)) for cut in cuts), len(values)]
    chunks = [pa.array(values[a:b], pa.string()).cast(kinds) for a, b in pairwise(edges)]
    found = hash_key_column(pa.chunked_array(chunks, kinds), group(), "id")
    assert found.tolist() == hash_values(pa.array(values, pa.string())).tolist()


def test_chunks_whose_dictionaries_do_not_fit_one_index_type_are_hashed() -> None:
    """Pandas writes categories with int8 indices; two files of 100 have more than int8 counts."""
    kind = pa.dictionary(pa.int8(), pa.string())
    values = [f"{letter}{i}" for letter in "ab" for i in range(100)]
    column = pa.chunked_array([pa.array(values[:100]).cast(kind), pa.array(values[100:]).cast(kind)])
    assert (hash_key_column(column, group(), "id") == hash_values(pa.array(values))).all()


def test_no_rows_have_no_sides() -> None:
    for table in (pa.table({"id": pa.array([], pa.string())}), pa.schema([("id", pa.string())]).empty_table()):
        assert split_rows(table, group(num_rows=0), "id", FRACTIONS).tolist() == []
    assert hash_key_column(pa.chunked_array([], pa.int64()), group(num_rows=0), "id").tolist() == []


@given(order=st.permutations(range(20)))
def test_the_split_does_not_depend_on_row_order(order: list[int]) -> None:
    keys = pa.array([f"key {i}" for i in range(20)])
    shuffled = split_rows(pa.table({"id": keys.take(pa.array(order))}), group(), "id", FRACTIONS)
    assert (shuffled == split_rows(pa.table({"id": keys}), group(), "id", FRACTIONS)[order]).all()


def test_the_split_of_keyed_rows_does_not_depend_on_the_file() -> None:
    table = pa.table({"id": np.arange(100)})
    one = split_rows(table, group("0" * 64), "id", FRACTIONS)
    two = split_rows(table, RowGroup("other.parquet", "f" * 64, 3, 1000, 100), "id", FRACTIONS)
    assert (one == two).all()


NUM_ROWS = 200_000
HASHES = {
    "integers": lambda: hash_values(pa.array(np.arange(NUM_ROWS))),
    "texts": lambda: hash_values(pa.array([f"user-{i}" for i in range(NUM_ROWS)])),
    "places": lambda: hash_places(group("f" * 64, num_rows=NUM_ROWS)),
}


@pytest.fixture(scope="module", params=sorted(HASHES))
def many_hashes(request: pytest.FixtureRequest) -> NDArray[np.uint64]:
    return HASHES[request.param]()


@pytest.mark.parametrize("fractions", [(0.1, 0.0), (0.25, 0.25), (0.0, 0.3), (0.5, 0.5), (0.001, 0.002)])
def test_fractions_hold_up_to_sampling_error(many_hashes: NDArray[np.uint64], fractions: tuple[float, float]) -> None:
    """Five standard deviations of the binomial."""
    sides = split_of(many_hashes, *fractions)
    for side, fraction in ((VALIDATION, fractions[0]), (TEST, fractions[1]), (TRAIN, 1 - sum(fractions))):
        error = abs((sides == side).mean() - fraction)
        assert error <= 5 * math.sqrt(fraction * (1 - fraction) / NUM_ROWS)


@settings(max_examples=30)
@given(first=st.integers(-(2**62), 2**62), step=st.integers(1, 2**40), validation=st.floats(0, 0.5), test=st.floats(0, 0.5))
def test_fractions_hold_for_any_regular_keys(first: int, step: int, validation: float, test: float) -> None:
    n = 4000
    keys = (first + step * np.arange(n, dtype=np.int64).astype(object)) % 2**63
    sides = split_of(hash_values(pa.array(keys.tolist(), pa.int64())), validation, test)
    for side, fraction in ((VALIDATION, validation), (TEST, test)):
        assert abs((sides == side).sum() - n * fraction) <= 6 * math.sqrt(n * fraction * (1 - fraction)) + 1


def test_fractions_of_zero_and_one_are_exact() -> None:
    hashed = np.array([0, 1, 2**63, 2**64 - 1], np.uint64)
    assert (split_of(hashed, 0.0, 0.0) == TRAIN).all()
    assert (split_of(hashed, 1.0, 0.0) == VALIDATION).all()
    assert (split_of(hashed, 0.0, 1.0) == TEST).all()


def test_a_test_side_takes_no_row_from_validation() -> None:
    hashed = hash_values(pa.array(np.arange(10_000)))
    without, with_test = split_of(hashed, 0.1, 0.0), split_of(hashed, 0.1, 0.2)
    assert ((without == VALIDATION) == (with_test == VALIDATION)).all()
    assert (with_test == TEST).any()


def null_in_dictionary() -> pa.Array:
    return pa.DictionaryArray.from_arrays(pa.array([0, 1, 0]), pa.array(["a", None]))


@pytest.mark.parametrize(
    "keys",
    [
        pa.array([1, None, 3]),
        pa.array(["a", None, "b"]),
        pa.array(["a", None]).dictionary_encode(),
        null_in_dictionary(),
        pa.chunked_array([pa.array(["a"]).dictionary_encode(), pa.array([None, "b"]).dictionary_encode()]),
        pa.nulls(2, pa.dictionary(pa.int32(), pa.string())).slice(1),
    ],
    ids=["integers", "strings", "dictionary", "null in the dictionary", "chunks", "all"],
)
def test_a_null_key_is_refused_by_file_column_and_row(keys: pa.Array) -> None:
    (row,) = np.flatnonzero([key is None for key in keys.to_pylist()])
    with pytest.raises(DataError, match=rf"folder/file\.parquet: column 'id' is the key and has nulls \(in rows {20 + row}, \.\.\)"):
        split_rows(pa.table({"id": keys}), group(first_row=20, num_rows=len(keys)), "id", (0.1, 0.1))


def test_null_keys_in_and_beside_the_dictionary_are_both_named() -> None:
    keys = pa.DictionaryArray.from_arrays(pa.array([0, None, 1, 0]), pa.array(["a", None]))
    with pytest.raises(DataError, match=r"\(in rows 1, 2, \.\.\)"):
        split_rows(pa.table({"id": keys}), group(num_rows=4), "id", (0.1, 0.1))


def test_a_null_that_no_row_uses_in_the_dictionary_is_no_null_key() -> None:
    keys = pa.DictionaryArray.from_arrays(pa.array([0, 2, 0]), pa.array(["a", None, "b"]))
    assert hash_key_column(pa.chunked_array([keys]), group(), "id").tolist() == hash_values(pa.array(["a", "b", "a"])).tolist()


def test_only_some_of_many_null_keys_are_named() -> None:
    with pytest.raises(DataError, match=r"\(in rows 0, 1, 2, 3, 4, \.\.\); every row needs its key$"):
        split_rows(pa.table({"id": pa.nulls(1000, pa.string())}), group(num_rows=1000), "id", (0.1, 0.1))


@pytest.mark.parametrize("rows_per_slice", [4, 10**6])
def test_a_null_key_is_named_by_its_row_of_the_file_whatever_the_slices(
    tmp_path: Path, rows_per_slice: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slicing, "SLICE_ROWS", rows_per_slice)
    write(tmp_path / "a.parquet", pa.table({"id": [None if i == 37 else f"{i}" for i in range(50)]}), row_group_size=20)
    with pytest.raises(DataError, match=r"a\.parquet: column 'id' is the key and has nulls \(in rows 37, \.\.\)"):
        read_sides(tmp_path, "id")


@pytest.mark.parametrize(
    "keys", [pa.array([1.0]), pa.array([True]), pa.array([[1]]), pa.array([0], pa.timestamp("s")), pa.array([1.0]).dictionary_encode()]
)
def test_a_key_that_identifies_nothing_is_refused_by_file_column_and_type(keys: pa.Array) -> None:
    with pytest.raises(
        DataError, match=r"folder/file\.parquet: column 'id' is the key and is .*; a key is an integer or a string"
    ) as caught:
        split_rows(pa.table({"id": keys}), group(num_rows=1), "id", (0.1, 0.1))
    assert str(keys.type) in str(caught.value)


def test_the_hashes_of_rows_are_those_of_keys_or_places() -> None:
    table = pa.table({"id": ["a", "b"]})
    assert (row_hashes(table, group(num_rows=2), "id") == hash_values(pa.array(["a", "b"]))).all()
    assert (row_hashes(table, group(num_rows=2), None) == hash_places(group(num_rows=2))).all()


@given(mask=st.lists(st.booleans(), max_size=20))
def test_take_gives_the_rows_of_the_mask(mask: list[bool]) -> None:
    table = pa.table({"a": pa.array(range(len(mask)), pa.int64())})
    assert take(table, np.array(mask, np.bool_))["a"].to_pylist() == [i for i, taken in enumerate(mask) if taken]


def stored(key: str | None, **split: Any) -> dict[str, Any]:
    """Returns what a bundle's table.json says of its training's split."""
    fractions = {"validation_fraction": 0.1, "test_fraction": 0.3}
    return {"key": key, "fingerprint": "training", "split": fractions | split}


def test_a_stored_rule_cuts_the_rows_as_training_did() -> None:
    rows, group = pa.table({"id": range(1000)}), RowGroup("a", "0" * 32, 0, 0, 1000)
    rule = SplitRule.of(stored("id"), "any")
    np.testing.assert_array_equal(rule.sides(rows, group), split_rows(rows, group, "id", (0.1, 0.3)))
    assert [rule.fraction(side) for side in ("train", "validation", "test", "all")] == pytest.approx([0.6, 0.1, 0.3, 1.0])


def test_all_rows_of_a_validation_table_of_its_own_validate() -> None:
    record = stored("id", validation_fraction=0.0, validation_fingerprint="validation")
    rows, group = pa.table({"id": range(1000)}), RowGroup("a", "0" * 32, 0, 0, 1000)
    assert (SplitRule.of(record, "validation").sides(rows, group) == VALIDATION).all()
    assert (SplitRule.of(record, "training").sides(rows, group) != VALIDATION).all()


def test_without_a_key_only_the_tables_that_training_read_tell_which_rows_it_had() -> None:
    record = stored(None, validation_fingerprint="validation")
    assert [knows_rows(record, name) for name in ("training", "validation", "another")] == [True, True, False]
    assert knows_rows(stored("id"), "another")
