"""Processor time and memory of one process and all that it started."""

from __future__ import annotations

import os
import resource
import threading
from pathlib import Path
from types import TracebackType

_SAMPLING_SECONDS = 0.1
_TICKS = os.sysconf("SC_CLK_TCK")


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
