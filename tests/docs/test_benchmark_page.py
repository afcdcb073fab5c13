"""The page of benchmarks is made of the committed results, all of it, and says where another is ahead."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import matplotlib
import pytest

from benchmarks.report.__main__ import write_page
from benchmarks.report.charts import Line, LineChart, Panel, draw
from benchmarks.report.page import make_page
from benchmarks.report.sections import Target
from benchmarks.report.side_by_side import NO_REASON, OURS, OURS_FROM_DIRECTORY, REASONS
from benchmarks.serve.job import Media
from benchmarks.serve.peers import MEASURE, PEERS
from benchmarks.serve.report import make_rows
from benchmarks.serve.runner import Contestant, Measurement
from tests.docs.results import MACHINE, unmoved

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "explanation" / "benchmarks.md"


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
