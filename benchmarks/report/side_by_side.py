"""The section of peers: charts, where one of them is ahead and why, and the table of all."""

from __future__ import annotations

from collections.abc import Iterable

from benchmarks.report.charts import Bar, BarChart, Chart, Kind
from benchmarks.report.sections import Record, Section, count, show, table
from benchmarks.serve.peers import MEASURE
from benchmarks.serve.report import as_markdown
from benchmarks.serve.samples import SAMPLING_RATE, SECONDS, SIDE

Row = Record  # of benchmarks.serve.report.make_rows

OURS = "in_memory_datasets"
OURS_FROM_DIRECTORY = "in_memory_datasets-directory"

# Why a peer can be ahead, by its key. Reasons are understood by people: one without is listed all the same.
REASONS: dict[str, str] = {
    "ffcv-raw": (
        "its compiled loader copies outside of Python, on as many threads as it has workers and some batches ahead of "
        "the loop, into buffers that it fills again whether or not a batch is still held; no worker process hands a "
        "batch over"
    ),
    "tensordataset": (
        "its clips lie in memory padded to the longest of all, which takes twice the room, in pages that were written "
        "to; ours are mapped as the first epoch comes to them"
    ),
    "monai-cachedataset-threaddataloader": "its workers are threads: no batch goes from one process to another",
}
NO_REASON = "**no reason known**"


def side_by_side(record: Record) -> Section:
    """Write what `benchmarks.serve` measured."""
    rows: list[Row] = record["rows"]
    samples = " and ".join(
        f"{number:,} {media} samples in batches of {record['batch_sizes'][media]}"
        for media, number in record["num_samples"].items()
    )
    lines = [
        f"{samples}; {count(record['repeats'], 'repeat')}, each a process of its own, all peers in turn. Every peer is "
        "set up as its makers recommend for shuffled epochs; slow ones get a share of the samples, which the table "
        f"tells. An image is {SIDE}×{SIDE} pixels, clips take {SECONDS[0]:g} to {SECONDS[1]:g} seconds at "
        f"{SAMPLING_RATE:,} Hz. Peers that keep JPEG need far less room, and decode it in every epoch. Warm "
        "are epochs after the first, cold is the first one after opening. The bare copy, memcpy, has one thread; a "
        "loader whose threads share a copy can be faster.",
        "",
    ]
    charts: list[Chart] = []
    for chosen in _by_chart(rows):
        if any(_speed(row) for row in chosen):
            charts.append(_chart(chosen))
            lines += show(charts[-1])
        lines += _missing(chosen)
    lines += _ahead(rows)
    lines += [as_markdown(rows)]
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    lines += [f"Versions: {versions}.", ""]
    return Section(lines, charts=charts)


def find_ahead(rows: list[Row]) -> list[tuple[Row, Row | None]]:
    """Find every row of a peer whose median is above ours of the same media, workers and phase, with ours.

    Where ours has no figure, whoever has one is ahead of it.
    """
    ours = {_key(row): row for row in rows if row["key"] == OURS and _speed(row)}
    return [
        (row, ours.get(_key(row)))
        for row in rows
        if row["key"] not in (MEASURE, OURS, OURS_FROM_DIRECTORY)
        and _speed(row) > (_speed(ours[_key(row)]) if _key(row) in ours else 0.0)
    ]


def _ahead(rows: list[Row]) -> list[str]:
    lines = ["### Where another is ahead", ""]
    found = find_ahead(rows)
    num_places = len({_key(row) for row in rows})
    if not found:
        lines += [
            f"Nowhere: in none of the {count(num_places, 'combination')} of media, workers and phase does a peer's "
            "median lie above that of in_memory_datasets.",
            "",
        ]
    else:
        num_behind = len({_key(row) for row, _ in found})
        lines += [
            f"In {num_behind} of {count(num_places, 'combination')} of media, workers and phase a peer's median lies "
            "above that of in_memory_datasets. Medians in samples per second, with the range of the repeats:",
            "",
        ]
        cells = [
            [
                *(_place(row), row["phase"], row["peer"], REASONS.get(row["key"], NO_REASON)),
                *(_figure(row), _figure(ours), _lead(row, ours)),
            ]
            for row, ours in found
        ]
        heads = ["media", "phase", "peer", "why", "its median", "in_memory_datasets", "ahead by"]
        lines += table(heads, cells, num_text=4)
    return [*lines, *_best(rows)]


def _best(rows: list[Row]) -> list[str]:
    """Compare everybody's best number of workers, which is what a user would take."""
    lines = []
    for media in dict.fromkeys(row["media"] for row in rows):
        warm = [row for row in rows if row["media"] == media and row["phase"] == "warm" and _speed(row)]
        ours = [row for row in warm if row["key"] == OURS]
        peers = [row for row in warm if row["key"] not in (MEASURE, OURS, OURS_FROM_DIRECTORY)]
        if ours and peers:
            mine, other = (max(some, key=_speed) for some in (ours, peers))
            lines.append(
                f"Each at its own best number of workers, {media}, warm: in_memory_datasets {_speed(mine):,.0f} "
                f"samples per second ({count(mine['workers'], 'worker')}); the fastest peer is {other['peer']}, "
                f"{_speed(other):,.0f} ({count(other['workers'], 'worker')})."
            )
            lines.append("")
    return lines


def _by_chart(rows: list[Row]) -> list[list[Row]]:
    places = dict.fromkeys((row["media"], row["workers"]) for row in rows)
    return [[row for row in rows if (row["media"], row["workers"]) == place] for place in places]


def _chart(rows: list[Row]) -> BarChart:
    first = {row["key"]: _speed(row) or None for row in rows if row["phase"] == "cold"}
    warm = sorted(
        (row for row in rows if row["phase"] == "warm" and _speed(row)),
        key=lambda row: (row["key"] != MEASURE, -_speed(row)),
    )
    bars = [
        Bar(
            label=row["peer"],
            median=_speed(row),
            low=row["samples_per_s"]["min"],
            high=row["samples_per_s"]["max"],
            first=first.get(row["key"]),
            kind=_kind(row),
        )
        for row in warm
    ]
    place = _place(rows[0])
    alt = f"Bar chart of samples per second, {place}, of {count(len(bars), 'way')} to serve them. {_fastest(bars)}."
    return BarChart(f"serve-{rows[0]['media']}-{rows[0]['workers']}", alt, f"samples per second, {place}", bars)


def _fastest(bars: list[Bar]) -> str:
    """Name the fastest of each kind."""
    best: dict[Kind, Bar] = {}
    for bar in bars:
        best.setdefault(bar.kind, bar)
    return "; ".join(f"{bar.label}: {bar.median:,.0f}" for bar in best.values())


def _kind(row: Row) -> Kind:
    if row["key"] == MEASURE:
        return "measure"
    if row["key"] in (OURS, OURS_FROM_DIRECTORY):
        return "ours"
    # The peers whose images come out exactly have not gone through JPEG; clips are never lossy.
    encoded = not row["exact"] if row["media"] == "image" else "WAV" in row["stored"]
    return "encoded" if encoded else "decoded"


def _missing(rows: Iterable[Row]) -> list[str]:
    missing = [row for row in rows if row["phase"] == "warm" and not _speed(row)]
    if not missing:
        return []
    reasons = "; ".join(f"{row['peer']} ({row['error']})" for row in missing)
    return [f"Not in the chart: {reasons}.", ""]


def _key(row: Row) -> tuple[str, int, str]:
    return row["media"], row["workers"], row["phase"]


def _place(row: Row) -> str:
    return f"{row['media']}, {count(row['workers'], 'worker')}"


def _speed(row: Row) -> float:
    """Give the median of samples per second; 0 where there is none."""
    found = row.get("samples_per_s")
    return float(found["median"]) if found else 0.0


def _lead(row: Row, ours: Row | None) -> str:
    if ours is None:
        return "-"
    overlap = row["samples_per_s"]["min"] <= ours["samples_per_s"]["max"]  # a lead of medians: the other end is given
    return f"{_speed(row) / _speed(ours):.2f} ×{', ranges overlap' if overlap else ''}"


def _figure(row: Row | None) -> str:
    if row is None:
        return "none"
    found = row["samples_per_s"]
    return f"{found['median']:,.0f} ({found['min']:,.0f}–{found['max']:,.0f})"
