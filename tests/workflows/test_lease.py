"""One job at a time on a run: the second is turned away, and who is gone is replaced."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
from pyarrow import fs

import workflows.lease
from tests.running import ROOT
from workflows.errors import TryAgain
from workflows.lease import Claims, this_process


def claims(folder: Path) -> Claims:
    return Claims(fs.LocalFileSystem(), str(folder))


def test_attempts_are_numbered_and_the_last_one_is_current(tmp_path: Path) -> None:
    for number in (1, 2, 3):
        with claims(tmp_path).held("run x") as attempt:
            assert attempt == number
            assert claims(tmp_path).is_current(number)
    assert not claims(tmp_path).is_current(2)


def test_a_second_job_is_turned_away_while_the_first_lives(tmp_path: Path) -> None:
    with claims(tmp_path).held("run x"), pytest.raises(TryAgain, match="run x is held by another job"), claims(tmp_path).held("run x"):
        pass
    with claims(tmp_path).held("run x") as attempt:
        assert attempt == 2


def test_of_many_that_come_at_once_one_gets_it(tmp_path: Path) -> None:
    got: list[int] = []
    turned_away: list[TryAgain] = []
    everybody_tried = threading.Barrier(8)

    def try_it() -> None:
        everybody_tried.wait()
        try:
            with claims(tmp_path).held("run x") as attempt:
                got.append(attempt)
                time.sleep(1)
        except TryAgain as error:
            turned_away.append(error)

    threads = [threading.Thread(target=try_it) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (got, len(turned_away)) == ([1], 7)


HOLD = """
import sys, time
from pyarrow import fs
from workflows.lease import Claims
with Claims(fs.LocalFileSystem(), sys.argv[1]).held("run x"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_killed_job_is_replaced_at_once(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    with pytest.raises(TryAgain), claims(tmp_path).held("run x"):
        pass
    process.kill()
    process.wait()
    process.stdout.close()
    with claims(tmp_path).held("run x") as attempt:
        assert attempt == 2


def held_elsewhere(folder: Path) -> None:
    """Leaves a claim of a process on a machine that is not this one."""
    (folder / "000001.json").write_text(json.dumps(this_process() | {"machine": ["elsewhere"]}))
    (folder / "000001.beat").write_text("first")


def test_a_job_on_another_machine_that_gives_signs_of_life_keeps_the_run(tmp_path: Path) -> None:
    held_elsewhere(tmp_path)
    later = threading.Timer(1.5, (tmp_path / "000001.beat").write_text, ["second"])
    later.start()
    with pytest.raises(TryAgain), claims(tmp_path).held("run x"):
        pass
    later.join()


def test_a_job_on_another_machine_that_was_not_heard_of_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workflows.lease, "EXPIRY_S", 3.0)
    held_elsewhere(tmp_path)
    with claims(tmp_path).held("run x") as attempt:
        assert attempt == 2


@pytest.mark.parametrize("claim", [b'{"machine": [', b"\xff\xfe", b"[]", b"{}"])
def test_a_damaged_claim_is_replaced_where_nobody_gives_signs_of_life(
    claim: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workflows.lease, "EXPIRY_S", 1.5)
    monkeypatch.setattr(workflows.lease, "HEARTBEAT_S", 0.3)
    (tmp_path / "notes.json").write_text("{}")  # not ours
    (tmp_path / "000001.json").write_bytes(claim)
    beat = tmp_path / "000001.beat"
    beat.write_bytes(b"\xff\xfe")
    later = threading.Timer(0.5, beat.write_text, ["second"])
    later.start()
    with pytest.raises(TryAgain), claims(tmp_path).held("run x"):
        pass
    later.join()
    with claims(tmp_path).held("run x") as attempt:
        assert attempt == 2


@pytest.mark.parametrize("known", [("started",), ("started", "start_ticks")], ids=["by an earlier version", "now"])
def test_a_pid_that_came_round_again_is_another_process(known: tuple[str, ...], tmp_path: Path) -> None:
    older = this_process() | {"started": psutil.Process().create_time() - 1000, "start_ticks": 1}
    (tmp_path / "000001.json").write_text(json.dumps({name: older[name] for name in ("machine", "pid", *known)}))
    with claims(tmp_path).held("run x") as attempt:
        assert attempt == 2


def test_a_living_job_of_an_earlier_version_keeps_the_run(tmp_path: Path) -> None:
    holder = this_process()
    del holder["start_ticks"]
    (tmp_path / "000001.json").write_text(json.dumps(holder))
    with pytest.raises(TryAgain), claims(tmp_path).held("run x"):
        pass


@pytest.mark.skipif(workflows.lease.start_ticks(os.getpid()) is None, reason="the system says no ticks since its boot")
@pytest.mark.parametrize("step_s", [-3600.0, 2.0])
def test_setting_the_clock_ends_no_lease(step_s: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with claims(tmp_path).held("run x"):
        before = psutil.Process.create_time
        monkeypatch.setattr(psutil.Process, "create_time", lambda process: before(process) + step_s)
        with pytest.raises(TryAgain), claims(tmp_path).held("run x"):
            pass
