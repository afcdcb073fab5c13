"""This library."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from benchmarks.load.contestants.base import Contestant, Where


class Ours(Contestant):
    """From URLs, with all options as they come."""

    name = "in_memory_datasets"
    kind = "ours"
    imports = ("in_memory_datasets:InMemoryImageTextDataset", "in_memory_datasets.decode:decode_image", "torch")
    packages: ClassVar[tuple[str, ...]] = ("in-memory-datasets", "torch", "aiohttp", "simplejpeg")
    configuration = "InMemoryImageTextDataset(rows, fetch=FetchOptions(allow_private_addresses=True))"
    source = "README.md"
    notes = "the server is on this machine, which the option allows"

    def load(self, sources: Sequence[str], captions: Sequence[str], place: Path) -> Any:
        from benchmarks.load.ours import load_pictures, rows_of

        return load_pictures(rows_of(sources))

    def pictures(self, loaded: Any, place: Path) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        from benchmarks.load.ours import pictures_of

        return pictures_of(loaded)


class OursFromFiles(Ours):
    """From files."""

    name = "in_memory_datasets, from files"
    where: ClassVar[Where] = "files"
    configuration = "InMemoryImageTextDataset(rows), whose sources are paths"
    notes = ""
