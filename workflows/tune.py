"""Searches the options that train best on a Parquet table, and registers the best trial's model.

    python workflows/tune.py --data.path TABLE --training.learning_rate '[1e-4, 1e-2]' --model.latent_dim '[8, 16, 32]' [train.py's options]

Reads Parquet. Writes one MLflow run with a nested one for each trial, one model version with alias `candidate`, and the trials'
checkpoints below run.storage_path. A second run with the same --run.name goes on where the first stood, or, if that finished,
does nothing.
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # run as a file: imports start at the repository root, not in workflows/
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from workflows.job import run
from workflows.space import SearchConfig

if __name__ == "__main__":
    run("workflows.tune_job:tune", SearchConfig)
