"""What a sample takes in every form: all pictures and clips of the corpora, captions and bookkeeping included."""

from __future__ import annotations

from typing import Any

from benchmarks.bench_gather import Figures
from benchmarks.encoded.samples import RATE, SIZE, Corpora
from in_memory_datasets import InMemoryAudioTextDataset, InMemoryImageTextDataset

QUALITIES = (95, 90, 80)
LONGEST_SECONDS = 30.0

_IMAGE_FORMS: dict[str, dict[str, Any]] = {
    "decoded": {},
    "encoded": {"storage": "encoded"},
    **{f"encoded, {q}": {"storage": "encoded", "recompress": ("jpeg", q)} for q in QUALITIES},
}
_AUDIO_FORMS: dict[str, dict[str, Any]] = {
    "decoded": {},
    "int16": {"dtype": "int16"},
    "encoded": {"storage": "encoded"},
}


def measure_sizes(corpora: Corpora) -> Figures:
    """Load all of them in every form; nothing is timed."""
    pictures, clips = corpora.pictures(), corpora.clips()
    images = {}
    for form, arguments in _IMAGE_FORMS.items():
        with InMemoryImageTextDataset(pictures, image_size=SIZE, progress=False, **arguments) as dataset:
            images[form] = _size(dataset)
    audio = {}
    for form, arguments in _AUDIO_FORMS.items():
        with InMemoryAudioTextDataset(
            clips, target_sr=RATE, max_duration=LONGEST_SECONDS, progress=False, **arguments
        ) as dataset:
            audio[form] = _size(dataset)
            mean_seconds = float(dataset.lengths.sum()) / RATE / dataset.report.num_ok
    figures = {
        "images": {"num_samples": len(pictures), "bytes_per_sample": images},
        "audio": {"num_samples": len(clips), "mean_seconds": mean_seconds, "bytes_per_sample": audio},
    }
    print(figures, flush=True)
    return figures


def _size(dataset: Any) -> float:
    if dataset.report.num_failed:
        raise SystemExit(f"{dataset.report.num_failed} files of the corpora were not loaded: {dataset.report}")
    return float(dataset.nbytes / len(dataset))
