"""This library, loading; timed by whoever calls."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.load.checking import caption_of
from in_memory_datasets import FetchOptions, InMemoryAudioTextDataset, InMemoryImageTextDataset

LOOPBACK = FetchOptions(allow_private_addresses=True)  # the server is on this machine; all else as it comes
_BATCH_SIZE = 64


def rows_of(sources: Sequence[Any], column: str = "image_url") -> list[dict[str, Any]]:
    """Make rows of sources, with captions."""
    return [{column: source, "caption": caption_of(i)} for i, source in enumerate(sources)]


def load_pictures(rows: Any, **arguments: Any) -> InMemoryImageTextDataset:
    """Load pictures as a user would."""
    return InMemoryImageTextDataset(rows, **{"fetch": LOOPBACK, "progress": False, **arguments})


def load_clips(rows: Any, **arguments: Any) -> InMemoryAudioTextDataset:
    """Load clips as a user would."""
    return InMemoryAudioTextDataset(rows, **{"fetch": LOOPBACK, "progress": False, **arguments})


def pictures_of(dataset: InMemoryImageTextDataset) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """Give every picture with its number.

    Raises:
        ValueError: One was not loaded.
    """
    for i, sample in _samples_of(dataset):
        yield i, sample["image"].numpy().transpose(1, 2, 0)


def clips_of(dataset: InMemoryAudioTextDataset) -> list[NDArray[np.float32]]:
    """Give every clip.

    Raises:
        ValueError: One was not loaded.
    """
    return [sample["audio"].numpy() for _, sample in _samples_of(dataset)]


def _samples_of(dataset: Any) -> Iterator[tuple[int, dict[str, Any]]]:
    for first in range(0, len(dataset), _BATCH_SIZE):
        numbers = range(first, min(first + _BATCH_SIZE, len(dataset)))
        for i, sample in zip(numbers, dataset.__getitems__(list(numbers)), strict=True):
            if not sample["valid"] or sample["index"] != i or sample["caption"] != caption_of(i):
                raise ValueError(f"sample {i} was not loaded, or has another caption")
            yield i, sample
