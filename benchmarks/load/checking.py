"""Pictures that were drawn, and whether those that came out of a load are the same. Needs NumPy alone."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

SIDE = 224
SMALL_SIDE = 64
Resize = Literal["stretch", "crop"]

# What lossy stores and other filters may put between a picture and its reference, in grey levels of mean distance.
# Two different pictures lie 25 and more apart.
TOLERANCE = 6.0
# Pieces in a row and in a column of which the means are compared, where a picture was cropped.
_NUM_PIECES = 28


@dataclass(frozen=True, slots=True)
class Pictures:
    """Files in a directory.

    Attributes:
        directory: Where they lie, as NNNNN.jpg.
        sizes: (width, height) of each.
    """

    directory: Path
    sizes: list[tuple[int, int]]

    def __len__(self) -> int:
        return len(self.sizes)

    @property
    def names(self) -> list[str]:
        """What the files are called."""
        return [name_of(i) for i in range(len(self))]

    @property
    def paths(self) -> list[str]:
        """Where the files lie."""
        return [str(self.directory / name) for name in self.names]

    def read(self) -> list[bytes]:
        """Read them all."""
        return [Path(path).read_bytes() for path in self.paths]

    def references(self) -> NDArray[np.uint8]:
        """Map what they look like, (N, side, side, 3): a full decode and a bicubic resize by Pillow."""
        mapped: NDArray[np.uint8] = np.load(self.directory / "references.npy", mmap_mode="r")
        return mapped


def name_of(i: int) -> str:
    """Name the file of a picture."""
    return f"{i:05}.jpg"


def caption_of(i: int) -> str:
    """Write the caption of a sample."""
    return f"a caption of some ten words, as they are in practice, {i}"


def compare_all(
    found: Iterable[tuple[int, NDArray[np.uint8]]], pictures: Pictures, num_expected: int, resize: Resize = "stretch"
) -> float:
    """Compare pictures, given with their numbers in any order; give the largest mean distance in grey levels.

    Raises:
        ValueError: One is another or of another size, is missing, or comes twice.
    """
    references, seen, worst = pictures.references(), set(), 0.0
    for i, image in found:
        reference = references[i]
        if image.dtype != np.uint8 or image.shape != reference.shape:
            raise ValueError(f"picture {i} is {image.dtype} {image.shape}, expected uint8 {reference.shape}")
        if resize == "crop":
            distance = _distance_cropped(image, reference, pictures.sizes[i])
        else:
            distance = float(np.abs(image.astype(np.int16) - reference).mean())
        if distance > TOLERANCE:
            raise ValueError(f"picture {i} lies {distance:.1f} grey levels from what Pillow makes of its file")
        if i in seen:
            raise ValueError(f"picture {i} came twice")
        seen.add(i)
        worst = max(worst, distance)
    if seen != set(range(num_expected)):
        raise ValueError(f"{len(seen):,} pictures, expected the first {num_expected:,}")
    return worst


def _distance_cropped(image: NDArray[np.uint8], reference: NDArray[np.uint8], size: tuple[int, int]) -> float:
    """Compare the middle of a picture with the same part of the whole one: what of it is kept has another scale."""
    height, width = reference.shape[:2]
    kept_width, kept_height = width * min(1.0, size[1] / size[0]), height * min(1.0, size[0] / size[1])
    part = _means(_means(reference.astype(np.float64), (width - kept_width) / 2, kept_width, axis=1),
                  (height - kept_height) / 2, kept_height, axis=0)  # fmt: skip
    whole = _means(_means(image.astype(np.float64), 0, width, axis=1), 0, height, axis=0)
    return float(np.abs(part - whole).mean())


def _means(values: NDArray[np.float64], first: float, length: float, *, axis: int) -> NDArray[np.float64]:
    """Take the means of equally long pieces of a part of an axis, whose bounds may lie within a pixel."""
    sums = np.insert(np.cumsum(values, axis=axis), 0, 0.0, axis=axis)
    bounds = first + length * np.arange(_NUM_PIECES + 1) / _NUM_PIECES
    below = np.minimum(bounds.astype(int), values.shape[axis] - 1)
    shape = [1] * values.ndim
    shape[axis] = -1
    share = (bounds - below).reshape(shape)
    at_bounds = sums.take(below, axis) * (1 - share) + sums.take(below + 1, axis) * share
    means: NDArray[np.float64] = np.diff(at_bounds, axis=axis) * (_NUM_PIECES / length)
    return means
