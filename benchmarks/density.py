"""Densities that others have published, and how near this product comes: Fashion-MNIST.

    python benchmarks/density.py tables FASHION_MNIST FOLDER        writes FOLDER/train, valid and test
    python benchmarks/density.py score BUNDLE TABLE [--num_importance_samples 5000] [--num_rows N]

FASHION_MNIST: a folder with train, valid and test of Parquet files with a column "image" of 784 bytes. Training rows keep their grey
levels, which training draws anew as 0 or 255 in every epoch; validation and test are drawn once, with numpy's seed 777, as in the published
experiments. "score" prints the mean over a table's rows of the importance-weighted bound on log p(x), with its standard error, as JSON.
benchmarks/density.md has the commands between the two, and the figures.

Shapes: B rows at once.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from data.encoding import TableEncoding
from vae import Rows, load_bundle, log_evidence_bound

SEED = 777
ROWS_AT_ONCE = 100


def write_tables(source: Path, folder: Path) -> None:
    random = np.random.RandomState(SEED)
    for side in ("train", "valid", "test"):
        table = pq.read_table(source / side, columns=["id", "image"])
        pixels = np.stack(table["image"].to_numpy())
        if side != "train":
            pixels = random.binomial(1, pixels / 255).astype(np.uint8) * 255
        image = pa.FixedSizeListArray.from_arrays(pa.array(pixels.reshape(-1)), 784)
        (folder / side).mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({"id": table["id"], "image": image}), folder / side / "part-0.parquet", row_group_size=5000)


def score(bundle: Path, path: Path, num_importance_samples: int, num_rows: int | None) -> dict[str, float]:
    model, table, _ = load_bundle(bundle)
    encoding = TableEncoding.from_json(table)
    rows = Rows.from_arrays(encoding.encode(pq.read_table(path, columns=encoding.inputs).slice(0, num_rows), str(path)))
    generator, began, found = torch.Generator().manual_seed(0), time.perf_counter(), []
    with torch.inference_mode():
        for begin in range(0, rows.num_rows, ROWS_AT_ONCE):
            batch = rows.slice(begin, min(begin + ROWS_AT_ONCE, rows.num_rows))
            found.append(log_evidence_bound(model, batch, num_importance_samples, generator))
            done = torch.cat(found)
            print(f"{len(done)} rows: {done.mean():.3f}", end="\r", file=sys.stderr, flush=True)
    bound = torch.cat(found)
    return {
        "num_rows": len(bound),
        "num_importance_samples": num_importance_samples,
        "log_evidence_bound_nats_per_row": round(bound.mean().item(), 3),
        "standard_error": round(bound.std().item() / len(bound) ** 0.5, 3),
        "wall_s": round(time.perf_counter() - began),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    jobs = parser.add_subparsers(dest="job", required=True)
    tables = jobs.add_parser("tables")
    tables.add_argument("source", type=Path)
    tables.add_argument("folder", type=Path)
    scoring = jobs.add_parser("score")
    scoring.add_argument("bundle", type=Path)
    scoring.add_argument("table", type=Path)
    scoring.add_argument("--num_importance_samples", type=int, default=5000)
    scoring.add_argument("--num_rows", type=int)
    chosen = parser.parse_args()
    if chosen.job == "tables":
        write_tables(chosen.source, chosen.folder)
    else:
        print(json.dumps(score(chosen.bundle, chosen.table, chosen.num_importance_samples, chosen.num_rows)))


if __name__ == "__main__":
    main()
