"""Benchmarks run from a checkout. What they measure is no test; that they measure it is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.bench_pages import SWITCH
from benchmarks.reload.contestants import OURS, QUICK
from benchmarks.report.page import make_page

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.campaign


def test_the_benchmark_of_devices_runs_with_the_processor_as_the_device(tmp_path: Path) -> None:
    arguments = ["--device", "cpu", "--num-images", "4", "--num-steps", "1", "--repeats", "1", "--output", tmp_path]
    subprocess.run(
        [sys.executable, "-m", "benchmarks.bench_device", *map(str, arguments)],
        cwd=ROOT,
        check=True,
        stdout=subprocess.DEVNULL,
        timeout=150,
    )
    record = json.loads((tmp_path / "results.json").read_text())
    assert record["machine"]["device"] == "cpu"
    assert [row["batch_size"] for row in record["gather"]] == [32, 256, 1024]
    assert all(row["gather_gb_per_s"] > 0 < row["ratio"] for row in record["gather"])
    assert record["transfer"]["prefetcher_gb_per_s"] > 0
    assert record["epoch"]["on_device_seconds"] > 0 < record["epoch"]["prefetched_seconds"]
    assert record["waiting"]["steps"] == 1
    assert record["waiting"]["on_device_waiting_share"] < 1 > record["waiting"]["prefetched_waiting_share"]


def test_the_benchmark_of_the_gather_refuses_a_part_it_does_not_have(tmp_path: Path) -> None:
    arguments = ["--parts", "order,images,speed", "--output", str(tmp_path)]
    command = [sys.executable, "-m", "benchmarks.bench_gather", *arguments]
    result = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True, timeout=60)
    assert result.returncode == 2
    assert "no such parts: speed; there are images, audio," in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_benchmark_of_huge_pages_runs_or_says_what_it_needs(tmp_path: Path) -> None:
    arguments = ["--num-images", "512", "--repeats", "1", "--output", str(tmp_path)]
    command = [sys.executable, "-m", "benchmarks.bench_pages", *arguments]
    before = SWITCH.read_text() if SWITCH.exists() else None
    result = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True, timeout=60)
    if not os.access(SWITCH, os.W_OK):
        assert "this needs Linux, and to be root" in result.stderr
        return
    assert before == SWITCH.read_text()
    figures = json.loads((tmp_path / "results.json").read_text())["figures"]
    assert figures["huge_bytes"] > 512 * 224 * 224 * 3 / 2
    assert all(figures[what]["gain"] > 0 for what in ("write", "first_epoch", "later_epoch"))


def test_the_benchmark_of_reloading_runs_and_every_batch_in_it_is_the_right_one(tmp_path: Path) -> None:
    arguments = ["--quick", "--no-restarted", "--build", tmp_path / "build", "--output", tmp_path / "results"]
    subprocess.run(
        [sys.executable, "-m", "benchmarks.reload", *map(str, arguments)],
        cwd=ROOT,
        check=True,
        stdout=subprocess.DEVNULL,
        timeout=150,
    )
    record = json.loads((tmp_path / "results" / "results.json").read_text())
    assert [(row["key"], row["phase"]) for row in record["rows"]] == [
        (key, phase) for key in QUICK for phase in ("warm", "cold")
    ]
    for row in record["rows"]:
        assert row["error"] == ""
        assert row["first_batch_ms"]["median"] >= row["open_ms"]["median"] > 0 < row["stored_mb"]
        assert row["phase"] == "cold" or row["resident_share"] == 1.0  # files in a tmpfs are never cold
        assert row["times_ours"].keys() == set(OURS)
    assert [path for path in (tmp_path / "build").iterdir() if path.name == "peers"] == []


def test_the_benchmark_of_reloading_refuses_what_gives_another_batch(tmp_path: Path) -> None:
    """Files that hold other pixels than they were given have no figures."""
    arguments = ["--contestants", "bare-memory-map", "--num-samples", "200", "--repeats", "1", "--no-restarted"]
    places = ["--build", str(tmp_path / "build"), "--output", str(tmp_path)]
    command = [sys.executable, "-m", "benchmarks.reload", *arguments, *places]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL, timeout=60)
    written = tmp_path / "build" / "reload" / "bare-memory-map-200" / "images.npy"
    np.load(written, mmap_mode="r+")[:, 0] ^= 1
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL, timeout=60)
    rows = json.loads((tmp_path / "results.json").read_text())["rows"]
    assert [row["error"] for row in rows] == ["gave another batch of images"] * 2
    assert not any("first_batch_ms" in row for row in rows)


def test_the_benchmark_of_reloading_refuses_a_contestant_it_does_not_have(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.reload", "--contestants", "zip", "--output", str(tmp_path)]
    result = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True, timeout=60)
    assert result.returncode == 2
    assert "no such contestants: zip; there are in_memory_datasets-load," in result.stderr


def test_the_benchmark_of_encoded_samples_runs_and_is_told_on_the_page(corpora: Path, tmp_path: Path) -> None:
    arguments = ["--quick", "--corpora", corpora, "--work", tmp_path / "work", "--output", tmp_path / "encoded"]
    subprocess.run(
        [sys.executable, "-W", "error", "-m", "benchmarks.encoded", *map(str, arguments)],
        cwd=ROOT,
        check=True,
        stdout=subprocess.DEVNULL,
        timeout=170,
    )
    record = json.loads((tmp_path / "encoded" / "results.json").read_text())
    figures = {part: found["figures"] for part, found in record.items()}
    assert [row["what"] for row in figures["access"]["rows"]] == ["photos", "recompressed", "10 s", "30 s"]
    images, audio = (figures["sizes"][media]["bytes_per_sample"] for media in ("images", "audio"))
    assert list(images.values()) == sorted(images.values(), reverse=True)
    assert list(audio.values()) == sorted(audio.values(), reverse=True)
    for measure in ("psnr", "ssim"):
        medians = [row[measure]["median"] for row in figures["quality"]["rows"]]
        assert medians == sorted(medians, reverse=True)
    shares = [row["share_decoded"] for row in figures["mixture"]["rows"]]
    assert shares == sorted(shares, reverse=True)
    assert (shares[0], shares[-1]) == (1.0, 0.0)
    if "note" not in figures["disk"]:
        assert all(row["share_read"] > 0 < row["per_s"] for row in figures["disk"]["rows"])
    assert list((tmp_path / "work").iterdir()) == []
    assert "### A part on the disk" in make_page(tmp_path).text


def test_the_benchmark_of_encoded_samples_says_where_it_looks_for_the_corpora(tmp_path: Path) -> None:
    arguments = ["--corpora", str(tmp_path / "nowhere"), "--output", str(tmp_path / "results")]
    command = [sys.executable, "-m", "benchmarks.encoded", *arguments]
    result = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True, timeout=60)
    assert result.returncode == 2
    assert f"are not at {tmp_path / 'nowhere'}: give their place with --corpora" in result.stderr
    assert list(tmp_path.iterdir()) == []
