"""The samples of a store where batches are gathered from: the block in memory, or a copy of it on a device.

Samples that lie encoded are another matter, see `encoded`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from in_memory_datasets.errors import MemoryLimitError
from in_memory_datasets.memory import free_memory
from in_memory_datasets.schema import format_bytes
from in_memory_datasets.store import Joined, copier
from in_memory_datasets.training.buffers import BufferPool
from in_memory_datasets.training.crew import Crew
from in_memory_datasets.training.ring import ring_of_worker

_INT16_SCALE = 1 / 32_768
# Less than this is one of many samples that a collate function makes a batch of, and not the batch.
_MIN_RING_BYTES = 2**20


@dataclass(frozen=True, slots=True, eq=False)
class HostMedia:
    """The block in memory, the buffers its batches go to, and the threads that copy them there.

    Attributes:
        samples: Images, uint8 (N, H, W, 3), or the frames of all clips, float32 or int16 (total,).
    """

    samples: NDArray[Any] | Joined
    buffers: BufferPool = field(default_factory=BufferPool)
    crew: Crew = field(default_factory=Crew)

    def images(self, numbers: torch.Tensor) -> torch.Tensor:
        """Copy images, (B, H, W, 3), into a buffer; by the numbers of the samples, int64 (B,), repeats allowed."""
        batch = self.empty((len(numbers), *self.samples.shape[1:]), torch.uint8)
        copy = copier(self.samples, numbers.numpy(), batch.numpy())
        self.crew.share(copy, num_items=len(numbers), num_bytes=batch.nbytes)
        return batch

    def clips(self, starts: Sequence[int], lengths: Sequence[int], num_frames: int) -> torch.Tensor:
        """Copy clips as float32 into a zero-padded buffer, (B, T).

        Args:
            starts: Where each clip begins among the frames; below 0 for one that is silence.
            lengths: Frames of each clip.
            num_frames: T, at least the longest length.
        """
        batch = self.empty((len(starts), num_frames), torch.float32)
        frames, target = self.samples, batch.numpy()
        silence, scale = np.broadcast_to(np.float32(0), num_frames), np.float32(_INT16_SCALE)

        def join(part: slice) -> None:
            pieces = [silence[:0]]  # of which a batch of no clips is made too
            for start, length in zip(starts[part], lengths[part], strict=True):
                pieces += [silence] if start < 0 else [frames[start : start + length], silence[length:]]
            np.concatenate(pieces, out=target[part].reshape(-1))

        def convert(part: slice) -> None:
            for row, start, length in zip(target[part], starts[part], lengths[part], strict=True):
                num_frames = 0 if start < 0 else length
                np.multiply(frames[start : start + num_frames], scale, out=row[:num_frames])
                row[num_frames:] = 0

        copy = join if frames.dtype == np.float32 else convert
        self.crew.share(copy, num_items=len(starts), num_bytes=batch.nbytes)
        return batch

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """Give memory for a batch: in a worker process where the other process sees it too."""
        if (
            (ring := ring_of_worker()) is not None
            and math.prod(shape) * dtype.itemsize >= _MIN_RING_BYTES
            and (batch := ring.empty(shape, dtype)) is not None
        ):
            return batch
        return self.buffers.empty(shape, dtype)

    def close(self) -> None:
        """End the threads; they come back when they are needed."""
        self.crew.close()


@dataclass(frozen=True, slots=True, eq=False)
class DeviceMedia:
    """A copy of the block on a device, where batches are gathered without the host.

    Attributes:
        samples: As in `HostMedia`, as a tensor on the device.
    """

    samples: torch.Tensor

    @classmethod
    def copy_of(cls, samples: NDArray[Any] | Joined, device: torch.device) -> DeviceMedia:
        """Copy a block to a device.

        Raises:
            MemoryLimitError: It does not fit there.
        """
        _refuse_if_too_large(samples.nbytes, device)
        copy = torch.empty(samples.shape, dtype=_TORCH_DTYPES[samples.dtype.name], device=device)
        # In parts, through pinned memory: a block can be as large as what is left of the host's memory.
        flat, step = copy.view(-1), _UPLOAD_BYTES // samples.itemsize
        pinned = torch.empty(min(step, len(flat)), dtype=copy.dtype, pin_memory=device.type == "cuda")
        done = 0
        for source in (each.reshape(-1) for each in (samples.parts if isinstance(samples, Joined) else (samples,))):
            for start in range(0, len(source), step):
                part = pinned[: len(source) - start]
                np.copyto(part.numpy(), source[start : start + step])
                flat[done : done + len(part)].copy_(part)
                done += len(part)
        return cls(copy)

    def images(self, numbers: torch.Tensor) -> torch.Tensor:
        """Gather images, (B, H, W, 3), as `HostMedia.images` does."""
        num_samples, *shape = self.samples.shape
        row_bytes = math.prod(shape)
        # In the widest words that go into an image: byte by byte, a device reaches an eighth of its bandwidth.
        word = next(word for word in _WORDS if row_bytes % word.itemsize == 0)
        batch = torch.index_select(self.samples.view(num_samples, row_bytes).view(word), 0, numbers)
        return batch.view(torch.uint8).view(len(numbers), *shape)

    def clips(self, starts: Sequence[int], lengths: Sequence[int], num_frames: int) -> torch.Tensor:
        """Gather clips as float32, zero-padded, (B, T), as `HostMedia.clips` does; in one kernel for all of them."""
        zeros = self.samples.new_zeros(num_frames)
        pieces = [zeros[:0]]
        for start, length in zip(starts, lengths, strict=True):
            pieces += [zeros] if start < 0 else [self.samples[start : start + length], zeros[length:]]
        batch = torch.cat(pieces).view(len(starts), num_frames)
        return batch if batch.dtype == torch.float32 else batch.to(torch.float32).mul_(_INT16_SCALE)


_WORDS = (torch.int64, torch.int32, torch.int16, torch.uint8)
_TORCH_DTYPES = {"uint8": torch.uint8, "int16": torch.int16, "float32": torch.float32}
_UPLOAD_BYTES = 64 * 2**20


def _refuse_if_too_large(num_bytes: int, device: torch.device) -> None:
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
    elif device.type == "cpu":
        free = free_memory()[0]
    else:  # other devices do not say; their allocator raises where there is no room
        return
    if num_bytes > free:
        raise MemoryLimitError(
            f"the samples take {format_bytes(num_bytes)}, {device} has {format_bytes(free)} free: take fewer samples "
            "(max_samples=), or leave them in memory and use DevicePrefetcher(loader, device)",
            bytes_needed=num_bytes,
            bytes_available=free,
        )
