"""Captions of the demonstration sounds are true of their waves."""

from __future__ import annotations

import io

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from demo.sounds import BEEPS, NUM_SOUNDS, PAUSE_SECONDS, PITCHES_HZ, Event, Sound, draw_sound, render_sound

Wave = NDArray[np.float64]


def waves_of(sound: Sound, index: int) -> tuple[list[Wave], int]:
    """Render a sound and cut it into its events."""
    wave, rate = soundfile.read(io.BytesIO(render_sound(sound, index)))
    pieces, start = [], 0
    for event in sound.events:
        stop = start + round(event.seconds * rate)
        pieces.append(wave[start:stop])
        start = stop + round(PAUSE_SECONDS * rate)
    return pieces, rate


def loudest_hz(wave: Wave, rate: int) -> float:
    spectrum = np.abs(np.fft.rfft(wave * np.hanning(len(wave))))
    return float(spectrum.argmax() * rate / len(wave))


def low_share(wave: Wave, rate: int) -> float:
    """Give the share of energy below 1 kHz."""
    energy = np.abs(np.fft.rfft(wave)) ** 2
    return float(energy[: round(1000 * len(wave) / rate)].sum() / energy.sum())


def count_bursts(wave: Wave, rate: int) -> int:
    window = rate // 50
    envelope = np.convolve(np.abs(wave), np.ones(window) / window, "same")
    sounding = (envelope > envelope.max() / 2).astype(int)
    return int((np.diff(sounding, prepend=0) == 1).sum())


def check_event(event: Event, wave: Wave, rate: int) -> None:
    loud = np.sqrt((wave**2).mean()) > 0.09
    assert loud == (event.loudness == "loud")
    if event.kind in ("tone", "beeps"):
        assert loudest_hz(wave, rate) == pytest.approx(PITCHES_HZ[event.pitch], rel=0.05)
    if event.kind == "tone":
        crest = np.abs(wave).max() / np.sqrt((wave**2).mean())  # 1 of a square, √2 of a sine, √3 of a sawtooth
        assert (
            min({"square": 1.0, "sine": 2**0.5, "sawtooth": 3**0.5}.items(), key=lambda c: abs(c[1] - crest))[0]
            == (event.detail)
            or event.loudness == "quiet"
        )  # the hiss that every recording has hides the shape of quiet waves
    if event.kind == "beeps":
        assert count_bursts(wave, rate) == BEEPS[event.detail]
    if event.kind == "sweep":
        quarter = len(wave) // 4
        rises = loudest_hz(wave[-quarter:], rate) > loudest_hz(wave[:quarter], rate)
        assert rises == (event.detail == "rising")
    if event.kind == "noise":
        assert (low_share(wave, rate) > 0.9) == (event.detail == "brown")


@pytest.mark.parametrize("index", range(60))
def test_a_caption_is_true_of_its_sound(index: int) -> None:
    """Each event is as loud, high and long as the caption says, and they come in its order."""
    sound = draw_sound(index)
    waves, rate = waves_of(sound, index)
    for event, wave in zip(sound.events, waves, strict=True):
        check_event(event, wave, rate)
        assert event.description in sound.caption
    if len(sound.events) == 2:
        first, second = (sound.caption.index(event.description) for event in sound.events)
        assert (second < first) == (" after " in sound.caption)


def test_the_same_seed_and_index_give_the_same_sound() -> None:
    """A clip and its caption follow from (seed, index) alone."""
    assert draw_sound(7, seed=3) == draw_sound(7, seed=3)
    assert render_sound(draw_sound(7), 7) == render_sound(draw_sound(7), 7)
    assert [draw_sound(i, seed=0) for i in range(20)] != [draw_sound(i, seed=1) for i in range(20)]


def test_no_two_sounds_mean_the_same() -> None:
    """All clips differ in what they hold, so that a caption has one right clip."""
    heard = {tuple(event.description for event in draw_sound(i).events) for i in range(NUM_SOUNDS)}
    assert len(heard) == NUM_SOUNDS


@pytest.mark.parametrize("audio_format", ["WAV", "FLAC", "OGG"])
def test_every_format_lasts_as_long_as_the_sound_says(audio_format: str) -> None:
    """A clip lasts from one second to five, in every format."""
    for index in range(10):
        sound = draw_sound(index)
        info = soundfile.info(io.BytesIO(render_sound(sound, index, audio_format=audio_format)))
        assert info.duration == pytest.approx(sound.seconds, abs=0.001)
        assert 1 <= info.duration <= 5
