"""What a mixture model from a known library (StepMix: pip install stepmix; latent classes of mixed columns) says of validation rows.

    python benchmarks/mixture.py --data TABLE --key KEY [--num_classes 10,30,100]

Within a class columns are independent: integers Gaussian, fitted to x + u with u uniform on [0, 1), those of which most are 0 to
log(1 + x + u); strings and booleans categorical. Missing cells are left out of the likelihood. The rows are those that workflows/train.py
takes for training and validation. Scored is what the model is scored by: the probability of every integer, here the mass that a class's
Gaussian has from x to x + 1, and of every category, in nats per row. A category that a class never saw has there the table's share of
one row, where StepMix would have 1e-15.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from numpy.typing import NDArray
from scipy.special import logsumexp
from stepmix.stepmix import StepMix

from data.reading import RowReader
from data.split import TRAIN, VALIDATION, split_rows, take
from data.table import open_table
from vae.normal_mass import log_normal_mass

Floats = NDArray[np.float64]

FRACTIONS = (0.1, 0.0)  # of validation and test rows, as workflows/train.py has them
SMOOTHING_ROWS = 1.0  # rows with the table's shares of categories that every class is given on top of its own


def rows_of(path: str, key: str) -> tuple[pa.Table, pa.Table]:
    """Returns the training and the validation rows."""
    table = open_table(path, None)
    sides: dict[int, list[pa.Table]] = {TRAIN: [], VALIDATION: []}
    with RowReader(table.filesystem, table.schema) as reader:
        for part, rows in (found for group in table.row_groups() for found in reader.slices(group)):
            chosen = split_rows(rows, part, key, FRACTIONS)
            for side, parts in sides.items():
                parts.append(take(rows, chosen == side))
    train, validation = (pa.concat_tables(parts, promote_options="permissive").drop_columns(key) for parts in sides.values())
    return train, validation


class Columns:
    """The columns as StepMix takes them, from what the training rows hold."""

    def __init__(self, train: pa.Table) -> None:
        frame = train.to_pandas()
        self.numbers = [field.name for field in train.schema if pa.types.is_integer(field.type)]
        self.names = [name for name in train.schema.names if name not in self.numbers]
        self.levels = {name: sorted(map(str, frame[name].dropna().unique())) for name in self.names}
        self.logarithmic = {name for name in self.numbers if (frame[name] == 0).mean() > 0.5 and frame[name].min() >= 0}
        cells = {name: self.transformed(name, frame[name].to_numpy(float) + 0.5) for name in self.numbers}
        self.center = {name: float(np.nanmean(values)) for name, values in cells.items()}
        self.scale = {name: float(np.nanstd(values)) for name, values in cells.items()}

    def transformed(self, name: str, values: Floats) -> Floats:
        return np.log1p(values) if name in self.logarithmic else values

    def standardised(self, name: str, values: Floats) -> Floats:
        return (self.transformed(name, values) - self.center[name]) / self.scale[name]

    def codes(self, frame: pd.DataFrame) -> pd.DataFrame:
        """Returns the categories' codes, missing where a cell is or its category was not seen."""
        positions = {name: {level: code for code, level in enumerate(levels)} for name, levels in self.levels.items()}
        return pd.DataFrame({n: frame[n].map(lambda v, n=n: positions[n].get(str(v), np.nan), na_action="ignore") for n in self.names})

    def drawn(self, frame: pd.DataFrame, generator: np.random.Generator) -> pd.DataFrame:
        """Returns cells to fit to: integers with a uniform number added, and codes."""
        numbers = {n: self.standardised(n, frame[n].to_numpy(float) + generator.random(len(frame))) for n in self.numbers}
        return pd.concat([pd.DataFrame(numbers), self.codes(frame).astype(float)], axis=1)


def fit(columns: Columns, frame: pd.DataFrame, num_classes: int, seed: int) -> StepMix:
    numbers = "gaussian_diag_nan" if frame[columns.numbers].isna().any(axis=None) else "gaussian_diag"  # whose variances never are 0
    measurement = {
        "numbers": {"model": numbers, "n_columns": len(columns.numbers)},
        "names": {"model": "categorical_nan", "n_columns": len(columns.names)},
    }
    mixture = StepMix(num_classes, measurement=measurement, max_iter=300, abs_tol=1e-4, random_state=seed, progress_bar=0)
    mixture.fit(columns.drawn(frame, np.random.default_rng(seed)))
    return mixture


def log_mass(begin: Floats, end: Floats) -> Floats:
    """Returns log(Phi(end) - Phi(begin))."""
    middle, half_width = torch.from_numpy((begin + end) / 2), torch.from_numpy((end - begin) / 2)
    nowhere = torch.zeros((), dtype=torch.bool)
    return log_normal_mass(middle, half_width, nowhere, nowhere).numpy()


def score(mixture: StepMix, columns: Columns, frame: pd.DataFrame, train: pd.DataFrame) -> Floats:
    """Returns log p(row), in nats, [B]: a mixture's weights and its classes' parameters are StepMix's."""
    parameters = mixture.get_parameters()
    weights, fitted = np.asarray(parameters["weights"]), parameters["measurement"]
    total = np.tile(np.log(weights), (len(frame), 1))
    means, variances = (np.asarray(fitted["numbers"][name]) for name in ("means", "covariances"))
    for place, name in enumerate(columns.numbers):
        values = frame[name].to_numpy(float)
        ends = [(columns.standardised(name, values + end)[:, None] - means[:, place]) / np.sqrt(variances[:, place]) for end in (0.0, 1.0)]
        total += np.where(np.isnan(values)[:, None], 0.0, log_mass(*ends))
    codes, train_codes = columns.codes(frame), columns.codes(train)
    probabilities = np.asarray(fitted["names"]["pis"])  # [classes, levels of all columns side by side]
    num_levels = int(fitted["names"]["max_n_outcomes"])
    rows_of_class = weights * len(train)
    for place, name in enumerate(columns.names):
        shares = np.bincount(train_codes[name].dropna().astype(int), minlength=len(columns.levels[name])) / train_codes[name].count()
        own = probabilities[:, place * num_levels : place * num_levels + len(shares)]
        smooth = (rows_of_class[:, None] * own + SMOOTHING_ROWS * shares) / (rows_of_class[:, None] + SMOOTHING_ROWS)
        values = codes[name].to_numpy(float)
        known = ~np.isnan(values)
        total[known] += np.log(smooth[:, values[known].astype(int)]).T
    return np.asarray(logsumexp(total, axis=1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--key", required=True)
    parser.add_argument("--num_classes", default="10,30,100")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    tables = rows_of(arguments.data, arguments.key)
    columns = Columns(tables[0])
    train, validation = (table.to_pandas() for table in tables)
    results: dict[str, Any] = {}
    for num_classes in map(int, arguments.num_classes.split(",")):
        mixture = fit(columns, train, num_classes, arguments.seed)
        found = {name: float(score(mixture, columns, rows, train).mean()) for name, rows in (("train", train), ("validation", validation))}
        print(num_classes, found, file=sys.stderr)
        results[str(num_classes)] = found
    print(json.dumps({"mixture_nats_per_row": results, "num_rows": [len(train), len(validation)]}))


if __name__ == "__main__":
    main()
