"""What workers tell the driver, and what the driver says when nobody can."""

from __future__ import annotations

import signal
import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from workflows.cluster import connected
from workflows.errors import ServiceError
from workflows.job import exit_code
from workflows.mailbox import Ear, Line, Mailbox
from workflows.trainer import END_S, run_trainer


def test_messages_come_in_their_order_and_once(ray_address: str) -> None:
    heard: list[Any] = []
    with connected(ray_address):
        mailbox = Mailbox.remote()  # type: ignore[attr-defined]
        ear = Ear(mailbox, heard.append)
        for number in range(3):
            ray.get(mailbox.push.remote(0, number, [{"kind": "status", "step": number}]))
        ear.listen(5.0)
        ear.listen(0.0)
    assert [message["step"] for message in heard] == [0, 1, 2]


def test_what_a_worker_says_fast_comes_in_its_order(ray_address: str) -> None:
    heard: list[Any] = []
    with connected(ray_address):
        mailbox = Mailbox.remote()  # type: ignore[attr-defined]
        line, ear = Line(mailbox, 0), Ear(mailbox, heard.append)
        for number in range(2_000):
            line.send(number, [{"kind": "steps", "step": number}])
        line.flush(60.0)
        ear.listen(0.0)
        assert [message["step"] for message in heard] == list(range(2_000))
        ear.listen(0.0)  # says up to where the driver is done
        line.send(2_001, [])
        line.flush(60.0)
        assert line.kept == 1_999
        ray.get(mailbox.stop.remote())
        line.send(2_002, [])
        line.flush(60.0)
        assert line.stop
        assert ray.get(mailbox.silence.remote())[0][1] == 2_002
        ray.kill(mailbox)
        with pytest.raises(ServiceError):
            ear.listen(5.0)
        line.send(2_003, [])
        line.flush(60.0)
        with pytest.raises(ray.exceptions.RayActorError):
            line.send(2_004, [])


def test_a_push_that_fails_in_any_way_is_raised_where_something_is_said_next() -> None:
    def push(*what: object) -> None:
        raise MemoryError("no room")

    line = Line(SimpleNamespace(push=SimpleNamespace(remote=push)), 0)
    line.send(0, [{"kind": "steps", "step": 0}])
    line.flush(5.0)
    with pytest.raises(MemoryError, match="no room"):
        line.send(1, [])


def test_a_mailbox_that_ray_ended_is_said_and_is_no_fault_of_the_run(ray_address: str) -> None:
    with connected(ray_address):
        mailbox = Mailbox.remote()  # type: ignore[attr-defined]
        ear = Ear(mailbox, print)
        ear.listen(0.0)
        ray.kill(mailbox)
        with pytest.raises(ServiceError, match=r"Ray ended a process of this job .*start the run again: it goes on") as caught:
            ear.listen(5.0)
    assert exit_code(caught.value) == 69


def test_a_stop_before_any_worker_has_begun_waits_for_none(ray_address: str) -> None:
    never = threading.Event()
    trainer: Any = SimpleNamespace(fit=never.wait)
    with connected(ray_address):
        mailbox = Mailbox.remote()  # type: ignore[attr-defined]
        Ear(mailbox, print).listen(0.0)
        timer = threading.Timer(1.0, signal.raise_signal, [signal.SIGINT])
        timer.start()
        began = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            run_trainer(trainer, mailbox, print, 60.0)
        assert time.monotonic() - began < END_S
    never.set()
    timer.join()
