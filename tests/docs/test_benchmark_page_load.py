"""What the page of benchmarks says of loading is what was measured, and every verdict follows its figure."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest

from benchmarks.load.__main__ import PARTS, write_text_and_chart
from benchmarks.load.beside import Entry, make_rows
from benchmarks.load.contestants import CONTESTANTS, OURS, POOL, QUICK
from benchmarks.load.figures import Turn
from benchmarks.report import load
from benchmarks.report.charts import draw
from benchmarks.report.page import make_page
from tests.docs.results import MACHINE, unmoved


def some(median: float) -> dict[str, float]:
    """Make up a figure of several repeats."""
    return {"median": median, "min": 0.875 * median, "max": 1.125 * median}


def rate(way: str, to_bare: float, **others: Any) -> dict[str, Any]:
    row = {"media": "pictures", "way": way, "per_s": some(900 * to_bare), "cpu_ms": some(2.2), "distance": 0.41}
    return {**row, "to_bare": some(to_bare), **others}


def turns(key: str, num_pictures: int, *seconds: float, cpu: float = 0.5, error: str = "") -> Entry:
    """Make up what the processes of one contestant answered, one per repeat."""
    found = {"peak_mb": 321.0, "distance": 1.25}
    return Entry(key, num_pictures, [Turn(num_pictures, one, cpu * one, dict(found)) for one in seconds], error)


def cores(way: str, cpu_ms: float, serial_ms: float, **others: Any) -> dict[str, Any]:
    return {"way": way, "per_s": some(456), "cpu_ms": some(cpu_ms), "serial_ms": some(serial_ms), **others}


def made_up() -> dict[str, Any]:
    """Make up results of all parts."""
    ways = ["decode", "bytes", "files", "web"]
    figures = {
        "local": {
            "num_pictures": 3000,
            "num_clips": 600,
            "num_threads": 2,
            "repeats": 5,
            "rows": [rate("bare", 1.0), rate("bytes", 0.97), rate("files", 0.94), rate("bytes", 0.89, media="clips")],
        },
        "web": {
            "num_pictures": 3000,
            "num_threads": 2,
            "repeats": 5,
            "latency_ms": 20.0,
            "minimal_connections": 64,
            "our_connections": 31,
            "ceiling_connections": 128,
            "ceiling_per_s": some(5000),
            "server_cpu_ms": some(0.1),
            "rows": [
                rate(way, ratio, to_minimal=some(ratio / 0.85))
                for way, ratio in (("bare", 1.0), ("minimal", 0.85), ("ours", 0.81))
            ],
        },
        "far": {
            "latency_ms": 100.0,
            "num_threads": 2,
            "repeats": 3,
            "rows": [
                {
                    "what": what,
                    "num_pictures": 5000,
                    "side": 64,
                    "num_hosts": 1,
                    "connections": 32,
                    "per_s": some(280),
                    "ceiling_per_s": some(300),
                    "decode_per_s": some(9000),
                    "to_limit": some(to_limit),
                    "our_connections": 30,
                }
                for what, to_limit in (("small", 0.93), ("photos", 0.88))
            ],
        },
        "beside": {
            "num_pictures": 3000,
            "latency_ms": 20.0,
            "repeats": 3,
            "versions": {"img2dataset": "1.47.0"},
            "rows": make_rows(
                [
                    turns("ours", 3000, 5, 5, 6),
                    turns("img2dataset-2x32", 3000, 9, 10, 11, cpu=1.0),
                    turns("requests-64", 3000, 15, 16, 17, cpu=1.9),
                    turns(POOL, 600, 10, 12, 11, cpu=1.5),
                    turns("map-arrays", 3000, error="took more than 900 s"),
                    turns("ours-files", 3000, 4),
                    turns("monai-files", 3000, 12, cpu=0.1),
                ]
            ),
        },
        "interpreter": {
            "num_pictures": 3000,
            "repeats": 3,
            "latency_ms": 20.0,
            "python_loop_share": 0.9991,
            "zlib_share": 0.0012,
            "rows": [cores(way, 2.5, 0.25, share=some(0.1)) for way in ways],
        },
        "processes": {
            "num_pictures": 3000,
            "repeats": 3,
            "latency_ms": 20.0,
            "num_processes": 2,
            "rows": [cores(way, 2.6, 0.02) for way in ways[1:]],
        },
        "memory": {
            "num_pictures": 3000,
            "latency_ms": 20.0,
            "num_threads": 2,
            "repeats": 3,
            "rows": [
                {
                    "source": source,
                    "concurrency": number,
                    "payload_mb": 451.9,
                    "before_mb": some(345),
                    "above_mb": some(above),
                }
                for source, number, above in (("web", 128, 150), ("files", 512, 301))
            ],
        },
        "large": {
            "num_rows": 1_000_000,
            "repeats": 3,
            "rows": [
                {
                    "in_memory": in_memory,
                    "plan_seconds": some(1.5),
                    "first_seconds": some(4.5),
                    "grown_mb": some(grown),
                }
                for in_memory, grown in ((True, 400), (False, 600))
            ],
        },
        "training": {
            "num_pictures": 3000,
            "num_epochs": 5,
            "batch_size": 32,
            "latency_ms": 60.0,
            "repeats": 3,
            "rows": [
                {
                    "sampler": sampler,
                    "share": share,
                    "load_seconds": some(5),
                    "compute_seconds": some(5 * share),
                    "total_seconds": some(6.2 * share),
                    "bound_seconds": some(6.5 * share),
                    "to_bound": some(0.954),
                }
                for sampler, share in (("EpochSampler", 1.0), ("shuffle=True", 4.0))
            ],
        },
    }
    return {key: {"machine": MACHINE, "seconds": 60, "figures": found} for key, found in figures.items()}


@pytest.fixture
def record() -> dict[str, Any]:
    return made_up()


def written(directory: Path, record: dict[str, Any]) -> Path:
    """Write results of loading; give the directory of all results."""
    (directory / "load").mkdir(exist_ok=True)
    (directory / "load" / "results.json").write_text(json.dumps(record), "utf-8")
    return directory


def test_the_page_tells_of_every_part_that_is_measured(record: dict[str, Any]) -> None:
    assert [key for key, _, _ in load.PARTS] == list(PARTS) == list(record)


def test_what_is_measured_of_loading_is_held_to_what_was_asked(tmp_path: Path, record: dict[str, Any]) -> None:
    text = make_page(written(tmp_path, record)).text
    summary = re.findall(r"^\| ((?:Loading|Training while).*) \|$", text, re.MULTILINE)
    assert summary == [
        "Loading: pictures on this machine, of the bare loop | ≥ 0.95 | **1 of 2 met** | 0.940 (pictures from files)",
        "Loading: clips on this machine, of the bare loop | ≥ 0.9 | **0 of 1 met** | 0.890 (clips from bytes)",
        "Loading over HTTP: of the bare loop | ≥ 0.8 | 1 of 1 met | 0.810 (pictures)",
        "Loading over HTTP: of a minimal loader | ≥ 0.95 | 1 of 1 met | 0.953 (pictures)",
        "Loading from far away: of what server or decoder let pass | ≥ 0.9 | **1 of 2 met** | "
        "0.880 (5,000 photos, 64×64, 1 host)",
        "Loading side by side: times as many images a second | ≥ 2 × | **3 of 4 met** | 1.833 × (img2dataset, 2×32)",
        "Loading side by side: processor time of another, to ours | ≥ 1 × | **3 of 4 met** | "
        "0.600 × (MONAI CacheDataset, from files)",
        "Loading side by side: times as many as a process pool | ≥ 9 × | 1 of 1 met | "
        "10.000 × (Pool(), requests and Pillow)",
        "Loading: memory above what is loaded | ≤ 300 MB | **1 of 2 met** | "
        "301.000 MB (a load from files, 512 at once)",
        "Loading a million URLs: plan and first request | ≤ 10 s | 2 of 2 met | 4.500 s (rows in memory)",
        "Loading a million URLs: memory until then | ≤ 500 MB | **1 of 2 met** | 600.000 MB (rows on disk)",
        "Training while it loads: of the bound | ≤ 1 | 2 of 2 met | 0.954 (EpochSampler, compute of 1 × the load)",
    ]
    assert "- datasets.map, arrays: took more than 900 s" in text


def test_others_are_compared_repeat_by_repeat_with_ours_of_their_group(record: dict[str, Any]) -> None:
    """The pool loads fewer pictures, so that it is speeds that are compared."""
    rows = {row["key"]: row for row in record["beside"]["figures"]["rows"]}
    assert rows["img2dataset-2x32"]["ours_times"] == pytest.approx({"median": 11 / 6, "min": 1.8, "max": 2.0})
    assert rows[POOL]["ours_times"]["max"] == pytest.approx(12)
    assert rows["monai-files"]["ours_times"]["median"] == pytest.approx(3)
    assert "per_s" not in rows["map-arrays"]


def test_fewer_than_a_million_rows_are_held_to_nothing(tmp_path: Path, record: dict[str, Any]) -> None:
    record["large"]["figures"]["num_rows"] = 999_999
    text = make_page(written(tmp_path, record)).text
    assert "### 999,999 URLs" in text
    assert "Loading a million URLs" not in text


def test_cores_help_until_the_interpreter_is_held_all_the_time(tmp_path: Path, record: dict[str, Any]) -> None:
    page = make_page(written(tmp_path, record))
    in_one, in_many = page.text.partition("### Many cores, one interpreter")[2].split("### Many cores, worker")[:2]
    held = "0.100 (0.088–0.113) | 0.250 (0.219–0.281)"
    assert f"| a load over HTTP | 456 (399–513) | 2.500 | {held} | 10.0 cores | 4,000 |" in in_one
    assert "| a load over HTTP | 456 (399–513) | 2.600 | 0.020 (0.018–0.022) | 130.0 cores | 24,615 |" in in_many
    assert "a load over HTTP: 4,000 on 64" in in_one
    assert "a load from files" in draw(page.charts[1]).decode()


def test_loading_has_no_section_before_it_was_measured(tmp_path: Path) -> None:
    assert "## Loading" not in make_page(tmp_path).text


def test_parts_of_loading_that_were_left_out_are_named_or_say_why(tmp_path: Path, record: dict[str, Any]) -> None:
    del record["web"]
    for key in ("interpreter", "processes", "training"):
        record[key]["figures"] = {"note": f"no {key} here"}
    text = make_page(written(tmp_path, record)).text
    assert "Not measured yet: loading over HTTP. `make bench-load` does it." in text
    for key in ("interpreter", "processes", "training"):
        assert f"Not measured: no {key} here." in text


def test_the_chart_of_loading_has_a_bar_for_whoever_was_measured(tmp_path: Path, record: dict[str, Any]) -> None:
    page = make_page(written(tmp_path, record))
    assert [chart.name for chart in page.charts] == ["load", "load-cores"]
    svg = draw(page.charts[0]).decode()
    for words in ("img2dataset, 2×32", "a library", "requests and Pillow, as people write it", "in_memory_datasets"):
        assert words in svg
    assert "datasets.map, arrays" not in svg


def test_every_figure_of_loading_is_on_the_page(tmp_path: Path, record: dict[str, Any]) -> None:
    """All but the ends of the ranges of processor time, what ours is to itself, and how long measuring took."""

    def is_told(place: tuple[Any, ...]) -> bool:
        if "cpu_ms" in place:
            return place[-1] == "median"
        if place[0] == "beside" and len(place) > 3:
            row = record["beside"]["figures"]["rows"][place[3]]
            is_own = row["key"] in OURS.values()
            return "per_s" in row and not (is_own and place[4] in ("ours_times", "cpu_to_ours"))
        return place[1] != "seconds"

    assert unmoved(written(tmp_path, copy.deepcopy(record)), "load", is_told) == []


def test_what_was_measured_of_loading_lies_beside_its_figures_too(tmp_path: Path, record: dict[str, Any]) -> None:
    write_text_and_chart(record, tmp_path)
    text = (tmp_path / "results.md").read_text("utf-8")
    assert "| in_memory_datasets | web | 3,000 | 600 (500–600) |" in text
    assert "- training: 60 s; date 2026-01-02 03:04 UTC" in text
    assert "![" not in text
    assert (tmp_path / "results.png").read_bytes().startswith(b"\x89PNG")


def test_contestants_that_are_named_exist() -> None:
    assert {*OURS.values(), POOL, *QUICK} <= set(CONTESTANTS)
    assert all(CONTESTANTS[key].where == where for where, key in OURS.items())
