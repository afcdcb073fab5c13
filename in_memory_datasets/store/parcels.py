"""Samples with their rows on the way from one node to another, and a store made of what has come."""

from __future__ import annotations

import os
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
from in_memory_datasets.store.pieces import Pieces
from in_memory_datasets.store.store import ROWS, SAMPLES, Store, checksum
from in_memory_datasets.store.table import LOADED, TableWriter, numbers_of, one_batch


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


def cut_parcel(pieces: Pieces, slots: NDArray[np.int64]) -> Parcel:
    """Copy some samples with their rows.

    Args:
        pieces: Where they lie.
        slots: Their rows, in any order, repeats allowed, int64 (m,).

    Cost: one copy of the samples.
    """
    table = pieces.table
    is_loaded, numbers = table.status[slots] == LOADED, table.sample_of(slots)
    num_frames = np.zeros(len(slots), np.int64)
    if pieces.offsets is not None:
        num_frames = np.where(is_loaded, pieces.clip_places(numbers)[1], 0)
    if pieces.images is not None and is_loaded.all():
        images = np.empty((len(slots), *pieces.images.shape[1:]), np.uint8)
        pieces.images.take(numbers, axis=0, out=images, mode="clip")
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
        directory: An existing directory to write into; None for memory.
    """

    def __init__(
        self, spec: ImageSpec | AudioSpec, *, encoded: bool, num_rows: int, directory: Path | None = None
    ) -> None:
        encoded = encoded and num_rows > 0  # an empty store says nothing of encoded samples
        self._spec, self._encoded, self._num_rows, self._directory = spec, encoded, num_rows, directory
        self._image_bytes = 0 if encoded or isinstance(spec, AudioSpec) else spec.image_size[0] * spec.image_size[1] * 3
        num_offsets = (num_rows + 1) * (isinstance(spec, AudioSpec) + encoded)
        self._end = HEADER_BYTES + num_offsets * 8
        self._rows: list[Any] = []
        self._sizes: list[NDArray[np.int64]] = []
        self._frames: list[NDArray[np.int64]] = []
        self._num_come = 0
        self._resources = ExitStack()
        self._samples = self._resources.enter_context(self._block(SAMPLES))

    def _block(self, name: str) -> Block:
        return Block.anonymous(name) if self._directory is None else Block.create(self._directory / name)

    def add(self, parcel: Parcel) -> None:
        """Put what has come into its place.

        Raises:
            StoreError: A sample differs from its checksum, or there are more than were to come.
        """
        num_rows = len(parcel.sizes)
        if self._num_come + num_rows > self._num_rows:
            raise StoreError(f"{self._num_come + num_rows:,} samples have come, expected {self._num_rows:,}")
        _compare(parcel)
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
        return Store(self._spec, samples=blocks[0], rows=blocks[1], directory=self._directory)

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

    def __enter__(self) -> ParcelWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._resources.close()


def _compare(parcel: Parcel) -> None:
    expected = numbers_of(parcel.rows.column("checksum"), np.uint64)
    ends = np.cumsum(parcel.sizes)
    for place in np.flatnonzero(parcel.sizes).tolist():
        sample = parcel.data[int(ends[place] - parcel.sizes[place]) : int(ends[place])]
        if checksum(sample) != int(expected[place]):
            source = parcel.rows.column("source")[place].as_py()
            raise StoreError(f"{source} differs from its checksum on the way between two nodes: load it again")


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
