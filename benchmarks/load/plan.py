"""How much is measured."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Plan:
    """How much one run measures, and with what.

    Attributes:
        build: Where inputs and environments are kept.
        num_photos: Pictures like photographs.
        num_small: Pictures that cost next to nothing to decode.
        num_clips: Clips.
        num_rows: Rows of the large dataset.
        num_threads: Decode threads of all that decode in threads.
        repeats: Of what takes seconds.
        slow_repeats: Of what takes longer.
        contestants: Keys of those to run side by side.
        num_processes: Worker processes that load where those are measured.
        versions: Of distributions that were met on the way.
    """

    build: Path
    num_photos: int
    num_small: int
    num_clips: int
    num_rows: int
    num_threads: int
    repeats: int
    slow_repeats: int
    contestants: list[str]
    num_processes: int = 2
    versions: dict[str, str] = field(default_factory=dict)
