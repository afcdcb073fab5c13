"""Other libraries that keep samples in files: datasets, tensordict, LitData, Lance."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

from benchmarks.reload.contestants.base import Indexed
from benchmarks.reload.pictures import PICTURE_BYTES, SIDE, Pictures, describe, draw, read_captions


def in_steps(num_samples: int, step: int = 100) -> Iterator[range]:
    """Give the numbers of samples, so many at a time."""
    for start in range(0, num_samples, step):
        yield range(start, min(start + step, num_samples))


def pixels_of(numbers: Sequence[int]) -> Any:
    """Draw pictures as an Arrow array, a list of fixed size each."""
    import numpy as np
    import pyarrow as pa

    pixels = np.concatenate([draw(i).reshape(-1) for i in numbers])
    return pa.FixedSizeListArray.from_arrays(pa.array(pixels), PICTURE_BYTES)


class Arrow(Indexed):
    """Pixels in an Arrow table, which is mapped."""

    name = "datasets, arrays"
    imports = ("torch", "datasets:load_from_disk")
    packages: ClassVar[tuple[str, ...]] = ("datasets", "pyarrow", "torch")
    venv = "shared"
    disk_copies = 2.0
    configuration = (
        'load_from_disk(directory).with_format("torch", dtype=torch.uint8)[indices], feature List(Value("uint8"), '
        "length=150528), viewed as (B, 224, 224, 3)"
    )
    source = "https://huggingface.co/docs/datasets/use_with_pytorch"

    def prepare(self, pictures: Pictures, place: Path) -> None:
        import pyarrow as pa
        from datasets import Dataset, Features, Value

        # As Dataset.from_generator would write it, only far sooner.
        schema = Features({"image": self.feature(), "caption": Value("string")}).arrow_schema
        table = place / "table.arrow"
        with pa.ipc.new_stream(str(table), schema) as stream:
            for numbers in in_steps(len(pictures)):
                captions = pa.array([describe(i) for i in numbers])
                stream.write_batch(pa.record_batch([self.column(numbers), captions], schema=schema))
        Dataset.from_file(str(table)).save_to_disk(str(place / "saved"))
        table.unlink()

    def feature(self) -> Any:
        """Give the feature of the column of pictures."""
        from datasets import List, Value

        return List(Value("uint8"), length=PICTURE_BYTES)

    def column(self, numbers: Sequence[int]) -> Any:
        """Give some pictures as they are stored, an Arrow array."""
        return pixels_of(numbers)

    def open(self, place: Path) -> Any:
        import torch
        from datasets import load_from_disk

        return load_from_disk(str(place / "saved")).with_format("torch", dtype=torch.uint8)

    def take(self, opened: Any, indices: list[int]) -> tuple[Any, Sequence[str] | None]:
        batch = opened[indices]
        return batch["image"].view(-1, SIDE, SIDE, 3), batch["caption"]


class EncodedArrow(Arrow):
    """PNG in an Arrow table, decoded by the `Image` feature, as on the hub."""

    name = "datasets, Image()"
    imports = (*Arrow.imports, "PIL.Image")
    kind = "encoded"
    packages = ("datasets", "pyarrow", "pillow", "torch")
    configuration = 'load_from_disk(directory).with_format("torch")[indices], feature Image(), PNG'

    def feature(self) -> Any:
        from datasets import Image

        return Image()

    def column(self, numbers: Sequence[int]) -> Any:
        import pyarrow as pa

        kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
        return pa.array([{"bytes": encode(i), "path": None} for i in numbers], kind)

    def open(self, place: Path) -> Any:
        from datasets import load_from_disk

        return load_from_disk(str(place / "saved")).with_format("torch")

    def take(self, opened: Any, indices: list[int]) -> tuple[Any, Sequence[str] | None]:
        import torch

        batch = opened[indices]
        images = batch["image"]
        return images if isinstance(images, torch.Tensor) else torch.stack(images), batch["caption"]


def encode(i: int) -> bytes:
    """Encode a picture as PNG, which loses nothing."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(draw(i)).save(file, "PNG", compress_level=1)
    return file.getvalue()


class MappedTensorDict(Indexed):
    """tensordict's memory-mapped tensors."""

    name = "tensordict memmap"
    imports = ("torch", "tensordict:TensorDict")
    packages = ("tensordict", "torch")
    venv = "shared"
    configuration = 'TensorDict.load_memmap(directory)[indices], of which "image" and "caption"'
    source = "https://docs.pytorch.org/tensordict/main/data_loading.html"
    notes = "texts are no tensors: captions as bytes, all of one length"

    def prepare(self, pictures: Pictures, place: Path) -> None:
        import torch
        from tensordict import MemoryMappedTensor, TensorDict

        directory = place / "memmap"
        directory.mkdir()
        images = MemoryMappedTensor.empty(
            (len(pictures), SIDE, SIDE, 3), dtype=torch.uint8, filename=str(directory / "image.memmap")
        )
        pictures.all_images(images.numpy())
        captions = torch.from_numpy(pictures.caption_bytes)
        TensorDict({"image": images, "caption": captions}, batch_size=[len(pictures)]).memmap(str(directory))

    def open(self, place: Path) -> Any:
        from tensordict import TensorDict

        return TensorDict.load_memmap(str(place / "memmap"))

    def take(self, opened: Any, indices: list[int]) -> tuple[Any, Sequence[str] | None]:
        batch = opened[indices]
        return batch["image"], read_captions(batch["caption"])


class LitData(Indexed):
    """LitData's chunks with raw arrays, on the local disk."""

    name = "LitData, arrays"
    imports = ("numpy", "torch", "litdata")
    packages = ("litdata", "torch")
    venv = "shared"
    configuration = (
        "optimize(..., chunk_bytes='64MB') of dicts with arrays; StreamingDataset(directory, batch_decode=0)[i] for "
        "each of the batch, torch.from_numpy(numpy.stack(...))"
    )
    source = "https://github.com/Lightning-AI/litData#readme"
    notes = "batch_decode=0, since its default decodes 100 arrays for each one that is asked for"

    def prepare(self, pictures: Pictures, place: Path) -> None:
        import litdata

        litdata.optimize(
            fn=_make_row,
            inputs=list(range(len(pictures))),
            output_dir=str(place / "chunks"),
            chunk_bytes="64MB",
            num_workers=1,
        )

    def open(self, place: Path) -> Any:
        import litdata

        return litdata.StreamingDataset(str(place / "chunks"), batch_decode=0)

    def take(self, opened: Any, indices: list[int]) -> tuple[Any, Sequence[str] | None]:
        import numpy as np
        import torch

        rows = [opened[i] for i in indices]
        return torch.from_numpy(np.stack([row["image"] for row in rows])), [row["caption"] for row in rows]


def _make_row(i: int) -> dict[str, Any]:
    return {"image": draw(i), "caption": describe(i)}


class Lance(Indexed):
    """A Lance table, rows taken by number."""

    name = "Lance"
    imports = ("torch", "lance")
    packages = ("pylance", "pyarrow", "torch")
    venv = "shared"
    configuration = (
        "lance.dataset(uri).take(indices), columns fixed_size_list<uint8, 150528> and string; the list's values as one "
        "array, viewed as (B, 224, 224, 3)"
    )
    source = "https://lancedb.github.io/lance/integrations/pytorch"

    def prepare(self, pictures: Pictures, place: Path) -> None:
        import lance
        import pyarrow as pa

        schema = pa.schema([("image", pa.list_(pa.uint8(), PICTURE_BYTES)), ("caption", pa.string())])

        def batches() -> Iterator[Any]:
            for numbers in in_steps(len(pictures)):
                captions = pa.array([describe(i) for i in numbers])
                yield pa.record_batch([pixels_of(numbers), captions], schema=schema)

        lance.write_dataset(batches(), str(place / "table.lance"), schema=schema)

    def open(self, place: Path) -> Any:
        import lance

        return lance.dataset(str(place / "table.lance"))

    def take(self, opened: Any, indices: list[int]) -> tuple[Any, Sequence[str] | None]:
        import torch

        table = opened.take(indices).combine_chunks()
        pixels = table.column("image").chunk(0).flatten().to_numpy()
        # Arrow's arrays may not be written, which torch warns of: a copy, as collating would make one.
        return torch.from_numpy(pixels.copy()).view(-1, SIDE, SIDE, 3), table.column("caption").to_pylist()
