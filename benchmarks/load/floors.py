"""What loading could cost at the least: bare loops that decode, and a loader written for nothing but this."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue

import aiohttp
import numpy as np
from numpy.typing import NDArray

from in_memory_datasets.decode import decode_audio, decode_image
from in_memory_datasets.schema import AudioSpec, ImageSpec

DESCRIPTION = (
    "The bare loop decodes and resizes the same bytes, already in memory, with the library's own decoder on the same "
    "number of threads, each of which takes the next number and assigns the picture to its row of one array that was "
    "there and touched before; of clips, to their place in one array."
)
MINIMAL_DESCRIPTION = (
    "The minimal loader was written for nothing else: bare aiohttp, as many coroutines as suit it best, bodies through "
    "a queue to the same number of decode threads, and into such an array; no retries, limits, checksums, books, "
    "captions or bounds on what waits."
)


def decode_bare(bodies: Sequence[bytes], images: NDArray[np.uint8], num_threads: int) -> None:
    """Decode pictures into an array (N, H, W, 3)."""
    spec = ImageSpec((images.shape[2], images.shape[1]))

    def decode(i: int) -> None:
        images[i] = decode_image(bodies[i], spec=spec)

    _share_out(decode, len(bodies), num_threads)


def decode_clips_bare(
    bodies: Sequence[bytes], offsets: Sequence[int], frames: NDArray[np.float32], num_threads: int
) -> None:
    """Decode clips into an array (total,), each between two offsets."""
    spec = AudioSpec()

    def decode(i: int) -> None:
        clip = decode_audio(bodies[i], spec=spec)[: offsets[i + 1] - offsets[i]]
        frames[offsets[i] : offsets[i] + len(clip)] = clip

    _share_out(decode, len(bodies), num_threads)


def _share_out(do: Callable[[int], None], number: int, num_threads: int) -> None:
    following = itertools.count().__next__

    def work() -> None:
        while (i := following()) < number:
            do(i)

    with ThreadPoolExecutor(num_threads) as threads:
        for one in [threads.submit(work) for _ in range(num_threads)]:
            one.result()


def fetch_minimal(urls: Sequence[str], images: NDArray[np.uint8], num_connections: int, num_threads: int) -> None:
    """Fetch and decode pictures into an array (N, H, W, 3)."""
    spec = ImageSpec((images.shape[2], images.shape[1]))
    bodies: SimpleQueue[tuple[int, bytes] | None] = SimpleQueue()

    def decode() -> None:
        while (one := bodies.get()) is not None:
            images[one[0]] = decode_image(one[1], spec=spec)

    async def fetch() -> None:
        waiting = enumerate(urls)
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector, raise_for_status=True) as session:

            async def work() -> None:
                for i, url in waiting:
                    async with session.get(url) as response:
                        bodies.put((i, await response.read()))

            await asyncio.gather(*(work() for _ in range(num_connections)))

    with ThreadPoolExecutor(num_threads) as threads:
        decoding = [threads.submit(decode) for _ in range(num_threads)]
        try:
            asyncio.run(fetch())
        finally:
            for _ in decoding:
                bodies.put(None)
        for one in decoding:
            one.result()
