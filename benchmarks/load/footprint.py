"""What a load holds beyond what it loads, and what a large dataset costs before its first sample."""

from __future__ import annotations

import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

from benchmarks.load.checking import caption_of, name_of
from benchmarks.load.figures import Figures, spread
from benchmarks.load.memory import held
from benchmarks.load.pictures import make_pictures
from benchmarks.load.plan import Plan
from benchmarks.load.rates import WEB_LATENCY_SECONDS
from benchmarks.load.running import started, watched
from benchmarks.load.serving import Server, serve
from benchmarks.processes.jobs import JobError

_CONCURRENCIES = (128, 512)
_LOOKING_SECONDS = 0.03
_MOST_SECONDS_TO_FIRST = 300.0


def measure_memory(plan: Plan) -> Figures:
    """Follow the memory of a load, from a server and from files, at two numbers of requests under way."""
    pictures = make_pictures(plan.num_photos, plan.build)
    task: dict[str, Any] = {"task": "load", "num_pictures": len(pictures), "build": str(plan.build.resolve())}
    task |= {"num_threads": plan.num_threads, "num_processes": 1}
    found: dict[tuple[str, int], list[Figures]] = {}
    with serve(pictures.directory, latency_seconds=WEB_LATENCY_SECONDS) as server:
        urls = server.urls(pictures.directory, pictures.names)
        for _ in range(plan.slow_repeats):
            for source, given in (("web", urls), ("files", None)):
                for number in _CONCURRENCIES:
                    options = {"concurrency": number, "per_host": number}
                    one = _watch({**task, "source": source, "urls": given, "options": options})
                    found.setdefault((source, number), []).append(one)
    rows = [
        {
            "source": source,
            "concurrency": number,
            "payload_mb": turns[0]["nbytes"] / 1e6,
            "before_mb": spread(turn["before_bytes"] / 1e6 for turn in turns),
            "above_mb": spread(turn["above_bytes"] / 1e6 for turn in turns),
        }
        for (source, number), turns in found.items()
    ]
    return {
        "num_pictures": len(pictures),
        "latency_ms": 1e3 * WEB_LATENCY_SECONDS,
        "num_threads": plan.num_threads,
        "repeats": plan.slow_repeats,
        "rows": rows,
    }


def _watch(task: dict[str, Any]) -> Figures:
    """Load in a fresh process; give what it held at its peak beyond the payload that was there by then."""
    own_peak = block_peak = 0

    def look() -> None:
        nonlocal own_peak, block_peak
        now = held(process.pid)
        own_peak = max(own_peak, now.own_bytes)
        block_peak = max(block_peak, now.block_bytes)

    with started(task) as process:
        before = held(process.pid)
        with watched(look, lambda: _LOOKING_SECONDS):
            process.begin()
            answer = process.read()
        process.begin()
        process.read()  # the pictures are the right ones
    # A block that was larger than what is kept in it was memory all the same.
    above = own_peak - before.own_bytes + max(0, block_peak - answer["nbytes"])
    print(f"  {task['source']}, {task['options']}: {above / 1e6:,.0f} MB above the payload", flush=True)
    return {"nbytes": answer["nbytes"], "before_bytes": before.own_bytes, "above_bytes": above}


def measure_large(plan: Plan) -> Figures:
    """Begin to load a large dataset of URLs, and end that with its first request."""
    pictures = make_pictures(plan.num_small, plan.build, small=True)
    found: dict[bool, list[Figures]] = {True: [], False: []}
    with serve(pictures.directory, latency_seconds=WEB_LATENCY_SECONDS) as server:
        directory = plan.build.resolve() / "load" / "rows"
        _write_rows(directory, server, pictures.directory.name, plan)
        for _ in range(plan.slow_repeats):
            for in_memory in found:
                found[in_memory].append(_begin(server, directory, in_memory, plan.num_rows))
        shutil.rmtree(directory)
    rows = [
        {
            "in_memory": in_memory,
            "plan_seconds": spread(turn["plan_seconds"] for turn in turns),
            "first_seconds": spread(turn["first_seconds"] for turn in turns),
            "grown_mb": spread(turn["grown_bytes"] / 1e6 for turn in turns),
        }
        for in_memory, turns in found.items()
    ]
    return {"num_rows": plan.num_rows, "repeats": plan.slow_repeats, "rows": rows}


def _write_rows(directory: Path, server: Server, name: str, plan: Plan) -> None:
    """Write a dataset of URLs, all of them different, and captions."""
    from datasets import Dataset

    shutil.rmtree(directory, ignore_errors=True)
    base = f"http://127.0.0.1:{server.port}/{name}"
    urls = [f"{base}/{name_of(i % plan.num_small)}?row={i}" for i in range(plan.num_rows)]
    captions = [caption_of(i) for i in range(plan.num_rows)]
    Dataset.from_dict({"image_url": urls, "caption": captions}).save_to_disk(str(directory))


def _begin(server: Server, directory: Path, in_memory: bool, num_rows: int) -> Figures:
    task = {"task": "large", "directory": str(directory), "in_memory": in_memory}
    peak = 0

    def look() -> None:
        nonlocal peak
        now = held(process.pid)
        peak = max(peak, now.own_bytes + now.block_bytes)

    with started(task) as process:
        before = held(process.pid)
        server.usage()  # from here on, the first request is the first
        with watched(look, lambda: _LOOKING_SECONDS):
            process.begin()
            planned = process.read()
            first = _wait_for_first(server)
        os.kill(process.pid, signal.SIGINT)
        ended = process.read()
    if planned["num_samples"] != num_rows or ended["ended"] != "cancelled":
        raise JobError(f"planned {planned['num_samples']:,} of {num_rows:,} rows; the load was {ended['ended']}")
    seconds = first - planned["started"]
    print(f"  the first request after {seconds:.2f} s", flush=True)
    grown = peak - before.own_bytes - before.block_bytes
    return {"plan_seconds": planned["plan_seconds"], "first_seconds": seconds, "grown_bytes": grown}


def _wait_for_first(server: Server) -> float:
    until = time.monotonic() + _MOST_SECONDS_TO_FIRST
    while time.monotonic() < until:
        first = server.usage().first_request
        if first is not None:
            return first
        time.sleep(_LOOKING_SECONDS)
    raise JobError(f"no request within {_MOST_SECONDS_TO_FIRST:.0f} s")
