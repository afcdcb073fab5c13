"""Time, processor time, memory and page cache of one process and all that it started."""

from __future__ import annotations

import ctypes
import mmap
import os
import resource
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from benchmarks.serve.peers import Feed

_SAMPLING_SECONDS = 0.1
_TICKS = os.sysconf("SC_CLK_TCK")
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


def cpu_seconds() -> float:
    """Sum the user and system time of this process, of its children that have ended, and of all that still run."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    total = sum(usage.ru_utime + usage.ru_stime for usage in usages)
    for pid in descendants(os.getpid())[1:]:
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):  # it has ended since
            continue
        total += sum(map(int, fields[11:15])) / _TICKS  # its own times and those of its children that have ended
    return total


def descendants(pid: int) -> list[int]:
    """List a process and all below it."""
    found = [pid]
    for parent in found:
        try:
            tasks = list(Path(f"/proc/{parent}/task").iterdir())
            for task in tasks:
                found += map(int, (task / "children").read_text().split())
        except (FileNotFoundError, ProcessLookupError):  # it has ended since
            continue
    return found


class MemoryWatch:
    """Follow the memory of this process and all below it, each shared page counted once; a context manager.

    Attributes:
        peak_bytes: The largest sum of their proportional set sizes.
    """

    def __init__(self) -> None:
        self.peak_bytes = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        while not self._over.wait(_SAMPLING_SECONDS):
            self.look()

    def look(self) -> None:
        """Take one more sample."""
        total = 0
        for pid in descendants(os.getpid()):
            try:
                lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            except (FileNotFoundError, ProcessLookupError):  # it has ended since
                continue
            total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
        self.peak_bytes = max(self.peak_bytes, total)

    def __enter__(self) -> MemoryWatch:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.look()
        self._over.set()
        self._thread.join()


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
