"""One daemon thread that runs an event loop for callers in any thread."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import CancelledError, Future
from typing import Any, TypeVar

_T = TypeVar("_T")

CANCEL_AGAIN_SECONDS = 0.2

# Event loops that a forked child inherits. Their epoll descriptor is shared with the parent, so closing them would
# unregister the parent's connections; they are kept, unused, until the child ends.
_inherited: list[LoopThread] = []


class LoopThread:
    """Run coroutines on an event loop in a thread of its own.

    `on_close` is awaited on the loop as the last thing.
    """

    def __init__(self, name: str, on_close: Callable[[], Awaitable[None]]) -> None:
        self._pid = os.getpid()
        self._on_close = on_close
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def submit(self, work: Callable[[], Coroutine[Any, Any, _T]]) -> Future[_T]:
        """Run `work()` on the loop; from any thread, and not after `close`."""
        future: Future[_T] = Future()
        self._loop.call_soon_threadsafe(self._start, work, future)
        return future

    def close(self) -> None:
        """Cancel what is under way, run `on_close`, and end the thread and the loop.

        Futures that are not done raise concurrent.futures.CancelledError. In a forked child, where the thread does
        not exist, nothing is closed.
        """
        if os.getpid() != self._pid:
            _inherited.append(self)
            return
        if self._loop.is_closed():
            return
        self._loop.call_soon_threadsafe(self._stop.set)
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _start(self, work: Callable[[], Coroutine[Any, Any, _T]], future: Future[_T]) -> None:
        if not future.set_running_or_notify_cancel():
            return
        task = self._loop.create_task(work())
        self._tasks.add(task)

        def settle(task: asyncio.Task[_T]) -> None:
            self._tasks.discard(task)
            if task.cancelled():
                future.set_exception(CancelledError("the fetcher was closed"))
            elif (error := task.exception()) is not None:
                future.set_exception(error)
            else:
                future.set_result(task.result())

        # Not in the coroutine: one that is cancelled before its first step never runs a line.
        task.add_done_callback(settle)

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._main())
        finally:
            self._loop.close()

    async def _main(self) -> None:
        await self._stop.wait()
        # Again and again: a cancellation that meets a connection just being made, or a time limit just passing, can be
        # lost in them, and the task would then wait for a server that may never answer.
        while self._tasks:
            for task in self._tasks:
                task.cancel()
            await asyncio.wait(self._tasks, timeout=CANCEL_AGAIN_SECONDS)
        await self._on_close()
        # Closed transports let go of their descriptors in the loop's next turns.
        for _ in range(3):
            await asyncio.sleep(0)
