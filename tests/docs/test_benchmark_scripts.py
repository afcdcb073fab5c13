"""Benchmarks run from a checkout. What they measure is no test; that they measure it is."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


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
