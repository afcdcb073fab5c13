"""Samples in any order -> one store in the order of their rows.

Samples lie in the order of the first rows that have them, whenever they arrive. Decoded images have a fixed place;
clips and encoded samples are spooled and packed at the end, so that each takes the room of its own length.

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
from in_memory_datasets.store.live import LiveStore
from in_memory_datasets.store.manifest import MANIFEST, read_manifest, write_manifest
from in_memory_datasets.store.places import Placed, Places
from in_memory_datasets.store.store import ROWS, SAMPLES, Store, checksum
from in_memory_datasets.store.table import LOADED, RowTable, TableWriter

# One for each form: how much memory there is may have changed since a builder was interrupted, and with it the form,
# and a sample of one must not be taken for the other. The journal is believed only for what lies in its place.
_SPOOLS = {False: "decoded", True: "encoded"}
_WORK = (JOURNAL, *(f"{name}.partial" for name in (*_SPOOLS.values(), SAMPLES, ROWS, MANIFEST)))
_NUM_AT_ONCE = 1024  # samples that are decoded between two looks at the progress


@dataclass(frozen=True, slots=True, kw_only=True)
class Promotion:
    """How the first of the encoded samples are decoded, once it is known for how many there is room.

    Attributes:
        num_decoded: How many samples, from the front.
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

    Call order: `add_rows` before any sample of theirs; then, for the first row of each sample, unless `is_done` knows
    it already, `put` from any thread, and `loaded` or `failed` from one thread; `finish` once. A row is named by its
    slot, which is its number. What is said of the first row that has a sample is said of all that have it, also of
    those that come later.

    Args:
        spec: What each sample was turned into.
        encoded: Whether what is put is the bytes of encoded samples.
        directory: An existing directory to write into; None for memory. What an earlier writer left there is taken
            over; what this one has when it is broken off is left there likewise.
        mend: A finished store; what is put replaces or adds to its samples, each in the form that its number has there.
            Decoded images are altered in its own block, so that everyone who has it mapped sees them; samples of
            different lengths change the places of others, and all are packed anew.

    Attributes:
        num_bytes: What the samples that are in place take.
        places: Where they are put.
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
        self._starts, self._sizes, self._frames = (array("q", bytes(8 * self._table.num_unique)) for _ in range(3))
        self._live: LiveStore | None = None
        self._journal: Journal | None = None
        self._left: dict[int, Placed] = {}  # by an earlier writer: by the first row that has it
        try:
            if mend is not None and self._in_place:
                self._samples = self._resources.enter_context(Block(os.dup(mend.samples.fd)))
            else:
                self._samples = self._work_block(SAMPLES, keep=self._in_place)
            spool = self._samples if self._in_place else self._work_block(_SPOOLS[encoded], keep=True)
            if directory is not None and mend is None:
                self._journal = self._resources.enter_context(Journal(directory))
                self._left = _intact(self._journal, spool)
            self._spool = Spool(spool, max((left.start + left.num_bytes for left in self._left.values()), default=0))
            self._resources.callback(self._spool.close)
            self.places = Places(
                spool, self._image_bytes if self._in_place else 0, isinstance(spec, AudioSpec), self._spool.end
            )
        except BaseException:
            self._resources.close()
            if mend is not None and directory is not None:  # else there may be the work of an earlier writer
                remove_work(directory)
            raise

    def add_rows(self, rows: list[Row], numbers: NDArray[np.int64] | None = None) -> None:
        """Append rows, in order.

        Args:
            numbers: The number of each row's sample, int64: that of an earlier row's, or the next one. None where every
                row has a sample of its own.
        """
        first, before = self.num_rows, self.num_unique
        self._table.add(rows, numbers)
        for column in (self._starts, self._sizes, self._frames):
            column.extend([0] * (self.num_unique - before))
        for slot in range(first, self.num_rows) if self._left else ():
            left, number = self._left.pop(slot, None), self.number_of(slot)
            if left is None or self.is_done(slot):
                continue
            # One that has another place now was left by a version that gave every row a sample of its own.
            if not self.places.image_bytes or left.start == self.places.place_of_image(number):
                self._note(number, left)

    def go_live(self) -> LiveStore:
        """Let samples be read while they arrive, when all rows have been added; the caller owns what is given."""
        rows = Block.anonymous(ROWS)
        rows.write(self._table.to_buffer(), 0)
        samples, spool = (Block(os.dup(block.fd)) for block in (self._samples, self._spool.block))
        self._live = live = LiveStore.begin(self.spec, rows=rows, samples=samples, spool=spool)
        for number in np.flatnonzero(np.frombuffer(self._table.status, np.uint8) == LOADED).tolist():
            live.note(number, Placed(self._starts[number], self._sizes[number], self._frames[number], 0))
        return live

    def first_slots(self) -> NDArray[np.int64]:
        """Give the first row that has each sample, int64 (U,)."""
        return self._table.first_slots()

    def number_of(self, slot: int) -> int:
        """Give the number of a row's sample. Any thread may ask."""
        return self._table.number_of(slot)

    def is_done(self, slot: int) -> bool:
        """Tell whether the sample of a row is in its place already."""
        return self._table.status[self.number_of(slot)] == LOADED

    def put(self, slot: int, sample: NDArray[Any], num_frames: int = 0) -> Placed:
        """Write the sample of a row, see `Places.put`. Thread-safe, releases the GIL."""
        return self.places.put(self.number_of(slot), sample, num_frames)

    def loaded(self, slot: int, placed: Placed) -> None:
        """Note that the sample of a row is in its place; the row is the first that has it."""
        self._note(self.number_of(slot), placed)
        if self._journal is not None:
            self._journal.append(slot, placed.start, placed.num_bytes, placed.num_frames, placed.checksum)

    def _note(self, number: int, placed: Placed) -> None:
        self._starts[number], self._sizes[number] = placed.start, placed.num_bytes
        self._frames[number] = placed.num_frames
        self.num_bytes += placed.num_bytes
        self._table.loaded(number, placed.checksum)
        if self._live is not None:
            self._live.note(number, placed)

    def failed(self, failure: Failure) -> None:
        """Note that a row has no sample; its place takes no memory."""
        number = self.number_of(failure.index)
        self._table.failed(number, failure)
        self._sizes[number] = self._frames[number] = 0
        if self._live is not None:
            self._live.note_failed(number)

    @property
    def num_rows(self) -> int:
        """Count the rows."""
        return self._table.num_rows

    @property
    def num_unique(self) -> int:
        """Count the samples that the rows have."""
        return self._table.num_unique

    @property
    def num_loaded(self) -> int:
        """Count the rows whose sample is in place. Any thread may ask."""
        return self._table.num_loaded

    def failures(self) -> list[Failure]:
        """Give what failed, row by row. Cost: writes the rows once."""
        return RowTable(memoryview(self._table.to_buffer()), intact=True).failures()

    def sizes(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Give the bytes that have been put for each sample, and the frames they decode to, int64 (U,) each."""
        return np.array(self._sizes, np.int64), np.array(self._frames, np.int64)

    def keep_what_fits(self, num_bytes: int) -> int:
        """Forget all rows but the first that take at most `num_bytes` together, and count them."""
        offset_bytes = 8 * (isinstance(self.spec, AudioSpec) + self._encoded)
        empty_bytes = TableWriter().to_buffer().size
        ends = np.arange(1, self.num_rows + 1) * ((self.rows_nbytes() - empty_bytes) / max(1, self.num_rows))
        ends += np.cumsum(self._table.by_first_row(self.sizes()[0] + offset_bytes))
        ends += empty_bytes + HEADER_BYTES + offset_bytes
        num_rows = int(np.searchsorted(ends, num_bytes, side="right"))
        self._table.truncate(num_rows)
        for column in (self._starts, self._sizes, self._frames):
            del column[self.num_unique :]
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
        places = None
        if self._in_place:
            self._close_images()
        else:
            places = self._pack(promotion)
        if self._live is not None:
            self._live.end(places)
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
        num_unique, (width, height) = self.num_unique, self.spec.image_size
        self._samples.write(pack_header({"images": ("uint8", (num_unique, height, width, 3))}), 0)
        self._samples.resize(HEADER_BYTES + num_unique * self._image_bytes)

    def _pack(self, promotion: Promotion | None) -> NDArray[np.int64]:
        """Lay out decoded samples and then encoded ones, each behind the other, and move every sample there."""
        num_unique, old = self.num_unique, self._mend
        num_bytes, num_frames = self.sizes()
        is_new = num_bytes > 0
        if old is not None:
            kept = np.flatnonzero(~is_new & (np.frombuffer(self._table.status, np.uint8) == LOADED))
            for number in kept.tolist():
                num_bytes[number] = old.sample_at(number).nbytes
            if old.offsets is not None:
                num_frames[kept] = np.diff(old.offsets)[kept]
            num_decoded = old.num_decoded
        elif promotion is not None:
            num_decoded = promotion.num_decoded
        else:
            num_decoded = 0 if self._encoded else num_unique
        if self._live is not None:
            self._live.begin_moving()
        places, end = self._lay_out(num_decoded, num_bytes, num_frames)
        for number in range(num_unique):
            if number < num_decoded and promotion is not None:
                continue
            if is_new[number]:
                self._samples.write(self._spool.read(self._starts[number], self._sizes[number]), int(places[number]))
                self._free(number)
            elif old is not None and num_bytes[number]:
                self._samples.write(old.sample_at(number), int(places[number]))
        if promotion is not None:
            self._promote(promotion, places, np.flatnonzero(is_new[:num_decoded]).tolist())
        self._samples.resize(end)
        return places

    def _lay_out(
        self, num_decoded: int, num_bytes: NDArray[np.int64], num_frames: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], int]:
        """Write the header and the offsets; give where each sample begins, int64 (U,), and where all ends."""
        num_unique = self.num_unique
        offsets, encoded_offsets = _offsets(num_frames), _offsets(num_bytes[num_decoded:])
        has_decoded = num_decoded > 0 or num_unique == 0
        arrays: dict[str, tuple[str, tuple[int, ...]]] = {}
        numbers = []
        if isinstance(self.spec, AudioSpec):
            arrays["offsets"] = "int64", offsets.shape
            numbers.append(offsets)
        if num_decoded < num_unique:
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
        if num_decoded < num_unique:
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

    def _promote(self, promotion: Promotion, places: NDArray[np.int64], numbers: list[int]) -> None:
        def decode(number: int) -> int:
            with self._spool.read(self._starts[number], self._sizes[number]) as encoded:
                sample = promotion.decode(encoded)
            self._samples.write(sample, int(places[number]))
            self._free(number)
            return checksum(sample)

        with ThreadPoolExecutor(promotion.num_threads, "in-memory-datasets-decode") as threads:
            for some in _in_groups(numbers, _NUM_AT_ONCE):
                for number, digest in zip(some, threads.map(decode, some), strict=True):
                    self._table.loaded(number, digest)
                promotion.on_progress(len(some))

    def _free(self, number: int) -> None:
        """Give back the memory of a sample that was moved; in a directory it stays, for who may have to begin anew."""
        if self._directory is None:
            self._spool.free(self._starts[number], self._sizes[number])

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
        self._mend = None  # which would lie in memory for as long as somebody still looks at this writer


def _intact(journal: Journal, block: Block) -> dict[int, Placed]:
    """Find the samples that an earlier writer left whole, by the first row that has them."""
    view = block.view() if block.nbytes else memoryview(b"")
    left = {}
    for slot, start, size, frames, expected in journal.records().tolist():
        if start + size <= view.nbytes and xxhash.xxh3_64_intdigest(view[start : start + size]) == expected:
            left[slot] = Placed(start, size, frames, expected)
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
