"""Time and processor time of epochs, and files in the page cache."""

from __future__ import annotations

import ctypes
import mmap
import os
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.processes.usage import cpu_seconds
from benchmarks.serve.peers import Feed

_LOWEST_BIT = bytes(value & 1 for value in range(256))  # of what mincore(2) says of a page, the rest is not defined


@dataclass(frozen=True, slots=True)
class Epoch:
    """What one epoch took.

    Attributes:
        samples_per_s: From `iter(loader)` to the last batch.
        cpu_us_per_sample: User and system time of this process and all below it.
        first_batch_ms: From `iter(loader)` to the first batch.
    """

    samples_per_s: float
    cpu_us_per_sample: float
    first_batch_ms: float


def time_epoch(feed: Feed) -> tuple[Epoch, float]:
    """Take every batch once and drop it; give the seconds as well."""
    num_samples = 0
    first = None
    cpu = cpu_seconds()
    start = time.perf_counter()
    for raw in feed.loader:
        batch = feed.unpack(raw)
        num_samples += len(batch["captions"])
        if first is None:
            first = time.perf_counter() - start
    seconds = time.perf_counter() - start
    # Only now: when the loop has dropped the iterator, its workers are gone and their time is counted.
    cpu = cpu_seconds() - cpu
    if first is None:
        raise ValueError("the loader gave nothing")
    return Epoch(num_samples / seconds, 1e6 * cpu / num_samples, 1e3 * first), seconds


def evict(directory: Path) -> float | None:
    """Drop all files of a directory from the page cache; give the share that stayed, None where there are no files."""
    for path in _files(directory):
        fd = os.open(path, os.O_RDONLY)
        try:
            os.fsync(fd)  # what is not written yet cannot be dropped
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(fd)
    return resident_share(directory)


def resident_share(directory: Path) -> float | None:
    """Give the share of the pages of all files of a directory that is in memory, None where there are no files."""
    num_pages = num_resident = 0
    for path in _files(directory):
        fd = os.open(path, os.O_RDONLY)
        try:
            resident = _residency(fd)
        finally:
            os.close(fd)
        num_pages += len(resident)
        num_resident += resident.translate(_LOWEST_BIT).count(1)
    return num_resident / num_pages if num_pages else None


def _files(directory: Path) -> list[Path]:
    return [path for path in directory.rglob("*") if path.is_file() and path.stat().st_size]


def _residency(fd: int) -> bytes:
    """Tell of every page of a file whether it is in memory, as mincore(2) does."""
    libc = ctypes.CDLL(None, use_errno=True)
    size = os.fstat(fd).st_size
    pages = (ctypes.c_ubyte * -(-size // mmap.PAGESIZE))()
    # A private mapping may be written, which is what ctypes wants of a buffer; nobody writes.
    with mmap.mmap(fd, size, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE) as view:
        place = ctypes.c_char.from_buffer(view)
        failed = libc.mincore(ctypes.c_void_p(ctypes.addressof(place)), ctypes.c_size_t(size), pages)
        del place
    if failed:
        raise OSError(ctypes.get_errno(), "mincore")
    return bytes(pages)
