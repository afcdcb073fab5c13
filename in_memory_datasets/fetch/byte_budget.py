"""The bound on bytes that are being read or wait for whoever asked for them."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from dataclasses import dataclass, field


class ByteBudget:
    """Hand out at most `limit_bytes` at a time, first come, first served.

    `acquire` and `grow` belong to one event loop; `try_acquire` and the release of a grant, to any thread.

    Why it cannot lock up, as long as whoever holds finished bodies releases them: a body of known length holds all
    it needs before its first byte is read. One of unknown length may have to grow while it holds a part; those that
    wait to grow go before those that wait to begin, and where everything handed out belongs to bodies that wait to
    grow, the oldest of them goes on beyond the limit. A body larger than the whole budget is let in when it is
    alone. So the limit is exceeded by at most one body at a time.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self._lock = threading.Lock()
        self._used = 0
        self._num_grants = 0
        self._beginners: deque[_Waiter] = deque()
        self._growers: list[_Waiter] = []

    @property
    def used_bytes(self) -> int:
        """Give the bytes handed out now."""
        return self._used

    async def acquire(self, num_bytes: int) -> Grant:
        """Wait until `num_bytes` may be held, and hold them."""
        with self._lock:
            self._num_grants += 1
            grant = Grant(self, self._num_grants)
            if not self._beginners and not self._growers and self._admits(num_bytes):
                self._give(grant, num_bytes)
                return grant
            waiter = _Waiter(grant, num_bytes, asyncio.get_running_loop())
            self._beginners.append(waiter)
        await self._wait(waiter)
        return grant

    def try_acquire(self, num_bytes: int) -> Grant | None:
        """Hold `num_bytes` if that is possible at once; from any thread."""
        with self._lock:
            if self._beginners or self._growers or not self._admits(num_bytes):
                return None
            self._num_grants += 1
            grant = Grant(self, self._num_grants)
            self._give(grant, num_bytes)
            return grant

    async def grow(self, grant: Grant, num_bytes: int) -> None:
        """Wait until `grant` may hold `num_bytes` more, and hold them."""
        with self._lock:
            if not self._growers and self._used + num_bytes <= self.limit_bytes:
                self._give(grant, num_bytes)
                return
            waiter = _Waiter(grant, num_bytes, asyncio.get_running_loop())
            self._growers.append(waiter)
            self._wake()
        await self._wait(waiter)

    async def _wait(self, waiter: _Waiter) -> None:
        try:
            await waiter.ready
        except asyncio.CancelledError:
            with self._lock:
                if waiter in self._growers:
                    self._growers.remove(waiter)
                elif waiter in self._beginners:
                    self._beginners.remove(waiter)
                else:  # given and cancelled at once: nobody will use it
                    self._used -= waiter.num_bytes
                    waiter.grant.num_bytes -= waiter.num_bytes
                self._wake()
            raise

    def _give_back(self, grant: Grant, num_bytes: int) -> None:
        with self._lock:
            num_bytes = min(num_bytes, grant.num_bytes)
            if num_bytes:
                grant.num_bytes -= num_bytes
                self._used -= num_bytes
                self._wake()

    def _admits(self, num_bytes: int) -> bool:
        return self._used == 0 or self._used + num_bytes <= self.limit_bytes

    def _give(self, grant: Grant, num_bytes: int) -> None:
        grant.num_bytes += num_bytes
        self._used += num_bytes

    def _wake(self) -> None:
        while self._growers:
            oldest = min(self._growers, key=lambda waiter: waiter.grant.number)
            all_wait = self._used == sum(waiter.grant.num_bytes for waiter in self._growers)
            if not all_wait and self._used + oldest.num_bytes > self.limit_bytes:
                return
            self._growers.remove(oldest)
            self._admit(oldest)
        while self._beginners and self._admits(self._beginners[0].num_bytes):
            self._admit(self._beginners.popleft())

    def _admit(self, waiter: _Waiter) -> None:
        self._give(waiter.grant, waiter.num_bytes)
        waiter.loop.call_soon_threadsafe(_set_done, waiter.ready)


class Grant:
    """Hold a number of bytes of a budget, until they are released."""

    __slots__ = ("_budget", "num_bytes", "number")

    def __init__(self, budget: ByteBudget, number: int) -> None:
        self._budget = budget
        self.number = number
        self.num_bytes = 0

    def release(self) -> None:
        """Give everything back; from any thread, any number of times."""
        self._budget._give_back(self, self.num_bytes)

    def shrink(self, num_bytes: int) -> None:
        """Keep `num_bytes` at most and give the rest back."""
        self._budget._give_back(self, max(0, self.num_bytes - num_bytes))


@dataclass(slots=True, eq=False)
class _Waiter:
    grant: Grant
    num_bytes: int
    loop: asyncio.AbstractEventLoop
    ready: asyncio.Future[None] = field(init=False)

    def __post_init__(self) -> None:
        self.ready = self.loop.create_future()


def _set_done(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)
