"""Rows and tables of what was measured."""

from __future__ import annotations

from collections.abc import Iterable
from statistics import median
from typing import Any

from benchmarks.serve.peers import MEASURE
from benchmarks.serve.runner import Measurement

Row = dict[str, Any]
_PHASES = ("cold", "warm")
METHOD = (
    "Warm is the median of the epochs after the first, cold the first one after opening. Before opening, the peer's "
    "files are dropped from the page cache (posix_fadvise DONTNEED; mincore tells what stayed: "
    "page_cache_left_when_cold); what lives in memory alone is cold once it has been filled. Figures are medians over "
    "repeats, each repeat a process of its own; the share of memcpy is taken within a repeat. Worker processes are "
    "kept from one epoch to the next (persistent_workers). One more epoch, not timed, is compared with the samples: "
    "every one exactly once, bit for bit, or within 6 grey levels of mean "
    "distance after JPEG; a row without that has no figures."
)
_FOOTNOTES = (
    "¹ warm, at the best number of workers; processor time of the whole process tree. ² proportional set size of the "
    "process tree, pages of mapped files included, the most over all numbers of workers."
)


def make_rows(measurements: list[Measurement]) -> list[Row]:
    """Make one row per peer, media, number of workers and phase: medians over repeats, with smallest and largest."""
    measures = {
        (one.contestant.media, one.num_workers, repeat): epoch["samples_per_s"]
        for one in measurements
        if one.contestant.key == MEASURE
        for repeat, epoch in enumerate(_epochs(one, "warm"))
    }
    rows = []
    for one in measurements:
        for phase in _PHASES:
            row = _describe(one, phase)
            epochs = _epochs(one, phase)
            if epochs:
                row |= {name: _spread(epoch[name] for epoch in epochs) for name in epochs[0]}
                row["ratio_to_memcpy"] = _spread(
                    epoch["samples_per_s"] / measures[one.contestant.media, one.num_workers, repeat]
                    for repeat, epoch in enumerate(epochs)
                    if (one.contestant.media, one.num_workers, repeat) in measures
                )
            rows.append(row)
    return rows


def _describe(one: Measurement, phase: str) -> Row:
    peer = one.contestant.peer
    left = [timing["resident_when_cold"] for timing in one.timings]
    found = one.timings[0] if one.timings else {}
    return {
        "peer": peer.name,
        "key": one.contestant.key,
        "media": one.contestant.media,
        "workers": one.num_workers,
        "phase": phase,
        "num_samples": one.contestant.num_samples,
        "stored": peer.stored,
        "exact": peer.exact,
        "configuration": peer.configuration,
        "source": peer.source,
        "notes": peer.notes,
        "error": one.error,
        "peak_mb": found.get("peak_mb"),
        "order_correlation": found.get("order_correlation"),
        "page_cache_left_when_cold": max((share for share in left if share is not None), default=None),
    }


def _epochs(one: Measurement, phase: str) -> list[dict[str, float]]:
    """Give one epoch per repeat: the cold one, or the median of the warm ones."""
    if phase == "cold":
        return [timing["cold"] for timing in one.timings]
    return [
        {name: median(epoch[name] for epoch in timing["warm"]) for name in timing["warm"][0]} for timing in one.timings
    ]


def _spread(values: Iterable[float]) -> dict[str, float] | None:
    listed = sorted(values)
    return {"median": median(listed), "min": listed[0], "max": listed[-1]} if listed else None


def as_markdown(rows: list[Row]) -> str:
    """Write a table per media: a line per peer, the fastest of memory's ways first, its numbers of workers beside."""
    parts = []
    for media in dict.fromkeys(row["media"] for row in rows):
        chosen = [row for row in rows if row["media"] == media]
        workers = list(dict.fromkeys(row["workers"] for row in chosen))
        heads = [
            f"{phase}, {number} worker{'' if number == 1 else 's'}" for phase in ("warm", "cold") for number in workers
        ]
        parts.append(f"### {media}: samples per second (share of memcpy)\n")
        parts.append(f"| peer | stored | samples | {' | '.join(heads)} | CPU µs/sample¹ | first batch ms¹ | peak MB² |")
        parts.append(f"|---|---|{'---:|' * (len(heads) + 4)}")
        names = dict.fromkeys(row["peer"] for row in chosen)
        parts += [_line([row for row in chosen if row["peer"] == name], workers) for name in names]
        parts.append(f"\n{_FOOTNOTES}\n")
        parts += _notes(chosen)
    return "\n".join([*parts, METHOD, ""])


def _line(rows: list[Row], workers: list[int]) -> str:
    cells = [rows[0]["peer"], rows[0]["stored"], f"{rows[0]['num_samples']:,}"]
    by_place = {(row["phase"], row["workers"]): row for row in rows}
    for phase in ("warm", "cold"):
        for number in workers:
            row = by_place[phase, number]
            speed, ratio = row.get("samples_per_s"), row.get("ratio_to_memcpy")
            share = f" ({ratio['median']:.2f})" if ratio else ""
            cells.append(f"{speed['median']:,.0f}{share}" if speed else "-")
    measured = [row for row in rows if row["phase"] == "warm" and row.get("samples_per_s")]
    if measured:
        best = max(measured, key=lambda row: row["samples_per_s"]["median"])
        cells += [f"{best[name]['median']:,.1f}" for name in ("cpu_us_per_sample", "first_batch_ms")]
        cells.append(f"{max(row['peak_mb'] for row in measured):,.0f}")
    else:
        cells += ["-"] * 3
    return f"| {' | '.join(cells)} |"


def _notes(rows: list[Row]) -> list[str]:
    lines = [
        f"- {row['peer']}: `{row['configuration']}` ({row['source'] or 'bare'}). {row['notes']}".rstrip()
        for row in {row["peer"]: row for row in rows}.values()
    ]
    errors = {(row["peer"], row["workers"], row["error"]): None for row in rows if row["error"]}
    return [*lines, *(f"- {peer}, {number} workers: {error}" for peer, number, error in errors), ""]
