"""Batches on their way from a worker process."""

from __future__ import annotations

from dataclasses import dataclass
from multiprocessing import reduction
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from in_memory_datasets.training.ring import Ring, Ticket, ring_named, ring_of_worker

# Tensors up to this size travel in the message itself: a file of shared memory for each costs more.
_MAX_INLINE_BYTES = 2**16
_NUMPY_DTYPES = {
    name: torch.from_numpy(np.empty(0, name)).dtype
    for name in ("bool", "uint8", "int8", "int16", "int32", "int64", "float16", "float32", "float64")
}


class Parcel(dict[str, Any]):
    """A batch whose tensors and arrays cross to the other process through a ring; it arrives as a plain dict.

    Args:
        batch: What was collated.
        ring: What both processes map.
    """

    def __init__(self, batch: dict[str, Any], ring: Ring) -> None:
        super().__init__(batch)
        self.ring = ring
        reduction.ForkingPickler.register(Parcel, _pack)

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, (dict(self),)  # for any other pickler it is what it holds


def ready_to_send(batch: dict[str, Any]) -> dict[str, Any]:
    """Give a batch as a worker process had best send it; in any other process, as it is."""
    ring = ring_of_worker()
    return batch if ring is None else Parcel(batch, ring)


@dataclass(frozen=True, slots=True)
class _Packed:
    """A tensor or array on its way: its values, or where they lie in the ring."""

    content: NDArray[Any] | Ticket
    is_array: bool


def _pack(parcel: Parcel) -> tuple[Any, ...]:
    return _unpack, (parcel.ring.name, {name: _pack_field(value, parcel.ring) for name, value in parcel.items()})


def _pack_field(value: Any, ring: Ring) -> Any:
    """Pack a tensor or an array; anything else, and what finds no place in the ring, goes the ordinary way."""
    is_array = isinstance(value, np.ndarray) and value.dtype.name in _NUMPY_DTYPES and value.flags.writeable
    tensor = torch.from_numpy(value) if is_array else value
    if not _is_plain(tensor):
        return value
    inline = tensor.nbytes <= _MAX_INLINE_BYTES and tensor.dtype in _NUMPY_DTYPES.values()
    if inline and tensor.is_contiguous():  # pickled, an array forgets how it lay in memory
        return _Packed(tensor.numpy(), is_array)
    ticket = ring.send(tensor)
    if ticket is None and (copy := _copy_into(ring, tensor)) is not None:
        ticket = ring.send(copy)
    return value if ticket is None else _Packed(ticket, is_array)


def _is_plain(value: Any) -> bool:
    return (
        type(value) is torch.Tensor
        and value.device.type == "cpu"
        and value.layout == torch.strided
        and not (value.requires_grad or value.is_conj() or value.is_neg() or value.is_quantized)
    )


def _copy_into(ring: Ring, tensor: torch.Tensor) -> torch.Tensor | None:
    """Copy a tensor into a free place, channels_last as it is; None where there is none."""
    channels_last = tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last)
    shape = tensor.permute(0, 2, 3, 1).shape if channels_last else tensor.shape
    copy = ring.empty(tuple(shape), tensor.dtype)
    if copy is None:
        return None
    return (copy.permute(0, 3, 1, 2) if channels_last else copy).copy_(tensor)


def _unpack(ring_name: str, fields: dict[str, Any]) -> dict[str, Any]:
    tickets = [field.content for field in fields.values() if _is_ticket(field)]
    tensors = iter(ring_named(ring_name).receive(tickets) if tickets else [])
    batch = {}
    for name, field in fields.items():
        if isinstance(field, _Packed):
            tensor = next(tensors) if _is_ticket(field) else torch.from_numpy(field.content)
            batch[name] = tensor.numpy() if field.is_array else tensor
        else:
            batch[name] = field
    return batch


def _is_ticket(field: Any) -> bool:
    return isinstance(field, _Packed) and isinstance(field.content, Ticket)
