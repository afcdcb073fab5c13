"""Batches that are already contiguous, and the collate functions that hand them on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from in_memory_datasets.training.parcel import ready_to_send

Sample = dict[str, Any]
Caption = str | list[str]


@dataclass(frozen=True, slots=True, eq=False)
class ImageBatch(Sequence[Sample]):
    """What `__getitems__` of an image dataset returns: a sequence of samples that lies in one piece.

    Attributes:
        images: uint8 (B, 3, H, W), channels_last in memory; or numpy (B, H, W, 3); or a list of pictures; or what the
            transforms made of them.
        captions: B captions, or B lists of them.
        indices: int64 (B,), row numbers.
        valid: bool (B,), False for placeholders.
    """

    images: Any
    captions: list[Caption]
    indices: torch.Tensor
    valid: torch.Tensor

    def __len__(self) -> int:
        return len(self.captions)

    def __getitem__(self, i: Any) -> Any:
        return {
            "image": self.images[i],
            "caption": self.captions[i],
            "index": int(self.indices[i]),
            "valid": bool(self.valid[i]),
        }


@dataclass(frozen=True, slots=True, eq=False)
class AudioBatch(Sequence[Sample]):
    """What `__getitems__` of an audio dataset returns: a sequence of samples that lies in one piece.

    Attributes:
        audio: float32 (B, T), zero-padded, torch or numpy; or what the transforms made of it.
        lengths: int64 (B,), frames of each clip before the padding.
        captions: B captions, or B lists of them.
        indices: int64 (B,), row numbers.
        valid: bool (B,), False for placeholders.
        sampling_rate: Hz.
        padded: Whether the last axis of `audio` still counts what `lengths` does.
    """

    audio: Any
    lengths: torch.Tensor
    captions: list[Caption]
    indices: torch.Tensor
    valid: torch.Tensor
    sampling_rate: int
    padded: bool = True

    def __len__(self) -> int:
        return len(self.captions)

    def __getitem__(self, i: Any) -> Any:
        clip = self.audio[i]
        return {
            "audio": clip[..., : int(self.lengths[i])] if self.padded else clip,
            "sampling_rate": self.sampling_rate,
            "caption": self.captions[i],
            "index": int(self.indices[i]),
            "valid": bool(self.valid[i]),
        }


def collate_images(samples: Sequence[Sample]) -> dict[str, Any]:
    """Make one batch of image samples; a batch that is one already is handed on without a copy.

    Args:
        samples: What a dataset's `__getitems__` returned, or a list of its samples.

    Returns:
        `{"images": uint8 (B, 3, H, W) channels_last, "captions": list, "indices": int64 (B,), "valid": bool (B,)}`;
        images as numpy (B, H, W, 3) or as a list where the dataset's `output` says so.

    Raises:
        RuntimeError: The images differ in shape, which only a transform can bring about.

    Example:
        >>> samples = [{"image": torch.zeros(3, 4, 4), "caption": "a dot", "index": 7, "valid": True}]
        >>> collate_images(samples)["images"].shape
        torch.Size([1, 3, 4, 4])
    """
    if isinstance(samples, ImageBatch):
        images, captions, indices, valid = samples.images, samples.captions, samples.indices, samples.valid
    else:
        images = stack_images([sample["image"] for sample in samples])
        captions, indices, valid = _books(samples)
    return ready_to_send({"images": images, "captions": captions, "indices": indices, "valid": valid})


def collate_audio(samples: Sequence[Sample]) -> dict[str, Any]:
    """Make one batch of audio samples, padded to the longest; a batch that is one already is handed on without a copy.

    Args:
        samples: What a dataset's `__getitems__` returned, or a list of its samples.

    Returns:
        `{"audio": float32 (B, T), "lengths": int64 (B,), "captions": list, "indices": int64 (B,), "valid": bool (B,)}`.

    Raises:
        ValueError: The clips differ in more than their length, which only a transform can bring about.

    Example:
        >>> samples = [{"audio": torch.ones(n), "caption": "", "index": n, "valid": True} for n in (2, 3)]
        >>> batch = collate_audio(samples)
        >>> batch["audio"].tolist(), batch["lengths"].tolist()
        ([[1.0, 1.0, 0.0], [1.0, 1.0, 1.0]], [2, 3])
    """
    if isinstance(samples, AudioBatch):
        audio, lengths = samples.audio, samples.lengths
        captions, indices, valid = samples.captions, samples.indices, samples.valid
    else:
        audio, lengths = pad_clips([sample["audio"] for sample in samples])
        captions, indices, valid = _books(samples)
    return ready_to_send({"audio": audio, "lengths": lengths, "captions": captions, "indices": indices, "valid": valid})


# In the words of the three lines; the same functions serve both kinds of dataset.
collate_in_memory_images = collate_images
collate_in_memory_audio = collate_audio


def stack_images(images: list[Any]) -> Any:
    """Stack tensors or arrays of one shape; anything else (pictures) stays a list."""
    if all(isinstance(image, torch.Tensor) for image in images):
        if all(image.ndim == 3 and image.permute(1, 2, 0).is_contiguous() for image in images):
            return torch.stack([image.permute(1, 2, 0) for image in images]).permute(0, 3, 1, 2)
        return torch.stack(images)
    if all(isinstance(image, np.ndarray) for image in images):
        return np.stack(images)
    return images


def pad_clips(clips: Sequence[Any], num_frames: int | None = None) -> tuple[Any, torch.Tensor]:
    """Lay clips into one zero-padded array, (B, ..., T), and count the frames of each.

    Args:
        clips: Tensors or arrays that differ at most in their last axis, time.
        num_frames: T; None takes the longest clip's.

    Raises:
        ValueError: They differ in more than their length.
    """
    lengths = torch.tensor([clip.shape[-1] for clip in clips], dtype=torch.int64)
    shape = clips[0].shape[:-1]
    if any(clip.shape[:-1] != shape for clip in clips):
        raise ValueError(
            f"clips of shapes {sorted({tuple(clip.shape) for clip in clips})} cannot be padded into one batch: "
            "all axes but the last (time) must agree"
        )
    padded_shape = (len(clips), *shape, int(lengths.max()) if num_frames is None else num_frames)
    tensors = isinstance(clips[0], torch.Tensor)
    padded: Any = torch.zeros(padded_shape, dtype=clips[0].dtype) if tensors else np.zeros(padded_shape, clips[0].dtype)
    for row, clip in zip(padded, clips, strict=True):
        row[..., : clip.shape[-1]] = clip
    return padded, lengths


def to_pictures(images: NDArray[np.uint8]) -> list[Image.Image]:
    """Make a PIL picture of each image, (B, H, W, 3)."""
    return [Image.fromarray(image) for image in images]


def _books(samples: Sequence[Sample]) -> tuple[list[Caption], torch.Tensor, torch.Tensor]:
    return (
        [cast("Caption", sample["caption"]) for sample in samples],
        torch.tensor([sample["index"] for sample in samples], dtype=torch.int64),
        torch.tensor([sample["valid"] for sample in samples], dtype=torch.bool),
    )
