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
from in_memory_datasets.schema import AudioDtype, AudioSpec, check_choice
from in_memory_datasets.training.batches import AudioBatch, ImageBatch, pad_clips, stack_images, to_pictures
from in_memory_datasets.training.turns import Captions, Crop, Draws

ImageOutput = Literal["torch", "numpy", "pil"]
AudioOutput = Literal["torch", "numpy"]
PadTo = Literal["longest", "max"]
Transform = Callable[[Any], Any]

PLACEHOLDER_GREY = 128
PLACEHOLDER_SECONDS = 1
_KEPT_WINDOWS = 4  # of a clip that random parts are cut from, unless it is told


@dataclass(frozen=True, slots=True, eq=False)
class Books:
    """What goes with the media of a batch: captions, row numbers, and which samples are real."""

    captions: list[Any]
    indices: torch.Tensor
    valid: torch.Tensor

    def to(self, device: torch.device) -> Books:
        """Give them with their tensors on a device."""
        if device.type == "cpu":
            return self
        return Books(self.captions, self.indices.to(device), self.valid.to(device))

    def fields(self) -> dict[str, Any]:
        """Give them as a batch holds them."""
        return {"captions": self.captions, "indices": self.indices, "valid": self.valid}


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

    @property
    def by_chance(self) -> bool:
        """Tell whether a sample is served in another way each time."""
        return self.captions == "random"

    def batch(self, images: torch.Tensor, books: Books) -> ImageBatch:
        """Serve images that lie in memory of their own, (B, H, W, 3)."""
        served: Any
        if self.output == "torch":
            served = images.permute(0, 3, 1, 2)
        elif self.output == "numpy":
            served = images.numpy()
        else:
            served = to_pictures(images.numpy())
        if self.transform is not None:
            served = stack_images([self.transform(image) for image in served])
        if self.batch_transform is not None:
            served = self.batch_transform(served)
        return ImageBatch(images=served, **books.fields())


@dataclass(frozen=True, slots=True, kw_only=True)
class AudioServing:
    """How clips are served; the arguments are the datasets' own, but for the window.

    Attributes:
        window_seconds: How much of a clip is served; None for all that is kept.

    Raises:
        ValueError: While serving: transforms gave what cannot be padded into one batch.
    """

    captions: Captions = "first"
    output: AudioOutput = "torch"
    transform: Transform | None = None
    batch_transform: Transform | None = None
    pad_to: PadTo = "longest"
    crop: Crop = "start"
    window_seconds: float | None = None

    def __post_init__(self) -> None:
        check_choice("output", self.output, ("torch", "numpy"))
        check_choice("pad_to", self.pad_to, ("longest", "max"))
        check_choice("crop", self.crop, ("start", "random"))
        _check_common(self.captions, self.transform, self.batch_transform)

    @property
    def by_chance(self) -> bool:
        """Tell whether a sample is served in another way each time."""
        return self.captions == "random" or self.crop == "random"

    def max_frames(self, spec: AudioSpec) -> int:
        """Count the frames of the longest clip that is served."""
        if self.window_seconds is None:
            return spec.max_frames
        return min(spec.max_frames, round(self.window_seconds * spec.target_sr))

    def cut(
        self, starts: NDArray[np.int64], lengths: NDArray[np.int64], draws: Draws | None, spec: AudioSpec
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Choose what is served of clips that begin there and are that long: where it begins, and how long it is."""
        windows = np.minimum(lengths, self.max_frames(spec))
        if self.crop == "start" or draws is None:
            return starts, windows
        return starts + draws.crops(lengths - windows + 1), windows

    def placeholder_frames(self, spec: AudioSpec) -> int:
        """Count the frames of silence that stand for a clip that failed: a second, or the longest clip where less."""
        return min(PLACEHOLDER_SECONDS * spec.target_sr, self.max_frames(spec))

    def batch(self, waveforms: Sequence[torch.Tensor], books: Books, *, spec: AudioSpec) -> AudioBatch:
        """Serve waveforms that lie in memory of their own, (num_frames,), after `transform`, padded."""
        clips: Sequence[Any] = waveforms if self.output == "torch" else [waveform.numpy() for waveform in waveforms]
        if self.transform is not None:
            clips = [self.transform(clip) for clip in clips]
        audio, lengths = pad_clips(clips, self._num_frames(clips, spec))
        return self._finish(audio, lengths, books, spec)

    def padded(self, audio: torch.Tensor, lengths: torch.Tensor, books: Books, *, spec: AudioSpec) -> AudioBatch:
        """Serve a batch that is padded already, (B, T); for where there is no `transform`."""
        return self._finish(audio if self.output == "torch" else audio.numpy(), lengths, books, spec)

    def _finish(self, audio: Any, lengths: torch.Tensor, books: Books, spec: AudioSpec) -> AudioBatch:
        num_frames = audio.shape[-1]
        if self.batch_transform is not None:
            audio = self.batch_transform(audio)
        return AudioBatch(
            audio=audio,
            lengths=lengths,
            sampling_rate=spec.target_sr,
            padded=getattr(audio, "shape", (0,))[-1] == num_frames,
            **books.fields(),
        )

    def _num_frames(self, clips: Sequence[Any], spec: AudioSpec) -> int | None:
        """Give what clips are padded to; None for the longest of them."""
        if self.pad_to == "longest":
            return None
        max_frames = self.max_frames(spec)
        shapes = {tuple(clip.shape) for clip in clips if clip.ndim != 1 or len(clip) > max_frames}
        if shapes:
            raise ValueError(
                f'pad_to="max" pads waveforms to the {max_frames:,} frames of max_duration, and transform gave '
                f'shapes {sorted(shapes)}: take pad_to="longest", or make features in batch_transform'
            )
        return max_frames


def clip_spec(
    target_sr: int, max_duration: float, dtype: AudioDtype, crop: Crop, keep_duration: float | None
) -> AudioSpec:
    """Give what lies at rest, so that `max_duration` seconds of each clip can be served.

    Raises:
        ConfigError: A number is out of range, or less would be kept than is served.
    """
    served = AudioSpec(target_sr, max_duration, dtype)
    if crop != "random":
        if keep_duration is not None:
            raise ConfigError('keep_duration= is for crop="random"; from the start, max_duration is all that is kept')
        return served
    kept = AudioSpec(target_sr, _KEPT_WINDOWS * max_duration if keep_duration is None else keep_duration, dtype)
    if kept.max_frames < served.max_frames:
        raise ConfigError(f"keep_duration={keep_duration!r}: expected at least max_duration, {max_duration!r} seconds")
    return kept


def _check_common(captions: object, transform: object, batch_transform: object) -> None:
    check_choice("captions", captions, ("first", "random", "all"))
    for name, function in (("transform", transform), ("batch_transform", batch_transform)):
        if function is not None and not callable(function):
            raise ConfigError(f"{name}={function!r}: expected a callable or None")
