"""Sounds of a few seconds, with captions that are true of them."""

from __future__ import annotations

import functools
import io
import itertools
import random
from dataclasses import dataclass

import numpy as np
import soundfile
from numpy.typing import NDArray

SAMPLING_RATES = (16_000, 22_050, 44_100)
PITCHES_HZ = {"low": 130.0, "middle": 520.0, "high": 2080.0}
LOUDNESS = {"quiet": 0.08, "loud": 0.7}
WAVES = ("sine", "square", "sawtooth")
NOISES = ("white", "brown")
SWEEPS_HZ = {"rising": (200.0, 2400.0), "falling": (2400.0, 200.0)}
BEEPS = {"two": 2, "three": 3, "five": 5}
PHRASES = {
    1: ("{0}", "the sound of {0}", "a recording of {0}"),
    2: ("{0}, then {1}", "first {0}, then {1}", "{0} followed by {1}", "{1} after {0}"),
}
PAUSE_SECONDS = 0.2

Wave = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Event:
    """One thing to be heard.

    Attributes:
        kind: "tone", "beeps", "sweep" or "noise".
        loudness: A key of `LOUDNESS`.
        detail: The wave of a tone, the number of beeps, the direction of a sweep or the colour of a noise, in words.
        pitch: A key of `PITCHES_HZ`; "" where the kind has none.
        seconds: How long it lasts.
    """

    kind: str
    loudness: str
    detail: str
    pitch: str
    seconds: float

    @property
    def description(self) -> str:
        """Say what is to be heard."""
        return {
            "tone": f"a {self.loudness} {self.pitch} {self.detail} tone",
            "beeps": f"{self.detail} {self.loudness} {self.pitch} beeps",
            "sweep": f"a {self.loudness} {self.detail} sweep",
            "noise": f"{self.loudness} {self.detail} noise",
        }[self.kind]


@dataclass(frozen=True, slots=True)
class Sound:
    """What a clip holds: one event, or two in a row.

    Attributes:
        events: In order.
        phrase: Which of `PHRASES` the caption is made with.
    """

    events: tuple[Event, ...]
    phrase: int

    @property
    def caption(self) -> str:
        """Say what is to be heard."""
        phrases = PHRASES[len(self.events)]
        return phrases[self.phrase % len(phrases)].format(*(event.description for event in self.events))

    @property
    def seconds(self) -> float:
        """Say how long it lasts, pause included."""
        return sum(event.seconds for event in self.events) + PAUSE_SECONDS * (len(self.events) - 1)


_KINDS = [
    *(("tone", loudness, wave, pitch) for loudness in LOUDNESS for pitch in PITCHES_HZ for wave in WAVES),
    *(("beeps", loudness, count, pitch) for loudness in LOUDNESS for pitch in PITCHES_HZ for count in BEEPS),
    *(("sweep", loudness, direction, "") for loudness in LOUDNESS for direction in SWEEPS_HZ),
    *(("noise", loudness, colour, "") for loudness in LOUDNESS for colour in NOISES),
]


# One kind alone, or two different ones in a row.
_CONTENTS = [*((kind,) for kind in _KINDS), *itertools.permutations(_KINDS, 2)]
NUM_SOUNDS = len(_CONTENTS)


def draw_sound(index: int, *, seed: int = 0) -> Sound:
    """Choose what clip `index` holds; the first `NUM_SOUNDS` clips all differ in what they hold.

    Example:
        >>> draw_sound(3) == draw_sound(3), draw_sound(3).seconds < 5
        (True, True)
    """
    kinds = _CONTENTS[_order(seed)[index % NUM_SOUNDS]]
    vary = random.Random(f"{seed} {index}")
    longest = 4.0 if len(kinds) == 1 else 2.2
    events = tuple(Event(*kind, vary.uniform(1.0, longest)) for kind in kinds)
    return Sound(events, vary.randrange(12))


@functools.cache
def _order(seed: int) -> list[int]:
    order = list(range(NUM_SOUNDS))
    random.Random(seed).shuffle(order)
    return order


def render_sound(sound: Sound, index: int, *, seed: int = 0, audio_format: str = "WAV") -> bytes:
    """Make a clip at a rate that varies with (seed, index), and encode it; 1 to 4.6 seconds."""
    rate = random.Random(f"rate {seed} {index}").choice(SAMPLING_RATES)
    draw = np.random.default_rng([seed, index])
    parts = [_play(sound.events[0], rate, draw)]
    for event in sound.events[1:]:
        parts += [np.zeros(round(PAUSE_SECONDS * rate)), _play(event, rate, draw)]
    clip = np.concatenate(parts)
    clip += draw.normal(0, 0.002, len(clip))
    file = io.BytesIO()
    soundfile.write(file, clip.astype(np.float32), rate, format=audio_format)
    return file.getvalue()


def _play(event: Event, rate: int, draw: np.random.Generator) -> Wave:
    t = np.arange(round(event.seconds * rate)) / rate
    fade = np.clip(np.minimum(t, t[-1] - t) / 0.02, 0, 1)
    wave: Wave = LOUDNESS[event.loudness] * _make(event, t, draw) * fade
    return wave


def _make(event: Event, t: Wave, draw: np.random.Generator) -> Wave:
    if event.kind == "tone":
        return _tone(event.detail, PITCHES_HZ[event.pitch] * t)
    if event.kind == "beeps":
        on = (t * BEEPS[event.detail] / t[-1]) % 1 < 0.5
        beeps: Wave = _tone("sine", PITCHES_HZ[event.pitch] * t) * on
        return beeps
    if event.kind == "sweep":
        start_hz, stop_hz = SWEEPS_HZ[event.detail]
        return _tone("sine", start_hz * t + (stop_hz - start_hz) * t**2 / (2 * t[-1]))
    return _noise(event.detail, len(t), draw)


def _tone(wave: str, cycles: Wave) -> Wave:
    phase = cycles % 1
    tones: dict[str, Wave] = {
        "sine": np.sin(2 * np.pi * cycles),
        "square": np.where(phase < 0.5, 0.6, -0.6),
        "sawtooth": 1.2 * phase - 0.6,
    }
    return tones[wave]


def _noise(colour: str, num_frames: int, draw: np.random.Generator) -> Wave:
    noise: Wave = draw.normal(0, 0.3, num_frames)
    if colour == "brown":
        noise = np.cumsum(noise)
        noise -= np.linspace(noise[0], noise[-1], num_frames)
        noise /= np.abs(noise).max()
    clipped: Wave = np.clip(noise, -1, 1)
    return clipped
