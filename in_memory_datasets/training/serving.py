"""How samples at rest become what a training loop sees: layout, output, transforms, padding.

In-memory and on-the-fly datasets differ only in where samples come from; both serve them through here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from in_memory_datasets.errors import ConfigError
from in_memory_datasets.schema import AudioSpec, check_choice
from in_memory_datasets.training.batches import AudioBatch, ImageBatch, pad_clips, stack_images, to_pictures
from in_memory_datasets.training.captions import Captions

ImageOutput = Literal["torch", "numpy", "pil"]
AudioOutput = Literal["torch", "numpy"]
PadTo = Literal["longest", "max"]
Transform = Callable[[Any], Any]

PLACEHOLDER_GREY = 128
PLACEHOLDER_SECONDS = 1
_INT16_SCALE = np.float32(1 / 32_768)


@dataclass(frozen=True, slots=True, eq=False)
class Books:
    """What goes with the media of a batch: captions, row numbers, and which samples are real."""

    captions: list[str | list[str]]
    indices: NDArray[np.int64]
    valid: NDArray[np.bool_]

    def tensors(self) -> dict[str, Any]:
        """Give them as a batch holds them."""
        return {
            "captions": self.captions,
            "indices": torch.from_numpy(self.indices),
            "valid": torch.from_numpy(self.valid),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageServing:
    """How images are served; the arguments are the datasets' own."""

    captions: Captions = "first"
    output: ImageOutput = "torch"
    transform: Transform | None = None
    batch_transform: Transform | None = None

    def __post_init__(self) -> None:
        check_choice("output", self.output, ("torch", "numpy", "pil"))
        _check_common(self.captions, self.transform, self.batch_transform)
        if self.output == "pil" and self.batch_transform is not None:
            raise ConfigError('batch_transform works on a tensor and output="pil" gives pictures: use transform')

    def buffer(self, shape: tuple[int, ...]) -> NDArray[np.uint8]:
        """Give room for a batch, (B, H, W, 3)."""
        # torch's allocation is what later becomes the batch tensor; it is aligned and comes back to torch's allocator
        array: NDArray[np.uint8] = torch.empty(shape, dtype=torch.uint8).numpy()
        return array

    def batch(self, images: NDArray[np.uint8], books: Books) -> ImageBatch:
        """Serve images that were gathered into a buffer of their own, (B, H, W, 3)."""
        served: Any
        if self.output == "torch":
            served = torch.from_numpy(images).permute(0, 3, 1, 2)
        elif self.output == "numpy":
            served = images
        else:
            served = to_pictures(images)
        if self.transform is not None:
            served = stack_images([self.transform(image) for image in served])
        if self.batch_transform is not None:
            served = self.batch_transform(served)
        return ImageBatch(images=served, **books.tensors())


@dataclass(frozen=True, slots=True, kw_only=True)
class AudioServing:
    """How clips are served; the arguments are the datasets' own.

    Raises:
        ValueError: While serving: transforms gave what cannot be padded into one batch.
    """

    captions: Captions = "first"
    output: AudioOutput = "torch"
    transform: Transform | None = None
    batch_transform: Transform | None = None
    pad_to: PadTo = "longest"

    def __post_init__(self) -> None:
        check_choice("output", self.output, ("torch", "numpy"))
        check_choice("pad_to", self.pad_to, ("longest", "max"))
        _check_common(self.captions, self.transform, self.batch_transform)

    def batch(self, clips: Sequence[NDArray[Any]], books: Books, *, spec: AudioSpec) -> AudioBatch:
        """Serve clips as they lie at rest, float32 or int16, (num_frames,); they are copied once, into the batch."""
        if self.transform is None:
            audio, lengths = self._pad(clips, spec)
        else:
            waves = [to_waveform(clip) for clip in clips]
            outputs = [torch.from_numpy(wave) for wave in waves] if self.output == "torch" else waves
            transformed = [self.transform(wave) for wave in outputs]
            audio, lengths = pad_clips(transformed, self._frames_of_batch(transformed, spec))
        num_frames = audio.shape[-1]
        if self.batch_transform is not None:
            audio = self.batch_transform(audio)
        return AudioBatch(
            audio=audio,
            lengths=lengths,
            sampling_rate=spec.target_sr,
            padded=getattr(audio, "shape", (0,))[-1] == num_frames,
            **books.tensors(),
        )

    def _frames_of_batch(self, transformed: Sequence[Any], spec: AudioSpec) -> int | None:
        """Give what a transform's clips are padded to; None for the longest of them."""
        if self.pad_to == "longest":
            return None
        shapes = {tuple(clip.shape) for clip in transformed if clip.ndim != 1 or len(clip) > spec.max_frames}
        if shapes:
            raise ValueError(
                f'pad_to="max" pads waveforms to the {spec.max_frames:,} frames of max_duration, and transform gave '
                f'shapes {sorted(shapes)}: take pad_to="longest", or make features in batch_transform'
            )
        return spec.max_frames

    def _pad(self, clips: Sequence[NDArray[Any]], spec: AudioSpec) -> tuple[Any, torch.Tensor]:
        lengths = [len(clip) for clip in clips]
        num_frames = spec.max_frames if self.pad_to == "max" else max(lengths)
        batch = torch.empty((len(clips), num_frames), dtype=torch.float32)
        for row, clip in zip(batch.numpy(), clips, strict=True):
            to_waveform(clip, out=row[: len(clip)])
            row[len(clip) :] = 0
        return (batch if self.output == "torch" else batch.numpy()), torch.tensor(lengths, dtype=torch.int64)


def silence(spec: AudioSpec) -> NDArray[np.float32]:
    """Give what is served for a clip that failed: one second of zeros, or `max_duration` where that is less."""
    return np.zeros(min(PLACEHOLDER_SECONDS * spec.target_sr, spec.max_frames), np.float32)


def to_waveform(clip: NDArray[Any], out: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
    """Copy a clip at rest into float32 in [-1, 1], (num_frames,)."""
    if out is None:
        out = np.empty(len(clip), np.float32)
    if clip.dtype == np.int16:
        np.multiply(clip, _INT16_SCALE, out=out)
    else:
        np.copyto(out, clip)
    return out


def _check_common(captions: object, transform: object, batch_transform: object) -> None:
    check_choice("captions", captions, ("first", "random", "all"))
    for name, function in (("transform", transform), ("batch_transform", batch_transform)):
        if function is not None and not callable(function):
            raise ConfigError(f"{name}={function!r}: expected a callable or None")
