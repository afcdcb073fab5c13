"""The thread behind a fetcher ends, whatever the coroutines on it do."""

from __future__ import annotations

import asyncio
import contextlib
import threading

from in_memory_datasets.fetch.loop_thread import LoopThread


def test_a_task_that_loses_a_cancellation_is_cancelled_again() -> None:
    """Libraries lose one now and then, where it meets a connection being made or a time limit that passes."""
    waiting = threading.Event()

    async def lose_two() -> None:
        for _ in range(2):
            try:
                waiting.set()
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                continue
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()

    async def nothing() -> None:
        return None

    thread = LoopThread("in-memory-datasets-test", nothing)
    thread.call(lambda: thread.spawn(lose_two()))
    assert waiting.wait(10)
    thread.close()
    assert "in-memory-datasets-test" not in {thread.name for thread in threading.enumerate()}
