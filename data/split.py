"""Who is training: every row's side of the split, from a keyed hash of its key (or place) and nothing else.

The hash depends on the key's value only, so a row keeps its side whatever the files, blocks, workers and machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data.hashing import Hashes, hash_integers, hash_values
from data.listing import DataError
from data.table import RowGroup

TRAIN, VALIDATION, TEST = 0, 1, 2
SPLITS = {"train": TRAIN, "validation": VALIDATION, "test": TEST}

# Rows that an error names.
MAX_EXAMPLES = 5


def hash_key_column(column: pa.ChunkedArray, group: RowGroup, name: str) -> Hashes:
    """Returns the hash of each key. Raises DataError for nulls, naming rows, and for types that identify nothing."""
    where = f"{group.path}: column {name!r}"
    if pa.types.is_dictionary(column.type) and any(chunk.dictionary.null_count for chunk in column.chunks):
        return hash_key_column(column.cast(column.type.value_type), group, name)  # nulls that a dictionary holds
    if column.null_count:
        missing = (group.first_row + np.flatnonzero(column.is_null().to_numpy())[:MAX_EXAMPLES]).tolist()
        raise DataError(f"{where} is the key and has nulls (in rows {', '.join(map(str, missing))}, ..); every row needs its key")
    try:
        return np.concatenate([np.zeros(0, np.uint64), *map(hash_values, column.chunks)])
    except TypeError as error:
        raise DataError(f"{where} is the key and is {column.type}; a key is an integer or a string") from error


def hash_places(group: RowGroup) -> Hashes:
    """Returns the hash of each row's place: its file's content identity and its position in the file."""
    positions = np.arange(group.first_row, group.first_row + group.num_rows, dtype=np.int64)
    return hash_integers(positions, np.uint64(int(group.identity[:16], 16)))


def split_of(hashes: Hashes, validation_fraction: float, test_fraction: float) -> NDArray[np.int8]:
    """Returns TRAIN, VALIDATION or TEST per row; the fractions hold up to sampling error."""
    place = (hashes >> np.uint64(11)).astype(np.float64) * 2.0**-53
    result = np.full(len(hashes), TRAIN, np.int8)
    result[place < validation_fraction + test_fraction] = TEST
    result[place < validation_fraction] = VALIDATION
    return result


def row_hashes(table: pa.Table, group: RowGroup, key: str | None) -> Hashes:
    """Returns the hash that decides the side of every row; `table` holds the key column where there is one."""
    return hash_places(group) if key is None else hash_key_column(table[key], group, key)


def split_rows(table: pa.Table, group: RowGroup, key: str | None, fractions: tuple[float, float]) -> NDArray[np.int8]:
    """Returns the side of every row of a slice of a row group."""
    return split_of(row_hashes(table, group, key), *fractions)


@dataclass(frozen=True)
class SplitRule:
    """How the training of a model decides the side of a row: by the hash of its key, or of its place where there is no key."""

    key: str | None
    validation_fraction: float
    test_fraction: float

    @staticmethod
    def of(record: Mapping[str, Any], fingerprint: str) -> SplitRule:
        """Returns the rule of a bundle's table.json for the table of that fingerprint: of its validation table, all rows validate."""
        split = record["split"]
        if fingerprint == split.get("validation_fingerprint"):
            return SplitRule(record["key"], 1.0, 0.0)
        return SplitRule(record["key"], split["validation_fraction"], split["test_fraction"])

    def sides(self, rows: pa.Table, group: RowGroup) -> NDArray[np.int8]:
        """Returns TRAIN, VALIDATION or TEST per row of a slice of a row group, which holds the key column where there is one."""
        return split_rows(rows, group, self.key, (self.validation_fraction, self.test_fraction))

    def fraction(self, side: str) -> float:
        """Returns the share of rows on a side of that name; of "all", 1."""
        shares = {"validation": self.validation_fraction, "test": self.test_fraction, "all": 1.0}
        return shares.get(side, 1.0 - self.validation_fraction - self.test_fraction)


def knows_rows(record: Mapping[str, Any], fingerprint: str) -> bool:
    """Whether a bundle's table.json tells which rows of the table of that fingerprint were trained on.

    Keys tell it of every table; places tell it of the tables that the training read.
    """
    return record["key"] is not None or fingerprint in (record["fingerprint"], record["split"].get("validation_fingerprint"))


def take(table: pa.Table, mask: NDArray[np.bool_]) -> pa.Table:
    """Returns the rows where mask is true (the table itself where it always is)."""
    return table if mask.all() else table.filter(pa.array(mask))
