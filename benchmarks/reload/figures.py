"""Rows of what was measured."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import median
from typing import Any

from benchmarks.reload.contestants import OURS
from benchmarks.reload.runner import PHASES, Entry, Phase

Row = dict[str, Any]
_FIGURES = ("imports_ms", "open_ms", "batch_ms", "first_batch_ms", "grown_mb", "own_mb", "late_modules")
METHOD = (
    "The clock runs from opening to a batch of 32 images out of a stock DataLoader without workers, through which all "
    "go alike; chance chose the batch, another one in every repeat and the same for all. Imports were done before, and"
    " every repeat is a process of its own, which collects the garbage of its imports before the clock starts. Warm: "
    "all files were on the disk already, and were read just before. Cold: between the imports and the clock the files "
    "were written through and dropped from the page cache (posix_fadvise DONTNEED) and, by root, the names and places "
    "of all files forgotten (drop_caches). Restarted: the page cache of the whole machine was dropped then, and with "
    "it what the libraries have not run yet of their code, which all read again while the clock runs. What a host "
    "beneath this machine keeps is not in its hands. mincore tells what was in the page cache. Every batch was "
    "compared with what was written: images bit for bit, and captions where there are any. A ratio is taken within a "
    "repeat. Imports are from the start of the interpreter, with warm files."
)


def make_rows(entries: Sequence[Entry], *, phases: Sequence[Phase] = PHASES, in_turn: bool) -> list[Row]:
    """Make one row per contestant and phase: medians over repeats, with smallest and largest.

    Args:
        phases: Those that were measured.
        in_turn: Whether all contestants took turns, repeat by repeat; otherwise one was measured after another.
    """
    ours = {entry.key: entry for entry in entries if entry.key in OURS}
    rows = []
    for entry in entries:
        one = entry.contestant
        for phase in phases:
            row: Row = {
                "contestant": one.name,
                "key": entry.key,
                "kind": one.kind,
                "num_samples": entry.num_samples,
                "phase": phase,
                "in_turn": in_turn,
                "has_captions": one.has_captions,
                "configuration": one.configuration,
                "source": one.source,
                "notes": one.notes,
                "error": entry.error,
            }
            timings = entry.timings[phase]
            if timings:
                row["stored_mb"] = entry.stored_mb
                row |= {name: _spread(timing[name] for timing in timings) for name in _FIGURES}
                shares = [timing["resident_share"] for timing in timings]
                row["resident_share"] = min(shares) if phase == "warm" else max(shares)  # the worst
                row["times_ours"] = {
                    key: _spread(
                        theirs["first_batch_ms"] / mine["first_batch_ms"]
                        for theirs, mine in zip(timings, entry_of_ours.timings[phase], strict=False)
                    )
                    for key, entry_of_ours in ours.items()
                    if entry_of_ours.timings[phase]
                }
            rows.append(row)
    return rows


def _spread(values: Iterable[float]) -> dict[str, float]:
    listed = sorted(values)
    return {"median": median(listed), "min": listed[0], "max": listed[-1]}


def as_text(rows: Sequence[Row]) -> str:
    """Write the medians as lines, for whoever waits."""
    lines = []
    for row in rows:
        if "first_batch_ms" in row:
            figures = "  ".join(f"{name} {row[name]['median']:,.1f}" for name in _FIGURES)
            lines.append(f"{row['contestant']:32} {row['num_samples']:>9,} {row['phase']}  {figures}")
        else:
            lines.append(f"{row['contestant']:32} {row['num_samples']:>9,} {row['phase']}  {row['error']}")
    return "\n".join(lines)
