"""The datasets that were kept by `cache_dir=`: list, check and remove them, and keep them to a size.

    from in_memory_datasets import cache
    for entry in cache.entries():
        print(entry)
    cache.set_limit("200GB")

Every function takes the same `cache_dir` as the datasets do; True is the platform's own directory for caches.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Literal

from filelock import Timeout

from in_memory_datasets.errors import ConfigError, StoreError
from in_memory_datasets.schema import AudioSpec, ImageSpec, format_bytes, parse_bytes
from in_memory_datasets.store.attach import is_in_use, locked
from in_memory_datasets.store.journal import num_journaled
from in_memory_datasets.store.manifest import MANIFEST, read_manifest
from in_memory_datasets.store.opening import open_store

CacheDir = str | os.PathLike[str] | Literal[True]

_LIMIT = "limit"
_FINGERPRINT_LENGTH = 32


@dataclass(frozen=True, slots=True)
class Entry:
    """One dataset in a cache; prints as a line.

    Attributes:
        fingerprint: What it is called: 32 hexadecimal figures.
        path: Its directory.
        num_samples: Rows, failed ones included; of an unfinished one the samples that are in place.
        num_bytes: What it takes on disk.
        last_used: When it was built or attached to last.
        complete: Whether it is finished.
        in_use: Whether a process has it open, or is building it; one that is not ours to remove counts as in use.
        what: What its samples are, such as "pictures 224×224"; "" where that cannot be read.
    """

    fingerprint: str
    path: Path = field(repr=False)
    num_samples: int
    num_bytes: int
    last_used: datetime
    complete: bool
    in_use: bool
    what: str

    def __str__(self) -> str:
        state = ("" if self.complete else ", unfinished") + (", in use" if self.in_use else "")
        return (
            f"{self.fingerprint}  {self.last_used:%Y-%m-%d %H:%M}  {format_bytes(self.num_bytes):>8}  "
            f"{self.num_samples:,} {self.what or 'samples'}{state}"
        )


def resolve(cache_dir: CacheDir) -> Path:
    """Give the directory that a `cache_dir=` means.

    Raises:
        ConfigError: It is neither a path nor True.
    """
    if cache_dir is True:
        import platformdirs

        return Path(platformdirs.user_cache_dir("in-memory-datasets", appauthor=False))
    if not isinstance(cache_dir, (str, os.PathLike)) or not os.fspath(cache_dir):
        raise ConfigError(f"cache_dir={cache_dir!r}: expected a directory, True for the platform's own, or None")
    return Path(cache_dir).expanduser()


def entries(cache_dir: CacheDir = True) -> list[Entry]:
    """List what is kept, the one used last first; nothing is read but manifests.

    Example:
        >>> import tempfile
        >>> entries(tempfile.mkdtemp())
        []
    """
    found = [_describe(path) for path in _directories(resolve(cache_dir))]
    return sorted((entry for entry in found if entry is not None), key=lambda entry: entry.last_used, reverse=True)


def verify(fingerprint: str, cache_dir: CacheDir = True) -> list[int]:
    """Compare a dataset with its checksums and list the row numbers of the samples that differ.

    They are mended by `dataset.retry_failed(reasons={"checksum"})`.

    Raises:
        StoreError: There is no such dataset, or more than samples is damaged, which only loading it again mends.

    Cost: one read of all its bytes.
    """
    with open_store(_entry(fingerprint, cache_dir)) as store:
        return store.verify()


def remove(fingerprint: str, cache_dir: CacheDir = True) -> int:
    """Remove a dataset, finished or not, and give how many bytes that made free.

    Raises:
        StoreError: There is no such dataset, or a process has it open or is building it.
    """
    path = _entry(fingerprint, cache_dir)
    num_bytes = _remove(path)
    if num_bytes is None:
        raise StoreError(
            f"{path} is in use, or not yours to remove: close the datasets that were loaded from it, or end their "
            "processes"
        )
    return num_bytes


def set_limit(limit: int | str | None, cache_dir: CacheDir = True) -> int:
    """Keep a cache to a size from now on; None lifts the limit.

    Whatever was used longest ago goes first, now and whenever a dataset is built there; never one that is in use, so
    that a cache can be larger than its limit for as long as more than that is used at once.

    Args:
        limit: Bytes, or text such as "200GB".

    Returns:
        How many bytes that made free now.

    Raises:
        ConfigError: It is no size.
        OSError: The directory cannot be written.
    """
    directory = resolve(cache_dir)
    if limit is None:
        (directory / _LIMIT).unlink(missing_ok=True)
        return 0
    num_bytes = parse_bytes(limit, name="limit")
    directory.mkdir(parents=True, exist_ok=True)
    (directory / f"{_LIMIT}.partial").write_text(f"{num_bytes}\n")
    os.replace(directory / f"{_LIMIT}.partial", directory / _LIMIT)
    return keep_to_limit(directory)


def keep_to_limit(cache_dir: CacheDir = True) -> int:
    """Remove what was used longest ago until the limit is kept, and give how many bytes that made free.

    Raises:
        StoreError: The file that holds the limit is damaged.
    """
    directory = resolve(cache_dir)
    try:
        limit = int((directory / _LIMIT).read_text())
    except FileNotFoundError:
        return 0
    except ValueError as error:
        raise StoreError(f"{directory / _LIMIT} holds no number of bytes: set the limit again") from error
    freed = 0
    kept = entries(directory)
    left = sum(entry.num_bytes for entry in kept)
    for entry in reversed(kept):
        if left <= limit:
            break
        num_bytes = _remove(entry.path) or 0
        freed, left = freed + num_bytes, left - num_bytes
    return freed


def _directories(directory: Path) -> Iterator[Path]:
    with contextlib.suppress(FileNotFoundError):
        for path in sorted(directory.iterdir()):
            name = path.name
            if len(name) == _FINGERPRINT_LENGTH and set(name) <= set("0123456789abcdef") and path.is_dir():
                yield path


def _entry(fingerprint: str, cache_dir: CacheDir) -> Path:
    directory = resolve(cache_dir)
    paths = [path for path in _directories(directory) if path.name == fingerprint]
    if not paths:
        raise StoreError(f"{directory} has no dataset {fingerprint!r}: cache.entries() lists those it has")
    return paths[0]


def _describe(path: Path) -> Entry | None:
    """Describe an entry; None for one that goes away meanwhile."""
    try:
        manifest_or_directory = path / MANIFEST if (path / MANIFEST).exists() else path
        last_used = datetime.fromtimestamp(manifest_or_directory.stat().st_mtime)
        # What a hole does not take is not there to be made free.
        num_bytes = sum(file.stat().st_blocks * 512 for file in path.iterdir())
    except FileNotFoundError:
        return None
    complete, what, num_samples = manifest_or_directory is not path, "", num_journaled(path)
    if complete:
        with contextlib.suppress(StoreError):  # a damaged one is listed all the same: it is there to be removed
            manifest = read_manifest(path)
            what, num_samples = _name(manifest.spec), manifest.num_samples
    with _try_lock(path) as is_ours:
        in_use = not is_ours or is_in_use(path)
    return Entry(path.name, path, num_samples, num_bytes, last_used, complete, in_use, what)


def _name(spec: ImageSpec | AudioSpec) -> str:
    if isinstance(spec, ImageSpec):
        return f"pictures {spec.image_size[0]}×{spec.image_size[1]}"
    return f"clips at {spec.target_sr} Hz"


@contextlib.contextmanager
def _try_lock(path: Path) -> Iterator[bool]:
    """Hold the lock of an entry; False while another process builds or mends it, and where it is not ours to write."""
    try:
        hold = locked(path).acquire(timeout=0)
    except (Timeout, PermissionError):
        yield False
        return
    with hold:
        yield True


def _remove(path: Path) -> int | None:
    """Remove an entry and count what that made free; None where it is in use."""
    with _try_lock(path) as is_ours:
        if not is_ours or is_in_use(path):
            return None
        num_bytes = sum(file.stat().st_blocks * 512 for file in path.iterdir())
        (path / MANIFEST).unlink(missing_ok=True)  # first, so that nobody attaches to what is left
        shutil.rmtree(path)
    return num_bytes
