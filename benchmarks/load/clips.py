"""Clips like those of the web, all of them different, made once: FLAC, WAV, Ogg Vorbis, MP3; 2 to 10 s, stereo."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import random
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

TARGET_SR = 16_000
# Raised when other clips would be made.
_VERSION = 1
_FORMATS = {"flac": "FLAC", "wav": "WAV", "ogg": "OGG", "mp3": "MP3"}
_RATES = (44_100, 16_000)
_SECONDS = (2.0, 10.0)
_NUM_PARTIALS = 5


@dataclass(frozen=True, slots=True)
class Clips:
    """Files in a directory.

    Attributes:
        directory: Where they lie.
        names: Of the files.
        lengths: Frames of each at 16 kHz.
    """

    directory: Path
    names: list[str]
    lengths: list[int]

    def __len__(self) -> int:
        return len(self.names)

    @property
    def offsets(self) -> NDArray[np.int64]:
        """Where each begins and ends when they lie end to end."""
        return np.concatenate([[0], np.cumsum(self.lengths)]).astype(np.int64)

    def read(self) -> list[bytes]:
        """Read them all."""
        return [(self.directory / name).read_bytes() for name in self.names]

    def references(self) -> NDArray[np.float32]:
        """Map what they sound like, end to end: libsndfile, the mean of both channels, soxr."""
        mapped: NDArray[np.float32] = np.load(self.directory / "references.npy", mmap_mode="r")
        return mapped


def make_clips(num_clips: int, build: Path) -> Clips:
    """Make clips, unless they are there."""
    directory = build / "load" / f"clips-{num_clips}"
    done = directory / "clips.json"
    if done.exists():
        kept = json.loads(done.read_text())
        if kept["version"] == _VERSION:
            return Clips(directory, kept["names"], kept["lengths"])
    print(f"making {num_clips:,} clips in {directory} …", flush=True)
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    with multiprocessing.get_context("spawn").Pool(os.cpu_count()) as pool:
        made = list(pool.imap(_make, [(directory, i) for i in range(num_clips)], chunksize=8))
    names, references = zip(*made, strict=True)
    np.save(directory / "references.npy", np.concatenate(references))
    clips = Clips(directory, list(names), [len(reference) for reference in references])
    done.write_text(json.dumps({"version": _VERSION, "names": clips.names, "lengths": clips.lengths}))
    os.sync()
    return clips


def _make(job: tuple[Path, int]) -> tuple[str, NDArray[np.float32]]:
    import soundfile
    import soxr

    directory, i = job
    vary, draw = random.Random(f"clip {i}"), np.random.default_rng([4, i])
    suffix, rate = list(_FORMATS)[i % 4], _RATES[(i // 4) % 2]
    t = np.arange(round(vary.uniform(*_SECONDS) * rate)) / rate
    channels = []
    for _ in range(2):
        sound = np.cumsum(draw.standard_normal(len(t)))  # brown, as most noises of the world are
        sound -= np.linspace(sound[0], sound[-1], len(t))
        sound *= 0.2 / np.abs(sound).max()
        for _ in range(_NUM_PARTIALS):
            swell = 0.5 + 0.5 * np.sin(2 * np.pi * vary.uniform(0.1, 3) * t + vary.uniform(0, 6))
            sound += 0.1 * swell * np.sin(2 * np.pi * vary.uniform(80, 5000) * t)
        channels.append(sound)
    file = io.BytesIO()
    soundfile.write(file, np.stack(channels, 1).astype(np.float32), rate, format=_FORMATS[suffix])
    name = f"{i:05}.{suffix}"
    (directory / name).write_bytes(file.getvalue())
    file.seek(0)
    frames, rate = soundfile.read(file, dtype="float32", always_2d=True)
    mono = frames.mean(1)
    return name, mono if rate == TARGET_SR else soxr.resample(mono, rate, TARGET_SR, "HQ")


# Another way to round, but no other clip: these are as loud as 0.1 on average.
_TOLERANCE = 0.005
# Resamplers differ in how they round a length.
_MAX_FRAMES_APART = 4


def compare_clips(clips: Clips, found: Sequence[NDArray[np.float32]]) -> float:
    """Compare all clips with what they sound like; give the largest mean distance.

    Raises:
        ValueError: One is another, or they are more or fewer.
    """
    if len(found) != len(clips):
        raise ValueError(f"{len(found):,} clips, expected {len(clips):,}")
    references, offsets, worst = clips.references(), clips.offsets, 0.0
    for i, clip in enumerate(found):
        reference = references[offsets[i] : offsets[i + 1]]
        if abs(len(clip) - len(reference)) > _MAX_FRAMES_APART:
            raise ValueError(f"clip {i} has {len(clip):,} frames, expected {len(reference):,}")
        both = min(len(clip), len(reference))
        distance = float(np.abs(clip[:both] - reference[:both]).mean())
        if distance > _TOLERANCE:
            raise ValueError(f"clip {i} lies {distance:.4f} from what libsndfile and soxr make of its file")
        worst = max(worst, distance)
    return worst
