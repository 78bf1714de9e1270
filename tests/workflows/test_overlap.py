"""Claims about workflows.overlap: order, little ahead, no error lost, and a thread that is free again at the end."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest

from workflows.overlap import ahead, behind

Thread = tuple[ThreadPoolExecutor | None, int]


@pytest.fixture(params=[0, 1, 2])
def thread(request: pytest.FixtureRequest) -> Iterator[Thread]:
    """A thread and how many items may wait; none for 0."""
    if not request.param:
        yield None, 0
        return
    with ThreadPoolExecutor(1) as pool:
        yield pool, request.param


def test_items_come_in_order_from_one_thread_and_only_a_little_ahead(thread: Thread) -> None:
    made: list[int] = []
    threads: set[int] = set()

    def items() -> Iterator[int]:
        for number in range(20):
            made.append(number)
            threads.add(threading.get_ident())
            yield number

    taken = []
    for item in ahead(items(), *thread):
        assert len(made) <= item + 1 + thread[1]
        taken.append(item)
    assert taken == made == list(range(20))
    assert len(threads) == 1
    assert (threading.get_ident() in threads) == (thread[0] is None)


def test_what_making_an_item_raises_is_raised_after_the_items_before_it(thread: Thread) -> None:
    def items() -> Iterator[int]:
        yield 1
        raise ValueError("second")

    found = ahead(items(), *thread)
    assert next(found) == 1
    with pytest.raises(ValueError, match="second"):
        next(found)


def test_nothing_is_made_any_more_when_nobody_asks(thread: Thread) -> None:
    made: list[int] = []

    def items() -> Iterator[int]:
        for number in range(20):
            made.append(number)
            yield number

    with closing(ahead(items(), *thread)) as found:
        assert next(found) == 0
    number_made = len(made)
    assert number_made <= 1 + thread[1]
    if thread[0] is not None:
        thread[0].submit(int).result()
    assert len(made) == number_made


def test_work_is_done_in_order_and_all_of_it_by_the_end(thread: Thread) -> None:
    done: list[int] = []
    with behind(done.append, *thread) as hand_over:
        for number in range(20):
            hand_over(number)
            assert len(done) >= number - thread[1]
    assert done == list(range(20))


@pytest.mark.parametrize("failing", [0, 19])
def test_what_work_raises_is_not_lost(failing: int, thread: Thread) -> None:
    def work(number: int) -> None:
        if number == failing:
            raise OSError("full")

    with pytest.raises(OSError, match="full"), behind(work, *thread) as hand_over:  # noqa: PT012
        for number in range(20):
            hand_over(number)
