"""Captions of the demonstration pictures are true of their pixels."""

from __future__ import annotations

import io

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from demo.scenes import BACKGROUNDS, COLOURS, NUM_SCENES, PLACES, SIZES, Scene, draw_scene, render_scene

PALETTE = {**COLOURS, **{f"{name} background": colour for name, colour in BACKGROUNDS.items()}}
# How much of its own box each shape fills; a ring and a cross are told apart by their centres.
FILLED = {
    "circle": (0.70, 0.85),
    "square": (0.90, 1.0),
    "triangle": (0.42, 0.60),
    "cross": (0.50, 0.68),
    "star": (0.22, 0.42),
    "ring": (0.45, 0.65),
}


def pixels_of(scene: Scene, index: int, image_format: str = "PNG") -> NDArray[np.int64]:
    picture = Image.open(io.BytesIO(render_scene(scene, index, image_format=image_format)))
    return np.asarray(picture.convert("RGB"), np.int64)


def nearest_names(pixels: NDArray[np.int64]) -> NDArray[np.str_]:
    """Name each pixel by the nearest colour of the palette."""
    distances = ((pixels[..., None, :] - np.array(list(PALETTE.values()))) ** 2).sum(-1)
    return np.array(list(PALETTE))[distances.argmin(-1)]


@pytest.mark.parametrize("index", range(60))
def test_a_caption_is_true_of_its_picture(index: int) -> None:
    """The named colour lies in the named place, in the named size and shape, on the named background."""
    scene = draw_scene(index)
    pixels = pixels_of(scene, index)
    height, width, _ = pixels.shape
    names = nearest_names(pixels)
    painted = names == scene.colour
    rows, columns = np.nonzero(painted)
    top, bottom, left, right = rows.min(), rows.max() + 1, columns.min(), columns.max() + 1

    centre = np.array([(left + right) / 2 / width, (top + bottom) / 2 / height])
    place = min(PLACES, key=lambda name: float(((centre - PLACES[name]) ** 2).sum()))
    extent = (right - left) / 2 / min(width, height)
    size = min(SIZES, key=lambda name: abs(SIZES[name] - extent))
    low, high = FILLED[scene.shape]
    middle = names[(top + bottom) // 2, (left + right) // 2]
    corners = {str(names[y, x]) for y in (2, -3) for x in (2, -3)}

    assert place == scene.place
    assert size == scene.size
    assert corners == {f"{scene.background} background"}
    assert low <= painted[top:bottom, left:right].mean() <= high
    assert (middle == scene.colour) == (scene.shape != "ring")
    for fact in (scene.shape, scene.colour, scene.size, scene.place, scene.background):
        assert fact in scene.caption


def test_the_same_seed_and_index_give_the_same_picture() -> None:
    """A picture and its caption follow from (seed, index) alone."""
    assert draw_scene(7, seed=3) == draw_scene(7, seed=3)
    assert render_scene(draw_scene(7), 7) == render_scene(draw_scene(7), 7)
    assert [draw_scene(i, seed=0) for i in range(20)] != [draw_scene(i, seed=1) for i in range(20)]


def test_no_two_pictures_show_the_same() -> None:
    """All scenes differ in what they show, so that a caption has one right picture."""
    shown = {(s.shape, s.colour, s.size, s.place, s.background) for s in map(draw_scene, range(NUM_SCENES))}
    assert len(shown) == NUM_SCENES


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP"])
def test_every_format_shows_the_same_scene(image_format: str) -> None:
    """A picture is as large as a photo on the web, and the same in every format but for what compression loses."""
    scene = draw_scene(4)
    pixels = pixels_of(scene, 4, image_format)
    assert 240 <= min(pixels.shape[:2]) <= max(pixels.shape[:2]) <= 384
    assert np.abs(pixels - pixels_of(scene, 4)).mean() < 6


def test_captions_vary_in_wording() -> None:
    """The same kind of fact is said in more than one way."""
    assert len({draw_scene(i).phrase for i in range(50)}) > 1
