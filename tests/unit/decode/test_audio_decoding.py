"""decode_audio: every format, rate, channel count and object; every refusal."""

import io
import struct
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import soxr

from in_memory_datasets.decode import decode_audio
from in_memory_datasets.decode.audio_formats import extension, looks_like_text, sniff_audio
from in_memory_datasets.errors import DecodeError, MissingExtraError
from in_memory_datasets.schema import AudioSpec
from tests.lacking import needed_package
from tests.making import check_threads_agree

SPEC = AudioSpec(target_sr=16_000, max_duration=30.0)


def chord(seconds=1.0, rate=44_100, channels=1):
    """Give tones that differ per channel, float32, shape (num_frames, channels)."""
    time = np.arange(round(seconds * rate)) / rate
    tones = [0.4 * np.sin(2 * np.pi * 220 * (1 + channel) * time) for channel in range(channels)]
    return np.stack(tones, axis=1).astype(np.float32)


def encoded(frames, rate=44_100, kind="WAV", subtype=None):
    buffer = io.BytesIO()
    soundfile.write(buffer, frames, rate, format=kind, subtype=subtype)
    return buffer.getvalue()


def reference(data, target_sr=16_000):
    frames, rate = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
    mono = frames.mean(axis=1)
    return np.clip(mono if rate == target_sr else soxr.resample(mono, rate, target_sr, quality="HQ"), -1, 1)


def refused(data, *, spec=SPEC, **options):
    with pytest.raises(DecodeError) as caught:
        decode_audio(data, spec=spec, **options)
    return caught.value


FORMATS = [
    ("WAV", "PCM_16"), ("WAV", "PCM_24"), ("WAV", "FLOAT"), ("WAV", "ULAW"), ("WAV", "IMA_ADPCM"), ("FLAC", None),
    ("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", None), ("AIFF", None), ("AU", None), ("CAF", None), ("W64", None),
    ("RF64", None),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "subtype"), FORMATS)
def test_every_format_equals_soundfile_and_soxr(kind, subtype):
    data = encoded(chord(channels=2, rate=48_000), 48_000, kind, subtype)
    result = decode_audio(data, spec=SPEC)
    assert result.dtype == np.float32
    assert result.flags.c_contiguous
    assert result.flags.owndata
    np.testing.assert_allclose(result, reference(data), atol=1e-6)


@pytest.mark.parametrize("channels", [1, 2, 3, 6, 17])
def test_any_channel_count_is_averaged(channels):
    frames = chord(channels=channels, rate=16_000)
    data = encoded(frames, 16_000, subtype="FLOAT")
    np.testing.assert_allclose(decode_audio(data, spec=SPEC), frames.mean(axis=1), atol=1e-6)


@pytest.mark.parametrize("rate", [8_000, 11_025, 16_000, 22_050, 44_100, 48_000, 96_000, 192_000])
@pytest.mark.parametrize("target_sr", [8_000, 16_000, 48_000])
def test_a_cut_clip_equals_the_beginning_of_the_whole_clip(rate, target_sr):
    data = encoded(chord(seconds=3.0, rate=rate), rate, subtype="FLOAT")
    cut = decode_audio(data, spec=AudioSpec(target_sr, max_duration=1.1))
    assert cut.shape == (round(1.1 * target_sr),)
    np.testing.assert_allclose(cut, reference(data, target_sr)[: cut.size], atol=2e-6)


def test_frames_past_the_longest_duration_are_not_decoded():
    """Damage beyond the kept part is never seen."""
    data = bytearray(encoded(np.random.default_rng(0).normal(0, 0.1, (441_000, 1)), kind="FLAC"))
    data[-2_000:] = bytes(2_000)
    assert refused(bytes(data)).reason == "corrupt"
    assert decode_audio(bytes(data), spec=AudioSpec(16_000, 2.0)).shape == (32_000,)


def test_int16_is_rounded_and_clipped():
    frames = np.array([[0.5], [-1.0], [1.0], [2.0], [-3.0], [1 / 65_536 + 1e-6]], np.float32)
    data = encoded(frames, 16_000, subtype="FLOAT")
    result = decode_audio(data, spec=AudioSpec(16_000, 1.0, "int16"))
    assert result.tolist() == [16_384, -32_768, 32_767, 32_767, -32_768, 1]
    assert decode_audio(data, spec=SPEC)[3:5].tolist() == [1.0, -1.0]


def test_int16_wav_survives_bit_for_bit():
    values = np.random.default_rng(1).integers(-32_768, 32_768, 5_000, dtype=np.int16)
    spec = AudioSpec(16_000, 1.0, "int16")
    assert (decode_audio(encoded(values, 16_000), spec=spec) == values).all()


def test_nan_is_silence_and_infinity_is_loud():
    frames = np.array([0.1, np.nan, np.inf, -np.inf, 1e38, 0.2], np.float32)
    expected = np.array([0.1, 0.0, 1.0, -1.0, 1.0, 0.2], np.float32)
    np.testing.assert_allclose(decode_audio(encoded(frames, 16_000, subtype="FLOAT"), spec=SPEC), expected)
    assert np.isfinite(decode_audio(encoded(frames, 44_100, subtype="FLOAT"), spec=SPEC)).all()


def wav_promising(num_bytes, frames):
    body = (frames * 32_767).astype("<i2").tobytes()
    fmt = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, 16_000, 32_000, 2, 16)
    return (
        b"RIFF"
        + struct.pack("<I", min(num_bytes, 2**32 - 1))
        + b"WAVE"
        + fmt
        + b"data"
        + struct.pack("<I", num_bytes)
        + body
    )


def test_a_header_that_promises_four_gigabytes_gives_what_is_there():
    result = decode_audio(wav_promising(2**32 - 1, chord(rate=16_000)), spec=AudioSpec(16_000, 100_000.0))
    assert result.shape == (16_000,)


@pytest.mark.parametrize("kind", ["WAV", "OGG", "MP3", "AIFF", "AU"])
def test_a_clip_cut_short_gives_what_soundfile_decodes(kind):
    data = encoded(np.random.default_rng(0).normal(0, 0.1, (132_300, 1)), kind=kind)
    data = data[: len(data) // 2]
    result = decode_audio(data, spec=SPEC)
    assert 12_000 < result.size < 32_000
    np.testing.assert_allclose(result, reference(data), atol=1e-6)


def test_long_clips_read_in_several_blocks_equal_one_read(monkeypatch):
    data = encoded(chord(2.0, channels=2), kind="FLAC")
    whole = decode_audio(data, spec=SPEC)
    monkeypatch.setattr("in_memory_datasets.decode.soundfile_clips._BLOCK_VALUES", 5_001)
    assert (decode_audio(data, spec=SPEC) == whole).all()


def test_without_memfd_a_temporary_file_serves(monkeypatch):
    data = encoded(chord(), kind="FLAC")
    expected = decode_audio(data, spec=SPEC)
    monkeypatch.delattr("os.memfd_create")
    assert (decode_audio(data, spec=SPEC) == expected).all()


def test_the_name_is_a_hint_for_headerless_gsm():
    frames, rate = chord(2.0, 8_000), 8_000
    buffer = io.BytesIO()
    soundfile.write(buffer, frames, rate, format="RAW", subtype="GSM610")
    data = buffer.getvalue()
    result = decode_audio(data, spec=AudioSpec(8_000, 30.0), name="https://a.example/prompt.gsm?x=1")
    assert abs(result.size - frames.size) <= 160
    assert refused(data).reason == "not_media"


def test_the_name_is_no_proof():
    assert decode_audio(encoded(chord()), spec=SPEC, name="song.gsm").shape == (16_000,)
    assert refused(b"<html>404</html>" * 20, name="song.gsm").reason == "not_media"
    assert refused(b"<html>404</html>" * 20, name="song.g722").reason == "not_media"
    assert refused(bytes(range(256)) * 4, name="song.wav").reason == "not_media"


def pyav_encoded(container, codec, frames, rate, layout):
    """Encode frames in their packed form; PyAV's planar arrays end at eight channels."""
    av = needed_package("av")
    buffer = io.BytesIO()
    clip = av.AudioFrame(format="flt", layout=layout, samples=len(frames))
    clip.planes[0].update(np.ascontiguousarray(frames))
    clip.sample_rate = rate
    with av.open(buffer, "w", format=container) as output:
        stream = output.add_stream(codec, rate=rate, layout=layout)
        stream.bit_rate = 128_000
        resampler = av.AudioResampler(format=stream.codec_context.format, layout=layout, rate=rate)
        for part in (*resampler.resample(clip), None):
            for packet in stream.encode(part):
                output.mux(packet)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("container", "codec", "rate", "name"),
    [
        ("ipod", "aac", 44_100, ""),
        ("adts", "aac", 48_000, ""),
        ("webm", "libopus", 48_000, ""),
        ("asf", "wmav2", 44_100, ""),
        ("g722", "g722", 16_000, "prompt.g722"),
        ("wv", "wavpack", 44_100, ""),
    ],
)
def test_what_libsndfile_cannot_read_comes_from_pyav(container, codec, rate, name):
    needed_package("av")
    frames = chord(2.0, rate, channels=1 if codec == "g722" else 2)
    data = pyav_encoded(container, codec, frames, rate, "mono" if codec == "g722" else "stereo")
    result = decode_audio(data, spec=SPEC, name=name)
    expected = soxr.resample(frames.mean(axis=1), rate, 16_000, quality="HQ")
    assert abs(result.size - 32_000) < 2_500  # AAC pads to whole frames
    # Codecs shift; the best of the plausible shifts must fit.
    best = max(np.corrcoef(result[at : at + 24_000], expected[2_000:26_000])[0, 1] for at in range(500, 5_000))
    assert best > 0.98
    assert decode_audio(data, spec=AudioSpec(16_000, 0.5), name=name).shape == (8_000,)


@pytest.mark.parametrize("layout", ["5.1", "7.1", "hexadecagonal"])
def test_eight_channels_and_more_do_not_end_the_process(layout):
    """PyAV's array of a planar frame reads past the last of eight channel pointers."""
    av = needed_package("av")
    frames = chord(1.0, 16_000, channels=av.AudioLayout(layout).nb_channels)
    data = pyav_encoded("wv", "wavpack", frames, 16_000, layout)
    np.testing.assert_allclose(decode_audio(data, spec=SPEC), frames.mean(axis=1), atol=1 / 128)  # 8 bits


WITHOUT_PYAV = [
    (b"\0\0\0\x20ftypM4A \0\0\0\0" + bytes(100), ""),
    (b"\x1a\x45\xdf\xa3" + bytes(100), ""),
    (b"\xff\xf1\x50\x80" + bytes(100), ""),
    (b"ID3\4\0\0\0\0\0\0" + b"\xff\xf1\x50\x80" + bytes(100), ""),
    (bytes.fromhex("3026b2758e66cf11") + bytes(100), ""),
    (b"\xfa\xde\xb4\xba" * 50, "prompt.g722"),
]


@pytest.mark.parametrize(("data", "name"), WITHOUT_PYAV)
def test_without_pyav_its_formats_are_refused_with_the_command_that_helps(monkeypatch, data, name):
    monkeypatch.setitem(sys.modules, "av", None)
    error = refused(data, name=name)
    assert error.reason == "missing_extra"
    assert "pip install 'in-memory-datasets[audio]'" in str(error)
    assert isinstance(error.__cause__, MissingExtraError)
    assert error.__cause__.extra == "audio"


@pytest.mark.parametrize(("data", "name"), WITHOUT_PYAV[:-1])  # any bytes are G.722
def test_with_pyav_a_mere_beginning_is_corrupt(data, name):
    needed_package("av")
    assert refused(data, name=name).reason in ("corrupt", "not_media", "empty")


def test_a_playlist_in_a_clips_clothes_opens_nothing(tmp_path):
    """FFmpeg would follow the URLs and paths of an HLS or concat list."""
    target = tmp_path / "secret.wav"
    target.write_bytes(encoded(chord()))
    for text in (f"#EXTM3U\n#EXTINF:10,\nfile://{target}\n", f"ffconcat version 1.0\nfile '{target}'\n"):
        for name in ("list.m3u8", "song.g722", "song.mp3", "song.aac"):
            assert refused(text.encode(), name=name).reason == "not_media"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (encoded(np.zeros((0, 1)), 16_000), "empty"),
        (b"<!DOCTYPE html><html></html>", "not_media"),
        (bytes(1_000), "not_media"),
        (object(), "not_media"),
        ("a string", "not_media"),
        ({"array": [0.0]}, "not_media"),
        ({"array": np.zeros((2, 2, 2)), "sampling_rate": 8_000}, "corrupt"),
        ({"array": np.zeros(5), "sampling_rate": 0}, "corrupt"),
        ({"array": np.zeros(5), "sampling_rate": "fast"}, "corrupt"),
        ({"array": np.zeros(5), "sampling_rate": None}, "corrupt"),
        ({"array": None, "sampling_rate": 8_000}, "not_media"),
        ({"array": np.array(["a"]), "sampling_rate": 8_000}, "corrupt"),
        ({"array": np.zeros(0), "sampling_rate": 8_000}, "empty"),
        ({"array": np.zeros((2, 0)), "sampling_rate": 8_000}, "empty"),
        (b"RIFF\x24\0\0\0WAVEfmt ", "corrupt"),
        (encoded(np.zeros((1, 1)), 192_000), "empty"),
    ],
)
def test_what_is_no_clip_is_refused_with_a_reason(data, reason):
    assert refused(data).reason == reason


def test_a_rate_of_a_few_hertz_does_not_fill_the_memory():
    data = bytearray(wav_promising(20_000, chord(rate=10_000)))
    data[24:28] = (1).to_bytes(4, "little")
    assert refused(bytes(data)).reason == "corrupt"


@pytest.mark.parametrize("shape", ["(num_frames,)", "(channels, frames)", "(frames, channels)"])
@pytest.mark.parametrize("dtype", ["float32", "float64", "int16", "int32"])
def test_arrays_of_every_shape_and_type_are_clips(shape, dtype):
    frames = chord(rate=48_000, channels=1 if shape == "(num_frames,)" else 2)
    expected = soxr.resample(frames.mean(axis=1), 48_000, 16_000, quality="HQ")
    array = frames if dtype.startswith("float") else frames * np.iinfo(dtype).max
    array = {"(num_frames,)": array[:, 0], "(channels, frames)": array.T, "(frames, channels)": array}[shape].astype(
        dtype
    )
    result = decode_audio({"array": array, "sampling_rate": 48_000}, spec=SPEC)
    np.testing.assert_allclose(result, expected, atol=1e-4)


def test_a_bare_array_is_taken_to_be_at_the_target_rate_and_is_left_alone():
    array = np.array([0.5, np.nan, 2.0], np.float32)
    kept = array.copy()
    assert decode_audio(array, spec=SPEC).tolist() == [0.5, 0.0, 1.0]
    np.testing.assert_array_equal(array, kept)


def test_tensors_lists_and_decoder_objects_are_clips():
    import torch

    frames = torch.from_numpy(chord(rate=16_000, channels=2).T.copy())
    expected = frames.numpy().mean(axis=0)
    samples = SimpleNamespace(data=frames, sample_rate=16_000)
    asked = []

    def played_in_range(start, stop):
        asked.append((start, stop))
        return samples

    whole = SimpleNamespace(get_all_samples=lambda: samples)
    partial = SimpleNamespace(
        get_all_samples=None, get_samples_played_in_range=played_in_range, metadata=SimpleNamespace(sample_rate=16_000)
    )
    for given in ({"array": frames, "sampling_rate": 16_000}, frames, whole, partial, frames.tolist()):
        np.testing.assert_allclose(decode_audio(given, spec=SPEC), expected, atol=1e-6)
    assert asked == [(0.0, 30.0)]


def test_threads_agree_bit_for_bit():
    data = [encoded(chord(1.0 + i / 10, channels=2), kind=kind) for i, kind in enumerate(["WAV", "FLAC", "OGG", "MP3"])]
    check_threads_agree(lambda each: decode_audio(each, spec=SPEC), data)


def test_a_damaged_header_prints_nothing():
    """With a BytesIO, libsndfile's seek before the beginning would end as a traceback on stderr."""
    script = (
        "import sys; from in_memory_datasets.decode import decode_audio;"
        "from in_memory_datasets.errors import DecodeError; from in_memory_datasets.schema import AudioSpec\n"
        "try: decode_audio(sys.stdin.buffer.read(), spec=AudioSpec())\n"
        "except DecodeError as error: print(error.reason)\n"
    )
    data = encoded(chord(), kind="AIFF")[:40]
    done = subprocess.run([sys.executable, "-c", script], input=data, capture_output=True, check=True)
    assert done.stderr == b""
    assert done.stdout == b"corrupt\n"


def test_sniffing_reads_marks_first_and_names_last():
    assert sniff_audio(b"OggS", "x.mp3").name == "Ogg"
    assert sniff_audio(b"\xff\xfb\x90\0", "").demuxer == "mp3"
    assert sniff_audio(b"ID3\4\0\0\0\0\0\0", "").demuxer == "mp3"
    assert sniff_audio(b"\0" * 8, "x.mp3").demuxer == "mp3"
    assert sniff_audio(b"\0" * 8, "x") is None
    assert extension("a.b/c") == ""
    assert looks_like_text("naïve café".encode()[:4])
    assert looks_like_text(b"<p>caf\xe9 au lait</p>")
    assert not looks_like_text(b"\xfa\xde\xb4\xba")
