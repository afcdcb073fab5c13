"""Every real photograph and clip, loaded over HTTP from a server on this machine."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import soxr
from numpy.typing import NDArray
from PIL import Image, ImageOps

from in_memory_datasets import FetchOptions, InMemoryAudioTextDataset, InMemoryImageTextDataset
from tests.conftest import ROOT
from tests.real.tables import read_table
from tests.serving import LocalServer, QuietHandler

LOOPBACK = FetchOptions(allow_private_addresses=True)


@pytest.fixture(scope="module")
def url(corpora: Path) -> Iterator[str]:
    with LocalServer(functools.partial(QuietHandler, directory=str(corpora))) as server:
        yield server.url


def reference_image(path: Path) -> NDArray[np.uint8]:
    """Decode as Pillow does, transparency over white, and resize bicubic."""
    with Image.open(path) as file:
        image = ImageOps.exif_transpose(file)
        if image.mode in ("P", "PA", "LA", "RGBA"):
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return np.asarray(image.convert("RGB").resize((224, 224), Image.Resampling.BICUBIC))


def psnr(image: NDArray[Any], reference: NDArray[Any]) -> float:
    error = float(np.mean((image.astype(float) - reference.astype(float)) ** 2))
    return 10 * np.log10(255**2 / error) if error else 99.0


def test_every_photograph_equals_pillow_and_keeps_its_captions(corpora: Path, url: str) -> None:
    table = read_table(corpora / "images.csv")
    rows = [{"image_url": f"{url}/images/{row['file']}", "caption": json.loads(row["captions_json"])} for row in table]
    with InMemoryImageTextDataset(rows, fetch=LOOPBACK, captions="all", output="numpy") as dataset:
        assert len(dataset) == len(table) == 416
        assert dataset.failed_indices == []
        assert dataset.report.bytes_fetched == sum(int(row["bytes"]) for row in table)
        ratios = []
        for sample, row in zip(dataset, table, strict=True):
            assert sample["caption"] == json.loads(row["captions_json"])
            ratios.append(psnr(sample["image"], reference_image(corpora / "images" / row["file"])))
    assert np.median(ratios) >= 40


def test_every_clip_equals_soundfile_and_soxr_and_keeps_its_captions(corpora: Path, url: str) -> None:
    table = read_table(corpora / "audio.csv")
    rows = [{"audio": f"{url}/audio/{row['file']}", "caption": json.loads(row["captions_json"])} for row in table]
    with InMemoryAudioTextDataset(rows, fetch=LOOPBACK, captions="all", output="numpy") as dataset:
        assert dataset.failed_indices == []
        ratios = []
        for sample, row in zip(dataset, table, strict=True):
            assert sample["caption"] == json.loads(row["captions_json"])
            if row["soundfile_opens"] != "yes" or row["file"].endswith(".gsm"):
                continue
            frames, rate = soundfile.read(corpora / "audio" / row["file"], dtype="float32", always_2d=True)
            expected = np.clip(soxr.resample(frames.mean(1), rate, 16_000, quality="HQ"), -1, 1)[: 30 * 16_000]
            assert abs(len(sample["audio"]) - len(expected)) <= 1, row["file"]
            n = min(len(expected), len(sample["audio"]))
            error = np.sum((sample["audio"][:n] - expected[:n]) ** 2)
            ratios.append(10 * np.log10(np.sum(expected[:n] ** 2) / error) if error else 99.0)
    assert len(ratios) > 190
    assert min(ratios) >= 35


def test_clips_soundfile_cannot_read_are_refused_without_the_extra(corpora: Path, url: str) -> None:
    files = [row["file"] for row in read_table(corpora / "audio.csv") if row["soundfile_opens"] != "yes"]
    assert {Path(file).suffix for file in files} >= {".g722", ".m4a", ".webm"}
    script = """
import json, sys
sys.modules["av"] = None  # as if it were not installed
from in_memory_datasets import FetchOptions, InMemoryAudioTextDataset
rows = [{"audio": url, "caption": ""} for url in json.loads(sys.argv[1])]
fetch = FetchOptions(allow_private_addresses=True)
with InMemoryAudioTextDataset(rows, fetch=fetch) as dataset:
    print(json.dumps([(f.source, f.reason, f.detail) for f in dataset.report.failures]))
"""
    urls = [f"{url}/audio/{file}" for file in [*files, read_table(corpora / "audio.csv")[0]["file"]]]
    run = subprocess.run(
        [sys.executable, "-c", script, json.dumps(urls)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    failures = json.loads(run.stdout)
    assert [source for source, _, _ in failures] == urls[:-1]
    assert {reason for _, reason, _ in failures} == {"missing_extra"}
    assert all("pip install 'in-memory-datasets[audio]'" in detail for _, _, detail in failures)
