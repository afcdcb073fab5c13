"""Memory for batches: used again, and never while somebody still holds a batch in it."""

from __future__ import annotations

import pickle
import threading

import numpy as np
import torch

from in_memory_datasets.training.buffers import BufferPool

SHAPE = (4, 8, 8, 3)


def address(pool: BufferPool) -> int:
    return pool.empty(SHAPE, torch.uint8).data_ptr()


def test_memory_is_used_again_when_the_batch_is_gone() -> None:
    pool = BufferPool()
    assert address(pool) == address(pool)


def test_a_view_of_a_view_holds_the_memory() -> None:
    pool = BufferPool()
    batch = pool.empty(SHAPE, torch.uint8).fill_(7)
    first = batch.data_ptr()
    held = batch.permute(0, 3, 1, 2)[1:2].numpy()[:, 1]
    del batch
    others = [pool.empty(SHAPE, torch.uint8).fill_(1) for _ in range(3)]
    assert first not in [other.data_ptr() for other in others]
    assert (held == 7).all()
    del held
    assert address(pool) == first


def test_what_torch_hands_to_others_holds_the_memory() -> None:
    pool = BufferPool()
    batch = pool.empty(SHAPE, torch.uint8).fill_(3)
    first = batch.data_ptr()
    held = [batch.untyped_storage(), np.from_dlpack(batch), torch.utils.data.default_convert(batch)]
    del batch
    while held:
        assert address(pool) != first
        held.pop()
    assert address(pool) == first


def test_a_small_batch_does_not_hold_on_to_the_memory_of_a_large_one() -> None:
    pool = BufferPool()
    large = pool.empty((100, 100), torch.float32).data_ptr()
    assert pool.empty((2,), torch.float32).untyped_storage().nbytes() < 100
    assert pool.empty((90, 100), torch.float32).data_ptr() == large


def test_only_a_few_free_buffers_are_kept() -> None:
    pool = BufferPool()
    held = [pool.empty((2**20,), torch.uint8) for _ in range(20)]
    held.clear()
    assert len(pool._free) == 4
    assert not pool._lent


def test_an_empty_batch_has_its_shape() -> None:
    assert BufferPool().empty((0, 8, 8, 3), torch.uint8).shape == (0, 8, 8, 3)
    assert BufferPool().empty((3, 0), torch.float32).shape == (3, 0)


def test_threads_never_share_a_buffer() -> None:
    pool, problems = BufferPool(), []

    def use(mark: int) -> None:
        for _ in range(300):
            batch = pool.empty((64, 64), torch.uint8).fill_(mark)
            if not bool((batch == mark).all()):
                problems.append(mark)

    threads = [threading.Thread(target=use, args=(mark,)) for mark in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not problems


def test_a_pickled_pool_is_an_empty_one() -> None:
    pool = BufferPool()
    address(pool)
    assert not pickle.loads(pickle.dumps(pool))._free


def test_once_cuda_is_in_use_torch_gives_pinned_memory(monkeypatch: object) -> None:
    """The pool of torch knows which copies to the device are under way; ours would hand the memory out too early."""
    asked = []
    patch = monkeypatch.setattr  # type: ignore[attr-defined]
    patch(torch.cuda, "is_initialized", lambda: True)
    patch(torch, "empty", lambda shape, **options: asked.append((shape, options)))
    BufferPool().empty(SHAPE, torch.uint8)
    assert asked == [(SHAPE, {"dtype": torch.uint8, "pin_memory": True})]
