"""One daemon thread that runs an event loop for callers in any thread."""

from __future__ import annotations

import asyncio
import os
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from in_memory_datasets.fetch.daemon_threads import join_until_gone

CANCEL_AGAIN_SECONDS = 0.2

# Event loops that a forked child inherits. Their epoll descriptor is shared with the parent, so closing them would
# unregister the parent's connections; they are kept, unused, until the child ends.
_inherited: list[LoopThread] = []


class LoopThread:
    """Run an event loop in a thread of its own.

    `on_close` is awaited on the loop as the last thing, when all tasks have ended.
    """

    def __init__(self, name: str, on_close: Callable[[], Awaitable[None]]) -> None:
        self._pid = os.getpid()
        self._on_close = on_close
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._calls: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()
        self._was_woken = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def call(self, function: Callable[..., object], *args: Any) -> None:
        """Run `function(*args)` on the loop, in the order of the calls; from any thread, and not after `close`."""
        self._calls.append((function, args))
        if not self._was_woken:  # waking it takes a system call, and one is enough for all that are waiting
            self._was_woken = True
            self._loop.call_soon_threadsafe(self._make_calls)

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run a coroutine, which lets no exception out, as a task that is cancelled by `close`; on the loop."""
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def call_later(self, seconds: float, function: Callable[[], None]) -> asyncio.TimerHandle:
        """Run a function on the loop after so many seconds; on the loop."""
        return self._loop.call_later(seconds, function)

    def close(self) -> None:
        """Cancel what is under way, run `on_close`, and end the thread and the loop.

        In a forked child, where the thread does not exist, nothing is closed.
        """
        if os.getpid() != self._pid:
            _inherited.append(self)
            return
        if self._loop.is_closed():
            return
        self.call(self._stop.set)
        if threading.current_thread() is not self._thread:
            join_until_gone(self._thread)

    def _make_calls(self) -> None:
        self._was_woken = False  # before they are looked at: what comes from here on wakes it again
        while self._calls:
            function, args = self._calls.popleft()
            function(*args)

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
