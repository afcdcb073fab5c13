"""Several stores read as one: their rows, and their samples, are numbered through.

What a node of a cluster serves lies in several stores, and which these are changes between epochs: its own samples, and
those it has borrowed. Whoever makes batches need not know.
"""

from __future__ import annotations

import itertools
import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from in_memory_datasets.errors import StoreError
from in_memory_datasets.schema import (
    AudioSpec,
    Effort,
    Failure,
    ImageSpec,
    LoadReport,
)
from in_memory_datasets.store.block import CLOSED
from in_memory_datasets.store.store import Store, make_report
from in_memory_datasets.store.table import LOADED, RowTable, no_records, one_batch


class Joined:
    """Arrays that are read as one, along their first axis, without being copied together.

    Of what a node serves most lies in one of them: that is copied in runs, and single rows of the others between them.

    Args:
        parts: Arrays that differ at most in their length.
    """

    def __init__(self, parts: Sequence[NDArray[Any]]) -> None:
        self.parts = tuple(parts)
        self._row_size = math.prod(parts[0].shape[1:])
        self._flat = [part.reshape(len(part), self._row_size) for part in parts]
        self._ends = list(itertools.accumulate(len(part) for part in parts))
        self._starts = [0, *self._ends[:-1]]
        self._largest = max(range(len(parts)), key=lambda number: len(parts[number]))
        self.shape = (self._ends[-1], *parts[0].shape[1:])
        self.dtype, self.itemsize, self.ndim = parts[0].dtype, parts[0].itemsize, parts[0].ndim
        self.nbytes = sum(part.nbytes for part in parts)

    def __len__(self) -> int:
        return self._ends[-1]

    def copier(self, numbers: NDArray[np.int64], out: NDArray[Any]) -> Callable[[slice], None]:
        """Give what copies rows into a slice of `out`, which is contiguous; in several threads at once.

        Cost: a tenth of a microsecond for each row, and one for each that does not lie in the largest array.
        """
        # What is plain Python is done here, once: threads that copy would wait for each other with it. And rows are
        # flat, since each run of pictures cost 5 us more in three dimensions (measured, as is all of this).
        flat, largest = out.reshape(len(out), self._row_size), self._flat[self._largest]
        first, end = self._starts[self._largest], self._ends[self._largest]
        others = [(place, number) for place, number in enumerate(numbers.tolist()) if not first <= number < end]
        places, rows = [place for place, _ in others], [self._row(number) for _, number in others]
        there = numbers - first if first else numbers

        def copy(part: slice) -> None:
            start = part.start
            for other in range(bisect_left(places, start), bisect_left(places, part.stop)):
                if start < (place := places[other]):
                    largest.take(there[start:place], axis=0, out=flat[start:place], mode="clip")
                flat[place] = rows[other]
                start = place + 1
            if start < part.stop:
                largest.take(there[start : part.stop], axis=0, out=flat[start : part.stop], mode="clip")

        return copy

    def _row(self, number: int) -> NDArray[Any]:
        which = bisect_right(self._ends, number)
        return self._flat[which][number - self._starts[which]]  # type: ignore[no-any-return]

    def __getitem__(self, key: int | slice) -> NDArray[Any]:
        """View one row, or a run of rows of one part."""
        start = key.start or 0 if isinstance(key, slice) else key
        number = bisect_right(self._ends, start)
        if number == len(self.parts):  # an empty run at the end
            return self.parts[-1][len(self.parts[-1]) :]
        first = self._starts[number]
        if isinstance(key, slice):
            view: NDArray[Any] = self.parts[number][start - first : key.stop - first]
        else:
            view = self.parts[number][start - first]
        return view


def copier(samples: NDArray[Any] | Joined, numbers: NDArray[np.int64], out: NDArray[Any]) -> Callable[[slice], object]:
    """Give what copies samples of equal shape into a slice of `out`, see `Joined.copier`."""
    if isinstance(samples, Joined):
        return samples.copier(numbers, out)
    # The default mode would copy through a second buffer.
    return lambda part: samples.take(numbers[part], axis=0, out=out[part], mode="clip")


class JoinedTable:
    """The rows of several stores, numbered through; what is served of a `RowTable`.

    Attributes:
        status: uint8, shape (num_rows,).
        row_numbers: int64, likewise: the numbers these rows have in the user's dataset.
    """

    def __init__(self, stores: Sequence[Store], row_numbers: Sequence[NDArray[np.int64]]) -> None:
        self._tables = [store.table for store in stores]
        self._ends = np.cumsum([0, *(table.num_rows for table in self._tables)])
        self._starts: list[int] = self._ends[:-1].tolist()
        self._largest = int(np.argmax(np.diff(self._ends))) if stores else 0
        self._firsts = np.cumsum([0, *(table.num_unique for table in self._tables)])
        self.status: NDArray[np.uint8] = _joined([table.status for table in self._tables], np.uint8)
        self.row_numbers: NDArray[np.int64] = _joined(row_numbers, np.int64)
        self._has_repeats = any(table.samples is not None for table in self._tables)
        self._only = self._tables[0] if len(self._tables) == 1 else None  # which costs no more than by itself

    @property
    def num_rows(self) -> int:
        """Count the rows."""
        return len(self.status)

    @property
    def num_unique(self) -> int:
        """Count the samples that they have."""
        return int(self._firsts[-1])

    @property
    def num_empty_captions(self) -> int:
        """Count the rows that have no caption, or only an empty one."""
        return sum(table.num_empty_captions for table in self._tables)

    @property
    def checksum(self) -> NDArray[np.uint64]:
        """Give the checksum of each row's sample, uint64 (num_rows,). Cost: one copy."""
        return _joined([table.checksum for table in self._tables], np.uint64)

    def rows_of(self, slots: NDArray[np.int64]) -> NDArray[np.int64]:
        """Give the numbers that rows have in the user's dataset."""
        return np.asarray(self.row_numbers[slots])

    def _split(self, slots: NDArray[np.int64]) -> Iterable[tuple[int, NDArray[np.int64], NDArray[np.int64]]]:
        """Give, for each table that has some of these rows, their places here and their slots there."""
        which = np.searchsorted(self._ends, slots, side="right") - 1
        for number, start in enumerate(self._ends[:-1].tolist()):  # of which there are a few
            here = np.flatnonzero(which == number)
            if len(here):
                yield number, here, slots[here] - start

    def records(self, slots: NDArray[np.int64]) -> Any:
        """Copy all that is known of some rows, as `RowTable.records` does."""
        places, batches = [slots[:0]], [no_records()]
        for number, here, there in self._split(slots):
            places.append(here)
            batches.append(self._tables[number].records(there))
        if len(batches) == 2:
            return batches[1]
        return one_batch(batches).take(pa.array(np.argsort(np.concatenate(places))))

    def sample_of(self, slots: NDArray[np.int64]) -> NDArray[np.int64]:
        """Give the number of each row's sample: where no row repeats another, `slots` as it is."""
        if not self._has_repeats:
            return slots
        if self._only is not None:
            return self._only.sample_of(slots)
        numbers = np.empty(len(slots), np.int64)
        for number, here, there in self._split(slots):
            numbers[here] = self._firsts[number] + self._tables[number].sample_of(there)
        return numbers

    def number_of(self, slot: int) -> int:
        """Give the number of one row's sample."""
        return int(self.sample_of(np.array([slot]))[0])

    def first_slots(self) -> NDArray[np.int64] | None:
        """Give the first row that has each sample, int64 (U,); None where sample i is that of row i."""
        if not self._has_repeats:
            return None
        parts = []
        for table, start in zip(self._tables, self._ends.tolist(), strict=False):
            firsts = table.first_slots()
            parts.append(start + (np.arange(table.num_rows) if firsts is None else firsts))
        return np.concatenate(parts)

    def num_captions(self, slots: NDArray[np.int64]) -> NDArray[np.int64]:
        """Count the captions of rows."""
        if self._only is not None:
            return self._only.num_captions(slots)
        counts = np.empty(len(slots), np.int64)
        for number, here, there in self._split(slots):
            counts[here] = self._tables[number].num_captions(there)
        return counts

    def caption(self, slots: NDArray[np.int64], numbers: NDArray[np.int64] | None = None) -> list[str]:
        """Give one caption of each of some rows, as `RowTable.caption` does."""
        if self._only is not None:
            return self._only.caption(slots, numbers)
        if not self._tables:
            return []
        # As if all were of the largest table, of which most are; then those that are not, one by one.
        table, first = self._tables[self._largest], self._starts[self._largest]
        stop = first + table.num_rows
        there = np.minimum(np.maximum(slots - first, 0) if first else slots, table.num_rows - 1)
        texts = table.caption(there, None if numbers is None else np.where(there + first == slots, numbers, 0))
        for place, slot in enumerate(slots.tolist()):
            if not first <= slot < stop:
                other, its_slot = self._find(slot)
                texts[place] = other.caption_at(its_slot, 0 if numbers is None else int(numbers[place]))
        return texts

    def captions(self, slot: int) -> list[str]:
        """Give all captions of a row, in order."""
        table, there = self._find(slot)
        return table.captions(there)

    def source(self, slot: int) -> str:
        """Give where a sample came from, without credentials."""
        table, there = self._find(slot)
        return table.source(there)

    def _find(self, slot: int) -> tuple[RowTable, int]:
        number = bisect_right(self._starts, slot) - 1
        return self._tables[number], slot - self._starts[number]

    def failures(self) -> list[Failure]:
        """Give every failure, by the row numbers of the user's dataset, ascending."""
        failures = []
        for table, start in zip(self._tables, self._ends.tolist(), strict=False):
            failures += [
                replace(failure, index=int(self.row_numbers[start + failure.index])) for failure in table.failures()
            ]
        return sorted(failures, key=lambda failure: failure.index)


def _joined(arrays: Sequence[NDArray[Any]], dtype: type) -> NDArray[Any]:
    if len(arrays) == 1:
        return np.asarray(arrays[0])
    return np.concatenate([np.zeros(0, dtype), *arrays])


class Pieces:
    """Several stores of one kind, all decoded or all encoded, read as one; a context manager, which closes them.

    Args:
        stores: In order; none of them is owned by this alone.
        row_numbers: For each, the numbers that its rows have in the user's dataset, int64 (num_samples,).
        spec: What samples were turned into, where there is no store.

    Attributes:
        spec: What each sample was turned into.
        images: uint8, shape (U, H, W, 3), one array or `Joined`; of clips, and where all are encoded, None.
        frames: float32 or int16, shape (offsets[U],), likewise.
        offsets: int64, shape (U + 1,): clip i has the frames offsets[i]:offsets[i + 1]; of images None.
        num_decoded: U, or 0 where all lie encoded.

    Raises:
        StoreError: They are of different kinds.
    """

    version = 0

    def __init__(
        self,
        stores: Sequence[Store],
        row_numbers: Sequence[NDArray[np.int64]],
        spec: ImageSpec | AudioSpec | None = None,
    ) -> None:
        if spec is None:
            spec = stores[0].spec
        if any(store.spec != spec for store in stores):
            raise StoreError(f"pieces of one dataset are of different kinds: {[str(store.spec) for store in stores]}")
        self.spec = spec
        self.stores = tuple(stores)
        self._row_numbers = tuple(row_numbers)
        self._table: JoinedTable | None = JoinedTable(stores, row_numbers)
        self._firsts = np.cumsum([0, *(store.num_unique for store in stores)])
        filled = [store for store in stores if store.num_unique]
        encoded = {store.encoded is not None for store in filled}
        if len(encoded) > 1 or any(0 < store.num_decoded < store.num_unique for store in filled):
            raise StoreError("pieces of one dataset lie partly decoded and partly encoded: take one storage for all")
        self.encoded: Any = filled if True in encoded else None
        self.num_decoded = 0 if self.encoded else self.num_unique
        self.images: Any = None
        self.frames: Any = None
        self.offsets: NDArray[np.int64] | None = None
        if isinstance(spec, ImageSpec):
            if not self.encoded:
                empty = np.zeros((0, spec.image_size[1], spec.image_size[0], 3), np.uint8)
                self.images = _as_one([store.images for store in filled if store.images is not None], empty)
        else:
            self._join_clips(filled, spec)

    def _join_clips(self, filled: Sequence[Store], spec: AudioSpec) -> None:
        lengths = [np.diff(store.offsets) for store in filled if store.offsets is not None]
        self.offsets = np.concatenate([[0], np.cumsum(np.concatenate([np.zeros(0, np.int64), *lengths]))])
        if not self.encoded:
            self.frames = _as_one([s.frames for s in filled if s.frames is not None], np.zeros(0, spec.dtype))

    @property
    def closed(self) -> bool:
        """Tell whether the memory was given up."""
        return self._table is None or any(store.closed for store in self.stores)

    @property
    def table(self) -> JoinedTable:
        """Give the rows.

        Raises:
            StoreError: A store was closed, or a file of it was cut short.
        """
        if self._table is None:
            raise StoreError(CLOSED)
        self.refuse_if_cut_short()
        return self._table

    def refuse_if_cut_short(self) -> None:
        """Raise where reading would run past the end of a file, see `Store.refuse_if_cut_short`."""
        for store in self.stores:
            store.refuse_if_cut_short()

    @property
    def directory(self) -> Path | None:
        """Give where the first piece that lies in files does; None where all lie in memory."""
        return next((store.directory for store in self.stores if store.directory is not None), None)

    @property
    def num_samples(self) -> int:
        """Count the rows, failed ones included."""
        return self.table.num_rows

    @property
    def num_unique(self) -> int:
        """Count the samples that the rows have."""
        return int(self._firsts[-1])

    @property
    def nbytes(self) -> int:
        """Count the bytes held at rest."""
        return sum(store.nbytes for store in self.stores)

    def _find(self, number: int) -> tuple[Store, int]:
        piece = int(np.searchsorted(self._firsts, number, side="right")) - 1
        return self.stores[piece], number - int(self._firsts[piece])

    def sample_at(self, number: int) -> NDArray[Any]:
        """Give one sample as it lies, see `Store.sample_at`."""
        store, there = self._find(number)
        return store.sample_at(there)

    def read_encoded(self, number: int) -> bytes:
        """Copy the bytes of an encoded sample out, see `Store.read_encoded`. Thread-safe."""
        store, there = self._find(number)
        return store.read_encoded(there)

    def clip_places(self, numbers: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Give where clips begin in `frames`, and how long they are, int64 (B,) each."""
        assert self.offsets is not None
        starts = self.offsets[numbers]
        return starts, self.offsets[numbers + 1] - starts

    def will_need(self, numbers: NDArray[np.int64]) -> None:
        """Have the kernel read samples from the disk, see `Store.will_need`."""
        for piece, store in enumerate(self.stores):
            here = (numbers >= self._firsts[piece]) & (numbers < self._firsts[piece + 1])
            if here.any():  # in a worker process, which has handles, no store says that it lies in files
                store.will_need(numbers[here] - self._firsts[piece])

    def verify(self) -> list[int]:
        """List the row numbers of samples that differ from their checksums. Cost: one read of all."""
        pairs = zip(self.stores, self._row_numbers, strict=True)
        return sorted(int(numbers[slot]) for store, numbers in pairs for slot in store.verify())

    def report(self, effort: Effort, *, bytes_available: int | None = None) -> LoadReport:
        """Sum up what is there, see `Store.report`; failures by the row numbers of the user's dataset."""
        table = self.table
        num_decoded = 0 if self.encoded else int(np.count_nonzero(table.status == LOADED))
        num_on_disk = 0 if bytes_available is None else self._num_on_disk(bytes_available)
        return make_report(table, effort, nbytes=self.nbytes, num_decoded=num_decoded, num_on_disk=num_on_disk)

    def _num_on_disk(self, bytes_available: int) -> int:
        """Count the loaded rows of those pieces that are files for which there is no room in so much memory."""
        num_on_disk, left = 0, bytes_available
        for store in self.stores:
            if store.directory is not None:
                loaded = store.table.sample_of(np.flatnonzero(store.table.status == LOADED))
                num_on_disk += int(np.count_nonzero(loaded >= store.num_samples_in(left)))
                left = max(0, left - store.nbytes)
        return num_on_disk

    def close(self) -> None:
        """Close all stores; views handed out before stay readable."""
        self._table = None
        self.images = self.frames = self.offsets = None
        for store in self.stores:
            store.close()

    def __enter__(self) -> Pieces:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __copy__(self) -> Pieces:
        return self

    def __deepcopy__(self, _: object) -> Pieces:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return Pieces, (self.stores, self._row_numbers, self.spec)


def _as_one(arrays: Sequence[NDArray[Any]], empty: NDArray[Any]) -> NDArray[Any] | Joined:
    if not arrays:
        return empty
    return arrays[0] if len(arrays) == 1 else Joined(arrays)
