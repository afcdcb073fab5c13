"""Pictures of one shape each, with captions that are true of them."""

from __future__ import annotations

import functools
import io
import random
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

COLOURS = {
    "red": (214, 40, 40),
    "orange": (245, 130, 30),
    "yellow": (245, 215, 60),
    "green": (50, 160, 70),
    "blue": (40, 90, 200),
    "purple": (130, 60, 170),
    "brown": (115, 75, 45),
    "black": (25, 25, 25),
}
BACKGROUNDS = {"white": (244, 244, 240), "grey": (168, 168, 168), "pink": (245, 190, 205), "pale blue": (185, 215, 240)}
SHAPES = ("circle", "square", "triangle", "cross", "star", "ring")
SIZES = {"small": 0.13, "large": 0.24}
# The centre of each place, as shares of width and height.
PLACES = {
    "in the upper left": (0.28, 0.28),
    "in the upper right": (0.72, 0.28),
    "in the middle": (0.5, 0.5),
    "in the lower left": (0.28, 0.72),
    "in the lower right": (0.72, 0.72),
}
PHRASES = (
    "a {size} {colour} {shape} {place} on a {background} background",
    "{place}, a {size} {shape} in {colour}; the background is {background}",
    "a {background} picture with a {size} {colour} {shape} {place}",
)
# The quick settings of each format: a server that draws while it is measured must not take the processor.
_ENCODER_OPTIONS = {"JPEG": {"quality": 88}, "PNG": {"compress_level": 1}, "WEBP": {"quality": 88, "method": 0}}
_GRAIN_SIDE = 512
NUM_SCENES = len(COLOURS) * len(BACKGROUNDS) * len(SHAPES) * len(SIZES) * len(PLACES)


@dataclass(frozen=True, slots=True)
class Scene:
    """What a picture shows."""

    shape: str
    colour: str
    size: str
    place: str
    background: str
    phrase: int

    @property
    def caption(self) -> str:
        """Say what the picture shows."""
        return PHRASES[self.phrase].format(
            shape=self.shape, colour=self.colour, size=self.size, place=self.place, background=self.background
        )


def draw_scene(index: int, *, seed: int = 0) -> Scene:
    """Choose what picture `index` shows; the first `NUM_SCENES` pictures all differ in what they show."""
    number = _order(seed)[index % NUM_SCENES]
    values = []
    for choices in (tuple(COLOURS), tuple(BACKGROUNDS), SHAPES, tuple(SIZES), tuple(PLACES)):
        number, choice = divmod(number, len(choices))
        values.append(choices[choice])
    colour, background, shape, size, place = values
    return Scene(shape, colour, size, place, background, random.Random(f"{seed} {index}").randrange(len(PHRASES)))


@functools.cache
def _order(seed: int) -> list[int]:
    order = list(range(NUM_SCENES))
    random.Random(seed).shuffle(order)
    return order


def render_scene(scene: Scene, index: int, *, seed: int = 0, image_format: str = "JPEG") -> bytes:
    """Paint a scene as a photo-sized picture with a little noise, and encode it.

    Position, size and shade vary a little with (seed, index), within what the caption says.
    """
    vary = random.Random(f"paint {seed} {index}")
    width, height = vary.choice([(320, 240), (300, 300), (256, 340), (384, 256)])
    image = Image.new("RGB", (width, height), BACKGROUNDS[scene.background])
    x, y = PLACES[scene.place]
    x, y = (x + vary.uniform(-0.05, 0.05)) * width, (y + vary.uniform(-0.05, 0.05)) * height
    radius = SIZES[scene.size] * min(width, height) * vary.uniform(0.92, 1.08)
    _paint(ImageDraw.Draw(image), scene.shape, x, y, radius, COLOURS[scene.colour], BACKGROUNDS[scene.background])
    image = image.filter(ImageFilter.GaussianBlur(0.7))
    left, top = vary.randrange(_GRAIN_SIDE - width), vary.randrange(_GRAIN_SIDE - height)
    grain = _grain()[top : top + height, left : left + width]
    pixels = np.clip(np.asarray(image, np.int16) + grain, 0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, image_format, **_ENCODER_OPTIONS[image_format])
    return file.getvalue()


@functools.cache
def _grain() -> NDArray[np.int16]:
    # One patch of noise, cut out anywhere: fresh noise would cost as much as the rest of a picture.
    return np.random.default_rng(0).normal(0, 5, (_GRAIN_SIDE, _GRAIN_SIDE, 1)).astype(np.int16)


def _paint(
    draw: ImageDraw.ImageDraw,
    shape: str,
    x: float,
    y: float,
    radius: float,
    colour: tuple[int, int, int],
    background: tuple[int, int, int],
) -> None:
    box = (x - radius, y - radius, x + radius, y + radius)
    if shape in ("circle", "ring"):
        draw.ellipse(box, fill=colour)
        if shape == "ring":
            hole = radius * 0.55
            draw.ellipse((x - hole, y - hole, x + hole, y + hole), fill=background)
    elif shape == "square":
        draw.rectangle(box, fill=colour)
    elif shape == "cross":
        arm = radius * 0.35
        draw.rectangle((x - radius, y - arm, x + radius, y + arm), fill=colour)
        draw.rectangle((x - arm, y - radius, x + arm, y + radius), fill=colour)
    else:
        num_points = 3 if shape == "triangle" else 10
        points = []
        for i in range(num_points):
            reach = radius * (0.42 if shape == "star" and i % 2 else 1.15)
            angle = 2 * np.pi * i / num_points - np.pi / 2
            points.append((x + reach * np.cos(angle), y + reach * np.sin(angle)))
        draw.polygon(points, fill=colour)
