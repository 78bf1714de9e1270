"""Reading ahead of a computation and writing behind it, each in a thread of its own, in order and with little waiting in memory.

The threads are the caller's, of one worker each, and stay: memory that a thread asked for goes to waste with it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import Any, TypeVar

Item = TypeVar("Item")

END: Any = object()


def ahead(items: Iterator[Item], thread: ThreadPoolExecutor | None, num_waiting: int) -> Generator[Item]:
    """Yields the items, the next num_waiting being made meanwhile; what making them raises is raised here. No thread: as asked for."""
    if thread is None:
        yield from items
        return
    waiting = deque(thread.submit(next, items, END) for _ in range(num_waiting))
    try:
        while (item := waiting.popleft().result()) is not END:
            waiting.append(thread.submit(next, items, END))
            yield item
    finally:
        for future in waiting:
            future.cancel()
        wait(waiting)


@contextmanager
def behind(work: Callable[[Item], None], thread: ThreadPoolExecutor | None, num_waiting: int) -> Iterator[Callable[[Item], None]]:
    """Gives what hands items over to work(item), one after the other; what that raises is raised at a later item or at the end.

    num_waiting: items that may wait. No thread: the work is done at once.
    """
    if thread is None:
        yield work
        return
    waiting: deque[Future[None]] = deque()

    def hand_over(item: Item) -> None:
        if len(waiting) == num_waiting:
            waiting.popleft().result()
        waiting.append(thread.submit(work, item))

    try:
        yield hand_over
        while waiting:
            waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()
        wait(waiting)
