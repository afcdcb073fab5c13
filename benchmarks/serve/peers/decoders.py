"""Peers that bring loops of their own: FFCV, SPDL, lhotse."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.serve.peers.base import Batch, Feed, Peer
from benchmarks.serve.peers.plain import ImagesByIndex
from benchmarks.serve.peers.streaming import write_pictures
from benchmarks.serve.samples import SAMPLING_RATE, Samples


class Ffcv(Peer):
    """FFCV with raw pixels in the page cache."""

    name = "FFCV, raw"
    packages = ("ffcv", "numba", "torch")
    venv = "ffcv"
    media = ("image",)
    min_workers = 1
    stored = "decoded, a .beton file in the page cache"
    write_mode = "raw"
    configuration = (
        "DatasetWriter(RGBImageField(write_mode='raw')); Loader(file, batch_size=B, num_workers=w, "
        "order=OrderOption.RANDOM, os_cache=True, drop_last=False, pipelines: SimpleRGBImageDecoder, ToTensor, "
        "ToTorchImage)"
    )
    source = "https://docs.ffcv.io/parameter_tuning.html"
    notes = "workers are threads; captions from a list by index; the cold epoch compiles its pipeline"

    def prepare(self, samples: Samples, place: Path) -> None:
        from ffcv.fields import IntField, RGBImageField
        from ffcv.writer import DatasetWriter

        fields = {"image": RGBImageField(write_mode=self.write_mode, jpeg_quality=90), "index": IntField()}
        DatasetWriter(str(place / "images.beton"), fields, num_workers=1).from_indexed_dataset(_Pairs(samples))

    def open(self, samples: Samples, place: Path, num_workers: int, batch_size: int) -> Feed:
        from ffcv.fields.basics import IntDecoder
        from ffcv.fields.rgb_image import SimpleRGBImageDecoder
        from ffcv.loader import Loader, OrderOption
        from ffcv.transforms import Squeeze, ToTensor, ToTorchImage

        loader = Loader(
            str(place / "images.beton"),
            batch_size=batch_size,
            num_workers=num_workers,
            order=OrderOption.RANDOM,
            os_cache=True,
            drop_last=False,
            pipelines={
                "image": [SimpleRGBImageDecoder(), ToTensor(), ToTorchImage()],
                "index": [IntDecoder(), ToTensor(), Squeeze(1)],
            },
        )
        return Feed(loader, ImagesByIndex(samples.captions))


class EncodedFfcv(Ffcv):
    """FFCV with JPEG in the page cache."""

    name = "FFCV, JPEG"
    share = 0.5
    stored = "JPEG, a .beton file in the page cache; decodes (libjpeg-turbo)"
    write_mode = "jpg"
    exact = False
    configuration = Ffcv.configuration.replace("'raw'", "'jpg', jpeg_quality=90")


class _Pairs:
    def __init__(self, samples: Samples) -> None:
        self._samples = samples

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, i: int) -> tuple[Any, int]:
        return self._samples.image(i), i


class Spdl(Peer):
    """SPDL: threads that decode, and one conversion per batch."""

    name = "SPDL, JPEG files"
    packages = ("spdl-io", "torch")
    venv = "shared"
    media = ("image",)
    share = 0.25
    min_workers = 1
    stored = "JPEG, files on disk; decodes (FFmpeg)"
    exact = False
    configuration = (
        "spdl.dataloader.DataLoader(shuffled paths, preprocessor=demux_image and decode_packets, batch_size=B, "
        "aggregator=convert_frames and to_torch, num_threads=w)"
    )
    source = "https://facebookresearch.github.io/spdl/latest/best_practice.html"
    notes = "workers are threads"

    def prepare(self, samples: Samples, place: Path) -> None:
        write_pictures(samples, place)

    def open(self, samples: Samples, place: Path, num_workers: int, batch_size: int) -> Feed:
        import spdl.io
        import torch
        from spdl.dataloader import DataLoader

        captions = samples.captions

        def decode(row: tuple[str, int]) -> tuple[Any, int]:
            path, index = row
            return spdl.io.decode_packets(spdl.io.demux_image(path)), index

        def gather(rows: Sequence[tuple[Any, int]]) -> Batch:
            frames, indices = zip(*rows, strict=True)
            images = spdl.io.to_torch(spdl.io.convert_frames(list(frames)))
            return {
                "images": images,
                "captions": [captions[i] for i in indices],
                "indices": torch.tensor(indices),
            }

        paths = [str(path) for path in sorted((place / "pictures").iterdir())]
        return Feed(
            DataLoader(
                _Shuffled([(path, i) for i, path in enumerate(paths)]),
                preprocessor=decode,
                batch_size=batch_size,
                aggregator=gather,
                num_threads=num_workers,
            )
        )


class _Shuffled:
    """A list in another order each time."""

    def __init__(self, rows: Sequence[Any]) -> None:
        self._rows = rows

    def __iter__(self) -> Iterator[Any]:
        return iter(random.sample(self._rows, len(self._rows)))


class Lhotse(Peer):
    """lhotse: cuts of files, read and padded by its own collation."""

    name = "lhotse"
    packages = ("lhotse", "soundfile", "torch")
    venv = "shared"
    media = ("audio",)
    share = 0.5
    stored = "float32 WAV, files on disk; reads (libsndfile)"
    configuration = (
        "DataLoader(dataset with collate_audio(cuts), sampler=SimpleCutSampler(cuts, max_cuts=B, shuffle=True, "
        "drop_last=False), batch_size=None, num_workers=w)"
    )
    source = "https://lhotse.readthedocs.io/en/latest/datasets.html"

    def prepare(self, samples: Samples, place: Path) -> None:
        import soundfile
        from lhotse import CutSet, MonoCut, Recording, SupervisionSegment

        cuts = []
        for i in range(len(samples)):
            path = place / f"{i:06}.wav"
            soundfile.write(path, samples.clip(i), SAMPLING_RATE, subtype="FLOAT")
            recording = Recording.from_file(path)
            text = SupervisionSegment(str(i), recording.id, 0, recording.duration, text=samples.captions[i])
            cuts.append(MonoCut(str(i), 0, recording.duration, 0, supervisions=[text], recording=recording))
        CutSet.from_cuts(cuts).to_file(place / "cuts.jsonl")

    def open(self, samples: Samples, place: Path, num_workers: int, batch_size: int) -> Feed:
        from lhotse import CutSet
        from lhotse.dataset import SimpleCutSampler
        from torch.utils.data import DataLoader

        cuts = CutSet.from_file(place / "cuts.jsonl").to_eager()
        sampler: Any = SimpleCutSampler(cuts, max_cuts=batch_size, shuffle=True, drop_last=False)
        dataset: Any = _Cuts()
        return Feed(
            DataLoader(
                dataset, sampler=sampler, batch_size=None, num_workers=num_workers, persistent_workers=num_workers > 0
            )
        )


class _Cuts:
    def __getitem__(self, cuts: Any) -> Batch:
        import torch
        from lhotse.dataset.collation import collate_audio

        audio, lengths = collate_audio(cuts)
        cuts = list(cuts)
        return {
            "audio": audio,
            "lengths": lengths,
            "captions": [cut.supervisions[0].text for cut in cuts],
            "indices": torch.tensor([int(cut.id) for cut in cuts]),
        }
