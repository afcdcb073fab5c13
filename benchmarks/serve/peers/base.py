"""What a peer has to tell and to do.

A peer's module is imported by the driver too, which has none of the peers installed: libraries are imported inside of
functions.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from benchmarks.serve.job import Media
from benchmarks.serve.samples import Samples

Batch = dict[str, Any]


def _as_it_is(batch: Any) -> Batch:
    made: Batch = batch
    return made


@dataclass(frozen=True, slots=True)
class Feed:
    """An opened dataset with its loader.

    Attributes:
        loader: Iterated once per epoch.
        unpack: Makes of what the loader gives `{"images": uint8 (B, 3, H, W) or (B, H, W, 3), "captions": list,
            "indices": (B,)}`, or `{"audio": float32 (B, T), "lengths": (B,), "captions", "indices"}`. It is timed.
    """

    loader: Iterable[Any]
    unpack: Callable[[Any], Batch] = _as_it_is


class Peer(ABC):
    """A way to serve samples.

    Attributes:
        name: What the row is called.
        packages: Distributions whose versions are told.
        venv: Which virtual environment it runs in: "main" is this project's own.
        media: What it can serve.
        share: The share of the samples that it is measured with. The slow ones take less than all, since all peers have
            to be measured in one go; what they hold in memory hardly depends on it, for they read files.
        min_workers: The smallest number of workers that it can be told.
        stored: What lies where.
        exact: Whether what was stored comes out bit for bit; otherwise it went through JPEG.
        configuration: How it was set up.
        source: Where its makers recommend that.
        notes: What else has to be known of the row.
    """

    name: ClassVar[str]
    packages: ClassVar[tuple[str, ...]] = ("torch",)
    venv: ClassVar[str] = "main"
    media: ClassVar[tuple[Media, ...]] = ("image", "audio")
    share: ClassVar[float] = 1.0
    min_workers: ClassVar[int] = 0
    stored: ClassVar[str]
    exact: ClassVar[bool] = True
    configuration: ClassVar[str]
    source: ClassVar[str]
    notes: ClassVar[str] = ""

    def prepare(self, samples: Samples, place: Path) -> None:  # noqa: B027 - most of those in memory need none
        """Write the peer's own files into an empty directory; not timed."""

    @abstractmethod
    def open(self, samples: Samples, place: Path, num_workers: int, batch_size: int) -> Feed:
        """Open what `prepare` wrote, or read all into memory, and make a shuffling loader of it."""
