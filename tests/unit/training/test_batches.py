"""Collating lists of samples, which Subsets and ConcatDatasets give instead of a batch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from in_memory_datasets import collate_audio, collate_images, collate_in_memory_audio, collate_in_memory_images
from in_memory_datasets.schema import AudioSpec
from in_memory_datasets.training.batches import pad_clips
from in_memory_datasets.training.serving import AudioServing, Books, ImageServing


def make_books(num_samples: int) -> Books:
    return Books(
        [f"c{i}" for i in range(num_samples)], torch.arange(num_samples), torch.ones(num_samples, dtype=torch.bool)
    )


def make_sample(image: Any, index: int = 0) -> dict[str, Any]:
    return {"image": image, "caption": "c", "index": index, "valid": True}


def test_both_names_are_the_same_function() -> None:
    assert collate_in_memory_images is collate_images
    assert collate_in_memory_audio is collate_audio


def test_a_batch_is_handed_on_without_a_copy() -> None:
    buffer = torch.zeros((2, 4, 5, 3), dtype=torch.uint8)
    batch = collate_images(ImageServing().batch(buffer, make_books(2)))
    buffer[1, 2, 3] = torch.tensor([7, 8, 9], dtype=torch.uint8)
    assert batch["images"][1, :, 2, 3].tolist() == [7, 8, 9]
    assert batch["images"].is_contiguous(memory_format=torch.channels_last)
    assert batch["images"].shape == (2, 3, 4, 5)


def test_a_list_of_samples_gives_the_same_batch() -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 4, 5, 3), np.uint8)
    whole = ImageServing().batch(torch.from_numpy(images), make_books(3))
    one, other = collate_images(whole), collate_images(list(whole))
    for key in ("images", "indices", "valid"):
        assert torch.equal(one[key], other[key])
        assert one[key].stride() == other[key].stride()
    assert one["captions"] == other["captions"]


def test_arrays_stack_and_pictures_stay_a_list() -> None:
    stacked = collate_images([make_sample(np.zeros((2, 2, 3), np.uint8))] * 2)["images"]
    assert stacked.shape == (2, 2, 2, 3)
    pictures = collate_images([make_sample(Image.new("RGB", (2, 2)))] * 2)["images"]
    assert isinstance(pictures, list)


def test_transformed_images_of_any_layout_stack() -> None:
    serving = ImageServing(transform=lambda image: image[:, :2].float() / 255)
    batch = serving.batch(torch.full((2, 4, 4, 3), 255, dtype=torch.uint8), make_books(2))
    assert batch.images.shape == (2, 3, 2, 4)
    assert batch.images.dtype == torch.float32


def test_clips_are_padded_to_the_longest() -> None:
    clips = [torch.ones(3), torch.full((5,), 0.5)]
    batch = collate_audio(AudioServing().batch(clips, make_books(2), spec=AudioSpec(10, 1.0)))
    assert batch["audio"].tolist() == [[1, 1, 1, 0, 0], [0.5] * 5]
    assert batch["lengths"].tolist() == [3, 5]


def test_pad_to_max_gives_every_batch_the_same_length() -> None:
    clips = [torch.ones(3)]
    batch = AudioServing(pad_to="max").batch(clips, make_books(1), spec=AudioSpec(10, 1.0))
    assert batch.audio.shape == (1, 10)
    assert batch[0]["audio"].shape == (3,)


def test_pad_to_max_holds_for_transformed_waveforms_too() -> None:
    serving = AudioServing(pad_to="max", transform=lambda wave: wave[1:])
    batch = serving.batch([torch.ones(3)], make_books(1), spec=AudioSpec(10, 1.0))
    assert batch.audio.tolist() == [[1, 1, *[0] * 8]]
    assert batch.lengths.tolist() == [2]


@pytest.mark.parametrize("transform", [lambda wave: wave.repeat(4), lambda wave: wave.reshape(1, -1)])
def test_pad_to_max_refuses_what_a_transform_made_longer_or_no_waveform(transform: Any) -> None:
    serving = AudioServing(pad_to="max", transform=transform)
    with pytest.raises(ValueError, match=r"the 10 frames of max_duration.*shapes \[\(.*batch_transform"):
        serving.batch([torch.ones(3)], make_books(1), spec=AudioSpec(10, 1.0))


def test_features_over_time_are_padded_along_time() -> None:
    serving = AudioServing(transform=lambda wave: wave.reshape(1, -1).repeat(4, 1))
    batch = serving.batch([torch.ones(2), torch.ones(3)], make_books(2), spec=AudioSpec(10, 1.0))
    assert batch.audio.shape == (2, 4, 3)
    assert batch[0]["audio"].shape == (4, 2)


def test_clips_that_differ_in_more_than_length_are_refused() -> None:
    with pytest.raises(ValueError, match="all axes but the last"):
        pad_clips([np.ones((2, 3)), np.ones((1, 3))])


def test_a_batch_transform_that_alters_time_is_served_as_it_is() -> None:
    serving = AudioServing(batch_transform=lambda audio: audio.reshape(len(audio), -1, 1).mean(1))
    batch = serving.batch([torch.ones(4)], make_books(1), spec=AudioSpec(10, 1.0))
    assert batch[0]["audio"].tolist() == [1.0]


def test_numpy_output_holds_arrays() -> None:
    batch = AudioServing(output="numpy").batch([torch.ones(4)], make_books(1), spec=AudioSpec(10, 1.0))
    assert isinstance(batch.audio, np.ndarray)
    images = ImageServing(output="numpy").batch(torch.zeros((1, 2, 3, 3), dtype=torch.uint8), make_books(1))
    assert images.images.shape == (1, 2, 3, 3)
    pictures = ImageServing(output="pil").batch(torch.zeros((1, 2, 3, 3), dtype=torch.uint8), make_books(1))
    assert pictures[0]["image"].size == (3, 2)
