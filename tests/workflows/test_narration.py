"""What a person is told while a model trains."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from workflows.config import DataConfig, TrainConfig
from workflows.metrics_log import MetricsLog
from workflows.model_config import ModelConfig, ObjectiveConfig, TrainingConfig
from workflows.narration import Narrator, duration
from workflows.scoring import NULL_PATTERN


def epoch(number: int, elbo: float = -5.0, kl: float = 2.0, active_units: int = 3, skipped: int = 0) -> dict[str, Any]:
    entry = {"epoch": number, "step": 10 * (number + 1), "train/elbo_nats_per_row": elbo, "train/rows_per_s": 100.0}
    entry |= {"train/skipped_steps": skipped, "validation/elbo_nats_per_row": elbo, "validation/kl_nats_per_row": kl}
    return {"kind": "epoch", "step": number, "metrics": entry | {"validation/active_units": active_units}}


@pytest.fixture
def narrator(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Narrator:
    caplog.set_level(logging.INFO, logger="vae")
    config = TrainConfig(DataConfig("table"), ModelConfig(latent_dim=4), training=TrainingConfig().for_rows(10**6))
    return Narrator(config, MetricsLog(tmp_path / "metrics.jsonl", lambda lines: None))


def test_every_epoch_is_one_line_and_one_entry_of_the_log(narrator: Narrator, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    narrator.hear(epoch(0))
    narrator.hear(epoch(0))  # said again after a restart
    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert json.loads(line)["metrics"]["validation/elbo_nats_per_row"] == -5.0
    assert "epoch 1/100  step 10  train ELBO -5.000  validation ELBO -5.000 (KL 2.000)  nats per row  100 rows/s" in caplog.text


@pytest.mark.parametrize(("kl", "active_units"), [(0.001, 2), (0.5, 0)])
def test_a_collapsed_model_is_said_once(kl: float, active_units: int, narrator: Narrator, caplog: pytest.LogCaptureFixture) -> None:
    for number in range(6):
        narrator.hear(epoch(number, -5.0 + number, kl, active_units))
        assert ("has collapsed" in caplog.text) == (number >= 4)  # 5 % of 100 epochs
    assert caplog.text.count("has collapsed") == 1
    assert f"{active_units} of 4 latent dimensions active" in caplog.text


def test_a_healthy_model_is_not_called_collapsed(narrator: Narrator, caplog: pytest.LogCaptureFixture) -> None:
    for number in range(10):
        narrator.hear(epoch(number, -5.0 + number))
    assert "collapsed" not in caplog.text
    assert "stands still" not in caplog.text


def test_a_validation_elbo_that_stands_still_is_said_with_its_best_epoch(narrator: Narrator, caplog: pytest.LogCaptureFixture) -> None:
    for number, elbo in enumerate([-6.0, -5.0, -5.1, -5.2, -5.3, -5.1, -5.1, -5.1]):
        narrator.hear(epoch(number, elbo))
    assert caplog.text.count("validation ELBO stands still: the best, -5.000, was in epoch 2") == 1


def test_where_null_patterns_are_modelled_they_are_said_and_count(narrator: Narrator, caplog: pytest.LogCaptureFixture) -> None:
    for number, pattern in enumerate([-2.0, -1.0, -1.1, -1.2, -1.3, -1.1, -1.1, -1.1]):
        message = epoch(number, -5.0)
        message["metrics"] |= {f"validation/{NULL_PATTERN}": pattern}
        narrator.hear(message)
    assert "validation ELBO -5.000 (KL 2.000)  null pattern -1.300  nats per row" in caplog.text
    assert caplog.text.count("validation ELBO with the null pattern stands still: the best, -6.000, was in epoch 2") == 1


def test_a_training_that_diverges_is_said_once(narrator: Narrator, caplog: pytest.LogCaptureFixture) -> None:
    for number, elbo in enumerate([-8.0, -5.0, -7.9, -8.1, -1e5, float("nan"), -5.0]):
        narrator.hear(epoch(number, elbo))
        assert ("training diverges" in caplog.text) == (number >= 3)
    assert caplog.text.count("training diverges: the train ELBO, -8.100, is below the -8.000 that it began with") == 1


def test_an_elbo_that_falls_while_the_kl_gains_weight_is_no_divergence(narrator: Narrator, caplog: pytest.LogCaptureFixture) -> None:
    narrator.config = replace(narrator.config, objective=ObjectiveConfig(kl_warmup_steps=20))
    for number, elbo in enumerate([-5.0, -6.0, -7.0, -8.0, -7.0, -6.0]):
        narrator.hear(epoch(number, elbo))
    assert "diverges" not in caplog.text


def test_skipped_steps_and_lost_workers_are_said(narrator: Narrator, caplog: pytest.LogCaptureFixture) -> None:
    narrator.hear({"kind": "started", "step": 0, "epoch": 0, "workers": 2})
    assert "lost" not in caplog.text
    narrator.hear(epoch(0, skipped=2))
    assert "2 steps were skipped" in caplog.text
    narrator.hear({"kind": "started", "step": 7, "epoch": 1, "workers": 1})
    assert "workers were lost; 1 go on after step 7 (epoch 2)" in caplog.text
    narrator.hear({"kind": "started", "step": 9, "epoch": 1, "workers": 2})
    assert "workers came; 2 go on after step 9 (epoch 2)" in caplog.text


def test_the_first_step_is_said_once(narrator: Narrator, caplog: pytest.LogCaptureFixture) -> None:
    narrator.hear({"kind": "started", "step": 0, "epoch": 0, "workers": 3})
    assert "first step" not in caplog.text
    for step in (1, 5):
        status = {"kind": "status", "epoch": 0, "step": step, "num_steps": 40, "elbo": -1.0, "kl": 0.1, "rows_per_s": 1.0, "eta_s": 1.0}
        narrator.hear(status)
    assert caplog.text.count("first step taken by 3 workers; 39 steps to go") == 1


@pytest.mark.parametrize(("seconds", "said"), [(4.4, "4 s"), (65, "1 min 05 s"), (3900, "1 h 05 min")])
def test_durations_are_said_as_people_do(seconds: float, said: str) -> None:
    assert duration(seconds) == said
