"""Claims about workflows.evaluation_report: numbers under names that MLflow takes, bits per dimension, and what a second run finds."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from data.columns import Rules, decide_columns
from data.encoding import TableEncoding
from data.output import OutputFolder
from data.statistics import summarise_table
from workflows.evaluation_report import bits_per_dimension, headlines, metrics_of, put_evaluation, stored_line, tags_of
from workflows.sections import Section
from workflows.totals import Estimate


def encoding_of(columns: dict[str, Any], overrides: dict[str, Any]) -> TableEncoding:
    table = pa.table(columns)
    summary = summarise_table(table, (len(table), 0, 0))
    return TableEncoding(table.schema, tuple(decide_columns(table.schema, summary, None, overrides, Rules())), None)


def images(num_rows: int) -> pa.Array:
    pixels = np.random.default_rng(0).integers(0, 256, num_rows * 16).astype(np.uint8)
    return pa.FixedSizeListArray.from_arrays(pa.array(pixels), 16)


IMAGE = {"pixels": {"kind": "image", "shape": [4, 4]}}
BINARISED = {"pixels": IMAGE["pixels"] | {"binarize": "per_epoch"}}
NUMBERS = {"elbo": 1.5, "bad": math.nan}


def test_8_bit_images_have_bits_per_dimension_and_uniform_bytes_have_8() -> None:
    bound = -16 * math.log(256)
    assert bits_per_dimension(encoding_of({"pixels": images(50)}, IMAGE), bound) == pytest.approx(8.0)


@pytest.mark.parametrize(
    ("more", "overrides"),
    [
        ({"x": np.random.default_rng(0).normal(size=50)}, IMAGE),
        ({}, BINARISED),
    ],
    ids=["another column", "binarised"],
)
def test_what_is_no_8_bit_image_alone_has_none(more: dict[str, Any], overrides: dict[str, Any]) -> None:
    assert bits_per_dimension(encoding_of({"pixels": images(50)} | more, overrides), -10.0) is None


SECTIONS = [
    Section(
        "scores", {"elbo": Estimate(1.5, 0.1, 9).as_json()}, {"elbo": 1.5, "bad": math.nan}, {"elbo": 1.5, "bad": math.nan, "a=b/x": 2.0}
    ),
    Section("other", {"nested": {"a": {"mean": 1.0, "standard_error": None}}, "left_out": "why | not"}, {"gaps": {}}, {"a~b/x": 3.0}),
]


def test_metrics_are_the_finite_numbers_none_lost_under_names_that_mlflow_takes() -> None:
    assert metrics_of(SECTIONS) == {"elbo": 1.5, "a_b/x": 2.0, "a_b/x_2": 3.0}
    assert tags_of(SECTIONS, "test") == {"elbo.test": "1.5"}
    assert headlines(SECTIONS) == {"elbo": 1.5, "bad": None, "gaps": {}}


def test_a_stored_line_is_found_by_what_was_asked_and_by_nothing_else(tmp_path: Path) -> None:
    output = OutputFolder.open(str(tmp_path))
    asked = {"made_by": "m", "data": "d", "options": {"promote": False}}
    line = {"model_name": "m", "model_version": "1", "split": "test", "elbo": 1.5}
    assert stored_line(output, asked) is None
    texts = put_evaluation(output, asked, SECTIONS, line, "<!doctype html>", "# Model card")
    assert stored_line(output, asked) == line
    assert stored_line(output, asked | {"data": "other"}) is None
    assert set(json.loads((tmp_path / "_report.json").read_text())) == {"asked", "line", "scores", "other"}
    assert {name: (tmp_path / name).read_text() for name in texts} == texts
    assert set(texts) == {"_report.html", "_model_card.md", "_report.json"}
