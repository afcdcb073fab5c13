"""Real clips equal soundfile and soxr, and every nasty file does what its table says."""

import json
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import soxr

from in_memory_datasets.decode import decode_audio
from in_memory_datasets.errors import DecodeError
from in_memory_datasets.schema import AudioSpec
from tests.lacking import needed_package
from tests.real.tables import check_nasty, read_table

SPEC = AudioSpec(target_sr=16_000, max_duration=30.0)

# Runs in a process of its own, so that its peak memory and its descriptors are the decoder's alone.
DECODE_ALL = """
import json, os, pathlib, sys, warnings
from concurrent.futures import ThreadPoolExecutor
from in_memory_datasets.decode import decode_audio
from in_memory_datasets.errors import DecodeError
from in_memory_datasets.schema import REASONS, AudioSpec
warnings.simplefilter("error")
if sys.argv[2] == "without":
    sys.modules["av"] = None
spec = AudioSpec(16_000, 30.0)
files = sorted(pathlib.Path(sys.argv[1]).iterdir())
def outcome(file):
    try:
        assert 0 < decode_audio(file.read_bytes(), spec=spec, name=file.name).size <= 480_000
        return "decodes"
    except DecodeError as error:
        assert error.reason in REASONS
        return error.reason
before = len(os.listdir("/proc/self/fd"))
with ThreadPoolExecutor(4) as pool:
    outcomes = dict(zip([file.name for file in files], pool.map(outcome, files)))
# not ru_maxrss, which a process takes over from the one that started it
kib = int(pathlib.Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])
print(json.dumps({"outcomes": outcomes, "kib": kib, "descriptors": len(os.listdir("/proc/self/fd")) - before}))
"""


def test_clips_equal_soundfile_and_soxr(corpora):
    rows = [row for row in read_table(corpora / "audio.csv") if row["soundfile_opens"] == "yes"]
    assert rows
    for row in rows:
        path = corpora / "audio" / row["file"]
        result = decode_audio(path.read_bytes(), spec=SPEC, name=row["file"])
        frames, rate = soundfile.read(path, dtype="float32", always_2d=True)
        mono = frames.mean(axis=1)
        resampled = mono if rate == 16_000 else soxr.resample(mono, rate, 16_000, quality="HQ")
        expected = np.clip(resampled, -1, 1)[:480_000]
        assert result.size == expected.size, row["file"]
        noise = np.sum((result - expected) ** 2)
        assert 10 * np.log10(max(np.sum(expected**2), 1e-12) / max(noise, 1e-16)) >= 35, row["file"]


def test_clips_soundfile_cannot_read_come_from_the_extra(corpora):
    needed_package("av")
    rows = [row for row in read_table(corpora / "audio.csv") if row["soundfile_opens"] == "no"]
    assert {row["codec"] for row in rows} >= {"aac", "adpcm_g722", "opus"}
    for row in rows:
        result = decode_audio((corpora / "audio" / row["file"]).read_bytes(), spec=SPEC, name=row["file"])
        assert result.size == pytest.approx(16_000 * float(row["seconds"]), abs=2), row["file"]


def test_clips_soundfile_cannot_read_are_refused_without_the_extra(corpora, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    for row in read_table(corpora / "audio.csv"):
        if row["soundfile_opens"] == "no":
            with pytest.raises(DecodeError, match="pip install") as caught:
                decode_audio((corpora / "audio" / row["file"]).read_bytes(), spec=SPEC, name=row["file"])
            assert caught.value.reason == "missing_extra"


@pytest.mark.parametrize("pyav", ["with", "without"])
def test_every_nasty_clip_does_what_its_table_says(corpora, pyav):
    """No crash, no hang, no leaked descriptor, less than 1 GB, on four threads.

    stderr is not looked at: libsndfile's MP3 decoder, mpg123, prints its notes there and cannot be told not to.
    """
    if pyav == "with":
        needed_package("av")
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-c", DECODE_ALL, str(corpora / "nasty_audio"), pyav],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    check_nasty(json.loads(done.stdout), read_table(corpora / "nasty_audio.csv"))
