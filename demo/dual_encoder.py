"""A small dual encoder: pictures or sounds on one side, captions on the other, one space for both.

Two million parameters at most, and no pretrained part: it is there to show a training loop, and learns the
demonstration set in a minute on two cores.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Modality = Literal["image", "audio"]

EMBEDDING_SIZE = 128
VOCABULARY_SIZE = 4096
MAX_WORDS = 48
_GRID = (4, 4)  # what is left of height and width before the last layer: enough to tell places and order


class DualEncoder(nn.Module):
    """Embed media and captions so that what belongs together lies together.

    Args:
        modality: "image" for uint8 (B, 3, H, W), "audio" for float32 (B, T).
        sampling_rate: Of the audio, in Hz.
    """

    def __init__(self, modality: Modality, *, sampling_rate: int = 16_000) -> None:
        super().__init__()
        self.spectrogram = Spectrogram(sampling_rate) if modality == "audio" else None
        self.media = MediaEncoder(num_channels=1 if modality == "audio" else 3)
        self.text = TextEncoder()
        self.log_scale = nn.Parameter(torch.tensor(2.5))  # exp(2.5) = 12, and learned from there

    def forward(self, media: Tensor, words: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Embed a batch of pairs.

        Args:
            media: uint8 (B, 3, H, W), or float32 (B, T).
            words: int64 (B, W), from `hash_words`.

        Returns:
            Unit vectors of the media, (B, 128), those of the captions, (B, 128), and the scale of their products, ().
        """
        picture = media.float() / 127.5 - 1 if self.spectrogram is None else self.spectrogram(media)
        scale = self.log_scale.clamp(max=4.6).exp()  # at most 100
        return F.normalize(self.media(picture), dim=1), F.normalize(self.text(words), dim=1), scale


class MediaEncoder(nn.Module):
    """Turn a picture or a spectrogram, (B, C, H, W), into (B, 128)."""

    def __init__(self, num_channels: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for width in (32, 64, 128, 128):
            # Groups instead of batches are normalised: ranks then need not agree on anything but gradients.
            layers += [nn.Conv2d(num_channels, width, 3, stride=2, padding=1), nn.GroupNorm(8, width), nn.GELU()]
            num_channels = width
        self.layers = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(_GRID), nn.Flatten())
        self.project = nn.Linear(num_channels * _GRID[0] * _GRID[1], EMBEDDING_SIZE)

    def forward(self, picture: Tensor) -> Tensor:
        """Encode."""
        embedding: Tensor = self.project(self.layers(picture))
        return embedding


class TextEncoder(nn.Module):
    """Turn hashed words, (B, W), into (B, 128); the order of words counts."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(VOCABULARY_SIZE, EMBEDDING_SIZE, padding_idx=0)
        # Read in one direction only: the padding at the end then changes nothing that counts.
        self.read = nn.GRU(EMBEDDING_SIZE, 2 * EMBEDDING_SIZE, batch_first=True)
        self.project = nn.Linear(2 * EMBEDDING_SIZE, EMBEDDING_SIZE)

    def forward(self, words: Tensor) -> Tensor:
        """Encode."""
        states, _ = self.read(self.words(words))
        mask = (words != 0).unsqueeze(2)
        embedding: Tensor = self.project((states * mask).sum(1) / mask.sum(1).clamp(min=1))
        return embedding


class Spectrogram(nn.Module):
    """Turn waveforms, (B, T), into pictures of log energy in 64 bands over time, (B, 1, 64, T / hop)."""

    def __init__(self, sampling_rate: int, *, window_size: int = 512, hop: int = 400, num_bands: int = 64) -> None:
        super().__init__()
        self.hop = hop
        self.window: Tensor
        self.bands: Tensor
        self.register_buffer("window", torch.hann_window(window_size), persistent=False)
        self.register_buffer("bands", mel_bands(sampling_rate, window_size, num_bands), persistent=False)

    def forward(self, waveform: Tensor) -> Tensor:
        """Compute the spectrogram; about -2 to 2."""
        size = len(self.window)
        spectrum = torch.stft(waveform, size, hop_length=self.hop, window=self.window, return_complex=True)
        energy = self.bands @ spectrum.abs().square()
        return (torch.log(energy + 1e-4).unsqueeze(1) + 2) / 4


def mel_bands(sampling_rate: int, window_size: int, num_bands: int) -> Tensor:
    """Give triangular bands, equally wide to the ear, (num_bands, window_size // 2 + 1).

    Source: S. S. Stevens, J. Volkmann, E. B. Newman, "A Scale for the Measurement of the Psychological Magnitude
    Pitch" (1937), in the usual form 2595 log10(1 + f / 700).
    """
    highest = 2595 * torch.log10(torch.tensor(1 + sampling_rate / 2 / 700))
    edges_hz = 700 * (10 ** (torch.linspace(0, 1, num_bands + 2) * highest / 2595) - 1)
    bins_hz = torch.linspace(0, sampling_rate / 2, window_size // 2 + 1)
    left, centre, right = edges_hz[:-2, None], edges_hz[1:-1, None], edges_hz[2:, None]
    rising, falling = (bins_hz - left) / (centre - left), (right - bins_hz) / (right - centre)
    return torch.minimum(rising, falling).clamp(min=0)


def hash_words(captions: Sequence[str]) -> Tensor:
    """Number the words of captions by their hash, so that no vocabulary need be kept.

    Returns:
        int64 (B, W), padded with 0; W is the longest caption's number of words, 48 at most.

    Example:
        >>> hash_words(["a red dot", "Red!"]).shape, hash_words(["red"]).equal(hash_words(["Red!"]))
        (torch.Size([2, 3]), True)
    """
    numbered = [
        [zlib.crc32(word.encode()) % (VOCABULARY_SIZE - 1) + 1 for word in re.findall(r"\w+", caption.lower())]
        for caption in captions
    ]
    width = max(1, min(MAX_WORDS, max(map(len, numbered))))
    return torch.tensor([(numbers + [0] * width)[:width] for numbers in numbered])


def contrastive_loss(media: Tensor, text: Tensor, scale: Tensor) -> Tensor:
    """Ask of each medium to find its caption among all captions, and of each caption its medium.

    Args:
        media: Unit vectors, (N, D).
        text: Unit vectors, (N, D), in the same order.
        scale: What their products are multiplied by, ().

    Returns:
        The mean cross-entropy of both questions, (); log(N) where nothing is known.

    Source: A. Radford et al., "Learning Transferable Visual Models From Natural Language Supervision" (2021), fig. 3.
    """
    products = scale * media @ text.T
    target = torch.arange(len(products), device=products.device)
    return (F.cross_entropy(products, target) + F.cross_entropy(products.T, target)) / 2
