"""The short way for local files that can simply be read."""

from __future__ import annotations

import os
import stat
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from in_memory_datasets.fetch.byte_budget import ByteBudget
from in_memory_datasets.fetch.transfers import Done, Fetched
from in_memory_datasets.schema import Source

_GROW_SECONDS = 0.005
_LOOK_SECONDS = 1.0


@dataclass(slots=True, eq=False)
class _Reading:
    """A file on its way; whoever takes it, a reader or the watch, is the one to see to it."""

    source: Source
    done: Done
    started_at: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self) -> bool:
        return self._lock.acquire(blocking=False)


class FileReaders:
    """Read local files in threads of their own, ahead of whoever decodes them.

    One thread keeps up with many that decode, as long as files come from memory or a fast disk; `hurry` adds threads
    for disks that take their time. What cannot be read in one go, for whatever reason, goes the `long_way`, which knows
    about retries, time limits and waiting for memory; so does what a reader hangs in.

    Source: measured here, the long way costs a file of 74 kB 0.5 ms, half of what decoding it does.

    Args:
        budget: What bodies are held in.
        max_bytes: Largest file.
        timeout_seconds: For one file.
        max_threads: How many threads there may be.
        long_way: Reads a file in any other case.
    """

    def __init__(
        self,
        budget: ByteBudget,
        *,
        max_bytes: int,
        timeout_seconds: float,
        max_threads: int,
        long_way: Callable[[Source, Done], None],
    ) -> None:
        self._budget, self._max_bytes, self._timeout_seconds = budget, max_bytes, timeout_seconds
        self._max_threads, self._long_way = max_threads, long_way
        self._queue: deque[_Reading] = deque()
        self._waits = threading.Condition()
        self._reading: set[_Reading] = set()
        self._threads: list[threading.Thread] = []
        self._num_hanging = 0
        self._grown_at = 0.0
        self._closed = threading.Event()

    def begin(self, source: Source, done: Done) -> None:
        """Read a file; `done` is told what was read, or why it was not. From any thread."""
        with self._waits:
            if not self._closed.is_set():
                self._queue.append(_Reading(source, done))
                if not self._threads:
                    self._add_thread()
                    self._add_watch()
                self._waits.notify()
                return
        self._long_way(source, done)

    def hurry(self) -> None:
        """Take note that somebody waits for files to be read; from any thread."""
        if not self._queue:
            return
        now = time.monotonic()
        with self._waits:
            num_threads = len(self._threads) - 1 - self._num_hanging  # one is the watch
            if self._queue and now - self._grown_at > _GROW_SECONDS and num_threads < self._max_threads:
                self._grown_at = now
                self._add_thread()

    def close(self, timeout_seconds: float) -> None:
        """End every thread, waiting for one that reads until the timeout; what was not begun goes the long way."""
        with self._waits:
            self._closed.set()
            left = list(self._queue)
            self._queue.clear()
            self._waits.notify_all()
        for reading in left:
            self._long_way(reading.source, reading.done)
        deadline = time.monotonic() + timeout_seconds
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _add_thread(self) -> None:
        name = f"in-memory-datasets-read-{len(self._threads)}"
        # A daemon: the interpreter would wait for one that hangs in a dead network file system.
        self._threads.append(threading.Thread(target=self._work, name=name, daemon=True))
        self._threads[-1].start()

    def _add_watch(self) -> None:
        self._threads.append(threading.Thread(target=self._watch, name="in-memory-datasets-watch", daemon=True))
        self._threads[-1].start()

    def _work(self) -> None:
        while True:
            with self._waits:
                while not self._queue and not self._closed.is_set():
                    self._waits.wait()
                if not self._queue:
                    return
                reading = self._queue.popleft()
                reading.started_at = time.monotonic()
                self._reading.add(reading)
            fetched = self._read(reading)
            with self._waits:
                self._reading.discard(reading)
            if not reading.take():  # the watch has given it up, and put another thread in the place of this one
                if fetched is not None:
                    fetched.release()
                return
            if fetched is None:
                self._long_way(reading.source, reading.done)
            else:
                reading.done(fetched)
            del reading, fetched  # an idle thread keeps no body alive

    def _read(self, reading: _Reading) -> Fetched | None:
        """Read a file that is there, of a size that is allowed, and whole; None for any other."""
        grant = None
        try:
            # O_NONBLOCK: opening a pipe would wait for a writer.
            fd = os.open(os.fspath(reading.source.value), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except (OSError, ValueError):
            return None
        try:
            status = os.fstat(fd)
            size = status.st_size
            if not stat.S_ISREG(status.st_mode) or not 0 < size <= self._max_bytes:
                return None
            grant = self._budget.try_acquire(size)
            data = b"" if grant is None else os.read(fd, size)
        except (OSError, MemoryError):
            data = b""
        finally:
            os.close(fd)
        if grant is None:
            return None
        if len(data) != size:
            grant.release()
            return None
        return Fetched(data, size, 1, "", time.monotonic() - reading.started_at, grant)

    def _watch(self) -> None:
        """Send what a reader hangs in the long way, and put another reader in the place of that one."""
        while not self._closed.wait(_LOOK_SECONDS):
            with self._waits:
                late = time.monotonic() - self._timeout_seconds
                given_up = [reading for reading in self._reading if reading.started_at < late and reading.take()]
                for reading in given_up:
                    self._reading.discard(reading)
                    self._num_hanging += 1
                    self._add_thread()
            for reading in given_up:
                self._long_way(reading.source, reading.done)
