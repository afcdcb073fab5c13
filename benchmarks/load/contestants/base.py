"""What a way to load pictures has to tell and to do.

A module of contestants is imported by the driver too, which has none of the libraries installed, and in environments
that have no other: libraries are imported inside of functions.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from benchmarks.load.checking import Resize

_NUM_REHEARSED = 8

Kind = Literal["ours", "library", "code"]
Where = Literal["web", "files"]


class Contestant(ABC):
    """A way to load pictures.

    Attributes:
        key: What `--contestants` takes.
        name: What the row is called.
        kind: "ours", a "library", or the "code" that people write.
        where: Whether it loads from the "web" or from "files" on this machine.
        imports: What it needs, as "module" or "module:name"; imported before the clock runs.
        packages: Distributions whose versions are told.
        venv: Which virtual environment it runs in: "main" is this project's own.
        share: The share of the pictures that it loads; the slow ones take fewer, since all have to be measured.
        resize: What it makes of pictures that are no squares.
        configuration: How it was set up.
        source: Where that is recommended.
        notes: What else has to be known of the row.
    """

    name: str
    kind: ClassVar[Kind]
    where: ClassVar[Where] = "web"
    imports: ClassVar[tuple[str, ...]]
    packages: ClassVar[tuple[str, ...]]
    venv: ClassVar[str] = "main"
    share: float = 1.0
    resize: ClassVar[Resize] = "stretch"
    configuration: str
    source: ClassVar[str]
    notes: ClassVar[str] = ""

    def __init__(self, key: str) -> None:
        self.key = key

    def rehearse(self, sources: Sequence[str], place: Path) -> None:
        """Load a few pictures before the clock runs: what libraries import or start late is no part of a load."""
        few = place / "rehearsal"
        few.mkdir()
        self.load(sources[:_NUM_REHEARSED], [""] * _NUM_REHEARSED, few)

    @abstractmethod
    def load(self, sources: Sequence[str], captions: Sequence[str], place: Path) -> Any:
        """Load all pictures at 224×224, into memory or into an empty directory; timed."""

    def counted(self, place: Path, seconds: float, cpu_seconds: float, spared: float) -> tuple[float, float]:
        """Give the seconds and the processor time that count, of those of `load` and the latter of `rehearse`."""
        return seconds, cpu_seconds

    @abstractmethod
    def pictures(self, loaded: Any, place: Path) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        """Give every picture with its number; not timed."""
