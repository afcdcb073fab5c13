"""Samples in any order -> one store in the order of their rows.

Slot i belongs to row i whenever it arrives. Decoded images have a fixed place; clips and encoded samples are spooled
and packed at the end, so that each takes the room of its own length.

In a directory the work lies in files, and a journal says what is in place: who comes after a builder that was
interrupted goes on from there.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from in_memory_datasets.schema import AudioSpec, Failure, ImageSpec, Row
from in_memory_datasets.store.block import Block, Spool
from in_memory_datasets.store.journal import JOURNAL, Journal
from in_memory_datasets.store.layout import HEADER_BYTES, pack_header
from in_memory_datasets.store.manifest import MANIFEST, read_manifest, write_manifest
from in_memory_datasets.store.store import ROWS, SAMPLES, Store, checksum
from in_memory_datasets.store.table import LOADED, TableWriter

# One for each form: how much memory there is may have changed since a builder was interrupted, and with it the form,
# and a sample of one must not be taken for the other. The journal is believed only for what lies in its place.
_SPOOLS = {False: "decoded", True: "encoded"}
_WORK = (JOURNAL, *(f"{name}.partial" for name in (*_SPOOLS.values(), SAMPLES, ROWS, MANIFEST)))
_NUM_AT_ONCE = 1024  # samples that are decoded between two looks at the progress


@dataclass(frozen=True, slots=True, kw_only=True)
class Promotion:
    """How the first of the encoded samples are decoded, once it is known for how many there is room.

    Attributes:
        num_decoded: How many slots, from the front.
        decode: Turns the bytes of one into what is kept of a decoded one; called in several threads.
        num_threads: In how many.
        on_progress: Told how many more are done.
    """

    num_decoded: int
    decode: Callable[[memoryview], NDArray[Any]]
    num_threads: int = 1
    on_progress: Callable[[int], object] = lambda num_more: None


class StoreWriter:
    """One store being made, or mended; a context manager that gives back whatever `finish` has not handed on.

    Call order: `add_rows` before any sample of theirs; then, for those that `is_done` does not know already, `put` from
    any thread, and `loaded` or `failed` from one thread; `finish` once.

    Args:
        spec: What each sample was turned into.
        encoded: Whether what is put is the bytes of encoded samples.
        directory: An existing directory to write into; None for memory. What an earlier writer left there is taken
            over; what this one has when it is broken off is left there likewise.
        mend: A finished store; what is put replaces or adds to its samples, each in the form that its slot has there.
            Decoded images are altered in its own block, so that everyone who has it mapped sees them; samples of
            different lengths change the places of others, and all are packed anew.

    Attributes:
        num_bytes: What the samples that are in place take.
    """

    def __init__(
        self,
        spec: ImageSpec | AudioSpec,
        *,
        encoded: bool = False,
        directory: Path | None = None,
        mend: Store | None = None,
    ) -> None:
        self.spec = spec
        self._directory = directory
        self._mend = mend
        self._encoded = encoded
        self.num_bytes = 0
        self._table = TableWriter() if mend is None else TableWriter.from_table(mend.table)
        self._resources = ExitStack()
        self._image_bytes = spec.image_size[0] * spec.image_size[1] * 3 if isinstance(spec, ImageSpec) else 0
        self._in_place = bool(self._image_bytes) and not encoded and (mend is None or mend.encoded is None)
        # Where each sample lies until it is packed, and how long it is in frames; of images none.
        self._starts, self._sizes, self._frames = (array("q", bytes(8 * self._table.num_rows)) for _ in range(3))
        self._journal: Journal | None = None
        self._left: dict[int, tuple[int, int, int, int]] = {}  # by an earlier writer: start, size, frames, checksum
        try:
            if mend is not None and self._in_place:
                self._samples = self._resources.enter_context(Block(os.dup(mend.samples.fd)))
            else:
                self._samples = self._work_block(SAMPLES, keep=self._in_place)
            spool = self._samples if self._in_place else self._work_block(_SPOOLS[encoded], keep=True)
            if directory is not None and mend is None:
                self._journal = self._resources.enter_context(Journal(directory))
                self._left = _intact(self._journal, spool)
            self._spool = Spool(spool, max((start + size for start, size, _, _ in self._left.values()), default=0))
            self._resources.callback(self._spool.close)
        except BaseException:
            self._resources.close()
            raise

    def add_rows(self, rows: list[Row]) -> None:
        """Append rows, in order."""
        first = self._table.num_rows
        self._table.add(rows)
        for column in (self._starts, self._sizes, self._frames):
            column.extend([0] * len(rows))
        for slot in range(first, first + len(rows)) if self._left else ():
            if (left := self._left.pop(slot, None)) is not None:
                self._starts[slot], self._sizes[slot], self._frames[slot], digest = left
                self.num_bytes += self._sizes[slot]
                self._table.loaded(slot, digest)

    def is_done(self, slot: int) -> bool:
        """Tell whether the sample of a slot is in its place already."""
        return self._table.status[slot] == LOADED

    def put(self, slot: int, sample: NDArray[Any], num_frames: int = 0) -> int:
        """Write one sample into its place and return its checksum. Thread-safe, releases the GIL.

        Args:
            num_frames: Of an encoded clip, the frames it decodes to.

        Raises:
            OSError: The disk is full.
        """
        if self._in_place:
            start = HEADER_BYTES + slot * self._image_bytes
            self._samples.write(sample, start)
        else:
            start = self._spool.append(sample)
        is_clip = isinstance(self.spec, AudioSpec)
        self._starts[slot], self._sizes[slot] = start, sample.nbytes
        self._frames[slot] = (num_frames or sample.size) if is_clip else 0
        return checksum(sample)

    def loaded(self, slot: int, checksum: int) -> None:
        """Note that the sample of `slot` is in its place."""
        self._table.loaded(slot, checksum)
        self.num_bytes += self._sizes[slot]
        if self._journal is not None:
            self._journal.append(slot, self._starts[slot], self._sizes[slot], self._frames[slot], checksum)

    def failed(self, failure: Failure) -> None:
        """Note that a row has no sample; its place takes no memory."""
        self._table.failed(failure)
        self._sizes[failure.index] = self._frames[failure.index] = 0

    @property
    def num_loaded(self) -> int:
        """Count the samples that are in place."""
        return self._table.status.count(LOADED)

    def sizes(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Give the bytes that have been put for each slot, and the frames they decode to, int64 (N,) each."""
        return np.array(self._sizes, np.int64), np.array(self._frames, np.int64)

    def keep_what_fits(self, num_bytes: int) -> int:
        """Forget all rows but the first that take at most `num_bytes` together, and count them."""
        ends = np.cumsum(self.sizes()[0] + self.rows_nbytes() / max(1, self._table.num_rows))
        num_rows = int(np.searchsorted(ends, num_bytes, side="right"))
        self._table.truncate(num_rows)
        for column in (self._starts, self._sizes, self._frames):
            del column[num_rows:]
        return num_rows

    def rows_nbytes(self) -> int:
        """Count what the rows will take. Cost: writes them once."""
        return int(self._table.to_buffer().size)

    def finish(self, promotion: Promotion | None = None) -> Store:
        """Put everything into its final place and map it; the caller owns the store.

        Args:
            promotion: Which of the encoded samples to decode.

        Raises:
            OSError: The disk is full.
        """
        if self._in_place:
            self._close_images()
        else:
            self._pack(promotion)
        rows = self._work_block(ROWS, keep=False)
        rows.write(self._table.to_buffer(), 0)
        blocks = [Block(os.dup(block.fd)) for block in (self._samples, rows)]
        store = Store(self.spec, samples=blocks[0], rows=blocks[1], directory=self._directory)
        if self._directory is not None:
            self._declare(self._directory, store)
        return store

    def _declare(self, directory: Path, store: Store) -> None:
        """Make files under their final names of what was written, at no moment of which the directory is refused."""
        for block in (store.samples, store.rows):
            os.fsync(block.fd)
        if self._mend is not None:
            write_manifest(directory, store.manifest(replacing=read_manifest(directory)))
        for name in (SAMPLES, ROWS):
            if (directory / f"{name}.partial").exists():  # mended images are in place already
                os.replace(directory / f"{name}.partial", directory / name)
        write_manifest(directory, store.manifest())
        store.hold()
        remove_work(directory)

    def _close_images(self) -> None:
        assert isinstance(self.spec, ImageSpec)
        num_rows, (width, height) = self._table.num_rows, self.spec.image_size
        self._samples.write(pack_header({"images": ("uint8", (num_rows, height, width, 3))}), 0)
        self._samples.resize(HEADER_BYTES + num_rows * self._image_bytes)

    def _pack(self, promotion: Promotion | None) -> None:
        """Lay out decoded samples and then encoded ones, each behind the other, and move every sample there."""
        num_rows, old = self._table.num_rows, self._mend
        num_bytes, num_frames = self.sizes()
        is_new = num_bytes > 0
        if old is not None:
            kept = np.flatnonzero(~is_new & (np.frombuffer(self._table.status, np.uint8) == LOADED))
            for slot in kept.tolist():
                num_bytes[slot] = old.sample(slot).nbytes
            if old.offsets is not None:
                num_frames[kept] = np.diff(old.offsets)[kept]
            num_decoded = old.num_decoded
        elif promotion is not None:
            num_decoded = promotion.num_decoded
        else:
            num_decoded = 0 if self._encoded else num_rows
        places, end = self._lay_out(num_decoded, num_bytes, num_frames)
        for slot in range(num_rows):
            if slot < num_decoded and promotion is not None:
                continue
            if is_new[slot]:
                self._samples.write(self._spool.read(self._starts[slot], self._sizes[slot]), int(places[slot]))
                self._free(slot)
            elif old is not None and num_bytes[slot]:
                self._samples.write(old.sample(slot), int(places[slot]))
        if promotion is not None:
            self._promote(promotion, places, np.flatnonzero(is_new[:num_decoded]).tolist())
        self._samples.resize(end)

    def _lay_out(
        self, num_decoded: int, num_bytes: NDArray[np.int64], num_frames: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], int]:
        """Write the header and the offsets; give where each sample begins, int64 (N,), and where all ends."""
        num_rows = self._table.num_rows
        offsets, encoded_offsets = _offsets(num_frames), _offsets(num_bytes[num_decoded:])
        has_decoded = num_decoded > 0 or num_rows == 0
        arrays: dict[str, tuple[str, tuple[int, ...]]] = {}
        numbers = []
        if isinstance(self.spec, AudioSpec):
            arrays["offsets"] = "int64", offsets.shape
            numbers.append(offsets)
        if num_decoded < num_rows:
            arrays["encoded_offsets"] = "int64", encoded_offsets.shape
            numbers.append(encoded_offsets)
        if isinstance(self.spec, ImageSpec):
            width, height = self.spec.image_size
            decoded = np.arange(num_decoded + 1) * self._image_bytes
            if has_decoded:
                arrays["images"] = "uint8", (num_decoded, height, width, 3)
        else:
            decoded = offsets[: num_decoded + 1] * np.dtype(self.spec.dtype).itemsize
            if has_decoded:
                arrays["frames"] = self.spec.dtype, (int(offsets[num_decoded]),)
        if num_decoded < num_rows:
            arrays["encoded"] = "uint8", (int(encoded_offsets[-1]),)
        self._samples.write(pack_header(arrays), 0)
        media = HEADER_BYTES
        for array_ in numbers:
            self._samples.write(array_, media)
            media += array_.nbytes
        encoded = media + int(decoded[-1])
        return np.concatenate([media + decoded[:-1], encoded + encoded_offsets[:-1]]), encoded + int(
            encoded_offsets[-1]
        )

    def _promote(self, promotion: Promotion, places: NDArray[np.int64], slots: list[int]) -> None:
        def decode(slot: int) -> int:
            with self._spool.read(self._starts[slot], self._sizes[slot]) as encoded:
                sample = promotion.decode(encoded)
            self._samples.write(sample, int(places[slot]))
            self._free(slot)
            return checksum(sample)

        with ThreadPoolExecutor(promotion.num_threads, "in-memory-datasets-decode") as threads:
            for some in _in_groups(slots, _NUM_AT_ONCE):
                for slot, digest in zip(some, threads.map(decode, some), strict=True):
                    self._table.loaded(slot, digest)
                promotion.on_progress(len(some))

    def _free(self, slot: int) -> None:
        """Give back the memory of a sample that was moved; in a directory it stays, for who may have to begin anew."""
        if self._directory is None:
            self._spool.free(self._starts[slot], self._sizes[slot])

    def _work_block(self, name: str, *, keep: bool) -> Block:
        """Make a block to work in; in a directory with what an earlier writer left there, or empty."""
        if self._directory is None:
            return self._resources.enter_context(Block.anonymous(name))
        partial = self._directory / f"{name}.partial"
        if self._mend is None and (self._directory / name).exists():
            os.replace(self._directory / name, partial)  # a writer that was ended while it declared its work
        if keep and self._mend is None and partial.exists():
            return self._resources.enter_context(Block.open(partial))
        partial.unlink(missing_ok=True)
        return self._resources.enter_context(Block.create(partial))

    def __enter__(self) -> StoreWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._resources.close()
        if self._directory is not None and error is not None:
            has_work = self._mend is None and (bool(self._left) or LOADED in self._table.status)
            if not has_work:
                remove_work(self._directory)


def _intact(journal: Journal, block: Block) -> dict[int, tuple[int, int, int, int]]:
    """Find the samples that an earlier writer left whole, by slot."""
    view = block.view() if block.nbytes else memoryview(b"")
    left = {}
    for slot, start, size, frames, expected in journal.records().tolist():
        if start + size <= view.nbytes and xxhash.xxh3_64_intdigest(view[start : start + size]) == expected:
            left[slot] = start, size, frames, expected
    return left


def is_work(name: str) -> bool:
    """Tell whether a file of a store's directory is one that its writer works in."""
    return name in _WORK


def remove_work(directory: Path) -> None:
    """Remove the files that a writer works in; with the lock of the directory held."""
    for name in _WORK:
        (directory / name).unlink(missing_ok=True)


def _offsets(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def _in_groups(items: list[int], size: int) -> Iterator[list[int]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
