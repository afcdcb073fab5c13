"""The bytes of a store are those that docs/reference/store-format.md describes, read with struct and json alone."""

from __future__ import annotations

import io
import itertools
import json
import mmap
import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import soundfile
import xxhash
from PIL import Image

from in_memory_datasets.schema import REASONS, STAGES, Failure
from in_memory_datasets.store import StoreWriter, open_store
from in_memory_datasets.store.manifest import make_manifest, read_manifest, write_manifest
from tests.golden.make_v1 import V1, picture, tone
from tests.making import AUDIO_SPEC, IMAGE_SPEC, make_clips, make_images, make_rows

ITEM_BYTES = {"U8": 1, "I16": 2, "I64": 8, "F32": 4}
CHECKED = sorted({path.name for path in V1.iterdir()} - {"images", "clips"})
LAYOUTS = {
    "images": ["images"],
    "images_with_checksums": ["images"],
    "encoded_images": ["encoded_offsets", "encoded"],
    "mixed_images": ["encoded_offsets", "images", "encoded"],
    "clips": ["offsets", "frames"],
    "encoded_clips": ["offsets", "encoded_offsets", "encoded"],
    "mixed_clips": ["offsets", "encoded_offsets", "frames", "encoded"],
}


def read_arrays(data: bytes) -> dict[str, tuple[int, bytes, list[int], str]]:
    """Give of each array where it starts in the file, its bytes, shape and dtype."""
    (header_length,) = struct.unpack_from("<Q", data)
    assert header_length == 4088
    text = data[8:4096]
    places = json.loads(text)
    assert text == json.dumps(places, separators=(",", ":")).encode().ljust(4088)
    arrays, end = {}, 4096
    for name, place in places.items():
        start, stop = (4096 + offset for offset in place["data_offsets"])
        assert start == end, "the arrays follow without gaps, in the order they are named in"
        assert stop - start == ITEM_BYTES[place["dtype"]] * int(np.prod(place["shape"]))
        arrays[name] = start, data[start:stop], place["shape"], place["dtype"]
        end = stop
    assert end == len(data)
    return arrays


def offsets_of(array: tuple[int, bytes, list[int], str]) -> list[int]:
    _, data, shape, dtype = array
    assert dtype == "I64"
    return list(struct.unpack(f"<{shape[0]}q", data))


@pytest.mark.parametrize("kind", LAYOUTS)
def test_samples_lie_where_the_page_says(kind: str) -> None:
    data = (V1 / kind / "samples.safetensors").read_bytes()
    manifest = json.loads((V1 / kind / "manifest.json").read_text())
    arrays, num_samples = read_arrays(data), manifest["num_samples"]
    assert list(arrays) == LAYOUTS[kind]
    with pa.memory_map(str(V1 / kind / "rows.arrow")) as file:
        rows = pa.ipc.open_file(file).read_all()
    checksums, status = rows["checksum"].to_pylist(), rows["status"].to_pylist()
    encoded_offsets = offsets_of(arrays["encoded_offsets"]) if "encoded_offsets" in arrays else [0]
    num_decoded = num_samples - (len(encoded_offsets) - 1)
    samples: list[bytes] = []
    if manifest["modality"] == "image":
        width, height = manifest["spec"]["image_size"]
        if num_decoded:
            start, _, shape, dtype = arrays["images"]
            assert (shape, dtype) == ([num_decoded, height, width, 3], "U8")
            size = height * width * 3
            samples = [data[start + slot * size : start + (slot + 1) * size] for slot in range(num_decoded)]
    else:
        offsets = offsets_of(arrays["offsets"])
        assert len(offsets) == num_samples + 1
        if num_decoded:
            start, _, shape, dtype = arrays["frames"]
            assert (shape, dtype) == (
                [offsets[num_decoded]],
                {"int16": "I16", "float32": "F32"}[manifest["spec"]["dtype"]],
            )
            size = ITEM_BYTES[dtype]
            samples = [data[start + offsets[i] * size : start + offsets[i + 1] * size] for i in range(num_decoded)]
    for start, stop in itertools.pairwise(encoded_offsets):
        samples.append(arrays["encoded"][1][start:stop])
    assert len(samples) == num_samples
    for slot, sample in enumerate(samples):
        if status[slot] == 1:
            assert xxhash.xxh3_64_intdigest(sample) == checksums[slot]
        else:
            assert (status[slot], checksums[slot], sample.strip(b"\0")) == (2, 0, b"")


def test_ordinary_decoders_read_what_lies_encoded() -> None:
    """Pillow the pixels and soundfile the frames; of a picture that is as large as is served nothing is left to do."""
    arrays = read_arrays((V1 / "encoded_images/samples.safetensors").read_bytes())
    ends, data = offsets_of(arrays["encoded_offsets"]), arrays["encoded"][1]
    for slot in (0, 2, 3, 4, 5):
        with Image.open(io.BytesIO(data[ends[slot] : ends[slot + 1]])) as image:
            assert (image.size, image.mode) == ((24, 16), "RGB")
            if image.format == "JPEG":
                assert np.abs(np.asarray(image) - picture(2).astype(int)).mean() < 2 or slot == 5
            else:
                np.testing.assert_array_equal(np.asarray(image), picture(slot))
    for kind, first in (("encoded_clips", 0), ("mixed_clips", 4)):
        arrays = read_arrays((V1 / kind / "samples.safetensors").read_bytes())
        ends, data = offsets_of(arrays["encoded_offsets"]), arrays["encoded"][1]
        for slot in {0, 2, 3, 4, 5} & set(range(first, 6)):
            with soundfile.SoundFile(io.BytesIO(data[ends[slot - first] : ends[slot - first + 1]])) as clip:
                assert (clip.format, clip.subtype, clip.channels, clip.samplerate) == ("FLAC", "PCM_16", 1, 8_000)
                np.testing.assert_array_equal(clip.read(dtype="int16"), tone(slot))


def test_offsets_count_the_frames_of_encoded_clips_too() -> None:
    for kind in ("encoded_clips", "mixed_clips"):
        offsets = offsets_of(read_arrays((V1 / kind / "samples.safetensors").read_bytes())["offsets"])
        lengths = [0 if number == 1 else len(tone(number)) for number in range(6)]
        assert offsets == [sum(lengths[:number]) for number in range(7)]


@pytest.mark.parametrize("kind", CHECKED)
def test_manifests_digest_themselves_and_all_but_the_media(kind: str) -> None:
    place = V1 / kind
    manifest: dict[str, Any] = json.loads((place / "manifest.json").read_text("utf-8"))
    assert list(manifest) == [
        "format", "version", "modality", "spec", "num_samples", "complete", "byteorder", "checksums", "checksum",
    ]  # fmt: skip
    checksum = manifest.pop("checksum")
    text = json.dumps(manifest, sort_keys=True, separators=(", ", ": "), ensure_ascii=True)
    assert xxhash.xxh3_64_hexdigest(text.encode()) == checksum
    assert (manifest["format"], manifest["version"], manifest["byteorder"]) == ("in-memory-datasets", 1, "little")
    assert manifest["complete"] is True
    samples = (place / "samples.safetensors").read_bytes()
    arrays = read_arrays(samples)
    media = min(start for name, (start, *_) in arrays.items() if name in ("images", "frames", "encoded"))
    assert manifest["checksums"] == {
        "rows": [xxhash.xxh3_64_hexdigest((place / "rows.arrow").read_bytes())],
        "places": [xxhash.xxh3_64_hexdigest(samples[:media])],
    }


@pytest.mark.parametrize("kind", LAYOUTS)
def test_while_files_are_replaced_the_old_and_the_new_ones_are_accepted(kind: str, tmp_path: Path) -> None:
    """Of a store without checksums none are asked for until it has its new files."""
    shutil.copytree(V1 / kind, tmp_path / "store")
    before = read_manifest(tmp_path / "store")
    checksums = {"rows": "0" * 16, "places": "1" * 16}
    write_manifest(tmp_path / "store", make_manifest(before.spec, before.num_samples, checksums, replacing=before))
    manifest = json.loads((tmp_path / "store/manifest.json").read_text("utf-8"))
    then = json.loads((V1 / kind / "manifest.json").read_text("utf-8")).get("checksums", {})
    assert list(manifest)[-3:] == ["byteorder", "checksums", "checksum"]
    if kind in CHECKED:
        assert manifest["checksums"] == {"rows": ["0" * 16, *then["rows"]], "places": ["1" * 16, *then["places"]]}
    else:
        assert manifest["checksums"] == {}
    open_store(tmp_path / "store").close()


@pytest.mark.parametrize("kind", LAYOUTS)
def test_rows_are_one_batch_of_the_columns_that_the_page_lists(kind: str) -> None:
    with pa.memory_map(str(V1 / kind / "rows.arrow")) as file:
        reader = pa.ipc.open_file(file)
        assert reader.num_record_batches == 1
        rows = reader.get_batch(0)
    assert {field.name: str(field.type) for field in rows.schema} == {
        "captions": "large_list<item: large_string>",
        "source": "large_string",
        "status": "uint8",
        "stage": "dictionary<values=string, indices=int8, ordered=0>",
        "reason": "dictionary<values=string, indices=int8, ordered=0>",
        "detail": "large_string",
        "attempts": "uint16",
        "checksum": "uint64",
    }
    assert rows["stage"].dictionary.to_pylist() == list(STAGES)
    words = rows["reason"].dictionary.to_pylist()
    assert words == list(REASONS[: len(words)])


@pytest.mark.parametrize(
    ("spec", "encoded", "samples", "num_frames"),
    [
        (IMAGE_SPEC, False, make_images(5), 0),
        (IMAGE_SPEC, True, [np.full(9 + slot, slot, np.uint8) for slot in range(5)], 0),
        (AUDIO_SPEC, False, make_clips([7, 3, 9, 2_100, 4]), None),
        (AUDIO_SPEC, True, [np.full(5_000 + slot, slot, np.uint8) for slot in range(5)], 77),
    ],
    ids=["images", "encoded images", "clips", "encoded clips"],
)
def test_a_journal_holds_forty_bytes_for_each_sample_in_place(
    tmp_path: Path, spec: Any, encoded: bool, samples: list[Any], num_frames: int | None
) -> None:
    """Decoded pictures lie where they will stay; all else in the order of arrival, each on a page of its own."""

    def build() -> None:
        with StoreWriter(spec, encoded=encoded, directory=tmp_path) as writer:
            writer.add_rows(make_rows([(f"caption {slot}",) for slot in range(5)]))
            for slot in (3, 0, 4):
                writer.loaded(slot, writer.put(slot, samples[slot], num_frames or 0))
            writer.failed(Failure(1, "/data/1.bin", "fetch", "not_found", "there is no such file", "", 1))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build()
    in_place = spec == IMAGE_SPEC and not encoded
    spool = "encoded.partial" if encoded else "decoded.partial"
    work = {"journal", "samples.safetensors.partial"} | (set() if in_place else {spool})
    assert {path.name for path in tmp_path.iterdir()} == work
    journal = (tmp_path / "journal").read_bytes()
    assert len(journal) == 3 * 40
    lying = (tmp_path / ("samples.safetensors.partial" if in_place else spool)).read_bytes()
    next_page = 0
    for slot, record in zip((3, 0, 4), struct.iter_unpack("<5Q", journal), strict=True):
        data = samples[slot].tobytes()
        start = 4096 + slot * 8 * 6 * 3 if in_place else next_page
        frames = samples[slot].size if num_frames is None else num_frames
        assert record == (slot, start, len(data), frames, xxhash.xxh3_64_intdigest(data))
        assert lying[start : start + len(data)] == data
        next_page += -(-len(data) // mmap.PAGESIZE) * mmap.PAGESIZE


def test_the_known_samples_lie_as_the_page_says() -> None:
    """Picture i at 4096 + i · H · W · 3; frames as float32 in [-1, 1], which are 1/32768 of those as int16."""
    data = (V1 / "images_with_checksums/samples.safetensors").read_bytes()
    assert data[4096 + 4 * 1_152 : 4096 + 5 * 1_152] == picture(4).tobytes()
    start, frames, *_ = read_arrays((V1 / "mixed_clips/samples.safetensors").read_bytes())["frames"]
    assert start == 4096 + 7 * 8 + 3 * 8
    assert frames[: 4 * 400] == (tone(0) * np.float32(1 / 32_768)).tobytes()
