"""Batches on a device: the next one is copied there while this one is computed with."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from typing import Any

import torch


class DevicePrefetcher:
    """Hand on a loader's batches with their tensors on a device, the next one copied while this one is in use.

    On CUDA the copy runs on a stream of its own, from pinned memory: a dataset's own batches lie in such memory once
    CUDA is in use, those of other loaders with `pin_memory=True`. A batch is taken from the loader when the one before
    was handed out and the loop comes back for more, never earlier, so that the state of a sampler is exact.

    Args:
        loader: A `DataLoader`, or any iterable of batches: dicts, lists or tuples that hold tensors.
        device: Where the batches go, such as "cuda".

    Raises:
        RuntimeError: torch knows no such device, or cannot use it.

    Cost: the first batch of an epoch waits for its copy; the others wait only where copying takes longer than a step.

    Example:
        >>> loader = [{"images": torch.zeros(2, 3), "captions": ["a", "b"]}]
        >>> [batch["images"].device.type for batch in DevicePrefetcher(loader, "cpu")]
        ['cpu']
    """

    def __init__(self, loader: Iterable[Any], device: str | torch.device) -> None:
        self.loader = loader
        self.device = torch.device(device)
        torch.empty(0, device=self.device)  # a device that cannot be used is named now and not in the first epoch

    def __len__(self) -> int:
        if not isinstance(self.loader, Sized):
            raise TypeError(f"{type(self.loader).__name__} has no length, and so its batches on a device have none")
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        if self.device.type != "cuda":
            for batch in self.loader:
                yield _move(batch, self.device)
            return
        stream = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        for batch in self.loader:  # which gathers while the step before is still running on the device
            with torch.cuda.stream(stream):
                copy = _move(batch, self.device)
            compute = torch.cuda.current_stream(self.device)
            compute.wait_stream(stream)
            _record(copy, compute)
            yield copy


def _move(batch: Any, device: torch.device) -> Any:
    """Copy every tensor of a batch to a device, without waiting for it."""
    if isinstance(batch, torch.Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, Mapping):
        return {name: _move(value, device) for name, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(_move(value, device) for value in batch))
    if isinstance(batch, (list, tuple)):
        return type(batch)(_move(value, device) for value in batch)
    return batch


def _record(batch: Any, stream: torch.cuda.Stream) -> None:
    """Keep memory from being given out again while kernels of the stream that uses it have not run."""
    if isinstance(batch, torch.Tensor):
        batch.record_stream(stream)
    elif isinstance(batch, Mapping):
        for value in batch.values():
            _record(value, stream)
    elif isinstance(batch, Sequence) and not isinstance(batch, str):
        for value in batch:
            _record(value, stream)
