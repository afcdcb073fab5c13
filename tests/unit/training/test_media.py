"""Batches gathered from the block in memory and on a device: the same values, from both."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from in_memory_datasets import MemoryLimitError
from in_memory_datasets.training import media as media_module
from in_memory_datasets.training.media import DeviceMedia, HostMedia

CPU = torch.device("cpu")


def both(samples: np.ndarray) -> list[HostMedia | DeviceMedia]:
    samples.setflags(write=False)
    return [HostMedia(samples), DeviceMedia.copy_of(samples, CPU)]


@pytest.mark.parametrize("size", [(4, 4), (3, 5), (1, 1), (2, 3), (224, 224)])
@pytest.mark.parametrize("slots", [[0], [2, 2, 0, 9], [], list(range(9, -1, -1))])
def test_images_come_in_the_order_that_was_asked_for(size: tuple[int, int], slots: list[int]) -> None:
    images = np.random.default_rng(0).integers(0, 256, (10, *size, 3), np.uint8)
    for media in both(images):
        batch = media.images(torch.tensor(slots, dtype=torch.int64))
        assert np.array_equal(batch.numpy(), images[slots])


@pytest.mark.parametrize("dtype", ["float32", "int16"])
@pytest.mark.parametrize("num_frames", [40_000, 50_000])
def test_clips_are_padded_with_zeros(dtype: Any, num_frames: int) -> None:
    frames = np.random.default_rng(1).integers(-32768, 32768, 100_000).astype(dtype)
    starts, lengths = [3, -1, 60_000, 0, 99_999], [7, 12, 40_000, 0, 1]
    for media in both(frames):
        batch = media.clips(starts, lengths, num_frames)
        assert batch.dtype == torch.float32
        assert batch.shape == (5, num_frames)
        for row, start, length in zip(batch.numpy(), starts, lengths, strict=True):
            clip = frames[start : start + length] if start >= 0 else np.zeros(length)
            scale = 32_768 if dtype == "int16" else 1
            assert np.array_equal(row[:length], clip.astype(np.float32) / scale)
            assert not row[length:].any()


def test_a_batch_that_threads_share_is_the_same() -> None:
    images = np.random.default_rng(2).integers(0, 256, (20, 300, 300, 3), np.uint8)
    slots, threads = torch.arange(19, -1, -1).repeat(3), torch.get_num_threads()
    media = HostMedia(images)
    try:
        torch.set_num_threads(4)
        for _ in range(2):  # the first batch of a process is copied by its caller alone
            assert np.array_equal(media.images(slots).numpy(), images[slots.numpy()])
        assert media.crew._threads
    finally:
        torch.set_num_threads(threads)
        media.crew.close()


def test_a_device_without_room_refuses_with_both_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(media_module, "free_memory", lambda: (1000, "machine"))
    with pytest.raises(MemoryLimitError, match=r"samples take 3.3 kB, cpu has 1 kB free.*DevicePrefetcher"):
        DeviceMedia.copy_of(np.zeros((10, 10, 11, 3), np.uint8), CPU)


def test_an_upload_in_many_parts_is_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(media_module, "_UPLOAD_BYTES", 64)
    frames = np.arange(1001, dtype=np.int16)
    assert np.array_equal(DeviceMedia.copy_of(frames, CPU).samples.numpy(), frames)
    assert len(DeviceMedia.copy_of(np.zeros(0, np.float32), CPU).samples) == 0
