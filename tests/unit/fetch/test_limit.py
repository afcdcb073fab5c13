"""How many requests go out at once, on a clock that the tests turn."""

from __future__ import annotations

import itertools
from collections.abc import Callable

from in_memory_datasets.fetch.limit import FIRST, LEAST, GrowingLimit


def finish(
    limit: GrowingLimit,
    *,
    seconds: float,
    throughput: Callable[[int], float],
    start: float = 0.0,
    in_the_way: bool = True,
    broke: Callable[[int], bool] = lambda number: False,
) -> float:
    """Let requests end at the throughput that a limit gives, for so many seconds; give the time after them."""
    now, number = start, 0
    while now < start + seconds:
        now += 1 / throughput(limit.value)
        number += 1
        limit.ended(now, in_the_way=in_the_way, broke=broke(number))
    return now


def test_it_grows_while_twice_as_many_bring_more() -> None:
    limit = GrowingLimit(512)
    finish(limit, seconds=5, throughput=lambda value: value / 0.1)
    assert limit.value == 512


def test_it_stops_where_more_gain_nothing() -> None:
    """A server that gives 600 files a second, however many are asked for: 64 at 0.1 s are enough."""
    limit = GrowingLimit(1024)
    finish(limit, seconds=1.5, throughput=lambda value: min(600.0, value / 0.1))
    assert limit.value == 64


def test_it_tries_again_when_things_have_changed() -> None:
    limit = GrowingLimit(256)
    now = finish(limit, seconds=2, throughput=lambda value: min(400.0, value / 0.1))
    assert limit.value < 256
    finish(limit, seconds=60, start=now, throughput=lambda value: value / 0.1)
    assert limit.value == 256


def test_trying_again_becomes_rarer() -> None:
    limit = GrowingLimit(1024)
    now, tries = 0.0, []
    before = limit.value
    while now < 120:
        now = finish(limit, seconds=0.05, start=now, throughput=lambda value: min(320.0, value / 0.1))
        if limit.value > before:
            tries.append(now)
        before = limit.value
    pauses = [later - earlier for earlier, later in itertools.pairwise(tries)][:4]
    assert pauses == sorted(pauses)
    assert pauses[-1] > 5 * pauses[0]


def test_it_is_left_alone_while_something_else_holds_requests_back() -> None:
    limit = GrowingLimit(512)
    finish(limit, seconds=20, throughput=lambda value: value / 0.1, in_the_way=False)
    assert limit.value == FIRST


def test_it_is_halved_where_many_break_and_never_falls_below_eight() -> None:
    limit = GrowingLimit(128)
    now = finish(limit, seconds=1, throughput=lambda value: value / 0.1, broke=lambda number: number % 3 == 0)
    assert limit.value < FIRST
    finish(limit, seconds=60, start=now, throughput=lambda value: value / 0.1, broke=lambda number: True)
    assert limit.value == LEAST


def test_it_never_passes_what_the_user_allows() -> None:
    for most in (1, 5, 8, 33, 100):
        limit = GrowingLimit(most)
        now, highest = 0.0, 0
        for _ in range(200):
            now = finish(limit, seconds=0.1, start=now, throughput=lambda value: value / 0.01)
            highest = max(highest, limit.value)
        assert highest == most


def test_requests_that_all_hang_let_others_pass() -> None:
    limit = GrowingLimit(100)
    limit.stalled()
    limit.stalled()
    limit.stalled()
    assert limit.value == 100
