"""Places for batches that both sides of a worker process map: used again, and never while somebody looks at one."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import sys
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from types import FrameType
from typing import Any

import numpy as np
import pytest
import torch

from in_memory_datasets.errors import StoreError
from in_memory_datasets.training import ring as ring_module
from in_memory_datasets.training.parcel import Parcel
from in_memory_datasets.training.ring import Ring, shared_ring

METHODS = ["fork", "spawn", "forkserver"]


def cross(batch: dict[str, Any], ring: Ring) -> dict[str, Any]:
    """Send a batch to this very process."""
    received: dict[str, Any] = pickle.loads(ForkingPickler.dumps(Parcel(batch, ring)))
    return received


def places_taken(ring: Ring) -> int:
    return int(ring._table[:, 1:].any(axis=1).sum())


def test_a_place_is_free_when_both_sides_have_let_go() -> None:
    ring = Ring()
    sent = ring.empty((1000, 100), torch.uint8)
    assert sent is not None
    sent.fill_(5)
    ticket = ring.send(sent)
    assert ticket is not None
    (received,) = ring.receive([ticket])
    view = received[3:4].numpy()
    del received
    assert places_taken(ring) == 1
    del sent
    assert places_taken(ring) == 1
    assert (view == 5).all()
    del view
    assert places_taken(ring) == 0


def test_a_place_is_free_too_when_a_signal_comes_in_between(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch's handler raises when a worker has died, and in what Python calls when a tensor goes nobody hears it."""
    ring = Ring()
    lost: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: lost.append(unraisable.exc_value))

    def interrupt(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and frame.f_code is Ring._hear_that_it_is_gone.__code__:
            raise RuntimeError("a worker was killed")

    received = cross({"images": torch.ones(100_000)}, ring)
    tracer = sys.gettrace()
    sys.settrace(interrupt)
    try:
        del received
    finally:
        sys.settrace(tracer)
    assert [str(error) for error in lost] == ["a worker was killed"]
    assert places_taken(ring) == 1
    assert cross({"images": torch.ones(100_000)}, ring)["images"].sum() == 100_000
    assert places_taken(ring) == 0


def test_what_was_never_sent_is_free_when_it_is_gone() -> None:
    ring = Ring()
    tensor = ring.empty((1000,), torch.float32)
    assert places_taken(ring) == 1
    del tensor
    assert places_taken(ring) == 0


def test_a_free_place_is_taken_again_before_a_new_one() -> None:
    ring = Ring()
    for _ in range(10):
        tensor = ring.empty((1000,), torch.float32)
        del tensor
    assert list(ring._maps) == [0]


def test_a_larger_batch_fits_the_place_of_a_smaller_one() -> None:
    ring = Ring()
    for size in (1000, 100_000, 5_000_000, 10):
        tensor = ring.empty((size,), torch.uint8)
        assert tensor is not None
        tensor.fill_(1)
        del tensor
    assert list(ring._maps) == [0]


@pytest.mark.parametrize(
    "tensor",
    [
        torch.arange(200_000, dtype=torch.float32).reshape(2, 5, 20_000),
        torch.randint(0, 255, (2, 300, 300, 3), dtype=torch.uint8).permute(0, 3, 1, 2),
        torch.randn(300, 300).t(),
        torch.randn(100_000).to(torch.bfloat16),
        torch.randn(100_000, dtype=torch.complex64),
        torch.arange(6, dtype=torch.int64),
        torch.ones(2, 3, 4, 4).contiguous(memory_format=torch.channels_last),
        torch.zeros(0, 3),
        torch.tensor(7),
    ],
    ids=lambda tensor: f"{tensor.dtype}-{tuple(tensor.shape)}",
)
def test_a_tensor_arrives_as_it_was(tensor: torch.Tensor) -> None:
    ring = Ring()
    received = cross({"tensor": tensor}, ring)["tensor"]
    assert received.equal(tensor)
    assert received.dtype == tensor.dtype
    channels_last = tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last)
    assert not channels_last or received.is_contiguous(memory_format=torch.channels_last)
    received.zero_()  # it may be written to, and is nobody else's


def test_arrays_arrive_as_arrays_and_all_else_as_it_was() -> None:
    ring = Ring()
    batch = {"large": np.ones((200, 200, 3)), "small": np.arange(3), "captions": ["a", ["b", "c"]], "number": 3}
    received = cross(batch, ring)
    assert type(received) is dict
    assert isinstance(received["large"], np.ndarray)
    assert np.array_equal(received["large"], batch["large"])
    assert isinstance(received["small"], np.ndarray)
    assert received["small"].tolist() == [0, 1, 2]
    assert received["captions"] == batch["captions"]
    assert received["number"] == 3


def test_two_tensors_in_one_place_hold_it_together() -> None:
    ring = Ring()
    whole = ring.empty((2, 50_000), torch.float32)
    assert whole is not None
    whole[0], whole[1] = 1, 2
    received = cross({"a": whole[0], "b": whole[1]}, ring)
    del whole
    assert received["b"].unique().tolist() == [2]
    del received["b"]
    assert places_taken(ring) == 1
    assert received["a"].unique().tolist() == [1]
    del received["a"]
    assert places_taken(ring) == 0


def test_with_no_place_left_a_batch_goes_the_ordinary_way(monkeypatch: pytest.MonkeyPatch) -> None:
    ring = Ring()
    held = [ring.empty((8,), torch.uint8) for _ in range(ring_module._NUM_PLACES)]
    assert ring.empty((8,), torch.uint8) is None
    batch = {"images": torch.full((100_000,), 3)}
    assert cross(batch, ring)["images"].equal(batch["images"])
    multiprocessing.resource_sharer.stop(timeout=5)  # torch's way of sending has started it
    del held
    assert ring.empty((8,), torch.uint8) is not None


def test_a_machine_that_gives_no_map_sends_the_ordinary_way(monkeypatch: pytest.MonkeyPatch) -> None:
    ring = Ring()

    def refuse(*_: object) -> None:
        raise OSError("Cannot allocate memory")

    monkeypatch.setattr(ring._block, "map", refuse)
    assert cross({"images": torch.full((100_000,), 3)}, ring)["images"].unique().tolist() == [3]
    multiprocessing.resource_sharer.stop(timeout=5)
    assert places_taken(ring) == 0


def test_who_holds_very_many_batches_gives_their_pages_back() -> None:
    ring = Ring()
    held = [cross({"images": torch.ones(2**18)}, ring)["images"] for _ in range(40)]
    blocks = os.fstat(ring._block.fd).st_blocks
    del held
    assert os.fstat(ring._block.fd).st_blocks <= blocks - 8 * 2**20 // 512
    assert places_taken(ring) == 0


def test_a_batch_of_a_sender_that_died_and_whose_place_was_taken_again_is_refused() -> None:
    ring = Ring()
    sent = ring.empty((100,), torch.uint8)
    assert sent is not None
    ticket = ring.send(sent)
    assert ticket is not None
    ring._table[ticket.place, 2] = 0  # as for a sender that is dead
    del sent
    again = ring.empty((100,), torch.uint8)
    assert again is not None
    with pytest.raises(StoreError, match="worker process died"):
        ring.receive([ticket])


def test_a_batch_from_a_ring_that_is_gone_is_refused() -> None:
    ring = Ring()
    message = bytes(ForkingPickler.dumps(Parcel({"images": torch.ones(100_000)}, ring)))
    del ring
    with pytest.raises(StoreError, match="keep the dataset"):
        pickle.loads(message)


def _hold(ring: Ring, connection: Connection) -> None:
    held = [ring.empty((1000,), torch.uint8)]
    under_way = ring.empty((1000,), torch.uint8)
    assert under_way is not None
    connection.send(ring.send(under_way))
    connection.recv()
    assert held


@pytest.mark.parametrize("method", METHODS)
def test_what_a_killed_process_held_or_had_under_way_is_free_again(method: str) -> None:
    ring = Ring()
    context = multiprocessing.get_context(method)
    here, there = context.Pipe()
    worker = context.Process(target=_hold, args=(ring, there))
    worker.start()
    assert here.recv().place == 1
    assert places_taken(ring) == 2
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGKILL)
    worker.join()
    worker.close()
    assert ring.empty((1000,), torch.uint8) is not None
    assert places_taken(ring) == 0
    here.close()
    there.close()


def _drop_views(batch: list[torch.Tensor], connection: Connection) -> None:
    batch.clear()
    connection.send("dropped")


def test_a_forked_child_that_drops_its_parents_batch_frees_nothing() -> None:
    ring = Ring()
    batch = [cross({"images": torch.ones(100_000)}, ring)["images"]]
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()
    worker = context.Process(target=_drop_views, args=(batch, there))
    worker.start()
    assert here.recv() == "dropped"
    worker.join()
    worker.close()
    assert places_taken(ring) == 1
    here.close()
    there.close()


def test_all_datasets_of_a_process_share_one_ring() -> None:
    first = shared_ring()
    assert shared_ring() is first
    assert pickle.loads(pickle.dumps(first)) is first
