"""Samples that lie encoded, and mixtures of both: the same samples, in less memory."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from torch.utils.data import DataLoader

from in_memory_datasets import (
    ConfigError,
    InMemoryAudioTextDataset,
    InMemoryImageTextDataset,
    LoadError,
    MemoryLimitError,
    StoreError,
    cache,
    collate_in_memory_audio,
    collate_in_memory_images,
)
from in_memory_datasets.memory import free_memory
from in_memory_datasets.schema import ImageSpec
from in_memory_datasets.store import LOADED
from tests.making import damage, make_images

SIZE = (48, 40)
IMAGE_BYTES = 48 * 40 * 3
NUM_ROWS = 30


def jpeg(seed: int) -> bytes:
    """Make a picture of a few soft colours, 100×80, of about 1.5 kB."""
    draw = np.random.default_rng(seed)
    file = io.BytesIO()
    small = Image.fromarray(draw.integers(0, 256, (4, 5, 3), np.uint8))
    small.resize((100, 80), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
    return file.getvalue()


def flac(seed: int) -> bytes:
    file = io.BytesIO()
    num_frames = 4_000 + 400 * seed
    wave = 0.5 * np.sin(np.arange(num_frames) * (0.02 + 0.01 * seed)).astype(np.float32)
    soundfile.write(file, wave, 8_000, format="FLAC")
    return file.getvalue()


def image_rows() -> list[dict[str, Any]]:
    rows = [{"image_url": jpeg(i), "caption": f"picture {i}"} for i in range(NUM_ROWS)]
    rows[4]["image_url"], rows[21]["image_url"] = b"no picture", b"nor is this"
    return rows


def clip_rows() -> list[dict[str, Any]]:
    rows = [{"audio": flac(i), "caption": f"clip {i}"} for i in range(NUM_ROWS)]
    rows[4]["audio"], rows[21]["audio"] = b"no clip", b"nor is this"
    return rows


def load(kind: str, **arguments: Any) -> Any:
    if kind == "images":
        return InMemoryImageTextDataset(image_rows(), **{"image_size": SIZE, "progress": False, **arguments})
    return InMemoryAudioTextDataset(
        clip_rows(), **{"target_sr": 8_000, "max_duration": 1.0, "dtype": "int16", "progress": False, **arguments}
    )


def batch_of(dataset: Any, indices: list[int]) -> tuple[Any, ...]:
    batch = dataset.__getitems__(indices)
    media = batch.images if hasattr(batch, "images") else batch.audio
    return media.clone(), batch.captions, batch.indices.tolist(), batch.valid.tolist()


def same(one: tuple[Any, ...], other: tuple[Any, ...]) -> bool:
    return torch.equal(one[0], other[0]) and one[1:] == other[1:]


INDICES = [7, 0, 29, 4, 4, 12, 21, 28, 3, 7]
KINDS = ["images", "clips"]


def limit_for(kind: str, num_decoded: int) -> int:
    """Find a limit under which so many samples can lie decoded and half of another one."""
    with load(kind) as decoded, load(kind, storage="encoded") as encoded:
        loaded = encoded._store.table.status == LOADED
        room, kept = (
            np.array([store.sample(slot).nbytes for slot in range(NUM_ROWS)])
            for store in (decoded._store, encoded._store)
        )
        needed = encoded.nbytes + (room - kept * loaded)[:num_decoded].sum()
        return int(needed + (room[num_decoded] - kept[num_decoded]) // 2)


@pytest.mark.parametrize("kind", KINDS)
def test_encoded_samples_are_the_same_as_decoded_ones_in_less_memory(kind: str) -> None:
    with load(kind) as decoded, load(kind, storage="encoded") as encoded:
        assert same(batch_of(decoded, INDICES), batch_of(encoded, INDICES))
        for index in INDICES:
            assert same(batch_of(decoded, [index]), batch_of(encoded, [index]))
        assert encoded.nbytes < 0.7 * decoded.nbytes
        assert encoded.failed_indices == decoded.failed_indices == [4, 21]
        assert (encoded.report.num_decoded, encoded.report.num_encoded) == (0, NUM_ROWS - 2)
        assert (decoded.report.num_decoded, decoded.report.num_encoded) == (NUM_ROWS - 2, 0)
        assert "0 lie decoded, 28 encoded, 0 on disk" in str(encoded.report)
        assert "encoded" not in str(decoded.report)
        assert encoded.verify() == []


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_decoded", [0, 1, 11, 22, 27])
def test_a_mixture_serves_the_same_samples(kind: str, num_decoded: int) -> None:
    limit = limit_for(kind, num_decoded)
    with load(kind) as decoded, load(kind, storage="auto", memory_limit=limit) as mixture:
        assert mixture._store.num_decoded == num_decoded
        assert mixture.nbytes <= limit
        assert same(batch_of(decoded, INDICES), batch_of(mixture, INDICES))
        assert same(batch_of(decoded, list(range(NUM_ROWS))), batch_of(mixture, list(range(NUM_ROWS))))
        report = mixture.report
        assert report.num_decoded + report.num_encoded == report.num_ok == NUM_ROWS - 2
        assert report.num_encoded > 0
        assert mixture.verify() == []


@pytest.mark.parametrize("kind", KINDS)
def test_what_fits_decoded_is_decoded(kind: str) -> None:
    with load(kind, storage="auto") as auto, load(kind) as decoded:
        assert auto.report.num_encoded == 0
        assert auto._store.encoded is None
        assert same(batch_of(auto, INDICES), batch_of(decoded, INDICES))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("storage", ["encoded", "auto"])
def test_two_loads_with_the_same_limit_give_the_same_files(tmp_path: Path, kind: str, storage: str) -> None:
    limit = limit_for(kind, 9)
    for name, num_threads in (("one", 1), ("other", 4)):
        with load(kind, storage=storage, memory_limit=limit, num_threads=num_threads) as dataset:
            dataset.save(tmp_path / name)
    for file in ("manifest.json", "rows.arrow", "samples.safetensors"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "other" / file).read_bytes()


@pytest.mark.parametrize("kind", KINDS)
def test_a_mixture_is_saved_and_loaded_and_cached(tmp_path: Path, kind: str) -> None:
    arguments = {"storage": "auto", "memory_limit": limit_for(kind, 9), "cache_dir": tmp_path / "cache"}
    with load(kind) as decoded:
        expected = batch_of(decoded, INDICES)
    with load(kind, **arguments) as built:
        assert same(batch_of(built, INDICES), expected)
        built.save(tmp_path / "saved")
        num_decoded = built._store.num_decoded
        loader = type(built).load
    with loader(tmp_path / "saved", verify=True) as loaded:
        assert same(batch_of(loaded, INDICES), expected)
        assert loaded._store.num_decoded == num_decoded
    with load(kind, **arguments) as attached:
        assert attached.report.bytes_fetched == 0
        assert same(batch_of(attached, INDICES), expected)
    with load(kind, **{**arguments, "memory_limit": None}) as attached:  # with more memory it is the same dataset
        assert attached.report.bytes_fetched == 0
    assert len(cache.entries(tmp_path / "cache")) == 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("storage", ["encoded", "auto"])
def test_failed_samples_of_a_mixture_are_mended_in_their_form(tmp_path: Path, kind: str, storage: str) -> None:
    column, make = ("image_url", jpeg) if kind == "images" else ("audio", flac)
    rows = image_rows() if kind == "images" else clip_rows()
    for i in (4, 21):
        rows[i][column] = str(tmp_path / f"{i}.bin")
    cls: Any = InMemoryImageTextDataset if kind == "images" else InMemoryAudioTextDataset
    shape = {"image_size": SIZE} if kind == "images" else {"target_sr": 8_000, "max_duration": 1.0, "dtype": "int16"}
    with cls(rows, storage=storage, memory_limit=limit_for(kind, 9), progress=False, **shape) as dataset:
        num_decoded = dataset._store.num_decoded
        for i in (4, 21):
            (tmp_path / f"{i}.bin").write_bytes(make(i))
        assert dataset.retry_failed().num_failed == 0
        assert dataset._store.num_decoded == num_decoded
        assert dataset.verify() == []
        with cls(rows, progress=False, **shape) as decoded:
            assert same(batch_of(dataset, INDICES), batch_of(decoded, INDICES))


def test_what_does_not_fit_even_encoded_is_refused_in_memory_and_left_on_disk_in_a_cache(tmp_path: Path) -> None:
    limit = 20_000
    for storage in ("encoded", "auto"):
        with pytest.raises(MemoryLimitError, match=r'memory_limit is 20 kB.*storage="auto" with a cache_dir='):
            load("images", storage=storage, memory_limit=limit)
    with load("images", storage="auto", memory_limit=limit, cache_dir=tmp_path) as dataset, load("images") as decoded:
        report = dataset.report
        assert report.num_decoded == 0
        assert report.num_encoded > 0 < report.num_on_disk
        assert report.num_encoded + report.num_on_disk == report.num_ok == NUM_ROWS - 2
        assert f"{report.num_on_disk} on disk" in str(report)
        assert same(batch_of(dataset, INDICES), batch_of(decoded, INDICES))


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.parametrize("kind", KINDS)
def test_workers_decode_what_they_are_asked_for(kind: str, method: str) -> None:
    collate: Any = collate_in_memory_images if kind == "images" else collate_in_memory_audio
    name = "images" if kind == "images" else "audio"
    with load(kind, storage="auto", memory_limit=limit_for(kind, 9)) as dataset:
        loaders = [
            DataLoader(
                dataset,
                batch_size=7,
                collate_fn=collate,
                num_workers=num_workers,
                multiprocessing_context=method if num_workers else None,
            )
            for num_workers in (0, 2)
        ]
        for one, other in zip(*loaders, strict=True):
            assert torch.equal(one[name], other[name])
            assert one["captions"] == other["captions"]


def test_random_crops_of_encoded_clips_are_those_of_decoded_ones() -> None:
    crops = []
    for storage in ("decoded", "encoded"):
        torch.manual_seed(7)
        with load("clips", storage=storage, max_duration=0.2, crop="random") as dataset:
            crops.append([batch_of(dataset, INDICES) for _ in range(3)])
    for one, other in zip(*crops, strict=True):
        assert same(one, other)
    assert not torch.equal(crops[0][0][0], crops[0][1][0])


@pytest.mark.parametrize("storage", ["decoded", "encoded"])
def test_transforms_get_each_clip_in_memory_of_its_own(storage: str) -> None:
    def negate(clip: torch.Tensor) -> torch.Tensor:
        return clip.neg_()

    with load("clips", storage=storage, transform=negate) as dataset, load("clips") as plain:
        assert torch.equal(batch_of(dataset, INDICES)[0], -batch_of(plain, INDICES)[0])
        assert torch.equal(batch_of(dataset, INDICES)[0], -batch_of(plain, INDICES)[0])


def test_clips_that_lie_encoded_hold_sixteen_bits_whatever_the_dtype() -> None:
    with load("clips", storage="encoded", dtype="float32") as encoded, load("clips", dtype="int16") as exact:
        assert same(batch_of(encoded, INDICES), batch_of(exact, INDICES))


def test_no_encoded_sample_takes_more_than_its_pixels() -> None:
    noise = make_images(3, ImageSpec((48, 40)))
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (400, 480, 3), np.uint8)).save(file, "PNG")
    flat = np.zeros((400, 480, 3), np.uint8)
    rows = [{"image_url": source, "caption": ""} for source in (*noise, file.getvalue(), flat, Image.fromarray(flat))]
    with InMemoryImageTextDataset(rows, image_size=SIZE, storage="encoded", progress=False) as dataset:
        sizes = [dataset._store.sample(slot).nbytes for slot in range(len(rows))]
        assert max(sizes) <= IMAGE_BYTES + 20
        assert max(sizes[4:]) < 300
        with InMemoryImageTextDataset(rows, image_size=SIZE, progress=False) as decoded:
            assert same(batch_of(dataset, [0, 3, 4, 5]), batch_of(decoded, [0, 3, 4, 5]))


def test_recompressing_takes_less_room_and_looks_the_same() -> None:
    with (
        load("images", storage="encoded", image_size=(24, 20)) as kept,
        load("images", storage="encoded", image_size=(24, 20), recompress=("jpeg", 90)) as small,
        load("images", storage="encoded", image_size=(200, 160), recompress=("jpeg", 10)) as untouched,
        load("images", image_size=(200, 160)) as large,
    ):
        assert small.nbytes < kept.nbytes
        difference = batch_of(kept, INDICES)[0].float() - batch_of(small, INDICES)[0].float()
        assert 0 < difference.abs().mean() < 3
        assert same(batch_of(untouched, INDICES), batch_of(large, INDICES))  # nothing is larger than what is served


@pytest.mark.parametrize("limits", ["less, then more", "more, then less"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_load_that_goes_on_with_other_memory_takes_samples_for_what_they_are(
    tmp_path: Path, kind: str, limits: str
) -> None:
    """What one builder left encoded, another that has room for all would keep decoded, and the other way round."""
    order = [limit_for(kind, 9), None] if limits == "less, then more" else [None, limit_for(kind, 9)]
    arguments: Any = {"storage": "auto", "cache_dir": tmp_path, "num_threads": 1}
    with pytest.raises(LoadError, match="row 4"):
        load(kind, memory_limit=order[0], on_error="raise", **arguments)
    (unfinished,) = cache.entries(tmp_path)
    assert (unfinished.num_samples, unfinished.complete) == (4, False)
    with load(kind) as decoded, load(kind, memory_limit=order[1], **arguments) as resumed:
        assert resumed.verify() == []
        assert same(batch_of(resumed, list(range(NUM_ROWS))), batch_of(decoded, list(range(NUM_ROWS))))
        assert {path.name for path in resumed._store.directory.iterdir()} == {
            "manifest.json", "rows.arrow", "samples.safetensors",
        }  # fmt: skip


@pytest.mark.parametrize(("storage", "memory_limit"), [("encoded", None), ("auto", None), ("auto", 38_000)])
def test_a_dataset_of_recompressed_pictures_is_saved_loaded_and_mended(
    tmp_path: Path, storage: str, memory_limit: int | None
) -> None:
    """However many of them lie encoded; what is mended is recompressed like the others."""
    late = tmp_path / "late.jpg"
    rows = [*image_rows(), {"image_url": str(late), "caption": "late"}]
    arguments: Any = {"image_size": (24, 20), "recompress": ("jpeg", 60), "progress": False}
    with InMemoryImageTextDataset(rows, storage=storage, memory_limit=memory_limit, **arguments) as built:
        built.save(tmp_path / "saved")
        expected = batch_of(built, INDICES)
        assert (built.report.num_encoded > 0) == (storage == "encoded" or memory_limit is not None)
    late.write_bytes(jpeg(99))
    with InMemoryImageTextDataset.load(tmp_path / "saved", verify=True, progress=False) as loaded:
        assert same(batch_of(loaded, INDICES), expected)
        assert (loaded.retry_failed().num_failed, loaded.verify()) == (2, [])
        assert loaded[NUM_ROWS]["valid"]
        if loaded._store.encoded is not None:
            with InMemoryImageTextDataset(rows, storage="encoded", **arguments) as whole:
                np.testing.assert_array_equal(loaded._store.sample(NUM_ROWS), whole._store.sample(NUM_ROWS))


@pytest.mark.parametrize("kind", KINDS)
def test_an_altered_encoded_sample_is_named_when_it_is_asked_for(tmp_path: Path, kind: str) -> None:
    with load(kind, storage="encoded") as dataset:
        dataset.save(tmp_path)
        store, cls = dataset._store, type(dataset)
        place = store.samples.nbytes - store.encoded.nbytes + int(store.encoded_offsets[3])
    with open(tmp_path / "samples.safetensors", "r+b") as file:
        file.seek(place)
        file.write(bytes(50))
    with cls.load(tmp_path) as dataset:
        assert dataset.verify() == [3]
        with pytest.raises(StoreError, match=rf"sample 3 of {tmp_path} was altered .*retry_failed"):
            dataset.__getitems__([0, 3, 5])
        assert dataset[5]["valid"]


@pytest.mark.parametrize("kind", KINDS)
def test_two_thousand_altered_samples_are_named_or_served_in_their_shape(tmp_path: Path, kind: str) -> None:
    """What a decoder cannot make out is a StoreError that names the sample; the others of a batch stay whole."""
    with load(kind, storage="encoded") as dataset:
        dataset.save(tmp_path)
        expected, cls = batch_of(dataset, [0, 2]), type(dataset)
    draw, num_named = np.random.default_rng(0), 0
    with cls.load(tmp_path) as dataset, open(tmp_path / "samples.safetensors", "r+b", buffering=0) as file:
        store = dataset._store
        whole, length = store.sample(1).tobytes(), len(dataset[1]["image" if kind == "images" else "audio"])
        place = store.samples.nbytes - store.encoded.nbytes + int(store.encoded_offsets[1])
        for _ in range(2_000):
            damaged = damage(whole, draw)[: len(whole)].ljust(len(whole), b"\0")
            os.pwrite(file.fileno(), damaged, place)  # the dataset has the file mapped
            try:
                media, *_ = batch_of(dataset, [0, 1, 2])
            except StoreError as error:
                num_named += f"sample 1 of {tmp_path} was altered" in str(error)
            else:
                num_named += damaged == whole
                assert torch.equal(media[0], expected[0][0][..., : media.shape[-1]])
                assert media.shape[0] == 3
                assert media[1].shape == (3, 40, 48) if kind == "images" else not media[1, length:].any()
        os.pwrite(file.fileno(), whole, place)
        assert dataset.verify() == []
        assert same(batch_of(dataset, [0, 2]), expected)
    assert num_named > 500


def test_encoded_samples_are_not_served_from_a_device() -> None:
    with load("images", storage="encoded") as dataset:
        with pytest.raises(ConfigError, match=r'28 of|30 of 30 samples lie encoded.*storage="decoded" for meta'):
            dataset.to("meta")
        assert dataset.to("cpu")[0]["valid"]


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        ("images", {"storage": "zipped"}, "storage='zipped': choose 'decoded', 'encoded' or 'auto'"),
        ("images", {"recompress": ("jpeg", 90)}, "recompress= is for samples that lie encoded"),
        ("images", {"storage": "encoded", "recompress": ("jpeg", 0)}, "quality from 1 to 100"),
        ("images", {"storage": "encoded", "recompress": ("webp", 90)}, "quality from 1 to 100"),
        ("images", {"storage": "encoded", "recompress": "jpeg"}, "quality from 1 to 100"),
        (
            "clips",
            {"storage": "encoded", "target_sr": 96_001},
            "target_sr=96001: .*FLAC, which does not hold this rate",
        ),
        ("clips", {"storage": "auto", "target_sr": 700_000}, "target_sr=700000"),
    ],
)
def test_impossible_arguments_are_refused(kind: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(kind, **arguments)
    assert free_memory()[0] > 0
