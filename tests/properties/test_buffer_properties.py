"""Batches are never altered while anybody holds one, whatever is held, in whatever order it is let go of."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from in_memory_datasets import (
    InMemoryAudioTextDataset,
    InMemoryImageTextDataset,
    collate_in_memory_audio,
    collate_in_memory_images,
)

NUM_SAMPLES = 23

# Ways of holding on to some of a batch.
HOLDS: list[Callable[[torch.Tensor], Any]] = [
    lambda batch: batch,
    lambda batch: batch[-1:],
    lambda batch: batch.numpy(),
    lambda batch: batch.numpy()[..., ::2],
    lambda batch: batch.reshape(-1)[5:].view(-1),
    lambda batch: list(batch.unbind(0)),
    lambda batch: memoryview(batch.numpy()),
    lambda batch: np.from_dlpack(batch),
    lambda batch: batch.detach().transpose(0, 1),
]


def values_of(held: Any) -> Any:
    if isinstance(held, list):
        return [tensor.clone() for tensor in held]
    return np.array(held.numpy() if isinstance(held, torch.Tensor) else held)


def same(one: Any, other: Any) -> bool:
    if isinstance(one, list):
        return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    return np.array_equal(one, other)


steps = st.lists(
    st.tuples(
        st.lists(st.integers(0, NUM_SAMPLES - 1), min_size=1, max_size=12),  # the batch that is taken
        st.sampled_from(range(len(HOLDS))),  # how it is held
        st.integers(0, 10),  # what is let go of before, if there are so many
        st.booleans(),  # by another thread
    ),
    max_size=25,
)


def check(get: Callable[[list[int]], torch.Tensor], plan: list[tuple[list[int], int, int, bool]]) -> None:
    held: list[tuple[Any, Any]] = []
    for indices, hold, let_go, elsewhere in plan:
        if let_go < len(held):
            if elsewhere:
                others = [held.pop(let_go)]
                thread = threading.Thread(target=others.clear)
                thread.start()
                thread.join()
            else:
                del held[let_go]
        kept = HOLDS[hold](get(indices))
        held.append((kept, values_of(kept)))
        assert all(same(now, then) for now, then in held)


@settings(max_examples=60, deadline=None)
@given(steps)
def test_images_that_are_held_stay_as_they_are(plan: list[tuple[list[int], int, int, bool]]) -> None:
    check(lambda indices: collate_in_memory_images(IMAGES.__getitems__(indices))["images"], plan)


@settings(max_examples=60, deadline=None)
@given(steps)
def test_clips_that_are_held_stay_as_they_are(plan: list[tuple[list[int], int, int, bool]]) -> None:
    check(lambda indices: collate_in_memory_audio(CLIPS.__getitems__(indices))["audio"], plan)


def test_all_batches_of_an_epoch_can_be_held() -> None:
    loader = DataLoader(IMAGES, batch_size=4, shuffle=True, collate_fn=collate_in_memory_images)
    for batch in [batch for _ in range(3) for batch in loader]:
        for picture, index in zip(batch["images"], batch["indices"], strict=True):
            assert picture.unique().tolist() == [int(index) * 11]


IMAGES: InMemoryImageTextDataset
CLIPS: InMemoryAudioTextDataset


def setup_module() -> None:
    global IMAGES, CLIPS
    pictures = [{"image_url": np.full((6, 5, 3), i * 11, np.uint8), "caption": ""} for i in range(NUM_SAMPLES)]
    IMAGES = InMemoryImageTextDataset(pictures, image_size=(5, 6), progress=False)
    clips = [{"array": np.full(40 * (i + 1), i / 32, np.float32), "sampling_rate": 8000} for i in range(NUM_SAMPLES)]
    CLIPS = InMemoryAudioTextDataset([{"audio": clip, "caption": ""} for clip in clips], target_sr=8000, progress=False)


def teardown_module() -> None:
    IMAGES.close()
    CLIPS.close()
