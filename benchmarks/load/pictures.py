"""Pictures like those of the web, all of them different, drawn once: JPEG files, and what each looks like at 224×224.

A picture is one of the demonstration's scenes over soft colours, under a texture whose power falls with frequency as
that of photographs does, so that a file has the size and the decoder the work that photographs give them.
"""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import random
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.load.checking import SIDE, SMALL_SIDE, Pictures, name_of
from demo.scenes import draw_scene, render_scene

# Raised when other pictures would be drawn.
_VERSION = 1
_SIZES = [(500, 375), (500, 333), (375, 500), (640, 480), (640, 427), (480, 640), (800, 600), (800, 533), (1024, 768)]
_WEIGHTS = [22, 14, 10, 18, 10, 6, 10, 6, 4]
_SHARE_FULL_COLOUR, _SHARE_PROGRESSIVE = 0.12, 0.03
_TEXTURE_SIDE, _NUM_TEXTURES = 1536, 3
# Of 1/f noise: what makes files of these sizes as large as those of photographs.
_ROUGHNESS = (14.0, 30.0)


def make_pictures(num_pictures: int, build: Path, *, small: bool = False) -> Pictures:
    """Draw pictures, unless they are there: like photographs, or small ones that cost next to nothing to decode."""
    kind = "small" if small else "photos"
    directory = build / "load" / f"{kind}-{num_pictures}"
    done = directory / "sizes.json"
    if done.exists():
        kept = json.loads(done.read_text())
        if kept["version"] == _VERSION:
            return Pictures(directory, [tuple(size) for size in kept["sizes"]])
    print(f"drawing {num_pictures:,} {kind} into {directory} …", flush=True)
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    side = SMALL_SIDE if small else SIDE
    references = np.lib.format.open_memmap(
        directory / "references.npy", mode="w+", dtype=np.uint8, shape=(num_pictures, side, side, 3)
    )
    draw = _draw_small if small else _draw_photo
    jobs = [(draw, directory, i, side) for i in range(num_pictures)]
    sizes = []
    with multiprocessing.get_context("spawn").Pool(os.cpu_count()) as pool:
        for i, (size, reference) in enumerate(pool.imap(_make, jobs, chunksize=16)):
            sizes.append(size)
            references[i] = reference
    references.flush()
    done.write_text(json.dumps({"version": _VERSION, "sizes": sizes}))
    os.sync()  # or the disk goes on writing while things are measured
    return Pictures(directory, sizes)


def _make(job: tuple[Any, Path, int, int]) -> tuple[tuple[int, int], NDArray[np.uint8]]:
    draw, directory, i, side = job
    body = draw(i)
    (directory / name_of(i)).write_bytes(body)
    picture = Image.open(io.BytesIO(body))
    return picture.size, np.asarray(picture.convert("RGB").resize((side, side), Image.Resampling.BICUBIC))


def _draw_photo(i: int) -> bytes:
    vary = random.Random(f"photo {i}")
    width, height = vary.choices(_SIZES, _WEIGHTS)[0]
    knots = np.random.default_rng([1, i]).integers(0, 200, (4, 5, 3)).astype(np.uint8)
    ground = Image.fromarray(knots).resize((width, height), Image.Resampling.BICUBIC)
    scene = Image.open(io.BytesIO(render_scene(draw_scene(i), i, image_format="PNG")))
    picture = Image.blend(ground, scene.resize((width, height), Image.Resampling.BICUBIC), 0.5)
    texture = _textures()[vary.randrange(_NUM_TEXTURES)]
    left, top = vary.randrange(_TEXTURE_SIDE - width), vary.randrange(_TEXTURE_SIDE - height)
    # The larger a photograph of the web, the smoother it is from one pixel to the next.
    roughness = vary.uniform(*_ROUGHNESS) * (500 * 375 / (width * height)) ** 0.25
    grain = texture[top : top + height, left : left + width, None] * np.float32(roughness)
    pixels = np.clip(np.asarray(picture, np.float32) + grain, 0, 255).astype(np.uint8)
    draw = vary.random()
    return _encode(
        pixels,
        quality=vary.randint(85, 92),
        subsampling="4:4:4" if draw < _SHARE_FULL_COLOUR else "4:2:0",
        progressive=draw > 1 - _SHARE_PROGRESSIVE,
    )


def _draw_small(i: int) -> bytes:
    draw = np.random.default_rng([2, i])
    knots = draw.integers(0, 255, (6, 6, 3)).astype(np.uint8)
    return _encode(np.asarray(Image.fromarray(knots).resize((SMALL_SIDE, SMALL_SIDE))), quality=85)


def _encode(pixels: NDArray[np.uint8], **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", **options)
    return file.getvalue()


@cache
def _textures() -> list[NDArray[np.float32]]:
    """Make a few large patches of 1/f noise, of mean 0 and deviation 1, from which each picture cuts a piece."""
    frequencies = np.hypot(np.fft.fftfreq(_TEXTURE_SIDE)[:, None], np.fft.rfftfreq(_TEXTURE_SIDE)[None])
    frequencies[0, 0] = np.inf
    textures = []
    for number in range(_NUM_TEXTURES):
        noise = np.fft.rfft2(np.random.default_rng([3, number]).standard_normal((_TEXTURE_SIDE, _TEXTURE_SIDE)))
        texture = np.fft.irfft2(noise / frequencies, s=(_TEXTURE_SIDE, _TEXTURE_SIDE))
        textures.append((texture / texture.std()).astype(np.float32))
    return textures
