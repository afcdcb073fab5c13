"""Stores written by the first version of the format, which must open for ever."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from in_memory_datasets import InMemoryAudioTextDataset, InMemoryImageTextDataset, StoreError

V1 = Path(__file__).parent / "v1"


def test_images_of_version_1_open() -> None:
    with InMemoryImageTextDataset.load(V1 / "images", captions="all", verify=True) as dataset:
        assert [sample["caption"] for sample in dataset] == [["first"], ["zweites", "deuxième"], []]
        assert dataset[0]["image"].shape == (3, 2, 3)
        assert dataset[0]["image"].permute(1, 2, 0).flatten().tolist() == list(range(18))
        assert dataset.failed_indices == [1]
        (failure,) = dataset.report.failures
        assert (failure.reason, failure.stage, failure.host, failure.attempts) == ("http_404", "fetch", "a.example", 1)
        assert dataset.report.num_empty_captions == 1


def test_clips_of_version_1_open() -> None:
    with InMemoryAudioTextDataset.load(V1 / "clips", output="numpy", verify=True) as dataset:
        assert dataset[0]["sampling_rate"] == 100
        np.testing.assert_allclose(dataset[0]["audio"], np.arange(5) / 32_768)
        np.testing.assert_allclose(dataset[2]["audio"], [0.5, -1.0])
        assert dataset.failed_indices == [1]


@pytest.mark.parametrize("kind", ["images", "clips"])
def test_what_is_written_today_is_what_was_written_then(kind: str, tmp_path: Path) -> None:
    cls = InMemoryImageTextDataset if kind == "images" else InMemoryAudioTextDataset
    with cls.load(V1 / kind) as dataset:
        dataset.save(tmp_path / "again")
    for name in ("manifest.json", "rows.arrow", "samples.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (V1 / kind / name).read_bytes()


def test_another_version_is_refused(tmp_path: Path) -> None:
    shutil.copytree(V1 / "images", tmp_path / "v2")
    manifest = json.loads((V1 / "images/manifest.json").read_text())
    (tmp_path / "v2/manifest.json").write_text(json.dumps({**manifest, "version": 2}))
    with pytest.raises(StoreError, match="format version 2, this library reads 1"):
        InMemoryImageTextDataset.load(tmp_path / "v2")
