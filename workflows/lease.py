"""Who works on a run or an output: numbered claims in its folder, one job at a time, taken over when the holder is gone.

RUN/attempts/NNNNNN.json is put by whoever takes the run, only if absent; the highest number holds it. NNNNNN.beat beside it is rewritten
every few seconds while the holder lives, and says when it let go.
"""

from __future__ import annotations

import json
import os
import platform
import re
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from pyarrow import fs

from data.stores import address, put_if_absent, refuse_silence
from workflows.errors import ServiceError, TryAgain, logger

HEARTBEAT_S = 3.0
# A holder that was not heard of for so long is gone: ten heartbeats.
EXPIRY_S = 30.0
RELEASED = "released"
CLAIM = re.compile(r"\d+\.json")  # whatever else lies beside is not ours


@dataclass(frozen=True)
class Fence:
    """One attempt at some work, as those who work for it know it."""

    claims: Claims
    attempt: int

    def is_held(self) -> bool:
        """Whether no later attempt took the work over."""
        return self.claims.is_current(self.attempt)


@dataclass(frozen=True)
class Claims:
    """The claims on one run, or on one output. Travels to the workers, who ask whether their attempt is still the current one."""

    filesystem: fs.FileSystem
    path: str
    unwritable: type[Exception] = ServiceError

    def newest(self) -> int:
        """Returns the highest number that was claimed, 0 where there is none."""
        selector = fs.FileSelector(self.path, allow_not_found=True)
        names = [info.base_name for info in self.filesystem.get_file_info(selector)]
        return max((int(name.removesuffix(".json")) for name in names if CLAIM.fullmatch(name)), default=0)

    def is_current(self, attempt: int) -> bool:
        return self.newest() == attempt

    @contextmanager
    def held(self, what: str) -> Iterator[int]:
        """Holds the claim while open; gives the attempt's number, from 1 on.

        Raises TryAgain where another job holds it and lives, the error `unwritable` where the storage cannot be written.
        """
        try:
            self.filesystem.create_dir(self.path, recursive=True)
            attempt = self._take(what)
            self._forget(attempt - 1)
        except FileExistsError as error:
            raise TryAgain(f"{what} was taken by another job just now; the same command goes on when that has ended") from error
        except OSError as error:
            refuse_silence(error)
            raise self.unwritable(f"{address(self.filesystem, self.path)} cannot be written: {error}") from error
        ended = threading.Event()
        beating = threading.Thread(target=self._beat_until, args=(attempt, ended), daemon=True)
        beating.start()
        try:
            yield attempt
        finally:
            ended.set()
            beating.join()
            self._beat(attempt, RELEASED)

    def _take(self, what: str) -> int:
        newest = self.newest()
        if newest and not self._is_gone(newest, what):
            raise TryAgain(f"{what} is held by another job ({self._holder(newest)}); the same command goes on when that has ended")
        put_if_absent(self.filesystem, self._file(newest + 1, "json"), json.dumps(this_process()).encode())
        return newest + 1

    def _forget(self, before: int) -> None:
        """Deletes the claims before an attempt, which nobody asks for any more."""
        selector = fs.FileSelector(self.path)
        old = [
            info for info in self.filesystem.get_file_info(selector) if info.base_name[:6].isdigit() and int(info.base_name[:6]) < before
        ]
        for info in old:
            self.filesystem.delete_file(info.path)

    def _is_gone(self, attempt: int, what: str) -> bool:
        holder, beat = self._holder(attempt), self._last_beat(attempt)
        if beat == RELEASED:
            return True
        if holder is not None and holder["machine"] == this_process()["machine"]:
            return not is_alive(holder)
        logger.info("%s was held by a job on another machine; waiting up to %.0f s for a sign of life", what, EXPIRY_S)
        deadline = time.monotonic() + EXPIRY_S
        while time.monotonic() < deadline:
            time.sleep(HEARTBEAT_S / 3)
            if self._last_beat(attempt) != beat:
                return self._last_beat(attempt) == RELEASED
        return True

    def _holder(self, attempt: int) -> dict[str, Any] | None:
        """Returns the process that put a claim; None where the file does not say, as when a disk lost a part of it."""
        try:
            found = json.loads(self._read(self._file(attempt, "json")) or "null")
        except ValueError:
            return None
        return found if isinstance(found, dict) and {"machine", "pid", "started"} <= found.keys() else None

    def _last_beat(self, attempt: int) -> str | None:
        return self._read(self._file(attempt, "beat"))

    def _beat_until(self, attempt: int, ended: threading.Event) -> None:
        while not ended.is_set():
            self._beat(attempt, uuid.uuid4().hex)
            ended.wait(HEARTBEAT_S)

    def _beat(self, attempt: int, content: str) -> None:
        path = self._file(attempt, "beat")
        try:
            with self.filesystem.open_output_stream(path) as stream:
                stream.write(content.encode())
        except OSError as error:  # the job itself meets the same storage, and fails where that matters
            logger.warning("%s cannot be written: %s", path, error)

    def _file(self, attempt: int, ending: str) -> str:
        return f"{self.path}/{attempt:06d}.{ending}"

    def _read(self, path: str) -> str | None:
        if self.filesystem.get_file_info(path).type != fs.FileType.File:
            return None
        with self.filesystem.open_input_file(path) as stream:
            return bytes(stream.read()).decode(errors="replace")


def this_process() -> dict[str, Any]:
    """Returns what tells this process from others: machine (and its process namespace), pid, start."""
    namespace = Path("/proc/self/ns/pid")
    boot = Path("/proc/sys/kernel/random/boot_id")
    machine = [platform.node(), os.readlink(namespace) if namespace.exists() else "", boot.read_text().strip() if boot.exists() else ""]
    return {"machine": machine, "pid": os.getpid(), "started": psutil.Process().create_time(), "start_ticks": start_ticks(os.getpid())}


def start_ticks(pid: int) -> int | None:
    """Returns when a process started, in clock ticks after the boot; None where it is not known. No step of the clock moves it."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    return int(stat.rpartition(b")")[2].split()[19])  # field 22 of proc(5); the second, a name in parentheses, may hold anything


def is_alive(holder: dict[str, Any]) -> bool:
    """Whether a process of this machine still runs; a pid that came round again has another start."""
    try:
        process = psutil.Process(holder["pid"])
        return bool(process.status() != psutil.STATUS_ZOMBIE and has_start(process, holder))
    except psutil.NoSuchProcess:
        return False


def has_start(process: psutil.Process, holder: dict[str, Any]) -> bool:
    """Whether a process started when a holder did: by ticks where both are known, else by the clock, as in claims of earlier versions."""
    ticks, known = start_ticks(process.pid), holder.get("start_ticks")
    if ticks is not None and known is not None:
        return bool(ticks == known)
    return bool(abs(process.create_time() - holder["started"]) < 1)
