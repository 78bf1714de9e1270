"""Claims about workflows.overlap: order, little ahead, and no error lost."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from workflows.overlap import ahead, behind


@pytest.mark.parametrize("num_waiting", [0, 1, 2])
def test_items_come_in_order_from_one_thread_and_only_a_little_ahead(num_waiting: int) -> None:
    made: list[int] = []
    threads: set[int] = set()

    def items() -> Iterator[int]:
        for number in range(20):
            made.append(number)
            threads.add(threading.get_ident())
            yield number

    taken = []
    for item in ahead(items(), num_waiting):
        assert len(made) <= item + 1 + num_waiting
        taken.append(item)
    assert taken == made == list(range(20))
    assert len(threads) == 1
    assert (threading.get_ident() in threads) == (num_waiting == 0)


@pytest.mark.parametrize("num_waiting", [0, 1, 2])
def test_what_making_an_item_raises_is_raised_after_the_items_before_it(num_waiting: int) -> None:
    def items() -> Iterator[int]:
        yield 1
        raise ValueError("second")

    found = ahead(items(), num_waiting)
    assert next(found) == 1
    with pytest.raises(ValueError, match="second"):
        next(found)


@pytest.mark.parametrize("num_waiting", [0, 1, 2])
def test_work_is_done_in_order_and_all_of_it_by_the_end(num_waiting: int) -> None:
    done: list[int] = []
    with behind(done.append, num_waiting) as hand_over:
        for number in range(20):
            hand_over(number)
            assert len(done) >= number - num_waiting
    assert done == list(range(20))


@pytest.mark.parametrize("num_waiting", [0, 1, 2])
@pytest.mark.parametrize("failing", [0, 19])
def test_what_work_raises_is_not_lost(failing: int, num_waiting: int) -> None:
    def work(number: int) -> None:
        if number == failing:
            raise OSError("full")

    with pytest.raises(OSError, match="full"), behind(work, num_waiting) as hand_over:  # noqa: PT012
        for number in range(20):
            hand_over(number)
