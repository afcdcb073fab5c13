"""The measures of what recompressing loses are those that their definitions give."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks.encoded.quality import psnr, ssim


@pytest.fixture
def image() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 200, (40, 50, 3), np.uint8)


def test_a_picture_is_like_itself(image: NDArray[np.uint8]) -> None:
    assert ssim(image, image) == pytest.approx(1, abs=1e-12)
    assert psnr(image, image) == np.inf


def test_both_measures_are_symmetric(image: NDArray[np.uint8]) -> None:
    other = image[::-1].copy()
    assert ssim(image, other) == pytest.approx(ssim(other, image), abs=1e-12)
    assert psnr(image, other) == psnr(other, image)


@pytest.mark.parametrize("shift", [1, 10, 55])
def test_a_shift_makes_the_noise_of_its_square(image: NDArray[np.uint8], shift: int) -> None:
    assert psnr(image, image + np.uint8(shift)) == pytest.approx(20 * np.log10(255 / shift))


@pytest.mark.parametrize(("one", "other"), [(100, 120), (0, 255), (7, 7)])
def test_of_two_flat_pictures_only_the_luminance_is_compared(one: int, other: int) -> None:
    flat = [np.full((11, 11, 3), level, np.uint8) for level in (one, other)]
    c1 = (0.01 * 255) ** 2
    assert ssim(*flat) == pytest.approx((2 * one * other + c1) / (one**2 + other**2 + c1))


def test_one_window_is_the_formula_written_out() -> None:
    """On 11×11 pixels there is a single place of the window: weighted moments of all of them."""
    draw = np.random.default_rng(1)
    one, other = (draw.integers(0, 256, (11, 11, 3), np.uint8) for _ in range(2))
    weights = np.array([[np.exp(-(i * i + j * j) / 4.5) for i in range(-5, 6)] for j in range(-5, 6)])
    weights /= weights.sum()
    x, y = (0.299 * image[..., 0] + 0.587 * image[..., 1] + 0.114 * image[..., 2] for image in (one, other))
    mean_x, mean_y = (weights * x).sum(), (weights * y).sum()
    variance_x, variance_y = (weights * (x - mean_x) ** 2).sum(), (weights * (y - mean_y) ** 2).sum()
    covariance = (weights * (x - mean_x) * (y - mean_y)).sum()
    c1, c2 = 6.5025, 58.5225
    expected = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    expected /= (mean_x**2 + mean_y**2 + c1) * (variance_x + variance_y + c2)
    assert ssim(one, other) == pytest.approx(expected, rel=1e-9)


def test_noise_is_less_like_the_picture_the_more_there_is(image: NDArray[np.uint8]) -> None:
    noise = np.random.default_rng(2).normal(size=image.shape)
    noisy = [(image + strength * noise).clip(0, 255).astype(np.uint8) for strength in (2, 10, 40)]
    likenesses = [ssim(image, one) for one in noisy]
    assert likenesses == sorted(likenesses, reverse=True)
    assert likenesses[-1] < likenesses[0] < 1
