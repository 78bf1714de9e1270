"""What keeps a version from becoming champion: every planted regression is refused with its reason, equal and better ones pass."""

from __future__ import annotations

import dataclasses
import json
import math
import pickle
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import mlflow
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from numpy.typing import NDArray

from data.columns import Rules, decide_columns
from data.conditions import conditioned
from data.encoding import TableEncoding
from data.statistics import summarise_table
from data.table import open_table
from vae import VAE, BundleError, Rows, save_bundle
from workflows import gates
from workflows.architecture import architecture
from workflows.batch_config import BatchRegistryConfig
from workflows.champion import make_champion, noted_change
from workflows.checks import ConfigError
from workflows.errors import ServiceError, TryAgain
from workflows.evaluate_config import AuditConfig, EvaluateConfig, EvaluateDataConfig, EvaluateOutputConfig, GatesConfig
from workflows.evaluation import SCORES
from workflows.gates import Comparison
from workflows.model_config import ModelConfig
from workflows.pinned import pin
from workflows.promotion import Rival, embedding_of, find_rival, first_rows
from workflows.registry import Registry
from workflows.scoring_job import candidate_scoring
from workflows.totals import Estimate, Totals

GATES = GatesConfig()


def bounds(num_rows: int, shift: float = 0.0, noise: float = 1.0, seed: int = 0) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Returns candidate's and champion's bounds of the same rows; the candidate's are `shift` higher."""
    random = np.random.default_rng(seed)
    champion = random.normal(-50, 10, num_rows)
    return champion + shift + noise * random.normal(size=num_rows), champion


def refusals(num_rows: int, shift: float, gates_config: GatesConfig = GATES, noise: float = 1.0) -> list[str]:
    return gates.comparison_faults(Comparison.of("1", [bounds(num_rows, shift, noise)]), gates_config)


@pytest.mark.parametrize("shift", [0.0, 0.5, 20.0])
def test_an_equal_or_better_version_passes(shift: float) -> None:
    assert refusals(1000, shift, noise=0.0) == []
    assert refusals(1000, shift + 0.2) == []


def test_a_worse_version_is_refused_with_the_difference_and_its_interval() -> None:
    (reason,) = refusals(1000, -0.5)
    difference = Estimate.of(np.subtract(*bounds(1000, -0.5)))
    lower, upper = difference.interval
    assert reason.startswith(f"worse than the champion: {difference.mean:.4g} nats per row against champion version 1")
    assert f"95 % interval {lower:.4g} to {upper:.4g}, 1000 rows" in reason
    assert upper < 0


def test_what_is_worse_within_the_interval_passes_and_the_allowance_moves_the_limit() -> None:
    assert refusals(1000, -0.01) == []
    assert refusals(1000, -0.5, GatesConfig(max_loss_nats_per_row=1.0)) == []
    assert refusals(1000, -2.0, GatesConfig(max_loss_nats_per_row=1.0)) != []


def test_the_interval_holds_no_difference_95_times_of_100() -> None:
    refused = sum(bool(gates.comparison_faults(Comparison.of("1", [bounds(200, 0.0, seed=seed)]), GATES)) for seed in range(1000))
    assert 10 <= refused <= 45  # one side of it: 2.5 %


def test_too_few_rows_that_neither_was_trained_on_are_refused() -> None:
    (reason,) = refusals(99, 5.0)
    assert "only 99 rows that neither the version nor champion version 1 was trained on; 100 are needed" in reason


def test_a_champion_that_was_trained_on_all_rows_leaves_nothing_to_compare() -> None:
    (reason,) = gates.comparison_faults(Comparison.of("7", []), GATES)
    assert "only 0 rows that neither the version nor champion version 7" in reason


def test_a_row_without_a_finite_bound_is_refused() -> None:
    candidate, champion = bounds(500, 3.0)
    candidate[7], champion[9] = np.nan, -np.inf
    comparison = Comparison.of("1", [(candidate, champion)])
    assert gates.comparison_faults(comparison, GATES) == [
        "2 rows have no finite log-evidence bound under the version or champion version 1"
    ]


def test_parts_of_the_rows_compare_as_all_of_them_do() -> None:
    candidate, champion = bounds(1000, 0.1)
    whole = Comparison.of("1", [(candidate, champion)]).difference
    parts = Comparison.of("1", [(candidate[i : i + 130], champion[i : i + 130]) for i in range(0, 1000, 130)]).difference
    assert whole is not None
    assert parts is not None
    assert (parts.mean, parts.standard_error) == pytest.approx((whole.mean, whole.standard_error), rel=1e-12)


def totals(kl: float = 4.0, active: int = 3, num_rows: int = 500, trained_on: int = 0, not_finite: int = 0) -> Totals:
    scores = {name: Estimate(-50.0, 0.1, num_rows) for name in SCORES} | {"kl_nats": Estimate(kl, 0.1, num_rows)}
    variances = np.where(np.arange(5) < active, 1.0, 1e-4)
    return Totals(num_rows, trained_on, not_finite, 0, scores, {"x": Estimate(-1.0, 0.1, num_rows)}, variances)


def test_a_version_that_is_well_passes() -> None:
    assert gates.score_faults(totals(), GATES) == []
    assert gates.collapse_faults(totals(), GATES) == []


@pytest.mark.parametrize(
    ("kl", "active", "reason"), [(0.001, 3, "the KL is 0.001"), (4.0, 0, "0 active units"), (math.nan, 3, "the KL is nan")]
)
def test_a_collapsed_version_is_refused(kl: float, active: int, reason: str) -> None:
    (found,) = gates.collapse_faults(totals(kl, active), GATES)
    assert found.startswith("collapsed")
    assert reason in found


@pytest.mark.parametrize("name", list(GATES.limits))
@pytest.mark.parametrize(("gap", "passes"), [(0.5, True), (1.1, True), (1.3, False), (math.nan, False)])
def test_a_gap_beyond_its_limit_is_refused_by_name(name: str, gap: float, passes: bool) -> None:
    limits = GATES.limits | {name: 1.0}
    gaps = {other: Estimate(gap if other == name else 50.0, 0.1, 200) for other in limits}
    found = gates.gap_faults(gaps, limits)
    assert passes == (not found)
    if not passes:
        assert len(found) == 1
        assert f"the {name.split('_')[0]} gap is" in found[0]
        assert f"1 are allowed (gates.max_{name})" in found[0]


def test_a_limit_of_a_gap_needs_the_audit() -> None:
    options = EvaluateConfig("models:/m/1", EvaluateDataConfig(path="t"), EvaluateOutputConfig(path="o"), audit=AuditConfig(num_rows=0))
    options.check()
    limited = dataclasses.replace(options, gates=GatesConfig(max_total_gap_nats_per_row=1.0))
    with pytest.raises(ConfigError, match=r"audit.num_rows is 0"):
        limited.check()


def test_scores_that_are_no_numbers_and_rows_of_the_training_are_refused() -> None:
    assert gates.score_faults(totals(not_finite=3), GATES) == ["3 of 500 rows have a score that is no finite number"]
    (reason,) = gates.score_faults(totals(trained_on=450), GATES)
    assert reason.startswith("only 50 of 500 rows were not trained on")


def test_metrics_that_are_no_numbers_are_refused_by_name() -> None:
    assert gates.finite_faults({"a": 1.0, "b": math.nan, "c": -math.inf}) == ["metrics that are no finite numbers: b, c"]
    assert gates.finite_faults({"a": 1.0}) == []


FIELDS: list[dict[str, Any]] = [{"name": "x", "likelihood": "gaussian", "valid_size": 2, "size": 2}]


def tiny_model(seed: int = 0) -> VAE:
    torch.manual_seed(seed)
    return VAE(FIELDS, 2, hidden_dims=[4])


def tiny_rows(num_rows: int) -> Rows:
    return Rows({"x": torch.randn(num_rows, 2)}, {"x": torch.ones(num_rows, 2, dtype=torch.bool)}, torch.zeros(num_rows))


def test_embeddings_that_differ_the_second_time_are_refused() -> None:
    rows = tiny_rows(100)
    assert gates.embedding_faults(embedding_of(tiny_model().eval()), rows, 32) == []
    random = np.random.default_rng(0)
    (reason,) = gates.embedding_faults(lambda rows: random.normal(size=(rows.num_rows, 2)), rows, 32)
    assert reason == "not reproducible: 32 of 32 rows were embedded otherwise the second time"


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_no_numbers_are_refused_by_name(value: float) -> None:
    model = tiny_model()
    assert gates.weight_faults(model) == []
    name, parameter = next(iter(model.named_parameters()))
    with torch.no_grad():
        parameter.view(-1)[0] = value
    assert gates.weight_faults(model) == [f"weights that are no finite numbers: {name}"]


@pytest.mark.parametrize("name", ["artifacts/extra.pkl", "data/model.pt", "artifacts/notes.txt"])
def test_a_pickle_among_a_versions_files_is_refused_whatever_its_name(name: str) -> None:
    files = {"MLmodel": b"artifact_path: m", "artifacts/bundle/model.json": b"{}"}
    assert gates.pickle_faults(files) == []
    assert gates.pickle_faults(files | {name: pickle.dumps({"a": 1})}) == [f"files that may hold pickled objects: {name}"]


def encoding_of(table: pa.Table, condition: list[str] | None = None, key: str | None = "id") -> TableEncoding:
    summary = summarise_table(table, (len(table), 0, 0))
    columns = conditioned(decide_columns(table.schema, summary, key, {}, Rules()), condition or [])
    return TableEncoding(table.schema, tuple(columns), key)


RANDOM = np.random.default_rng(0)
TABLE = pa.table({"id": range(400), "x": RANDOM.normal(size=400), "y": RANDOM.normal(size=400), "c": RANDOM.choice(list("ab"), 400)})


@pytest.mark.parametrize(
    ("other", "condition", "reason"),
    [
        (TABLE.append_column("z", TABLE["x"]), [], "z is double (density), was not there"),
        (TABLE.drop_columns(["y"]), [], "y is not there, was double (density)"),
        (TABLE.set_column(1, "x", TABLE["x"].cast(pa.float32())), [], "x is float (density), was double (density)"),
        (TABLE.set_column(1, "x", pa.array(np.round(np.asarray(TABLE["x"]), 1))), [], "x is double (masses in steps of 0.1)"),
        (TABLE, ["c"], "c is string (categorical, condition), was string (categorical)"),
    ],
    ids=["another column", "missing column", "another type", "masses", "condition"],
)
def test_other_columns_than_the_champions_are_refused(other: pa.Table, condition: list[str], reason: str) -> None:
    (found,) = gates.schema_faults(encoding_of(other, condition), encoding_of(TABLE))
    assert found.startswith("other columns than the champion's: ")
    assert reason in found


def test_categories_that_only_the_champion_tells_apart_are_refused_and_new_ones_pass() -> None:
    more = TABLE.set_column(3, "c", pa.array(np.random.default_rng(1).choice(list("abc"), 400)))
    assert gates.schema_faults(encoding_of(more), encoding_of(TABLE)) == []
    (reason,) = gates.schema_faults(encoding_of(TABLE), encoding_of(more))
    assert reason == "categories that only the champion tells apart: c: 'c' (1 in all)"


def test_the_same_columns_of_other_rows_pass() -> None:
    assert gates.schema_faults(encoding_of(TABLE.slice(0, 300)), encoding_of(TABLE)) == []


def test_rows_of_which_training_cannot_be_known_are_refused() -> None:
    split = {"validation_fraction": 0.1, "test_fraction": 0.0, "validation_fingerprint": "v"}
    record = {"key": None, "fingerprint": "f", "split": split}
    assert gates.split_faults(record, "f", "version 1") == gates.split_faults(record, "v", "version 1") == []
    assert gates.split_faults(record | {"key": "id"}, "another", "version 1") == []
    (reason,) = gates.split_faults(record, "another", "champion version 1")
    assert "which of these rows champion version 1 was trained on cannot be known" in reason


class World(NamedTuple):
    """A table, and an MLflow store with versions of the model `tiny` that nobody trained."""

    folder: Path
    client: mlflow.MlflowClient

    @property
    def uri(self) -> str:
        return f"sqlite:///{self.folder / 'mlflow.db'}"

    def config(self, version: int, **more: Any) -> EvaluateConfig:
        data, output = EvaluateDataConfig(str(self.folder / "table.parquet")), EvaluateOutputConfig(str(self.folder / "out"))
        common = EvaluateConfig(f"models:/tiny/{version}", data, output, promote=True, registry=BatchRegistryConfig(self.uri))
        return dataclasses.replace(common, **more)

    def register(self, table: pa.Table = TABLE, seed: int = 0, **record: Any) -> int:
        """Returns the number of a new version."""
        number = len(self.client.search_model_versions("name = 'tiny'")) + 1
        encoding = encoding_of(table)
        torch.manual_seed(seed)
        model = VAE(**architecture(encoding, ModelConfig(latent_dim=2, hidden_dims=[4])))
        split = {"validation_fraction": 0.5, "test_fraction": 0.0}
        stored = encoding.to_json() | {"split": split, "fingerprint": "none", "null_pattern": False} | record
        sha256 = save_bundle(self.bundle(number), model, stored)
        self.client.create_model_version("tiny", self.bundle(number).parents[1].as_uri(), tags={"bundle_sha256": sha256})
        return number

    def bundle(self, number: int) -> Path:
        return self.folder / f"model-{number}" / "artifacts" / "bundle"

    def rival(self, version: int) -> Rival:
        registry, config = Registry(self.uri), self.config(version)
        return find_rival(registry, config, candidate_scoring(config, registry.pin(config.model)))

    def make_champion(self, version: int) -> None:
        self.client.set_registered_model_alias("tiny", "champion", str(version))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("world")
    pq.write_table(TABLE, folder / "table.parquet")
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    mlflow.set_tracking_uri(uri)
    return World(folder, mlflow.MlflowClient(uri))


@pytest.fixture
def world(store: World) -> Iterator[World]:
    store.client.create_registered_model("tiny")
    yield store
    store.client.delete_registered_model("tiny")
    for folder in store.folder.glob("model-*"):
        shutil.rmtree(folder)


def test_without_a_champion_there_is_none_to_compare_with(world: World) -> None:
    assert world.rival(world.register()) == Rival()


def test_the_champion_of_the_same_columns_is_scored_on_the_same_rows(world: World) -> None:
    world.make_champion(world.register(seed=1))
    rival = world.rival(world.register(seed=2))
    assert rival.reasons == ()
    assert rival.scoring is not None
    assert rival.scoring.pinned.version == "1"
    assert rival.scoring.job.root == candidate_scoring(world.config(2), Registry(world.uri).pin("models:/tiny/2")).job.root


def test_a_version_that_is_champion_already_has_no_rival(world: World) -> None:
    version = world.register()
    world.make_champion(version)
    assert world.rival(version).is_candidate


def test_a_champion_of_other_columns_is_no_measure(world: World) -> None:
    world.make_champion(world.register(TABLE.drop_columns(["y"])))
    rival = world.rival(world.register())
    assert rival.scoring is None
    assert "y is double (density), was not there" in rival.reasons[0]


def test_a_champion_without_a_key_from_another_table_is_no_measure(world: World) -> None:
    world.make_champion(world.register(key=None))
    (reason,) = world.rival(world.register()).reasons
    assert "champion version 1 was trained on cannot be known" in reason


def test_a_champion_whose_files_were_changed_is_no_measure(world: World) -> None:
    world.make_champion(world.register())
    weights = world.bundle(1) / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    (reason,) = world.rival(world.register()).reasons
    assert "champion version 1 cannot be compared with" in reason
    assert "sha256" in reason


@pytest.mark.parametrize("damage", ["tampered", "pickle"])
def test_a_version_that_is_not_what_was_registered_is_not_even_loaded(world: World, damage: str) -> None:
    version = world.register()
    if damage == "pickle":
        (world.bundle(version) / "weights.pkl").write_bytes(pickle.dumps([1]))
    else:
        path = world.bundle(version) / "model.json"
        path.write_bytes(path.read_bytes().replace(b'"latent_dim": 2', b'"latent_dim": 3'))
    with pytest.raises(BundleError):
        world.rival(version)


def test_a_pickle_beside_the_bundle_is_found(world: World) -> None:
    version = world.register()
    registry = Registry(world.uri)
    assert gates.pickle_faults(registry.version_files("tiny", str(version))) == []
    (world.bundle(version).parent / "more.bin").write_bytes(pickle.dumps([1]))
    assert gates.pickle_faults(registry.version_files("tiny", str(version))) == ["files that may hold pickled objects: artifacts/more.bin"]


def test_a_folders_model_is_of_no_registered_model_and_cannot_be_promoted(world: World) -> None:
    version = world.register()
    config = world.config(version, model=str(world.bundle(version)))
    with pytest.raises(ConfigError, match="a registered model's version"):
        config.check()
    with pytest.raises(ConfigError, match="no version of a registered model"):
        find_rival(Registry(world.uri), config, candidate_scoring(config, pin(config.model, world.uri)))


def test_first_rows_are_the_tables(world: World) -> None:
    scoring = candidate_scoring(world.config(world.register()), Registry(world.uri).pin("models:/tiny/1"))
    rows = first_rows(scoring)
    assert rows.num_rows == len(TABLE)
    assert torch.equal(rows.valid["numeric"], torch.ones(400, 2, dtype=torch.bool))
    assert gates.embedding_faults(embedding_of(scoring.bundle.model), rows, 64) == []
    assert open_table(str(world.folder / "table.parquet")).fingerprint == scoring.job.table.fingerprint


def test_a_promotion_against_another_champion_than_was_compared_with_is_not_made(world: World) -> None:
    for seed in range(3):
        world.register(seed=seed)
    registry = Registry(world.uri)
    world.make_champion(2)
    with pytest.raises(TryAgain, match="champion was version 1 when this began and is version 2 now"):
        make_champion(registry, "tiny", noted_change("promotion", "1", "3", "", None))
    assert registry.aliases("tiny") == {"champion": "2"}


def test_concurrent_promotions_leave_one_consistent_state(world: World) -> None:
    for seed in range(4):
        world.register(seed=seed)
    world.make_champion(1)
    begin = threading.Barrier(3)
    refused: list[str] = []

    def work(version: str) -> None:
        registry = Registry(world.uri)
        begin.wait()
        try:
            make_champion(registry, "tiny", noted_change("promotion", "1", version, "", None))
        except (TryAgain, ServiceError):  # the store itself refuses two first notes at once
            refused.append(version)

    threads = [threading.Thread(target=work, args=(version,)) for version in ("2", "3", "4")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    aliases = Registry(world.uri).aliases("tiny")
    assert aliases["previous"] == "1"
    assert aliases["champion"] in ("2", "3", "4")
    assert aliases["champion"] not in refused
    noted = json.loads(world.client.get_registered_model("tiny").tags["champion_change"])
    assert noted["from"] == "1"
