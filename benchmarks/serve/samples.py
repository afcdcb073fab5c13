"""The samples in a neutral form on disk, from which every peer makes its own: arrays, offsets, captions.

images.npy  uint8 [N, 224, 224, 3]      frames.npy  float32 [total]      offsets.npy  int64 [N + 1]
captions.json
"""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import random
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.serve.job import Media

SIDE = 224
SAMPLING_RATE = 16_000
SECONDS = (1.0, 10.0)  # the shortest and the longest clip


@dataclass(frozen=True)
class Samples:
    """The first `num_samples` samples of a directory.

    One sample at a time is read with `pread`, so that a peer that keeps samples in memory does not keep a mapping of
    this file as well.
    """

    media: Media
    directory: Path
    num_samples: int

    @cached_property
    def captions(self) -> list[str]:
        """A caption per sample."""
        captions: list[str] = json.loads((self.directory / "captions.json").read_text())
        return captions[: self.num_samples]

    @cached_property
    def offsets(self) -> NDArray[np.int64]:
        """Where clips begin and end in the frames."""
        offsets: NDArray[np.int64] = np.load(self.directory / "offsets.npy")[: self.num_samples + 1]
        return offsets

    @cached_property
    def _file(self) -> tuple[int, int]:
        path = self.directory / ("images.npy" if self.media == "image" else "frames.npy")
        header: Any = np.load(path, mmap_mode="r")
        return os.open(path, os.O_RDONLY), header.offset

    def __reduce__(self) -> tuple[Any, ...]:
        return Samples, (self.media, self.directory, self.num_samples)  # another process opens the file for itself

    def image(self, i: int) -> NDArray[np.uint8]:
        """Read one image, (224, 224, 3)."""
        image = np.empty((SIDE, SIDE, 3), np.uint8)
        self._read(image, i * image.nbytes)
        return image

    def clip(self, i: int) -> NDArray[np.float32]:
        """Read one clip, (num_frames,)."""
        start, stop = self.offsets[i : i + 2].tolist()
        clip = np.empty(stop - start, np.float32)
        self._read(clip, start * 4)
        return clip

    def _read(self, array: NDArray[Any], offset: int) -> None:
        fd, header = self._file
        if os.preadv(fd, [array.data.cast("B")], header + offset) != array.nbytes:
            raise OSError(f"{self.directory}: the file ends before sample data at {offset:,}")

    def __len__(self) -> int:
        return self.num_samples

    def __getitem__(self, i: int) -> dict[str, Any]:
        """Give a sample as a row: what it is, its caption, its number."""
        if not 0 <= i < self.num_samples:
            raise IndexError(i)
        media = {"image": self.image(i)} if self.media == "image" else {"audio": self.clip(i)}
        return {**media, "caption": self.captions[i], "index": i}

    def all_images(self) -> NDArray[np.uint8]:
        """Read all images into memory, (N, 224, 224, 3)."""
        images = np.empty((self.num_samples, SIDE, SIDE, 3), np.uint8)
        for i in range(self.num_samples):
            self._read(images[i], i * SIDE * SIDE * 3)
        return images

    def wav(self, i: int) -> bytes:
        """Encode one clip as a WAV file of float32, which loses nothing."""
        import soundfile

        file = io.BytesIO()
        soundfile.write(file, self.clip(i), SAMPLING_RATE, format="WAV", subtype="FLOAT")
        return file.getvalue()

    def jpeg(self, i: int) -> bytes:
        """Encode one image as a JPEG of quality 90, and otherwise as Pillow does by default."""
        from PIL import Image

        file = io.BytesIO()
        Image.fromarray(self.image(i)).save(file, "JPEG", quality=90)
        return file.getvalue()


def make_samples(media: Media, num_samples: int, root: Path) -> Path:
    """Draw or play the samples of the demonstration set, once, and give the directory they lie in."""
    directory = root / f"{media}-{num_samples}"
    if directory.exists():
        return directory
    print(f"making {num_samples:,} samples of {media} …", flush=True)
    unfinished = root / f"{media}-{num_samples}.unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    with multiprocessing.get_context("forkserver").Pool() as pool:
        if media == "image":
            captions = _write_images(unfinished, num_samples, pool.imap(_draw_image, range(num_samples), 64))
        else:
            captions = _write_clips(unfinished, pool.imap(_play_clip, range(num_samples), 32))
    (unfinished / "captions.json").write_text(json.dumps(captions))
    unfinished.rename(directory)
    return directory


def _write_images(directory: Path, num_samples: int, drawn: Iterator[tuple[NDArray[np.uint8], str]]) -> list[str]:
    captions = []
    images = np.lib.format.open_memmap(
        directory / "images.npy", mode="w+", dtype=np.uint8, shape=(num_samples, SIDE, SIDE, 3)
    )
    for i, (image, caption) in enumerate(drawn):
        images[i] = image
        captions.append(caption)
    images.flush()
    return captions


def _write_clips(directory: Path, played: Iterator[tuple[NDArray[np.float32], str]]) -> list[str]:
    clips, captions = zip(*played, strict=True)
    np.save(directory / "frames.npy", np.concatenate(clips))
    np.save(directory / "offsets.npy", np.cumsum([0, *map(len, clips)]))
    return list(captions)


def _draw_image(i: int) -> tuple[NDArray[np.uint8], str]:
    from PIL import Image

    from demo.scenes import draw_scene, render_scene

    scene = draw_scene(i)
    picture = Image.open(io.BytesIO(render_scene(scene, i))).convert("RGB")
    return np.asarray(picture.resize((SIDE, SIDE))), scene.caption


def _play_clip(i: int) -> tuple[NDArray[np.float32], str]:
    """Play sounds one after another until there are as many seconds as chance wants."""
    import soundfile
    import soxr

    from demo.sounds import draw_sound, render_sound

    vary = random.Random(f"clip {i}")
    num_frames = round(vary.uniform(*SECONDS) * SAMPLING_RATE)
    parts: list[NDArray[np.float32]] = []
    captions = []
    while sum(map(len, parts)) < num_frames:
        number = vary.randrange(1_000)
        sound = draw_sound(number)
        wave, rate = soundfile.read(io.BytesIO(render_sound(sound, number)), dtype="float32")
        parts.append(soxr.resample(wave, rate, SAMPLING_RATE))
        captions.append(sound.caption)
    return np.concatenate(parts)[:num_frames], ", then ".join(captions)
