"""Files in the page cache, all of them or none."""

from __future__ import annotations

import os
from pathlib import Path

from benchmarks.serve.measuring import evict, resident_share

_CHUNK_BYTES = 16 * 2**20
_DROP = Path("/proc/sys/vm/drop_caches")
_DENTRIES_AND_PAGES = "3"


def can_drop_all() -> bool:
    """Tell whether this process may empty the caches of the whole machine."""
    return os.access(_DROP, os.W_OK)


def cool(place: Path, *, drop_all: bool) -> float:
    """Drop the files of a directory from the page cache, and give the share that stayed.

    Args:
        drop_all: Whether to empty the caches of the whole machine as well, those of directories and extents too.

    Source: posix_fadvise(2), Linux Documentation/admin-guide/sysctl/vm.rst.
    """
    evict(place)
    if drop_all:
        _DROP.write_text(_DENTRIES_AND_PAGES)
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
