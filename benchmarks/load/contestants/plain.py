"""What people write who have no library for it: requests and Pillow, in threads or in processes."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from benchmarks.load.checking import SIDE
from benchmarks.load.contestants.base import Contestant

_of_thread = threading.local()


class ThreadedRequests(Contestant):
    """A pool of threads, a session each, into one array: what a good user writes."""

    kind = "code"
    imports = ("requests", "numpy", "PIL.Image", "PIL.JpegImagePlugin", "concurrent.futures:ThreadPoolExecutor")
    packages: ClassVar[tuple[str, ...]] = ("requests", "pillow")
    source = "https://requests.readthedocs.io/en/latest/user/advanced/#session-objects"
    notes = "draft decodes at a smaller scale, no smaller than twice the size"

    def __init__(self, key: str, *, num_threads: int) -> None:
        super().__init__(key)
        self._num_threads = num_threads
        self.name = f"requests and Pillow, {num_threads} threads"
        self.configuration = (
            f"ThreadPoolExecutor({num_threads}).map: a Session per thread, Image.open, draft, convert, "
            "resize(BICUBIC) into one array"
        )

    def load(self, sources: Sequence[str], captions: Sequence[str], place: Path) -> Any:
        from concurrent.futures import ThreadPoolExecutor

        images = np.empty((len(sources), SIDE, SIDE, 3), np.uint8)

        def load_one(i: int) -> None:
            images[i] = _decode(_get(sources[i]))

        with ThreadPoolExecutor(self._num_threads) as threads:
            for _ in threads.map(load_one, range(len(sources))):
                pass
        return images

    def pictures(self, loaded: Any, place: Path) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        return iter(enumerate(loaded))


def _get(url: str) -> bytes:
    import requests

    if not hasattr(_of_thread, "session"):
        _of_thread.session = requests.Session()
    response = _of_thread.session.get(url, timeout=20)
    response.raise_for_status()
    body: bytes = response.content
    return body


def _decode(body: bytes) -> Any:
    from PIL import Image

    picture = Image.open(io.BytesIO(body))
    picture.draft("RGB", (2 * SIDE, 2 * SIDE))
    return picture.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC)


class ProcessPool(Contestant):
    """A pool of processes, as many as there are cores unless told otherwise: what most people write."""

    kind = "code"
    imports = ("requests", "numpy", "PIL.Image", "PIL.JpegImagePlugin", "multiprocessing:Pool")
    packages: ClassVar[tuple[str, ...]] = ("requests", "pillow")
    source = "https://docs.python.org/3/library/multiprocessing.html"

    def __init__(self, key: str, *, num_processes: int | None) -> None:
        super().__init__(key)
        self._num_processes = num_processes
        number = "" if num_processes is None else f"{num_processes}"
        self.name = f"Pool({number}), requests and Pillow"
        self.share = 0.2 if num_processes is None else 1.0
        self.configuration = f"Pool({number}).imap: requests.get, Image.open, convert, resize(LANCZOS), an array back"

    def load(self, sources: Sequence[str], captions: Sequence[str], place: Path) -> Any:
        from multiprocessing import get_context

        with get_context("fork").Pool(self._num_processes) as pool:
            return list(pool.imap(_get_one, sources, chunksize=4))

    def pictures(self, loaded: Any, place: Path) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        return iter(enumerate(loaded))


def _get_one(url: str) -> Any:
    import requests
    from PIL import Image

    response = requests.get(url, timeout=20)
    response.raise_for_status()
    picture = Image.open(io.BytesIO(response.content)).convert("RGB")
    return np.asarray(picture.resize((SIDE, SIDE), Image.Resampling.LANCZOS))
