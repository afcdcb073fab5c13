"""Samples that lie encoded in the block, or some of them: decoded when they are asked for, by all cores."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from in_memory_datasets.decode import decode_image, open_clip
from in_memory_datasets.errors import DecodeError, StoreError
from in_memory_datasets.schema import AudioSpec, ImageSpec
from in_memory_datasets.store import Pieces, Store
from in_memory_datasets.training.crew import Crew
from in_memory_datasets.training.media import HostMedia


@dataclass(frozen=True, slots=True, eq=False)
class EncodedMedia:
    """A store with encoded samples, and the threads that decode them into batches.

    Each sample of a batch is a piece of work of its own, the encoded ones first, so that no thread is left with a long
    one when the others are done.

    Attributes:
        store: Where they lie.
        decoded: Those that lie decoded, the first ones, and the memory for batches.
    """

    store: Store | Pieces
    decoded: HostMedia
    crew: Crew = field(default_factory=lambda: Crew(max_threads=os.cpu_count() or 1))

    @classmethod
    def of(cls, store: Store | Pieces) -> EncodedMedia:
        """Serve a store."""
        decoded = store.frames if store.images is None else store.images
        if decoded is None:
            spec = store.spec
            shape = (0, spec.image_size[1], spec.image_size[0], 3) if isinstance(spec, ImageSpec) else (0,)
            decoded = np.zeros(shape, np.uint8 if isinstance(spec, ImageSpec) else spec.dtype)
        return cls(store, HostMedia(decoded))

    def images(self, numbers: torch.Tensor) -> torch.Tensor:
        """Copy or decode images, (B, H, W, 3), into a buffer; what stands where a sample failed is not said.

        Args:
            numbers: Of the samples, int64 (B,), repeats allowed.

        Raises:
            StoreError: An encoded sample was altered.
        """
        wanted, spec = numbers.numpy(), self.store.spec
        assert isinstance(spec, ImageSpec)
        if not (wanted >= self.store.num_decoded).any():
            return self.decoded.images(numbers)
        batch = self.decoded.empty((len(wanted), spec.image_size[1], spec.image_size[0], 3), torch.uint8)
        target, images = batch.numpy(), self.decoded.samples

        def put(place: int) -> None:
            number = int(wanted[place])
            if number < self.store.num_decoded:
                target[place] = images[number]
            elif data := self.store.read_encoded(number):
                target[place] = self._decode(number, lambda: decode_image(data, spec=spec))

        self._share(put, wanted < self.store.num_decoded)
        return batch

    def clips(self, starts: Sequence[int], lengths: Sequence[int], num_frames: int) -> torch.Tensor:
        """Copy or decode clips as float32 into a zero-padded buffer, (B, T), as `HostMedia.clips` does.

        Args:
            starts: Where each clip begins among the frames of all, decoded or not; below 0 for one that is silence.

        Raises:
            StoreError: An encoded sample was altered.
        """
        offsets, spec = self.store.offsets, self.store.spec
        assert offsets is not None
        assert isinstance(spec, AudioSpec)
        is_decoded = np.asarray(starts) < len(self.decoded.samples)
        if is_decoded.all():
            return self.decoded.clips(starts, lengths, num_frames)
        batch = self.decoded.empty((len(starts), num_frames), torch.float32)
        target, scale = batch.numpy(), np.float32(1 / 32_768)
        # Of clips without a frame, which share their place with the one behind them, none is asked for.
        numbers = np.searchsorted(offsets, starts, side="right") - 1

        def put(place: int) -> None:
            number, start, row = int(numbers[place]), starts[place], target[place]
            length = 0 if start < 0 else lengths[place]
            if is_decoded[place]:
                frames = self.decoded.samples[max(0, start) : max(0, start) + length]
                row[:length] = frames if frames.dtype == np.float32 else frames * scale
            elif length:
                data, begin = self.store.read_encoded(number), start - int(offsets[number])
                row[:length] = self._decode(number, lambda: open_clip(data, spec=spec, start=begin, num_frames=length))
            row[length:] = 0

        self._share(put, is_decoded)
        return batch

    def _decode(self, number: int, decode: Any) -> NDArray[Any]:
        try:
            sample: NDArray[Any] = decode()
        except DecodeError as error:
            table = self.store.table
            firsts = table.first_slots()
            slot = number if firsts is None else int(firsts[number])
            row = int(table.rows_of(np.array([slot]))[0])
            raise StoreError(
                f"sample {row} of {self.store.directory or 'this dataset'} was altered since it was loaded: {error}; "
                'retry_failed(reasons={"checksum"}) loads it again'
            ) from error
        return sample

    def _share(self, put: Any, is_decoded: NDArray[np.bool_]) -> None:
        order = np.argsort(is_decoded, kind="stable").tolist()

        def work(part: slice) -> None:
            for place in order[part]:
                put(place)

        self.crew.share(work, num_items=len(order), num_bytes=len(order), part_bytes=1)

    def close(self) -> None:
        """End the threads; they come back when they are needed."""
        self.crew.close()
        self.decoded.close()
