"""The page of benchmarks is made of the committed results, all of it, and says where another is ahead."""

from __future__ import annotations

import copy
import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import matplotlib
import pytest

from benchmarks.reload.contestants import OURS as RELOADS
from benchmarks.reload.contestants import PICKLED_ARRAY
from benchmarks.reload.figures import make_rows as make_reload_rows
from benchmarks.reload.runner import Entry
from benchmarks.report.__main__ import write_page
from benchmarks.report.charts import Line, LineChart, Panel, draw
from benchmarks.report.page import make_page
from benchmarks.report.sections import Target
from benchmarks.report.side_by_side import NO_REASON, OURS, OURS_FROM_DIRECTORY, REASONS
from benchmarks.serve.job import Media
from benchmarks.serve.peers import MEASURE, PEERS
from benchmarks.serve.report import make_rows
from benchmarks.serve.runner import Contestant, Measurement

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "explanation" / "benchmarks.md"
MACHINE = {"date": "2026-01-02 03:04 UTC", "processors": "2", "torch": "2.13.0"}


def shown(text: str) -> list[str]:
    """List the charts that a page shows."""
    return re.findall(r"^!\[[^\]]+\]\(benchmarks/([\w-]+\.svg)\)$", text, re.MULTILINE)


def test_the_committed_page_is_what_the_committed_results_make() -> None:
    assert PAGE.read_text("utf-8") == make_page(RESULTS).text, "make bench-report makes it anew"


def test_the_committed_charts_are_those_of_the_page() -> None:
    """They are there and no others are; with the matplotlib that drew them, they are the same to the byte."""
    page = make_page(RESULTS)
    names = [f"{chart.name}.svg" for chart in page.charts]
    assert names == shown(page.text)
    assert sorted(names) == sorted(path.name for path in PAGE.with_suffix("").iterdir())
    for chart, name in zip(page.charts, names, strict=True):
        committed = (PAGE.with_suffix("") / name).read_bytes()
        drawn_by = re.search(rb"Matplotlib v([\w.+]+)", committed)
        assert drawn_by is not None, name
        if drawn_by[1].decode() == matplotlib.__version__:
            assert draw(chart) == committed, f"{name}: make bench-report draws it anew"


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Copy the committed results."""
    return Path(shutil.copytree(RESULTS, tmp_path / "results"))


def places(record: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Find every number below a record, with the keys that lead to it."""
    if isinstance(record, dict):
        for key, value in record.items():
            yield from places(value, (*path, key))
    elif isinstance(record, list):
        for i, value in enumerate(record):
            yield from places(value, (*path, i))
    elif isinstance(record, int | float) and not isinstance(record, bool):
        yield path


def change(record: Any, path: tuple[Any, ...]) -> Any:
    """Copy a record with one number changed by more than any rounding hides."""
    changed = copy.deepcopy(record)
    at = changed
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = 3 * at[path[-1]] + 1
    return changed


def unmoved(results: Path, name: str, chosen: Callable[[tuple[Any, ...]], bool]) -> list[tuple[Any, ...]]:
    """List the chosen numbers of one file of results that can change without the text of the page."""
    path = results / name / "results.json"
    record = json.loads(path.read_text("utf-8"))
    before = make_page(results).text
    found = [place for place in places(record) if chosen(place)]
    assert found
    left = []
    for place in found:
        path.write_text(json.dumps(change(record, place)), "utf-8")
        if make_page(results).text == before:
            left.append(place)
    return left


def test_every_figure_of_the_five_epochs_is_on_the_page(results: Path) -> None:
    assert unmoved(results, "quick", lambda place: True) == []


def test_every_figure_of_the_gather_is_on_the_page(results: Path) -> None:
    """All but the times of single epochs, of which the page has the ends in words and every one in a chart."""
    single_epoch = ("endurance", "figures", "seconds")
    assert unmoved(results, "gather", lambda place: place[:3] != single_epoch) == []


def test_every_figure_of_huge_pages_is_on_the_page(results: Path) -> None:
    assert unmoved(results, "pages", lambda place: True) == []


def test_a_chart_follows_its_figures(results: Path) -> None:
    path = results / "gather" / "results.json"
    record = json.loads(path.read_text("utf-8"))
    before = {chart.name: draw(chart) for chart in make_page(results).charts if chart.name in ("growth", "endurance")}
    record["endurance"]["figures"]["seconds"][100] *= 1.01
    path.write_text(json.dumps(record), "utf-8")
    after = {chart.name: draw(chart) for chart in make_page(results).charts if chart.name in before}
    assert after["growth"] == before["growth"]
    assert after["endurance"] != before["endurance"]


def test_a_verdict_follows_its_figure(results: Path) -> None:
    """A figure at its bound meets the target, one beside it does not, and the summary counts both."""
    path = results / "gather" / "results.json"
    record = json.loads(path.read_text("utf-8"))
    verdicts = []
    for figure in (30.0, 30.001):
        record["overhead"]["figures"]["above_copy_us"] = figure
        path.write_text(json.dumps(record), "utf-8")
        text = make_page(results).text
        line = re.search(r"^\| loader above the bare copy .*\| ≤ 30 µs \| (.+) \|$", text, re.MULTILINE)
        assert line is not None
        summary = re.search(r"^\| A batch of one: .*\| (\**\d of \d met\**) \|", text, re.MULTILINE)
        assert summary is not None
        verdicts.append((line[1], summary[1]))
    assert verdicts == [("met", "1 of 1 met"), ("**not met**", "**0 of 1 met**")]


@pytest.mark.parametrize(
    ("target", "enough", "too_little"), [(Target("", 0.9), 0.9, 0.8999), (Target("", 3.0, at_most=True), 3.0, 3.001)]
)
def test_a_bound_belongs_to_its_target(target: Target, enough: float, too_little: float) -> None:
    assert target.is_met(enough)
    assert not target.is_met(too_little)


def test_what_was_not_measured_is_named_with_its_command(results: Path) -> None:
    """No results, no section: a line says what makes them, and no figure or chart stands in their place."""
    record = json.loads((results / "gather" / "results.json").read_text("utf-8"))
    del record["workers"]
    (results / "gather" / "results.json").write_text(json.dumps(record), "utf-8")
    assert "Not measured yet: workers. `make bench-gather` does it." in make_page(results).text

    page = make_page(results / "nothing")
    for name in ("quick", "gather", "encoded", "serve", "reload"):
        command = f"make bench-{name}"
        assert f". `{command}` does it." in page.text
    assert "Not measured: no GPU at hand." in page.text
    assert page.charts == []
    assert not re.search(r"^\||!\[", page.text, re.MULTILINE)


def epoch(samples_per_s: float) -> dict[str, float]:
    return {"samples_per_s": samples_per_s, "cpu_us_per_sample": 1e6 / samples_per_s, "first_batch_ms": 1.5}


def enter(
    key: str, warm: list[float], cold: float = 100.0, workers: int = 1, error: str = "", media: Media = "image"
) -> Measurement:
    """Make up what the processes of one peer answered, one per repeat."""
    timings = [
        {
            "resident_when_cold": 0.0,
            "cold": epoch(cold),
            "warm": [epoch(speed)],
            "peak_mb": 321.0,
            "order_correlation": 0.0,
        }
        for speed in warm
    ]
    return Measurement(Contestant(key, media, Path("nowhere"), 40), workers, timings, error)


def served(directory: Path, *measurements: Measurement) -> Path:
    """Write made-up results side by side; give the directory of all results."""
    record = {
        "machine": MACHINE,
        "num_samples": {"image": 40},
        "batch_sizes": {"image": 8, "audio": 4},
        "repeats": 3,
        "versions": {"ffcv": "1.0.2"},
        "rows": make_rows(list(measurements)),
    }
    (directory / "serve").mkdir(exist_ok=True)
    (directory / "serve" / "results.json").write_text(json.dumps(record), "utf-8")
    return directory


def where_another_is_ahead(text: str) -> list[str]:
    """Give the table of that section, a line per row."""
    section = text.partition("### Where another is ahead")[2].partition("###")[0]
    return [line for line in section.splitlines() if line.startswith("| image")]


def test_a_peer_that_is_ahead_is_named_with_both_figures(tmp_path: Path) -> None:
    """So is why, or that nobody knows why; who is behind, or level, is not named."""
    page = make_page(
        served(
            tmp_path,
            enter(MEASURE, [9000, 9000, 9000]),
            enter(OURS, [5000, 5100, 5200]),
            enter(OURS_FROM_DIRECTORY, [5300, 5300, 5300]),
            enter("ffcv-raw", [6000, 6120, 6300]),
            enter("tensordataset", [5100, 5100, 5100]),
            enter("stocaching", [4000, 5000, 7000]),
            enter("webdataset", [4000, 5101, 7000], cold=130),
        )
    )
    lines = where_another_is_ahead(page.text)
    assert lines == [
        f"| image, 1 worker | warm | FFCV, raw | {REASONS['ffcv-raw']} | 6,120 (6,000–6,300) | 5,100 (5,000–5,200) "
        "| 1.20 × |",
        f"| image, 1 worker | cold | WebDataset | {NO_REASON} | 130 (130–130) | 100 (100–100) | 1.30 × |",
        f"| image, 1 worker | warm | WebDataset | {NO_REASON} | 5,101 (4,000–7,000) | 5,100 (5,000–5,200) "
        "| 1.00 ×, ranges overlap |",
    ]
    assert "In 2 of 2 combinations" in page.text


def test_nobody_ahead_is_said_in_so_many_words(tmp_path: Path) -> None:
    results = served(tmp_path, enter(MEASURE, [9000]), enter(OURS, [5000]), enter("ffcv-raw", [4000]))
    text = make_page(results).text
    assert where_another_is_ahead(text) == []
    assert "Nowhere: in none of the 2 combinations" in text
    assert "in_memory_datasets 5,000 samples per second (1 worker); the fastest peer is FFCV, raw, 4,000" in text


def test_whoever_runs_where_we_do_not_is_ahead(tmp_path: Path) -> None:
    results = served(tmp_path, enter(MEASURE, [9000]), enter(OURS, [], error="killed"), enter("ffcv-raw", [4000]))
    text = make_page(results).text
    assert [line.split(" | ")[-2:] for line in where_another_is_ahead(text)] == [["none", "- |"]] * 2
    assert "Not in the chart: in_memory_datasets (killed)." in text


def test_every_measured_row_side_by_side_is_on_the_page_and_in_its_chart(tmp_path: Path) -> None:
    """Charts are per media and number of workers, and tell apart who decodes."""
    results = served(
        tmp_path,
        enter(MEASURE, [9000]),
        enter(OURS, [5000], workers=1),
        enter("litdata-jpeg", [40]),
        enter(MEASURE, [9000], workers=2),
        enter(OURS, [5100], workers=2),
        enter("litdata-jpeg", [50], workers=2),
    )
    page = make_page(results)
    assert shown(page.text) == ["serve-image-1.svg", "serve-image-2.svg"]
    assert unmoved(results, "serve", lambda place: place[-2:] == ("samples_per_s", "median")) == []
    svg = draw(page.charts[1]).decode()
    for words in (
        "LitData, JPEG",
        "decodes JPEG or WAV in every epoch",
        "5,100",
        "image, 2 workers (logarithmic axis)",
    ):
        assert words in svg


def test_reasons_are_given_for_peers_that_exist() -> None:
    assert set(REASONS) <= set(PEERS)
    assert {OURS, OURS_FROM_DIRECTORY, MEASURE} <= set(PEERS)


def test_the_same_chart_is_drawn_the_same_whatever_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    chart = LineChart("name", "in words", [Panel("batch", "µs", [Line("loader", [(1.0, 2.0), (10.0, 3.0)])])])
    before = draw(chart)
    monkeypatch.setitem(matplotlib.rcParams, "font.size", 20.0)
    monkeypatch.setitem(matplotlib.rcParams, "axes.grid", True)
    assert draw(chart) == before
    assert matplotlib.rcParams["font.size"] == 20.0


def test_a_page_leaves_no_chart_behind_that_it_does_not_show(tmp_path: Path) -> None:
    (tmp_path / "page").mkdir()
    (tmp_path / "page" / "old.svg").write_text("<svg/>")
    page = make_page(served(tmp_path, enter(MEASURE, [9000]), enter(OURS, [5000])))
    write_page(page, tmp_path / "page.md")
    assert [path.name for path in (tmp_path / "page").iterdir()] == ["serve-image-1.svg"]
    assert (tmp_path / "page.md").read_text("utf-8") == page.text


def reopen(key: str, num_samples: int, *milliseconds: float, error: str = "") -> Entry:
    """Make up what the processes of one contestant answered, one per repeat, cold twice as slow as warm."""
    entry = Entry(key, num_samples, Path("nowhere"), stored_mb=151.7, error=error)
    for slower, phase in ((1.0, "warm"), (2.0, "cold")):
        entry.timings[phase] += [  # type: ignore[index]
            {
                "imports_ms": 987.6,
                "open_ms": slower * first / 4,
                "batch_ms": slower * first * 3 / 4,
                "first_batch_ms": slower * first,
                "grown_mb": 65.4,
                "own_mb": 32.1,
                "late_modules": 2,
                "resident_share": 2 - slower,
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
        "rows": [row for entries in sizes for row in make_reload_rows(entries, in_turn=True)],
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
    assert "Nowhere: in none of the 2 combinations of size and phase" in text
    assert "| Reload: times faster" not in text


def test_reloading_a_hundred_times_the_images_is_compared_with_the_target(tmp_path: Path) -> None:
    sizes = [
        [reopen(key, number, *times) for key in RELOADS] for number, times in ((100, [10]), (10_000, [11, 12, 13]))
    ]
    page = make_page(reloaded(tmp_path, *sizes))
    assert "| in_memory_datasets, load | 1.20 × | 1.20 × |" in page.text
    assert "≤ 1.1 ×; `load`, warm: **not met**; `load`, cold: **not met**" in page.text
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


def test_what_was_measured_on_a_device_takes_the_place_of_the_excuse(tmp_path: Path) -> None:
    pair = {"ratio": 0.912, "ratio_range": [0.901, 0.923]}
    record = {
        "machine": {**MACHINE, "device": "a GPU"},
        "num_images": 1000,
        "gather": [{"batch_size": 256, "copy_gb_per_s": 4000.0, "gather_gb_per_s": 3600.0, **pair}],
        "transfer": {"batch_size": 256, "bus_gb_per_s": 55.0, "prefetcher_gb_per_s": 50.0, **pair},
        "epoch": {"on_device_seconds": 0.5, "prefetched_seconds": 3.0},
        "waiting": {
            "steps": 50,
            "step_seconds": 0.1,
            "on_device_waiting_share": 0.011,
            "prefetched_waiting_share": 0.022,
        },
    }
    (tmp_path / "device").mkdir()
    (tmp_path / "device" / "results.json").write_text(json.dumps(record), "utf-8")
    text = make_page(tmp_path).text
    assert "no GPU at hand" not in text
    assert "| gather on the device, B = 256 | 4,000.0 | 3,600.0 | 0.912 (0.901–0.923) | ≥ 0.7 | met |" in text
    assert "| `DevicePrefetcher` | 3.000 | 2.20 | ≤ 1 % | **not met** |" in text
    assert unmoved(tmp_path, "device", lambda place: True) == []


def kept_encoded(directory: Path) -> Path:
    """Write made-up results of encoded samples; give the directory of all results."""
    pair = {"ratio": 0.912, "ratio_range": [0.871, 0.953]}
    row = {"what": "photos", "batch_size": 32, "kept_bytes": 90_123, "bare_per_s": 900.0, "loader_per_s": 820.0, **pair}
    forms = {"decoded": 150_634.4, "encoded, 90": 23_458.1}
    lost = {"psnr": {"median": 37.4, "worst_20th": 32.5}, "ssim": {"median": 0.986, "worst_20th": 0.974}}
    mixed = {"share_decoded": 0.5, "nbytes": 61_807_230, "per_s": 1819.0, "expected_per_s": 1883.0, **pair}
    absent = {"share_on_disk": 0.25, "share_read": 0.6, "in_memory_per_s": 612.0, "expected_per_s": 600.0}
    figures = {
        "access": {"num_threads": 2, "quality": 90, "rows": [row, {**row, "what": "recompressed", "ratio": 0.899}]},
        "sizes": {
            "images": {"num_samples": 416, "bytes_per_sample": forms},
            "audio": {"num_samples": 211, "mean_seconds": 4.38, "bytes_per_sample": {"decoded": 280_356.7}},
        },
        "quality": {"num_pictures": 383, "rows": [{"quality": 90, "num_recompressed": 361, **lost}]},
        "mixture": {"num_samples": 2048, "batch_size": 32, "rows": [mixed]},
        "disk": {
            "num_samples": 6000,
            "nbytes": 358_919_265,
            "batch_size": 32,
            "reads_per_s": 7655.6,
            "read_ahead_bytes": 131_072,
            "rows": [{**absent, "per_s": 564.0, **pair}],
        },
    }
    record = {part: {"machine": MACHINE, "figures": found} for part, found in figures.items()}
    (directory / "encoded").mkdir()
    (directory / "encoded" / "results.json").write_text(json.dumps(record), "utf-8")
    return directory


def test_every_figure_of_encoded_samples_is_on_the_page(tmp_path: Path) -> None:
    results = kept_encoded(tmp_path)
    text = make_page(results).text
    assert "| photographs, as fetched | 32 | 90.1 | 900 | 820 | 0.912 (0.871–0.953) | ≥ 0.9 | met |" in text
    assert (
        "| photographs, recompressed at 90 | 32 | 90.1 | 900 | 820 | 0.899 (0.871–0.953) | ≥ 0.9 | **not met** |"
        in text
    )
    assert '| encoded, `recompress=("jpeg", 90)` | 23,458 | 42,629 | 6.42 × |' in text
    assert "| 25.0 % | 0.60 | 612 | 600 | 564 | 0.912 (0.871–0.953) |" in text
    assert unmoved(results, "encoded", lambda place: True) == []


def test_why_nothing_was_measured_on_a_disk_is_on_the_page(tmp_path: Path) -> None:
    path = kept_encoded(tmp_path) / "encoded" / "results.json"
    record = json.loads(path.read_text("utf-8"))
    record["disk"]["figures"] = {"note": "there is no disk"}
    path.write_text(json.dumps(record), "utf-8")
    assert "Not measured: there is no disk." in make_page(tmp_path).text
