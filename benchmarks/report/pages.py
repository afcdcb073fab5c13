"""The section of what huge pages are worth."""

from __future__ import annotations

from benchmarks.report.sections import Record, Section, spread, table

_WHAT = {
    "write": "writing the block, as a load does",
    "first_epoch": "first epoch of a process that maps it",
    "later_epoch": "later epochs",
}


def pages(figures: Record) -> Section:
    """Compare a block in pages of 2 MB with one in pages of 4 kB."""
    cells = [
        [
            what,
            *(f"{1e3 * figures[key][f'{way}_seconds']:.0f}" for way in ("small", "huge")),
            f"{spread(figures[key]['gain'], figures[key]['gain_range'], digits=2)} ×",
        ]
        for key, what in _WHAT.items()
    ]
    saved, lost = (_gained(figures[key]) for key in ("first_epoch", "write"))
    later = 100 * (figures["later_epoch"]["gain"] - 1)
    return Section(
        [
            f"{figures['num_images']:,} images of 224×224 in a bare block, in batches of {figures['batch_size']} in "
            f"random order on one thread; {figures['huge_bytes'] / 1e9:.2f} GB of it lay in huge pages. Linux gives "
            "them to shared memory only where the administrator lets it, and by default does not.",
            "",
            *table(["", "4 kB pages, ms", "2 MB pages, ms", "gain (range)"], cells),
            f"In huge pages the first epoch of a process takes {abs(saved):.0f} ms {_less(saved)}, writing takes "
            f"{abs(lost):.0f} ms {_less(lost)}, and a later epoch {abs(later):.1f} % {_less(later)}. "
            "The library does not ask for them; where `shmem_enabled` is `always`, its blocks have them.",
            "",
        ]
    )


def _gained(row: Record) -> float:
    gained: float = 1e3 * (row["small_seconds"] - row["huge_seconds"])
    return gained


def _less(gained: float) -> str:
    return "less" if gained >= 0 else "more"
