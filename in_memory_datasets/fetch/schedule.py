"""Which source is asked for next: a queue for each host, and how much each of them can bear."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from in_memory_datasets.fetch.attempt import AttemptFailed
from in_memory_datasets.fetch.limit import GrowingLimit
from in_memory_datasets.fetch.retry import choose_delay

ItemT = TypeVar("ItemT")

# A host is taken for dead when so many requests in a row have broken, or were turned away, and for so long none was
# answered. Single addresses of a host that lives may do that, even dozens of them, a few times each.
MAX_BAD, SILENT_SECONDS = 128, 60.0
DEAD_SECONDS = 30.0  # until it is asked once more
# Requests that break say little about how many a host can bear, unless half of so many do; and with fewer than these
# at once, the few that hang would keep all others waiting.
_MIN_ROUND, _LEAST_FOR_BREAKS = 8, 4.0
LOOK_AGAIN_SECONDS = 0.005  # at whether what is fetched was taken
STALL_SECONDS = 0.5  # without a single answer, before more are asked for
_MAX_KNOWN_HOSTS = 10_000  # in trouble, and not asked just now: a dataset may name a million

_BREAKS = frozenset({"timeout", "reset", "refused"})


@dataclass(slots=True, eq=False)
class _Host(Generic[ItemT]):
    limit: float
    queue: deque[ItemT] = field(default_factory=deque)
    num_running: int = 0
    is_ready: bool = False  # stands in the line of hosts that can be asked
    cut_at: float = 0.0  # when its limit was cut last
    num_ended: int = 0  # of a round, and how many of them broke
    num_broken: int = 0
    num_bad: int = 0  # turned away or broken, one after the other
    num_turned_away: int = 0  # of these
    answered_at: float = 0.0
    closed_until: float = 0.0
    dead: AttemptFailed | None = None
    dead_until: float = 0.0


class Schedule(Generic[ItemT]):
    """Start what is added, host by host in turns, no more at once than each host and all together can bear.

    How many in all, is found out (see `GrowingLimit`). A host is asked `per_host` at a time, and half as many after
    every round in which it answers 429 or 503, or half of the requests time out or their connections break; one more
    again after every round of good answers. After a 429 or 503 it is left alone for as long as it asks, or for a pause
    that doubles. A host that has answered nothing for a minute and many requests is taken for dead: what waits for it
    is refused with the reason the last one failed for, and after half a minute one request tries whether it is back. So
    the time that a dead host costs is bounded, however many sources name it.

    Belongs to one event loop.

    Args:
        concurrency: The most that run at once.
        per_host: The most that run at once of one host.
        start: Begins an item; `ended` must be called when it is over.
        refuse: Told of an item that is not started since its host is dead, and of the failure.
        call_later: As of the event loop: calls a function after so many seconds.
        now: The clock.
        is_backed_up: Tells whether there is enough that was fetched and not taken yet.

    Source: Chiu and Jain, "Analysis of the Increase and Decrease Algorithms for Congestion Avoidance in Computer
        Networks", 1989; M. Nygard, "Release It!", 2007 (circuit breaker).
    """

    def __init__(
        self,
        concurrency: int,
        per_host: int,
        *,
        start: Callable[[ItemT], None],
        refuse: Callable[[ItemT, AttemptFailed], None],
        call_later: Callable[[float, Callable[[], None]], object],
        now: Callable[[], float],
        is_backed_up: Callable[[], bool] = lambda: False,
    ) -> None:
        self._limit = GrowingLimit(concurrency)
        self._per_host = per_host
        self._start, self._refuse = start, refuse
        self._call_later, self._now = call_later, now
        self._is_backed_up = is_backed_up
        self._hosts: dict[str, _Host[ItemT]] = {}
        self._line: deque[_Host[ItemT]] = deque()
        self._num_running = 0
        self._looks_again = self._watches = False
        self._num_ended = 0
        self._rng = random.Random()

    @property
    def limit(self) -> int:
        """How many may run at once now."""
        return self._limit.value

    def add(self, name: str, item: ItemT, *, first: bool = False) -> None:
        """Have an item started when it is its turn; before all others of its host with `first`."""
        host = self._hosts.get(name)
        if host is None:
            if len(self._hosts) >= _MAX_KNOWN_HOSTS:
                self._forget_idle()
            host = self._hosts[name] = _Host(limit=self._per_host, answered_at=self._now())
        elif host.dead is not None and (self._now() < host.dead_until or host.queue or host.num_running):
            self._refuse(item, host.dead)
            return
        (host.queue.appendleft if first else host.queue.append)(item)
        self._line_up(host)
        self._go_on()

    def ended(self, name: str, started_at: float, failure: AttemptFailed | None) -> None:
        """Note that an item which was started at that time is over, and how."""
        host, now = self._hosts[name], self._now()
        host.num_running -= 1
        self._num_running -= 1
        self._num_ended += 1
        broke = failure is not None and failure.reason in _BREAKS
        self._limit.ended(now, in_the_way=bool(self._line), broke=broke)
        self._count_round(host, broke)
        if failure is not None and (broke or failure.overloaded):
            self._note_trouble(host, now, started_at, failure)
        else:
            host.num_bad, host.num_turned_away, host.dead, host.answered_at = 0, 0, None, now
            host.limit = min(self._per_host, host.limit + 1 / host.limit)
        if not host.queue and not host.num_running and host.limit == self._per_host and host.closed_until <= now:
            del self._hosts[name]  # a dataset may name a million hosts
        else:
            self._line_up(host)
        self._go_on()

    def drain(self) -> list[ItemT]:
        """Take out all that was not started."""
        items = [item for host in self._hosts.values() for item in host.queue]
        for host in self._hosts.values():
            host.queue.clear()
        return items

    def _count_round(self, host: _Host[ItemT], broke: bool) -> None:
        host.num_ended += 1
        host.num_broken += broke
        if host.num_ended >= max(_MIN_ROUND, host.limit):
            if 2 * host.num_broken >= host.num_ended:
                host.limit = max(min(_LEAST_FOR_BREAKS, host.limit), host.limit / 2)
            host.num_ended = host.num_broken = 0

    def _note_trouble(self, host: _Host[ItemT], now: float, started_at: float, failure: AttemptFailed) -> None:
        host.num_bad += 1
        if failure.overloaded:
            if started_at >= host.cut_at:  # what was under way then belongs to the round that it was cut for
                host.limit, host.cut_at = max(1.0, host.limit / 2), now
            host.num_turned_away += 1
            pause = choose_delay(host.num_turned_away, failure.retry_after, self._rng)
            host.closed_until = max(host.closed_until, now + pause)
            self._call_later(pause, lambda: self._reopen(host))
        if host.dead is None and (host.num_bad < MAX_BAD or now - host.answered_at < SILENT_SECONDS):
            return
        host.dead_until = now + DEAD_SECONDS
        host.dead = AttemptFailed(
            failure.reason,
            f"{failure.detail}; so did the last {host.num_bad} requests to its host, which is not asked again for a "
            "while: call retry_failed() later",
        )
        refused = list(host.queue)
        host.queue.clear()
        for item in refused:
            self._refuse(item, host.dead)

    def _reopen(self, host: _Host[ItemT]) -> None:
        self._line_up(host)
        self._go_on()

    def _line_up(self, host: _Host[ItemT]) -> None:
        can_go = host.queue and host.num_running < max(1, int(host.limit)) and host.closed_until <= self._now()
        if can_go and not host.is_ready:
            host.is_ready = True
            self._line.append(host)

    def _go_on(self) -> None:
        while self._line and self._num_running < self._limit.value:
            if self._is_backed_up():
                if not self._looks_again:
                    self._looks_again = True
                    self._call_later(LOOK_AGAIN_SECONDS, self._look_again)
                return
            host = self._line.popleft()
            host.is_ready = False
            if not host.queue or host.closed_until > self._now():
                continue
            item = host.queue.popleft()
            host.num_running += 1
            self._num_running += 1
            self._line_up(host)
            self._start(item)
        if self._line and not self._watches:
            self._watches, seen = True, self._num_ended
            self._call_later(STALL_SECONDS, lambda: self._watch(seen))

    def _watch(self, num_ended: int) -> None:
        self._watches = False
        if self._line and num_ended == self._num_ended:
            self._limit.stalled()
        self._go_on()

    def _look_again(self) -> None:
        self._looks_again = False
        self._go_on()

    def _forget_idle(self) -> None:
        for name in [name for name, host in self._hosts.items() if not host.queue and not host.num_running]:
            del self._hosts[name]
