"""What a page is made of: sections, and the targets that their figures are held to."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.report.charts import Chart

Record = Any  # what json.loads gives


@dataclass(frozen=True, slots=True)
class Target:
    """What a figure has to reach.

    Attributes:
        name: What is asked for.
        bound: The last figure that will do.
        unit: Of both, with what stands between them.
        at_most: Whether figures have to stay below it instead.
    """

    name: str
    bound: float
    unit: str = ""
    at_most: bool = False

    def is_met(self, figure: float) -> bool:
        """Tell whether a figure will do; the bound itself does."""
        return figure <= self.bound if self.at_most else figure >= self.bound

    def __str__(self) -> str:
        return f"{'≤' if self.at_most else '≥'} {self.bound:g}{self.unit}"


@dataclass(frozen=True, slots=True)
class Finding:
    """A figure and what was asked of it.

    Attributes:
        target: What was asked.
        what: Which case it was measured in.
        figure: What was measured.
    """

    target: Target
    what: str
    figure: float

    @property
    def verdict(self) -> str:
        """Say whether the target is met."""
        return "met" if self.target.is_met(self.figure) else "**not met**"


@dataclass(frozen=True, slots=True)
class Section:
    """A part of the page.

    Attributes:
        lines: Markdown, paragraphs with empty lines between them.
        findings: Every figure in it that has a target.
        charts: What its lines show.
    """

    lines: list[str]
    findings: list[Finding] = field(default_factory=list)
    charts: list[Chart] = field(default_factory=list)


def join(title: str, *parts: Section) -> Section:
    """Put sections under one title."""
    return Section(
        [title, "", *(line for part in parts for line in part.lines)],
        [finding for part in parts for finding in part.findings],
        [chart for part in parts for chart in part.charts],
    )


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], *, num_text: int = 1) -> list[str]:
    """Write a table whose first `num_text` columns are text, and the others figures."""
    rules = ["---"] * num_text + ["---:"] * (len(heads) - num_text)
    return [*(f"| {' | '.join(cells)} |" for cells in [heads, rules, *rows]), ""]


def show(chart: Chart) -> list[str]:
    """Put a chart into the page."""
    return [f"![{chart.alt}](benchmarks/{chart.name}.svg)", ""]


def spread(median: float, ends: Sequence[float], digits: int = 3) -> str:
    """Write a median with the smallest and the largest."""
    return f"{median:.{digits}f} ({ends[0]:.{digits}f}–{ends[1]:.{digits}f})"


def count(number: int, noun: str) -> str:
    """Write a number of things."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
