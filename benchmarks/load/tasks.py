"""What a process of this project's own environment does under observation."""

from __future__ import annotations

import gc
import signal
import sys
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.load.checking import SIDE, caption_of, compare_all
from benchmarks.load.figures import Turn, clock
from benchmarks.load.floors import decode_bare
from benchmarks.load.interpreter import NoSuchWordError, find_word
from benchmarks.load.ours import load_pictures, pictures_of, rows_of
from benchmarks.load.pictures import make_pictures
from in_memory_datasets import FetchOptions, InMemoryImageTextDataset
from in_memory_datasets.build import processes
from in_memory_datasets.decode import decode_image
from in_memory_datasets.schema import ImageSpec

Told = dict[str, Any]
_NUM_REHEARSED = 8
_LARGE_SIDE = 16  # of pictures of the large dataset: a million of them are to fit into memory


def run(task: Told) -> Iterator[Told]:
    """Do what a task says.

    The word that tells whether the interpreter is held is looked for first: no other thread may take it meanwhile.
    """
    try:
        task["word"] = find_word()
    except NoSuchWordError:
        task["word"] = None
    return {"load": _load, "decode": _decode, "spin": _spin, "sum_up": _sum_up, "large": _large}[task["task"]](task)


def _ready(task: Told) -> Told:
    gc.collect()  # which holds the interpreter, and would fall into what is watched
    return {"word": task["word"]}


def _wait() -> None:
    sys.stdin.readline()


def _load(task: Told) -> Iterator[Told]:
    """Load pictures by this library; then compare them, once more asked."""
    pictures = make_pictures(task["num_pictures"], Path(task["build"]))
    sources: list[Any] = task.get("urls") or (pictures.read() if task["source"] == "bytes" else pictures.paths)
    # On few cores the library would not choose processes, which is what is to be measured here.
    processes.count_processes = lambda request: task["num_processes"]
    fetch = FetchOptions(allow_private_addresses=True, **task.get("options", {}))
    arguments = {"fetch": fetch, "num_threads": task["num_threads"]}
    rows = rows_of(sources)
    load_pictures(rows[:_NUM_REHEARSED], **arguments).close()  # what is imported late is no part of a load
    start = Turn(_NUM_REHEARSED)
    if task["num_processes"] > 1:  # nor is starting processes, which many more samples share than are loaded here
        with clock(start):
            load_pictures(rows[:_NUM_REHEARSED], **arguments).close()
    yield _ready(task)
    _wait()
    turn, before = Turn(len(rows)), time.process_time()
    with clock(turn, collect=False):
        dataset = load_pictures(rows, **arguments)
    own = time.process_time() - before
    yield {
        "seconds": turn.seconds - start.seconds,
        "cpu_seconds": turn.cpu_seconds - start.cpu_seconds,
        "own_seconds": own,
        "nbytes": dataset.nbytes,
    }
    _wait()
    yield {"distance": compare_all(pictures_of(dataset), pictures, len(rows))}


def _decode(task: Told) -> Iterator[Told]:
    """Decode pictures, and do nothing else."""
    pictures = make_pictures(task["num_pictures"], Path(task["build"]))
    bodies = pictures.read()
    images = np.zeros((len(pictures), SIDE, SIDE, 3), np.uint8)
    decode_image(bodies[0], spec=ImageSpec())
    yield _ready(task)
    _wait()
    turn = Turn(len(bodies))
    with clock(turn, collect=False):
        decode_bare(bodies, images, task["num_threads"])
    yield {"seconds": turn.seconds, "cpu_seconds": turn.cpu_seconds, "own_seconds": turn.cpu_seconds}
    _wait()
    yield {"distance": compare_all(enumerate(images), pictures, len(images))}


def _spin(task: Told) -> Iterator[Told]:
    """Hold the interpreter all the time."""
    yield _ready(task)
    _wait()
    until = time.perf_counter() + task["seconds"]
    while time.perf_counter() < until:
        pass
    yield {}


def _sum_up(task: Told) -> Iterator[Told]:
    """Hold the interpreter hardly ever: zlib gives it up for as long as it works."""
    body = bytes(64 * 2**20)
    yield _ready(task)
    _wait()
    until = time.perf_counter() + task["seconds"]
    while time.perf_counter() < until:
        zlib.crc32(body)
    yield {}


def _large(task: Told) -> Iterator[Told]:
    """Plan a large dataset and begin to load it, until somebody ends that."""
    from datasets import load_from_disk

    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where a shell started this in the background
    rows = load_from_disk(task["directory"], keep_in_memory=task["in_memory"])
    few = [{"image_url": np.zeros((4, 4, 3), np.uint8), "caption": caption_of(0)}]
    load_pictures(few).close()
    yield _ready(task)
    _wait()
    arguments: Told = {"image_size": (_LARGE_SIDE, _LARGE_SIDE)}
    started = time.monotonic()
    plan = InMemoryImageTextDataset.plan(rows, **arguments)
    planned = time.monotonic()
    yield {"plan_seconds": planned - started, "started": started, "num_samples": plan.num_samples}
    try:
        load_pictures(rows, **arguments).close()
        ended = "whole"
    except KeyboardInterrupt:
        ended = "cancelled"
    yield {"ended": ended, "seconds": time.monotonic() - planned}
