"""What a way to keep samples has to tell and to do.

A module of contestants is imported by the driver too, which has none of the libraries installed, and by processes whose
imports are timed: libraries are imported inside of functions.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from benchmarks.reload.pictures import BATCH_SIZE, Pictures

Kind = Literal["ours", "floor", "decoded", "encoded"]


class Contestant(ABC):
    """A way to keep samples between two processes.

    Attributes:
        name: What the row is called.
        kind: "ours"; "floor" is bare and no way that anybody would choose for its own sake; of the others, whether they
            keep pixels ("decoded") or something to be decoded.
        imports: What opening and the batch need, as "module" or "module:name"; imported before the clock runs.
        packages: Distributions whose versions are told.
        venv: Which virtual environment it runs in: "main" is this project's own.
        has_captions: Whether captions come with the batch.
        memory_copies: How often the pixels lie in memory at once when a batch comes from a warm file: in the page
            cache, and in what was made of it.
        disk_copies: How often they lie on disk at most, while its files are made.
        configuration: How a batch is had, by what a DataLoader calls.
        source: Where its makers recommend that.
        notes: What else has to be known of the row.
    """

    name: ClassVar[str]
    kind: ClassVar[Kind] = "decoded"
    imports: ClassVar[tuple[str, ...]]
    packages: ClassVar[tuple[str, ...]] = ("torch",)
    venv: ClassVar[str] = "main"
    has_captions: ClassVar[bool] = True
    memory_copies: ClassVar[float] = 1.0
    disk_copies: ClassVar[float] = 1.0
    configuration: ClassVar[str]
    source: ClassVar[str]
    notes: ClassVar[str] = ""

    @abstractmethod
    def prepare(self, pictures: Pictures, place: Path) -> None:
        """Write the files into an empty directory; not timed."""

    @abstractmethod
    def open(self, place: Path) -> Any:
        """Open what `prepare` wrote; timed."""

    @abstractmethod
    def first_batch(self, opened: Any, indices: list[int]) -> tuple[Any, Sequence[str] | None]:
        """Give a batch, uint8 (B, 3, H, W) or (B, H, W, 3) tensor, with its captions, out of a DataLoader; timed."""


class Indexed(Contestant):
    """A way that gives a batch when it is told which samples; a DataLoader tells it."""

    @abstractmethod
    def take(self, opened: Any, indices: list[int]) -> tuple[Any, Sequence[str] | None]:
        """Give a batch as `first_batch` does."""

    def first_batch(self, opened: Any, indices: list[int]) -> tuple[Any, Sequence[str] | None]:
        from torch.utils.data import DataLoader

        rows: Any = _Rows(self, opened)
        batch: tuple[Any, Sequence[str] | None] = next(
            iter(DataLoader(rows, batch_size=BATCH_SIZE, sampler=indices, collate_fn=_as_it_is, num_workers=0))
        )
        return batch


@dataclass(frozen=True, slots=True)
class _Rows:
    """What a DataLoader asks for a whole batch at a time."""

    way: Indexed
    opened: Any

    def __getitems__(self, indices: list[int]) -> tuple[Any, Sequence[str] | None]:
        return self.way.take(self.opened, indices)


def _as_it_is(batch: Any) -> Any:
    return batch
