"""The root scripts and the quick benchmark do what they say, in processes of their own, without a warning."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from PIL import Image

import data
import in_memory_datasets
import quickstart_in_memory
from demo.dual_encoder import DualEncoder
from demo.scenes import draw_scene, render_scene

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.campaign


def run(*command: str, home: Path) -> str:
    """Run a Python program as a user would, and give what it prints."""
    done = subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env={**os.environ, "HF_HOME": str(home), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Warning" not in done.stderr, done.stderr
    return done.stdout


def assert_is_picture(path: Path) -> None:
    with Image.open(path) as picture:
        picture.load()
        assert picture.format == "PNG"
        assert min(picture.size) > 200


@pytest.mark.slow
def test_the_quickstart_shows_both_ways(tmp_path: Path) -> None:
    """It shows plan, report, batches and both tables, and draws the chart."""
    said = run("quickstart_in_memory.py", "--max-samples", "24", "--output", str(tmp_path), home=tmp_path)
    for expected in (
        "memory needed",
        "24 samples loaded",
        "torch.uint8 (24, 3, 224, 224)",
        "torch.float32 (8, ",
        "images, seconds",
        "audio, seconds",
        "epoch 5",
    ):
        assert expected in said
    assert_is_picture(tmp_path / "quickstart.png")


def test_the_quickstart_takes_any_dataset(tmp_path: Path) -> None:
    """Another dataset, with columns of other names, goes the same way."""
    rows = [
        {"photo": {"bytes": render_scene(draw_scene(i), i), "path": None}, "text": draw_scene(i).caption}
        for i in range(6)
    ]
    dataset = datasets.Dataset.from_list(rows).cast_column("photo", datasets.Image())
    (tmp_path / "birds").mkdir()
    dataset.to_parquet(tmp_path / "birds" / "train.parquet")
    said = run(
        "quickstart_in_memory.py",
        *("--dataset", str(tmp_path / "birds"), "--image-column", "photo", "--caption-column", "text"),
        *("--output", str(tmp_path)),
        home=tmp_path,
    )
    assert "6 of 6 samples loaded" in said
    assert_is_picture(tmp_path / "quickstart.png")


def test_the_quickstart_takes_presets(monkeypatch: pytest.MonkeyPatch) -> None:
    """A preset that is streamed becomes rows that can be asked for in any order, with media still encoded."""
    encoded = render_scene(draw_scene(0), 0)
    features = datasets.Features({"image": datasets.Image(), "caption": datasets.Sequence(datasets.Value("string"))})
    rows = {"image": [{"bytes": encoded, "path": None}] * 5, "caption": [["one", "two"]] * 5}
    stream = datasets.Dataset.from_dict(rows, features=features).to_iterable_dataset()
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: stream)
    options = argparse.Namespace(
        dataset="nlphuji/flickr30k",
        split=None,
        image_column="image_url",
        audio_column=None,
        caption_column="caption",
        audio_dir=None,
        max_samples=3,
    )
    material = quickstart_in_memory.from_hub(options)
    assert (material.kind, material.media_col, material.caption_col) == ("images", "image", "caption")
    assert [row["image"]["bytes"] for row in material.rows] == [encoded] * 3


def figures(directory: Path) -> list[dict[str, Any]]:
    read: list[dict[str, Any]] = json.loads((directory / "training.json").read_text())
    return read


SETTINGS = ("--max-samples", "720", "--epochs", "6", "--image-size", "48")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train in one process; give where the results are."""
    output = tmp_path_factory.mktemp("trained")
    said = run("train_with_in_memory_datasets.py", *SETTINGS, "--output", str(output), home=output)
    assert "waiting for data" in said
    return output


@pytest.mark.slow
def test_training_learns_the_pictures(trained: Path) -> None:
    """Held-out retrieval ends clearly above chance; a checkpoint opens, figures and a plot are there."""
    epochs = figures(trained)
    last = epochs[-1]["recall"]
    assert len(epochs) == 6
    assert last["num_pairs"] == 120
    assert last["at_1"] > 10 * last["chance_at_1"]
    assert last["at_5"] > 5 * last["chance_at_5"]
    assert all(0 <= epoch["waiting_seconds"] <= epoch["seconds"] for epoch in epochs)
    DualEncoder("image").load_state_dict(torch.load(trained / "dual_encoder.pt", weights_only=True))
    assert_is_picture(trained / "training.png")


@pytest.mark.slow
def test_two_processes_learn_what_one_does(trained: Path, tmp_path: Path) -> None:
    """Under torchrun two processes take the same steps on one copy of the data, and one of them speaks."""
    said = run(
        *("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
        *("train_with_in_memory_datasets.py", *SETTINGS, "--output", str(tmp_path)),
        home=tmp_path,
    )
    together, alone = figures(tmp_path), figures(trained)
    assert [epoch["loss"] for epoch in together] == pytest.approx([epoch["loss"] for epoch in alone], rel=0.1)
    assert together[-1]["recall"]["at_1"] > 10 * together[-1]["recall"]["chance_at_1"]
    assert said.count("720 of 720 samples") == 1
    assert said.count("epoch  6:") == 1


def test_training_takes_sounds(tmp_path: Path) -> None:
    """The same script trains on the demonstration sounds."""
    run(
        "train_with_in_memory_datasets.py",
        *("--modality", "audio", "--max-samples", "120", "--epochs", "2", "--batch-size", "20"),
        *("--target-sr", "8000", "--output", str(tmp_path)),
        home=tmp_path,
    )
    epochs = figures(tmp_path)
    assert epochs[-1]["loss"] < epochs[0]["loss"]
    assert epochs[-1]["recall"]["num_pairs"] == 20


def test_the_quick_benchmark_writes_its_results(tmp_path: Path) -> None:
    """It measures both ways, says what it scaled, and writes JSON, Markdown and a chart."""
    said = run(
        *("-m", "benchmarks.bench_quick"),
        *("--num-rows", "80", "--num-measured", "16", "--output", str(tmp_path)),
        home=tmp_path,
    )
    assert "16 rows, times 25" in said
    record = json.loads((tmp_path / "results.json").read_text())
    assert [way["num_workers"] for way in record["figures"]["on_the_fly"]] == [0, 4]
    assert len(record["figures"]["epoch_seconds"]) == 5
    assert record["machine"]["torch"] == torch.__version__
    assert "| on the fly, 0 workers¹ |" in (tmp_path / "results.md").read_text()
    assert_is_picture(tmp_path / "results.png")


def test_data_hands_on_the_twins() -> None:
    """data.py gives the on-the-fly datasets of the package under the names people have."""
    assert sorted(data.__all__) == ["AudioTextDataset", "ImageTextDataset", "collate_audio", "collate_images"]
    for name in data.__all__:
        assert getattr(data, name) is getattr(in_memory_datasets, name)
