"""Threads that share the work of making a batch."""

from __future__ import annotations

import os
import weakref
from collections import deque
from collections.abc import Callable
from itertools import pairwise
from queue import SimpleQueue
from threading import Lock, Thread

import torch

# More threads than this do not copy faster: the memory is the limit, not the cores.
_MAX_THREADS = 4
# Bytes that are worth handing to another thread: waking one takes as long as copying half a megabyte.
_PART_BYTES = 2 * 2**20
# A first piece of work with no more parts than this is done sooner than a core that sleeps has woken up.
_FIRST_PARTS = 8

Work = Callable[[slice], object]
Parts = deque[tuple[Work, slice]]
Outcomes = SimpleQueue["BaseException | None"]
Calls = SimpleQueue[tuple[Parts, Outcomes] | None]


class Crew:
    """The calling thread and some helpers, who take parts of a piece of work until none is left.

    Nobody waits for a helper that has not begun, so that a busy machine costs nothing: whoever has a core works. Under
    a static division, such as OpenMP's in `torch.index_select`, all wait for the thread whose core is taken: with one
    other process on two cores, batches of 5 MB then came at 0.08 of the speed of a bare copy.

    The first piece of work in a process is done by the caller alone, unless it is large. Starting a thread on a core
    that had nothing to do took 4-10 ms on a virtual machine, the copy of 32 images 3 ms (measured), and the first batch
    is what is waited for after a reload.

    A plain queue and not a `ThreadPoolExecutor`, whose futures cost a tenth of the copy of such a batch.

    As many threads work as torch may use (`torch.set_num_threads`); in DataLoader workers and under torchrun's default
    that is one, the caller.

    Args:
        max_threads: How many at most.
    """

    def __init__(self, max_threads: int = _MAX_THREADS) -> None:
        self._max_threads = max_threads
        self._calls: dict[int, Calls] = {}  # by process: a child that was forked off has no threads
        self._threads: list[Thread] = []
        self._starting = Lock()

    def share(self, work: Work, *, num_items: int, num_bytes: int, part_bytes: int = _PART_BYTES) -> None:
        """Do `work` for all of `range(num_items)`, in slices; it must release the GIL and be safe in several threads.

        Args:
            work: Does the items of a slice.
            num_items: How many there are.
            num_bytes: What they come to; little work is not shared.
            part_bytes: How much of it is worth another thread.
        """
        num_parts = min(num_items, num_bytes // part_bytes)
        if (
            num_parts < 2
            or (self._is_first() and num_parts <= _FIRST_PARTS)
            or (num_threads := min(self._max_threads, num_parts, torch.get_num_threads())) < 2
        ):
            work(slice(0, num_items))
            return
        bounds = [num_items * part // num_parts for part in range(num_parts + 1)]
        parts: Parts = deque((work, slice(start, end)) for start, end in pairwise(bounds))
        outcomes: Outcomes = SimpleQueue()
        calls = self._calls_to_helpers(num_threads - 1)
        for _ in range(num_threads - 1):
            calls.put((parts, outcomes))
        num_mine = 0
        try:
            while (taken := _take(parts)) is not None:
                num_mine += 1
                work(taken[1])
        finally:
            while _take(parts) is not None:  # after an error nobody begins another
                num_mine += 1
            errors = [error for _ in range(num_parts - num_mine) if (error := outcomes.get()) is not None]
        if errors:
            raise errors[0]

    def _is_first(self) -> bool:
        """Tell, once, that nothing was shared in this process before."""
        if os.getpid() in self._calls:
            return False
        self._calls_to_helpers(0)
        return True

    def _calls_to_helpers(self, num_helpers: int) -> Calls:
        """Give the queue the helpers wait at; who asks for more than there are starts them."""
        me = os.getpid()
        if (calls := self._calls.get(me)) is None:
            new: Calls = SimpleQueue()
            calls = self._calls.setdefault(me, new)
            if calls is new:  # a lock that a thread of the parent held when this process was forked is held for ever
                self._threads, self._starting = [], Lock()
        if len(self._threads) < num_helpers:
            with self._starting:
                while len(self._threads) < num_helpers:
                    thread = Thread(target=_help, args=(calls,), name="in-memory-datasets-copy", daemon=True)
                    thread.start()
                    self._threads.append(thread)
                    weakref.finalize(self, _dismiss, calls, 1).atexit = False
        return calls

    def close(self) -> None:
        """End the threads; they come back when they are needed."""
        if (calls := self._calls.pop(os.getpid(), None)) is not None:
            _dismiss(calls, len(self._threads))
            for thread in self._threads:
                thread.join()

    def __reduce__(self) -> tuple[type[Crew], tuple[int]]:
        return Crew, (self._max_threads,)


def _take(parts: Parts) -> tuple[Work, slice] | None:
    """Take a part; None when none is left."""
    try:
        return parts.popleft()
    except IndexError:
        return None


def _help(calls: Calls) -> None:
    while (call := calls.get()) is not None:
        parts, outcomes = call
        while (taken := _take(parts)) is not None:
            work, part = taken
            outcome = None
            try:
                work(part)
            except BaseException as error:  # noqa: BLE001 - the caller raises it
                outcome = error
            del work, taken  # which hold the batch, and the caller may already have let go of it
            outcomes.put(outcome)
            del outcome
        del call, parts, outcomes


def _dismiss(calls: Calls, num_threads: int) -> None:
    for _ in range(num_threads):
        calls.put(None)
