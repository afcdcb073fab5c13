"""What a cluster holds as a `ray.data.Dataset`: read from the nodes that hold it, and never by way of the driver."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import ray
import ray.data
from numpy.typing import NDArray
from ray import cloudpickle

from in_memory_datasets.scale.coordinator import Description
from in_memory_datasets.scale.nodes import LOST
from in_memory_datasets.store.parcels import Parcel, ParcelWriter
from in_memory_datasets.store.pieces import Pieces

_NUM_READ_AT_ONCE = 256  # samples
_LOOK_SECONDS = 0.2


def to_ray_dataset(description: Description, coordinator: Any) -> Any:
    """Give all samples as a `ray.data.Dataset`, in the order of their rows unless Ray is told otherwise.

    Its columns are "image" (uint8, (H, W, 3)) or "audio" (float32, (num_frames,)) and "sampling_rate"; "caption",
    "index" and "valid". Transforms are left to whoever reads it.

    Cost: each sample is copied once into Ray's object store, when it is asked for.
    """
    num_rows = ray.get(coordinator.plan.remote()).num_samples
    parts = ray.data.range(-(-num_rows // _NUM_READ_AT_ONCE))
    reader = _Reader(description, coordinator, num_rows)
    return parts.map_batches(reader, batch_size=1, num_cpus=0.25)


class _Reader:
    """Reads one part of the samples after another, in a task of Ray's."""

    def __init__(self, description: Description, coordinator: Any, num_rows: int) -> None:
        self._description, self._coordinator, self._num_rows = description, coordinator, num_rows

    def __call__(self, parts: dict[str, NDArray[np.int64]]) -> Iterator[dict[str, Any]]:
        for number in parts["id"].tolist():
            start = number * _NUM_READ_AT_ONCE
            yield self._columns(*self._fetch(start, min(start + _NUM_READ_AT_ONCE, self._num_rows)))

    def _fetch(self, start: int, stop: int) -> tuple[list[Parcel], NDArray[np.int64]]:
        """Borrow some rows from whoever holds them, which may be another node when one was lost meanwhile."""
        while True:
            holders = ray.get(self._coordinator.holders.remote(start, stop))
            refs = [actor.lend.remote(np.arange(first, last)) for first, last, actor in holders]
            try:
                return ray.get(refs), np.arange(start, stop)
            except LOST:
                time.sleep(_LOOK_SECONDS)

    def _columns(self, parcels: list[Parcel], rows: NDArray[np.int64]) -> dict[str, Any]:
        request = self._description.request
        cls, serving = cloudpickle.loads(self._description.served)
        serving = replace(serving, output="numpy", transform=None, batch_transform=None)
        with ParcelWriter(request.spec, encoded=request.storage == "encoded", num_rows=len(rows)) as writer:
            for parcel in parcels:
                writer.add(parcel)
            store = writer.finish()
        with cls._of_share(request, serving, _Whole(Pieces([store], [rows]))) as dataset:
            batch = dataset.__getitems__(range(len(rows)))
        kept = batch.valid.numpy() if request.on_error == "skip" else np.ones(len(rows), np.bool_)
        columns: dict[str, Any] = {
            "caption": np.array(batch.captions, object),
            "index": batch.indices.numpy(),
            "valid": batch.valid.numpy(),
        }
        if hasattr(batch, "images"):
            columns["image"] = batch.images
        else:
            clips = np.empty(len(rows), object)
            for place, (clip, length) in enumerate(zip(batch.audio, batch.lengths.tolist(), strict=True)):
                clips[place] = clip[:length]
            columns |= {"audio": clips, "sampling_rate": np.full(len(rows), batch.sampling_rate)}
        return {name: column[kept] for name, column in columns.items()}


class _Whole:
    """A share that is all there is of some stores."""

    def __init__(self, pieces: Pieces) -> None:
        self._pieces = pieces

    def current(self, known: int) -> tuple[int, Pieces, NDArray[np.int64]] | None:
        return None if known else (1, self._pieces, np.arange(self._pieces.num_samples))

    def set_epoch(self, epoch: int) -> None:
        """Serve the same in every epoch."""

    def close(self) -> None:
        """Leave closing to the dataset."""


def from_ray_dataset(cls: type, data: Any, **kwargs: Any) -> Any:
    """Load decoded samples of a `ray.data.Dataset` into the memory of a cluster, as `load_on_cluster` does.

    Args:
        cls: `InMemoryImageTextDataset` or `InMemoryAudioTextDataset`.
        data: Rows with the columns that `to_ray_dataset` and `decode_into_rows` give. Of these, rows with "valid" False
            count as failed. Pictures keep their size, unless `image_size` is given; clips must have the sampling rate
            that their column tells.
    """
    from in_memory_datasets.scale.sharded import load_on_cluster

    first = data.take(1)
    if first and "image" in first[0]:
        height, width = np.asarray(first[0]["image"]).shape[:2]
        kwargs = {"image_size": (width, height), **kwargs}
        return load_on_cluster(cls, data, _picture_of, "caption", **kwargs)
    if first and "sampling_rate" in first[0]:
        kwargs = {"target_sr": int(first[0]["sampling_rate"]), **kwargs}
    return load_on_cluster(cls, data, _clip_of, "caption", **kwargs)


def _picture_of(row: Any) -> Any:
    return np.asarray(row["image"]) if row.get("valid", True) else None


def _clip_of(row: Any) -> Any:
    if not row.get("valid", True):
        return None
    return {"array": np.asarray(row["audio"], np.float32), "sampling_rate": int(row["sampling_rate"])}
