"""What a command costs: CPU-seconds and memory of its whole process tree, and wall time.

CPU-seconds are the sum over all processes ever seen below the command of the user and system time last seen, polled every 0.2 s and when
the command ends: an ended process loses its last 0.2 s at most (the command's own none), and one that lived shorter is missed. Memory is
the largest sum of the tree's proportional set sizes that was seen.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import psutil

POLL_S = 0.2


def environment() -> dict[str, str]:
    """Returns this process's environment with one thread a process, and without another cluster or store."""
    foreign = ("RAY_ADDRESS", "MLFLOW_TRACKING_URI")
    own = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0", "RAY_DEDUP_LOGS": "0"}
    return {name: value for name, value in os.environ.items() if name not in foreign} | own


class Tree:
    """A process and all below it, from the first time that a poll sees them."""

    def __init__(self, pid: int) -> None:
        self.root = psutil.Process(pid)
        self.seen: dict[psutil.Process, float] = {}  # equal by pid and start time
        self.lock = threading.Lock()

    def cpu_seconds(self) -> float:
        with self.lock:
            for process in {*self.seen, *self.below()}:  # those that lost their parent are still ours
                try:
                    spent = process.cpu_times()
                    self.seen[process] = spent.user + spent.system
                except psutil.Error:
                    self.seen.setdefault(process, 0.0)
            return sum(self.seen.values())

    def seconds_of(self, chosen: Callable[[psutil.Process], bool]) -> float:
        """Returns the part that some processes took, as far as the last call of cpu_seconds saw it; all of it where there are none."""
        with self.lock:
            spent = [seconds for process, seconds in self.seen.items() if chosen(process)]
            return sum(spent or self.seen.values())

    def below(self) -> list[psutil.Process]:
        try:
            return [self.root, *self.root.children(recursive=True)]
        except psutil.Error:
            return []

    def memory_bytes(self) -> int:
        total = 0
        for process in list(self.seen):
            try:
                total += process.memory_full_info().pss
            except psutil.AccessDenied:
                total += process.memory_info().rss
            except psutil.Error:
                continue
        return total

    def kill(self) -> None:
        for process in [*self.below(), *self.seen]:
            try:
                process.kill()
            except psutil.Error:
                continue


@dataclass
class Run:
    """What one run took."""

    wall_s: float = 0.0
    cpu_s: float = 0.0
    peak_bytes: int = 0


Hearer = Callable[[str, float, Tree], None]


def watch(arguments: list[str], folder: Path, timeout_s: float, hear: Hearer = lambda *_: None, memory_interval_s: float = 2.0) -> Run:
    """Runs a command in a folder of its own, gone afterwards, and returns what it took.

    hear: called with every line of its standard error, the seconds since the start, and the tree. Raises RuntimeError where it failed or
    took too long.
    """
    run, last_lines = Run(), deque[str](maxlen=40)
    started = time.monotonic()
    with tempfile.TemporaryDirectory(dir=folder, ignore_cleanup_errors=True) as here:
        process = subprocess.Popen(
            arguments, cwd=here, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, errors="replace"
        )
        tree = Tree(process.pid)
        assert process.stderr is not None
        listener = threading.Thread(target=listen, args=(process.stderr, hear, tree, started, last_lines), daemon=True)
        listener.start()
        try:
            wait(process.pid, run, tree, started, timeout_s, memory_interval_s)
        finally:
            tree.kill()
            process.wait()
        listener.join(10)
    if process.returncode != 0:
        raise RuntimeError(f"{' '.join(arguments)}\nended with {process.returncode}:\n{''.join(last_lines)}")
    return run


def listen(lines: IO[str], hear: Hearer, tree: Tree, started: float, last_lines: deque[str]) -> None:
    for line in lines:
        last_lines.append(line)
        hear(line, time.monotonic() - started, tree)


def wait(pid: int, run: Run, tree: Tree, started: float, timeout_s: float, memory_interval_s: float) -> None:
    """Polls the tree until its root ends; Ray's processes need not end by themselves after it."""
    looked = -memory_interval_s
    ended = False
    while not ended and run.wall_s < timeout_s:
        # It stays a zombie, whose CPU time can be read, until subprocess asks for it.
        ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
        run.wall_s = time.monotonic() - started
        run.cpu_s = tree.cpu_seconds()
        if run.wall_s - looked >= memory_interval_s:
            run.peak_bytes, looked = max(run.peak_bytes, tree.memory_bytes()), run.wall_s
        if not ended:
            time.sleep(POLL_S)
