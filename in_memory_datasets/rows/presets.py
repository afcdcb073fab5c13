"""Published datasets by name: where the copy lies that does load, and which of its columns are which.

Source: the dataset cards on huggingface.co and the loading scripts of the originals.
"""

from __future__ import annotations

import difflib
import logging
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from in_memory_datasets.errors import ConfigError
from in_memory_datasets.rows.captions import captions_from_value
from in_memory_datasets.rows.columns import ColumnSpec

_log = logging.getLogger("in_memory_datasets")

HOW_TO_GET_MUSICCAPS = (
    "google/MusicCaps has captions and YouTube ids but no audio: fetch the clips yourself, for instance with "
    "yt-dlp -x --audio-format wav --download-sections '*START-END' -o 'clips/%(id)s.%(ext)s' "
    "https://www.youtube.com/watch?v=YTID for each row, and pass audio_dir='clips'"
)


@dataclass(frozen=True, slots=True)
class Preset:
    """One published dataset.

    Attributes:
        name: The id people know.
        modality: "image" or "audio".
        repo: The id on the Hub that does load.
        split: The split taken when none is asked for.
        media: Candidates for the media column, the first that is there is taken.
        captions: Candidates for the caption column, likewise.
        inline: Whether the media lie in the dataset itself, which is then streamed where only some rows are wanted.
        note: What to know of the copy, said once; "" where the id itself loads.
        tars: The directory of the repository where its tar files of `<key>.flac` and `<key>.json` lie; "" for others.
        sentences: Whether one text holds all captions of a sample, a sentence each.
    """

    name: str
    modality: Literal["image", "audio"]
    repo: str
    split: str
    media: tuple[str, ...]
    captions: tuple[str, ...]
    inline: bool = True
    note: str = ""
    tars: str = ""
    sentences: bool = False


PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        Preset("allenai/pixmo-cap", "image", "allenai/pixmo-cap", "train", ("image_url",), ("caption",), inline=False),
        Preset(
            "HuggingFaceM4/COCO",
            "image",
            "bitmind/MS-COCO",
            "train",
            ("image",),
            ("sentences", "sentences_raw"),
            note="HuggingFaceM4/COCO is a script, which datasets no longer runs; loading bitmind/MS-COCO, its rows as "
            "Parquet: one row per caption, so each picture comes five times",
        ),
        Preset(
            "nlphuji/flickr30k",
            "image",
            "lmms-lab/flickr30k",
            "test",
            ("image",),
            ("caption",),
            note="nlphuji/flickr30k is a script, which datasets no longer runs; loading lmms-lab/flickr30k: 31,783 "
            "pictures with five captions each, all in the split 'test'",
        ),
        Preset(
            "google/MusicCaps",
            "audio",
            "google/MusicCaps",
            "train",
            ("ytid",),
            ("caption",),
            inline=False,
            note="google/MusicCaps publishes no audio; taking the clips in audio_dir",
        ),
        Preset(
            "laion/audio-dataset",
            "audio",
            "Meranti/CLAP_freesound",
            "train",
            ("flac", "audio", "wav", "mp3", "ogg"),
            ("json.text", "json", "text", "txt", "caption"),
            note="laion/audio-dataset is a project and no dataset on the Hub; streaming Meranti/CLAP_freesound, the "
            "part of it that is published with audio",
            tars="freesound",
        ),
        Preset(
            "ChristophSchuhmann/Clotho",
            "audio",
            "CLAPv2/Clotho",
            "test",
            ("audio", "flac", "wav", "file"),
            ("raw_text", "captions", "caption", "text"),
            note="ChristophSchuhmann/Clotho is not on the Hub; loading CLAPv2/Clotho, which joins the five captions of "
            "a clip into one text: each of its sentences is taken for a caption",
            sentences=True,
        ),
    )
}

_said: set[str] = set()


def find_preset(name: str) -> Preset:
    """Find a preset by the id people know.

    Raises:
        ConfigError: There is none; lists those there are.

    Example:
        >>> find_preset("nlphuji/flickr30k").repo
        'lmms-lab/flickr30k'
    """
    preset = PRESETS.get(name)
    if preset is None:
        near = difflib.get_close_matches(name, PRESETS, n=1, cutoff=0.4)
        raise ConfigError(
            f"there is no preset {name!r}: choose {', '.join(map(repr, PRESETS))}"
            + (f"; did you mean {near[0]!r}?" if near else "")
        )
    return preset


def preset_names() -> list[str]:
    """List the presets by name."""
    return list(PRESETS)


def open_preset(
    preset: Preset,
    *,
    split: str | None = None,
    max_samples: int | None = None,
    audio_dir: str | os.PathLike[str] | None = None,
) -> tuple[Any, ColumnSpec, ColumnSpec]:
    """Open a preset's rows with `datasets.load_dataset`.

    A dataset that holds its media is streamed where only some rows are wanted, so that 10,000 of 370 GB are not a
    download of 370 GB.

    Returns:
        The rows, the media column and the caption column.

    Raises:
        ConfigError: Clips must be given and are not, or the copy has none of the columns it is known to have.
    """
    if preset.name == "google/MusicCaps" and audio_dir is None:
        raise ConfigError(HOW_TO_GET_MUSICCAPS)
    if preset.name != "google/MusicCaps" and audio_dir is not None:
        raise ConfigError(f"audio_dir is for google/MusicCaps; {preset.name} brings its media")
    clip_of = None if audio_dir is None else _clips_in(Path(audio_dir))
    if preset.note and preset.name not in _said:
        _said.add(preset.name)
        _log.warning(preset.note)

    import datasets

    arguments: dict[str, Any] = {"streaming": preset.inline and max_samples is not None}
    if preset.tars:
        # Types that are not given are guessed from the first rows, which fails where their "original_data" differ; and
        # unless it is streamed, a tar of clips is encoded anew, for which datasets needs torchcodec.
        types = {"flac": datasets.Audio(decode=False), "json": {"text": [datasets.Value("string")]}}
        arguments = {"streaming": True, "data_dir": preset.tars, "features": datasets.Features(types)}
    rows = datasets.load_dataset(preset.repo, split=split or preset.split, **arguments)
    names = list(rows.column_names or next(iter(rows.take(1)), {}))
    media: ColumnSpec = _first(preset.media, names, preset)
    captions: ColumnSpec = _first(preset.captions, names, preset)
    if clip_of is not None:
        media = clip_of
    if preset.sentences:
        captions = _sentences_in([name for name in preset.captions if name in names])
    return rows, media, captions


def _first(candidates: tuple[str, ...], names: list[str], preset: Preset) -> str:
    for candidate in candidates:
        if candidate.partition(".")[0] in names:
            return candidate
    raise ConfigError(
        f"{preset.repo} has the columns {', '.join(map(repr, names))} and none of {', '.join(map(repr, candidates))}: "
        "load it with datasets.load_dataset and name its columns yourself"
    )


def _sentences_in(columns: list[str]) -> Callable[[Mapping[str, Any]], tuple[str, ...]]:
    """Find the captions in the first column that has any; those of one text are its sentences."""

    def captions_of(row: Mapping[str, Any]) -> tuple[str, ...]:
        found = next((texts for name in columns if any(texts := captions_from_value(row.get(name)))), ())
        return found if len(found) != 1 else tuple(filter(None, re.split(r"(?<=\.)\s+", found[0])))

    return captions_of


# yt-dlp leaves other files of the same name beside a clip.
_CLIP_SUFFIXES = (".wav", ".flac", ".mp3", ".ogg", ".oga", ".opus", ".m4a", ".mp4", ".aac", ".webm", ".mka", ".wma")


def _clips_in(directory: Path) -> Callable[[Mapping[str, Any]], str]:
    """Find the clips in a directory by YouTube id: `<id>.wav`, `[<id>]-[30-40].wav`, `<id>_30_40.flac`, ...

    An id has eleven characters, and may begin with a dash.
    """
    if not directory.is_dir():
        raise ConfigError(f"audio_dir={str(directory)!r} is no directory. {HOW_TO_GET_MUSICCAPS}")
    clips: dict[str, str] = {}
    for path in sorted(directory.iterdir()):
        match = re.match(r"\[?([A-Za-z0-9_-]{11})(?=[\].]|_\d)", path.name)
        if match and path.suffix.lower() in _CLIP_SUFFIXES and path.is_file():
            clips.setdefault(match[1], str(path))
    if not clips:
        raise ConfigError(f"audio_dir={str(directory)!r} holds no clips named after their ids. {HOW_TO_GET_MUSICCAPS}")

    def clip_of(row: Mapping[str, Any]) -> str:
        # Videos disappear: a clip that nobody could fetch is a file that is not found, and is reported as that.
        return clips.get(row["ytid"]) or str(directory / f"{row['ytid']}.wav")

    return clip_of
