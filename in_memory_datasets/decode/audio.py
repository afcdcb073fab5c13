"""Clips: encoded bytes or an object to a mono waveform of one rate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from in_memory_datasets.decode.audio_formats import looks_like_text, sniff_audio
from in_memory_datasets.decode.pyav_clips import read_with_pyav
from in_memory_datasets.decode.soundfile_clips import read_with_soundfile
from in_memory_datasets.decode.waveform import (
    Frames,
    Waveform,
    as_float_frames,
    check_rate,
    finish_waveform,
    frames_needed,
    mix_down,
)
from in_memory_datasets.errors import DecodeError, MissingExtraError
from in_memory_datasets.schema import AudioSpec, strip_credentials

# What libsndfile says of a format or an encoding that it does not read: SF_ERR_UNRECOGNISED_FORMAT,
# SF_ERR_UNSUPPORTED_ENCODING, SFE_UNIMPLEMENTED. Anything else means that it knows the format and the file is damaged.
_NOT_READ = (1, 4, 18)


def decode_audio(data: Any, *, spec: AudioSpec, name: str = "") -> Waveform:
    """Decode one clip into a mono waveform of one rate.

    Channels are averaged in float32, resampled by soxr HQ, clipped to [-1, 1]. Where the data ends before its header
    says, what is there is kept. NaN becomes 0.

    Args:
        data: The encoded bytes; or a mapping of "array" and "sampling_rate", with an array of shape (num_frames,),
            (num_channels, num_frames) or (num_frames, num_channels); or such an array alone, taken to be at
            `spec.target_sr`; or a decoder with `get_all_samples`, as torchcodec has it.
        spec: Sampling rate, longest duration and dtype.
        name: What to call the clip in messages. Its extension is a hint for formats without a mark (gsm, g722, vox).

    Returns:
        float32 in [-1, 1] or int16, shape (num_frames,), from 1 to `spec.max_frames` frames; owns its memory.

    Raises:
        DecodeError: `reason` is "empty", "not_media", "corrupt" or "missing_extra", then with a MissingExtraError as
            its cause. No other exception escapes for bad data.

    Cost: one decode and one resample of the kept part; frames past it are not decoded. Thread-safe; releases the GIL
    for most of it.

    Example:
        >>> two_seconds = {"array": np.zeros((2, 96_000), np.float32), "sampling_rate": 48_000}
        >>> decode_audio(two_seconds, spec=AudioSpec(target_sr=16_000)).shape
        (32000,)
    """
    try:
        if isinstance(data, (bytes, bytearray, memoryview)):
            frames, rate = _read_bytes(bytes(data), spec, name)
        else:
            frames, rate = _read_object(data, spec)
        return finish_waveform(frames, rate, spec)
    except DecodeError as error:
        raise DecodeError(f"{_label(name)}: {error}", reason=error.reason) from error.__cause__
    except MissingExtraError as error:
        raise DecodeError(f"{_label(name)}: {error}", reason="missing_extra") from error
    except Exception as error:  # hostile bytes make codecs raise anything; all of it is a fact about them
        detail = str(error) or type(error).__name__
        raise DecodeError(f"{_label(name)}: cannot be decoded: {detail}", reason="corrupt") from error


def _label(name: str) -> str:
    return strip_credentials(name) if name else "clip"


def _read_bytes(data: bytes, spec: AudioSpec, name: str) -> tuple[Frames, int]:
    if not data:
        raise DecodeError("0 bytes; expected a clip", reason="empty")
    import soundfile

    try:
        return read_with_soundfile(data, name=name, spec=spec)
    except soundfile.LibsndfileError as error:
        found = sniff_audio(data, name)
        if found is None:
            kind = "text" if looks_like_text(data) else "no known audio format"
            raise DecodeError(f"{len(data):,} bytes of {kind}, beginning {data[:16]!r}", reason="not_media") from error
        if found.is_native and error.code not in _NOT_READ:
            raise DecodeError(f"damaged {found.name} (libsndfile: {error.error_string})", reason="corrupt") from error
    return read_with_pyav(data, demuxer=found.demuxer, format_name=found.name, spec=spec)


def _read_object(data: Any, spec: AudioSpec) -> tuple[Frames, int]:
    if isinstance(data, Mapping):
        if "array" not in data or "sampling_rate" not in data:
            raise DecodeError(
                f"a mapping of {sorted(map(str, data))}; expected 'array' and 'sampling_rate'", reason="not_media"
            )
        array, rate = data["array"], check_rate(data["sampling_rate"])
    elif hasattr(data, "get_all_samples"):
        samples = _decoder_samples(data, spec)
        array, rate = samples.data, check_rate(samples.sample_rate)
    else:
        array, rate = data, spec.target_sr
    if hasattr(array, "detach"):  # a torch tensor
        array = array.detach().cpu()
    elif not isinstance(array, (np.ndarray, list, tuple)):
        raise DecodeError(
            f"{type(array).__name__} is no clip; expected encoded bytes, 'array' and 'sampling_rate', or an array",
            reason="not_media",
        )
    frames = _frames_first(np.asarray(array))
    return mix_down(as_float_frames(frames[: frames_needed(rate, spec)])), rate


def _decoder_samples(decoder: Any, spec: AudioSpec) -> Any:
    """Ask a decoder for the kept part alone where it can give a part."""
    if not hasattr(decoder, "get_samples_played_in_range"):
        return decoder.get_all_samples()
    rate = check_rate(decoder.metadata.sample_rate)
    return decoder.get_samples_played_in_range(0.0, frames_needed(rate, spec) / rate)


def _frames_first(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Give any accepted shape as (num_frames, num_channels); the shorter of two axes is the channels."""
    if array.ndim == 1:
        return array[:, None]
    if array.ndim == 2 and min(array.shape) > 0:
        return array.T if array.shape[0] <= array.shape[1] else array
    if array.ndim == 2:
        raise DecodeError(f"an array of shape {array.shape} has no frames", reason="empty")
    raise DecodeError(
        f"an array of shape {array.shape} is no clip; expected (num_frames,), (num_channels, num_frames) or "
        "(num_frames, num_channels)",
        reason="corrupt",
    )
