"""A store to where it is kept and back: a directory, or a URL; with a progress bar."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from in_memory_datasets.build.bars import Progress, progress_bar, waiting_bar
from in_memory_datasets.errors import ConfigError
from in_memory_datasets.store import Pieces, Store, cache, disk_errors, open_store, save_store
from in_memory_datasets.store.parcels import save_pieces
from in_memory_datasets.store.publishing import directory_of, fetch_store, is_url, publish


def save(store: Store | Pieces, place: str | os.PathLike[str], *, progress: bool) -> None:
    """Write a store into a directory, or to a URL; several that are read as one become one, of the rows they have.

    The rows of that one are numbered from 0 on, whatever their numbers were in the user's dataset.

    Raises:
        StoreError: Other files are there; or the disk is full, or may not be written; or, at a URL, samples are
            altered.
    """
    if isinstance(store, Pieces) and is_url(place):
        with tempfile.TemporaryDirectory(prefix="in-memory-datasets-") as aside:
            with disk_errors(Path(aside)):
                save_pieces(store, aside)
            with open_store(Path(aside)) as packed:
                save(packed, place, progress=progress)
        return
    with progress_bar(progress, store.nbytes, "Saving", unit="B") as bar:
        if isinstance(store, Store) and is_url(place):
            publish(store, place, on_progress=bar.update)
            return
        directory = directory_of(place)
        with disk_errors(directory, "cannot save the dataset in"):
            if isinstance(store, Pieces):
                save_pieces(store, directory, on_progress=bar.update)
            else:
                save_store(store, directory, on_progress=bar.update)


def open_saved(place: str | os.PathLike[str], *, cache_dir: cache.CacheDir | None, progress: Progress) -> Store:
    """Map a store that lies in a directory; one at a URL is downloaded first, once.

    Args:
        cache_dir: Where to; None for the platform's own directory for caches.

    Raises:
        StoreError: There is no complete store, or it is of another version or altered.
        ConfigError: A cache is asked for what needs none.
    """
    if not is_url(place):
        if cache_dir is not None:
            raise ConfigError(f"cache_dir= is for what is downloaded, and {os.fspath(place)} is mapped where it lies")
        return open_store(directory_of(place))
    directory = cache.resolve(True if cache_dir is None else cache_dir)
    with ExitStack() as shown, waiting_bar(progress, None, "Another process is downloading", unit="B") as show:

        def begin(num_bytes: int) -> Callable[[int], object]:
            update: Callable[[int], object] = shown.enter_context(
                progress_bar(progress, num_bytes, "Downloading", unit="B")
            ).update
            return update

        store = fetch_store(place, directory, on_download=begin, on_waiting=show)
    cache.keep_to_limit(directory)
    return store
