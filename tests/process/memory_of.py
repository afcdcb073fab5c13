"""What processes hold of the machine's memory, as the kernel counts it.

Source: proc_pid_smaps(5): the proportional set size (Pss) counts a page that n processes map as 1/n for each of them,
so that the sum over processes counts it once.
"""

from __future__ import annotations

import os
import select
from collections.abc import Iterable, Iterator
from pathlib import Path

import psutil


def family_of(pid: int) -> list[int]:
    """List a process and all that descend from it."""
    process = psutil.Process(pid)
    return [pid, *(child.pid for child in process.children(recursive=True))]


def pss_bytes(pids: Iterable[int]) -> int:
    """Sum the memory of processes, each page counted once however many of them map it."""
    return sum(_sum_fields(Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines(), "Pss:") for pid in pids)


def resident_bytes(pid: int, inode: int) -> int:
    """Count the bytes of one file, or of memory without a name, that a process has mapped and looked at."""
    return sum(_sum_fields(lines, "Rss:") for number, lines in _mappings(pid) if number == inode)


def holders_of(inode: int) -> list[int]:
    """List the processes that map memory or have a descriptor of it; those of other users cannot be looked into."""
    return [pid for pid in psutil.pids() if _holds(pid, inode)]


def shmem_bytes() -> int:
    """Count the shared memory of the machine, with and without names."""
    return _sum_fields(Path("/proc/meminfo").read_text().splitlines(), "Shmem:")


def wait_until_gone(pids: Iterable[int]) -> None:
    """Wait for the end of processes that need not be children of this one."""
    for pid in pids:
        try:
            fd = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        try:
            assert select.select([fd], [], [], 60)[0], f"process {pid} still runs"
        finally:
            os.close(fd)


def _holds(pid: int, inode: int) -> bool:
    try:
        if any(number == inode for number, _ in _mappings(pid)):
            return True
        return any(os.stat(fd).st_ino == inode for fd in Path(f"/proc/{pid}/fd").iterdir())
    except (FileNotFoundError, ProcessLookupError, PermissionError):  # it ended meanwhile, or is somebody else's
        return False


def _mappings(pid: int) -> Iterator[tuple[int, list[str]]]:
    """Give the inode and the figures of each mapping of a process."""
    number, lines = 0, []
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        words = line.split()
        if words[0].endswith(":"):
            lines.append(line)
            continue
        if lines:
            yield number, lines
        number, lines = int(words[4]), []
    if lines:
        yield number, lines


def _sum_fields(lines: Iterable[str], field: str) -> int:
    return sum(int(words[1]) * 1024 for words in map(str.split, lines) if words[0] == field)
