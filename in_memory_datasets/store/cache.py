"""A directory of finished stores: one process builds, the others wait and attach."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from in_memory_datasets.store.store import MANIFEST, Store, open_store


def attach_or_build(cache_dir: str | os.PathLike[str], fingerprint: str, build: Callable[[Path], Store]) -> Store:
    """Open the store of `fingerprint` in `cache_dir`, after building it where there is none.

    While one process builds, all others that ask for the same wait for it; one that is killed while it builds leaves
    the work to the next. The lock is the kernel's, so nobody is locked out by a process that is gone.

    Args:
        build: Makes a store in the directory it is given, which exists, and returns it.

    Raises:
        StoreError: What lies there is damaged or of another version.
        OSError: The directory cannot be written.
    """
    entry = Path(cache_dir).expanduser() / fingerprint
    if (entry / MANIFEST).exists():
        return open_store(entry)
    entry.parent.mkdir(parents=True, exist_ok=True)
    with locked(entry):
        if (entry / MANIFEST).exists():
            return open_store(entry)
        entry.mkdir(exist_ok=True)
        return build(entry)


def locked(entry: Path) -> FileLock:
    """Give the lock beside a store's directory, for `with`; held by whoever builds or mends it."""
    return FileLock(entry.with_name(f"{entry.name}.lock"))
