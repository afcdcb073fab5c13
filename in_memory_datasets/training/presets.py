"""Ready datasets by the names people know.

from in_memory_datasets import presets
dataset = presets.load("allenai/pixmo-cap", max_samples=10000)
"""

from __future__ import annotations

import os
from typing import Any

from in_memory_datasets.rows import find_preset, open_preset, preset_names
from in_memory_datasets.training.datasets import InMemoryAudioTextDataset, InMemoryImageTextDataset


def names() -> list[str]:
    """List the names that `load` knows.

    Example:
        >>> "allenai/pixmo-cap" in names()
        True
    """
    return preset_names()


def load(
    name: str,
    *,
    split: str | None = None,
    max_samples: int | None = None,
    audio_dir: str | os.PathLike[str] | None = None,
    **arguments: Any,
) -> InMemoryImageTextDataset | InMemoryAudioTextDataset:
    """Load a published dataset into memory, with the right columns.

    Args:
        name: One of `names()`. Where that id no longer loads, a copy that does is taken, and a warning logged once.
        split: The split; None takes the usual one.
        max_samples: Rows to take from the front; None takes all.
        audio_dir: For google/MusicCaps, the directory of clips you have fetched, each named after its YouTube id.
        arguments: Further arguments of `InMemoryImageTextDataset` or `InMemoryAudioTextDataset`.

    Raises:
        ConfigError: There is no such preset, or MusicCaps is asked for without clips.

    And what the dataset raises when it loads.
    """
    preset = find_preset(name)
    rows, media_col, txt_col = open_preset(preset, split=split, max_samples=max_samples, audio_dir=audio_dir)
    cls = InMemoryImageTextDataset if preset.modality == "image" else InMemoryAudioTextDataset
    return cls(rows, media_col, txt_col, max_samples, **arguments)
