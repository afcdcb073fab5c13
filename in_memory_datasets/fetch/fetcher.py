"""Sources in, encoded bytes out, from any thread."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from types import TracebackType

from in_memory_datasets.errors import ConfigError, InMemoryDatasetsError
from in_memory_datasets.fetch.attempt import AttemptFailed
from in_memory_datasets.fetch.byte_budget import ByteBudget
from in_memory_datasets.fetch.file_readers import FileReaders
from in_memory_datasets.fetch.transfers import CLOSE_SECONDS, Done, Fetched, Transfers, check_size, describe_failure
from in_memory_datasets.schema import FetchOptions, Source


class Fetcher:
    """Fetch sources concurrently; a context manager, usable from any thread.

    Args:
        options: Concurrency, time-outs, retries, size limit, guards.
        max_buffered_bytes: Bytes of bodies held at once, counted from before their first byte is read until
            `Fetched.release()`. Requests wait while it is used up, and that wait is no part of their time-out. A
            body larger than this is fetched alone. Beyond it, each connection buffers up to 384 KiB, and one body at
            a time is copied together. Sources of kind "bytes" and "object" are not counted: they are the caller's.

        is_backed_up: Tells whether there is enough that was fetched and not taken yet: no request goes out then.

    How many requests are under way adapts by itself, see `Schedule`: up to `options.concurrency` in all and
    `options.per_host` to one host, fewer where more gain nothing or a host is in trouble.

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

    def __init__(
        self,
        options: FetchOptions = FetchOptions(),  # noqa: B008 - frozen
        *,
        max_buffered_bytes: int = 128 * 2**20,
        is_backed_up: Callable[[], bool] = lambda: False,
    ) -> None:
        if max_buffered_bytes < 1:
            raise ConfigError(f"max_buffered_bytes={max_buffered_bytes!r}: expected at least 1 byte")
        self._options = options
        self._max_buffered_bytes, self._is_backed_up = max_buffered_bytes, is_backed_up
        self._closed = False
        self._engine: _Engine | None = None
        self._lock = threading.Lock()
        self._pid = os.getpid()

    def begin(self, source: Source, done: Done) -> None:
        """Begin to fetch a source; `done` is told what was fetched, or what went wrong, a FetchError mostly.

        It is called once, in whichever thread is the first to know, and must neither raise nor take long.

        Raises:
            InMemoryDatasetsError: The fetcher is closed.
        """
        if source.kind in ("bytes", "object"):
            self._refuse_if_closed()
            done(_take_inline(source, self._options.max_bytes))
            return
        if os.getpid() != self._pid:
            self._start_anew_after_fork()
        with self._lock:
            self._refuse_if_closed()
            if self._engine is None:
                self._engine = _Engine(self, self._options, self._max_buffered_bytes, self._is_backed_up)
            engine = self._engine
        engine.begin(source, done)

    def submit(self, source: Source) -> Future[Fetched]:
        """Begin to fetch a source; whatever goes wrong with it, its future raises a FetchError.

        Raises:
            InMemoryDatasetsError: The fetcher is closed.
        """
        future: Future[Fetched] = Future()

        def settle(result: Fetched | BaseException) -> None:
            if not future.set_running_or_notify_cancel():
                if isinstance(result, Fetched):
                    result.release()
            elif isinstance(result, Fetched):
                future.set_result(result)
            else:
                future.set_exception(result)

        self.begin(source, settle)
        return future

    def hurry(self) -> None:
        """Take note that somebody waits for what was begun: files are then read by more threads."""
        engine = self._engine
        if engine is not None:
            engine.hurry()

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

    def __init__(
        self, owner: Fetcher, options: FetchOptions, max_buffered_bytes: int, is_backed_up: Callable[[], bool]
    ) -> None:
        budget = ByteBudget(max_buffered_bytes)
        self._transfers = Transfers(options, budget, is_backed_up=is_backed_up)
        self._readers = FileReaders(
            budget,
            max_bytes=options.max_bytes,
            timeout_seconds=options.timeout,
            max_threads=options.per_host,
            long_way=self._transfers.begin_soon,
        )
        # For owners that are dropped, or alive when the interpreter ends, without having been closed.
        self._finalizer = weakref.finalize(owner, _close, self._transfers, self._readers, os.getpid())

    def begin(self, source: Source, done: Done) -> None:
        begin = self._readers.begin if source.kind == "path" else self._transfers.begin_soon
        begin(source, done)

    def hurry(self) -> None:
        self._readers.hurry()

    def close(self) -> None:
        self._finalizer()


def _close(transfers: Transfers, readers: FileReaders, pid: int) -> None:
    if os.getpid() == pid:  # a forked child has none of the threads, and locks may be held that nobody lets go of
        transfers.close_soon()
        readers.close(CLOSE_SECONDS)
    transfers.loop.close()


def _take_inline(source: Source, max_bytes: int) -> Fetched | BaseException:
    if source.kind == "object":
        return Fetched(source.value, 0, 0, "")
    try:
        check_size(len(source.value), max_bytes)
    except AttemptFailed as failure:
        return describe_failure(source, failure, 0)
    return Fetched(source.value, len(source.value), 0, "")
