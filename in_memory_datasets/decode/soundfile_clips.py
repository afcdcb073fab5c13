"""Clips that libsndfile reads: wav, flac, ogg, opus, mp3, aiff, au, caf, w64 and more; GSM and VOX by their name."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from in_memory_datasets.decode.audio_formats import extension
from in_memory_datasets.decode.waveform import Frames, check_rate, frames_needed, mix_down
from in_memory_datasets.errors import DecodeError
from in_memory_datasets.schema import AudioSpec

# Read at once: 16 MiB of float32, a 30 s clip in stereo at 48 kHz. Headers may promise any length, so memory follows
# what is there. soundfile seeks between two reads, which costs Opus up to 6e-5 of exactness; most clips need one.
_BLOCK_VALUES = 4 * 2**20

_HEADERLESS = {
    "gsm": {"format": "RAW", "subtype": "GSM610", "samplerate": 8_000, "channels": 1},
    "vox": {"format": "RAW", "subtype": "VOX_ADPCM", "samplerate": 8_000, "channels": 1},
}


def read_with_soundfile(data: bytes, *, name: str, spec: AudioSpec) -> tuple[Frames, int]:
    """Read as much of a clip as decides its kept part.

    Returns:
        Mono float32, shape (num_frames,), and its sampling rate in Hz. Fewer frames than the header promises where
        the data ends early.

    Raises:
        soundfile.LibsndfileError: libsndfile cannot open it.
        DecodeError: "corrupt" where libsndfile opened it but cannot decode it, or its sampling rate is absurd.
    """
    import soundfile

    headerless = _HEADERLESS.get(extension(name), {})
    if headerless.get("subtype") == "GSM610" and not _is_gsm(data):
        headerless = {}
    with path_to(data) as path:
        try:
            clip = soundfile.SoundFile(path)
        except soundfile.LibsndfileError:
            if not headerless:
                raise
            clip = soundfile.SoundFile(path, **headerless)
        with clip:
            rate = check_rate(clip.samplerate)
            try:
                return _read_mono(clip, frames_needed(rate, spec)), rate
            except soundfile.LibsndfileError as error:
                raise DecodeError(f"damaged {clip.format} (libsndfile: {error})", reason="corrupt") from error


def _read_mono(clip: Any, num_needed: int) -> Frames:
    num_left = min(clip.frames, num_needed)
    block_frames = max(1, _BLOCK_VALUES // clip.channels)
    blocks: list[Frames] = []
    while num_left > 0:
        num_asked = min(num_left, block_frames)
        block = clip.read(num_asked, dtype="float32", always_2d=True)
        blocks.append(mix_down(block))
        if len(block) < num_asked:
            break
        num_left -= num_asked
    if len(blocks) == 1:
        return blocks[0]
    return np.concatenate(blocks) if blocks else np.zeros(0, np.float32)


def _is_gsm(data: bytes) -> bool:
    """Check the mark of the first full-rate frames: each takes 33 bytes and begins with 0xD in its upper half.

    Source: ETSI GSM 06.10, in the packing of libgsm.
    """
    return len(data) >= 33 and all(data[start] >> 4 == 0xD for start in range(0, min(len(data) - 32, 330), 33))


@contextmanager
def path_to(data: bytes) -> Iterator[str]:
    """Lay bytes behind a path.

    libsndfile reads a file without calling back into Python: no GIL per block, and no exception lost inside a callback
    when a damaged header makes it seek before the beginning, as with a BytesIO. It gets a path, not a descriptor:
    libsndfile up to 1.2.0 closes a descriptor that it cannot open as a clip, even one that it is told to leave open,
    and closing it here again could then hit a file of another thread.
    """
    if not hasattr(os, "memfd_create") or not os.path.isdir("/proc/self/fd"):
        with tempfile.NamedTemporaryFile(prefix="in-memory-datasets-clip-") as file:
            file.write(data)
            file.flush()
            yield file.name
        return
    descriptor = os.memfd_create("in-memory-datasets-clip", os.MFD_CLOEXEC)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view) :]
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)
