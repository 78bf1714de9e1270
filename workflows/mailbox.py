"""What workers tell the driver while they train, and the one thing that the driver tells them: to stop."""

from __future__ import annotations

import asyncio
import platform
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import ray
from ray.actor import ActorHandle

from workflows.errors import ServiceError

Message = dict[str, Any]

HEARTBEAT_S = 2.0


@ray.remote(num_cpus=0, max_concurrency=1000)
class Mailbox:
    """Messages in the order in which they came, when every rank was last heard of and at which step, and whether to stop.

    Messages are numbered from 1 on, and stay until the driver says that it is done with them.
    """

    def __init__(self) -> None:
        self.messages: deque[tuple[int, Message]] = deque()
        self.num_messages = 0
        self.changed = asyncio.Condition()
        self.heard: dict[int, tuple[float, int]] = {}
        self.stopping = False
        self.kept = 0

    async def push(self, rank: int, step: int, messages: list[Message]) -> tuple[bool, int]:
        """Takes a worker's messages; returns whether it is to stop, and up to which step the driver has kept what it was told."""
        self.heard[rank] = time.monotonic(), step
        async with self.changed:
            for message in messages:
                self.num_messages += 1
                self.messages.append((self.num_messages, message))
            self.changed.notify_all()
        return self.stopping, self.kept

    async def pull(self, done: int, timeout_s: float) -> list[tuple[int, Message]]:
        """Returns the messages after number `done`, with their numbers, or those that come within timeout_s; forgets the ones before."""
        while self.messages and self.messages[0][0] <= done:
            _, message = self.messages.popleft()
            self.kept = max(self.kept, message["step"] if message["kind"] == "steps" else 0)
        if not self.messages:
            with suppress(TimeoutError):
                async with self.changed:
                    await asyncio.wait_for(self.changed.wait_for(lambda: self.messages), timeout_s)
        return list(self.messages)

    async def stop(self) -> None:
        self.stopping = True

    async def silence(self) -> dict[int, tuple[float, int]]:
        """Returns rank -> seconds since it was heard of, and its step then."""
        now = time.monotonic()
        return {rank: (now - when, step) for rank, (when, step) in self.heard.items()}


class Ear:
    """The driver's end of the mailbox. hear may get a message twice, after an interrupt, but misses none."""

    def __init__(self, mailbox: ActorHandle, hear: Callable[[Message], None]) -> None:
        self.mailbox, self.hear, self.done = mailbox, hear, 0

    def listen(self, timeout_s: float) -> None:
        """Hands on what is there, or the first that comes within timeout_s. Raises ServiceError where the mailbox is gone."""
        try:
            messages = ray.get(self.mailbox.pull.remote(self.done, timeout_s))
        except (ray.exceptions.RayActorError, ray.exceptions.OutOfMemoryError) as error:  # Ray ends idle actors first where memory is short
            raise ServiceError(
                f"Ray ended a process of this job on {platform.node()}: {str(error).splitlines()[0]}; free what was short, and start the "
                "run again: it goes on from its last checkpoint"
            ) from error
        for number, message in messages:
            self.hear(message)
            self.done = number


class Line:
    """A worker's end of the mailbox. Sending never waits: a thread pushes what was said, one push at a time, for Ray keeps no order
    among more of them. It also gives signs of life, so that a worker that waits for another one is told from one that stands still.

    stop: whether to stop; kept: the step up to which the driver's log has what it was told.
    """

    def __init__(self, mailbox: ActorHandle, rank: int) -> None:
        self.mailbox, self.rank = mailbox, rank
        self.stop, self.kept, self.step = False, 0, 0
        self.said: list[Message] = []
        self.num_sent = self.num_arrived = 0  # calls of send
        self.failure: Exception | None = None
        self.changed = threading.Condition()
        threading.Thread(target=self._push, daemon=True).start()

    def _push(self) -> None:
        while self.failure is None:
            with self.changed:
                self.changed.wait_for(lambda: self.num_sent > self.num_arrived, HEARTBEAT_S)
                number, messages, self.said = self.num_sent, self.said, []
            try:
                stop, kept = ray.get(self.mailbox.push.remote(self.rank, self.step, messages))
            except Exception as error:  # raised again where something is said next; else the worker goes on unheard
                stop, kept, self.failure = self.stop, self.kept, error
            with self.changed:
                self.stop, self.kept, self.num_arrived = self.stop or stop, max(self.kept, kept), number
                self.changed.notify_all()

    def send(self, step: int, messages: list[Message]) -> None:
        """Raises the error of a push before, a RayError where the mailbox is gone."""
        if self.failure is not None:
            raise self.failure
        with self.changed:
            self.step = step
            self.said += messages
            self.num_sent += 1
            self.changed.notify_all()

    def flush(self, timeout_s: float) -> None:
        """Waits until what was sent has arrived."""
        with self.changed:
            self.changed.wait_for(lambda: self.num_arrived == self.num_sent, timeout_s)
