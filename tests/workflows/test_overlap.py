"""Claims about workflows.overlap: order, little ahead, and no error lost."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from workflows.overlap import NUM_WAITING, ahead, behind


def test_items_come_in_order_from_another_thread_and_only_a_little_ahead() -> None:
    made: list[int] = []
    threads: set[int] = set()

    def items() -> Iterator[int]:
        for number in range(20):
            made.append(number)
            threads.add(threading.get_ident())
            yield number

    taken = []
    for item in ahead(items()):
        assert len(made) <= item + 1 + NUM_WAITING
        taken.append(item)
    assert taken == made == list(range(20))
    assert len(threads) == 1
    assert threading.get_ident() not in threads


def test_what_making_an_item_raises_is_raised_after_the_items_before_it() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise ValueError("second")

    found = ahead(items())
    assert next(found) == 1
    with pytest.raises(ValueError, match="second"):
        next(found)


def test_work_is_done_in_order_and_all_of_it_by_the_end() -> None:
    done: list[int] = []
    with behind(done.append) as hand_over:
        for number in range(20):
            hand_over(number)
            assert len(done) >= number - NUM_WAITING
    assert done == list(range(20))


@pytest.mark.parametrize("failing", [0, 19])
def test_what_work_raises_is_not_lost(failing: int) -> None:
    def work(number: int) -> None:
        if number == failing:
            raise OSError("full")

    with pytest.raises(OSError, match="full"), behind(work) as hand_over:  # noqa: PT012
        for number in range(20):
            hand_over(number)
