"""How a dataset that does not fit decoded is divided: decoded as far as the memory goes, the rest encoded.

All must be in memory first, in the form that takes least; what is left then goes to decoding samples, from the front.
That order never lets a sample go to the disk so that another may lie decoded: the disk costs most.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from in_memory_datasets.decode import decode_audio, decode_image, keep_clip, keep_image
from in_memory_datasets.schema import AudioSpec, ImageSpec
from in_memory_datasets.store import HEADER_BYTES, Promotion, StoreWriter


def make_sample(data: Any, *, spec: ImageSpec | AudioSpec, name: str, encoded: bool) -> tuple[NDArray[Any], int]:
    """Make what is kept of a sample out of what was fetched.

    Returns:
        The decoded sample, or the bytes of the encoded one, uint8; and of an encoded clip the frames it decodes to.

    Raises:
        DecodeError: It cannot be decoded; encoded samples are decoded once too, so that what fails is known now.
    """
    if isinstance(spec, ImageSpec):
        pixels = decode_image(data, spec=spec, name=name)
        return (np.frombuffer(keep_image(data, pixels, spec=spec), np.uint8) if encoded else pixels), 0
    if not encoded:
        return decode_audio(data, spec=spec, name=name), 0
    clip = decode_audio(data, spec=replace(spec, dtype="int16"), name=name)
    return np.frombuffer(keep_clip(clip, spec=spec), np.uint8), len(clip)


def max_sample_bytes(spec: ImageSpec | AudioSpec) -> int:
    """Give the most that a decoded sample takes."""
    if isinstance(spec, ImageSpec):
        return spec.image_size[0] * spec.image_size[1] * 3
    return spec.max_frames * np.dtype(spec.dtype).itemsize


def promote_what_fits(
    writer: StoreWriter, *, num_bytes: int, num_threads: int, on_progress: Callable[[int], object]
) -> Promotion:
    """Choose how many of the encoded samples of a writer to decode, so that the store takes at most `num_bytes`."""
    spec = writer.spec
    encoded, num_frames = writer.sizes()
    if isinstance(spec, ImageSpec):
        # Failed ones too: their places are holes, which may be filled later.
        decoded, num_offsets = np.full(len(encoded), max_sample_bytes(spec)), len(encoded) + 1
    else:
        decoded, num_offsets = num_frames * np.dtype(spec.dtype).itemsize, 2 * (len(encoded) + 1)
    beside_the_media = writer.rows_nbytes() + HEADER_BYTES + num_offsets * encoded.itemsize
    return Promotion(
        num_decoded=num_decoded_that_fit(encoded, decoded, num_bytes - beside_the_media),
        decode=functools.partial(_decode, spec=spec),
        num_threads=num_threads,
        on_progress=on_progress,
    )


def num_decoded_that_fit(encoded: NDArray[np.int64], decoded: NDArray[np.int64], num_bytes: int) -> int:
    """Count how many samples, from the front, can lie decoded while all others lie encoded.

    Args:
        encoded: Bytes of each sample encoded, int64 (N,).
        decoded: And decoded.
        num_bytes: What all may take together.

    Example:
        >>> num_decoded_that_fit(np.array([10, 10, 10]), np.array([100, 100, 100]), 220)
        2
        >>> num_decoded_that_fit(np.array([10, 10, 10]), np.array([100, 100, 100]), 20)
        0
    """
    totals = encoded.sum() + np.concatenate([[0], np.cumsum(decoded - encoded)])
    fitting = np.flatnonzero(totals <= num_bytes)
    return int(fitting[-1]) if len(fitting) else 0


def _decode(encoded: memoryview, *, spec: ImageSpec | AudioSpec) -> NDArray[Any]:
    sample, _ = make_sample(bytes(encoded), spec=spec, name="", encoded=False)
    return sample
