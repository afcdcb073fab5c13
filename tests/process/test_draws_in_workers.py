"""What chance decides is the same for the same seed, epoch and sample, however many workers serve it."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from in_memory_datasets import (
    EpochSampler,
    InMemoryAudioTextDataset,
    InMemoryImageTextDataset,
    collate_in_memory_audio,
    collate_in_memory_images,
)

Served = dict[int, tuple[str, list[float]]]
NUM_SAMPLES = 24


def load(kind: str) -> Any:
    """Load with the same seed each time: several captions a sample, and clips of which parts are served."""
    torch.manual_seed(9)
    captions = [[f"{i} {word}" for word in ("one", "two", "three")] for i in range(NUM_SAMPLES)]
    if kind == "images":
        rows = [
            {"image_url": np.full((2, 2, 3), i, np.uint8), "caption": caption} for i, caption in enumerate(captions)
        ]
        return InMemoryImageTextDataset(rows, image_size=(2, 2), captions="random", progress=False)
    frames = np.arange(900, dtype=np.float32) / 1000
    clips = [
        {"audio": {"array": frames, "sampling_rate": 100}, "caption": caption} for i, caption in enumerate(captions)
    ]
    return InMemoryAudioTextDataset(
        clips, target_sr=100, max_duration=0.2, crop="random", keep_duration=9.0, captions="random", progress=False
    )


def serve(kind: str, num_epochs: int, *, by_sampler: bool = False, **arguments: Any) -> list[Served]:
    """Give what each sample was served as, epoch by epoch."""
    epochs: list[Served] = []
    with load(kind) as dataset:
        sampler = EpochSampler(dataset, seed=1)
        loader: DataLoader[Any] = DataLoader(
            dataset,
            batch_size=4,
            sampler=sampler,
            collate_fn=collate_in_memory_images if kind == "images" else collate_in_memory_audio,
            **arguments,
        )
        for epoch in range(num_epochs):
            (sampler if by_sampler else dataset).set_epoch(epoch)
            served: Served = {}
            for batch in loader:
                media = batch["images"] if kind == "images" else batch["audio"]
                for index, caption, one in zip(batch["indices"].tolist(), batch["captions"], media, strict=True):
                    served[index] = (caption, one.flatten().tolist())
            assert sorted(served) == list(range(NUM_SAMPLES))
            epochs.append(served)
        loader._iterator = None
    return epochs


@pytest.mark.parametrize("kind", ["images", "clips"])
@pytest.mark.parametrize(
    "arguments",
    [
        {"num_workers": 1},
        {"num_workers": 2, "persistent_workers": True},
        {"num_workers": 2, "multiprocessing_context": "spawn", "persistent_workers": True},
        {"num_workers": 1, "by_sampler": True},
        {"by_sampler": True},
    ],
    ids=lambda arguments: "-".join(map(str, arguments.values())),
)
def test_the_epoch_decides_and_not_who_serves(kind: str, arguments: dict[str, Any]) -> None:
    alone = serve(kind, 3)
    assert serve(kind, 3, **arguments) == alone
    for one, next_one in itertools.pairwise(alone):
        assert all(one[i][0] != next_one[i][0] for i in range(NUM_SAMPLES)), "captions come in turns"
        if kind == "clips":
            assert sum(one[i][1] != next_one[i][1] for i in range(NUM_SAMPLES)) > NUM_SAMPLES / 2
