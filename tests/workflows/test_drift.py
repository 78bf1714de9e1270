"""Claims about workflows.drift with small linear models: false alarms and power, what is kept of which rows, and how it is said."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from scipy import stats

from benchmarks.drift import Watch, independent, replicate, two_groups
from data.drift import MIN_REFERENCE_ROWS, Finding, Quantities, Reference, num_rows
from data.encoding import TableEncoding
from data.listing import DataError
from data.split import TRAIN, VALIDATION, split_rows
from data.table import RowGroup, open_table
from tests.running import Trained
from vae import load_bundle
from vae.model import VAE
from vae.rows import Rows
from workflows.checks import ConfigError
from workflows.diagnostics import why_no_drift
from workflows.drift import (
    ELBO,
    LATENT,
    chosen,
    drift_report,
    found_drift,
    model_quantities,
    open_reference,
    quantities,
    reference_for,
    training_reference,
)
from workflows.drift_config import DriftConfig

CONFIDENCE = 0.999


@pytest.fixture(scope="module")
def watch() -> Watch:
    return Watch(independent, latent_dim=2, num_steps=100)


@pytest.fixture(scope="module")
def factors() -> Watch:
    return Watch(two_groups, latent_dim=2, num_steps=300)


def alarms(found: list[list[Finding]]) -> int:
    return sum(any(finding.drifted for finding in findings) for findings in found)


def test_false_alarms_are_as_many_as_alpha_says(watch: Watch) -> None:
    """100 replications at 5 %: 0 to 13 in 99.9 of 100 cases; with 1,000 and the aim of 3.5 to 6.5 %, benchmarks/README.md."""
    found = replicate(watch, independent, independent, range(100), 2000, 2000)
    lower, upper = stats.binom.interval(CONFIDENCE, 100, 0.05)
    assert lower <= alarms(found) <= upper
    p_values = np.array([finding.p_value for findings in found for finding in findings])
    lower, upper = stats.binom.interval(CONFIDENCE, len(p_values), 0.05)
    assert lower <= (p_values <= 0.05).sum() <= upper


def test_a_shift_of_a_fifth_of_a_standard_deviation_in_one_column_of_ten_is_found_at_5000_rows(watch: Watch) -> None:
    found = replicate(watch, independent, lambda rng, rows: independent(rng, rows, shift=0.2), range(20), 5000, 5000)
    named = [{finding.quantity for finding in findings if finding.drifted} for findings in found]
    assert sum("column x3" in names for names in named) >= 19


def test_a_dependence_that_no_column_shows_alone_is_found_in_the_latent_means(factors: Watch) -> None:
    found = replicate(factors, two_groups, lambda rng, rows: two_groups(rng, rows, correlation=0.5), range(5), 3000, 3000)
    for findings in found:
        drifted = {finding.quantity for finding in findings if finding.drifted}
        assert LATENT in drifted
        assert not any(name.startswith("column ") for name in drifted)


def test_rows_that_the_model_does_not_expect_are_found_in_the_elbo(factors: Watch) -> None:
    """Every column alone is as before, and those that went together no longer do."""
    rng = np.random.default_rng(0)
    rows = two_groups(rng, 3000)
    shuffled = pa.table({name: rng.permutation(rows[name].to_numpy()) for name in rows.column_names})
    drifted = {f.quantity for f in factors.compare(factors.reference(two_groups(rng, 3000)), shuffled) if f.drifted}
    assert ELBO in drifted
    assert not any(name.startswith("column ") for name in drifted)


def test_what_is_measured_of_a_row_depends_on_the_row_alone(watch: Watch) -> None:
    rows = independent(np.random.default_rng(3), 500)
    arrays = watch.encoding.encode(rows, "rows")
    whole = model_quantities(watch.model, Rows.from_arrays(arrays))
    part = model_quantities(watch.model, Rows.from_arrays({name: array[100:103] for name, array in arrays.items()}))
    for name in (LATENT, ELBO):
        np.testing.assert_allclose(part[name].values, whole[name].values[100:103], rtol=1e-4, atol=1e-5)
        assert part[name].num_nulls == 0


def test_binarised_pixels_are_drawn_the_same_for_every_row() -> None:
    field = {"name": "image_0", "likelihood": "bernoulli", "size": 9, "valid_size": 1, "with_flags": False, "binarize": True}
    model = VAE([field], latent_dim=2, hidden_dims=[8]).eval()
    pixels = torch.randint(0, 256, (1, 9), generator=torch.Generator().manual_seed(0)).to(torch.uint8).expand(5, -1)
    rows = Rows({"image_0": pixels}, {"image_0": torch.ones(5, 1, dtype=torch.bool)}, torch.zeros(5))
    elbo = model_quantities(model, rows)[ELBO].values
    np.testing.assert_allclose(elbo, np.full(5, elbo[0]), rtol=1e-5)


def write(folder: Path, num_rows: int, num_files: int = 4) -> Path:
    folder.mkdir()
    rows = independent(np.random.default_rng(11), num_rows)
    for number in range(num_files):
        part = rows.slice(number * num_rows // num_files, (number + 1) * num_rows // num_files - number * num_rows // num_files)
        pq.write_table(part, folder / f"part-{number}.parquet", row_group_size=max(1, num_rows // num_files // 3))
    return folder


def values(parts: list[Quantities], encoding: TableEncoding) -> set[float]:
    return {float(value) for part in parts for value in part["column x0"].values}


def side_of(folder: Path, watch: Watch, side: int, fractions: tuple[float, float]) -> set[float]:
    """Returns the encoded x0 of every row that the split has on a side."""
    table, found = open_table(str(folder)), set()
    for group in table.row_groups():
        rows = pq.ParquetFile(group.path).read_row_group(group.index)
        place = RowGroup(group.path, group.identity, group.index, group.first_row, group.num_rows)
        kept = rows.filter(pa.array(split_rows(rows, place, None, fractions) == side))
        for part in quantities(watch.model, watch.encoding, kept, "rows"):
            found |= values([part], watch.encoding)
    return found


@pytest.mark.parametrize(("side", "share"), [(VALIDATION, 0.3), (TRAIN, 0.5)])
def test_the_rows_of_a_reference_are_of_their_side_and_spread_over_the_table(watch: Watch, tmp_path: Path, side: int, share: float) -> None:
    folder, fractions = write(tmp_path / "table", 3000), (0.3, 0.2)
    table = open_table(str(folder))
    on_side = side_of(folder, watch, side, fractions)
    assert values(list(chosen(watch.model, watch.encoding, table, side, fractions, 10**6)), watch.encoding) == on_side
    some = list(chosen(watch.model, watch.encoding, table, side, fractions, 400))
    assert values(some, watch.encoding) < on_side
    assert stats.binom.ppf(0.001, 3000, 400 / 3000) <= num_rows(some) <= stats.binom.ppf(0.999, 3000, 400 / 3000)
    assert len(some) == sum(1 for _ in table.row_groups())


def record(watch: Watch, fractions: tuple[float, float]) -> dict[str, Any]:
    return watch.encoding.to_json() | {"split": {"validation_fraction": fractions[0], "test_fraction": fractions[1]}}


def test_training_keeps_validation_rows_and_without_them_training_rows_without_what_the_model_says(watch: Watch, tmp_path: Path) -> None:
    table = open_table(str(write(tmp_path / "table", 3000)))

    def kept(fractions: tuple[float, float], is_validation: bool = False) -> Reference:
        stored = training_reference(watch.model, watch.encoding, table, record(watch, fractions), is_validation)
        assert stored is not None
        return Reference.from_json(stored)

    of_validation, of_training, of_all = kept((0.2, 0.1)), kept((0.0, 0.1)), kept((0.2, 0.1), is_validation=True)
    assert (of_validation.rows, of_all.rows) == ("validation rows", "validation rows")
    assert of_training.rows == "training rows (without latent means and ELBO)"
    assert {LATENT, ELBO} <= set(of_validation.cuts)
    assert not {LATENT, ELBO} & set(of_training.cuts)
    assert 500 < of_validation.sketch.total_rows < 700
    assert of_training.sketch.total_rows > 2600
    assert of_all.sketch.total_rows == 3000


def test_a_table_of_few_rows_gives_no_reference(watch: Watch, tmp_path: Path) -> None:
    table = open_table(str(write(tmp_path / "table", MIN_REFERENCE_ROWS - 1)))
    assert training_reference(watch.model, watch.encoding, table, record(watch, (0.1, 0.0)), is_validation=False) is None


def test_a_model_without_a_reference_says_how_to_give_one(watch: Watch) -> None:
    with pytest.raises(ConfigError, match=r"keeps no reference for drift.*--drift.reference TABLE"):
        reference_for(DriftConfig(), watch.model, watch.encoding, record(watch, (0.1, 0.0)))


def test_a_reference_may_be_a_table(watch: Watch, tmp_path: Path) -> None:
    folder = write(tmp_path / "table", 3000)
    found = reference_for(DriftConfig(str(folder)), watch.model, watch.encoding, record(watch, (0.1, 0.0)))
    assert (found.rows, found.sketch.total_rows) == (str(folder), 3000)
    few = reference_for(DriftConfig(str(folder), num_rows=500), watch.model, watch.encoding, record(watch, (0.1, 0.0)))
    assert 400 < few.sketch.total_rows < 600
    short = write(tmp_path / "short", 60)
    with pytest.raises(DataError, match=r"short: 60 rows; to find drift by, at least 100 are needed"):
        reference_for(DriftConfig(str(short)), watch.model, watch.encoding, record(watch, (0.1, 0.0)))
    other = tmp_path / "other.parquet"
    pq.write_table(pa.table({"x0": ["a"]}), other)
    with pytest.raises(DataError, match=r"column 'x0' is string, the model was trained on double\n  column 'x1' is missing"):
        reference_for(DriftConfig(str(other)), watch.model, watch.encoding, record(watch, (0.1, 0.0)))


def test_an_unknown_column_to_ignore_is_refused(watch: Watch) -> None:
    with pytest.raises(ConfigError, match=r"drift.ignore names \['day'\], which the model does not read"):
        reference_for(DriftConfig(ignore=["day", "x0"]), watch.model, watch.encoding, {})


def test_a_named_reference_is_looked_at_before_anything_is_scored(watch: Watch, tmp_path: Path) -> None:
    assert open_reference(DriftConfig(), watch.encoding) is None
    table = open_reference(DriftConfig(str(write(tmp_path / "table", 300))), watch.encoding)
    assert table is not None
    assert table.num_rows == 300
    with pytest.raises(DataError, match="nowhere: nothing is there"):
        open_reference(DriftConfig(str(tmp_path / "nowhere")), watch.encoding)
    with pytest.raises(DataError, match=f"few: 99 rows; .* {MIN_REFERENCE_ROWS} are needed"):
        open_reference(DriftConfig(str(write(tmp_path / "few", 99))), watch.encoding)


def test_drift_that_is_asked_for_and_cannot_be_looked_for_is_refused_before_anything_is_scored() -> None:
    def scoring(side: str, read: str, **kept: Any) -> Any:
        bundle, table = SimpleNamespace(table={"fingerprint": "training", **kept}), SimpleNamespace(fingerprint=read)
        return SimpleNamespace(bundle=bundle, what=SimpleNamespace(side=side), job=SimpleNamespace(table=table))

    for asked in (DriftConfig(fail=True), DriftConfig(ignore=["x"])):
        with pytest.raises(ConfigError, match=r"--drift\.reference TABLE"):
            why_no_drift(asked, scoring("all", "new"))
        assert not why_no_drift(asked, scoring("all", "new", drift={}))
    assert "keeps no reference" in why_no_drift(DriftConfig(), scoring("all", "new"))
    assert "has seen these rows" in why_no_drift(DriftConfig(), scoring("validation", "training"))
    assert not why_no_drift(DriftConfig("table"), scoring("all", "new"))


def test_drift_is_said_with_where_it_is(watch: Watch) -> None:
    rng = np.random.default_rng(0)
    reference = watch.reference(independent(rng, 2000))
    new = reference.no_rows
    for part in quantities(watch.model, watch.encoding, independent(rng, 2000, shift=1.0), "rows"):
        new = new.merge(reference.sketch_of(part))
    report = drift_report(reference, new, DriftConfig())
    assert report == json.loads(json.dumps(report, allow_nan=False))
    assert report["drift"]
    assert report["tests"][0]["quantity"] == "column x3"
    assert found_drift(report).startswith("values of column x3: p ")
    assert not drift_report(reference, new, DriftConfig(min_effect=0.9))["drift"]


def test_few_rows_are_no_drift_and_that_is_said(watch: Watch, caplog: pytest.LogCaptureFixture) -> None:
    reference = watch.reference(independent(np.random.default_rng(0), 2000))
    report = drift_report(reference, reference.no_rows, DriftConfig())
    assert (report["drift"], report["tests"], report["num_rows"]) == (False, [], 0)
    assert "0 rows are too few to tell drift from chance" in caplog.text


@pytest.mark.parametrize(("option", "value"), [("alpha", 0.0), ("alpha", 1.0), ("min_effect", -0.1), ("min_effect", 1.0), ("num_rows", 99)])
def test_options_that_cannot_be_are_refused(option: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"drift.{option}"):
        replace(DriftConfig(), **{option: value}).check()  # type: ignore[arg-type]
    DriftConfig().check()


def test_a_trained_models_bundle_keeps_its_validation_rows_reference(trained: Trained) -> None:
    bundle = load_bundle(trained.folder / "runs" / "first" / "bundle")
    encoding = TableEncoding.from_json(bundle.table)
    reference = reference_for(DriftConfig(), bundle.model, encoding, bundle.table)
    assert reference.rows == "validation rows"
    assert reference.sketch.total_rows == trained.json["validation"]["num_rows"]
    assert set(reference.cuts) == {*(f"column {name}" for name in encoding.inputs), LATENT, ELBO}
    again = training_reference(bundle.model, encoding, open_table(str(trained.table)), bundle.table, is_validation=False)
    assert again == bundle.table["drift"]
