"""Datasets whose samples lie on a device; the processor stands for one, by being taken for another than itself."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from in_memory_datasets import (
    ConfigError,
    InMemoryAudioTextDataset,
    InMemoryImageTextDataset,
    MemoryLimitError,
    collate_in_memory_audio,
    collate_in_memory_images,
)
from in_memory_datasets.training import in_memory
from in_memory_datasets.training import media as media_module
from in_memory_datasets.training.media import DeviceMedia, HostMedia

COLLATE = {InMemoryImageTextDataset: collate_in_memory_images, InMemoryAudioTextDataset: collate_in_memory_audio}


@pytest.fixture
def put_on_device(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], Any]:
    """Put a dataset on the processor, which from then on nobody takes for the host any more."""

    def put(dataset: Any) -> Any:
        monkeypatch.setattr(in_memory, "_CPU", torch.device("meta"))
        return dataset.to("cpu")

    return put


def image_rows() -> list[dict[str, Any]]:
    pixels = np.random.default_rng(0).integers(0, 256, (9, 5, 7, 3), np.uint8)
    rows: list[dict[str, Any]] = [{"image_url": image, "caption": [f"{i}a", f"{i}b"]} for i, image in enumerate(pixels)]
    rows[4]["image_url"] = b"no picture"
    return rows


def clip_rows() -> list[dict[str, Any]]:
    draw = np.random.default_rng(1)
    clips = [draw.uniform(-1, 1, length).astype(np.float32) for length in (300, 20, 170, 1, 299, 40, 300, 80, 9)]
    rows: list[dict[str, Any]] = [
        {"audio": {"array": clip, "sampling_rate": 100}, "caption": str(i)} for i, clip in enumerate(clips)
    ]
    rows[4]["audio"] = None
    return rows


def load_images(**arguments: Any) -> InMemoryImageTextDataset:
    return InMemoryImageTextDataset(image_rows(), image_size=(7, 5), progress=False, **arguments)


def load_clips(**arguments: Any) -> InMemoryAudioTextDataset:
    arguments = {"target_sr": 100, "max_duration": 3.0, "progress": False, **arguments}
    return InMemoryAudioTextDataset(clip_rows(), **arguments)


def epoch_of(dataset: Any) -> list[dict[str, Any]]:
    return list(DataLoader(dataset, batch_size=4, collate_fn=COLLATE[type(dataset)]))


def assert_same(epoch: list[dict[str, Any]], other: list[dict[str, Any]]) -> None:
    for batch, twin in zip(epoch, other, strict=True):
        assert batch.keys() == twin.keys()
        for name, value in batch.items():
            if isinstance(value, torch.Tensor):
                assert value.dtype == twin[name].dtype
                assert value.stride() == twin[name].stride()
            assert np.array_equal(value, twin[name]), name


def flip(media: torch.Tensor) -> torch.Tensor:
    return media.flip(-1)


@pytest.mark.parametrize(
    "arguments",
    [{}, {"on_error": "skip"}, {"transform": flip}, {"batch_transform": flip}, {"captions": "all"}],
    ids=lambda arguments: next(iter(arguments), "plain"),
)
@pytest.mark.parametrize("load", [load_images, load_clips], ids=["images", "clips"])
def test_batches_of_a_device_are_those_of_memory(
    load: Any, arguments: dict[str, Any], put_on_device: Callable[[Any], Any]
) -> None:
    with load(**arguments) as dataset:
        batches = epoch_of(dataset)
        assert isinstance(dataset._samples(dataset._store), HostMedia)
        there = put_on_device(dataset)
        assert isinstance(there._samples(there._store), DeviceMedia)
        assert_same(batches, epoch_of(there))


@pytest.mark.parametrize("arguments", [{"dtype": "int16"}, {"pad_to": "max"}, {"crop": "random", "max_duration": 0.5}])
def test_clips_of_every_manner_are_gathered_alike(
    arguments: dict[str, Any], put_on_device: Callable[[Any], Any]
) -> None:
    with load_clips(**arguments) as dataset:
        dataset.set_epoch(5)
        batches = epoch_of(dataset)
        assert_same(batches, epoch_of(put_on_device(dataset)))


@pytest.mark.parametrize("size", [(8, 1), (4, 1), (2, 1), (1, 1), (5, 7), (16, 16)])
def test_rows_of_any_number_of_bytes_are_gathered_whole(size: tuple[int, int]) -> None:
    """They are moved in words of eight, four, two bytes or one."""
    width, height = size
    images = np.random.default_rng(2).integers(0, 256, (11, height, width, 3), np.uint8)
    media = DeviceMedia.copy_of(images, torch.device("cpu"))
    slots = torch.tensor([10, 0, 3, 3, 7])
    assert np.array_equal(media.images(slots).numpy(), images[slots.numpy()])


def test_back_in_memory_nothing_is_copied() -> None:
    with load_images() as dataset:
        same = dataset.to("cpu")
        media, own = same._samples(same._store), dataset._samples(dataset._store)
        assert isinstance(media, HostMedia)
        assert isinstance(own, HostMedia)
        assert np.shares_memory(media.samples, own.samples)


def test_the_copy_on_a_device_is_its_own(put_on_device: Callable[[Any], Any]) -> None:
    with load_images() as dataset:
        media, store = put_on_device(dataset)._samples(dataset._store), dataset._store
        assert isinstance(media, DeviceMedia)
        assert store.images is not None
        assert not np.shares_memory(media.samples.numpy(), store.images)


def test_what_is_mended_is_mended_on_the_device_too(put_on_device: Callable[[Any], Any]) -> None:
    rows = image_rows()
    with InMemoryImageTextDataset(rows, image_size=(7, 5), progress=False) as dataset:
        there = put_on_device(dataset)
        assert epoch_of(there)[1]["valid"].tolist()[0] is False
        rows[4]["image_url"] = np.full((5, 7, 3), 99, np.uint8)
        assert there.retry_failed().num_failed == 0
        assert there[4]["image"].unique().tolist() == [99]


def test_a_copy_by_pickle_goes_to_the_device_again(put_on_device: Callable[[Any], Any]) -> None:
    with load_images() as dataset:
        there = put_on_device(dataset)
        expected = epoch_of(there)
        copy: InMemoryImageTextDataset = pickle.loads(pickle.dumps(there))
    with copy:
        assert isinstance(copy._samples(copy._store), DeviceMedia)
        assert_same(expected, epoch_of(copy))


@pytest.mark.parametrize("load", [load_images, load_clips], ids=["images", "clips"])
def test_worker_processes_are_refused(load: Any, put_on_device: Callable[[Any], Any]) -> None:
    """Those that are forked off too, which have what their parent has."""
    with load() as dataset:
        loader = DataLoader(put_on_device(dataset), num_workers=1, collate_fn=COLLATE[type(dataset)])
        with pytest.raises(
            ConfigError, match=r"lies on cpu, and worker processes would each copy it there.*num_workers=0"
        ):
            next(iter(loader))


@pytest.mark.parametrize("output", ["numpy", "pil"])
def test_arrays_and_pictures_are_on_no_device(output: Any) -> None:
    with (
        load_images(output=output) as dataset,
        pytest.raises(ConfigError, match=f"output='{output}' is never on a device"),
    ):
        dataset.to("meta")


def test_a_device_that_torch_does_not_know_is_named() -> None:
    with load_images() as dataset, pytest.raises(RuntimeError, match="abacus"):
        dataset.to("abacus")


def test_what_does_not_fit_is_refused_with_both_numbers_and_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    with load_images() as dataset:
        with monkeypatch.context() as patch:
            patch.setattr(in_memory, "_CPU", torch.device("meta"))
            patch.setattr(media_module, "free_memory", lambda: (900, "machine"))
            with pytest.raises(MemoryLimitError, match="take 945 B, cpu has 900 B free") as caught:
                dataset.to("cpu")
        assert (caught.value.bytes_needed, caught.value.bytes_available) == (945, 900)
        assert len(epoch_of(dataset)) == 3
