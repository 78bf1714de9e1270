"""How like a table generated rows are, column by column, against fixed limits.

    python workflows/train.py --data.path TABLE
    python workflows/generate.py --model models:/vae@candidate --num_rows 50000 --output.path GENERATED
    python benchmarks/generated.py TABLE GENERATED

Limits: categories' frequencies within 3 points, null rates within 1 point, quantiles of numbers (5, 25, 50, 75, 95 %) within 5 % of the
real 5 to 95 % range (of the whole range, where that is one value), and the share of a number's most frequent value (10 % or more)
within 3 points. Columns that are missing, constant or null in the generated rows are listed and not compared. Printed: a line per column
with its worst figure, what is beyond its limit, and a JSON line.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data.listing import find_files

LEVELS = (0.05, 0.25, 0.5, 0.75, 0.95)
FREQUENCY_LIMIT, NULL_LIMIT, QUANTILE_LIMIT, SPIKE_SHARE = 0.03, 0.01, 0.05, 0.1
# Numbers with at most this many values are compared as categories.
FEW_VALUES = 20


def shares(column: pa.ChunkedArray) -> dict[Any, float]:
    counts = pc.value_counts(column.drop_null())
    total = max(1, len(column) - column.null_count)
    return {item["values"]: item["counts"] / total for item in counts.to_pylist()}


def figures(real: pa.ChunkedArray, made: pa.ChunkedArray) -> Iterator[tuple[str, float, float, float]]:
    """Yields what is compared of a column: its name, the real figure's distance to the generated one, the limit, the real figure."""
    null_rate = real.null_count / len(real)
    yield "null rate", abs(null_rate - made.null_count / len(made)), NULL_LIMIT, null_rate
    expected, found = shares(real), shares(made)
    if not is_number(real.type) or len(expected) <= FEW_VALUES:
        for value in expected.keys() | found.keys():
            yield f"share of {value!r}", abs(expected.get(value, 0) - found.get(value, 0)), FREQUENCY_LIMIT, expected.get(value, 0)
        return
    numbers, others = (np.asarray(c.drop_null().cast(pa.float64(), safe=False)) for c in (real, made))
    wanted, got = np.quantile(numbers, LEVELS), np.quantile(others, LEVELS)
    extent = (wanted[-1] - wanted[0]) or np.ptp(numbers)
    for level, a, b in zip(LEVELS, wanted, got, strict=True):
        yield f"{level:.0%} quantile", abs(a - b) / extent, QUANTILE_LIMIT, a
    most = max(expected, key=lambda value: expected[value])
    if expected[most] >= SPIKE_SHARE:
        yield f"share of {most!r}", abs(expected[most] - found.get(most, 0)), FREQUENCY_LIMIT, expected[most]


def is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind) or pa.types.is_timestamp(kind))


def plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Returns a column to compare: dictionaries as their values, times as ticks, lists as their elements."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_list(column.type) or pa.types.is_fixed_size_list(column.type):
        return pc.list_flatten(column)
    return column.cast(pa.int64()) if pa.types.is_timestamp(column.type) else column


def table_of(path: str) -> pa.Table:
    """Returns the rows of the files that train.py would read."""
    filesystem, files = find_files([path])
    return ds.dataset([file.path for file in files], filesystem=filesystem).to_table()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("real")
    parser.add_argument("generated")
    chosen = parser.parse_args()
    real, made = (table_of(path) for path in (chosen.real, chosen.generated))
    beyond, left_out, compared = [], [], 0
    for name in real.column_names:
        if name not in made.column_names or made[name].null_count == len(made) or len(pc.unique(plain(made[name]))) == len(made):
            left_out.append(name)
            continue
        compared += 1
        found = list(figures(plain(real[name]), plain(made[name])))
        worst = max(found, key=lambda figure: figure[1] / figure[2])
        print(f"{name:24} {worst[0]:32} off by {worst[1]:.4f} of at most {worst[2]:.2f} (real {worst[3]:.4g})", file=sys.stderr)
        beyond += [f"{name}: {what} off by {distance:.4f}" for what, distance, limit, _ in found if distance > limit]
    print(json.dumps({"columns": compared, "not_compared": left_out, "beyond_limits": beyond}))


if __name__ == "__main__":
    main()
