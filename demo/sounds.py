"""Sounds of a few seconds, with captions that are true of them."""

from __future__ import annotations

import io
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
PHRASES = ("{what}", "the sound of {what}", "a recording of {what}")

Wave = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Sound:
    """What a clip holds.

    Attributes:
        kind: "tone", "beeps", "sweep" or "noise".
        loudness: A key of `LOUDNESS`.
        detail: The wave of a tone, the number of beeps, the direction of a sweep or the colour of a noise, in words.
        pitch: A key of `PITCHES_HZ`; "" where the kind has none.
        seconds: How long it lasts.
        phrase: Which of `PHRASES` the caption is made with.
    """

    kind: str
    loudness: str
    detail: str
    pitch: str
    seconds: float
    phrase: int

    @property
    def caption(self) -> str:
        """Say what is to be heard."""
        what = {
            "tone": f"a {self.loudness} {self.pitch} {self.detail} tone",
            "beeps": f"{self.detail} {self.loudness} {self.pitch} beeps",
            "sweep": f"a {self.loudness} {self.detail} sweep",
            "noise": f"{self.loudness} {self.detail} noise",
        }[self.kind]
        return PHRASES[self.phrase].format(what=what)


_KINDS = [
    *(("tone", loudness, wave, pitch) for loudness in LOUDNESS for pitch in PITCHES_HZ for wave in WAVES),
    *(("beeps", loudness, count, pitch) for loudness in LOUDNESS for pitch in PITCHES_HZ for count in BEEPS),
    *(("sweep", loudness, direction, "") for loudness in LOUDNESS for direction in SWEEPS_HZ),
    *(("noise", loudness, colour, "") for loudness in LOUDNESS for colour in NOISES),
]


def draw_sound(index: int, *, seed: int = 0) -> Sound:
    """Choose what clip `index` holds."""
    order = list(range(len(_KINDS)))
    random.Random(seed).shuffle(order)
    vary = random.Random(f"{seed} {index}")
    return Sound(*_KINDS[order[index % len(order)]], vary.uniform(1.0, 5.0), vary.randrange(len(PHRASES)))


def render_sound(sound: Sound, index: int, *, seed: int = 0, audio_format: str = "WAV") -> bytes:
    """Make a clip at a rate that varies with (seed, index), and encode it."""
    rate = random.Random(f"rate {seed} {index}").choice(SAMPLING_RATES)
    t = np.arange(round(sound.seconds * rate)) / rate
    fade = np.clip(np.minimum(t, t[-1] - t) / 0.02, 0, 1)
    draw = np.random.default_rng([seed, index])
    clip = LOUDNESS[sound.loudness] * _make(sound, t, draw) * fade + draw.normal(0, 0.002, len(t))
    file = io.BytesIO()
    soundfile.write(file, clip.astype(np.float32), rate, format=audio_format)
    return file.getvalue()


def _make(sound: Sound, t: Wave, draw: np.random.Generator) -> Wave:
    if sound.kind == "tone":
        return _tone(sound.detail, PITCHES_HZ[sound.pitch] * t)
    if sound.kind == "beeps":
        on = (t * BEEPS[sound.detail] / t[-1]) % 1 < 0.5
        return _tone("sine", PITCHES_HZ[sound.pitch] * t) * on
    if sound.kind == "sweep":
        start_hz, stop_hz = SWEEPS_HZ[sound.detail]
        return _tone("sine", start_hz * t + (stop_hz - start_hz) * t**2 / (2 * t[-1]))
    return _noise(sound.detail, len(t), draw)


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
