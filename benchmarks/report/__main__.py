"""Write the page and its charts. `python -m benchmarks.report --help`."""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.report import __doc__ as summary
from benchmarks.report.charts import draw
from benchmarks.report.page import Page, make_page

_ROOT = Path(__file__).parents[2]


def main() -> None:
    parser = argparse.ArgumentParser(description=summary, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=_ROOT / "benchmarks" / "results")
    parser.add_argument("--output", type=Path, default=_ROOT / "docs" / "explanation" / "benchmarks.md")
    options = parser.parse_args()
    page = make_page(options.results)
    write_page(page, options.output)
    print(f"{options.output}, {len(page.charts)} charts")


def write_page(page: Page, path: Path) -> None:
    """Write a page, and beside it a directory of its name with its charts and no others."""
    directory = path.with_suffix("")
    directory.mkdir(parents=True, exist_ok=True)
    drawn = {f"{chart.name}.svg": draw(chart) for chart in page.charts}
    for old in directory.glob("*.svg"):
        if old.name not in drawn:
            old.unlink()
    for name, svg in drawn.items():
        (directory / name).write_bytes(svg)
    path.write_text(page.text, "utf-8")


if __name__ == "__main__":
    main()
