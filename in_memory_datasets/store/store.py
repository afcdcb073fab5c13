"""A store: the samples of one dataset in one block, their rows in another, and a manifest that says what they are.

In memory and on disk the bytes are the same, so that saving is a copy and loading is a mapping:

    manifest.json          format version, modality, spec, counts; written last, so its presence says "complete"
    samples.safetensors    pictures or clips, decoded or encoded, see `layout`
    rows.arrow             one row per sample, see `table`
"""

from __future__ import annotations

import contextlib
import fcntl
import math
import os
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from in_memory_datasets.errors import StoreError
from in_memory_datasets.schema import (
    AudioSpec,
    Effort,
    ImageSpec,
    LoadReport,
    count_hosts,
    count_reasons,
    count_stages,
)
from in_memory_datasets.store.block import CLOSED, Block
from in_memory_datasets.store.layout import HEADER_BYTES, check_arrays, map_arrays
from in_memory_datasets.store.manifest import (
    MANIFEST,
    Manifest,
    digest,
    make_manifest,
    read_manifest,
    write_partial_manifest,
)
from in_memory_datasets.store.table import LOADED, RowTable

SAMPLES, ROWS = "samples.safetensors", "rows.arrow"


class Store:
    """The samples and rows of one dataset, mapped; a context manager.

    It pickles as its blocks do: plainly with its data, to a worker process as a handle.

    Args:
        spec: What each sample was turned into.
        samples: The block that is samples.safetensors; the store owns it from here on.
        rows: The block that is rows.arrow; likewise.
        directory: Where both lie as files, or None for memory.
        intact: Whether the rows are known to be what was written.

    Attributes:
        images: uint8, shape (D, H, W, 3), read-only: the decoded samples, the first ones. Of an audio store, and where
            all are encoded, None.
        frames: float32 or int16, shape (offsets[D],), read-only: likewise, of clips.
        offsets: int64, shape (N + 1,): clip i has the frames offsets[i]:offsets[i + 1]; of an image store None.
        encoded: uint8, read-only: the encoded samples, end to end; None where all are decoded.
        encoded_offsets: int64, shape (N - D + 1,): where in `encoded` sample D + i begins, and the one behind it.
        num_decoded: D.

    Raises:
        StoreError: The blocks are short, altered, or do not belong together.
    """

    def __init__(
        self,
        spec: ImageSpec | AudioSpec,
        *,
        samples: Block,
        rows: Block,
        directory: Path | None = None,
        intact: bool = False,
    ) -> None:
        self.spec = spec
        self.samples = samples
        self.rows = rows
        self.directory = directory
        self._num_bytes = samples.nbytes, rows.nbytes
        self._table: RowTable | None = RowTable(rows.view(), intact=intact)
        arrays = map_arrays(samples.view())
        num_media = sum(array.nbytes for name, array in arrays.items() if name in ("images", "frames", "encoded"))
        self._start_of_media = samples.nbytes - num_media
        samples.will_need(0, self._start_of_media)
        self.num_decoded = check_arrays(spec, self.table.num_rows, arrays)
        self.images, self.frames, self.offsets = (arrays.get(name) for name in ("images", "frames", "offsets"))
        self.encoded, self.encoded_offsets = arrays.get("encoded"), arrays.get("encoded_offsets")

    @property
    def closed(self) -> bool:
        """Tell whether the memory was given up."""
        return self.samples.closed

    @property
    def table(self) -> RowTable:
        """Give the rows.

        Raises:
            StoreError: The store was closed, or a file of it was cut short.
        """
        if self._table is None:
            raise StoreError(CLOSED)
        self.refuse_if_cut_short()  # whoever reads samples looks into the table first
        return self._table

    def refuse_if_cut_short(self) -> None:
        """Raise where reading would run past the end of a file, which the kernel answers by ending the process.

        A file that is cut short between this look and the reading is beyond help.

        Raises:
            StoreError: A file was cut short since it was opened, or the store was closed.

        Cost: two microseconds.
        """
        for name, block, expected in zip((SAMPLES, ROWS), (self.samples, self.rows), self._num_bytes, strict=True):
            if (found := block.nbytes) < expected:
                raise StoreError(
                    f"{name if self.directory is None else self.directory / name} was cut short while it is in use: "
                    f"expected {expected:,} bytes, got {found:,}; delete its directory and load again"
                )

    @property
    def num_samples(self) -> int:
        """Count the samples, failed ones included."""
        return self.table.num_rows

    @property
    def nbytes(self) -> int:
        """Count the bytes held at rest: media, captions and bookkeeping."""
        return self.samples.nbytes + self.rows.nbytes

    def sample(self, slot: int) -> NDArray[Any]:
        """Give one sample as it lies, read-only: (H, W, 3), (num_frames,), or the bytes of an encoded one."""
        if slot >= self.num_decoded:
            assert self.encoded is not None
            assert self.encoded_offsets is not None
            start, stop = self.encoded_offsets[slot - self.num_decoded : slot - self.num_decoded + 2]
            return self.encoded[start:stop]
        if self.images is not None:
            image: NDArray[Any] = self.images[slot]
            return image
        assert self.frames is not None
        assert self.offsets is not None
        return self.frames[self.offsets[slot] : self.offsets[slot + 1]]

    def places_digest(self) -> str:
        """Digest what samples.safetensors says of where in it what lies."""
        return digest(self.samples.view()[: self._start_of_media])

    def read_encoded(self, slot: int) -> bytes:
        """Copy the bytes of an encoded sample out of the store, from the disk if need be. Thread-safe.

        Raises:
            StoreError: The file was cut short.
            OSError: The disk cannot be read.
        """
        start, num_bytes = self._place(slot)
        data = self.samples.read(start, num_bytes)
        if len(data) != num_bytes:
            self.refuse_if_cut_short()
            raise StoreError(f"sample {slot}: {num_bytes:,} bytes expected, got {len(data):,}; load again")
        return data

    def will_need(self, slots: NDArray[np.int64]) -> None:
        """Have the kernel read samples from the disk, all at once and nothing else, before they are asked for.

        That is how reads overlap: with half of a dataset on the disk it took a third of the time (measured).
        """
        for slot in slots.tolist():
            self.samples.will_need(*self._place(slot))

    def _place(self, slot: int) -> tuple[int, int]:
        """Give where in samples.safetensors the sample of a slot begins, and how many bytes it has."""
        if slot >= self.num_decoded:
            assert self.encoded is not None
            assert self.encoded_offsets is not None
            start, stop = self.encoded_offsets[slot - self.num_decoded : slot - self.num_decoded + 2].tolist()
            return self._num_bytes[0] - self.encoded.nbytes + start, stop - start
        if self.images is not None:
            num_bytes = math.prod(self.images.shape[1:])
            return self._start_of_media + slot * num_bytes, num_bytes
        assert self.frames is not None
        assert self.offsets is not None
        start, stop = (self.offsets[slot : slot + 2] * self.frames.itemsize).tolist()
        return self._start_of_media + start, stop - start

    def manifest(self, *, replacing: Manifest | None = None) -> bytes:
        """Write down what this store is; see `make_manifest`."""
        checksums = {"rows": digest(self.rows.view()), "places": self.places_digest()}
        return make_manifest(self.spec, self.num_samples, checksums, replacing=replacing)

    def verify(self) -> list[int]:
        """Compare every loaded sample with its checksum and list the slots that differ. Cost: one read of all."""
        table = self.table
        return [
            slot
            for slot in np.flatnonzero(table.status == LOADED).tolist()
            if checksum(self.sample(slot)) != table.checksum[slot]
        ]

    def report(self, effort: Effort, *, bytes_available: int | None = None) -> LoadReport:
        """Sum up the load that made, or now opened, this store.

        Args:
            effort: What it took.
            bytes_available: The memory there is for it; None where all of it lies there.
        """
        table, failures = self.table, self.table.failures()
        loaded = np.flatnonzero(table.status == LOADED)
        num_decoded = int(np.count_nonzero(loaded < self.num_decoded))
        num_on_disk = 0
        if bytes_available is not None:
            num_on_disk = int(np.count_nonzero(loaded >= self.num_slots_in(bytes_available)))
        num_encoded = len(loaded) - num_decoded
        return LoadReport(
            num_samples=table.num_rows,
            num_ok=len(loaded),
            num_failed=len(failures),
            num_empty_captions=table.num_empty_captions,
            by_reason=count_reasons(failures),
            failures=failures,
            seconds=effort.seconds,
            bytes_fetched=effort.bytes_fetched,
            nbytes=self.nbytes,
            num_decoded=max(0, num_decoded - max(0, num_on_disk - num_encoded)),
            num_encoded=max(0, num_encoded - num_on_disk),
            num_on_disk=num_on_disk,
            by_stage=count_stages(failures),
            by_host=count_hosts(failures),
            num_tried=effort.num_tried,
            seconds_by_stage=effort.seconds_by_stage,
            slowest_hosts=effort.slowest_hosts,
        )

    def num_slots_in(self, num_bytes: int) -> int:
        """Count the slots, from the front, that have room in so many bytes, beside the rows."""
        ends = self._ends()
        return int(np.searchsorted(ends, num_bytes - self.rows.nbytes, side="right"))

    def _ends(self) -> NDArray[np.int64]:
        """Give where the sample of each slot ends in samples.safetensors, int64 (N,)."""
        first = self._start_of_media
        if self.offsets is None:
            image_bytes = 0 if self.images is None else math.prod(self.images.shape[1:])
            decoded = first + image_bytes * np.arange(1, self.num_decoded + 1)
        else:
            assert isinstance(self.spec, AudioSpec)
            decoded = first + self.offsets[1 : self.num_decoded + 1] * np.dtype(self.spec.dtype).itemsize
        if self.encoded is None or self.encoded_offsets is None:
            return np.asarray(decoded)
        return np.concatenate([decoded, self.samples.nbytes - self.encoded.nbytes + self.encoded_offsets[1:]])

    def hold(self) -> None:
        """Mark the files as in use, for as long as any process has them open, so that no cache removes them."""
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(self.samples.fd, fcntl.LOCK_SH)

    def close(self) -> None:
        """Give up the memory; views handed out before stay readable."""
        self.images = self.frames = self.offsets = self.encoded = self.encoded_offsets = self._table = None
        self.samples.close()
        self.rows.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __copy__(self) -> Store:
        return self  # one copy per machine is the point

    def __deepcopy__(self, _: object) -> Store:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        self.refuse_if_cut_short()
        return _restore, (self.spec, self.samples, self.rows)


def _restore(spec: ImageSpec | AudioSpec, samples: Block, rows: Block) -> Store:
    return Store(spec, samples=samples, rows=rows)


def checksum(sample: NDArray[Any]) -> int:
    """Digest the bytes of one sample: XXH3-64, seed 0. Releases the GIL. Source: https://xxhash.com."""
    return xxhash.xxh3_64_intdigest(sample.data) if sample.size else xxhash.xxh3_64_intdigest(b"")


def save_store(
    store: Store, directory: str | os.PathLike[str], *, on_progress: Callable[[int], object] = lambda num_bytes: None
) -> None:
    """Write a store into a directory, which is new, empty, or an older store that is then replaced.

    Files are replaced whole and the manifest comes last: whoever has the older store mapped keeps it intact, an
    interrupted save never looks complete, and one for which there is no room leaves the older store.

    Args:
        on_progress: Told how many more bytes are written.

    Raises:
        StoreError: The directory holds something else.
        OSError: The disk is full or may not be written.
    """
    store.refuse_if_cut_short()
    target = Path(directory)
    target.mkdir(parents=True, exist_ok=True)
    foreign = {path.name for path in target.iterdir()} - {MANIFEST, SAMPLES, ROWS}
    foreign = {name for name in foreign if not name.endswith(".partial")}
    if foreign:
        raise StoreError(
            f"{target} holds other files ({', '.join(sorted(foreign)[:3])}): save into a directory of its own"
        )
    partials = {name: target / f"{name}.partial" for name in (SAMPLES, ROWS, MANIFEST)}
    try:
        for name, block in ((SAMPLES, store.samples), (ROWS, store.rows)):
            partials[name].unlink(missing_ok=True)
            with Block.create(partials[name]) as copy:
                block.copy_to(copy, on_progress=on_progress)
                os.fsync(copy.fd)
        write_partial_manifest(target, store.manifest())
    except BaseException:
        for partial in partials.values():
            with contextlib.suppress(OSError):  # it is the first error that says what is wrong
                partial.unlink()
        raise
    # From here on the disk needs no more room.
    (target / MANIFEST).unlink(missing_ok=True)
    for name, partial in partials.items():
        os.replace(partial, target / name)


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
    slots = sorted({int(slot) for slot in found if is_loaded[slot]})  # the second half may have none

    def is_altered(slot: int) -> bool:
        store.will_need(np.array([slot]))  # or the kernel reads megabytes around it
        return checksum(store.sample(slot)) != int(table.checksum[slot])

    if len(slots) > 1 and all(is_altered(slot) for slot in slots):
        raise StoreError(
            f"{SAMPLES} belongs to another dataset: samples {slots} all differ from their checksums; put back the file "
            "that was saved, or delete the directory and load again"
        )
