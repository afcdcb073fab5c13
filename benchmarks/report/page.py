"""The page: what was measured, how it compares with what was asked for, and a section per benchmark."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.report import encoded, gather, load, scale
from benchmarks.report.charts import Chart
from benchmarks.report.device import device
from benchmarks.report.gather import five_epochs
from benchmarks.report.pages import pages
from benchmarks.report.reload import reload
from benchmarks.report.sections import Finding, Record, Section, join, table
from benchmarks.report.side_by_side import side_by_side

_HEAD = """\
<!-- Made by `make bench-report` of benchmarks/results; what is changed here by hand is lost. -->
# Benchmarks

How fast a dataset that lies in memory is served, against what the memory could do at best and against other ways to \
serve the same samples. Every figure on this page, every verdict on a target and every chart is made from \
[the results](../../benchmarks/results) by `make bench-report`; none is typed by hand.

Ratios were measured in pairs, one right after the other, and carry over to other machines better than seconds do. \
Figures are medians over repeats; a range is from the smallest to the largest of them. B is the batch size, GB are \
10⁹ bytes, and throughput counts the bytes of the samples served. Batches are taken and dropped: there is no model.
"""

_NO_DEVICE = "Not measured: no GPU at hand. `make bench-device` measures it where there is one."

# The parts of the gather's results: key, title, what writes it.
_PARTS: list[tuple[str, str, Callable[[Record], Section]]] = [
    ("images", "images against a bare copy", gather.images),
    ("audio", "clips against a bare copy", gather.audio),
    ("overhead", "a batch of one", gather.overhead),
    ("workers", "workers", gather.workers),
    ("growth", "how cost grows", gather.growth),
    ("order", "order", gather.order),
    ("endurance", "many epochs", gather.endurance),
]

# And those of samples that lie encoded.
_ENCODED_PARTS: list[tuple[str, str, Callable[[Record], Section]]] = [
    ("access", "decoding on access", encoded.access),
    ("sizes", "samples in a gigabyte", encoded.sizes),
    ("quality", "what recompressing loses", encoded.quality),
    ("mixture", "mixtures", encoded.mixture),
    ("disk", "a part on the disk", encoded.disk),
]


@dataclass(frozen=True, slots=True)
class Page:
    """A page and its charts.

    Attributes:
        text: Markdown; it shows every chart as `benchmarks/NAME.svg`.
        charts: In the order of the page.
    """

    text: str
    charts: list[Chart]


def make_page(results: Path) -> Page:
    """Make the page of the results in a directory; what has not been measured is named with its command."""
    names = ("quick", "load", "gather", "encoded", "serve", "reload", "scale", "pages", "device")
    records = {name: read(results / name / "results.json") for name in names}
    parts = {key: _part(records["gather"], key, title, write, "make bench-gather") for key, title, write in _PARTS}
    of_encoded = [
        _part(records["encoded"], key, title, write, "make bench-encoded") for key, title, write in _ENCODED_PARTS
    ]
    loaded = records["load"]
    of_load = [_part(loaded, key, title, write, "make bench-load") for key, title, write in load.PARTS]
    of_scale = [_part(records["scale"], key, title, write, "make bench-scale") for key, title, write in scale.PARTS]
    quick, serve, reloaded, in_pages, on_device = (
        records[name] for name in ("quick", "serve", "reload", "pages", "device")
    )
    sections = [
        join(
            "## Five epochs",
            five_epochs(quick) if quick else _not_measured("five epochs", "make bench-quick"),
        ),
        *([join("## Loading", *of_load)] if loaded else []),
        join("## The gather against a bare copy", parts["images"], parts["audio"], parts["overhead"]),
        join("## Workers", parts["workers"]),
        join("## How cost grows", parts["growth"]),
        join("## Order", parts["order"]),
        join("## Many epochs", parts["endurance"]),
        join("## Encoded samples", *of_encoded),
        join(
            "## Side by side with others",
            side_by_side(serve) if serve else _not_measured("side by side with others", "make bench-serve"),
        ),
        join(
            "## Reload",
            reload(reloaded) if reloaded else _not_measured("reload", "make bench-reload"),
        ),
        *([join("## Beyond one machine", *of_scale)] if records["scale"] else []),
        join(
            "## Huge pages",
            pages(in_pages["figures"]) if in_pages else _not_measured("huge pages", "make bench-pages"),
        ),
        join("## On a GPU", device(on_device) if on_device else Section([_NO_DEVICE, ""])),
    ]
    findings = [finding for section in sections for finding in section.findings]
    lines = [_HEAD, *_targets(findings), *_machines(records)]
    lines += [line for section in sections for line in section.lines]
    return Page("\n".join(lines).rstrip() + "\n", [chart for section in sections for chart in section.charts])


def read(path: Path) -> Record:
    """Read results; None where there are none."""
    return json.loads(path.read_text("utf-8")) if path.exists() else None


def _part(record: Record, key: str, title: str, write: Callable[[Record], Section], command: str) -> Section:
    if record is None or key not in record:
        return _not_measured(title, command)
    return write(record[key]["figures"])


def _not_measured(title: str, command: str) -> Section:
    return Section([f"Not measured yet: {title}. `{command}` does it.", ""])


def _targets(findings: list[Finding]) -> list[str]:
    """Sum up all verdicts; the figure that is shown is the one that does worst."""
    if not findings:
        return []
    rows = []
    for target in dict.fromkeys(finding.target for finding in findings):
        held = [finding for finding in findings if finding.target == target]
        num_met = sum(target.is_met(finding.figure) for finding in held)
        worst = (max if target.at_most else min)(held, key=lambda finding: finding.figure)
        verdict = f"{num_met} of {len(held)} met" if num_met == len(held) else f"**{num_met} of {len(held)} met**"
        rows.append([target.name, f"{target}", verdict, f"{worst.figure:.3f}{target.unit} ({worst.what})"])
    return [
        "## What was asked for",
        "",
        "Every figure of the sections below that has a target is counted.",
        "",
        *table(["what", "target", "figures", "worst of them"], rows, num_text=4),
    ]


def _machines(records: dict[str, Record]) -> list[str]:
    """Say where and when each part was measured, and with what it is measured again."""
    copies, kept = records["gather"] or {}, records["encoded"] or {}
    measured = [("five epochs", "quick", records["quick"])]
    measured += [(title, "load", (records["load"] or {}).get(key)) for key, title, _ in load.PARTS]
    measured += [(title, "gather", copies.get(key)) for key, title, _ in _PARTS]
    measured += [(title, "encoded", kept.get(key)) for key, title, _ in _ENCODED_PARTS]
    measured += [
        ("side by side with others", "serve", records["serve"]),
        ("reload", "reload", records["reload"]),
        *((title, "scale", (records["scale"] or {}).get(key)) for key, title, _ in scale.PARTS),
        ("huge pages", "pages", records["pages"]),
        ("on a GPU", "device", records["device"]),
    ]
    measured = [(title, f"make bench-{name}", record) for title, name, record in measured if record]
    if not measured:
        return []
    machines: dict[str, int] = {}
    rows = []
    for title, command, record in measured:
        machine = ", ".join(f"{name} {value}" for name, value in record["machine"].items() if name != "date")
        number = machines.setdefault(machine, len(machines) + 1)
        rows.append([title, record["machine"]["date"], f"{number}", f"`{command}`"])
    return [
        "## Where and when",
        "",
        *table(["what", "measured", "machine", "once more"], rows, num_text=4),
        *(f"{number}. {machine}" for machine, number in machines.items()),
        "",
        "`make bench-report` then makes this page. A machine that does something else at the same time is no place to "
        "measure on.",
        "",
    ]
