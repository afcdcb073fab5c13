"""What one attempt at a source can end in, and how long it may take."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType


class AttemptFailed(Exception):
    """Report one attempt that failed; it ends as a FetchError once there are no further attempts.

    `transient` says whether another attempt may succeed; `retry_after` is what the server asked for, in seconds;
    `overloaded`, whether it says that it is asked too much.
    """

    def __init__(
        self,
        reason: str = "unreadable",
        detail: str = "",
        *,
        transient: bool = False,
        retry_after: float | None = None,
        overloaded: bool = False,
    ) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail
        self.transient = transient
        self.retry_after = retry_after
        self.overloaded = overloaded


def too_large(size: str, max_bytes: int) -> AttemptFailed:
    """Report a source above the size limit, both in bytes."""
    return AttemptFailed(
        "too_large", f"it has {size} bytes, at most {max_bytes:,} are fetched; raise FetchOptions(max_bytes=...)"
    )


def local_file() -> AttemptFailed:
    """Report a source on this machine that a dataset named where nobody asked for local files."""
    return AttemptFailed(
        "local_file",
        "it names a file of this machine, which the URLs of a dataset may not lead to unasked; "
        "FetchOptions(allow_local_files=True) reads it",
    )


class TimeLimit:
    """Bound the seconds one attempt spends inside its `with` blocks; between them its clock stands still.

    asyncio's own timeouts run on through every wait, but a wait for memory or for a free slot says nothing about
    the server. Used by one task; blocks do not nest.

    Raises:
        asyncio.TimeoutError: The seconds ran out inside a block.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds_left = seconds
        self._expired = False

    def __enter__(self) -> TimeLimit:
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("a TimeLimit is used inside a task")
        self._task = task
        self._loop = asyncio.get_running_loop()
        self._go_on()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()
        if self._expired and kind is not None and issubclass(kind, asyncio.CancelledError):
            # Python 3.11 counts cancellations; what was asked for here is dealt with here.
            uncancel = getattr(self._task, "uncancel", None)
            if uncancel is not None:
                uncancel()
            raise asyncio.TimeoutError from error

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Stop the clock for a while, inside a block."""
        self._stop()
        try:
            yield
        finally:
            self._go_on()

    def _go_on(self) -> None:
        self._started_at = self._loop.time()
        self._alarm = self._loop.call_later(self._seconds_left, self._expire)

    def _stop(self) -> None:
        self._alarm.cancel()
        self._seconds_left = max(0.0, self._seconds_left - (self._loop.time() - self._started_at))

    def _expire(self) -> None:
        self._expired = True
        self._task.cancel()
