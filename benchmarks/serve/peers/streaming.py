"""Peers made for streaming shards: LitData, MosaicML Streaming, WebDataset. Here their shards lie on the local disk."""

from __future__ import annotations

import functools
import io
import shutil
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from benchmarks.serve.peers.base import Batch, Feed, Peer
from benchmarks.serve.peers.plain import collate_clips, name_images
from benchmarks.serve.samples import SIDE, Samples

_SHARDS = 10


def write_pictures(samples: Samples, place: Path) -> Path:
    """Write a JPEG file per image, and give the directory."""
    directory = place / "pictures"
    directory.mkdir()
    for i in range(len(samples)):
        (directory / f"{i:06}.jpg").write_bytes(samples.jpeg(i))
    return directory


def define_torchvision_operators() -> None:
    """Let torchvision be imported where there is no build of it for this torch: declare what it looks for at import.

    Only its types are needed here; who called these operators would be told that they have no implementation.
    """
    import torch

    library: Any = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    # The library takes its operators along when it is collected.
    globals()["_torchvision"] = library


class LitData(Peer):
    """LitData's chunks with raw arrays."""

    name = "LitData, arrays"
    packages: ClassVar[tuple[str, ...]] = ("litdata", "torch")
    venv = "shared"
    share = 0.5
    stored = "decoded, chunks on disk"
    configuration = (
        "optimize(..., chunk_bytes='64MB') of dicts with arrays; StreamingDataLoader(StreamingDataset(directory, "
        "shuffle=True, drop_last=False, batch_decode=0), batch_size=B, num_workers=w); clips with pad_sequence in "
        "collate_fn"
    )
    notes = "batch_decode=0, since its default decodes 100 arrays for each one that shuffling asks for"
    source = "https://github.com/Lightning-AI/litData#readme"

    def prepare(self, samples: Samples, place: Path) -> None:
        import litdata

        litdata.optimize(
            fn=functools.partial(self.row, samples),
            inputs=list(range(len(samples))),
            output_dir=str(place / "chunks"),
            chunk_bytes="64MB",
            num_workers=1,
        )

    @staticmethod
    def row(samples: Samples, i: int) -> dict[str, Any]:
        """Give one row as it is stored."""
        return samples[i]

    def open(self, samples: Samples, place: Path, num_workers: int, batch_size: int) -> Feed:
        import litdata

        dataset = litdata.StreamingDataset(
            str(place / "chunks"), shuffle=True, drop_last=False, batch_decode=0, transform=self.transform()
        )
        options: dict[str, Any] = {} if samples.media == "image" else {"collate_fn": collate_writable_clips}
        loader = litdata.StreamingDataLoader(
            dataset, batch_size=batch_size, num_workers=num_workers, persistent_workers=num_workers > 0, **options
        )
        return Feed(loader, name_images) if samples.media == "image" else Feed(loader)

    def transform(self) -> Any:
        """Give what is done with a row that was read."""
        return None


class EncodedLitData(LitData):
    """LitData's chunks with JPEG."""

    name = "LitData, JPEG"
    packages = ("litdata", "simplejpeg", "torch")
    media = ("image",)
    share = 0.25
    stored = "JPEG, chunks on disk; decodes (libjpeg-turbo)"
    exact = False
    configuration = (
        "optimize(..., chunk_bytes='64MB') of dicts with JPEG bytes; StreamingDataLoader(StreamingDataset(directory, "
        "shuffle=True, drop_last=False, batch_decode=0, transform=decode), batch_size=B, num_workers=w)"
    )
    notes = (
        "its own JPEG decoder is torchvision's, which has no build for this torch: simplejpeg, which uses the same "
        "libjpeg-turbo, takes its place"
    )

    @staticmethod
    def row(samples: Samples, i: int) -> dict[str, Any]:
        return {"image": samples.jpeg(i), "caption": samples.captions[i], "index": i}

    def transform(self) -> Any:
        return _decode_row


def _decode_row(row: dict[str, Any]) -> dict[str, Any]:
    import simplejpeg

    return {**row, "image": simplejpeg.decode_jpeg(row["image"])}


class Mosaic(Peer):
    """MosaicML Streaming's shards with raw arrays."""

    name = "MosaicML Streaming, arrays"
    packages: ClassVar[tuple[str, ...]] = ("mosaicml-streaming", "torch")
    venv = "mosaic"
    share = 0.5
    stored = "decoded, MDS shards on disk"
    configuration = (
        "MDSWriter(columns ndarray:uint8 or ndarray:float32); DataLoader(StreamingDataset(local=directory, "
        "shuffle=True, batch_size=B), batch_size=B, num_workers=w); clips with pad_sequence in collate_fn"
    )
    source = "https://docs.mosaicml.com/projects/streaming/en/stable/getting_started/quick_start.html"

    def prepare(self, samples: Samples, place: Path) -> None:
        define_torchvision_operators()
        from streaming import MDSWriter

        columns = {**self.columns(samples), "caption": "str", "index": "int"}
        rows = self.rows(samples, place)
        with MDSWriter(out=str(place / "shards"), columns=columns) as writer:
            for i in range(len(samples)):
                writer.write(rows(i))
        shutil.rmtree(place / "pictures", ignore_errors=True)

    def columns(self, samples: Samples) -> dict[str, str]:
        """Give the encoding of the media column."""
        if samples.media == "image":
            return {"image": f"ndarray:uint8:{SIDE},{SIDE},3"}
        return {"audio": "ndarray:float32"}

    def rows(self, samples: Samples, place: Path) -> Any:
        """Give what makes a row of a number."""
        return samples.__getitem__

    def open(self, samples: Samples, place: Path, num_workers: int, batch_size: int) -> Feed:
        define_torchvision_operators()
        from streaming import StreamingDataset
        from streaming.base.util import clean_stale_shared_memory
        from torch.utils.data import DataLoader

        clean_stale_shared_memory()  # of a process that was killed
        dataset: Any = StreamingDataset(local=str(place / "shards"), shuffle=True, batch_size=batch_size)
        collate = self.collate if samples.media == "image" else collate_writable_clips
        loader = DataLoader(
            dataset,
            batch_size=batch_size,
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
            collate_fn=collate,
        )
        return Feed(loader, name_images) if samples.media == "image" else Feed(loader)

    @staticmethod
    def collate(rows: Sequence[dict[str, Any]]) -> Any:
        """Make one batch of images."""
        import torch

        return torch.utils.data.default_collate(list(rows))


class EncodedMosaic(Mosaic):
    """MosaicML Streaming's shards with JPEG."""

    name = "MosaicML Streaming, JPEG"
    packages = ("mosaicml-streaming", "pillow", "torch")
    media = ("image",)
    share = 0.25
    stored = "JPEG, MDS shards on disk; decodes (Pillow)"
    exact = False
    configuration = (
        "MDSWriter(columns jpeg); DataLoader(StreamingDataset(local=directory, shuffle=True, batch_size=B), "
        "batch_size=B, num_workers=w, collate_fn=numpy.stack of numpy.asarray(image))"
    )

    def columns(self, samples: Samples) -> dict[str, str]:
        return {"image": "jpeg"}

    def rows(self, samples: Samples, place: Path) -> Any:
        from PIL import Image

        pictures = write_pictures(samples, place)
        return lambda i: {
            "image": Image.open(pictures / f"{i:06}.jpg"),
            "caption": samples.captions[i],
            "index": i,
        }

    @staticmethod
    def collate(rows: Sequence[dict[str, Any]]) -> Any:
        import torch

        images = torch.from_numpy(np.stack([np.asarray(row["image"]) for row in rows]))
        return {
            "image": images,
            "caption": [row["caption"] for row in rows],
            "index": torch.tensor([row["index"] for row in rows]),
        }


def collate_writable_clips(rows: Sequence[dict[str, Any]]) -> Batch:
    """Pad clips that may be arrays on memory that cannot be written, which torch warns of."""
    return collate_clips(
        [{**row, "audio": row["audio"].copy()} if isinstance(row["audio"], np.ndarray) else row for row in rows]
    )


class WebDataset(Peer):
    """WebDataset's tar shards: JPEG, or arrays of clips."""

    name = "WebDataset"
    packages = ("webdataset", "pillow", "torch")
    venv = "shared"
    share = 0.25
    stored = "JPEG, tar shards on disk, decodes (Pillow); clips as .npy"
    configuration = (
        "WebLoader(WebDataset(shards, shardshuffle=100).shuffle(1000).decode('rgb8').map(...).batched(B), "
        "batch_size=None, num_workers=w)"
    )
    source = "https://github.com/webdataset/webdataset#readme"
    notes = "shuffles shards and a buffer of 1,000 samples, not all of them"
    exact = False

    def prepare(self, samples: Samples, place: Path) -> None:
        images = samples.media == "image"
        per_shard = -(-len(samples) // _SHARDS)
        for i in range(len(samples)):
            if i % per_shard == 0:
                tar = tarfile.open(place / f"{i // per_shard:03}.tar", "w")  # noqa: SIM115 - closed where the next begins
            media = io.BytesIO(samples.jpeg(i) if images else b"")
            if not images:
                np.save(media, samples.clip(i))
            for kind, content in (
                ("jpg" if images else "npy", media.getvalue()),
                ("txt", samples.captions[i].encode()),
            ):
                info = tarfile.TarInfo(f"{i:06}.{kind}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
            if (i + 1) % per_shard == 0 or i + 1 == len(samples):
                tar.close()

    def open(self, samples: Samples, place: Path, num_workers: int, batch_size: int) -> Feed:
        import webdataset as wds

        shards = sorted(str(path) for path in place.glob("*.tar"))
        images = samples.media == "image"
        dataset = wds.WebDataset(shards, shardshuffle=100).shuffle(1000).decode("rgb8")
        dataset = dataset.map(_name_image if images else _name_clip)
        dataset = dataset.batched(batch_size, collation_fn=_stack_images if images else collate_clips)
        return Feed(
            wds.WebLoader(dataset, batch_size=None, num_workers=num_workers, persistent_workers=num_workers > 0)
        )


def _name_image(sample: dict[str, Any]) -> dict[str, Any]:
    return {"image": sample["jpg"], "caption": sample["txt"], "index": int(sample["__key__"])}


def _name_clip(sample: dict[str, Any]) -> dict[str, Any]:
    return {"audio": sample["npy"], "caption": sample["txt"], "index": int(sample["__key__"])}


def _stack_images(rows: Sequence[dict[str, Any]]) -> Batch:
    import torch

    return {
        "images": torch.from_numpy(np.stack([row["image"] for row in rows])),
        "captions": [row["caption"] for row in rows],
        "indices": torch.tensor([row["index"] for row in rows]),
    }
