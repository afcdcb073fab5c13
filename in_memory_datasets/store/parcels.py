"""Samples with their rows on the way from one node to another, and a store made of what has come."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from in_memory_datasets.errors import StoreError
from in_memory_datasets.schema import AudioSpec, ImageSpec
from in_memory_datasets.store.block import Block
from in_memory_datasets.store.layout import HEADER_BYTES, pack_header
from in_memory_datasets.store.pieces import Pieces, copier
from in_memory_datasets.store.store import ROWS, SAMPLES, NewFiles, Store, checksum, save_store
from in_memory_datasets.store.table import LOADED, TableWriter, numbers_of, one_batch

_PARCEL_BYTES = 64 * 2**20


@dataclass(frozen=True, slots=True, eq=False)
class Parcel:
    """Some samples with their rows.

    Pickled by protocol 5 its buffers are handed on as they lie.

    Attributes:
        rows: An Arrow record batch with the columns of rows.arrow, in the order asked for; every row has a sample of
            its own.
        sizes: Bytes of each sample, int64 (m,); 0 of one that failed.
        num_frames: Frames of each clip, int64 (m,); of images 0.
        data: The samples' bytes, end to end, uint8.
    """

    rows: Any
    sizes: NDArray[np.int64]
    num_frames: NDArray[np.int64]
    data: NDArray[np.uint8]


def cut_parcel(pieces: Store | Pieces, slots: NDArray[np.int64]) -> Parcel:
    """Copy some samples with their rows.

    Args:
        pieces: Where they lie, all decoded or all encoded.
        slots: Their rows, in any order, repeats allowed, int64 (m,).

    Raises:
        StoreError: Some lie decoded and some encoded.

    Cost: one copy of the samples.
    """
    if 0 < pieces.num_decoded < pieces.num_unique:
        raise StoreError("samples lie partly decoded and partly encoded, and are sent on only where all lie alike")
    table = pieces.table
    is_loaded, numbers = table.status[slots] == LOADED, table.sample_of(slots)
    num_frames = np.zeros(len(slots), np.int64)
    if pieces.offsets is not None:
        num_frames = np.where(is_loaded, pieces.clip_places(numbers)[1], 0)
    if pieces.images is not None and is_loaded.all():
        images = np.empty((len(slots), *pieces.images.shape[1:]), np.uint8)
        copier(pieces.images, numbers, images)(slice(0, len(slots)))
        sizes = np.full(len(slots), images[:1].nbytes, np.int64)
        return Parcel(table.records(slots), sizes, num_frames, images.reshape(-1))
    samples = [pieces.sample_at(number) for number in numbers[is_loaded].tolist()]
    sizes = np.zeros(len(slots), np.int64)
    sizes[is_loaded] = [sample.nbytes for sample in samples]
    data = [np.zeros(0, np.uint8), *(sample.reshape(-1).view(np.uint8) for sample in samples)]
    return Parcel(table.records(slots), sizes, num_frames, np.concatenate(data))


class ParcelWriter:
    """A store that is made of parcels; a context manager that gives back whatever `finish` has not handed on.

    Every row has a sample of its own, in the order in which they come.

    Args:
        spec: What each sample was turned into.
        encoded: Whether they lie encoded.
        num_rows: How many will come.
        directory: Where to write it as files: a directory that is new, empty, or an older store, which is replaced when
            this is finished; None for memory.

    Raises:
        StoreError: The directory holds something else.
    """

    def __init__(
        self, spec: ImageSpec | AudioSpec, *, encoded: bool, num_rows: int, directory: Path | None = None
    ) -> None:
        encoded = encoded and num_rows > 0  # an empty store says nothing of encoded samples
        self._spec, self._encoded, self._num_rows = spec, encoded, num_rows
        self._image_bytes = 0 if encoded or isinstance(spec, AudioSpec) else spec.image_size[0] * spec.image_size[1] * 3
        num_offsets = (num_rows + 1) * (isinstance(spec, AudioSpec) + encoded)
        self._end = HEADER_BYTES + num_offsets * 8
        self._rows: list[Any] = []
        self._sizes: list[NDArray[np.int64]] = []
        self._frames: list[NDArray[np.int64]] = []
        self._num_come = 0
        self._resources = ExitStack()
        self._files = None if directory is None else self._resources.enter_context(NewFiles(directory))
        self._samples = self._resources.enter_context(self._block(SAMPLES))

    def _block(self, name: str) -> Block:
        return Block.anonymous(name) if self._files is None else Block.create(self._files.partials[name])

    def add(self, parcel: Parcel) -> None:
        """Put what has come into its place.

        Raises:
            StoreError: A sample differs from its checksum, or there are more than were to come.
            OSError: The disk is full.
        """
        num_rows = len(parcel.sizes)
        if self._num_come + num_rows > self._num_rows:
            raise StoreError(f"{self._num_come + num_rows:,} samples have come, expected {self._num_rows:,}")
        self._compare(parcel)
        if not self._image_bytes:
            self._samples.write(parcel.data, self._end)
            self._end += parcel.data.nbytes
        elif parcel.sizes.all():
            self._samples.write(parcel.data, self._end + self._num_come * self._image_bytes)
        else:
            images = parcel.data.reshape(-1, self._image_bytes)
            for image, place in zip(images, np.flatnonzero(parcel.sizes).tolist(), strict=True):
                self._samples.write(image, self._end + (self._num_come + place) * self._image_bytes)
        self._rows.append(parcel.rows)
        self._sizes.append(parcel.sizes)
        self._frames.append(parcel.num_frames)
        self._num_come += num_rows

    def finish(self) -> Store:
        """Write what is known of all, and map the store; the caller owns it.

        Raises:
            StoreError: Not all have come.
            OSError: The disk is full.
        """
        if self._num_come != self._num_rows:
            raise StoreError(f"{self._num_come:,} samples have come, expected {self._num_rows:,}")
        self._write_places()
        rows = self._resources.enter_context(self._block(ROWS))
        rows.write(_to_buffer(self._rows), 0)
        blocks = [Block(os.dup(block.fd)) for block in (self._samples, rows)]
        directory = None if self._files is None else self._files.directory
        store = Store(self._spec, samples=blocks[0], rows=blocks[1], directory=directory)
        if self._files is not None:
            for block in blocks:
                os.fsync(block.fd)
            self._files.declare(store.manifest())
            store.hold()
        return store

    def _write_places(self) -> None:
        num_rows, arrays, numbers = self._num_rows, dict[str, tuple[str, tuple[int, ...]]](), []
        offsets = {"offsets": _offsets(self._frames), "encoded_offsets": _offsets(self._sizes)}
        for name, is_there in (("offsets", isinstance(self._spec, AudioSpec)), ("encoded_offsets", self._encoded)):
            if is_there:
                arrays[name] = "int64", (num_rows + 1,)
                numbers.append(offsets[name])
        if self._encoded:
            arrays["encoded"] = "uint8", (int(offsets["encoded_offsets"][-1]),)
        elif isinstance(self._spec, AudioSpec):
            arrays["frames"] = self._spec.dtype, (int(offsets["offsets"][-1]),)
        else:
            width, height = self._spec.image_size
            arrays["images"] = "uint8", (num_rows, height, width, 3)
            self._end += num_rows * self._image_bytes
        self._samples.write(pack_header(arrays), 0)
        start = HEADER_BYTES
        for each in numbers:
            self._samples.write(each, start)
            start += each.nbytes
        self._samples.resize(self._end)

    def _compare(self, parcel: Parcel) -> None:
        """Compare all that is said of a parcel's samples with their bytes."""
        is_loaded = numbers_of(parcel.rows.column("status"), np.uint8) == LOADED
        expected = numbers_of(parcel.rows.column("checksum"), np.uint64)
        sizes = parcel.sizes
        lengths = sizes  # of encoded samples any
        if self._image_bytes:
            lengths = np.where(is_loaded, self._image_bytes, 0)
        elif isinstance(self._spec, AudioSpec) and not self._encoded:
            lengths = parcel.num_frames * np.dtype(self._spec.dtype).itemsize
        is_wrong = (sizes != lengths) | (~is_loaded & (sizes != 0))
        ends = np.cumsum(sizes)
        for place in np.flatnonzero(is_loaded & ~is_wrong).tolist():
            sample = parcel.data[int(ends[place] - sizes[place]) : int(ends[place])]
            is_wrong[place] = checksum(sample) != int(expected[place])
        if is_wrong.any():
            source = parcel.rows.column("source")[int(np.argmax(is_wrong))].as_py()
            raise StoreError(f"{source} differs from its checksum: it was altered, here or on the way; load it again")

    def __enter__(self) -> ParcelWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._resources.close()


def save_pieces(
    pieces: Pieces, directory: str | os.PathLike[str], *, on_progress: Callable[[int], object] = lambda num_bytes: None
) -> None:
    """Write the rows of several stores, one after the other, into one in a directory, as `save_store` does.

    Its rows are numbered anew, from 0 on. Where there are several stores, each row has a sample of its own there.

    Raises:
        StoreError: The directory holds something else, or a sample was altered.
        OSError: The disk is full or may not be written.
    """
    if len(pieces.stores) == 1:
        save_store(pieces.stores[0], directory, on_progress=on_progress)
        return
    num_rows = pieces.num_samples
    step = max(1, _PARCEL_BYTES * pieces.num_unique // max(1, pieces.nbytes))
    with ParcelWriter(
        pieces.spec, encoded=bool(pieces.encoded), num_rows=num_rows, directory=Path(directory)
    ) as writer:
        for start in range(0, num_rows, step):
            parcel = cut_parcel(pieces, np.arange(start, min(start + step, num_rows)))
            writer.add(parcel)
            on_progress(parcel.data.nbytes)
        writer.finish().close()


def _to_buffer(batches: list[Any]) -> Any:
    if not batches:
        return TableWriter().to_buffer()
    batch = one_batch(batches)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, batch.schema) as file:
        file.write_batch(batch)
    return sink.getvalue()


def _offsets(parts: list[NDArray[np.int64]]) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(np.concatenate([np.zeros(0, np.int64), *parts]))])
