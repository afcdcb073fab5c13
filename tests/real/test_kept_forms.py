"""Real photographs and clips, and every nasty one: kept encoded they are served as if they lay decoded."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from in_memory_datasets.decode import decode_audio, keep_clip, open_clip
from in_memory_datasets.errors import DecodeError
from in_memory_datasets.schema import AudioSpec

# Runs in a process of its own, which a crash would end, and where a warning is an error.
KEEP_ALL = """
import json, pathlib, sys, warnings
import numpy as np
from in_memory_datasets.decode import decode_image, keep_image
from in_memory_datasets.errors import DecodeError
from in_memory_datasets.schema import ImageSpec
warnings.simplefilter("error")
specs = [ImageSpec((224, 224)), ImageSpec((300, 200), "pad"), ImageSpec((64, 96), "crop"), ImageSpec((16, 9))]
wrong, forms, num_refused = [], {}, 0
for file in sorted(pathlib.Path(sys.argv[1]).iterdir()):
    data = file.read_bytes()
    for spec in specs:
        try:
            pixels = decode_image(data, spec=spec)
        except DecodeError:
            num_refused += 1
            continue
        kept = keep_image(data, pixels, spec=spec)
        forms[kept[:2].hex()] = forms.get(kept[:2].hex(), 0) + 1
        is_small = len(kept) <= min(len(data), pixels.nbytes + 19)
        if not is_small or not np.array_equal(decode_image(kept, spec=spec), pixels):
            wrong.append([file.name, str(spec)])
        small = keep_image(data, pixels, spec=ImageSpec(spec.image_size, spec.resize, ("jpeg", 85)))
        if len(small) > len(kept) or decode_image(small, spec=spec).shape != pixels.shape:
            wrong.append([file.name, "recompressed", str(spec)])
print(json.dumps({"wrong": wrong, "forms": forms, "num_refused": num_refused}))
"""


@pytest.mark.campaign
@pytest.mark.parametrize("folder", ["images", "nasty_images"])
def test_every_picture_is_served_as_if_it_lay_decoded(corpora: Path, folder: str) -> None:
    """Both forms have the same pixels; what cannot be decoded is kept in neither."""
    done = subprocess.run(
        [sys.executable, "-c", KEEP_ALL, str(corpora / folder)],
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen["wrong"] == []
    assert {"ffd8", "8950"} <= set(seen["forms"])
    assert (seen["num_refused"] > 0) == (folder == "nasty_images")


@pytest.mark.parametrize("target_sr", [16_000, 44_100])
@pytest.mark.parametrize("folder", ["audio", "nasty_audio"])
def test_every_clip_is_served_as_if_it_lay_in_sixteen_bits(corpora: Path, folder: str, target_sr: int) -> None:
    spec, draw, num_kept = AudioSpec(target_sr, 5.0, "int16"), np.random.default_rng(0), 0
    for file in sorted((corpora / folder).iterdir()):
        try:
            clip = decode_audio(file.read_bytes(), spec=spec, name=file.name)
        except DecodeError:
            continue
        kept, expected = keep_clip(clip, spec=spec), clip * np.float32(1 / 32_768)
        assert len(kept) <= clip.nbytes + 8_400, file.name
        np.testing.assert_array_equal(open_clip(kept, spec=spec), expected, file.name)
        start = int(draw.integers(0, len(clip)))
        num_frames = int(draw.integers(0, len(clip) - start + 1))
        part = open_clip(kept, spec=spec, start=start, num_frames=num_frames)
        np.testing.assert_array_equal(part, expected[start : start + num_frames], file.name)
        num_kept += 1
    assert num_kept > 40
