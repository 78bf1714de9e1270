"""Checkpoints: complete or not there, the newest whole one found again, and written by one start of a run only."""

from __future__ import annotations

import logging
import os
import platform
from pathlib import Path

import pytest
import torch
from pyarrow import fs

from data.stores import replace
from tests.workflows.test_steps import FIELDS, LATENT_DIM, small_model
from vae.model import VAE
from workflows.checkpoint import MANIFEST, STATE, WEIGHTS, Checkpoints, Progress, TrainingState, progress_of
from workflows.errors import ComputationError
from workflows.model_config import TrainingConfig
from workflows.optimization import Optimizer


def state_at(step: int, best_step: int = 0) -> TrainingState:
    model = small_model()
    return TrainingState(model, Optimizer(model, TrainingConfig()), {}, Progress(step=step, best_step=best_step))


def save(checkpoints: Checkpoints, step: int, best_step: int = 0) -> None:
    state = state_at(step, best_step)
    checkpoints.save(state.files(), state.progress)


def store(folder: Path, attempt: int = 1, is_current: bool = True) -> Checkpoints:
    return Checkpoints(fs.LocalFileSystem(), str(folder), attempt, lambda: is_current)


def steps(folder: Path) -> list[int]:
    return sorted(int(path.name.split("-")[0]) for path in folder.iterdir())


def found_step(checkpoints: Checkpoints) -> int:
    files = checkpoints.newest()
    assert files is not None
    return progress_of(files).step


def damage(folder: Path, step: int) -> None:
    (next(folder.glob(f"{step:012d}-*")) / WEIGHTS).write_bytes(b"")


def test_the_newest_two_and_the_best_stay(tmp_path: Path) -> None:
    for step in range(10, 60, 10):
        save(store(tmp_path), step, best_step=20 if step > 10 else 10)
    assert steps(tmp_path) == [20, 40, 50]
    assert found_step(store(tmp_path)) == 50


def test_damaged_checkpoints_ahead_cost_no_new_one(tmp_path: Path) -> None:
    for step in (80, 90, 100):
        save(store(tmp_path), step, best_step=80)
    for step in (90, 100):
        damage(tmp_path, step)
    for step, kept in ((84, [80, 84]), (88, [80, 84, 88]), (92, [80, 88, 92])):
        save(store(tmp_path, attempt=2), step, best_step=80)
        assert steps(tmp_path) == kept
        assert found_step(store(tmp_path, attempt=3)) == step


def test_the_first_checkpoint_of_a_start_leaves_a_whole_one_before_it(tmp_path: Path) -> None:
    for step in (80, 90, 100):
        save(store(tmp_path), step, best_step=80)
    for step in (90, 100):
        damage(tmp_path, step)
    save(store(tmp_path, attempt=2), 120, best_step=120)
    assert steps(tmp_path) == [80, 120]


def test_what_a_later_start_writes_is_not_removed(tmp_path: Path) -> None:
    save(store(tmp_path), 10)
    later = tmp_path / "000000000012-000002-000000"
    later.mkdir()
    (later / WEIGHTS).write_bytes(b"half")
    save(store(tmp_path), 14)
    save(store(tmp_path), 16)
    assert steps(tmp_path) == [12, 14, 16]


def test_what_is_no_checkpoint_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "aside").mkdir()
    for step in (10, 20, 30):
        save(store(tmp_path), step, best_step=30)
    assert sorted(path.name for path in tmp_path.iterdir() if not path.name.startswith("0")) == ["aside", "notes.txt"]
    assert found_step(store(tmp_path)) == 30


def test_of_an_epochs_last_step_only_the_newest_stays_as_the_best(tmp_path: Path) -> None:
    state = state_at(10, best_step=10)
    store(tmp_path).save(state.files(), state.progress)
    state.progress.epoch = 1
    store(tmp_path).save(state.files(), state.progress)
    for step in (20, 30):
        save(store(tmp_path), step, best_step=10)
    assert [Path(folder).name[-6:] for folder in store(tmp_path).folders()] == ["000001", "000000", "000000"]


def test_a_run_without_checkpoints_has_none(tmp_path: Path) -> None:
    assert store(tmp_path / "nothing").newest() is None


@pytest.mark.parametrize("name", [WEIGHTS, STATE, MANIFEST])
@pytest.mark.parametrize("damage", ["truncated", "empty", "changed", "gone"])
def test_a_damaged_newest_checkpoint_is_said_and_the_one_before_is_taken(
    name: str, damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save(store(tmp_path), 10)
    save(store(tmp_path), 20)
    path = next(tmp_path.glob("*20-*")) / name
    content = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes({"truncated": content[: len(content) // 2], "empty": b"", "changed": content[:-9] + b"x" + content[-8:]}[damage])
    with caplog.at_level(logging.WARNING, "vae"):
        assert found_step(store(tmp_path)) == 10
    if (name, damage) != (MANIFEST, "gone"):  # without a manifest it is no checkpoint, as after a kill
        assert "is damaged" in caplog.text


@pytest.mark.parametrize("content", [b"[]", b"null", b"{}", b'{"sha256": []}', b"\xff\xfe"])
def test_a_manifest_that_is_none_is_a_damaged_checkpoint(content: bytes, tmp_path: Path) -> None:
    save(store(tmp_path), 10)
    save(store(tmp_path), 20)
    (next(tmp_path.glob("*20-*")) / MANIFEST).write_bytes(content)
    assert found_step(store(tmp_path)) == 10


def test_where_every_checkpoint_is_damaged_nothing_starts_over(tmp_path: Path) -> None:
    save(store(tmp_path), 10)
    damage(tmp_path, 10)
    with pytest.raises(ComputationError, match="every checkpoint of the run is damaged"):
        store(tmp_path).newest()


def test_a_checkpoint_whose_writer_was_killed_is_none_and_goes_with_the_next(tmp_path: Path) -> None:
    unfinished = tmp_path / "000000000010-000001"
    unfinished.mkdir()
    (unfinished / WEIGHTS).write_bytes(b"half")
    assert store(tmp_path).newest() is None
    save(store(tmp_path, attempt=2), 12)
    save(store(tmp_path, attempt=2), 14)
    assert steps(tmp_path) == [12, 14]


@pytest.mark.parametrize("change", ["epoch", "finished"])
@pytest.mark.parametrize("stopped_at", [STATE, MANIFEST])
def test_a_save_of_the_same_step_that_is_killed_leaves_the_checkpoint_before_it(
    stopped_at: str, change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a checkpoint is due at an epoch's last step: the epoch's own follows with the same step and another state."""
    state = state_at(100)
    store(tmp_path).save(state.files(), state.progress)
    setattr(state.progress, change, 1)

    def killed(filesystem: fs.FileSystem, path: str, content: bytes) -> None:
        replace(filesystem, path, content)
        if path.endswith(stopped_at):
            raise KeyboardInterrupt

    monkeypatch.setattr("workflows.checkpoint.replace", killed)
    with pytest.raises(KeyboardInterrupt):
        store(tmp_path).save(state.files(), state.progress)
    files = store(tmp_path, attempt=2).newest()
    assert files is not None
    assert getattr(progress_of(files), change) == (stopped_at == MANIFEST)


def test_a_checkpoint_of_an_earlier_version_is_found_and_comes_before_what_follows(tmp_path: Path) -> None:
    save(store(tmp_path), 10)
    next(tmp_path.iterdir()).rename(tmp_path / "000000000010-000001")
    assert found_step(store(tmp_path)) == 10
    state = state_at(10)
    state.progress.epoch = 1
    store(tmp_path).save(state.files(), state.progress)
    assert [Path(folder).name for folder in store(tmp_path).folders()] == ["000000000010-000001", "000000000010-000001-000001"]


def test_a_manifest_is_put_when_all_else_is_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: set[int] = set()
    sync, move = os.fsync, fs.LocalFileSystem.move

    def noted_sync(descriptor: int) -> None:
        synced.add(os.fstat(descriptor).st_ino)
        sync(descriptor)

    class Disk(fs.LocalFileSystem):
        def move(self, source: str, target: str) -> None:
            if target.endswith(MANIFEST):
                folder = Path(target).parent
                assert {path.stat().st_ino for path in (*folder.iterdir(), folder, folder.parent)} <= synced
                synced.remove(folder.stat().st_ino)
            move(self, source, target)

    monkeypatch.setattr(os, "fsync", noted_sync)
    save(Checkpoints(Disk(), str(tmp_path), 1, lambda: True), 10)
    assert next(tmp_path.iterdir()).stat().st_ino in synced  # the manifest's name too


def test_a_start_that_was_replaced_publishes_and_removes_nothing(tmp_path: Path) -> None:
    save(store(tmp_path, attempt=2), 10)
    with pytest.raises(ComputationError, match="another start of this run took over"):
        save(store(tmp_path, attempt=1, is_current=False), 20)
    assert found_step(store(tmp_path)) == 10


def test_weights_that_are_not_finite_are_never_saved() -> None:
    state = state_at(5)
    with torch.no_grad():
        next(state.model.parameters()).view(-1)[0] = float("nan")
    with pytest.raises(ComputationError, match="step 5: weights are not finite"):
        state.files()


def test_only_a_finished_checkpoint_is_finished(tmp_path: Path) -> None:
    save(store(tmp_path), 10)
    assert store(tmp_path).finished() is None
    state = state_at(10)
    state.progress.finished = True
    store(tmp_path).save(state.files(), state.progress)
    files = store(tmp_path).finished()
    assert files is not None
    assert progress_of(files).finished


def test_on_a_node_that_does_not_have_the_runs_folder_nothing_starts_over(tmp_path: Path) -> None:
    assert store(tmp_path / "checkpoints").newest() is None
    with pytest.raises(ComputationError, match=f"{tmp_path}/elsewhere is not there on {platform.node()}"):
        store(tmp_path / "elsewhere" / "checkpoints").newest()


def test_a_checkpoint_of_another_model_is_refused_and_loads_nothing() -> None:
    files, state = state_at(5).files(), state_at(0)
    model = VAE([*FIELDS, {"name": "y", "likelihood": "gaussian", "size": 1, "valid_size": 1}], LATENT_DIM, [5]).double()
    other = TrainingState(model, Optimizer(model, TrainingConfig()), {}, Progress())
    with pytest.raises(ComputationError, match=r"another model than this version .*first decoder.*choose a new run.name"):
        other.load(files)
    assert other.progress.step == 0
    state.load(files)
    assert state.progress.step == 5
