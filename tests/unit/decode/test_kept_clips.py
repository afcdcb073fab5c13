"""keep_clip and open_clip: any part of a clip comes back as the 16 bits it had, or is refused."""

from __future__ import annotations

import io
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from in_memory_datasets.decode import check_flac_rate, decode_audio, keep_clip, open_clip
from in_memory_datasets.decode.waveform import as_int16
from in_memory_datasets.errors import ConfigError, DecodeError
from in_memory_datasets.schema import AudioSpec
from tests.making import check_threads_agree

SPEC = AudioSpec(16_000, 2.0)
SCALE = np.float32(1 / 32_768)


def chord(num_frames: int) -> NDArray[np.int16]:
    draw, time = np.random.default_rng(num_frames), np.arange(num_frames)
    return (9_000 * np.sin(time / 9) + draw.normal(0, 200, num_frames)).astype(np.int16)


def refused(data: bytes, spec: AudioSpec = SPEC, **part: Any) -> DecodeError:
    with pytest.raises(DecodeError) as caught:
        open_clip(data, spec=spec, **part)
    return caught.value


@pytest.mark.parametrize("num_frames", [1, 2, 15, 16, 17, 4_095, 4_096, 4_097, 20_000, 32_000])
def test_sixteen_bits_come_back_as_they_were(num_frames: int) -> None:
    clip = chord(num_frames)
    opened = open_clip(keep_clip(clip, spec=SPEC), spec=SPEC)
    assert opened.dtype == np.float32
    np.testing.assert_array_equal(opened, clip * SCALE)


def test_a_float_waveform_comes_back_within_half_a_step() -> None:
    waveform = np.random.default_rng(0).uniform(-1, 1, 30_000).astype(np.float32)
    opened = open_clip(keep_clip(waveform, spec=SPEC), spec=SPEC)
    np.testing.assert_array_equal(opened, as_int16(waveform) * SCALE)
    inside = waveform <= 32_767 / 32_768  # the loudest positive frame that 16 bits hold
    assert np.abs(opened - waveform)[inside].max() <= 0.5 / 32_768
    assert np.abs(opened - waveform).max() <= 1 / 32_768


@pytest.mark.parametrize(
    "clip",
    [
        np.full(5_000, -32_768, np.int16),
        np.full(5_000, 32_767, np.int16),
        np.tile(np.array([-32_768, 32_767], np.int16), 4_000),
        np.random.default_rng(0).integers(-32_768, 32_768, 9_000).astype(np.int16),
        np.zeros(9_000, np.int16),
        np.array([-1.0, 1.0, 0.0, -0.0], np.float32),
    ],
    ids=["lowest", "highest", "square wave", "noise", "silence", "floats"],
)
def test_full_scale_and_silence_come_back_as_they_were(clip: NDArray[Any]) -> None:
    np.testing.assert_array_equal(open_clip(keep_clip(clip, spec=SPEC), spec=SPEC), as_int16(clip) * SCALE)


def test_a_clip_takes_no_more_than_its_frames_and_a_header() -> None:
    """Noise cannot be compressed; FLAC then keeps it as it is, a few bytes for each block of 4,096 frames on top."""
    for num_frames in (1, 100, 5_000, 32_000):
        worst = np.random.default_rng(0).integers(-32_768, 32_768, num_frames).astype(np.int16)
        assert len(keep_clip(worst, spec=SPEC)) <= 2 * num_frames + 8_400
    assert len(keep_clip(np.zeros(32_000, np.int16), spec=SPEC)) < 9_000


def test_what_is_kept_is_mono_flac_of_sixteen_bits_and_the_same_each_time() -> None:
    kept = keep_clip(chord(9_000), spec=SPEC)
    with soundfile.SoundFile(io.BytesIO(kept)) as file:
        assert (file.format, file.subtype, file.channels, file.samplerate) == ("FLAC", "PCM_16", 1, 16_000)
        assert file.frames == 9_000
    assert kept == keep_clip(chord(9_000), spec=SPEC)
    assert kept == keep_clip(chord(9_000) * SCALE, spec=SPEC)


def test_any_part_is_the_slice_of_the_whole() -> None:
    clip = chord(20_000)
    kept, whole = keep_clip(clip, spec=SPEC), clip * SCALE
    draw = np.random.default_rng(0)
    parts = [(0, 0), (20_000, 0), (0, 1), (19_999, 1), (4_095, 2), (4_096, 4_096), (0, 20_000)]
    parts += [(start, draw.integers(0, 20_001 - start)) for start in draw.integers(0, 20_001, 200).tolist()]
    for start, num_frames in parts:
        part = open_clip(kept, spec=SPEC, start=int(start), num_frames=int(num_frames))
        np.testing.assert_array_equal(part, whole[start : start + num_frames])
        np.testing.assert_array_equal(open_clip(kept, spec=SPEC, start=int(start)), whole[start:])


def test_frames_that_are_not_there_are_refused() -> None:
    kept = keep_clip(chord(1_000), spec=SPEC)
    for start, num_frames in ((0, 1_001), (1_000, 1), (1_001, 0), (1_001, None), (2**40, 5)):
        error = refused(kept, start=start, num_frames=num_frames)
        assert error.reason == "truncated"
        assert "1,000 frames; expected" in str(error)


@pytest.mark.parametrize(
    ("rate", "channels", "kind", "message"),
    [
        (8_000, 1, "FLAC", "FLAC of 1 channels at 8000 Hz; expected mono FLAC at 16000 Hz"),
        (16_000, 2, "FLAC", "FLAC of 2 channels at 16000 Hz; expected mono FLAC"),
        (16_000, 1, "WAV", "WAV of 1 channels at 16000 Hz; expected mono FLAC"),
    ],
)
def test_other_clips_than_are_kept_are_refused(rate: int, channels: int, kind: str, message: str) -> None:
    file = io.BytesIO()
    soundfile.write(file, np.zeros((500, channels), np.int16), rate, format=kind)
    error = refused(file.getvalue())
    assert message in str(error)
    assert error.reason == "corrupt"


def test_an_empty_clip_is_refused() -> None:
    """No clip without frames is ever loaded, and no bytes are no FLAC."""
    assert refused(b"").reason == "corrupt"
    with pytest.raises(DecodeError, match="no audio frames"):
        decode_audio(np.zeros(0, np.int16), spec=SPEC)


def test_a_header_that_promises_billions_of_frames_does_not_fill_the_memory() -> None:
    """No clip is longer than the longest that is kept."""
    kept = bytearray(keep_clip(chord(1_000), spec=SPEC))
    assert int.from_bytes(kept[21:26], "big") & (2**36 - 1) == 1_000  # STREAMINFO, RFC 9639 section 8.2
    kept[22:26] = b"\xff" * 4
    error = refused(bytes(kept))
    assert error.reason == "corrupt"
    assert "4,294,967,295 frames; expected at most 32,000" in str(error)


@pytest.mark.parametrize("target_sr", [1, 99, 8_000, 11_025, 44_100, 65_535, 65_540, 96_000, 192_000, 655_350])
def test_rates_that_flac_holds_are_kept_at_that_rate(target_sr: int) -> None:
    check_flac_rate(target_sr)
    spec = AudioSpec(target_sr, 1_000.0)
    np.testing.assert_array_equal(open_clip(keep_clip(chord(800), spec=spec), spec=spec), chord(800) * SCALE)


@pytest.mark.parametrize("target_sr", [65_536, 96_001, 123_455, 655_349, 655_360, 768_000, 6_000_000])
def test_rates_that_flac_does_not_hold_are_refused_before_anything_is_loaded(target_sr: int) -> None:
    with pytest.raises(ConfigError, match=rf'target_sr={target_sr}: .* take storage="decoded", or a rate up to 65535'):
        check_flac_rate(target_sr)


def test_threads_agree_bit_for_bit() -> None:
    kept = [keep_clip(chord(3_000 + 500 * i), spec=SPEC) for i in range(8)]
    check_threads_agree(lambda each: open_clip(each, spec=SPEC), kept)
    check_threads_agree(
        lambda each: np.frombuffer(keep_clip(np.frombuffer(each[: len(each) // 2 * 2], np.int16), spec=SPEC), np.uint8),
        kept,
    )


def test_without_memfd_a_temporary_file_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = keep_clip(chord(3_000), spec=SPEC)
    monkeypatch.delattr("os.memfd_create")
    assert keep_clip(chord(3_000), spec=SPEC) == kept
    np.testing.assert_array_equal(open_clip(kept, spec=SPEC, start=100), chord(3_000)[100:] * SCALE)


FUZZ = """
import pathlib
import numpy as np
from in_memory_datasets.decode import keep_clip, open_clip
from in_memory_datasets.errors import DecodeError
from in_memory_datasets.schema import REASONS, AudioSpec
from tests.making import damage
draw, spec = np.random.default_rng(0), AudioSpec(8_000, 2.0)
clip = (9_000 * np.sin(np.arange(9_000) / 9) + draw.normal(0, 200, 9_000)).astype(np.int16)
kept = keep_clip(clip, spec=spec)
num_refused = 0
for number in range(4_000):
    data = damage(kept, draw)
    start = int(draw.integers(0, 9_000))
    for part in ((0, 9_000), (start, int(draw.integers(1, 9_001 - start))), (start, None)):
        try:
            opened = open_clip(data, spec=spec, start=part[0], num_frames=part[1])
            assert opened.dtype == np.float32 and opened.ndim == 1
            assert len(opened) <= spec.max_frames if part[1] is None else len(opened) == part[1]
        except DecodeError as error:
            assert error.reason in REASONS
            num_refused += 1
# not ru_maxrss, which a process takes over from the one that started it
most_kib = int(pathlib.Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])
print(num_refused, most_kib // 1024)
"""


@pytest.mark.campaign
def test_four_thousand_damaged_clips_are_refused_or_have_the_right_length() -> None:
    """In a process of its own, which a crash would end; in little memory, whatever a header promises."""
    done = subprocess.run([sys.executable, "-c", FUZZ], capture_output=True, text=True, check=False, timeout=150)
    assert done.returncode == 0, done.stderr
    num_refused, most_mib = map(int, done.stdout.split())
    assert 4_000 < num_refused < 12_000
    assert most_mib < 500
