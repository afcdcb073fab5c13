"""Load a Hugging Face dataset of images or audio into memory once, then feed PyTorch at the speed of memory.

    dataset = InMemoryImageTextDataset(hf_dataset, max_samples=10000)
    loader = DataLoader(dataset, batch_size=32, collate_fn=collate_in_memory_images)

Importing this package does nothing; torch is loaded when a name is used that needs it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from in_memory_datasets.errors import (
    ConfigError,
    DecodeError,
    FetchError,
    InMemoryDatasetsError,
    LoadError,
    MemoryLimitError,
    MissingExtraError,
    SampleError,
    StoreError,
)
from in_memory_datasets.schema import Failure, FetchOptions, LoadReport, MemoryPlan

if TYPE_CHECKING:
    import in_memory_datasets.store.cache as cache
    import in_memory_datasets.training.presets as presets
    from in_memory_datasets.training.batches import (
        collate_audio,
        collate_images,
        collate_in_memory_audio,
        collate_in_memory_images,
    )
    from in_memory_datasets.training.datasets import InMemoryAudioTextDataset, InMemoryImageTextDataset
    from in_memory_datasets.training.device import DevicePrefetcher
    from in_memory_datasets.training.on_the_fly import AudioTextDataset, ImageTextDataset
    from in_memory_datasets.training.samplers import DurationBatchSampler, EpochSampler

__version__ = "0.1.0"

__all__ = [
    "AudioTextDataset",
    "ConfigError",
    "DecodeError",
    "DevicePrefetcher",
    "DurationBatchSampler",
    "EpochSampler",
    "Failure",
    "FetchError",
    "FetchOptions",
    "ImageTextDataset",
    "InMemoryAudioTextDataset",
    "InMemoryDatasetsError",
    "InMemoryImageTextDataset",
    "LoadError",
    "LoadReport",
    "MemoryLimitError",
    "MemoryPlan",
    "MissingExtraError",
    "SampleError",
    "StoreError",
    "cache",
    "collate_audio",
    "collate_images",
    "collate_in_memory_audio",
    "collate_in_memory_images",
    "presets",
]

_MODULES = {"cache": "store.cache", "presets": "training.presets"}
_TORCH_NAMES = {
    "AudioTextDataset": "on_the_fly",
    "DevicePrefetcher": "device",
    "DurationBatchSampler": "samplers",
    "EpochSampler": "samplers",
    "ImageTextDataset": "on_the_fly",
    "InMemoryAudioTextDataset": "datasets",
    "InMemoryImageTextDataset": "datasets",
    "collate_audio": "batches",
    "collate_images": "batches",
    "collate_in_memory_audio": "batches",
    "collate_in_memory_images": "batches",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"in_memory_datasets.{_MODULES[name]}")
    if name in _TORCH_NAMES:
        module = importlib.import_module(f"in_memory_datasets.training.{_TORCH_NAMES[name]}")
        return getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
