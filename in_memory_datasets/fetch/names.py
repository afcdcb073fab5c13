"""Names of hosts: each is looked up once, and what came of it is kept for the load.

A dataset names the same few hosts over and over, or a hundred thousand that are long gone. The system's resolver is
neither made for the one nor for the other: it asks again each time, answers nobody while it is flooded, and cannot be
stopped. So look-ups of one name share one, no more than a bounded number run at once, and failures are kept too, for
as long as whoever wants to try again is told to pause.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass

from in_memory_datasets.fetch.attempt import AttemptFailed
from in_memory_datasets.fetch.daemon_threads import DaemonThreads

# The family and the numeric address; ports are the connection's own affair.
Address = tuple[int, str]

# Home routers and small resolvers drop questions when there are more. A name that nobody answers for takes 10 s.
MAX_LOOKUPS = 64
# The pause after a failure doubles from the first to the longest.
PAUSE_SECONDS = 1.0
MAX_PAUSE_SECONDS = 30.0
# Flooded resolvers deny names that exist, so a denial is believed when it is repeated, and for no longer than this.
DENIED_SECONDS = 300.0
# Addresses do change in the hours of a load: once a connection to them has failed, they are looked up again, but no
# sooner than this after the last time.
RENEW_SECONDS = 60.0
# A few hundred bytes each.
MAX_KEPT = 50_000
# A pause that ends is slept through by timers of a coarser clock.
_SLACK_SECONDS = 0.05

_NO_SUCH_NAME = frozenset({socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)})


def look_up(name: str) -> list[Address]:
    """Ask the system for the addresses of a name, the best first; blocks.

    Raises:
        OSError: A socket.gaierror, as a rule.
        ValueError: The name is none that could be asked for.
    """
    infos = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG)
    found: dict[Address, None] = {}
    for family, _, _, _, address in infos:
        # A link-local IPv6 address means nothing without its interface.
        scope = f"%{address[3]}" if len(address) > 3 and address[3] else ""
        found[int(family), f"{address[0]}{scope}"] = None
    return list(found)


@dataclass(slots=True)
class _Known:
    """What a look-up came to: addresses, or a failure and when it may be looked up again."""

    addresses: list[Address]
    asked_at: float
    num_in_turn: int = 0
    turn: int = 0
    detail: str = ""
    num_failures: int = 0
    until: float = 0.0
    is_denied: bool = False
    is_final: bool = False


class Names:
    """Look names up and keep what came of it; used on one event loop.

    Args:
        threads: Where the look-ups block.
        ask: Gives the addresses of a name; raises OSError or ValueError.
        clock: Seconds, always rising.
    """

    def __init__(
        self,
        threads: DaemonThreads,
        ask: Callable[[str], list[Address]] = look_up,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._threads = threads
        self._ask = ask
        self._clock = clock
        self._turns = asyncio.Semaphore(MAX_LOOKUPS)
        self._known: dict[str, _Known] = {}
        self._pending: dict[str, asyncio.Task[_Known]] = {}

    def is_known(self, name: str) -> bool:
        """Tell whether the addresses of a name, in small letters, are at hand."""
        known = self._known.get(name)
        return known is not None and not known.detail

    async def find(self, name: str) -> list[Address]:
        """Give the addresses of a name, looking it up where that is due.

        Addresses that the system puts first alike take turns, as connections do that ask each for themselves. Whoever
        is cancelled while waiting leaves the look-up to the others.

        Raises:
            AttemptFailed: With the reason "dns". Its `retry_after` says when it makes sense to ask again.
        """
        name = name.lower()
        known = self._known.get(name)
        if known is None or (known.detail and self._clock() >= known.until - _SLACK_SECONDS):
            task = self._pending.get(name)
            if task is None:
                task = self._pending[name] = asyncio.get_running_loop().create_task(self._look_up(name, known))
            known = await asyncio.shield(task)
        if known.detail:
            pause = None if known.is_final else max(0.0, known.until - self._clock())
            raise AttemptFailed("dns", known.detail, transient=not known.is_final, retry_after=pause)
        at, known.turn = known.turn, (known.turn + 1) % known.num_in_turn
        addresses = known.addresses
        return addresses[at : known.num_in_turn] + addresses[:at] + addresses[known.num_in_turn :]

    def doubt(self, name: str) -> None:
        """Take note that no connection to a name's addresses came about: they may have changed."""
        known = self._known.get(name)
        if known is not None and not known.detail and self._clock() - known.asked_at >= RENEW_SECONDS:
            del self._known[name]

    async def close(self) -> None:
        """Leave every look-up."""
        tasks = list(self._pending.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _look_up(self, name: str, before: _Known | None) -> _Known:
        try:
            numeric = _read_number(name)
            if numeric is not None:
                known = _found([numeric], self._clock())
            else:
                # Its turn lasts until the system has answered, also where those who wait have given up by then:
                # this is what bounds the threads.
                async with self._turns:
                    known = await self._ask_system(name, before)
            self._known.pop(name, None)
            while len(self._known) >= MAX_KEPT:
                del self._known[next(iter(self._known))]
            self._known[name] = known
            return known
        finally:
            del self._pending[name]

    async def _ask_system(self, name: str, before: _Known | None) -> _Known:
        try:
            addresses = await asyncio.wrap_future(self._threads.submit(self._ask, name))
        except (OSError, ValueError) as error:
            return self._failed(name, error, before)
        if not addresses:
            return self._failed(name, socket.gaierror(socket.EAI_NONAME, "no address"), before)
        return _found(addresses, self._clock())

    def _failed(self, name: str, error: Exception, before: _Known | None) -> _Known:
        num_failures = 1 if before is None else before.num_failures + 1
        words = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
        name = name if len(name) <= 100 else f"{name[:100]}…"
        is_denied = is_final = False
        if isinstance(error, ValueError):
            detail, is_final = f"{name} is no name that could be looked up ({words:.100})", True
        elif isinstance(error, socket.gaierror) and error.errno in _NO_SUCH_NAME:
            detail, is_denied = f"there is no such name as {name} ({words})", True
            is_final = before is not None and before.is_denied
        else:
            detail = f"the name servers give no answer for {name} ({words})"
        now = self._clock()
        pause = min(MAX_PAUSE_SECONDS, PAUSE_SECONDS * 2.0 ** min(num_failures - 1, 16))
        until = now + (DENIED_SECONDS if is_final else pause)
        return _Known([], now, 0, 0, detail, num_failures, until, is_denied, is_final)


def _found(addresses: list[Address], now: float) -> _Known:
    num_in_turn = next(
        (at for at, (family, _) in enumerate(addresses) if family != addresses[0][0]),
        len(addresses),
    )
    return _Known(addresses, now, num_in_turn)


def _read_number(name: str) -> Address | None:
    try:
        ip = ipaddress.ip_address(name)
    except ValueError:
        return None
    return int(socket.AF_INET if ip.version == 4 else socket.AF_INET6), name
