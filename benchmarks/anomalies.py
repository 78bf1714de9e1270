"""Anomalies found by a VAE that saw normal rows alone, beside nearest neighbours: area under the ROC curve and average precision.

    python benchmarks/anomalies.py FOLDER .. [--label is_anomaly] [--key id] [--seeds 0 1 2] [--common "--model.latent_dim 8"]
        [--published '{"thyroid": {"KNN, NAME OF THE PAPER": 98.0}}']

FOLDER holds train/ (normal rows only) and test/ (normal rows and anomalies) of Parquet, as ADBench's tables in the setting where half of
the normal rows train (Han et al. 2022; Livernoche et al. 2024). One model a seed is trained with train.py's defaults and --common, in this
process without Ray; a tenth of the training rows only stops it. Nearest neighbours: the distance to the fifth nearest training row, columns
standardised by the training rows. --published: areas in percent by folder name, printed as they are. Rows of the table are means over seeds
with the standard deviation between them; "+-" of nearest neighbours, which have no seed, are standard errors over test rows.
"""

from __future__ import annotations

import argparse
import json
import logging
import shlex
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import pyarrow.parquet as pq
import torch
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import StandardScaler

from benchmarks.defaults import encoding_of, summary_of, train
from benchmarks.independent import encoded_rows
from data.split import TRAIN, VALIDATION
from data.table import open_table
from vae.rows import Rows
from workflows.config import TrainConfig
from workflows.job import parse
from workflows.usefulness import anomaly_scores, find_anomalies

NUM_NEIGHBOURS = 5
MEASURES = ("roc_auc", "average_precision")


def scores_of_neighbours(folder: Path, names: list[str]) -> np.ndarray[Any, Any]:
    """Returns the distance of every test row to its fifth nearest training row."""
    train_rows, test_rows = (
        np.column_stack([pq.read_table(folder / side)[name].to_numpy() for name in names]).astype(np.float64) for side in ("train", "test")
    )
    scaler = StandardScaler().fit(train_rows)
    neighbours = NearestNeighbors(n_neighbors=NUM_NEIGHBOURS).fit(scaler.transform(train_rows))
    distances: np.ndarray[Any, Any] = neighbours.kneighbors(scaler.transform(test_rows))[0][:, -1]
    return distances


def scores_of_model(folder: Path, key: str | None, label: str, options: list[str], seed: int, num_samples: int) -> dict[str, Any]:
    """Returns what a model trained with a seed gives the test rows, by score."""
    columns = json.dumps({label: {"kind": "ignored"}})
    given = ["--data.path", str(folder / "train"), *(["--data.key", key] if key else []), "--data.columns", columns]
    config = parse(TrainConfig, [*given, *options, "--training.seed", str(seed)])
    table, fractions = open_table(str(folder / "train")), config.data.fractions
    encoding = encoding_of(table, key, summary_of(table, key, fractions), config)
    model, found = train(config, encoding, {side: encoded_rows(table, encoding, side, fractions) for side in (TRAIN, VALIDATION)})
    print(json.dumps({"data": folder.name, "seed": seed, **found}), file=sys.stderr, flush=True)
    test = pq.read_table(folder / "test", columns=encoding.inputs)
    rows = Rows.from_arrays(encoding.encode(test, str(folder / "test")))
    return dict(anomaly_scores(model, rows, num_samples, torch.Generator().manual_seed(seed)))


def figures(folder: Path, chosen: argparse.Namespace) -> dict[str, dict[str, tuple[float, float]]]:
    """Returns both measures in percent, with their spread, by method."""
    is_anomaly = pq.read_table(folder / "test", columns=[chosen.label])[chosen.label].to_numpy().astype(np.bool_)
    names = [name for name in pq.read_schema(next((folder / "train").glob("*.parquet"))).names if name not in (chosen.label, chosen.key)]
    nearest = find_anomalies(is_anomaly, {"": scores_of_neighbours(folder, names)})["scores"][""]
    table = {"nearest neighbours": {m: (100 * nearest[m]["value"], 100 * nearest[m]["standard_error"]) for m in MEASURES}}
    options = shlex.split(chosen.common)
    runs = [
        find_anomalies(is_anomaly, scores_of_model(folder, chosen.key, chosen.label, options, seed, chosen.num_importance_samples))[
            "scores"
        ]
        for seed in chosen.seeds
    ]
    for name in runs[0]:
        values = {m: np.array([100 * run[name][m]["value"] for run in runs]) for m in MEASURES}
        table[name] = {m: (float(found.mean()), float(found.std(ddof=1)) if len(found) > 1 else 0.0) for m, found in values.items()}
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--label", default="is_anomaly")
    parser.add_argument("--key", default=None)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--common", default="", help="options of train.py")
    parser.add_argument("--num_importance_samples", type=int, default=100)
    parser.add_argument("--published", type=json.loads, default={})
    chosen = parser.parse_args()
    torch.set_flush_denormal(True)
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING)
    print("| table | score | ROC AUC, % | average precision, % |\n|---|---|---|---|")
    for folder in chosen.folders:
        for source, area in chosen.published.get(folder.name, {}).items():
            print(f"| {folder.name} | published: {source} | {area} | |")
        for name, found in figures(folder, chosen).items():
            cells = " | ".join("{:.2f} +- {:.2f}".format(*found[measure]) for measure in MEASURES)
            print(f"| {folder.name} | {name} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
