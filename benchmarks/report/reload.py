"""The section of how soon a second process has its first batch."""

from __future__ import annotations

from benchmarks.reload.contestants import OURS, PICKLED_ARRAY, PICKLED_PICTURES
from benchmarks.reload.pictures import SIDE
from benchmarks.reload.runner import PHASES, Phase
from benchmarks.report.charts import Bar, BarChart, Chart, Kind
from benchmarks.report.sections import Finding, Record, Section, Target, count, show, spread, table

Row = Record  # of benchmarks.reload.figures.make_rows

READY = Target("Reload: first batch, imports aside", 100.0, " ms", at_most=True)
PICKLE = Target("Reload: times faster than a pickled array", 20.0, " ×")
PICTURES = Target("Reload: times faster than pickled PIL images", 100.0, " ×")
AHEAD = Target("Reload: first batch of another way, to ours", 1.0, " ×")
GROWTH = Target("Reload: a hundred times the images: first batch, to that before", 1.1, " ×", at_most=True)
# Where less is pickled, there is less to be saved.
_LEAST_PICKLED = 10_000
_ASKED: tuple[Phase, ...] = ("warm", "cold")
_KINDS: dict[str, Kind] = {"floor": "measure", "ours": "ours", "decoded": "decoded", "encoded": "encoded"}
_WORDS = {
    "measure": "bare memory map: no captions, no checks",
    "decoded": "another way, keeps pixels",
    "encoded": "another way, decodes PNG",
    "first": "cold",
}


def reload(record: Record) -> Section:
    """Write what `benchmarks.reload` measured."""
    rows: list[Row] = record["rows"]
    lines = [
        f"One process left images of {SIDE}×{SIDE} with a caption each; a second one opens them and takes "
        f"{record['batch_size']} of them, chosen by chance. {count(record['repeats'], 'repeat')}. {record['method']} "
        f"What is asked of it, warm and cold: `load` and `cache_dir` each {READY}, at every size; from "
        f"{_LEAST_PICKLED:,} images on, {PICKLE} to a pickled array and {PICTURES} to a pickled list of PIL images; "
        f"and {AHEAD} to every other way that keeps samples, the bare memory map aside. Restarted, nothing is asked, "
        "since a part of the imports is in it.",
        "",
    ]
    findings: list[Finding] = []
    charts: list[Chart] = []
    sizes = sorted({row["num_samples"] for row in rows})
    for num_samples in sizes:
        chosen = [row for row in rows if row["num_samples"] == num_samples]
        lines += [f"### {num_samples:,} images", "", _turns(chosen), ""]
        if any("first_batch_ms" in row for row in chosen):
            charts.append(_chart(chosen))
            lines += show(charts[-1])
            lines += _table(chosen)
        lines += _missing(chosen)
        findings += _verdicts(chosen)
    growth, found = _growth(rows, sizes)
    lines += growth
    findings += found
    lines += [*_ahead(rows), *_notes(rows)]
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    lines += [f"Versions: {versions}. Measuring took {record['seconds']:,} s.", ""]
    return Section(lines, findings, charts)


def _turns(rows: list[Row]) -> str:
    if rows[0]["in_turn"]:
        return "All took turns, repeat by repeat."
    return (
        "One was measured after the other, and its files removed before those of the next were made, since neither "
        "disk nor memory holds them all: a ratio is of figures that lie minutes apart."
    )


def _table(rows: list[Row]) -> list[str]:
    """Write two tables of one size: what was asked, and what it is made of."""
    times, parts = [], []
    for key in dict.fromkeys(row["key"] for row in rows):
        found = {row["phase"]: row for row in rows if row["key"] == key and "first_batch_ms" in row}
        if not found:
            continue
        some = next(iter(found.values()))
        name = some["contestant"]
        times.append([name, "yes" if some["has_captions"] else "no"])
        for write in (lambda row: _spread(row["first_batch_ms"], 1), _ratios):
            times[-1] += [write(found[phase]) if phase in found else "-" for phase in PHASES]
        opening, batch = (
            " / ".join(f"{found[phase][part]['median']:.1f}" for phase in found) for part in ("open_ms", "batch_ms")
        )
        cached = " / ".join(f"{100 * row['resident_share']:.1f}" for row in found.values())
        parts.append([name, opening, batch, f"{some['late_modules']['median']:.0f}", _spread(some["imports_ms"], 0)])
        parts[-1] += [f"{some[part]['median']:.1f}" for part in ("grown_mb", "own_mb")]
        parts[-1] += [f"{some['stored_mb']:,.1f}", cached]
    heads = ["", "captions", *(f"{phase}, ms (range)" for phase in PHASES)]
    heads += [f"{phase}: times {_short(OURS[0])} / times {_short(OURS[1])}" for phase in PHASES]
    both = " / ".join(PHASES)
    return [
        *table(heads, times, num_text=2),
        "What that is made of; memory is what a warm process grew by, at its peak and in pages of its own:",
        "",
        *table(
            [
                *("", f"opening, ms: {both}", f"the batch, ms: {both}", "modules imported meanwhile"),
                *("imports before, ms", "peak, MB", "own, MB", "on disk, MB", f"in the page cache, %: {both}"),
            ],
            parts,
        ),
    ]


def _ratios(row: Row) -> str:
    return " / ".join(f"{_spread(row['times_ours'][key], 2)} ×" if key in row["times_ours"] else "-" for key in OURS)


def _spread(found: Record, digits: int) -> str:
    return spread(found["median"], (found["min"], found["max"]), digits)


def _verdicts(rows: list[Row]) -> list[Finding]:
    """Hold every figure of one size to what was asked for."""
    findings = []
    for row in (row for row in rows if "first_batch_ms" in row and row["phase"] in _ASKED):
        where = f"{row['num_samples']:,} images, {row['phase']}"
        if row["key"] in OURS:
            findings.append(Finding(READY, f"{row['contestant']}, {where}", row["first_batch_ms"]["median"]))
        elif row["kind"] != "floor":
            target = {PICKLED_ARRAY: PICKLE, PICKLED_PICTURES: PICTURES}.get(row["key"], AHEAD)
            if target is AHEAD or row["num_samples"] >= _LEAST_PICKLED:
                findings += [
                    Finding(target, f"{row['contestant']} to {_short(key)}, {where}", ratio["median"])
                    for key, ratio in row["times_ours"].items()
                ]
    return findings


def _growth(rows: list[Row], sizes: list[int]) -> tuple[list[str], list[Finding]]:
    """Say what becomes of the first batch as the dataset grows."""
    lines, findings = [], []
    first, last = sizes[0], sizes[-1]
    if last > first:
        cells = []
        for key in dict.fromkeys(row["key"] for row in rows):
            line: list[str] = []
            for phase in PHASES:
                found = {
                    row["num_samples"]: row["first_batch_ms"]["median"]
                    for row in rows
                    if (row["key"], row["phase"]) == (key, phase) and "first_batch_ms" in row
                }
                if not {first, last} <= set(found):
                    line.append("-")
                    continue
                times = found[last] / found[first]
                line.append(f"{times:.2f} ×")
                if key in OURS and phase in _ASKED and last == 100 * first:
                    findings.append(Finding(GROWTH, f"{_short(key)}, {phase}", times))
            cells.append([next(row["contestant"] for row in rows if row["key"] == key), *line])
        verdicts = "; ".join(f"{finding.what}: {finding.verdict}" for finding in findings)
        asked = f" Asked of `load` and `cache_dir`: {GROWTH}; {verdicts}." if verdicts else ""
        lines = [
            f"### From {first:,} to {last:,} images",
            "",
            f"The first batch of {last:,} images takes so many times as long as that of {first:,}.{asked}",
            "",
            *table(["", *PHASES], cells),
        ]
    return lines, findings


def _ahead(rows: list[Row]) -> list[str]:
    """List where the median of another way lies below that of ours."""
    ours = {
        (row["num_samples"], row["phase"]): row for row in rows if row["key"] == OURS[0] and "first_batch_ms" in row
    }
    lines = ["### Where another has its first batch sooner", ""]
    cells = []
    places = {(row["num_samples"], row["phase"]) for row in rows if "first_batch_ms" in row}
    for row in rows:
        mine = ours.get((row["num_samples"], row["phase"]))
        if row["key"] in OURS or "first_batch_ms" not in row:
            continue
        if mine is None:
            lead = "-"
        elif row["first_batch_ms"]["median"] < mine["first_batch_ms"]["median"]:
            overlap = row["first_batch_ms"]["max"] >= mine["first_batch_ms"]["min"]
            times = mine["first_batch_ms"]["median"] / row["first_batch_ms"]["median"]
            lead = f"{times:.2f} ×{', ranges overlap' if overlap else ''}"
        else:
            continue
        cells.append(
            [
                *(f"{row['num_samples']:,}", row["phase"]),
                row["contestant"] + ("" if row["has_captions"] else " (no captions)"),
                _spread(row["first_batch_ms"], 1),
                "none" if mine is None else _spread(mine["first_batch_ms"], 1),
                lead,
            ]
        )
    if not cells:
        where = count(len(places), "combination")
        return [
            *lines,
            f"Nowhere: in none of the {where} of size and phase does the median of another way lie below that of "
            f"{_short(OURS[0])}.",
            "",
        ]
    return [*lines, *table(["images", "phase", "", "its ms", f"{_short(OURS[0])}, ms", "sooner by"], cells, num_text=3)]


def _missing(rows: list[Row]) -> list[str]:
    errors = {row["contestant"]: row["error"] for row in rows if row["error"]}
    return [f"- {name}: {error}" for name, error in errors.items()] + [""] * bool(errors)


def _notes(rows: list[Row]) -> list[str]:
    lines = [
        f"- {row['contestant']}: `{row['configuration']}` ({row['source']}). {row['notes']}".rstrip()
        for row in {row["key"]: row for row in rows}.values()
    ]
    return ["### How each was opened", "", *lines, ""]


def _short(key: str) -> str:
    return {OURS[0]: "`load`", OURS[1]: "`cache_dir`"}[key]


def _chart(rows: list[Row]) -> BarChart:
    cold = {
        row["key"]: row["first_batch_ms"]["median"]
        for row in rows
        if row["phase"] == "cold" and "first_batch_ms" in row
    }
    warm = sorted(
        (row for row in rows if row["phase"] == "warm" and "first_batch_ms" in row),
        key=lambda row: row["first_batch_ms"]["median"],
    )
    bars = [
        Bar(
            label=row["contestant"],
            median=row["first_batch_ms"]["median"],
            low=row["first_batch_ms"]["min"],
            high=row["first_batch_ms"]["max"],
            first=cold.get(row["key"]),
            kind=_KINDS[row["kind"]],
        )
        for row in warm
    ]
    number = rows[0]["num_samples"]
    ends = f"{bars[0].label}: {bars[0].median:,.1f}; {bars[-1].label}: {bars[-1].median:,.1f}" if bars else "none"
    alt = f"Bar chart of the milliseconds to the first batch of {number:,} images, the soonest on top. {ends}."
    return BarChart(f"reload-{number}", alt, f"ms to the first batch of {number:,} images, warm", bars, _WORDS)
