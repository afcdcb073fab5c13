"""The hand-over of outcomes from many threads to the one that keeps the books."""

from __future__ import annotations

import threading
from collections.abc import Callable

from in_memory_datasets.build.pipeline import Outcome, Outcomes

Item = Outcome | BaseException


def later(act: Callable[[], object]) -> None:
    """Do something in another thread, a moment later."""
    threading.Timer(0.1, act).start()


def test_all_that_came_are_taken_in_their_order() -> None:
    outcomes = Outcomes()
    items: list[Item] = [Outcome(2), ValueError("told as it is"), Outcome(1)]
    for item in items:
        outcomes.put(item)
    assert outcomes.take(2) == items
    assert not outcomes


def test_fewer_than_were_waited_for_are_not_held_back() -> None:
    outcomes = Outcomes()
    outcomes.put(Outcome(7))
    assert outcomes.take(1_000) == [Outcome(7)]


def test_who_finds_none_waits_for_one_however_long_that_takes() -> None:
    outcomes = Outcomes()
    later(lambda: outcomes.put(Outcome(7)))
    assert outcomes.take(1_000) == [Outcome(7)]


def test_an_error_is_not_waited_for_longer_than_an_outcome() -> None:
    outcomes = Outcomes()
    error = MemoryError("no memory left")
    later(lambda: outcomes.put(error))
    assert outcomes.take(1_000) == [error]


def test_none_is_lost_or_taken_twice_however_many_threads_put_them() -> None:
    outcomes, num_threads, num_each = Outcomes(), 8, 5_000

    def put(first: int) -> None:
        for number in range(first, first + num_each):
            outcomes.put(Outcome(number))

    threads = [threading.Thread(target=put, args=(i * num_each,)) for i in range(num_threads)]
    for thread in threads:
        thread.start()
    taken: list[int] = []
    while len(taken) < num_threads * num_each:
        taken += [one.slot for one in outcomes.take(7) if isinstance(one, Outcome)]
    assert sorted(taken) == list(range(num_threads * num_each))
    for thread in threads:
        thread.join()
    assert not outcomes
