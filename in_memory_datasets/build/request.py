"""All that a load is told."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal

from in_memory_datasets.build.bars import Progress
from in_memory_datasets.decode import check_flac_rate
from in_memory_datasets.errors import ConfigError
from in_memory_datasets.rows import RowReader
from in_memory_datasets.schema import AudioSpec, FetchOptions, ImageSpec, check_choice, parse_bytes
from in_memory_datasets.store import cache

OnError = Literal["placeholder", "skip", "raise"]
Storage = Literal["decoded", "encoded", "auto"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadRequest:
    """All that a load is told.

    Attributes:
        spec: What each sample is turned into.
        reader: The rows; None where there are none yet, or for a store that was opened from a directory.
        fetch: How sources are fetched.
        on_error: What a failed sample does to the load: only "raise" ends it.
        num_threads: Decode threads; None takes a thread per core this process may use.
        progress: Whether to draw a progress bar, where somebody can see it; or who is told of progress instead.
        memory_limit: The user's own limit, in bytes or as text such as "16GB".
        storage: In what form samples lie; "auto" takes "decoded" as far as the memory goes.
        cache_dir: Where stores are kept; True for the platform's own place, None keeps this one in memory.
        lock_memory: Whether to keep the store in memory for as long as it is open.
        num_processes: How many processes fetch and decode; None decides by threads and rows.
        may_all_fail: Whether a load in which no sample loads is good all the same: that of a part of a dataset.
        job: What the processes that share this load have in common; None for a process on its own.

    Raises:
        ConfigError: One of them cannot work.
    """

    spec: ImageSpec | AudioSpec
    reader: RowReader | None = None
    fetch: FetchOptions = FetchOptions()  # noqa: RUF009 - frozen
    on_error: OnError = "placeholder"
    num_threads: int | None = None
    progress: Progress = True
    memory_limit: int | str | None = None
    storage: Storage = "decoded"
    cache_dir: cache.CacheDir | None = None
    lock_memory: bool = False
    num_processes: int | None = None
    may_all_fail: bool = False
    job: str | None = None

    def __post_init__(self) -> None:
        check_choice("on_error", self.on_error, ("placeholder", "skip", "raise"))
        check_choice("storage", self.storage, ("decoded", "encoded", "auto"))
        if isinstance(self.spec, ImageSpec) and self.spec.recompress is not None and self.storage == "decoded":
            raise ConfigError('recompress= is for samples that lie encoded: take storage="encoded" or "auto"')
        if isinstance(self.spec, AudioSpec) and self.storage != "decoded":
            check_flac_rate(self.spec.target_sr)
        if self.cache_dir is not None:
            cache.resolve(self.cache_dir)
        if self.memory_limit is not None:
            parse_bytes(self.memory_limit)
        threads = self.num_threads
        if threads is not None and (isinstance(threads, bool) or not isinstance(threads, int) or threads < 1):
            raise ConfigError(f"num_threads={threads!r}: expected a whole number of at least 1, or None for one a core")

    @property
    def rows(self) -> RowReader:
        """Give the rows, for a load; a store that was opened from a directory has none and is never loaded again."""
        assert self.reader is not None
        return self.reader

    @property
    def threads(self) -> int:
        """Count the decode threads."""
        return self.num_threads or num_cores()


def num_cores() -> int:
    """Count the cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
