"""What needs no library but torch: lists, tensors, and a bare copy as the measure of all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.serve.peers.base import Batch, Feed, Peer
from benchmarks.serve.samples import Samples

TORCH_DATA = "https://docs.pytorch.org/docs/stable/data.html"


class Memcpy(Peer):
    """What the machine can do at best: consecutive samples into one warm buffer."""

    name = "memcpy"
    stored = "decoded, an array in memory"
    configuration = "numpy.copyto(buffer, samples[i : i + B]) into the same warm buffer, one thread"
    source = ""
    notes = "no loader: not shuffled, no captions, workers do not matter; clips are copied without their padding"

    def open(self, samples: Samples, place: Path, num_workers: int, batch_size: int) -> Feed:
        return Feed(_Copies(samples, batch_size))


class _Copies:
    def __init__(self, samples: Samples, batch_size: int) -> None:
        self._samples, self._batch_size = samples, batch_size
        bounds = [*range(0, len(samples), batch_size), len(samples)]
        if samples.media == "image":
            self._rows: Any = samples.all_images()
            self._bounds = bounds
        else:
            self._rows = np.concatenate([samples.clip(i) for i in range(len(samples))])
            self._bounds = samples.offsets[bounds].tolist()
        longest = max(np.diff(self._bounds))
        self._buffer = np.ones((longest, *self._rows.shape[1:]), self._rows.dtype)

    def __iter__(self) -> Iterator[Batch]:
        for number, (start, stop) in enumerate(zip(self._bounds, self._bounds[1:], strict=False)):
            copy = self._buffer[: stop - start]
            np.copyto(copy, self._rows[start:stop])
            first = number * self._batch_size
            indices = range(first, min(first + self._batch_size, len(self._samples)))
            yield {"copy": copy, "indices": indices, "captions": indices}


def pad(clips: Sequence[Any]) -> Any:
    """Pad clips to the longest with torch's own function."""
    from torch.nn.utils.rnn import pad_sequence

    return pad_sequence(list(clips), batch_first=True)


def collate_clips(rows: Sequence[dict[str, Any]]) -> Batch:
    """Pad tensors or arrays of clips into one batch."""
    import torch

    clips = [torch.as_tensor(row["audio"]) for row in rows]
    return {
        "audio": pad(clips),
        "lengths": torch.tensor([len(clip) for clip in clips]),
        "captions": [row["caption"] for row in rows],
        "indices": torch.tensor([int(row["index"]) for row in rows]),
    }


def name_images(batch: dict[str, Any]) -> Batch:
    """Rename what `default_collate` made of samples."""
    return {"images": batch["image"], "captions": batch["caption"], "indices": batch["index"]}


class TensorList(Peer):
    """The commonest cache: a list of samples."""

    name = "list of tensors"
    stored = "decoded, a tensor per sample in memory"
    configuration = (
        "DataLoader([{image: uint8 (3, H, W), caption, index}, ...], batch_size=B, shuffle=True, num_workers=w) with "
        "default_collate; clips with pad_sequence in collate_fn"
    )
    source = TORCH_DATA

    def open(self, samples: Samples, place: Path, num_workers: int, batch_size: int) -> Feed:
        import torch
        from torch.utils.data import DataLoader, default_collate

        rows: list[dict[str, Any]] = []
        for i in range(len(samples)):
            row = samples[i]
            if samples.media == "image":
                row["image"] = torch.from_numpy(row["image"]).permute(2, 0, 1).contiguous()
            else:
                row["audio"] = torch.from_numpy(row["audio"])
            rows.append(row)
        images = samples.media == "image"
        loader: Any = DataLoader(
            rows,  # type: ignore[arg-type]
            batch_size=batch_size,
            shuffle=True,
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
            collate_fn=default_collate if images else collate_clips,
        )
        return Feed(loader, name_images) if images else Feed(loader)


class PictureList(Peer):
    """A list of pictures, made into tensors while collating."""

    name = "list of PIL images"
    packages = ("torch", "pillow")
    media = ("image",)
    stored = "decoded, a PIL image per sample in memory"
    configuration = (
        "DataLoader([(PIL image, caption, index), ...], batch_size=B, shuffle=True, num_workers=w, collate_fn=...): "
        "numpy.stack of numpy.asarray(image), then torch.from_numpy"
    )
    source = TORCH_DATA

    def open(self, samples: Samples, place: Path, num_workers: int, batch_size: int) -> Feed:
        from PIL import Image
        from torch.utils.data import DataLoader

        rows: Any = [(Image.fromarray(samples.image(i)), samples.captions[i], i) for i in range(len(samples))]
        return Feed(
            DataLoader(
                rows,
                batch_size=batch_size,
                shuffle=True,
                num_workers=num_workers,
                persistent_workers=num_workers > 0,
                collate_fn=_stack_pictures,
            )
        )


def _stack_pictures(rows: Sequence[tuple[Any, str, int]]) -> Batch:
    import torch

    pictures, captions, indices = zip(*rows, strict=True)
    images = torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures]))
    return {"images": images, "captions": list(captions), "indices": torch.tensor(indices)}


class Tensors(Peer):
    """TensorDataset as most use it: a sample at a time, collated."""

    name = "TensorDataset"
    stored = "decoded, one tensor in memory; clips padded to the longest of all"
    configuration = (
        "DataLoader(TensorDataset(images, indices), batch_size=B, shuffle=True, num_workers=w) with default_collate; "
        "captions from a list by index"
    )
    source = "https://docs.pytorch.org/docs/stable/data.html#torch.utils.data.TensorDataset"

    def open(self, samples: Samples, place: Path, num_workers: int, batch_size: int) -> Feed:
        from torch.utils.data import DataLoader

        dataset, unpack = _as_tensors(samples)
        return Feed(
            DataLoader(
                dataset,
                batch_size=batch_size,
                shuffle=True,
                num_workers=num_workers,
                persistent_workers=num_workers > 0,
            ),
            unpack,
        )


class BatchedTensors(Tensors):
    """TensorDataset with the batch as one index, which torch's documentation calls bulk loading."""

    name = "TensorDataset (batch sampler)"
    configuration = (
        "DataLoader(TensorDataset(images, indices), batch_size=None, num_workers=w, "
        "sampler=BatchSampler(RandomSampler(...), B, drop_last=False)); captions from a list by index"
    )
    source = "https://docs.pytorch.org/docs/stable/data.html#disable-automatic-batching"

    def open(self, samples: Samples, place: Path, num_workers: int, batch_size: int) -> Feed:
        from torch.utils.data import BatchSampler, DataLoader, RandomSampler

        dataset, unpack = _as_tensors(samples)
        sampler: Any = BatchSampler(RandomSampler(dataset), batch_size, drop_last=False)
        return Feed(
            DataLoader(
                dataset, batch_size=None, sampler=sampler, num_workers=num_workers, persistent_workers=num_workers > 0
            ),
            unpack,
        )


def _as_tensors(samples: Samples) -> tuple[Any, Any]:
    import torch
    from torch.utils.data import TensorDataset

    indices = torch.arange(len(samples))
    captions = samples.captions
    if samples.media == "image":
        return TensorDataset(torch.from_numpy(samples.all_images()), indices), ImagesByIndex(captions)
    audio, lengths = padded_clips(samples)
    return TensorDataset(torch.from_numpy(audio), torch.from_numpy(lengths), indices), ClipsByIndex(captions)


def padded_clips(samples: Samples) -> tuple[Any, Any]:
    """Read all clips into memory, padded to the longest of all: (N, T) and (N,)."""
    lengths = np.diff(samples.offsets)
    audio = np.zeros((len(samples), lengths.max()), np.float32)
    for i in range(len(samples)):
        audio[i, : lengths[i]] = samples.clip(i)
    return audio, lengths


class ImagesByIndex:
    """Name (images, indices), and find the captions that no tensor can hold."""

    def __init__(self, captions: Sequence[str]) -> None:
        self._captions = captions

    def __call__(self, batch: Sequence[Any]) -> Batch:
        images, indices = batch
        return {"images": images, "captions": [self._captions[i] for i in indices.tolist()], "indices": indices}


class ClipsByIndex(ImagesByIndex):
    """Name (audio, lengths, indices), and cut the batch to the longest clip in it."""

    def __call__(self, batch: Sequence[Any]) -> Batch:
        audio, lengths, indices = batch
        captions = [self._captions[i] for i in indices.tolist()]
        return {
            "audio": audio[:, : int(lengths.max())],
            "lengths": lengths,
            "captions": captions,
            "indices": indices,
        }
