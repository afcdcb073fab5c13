"""Files in the page cache, all of them or none."""

from __future__ import annotations

import os
from pathlib import Path

from benchmarks.serve.measuring import evict, resident_share

_CHUNK_BYTES = 16 * 2**20
_DROP = Path("/proc/sys/vm/drop_caches")
_NAMES, _NAMES_AND_PAGES = "2", "3"


def can_drop() -> bool:
    """Tell whether this process may empty caches of the whole machine."""
    return os.access(_DROP, os.W_OK)


def cool(place: Path, *, everything: bool) -> float:
    """Drop the files of a directory from the page cache, and give the share that stayed.

    Where this process may, names of files and where they lie on the disk are forgotten too.

    Args:
        everything: Whether to drop the files of the whole machine, which takes the right to.

    Source: posix_fadvise(2), Linux Documentation/admin-guide/sysctl/vm.rst.
    """
    evict(place)
    if everything or can_drop():
        _DROP.write_text(_NAMES_AND_PAGES if everything else _NAMES)
    return resident_share(place) or 0.0


def warm(place: Path) -> float:
    """Read the files of a directory, and give the share that is in the page cache then."""
    buffer = bytearray(_CHUNK_BYTES)
    for path in sorted(place.rglob("*")):
        if path.is_file():
            with open(path, "rb", buffering=0) as file:
                while file.readinto(buffer):
                    pass
    return resident_share(place) or 0.0
