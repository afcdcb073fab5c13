"""Clips that libsndfile does not read: PyAV, of the extra "audio"."""

from __future__ import annotations

import io
from typing import Any

import numpy as np

from in_memory_datasets.decode.waveform import Frames, check_rate, frames_needed, mix_down
from in_memory_datasets.errors import DecodeError, MissingExtraError
from in_memory_datasets.schema import AudioSpec


def import_av(format_name: str) -> Any:
    """Import PyAV.

    Raises:
        MissingExtraError: It is not installed; the message names the format and the pip command.
    """
    try:
        import av
    except ImportError as error:
        raise MissingExtraError(
            f"{format_name} needs PyAV: pip install 'in-memory-datasets[audio]'", extra="audio"
        ) from error
    return av


def read_with_pyav(data: bytes, *, demuxer: str, format_name: str, spec: AudioSpec) -> tuple[Frames, int]:
    """Read as much of a clip's first audio stream as decides its kept part, at its own rate.

    The demuxer is named and no protocol is allowed, so that a playlist in a clip's clothes opens nothing.

    Returns:
        Mono float32, shape (num_frames,), and its sampling rate in Hz. A clip damaged halfway gives its first half.

    Raises:
        MissingExtraError: PyAV is not installed.
        av.error.FFmpegError: Not one frame could be decoded.
        DecodeError: "not_media" without an audio stream, "corrupt" where the rate is absurd or changes.
    """
    av = import_av(format_name)
    blocks: list[Frames] = []
    resampler = None
    layout = ""
    rate = 0
    num_frames = 0
    num_needed = 0
    with av.open(io.BytesIO(data), format=demuxer, options={"protocol_whitelist": "none"}) as container:
        if not container.streams.audio:
            raise DecodeError(f"{format_name} without an audio stream", reason="not_media")
        stream = container.streams.audio[0]
        if stream.codec_context is None:
            raise DecodeError(f"{format_name} of an encoding that FFmpeg does not know", reason="corrupt")
        stream.codec_context.thread_count = 1
        try:
            for frame in container.decode(stream):
                if rate == 0:
                    rate = check_rate(frame.sample_rate)
                    num_needed = frames_needed(rate, spec)
                elif frame.sample_rate != rate:
                    raise DecodeError(
                        f"the sampling rate changes from {rate} to {frame.sample_rate} Hz", reason="corrupt"
                    )
                if resampler is None or frame.layout.name != layout:
                    layout = frame.layout.name
                    # Packed, because PyAV looks for a planar frame's channels until a null pointer, and FFmpeg writes
                    # none behind the eighth: a clip of 8 channels or more ends the process (seen with 18.1).
                    resampler = av.AudioResampler(format="flt", layout=frame.layout)
                for part in resampler.resample(frame):
                    if part.samples:
                        blocks.append(mix_down(part.to_ndarray().reshape(part.samples, -1)))
                        num_frames += part.samples
                if num_frames >= num_needed:
                    break
        except av.error.FFmpegError:
            if not blocks:
                raise
    return (np.concatenate(blocks)[:num_needed] if blocks else np.zeros(0, np.float32)), rate
