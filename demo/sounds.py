"""Sounds of a few seconds, with captions that are true of them."""

from __future__ import annotations

import io
import random
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import soundfile
from numpy.typing import NDArray

SAMPLING_RATES = (16_000, 22_050, 44_100)
PITCHES_HZ = {"low": 130.0, "middle": 520.0, "high": 2080.0}
LOUDNESS = {"quiet": 0.08, "loud": 0.7}
WAVES = ("sine", "square", "sawtooth")
NOISES = ("white", "brown")
BEEPS = {"two": 2, "three": 3, "five": 5}
PHRASES = ("{what}", "the sound of {what}", "a recording of {what}")

Wave = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Sound:
    """What a clip holds: its caption, and how it is made from a run of seconds."""

    caption: str
    seconds: float
    make: Callable[[Wave], Wave]


def _all_sounds() -> list[tuple[str, Callable[[Wave], Wave]]]:
    sounds: list[tuple[str, Callable[[Wave], Wave]]] = []
    for loudness, level in LOUDNESS.items():
        for pitch, hz in PITCHES_HZ.items():
            for wave in WAVES:
                sounds.append(
                    (f"a {loudness} {pitch} {wave} tone", lambda t, w=wave, f=hz, a=level: a * _tone(w, f * t))
                )
            for word, count in BEEPS.items():
                sounds.append(
                    (f"{word} {loudness} {pitch} beeps", lambda t, n=count, f=hz, a=level: a * _beeps(t, n, f))
                )
        for direction, (start, stop) in {"rising": (200.0, 2400.0), "falling": (2400.0, 200.0)}.items():
            sounds.append((f"a {loudness} {direction} sweep", lambda t, s=start, e=stop, a=level: a * _sweep(t, s, e)))
        for colour in NOISES:
            sounds.append((f"{loudness} {colour} noise", lambda t, c=colour, a=level: a * _noise(t, c)))
    return sounds


def draw_sound(index: int, *, seed: int = 0) -> Sound:
    """Choose what clip `index` holds; neighbours differ."""
    sounds = _all_sounds()
    order = list(range(len(sounds)))
    random.Random(seed).shuffle(order)
    what, make = sounds[order[index % len(order)]]
    vary = random.Random(f"{seed} {index}")
    return Sound(vary.choice(PHRASES).format(what=what), vary.uniform(1.0, 5.0), make)


def render_sound(sound: Sound, index: int, *, seed: int = 0, audio_format: str = "WAV") -> bytes:
    """Make a clip at a rate that varies with (seed, index), and encode it."""
    rate = random.Random(f"rate {seed} {index}").choice(SAMPLING_RATES)
    t = np.arange(round(sound.seconds * rate)) / rate
    fade = np.clip(np.minimum(t, t[-1] - t) / 0.02, 0, 1)
    hiss = np.random.default_rng([seed, index]).normal(0, 0.002, len(t))
    file = io.BytesIO()
    soundfile.write(file, (sound.make(t) * fade + hiss).astype(np.float32), rate, format=audio_format)
    return file.getvalue()


def _tone(wave: str, cycles: Wave) -> Wave:
    if wave == "sine":
        return np.sin(2 * np.pi * cycles)
    phase = cycles % 1
    return np.where(phase < 0.5, 0.6, -0.6) if wave == "square" else 1.2 * phase - 0.6


def _beeps(t: Wave, count: int, hz: float) -> Wave:
    on = (t * count / t[-1]) % 1 < 0.5
    return _tone("sine", hz * t) * on


def _sweep(t: Wave, start_hz: float, stop_hz: float) -> Wave:
    return _tone("sine", start_hz * t + (stop_hz - start_hz) * t**2 / (2 * t[-1]))


def _noise(t: Wave, colour: str) -> Wave:
    noise = np.random.default_rng(len(t)).normal(0, 0.3, len(t))
    if colour == "white":
        return np.clip(noise, -1, 1)
    walk = np.cumsum(noise)
    walk -= np.linspace(walk[0], walk[-1], len(walk))
    return walk / np.abs(walk).max()
