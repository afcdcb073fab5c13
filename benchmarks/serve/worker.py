"""One job of one peer, in the virtual environment of that peer.

python -m benchmarks.serve.worker '{"task": "time", "peer": ...}'     # prints one line of JSON
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.processes.usage import MemoryWatch
from benchmarks.serve.job import Job
from benchmarks.serve.measuring import evict, time_epoch
from benchmarks.serve.peers import PEERS, Batch, Feed, Peer
from benchmarks.serve.samples import SIDE, Samples

# Mean distance in grey levels that JPEG may put between a picture and what comes out.
_LOSSY_LEVELS = 6.0


def main() -> None:
    job = Job.from_json(sys.argv[1])
    # Libraries print; the answer has standard output for itself.
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    peer = PEERS[job.peer]
    samples = Samples(job.media, Path(job.data), job.num_samples)
    result = {"prepare": prepare, "time": time_epochs}[job.task](job, peer, samples)
    print(json.dumps({"versions": {name: version(name) for name in peer.packages}, **result}), file=answer, flush=True)


def prepare(job: Job, peer: Peer, samples: Samples) -> dict[str, Any]:
    """Let the peer write its files."""
    peer.prepare(samples, Path(job.place))
    evict(Path(job.place))
    num_bytes = sum(path.stat().st_size for path in Path(job.place).rglob("*") if path.is_file())
    return {"stored_mb": num_bytes / 1e6}


def time_epochs(job: Job, peer: Peer, samples: Samples) -> dict[str, Any]:
    """Time the first epoch after opening, and later ones."""
    left = evict(Path(job.place))
    feed = peer.open(samples, Path(job.place), job.num_workers, job.batch_size)
    cold, _ = time_epoch(feed)
    warm: list[dict[str, float]] = []
    total = 0.0
    while not warm or (total < job.warm_seconds and len(warm) < job.max_warm_epochs):
        epoch, seconds = time_epoch(feed)
        warm.append(asdict(epoch))
        total += seconds
    found = check(feed, peer, samples) if job.check else {}
    return {"resident_when_cold": left, "cold": asdict(cold), "warm": warm, **found}


def check(feed: Feed, peer: Peer, samples: Samples) -> dict[str, Any]:
    """Compare an epoch with the samples, every sample exactly once, and watch the memory meanwhile."""
    with MemoryWatch() as watch:
        order = np.array(list(compare(feed, peer, samples)))
    if sorted(order.tolist()) != list(range(len(samples))):
        missing, extra = len(samples) - len(set(order.tolist())), len(order) - len(set(order.tolist()))
        raise ValueError(f"an epoch left out {missing} samples and served {extra} more than once")
    correlation = float(np.corrcoef(order, np.arange(len(order)))[0, 1])
    return {"peak_mb": watch.peak_bytes / 1e6, "order_correlation": correlation}


def compare(feed: Feed, peer: Peer, samples: Samples) -> Iterator[int]:
    """Compare every sample of an epoch with what it was made of, and give their numbers in the order served."""
    for raw in feed.loader:
        batch = feed.unpack(raw)
        if "copy" not in batch:
            check_form(batch)
        for position, index in enumerate(int(i) for i in batch["indices"]):
            if "copy" not in batch:
                check_sample(batch, position, samples[index], exact=peer.exact)
            yield index


def check_form(batch: Batch) -> None:
    """See that a batch is a tensor in one piece, of the shape and type that every row has to deliver."""
    import torch

    size = len(batch["captions"])
    if "images" in batch:
        images = batch["images"]
        if images.dtype != torch.uint8 or tuple(images.shape) not in ((size, 3, SIDE, SIDE), (size, SIDE, SIDE, 3)):
            raise ValueError(f"images are {images.dtype} {tuple(images.shape)}")
        if not (images.is_contiguous() or images.is_contiguous(memory_format=torch.channels_last)):
            raise ValueError("images do not lie in one piece")
    else:
        audio, lengths = batch["audio"], batch["lengths"]
        if audio.dtype != torch.float32 or tuple(audio.shape) != (size, int(max(lengths))):
            raise ValueError(f"audio is {audio.dtype} {tuple(audio.shape)}, lengths up to {int(max(lengths))}")


def check_sample(batch: Batch, position: int, sample: dict[str, Any], *, exact: bool) -> None:
    """Compare one sample of a batch with what it was made of."""
    caption = batch["captions"][position]
    if caption != sample["caption"]:
        raise ValueError(f"sample {sample['index']}: caption {caption!r} for {sample['caption']!r}")
    if "audio" in batch:
        clip, length = batch["audio"][position].numpy(), int(batch["lengths"][position])
        if not np.array_equal(clip[:length], sample["audio"]) or clip[length:].any():
            raise ValueError(f"sample {sample['index']}: another clip, or not padded with zeros")
        return
    image = batch["images"][position].numpy()
    if image.shape[0] == 3:
        image = image.transpose(1, 2, 0)
    if exact and not np.array_equal(image, sample["image"]):
        raise ValueError(f"sample {sample['index']}: another image")
    distance = 0.0 if exact else np.abs(image.astype(np.int16) - sample["image"]).mean()
    if distance > _LOSSY_LEVELS:
        raise ValueError(f"sample {sample['index']}: {distance:.1f} grey levels from what was stored")


if __name__ == "__main__":
    main()
