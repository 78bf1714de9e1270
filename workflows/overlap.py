"""Reading ahead of a computation and writing behind it, each in a thread of its own, in order and with little waiting in memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

Item = TypeVar("Item")

END: Any = object()


def ahead(items: Iterator[Item], num_waiting: int) -> Generator[Item]:
    """Yields the items, the next num_waiting being made meanwhile; what making them raises is raised here. 0: without a thread."""
    if not num_waiting:
        yield from items
        return
    with ThreadPoolExecutor(1) as pool:
        waiting = deque(pool.submit(next, items, END) for _ in range(num_waiting))
        while (item := waiting.popleft().result()) is not END:
            waiting.append(pool.submit(next, items, END))
            yield item


@contextmanager
def behind(work: Callable[[Item], None], num_waiting: int) -> Iterator[Callable[[Item], None]]:
    """Gives what hands items over to work(item), one after the other; what that raises is raised at a later item or at the end.

    num_waiting: items that may wait; 0: the work is done at once, without a thread.
    """
    if not num_waiting:
        yield work
        return
    with ThreadPoolExecutor(1) as pool:
        waiting: deque[Future[None]] = deque()

        def hand_over(item: Item) -> None:
            if len(waiting) == num_waiting:
                waiting.popleft().result()
            waiting.append(pool.submit(work, item))

        yield hand_over
        while waiting:
            waiting.popleft().result()
