"""Whose turn it is, on a clock that the tests turn."""

from __future__ import annotations

import heapq
import itertools
from collections import Counter
from collections.abc import Callable

from in_memory_datasets.fetch.attempt import AttemptFailed
from in_memory_datasets.fetch.schedule import (
    DEAD_SECONDS,
    MAX_BAD,
    SILENT_SECONDS,
    Schedule,
)

Item = tuple[str, int]


class World:
    """Hosts that answer as they are told, and a clock."""

    def __init__(self, *, concurrency: int = 64, per_host: int = 16) -> None:
        self.now = 0.0
        self.backed_up = False
        self.running: list[tuple[Item, float]] = []
        self.started: list[Item] = []
        self.refused: list[tuple[Item, AttemptFailed]] = []
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self.schedule: Schedule[Item] = Schedule(
            concurrency,
            per_host,
            start=self._start,
            refuse=lambda item, failure: self.refused.append((item, failure)),
            call_later=lambda seconds, call: heapq.heappush(
                self._timers, (self.now + seconds, next(self._order), call)
            ),
            now=lambda: self.now,
            is_backed_up=lambda: self.backed_up,
        )

    def _start(self, item: Item) -> None:
        self.running.append((item, self.now))
        self.started.append(item)

    def add(self, host: str, count: int = 1, *, first: bool = False) -> None:
        for number in range(count):
            self.schedule.add(host, (host, number), first=first)

    def wait(self, seconds: float) -> None:
        """Let the clock run, and everything happen that is due."""
        until = self.now + seconds
        while self._timers and self._timers[0][0] <= until:
            self.now, _, call = heapq.heappop(self._timers)
            call()
        self.now = until

    def answer(self, failure: AttemptFailed | None = None, *, host: str | None = None, after: float = 0.01) -> int:
        """End all that run (of one host) after a while; count them."""
        self.wait(after)
        ending = [one for one in self.running if host in (None, one[0][0])]
        self.running = [one for one in self.running if one not in ending]
        for (name, _), started_at in ending:
            self.schedule.ended(name, started_at, failure)
        return len(ending)

    def count(self, host: str) -> int:
        return Counter(name for (name, _), _ in self.running)[host]


TIMEOUT = AttemptFailed("timeout", "no complete answer within 1 s", transient=True)
GONE = AttemptFailed("http_404", "the server answered 404")


def turned_away(retry_after: float | None = None) -> AttemptFailed:
    return AttemptFailed(
        "http_429", "the server answered 429", transient=True, retry_after=retry_after, overloaded=True
    )


def test_a_host_is_asked_for_its_share_and_the_rest_waits() -> None:
    world = World(per_host=4)
    world.add("a.example", 10)
    assert world.count("a.example") == 4
    world.answer()
    assert world.count("a.example") == 4
    assert [number for _, number in world.started] == list(range(8))


def test_hosts_take_turns() -> None:
    """A dataset that is sorted by host still asks all of them from the start."""
    world = World(concurrency=8, per_host=8)
    for host in ("a.example", "b.example", "c.example"):
        world.add(host, 100)
    world.answer()
    assert min(world.count(host) for host in ("a.example", "b.example", "c.example")) >= 2


def test_what_was_redirected_goes_on_before_what_has_not_begun() -> None:
    world = World(per_host=1)
    world.add("a.example", 3)
    world.schedule.add("a.example", ("again", 0), first=True)
    world.answer(host="a.example")
    assert world.started[-1] == ("again", 0)


def test_a_host_that_times_out_is_asked_for_half_as_much_after_every_round() -> None:
    world = World(per_host=32)
    world.add("a.example", 1000)
    counts = []
    for _ in range(6):
        world.answer(TIMEOUT)
        counts.append(world.count("a.example"))
    assert counts[-1] == 4
    assert counts == sorted(counts, reverse=True)


def test_a_host_that_recovers_is_asked_for_its_share_again() -> None:
    world = World(per_host=16)
    world.add("a.example", 2000)
    world.answer(TIMEOUT)
    world.answer(TIMEOUT)
    seen = []
    for _ in range(40):
        world.answer()
        seen.append(world.count("a.example"))
    assert seen == sorted(seen)
    assert seen[-1] == 16
    assert seen[0] <= 6  # one more a round, not all at once


def test_one_host_in_trouble_is_no_other_ones_business() -> None:
    world = World(per_host=8)
    world.add("a.example", 50)
    world.add("b.example", 50)
    for _ in range(3):
        world.answer(TIMEOUT, host="a.example")
    assert world.count("a.example") == 4
    assert world.count("b.example") == 8


def test_a_refusal_that_is_final_says_nothing_about_the_host() -> None:
    world = World(per_host=8)
    world.add("a.example", 50)
    for _ in range(3):
        world.answer(GONE)
    assert world.count("a.example") == 8


def test_a_host_that_asks_for_a_pause_gets_it_whole() -> None:
    world = World(per_host=4)
    world.add("a.example", 20)
    world.add("b.example", 20)
    world.answer(turned_away(retry_after=7.0), host="a.example")
    world.wait(6.9)
    assert world.count("a.example") == 0
    assert world.count("b.example") == 4
    world.wait(0.2)
    assert world.count("a.example") == 2


def test_a_dead_host_costs_a_bounded_time_and_nothing_of_it_is_lost() -> None:
    """However many sources name it: all are refused, with the reason that it failed for."""
    world = World(per_host=16)
    world.add("a.example", 10_000)
    num_asked = 0
    while world.running:
        num_asked += world.answer(TIMEOUT, after=1.0)
    assert num_asked <= 16 + 8 + 4 * SILENT_SECONDS
    assert num_asked >= MAX_BAD
    assert world.now <= SILENT_SECONDS + 1
    assert num_asked + len(world.refused) == 10_000
    assert {failure.reason for _, failure in world.refused} == {"timeout"}
    assert "retry_failed()" in world.refused[0][1].detail


def test_a_dead_host_is_tried_again_by_one_request() -> None:
    world = World(per_host=16)
    world.add("a.example", 1000)
    while world.running:
        world.answer(TIMEOUT, after=5.0)
    num_refused = len(world.refused)
    world.add("a.example", 3)
    assert len(world.refused) == num_refused + 3
    world.wait(DEAD_SECONDS)
    world.add("a.example", 3)
    assert world.count("a.example") == 1  # and the others are refused for as long as it is not known
    assert len(world.refused) == num_refused + 5
    world.answer()
    world.add("a.example", 3)
    assert world.count("a.example") >= 1
    assert len(world.refused) == num_refused + 5


def test_a_probe_that_fails_leaves_the_host_dead() -> None:
    world = World()
    world.add("a.example", 1000)
    while world.running:
        world.answer(TIMEOUT, after=5.0)
    world.wait(DEAD_SECONDS)
    world.add("a.example", 1)
    world.answer(TIMEOUT)
    num_refused = len(world.refused)
    world.add("a.example", 1)
    assert len(world.refused) == num_refused + 1


def test_a_host_that_turns_everybody_away_is_left_alone_in_the_end() -> None:
    world = World(per_host=1)
    world.add("a.example", 1000)
    num_asked = 0
    while not world.refused:
        num_asked += world.answer(turned_away(retry_after=10.0), after=10.0)
    assert num_asked == MAX_BAD


def test_addresses_that_break_do_not_make_a_host_dead_that_lives() -> None:
    """Of a host at which two of three addresses hang, every one is asked for, four of them at once at the least."""
    world = World(per_host=16)
    world.add("a.example", 3000)
    number = 0
    while world.running:
        assert world.count("a.example") >= min(4, len(world.running))
        number += 1
        world.answer(None if number % 3 == 0 else TIMEOUT, after=1.0)
    assert world.refused == []
    assert len(world.started) == 3000


def test_a_few_that_break_do_not_slow_a_host_down() -> None:
    world = World(per_host=16)
    world.add("a.example", 1000)
    for number in range(400):
        world.wait(0.01)
        (name, _), started_at = world.running.pop(0)
        world.schedule.ended(name, started_at, TIMEOUT if number % 4 == 0 else None)
        assert world.count("a.example") == 16


def test_nothing_goes_out_while_enough_lies_there() -> None:
    world = World(per_host=4)
    world.backed_up = True
    world.add("a.example", 10)
    world.wait(1.0)
    assert world.started == []
    world.backed_up = False
    world.wait(0.01)
    assert world.count("a.example") == 4


def test_hosts_that_hang_do_not_keep_the_others_waiting() -> None:
    """Requests to dead hosts may fill all places until their time is over: then there are more places."""
    world = World(concurrency=128, per_host=32)
    for number in range(4):
        world.add(f"dead{number}.example", 32)
    world.add("alive.example", 32)
    world.wait(2.0)
    assert world.count("alive.example") > 0


def test_what_was_not_started_is_given_back() -> None:
    world = World(per_host=2)
    world.add("a.example", 5)
    assert world.schedule.drain() == [("a.example", number) for number in (2, 3, 4)]
    world.answer()
    assert world.running == []


def test_a_million_hosts_leave_nothing_behind() -> None:
    world = World()
    for number in range(20_000):
        world.add(f"{number}.example")
        world.answer(after=0.0)
    assert len(world.schedule._hosts) == 0
    for number in range(20_000):  # in trouble, all of them
        world.add(f"{number}.example")
        world.answer(TIMEOUT, after=0.0)
    assert len(world.schedule._hosts) <= 10_001
