"""One store among all processes of a machine, or of several: one builds it in a directory, the others attach.

The lock is the kernel's (flock), so nobody is locked out by a process that is gone. Some file systems grant such locks
to each machine, or to everybody, on its own; there two would build at once, and so they are refused.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

from in_memory_datasets.errors import StoreError
from in_memory_datasets.store.disk_errors import disk_errors
from in_memory_datasets.store.journal import num_journaled
from in_memory_datasets.store.manifest import MANIFEST
from in_memory_datasets.store.opening import open_store
from in_memory_datasets.store.store import Store
from in_memory_datasets.store.writer import is_work, remove_work

_LOCAL_DISK = "take a cache_dir on a local disk; or save() the dataset there, and let others load() it"
_LOOK_SECONDS = 0.2  # between two looks at how far the builder is

# Mounts whose locks do not hold between machines, or not at all, by file system: with any of these options, or always.
_LOCAL_LOCKS: dict[str, tuple[str, ...] | None] = {
    "nfs": ("nolock", "local_lock=all", "local_lock=flock"),
    "nfs4": ("local_lock=all", "local_lock=flock"),
    "cifs": ("nobrl",),
    "smb3": ("nobrl",),
    "lustre": ("localflock", "noflock"),
    "9p": None,
    "fuse.sshfs": None,
    "fuse.rclone": None,
    "fuse.s3fs": None,
    "fuse.goofys": None,
    "fuse.gcsfuse": None,
    "fuse.blobfuse2": None,
    "fuse.mount-s3": None,
}


def attach_or_build(
    cache_dir: Path,
    fingerprint: str,
    build: Callable[[Path], Store],
    *,
    on_waiting: Callable[[int], object] = lambda num_done: None,
) -> Store:
    """Open the store of `fingerprint` in `cache_dir`, after building it where there is none.

    While one process builds, all others that ask for the same wait for it; one that is killed while it builds leaves
    the work, as far as it is done, to the next.

    Args:
        build: Makes a store in the directory it is given, which exists, and returns it.
        on_waiting: Told, while another process builds, how many samples that one has in place.

    Raises:
        StoreError: What lies there is damaged or of another version, or locks do not hold there.
        OSError: The directory cannot be written.
    """
    entry = cache_dir / fingerprint
    if (entry / MANIFEST).exists():
        with suppress(StoreError):  # it may be about to be removed; under the lock it is clear what it is
            store = _attach(entry)
            _tidy(entry)
            return store
    entry.parent.mkdir(parents=True, exist_ok=True)
    refuse_if_locks_do_not_hold(entry.parent)
    lock, hold = locked(entry), None
    while hold is None:
        try:
            with disk_errors(cache_dir, "cannot lock"):
                hold = lock.acquire(timeout=_LOOK_SECONDS)
        except Timeout:
            on_waiting(num_journaled(entry))
    with hold:
        if not _holds(lock.lock_file):
            raise StoreError(f"{cache_dir} lies on a file system whose locks lock nobody out: {_LOCAL_DISK}")
        if (entry / MANIFEST).exists():
            remove_work(entry)
            return _attach(entry)
        entry.mkdir(exist_ok=True)
        try:
            return build(entry)
        finally:
            with suppress(OSError):  # which says that it is not empty
                entry.rmdir()


def locked(entry: Path) -> FileLock:
    """Give the lock beside a store's directory, for `with`; held by whoever builds, mends or removes it."""
    return FileLock(entry.with_name(f"{entry.name}.lock"))


def _holds(lock_file: str) -> bool:
    """Tell whether a lock that is held here would keep another process out."""
    fd = os.open(lock_file, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # there are no such locks
        return False
    finally:
        os.close(fd)
    return False


def is_in_use(entry: Path) -> bool:
    """Tell whether any process has the samples of an entry open."""
    try:
        fd = os.open(entry / "samples.safetensors", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def refuse_if_locks_do_not_hold(directory: Path, mountinfo: str | None = None) -> None:
    """Raise where two processes could each believe to hold the same lock.

    Args:
        directory: Where the locks would be.
        mountinfo: What /proc/self/mountinfo says; None reads it, where there is one.

    Raises:
        StoreError: With the file system and the reason.

    Source: nfs(5), mount.cifs(8), flock(2), Lustre's mount.lustre(8).
    """
    if mountinfo is None:
        try:
            mountinfo = Path("/proc/self/mountinfo").read_text()
        except FileNotFoundError:
            return
    mount = max(_mounts_of(directory.resolve(), mountinfo), default=None)
    if mount is None:
        return
    _, point, kind, options = mount
    if kind not in _LOCAL_LOCKS:
        return
    culprits = _LOCAL_LOCKS[kind]
    found = [option for option in culprits or () if option in options.split(",")]
    if culprits is None or found:
        reason = f"mounted with {found[0]}" if found else "which has no locks that all its users see"
        raise StoreError(
            f"{directory} lies on {point}, a {kind} file system {reason}, so that two processes would build the same "
            f"dataset there at once: {_LOCAL_DISK}"
        )


def _mounts_of(path: Path, mountinfo: str) -> list[tuple[int, str, str, str]]:
    """List the mounts that a path lies under: (length and line order of the mount point, point, kind, options)."""
    mounts = []
    for number, line in enumerate(mountinfo.splitlines()):
        left, _, right = line.partition(" - ")
        if len(left.split()) < 6 or len(right.split()) < 3:
            continue
        point = left.split()[4].encode().decode("unicode_escape")  # a blank is written \040
        if path.is_relative_to(point):
            own, super_options = left.split()[5], right.split()[2]
            mounts.append((len(point) * 10_000 + number, point, right.split()[0], f"{own},{super_options}"))
    return mounts


def _tidy(entry: Path) -> None:
    """Remove what was left by a builder that was ended when its store was complete already."""
    # Who holds the lock is at work; and it may lie where nothing is ours to write, or where there are no locks.
    with suppress(Timeout, OSError):
        if any(is_work(path.name) for path in entry.iterdir()):
            with locked(entry).acquire(timeout=0):
                remove_work(entry)


def _attach(entry: Path) -> Store:
    store = open_store(entry)
    with suppress(OSError):  # it may not be ours to write
        os.utime(entry / MANIFEST)  # which is when the entry was used last
    return store
