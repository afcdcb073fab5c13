"""What the page of benchmarks says of reloading is what was measured, and who is sooner is named."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from benchmarks.reload.contestants import OURS as RELOADS
from benchmarks.reload.contestants import PICKLED_ARRAY
from benchmarks.reload.figures import make_rows
from benchmarks.reload.runner import Entry
from benchmarks.report.charts import draw
from benchmarks.report.page import make_page
from tests.docs.results import MACHINE, unmoved


def reopen(key: str, num_samples: int, *milliseconds: float, error: str = "") -> Entry:
    """Make up what the processes of one contestant answered, one per repeat: cold takes twice as long as warm."""
    entry = Entry(key, num_samples, Path("nowhere"), stored_mb=151.7, error=error)
    for slower, phase in ((1.0, "warm"), (2.0, "cold"), (20.0, "restarted")):
        entry.timings[phase] += [  # type: ignore[index]
            {
                "imports_ms": 987.6,
                "open_ms": slower * first / 4,
                "batch_ms": slower * first * 3 / 4,
                "first_batch_ms": slower * first,
                "grown_mb": 65.4,
                "own_mb": 32.1,
                "late_modules": 2,
                "resident_share": 1.0 if phase == "warm" else slower / 100,
            }
            for first in milliseconds
        ]
    return entry


def reloaded(directory: Path, *sizes: list[Entry]) -> Path:
    """Write made-up results of reloading; give the directory of all results."""
    record = {
        "machine": MACHINE,
        "method": "As described.",
        "seconds": 4321,
        "batch_size": 32,
        "repeats": 3,
        "versions": {"litdata": "0.2.76"},
        "rows": [row for entries in sizes for row in make_rows(entries, in_turn=True)],
    }
    (directory / "reload").mkdir(exist_ok=True)
    (directory / "reload" / "results.json").write_text(json.dumps(record), "utf-8")
    return directory


def test_whoever_reloads_sooner_is_named_and_whoever_does_not_is_held_against_the_targets(tmp_path: Path) -> None:
    loaded, cached = RELOADS
    results = reloaded(
        tmp_path,
        [
            reopen(loaded, 10_000, 10, 11, 12),
            reopen(cached, 10_000, 60, 61, 62),
            reopen("bare-memory-map", 10_000, 2, 2, 2),
            reopen(PICKLED_ARRAY, 10_000, 400, 440, 480),
            reopen("litdata-arrays", 10_000, 8, 10, 12),
            reopen("lance", 10_000, error="prepare failed"),
        ],
    )
    text = make_page(results).text
    sooner = text.partition("### Where another has its first batch sooner")[2].partition("###")[0]
    assert [line for line in sooner.splitlines() if line.startswith("| 10,000 | warm")] == [
        "| 10,000 | warm | bare memory map (no captions) | 2.0 (2.0–2.0) | 11.0 (10.0–12.0) | 5.50 × |",
        "| 10,000 | warm | LitData, arrays | 10.0 (8.0–12.0) | 11.0 (10.0–12.0) | 1.10 ×, ranges overlap |",
    ]
    summary = re.findall(r"^\| Reload: .* \|$", text, re.MULTILINE)
    assert summary == [
        "| Reload: first batch, imports aside | ≤ 100 ms | **3 of 4 met** | "
        "122.000 ms (in_memory_datasets, cache_dir, 10,000 images, cold) |",
        "| Reload: times faster than a pickled array | ≥ 20 × | **2 of 4 met** | "
        "7.213 × (pickle, one array to `cache_dir`, 10,000 images, warm) |",
        "| Reload: first batch of another way, to ours | ≥ 1 × | **0 of 4 met** | "
        "0.164 × (LitData, arrays to `cache_dir`, 10,000 images, warm) |",
    ]
    assert "- Lance: prepare failed" in text


def test_nobody_reloads_sooner_is_said_in_so_many_words(tmp_path: Path) -> None:
    """What was pickled of few images is held against no target."""
    entries = [*(reopen(key, 1000, 10, 10, 10) for key in RELOADS), reopen(PICKLED_ARRAY, 1000, 50, 50, 50)]
    text = make_page(reloaded(tmp_path, entries)).text
    assert "Nowhere: in none of the 3 combinations of size and phase" in text
    assert "| Reload: times faster" not in text


def test_reloading_a_hundred_times_the_images_is_compared_with_the_target(tmp_path: Path) -> None:
    sizes = [
        [reopen(key, number, *times) for key in RELOADS] for number, times in ((100, [10]), (10_000, [11, 12, 13]))
    ]
    page = make_page(reloaded(tmp_path, *sizes))
    assert "| in_memory_datasets, load | 1.20 × | 1.20 × | 1.20 × |" in page.text
    assert "≤ 1.1 ×; `load`, warm: **not met**; `load`, cold: **not met**; `cache_dir`, warm" in page.text
    assert [chart.name for chart in page.charts] == ["reload-100", "reload-10000"]
    svg = draw(page.charts[1]).decode()
    assert "in_memory_datasets, cache_dir" in svg
    assert ">cold<" in svg
    assert "first epoch" not in svg


def test_every_figure_of_reloading_is_on_the_page(tmp_path: Path) -> None:
    """All but the ends of the ranges of what a first batch is made of."""
    entries = [reopen(RELOADS[0], 1000, 10, 12, 14), reopen(RELOADS[1], 1000, 20, 22, 24)]
    entries.append(reopen("safetensors", 1000, 30, 33, 36))
    results = reloaded(tmp_path, entries)
    whole = {"first_batch_ms", "times_ours", "stored_mb", "resident_share"}
    parts = {"open_ms", "batch_ms"}
    once = {"imports_ms", "grown_mb", "own_mb", "late_modules"}  # told of the warm process alone
    record = json.loads((results / "reload" / "results.json").read_text("utf-8"))
    warm = [number for number, row in enumerate(record["rows"]) if row["phase"] == "warm"]

    def is_told(place: tuple[Any, ...]) -> bool:
        if place[0] != "rows" or place[2] == "num_samples":
            return place[0] in ("rows", "seconds", "batch_size", "repeats")
        if place[2] == "stored_mb":
            return place[1] in warm
        median_of = place[2] if place[-1] == "median" else ""
        return place[2] in whole or median_of in parts or (median_of in once and place[1] in warm)

    assert unmoved(results, "reload", is_told) == []
