"""Side by side: the same pictures from the same server, or from the same files, every contestant in a fresh process."""

from __future__ import annotations

import shutil
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from benchmarks.load.checking import Pictures
from benchmarks.load.contestants import CONTESTANTS, OURS, Contestant
from benchmarks.load.figures import Figures, Turn, spread
from benchmarks.load.memory import pss_bytes
from benchmarks.load.pictures import make_pictures
from benchmarks.load.plan import Plan
from benchmarks.load.rates import WEB_LATENCY_SECONDS
from benchmarks.load.running import started, watched
from benchmarks.load.serving import serve
from benchmarks.processes.jobs import JobError
from benchmarks.processes.venvs import InstallError, python_of

_LOOKING_SECONDS = 0.2


@dataclass(slots=True)
class Entry:
    """One contestant.

    Attributes:
        num_pictures: How many it loads.
        turns: One per repeat, as long as none failed.
        error: Why there are no figures, or not all; "" if all is well.
    """

    key: str
    num_pictures: int
    turns: list[Turn] = field(default_factory=list)
    error: str = ""

    @property
    def contestant(self) -> Contestant:
        """Who it is."""
        return CONTESTANTS[self.key]


def measure_beside(plan: Plan) -> Figures:
    """Measure all contestants in turn, repeat by repeat."""
    pictures = make_pictures(plan.num_photos, plan.build)
    entries = [Entry(key, max(1, round(CONTESTANTS[key].share * len(pictures)))) for key in plan.contestants]
    with ExitStack() as stack:
        server = stack.enter_context(serve(pictures.directory, latency_seconds=WEB_LATENCY_SECONDS))
        urls = server.urls(pictures.directory, pictures.names)
        for repeat in range(plan.slow_repeats):
            for entry in entries[:: -1 if repeat % 2 else 1]:
                sources = urls if entry.contestant.where == "web" else pictures.paths
                _take_turn(entry, plan, pictures, sources[: entry.num_pictures])
    return {
        "num_pictures": len(pictures),
        "latency_ms": 1e3 * WEB_LATENCY_SECONDS,
        "repeats": plan.slow_repeats,
        "versions": dict(sorted(plan.versions.items())),
        "rows": make_rows(entries),
    }


def _take_turn(entry: Entry, plan: Plan, pictures: Pictures, sources: list[str]) -> None:
    """Let a contestant load once. What failed is not tried again."""
    if entry.error:
        return
    place = plan.build.resolve() / "load" / "stores" / entry.key
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    task: dict[str, Any] = {"task": "contestant", "key": entry.key, "sources": sources, "place": str(place)}
    task |= {"directory": str(pictures.directory.resolve()), "sizes": pictures.sizes}
    turn, peak = Turn(len(sources)), 0

    def look() -> None:
        nonlocal peak
        peak = max(peak, pss_bytes(process.pid))

    try:
        python = python_of(entry.contestant.venv, plan.build.resolve() / "peers")
        with started(task, python) as process:
            with watched(look, lambda: _LOOKING_SECONDS):
                process.begin()
                answer = process.read()
            process.begin()
            found = process.read()
    except (InstallError, JobError) as error:
        entry.error = str(error)
        print(f"  {entry.contestant.name}: {error}", flush=True)
        return
    finally:
        shutil.rmtree(place, ignore_errors=True)
    plan.versions.update(found["versions"])
    turn.seconds, turn.cpu_seconds = answer["seconds"], answer["cpu_seconds"]
    turn.found = {"peak_mb": peak / 1e6, "distance": found["distance"]}
    entry.turns.append(turn)
    print(f"  {entry.contestant.name}: {turn.per_s:,.0f}/s, {turn.cpu_ms:.2f} ms of CPU each", flush=True)


def make_rows(entries: list[Entry]) -> list[Figures]:
    """Make a row per contestant: medians over repeats, and what ours is to it, each repeat with its own."""
    by_key = {entry.key: entry for entry in entries}
    rows = []
    for entry in entries:
        one = entry.contestant
        row: Figures = {
            "contestant": one.name,
            "key": entry.key,
            "kind": one.kind,
            "where": one.where,
            "num_pictures": entry.num_pictures,
            "configuration": one.configuration,
            "source": one.source,
            "notes": one.notes,
            "error": entry.error,
        }
        if entry.turns:
            row |= {
                "per_s": spread(turn.per_s for turn in entry.turns),
                "cpu_ms": spread(turn.cpu_ms for turn in entry.turns),
                "peak_mb": max(turn.found["peak_mb"] for turn in entry.turns),
                "distance": max(turn.found["distance"] for turn in entry.turns),
            }
            ours = by_key.get(OURS[one.where])
            pairs = list(zip(ours.turns, entry.turns, strict=False)) if ours else []
            if pairs:
                row["ours_times"] = spread(mine.per_s / theirs.per_s for mine, theirs in pairs)
                row["cpu_to_ours"] = spread(theirs.cpu_ms / mine.cpu_ms for mine, theirs in pairs)
        rows.append(row)
    return rows
