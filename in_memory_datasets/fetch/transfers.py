"""Every attempt at every source, on the event loop: slots, byte budget, retries."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urlsplit

from in_memory_datasets.errors import FetchError
from in_memory_datasets.fetch.attempt import AttemptFailed, TimeLimit, too_large
from in_memory_datasets.fetch.byte_budget import ByteBudget, Grant
from in_memory_datasets.fetch.daemon_threads import DaemonThreads
from in_memory_datasets.fetch.files import find_local_path, read_file, stat_file
from in_memory_datasets.fetch.object_stores import read_object, stat_object
from in_memory_datasets.fetch.retry import choose_delay
from in_memory_datasets.fetch.slots import Slots
from in_memory_datasets.schema import FetchOptions, Source

if TYPE_CHECKING:
    from in_memory_datasets.fetch.http import HttpClient

_T = TypeVar("_T")
_Attempt = Callable[[], Awaitable[tuple[bytes, Grant]]]

CLOSE_SECONDS = 0.5


class Transfers:
    """Fetch sources on one event loop, retrying what is transient."""

    def __init__(self, options: FetchOptions, max_buffered_bytes: int) -> None:
        self._options = options
        self._budget = ByteBudget(max_buffered_bytes)
        self._slots = Slots(options.concurrency, options.per_host)
        self._threads = DaemonThreads("in-memory-datasets-io")
        self._rng = random.Random()
        self._http: HttpClient | None = None
        self._closing = False

    async def fetch(self, source: Source) -> tuple[bytes, Grant, int]:
        """Fetch one source; gives its bytes, the grant that holds them, and the number of attempts made.

        Raises:
            FetchError: It could not be had.
        """
        attempt = self._plan(source)
        num_attempts = 0
        while True:
            num_attempts += 1
            try:
                data, grant = await attempt()
            except AttemptFailed as error:
                # The frames of a traceback would keep what was read of a body for as long as the error is kept.
                error.__traceback__ = error.__cause__ = error.__context__ = None
                failure = error
            else:
                return data, grant, num_attempts
            if not failure.transient or num_attempts > self._options.retries:
                raise describe_failure(source, failure, num_attempts)
            if self._closing:  # the cancellation met an attempt that was timing out
                raise asyncio.CancelledError
            await asyncio.sleep(choose_delay(num_attempts, failure.retry_after, self._rng))

    async def close(self) -> None:
        """Close every connection and end every thread."""
        if self._http is not None:
            await self._http.close()
        self._threads.close(CLOSE_SECONDS)

    def begin_closing(self) -> None:
        """Make no further attempts."""
        self._closing = True

    def _plan(self, source: Source) -> _Attempt:
        options = self._options
        if source.kind == "url":
            if self._http is None:
                # aiohttp takes a good part of a second to import, and those who read files never need it.
                from in_memory_datasets.fetch.http import HttpClient

                self._http = HttpClient(options, self._budget, self._slots, self._threads)
            return partial(self._http.get, str(source.value))
        path = os.fspath(source.value) if source.kind == "path" else find_local_path(source.value)
        if path is not None:
            return partial(self._read, "", partial(stat_file, path), lambda size: read_file(path, options.max_bytes))
        url = str(source.value)
        allow, timeout = options.allow_private_addresses, options.timeout
        return partial(
            self._read,
            _find_bucket(url),
            partial(stat_object, url, allow, timeout_seconds=timeout),
            lambda size: read_object(url, size, options.max_bytes, allow, timeout_seconds=timeout),
        )

    async def _read(
        self, place: str, measure: Callable[[], int | None], read: Callable[[int | None], bytes]
    ) -> tuple[bytes, Grant]:
        max_bytes = self._options.max_bytes
        limit = TimeLimit(self._options.timeout)
        async with self._slots.hold(place):
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


def check_size(size: int, max_bytes: int) -> None:
    """Refuse an empty source and one above the limit, both in bytes.

    Raises:
        AttemptFailed: It is one of these.
    """
    if size == 0:
        raise AttemptFailed("empty", "it has no bytes, expected an encoded file")
    if size > max_bytes:
        raise too_large(f"{size:,}", max_bytes)


def describe_failure(source: Source, failure: AttemptFailed, num_attempts: int) -> FetchError:
    """Turn the last failed attempt into the error of the sample."""
    tried = f" (after {num_attempts} attempts)" if num_attempts > 1 else ""
    return FetchError(
        f"{source.label}: {failure.detail}{tried}", reason=failure.reason, host=source.host, attempts=num_attempts
    )


def _find_bucket(url: str) -> str:
    last = url.rpartition("::")[2]
    try:
        parts = urlsplit(last)
    except ValueError:
        return last.partition("://")[0]
    return f"{parts.scheme}://{parts.netloc}"
