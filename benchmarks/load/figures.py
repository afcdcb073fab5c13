"""Turns of contestants, and figures made of them."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from benchmarks.processes.usage import cpu_seconds

Figures = dict[str, Any]


@dataclass(slots=True)
class Turn:
    """One turn of one contestant.

    Attributes:
        num_samples: How many it loaded.
        seconds: How long that took.
        cpu_seconds: User and system time of its process and all below it; 0 where that was not counted.
        found: What else it found out.
    """

    num_samples: int
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    found: Figures = field(default_factory=dict)

    @property
    def per_s(self) -> float:
        """Samples in a second."""
        return self.num_samples / self.seconds

    @property
    def cpu_ms(self) -> float:
        """Milliseconds of processor time per sample."""
        return 1e3 * self.cpu_seconds / self.num_samples


@contextmanager
def clock(turn: Turn, *, collect: bool = True) -> Iterator[None]:
    """Time a block of this process, after a collection of what others left, unless that was done before."""
    if collect:
        gc.collect()
    cpu, started = cpu_seconds(), time.perf_counter()
    yield
    turn.seconds = time.perf_counter() - started
    turn.cpu_seconds = cpu_seconds() - cpu


def alternate(repeats: int, ways: Mapping[str, Callable[[], Turn]], *, warm_up: bool = True) -> dict[str, list[Turn]]:
    """Let contestants take turns, again and again, after one turn each that does not count."""
    for way in ways.values() if warm_up else ():
        way()
    turns: dict[str, list[Turn]] = {name: [] for name in ways}
    for repeat in range(repeats):
        # The machine's moods come and go in minutes: who was first is last the next time.
        for name in list(ways)[:: -1 if repeat % 2 else 1]:
            turns[name].append(ways[name]())
            print(f"  {repeat + 1}/{repeats} {name}: {turns[name][-1].per_s:,.0f}/s", flush=True)
    return turns


def spread(values: Iterable[float]) -> dict[str, float]:
    """Give the median of repeats with the smallest and the largest."""
    listed = sorted(values)
    return {"median": median(listed), "min": listed[0], "max": listed[-1]}


def ratio(turns: Sequence[Turn], to: Sequence[Turn]) -> dict[str, float]:
    """Compare speeds, each repeat with its own."""
    return spread(one.per_s / other.per_s for one, other in zip(turns, to, strict=True))
