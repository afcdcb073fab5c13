"""This library: in memory, and mapped from a directory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.serve.peers.base import Feed, Peer
from benchmarks.serve.samples import SAMPLING_RATE, Samples


class Rows:
    """Samples as rows for this library, each read when it is asked for."""

    def __init__(self, samples: Samples) -> None:
        self._samples = samples

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, i: int) -> dict[str, Any]:
        row = self._samples[i]
        if self._samples.media == "image":
            return {"image_url": row["image"], "caption": row["caption"]}
        return {"audio": {"array": row["audio"], "sampling_rate": SAMPLING_RATE}, "caption": row["caption"]}


def build(samples: Samples) -> Any:
    """Load the samples into memory."""
    from in_memory_datasets import InMemoryAudioTextDataset, InMemoryImageTextDataset

    cls = InMemoryImageTextDataset if samples.media == "image" else InMemoryAudioTextDataset
    return cls(Rows(samples), progress=False)


class Ours(Peer):
    """The dataset as it comes, in the stock DataLoader."""

    name = "in_memory_datasets"
    packages = ("in-memory-datasets", "torch")
    stored = "decoded, one block of shared memory"
    configuration = (
        "DataLoader(InMemoryImageTextDataset(rows), batch_size=B, shuffle=True, "
        "collate_fn=collate_in_memory_images, num_workers=w); InMemoryAudioTextDataset likewise"
    )
    source = "README.md"

    def open(self, samples: Samples, place: Path, num_workers: int, batch_size: int) -> Feed:
        return self.feed(build(samples), samples, num_workers, batch_size)

    def feed(self, dataset: Any, samples: Samples, num_workers: int, batch_size: int) -> Feed:
        """Put a dataset into a loader."""
        from torch.utils.data import DataLoader

        from in_memory_datasets import collate_in_memory_audio, collate_in_memory_images

        collate = collate_in_memory_images if samples.media == "image" else collate_in_memory_audio
        return Feed(
            DataLoader(
                dataset,
                batch_size=batch_size,
                shuffle=True,
                collate_fn=collate,
                num_workers=num_workers,
                persistent_workers=num_workers > 0,
            )
        )


class OursFromDirectory(Ours):
    """The dataset mapped from a directory that an earlier run left."""

    name = "in_memory_datasets (directory)"
    stored = "decoded, a directory that is mapped"
    configuration = "the same over InMemoryImageTextDataset.load(directory)"

    def prepare(self, samples: Samples, place: Path) -> None:
        with build(samples) as dataset:
            dataset.save(place / "saved")

    def open(self, samples: Samples, place: Path, num_workers: int, batch_size: int) -> Feed:
        from in_memory_datasets import InMemoryAudioTextDataset, InMemoryImageTextDataset

        cls = InMemoryImageTextDataset if samples.media == "image" else InMemoryAudioTextDataset
        return self.feed(cls.load(place / "saved", progress=False), samples, num_workers, batch_size)
