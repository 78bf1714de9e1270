"""MetricsLog against a real SQLite store, a real `mlflow server` that goes and comes back, and a server that never answers."""

from __future__ import annotations

import json
import logging
import math
import resource
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from data.output import OutputError
from tests.running import LONG_S, ROOT, Server, free_port, job_environment, wait_until
from workflows.errors import ServiceError
from workflows.metrics_log import MetricsLog
from workflows.registry import Registry

Send = Callable[[Sequence[Mapping[str, Any]]], None]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("server"), free_port())
    yield server
    server.kill()


@pytest.fixture(scope="module")
def store(server: Server) -> Registry:
    """The server's own SQLite file, which is there when the server is not."""
    return Registry(server.store)


@pytest.fixture
def run_id(store: Registry) -> str:
    return str(store.client.create_run(store.open_experiment("metrics")).info.run_id)


@pytest.fixture(autouse=True)
def one_try_a_call(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """MLflow's own retries only make an outage slower to see."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    caplog.set_level(logging.INFO, logger="vae")


def sender(uri: str, run_id: str) -> Send:
    return partial(Registry(uri).log_points, run_id)


def points(store: Registry, run_id: str, name: str) -> list[tuple[int, int, float]]:
    return [(point.step, point.timestamp, point.value) for point in store.client.get_metric_history(run_id, name)]


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def written_points(path: Path, name: str) -> list[tuple[int, int, float]]:
    return [(line["step"], line["timestamp_ms"], line["metrics"][name]) for line in lines(path) if name in line["metrics"]]


def said(caplog: pytest.LogCaptureFixture, level: int) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "vae" and record.levelno == level]


def test_every_metric_arrives_at_its_step_and_time_in_order(store: Registry, run_id: str, tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path, sender(store.uri, run_id))
    assert all(log.append("epoch", step, {"elbo": -1 / (step + 1), "rows_per_s": 1e5 + step}) for step in range(300))
    assert log.append("end", 0, {"final": 3.0})
    assert log.close(LONG_S) == 0
    assert [(line["kind"], line["step"]) for line in lines(path)] == [*(("epoch", step) for step in range(300)), ("end", 0)]
    for name in ("elbo", "rows_per_s", "final"):
        assert points(store, run_id, name) == written_points(path, name) != []


def test_a_call_to_mlflow_stays_under_its_limit_of_metrics(store: Registry, run_id: str, tmp_path: Path) -> None:
    with MetricsLog(tmp_path / "metrics.jsonl", sender(store.uri, run_id)) as log:
        log.append("end", 0, {f"metric_{i}": float(i) for i in range(1100)})
        assert log.close(LONG_S) == 0
    assert len(store.client.get_run(run_id).data.metrics) == 1100


def test_a_server_that_comes_up_late_or_again_gets_everything_once(
    server: Server, store: Registry, run_id: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "metrics.jsonl"
    server.kill()  # no server where this test is the first, as it should be: a start takes seconds
    log = MetricsLog(path, sender(server.uri, run_id))
    for step in range(3):
        log.append("epoch", step, {"elbo": float(step)})
    wait_until(lambda: said(caplog, logging.WARNING))
    server.start()
    wait_until(lambda: said(caplog, logging.INFO))
    assert points(store, run_id, "elbo") == written_points(path, "elbo")

    server.kill()
    for step in range(3, 250):
        log.append("epoch", step, {"elbo": float(step)})
    wait_until(lambda: len(said(caplog, logging.WARNING)) == 2)
    assert points(store, run_id, "elbo") == written_points(path, "elbo")[:3]
    server.start()
    assert log.close(LONG_S) == 0
    assert points(store, run_id, "elbo") == written_points(path, "elbo")
    assert len(written_points(path, "elbo")) == 250

    away, back = said(caplog, logging.WARNING), said(caplog, logging.INFO)
    assert len(away) == 2
    assert all(server.uri in message and str(path) in message for message in away)
    assert back == [f"MLflow takes metrics again, {count} lines were caught up" for count in (3, 247)]


def test_a_server_that_hangs_and_goes_on_gets_everything_once(
    server: Server, store: Registry, run_id: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "metrics.jsonl"
    server.start()
    send = sender(server.uri, run_id)
    send([{"kind": "epoch", "step": 0, "timestamp_ms": 1, "metrics": {"first": 0.0}}])
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    log = MetricsLog(path, send)
    with server.hanging():
        for step in range(10):
            log.append("epoch", step, {"elbo": float(step), "nan": math.nan})
        wait_until(lambda: said(caplog, logging.WARNING))
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    assert log.close(LONG_S) == 0  # the server has the same lines from the calls that were given up, and from the one that was not
    assert points(store, run_id, "elbo") == written_points(path, "elbo") != []
    assert len(points(store, run_id, "nan")) == 10


@pytest.mark.parametrize("over_http", [False, True])
def test_a_second_opening_makes_no_second_point(over_http: bool, server: Server, store: Registry, run_id: str, tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    if over_http:
        server.start()
    send = sender(server.uri if over_http else store.uri, run_id)
    values = {"third": 1 / 3, "nan": math.nan, "inf": math.inf, "minus_inf": -math.inf, "zero": -0.0, "tiny": 5e-324}
    for num_lines in (1, 3, 3):
        with MetricsLog(path, send) as log:
            for step in range(num_lines):
                log.append("epoch", step, values)
            assert log.close(LONG_S) == 0
        assert len(lines(path)) == num_lines
        assert {name: len(points(store, run_id, name)) for name in values} == dict.fromkeys(values, num_lines)


def test_nan_and_infinity_are_kept(store: Registry, run_id: str, tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with MetricsLog(path, sender(store.uri, run_id)) as log:
        log.append("epoch", 0, {"nan": math.nan, "inf": math.inf})
        assert log.close(LONG_S) == 0
    (line,) = lines(path)
    assert math.isnan(line["metrics"]["nan"])
    assert line["metrics"]["inf"] == math.inf
    logged = store.client.get_run(run_id).data.metrics
    assert math.isnan(logged["nan"])
    assert logged["inf"] == sys.float_info.max  # SQL has no infinity: MLflow's stores keep the largest number instead


def test_the_same_kind_and_step_is_one_line(store: Registry, run_id: str, tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    for first in (True, False):
        with MetricsLog(path, sender(store.uri, run_id)) as log:
            assert log.append("epoch", 0, {"elbo": 1.0}) is first
            assert log.append("epoch", 0, {"elbo": 2.0}) is False
            assert log.append("score", 0, {"score": 1.0}) is first
    assert [(line["kind"], line["metrics"]) for line in lines(path)] == [("epoch", {"elbo": 1.0}), ("score", {"score": 1.0})]
    assert points(store, run_id, "elbo") == written_points(path, "elbo")


@pytest.mark.parametrize("rest", [b'{"kind": "epoch", "st', b'{"kind": "epoch"\n', b"\0\0\0\0", b'"a word"\n'])
def test_an_unfinished_last_line_is_cut(rest: bytes, store: Registry, run_id: str, tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with MetricsLog(path, sender(store.uri, run_id)) as log:
        log.append("epoch", 0, {"elbo": 0.0})
    whole = path.read_bytes()
    path.write_bytes(whole + rest)
    with MetricsLog(path, sender(store.uri, run_id)) as log:
        assert path.read_bytes() == whole
        assert log.append("epoch", 1, {"elbo": 1.0})
        assert log.close(LONG_S) == 0
    assert path.read_bytes().startswith(whole)
    assert [step for step, _, _ in points(store, run_id, "elbo")] == [0, 1]


def test_a_last_line_without_its_newline_is_cut_though_it_is_json(store: Registry, run_id: str, tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with MetricsLog(path, sender(store.uri, run_id)) as log:
        log.append("epoch", 0, {"elbo": 0.0})
    path.write_bytes(path.read_bytes().rstrip(b"\n"))
    with MetricsLog(path, sender(store.uri, run_id)):
        assert path.read_bytes() == b""


def test_a_file_of_something_else_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("id,value\n1,2\n")
    with pytest.raises(OutputError, match=r"metrics\.jsonl, line 1: b'id,value"):
        MetricsLog(path, print)
    assert path.read_text() == "id,value\n1,2\n"


def test_what_a_closed_log_could_not_send_is_sent_by_the_next(server: Server, store: Registry, run_id: str, tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # and does not listen: connections are refused
        log = MetricsLog(path, sender(f"http://127.0.0.1:{nobody.getsockname()[1]}", run_id))
        for step in range(5):
            log.append("epoch", step, {"elbo": float(step)})
        assert log.close(0.5) == 5
    with MetricsLog(path, sender(store.uri, run_id)) as log:
        assert log.close(LONG_S) == 0
    assert points(store, run_id, "elbo") == written_points(path, "elbo") != []


@pytest.mark.parametrize("damage", ["not writable", "not text"])
def test_the_count_of_what_was_sent_may_be_lost(damage: str, store: Registry, run_id: str, tmp_path: Path) -> None:
    path, count = tmp_path / "metrics.jsonl", tmp_path / "metrics.jsonl.sent"
    if damage == "not text":
        count.write_bytes(b"\xff\xfe")

    def has_points(number: int) -> bool:
        return len(points(store, run_id, "elbo")) == number

    with MetricsLog(path, sender(store.uri, run_id)) as log:
        if damage == "not writable":
            count.mkdir()
        for step in range(3):
            log.append("epoch", step, {"elbo": float(step)})
            wait_until(partial(has_points, step + 1))
        assert log.close(LONG_S) == 0
    assert points(store, run_id, "elbo") == written_points(path, "elbo")


def test_a_full_disk_is_said_and_what_follows_is_kept(tmp_path: Path) -> None:
    path, sent = tmp_path / "metrics.jsonl", list[Mapping[str, Any]]()
    log = MetricsLog(path, sent.extend)
    log.append("epoch", 0, {"elbo": 0.0})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 10, limits[1]))
    try:
        with pytest.raises(ServiceError, match=r"metrics\.jsonl cannot be written: .*File too large"), log:
            log.append("epoch", 1, {"elbo": 1.0})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    with MetricsLog(path, sent.extend) as log:
        assert [log.append("epoch", step, {"elbo": float(step)}) for step in range(3)] == [False, True, True]
    assert [line["step"] for line in lines(path)] == [0, 1, 2]


def test_a_server_that_never_answers_holds_up_neither_append_nor_close(
    run_id: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "metrics.jsonl"
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", str(5 * LONG_S))  # whoever waits for the call is found out
    with socket.create_server(("127.0.0.1", 0)) as hole:
        hole.settimeout(LONG_S)
        log = MetricsLog(path, sender(f"http://127.0.0.1:{hole.getsockname()[1]}", run_id))
        assert log.append("epoch", 0, {"elbo": 0.0})
        connection, _ = hole.accept()
        with connection:
            assert connection.recv(4) == b"POST"  # the thread is in the call
            started = time.monotonic()
            assert all(log.append("epoch", step, {"elbo": float(step)}) for step in range(1, 100))
            assert len(lines(path)) == 100
            assert log.close(timeout_s=1) == 100
            assert time.monotonic() - started < LONG_S
            (thread,) = (thread for thread in threading.enumerate() if str(path) in thread.name)
    thread.join(LONG_S)  # the connection is closed: it has nothing to wait for
    assert not thread.is_alive()


def test_an_unforeseen_error_is_said_with_its_place_and_the_lines_are_sent_later(
    store: Registry, run_id: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "metrics.jsonl"
    errors: list[Exception] = [ServiceError("MLflow is away"), ZeroDivisionError("a defect")]

    def send(batch: Sequence[Mapping[str, Any]]) -> None:
        if errors:
            raise errors.pop(0)
        sender(store.uri, run_id)(batch)

    with MetricsLog(path, send) as log:
        log.append("epoch", 0, {"elbo": 0.0})
        wait_until(lambda: said(caplog, logging.INFO))
        assert log.close(LONG_S) == 0
    assert points(store, run_id, "elbo") == written_points(path, "elbo") != []
    first, second = (record for record in caplog.records if str(path) in record.getMessage())
    assert "MLflow is away" in first.getMessage()
    assert not first.exc_info
    assert "a defect" in second.getMessage()
    assert second.exc_info


def test_a_stuck_thread_does_not_keep_the_process(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    program = (
        "import sys, threading; from pathlib import Path; from workflows.metrics_log import MetricsLog\n"
        "stuck = threading.Event()\n"
        "log = MetricsLog(Path(sys.argv[1]), lambda lines: (stuck.set(), threading.Event().wait()))\n"
        "log.append('epoch', 0, {'elbo': 0.0}); stuck.wait()"
    )
    command = [sys.executable, "-c", program, str(path)]
    subprocess.run(command, check=True, timeout=LONG_S, env=job_environment(PYTHONPATH=str(ROOT)))
    assert [line["step"] for line in lines(path)] == [0]
