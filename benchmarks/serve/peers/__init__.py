"""All peers, in the order of the table."""

from __future__ import annotations

import re

from benchmarks.serve.peers.base import Batch, Feed, Peer
from benchmarks.serve.peers.cached import MappedTensorDict, Monai, MonaiThreads, Stocaching
from benchmarks.serve.peers.decoders import EncodedFfcv, Ffcv, Lhotse, Spdl
from benchmarks.serve.peers.hugging_face import Arrow, EncodedArrow, EncodedAudioArrow, Lance
from benchmarks.serve.peers.ours import Ours, OursFromDirectory
from benchmarks.serve.peers.plain import BatchedTensors, Memcpy, PictureList, TensorList, Tensors
from benchmarks.serve.peers.streaming import EncodedLitData, EncodedMosaic, LitData, Mosaic, WebDataset

_ALL: list[Peer] = [
    Memcpy(),
    Ours(),
    OursFromDirectory(),
    BatchedTensors(),
    Ffcv(),
    MappedTensorDict(),
    Tensors(),
    TensorList(),
    PictureList(),
    Monai(),
    MonaiThreads(),
    Stocaching(),
    Arrow(),
    EncodedArrow(),
    EncodedAudioArrow(),
    Lance(),
    LitData(),
    Mosaic(),
    EncodedFfcv(),
    EncodedLitData(),
    EncodedMosaic(),
    WebDataset(),
    Spdl(),
    Lhotse(),
]
# By what `--peers` takes.
PEERS: dict[str, Peer] = {re.sub(r"\W+", "-", peer.name).strip("-").lower(): peer for peer in _ALL}
# What all others are compared with.
MEASURE = "memcpy"

__all__ = ["MEASURE", "PEERS", "Batch", "Feed", "Peer"]
