"""Trains a VAE on a Parquet table and registers it.

    python workflows/train.py --data.path TABLE [--data.key COLUMN] [--config FILE.yaml] [--section.key value ...]

Reads Parquet. Writes one MLflow run, one model version with alias `candidate`, and checkpoints below run.storage_path.
A second run with the same --run.name goes on where the first stood, or, if that finished, does nothing.
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # run as a file: imports start at the repository root, not in workflows/
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from workflows.config import TrainConfig
from workflows.job import run

if __name__ == "__main__":
    run("workflows.train_job:train", TrainConfig)
