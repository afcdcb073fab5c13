"""All contestants, in the order of the table, and one of them run in a process of its own."""

from __future__ import annotations

import pkgutil
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.load.checking import Pictures, caption_of, compare_all
from benchmarks.load.contestants.base import Contestant, Kind, Where
from benchmarks.load.contestants.libraries import (
    Img2dataset,
    MapToArrays,
    MapToPictures,
    Monai,
)
from benchmarks.load.contestants.ours import Ours, OursFromFiles
from benchmarks.load.contestants.plain import ProcessPool, ThreadedRequests
from benchmarks.load.figures import Turn, clock

_ALL: list[Contestant] = [
    Ours("ours"),
    Img2dataset("img2dataset-1x64", num_processes=1, num_threads=64),
    Img2dataset("img2dataset-2x32", num_processes=2, num_threads=32),
    Img2dataset("img2dataset-2x128", num_processes=2, num_threads=128),
    ThreadedRequests("requests-16", num_threads=16),
    ThreadedRequests("requests-64", num_threads=64),
    ProcessPool("pool", num_processes=None),
    ProcessPool("pool-16", num_processes=16),
    MapToPictures("map-pictures"),
    MapToArrays("map-arrays"),
    OursFromFiles("ours-files"),
    Monai("monai-files"),
]
# By what `--contestants` takes.
CONTESTANTS: dict[str, Contestant] = {one.key: one for one in _ALL}
# Whom the others of a group are compared with.
OURS: dict[Where, str] = {"web": "ours", "files": "ours-files"}
POOL = "pool"
QUICK = ["ours", "requests-16", "pool", "ours-files"]


def run(task: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Import, wait, load, and compare what came of it."""
    contestant, place = CONTESTANTS[task["key"]], Path(task["place"])
    sources: list[str] = task["sources"]
    captions = [caption_of(i) for i in range(len(sources))]
    for name in contestant.imports:
        pkgutil.resolve_name(name)
    spared = Turn(len(sources))
    with clock(spared):
        contestant.rehearse(sources, place)
    yield {"ready": True}
    input()
    turn = Turn(len(sources))
    with clock(turn):
        loaded = contestant.load(sources, captions, place)
    seconds, cpu = contestant.counted(place, turn.seconds, turn.cpu_seconds, spared.cpu_seconds)
    yield {"seconds": seconds, "cpu_seconds": cpu}
    input()
    pictures = Pictures(Path(task["directory"]), [tuple(size) for size in task["sizes"]])
    distance = compare_all(contestant.pictures(loaded, place), pictures, len(sources), contestant.resize)
    yield {"distance": distance, "versions": {name: version(name) for name in contestant.packages}}


__all__ = ["CONTESTANTS", "OURS", "POOL", "QUICK", "Contestant", "Kind", "Where", "run"]
