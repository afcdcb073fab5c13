"""Charts as data, and drawn: bytes that depend on the data and on matplotlib's version alone."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Kind = Literal["measure", "ours", "decoded", "encoded"]

# Okabe and Ito's palette, which all kinds of colour vision tell apart; hatching says the same without colour.
_BLUE, _ORANGE, _GREEN, _VERMILION, _GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#B8B8B8"
_STYLES: dict[Kind, dict[str, Any]] = {
    "measure": {"label": "bare copy on one thread, no loader", "facecolor": "white", "edgecolor": "black"},
    "ours": {"label": "in_memory_datasets", "facecolor": _BLUE, "edgecolor": "black"},
    "decoded": {"label": "peer, keeps samples decoded", "facecolor": _GREY, "edgecolor": "black"},
    "encoded": {
        "label": "peer, decodes JPEG or WAV in every epoch",
        "facecolor": _ORANGE,
        "edgecolor": "black",
        "hatch": "///",
    },
}
# Beyond this range, bars over a linear axis would vanish.
_LINEAR_RANGE = 20.0
_SETTINGS = {
    "svg.hashsalt": "in-memory-datasets",  # ids in the file are random otherwise
    "svg.fonttype": "none",  # text stays text
    "font.size": 9.0,
    "hatch.linewidth": 0.6,
}


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar.

    Attributes:
        label: What it stands for.
        median: How long it is.
        low: The smallest of the repeats.
        high: The largest of the repeats.
        first: The same in the first epoch, drawn as a mark; None where it is not known.
        kind: Which colour it gets.
    """

    label: str
    median: float
    low: float
    high: float
    first: float | None
    kind: Kind


@dataclass(frozen=True, slots=True)
class BarChart:
    """Bars from the left, the first one on top.

    Attributes:
        name: Of the file, without its suffix.
        alt: What it shows, in words.
        quantity: What the bars measure, with its unit.
        bars: In order.
        words: What the legend says of a kind of bar, or of the "first" mark, where it is not what it says of epochs.
    """

    name: str
    alt: str
    quantity: str
    bars: list[Bar]
    words: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Line:
    """One line.

    Attributes:
        label: What it stands for; "" if it is the only one.
        points: (x, y), ascending in x.
        reference: Whether it is what the others are compared with.
    """

    label: str
    points: Sequence[tuple[float, float]]
    reference: bool = False


@dataclass(frozen=True, slots=True)
class Panel:
    """Lines over one pair of axes.

    Attributes:
        x: What lies to the right, with its unit.
        y: What lies upwards, with its unit; its axis begins at 0.
        lines: In the order of the legend.
        log_x: Whether x grows by factors; every x then has its own tick.
    """

    x: str
    y: str
    lines: list[Line]
    log_x: bool = True


@dataclass(frozen=True, slots=True)
class LineChart:
    """Panels, two in a row.

    Attributes:
        name: Of the file, without its suffix.
        alt: What it shows, in words.
        panels: In order.
    """

    name: str
    alt: str
    panels: list[Panel]


Chart = BarChart | LineChart


def draw(chart: Chart, *, form: Literal["svg", "png"] = "svg") -> bytes:
    """Draw a chart on white, so that it can be read on a page of any colour."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # whatever the settings of whoever draws
        matplotlib.rcParams.update(_SETTINGS)
        figure = Figure(layout="constrained", facecolor="white")
        if isinstance(chart, BarChart):
            _draw_bars(figure, chart)
        else:
            _draw_lines(figure, chart)
        file = io.BytesIO()
        figure.savefig(file, format=form, dpi=120, metadata={"Date": None} if form == "svg" else None)
    return file.getvalue()


def needs_log(values: Iterable[float]) -> bool:
    """Tell whether values are too far apart for a linear axis."""
    listed = list(values)
    return max(listed) > _LINEAR_RANGE * min(listed)


def _draw_bars(figure: Any, chart: BarChart) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    bars = chart.bars
    figure.set_size_inches(8.5, 1.25 + 0.27 * len(bars))
    axes = figure.subplots()
    ends = [max(bar.high, bar.first or 0.0) for bar in bars]
    if needs_log([bar.low for bar in bars] + ends):
        # A logarithmic axis has no zero for bars to begin at: they begin at a round figure below the smallest.
        smallest = min(min(bar.low, bar.first or bar.low) for bar in bars)
        axes.set(xscale="log", xlim=(10.0 ** math.floor(math.log10(smallest)), 2.2 * max(ends)))
        axes.set_xlabel(f"{chart.quantity} (logarithmic axis)")
    else:
        axes.set(xlim=(0, 1.12 * max(ends)))
        axes.set_xlabel(chart.quantity)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    for y, (bar, end) in enumerate(zip(bars, ends, strict=True)):
        style = {name: value for name, value in _STYLES[bar.kind].items() if name != "label"}
        axes.barh(y, bar.median, height=0.72, linewidth=0.6, **style)
        axes.hlines(y, bar.low, bar.high, color="black", linewidth=1.2)
        if bar.first is not None:
            axes.plot(bar.first, y, "D", color="white", markeredgecolor=_VERMILION, markersize=4.5)
        axes.annotate(f"{bar.median:,.0f}", (end, y), xytext=(5, 0), textcoords="offset points", va="center")
    axes.set_yticks(range(len(bars)), [bar.label for bar in bars])
    for label, bar in zip(axes.get_yticklabels(), bars, strict=True):
        label.set_fontweight("bold" if bar.kind == "ours" else "normal")
    axes.set_ylim(len(bars) - 0.4, -0.6)
    _tidy(axes, "x")
    kinds = {bar.kind for bar in bars}
    handles: list[Any] = [
        Patch(linewidth=0.6, **{**style, "label": chart.words.get(kind, style["label"])})
        for kind, style in _STYLES.items()
        if kind in kinds
    ]
    handles.append(Line2D([], [], color="black", linewidth=1.2, label="smallest to largest of the repeats"))
    if any(bar.first is not None for bar in bars):
        mark: dict[str, Any] = {"marker": "D", "markersize": 4.5, "markeredgecolor": _VERMILION, "color": "white"}
        label = chart.words.get("first", "first epoch after opening")
        handles.append(Line2D([], [], linewidth=0, label=label, **mark))
    figure.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False)


def _draw_lines(figure: Any, chart: LineChart) -> None:
    columns = min(2, len(chart.panels))
    rows = -(-len(chart.panels) // columns)
    figure.set_size_inches(8.5, 3.0 * rows)
    grid = figure.subplots(rows, columns, squeeze=False).flat
    for axes, panel in zip(grid, chart.panels, strict=True):
        colours = iter([_BLUE, _VERMILION, _GREEN])
        colour = _BLUE
        for line in panel.lines:
            # What is compared with a line has its colour.
            colour = colour if line.reference else next(colours)
            marker = "" if len(line.points) > 20 else "s" if line.reference else "o"
            x, y = zip(*line.points, strict=True)
            style = "--" if line.reference else "-"
            axes.plot(x, y, style, marker=marker, markersize=4, color=colour, linewidth=1.3, label=line.label)
        axes.set(xlabel=panel.x, ylabel=panel.y)
        if panel.log_x:
            axes.set_xscale("log")
            ticks = sorted({x for line in panel.lines for x, _ in line.points})
            axes.set_xticks(ticks, [f"{tick:,.0f}" for tick in ticks])
            axes.set_xticks([], minor=True)
        axes.set_ylim(0, 1.15 * max(y for line in panel.lines for _, y in line.points))
        _tidy(axes, "y")
        if any(line.label for line in panel.lines):
            axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False, fontsize=8)


def _tidy(axes: Any, direction: str) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis=direction, color="#D9D9D9", linewidth=0.6)
    axes.set_axisbelow(True)
