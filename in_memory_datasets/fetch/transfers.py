"""Every attempt at every source, on the event loop: turns, byte budget, retries."""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Callable
from concurrent.futures import CancelledError
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, TypeVar
from urllib.parse import urlsplit

from in_memory_datasets.errors import FetchError
from in_memory_datasets.fetch.attempt import AttemptFailed, TimeLimit, local_file, too_large
from in_memory_datasets.fetch.byte_budget import ByteBudget, Grant
from in_memory_datasets.fetch.daemon_threads import DaemonThreads
from in_memory_datasets.fetch.files import find_local_path, read_file, stat_file
from in_memory_datasets.fetch.loop_thread import LoopThread
from in_memory_datasets.fetch.object_stores import read_object, stat_object
from in_memory_datasets.fetch.retry import choose_delay
from in_memory_datasets.fetch.schedule import Schedule
from in_memory_datasets.schema import FetchOptions, Source, names_this_machine

if TYPE_CHECKING:
    from in_memory_datasets.fetch.http import HttpClient

_T = TypeVar("_T")

CLOSE_SECONDS = 0.5


class Attempt(Protocol):
    """One attempt at a source, of one or several steps, each in a turn of the host or bucket it goes to."""

    place: str

    @property
    def is_ready(self) -> bool:
        """Whether the next step can be made, or `prepare` must be awaited before; for that nobody's turn is taken."""

    async def prepare(self) -> None:
        """Make ready for the next step.

        Raises:
            AttemptFailed: The attempt has failed.
        """

    async def step(self) -> tuple[bytes, Grant] | None:
        """Make the next step; None where another one, at the `place` of now, is to follow.

        Raises:
            AttemptFailed: The attempt has failed.
        """


@dataclass(frozen=True, slots=True)
class Fetched:
    """One source's bytes.

    Attributes:
        data: The encoded bytes; for a source of kind "object" the object itself.
        num_bytes: Encoded bytes read; 0 for an object.
        num_attempts: Requests or reads made; 0 for what was inline.
        host: The host asked; "" where none was.
        seconds: What the last attempt took, without the wait for its turn; 0 for what was inline.
    """

    data: Any = field(repr=False)
    num_bytes: int
    num_attempts: int
    host: str
    seconds: float = 0.0
    _grant: Grant | None = field(default=None, repr=False)

    def release(self) -> None:
        """Give its bytes back to the budget; from any thread, any number of times. `data` stays readable."""
        if self._grant is not None:
            self._grant.release()


Done = Callable[["Fetched | BaseException"], None]


@dataclass(slots=True, eq=False)
class _Transfer:
    """A source on its way.

    Attributes:
        done: Told what became of it, once.
        attempt: The attempt that is made, or waits for its turn; None before the first.
        num_attempts: Those begun.
        seconds: What the steps of this attempt took so far; None before the first.
    """

    source: Source
    done: Done
    attempt: Attempt | None = None
    num_attempts: int = 0
    seconds: float | None = None


class Transfers:
    """Fetch sources on an event loop of their own, retrying what is transient.

    All methods belong to that loop, but for `begin_soon` and `close_soon`, which any thread may call.
    """

    def __init__(
        self, options: FetchOptions, budget: ByteBudget, *, is_backed_up: Callable[[], bool] = lambda: False
    ) -> None:
        self._options = options
        self._budget = budget
        self._threads = DaemonThreads("in-memory-datasets-io")
        self._rng = random.Random()
        self._http: HttpClient | None = None
        self._is_closing = False
        self._waiting: set[_Transfer] = set()  # for another attempt
        self.loop = LoopThread("in-memory-datasets-fetch", self._close)
        self._schedule: Schedule[_Transfer] = Schedule(
            options.concurrency,
            options.per_host,
            start=lambda transfer: self.loop.spawn(self._step(transfer)),
            refuse=self._refuse,
            call_later=self.loop.call_later,
            now=time.monotonic,
            is_backed_up=is_backed_up,
        )

    def begin_soon(self, source: Source, done: Done) -> None:
        """Fetch one source; `done` is told, on the loop, what was fetched, or a FetchError, or CancelledError."""
        self.loop.call(self._begin, source, done)

    def close_soon(self) -> None:
        """Start nothing further, and give up what was not started."""
        self._is_closing = True
        self.loop.call(self._give_up)

    def _begin(self, source: Source, done: Done) -> None:
        if self._is_closing:
            done(CancelledError("the fetcher was closed"))
        else:
            self._try(_Transfer(source, done))

    def _give_up(self) -> None:
        for transfer in [*self._schedule.drain(), *self._waiting]:
            transfer.done(CancelledError("the fetcher was closed"))
        self._waiting.clear()

    async def _close(self) -> None:
        if self._http is not None:
            await self._http.close()
        self._threads.close(CLOSE_SECONDS)

    def _try(self, transfer: _Transfer) -> None:
        """Make an attempt, behind all that its place was asked for before: others may fare better."""
        self._waiting.discard(transfer)
        transfer.seconds = None
        try:
            transfer.attempt = self._attempt(transfer.source)
        except AttemptFailed as failure:
            transfer.done(describe_failure(transfer.source, failure, transfer.num_attempts))
        else:
            self._line_up(transfer, first=False)

    def _line_up(self, transfer: _Transfer, *, first: bool) -> None:
        attempt = transfer.attempt
        assert attempt is not None
        if attempt.is_ready:
            self._schedule.add(attempt.place, transfer, first=first)
        else:
            self.loop.spawn(self._prepare(transfer, attempt, first=first))

    async def _prepare(self, transfer: _Transfer, attempt: Attempt, *, first: bool) -> None:
        try:
            await attempt.prepare()
        except AttemptFailed as error:
            error.__traceback__ = error.__cause__ = error.__context__ = None
            if transfer.seconds is None:
                transfer.num_attempts += 1
            self._fail(transfer, error)
        except asyncio.CancelledError:
            transfer.done(CancelledError("the fetcher was closed"))
        except BaseException as error:  # noqa: BLE001 - handed to whoever asked for the source
            transfer.done(error)
        else:
            if self._is_closing:
                transfer.done(CancelledError("the fetcher was closed"))
            else:
                self._schedule.add(attempt.place, transfer, first=first)

    async def _step(self, transfer: _Transfer) -> None:
        """Make one step of an attempt, and see to what comes next."""
        attempt, started_at = transfer.attempt, time.monotonic()
        assert attempt is not None
        place, result, failure = attempt.place, None, None
        if transfer.seconds is None:
            transfer.seconds, transfer.num_attempts = 0.0, transfer.num_attempts + 1
        try:
            result = await attempt.step()
        except AttemptFailed as error:
            # The frames of a traceback would keep what was read of a body for as long as the error is kept.
            error.__traceback__ = error.__cause__ = error.__context__ = None
            failure = error
        except asyncio.CancelledError:
            transfer.done(CancelledError("the fetcher was closed"))
            return
        except BaseException as error:  # noqa: BLE001 - handed to whoever asked for the source
            transfer.done(error)
            self._schedule.ended(place, started_at, None)
            return
        transfer.seconds += time.monotonic() - started_at
        self._schedule.ended(place, started_at, failure)
        if failure is not None:
            self._fail(transfer, failure)
        elif result is not None:
            data, grant = result
            source, seconds = transfer.source, transfer.seconds
            transfer.done(Fetched(data, len(data), transfer.num_attempts, source.host, seconds, grant))
        elif self._is_closing:
            transfer.done(CancelledError("the fetcher was closed"))
        else:
            self._line_up(transfer, first=True)

    def _fail(self, transfer: _Transfer, failure: AttemptFailed) -> None:
        if not failure.transient or transfer.num_attempts > self._options.retries:
            seconds = transfer.seconds or 0.0
            transfer.done(describe_failure(transfer.source, failure, transfer.num_attempts, seconds))
        elif self._is_closing:  # the cancellation met an attempt that was timing out
            transfer.done(CancelledError("the fetcher was closed"))
        else:
            self._waiting.add(transfer)
            delay = choose_delay(transfer.num_attempts, failure.retry_after, self._rng)
            self.loop.call_later(delay, lambda: self._retry(transfer))

    def _retry(self, transfer: _Transfer) -> None:
        if transfer in self._waiting:
            self._try(transfer)

    def _refuse(self, transfer: _Transfer, failure: AttemptFailed) -> None:
        transfer.done(describe_failure(transfer.source, failure, transfer.num_attempts))

    def _attempt(self, source: Source) -> Attempt:
        options = self._options
        if source.kind == "url":
            if self._http is None:
                # aiohttp takes a good part of a second to import, and those who read files never need it.
                from in_memory_datasets.fetch.http import HttpClient

                self._http = HttpClient(options, self._budget, self._threads)
            return self._http.attempt(str(source.value))
        if source.kind == "fsspec" and not options.allow_local_files and names_this_machine(str(source.value)):
            raise local_file()
        path = os.fspath(source.value) if source.kind == "path" else find_local_path(source.value)
        if path is not None:
            return _ReadAttempt(self, "", partial(stat_file, path), lambda size: read_file(path, options.max_bytes))
        url = str(source.value)
        allow, timeout = options.allow_private_addresses, options.timeout
        return _ReadAttempt(
            self,
            _find_bucket(url),
            partial(stat_object, url, allow, timeout_seconds=timeout),
            lambda size: read_object(url, size, options.max_bytes, allow, timeout_seconds=timeout),
        )

    async def read(self, measure: Callable[[], int | None], read: Callable[[int | None], bytes]) -> tuple[bytes, Grant]:
        """Read by two blocking calls: one that measures what there is, in bytes, and one that reads it.

        Raises:
            AttemptFailed: It could not be read.
        """
        max_bytes = self._options.max_bytes
        limit = TimeLimit(self._options.timeout)
        size = await self._run(limit, measure)
        if size is not None:
            check_size(size, max_bytes)
        grant = await self._budget.acquire(max_bytes if size is None else size)
        try:
            data = await self._run(limit, partial(read, size))
            check_size(len(data), max_bytes)
            if size is not None and len(data) < size:
                raise AttemptFailed("truncated", f"{len(data):,} of {size:,} bytes could be read", transient=True)
        except BaseException:
            grant.release()
            raise
        grant.shrink(len(data))
        return data, grant

    async def _run(self, limit: TimeLimit, call: Callable[[], _T]) -> _T:
        try:
            with limit:
                return await asyncio.wrap_future(self._threads.submit(call))
        except asyncio.TimeoutError as error:
            seconds = self._options.timeout
            raise AttemptFailed("timeout", f"not read within {seconds:g} s", transient=True) from error


@dataclass(slots=True, eq=False)
class _ReadAttempt:
    """An attempt at a file or an object, of one step."""

    transfers: Transfers
    place: str
    measure: Callable[[], int | None]
    read: Callable[[int | None], bytes]
    is_ready: bool = True

    async def prepare(self) -> None:
        """Do nothing."""

    async def step(self) -> tuple[bytes, Grant]:
        return await self.transfers.read(self.measure, self.read)


def check_size(size: int, max_bytes: int) -> None:
    """Refuse an empty source and one above the limit, both in bytes.

    Raises:
        AttemptFailed: It is one of these.
    """
    if size == 0:
        raise AttemptFailed("empty", "it has no bytes, expected an encoded file")
    if size > max_bytes:
        raise too_large(f"{size:,}", max_bytes)


def describe_failure(source: Source, failure: AttemptFailed, num_attempts: int, seconds: float = 0.0) -> FetchError:
    """Turn the last failed attempt, which took so many seconds, into the error of the sample."""
    tried = f" (after {num_attempts} attempts)" if num_attempts > 1 else ""
    return FetchError(
        f"{source.label}: {failure.detail}{tried}",
        reason=failure.reason,
        host=source.host,
        attempts=num_attempts,
        seconds=seconds,
    )


def _find_bucket(url: str) -> str:
    last = url.rpartition("::")[2]
    try:
        parts = urlsplit(last)
    except ValueError:
        return last.partition("://")[0]
    return f"{parts.scheme}://{parts.netloc}"
