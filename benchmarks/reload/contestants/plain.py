"""What needs no library but numpy, torch and safetensors: files that are read whole, and files that are mapped."""

from __future__ import annotations

import json
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from benchmarks.reload.contestants.base import Indexed
from benchmarks.reload.pictures import SIDE, Pictures, draw, read_captions


class PickledArray(Indexed):
    """One array and a list, pickled."""

    name = "pickle, one array"
    imports = ("numpy", "torch")
    packages: ClassVar[tuple[str, ...]] = ("numpy", "torch")
    memory_copies = 2.0
    configuration = (
        "pickle.load(file) of an array and a list of captions, protocol 5; torch.from_numpy(images[indices])"
    )
    source = "https://docs.python.org/3/library/pickle.html"

    def prepare(self, pictures: Pictures, place: Path) -> None:
        with open(place / "samples.pickle", "wb") as file:
            pickle.dump((pictures.all_images(), pictures.captions), file, protocol=5)

    def open(self, place: Path) -> Any:
        with open(place / "samples.pickle", "rb") as file:
            return pickle.load(file)

    def take(self, opened: Any, indices: list[int]) -> tuple[Any, Sequence[str] | None]:
        import torch

        images, captions = opened
        return torch.from_numpy(images[indices]), [captions[i] for i in indices]


class PickledPictures(Indexed):
    """A list of pictures with their captions, pickled."""

    name = "pickle, list of PIL images"
    imports = ("numpy", "torch", "PIL.Image")
    packages = ("pillow", "torch")
    memory_copies = 3.0  # the file, the pictures, and the bytes they were made of, which pickle keeps to the end
    configuration = (
        "pickle.load(file) of [(PIL image, caption), ...], protocol 5; "
        "torch.from_numpy(numpy.stack([numpy.asarray(picture) ...]))"
    )
    source = PickledArray.source

    def prepare(self, pictures: Pictures, place: Path) -> None:
        from PIL import Image

        rows = [(Image.fromarray(draw(i)), caption) for i, caption in enumerate(pictures.captions)]
        with open(place / "samples.pickle", "wb") as file:
            pickle.dump(rows, file, protocol=5)

    def open(self, place: Path) -> Any:
        with open(place / "samples.pickle", "rb") as file:
            return pickle.load(file)

    def take(self, opened: Any, indices: list[int]) -> tuple[Any, Sequence[str] | None]:
        import numpy as np
        import torch

        images = np.stack([np.asarray(opened[i][0]) for i in indices])
        return torch.from_numpy(images), [opened[i][1] for i in indices]


class BareMap(Indexed):
    """A bare memory map: the least that a first batch can cost."""

    name = "bare memory map"
    imports = ("numpy", "torch")
    kind = "floor"
    packages = ("numpy", "torch")
    has_captions = False
    configuration = 'numpy.load("images.npy", mmap_mode="r"); torch.from_numpy(images[indices])'
    source = "https://numpy.org/doc/stable/reference/generated/numpy.load.html"
    notes = "no captions and no checks"

    def prepare(self, pictures: Pictures, place: Path) -> None:
        import numpy as np

        shape = (len(pictures), SIDE, SIDE, 3)
        images = np.lib.format.open_memmap(place / "images.npy", mode="w+", dtype=np.uint8, shape=shape)
        pictures.all_images(images)
        images.flush()

    def open(self, place: Path) -> Any:
        import numpy as np

        return np.load(place / "images.npy", mmap_mode="r")

    def take(self, opened: Any, indices: list[int]) -> tuple[Any, Sequence[str] | None]:
        import torch

        return torch.from_numpy(opened[indices]), None


class TorchMap(Indexed):
    """torch's own files, mapped."""

    name = "torch.load(mmap=True)"
    imports = ("torch",)
    disk_copies = 2.0
    configuration = 'torch.load("samples.pt", mmap=True, weights_only=True) of a tensor and a list; images[indices]'
    source = "https://docs.pytorch.org/tutorials/recipes/recipes/module_load_state_dict_tips.html"

    def prepare(self, pictures: Pictures, place: Path) -> None:
        import torch

        # Over a mapped file, which torch.save reads as it writes: all pixels need not lie in memory.
        scratch = place / "scratch"
        pixels = torch.from_file(str(scratch), shared=True, size=pictures.nbytes, dtype=torch.uint8)
        images = pixels.view(-1, SIDE, SIDE, 3)
        pictures.all_images(images.numpy())
        torch.save({"images": images, "captions": pictures.captions}, place / "samples.pt")
        scratch.unlink()

    def open(self, place: Path) -> Any:
        import torch

        return torch.load(place / "samples.pt", mmap=True, weights_only=True)

    def take(self, opened: Any, indices: list[int]) -> tuple[Any, Sequence[str] | None]:
        return opened["images"][indices], [opened["captions"][i] for i in indices]


class Safetensors(Indexed):
    """safetensors, read lazily."""

    name = "safetensors"
    imports = ("torch", "safetensors.torch")
    packages = ("safetensors", "torch")
    configuration = (
        'safetensors.torch.load_file("samples.safetensors"), which maps the file; ["images"][indices] and '
        '["captions"][indices] of it'
    )
    source = "https://huggingface.co/docs/safetensors"
    notes = "the format keeps no text: captions as bytes, all of one length"

    def prepare(self, pictures: Pictures, place: Path) -> None:
        import numpy as np

        # What save_file would write, which has all pixels in memory while it does.
        shape, captions = (len(pictures), SIDE, SIDE, 3), pictures.caption_bytes
        ends = (pictures.nbytes, pictures.nbytes + captions.nbytes)
        fields = {
            "images": {"dtype": "U8", "shape": shape, "data_offsets": [0, ends[0]]},
            "captions": {"dtype": "U8", "shape": captions.shape, "data_offsets": ends},
        }
        header = json.dumps(fields).encode()
        header += b" " * (-len(header) % 8)
        path = place / "samples.safetensors"
        path.write_bytes(len(header).to_bytes(8, "little") + header)
        images = np.memmap(path, np.uint8, "r+", offset=8 + len(header), shape=shape)
        pictures.all_images(images)
        images.flush()
        with path.open("ab") as file:
            file.write(captions.tobytes())

    def open(self, place: Path) -> Any:
        from safetensors.torch import load_file

        return load_file(place / "samples.safetensors")

    def take(self, opened: Any, indices: list[int]) -> tuple[Any, Sequence[str] | None]:
        return opened["images"][indices], read_captions(opened["captions"][indices])
