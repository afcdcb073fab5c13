"""Memory of processes, seen from outside."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from benchmarks.processes.usage import descendants


def pss_bytes(pid: int) -> int:
    """Sum the proportional set sizes of a process and all below it: each page counts once.

    Source: proc_pid_smaps(5).
    """
    total = 0
    for one in descendants(pid):
        try:
            lines = Path(f"/proc/{one}/smaps_rollup").read_text().splitlines()
        except (FileNotFoundError, ProcessLookupError):  # it has ended since
            continue
        total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
    return total


@dataclass(frozen=True, slots=True)
class Held:
    """What a process and all below it hold.

    Attributes:
        own_bytes: Resident pages that are no shared memory: RssAnon and RssFile of the process, and of those below it
            their proportional share.
        block_bytes: Pages of memory without a name (memfd) that it has open, whether or not it has mapped them.
    """

    own_bytes: int
    block_bytes: int


def held(pid: int) -> Held:
    """Look at what a process holds.

    Source: proc_pid_status(5), memfd_create(2), inode(7): st_blocks counts what is allocated.
    """
    fields = _fields(Path(f"/proc/{pid}/status"))
    own = fields["RssAnon"] + fields["RssFile"]
    for child in descendants(pid)[1:]:
        try:
            rollup = _fields(Path(f"/proc/{child}/smaps_rollup"))
        except (FileNotFoundError, ProcessLookupError):  # it has ended since
            continue
        own += rollup["Pss_Anon"] + rollup["Pss_File"]
    return Held(own, sum(_memfds(pid).values()))


def _fields(path: Path) -> dict[str, int]:
    lines = [line.split() for line in path.read_text().splitlines()]
    return {words[0].rstrip(":"): int(words[1]) * 1024 for words in lines if len(words) == 3 and words[2] == "kB"}


def _memfds(pid: int) -> dict[int, int]:
    found = {}
    for fd in os.scandir(f"/proc/{pid}/fd"):
        try:
            if os.readlink(fd.path).startswith("/memfd:"):
                state = os.stat(fd.path)
                found[state.st_ino] = state.st_blocks * 512
        except FileNotFoundError:  # it was closed since
            continue
    return found
