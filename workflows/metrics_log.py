"""A run's metrics, kept when MLflow is away: first lines of a local file, from there by a thread points in MLflow.

A line: {"kind": what was measured, "step": its number, "timestamp_ms": since 1970, "metrics": {name: value}}.
"""

from __future__ import annotations

import json
import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any

from data.output import OutputError
from workflows.errors import ServiceError, logger

Line = dict[str, Any]

BATCH_LINES = 100
FIRST_WAIT_S, MAX_WAIT_S = 1.0, 30.0
EXIT_TIMEOUT_S = 10.0


class MetricsLog:
    """Metrics of one run: first lines of a JSON-lines file, then, by a thread, points in MLflow.

    How many lines were sent is kept beside the file, as far as a kill lets it: whoever receives a line twice has to keep it once, as
    MLflow's SQL stores do with a point of the same name, step, time and value.
    """

    def __init__(self, path: Path, send: Callable[[Sequence[Mapping[str, Any]]], None]) -> None:
        """Opens the file, made where it is new, without what a kill left of its last line, and starts to send.

        send: takes lines in their order, and raises ServiceError where the store does not.
        Raises OutputError where the file holds something else than metrics.
        """
        lines, num_bytes = read_lines(path)
        self._path, self._send = path, send
        self._file = path.open("ab")
        self._file.truncate(num_bytes)
        self._known = {(line["kind"], line["step"]) for line in lines}
        self._count_path = path.with_name(f"{path.name}.sent")
        self._num_sent = read_count(self._count_path, len(lines))
        self._unsent = deque(lines[self._num_sent :])
        self._deadline = math.inf  # of the thread, on the monotonic clock; finite once the log closes
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._send_lines, name=f"metrics of {path}", daemon=True)
        self._thread.start()

    def append(self, kind: str, step: int, metrics: Mapping[str, float]) -> bool:
        """Returns whether the metrics are new; they are on disk then. A (kind, step) that is there already stays as it is.

        Neither waits for MLflow nor fails because of it. Raises ServiceError where the disk does not take the line.
        """
        with self._changed:
            if (kind, step) in self._known:
                return False
            values = {name: float(value) for name, value in metrics.items()}
            line = {"kind": kind, "step": step, "timestamp_ms": time.time_ns() // 1_000_000, "metrics": values}
            try:
                self._file.write(json.dumps(line).encode() + b"\n")
                self._file.flush()
                os.fsync(self._file.fileno())
            except OSError as error:
                raise ServiceError(f"{self._path} cannot be written: {error}; the same command goes on from the last checkpoint") from error
            finally:  # Ctrl-C may come while the disk works: the line is written, and must not come again
                self._known.add((kind, step))
                self._unsent.append(line)
                self._changed.notify_all()
        return True

    def close(self, timeout_s: float) -> int:
        """Returns how many lines did not reach MLflow within timeout_s seconds; the file keeps them for the next opening."""
        with self._changed:
            self._deadline = time.monotonic() + timeout_s
            self._changed.notify_all()
        self._thread.join(timeout_s)
        with self._changed:
            with suppress(OSError):  # of what append has said that the disk does not take
                self._file.close()
            return len(self._unsent)

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if not self._file.closed:
            self.close(EXIT_TIMEOUT_S)

    def _send_lines(self) -> None:
        """Sends until the log is closed. An outage is said once for each type of error, and its end once."""
        wait_s, num_late = FIRST_WAIT_S, 0
        said: set[type[Exception]] = set()
        while batch := self._next_batch():
            try:
                self._send(batch)
            except Exception as error:  # of any type: the lines wait in the file, and the thread has to outlive it
                if type(error) not in said:
                    said.add(type(error))
                    unforeseen = not isinstance(error, ServiceError)
                    logger.warning("metrics wait in %s, MLflow does not take them: %s", self._path, error, exc_info=unforeseen)
                self._wait_to_try_again(wait_s)
                wait_s = min(2 * wait_s, MAX_WAIT_S)
                continue
            wait_s = FIRST_WAIT_S
            num_left = self._mark_sent(len(batch))
            num_late += len(batch) if said else 0
            if said and num_left == 0:
                logger.info("MLflow takes metrics again, %d lines were caught up", num_late)
                said, num_late = set(), 0

    def _next_batch(self) -> list[Line]:
        """Waits for lines; none are returned once the log is closed and either all were sent or its time is over."""
        with self._changed:
            self._changed.wait_for(lambda: self._unsent or self._deadline < math.inf)
            return list(islice(self._unsent, BATCH_LINES)) if time.monotonic() < self._deadline else []

    def _mark_sent(self, num_lines: int) -> int:
        with self._changed:
            for _ in range(num_lines):
                self._unsent.popleft()
            self._num_sent += num_lines
            with suppress(OSError):  # as of a full disk; then the next opening sends these lines again
                self._count_path.write_text(str(self._num_sent))
            return len(self._unsent)

    def _wait_to_try_again(self, wait_s: float) -> None:
        """Waits until the next try, which is at once where the log closes, and soon where it is closing already."""
        with self._changed:
            closing = self._deadline < math.inf
            self._changed.wait_for(lambda: not closing and self._deadline < math.inf, FIRST_WAIT_S if closing else wait_s)


def read_count(path: Path, num_lines: int) -> int:
    """Returns how many of the lines were sent; none where the file is missing, torn or of another log."""
    text = path.read_bytes() if path.exists() else b""
    return int(text) if text.isdigit() and int(text) <= num_lines else 0


def read_lines(path: Path) -> tuple[list[Line], int]:
    """Returns a file's lines, and the bytes that they take: an unfinished last line, left by a kill, is in neither.

    Raises OutputError where another line is none of metrics.
    """
    written = []
    if path.exists():
        with path.open("rb") as file:
            written = list(file)
    lines: list[Line] = []
    for raw in written:
        line = parse_line(raw)
        if line is None and len(lines) < len(written) - 1:
            raise OutputError(f"{path}, line {len(lines) + 1}: {raw[:80]!r} is no line of metrics; move the file away, then start again")
        if line is None:
            logger.info("cut %d bytes of an unfinished last line from %s", len(raw), path)
        else:
            lines.append(line)
    return lines, sum(map(len, written[: len(lines)]))


def parse_line(raw: bytes) -> Line | None:
    """Returns the line that append() wrote, or None where this is not all of one."""
    try:
        line = json.loads(raw) if raw.endswith(b"\n") else None
    except ValueError:
        return None
    return line if isinstance(line, dict) and line.keys() == {"kind", "step", "timestamp_ms", "metrics"} else None
