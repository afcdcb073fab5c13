"""Threads for calls that block: files, object stores, name look-ups."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

_T = TypeVar("_T")
_Job = tuple["Future[Any]", Callable[..., Any], tuple[Any, ...]]


class DaemonThreads:
    """Run blocking calls, each in an idle thread or in a new one.

    concurrent.futures.ThreadPoolExecutor waits for all of its threads when the interpreter ends, so a single call
    that hangs (a dead network file system, a name server that does not answer) would keep the process alive. The
    number of threads is bounded by whoever submits.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._idle = threading.Semaphore(0)
        self._threads: list[threading.Thread] = []

    def submit(self, call: Callable[..., _T], /, *args: Any) -> Future[_T]:
        """Run `call(*args)` in a thread; from one thread at a time."""
        future: Future[_T] = Future()
        self._jobs.put((future, call, args))
        if not self._idle.acquire(blocking=False):
            thread = threading.Thread(target=self._work, name=f"{self._name}-{len(self._threads)}", daemon=True)
            self._threads.append(thread)
            thread.start()
        return future

    def close(self, timeout_seconds: float) -> None:
        """End every thread; one that is inside a call ends after it, and is waited for until the timeout."""
        for _ in self._threads:
            self._jobs.put(None)
        deadline = time.monotonic() + timeout_seconds
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            future, call, args = job
            if future.set_running_or_notify_cancel():
                try:
                    result = call(*args)
                except BaseException as error:  # noqa: BLE001 - it is handed on, whatever it is, to whoever waits
                    future.set_exception(error)
                else:
                    future.set_result(result)
                    del result
            del future, call, args, job  # an idle thread keeps no body alive
            self._idle.release()
