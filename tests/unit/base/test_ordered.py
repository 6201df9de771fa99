"""Results in the order of the items, and errors in their place, whatever the number of threads."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Event

import pytest

from epivi.base.ordered import in_order


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_an_error_comes_after_the_results_before_it(threads: int) -> None:
    def items() -> Iterator[int]:
        yield from (5, 2, 0, 4)

    pool = ThreadPoolExecutor(threads) if threads else None
    results = in_order(pool, lambda number: 10 // number, items(), ahead=2)
    assert [next(results), next(results)] == [2, 5]
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_a_later_item_that_is_done_first_waits_for_its_turn() -> None:
    second_is_done = Event()

    def work(number: int) -> int:
        if number == 0:
            assert second_is_done.wait(60)
        if number == 1:
            second_is_done.set()
        return number

    with ThreadPoolExecutor(2) as pool:
        assert list(in_order(pool, work, range(6), ahead=2)) == [0, 1, 2, 3, 4, 5]
