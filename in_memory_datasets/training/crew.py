"""Threads that share the work of copying a batch."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch

# More threads than this do not copy faster: the memory is the limit, not the cores.
_MAX_THREADS = 4
# Bytes that are worth handing to another thread: waking one takes as long as copying half a megabyte.
_PART_BYTES = 2 * 2**20


class Crew:
    """The calling thread and some helpers, who take parts of a piece of work until none is left.

    Nobody waits for a helper that has not begun, so that a busy machine costs nothing: whoever has a core works. Under
    a static division, such as OpenMP's in `torch.index_select`, all wait for the thread whose core is taken: with one
    other process on two cores, batches of 5 MB then came at 0.08 of the speed of a bare copy.

    As many threads work as torch may use (`torch.set_num_threads`), four at most; in DataLoader workers and under
    torchrun's default that is one, the caller.
    """

    def __init__(self) -> None:
        self._helpers: ThreadPoolExecutor | None = None

    def share(self, work: Callable[[slice], object], *, num_items: int, num_bytes: int) -> None:
        """Do `work` for all of `range(num_items)`, in slices; it must release the GIL and be safe in several threads.

        Args:
            work: Does the items of a slice.
            num_items: How many there are.
            num_bytes: What they come to; little work is not shared.
        """
        num_parts = min(num_items, num_bytes // _PART_BYTES)
        if num_parts < 2 or (num_threads := min(_MAX_THREADS, num_parts, torch.get_num_threads())) < 2:
            work(slice(0, num_items))
            return
        if self._helpers is None:
            self._helpers = ThreadPoolExecutor(_MAX_THREADS - 1, thread_name_prefix="in-memory-datasets-copy")
        step = -(-num_items // num_parts)
        parts = deque(slice(start, min(start + step, num_items)) for start in range(0, num_items, step))

        def take_parts() -> None:
            while True:
                try:
                    part = parts.popleft()
                except IndexError:
                    return
                work(part)

        helping = [self._helpers.submit(take_parts) for _ in range(num_threads - 1)]
        try:
            take_parts()
        finally:
            parts.clear()
            for helper in helping:
                if not helper.cancel():
                    helper.result()

    def close(self) -> None:
        """End the threads; they come back when they are needed."""
        helpers, self._helpers = self._helpers, None
        if helpers is not None:
            helpers.shutdown()

    def __reduce__(self) -> tuple[type[Crew], tuple[()]]:
        return Crew, ()
