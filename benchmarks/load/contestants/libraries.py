"""Libraries that load pictures: img2dataset, Hugging Face datasets, MONAI."""

from __future__ import annotations

import io
import json
import tarfile
import urllib.request
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from benchmarks.load.checking import SIDE, Resize
from benchmarks.load.contestants.base import Contestant, Where

# One process of img2dataset is replaced by a new one after five shards.
_SHARDS_PER_PROCESS = 4


class Img2dataset(Contestant):
    """img2dataset, into shards of JPEG."""

    kind = "library"
    imports = ("img2dataset:download", "pandas", "cv2")
    packages: ClassVar[tuple[str, ...]] = ("img2dataset", "opencv-python-headless")
    venv = "img2dataset"
    resize: ClassVar[Resize] = "crop"
    source = "https://github.com/rom1504/img2dataset#api"
    notes = (
        "it cannot stretch, so it crops; what it leaves are JPEG files of quality 95 in shards, which have to be "
        "decoded again in every epoch, and this is not counted. Its processes import its libraries when they start, "
        "which does not count either: seconds are from the start of its first shard to the end of its last by its own "
        "books, and processor time is without that of a start with a picture per shard"
    )

    def __init__(self, key: str, *, num_processes: int, num_threads: int) -> None:
        super().__init__(key)
        self._num_processes, self._num_threads = num_processes, num_threads
        self.name = f"img2dataset, {num_processes}×{num_threads}"
        self.configuration = (
            f"download(url_list, image_size=224, resize_mode='center_crop', output_format='webdataset', "
            f"processes_count={num_processes}, thread_count={num_threads}, "
            f"number_sample_per_shard=...), {_SHARDS_PER_PROCESS} shards a process"
        )

    def rehearse(self, sources: Sequence[str], place: Path) -> None:
        num_shards = self._num_processes * _SHARDS_PER_PROCESS
        few = place / "rehearsal"
        few.mkdir()
        self.load(sources[:num_shards], [""] * num_shards, few)

    def load(self, sources: Sequence[str], captions: Sequence[str], place: Path) -> Any:
        self._download(sources, captions, place / "shards")

    def _download(self, sources: Sequence[str], captions: Sequence[str], output: Path) -> None:
        import pandas
        from img2dataset import download

        rows = output.with_suffix(".parquet")
        pandas.DataFrame({"url": sources, "caption": captions[: len(sources)]}).to_parquet(rows)
        download(
            url_list=str(rows),
            input_format="parquet",
            url_col="url",
            caption_col="caption",
            output_folder=str(output),
            output_format="webdataset",
            image_size=SIDE,
            resize_mode="center_crop",
            processes_count=self._num_processes,
            thread_count=self._num_threads,
            number_sample_per_shard=max(1, -(-len(sources) // (self._num_processes * _SHARDS_PER_PROCESS))),
            enable_wandb=False,
        )

    def counted(self, place: Path, seconds: float, cpu_seconds: float, spared: float) -> tuple[float, float]:
        books = [json.loads(path.read_text()) for path in (place / "shards").glob("*_stats.json")]
        span = max(book["end_time"] for book in books) - min(book["start_time"] for book in books)
        if cpu_seconds <= spared:
            raise ValueError("so few pictures that their processor time is lost in that of a start")
        return span, cpu_seconds - spared

    def pictures(self, loaded: Any, place: Path) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        import cv2

        for path in sorted((place / "shards").glob("*.tar")):
            bodies: dict[str, dict[str, bytes]] = {}
            with tarfile.open(path) as shard:
                for member in shard:
                    file = shard.extractfile(member)
                    if file is not None:
                        name, _, suffix = member.name.partition(".")
                        bodies.setdefault(name, {})[suffix] = file.read()
            for parts in bodies.values():
                number = int(Path(json.loads(parts["json"])["url"]).stem)
                picture: Any = cv2.imdecode(np.frombuffer(parts["jpg"], np.uint8), cv2.IMREAD_COLOR)
                yield number, np.ascontiguousarray(picture[:, :, ::-1])


class _Map(Contestant):
    """`Dataset.map` of Hugging Face, two processes with threads that fetch, as the cards of URL datasets have it."""

    kind = "library"
    imports = ("datasets:Dataset", "PIL.Image", "PIL.JpegImagePlugin", "numpy")
    packages: ClassVar[tuple[str, ...]] = ("datasets", "pillow", "pyarrow")
    source = "https://huggingface.co/datasets/google-research-datasets/conceptual_captions"
    column: ClassVar[str]

    @abstractmethod
    def features(self) -> Any:
        """Say what the column of pictures is."""

    def load(self, sources: Sequence[str], captions: Sequence[str], place: Path) -> Any:
        from datasets import Dataset, Features, Value

        rows = Dataset.from_dict({"image_url": list(sources), "caption": list(captions)})
        columns = {"image_url": Value("string"), "caption": Value("string"), "image": self.features()}
        return rows.map(
            _fetch_batch,
            batched=True,
            batch_size=100,
            num_proc=2,
            features=Features(columns),
            fn_kwargs={"as_arrays": self.column == "arrays"},
            cache_file_name=str(place / "mapped.arrow"),
        )


def _fetch_batch(batch: dict[str, Any], *, as_arrays: bool) -> dict[str, Any]:
    with ThreadPoolExecutor(20) as threads:
        pictures = list(threads.map(_fetch_one, batch["image_url"]))
    batch["image"] = [np.asarray(picture) for picture in pictures] if as_arrays else pictures
    return batch


def _fetch_one(url: str) -> Any:
    from PIL import Image

    with urllib.request.urlopen(url, timeout=20) as answer:
        picture = Image.open(io.BytesIO(answer.read()))
    return picture.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC)


class MapToPictures(_Map):
    """Into a column of pictures."""

    name = "datasets.map, pictures"
    column = "pictures"
    configuration = (
        "rows.map(fetch, batched=True, batch_size=100, num_proc=2) with 20 threads: urlopen, Image.open, "
        "resize(BICUBIC); a column of Image(), which it writes as PNG"
    )
    notes = "PNG has to be decoded again in every epoch, which is not counted"

    def features(self) -> Any:
        from datasets import Image

        return Image()

    def pictures(self, loaded: Any, place: Path) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        for i, row in enumerate(loaded):
            yield i, np.asarray(row["image"].convert("RGB"))


class MapToArrays(_Map):
    """Into a column of arrays."""

    name = "datasets.map, arrays"
    column = "arrays"
    configuration = "the same; a column of Array3D((224, 224, 3), 'uint8')"

    def features(self) -> Any:
        from datasets import Array3D

        return Array3D((SIDE, SIDE, 3), "uint8")

    def pictures(self, loaded: Any, place: Path) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        for i, row in enumerate(loaded.with_format("numpy")):
            yield i, np.asarray(row["image"], np.uint8)


class Monai(Contestant):
    """The cache of MONAI, filled by two of its workers, which are threads."""

    name = "MONAI CacheDataset, from files"
    kind = "library"
    where: ClassVar[Where] = "files"
    imports = ("monai.data:CacheDataset", "monai.transforms:Lambda", "PIL.Image", "PIL.JpegImagePlugin", "numpy")
    packages: ClassVar[tuple[str, ...]] = ("monai", "torch", "pillow")
    venv = "shared"
    configuration = (
        "CacheDataset(paths, Lambda(read), num_workers=2, progress=False); read: Image.open, draft, convert, "
        "resize(BICUBIC), an array"
    )
    source = "https://github.com/Project-MONAI/tutorials/blob/master/acceleration/fast_model_training_guide.md"

    def load(self, sources: Sequence[str], captions: Sequence[str], place: Path) -> Any:
        from monai.data import CacheDataset
        from monai.transforms import Lambda

        return CacheDataset(list(sources), Lambda(_open_one), cache_rate=1.0, num_workers=2, progress=False)

    def pictures(self, loaded: Any, place: Path) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        # Its own list, and not loaded[i]: that would load what is not in the cache, with the clock no longer running.
        for i, image in enumerate(loaded._cache):
            yield i, np.asarray(image)


def _open_one(path: str) -> Any:
    from PIL import Image

    picture = Image.open(path)
    picture.draft("RGB", (2 * SIDE, 2 * SIDE))
    return np.asarray(picture.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC))
