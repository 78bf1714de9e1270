"""The command line's border: what cannot be is refused with code 2, naming the key."""

from __future__ import annotations

import json
import logging
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ray.exceptions import RayTaskError

from data.listing import DataError
from data.output import OutputError
from data.overrides import ColumnOverrideError
from vae import BundleError
from workflows.batch_config import EncodeConfig, GenerateConfig, PromoteConfig, ReconstructConfig
from workflows.checks import ConfigError
from workflows.config import TrainConfig
from workflows.errors import ComputationError, ServiceError, TryAgain
from workflows.evaluate_config import EvaluateConfig
from workflows.job import exit_code, known_cause, parse, stop_on_sigterm
from workflows.lineage import flatten, parameters
from workflows.model_config import ObjectiveConfig, TrainingConfig
from workflows.pinned import default_tracking_uri, without_password


def test_the_command_line_wins_over_the_file_and_the_file_over_defaults(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("data:\n  path: from-file\n  key: id\nmodel:\n  latent_dim: 3\n")
    config = parse(TrainConfig, ["--config", str(file), "--data.path", "from-line", "--model.hidden_dims", "[7, 5]"])
    assert (config.data.path, config.data.key) == ("from-line", "id")
    assert (config.model.latent_dim, config.model.hidden_dims) == (3, [7, 5])
    assert config.training == TrainingConfig()


@pytest.mark.parametrize("form", [lambda file: ["--config", file], lambda file: [f"--config={file}"]])
def test_the_command_line_overrules_a_file_that_stands_behind_it(form: Callable[[str], list[str]], tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("training: {epochs: 3, learning_rate: 0.01}\ndata: {path: from-file}\n")
    config = parse(TrainConfig, ["--training.epochs", "5", *form(str(file)), "--data.path", "from-line"])
    assert (config.training.epochs, config.training.learning_rate, config.data.path) == (5, 0.01, "from-line")


def test_lists_and_maps_are_read_as_json_or_yaml() -> None:
    columns = '{"pixels": {"kind": "image", "shape": [28, 28]}, "ssn": {"kind": "ignored"}}'
    config = parse(TrainConfig, ["--data.path", "[a, b]", "--data.columns", columns])
    assert config.data.path == ["a", "b"]
    assert config.data.columns == {"pixels": {"kind": "image", "shape": [28, 28]}, "ssn": {"kind": "ignored"}}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data.pth", "x"], "data.pth"),
        (["--data.path", "x", "--data.max_categorie", "5"], "data.max_categorie"),  # a beginning is no name
        (["--data.path", "x", "--model.latent_dim", "many"], "model.latent_dim"),
        (["--data.path", "x", "--model.network", "transformer"], "model.network"),
        ([], "data.path"),
    ],
)
def test_unknown_keys_and_wrong_types_end_with_code_2(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(TrainConfig, arguments)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_an_unknown_key_in_a_file_ends_with_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("data: {path: x}\ntraining: {epoch: 3}\n")
    with pytest.raises(SystemExit) as ended:
        parse(TrainConfig, ["--config", str(file)])
    assert ended.value.code == 2
    assert "--training.epoch: did you mean --training.epochs?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("data: {path: x}\ntraining:\n", "training is None; it must be a section"),
        ("data: {path: x, columns: }", "data.columns is None; it must be given a value"),
        ("data: {path: x}\nmodel: {hidden_dims: }", "model.hidden_dims is None"),
        ("data: {path: x, colums: {}}", "data.colums is no option"),
        ("data: {path: x}\ntrainig: {}", "trainig is no option"),
    ],
)
def test_empty_sections_and_unknown_keys_with_nothing_below_them_are_said(content: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(content)
    with pytest.raises((ConfigError, SystemExit)) as caught:
        parse(TrainConfig, ["--config", str(file)])
    assert exit_code(caught.value) == 2
    assert isinstance(caught.value, SystemExit) or said in str(caught.value)


def test_what_is_null_by_default_may_be_null(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("data: {path: x, key: null, validation_path: }\nrun: {name: }\ntraining: {max_steps: null}")
    assert parse(TrainConfig, ["--config", str(tmp_path / "config.yaml")]).run.name is None


@pytest.mark.parametrize("arguments", [["--rollback"], ["--rollback", "true"], ["--rollback=true"], ["--rollback", "--by", "me"]])
def test_an_option_that_is_true_or_false_needs_no_value(arguments: list[str]) -> None:
    assert parse(PromoteConfig, ["--model", "x", *arguments]).rollback
    assert not parse(PromoteConfig, ["--model", "x", "--version", "3", "--rollback", "false"]).rollback


@pytest.mark.parametrize(
    ("unknown", "meant"),
    [
        ("--data.kye=id", ": did you mean --data.key?"),
        ("--data.pth", ": did you mean --data.path?"),
        ("--epochs", ": did you mean --training.epochs?"),
        ("--data.epochs", ": did you mean --training.epochs?"),
        ("--zzz", None),
    ],
)
def test_an_option_that_is_not_known_comes_with_those_that_may_be_meant(
    unknown: str, meant: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parse(TrainConfig, ["--data.path", "x", unknown, "3"])
    said = capsys.readouterr().err
    assert f"unrecognized arguments: {unknown} 3" in said
    assert ("did you mean" in said) == (meant is not None)
    assert meant is None or f"{unknown.partition('=')[0]}{meant}" in said


@pytest.mark.parametrize(
    ("arguments", "key"),
    [
        (["--data.validation_fraction", "1.5"], "data.validation_fraction"),
        (["--run.name", "../other"], "run.name"),
        (["--run.name", ".."], "run.name"),
        (["--registry.model_name", "a/b"], "registry.model_name"),
        (["--registry.experiment", ""], "registry.experiment"),
        (["--objective.beta", ".inf"], "objective.beta"),
        (["--training.seed", str(2**64)], "training.seed"),
        (["--run.shard_memory_bytes", "-5"], "run.shard_memory_bytes"),
        (["--data.validation_fraction", "0.5", "--data.test_fraction", "0.5"], "data.test_fraction"),
        (["--data.num_logical_shards", "0"], "data.num_logical_shards"),
        (["--data.shuffle_window_rows", "0"], "data.shuffle_window_rows"),
        (["--model.latent_dim", "0"], "model.latent_dim"),
        (["--model.hidden_dims", "[]"], "model.hidden_dims"),
        (["--model.hidden_dims", "[8, 0]"], "model.hidden_dims"),
        (["--model.hidden_dims", "[]", "--model.network", "linear", "--model.decoder_network", "conv"], "model.hidden_dims"),
        (["--objective.beta", "-1"], "objective.beta"),
        (["--training.epochs", "0"], "training.epochs"),
        (["--training.max_steps", "0"], "training.max_steps"),
        (["--training.global_batch_size", "0"], "training.global_batch_size"),
        (["--training.learning_rate", "0"], "training.learning_rate"),
        (["--training.seed", "-1"], "training.seed"),
        (["--cluster.num_workers", "0"], "cluster.num_workers"),
        (["--cluster.num_workers", "9"], "--data.num_logical_shards 9"),
    ],
)
def test_values_that_cannot_be_are_refused_by_key(arguments: list[str], key: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse(TrainConfig, ["--data.path", "x", *arguments])
    assert key in str(refused.value)


def test_the_batch_jobs_check_their_values() -> None:
    with pytest.raises(ConfigError, match="num_rows"):
        parse(GenerateConfig, ["--model", "m", "--num_rows", "0", "--output.path", "o"])
    with pytest.raises(ConfigError, match=r"cluster\.num_actors"):
        parse(EncodeConfig, ["--model", "m", "--data.path", "d", "--output.path", "o", "--cluster.num_actors", "0"])
    with pytest.raises(ConfigError, match=r"output\.columns"):
        parse(EncodeConfig, ["--model", "m", "--data.path", "d", "--output.path", "o", "--output.columns", "[]"])


@pytest.mark.parametrize("text", ["01067", "true", "no", "null", "1e3", "12:30", "[1]", ""])
def test_text_of_a_condition_is_text_whatever_it_looks_like(text: str, tmp_path: Path) -> None:
    condition = {"zip": text, "label": 3, "weight": 1.5, "owner": True, "sex": None, "spot": [1, 2.5]}
    options = ["--model", "m", "--num_rows", "1", "--output.path", "o"]
    assert parse(GenerateConfig, [*options, "--condition", json.dumps(condition)]).condition == condition
    (tmp_path / "config.yaml").write_text(json.dumps({"condition": condition}))
    assert parse(GenerateConfig, [*options, "--config", str(tmp_path / "config.yaml")]).condition == condition


@pytest.mark.parametrize("config_type", [EncodeConfig, ReconstructConfig, EvaluateConfig, GenerateConfig, TrainConfig])
def test_an_empty_path_is_not_the_current_folder(config_type: type[Any]) -> None:
    options = ["--num_rows", "1"] if config_type is GenerateConfig else ["--data.path", "d"]
    options += ["--run.storage_path", ""] if config_type is TrainConfig else ["--model", "m", "--output.path", ""]
    with pytest.raises(ConfigError, match=f"{options[-2].removeprefix('--')} is ''; it must be a folder or its URI"):
        parse(config_type, options)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ComputationError(), 1),
        (RuntimeError(), 1),
        (ConfigError(), 2),
        (ColumnOverrideError(), 2),
        (DataError(), 65),
        (ServiceError(), 69),
        (OutputError(), 73),
        (TryAgain(), 75),
        (KeyboardInterrupt(), 75),
        (BundleError(), 76),
        (SystemExit(2), 2),
        (SystemExit(), 0),
    ],
)
def test_every_failure_has_its_exit_code(error: BaseException, code: int) -> None:
    assert exit_code(error) == code


def test_a_failure_that_another_process_wrapped_keeps_its_code() -> None:
    inner = DataError("a.parquet: column 'x'")
    chained = RuntimeError("task failed")
    chained.__cause__ = inner
    wrapped = RuntimeError("worker group failed")
    wrapped.worker_failures = {1: chained}  # type: ignore[attr-defined]
    assert known_cause(wrapped) is inner
    assert exit_code(wrapped) == 65


def test_a_failure_that_ray_wrapped_is_said_in_its_own_words() -> None:
    inner = DataError("a.parquet: column 'x'")
    wrapped = RayTaskError("Reader.read", f"Traceback (most recent call last):\n  ..\nDataError: {inner}", inner).as_instanceof_cause()
    assert isinstance(wrapped, DataError)
    assert known_cause(wrapped) is inner


def test_the_learning_rate_rises_over_one_percent_and_falls_to_zero() -> None:
    training = TrainingConfig(learning_rate=0.5)
    rates = [training.learning_rate_at(step, 1000) for step in range(1000)]
    assert rates[0] == pytest.approx(0.05)
    assert max(rates) == pytest.approx(0.5, rel=1e-3)
    assert rates.index(max(rates)) == 9
    assert rates[9:] == sorted(rates[9:], reverse=True)
    assert rates[-1] < 1e-5
    constant = TrainingConfig(learning_rate=0.5, learning_rate_schedule="constant")
    assert {constant.learning_rate_at(step, 1000) for step in range(9, 1000)} == {0.5}


def test_the_kl_weight_rises_to_beta_over_the_warm_up_steps() -> None:
    objective = ObjectiveConfig(beta=2.0, kl_warmup_steps=4)
    assert [objective.beta_at(step) for step in range(6)] == [0.5, 1.0, 1.5, 2.0, 2.0, 2.0]
    assert ObjectiveConfig(beta=0.5).beta_at(0) == 0.5
    cyclical = ObjectiveConfig(kl_warmup_steps=2, kl_warmup_cycles=2)
    assert [cyclical.beta_at(step) for step in range(10)] == [0.5, 1, 1, 1, 0.5, 1, 1, 1, 1, 1]


def test_the_tracking_uri_is_the_option_then_the_environment_then_a_local_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert default_tracking_uri(None) == f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server:5000")
    assert default_tracking_uri(None) == "http://server:5000"
    assert default_tracking_uri("sqlite:////abs/a.db") == "sqlite:////abs/a.db"


def test_passwords_do_not_reach_parameters_or_messages() -> None:
    assert without_password("https://user:secret@server/path") == "https://server/path"
    assert flatten({"a": {"b": 1, "c": {}}, "d": [2]}) == {"a.b": 1, "a.c": {}, "d": [2]}


def test_sigterm_is_not_lost_where_exceptions_are_swallowed() -> None:
    class Swallowing(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            try:
                signal.raise_signal(signal.SIGTERM)
            except Exception:
                self.handleError(record)

    before = signal.getsignal(signal.SIGTERM)
    log = logging.getLogger("swallowing")
    log.addHandler(Swallowing())
    stop_on_sigterm()
    try:
        with pytest.raises(KeyboardInterrupt) as caught:
            log.warning("written while the signal comes")
    finally:
        signal.signal(signal.SIGTERM, before)
    assert exit_code(caught.value) == 75


def test_what_fails_because_of_a_stop_is_a_stop() -> None:
    def stopped_while_ray_ends() -> None:
        try:
            try:
                raise KeyboardInterrupt
            finally:
                raise ConnectionError("the workers got the signal too")
        except ConnectionError as error:
            raise RuntimeError("an actor died") from error

    with pytest.raises(RuntimeError) as caught:
        stopped_while_ray_ends()
    assert exit_code(caught.value) == 75
    assert exit_code(RuntimeError("an actor died")) == 1


@pytest.mark.parametrize(
    ("num_rows", "epochs", "patience"),
    [(1, 1000, 100), (256 * 9, 1000, 100), (256 * 20, 500, 50), (256 * 99, 102, 10), (256 * 100, 100, 10), (10**9, 100, 10)],
)
def test_small_tables_get_more_epochs_and_more_patience(num_rows: int, epochs: int, patience: int) -> None:
    settled = TrainingConfig().for_rows(num_rows)
    assert (settled.num_epochs, settled.patience) == (epochs, patience)
    asked = TrainingConfig(epochs=7, early_stopping_patience=3)
    assert asked.for_rows(num_rows) == asked
    assert TrainingConfig(epochs=300).for_rows(num_rows).patience == 30


@pytest.mark.parametrize("name", ["a/b", "a:b", "bob's", 'the "best"', " "])
def test_a_model_name_that_the_registry_cannot_look_up_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"registry\.model_name"):
        parse(TrainConfig, ["--data.path", "x", "--registry.model_name", name])


def test_options_by_column_are_one_parameter_whatever_the_columns_names() -> None:
    config = {"data": {"path": "x", "columns": {"income ($)": {"kind": "count"}}}, "model": {"likelihoods": {}}, "condition": None}
    assert parameters(config) == {
        "data.path": "x",
        "data.columns": '{"income ($)": {"kind": "count"}}',
        "model.likelihoods": {},
        "condition": None,
    }
    assert flatten(config)["data.columns.income ($).kind"] == "count"
