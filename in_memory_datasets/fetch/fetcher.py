"""Sources in, encoded bytes out, from any thread."""

from __future__ import annotations

import os
import threading
import weakref
from concurrent.futures import Future
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from in_memory_datasets.errors import ConfigError, InMemoryDatasetsError
from in_memory_datasets.fetch.attempt import AttemptFailed
from in_memory_datasets.fetch.byte_budget import Grant
from in_memory_datasets.fetch.loop_thread import LoopThread
from in_memory_datasets.fetch.transfers import Transfers, check_size, describe_failure
from in_memory_datasets.schema import FetchOptions, Source


@dataclass(frozen=True, slots=True)
class Fetched:
    """One source's bytes.

    Attributes:
        data: The encoded bytes; for a source of kind "object" the object itself.
        num_bytes: Encoded bytes read; 0 for an object.
        num_attempts: Requests or reads made; 0 for what was inline.
        host: The host asked; "" where none was.
    """

    data: Any = field(repr=False)
    num_bytes: int
    num_attempts: int
    host: str
    _grant: Grant | None = field(default=None, repr=False)

    def release(self) -> None:
        """Give its bytes back to the budget; from any thread, any number of times. `data` stays readable."""
        if self._grant is not None:
            self._grant.release()


class Fetcher:
    """Fetch sources concurrently; a context manager, usable from any thread.

    Args:
        options: Concurrency, time-outs, retries, size limit, guards.
        max_buffered_bytes: Bytes of bodies held at once, counted from before their first byte is read until
            `Fetched.release()`. Requests wait while it is used up, and that wait is no part of their time-out. A
            body larger than this is fetched alone. Beyond it, each connection buffers up to 384 KiB, and one body at
            a time is copied together. Sources of kind "bytes" and "object" are not counted: they are the caller's.

    Bodies are held until they are released, so results are taken in the order of completion: a caller that waits
    for a particular future while it holds the others unreleased may wait for ever.

    Retries: connection errors, time-outs, cut-off bodies and the statuses 408, 425, 429 and 5xx are tried again
    after 0.25 s, 0.5 s, 1 s, ... (10 s at most, each a random part of it), or after what the server's Retry-After
    asks for (30 s at most). Waiting keeps no slot.

    Works after a fork: the child starts a thread of its own when it first needs one.

    Cost: nothing until the first source that has to be fetched; one thread for the network, one more per file or
    object that is read at the same time.

    Example:
        >>> with Fetcher() as fetcher:
        ...     fetched = fetcher.fetch(Source("bytes", b"GIF89a"))
        >>> fetched.data, fetched.num_bytes
        (b'GIF89a', 6)
    """

    def __init__(self, options: FetchOptions = FetchOptions(), *, max_buffered_bytes: int = 128 * 2**20) -> None:  # noqa: B008 - frozen
        if max_buffered_bytes < 1:
            raise ConfigError(f"max_buffered_bytes={max_buffered_bytes!r}: expected at least 1 byte")
        self._options = options
        self._max_buffered_bytes = max_buffered_bytes
        self._closed = False
        self._engine: _Engine | None = None
        self._lock = threading.Lock()
        self._pid = os.getpid()

    def submit(self, source: Source) -> Future[Fetched]:
        """Begin to fetch a source; whatever goes wrong with it, its future raises a FetchError.

        Raises:
            InMemoryDatasetsError: The fetcher is closed.
        """
        if source.kind in ("bytes", "object"):
            self._refuse_if_closed()
            return _settle_inline(source, self._options.max_bytes)
        if os.getpid() != self._pid:
            self._start_anew_after_fork()
        with self._lock:
            self._refuse_if_closed()
            if self._engine is None:
                self._engine = _Engine(self, self._options, self._max_buffered_bytes)
            return self._engine.submit(source)

    def fetch(self, source: Source) -> Fetched:
        """Fetch a source and wait for it.

        Raises:
            FetchError: It could not be had.
            InMemoryDatasetsError: The fetcher is closed.
        """
        return self.submit(source).result()

    def close(self) -> None:
        """Cancel what is under way and free everything; any number of times.

        Futures that are not done raise concurrent.futures.CancelledError. A read that hangs inside a dead network
        file system is left to its daemon thread.
        """
        if os.getpid() != self._pid:
            self._start_anew_after_fork()
        with self._lock:
            self._closed = True
            engine, self._engine = self._engine, None
        if engine is not None:
            engine.close()

    def __enter__(self) -> Fetcher:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise InMemoryDatasetsError("this Fetcher is closed; make a new one")

    def _start_anew_after_fork(self) -> None:
        if self._engine is not None:
            self._engine.close()
        self._engine = None
        self._lock = threading.Lock()  # another of the parent's threads may have held it
        self._pid = os.getpid()


class _Engine:
    """The running half of a Fetcher: exists from its first fetch to its end."""

    def __init__(self, owner: Fetcher, options: FetchOptions, max_buffered_bytes: int) -> None:
        self._transfers = Transfers(options, max_buffered_bytes)
        self._thread = LoopThread("in-memory-datasets-fetch", self._transfers.close)
        # For owners that are dropped, or alive when the interpreter ends, without having been closed.
        self._finalizer = weakref.finalize(owner, _close, self._transfers, self._thread)

    def submit(self, source: Source) -> Future[Fetched]:
        transfers = self._transfers

        async def work() -> Fetched:
            data, grant, num_attempts = await transfers.fetch(source)
            return Fetched(data, len(data), num_attempts, source.host, grant)

        return self._thread.submit(work)

    def close(self) -> None:
        self._finalizer()


def _close(transfers: Transfers, thread: LoopThread) -> None:
    transfers.begin_closing()
    thread.close()


def _settle_inline(source: Source, max_bytes: int) -> Future[Fetched]:
    future: Future[Fetched] = Future()
    if source.kind == "object":
        future.set_result(Fetched(source.value, 0, 0, ""))
        return future
    try:
        check_size(len(source.value), max_bytes)
    except AttemptFailed as failure:
        future.set_exception(describe_failure(source, failure, 0))
    else:
        future.set_result(Fetched(source.value, len(source.value), 0, ""))
    return future
