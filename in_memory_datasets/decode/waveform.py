"""Decoded frames of any rate and channel count to the mono waveform that is kept."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from in_memory_datasets.errors import DecodeError
from in_memory_datasets.schema import AudioSpec

Frames = np.ndarray[Any, np.dtype[np.float32]]
Waveform = np.ndarray[Any, Any]

# Outside this, a rate is damage, or an attempt to make a short clip fill the memory.
MIN_RATE_HZ, MAX_RATE_HZ = 100, 6_000_000
# How far soxr HQ's filter reaches, in frames of the lower of both rates. Measured: beyond 128 frames the kept part
# equals that of the whole clip to 1e-7, for rates from 1 to 192 kHz.
_FILTER_REACH = 256
_LOUDEST = np.float32(1e30)  # float files may hold more; a filter sum of such numbers would overflow


def check_rate(rate: Any) -> int:
    """Give a sampling rate in Hz as a whole number.

    Raises:
        DecodeError: It is no number, or outside `MIN_RATE_HZ` to `MAX_RATE_HZ`.
    """
    if isinstance(rate, bool) or not isinstance(rate, (int, float, np.integer, np.floating)):
        raise DecodeError(f"a sampling rate of {rate!r}; expected Hz", reason="corrupt")
    if not MIN_RATE_HZ <= rate <= MAX_RATE_HZ:
        raise DecodeError(
            f"a sampling rate of {rate} Hz; expected {MIN_RATE_HZ} to {MAX_RATE_HZ:,} Hz", reason="corrupt"
        )
    return int(rate)


def frames_needed(rate: int, spec: AudioSpec) -> int:
    """Count the source frames that decide the kept part of a clip.

    Example:
        >>> frames_needed(16_000, AudioSpec(max_duration=1.0)), frames_needed(48_000, AudioSpec(max_duration=1.0))
        (16000, 48768)
    """
    if rate == spec.target_sr:
        return spec.max_frames
    reach = _FILTER_REACH * max(1, math.ceil(rate / spec.target_sr))
    return math.ceil(spec.max_frames * rate / spec.target_sr) + reach


def as_float_frames(frames: np.ndarray[Any, Any]) -> Frames:
    """Turn frames of any number type into float32: whole numbers by their type's range, floats as they are.

    Example:
        >>> as_float_frames(np.array([[-32768], [16384]], np.int16)).tolist()
        [[-1.0], [0.5]]
    """
    if frames.dtype.kind == "f":
        return frames.astype(np.float32, copy=False)
    if frames.dtype.kind not in "iu":
        raise DecodeError(f"an array of {frames.dtype} is no clip; expected numbers", reason="corrupt")
    half = 2.0 ** (8 * frames.dtype.itemsize - 1)
    zero = half if frames.dtype.kind == "u" else 0.0
    scaled: Frames = ((frames.astype(np.float64) - zero) / half).astype(np.float32)
    return scaled


def mix_down(block: np.ndarray[Any, Any]) -> Frames:
    """Average the channels of float32 frames, shape (num_frames, num_channels).

    Source: the plain mean, as librosa and torchaudio recipes have it, not the weights of ITU-R BS.775.
    """
    mono: Frames = block[:, 0].astype(np.float32)
    num_channels = block.shape[1]
    for channel in range(1, num_channels):
        mono += block[:, channel]
    if num_channels > 1:
        mono *= np.float32(1 / num_channels)
    return mono


def finish_waveform(mono: Frames, rate: int, spec: AudioSpec) -> Waveform:
    """Resample to `spec.target_sr`, cut at `spec.max_frames`, clip to [-1, 1] and convert to `spec.dtype`.

    NaN becomes 0; infinities are clipped like any loud frame. An int16 frame is the waveform times 32768, rounded.

    Args:
        mono: float32, shape (num_frames,); is overwritten.
        rate: Its sampling rate in Hz.
        spec: What to make of it.

    Returns:
        float32 or int16, shape (num_frames,), at least one frame; owns its memory.

    Raises:
        DecodeError: "empty" where nothing is left.
    """
    if mono.size == 0:
        raise DecodeError("no audio frames", reason="empty")
    # One pass finds NaN, infinities and absurd values: none of them compares as smaller.
    if not max(-mono.min(), mono.max()) <= _LOUDEST:
        np.nan_to_num(mono, copy=False, nan=0.0, posinf=1.0, neginf=-1.0)
        np.clip(mono, -_LOUDEST, _LOUDEST, out=mono)
    if rate != spec.target_sr:
        import soxr

        mono = soxr.resample(mono, rate, spec.target_sr, quality="HQ")
        if mono.size == 0:
            raise DecodeError(f"shorter than one frame at {spec.target_sr} Hz", reason="empty")
    mono = mono[: spec.max_frames]
    return as_int16(mono) if spec.dtype == "int16" else np.clip(mono, -1.0, 1.0)


def as_int16(waveform: Waveform) -> Waveform:
    """Turn a waveform into int16: times 32768, rounded and clipped; int16 stays as it is.

    Example:
        >>> as_int16(np.array([-1.0, 0.5, 1.0], np.float32)).tolist()
        [-32768, 16384, 32767]
    """
    if waveform.dtype == np.int16:
        return waveform
    frames: Waveform = np.clip(np.rint(waveform * np.float32(32_768)), -32_768, 32_767).astype(np.int16)
    return frames
