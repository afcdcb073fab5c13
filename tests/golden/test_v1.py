"""Stores written by the first version of the format, which must open for ever."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from in_memory_datasets import InMemoryAudioTextDataset, InMemoryImageTextDataset, StoreError
from in_memory_datasets.schema import ImageSpec
from in_memory_datasets.store import open_store
from tests.golden.make_v1 import CAPTIONS, picture, tone

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


def check_rows(dataset: Any, place: str) -> None:
    assert [sample["caption"] for sample in dataset] == CAPTIONS
    assert [sample["valid"] for sample in dataset] == [True, False, True, True, True, True]
    (failure,) = dataset.report.failures
    assert (failure.index, failure.source, failure.stage, failure.reason) == (1, place, "fetch", "not_found")
    assert failure.detail == f"{place}: there is no such file"


@pytest.mark.parametrize("kind", ["images_with_checksums", "encoded_images", "mixed_images"])
def test_pictures_decoded_encoded_and_mixed_open(kind: str) -> None:
    """PNG and PPM give the very pixels; how a JPEG is decoded may change a little with a version."""
    with (
        InMemoryImageTextDataset.load(V1 / kind, captions="all", output="numpy", verify=True) as dataset,
        InMemoryImageTextDataset.load(V1 / "images_with_checksums", output="numpy") as decoded,
    ):
        check_rows(dataset, "/data/gone.png")
        for index in (0, 3, 4):
            np.testing.assert_array_equal(dataset[index]["image"], picture(index))
        assert (dataset[1]["image"] == 128).all()
        assert np.abs(dataset[2]["image"].astype(int) - picture(2)).mean() < 2
        for index in (2, 5):
            difference = np.abs(dataset[index]["image"].astype(int) - decoded[index]["image"]).mean()
            assert difference <= {"encoded_images": 25 if index == 5 else 1}.get(kind, 0)


@pytest.mark.parametrize("kind", ["encoded_clips", "mixed_clips"])
def test_clips_encoded_and_mixed_open(kind: str) -> None:
    """FLAC gives the very frames."""
    with InMemoryAudioTextDataset.load(V1 / kind, captions="all", output="numpy", verify=True) as dataset:
        check_rows(dataset, "/data/gone.wav")
        for index in (0, 2, 3, 4, 5):
            assert dataset[index]["sampling_rate"] == 8_000
            np.testing.assert_array_equal(dataset[index]["audio"], tone(index) * np.float32(1 / 32_768))
        batch = dataset.__getitems__([5, 0, 1, 3])
        for row, index in ((0, 5), (1, 0), (3, 3)):
            np.testing.assert_array_equal(batch.audio[row, : len(tone(index))], tone(index) * np.float32(1 / 32_768))


@pytest.mark.parametrize(
    ("kind", "num_decoded", "begins_with"),
    [
        ("encoded_images", 0, [b"\x89PNG", b"", b"\xff\xd8", b"P6\n24 16\n255\n", b"\x89PNG", b"\xff\xd8"]),
        ("mixed_images", 4, [b"\x89PNG", b"\x89PNG"]),
        ("encoded_clips", 0, [b"fLaC", b"", b"fLaC", b"fLaC", b"fLaC", b"fLaC"]),
        ("mixed_clips", 4, [b"fLaC", b"fLaC"]),
    ],
)
def test_samples_lie_in_the_form_they_had(kind: str, num_decoded: int, begins_with: list[bytes]) -> None:
    with open_store(V1 / kind) as store:
        assert (store.num_samples, store.num_decoded) == (6, num_decoded)
        for slot, beginning in enumerate(begins_with, start=num_decoded):
            data = store.sample(slot).tobytes()
            assert data.startswith(beginning)
            assert bool(data) == bool(beginning)


def test_what_is_recompressed_is_said_in_the_manifest() -> None:
    with open_store(V1 / "encoded_images") as store:
        assert store.spec == ImageSpec((24, 16), "stretch", ("jpeg", 75))


@pytest.mark.parametrize("kind", sorted(path.name for path in V1.iterdir()))
def test_what_is_written_today_is_what_was_written_then(kind: str, tmp_path: Path) -> None:
    cls: Any = InMemoryImageTextDataset if "images" in kind else InMemoryAudioTextDataset
    with cls.load(V1 / kind) as dataset:
        dataset.save(tmp_path / "again")
    for name in ("rows.arrow", "samples.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (V1 / kind / name).read_bytes()
    then, today = ((place / "manifest.json").read_text("utf-8") for place in (V1 / kind, tmp_path / "again"))
    if kind in ("images", "clips"):  # written before manifests had checksums
        added = {"byteorder", "checksums", "checksum"}
        assert {name: value for name, value in json.loads(today).items() if name not in added} == json.loads(then)
    else:
        assert today == then


def test_there_is_a_store_of_each_form() -> None:
    forms = [
        "images",
        "clips",
        "images_with_checksums",
        "encoded_images",
        "encoded_clips",
        "mixed_images",
        "mixed_clips",
    ]
    assert sorted(path.name for path in V1.iterdir()) == sorted(forms)


def test_another_version_is_refused(tmp_path: Path) -> None:
    shutil.copytree(V1 / "images", tmp_path / "v3")
    manifest = json.loads((V1 / "images/manifest.json").read_text())
    (tmp_path / "v3/manifest.json").write_text(json.dumps({**manifest, "version": 3}))
    with pytest.raises(StoreError, match="format version 3, this library reads 1 and 2"):
        InMemoryImageTextDataset.load(tmp_path / "v3")
