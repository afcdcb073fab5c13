"""The benchmark of clusters runs, measures all that it says, and is told on the page to the last figure."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.report.page import make_page
from benchmarks.scale.__main__ import PARTS, parse_options
from tests.docs.results import unmoved
from tests.lacking import needed_package, needs_proc

ROOT = Path(__file__).parents[2]


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(300)
@needs_proc
def test_the_benchmark_of_clusters_runs_and_every_figure_is_on_the_page(tmp_path: Path) -> None:
    needed_package("ray")
    arguments = ["--quick", "--build", tmp_path / "build", "--output", tmp_path / "scale"]
    command = [sys.executable, "-m", "benchmarks.scale", *map(str, arguments)]
    result = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True, timeout=280)
    assert result.returncode == 0, result.stderr
    record = json.loads((tmp_path / "scale" / "results.json").read_text("utf-8"))
    assert list(record) == list(PARTS)
    figures = {name: part["figures"] for name, part in record.items()}
    assert [(row["source"], row["num_nodes"]) for row in figures["load"]["rows"]] == [
        (source, number) for source in ("bytes", "web") for number in (None, 1)
    ]
    assert [(row["way"], row["batch_size"]) for row in figures["epoch"]["rows"]] == [
        (way, batch_size) for batch_size in (32, 256) for way in ("shard", "guests")
    ]
    assert figures["epoch"]["borrowed_percent"] == pytest.approx(10, abs=3)
    (pair,) = figures["exchange"]["rows"]
    assert pair["mb_per_s"]["median"] > 0 < pair["meanwhile_per_s"]["median"]
    assert [(row["source"], row["num_rows"]) for row in figures["driver"]["rows"]] == [
        ("file", 20_000),
        ("sequence", 2_000),
    ]
    assert [row["what"] for row in figures["recovery"]["rows"]] == ["actor, attached ranks", "actor, no ranks", "node"]
    assert len(figures["model"]["cases"]) == 4
    assert all(row["predicted"] > 0 <= row["measured"] for row in figures["model"]["checks"])
    assert "## Beyond one machine" in make_page(tmp_path).text
    left = unmoved(tmp_path, "scale", lambda place: "figures" in place)
    assert left == []


def test_the_benchmark_of_clusters_refuses_a_part_it_does_not_have(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmarks.scale", "--parts", "load,speed"])
    with pytest.raises(SystemExit) as ended:
        parse_options()
    assert ended.value.code == 2
    assert "no such parts: speed; there are load, epoch," in capsys.readouterr().err
