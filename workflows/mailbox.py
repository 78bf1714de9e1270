"""What workers tell the driver while they train, and the one thing that the driver tells them: to stop."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import ray
from ray.actor import ActorHandle

Message = dict[str, Any]


@ray.remote(num_cpus=0, max_concurrency=1000)
class Mailbox:
    """Messages in the order in which they came, when every rank was last heard of and at which step, and whether to stop."""

    def __init__(self) -> None:
        self.messages: asyncio.Queue[Message] = asyncio.Queue()
        self.heard: dict[int, tuple[float, int]] = {}
        self.stopping = False
        self.kept = 0

    async def push(self, rank: int, step: int, messages: list[Message]) -> tuple[bool, int]:
        """Takes a worker's messages; returns whether it is to stop, and up to which step the driver has kept what it was told."""
        self.heard[rank] = time.monotonic(), step
        for message in messages:
            self.messages.put_nowait(message)
        return self.stopping, self.kept

    async def pull(self, timeout_s: float) -> list[Message]:
        """Returns the messages that are there, or the first that comes within timeout_s."""
        try:
            first = await asyncio.wait_for(self.messages.get(), timeout_s)
        except TimeoutError:
            return []
        return [first, *(self.messages.get_nowait() for _ in range(self.messages.qsize()))]

    async def keep(self, step: int) -> None:
        """Notes that the driver has what it was told of the steps up to this one, even if it is killed now."""
        self.kept = max(self.kept, step)

    async def stop(self) -> None:
        self.stopping = True

    async def silence(self) -> dict[int, tuple[float, int]]:
        """Returns rank -> seconds since it was heard of, and its step then."""
        now = time.monotonic()
        return {rank: (now - when, step) for rank, (when, step) in self.heard.items()}


class Line:
    """A worker's end of the mailbox. Sending never waits; what the driver answers is known by the next time.

    stop: whether to stop; kept: the step up to which the driver's log has what it was told.
    """

    def __init__(self, mailbox: ActorHandle, rank: int) -> None:
        self.mailbox, self.rank = mailbox, rank
        self.answers: list[ray.ObjectRef] = []
        self.stop, self.kept = False, 0

    def send(self, step: int, messages: list[Message]) -> None:
        self.answers.append(self.mailbox.push.remote(self.rank, step, messages))
        arrived, self.answers = ray.wait(self.answers, num_returns=len(self.answers), timeout=0)
        for stop, kept in ray.get(arrived):
            self.stop, self.kept = self.stop or stop, max(self.kept, kept)

    def flush(self, timeout_s: float) -> None:
        """Waits until what was sent has arrived."""
        ray.wait(self.answers, num_returns=len(self.answers), timeout=timeout_s)
