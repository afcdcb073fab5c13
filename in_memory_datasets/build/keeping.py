"""What of a store is in memory: see it, bring it there, keep it there; never more than there is memory for."""

from __future__ import annotations

from collections.abc import Sequence

from in_memory_datasets.build.bars import progress_bar
from in_memory_datasets.errors import MemoryLimitError, StoreError
from in_memory_datasets.memory import RESERVE_BYTES, free_memory
from in_memory_datasets.schema import format_bytes
from in_memory_datasets.store import Store, bring_in, count_resident, lock, lockable_bytes

_LOCK_WAYS_OUT = (
    "raise the limit (`ulimit -l`; `docker run --ulimit memlock=-1`; LimitMEMLOCK= of systemd), or leave lock_memory "
    "out and call warm()"
)


def resident_fraction(stores: Sequence[Store]) -> float:
    """Give the share of the bytes of some stores that lie in memory; 1.0 where there are none."""
    counts = [count_resident(block) for store in stores for block in (store.rows, store.samples)]
    total = sum(num_bytes for _, num_bytes in counts)
    return sum(num_resident for num_resident, _ in counts) / total if total else 1.0


def warm(stores: Sequence[Store], *, progress: bool) -> float:
    """Read stores into memory, from the front, as far as there is memory for; give the share that is there then.

    Raises:
        StoreError: A file was cut short, or cannot be read.
    """
    with progress_bar(progress, sum(store.nbytes for store in stores), "Reading into memory", unit="B") as bar:
        for store in stores:
            store.refuse_if_cut_short()
            left = min(_room(store), store.nbytes)
            for block in (store.rows, store.samples):
                try:
                    bring_in(block, most=left, on_progress=bar.update)
                except OSError as error:
                    store.refuse_if_cut_short()
                    raise StoreError(f"{store.directory or 'the samples'} cannot be read: {error.strerror}") from error
                left = max(0, left - block.nbytes)
    return resident_fraction(stores)


def lock_memory(store: Store) -> None:
    """Keep a store in memory for as long as this process has it open.

    Raises:
        MemoryLimitError: There is less memory than that, or the system does not let this process lock as much.
    """
    store.refuse_if_cut_short()
    if store.nbytes > (room := _room(store)):
        raise MemoryLimitError(
            f"lock_memory=True keeps all {format_bytes(store.nbytes)} in memory, and there are {format_bytes(room)}: "
            "leave it out, and what does not fit is read from the disk when it is asked for",
            bytes_needed=store.nbytes,
            bytes_available=room,
        )
    try:
        for block in (store.rows, store.samples):
            lock(block)
    except OSError as error:
        limit = lockable_bytes()
        said = error.strerror if limit is None else f"its limit is {format_bytes(limit)} in all"
        raise MemoryLimitError(
            f"this process may not lock the {format_bytes(store.nbytes)} of the dataset ({said}): {_LOCK_WAYS_OUT}",
            bytes_needed=store.nbytes,
            bytes_available=limit or 0,
        ) from error


def refuse_if_not_lockable(num_bytes: int) -> None:
    """Raise where the system would not let this process lock so much, before it is loaded.

    Raises:
        MemoryLimitError: With both numbers.
    """
    limit = lockable_bytes()
    if limit is not None and num_bytes > limit:
        raise MemoryLimitError(
            f"lock_memory=True needs {format_bytes(num_bytes)}, and this process may lock {format_bytes(limit)}: "
            f"{_LOCK_WAYS_OUT}",
            bytes_needed=num_bytes,
            bytes_available=limit,
        )


def _room(store: Store) -> int:
    """Count the bytes of a store that there is memory for, those that lie there included."""
    num_resident = sum(count_resident(block)[0] for block in (store.rows, store.samples))
    if store.directory is None:  # none of it is given back on demand
        return free_memory()[0] + num_resident
    # The page cache, which counts as free, is where those bytes lie.
    return max(num_resident, free_memory(all_page_cache=True)[0] - RESERVE_BYTES)
