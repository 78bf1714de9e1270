"""Scores a registered model on rows that it was not trained on, and on request makes it champion if it is no worse than the one there is.

    python workflows/evaluate.py --model models:/NAME@candidate --data.path TABLE --output.path FOLDER [--promote true]

Reads Parquet and a model version. Writes FOLDER/split=SPLIT/model_version=N/*.parquet (one line for each row), _report.html, _report.json
and _model_card.md beside them, an MLflow run, and tags of the model version; with --promote true the champion's scores too, and the
aliases `champion` and `previous`. A second run of the same prints the same line and computes nothing; --force true scores anew.
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # run as a file: imports start at the repository root, not in workflows/
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from workflows.evaluate_config import EvaluateConfig
from workflows.job import run

if __name__ == "__main__":
    run("workflows.evaluate_job:evaluate", EvaluateConfig)
