"""The on-the-fly twins: what they refuse, and that they serve what memory serves."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest

from in_memory_datasets import (
    AudioTextDataset,
    ConfigError,
    ImageTextDataset,
    InMemoryAudioTextDataset,
    InMemoryImageTextDataset,
    LoadError,
    collate_audio,
    collate_images,
)


def image_rows() -> list[dict[str, Any]]:
    images = [np.full((5, 7, 3), 30 * i, np.uint8) for i in range(6)]
    return [{"image_url": image, "caption": [f"{i}a", f"{i}b"]} for i, image in enumerate(images)]


BROKEN: list[dict[str, Any]] = [*image_rows()[:1], {"image_url": b"no picture", "caption": []}, {"image_url": None}]


@pytest.mark.parametrize("captions", ["first", "random", "all"])
@pytest.mark.parametrize("output", ["torch", "numpy", "pil"])
def test_samples_are_those_of_memory(captions: Any, output: Any) -> None:
    arguments = {"image_size": (4, 4), "captions": captions, "output": output, "resize": "pad"}
    twin = ImageTextDataset(image_rows(), **arguments)
    with InMemoryImageTextDataset(image_rows(), **arguments) as dataset:
        for one, other in zip(twin, dataset, strict=True):
            assert np.array_equal(np.asarray(one.pop("image")), np.asarray(other.pop("image")))
            assert one == other


def test_clips_are_those_of_memory() -> None:
    clip = {"array": np.sin(np.arange(4000) / 9), "sampling_rate": 8000}
    rows = [{"audio": clip, "caption": "tone"}, {"audio": None, "caption": "nothing"}]
    twin = collate_audio(AudioTextDataset(rows, pad_to="max", max_duration=2.0).__getitems__([0, 1]))
    with InMemoryAudioTextDataset(rows, pad_to="max", max_duration=2.0) as dataset:
        memory = collate_audio(dataset.__getitems__([0, 1]))
    assert twin["audio"].equal(memory["audio"])
    assert twin["lengths"].tolist() == memory["lengths"].tolist() == [8000, 16_000]
    assert twin["valid"].tolist() == [True, False]


def test_a_failure_is_grey_or_raises() -> None:
    batch = collate_images(ImageTextDataset(BROKEN, image_size=(4, 4)).__getitems__([0, 1, 2]))
    assert batch["valid"].tolist() == [True, False, False]
    assert batch["images"][1:].unique().tolist() == [128]
    assert batch["captions"] == ["0a", "", ""]
    with pytest.raises(LoadError, match="row 1"):
        _ = ImageTextDataset(BROKEN, image_size=(4, 4), on_error="raise")[1]


def test_what_cannot_be_served_on_the_fly_is_refused() -> None:
    with pytest.raises(ConfigError, match="'placeholder' or 'raise'"):
        ImageTextDataset(image_rows(), on_error="skip")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="only in order"):
        ImageTextDataset(iter(image_rows()))


def test_positions_are_those_of_a_sequence() -> None:
    twin = ImageTextDataset(image_rows(), image_size=(4, 4), max_samples=4)
    assert len(twin) == 4
    assert twin[-1]["index"] == 3
    for wrong in (4, -5):
        with pytest.raises(IndexError, match="of a dataset of 4"):
            _ = twin[wrong]


def test_the_epoch_decides_random_captions_also_after_pickling() -> None:
    twin = ImageTextDataset(image_rows(), image_size=(4, 4), captions="random")
    twin.set_epoch(3)
    copy: ImageTextDataset = pickle.loads(pickle.dumps(twin))
    assert [sample["caption"] for sample in copy] == [sample["caption"] for sample in twin]
    assert "6 samples" in repr(copy)
