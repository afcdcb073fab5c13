"""Samples in any order -> one store in the order of their rows.

Slot i belongs to row i whenever it arrives. Images have a fixed place; clips are spooled and packed at the end, so that
a clip takes the room of its own length.
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from in_memory_datasets.schema import AudioSpec, Failure, ImageSpec, Row
from in_memory_datasets.store.block import Block, Spool
from in_memory_datasets.store.layout import HEADER_BYTES, pack_header
from in_memory_datasets.store.store import ROWS, SAMPLES, Store, checksum, write_manifest
from in_memory_datasets.store.table import TableWriter


class StoreWriter:
    """One store being made, or mended; a context manager that gives back whatever `finish` has not handed on.

    Call order: `add_rows` before any sample of theirs; then `put` for each sample, from any thread, and `loaded` or
    `failed` for each slot, from one thread; `finish` once.

    Args:
        spec: What each sample was turned into.
        directory: An existing directory to write into; None for memory.
        mend: A finished store; what is put replaces or adds to its samples. Images are altered in its own block, so
            that everyone who has it mapped sees them; clips change the places of others and are packed anew.
    """

    def __init__(
        self, spec: ImageSpec | AudioSpec, *, directory: Path | None = None, mend: Store | None = None
    ) -> None:
        self.spec = spec
        self._directory = directory
        self._mend = mend
        self._table = TableWriter() if mend is None else TableWriter.from_table(mend.table)
        self._resources = ExitStack()
        self._image_bytes = spec.image_size[0] * spec.image_size[1] * 3 if isinstance(spec, ImageSpec) else 0
        self._clips: dict[int, tuple[int, int]] = {}  # slot -> (start in the spool, bytes); of images none
        if mend is not None and self._image_bytes:
            self._samples = self._resources.enter_context(Block(os.dup(mend.samples.fd)))
        else:
            self._samples = self._new_block(SAMPLES)
        self._spool = self._resources.enter_context(Spool())

    def add_rows(self, rows: list[Row]) -> None:
        """Append rows, in order."""
        self._table.add(rows)

    def put(self, slot: int, sample: NDArray[Any]) -> int:
        """Write one sample into its place and return its checksum. Thread-safe, releases the GIL.

        Raises:
            OSError: The disk is full.
        """
        if self._image_bytes:
            self._samples.write(sample, HEADER_BYTES + slot * self._image_bytes)
        else:
            self._clips[slot] = (self._spool.append(sample), sample.nbytes)
        return checksum(sample)

    def loaded(self, slot: int, checksum: int) -> None:
        """Note that the sample of `slot` is in its place."""
        self._table.loaded(slot, checksum)

    def failed(self, failure: Failure) -> None:
        """Note that a row has no sample; its place takes no memory."""
        self._table.failed(failure)

    def finish(self) -> Store:
        """Put everything into its final place and map it; the caller owns the store.

        Raises:
            OSError: The disk is full.
        """
        if isinstance(self.spec, ImageSpec):
            self._close_images(self.spec)
        else:
            self._pack_clips(self.spec)
        rows = self._new_block(ROWS)
        rows.write(self._table.to_buffer(), 0)
        if self._directory is not None:
            os.fsync(self._samples.fd)
            os.fsync(rows.fd)
            for name in (SAMPLES, ROWS):
                if (self._directory / f"{name}.partial").exists():  # mended images are in place already
                    os.replace(self._directory / f"{name}.partial", self._directory / name)
        blocks = [Block(os.dup(block.fd)) for block in (self._samples, rows)]
        store = Store(self.spec, samples=blocks[0], rows=blocks[1], directory=self._directory)
        if self._directory is not None:
            write_manifest(self._directory, store)
        return store

    def _close_images(self, spec: ImageSpec) -> None:
        num_rows, (width, height) = self._table.num_rows, spec.image_size
        self._samples.write(pack_header({"images": ("uint8", (num_rows, height, width, 3))}), 0)
        self._samples.resize(HEADER_BYTES + num_rows * self._image_bytes)

    def _pack_clips(self, spec: AudioSpec) -> None:
        num_rows, old = self._table.num_rows, self._mend
        num_bytes = np.zeros(num_rows, np.int64)
        if old is not None and old.offsets is not None:
            num_bytes[:] = np.diff(old.offsets) * np.dtype(spec.dtype).itemsize
        for slot, (_, clip_bytes) in self._clips.items():
            num_bytes[slot] = clip_bytes
        offsets = np.zeros(num_rows + 1, np.int64)
        np.cumsum(num_bytes // np.dtype(spec.dtype).itemsize, out=offsets[1:])
        header = pack_header({"offsets": ("int64", offsets.shape), "frames": (spec.dtype, (int(offsets[-1]),))})
        self._samples.write(header, 0)
        self._samples.write(offsets, HEADER_BYTES)
        end = HEADER_BYTES + offsets.nbytes
        for slot in range(num_rows):
            if slot in self._clips:
                self._spool.move(*self._clips[slot], to=self._samples, offset=end)
            elif old is not None and num_bytes[slot]:
                self._samples.write(old.sample(slot), end)
            end += int(num_bytes[slot])
        self._samples.resize(end)

    def _new_block(self, name: str) -> Block:
        if self._directory is None:
            return self._resources.enter_context(Block.anonymous(name))
        partial = self._directory / f"{name}.partial"
        partial.unlink(missing_ok=True)
        return self._resources.enter_context(Block.create(partial))

    def __enter__(self) -> StoreWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._resources.close()
        if self._directory is not None and error is not None:
            for name in (SAMPLES, ROWS):
                (self._directory / f"{name}.partial").unlink(missing_ok=True)
