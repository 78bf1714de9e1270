"""UCI digits (bundled with scikit-learn) as a Parquet table: the demo's and the tests' input."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from sklearn.datasets import load_digits

NUM_FILES, ROWS_PER_GROUP = 3, 200


def write_digits(folder: Path) -> None:
    """Writes the digits as several Parquet files of several row groups: key, image, label, two derived columns, some nulls."""
    digits = load_digits()
    rng = np.random.default_rng(0)
    ink = np.sqrt((digits.data**2).mean(1))  # a number on no grid, which the mean is not
    stroke = np.array(["light", "medium", "bold"])[np.digitize(ink, np.quantile(ink, [1 / 3, 2 / 3]))]
    missing = rng.random((2, len(ink))) < 0.05
    table = pa.table(
        {
            "id": pa.array(np.arange(len(ink)), pa.int64()),
            "image": pa.FixedSizeListArray.from_arrays(pa.array(digits.data.astype(np.uint8).reshape(-1)), 64),
            "label": pa.array(digits.target, pa.int32()),
            "ink": pa.array(ink, mask=missing[0]),
            "stroke": pa.array(stroke, mask=missing[1]),
        }
    )
    folder.mkdir(parents=True, exist_ok=True)
    for index, begin in enumerate(np.linspace(0, len(ink), NUM_FILES + 1).astype(int)[:-1]):
        part = table.slice(begin, len(ink) // NUM_FILES)
        pq.write_table(part, folder / f"part-{index}.parquet", row_group_size=ROWS_PER_GROUP)
