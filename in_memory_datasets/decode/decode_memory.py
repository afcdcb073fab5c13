"""A bound on what all decode threads of a process hold at once."""

from __future__ import annotations

import ctypes
import functools
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

LIMIT_BYTES = 512 * 2**20
# glibc keeps what a thread has freed in that thread's arena. Four threads that decode 88 million pixels one after
# another grew by 1.5 GB, and by 0.7 GB with a trim before each; it takes milliseconds, so small decodes go without.
_TRIM_BYTES = 128 * 2**20


class DecodeMemory:
    """Let decodes begin only while their estimates together stay under a limit; a larger one runs alone.

    Example:
        >>> memory = DecodeMemory(limit_bytes=100)
        >>> with memory.reserve(1_000):
        ...     memory.bytes_in_use
        1000
    """

    def __init__(self, limit_bytes: int = LIMIT_BYTES) -> None:
        self.bytes_in_use = 0
        self._limit_bytes = limit_bytes
        self._changed = threading.Condition()
        # Held while waiting: those who come later queue behind a large picture, which would otherwise never begin.
        self._turn = threading.Lock()

    @contextmanager
    def reserve(self, num_bytes: int) -> Iterator[None]:
        """Wait until `num_bytes` more may be used, and give them back at the end."""
        with self._turn, self._changed:
            self._changed.wait_for(lambda: self.bytes_in_use == 0 or self.bytes_in_use + num_bytes <= self._limit_bytes)
            self.bytes_in_use += num_bytes
        if num_bytes >= _TRIM_BYTES:
            _malloc_trim()(0)
        try:
            yield
        finally:
            with self._changed:
                self.bytes_in_use -= num_bytes
                self._changed.notify_all()


@functools.cache
def _malloc_trim() -> Callable[[int], object]:
    """Find glibc's function that gives freed memory back; elsewhere one that does nothing."""
    found: Callable[[int], object] = getattr(ctypes.CDLL(None), "malloc_trim", lambda pad: None)
    return found


_of_process: tuple[int, DecodeMemory] = (os.getpid(), DecodeMemory())


def share_decode_memory(num_processes: int) -> None:
    """Take this process for one of so many that decode at once, and leave the others their part."""
    global _of_process
    _of_process = (os.getpid(), DecodeMemory(LIMIT_BYTES // num_processes))


def decode_memory() -> DecodeMemory:
    """Give this process's bound.

    A forked child gets a new one: the parent's may have been held, at the moment of the fork, by a thread that the
    child does not have.
    """
    global _of_process
    if _of_process[0] != os.getpid():
        _of_process = (os.getpid(), DecodeMemory())
    return _of_process[1]
