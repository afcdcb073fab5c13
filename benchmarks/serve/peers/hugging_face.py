"""Hugging Face datasets: Arrow tables that are mapped from disk."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

from benchmarks.serve.peers.base import Batch, Feed, Peer
from benchmarks.serve.peers.plain import collate_clips, name_images
from benchmarks.serve.samples import SAMPLING_RATE, SIDE, Samples

_PAGE = "https://huggingface.co/docs/datasets/use_with_pytorch"


class Arrow(Peer):
    """Arrays in an Arrow table, as tensors."""

    name = "datasets, arrays"
    packages: ClassVar[tuple[str, ...]] = ("datasets", "pyarrow", "torch")
    venv = "shared"
    share = 0.25
    stored = "decoded, an Arrow table that is mapped"
    configuration = (
        'DataLoader(load_from_disk(...).with_format("torch", dtype=torch.uint8), batch_size=B, shuffle=True, '
        "num_workers=w) with default_collate; feature Array3D; clips as a list of float32, with pad_sequence in "
        "collate_fn"
    )
    source = _PAGE

    def prepare(self, samples: Samples, place: Path) -> None:
        from datasets import Dataset, Features, Value

        def rows() -> Iterator[dict[str, Any]]:
            for i in range(len(samples)):
                yield self.row(samples, i)

        features = Features({**self.features(samples), "caption": Value("string"), "index": Value("string")})
        cache = place / "cache"
        Dataset.from_generator(rows, features=features, cache_dir=str(cache)).save_to_disk(str(place / "saved"))
        shutil.rmtree(cache)

    def features(self, samples: Samples) -> dict[str, Any]:
        """Give the feature of the media column."""
        from datasets import Array3D, List, Value

        if samples.media == "image":
            return {"image": Array3D((SIDE, SIDE, 3), "uint8")}
        return {"audio": List(Value("float32"))}

    def collate(self, samples: Samples) -> Any:
        """Give what makes a batch."""
        from torch.utils.data import default_collate

        return default_collate if samples.media == "image" else collate_clips

    def row(self, samples: Samples, i: int) -> dict[str, Any]:
        """Give one row as it is stored. The number is text: the dtype that the pixels need goes for all integers."""
        return {**samples[i], "index": str(i)}

    def open(self, samples: Samples, place: Path, num_workers: int, batch_size: int) -> Feed:
        import torch
        from datasets import load_from_disk
        from torch.utils.data import DataLoader

        images = samples.media == "image"
        options: dict[str, Any] = {"dtype": torch.uint8} if images else {}
        dataset: Any = load_from_disk(str(place / "saved")).with_format("torch", **options)
        loader = DataLoader(
            dataset,
            batch_size=batch_size,
            shuffle=True,
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
            collate_fn=self.collate(samples),
        )
        return Feed(loader, _number_images) if images else Feed(loader)


def _number_images(batch: dict[str, Any]) -> Batch:
    return name_images({**batch, "index": [int(number) for number in batch["index"]]})


class EncodedArrow(Arrow):
    """JPEG in an Arrow table, decoded by the `Image` feature, as on the hub."""

    name = "datasets, Image()"
    packages = ("datasets", "pyarrow", "pillow", "torch")
    media = ("image",)
    stored = "JPEG, an Arrow table that is mapped; decodes (Pillow)"
    exact = False
    configuration = (
        'DataLoader(load_from_disk(...).with_format("torch"), batch_size=B, shuffle=True, num_workers=w) with '
        "default_collate; feature Image()"
    )

    def features(self, samples: Samples) -> dict[str, Any]:
        from datasets import Image

        return {"image": Image()}

    def row(self, samples: Samples, i: int) -> dict[str, Any]:
        return {"image": {"bytes": samples.jpeg(i), "path": None}, "caption": samples.captions[i], "index": str(i)}


class EncodedAudioArrow(Arrow):
    """WAV in an Arrow table, decoded by the `Audio` feature, as on the hub."""

    name = "datasets, Audio()"
    packages = ("datasets", "pyarrow", "torchcodec", "torch")
    media = ("audio",)
    share = 0.5
    stored = "float32 WAV, an Arrow table that is mapped; decodes (torchcodec)"
    configuration = (
        'DataLoader(load_from_disk(...).with_format("torch"), batch_size=B, shuffle=True, num_workers=w, '
        "collate_fn=...): get_all_samples of the decoders, then pad_sequence; feature Audio()"
    )

    def features(self, samples: Samples) -> dict[str, Any]:
        from datasets import Audio

        return {"audio": Audio(sampling_rate=SAMPLING_RATE)}

    def row(self, samples: Samples, i: int) -> dict[str, Any]:
        media = {"bytes": samples.wav(i), "path": None}
        return {"audio": media, "caption": samples.captions[i], "index": str(i)}

    def collate(self, samples: Samples) -> Any:
        return _decode_clips


def _decode_clips(rows: Sequence[dict[str, Any]]) -> Batch:
    return collate_clips([{**row, "audio": row["audio"].get_all_samples().data[0]} for row in rows])


class Lance(Peer):
    """A Lance table through its map-style dataset."""

    name = "Lance, SafeLanceDataset"
    packages = ("pylance", "pyarrow", "torch")
    venv = "shared"
    share = 0.25
    stored = "decoded, a binary column of a Lance table"
    configuration = (
        "get_safe_loader(SafeLanceDataset(uri), batch_size=B, shuffle=True, num_workers=w, collate_fn=...): "
        "numpy.frombuffer of the bytes, stacked or padded; with 0 workers the same in DataLoader"
    )
    source = "https://lancedb.github.io/lance/integrations/pytorch"

    def prepare(self, samples: Samples, place: Path) -> None:
        import lance
        import pyarrow as pa

        schema = pa.schema([("media", pa.binary()), ("caption", pa.string()), ("index", pa.int64())])
        step = 100

        def batches() -> Iterator[Any]:
            for start in range(0, len(samples), step):
                indices = range(start, min(start + step, len(samples)))
                images = samples.media == "image"
                media = [(samples.image(i) if images else samples.clip(i)).tobytes() for i in indices]
                columns = [media, [samples.captions[i] for i in indices], list(indices)]
                yield pa.record_batch(columns, schema=schema)

        lance.write_dataset(batches(), str(place / "table.lance"), schema=schema)

    def open(self, samples: Samples, place: Path, num_workers: int, batch_size: int) -> Feed:
        from lance.torch.data import SafeLanceDataset, get_safe_loader
        from torch.utils.data import DataLoader

        dataset = SafeLanceDataset(str(place / "table.lance"))
        collate = _images_of_bytes if samples.media == "image" else _clips_of_bytes
        # persistent_workers and a start method, which get_safe_loader sets, are refused where there are no workers.
        make: Any = get_safe_loader if num_workers else DataLoader
        return Feed(make(dataset, batch_size=batch_size, num_workers=num_workers, shuffle=True, collate_fn=collate))


def _images_of_bytes(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    import numpy as np
    import torch

    images = np.stack([np.frombuffer(row["media"], np.uint8) for row in rows])
    return {
        "images": torch.from_numpy(images).view(-1, SIDE, SIDE, 3),
        "captions": [row["caption"] for row in rows],
        "indices": torch.tensor([row["index"] for row in rows]),
    }


def _clips_of_bytes(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    import numpy as np

    # A tensor may not lie on bytes that cannot be written, not even for a moment: pad_sequence copies either way.
    return collate_clips([{**row, "audio": np.frombuffer(row["media"], np.float32).copy()} for row in rows])
