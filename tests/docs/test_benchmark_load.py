"""The benchmark of loading measures what it says: its server, its comparisons, and its look at the interpreter."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from benchmarks.load.__main__ import parse_options
from benchmarks.load.checking import SIDE, Pictures, compare_all, name_of
from benchmarks.load.cores import projection
from benchmarks.load.interpreter import looking
from benchmarks.load.memory import held
from benchmarks.load.running import started
from benchmarks.load.serving import drain, serve
from benchmarks.processes.jobs import JobError
from benchmarks.report.page import make_page
from tests.lacking import lacks, needs_proc

ROOT = Path(__file__).parents[2]


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.load", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True, timeout=170)


@pytest.mark.campaign
@needs_proc
def test_the_benchmark_of_loading_runs_on_inputs_of_its_own_and_is_told_on_the_page(tmp_path: Path) -> None:
    result = run(
        *("--quick", "--parts", "local,web,far,beside,training", "--contestants", "ours,requests-16"),
        *("--build", tmp_path / "build", "--output", tmp_path / "load"),
    )
    assert result.returncode == 0, result.stderr
    record = json.loads((tmp_path / "load" / "results.json").read_text("utf-8"))
    assert [(row["media"], row["way"]) for row in record["local"]["figures"]["rows"]] == [
        ("pictures", "bare"),
        ("pictures", "bytes"),
        ("pictures", "files"),
        ("clips", "bare"),
        ("clips", "bytes"),
    ]
    assert [row["way"] for row in record["web"]["figures"]["rows"]] == ["bare", "minimal", "ours"]
    assert record["web"]["figures"]["our_connections"] > 1
    assert [row["what"] for row in record["far"]["figures"]["rows"]] == ["small", "small", "photos", "photos"]
    assert [(row["key"], row["error"]) for row in record["beside"]["figures"]["rows"]] == [
        ("ours", ""),
        ("requests-16", ""),
    ]
    assert record["beside"]["figures"]["rows"][1]["ours_times"]["median"] > 0
    assert "### Side by side" in make_page(tmp_path).text
    assert (tmp_path / "load" / "results.png").stat().st_size > 0
    assert sorted(path.name for path in (tmp_path / "build" / "load").iterdir()) == [
        "clips-16",
        "photos-32",
        "small-64",
        "stores",
    ]
    assert list((tmp_path / "build" / "load" / "stores").iterdir()) == []


@pytest.mark.campaign
@needs_proc
def test_the_memory_of_loads_and_the_start_of_a_large_one_are_seen_from_outside(tmp_path: Path) -> None:
    result = run("--quick", "--parts", "memory,large", "--build", tmp_path, "--output", tmp_path / "load")
    assert result.returncode == 0, result.stderr
    record = json.loads((tmp_path / "load" / "results.json").read_text("utf-8"))
    rows = record["memory"]["figures"]["rows"]
    assert [(row["source"], row["concurrency"]) for row in rows] == [
        (source, number) for source in ("web", "files") for number in (128, 512)
    ]
    assert all(row["payload_mb"] > 32 * SIDE * SIDE * 3 / 1e6 and row["before_mb"]["median"] > 50 for row in rows)
    large = record["large"]["figures"]
    assert [row["in_memory"] for row in large["rows"]] == [True, False]
    assert all(row["first_seconds"]["median"] > row["plan_seconds"]["median"] > 0 for row in large["rows"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--parts", "web,speed"], "no such parts: speed; there are local, web,"),
        (["--contestants", "wget"], "no such contestants: wget; there are ours, img2dataset-1x64,"),
        (["--num-processes", "1"], "--num-processes 1: expected at least 2"),
        (["--num-clips", "3"], "at least one repeat, one thread and 16 samples of each kind"),
    ],
)
def test_the_benchmark_of_loading_refuses_what_it_does_not_have(
    arguments: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmarks.load", *arguments])
    with pytest.raises(SystemExit) as ended:
        parse_options()
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


@pytest.fixture
def pictures(tmp_path: Path) -> Pictures:
    """Make three pictures of different shapes, soft enough to be the same at any scale."""
    sizes = [(400, 300), (300, 400), (256, 256)]
    draw = np.random.default_rng(0)
    references = np.empty((3, SIDE, SIDE, 3), np.uint8)
    for i, size in enumerate(sizes):
        knots = Image.fromarray(draw.integers(0, 255, (4, 4, 3)).astype(np.uint8))
        picture = knots.resize(size, Image.Resampling.BICUBIC)
        picture.save(tmp_path / name_of(i), quality=95)
        references[i] = np.asarray(picture.resize((SIDE, SIDE), Image.Resampling.BICUBIC))
    np.save(tmp_path / "references.npy", references)
    return Pictures(tmp_path, sizes)


def cropped(pictures: Pictures) -> list[NDArray[np.uint8]]:
    images = []
    for path, (width, height) in zip(pictures.paths, pictures.sizes, strict=True):
        side = min(width, height)
        left, top = (width - side) // 2, (height - side) // 2
        piece = Image.open(path).crop((left, top, left + side, top + side))
        images.append(np.asarray(piece.resize((SIDE, SIDE), Image.Resampling.BICUBIC)))
    return images


def test_pictures_that_were_cropped_are_compared_with_the_middle_of_the_whole(pictures: Pictures) -> None:
    images = cropped(pictures)
    assert compare_all(enumerate(images), pictures, 3, "crop") < 2
    with pytest.raises(ValueError, match="picture 0 lies"):
        compare_all(enumerate(images), pictures, 3, "stretch")


@pytest.mark.parametrize(
    ("order", "said"),
    [
        ([0, 1], "2 pictures, expected the first 3"),
        ([0, 1, 2, 2], "picture 2 came twice"),
    ],
)
def test_who_leaves_a_picture_out_or_brings_it_twice_has_no_figures(
    pictures: Pictures, order: list[int], said: str
) -> None:
    references = pictures.references()
    with pytest.raises(ValueError, match=said):
        compare_all(((i, references[i]) for i in order), pictures, 3)


def test_who_brings_another_picture_or_size_has_no_figures(pictures: Pictures) -> None:
    references = pictures.references()
    with pytest.raises(ValueError, match=r"picture 0 lies .* grey levels from what Pillow makes"):
        compare_all([(0, references[1])], pictures, 1)
    with pytest.raises(ValueError, match="expected uint8"):
        compare_all([(0, references[0][::2])], pictures, 1)


def test_the_server_hands_out_its_files_and_tells_what_it_did(tmp_path: Path) -> None:
    directory = tmp_path / "files"
    directory.mkdir()
    for i in range(40):
        (directory / f"{i}.jpg").write_bytes(bytes(1000 * i + 1))
    with serve(directory, latency_seconds=0.001) as server:
        urls = [f"{url}?row={i}" for i, url in enumerate(server.urls(directory, [f"{i}.jpg" for i in range(40)]))]
        assert server.usage().first_request is None
        assert drain(urls, 8) > 0
        usage = server.usage()
        assert (usage.num_requests, usage.most_connections) == (40, 8)
        assert usage.first_request is not None
        assert usage.cpu_seconds > 0
        assert server.usage().first_request is None
        with pytest.raises(ConnectionError, match="404 Not Found"):
            drain(server.urls(directory, ["41.jpg"]), 1)


def share_held(task: dict[str, object]) -> float:
    with started(task) as process:
        if process.ready["word"] is None:
            assert sys.version_info[:2] != (3, 11), "of this one it is known where that stands"
            lacks("this interpreter does not tell from outside whether it is held")
        with looking(process.pid, process.ready["word"]) as looks:
            process.begin()
            process.read()
    return looks.share


@needs_proc
def test_a_loop_in_python_holds_the_interpreter_and_one_in_zlib_does_not() -> None:
    assert share_held({"task": "spin", "seconds": 1.0}) > 0.9
    assert share_held({"task": "sum_up", "seconds": 1.0}) < 0.1


def test_a_process_that_fails_says_why() -> None:
    with pytest.raises(JobError, match="KeyError: 'nothing'"), started({"task": "nothing"}):
        pass


@needs_proc
def test_a_process_is_seen_to_hold_what_it_holds() -> None:
    code = (
        "import os; fd = os.memfd_create('block'); os.write(fd, bytes(30_000_000));"
        "more = bytearray(b'1') * 50_000_000; print(len(more), flush=True); input()"
    )
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        seen = held(process.pid)
        process.communicate("\n")
    assert 30_000_000 <= seen.block_bytes < 31_000_000
    assert 50_000_000 < seen.own_bytes < 100_000_000


def test_more_cores_help_until_what_they_cannot_share_is_all_there_is() -> None:
    row = {"cpu_ms": {"median": 2.0}, "serial_ms": {"median": 0.1}}
    assert [round(per_s) for _, per_s in projection(row)] == [500, 1000, 2000, 4000, 8000, 10_000, 10_000]
