"""Claims about workflows.totals: means over rows file by file, and pairs of the rows that neither of two models was trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.output import OutputFolder
from workflows.evaluation import BY_COLUMN, PARETO_K, SCORES
from workflows.totals import Totals, paired_bounds, scores_at, total


def scored_rows(num_rows: int, seed: int, **columns: Any) -> pa.Table:
    """Returns rows as evaluate.py writes them, of a table of two columns and a model of three latent dimensions."""
    random = np.random.default_rng(seed)
    parts = [pa.array(random.normal(-5, 1, num_rows), mask=random.random(num_rows) < 0.3) for _ in range(2)]
    means = random.normal(size=(num_rows, 3)) * [1.0, 0.5, 0.01]
    found = {
        "source_row": np.arange(num_rows),
        "trained_on": np.zeros(num_rows, np.bool_),
        **{name: random.normal(1e6, 1.0, num_rows) for name in SCORES},
        PARETO_K: random.uniform(0.0, 1.0, num_rows),
        BY_COLUMN: pa.StructArray.from_arrays(parts, ["x", "y"]),
        "z_mean": pa.FixedSizeListArray.from_arrays(pa.array(means.astype(np.float32).ravel()), 3),
    }
    return pa.table(found | columns)


def put(folder: Path, tables: dict[str, pa.Table]) -> OutputFolder:
    folder.mkdir()
    for name, table in tables.items():
        pq.write_table(table, folder / name, row_group_size=7)
    return OutputFolder.open(str(folder))


def totals_of(output: OutputFolder, names: list[str]) -> Totals:
    found = total(output, names)
    assert found is not None
    return found


def test_totals_are_means_and_standard_errors_over_all_rows(tmp_path: Path) -> None:
    tables = {"a.parquet": scored_rows(50, 0), "b.parquet": scored_rows(31, 1), "none.parquet": scored_rows(0, 2)}
    found = totals_of(put(tmp_path / "out", tables), list(tables))
    rows = pa.concat_tables(tables.values())
    assert (found.num_rows, found.num_trained_on, found.num_not_finite, found.active_units) == (81, 0, 0, 2)
    for name in SCORES:
        values = rows[name].to_numpy()
        assert found.scores[name].mean == pytest.approx(values.mean(), rel=1e-14)
        assert found.scores[name].standard_error == pytest.approx(values.std(ddof=1) / 9, rel=1e-9)
    assert found.num_heavy_tailed == (rows[PARETO_K].to_numpy() > 0.7).sum() > 0
    cells = rows[BY_COLUMN].combine_chunks()
    for name in ("x", "y"):
        assert found.columns[name].mean == pytest.approx(np.nan_to_num(cells.field(name).to_numpy(zero_copy_only=False)).mean())


def test_tails_of_which_some_are_not_known_are_not_counted(tmp_path: Path) -> None:
    rows = scored_rows(20, 0, **{PARETO_K: pa.array([0.9] * 19 + [None])})
    assert totals_of(put(tmp_path / "out", {"a.parquet": rows}), ["a.parquet"]).num_heavy_tailed is None


def test_only_the_files_that_are_named_count(tmp_path: Path) -> None:
    output = put(tmp_path / "out", {"a.parquet": scored_rows(50, 0), "gone.parquet": scored_rows(31, 1)})
    assert totals_of(output, ["a.parquet"]).num_rows == 50
    assert total(output, []) is None


def test_one_score_that_is_no_number_makes_the_mean_none_and_is_counted(tmp_path: Path) -> None:
    rows = scored_rows(20, 0)
    values = rows["elbo_nats"].to_numpy().copy()
    values[3] = np.nan
    found = totals_of(put(tmp_path / "out", {"a.parquet": rows.set_column(2, "elbo_nats", pa.array(values))}), ["a.parquet"])
    assert found.num_not_finite == 1
    assert np.isnan(found.scores["elbo_nats"].mean)
    assert found.scores["elbo_nats"].as_json()["mean"] is None
    assert np.isfinite(found.scores["kl_nats"].mean)


def test_pairs_are_of_the_rows_that_neither_model_was_trained_on(tmp_path: Path) -> None:
    mine, theirs = np.array([True, False, False, False, False]), np.array([False, False, True, False, False])
    first = put(tmp_path / "a", {"x.parquet": scored_rows(5, 0, trained_on=mine)})
    order = np.array([1, 2, 3, 5, 8])  # row 4 is not scored there, rows 5 and 8 are not here
    second = put(tmp_path / "b", {"x.parquet": scored_rows(5, 1, trained_on=theirs, source_row=order)})
    ((candidate, champion),) = paired_bounds(first, second, ["x.parquet"])
    bounds = [pq.read_table(output.path + "/x.parquet")["log_evidence_bound_nats"].to_numpy() for output in (first, second)]
    np.testing.assert_array_equal(candidate, bounds[0][[1, 2]])
    np.testing.assert_array_equal(champion, bounds[1][[0, 1]])


def test_a_champion_that_was_trained_on_every_row_leaves_no_pair(tmp_path: Path) -> None:
    first = put(tmp_path / "a", {"x.parquet": scored_rows(5, 0)})
    second = put(tmp_path / "b", {"x.parquet": scored_rows(5, 1, trained_on=np.ones(5, np.bool_))})
    assert [(len(a), len(b)) for a, b in paired_bounds(first, second, ["x.parquet"])] == [(0, 0)]


def test_scores_at_places_come_in_the_order_of_files_and_rows(tmp_path: Path) -> None:
    tables = {"b.parquet": scored_rows(20, 0), "a.parquet": scored_rows(20, 1)}
    found, scores = scores_at(put(tmp_path / "out", tables), {"b.parquet": np.array([3]), "a.parquet": np.array([11, 9])}, ["elbo_nats"])
    assert found == [("a.parquet", 9), ("a.parquet", 11), ("b.parquet", 3)]
    assert scores[2, 0] == tables["b.parquet"]["elbo_nats"][3].as_py()
