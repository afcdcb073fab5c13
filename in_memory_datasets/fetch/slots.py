"""How many requests are under way at once, in all and to one host."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Slots:
    """Bound the requests under way; used on one event loop.

    A request takes its host's slot first and a global one after it, so that those that queue for a slow host do not
    keep the others waiting.
    """

    def __init__(self, concurrency: int, per_host: int) -> None:
        self._all = asyncio.Semaphore(concurrency)
        self._per_host = per_host
        self._hosts: dict[str, _HostSlots] = {}

    @asynccontextmanager
    async def hold(self, host: str) -> AsyncIterator[None]:
        """Hold one slot of `host` and one of all, for the length of the block."""
        slots = self._hosts.get(host)
        if slots is None:
            slots = self._hosts[host] = _HostSlots(self._per_host)
        slots.num_users += 1
        try:
            async with slots.semaphore, self._all:
                yield
        finally:
            slots.num_users -= 1
            if slots.num_users == 0:  # a dataset may name a million hosts
                del self._hosts[host]


class _HostSlots:
    __slots__ = ("num_users", "semaphore")

    def __init__(self, size: int) -> None:
        self.semaphore = asyncio.Semaphore(size)
        self.num_users = 0
