"""Stores whose rows share samples, written by the first version that could, which must open for ever."""

from __future__ import annotations

import itertools
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import xxhash

from in_memory_datasets import InMemoryAudioTextDataset, InMemoryImageTextDataset
from in_memory_datasets.store import open_store
from tests.golden.make_v1 import picture, tone
from tests.golden.make_v2 import CAPTIONS, NUM_DECODED, ROWS, SAMPLES, UNIQUE, V2
from tests.golden.test_byte_layout import offsets_of, read_arrays

LAYOUTS = {
    "images": ["images"],
    "encoded_images": ["encoded_offsets", "encoded"],
    "mixed_images": ["encoded_offsets", "images", "encoded"],
    "clips": ["offsets", "frames"],
    "encoded_clips": ["offsets", "encoded_offsets", "encoded"],
    "mixed_clips": ["offsets", "encoded_offsets", "frames", "encoded"],
}
NUM_LYING_DECODED = {"encoded": 0, "mixed": NUM_DECODED}
IMAGES = [kind for kind in LAYOUTS if "images" in kind]
CLIPS = [kind for kind in LAYOUTS if "clips" in kind]


def check_rows(dataset: Any, place: str) -> None:
    assert [sample["caption"] for sample in dataset] == CAPTIONS
    assert [sample["index"] for sample in dataset] == list(range(9))
    assert [sample["valid"] for sample in dataset] == [number != 1 for number in ROWS]
    assert [failure.index for failure in dataset.report.failures] == [1, 6]
    assert {failure.detail for failure in dataset.report.failures} == {f"{place}: there is no such file"}
    assert (dataset.report.num_samples, dataset.report.num_ok, dataset.report.num_unique) == (9, 7, 5)


@pytest.mark.parametrize("kind", IMAGES)
def test_pictures_of_version_2_open(kind: str) -> None:
    with InMemoryImageTextDataset.load(V2 / kind, captions="all", output="numpy", verify=True) as dataset:
        check_rows(dataset, "/data/gone.png")
        batch = dataset.__getitems__(list(range(9)))
        for image, number in zip(batch.images, ROWS, strict=True):
            np.testing.assert_array_equal(image, np.full((16, 24, 3), 128) if number == 1 else picture(number))


@pytest.mark.parametrize("kind", CLIPS)
def test_clips_of_version_2_open(kind: str) -> None:
    with InMemoryAudioTextDataset.load(V2 / kind, captions="all", output="numpy", verify=True) as dataset:
        check_rows(dataset, "/data/gone.wav")
        lengths = [8_000 if number == 1 else len(tone(number)) for number in ROWS]
        assert dataset.lengths.tolist() == lengths
        batch = dataset.__getitems__(list(range(9)))
        for clip, number, length in zip(batch.audio, ROWS, lengths, strict=True):
            expected = np.zeros(8_000) if number == 1 else tone(number) * np.float32(1 / 32_768)
            np.testing.assert_array_equal(clip[:length], expected)


@pytest.mark.parametrize("kind", LAYOUTS)
def test_each_sample_lies_there_once_where_the_page_says(kind: str) -> None:
    data = (V2 / kind / "samples.safetensors").read_bytes()
    manifest = json.loads((V2 / kind / "manifest.json").read_text())
    assert (manifest["version"], manifest["num_samples"]) == (2, len(ROWS))
    arrays = read_arrays(data)
    assert list(arrays) == LAYOUTS[kind]
    with pa.memory_map(str(V2 / kind / "rows.arrow")) as file:
        rows = pa.ipc.open_file(file).get_batch(0)
    assert rows.schema.names[-2:] == ["checksum", "sample"]
    assert str(rows.schema.field("sample").type) == "int64"
    assert rows["sample"].to_pylist() == SAMPLES
    encoded_offsets = offsets_of(arrays["encoded_offsets"]) if "encoded_offsets" in arrays else [0]
    num_decoded = len(UNIQUE) + 1 - len(encoded_offsets)
    assert num_decoded == NUM_LYING_DECODED.get(kind.partition("_")[0], len(UNIQUE))
    if "images" in kind:
        start = arrays["images"][0] if "images" in arrays else 0
        samples = [data[start + i * 1_152 : start + (i + 1) * 1_152] for i in range(num_decoded)]
    else:
        offsets = offsets_of(arrays["offsets"])
        assert len(offsets) == len(UNIQUE) + 1
        start = arrays["frames"][0] if "frames" in arrays else 0
        samples = [data[start + offsets[i] * 2 : start + offsets[i + 1] * 2] for i in range(num_decoded)]
    for first, last in itertools.pairwise(encoded_offsets):
        samples.append(arrays["encoded"][1][first:last])
    assert len(samples) == len(UNIQUE)
    for number, status, checksum in zip(SAMPLES, rows["status"].to_pylist(), rows["checksum"].to_pylist(), strict=True):
        if UNIQUE[number] == 1:
            assert (status, checksum, samples[number].strip(b"\0")) == (2, 0, b"")
        else:
            assert (status, checksum) == (1, xxhash.xxh3_64_intdigest(samples[number]))


def test_the_known_picture_lies_as_the_page_says() -> None:
    """Image s at 4096 + s · H · W · 3, s being the row's sample."""
    data = (V2 / "images/samples.safetensors").read_bytes()
    assert len(data) == 4096 + len(UNIQUE) * 1_152
    assert data[4096 + SAMPLES[5] * 1_152 :][:1_152] == picture(ROWS[5]).tobytes()
    (header_length,) = struct.unpack_from("<Q", data)
    assert header_length == 4088


@pytest.mark.parametrize("kind", LAYOUTS)
def test_what_is_written_today_is_what_was_written_then(kind: str, tmp_path: Path) -> None:
    cls: Any = InMemoryImageTextDataset if "images" in kind else InMemoryAudioTextDataset
    with cls.load(V2 / kind) as dataset:
        dataset.save(tmp_path / "again")
    for name in ("manifest.json", "rows.arrow", "samples.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (V2 / kind / name).read_bytes()


def test_there_is_a_store_of_each_form() -> None:
    assert sorted(path.name for path in V2.iterdir()) == sorted(LAYOUTS)
    with open_store(V2 / "mixed_clips") as store:
        assert (store.num_samples, store.num_unique, store.num_decoded) == (9, 5, 3)
