"""How much of what the decoders could do a load keeps: locally, over HTTP, and with a server that is far away."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.load.checking import SIDE, SMALL_SIDE, Pictures, compare_all
from benchmarks.load.clips import compare_clips, make_clips
from benchmarks.load.figures import Figures, Turn, alternate, clock, ratio, spread
from benchmarks.load.floors import decode_bare, decode_clips_bare, fetch_minimal
from benchmarks.load.ours import LOOPBACK, clips_of, load_clips, load_pictures, pictures_of, rows_of
from benchmarks.load.pictures import make_pictures
from benchmarks.load.plan import Plan
from benchmarks.load.serving import drain, serve

WEB_LATENCY_SECONDS = 0.02
FAR_LATENCY_SECONDS = 0.1
# Among which the minimal loader chooses.
_CONNECTIONS = (16, 32, 64, 128)


def measure_local(plan: Plan) -> Figures:
    """Load what is on this machine: pictures in memory and in files, clips in memory."""
    pictures, clips = make_pictures(plan.num_photos, plan.build), make_clips(plan.num_clips, plan.build)
    rows = _measure_local_pictures(plan, pictures)
    bodies, offsets = clips.read(), clips.offsets.tolist()
    frames = np.empty(offsets[-1], np.float32)

    def bare() -> Turn:
        frames.fill(np.nan)
        turn = Turn(len(clips))
        with clock(turn):
            decode_clips_bare(bodies, offsets, frames, plan.num_threads)
        turn.found["distance"] = compare_clips(clips, np.split(frames, offsets[1:-1]))
        return turn

    def ours() -> Turn:
        turn, given = Turn(len(clips)), rows_of(bodies, "audio")
        with clock(turn):
            dataset = load_clips(given, num_threads=plan.num_threads)
        with dataset:
            turn.found["distance"] = compare_clips(clips, clips_of(dataset))
        return turn

    turns = alternate(plan.repeats, {"bare": bare, "bytes": ours})
    rows += [_row("clips", way, turns) for way in turns]
    return {
        "num_pictures": len(pictures),
        "num_clips": len(clips),
        "num_threads": plan.num_threads,
        "repeats": plan.repeats,
        "rows": rows,
    }


def _measure_local_pictures(plan: Plan, pictures: Pictures) -> list[Figures]:
    bodies = pictures.read()
    turns = alternate(
        plan.repeats,
        {
            "bare": _bare(bodies, pictures, plan),
            "bytes": _ours(bodies, pictures, plan),
            "files": _ours(pictures.paths, pictures, plan),
        },
    )
    return [_row("pictures", way, turns) for way in turns]


def measure_web(plan: Plan) -> Figures:
    """Load pictures from a server that is a little way off."""
    pictures = make_pictures(plan.num_photos, plan.build)
    bodies = pictures.read()
    images = np.empty((len(pictures), SIDE, SIDE, 3), np.uint8)
    with serve(pictures.directory, latency_seconds=WEB_LATENCY_SECONDS) as server:
        urls = server.urls(pictures.directory, pictures.names)

        def minimal(num_connections: int) -> Turn:
            return _filled(images, pictures, lambda: fetch_minimal(urls, images, num_connections, plan.num_threads))

        tried = {number: minimal(number).per_s for number in _CONNECTIONS}
        best = max(tried, key=tried.__getitem__)
        print(f"  the minimal loader takes {best} connections, of {tried}", flush=True)
        load = _ours(urls, pictures, plan)

        def ours() -> Turn:
            before = server.usage()
            turn = load()
            after = server.usage()
            turn.found["server_ms"] = 1e3 * (after.cpu_seconds - before.cpu_seconds) / len(urls)
            turn.found["connections"] = after.most_connections
            return turn

        turns = alternate(
            plan.repeats,
            {
                "ceiling": lambda: Turn(len(urls), drain(urls, max(_CONNECTIONS))),
                "bare": _bare(bodies, pictures, plan),
                "minimal": lambda: minimal(best),
                "ours": ours,
            },
        )
    ceiling = turns.pop("ceiling")
    return {
        "num_pictures": len(pictures),
        "num_threads": plan.num_threads,
        "repeats": plan.repeats,
        "latency_ms": 1e3 * WEB_LATENCY_SECONDS,
        "minimal_connections": best,
        "our_connections": max(turn.found["connections"] for turn in turns["ours"]),
        "ceiling_connections": max(_CONNECTIONS),
        "ceiling_per_s": spread(turn.per_s for turn in ceiling),
        "server_cpu_ms": spread(turn.found["server_ms"] for turn in turns["ours"]),
        "rows": [
            {**_row("pictures", way, turns), "to_minimal": ratio(turns[way], turns["minimal"])}
            for way in ("bare", "minimal", "ours")
        ],
    }


def measure_far(plan: Plan) -> Figures:
    """Load from servers that are far away: small pictures that cost nothing to decode, and photographs.

    One host gets as many connections as we let one have, so many hosts that all are used, all that we let all have.
    """
    many = max(1, LOOPBACK.concurrency // LOOPBACK.per_host)
    rows = [
        _measure_far(plan, what, number, side, num_hosts)
        for what, number, side in (("small", plan.num_small, SMALL_SIDE), ("photos", plan.num_photos, SIDE))
        for num_hosts in (1, many)
    ]
    return {
        "latency_ms": 1e3 * FAR_LATENCY_SECONDS,
        "num_threads": plan.num_threads,
        "repeats": plan.slow_repeats,
        "rows": rows,
    }


def _measure_far(plan: Plan, what: str, number: int, side: int, num_hosts: int) -> Figures:
    connections = min(LOOPBACK.concurrency, num_hosts * LOOPBACK.per_host)
    pictures = make_pictures(number, plan.build, small=what == "small")
    bodies = pictures.read()
    with serve(pictures.directory, latency_seconds=FAR_LATENCY_SECONDS, num_hosts=num_hosts) as server:
        urls = server.urls(pictures.directory, pictures.names)
        load = _ours(urls, pictures, plan, image_size=(side, side))

        def ours() -> Turn:
            server.usage()
            turn = load()
            turn.found["connections"] = server.usage().most_connections
            return turn

        turns = alternate(
            plan.slow_repeats,
            {
                "ceiling": lambda: Turn(len(urls), drain(urls, connections)),
                "decode": _bare(bodies, pictures, plan, side=side),
                "ours": ours,
            },
            warm_up=False,
        )
    limits = [min(pair, key=lambda turn: turn.per_s) for pair in zip(turns["ceiling"], turns["decode"], strict=True)]
    return {
        "what": what,
        "num_pictures": number,
        "side": side,
        "num_hosts": num_hosts,
        "connections": connections,
        "per_s": spread(turn.per_s for turn in turns["ours"]),
        "ceiling_per_s": spread(turn.per_s for turn in turns["ceiling"]),
        "decode_per_s": spread(turn.per_s for turn in turns["decode"]),
        "to_limit": ratio(turns["ours"], limits),
        "our_connections": max(turn.found["connections"] for turn in turns["ours"]),
    }


def _bare(bodies: list[bytes], pictures: Pictures, plan: Plan, side: int = SIDE) -> Callable[[], Turn]:
    images = np.empty((len(pictures), side, side, 3), np.uint8)
    return lambda: _filled(images, pictures, lambda: decode_bare(bodies, images, plan.num_threads))


def _filled(images: NDArray[np.uint8], pictures: Pictures, fill: Callable[[], None]) -> Turn:
    """Time what fills an array, and compare what is in it."""
    images.fill(0)
    turn = Turn(len(images))
    with clock(turn):
        fill()
    turn.found["distance"] = compare_all(enumerate(images), pictures, len(images))
    return turn


def _ours(sources: Iterable[Any], pictures: Pictures, plan: Plan, **arguments: Any) -> Callable[[], Turn]:
    rows = rows_of(list(sources))

    def turn() -> Turn:
        turn = Turn(len(rows))
        with clock(turn):
            dataset = load_pictures(rows, num_threads=plan.num_threads, **arguments)
        with dataset:
            turn.found["distance"] = compare_all(pictures_of(dataset), pictures, len(rows))
        return turn

    return turn


def _row(media: str, way: str, turns: dict[str, list[Turn]]) -> Figures:
    return {
        "media": media,
        "way": way,
        "per_s": spread(turn.per_s for turn in turns[way]),
        "cpu_ms": spread(turn.cpu_ms for turn in turns[way]),
        "to_bare": ratio(turns[way], turns["bare"]),
        "distance": max(turn.found["distance"] for turn in turns[way]),
    }
