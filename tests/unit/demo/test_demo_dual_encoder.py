"""The demonstration model embeds what the datasets serve."""

from __future__ import annotations

import math

import pytest
import torch

from demo.dual_encoder import MAX_WORDS, DualEncoder, Spectrogram, contrastive_loss, hash_words, mel_bands


@pytest.mark.parametrize(
    ("modality", "media"),
    [
        ("image", torch.randint(0, 256, (3, 3, 48, 64), dtype=torch.uint8)),
        ("audio", torch.rand(3, 16_000) * 2 - 1),
        ("audio", torch.zeros(3, 40_000)),
    ],
)
def test_media_and_captions_become_unit_vectors(modality: str, media: torch.Tensor) -> None:
    """Both sides are embedded in one space, on the unit sphere, silence included."""
    model = DualEncoder(modality)  # type: ignore[arg-type]
    embedded, text, scale = model(media, hash_words(["one", "two words", ""]))
    assert embedded.shape == text.shape == (3, 128)
    for vectors in (embedded, text):
        torch.testing.assert_close(vectors.norm(dim=1), torch.ones(3))
    assert scale > 1


def test_the_order_of_words_counts_and_padding_does_not() -> None:
    """Words in another order are another caption, which does not depend on what else is in the batch."""
    model = DualEncoder("image").eval()
    forth, back = model.text(hash_words(["tone then noise", "noise then tone"]))
    assert not torch.allclose(forth, back, atol=1e-3)
    (alone,) = model.text(hash_words(["tone then noise"]))
    beside = model.text(hash_words(["tone then noise", "a caption with a good many more words in it"]))[0]
    torch.testing.assert_close(alone, beside)


def test_words_are_numbered_alike_whatever_their_case() -> None:
    """Words are numbered by themselves, from 1; 0 fills up; long captions are cut."""
    words = hash_words(["A red dot.", "a", "", "word " * 200])
    assert words.shape == (4, MAX_WORDS)
    assert words[0, 0] == words[1, 0] != 0
    assert words[2].eq(0).all()
    assert words[3].ne(0).all()


def test_a_tone_lights_the_band_it_lies_in() -> None:
    """The band with the most energy is the one around the tone's pitch."""
    time = torch.arange(16_000) / 16_000
    picture = Spectrogram(16_000)(torch.sin(2 * math.pi * 1000 * time)[None])
    brightest = picture[0, 0].mean(dim=1).argmax()
    assert mel_bands(16_000, 512, 64)[brightest].argmax() == 1000 * 512 // 16_000


def test_the_loss_falls_as_pairs_come_together() -> None:
    """It is log(N) where all look the same, and nothing where each pair is alone with itself."""
    same = torch.ones(8, 4) / 2
    assert contrastive_loss(same, same, torch.tensor(10.0)).item() == pytest.approx(math.log(8), rel=1e-5)
    assert contrastive_loss(torch.eye(8), torch.eye(8), torch.tensor(100.0)).item() == pytest.approx(0, abs=1e-5)
