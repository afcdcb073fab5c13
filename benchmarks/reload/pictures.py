"""Pictures and captions made of their number: the same in every process, and none of them on disk.

A picture is smooth, with a little noise on it, so that PNG neither fails nor triumphs. It is made of whole numbers
alone, so that no version of a library rounds it in another way.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

SIDE = 224
BATCH_SIZE = 32
PICTURE_BYTES = SIDE * SIDE * 3

_KNOT_PIXELS = 32
_NUM_NOISES = 16
_NOISE_LEVELS = 16
_LEVELS = 121  # of a row and of a column: twice 120 and the noise make 255


class Pictures(Sequence[dict[str, Any]]):
    """Rows `{"image_url": uint8 (224, 224, 3), "caption": str}`, each made when it is read."""

    def __init__(self, num_samples: int) -> None:
        self._num_samples = num_samples

    def __len__(self) -> int:
        return self._num_samples

    def __getitem__(self, i: Any) -> dict[str, Any]:
        if not 0 <= i < self._num_samples:
            raise IndexError(i)
        return {"image_url": draw(i), "caption": describe(i)}

    @property
    def nbytes(self) -> int:
        """Count the bytes of all pixels."""
        return self._num_samples * PICTURE_BYTES

    @property
    def captions(self) -> list[str]:
        """Give a caption per picture."""
        return [describe(i) for i in range(self._num_samples)]

    @property
    def caption_bytes(self) -> NDArray[np.uint8]:
        """Give the captions as bytes, uint8 (N, L), zeros behind each: for formats that keep no text."""
        texts = np.array([caption.encode() for caption in self.captions])
        return texts.view(np.uint8).reshape(len(texts), -1)

    def all_images(self, into: Any = None) -> Any:
        """Draw all pictures, uint8 (N, 224, 224, 3), into an array that is there or a new one."""
        images = np.empty((self._num_samples, SIDE, SIDE, 3), np.uint8) if into is None else into
        for i in range(self._num_samples):
            images[i] = draw(i)
        return images


def draw(i: int) -> NDArray[np.uint8]:
    """Draw one picture, uint8 (224, 224, 3)."""
    knots = np.random.default_rng([0, i]).integers(0, _LEVELS, (2, SIDE // _KNOT_PIXELS + 1, 3))
    knot, step = np.divmod(np.arange(SIDE), _KNOT_PIXELS)
    step = step[:, None]
    lines = (knots[:, knot] * (_KNOT_PIXELS - step) + knots[:, knot + 1] * step) // _KNOT_PIXELS
    rows, columns = lines.astype(np.uint8)
    picture: NDArray[np.uint8] = rows[:, None] + columns[None] + _noises()[i % _NUM_NOISES]
    return picture


@functools.cache
def _noises() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, _NOISE_LEVELS, (_NUM_NOISES, SIDE, SIDE, 3), dtype=np.uint8)


def describe(i: int) -> str:
    """Write the caption of a picture."""
    return f"a caption of some ten words, as they are in practice, {i}"


def read_captions(rows: Any) -> list[str]:
    """Read captions out of some rows of `Pictures.caption_bytes`, as a tensor."""
    texts: list[bytes] = rows.numpy().view(f"S{rows.shape[1]}").ravel().tolist()
    return [text.decode() for text in texts]


def choose(num_samples: int, seed: int) -> list[int]:
    """Draw the numbers of a batch, in no order, none of them twice."""
    chosen: list[int] = np.random.default_rng(seed).permutation(num_samples)[:BATCH_SIZE].tolist()
    return chosen


def digest_images(images: Any) -> str:
    """Digest a batch, uint8 (B, 224, 224, 3) or (B, 3, 224, 224), array or tensor; how it lies makes no difference."""
    pixels = np.asarray(images)
    if pixels.dtype != np.uint8 or pixels.shape not in {(BATCH_SIZE, SIDE, SIDE, 3), (BATCH_SIZE, 3, SIDE, SIDE)}:
        raise ValueError(f"a batch of {pixels.dtype} {pixels.shape}")
    if pixels.shape[1] == 3:
        pixels = pixels.transpose(0, 2, 3, 1)
    return hashlib.sha256(np.ascontiguousarray(pixels).tobytes()).hexdigest()


def digest_captions(captions: Sequence[str]) -> str:
    """Digest the captions of a batch."""
    return hashlib.sha256("\0".join(captions).encode()).hexdigest()
