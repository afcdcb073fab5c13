"""A store that is still being made, for those who read from it already.

Its rows are there from the start, without what became of them; its samples arrive. What is known of each stands in
books that all processes map: whether it is there, where it lies, and whether somebody waits for it.
"""

from __future__ import annotations

import math
import os
import time
from multiprocessing import reduction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from in_memory_datasets.errors import LoadError, StoreError
from in_memory_datasets.schema import AudioSpec, ImageSpec
from in_memory_datasets.store.block import CLOSED, Block
from in_memory_datasets.store.layout import HEADER_BYTES
from in_memory_datasets.store.places import Placed
from in_memory_datasets.store.table import EMPTY, FAILED, LOADED, RowTable

LOADING, PACKING, DONE, BROKEN = range(4)

_STATE, _PID, _NUM_DONE, _ERROR_BYTES = range(4)  # the first numbers in the books
_NUM_NUMBERS, _MAX_ERROR_BYTES = 8, 4096
_FIRST_LOOK_SECONDS, _LAST_LOOK_SECONDS = 0.0005, 0.01
_LOOKS_AT_BUILDER = 50  # between two looks at whether it is alive


class LiveStore:
    """The samples of a store while they arrive, in any process; made by a `StoreWriter`, which alone writes.

    Sent to a worker process it is a handle on the same memory; it has no other form to be pickled in.

    Clips, whose places depend on the lengths of all, are moved when all are there. Who reads them looks at `version`
    before and after, and reads again where it has changed.

    Args:
        spec: What each sample is turned into.
        rows: The block that is rows.arrow, with nothing loaded yet.
        samples: The block that is to be samples.safetensors.
        spool: Where clips lie before they are packed; of images the same as `samples`.
        books: What is known of each sample.
    """

    def __init__(self, spec: ImageSpec | AudioSpec, *, rows: Block, samples: Block, spool: Block, books: Block) -> None:
        reduction.ForkingPickler.register(LiveStore, _reduce_to_handle)
        self.spec = spec
        self._blocks = rows, samples, spool, books
        self._table: RowTable | None = RowTable(rows.view(), intact=True)
        num_unique = self._table.num_unique
        num_numbers = _NUM_NUMBERS + 2 * num_unique
        memory = books.map(0, _size_of_books(num_unique))
        self._numbers = np.frombuffer(memory, np.int64, num_numbers)
        self._starts, self._frames = self._numbers[_NUM_NUMBERS:].reshape(2, num_unique)
        marks = np.frombuffer(memory, np.uint8, 2 * num_unique + _MAX_ERROR_BYTES, offset=8 * num_numbers)
        self._status, self.wanted = marks[: 2 * num_unique].reshape(2, num_unique)
        self._error = marks[2 * num_unique :]
        self._views: dict[int, NDArray[Any]] = {}

    @classmethod
    def begin(cls, spec: ImageSpec | AudioSpec, *, rows: Block, samples: Block, spool: Block) -> LiveStore:
        """Make the books of a store, of which no sample is there yet."""
        books = Block.anonymous("books")
        num_unique = RowTable(rows.view(), intact=True).num_unique
        books.resize(_size_of_books(num_unique))
        live = cls(spec, rows=rows, samples=samples, spool=spool, books=books)
        live._numbers[_PID] = os.getpid()
        if isinstance(spec, ImageSpec):
            samples.resize(HEADER_BYTES + num_unique * math.prod(spec.image_size) * 3)
        return live

    @property
    def table(self) -> RowTable:
        """Give the rows.

        Raises:
            StoreError: This was closed.
        """
        if self._table is None:
            raise StoreError(CLOSED)
        return self._table

    @property
    def blocks(self) -> tuple[Block, Block, Block, Block]:
        """Give the blocks, in the order of the arguments."""
        return self._blocks

    @property
    def version(self) -> int:
        """Where all this is: LOADING, PACKING, DONE or BROKEN."""
        return int(self._numbers[_STATE])

    @property
    def num_unique(self) -> int:
        """Count the samples that there will be."""
        return len(self._status)

    @property
    def progress(self) -> float:
        """Share of the samples that are there, or have failed, 0 to 1."""
        return int(self._numbers[_NUM_DONE]) / max(1, self.num_unique)

    def is_loaded(self, numbers: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Tell which samples are there, bool (B,); of the others it is not said whether they have failed."""
        return np.asarray(self._status[numbers] == LOADED)

    def wait_for(self, numbers: NDArray[np.int64]) -> None:
        """Wait until some samples are there, or have failed; and until clips are not being moved.

        Raises:
            LoadError: The load has ended without them.
            StoreError: This was closed.
        """
        if self._blocks[0].closed:
            raise StoreError(CLOSED)
        missing = numbers[self._status[numbers] == EMPTY]
        if not len(missing) and self.version in (LOADING, DONE):
            return
        self.wanted[missing] = 1
        pause, looks = _FIRST_LOOK_SECONDS, 0
        while len(missing) or self.version == PACKING:
            if self.version == BROKEN:
                raise LoadError(bytes(self._error[: self._numbers[_ERROR_BYTES]]).decode(errors="replace"))
            if self._blocks[0].closed:
                raise StoreError(CLOSED)
            looks += 1
            if looks % _LOOKS_AT_BUILDER == 0 and not is_alive(int(self._numbers[_PID])):
                raise LoadError("the process that loads this dataset has ended: start again")
            time.sleep(pause)
            pause = min(_LAST_LOOK_SECONDS, 1.5 * pause)
            missing = missing[self._status[missing] == EMPTY]

    @property
    def images(self) -> NDArray[np.uint8]:
        """View all images, uint8 (U, H, W, 3), read-only; what has not arrived is black."""
        assert isinstance(self.spec, ImageSpec)
        width, height = self.spec.image_size
        if 1 not in self._views:
            num_bytes = self.num_unique * height * width * 3
            view = self._blocks[1].view()[HEADER_BYTES : HEADER_BYTES + num_bytes]
            self._views[1] = np.frombuffer(view, np.uint8).reshape(-1, height, width, 3)
        return self._views[1]

    @property
    def frames(self) -> NDArray[Any]:
        """View the memory that clips lie in at this version, float32 or int16, read-only."""
        assert isinstance(self.spec, AudioSpec)
        place = 1 if self.version == DONE else 2
        view, itemsize = self._blocks[place].view(), np.dtype(self.spec.dtype).itemsize
        if place not in self._views or self._views[place].nbytes != view.nbytes // itemsize * itemsize:
            self._views[place] = np.frombuffer(view, self.spec.dtype, view.nbytes // itemsize)
        return self._views[place]

    def clip_places(self, numbers: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Give where clips begin in `frames`, and how long they are, int64 (B,) each."""
        assert isinstance(self.spec, AudioSpec)
        return self._starts[numbers] // np.dtype(self.spec.dtype).itemsize, self._frames[numbers]

    def note(self, number: int, placed: Placed) -> None:
        """Note that a sample is in its place."""
        self._starts[number], self._frames[number] = placed.start, placed.num_frames
        self._end(number, LOADED)

    def note_failed(self, number: int) -> None:
        """Note that there will be no sample."""
        self._end(number, FAILED)

    def _end(self, number: int, status: int) -> None:
        self._numbers[_NUM_DONE] += self._status[number] == EMPTY
        self._status[number] = status  # last: from here on it is read

    def begin_moving(self) -> None:
        """Note that clips are about to be moved."""
        self._numbers[_STATE] = PACKING

    def end(self, starts: NDArray[np.int64] | None = None) -> None:
        """Note that all is in its final place.

        Args:
            starts: Where clips begin in the block of samples, in bytes, int64 (U,).
        """
        if starts is not None:
            self._starts[:] = starts
        self._numbers[_STATE] = DONE

    def break_off(self, why: str) -> None:
        """Note that no more samples come; who waits for one is told why."""
        text = why.encode()[:_MAX_ERROR_BYTES]
        self._error[: len(text)] = np.frombuffer(text, np.uint8)
        self._numbers[_ERROR_BYTES] = len(text)
        self._numbers[_STATE] = BROKEN

    def close(self) -> None:
        """Give up the memory; views handed out before stay readable."""
        self._views, self._table = {}, None
        # The books' mapping, and with it a descriptor, goes with the last view of it.
        self._numbers, self._error = self._numbers[:_NUM_NUMBERS].copy(), self._error.copy()
        self._starts = self._frames = self._numbers[:0]
        self._status = self.wanted = self._error[:0]
        for block in self._blocks:
            block.close()


def _size_of_books(num_unique: int) -> int:
    return 8 * _NUM_NUMBERS + 18 * num_unique + _MAX_ERROR_BYTES


def is_alive(pid: int) -> bool:
    """Tell whether there is a process of this number, which may be another by now."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _reduce_to_handle(live: LiveStore) -> tuple[Any, ...]:
    return _from_handle, (live.spec, *live.blocks)


def _from_handle(spec: ImageSpec | AudioSpec, rows: Block, samples: Block, spool: Block, books: Block) -> LiveStore:
    return LiveStore(spec, rows=rows, samples=samples, spool=spool, books=books)
