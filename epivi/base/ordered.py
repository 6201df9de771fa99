"""Work on threads whose results come in the order of the items."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import suppress
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def on_threads(
    function: Callable[[Item], Result], items: Iterable[Item], threads: int, *, ahead: int, name: str = ""
) -> Generator[Result, None, None]:
    """As `in_order`, on so many threads of its own; one thread is the caller's."""
    if threads == 1:
        yield from in_order(None, function, items, ahead=ahead)
        return
    with ThreadPoolExecutor(threads, thread_name_prefix=name) as pool:
        yield from in_order(pool, function, items, ahead=ahead)


def in_order(
    pool: Executor | None, function: Callable[[Item], Result], items: Iterable[Item], *, ahead: int
) -> Generator[Result, None, None]:
    """function(item) of every item, in the order of the items, which the caller's thread makes.

    pool: where the function runs, or None for the caller's thread; ahead: items under way or done beside the one whose
    result was last given, which bounds memory. What an item or its making raises is raised in its place, after the
    results before it, so that the first error does not depend on the number of threads.
    """
    if pool is None:
        yield from map(function, items)
        return
    waiting: deque[Future[Result]] = deque()
    iterator = iter(items)
    try:
        while True:
            try:
                item = next(iterator)
            except StopIteration:
                break
            except Exception:
                yield from _drained(waiting)
                raise
            waiting.append(pool.submit(function, item))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        yield from _drained(waiting)
    finally:
        # Whoever stops early must not close what those under way still read.
        for future in waiting:
            if not future.cancel():
                with suppress(Exception):
                    future.result()


def _drained(waiting: deque[Future[Result]]) -> Iterator[Result]:
    while waiting:
        yield waiting.popleft().result()
