"""Searches: what may be searched and which trials are drawn from it; nested runs, ASHA, the best one registered; kills on the way."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlflow
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import fs

from data.output import OutputError
from data.overrides import ColumnOverrideError
from data.split import TRAIN
from data.table import open_table
from tests.running import Outcome, Trained, run_job, running_job
from tests.small_models import encoding_of
from workflows.checks import ConfigError
from workflows.cluster import connected
from workflows.config import TrainConfig
from workflows.errors import ComputationError
from workflows.job import exit_code, parse
from workflows.model_config import ModelConfig, ObjectiveConfig, TrainingConfig
from workflows.ranking import best_of
from workflows.runs import RECORD, Run
from workflows.search import halving, trials_of
from workflows.space import SearchConfig, TuneConfig
from workflows.training import Prepared, Source, prepare_each
from workflows.trials import Trial, measured
from workflows.tune_job import tune


def asked(*options: object) -> SearchConfig:
    return parse(SearchConfig, ["--data.path", "x", *map(str, options)])


@pytest.mark.parametrize(
    ("key", "given", "is_range", "size"),
    [
        ("training.learning_rate", "[1e-4, 1e-2]", True, math.inf),
        ("training.learning_rate", "[1e-2, 1e-4]", False, 2),
        ("training.learning_rate", "[1e-4, 1e-3, 1e-2]", False, 3),
        ("training.weight_decay", "[0, 1]", True, math.inf),
        ("training.max_steps", "[null, 40]", False, 2),
        ("model.latent_dim", "[8, 16]", True, 9),
        ("model.latent_dim", "[8, 16, 32]", False, 3),
        ("model.latent_dim", "[8]", False, 1),
        ("model.hidden_dims", "[[64], [64, 32]]", False, 2),
        ("model.hidden_dims", "[[64, 128]]", False, 1),
        ("model.null_pattern", "[false, true]", False, 2),
        ("training.precision", "[float32, bfloat16]", False, 2),
    ],
)
def test_two_rising_numbers_are_a_range_and_any_other_list_is_choices(key: str, given: str, is_range: bool, size: float) -> None:
    (axis,) = asked(f"--{key}", given).axes()
    assert (axis.key, axis.is_range, axis.size) == (key, is_range, size)


def test_a_list_of_widths_is_a_value_and_nothing_to_search() -> None:
    config = asked("--model.hidden_dims", "[64, 128]")
    assert [axis.key for axis in config.axes()] == ["model.latent_dim", "training.learning_rate"]
    assert {trial.model.hidden_dims[0] for trial in map(config.with_values, config.draw())} == {64}


def test_without_lists_what_has_its_default_is_searched() -> None:
    assert [axis.key for axis in asked().axes()] == ["model.latent_dim", "model.hidden_dims", "training.learning_rate"]
    assert [axis.key for axis in asked("--model.network", "linear", "--training.learning_rate", 0.5).axes()] == ["model.latent_dim"]
    with pytest.raises(ConfigError, match="give an option as a list"):
        asked("--model.network", "linear", "--training.learning_rate", 0.5, "--model.latent_dim", 3)


def test_ranges_are_drawn_evenly_in_the_logarithm_above_zero_and_evenly_otherwise() -> None:
    ranges = ("--training.learning_rate", "[1e-4, 1e-2]", "--objective.beta", "[0, 4]", "--model.latent_dim", "[2, 128]")
    drawn = asked(*ranges, "--tune.num_trials", 600).draw()
    rates, betas, dims = ([values[key] for values in drawn] for key in ("training.learning_rate", "objective.beta", "model.latent_dim"))
    assert (min(rates) >= 1e-4, max(rates) <= 1e-2, min(betas) >= 0, max(betas) <= 4) == (True,) * 4
    assert {type(dim) for dim in dims} == {int}
    assert (min(dims), max(dims)) == (2, 128)
    for found, middle in ((rates, 1e-3), (betas, 2), (dims, 16)):  # half of 600 draws: 300, give or take 5 standard deviations of 12
        assert 240 < sum(value <= middle for value in found) < 375


def test_the_same_command_draws_the_same_trials_and_no_trial_twice() -> None:
    space = ("--training.learning_rate", "[1e-4, 1e-2]", "--model.latent_dim", "[8, 16, 32]")
    first = asked(*space, "--tune.num_trials", 5).draw()
    assert asked(*space, "--tune.num_trials", 9).draw()[:5] == first == asked(*space, "--tune.num_trials", 5).draw()
    assert asked(*space, "--tune.num_trials", 5, "--tune.seed", 1).draw() != first
    twelve = ("--model.latent_dim", "[2, 5]", "--model.hidden_dims", "[[8], [9], [7, 7]]")
    for number in (11, 12, 50):
        drawn = asked(*twelve, "--tune.num_trials", number).draw()
        assert len({json.dumps(values) for values in drawn}) == len(drawn) == min(number, 12)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--model.latent_dim", "[0, 8]"), "model.latent_dim is searched in [0, 8]: model.latent_dim is 0; it must be at least 1"),
        (("--training.learning_rate", "[1e-3, -1, 1]"), "training.learning_rate is -1"),
        (("--model.hidden_dims", "[[8], [0]]"), "model.hidden_dims is [0]"),
        (("--model.latent_dim", "[8, 8]"), "choices that differ"),
        (("--model.latent_dim", "[]"), "choices that differ"),
        (("--training.learning_rate", "[1e-3, .inf]"), "all of them finite"),
        (("--model.network", "[linear, mlp]", "--model.hidden_dims", "[[], [8]]"), "model.hidden_dims is []"),
        (("--tune.num_trials", 0), "tune.num_trials is 0"),
        (("--tune.reduction_factor", 1), "tune.reduction_factor is 1"),
        (("--tune.max_concurrent_trials", 0), "tune.max_concurrent_trials is 0"),
        (("--cluster.num_workers", 9), "--data.num_logical_shards 9"),
    ],
)
def test_every_end_and_choice_has_to_be_one_that_train_takes(options: tuple[object, ...], said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        asked(*options)
    assert said in str(refused.value)


@pytest.mark.parametrize("options", [("--data.num_logical_shards", "[4, 8]"), ("--model.latent_dim", "[two, 4]"), ("--tune.trials", 3)])
def test_what_decides_the_data_is_not_searched_and_types_are_checked(options: tuple[object, ...]) -> None:
    with pytest.raises(SystemExit) as ended:
        asked(*options)
    assert ended.value.code == 2


def test_a_search_has_every_option_of_train_with_its_description(capsys: pytest.CaptureFixture[str]) -> None:
    config = asked("--model.latent_dim", "[1, 2]")
    for section, train in ((config.model, ModelConfig), (config.objective, ObjectiveConfig), (config.training, TrainingConfig)):
        assert [option.name for option in fields(section)] == [option.name for option in fields(train)]
    assert {option.name for option in fields(SearchConfig)} == {option.name for option in fields(TrainConfig)} | {"tune"}
    with pytest.raises(SystemExit):
        asked("--help")
    said = " ".join(capsys.readouterr().out.split())
    assert "Latent dimensions. (type: int | list[int], default: 16)" in said
    assert "Decides which trials are drawn." in said


def trial(folder: Path, number: int, outcome: Any = None, elbos: tuple[float, ...] = (), *options: object) -> Trial:
    config = asked("--model.latent_dim", "[2, 3]", *options)
    run = Run(f"t{number}", str(folder / str(number)), fs.LocalFileSystem(), {})
    values = config.with_values({"model.latent_dim": 2})
    settled = replace(values, training=values.training.for_rows(1000))
    return Trial(number, {}, settled, run, outcome, list(elbos))


def test_the_best_trial_is_the_one_with_the_best_epoch_that_did_not_fail(tmp_path: Path) -> None:
    trials = [
        trial(tmp_path, 0, "finished", (-9, -5, -7)),
        trial(tmp_path, 1, "stopped", (-6,)),
        trial(tmp_path, 2, "failed", (-1,)),
        trial(tmp_path, 3, "finished", (-5,)),
    ]
    assert best_of(trials).number == 0
    last = [trial(tmp_path, number, "finished", elbos, "--data.validation_fraction", 0) for number, elbos in enumerate([(-1, -4), (-3,)])]
    assert best_of(last).number == 1  # the training ELBO of an epoch that is gone says nothing of the weights that are left
    nothing = trial(tmp_path, 0, "finished", (measured({"validation/elbo_nats_per_row": math.nan}),))
    with pytest.raises(ComputationError, match="none of the 2 trials has a model"):
        best_of([nothing, trials[2]])


def test_how_a_trial_ended_is_kept_in_its_folder(tmp_path: Path) -> None:
    first = trial(tmp_path, 0)
    first.end("failed", [-3.0], "not finite")
    again = Trial.open(0, {}, first.config, first.run)
    assert (again.outcome, again.elbos, again.error) == ("failed", [-3.0], "not finite")
    assert trial(tmp_path, 1).outcome is None


@pytest.mark.parametrize("content", [b'{"outcome', b"[]", b'{"outcome": "stopped"}', b'{"another": "object"}'])
def test_a_trial_whose_record_is_damaged_has_not_ended_and_that_is_said(
    content: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = trial(tmp_path, 0)
    first.end("stopped", [-3.0])
    record = Path(first.run.folder) / "trial.json"
    record.write_bytes(content)
    again = Trial.open(0, {}, first.config, first.run)
    assert (again.outcome, again.elbos) == (None, [])
    assert f"{record} is damaged" in caplog.text


def test_trials_of_which_no_record_says_what_search_they_are_of_are_not_taken_over(tmp_path: Path) -> None:
    config, this = asked("--model.latent_dim", "[2, 3]", "--run.storage_path", tmp_path), Run.open(str(tmp_path), "lost", {"seed": 1})
    for run in [this, *(trial.run for trial in trials_of(config, this))]:
        run.mlflow_run_id = "0123"
        run.save()
    assert [trial.run.mlflow_run_id for trial in trials_of(config, this)] == ["0123", "0123"]
    (tmp_path / "lost" / RECORD).unlink()
    with pytest.raises(OutputError, match=f"{tmp_path}/lost has trials, and no {RECORD} that says what of; restore it"):
        trials_of(config, Run.open(str(tmp_path), "lost", {"seed": 2}))


def test_asha_remembers_the_trials_of_earlier_starts(tmp_path: Path) -> None:
    ended = [trial(tmp_path, 0, "finished", (-9, -5, -4)), trial(tmp_path, 1, "stopped", (-8,)), trial(tmp_path, 2)]
    scheduler, new = halving(TuneConfig(grace_epochs=1, reduction_factor=2), ended), SimpleNamespace(trial_id="new")
    scheduler.on_trial_add(None, new)
    assert scheduler.on_trial_result(None, new, {"epoch": 1, "elbo": -8.2}) == "CONTINUE"
    assert scheduler.on_trial_result(None, new, {"epoch": 2, "elbo": -5.1}) == "STOP"


def written(folder: Path) -> Path:
    """Returns the path of a table of positive numbers, a category and a key."""
    numbers = np.random.default_rng(0).lognormal(size=400)
    pq.write_table(pa.table({"id": np.arange(400), "x": numbers, "c": ["a", "b"] * 200}), folder / "table.parquet")
    return folder / "table.parquet"


def test_each_trial_models_the_likelihoods_that_were_drawn_for_it(ray_address: str, tmp_path: Path) -> None:
    table = open_table(str(written(tmp_path)))
    config = asked("--model.likelihoods", '[{"x": "student_t"}, {}]', "--model.latent_dim", "[2, 3]", "--data.key", "id")
    configs = [config.with_values(values) for values in config.draw()]
    with connected(ray_address):
        prepared = prepare_each(configs, table, None)
    found = [next(c.likelihood for c in each.encoding.columns if c.name == "x") for each in prepared]
    assert found == [each.model.likelihoods.get("x") for each in configs]
    assert (set(found), len({id(each) for each in prepared})) == ({"student_t", None}, 2)


def test_a_choice_that_no_column_can_have_is_refused_before_anything_is_begun(tmp_path: Path) -> None:
    space = ("--model.likelihoods", '[{"x": "student_t"}, {"c": "student_t"}]', "--data.path", written(tmp_path), "--run.name", "s")
    with pytest.raises(ColumnOverrideError, match=r"model\.likelihoods\.c is 'student_t'"):
        tune(parse(SearchConfig, [str(option) for option in absolute(space, tmp_path)]))
    assert not (tmp_path / "runs").exists()


def test_a_trial_of_a_network_that_the_table_has_no_columns_for_is_refused(tmp_path: Path) -> None:
    table = open_table(str(written(tmp_path)))
    source = Source(table, list(table.row_groups()), np.array([[300, 100, 0]]), (0.25, 0.0))
    prepared = Prepared(encoding_of(pq.read_table(written(tmp_path))), {TRAIN: source}, {})
    trial(tmp_path, 0).take(prepared)
    with pytest.raises(ConfigError, match=r"model\.network is 'conv'"):
        trial(tmp_path, 1, None, (), "--model.network", "conv").take(prepared)


SMALL = ("--data.key", "id", "--model.hidden_dims", "[16]", "--model.latent_dim", 2, "--cluster.num_workers", 1)


def nested(folder: Path, result: dict[str, Any]) -> list[Any]:
    """Returns the trials' MLflow runs by name; there is one more, their parent."""
    client = mlflow.MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    runs = client.search_runs([client.get_experiment_by_name("vae").experiment_id])
    children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == result["run_id"]]
    (parent,) = [run for run in runs if run not in children]
    assert (parent.info.run_id, parent.info.status) == (result["run_id"], "FINISHED")
    return sorted(children, key=lambda run: str(run.info.run_name))


@pytest.mark.slow
def test_a_search_registers_the_best_of_its_nested_runs_once(trained: Trained, ray_address: str, tmp_path: Path) -> None:
    options = (
        *("--data.path", trained.table, "--training.epochs", 3, "--training.learning_rate", "[3e-3, 1e-6]", "--run.name", "s"),
        *("--tune.grace_epochs", 1, "--tune.reduction_factor", 2, "--tune.max_concurrent_trials", 1, *SMALL),
    )
    result = run_job(tmp_path, "tune.py", *options, "--cluster.address", ray_address).json
    assert (result["job"], result["run_name"], result["model_name"], result["model_version"]) == ("tune", "s", "vae", "1")
    assert (result["num_trials"], result["num_trials_stopped"], result["num_trials_failed"]) == (2, 1, 0)
    assert result["best"]["options"] == {"training.learning_rate": 3e-3}
    assert result["best"]["elbo_nats_per_row"] == pytest.approx(result["validation"]["elbo_nats_per_row"], rel=0.05)
    assert result["num_epochs"] == 3
    runs = nested(tmp_path, result)
    assert [run.info.run_name for run in runs] == ["s/trial-000", "s/trial-001"]
    assert [run.info.status for run in runs] == ["FINISHED", "KILLED"]
    assert [float(run.data.params["training.learning_rate"]) for run in runs] == [3e-3, 1e-6]
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    points = [len(client.get_metric_history(run.info.run_id, "validation/elbo_nats_per_row")) for run in runs]
    assert points == [3, 1]
    assert client.get_run(result["run_id"]).data.params["training.learning_rate"] == "[0.003, 1e-06]"
    (version,) = client.search_model_versions("name = 'vae'")
    assert (version.run_id, client.get_model_version_by_alias("vae", "candidate").version) == (result["best"]["run_id"], version.version)
    assert result["best"]["run_id"] == runs[0].info.run_id
    again = parse(SearchConfig, [str(option) for option in absolute(options, tmp_path)])
    assert tune(again) == result
    other = parse(SearchConfig, [str(option) for option in absolute((*options, "--tune.seed", 1), tmp_path)])
    with pytest.raises(ConfigError, match=r"tune\.seed: the run has 0, asked is 1") as refused:
        tune(other)
    assert exit_code(refused.value) == 2


def absolute(options: tuple[object, ...], folder: Path) -> tuple[object, ...]:
    return (*options, "--run.storage_path", folder / "runs", "--registry.tracking_uri", f"sqlite:///{folder / 'mlflow.db'}")


def long_search(trained: Trained, address: str, *more: object) -> tuple[object, ...]:
    """A search in float64 whose trials all go to their end, with a checkpoint at every breath."""
    return (
        *("--data.path", trained.table, "--cluster.address", address, "--training.precision", "float64", "--training.epochs", 8),
        *("--training.learning_rate", "[3e-3, 1e-3, 1e-4]", "--training.global_batch_size", 8, "--run.checkpoint_interval_s", 0.1),
        *("--tune.grace_epochs", 8, "--tune.max_concurrent_trials", 2, "--run.name", "s", *SMALL, *more),
    )


def curves(folder: Path) -> dict[str, dict[int, float]]:
    """Returns trial -> epoch -> its validation ELBO."""
    found = {}
    for path in sorted((folder / "runs" / "s").glob("trial-*/metrics.jsonl")):
        lines = [line for line in map(json.loads, path.read_text().splitlines()) if line["kind"] == "epoch"]
        assert len(lines) == len({line["step"] for line in lines})
        found[path.parent.name] = {line["step"]: line["metrics"]["validation/elbo_nats_per_row"] for line in lines}
    return found


def wait_for(holds: Callable[[], object], process: subprocess.Popen[str], folder: Path) -> None:
    deadline = time.monotonic() + 200
    while not holds():
        assert process.poll() is None, (folder / "log.txt").read_text()
        assert time.monotonic() < deadline, (folder / "log.txt").read_text()
        time.sleep(0.05)


@pytest.fixture(scope="module")
def undisturbed(trained: Trained, ray_address: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    folder = tmp_path_factory.mktemp("undisturbed")
    return folder, run_job(folder, "tune.py", *long_search(trained, ray_address))


def same_search(folder: Path, outcome: Outcome, undisturbed: tuple[Path, Outcome]) -> None:
    calm, whole = undisturbed
    assert curves(folder).keys() == curves(calm).keys()
    for name, curve in curves(calm).items():
        assert curves(folder)[name] == pytest.approx(curve, rel=1e-9)
        assert len(curve) == 8
    assert outcome.json["best"]["options"] == whole.json["best"]["options"]
    assert outcome.json["validation"] == pytest.approx(whole.json["validation"], rel=1e-9)
    assert [run.info.status for run in nested(folder, outcome.json)] == ["FINISHED"] * 3
    client = mlflow.MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    assert [version.run_id for version in client.search_model_versions("name = 'vae'")] == [outcome.json["best"]["run_id"]]


@pytest.mark.slow
def test_a_killed_search_goes_on_and_trains_nothing_twice(
    trained: Trained, ray_address: str, undisturbed: tuple[Path, Outcome], tmp_path: Path
) -> None:
    runs = tmp_path / "runs" / "s"
    with running_job(tmp_path, "tune.py", *long_search(trained, ray_address)) as process:
        wait_for(lambda: list(runs.glob("*/trial.json")) and "trial-002" in curves(tmp_path), process, tmp_path)
        second = run_job(tmp_path, "tune.py", *long_search(trained, ray_address))
        assert (second.code, "run s is held by another job" in second.stderr) == (75, True)
        os.kill(process.pid, signal.SIGKILL)
    ended = {path.parent.name: path.with_name("metrics.jsonl").read_text() for path in runs.glob("*/trial.json")}
    assert 0 < len(ended) < 3
    outcome = run_job(tmp_path, "tune.py", *long_search(trained, ray_address))
    same_search(tmp_path, outcome, undisturbed)
    assert f"3 trials, {len(ended)} of them ended" in outcome.stderr
    for name, metrics in ended.items():
        assert f"s/{name}: epoch" not in outcome.stderr
        assert (runs / name / "metrics.jsonl").read_text().startswith(metrics)


@pytest.mark.slow
def test_a_search_that_is_asked_to_stop_saves_its_trials_and_says_try_again(
    trained: Trained, ray_address: str, undisturbed: tuple[Path, Outcome], tmp_path: Path
) -> None:
    rare = ("--run.checkpoint_interval_s", 1000)
    with running_job(tmp_path, "tune.py", *long_search(trained, ray_address, *rare)) as process:
        wait_for(lambda: len(curves(tmp_path)) == 2 and all(curves(tmp_path).values()), process, tmp_path)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 75
    assert "goes on from what was saved" in (tmp_path / "log.txt").read_text()
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    statuses = [run.info.status for run in client.search_runs([client.get_experiment_by_name("vae").experiment_id])]
    assert sorted(statuses) == ["KILLED", "KILLED", "KILLED", "SCHEDULED"]
    same_search(tmp_path, run_job(tmp_path, "tune.py", *long_search(trained, ray_address, *rare)), undisturbed)


@pytest.mark.slow
def test_a_trial_that_fails_is_left_out_and_the_best_is_finished_where_it_was_stopped(
    trained: Trained, ray_address: str, undisturbed: tuple[Path, Outcome], tmp_path: Path
) -> None:
    options = ("--tune.grace_epochs", 1, "--tune.max_concurrent_trials", 1, "--training.learning_rate", "[3e-3, 1e-3, 1e300]")
    first = run_job(tmp_path, "tune.py", *long_search(trained, ray_address, *options))
    assert (first.json["num_trials_stopped"], first.json["num_trials_failed"]) == (1, 1)
    assert "s/trial-002 failed after 0 epochs: epoch 1, step 2 and those after it: the loss or its gradient is not finite" in first.stderr
    runs = tmp_path / "runs" / "s"
    for path, changes in ((runs / "run.json", {"result": None}), (runs / "trial-001" / "trial.json", {"elbos": [-1.0]})):
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    outcome = run_job(tmp_path, "tune.py", *long_search(trained, ray_address, *options))
    assert "s/trial-001 is the best, and was stopped: it goes on to its end" in outcome.stderr
    calm, _ = undisturbed
    assert curves(tmp_path)["trial-001"] == pytest.approx(curves(calm)["trial-001"], rel=1e-9)
