"""A store that lies in a directory, mapped; and what is looked at before it is believed."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from in_memory_datasets.errors import StoreError
from in_memory_datasets.store.block import Block
from in_memory_datasets.store.layout import HEADER_BYTES
from in_memory_datasets.store.manifest import Manifest, digest, read_manifest
from in_memory_datasets.store.store import ROWS, SAMPLES, Store, checksum
from in_memory_datasets.store.table import LOADED


def open_store(directory: str | os.PathLike[str]) -> Store:
    """Map a store that lies in a directory; nothing is read but its rows.

    Raises:
        StoreError: There is no complete store, it is of another version, or its files are short or altered.
    """
    place = Path(directory)
    manifest = read_manifest(place)
    try:
        with ExitStack() as opened:
            samples, rows = (opened.enter_context(Block.open(place / name)) for name in (SAMPLES, ROWS))
            for name, block in ((SAMPLES, samples), (ROWS, rows)):
                if not block.nbytes:
                    raise StoreError(f"{place / name} is empty; delete the directory and load again")
            samples.will_need(0, HEADER_BYTES)  # and no megabytes around it; the rows, which are all read, at once
            rows.will_need(0, rows.nbytes)
            intact = compare_rows(rows, manifest)
            store = Store(manifest.spec, samples=samples, rows=rows, directory=place, intact=intact)
            compare_places(store, manifest)
            _refuse_swapped_samples(store)
            store.hold()
            opened.pop_all()  # they are the store's now
    except FileNotFoundError as error:
        raise StoreError(f"{error.filename} is missing; delete the directory and load again") from error
    except StoreError as error:
        raise StoreError(str(error) if str(place) in str(error) else f"{place}: {error}") from error
    except OSError as error:
        raise StoreError(f"{place} cannot be mapped into memory: {error.strerror}; copy it to a local disk") from error
    return store


def compare_rows(rows: Block, manifest: Manifest) -> bool:
    """Compare rows.arrow with what a manifest says of it, and tell whether that says anything.

    Raises:
        StoreError: They differ.
    """
    if "rows" not in manifest.checksums:
        return False
    _compare(ROWS, digest(rows.view()), manifest.checksums["rows"])
    return True


def compare_places(store: Store, manifest: Manifest) -> None:
    """Compare the number of samples, and where they lie, with what a manifest says.

    Raises:
        StoreError: They differ.
    """
    if store.num_samples != manifest.num_samples:
        raise StoreError(f"{ROWS} has {store.num_samples} rows, expected {manifest.num_samples!r}")
    if "places" in manifest.checksums:
        _compare(f"the beginning of {SAMPLES}", store.places_digest(), manifest.checksums["places"])


def _compare(what: str, found: str, expected: list[str]) -> None:
    if found not in expected:
        raise StoreError(
            f"{what} differs from its checksum ({found}, expected {' or '.join(expected)}): it was altered, or belongs "
            "to another dataset; delete the directory and load again"
        )


def _refuse_swapped_samples(store: Store) -> None:
    """Look at three samples: where all differ from their checksums, the file is that of another dataset.

    One that is altered is no reason to refuse the others: `verify` finds it, and loading it again mends it.
    """
    table = store.table
    is_loaded = table.status == LOADED
    if not is_loaded.any():
        return
    # The first one, the next from the middle on, and the last: a list of all 100,000 took 0.3 ms more.
    middle, last = len(is_loaded) // 2, len(is_loaded) - 1
    found = is_loaded.argmax(), middle + is_loaded[middle:].argmax(), last - is_loaded[::-1].argmax()
    slots = {int(slot) for slot in found if is_loaded[slot]}  # the second half may have none
    numbers = {table.number_of(slot): slot for slot in sorted(slots, reverse=True)}

    def is_altered(number: int) -> bool:
        store.will_need(np.array([number]))  # or the kernel reads megabytes around it
        return checksum(store.sample_at(number)) != int(table.checksum[numbers[number]])

    if len(numbers) > 1 and all(is_altered(number) for number in numbers):
        raise StoreError(
            f"{SAMPLES} belongs to another dataset: samples {sorted(numbers.values())} all differ from their "
            "checksums; put back the file that was saved, or delete the directory and load again"
        )
