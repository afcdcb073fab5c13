"""Which bytes of a block lie in memory: count them, bring them there, keep them there.

The page cache holds what was read of a file until the memory is wanted for something else; then the next read waits for
the disk. What lies in shared memory can be swapped out likewise.

Source: mincore(2), madvise(2), mlock(2), capabilities(7).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import os
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from in_memory_datasets.store.block import PAGE_BYTES, Block

_STEP_BYTES = 64 * 2**20  # short enough that an interrupt is answered at once
_POPULATE_READ = 22  # MADV_POPULATE_READ, which the mmap module does not know; Linux 5.14
_MAY_LOCK_ANYTHING = 1 << 14  # CAP_IPC_LOCK


def count_resident(block: Block) -> tuple[int, int]:
    """Count the bytes of a block that lie in memory, and all that it has; holes, which hold nothing, count as neither.

    Linux tells it of files that this user owns or may write. Of others it says that all of it is there.
    """
    resident = total = 0
    for start, stop in _extents(block):
        pages = np.zeros(-(-(stop - start) // PAGE_BYTES), np.uint8)
        vector = pages.ctypes.data_as(ctypes.POINTER(ctypes.c_ubyte))
        _call("mincore", block, start, stop - start, vector)
        resident += int(np.count_nonzero(pages & 1)) * PAGE_BYTES
        total += len(pages) * PAGE_BYTES
    return resident, total


def bring_in(block: Block, *, most: int, on_progress: Callable[[int], object] = lambda num_bytes: None) -> None:
    """Read a block from its front into memory.

    Args:
        most: How many bytes.
        on_progress: Told how many more are there.

    Raises:
        OSError: It cannot be read, or was cut short meanwhile.
    """
    for start, stop in _extents(block):
        for at in range(start, stop, _STEP_BYTES):
            num_bytes = min(_STEP_BYTES, stop - at, most)
            if num_bytes <= 0:
                return
            try:
                _call("madvise", block, at, num_bytes, ctypes.c_int(_POPULATE_READ))
            except OSError as error:
                if error.errno != errno.EINVAL:  # which is what an older kernel says
                    raise
                _read_through(block, at, num_bytes)
            most -= num_bytes
            on_progress(num_bytes)


def lock(block: Block) -> None:
    """Keep a block in memory for as long as this process has it mapped.

    Raises:
        OSError: The system does not let this process lock as much.
    """
    if block.nbytes:
        _call("mlock", block, 0, block.nbytes)


def lockable_bytes() -> int | None:
    """Give how much memory this process may lock; None for any amount."""
    limit, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if limit == resource.RLIM_INFINITY:
        return None
    with contextlib.suppress(FileNotFoundError):  # there is no such file elsewhere than on Linux
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("CapEff:") and int(line.split()[1], 16) & _MAY_LOCK_ANYTHING:
                return None
    return limit


def _extents(block: Block) -> Iterator[tuple[int, int]]:
    """Give the parts of a block that hold data, (start, stop) on page boundaries."""
    end = block.nbytes
    for start, stop in block.extents():
        yield start // PAGE_BYTES * PAGE_BYTES, min(end, -(-stop // PAGE_BYTES) * PAGE_BYTES)


def _read_through(block: Block, start: int, num_bytes: int) -> None:
    for at in range(start, start + num_bytes, 2**20):
        wanted = min(2**20, start + num_bytes - at)
        if len(os.pread(block.fd, wanted, at)) != wanted:  # which the call above would say in the same way
            raise OSError(errno.EFAULT, os.strerror(errno.EFAULT))


def _call(name: str, block: Block, start: int, num_bytes: int, *arguments: Any) -> None:
    """Call one of the functions on mapped memory; without the GIL."""
    address = np.frombuffer(block.view(), np.uint8).ctypes.data + start
    if _libc()[name](ctypes.c_void_p(address), ctypes.c_size_t(num_bytes), *arguments):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


@functools.cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)
