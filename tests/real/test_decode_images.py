"""Real photographs equal Pillow's, and every nasty file does what its table says."""

import io
import json
import subprocess
import sys
import warnings

import numpy as np
from PIL import Image, ImageOps

from in_memory_datasets.decode import decode_image
from in_memory_datasets.schema import ImageSpec
from tests.real.tables import check_nasty, read_table

SPEC = ImageSpec((224, 224))

# Runs in a process of its own, so that its peak memory, its descriptors and its stderr are the decoder's alone.
DECODE_ALL = """
import json, os, pathlib, sys, threading, warnings
from concurrent.futures import ThreadPoolExecutor
from in_memory_datasets.decode import decode_image
from in_memory_datasets.errors import DecodeError
from in_memory_datasets.schema import REASONS, ImageSpec
warnings.simplefilter("error")
spec = ImageSpec((224, 224))
files = sorted(pathlib.Path(sys.argv[1]).iterdir())
def outcome(file):
    try:
        assert decode_image(file.read_bytes(), spec=spec, name=file.name).shape == (224, 224, 3)
        return "decodes"
    except DecodeError as error:
        assert error.reason in REASONS
        return error.reason
decode_image(bytes.fromhex(sys.argv[2]), spec=spec)
def most_kib():  # not ru_maxrss, which a process takes over from the one that started it
    return int(pathlib.Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])
before = most_kib(), len(os.listdir("/proc/self/fd"))
with ThreadPoolExecutor(4) as pool:
    outcomes = dict(zip([file.name for file in files], pool.map(outcome, files)))
after = most_kib(), len(os.listdir("/proc/self/fd"))
print(json.dumps({"outcomes": outcomes, "kib": after[0] - before[0], "descriptors": after[1] - before[1]}))
"""


def pillows(data):
    """Decode as a careful user of Pillow would."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        picture = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
        if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
            picture = picture.convert("RGBA")
            picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
        return np.asarray(picture.convert("RGB").resize(SPEC.image_size, Image.Resampling.BICUBIC))


def test_photographs_equal_pillows_bicubic_resize(corpora):
    rows = read_table(corpora / "images.csv")
    psnrs = []
    for row in rows:
        data = (corpora / "images" / row["file"]).read_bytes()
        result = decode_image(data, spec=SPEC, name=row["file"])
        error = np.mean((result.astype(np.float32) - pillows(data).astype(np.float32)) ** 2)
        psnrs.append(10 * np.log10(255**2 / max(error, 1e-9)))
    assert len(psnrs) == len(rows) > 0
    assert np.median(psnrs) >= 40
    assert min(psnrs) >= 35


def test_every_nasty_picture_does_what_its_table_says(corpora):
    """No crash, no hang, no stray output, no leaked descriptor, less than 1 GB, on four threads."""
    pixel = io.BytesIO()
    Image.new("RGB", (1, 1)).save(pixel, "PNG")
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-c", DECODE_ALL, str(corpora / "nasty_images"), pixel.getvalue().hex()],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    check_nasty(json.loads(done.stdout), read_table(corpora / "nasty_images.csv"))
