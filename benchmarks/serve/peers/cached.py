"""Peers that keep decoded samples: in memory, in shared memory, or mapped from files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.serve.peers.base import Feed, Peer
from benchmarks.serve.peers.plain import ClipsByIndex, ImagesByIndex, name_images, padded_clips
from benchmarks.serve.samples import SIDE, Samples


class MappedTensorDict(Peer):
    """tensordict's memory-mapped tensors, a batch with one index operation."""

    name = "tensordict memmap"
    packages = ("tensordict", "torch")
    venv = "shared"
    stored = "decoded, memory-mapped files; clips padded to the longest of all"
    configuration = (
        "DataLoader(TensorDict.load_memmap(directory), batch_size=B, shuffle=True, num_workers=w, "
        "collate_fn=lambda x: x), which takes its __getitems__; captions from a list by index"
    )
    source = "https://docs.pytorch.org/tensordict/main/data_loading.html"

    def prepare(self, samples: Samples, place: Path) -> None:
        import torch
        from tensordict import TensorDict

        columns: dict[str, Any] = {"index": torch.arange(len(samples))}
        if samples.media == "image":
            columns["image"] = torch.from_numpy(samples.all_images())
        else:
            columns["audio"], columns["length"] = map(torch.from_numpy, padded_clips(samples))
        TensorDict(columns, batch_size=[len(samples)]).memmap(str(place / "memmap"))

    def open(self, samples: Samples, place: Path, num_workers: int, batch_size: int) -> Feed:
        from tensordict import TensorDict
        from torch.utils.data import DataLoader

        dataset: Any = TensorDict.load_memmap(str(place / "memmap"))
        names = ["image", "index"] if samples.media == "image" else ["audio", "length", "index"]
        name = (ImagesByIndex if samples.media == "image" else ClipsByIndex)(samples.captions)
        loader = DataLoader(
            dataset,
            batch_size=batch_size,
            shuffle=True,
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
            collate_fn=_as_it_is,
        )
        return Feed(loader, lambda batch: name([batch[key] for key in names]))


def _as_it_is(batch: Any) -> Any:
    return batch


class Monai(Peer):
    """MONAI's cache of what deterministic transforms made."""

    name = "MONAI CacheDataset"
    packages = ("monai", "torch")
    venv = "shared"
    media = ("image",)
    stored = "decoded, a tensor per sample in memory"
    configuration = (
        "monai DataLoader(CacheDataset(data, Compose([read, EnsureTyped(track_meta=False)]), cache_rate=1.0), "
        "batch_size=B, shuffle=True, num_workers=w)"
    )
    source = "https://github.com/Project-MONAI/tutorials/blob/master/acceleration/fast_model_training_guide.md"

    def open(self, samples: Samples, place: Path, num_workers: int, batch_size: int) -> Feed:
        import torch
        from monai.data import CacheDataset
        from monai.transforms import Compose, EnsureTyped, Lambdad

        read = Compose(
            [
                Lambdad(keys="image", func=lambda i: np.ascontiguousarray(samples.image(i).transpose(2, 0, 1))),
                EnsureTyped(keys="image", dtype=torch.uint8, track_meta=False),
            ]
        )
        data = [{"image": i, "caption": samples.captions[i], "index": i} for i in range(len(samples))]
        dataset = CacheDataset(data, read, cache_rate=1.0, progress=False)
        return Feed(self.loader(dataset, num_workers, batch_size), name_images)

    def loader(self, dataset: Any, num_workers: int, batch_size: int) -> Any:
        """Put the cache into a loader of theirs."""
        from monai.data import DataLoader

        return DataLoader(
            dataset, batch_size=batch_size, shuffle=True, num_workers=num_workers, persistent_workers=num_workers > 0
        )


class MonaiThreads(Monai):
    """The same, with the loader that MONAI recommends for light transforms: threads for workers."""

    name = "MONAI CacheDataset, ThreadDataLoader"
    configuration = (
        "monai ThreadDataLoader(CacheDataset(...), batch_size=B, shuffle=True, num_workers=w, use_thread_workers=w > 0)"
    )

    def loader(self, dataset: Any, num_workers: int, batch_size: int) -> Any:
        from monai.data import ThreadDataLoader

        return ThreadDataLoader(
            dataset,
            batch_size=batch_size,
            shuffle=True,
            num_workers=num_workers,
            use_thread_workers=num_workers > 0,
        )


class Stocaching(Peer):
    """stocaching's shared array, which the first epoch fills."""

    name = "stocaching"
    packages = ("stocaching", "torch")
    venv = "shared"
    media = ("image",)
    stored = "decoded, one array in shared memory, filled by the first epoch"
    configuration = (
        "a Dataset whose __getitem__ asks SharedCache.get_slot and fills set_slot, in DataLoader(batch_size=B, "
        "shuffle=True, num_workers=w) with default_collate"
    )
    source = "https://github.com/Charl-AI/stochastic-caching"
    notes = (
        "the cold epoch reads decoded pixels from a file, where users would decode; asks for numpy<2, runs with numpy 2"
    )

    def prepare(self, samples: Samples, place: Path) -> None:
        np.save(place / "images.npy", samples.all_images())

    def open(self, samples: Samples, place: Path, num_workers: int, batch_size: int) -> Feed:
        from torch.utils.data import DataLoader

        loader: Any = DataLoader(
            _Cached(samples, place / "images.npy"),  # type: ignore[arg-type]
            batch_size=batch_size,
            shuffle=True,
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
        )
        return Feed(loader, name_images)


class _Cached:
    def __init__(self, samples: Samples, path: Path) -> None:
        import torch
        from stocaching import SharedCache

        self._images = np.load(path, mmap_mode="r")
        self._captions = samples.captions
        num_bytes = self._images.nbytes + len(samples)
        self._cache = SharedCache(
            size_limit_gib=-(-num_bytes // 2**30),
            dataset_len=len(samples),
            data_dims=(SIDE, SIDE, 3),
            dtype=torch.uint8,
        )

    def __len__(self) -> int:
        return len(self._captions)

    def __getitem__(self, i: int) -> dict[str, Any]:
        import torch

        image = self._cache.get_slot(i)
        if image is None:
            image = torch.from_numpy(self._images[i].copy())
            self._cache.set_slot(i, image)
        return {"image": image, "caption": self._captions[i], "index": i}
