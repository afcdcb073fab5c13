"""A store: the samples of one dataset in one block, their rows in another, and a manifest that says what they are.

In memory and on disk the bytes are the same, so that saving is a copy and loading is a mapping:

    manifest.json          format version, modality, spec, counts; written last, so its presence says "complete"
    samples.safetensors    pictures or clips, decoded or encoded, see `layout`
    rows.arrow             the rows, see `table`

A row is named by its slot, which is its number in the dataset that was loaded; a sample by its number among the U that
are stored. They are the same where no row repeats another's source.
"""

from __future__ import annotations

import contextlib
import fcntl
import math
import os
from collections.abc import Callable
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
from in_memory_datasets.store.layout import check_arrays, map_arrays
from in_memory_datasets.store.manifest import MANIFEST, Manifest, digest, make_manifest, write_partial_manifest
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
        offsets: int64, shape (U + 1,): clip i has the frames offsets[i]:offsets[i + 1]; of an image store None.
        encoded: uint8, read-only: the encoded samples, end to end; None where all are decoded.
        encoded_offsets: int64, shape (U - D + 1,): where in `encoded` sample D + i begins, and the one behind it.
        num_decoded: D.
        version: What changes when samples are moved, which those of a finished store never are.

    Raises:
        StoreError: The blocks are short, altered, or do not belong together.
    """

    version = 0

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
        self._has_name = samples.has_name or rows.has_name
        self._table: RowTable | None = RowTable(rows.view(), intact=intact)
        arrays = map_arrays(samples.view())
        num_media = sum(array.nbytes for name, array in arrays.items() if name in ("images", "frames", "encoded"))
        self._start_of_media = samples.nbytes - num_media
        samples.will_need(0, self._start_of_media)
        self.num_decoded = check_arrays(spec, self.table.num_unique, arrays)
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

        Cost: two microseconds for files; memory, which has no name to be cut short by, is not looked at.
        """
        if self.samples.closed:
            raise StoreError(CLOSED)
        if not self._has_name:
            return
        num_samples, num_rows = self._num_bytes
        if self.samples.nbytes < num_samples or self.rows.nbytes < num_rows:
            self._raise_cut_short()

    def _raise_cut_short(self) -> None:
        for name, block, expected in zip((SAMPLES, ROWS), (self.samples, self.rows), self._num_bytes, strict=True):
            if (found := block.nbytes) < expected:
                raise StoreError(
                    f"{name if self.directory is None else self.directory / name} was cut short while it is in use: "
                    f"expected {expected:,} bytes, got {found:,}; delete its directory and load again"
                )

    @property
    def stores(self) -> tuple[Store, ...]:
        """Give the stores that are read as one: this."""
        return (self,)

    @property
    def num_samples(self) -> int:
        """Count the rows, failed ones included."""
        return self.table.num_rows

    @property
    def num_unique(self) -> int:
        """Count the samples that the rows have."""
        return self.table.num_unique

    @property
    def nbytes(self) -> int:
        """Count the bytes held at rest: media, captions and bookkeeping."""
        return self.samples.nbytes + self.rows.nbytes

    def sample(self, slot: int) -> NDArray[Any]:
        """Give the sample of a row as it lies, see `sample_at`."""
        return self.sample_at(self.table.number_of(slot))

    def sample_at(self, number: int) -> NDArray[Any]:
        """Give one sample as it lies, read-only: (H, W, 3), (num_frames,), or the bytes of an encoded one."""
        if number >= self.num_decoded:
            assert self.encoded is not None
            assert self.encoded_offsets is not None
            start, stop = self.encoded_offsets[number - self.num_decoded : number - self.num_decoded + 2]
            return self.encoded[start:stop]
        if self.images is not None:
            image: NDArray[Any] = self.images[number]
            return image
        assert self.frames is not None
        assert self.offsets is not None
        return self.frames[self.offsets[number] : self.offsets[number + 1]]

    def clip_places(self, numbers: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Give where clips begin in `frames`, and how long they are, int64 (B,) each."""
        assert self.offsets is not None
        starts = self.offsets[numbers]
        return starts, self.offsets[numbers + 1] - starts

    def places_digest(self) -> str:
        """Digest what samples.safetensors says of where in it what lies."""
        return digest(self.samples.view()[: self._start_of_media])

    def read_encoded(self, number: int) -> bytes:
        """Copy the bytes of an encoded sample out of the store, from the disk if need be. Thread-safe.

        Raises:
            StoreError: The file was cut short.
            OSError: The disk cannot be read.
        """
        start, num_bytes = self._place(number)
        data = self.samples.read(start, num_bytes)
        if len(data) != num_bytes:
            self.refuse_if_cut_short()
            raise StoreError(f"sample {number}: {num_bytes:,} bytes expected, got {len(data):,}; load again")
        return data

    def will_need(self, numbers: NDArray[np.int64]) -> None:
        """Have the kernel read samples from the disk, all at once and nothing else, before they are asked for.

        That is how reads overlap: with half of a dataset on the disk it took a third of the time (measured).
        """
        for number in numbers.tolist():
            self.samples.will_need(*self._place(number))

    def _place(self, number: int) -> tuple[int, int]:
        """Give where in samples.safetensors a sample begins, and how many bytes it has."""
        if number >= self.num_decoded:
            assert self.encoded is not None
            assert self.encoded_offsets is not None
            start, stop = self.encoded_offsets[number - self.num_decoded : number - self.num_decoded + 2].tolist()
            return self._num_bytes[0] - self.encoded.nbytes + start, stop - start
        if self.images is not None:
            num_bytes = math.prod(self.images.shape[1:])
            return self._start_of_media + number * num_bytes, num_bytes
        assert self.frames is not None
        assert self.offsets is not None
        start, stop = (self.offsets[number : number + 2] * self.frames.itemsize).tolist()
        return self._start_of_media + start, stop - start

    def manifest(self, *, replacing: Manifest | None = None) -> bytes:
        """Write down what this store is; see `make_manifest`."""
        checksums = {"rows": digest(self.rows.view()), "places": self.places_digest()}
        return make_manifest(
            self.spec, self.num_samples, checksums, replacing=replacing, has_repeats=self.table.samples is not None
        )

    def verify(self) -> list[int]:
        """Compare every loaded sample with its checksum and list the slots that differ. Cost: one read of all."""
        table = self.table
        status, expected, firsts = table.status, table.checksum, table.first_slots()
        if firsts is not None:
            status, expected = status[firsts], expected[firsts]
        is_bad = np.zeros(len(status), np.bool_)
        for number in np.flatnonzero(status == LOADED).tolist():
            is_bad[number] = checksum(self.sample_at(number)) != expected[number]
        bad: list[int] = np.flatnonzero(is_bad if table.samples is None else is_bad[table.samples]).tolist()
        return bad

    def report(self, effort: Effort, *, bytes_available: int | None = None) -> LoadReport:
        """Sum up the load that made, or now opened, this store.

        Args:
            effort: What it took.
            bytes_available: The memory there is for it; None where all of it lies there.
        """
        table = self.table
        loaded = table.sample_of(np.flatnonzero(table.status == LOADED))
        num_decoded = int(np.count_nonzero(loaded < self.num_decoded))
        num_on_disk = 0
        if bytes_available is not None:
            num_on_disk = int(np.count_nonzero(loaded >= self.num_samples_in(bytes_available)))
        return make_report(table, effort, nbytes=self.nbytes, num_decoded=num_decoded, num_on_disk=num_on_disk)

    def num_samples_in(self, num_bytes: int) -> int:
        """Count the samples, from the front, that have room in so many bytes, beside the rows."""
        ends = self._ends()
        return int(np.searchsorted(ends, num_bytes - self.rows.nbytes, side="right"))

    def _ends(self) -> NDArray[np.int64]:
        """Give where each sample ends in samples.safetensors, int64 (U,)."""
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


def make_report(table: Any, effort: Effort, *, nbytes: int, num_decoded: int, num_on_disk: int) -> LoadReport:
    """Sum up rows, and what it took to load them.

    Args:
        table: The rows: a `RowTable`, or those of several stores.
        effort: What it took.
        nbytes: What is held at rest.
        num_decoded: How many of the loaded lie decoded; the others lie encoded.
        num_on_disk: For how many there is no room in memory, of the encoded ones first.
    """
    failures = table.failures()
    num_ok = int(np.count_nonzero(table.status == LOADED))
    num_encoded = num_ok - num_decoded
    return LoadReport(
        num_samples=table.num_rows,
        num_ok=num_ok,
        num_failed=len(failures),
        num_empty_captions=table.num_empty_captions,
        by_reason=count_reasons(failures),
        failures=failures,
        seconds=effort.seconds,
        bytes_fetched=effort.bytes_fetched,
        nbytes=nbytes,
        num_decoded=max(0, num_decoded - max(0, num_on_disk - num_encoded)),
        num_encoded=max(0, num_encoded - num_on_disk),
        num_on_disk=num_on_disk,
        by_stage=count_stages(failures),
        by_host=count_hosts(failures),
        num_tried=effort.num_tried,
        seconds_by_stage=effort.seconds_by_stage,
        slowest_hosts=effort.slowest_hosts,
        num_unique=table.num_unique,
    )


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
    with NewFiles(directory) as files:
        for name, block in ((SAMPLES, store.samples), (ROWS, store.rows)):
            with Block.create(files.partials[name]) as copy:
                block.copy_to(copy, on_progress=on_progress)
                os.fsync(copy.fd)
        files.declare(store.manifest())


class NewFiles:
    """The files of a store under the names they have until they are complete; a context manager.

    What is not declared is removed.

    Args:
        directory: Where to: new, empty, or an older store that is then replaced.

    Attributes:
        partials: Where each file is written; there is nothing yet.

    Raises:
        StoreError: The directory holds something else.
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self.directory = target = Path(directory)
        target.mkdir(parents=True, exist_ok=True)
        foreign = {path.name for path in target.iterdir()} - {MANIFEST, SAMPLES, ROWS}
        foreign = {name for name in foreign if not name.endswith(".partial")}
        if foreign:
            raise StoreError(
                f"{target} holds other files ({', '.join(sorted(foreign)[:3])}): save into a directory of its own"
            )
        self.partials = {name: target / f"{name}.partial" for name in (SAMPLES, ROWS, MANIFEST)}
        for partial in self.partials.values():
            partial.unlink(missing_ok=True)

    def declare(self, manifest: bytes) -> None:
        """Put the files, which are written and synced, into the place of older ones; the manifest comes last."""
        write_partial_manifest(self.directory, manifest)
        partials, self.partials = self.partials, {}
        # From here on the disk needs no more room.
        (self.directory / MANIFEST).unlink(missing_ok=True)
        for name, partial in partials.items():
            os.replace(partial, self.directory / name)

    def __enter__(self) -> NewFiles:
        return self

    def __exit__(self, *_: object) -> None:
        for partial in self.partials.values():
            with contextlib.suppress(OSError):  # it is the first error that says what is wrong
                partial.unlink()
