"""Real pictures and clips, out of the corpora beside the checkout, as rows for a dataset."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from in_memory_datasets.decode import decode_audio
from in_memory_datasets.schema import AudioSpec

CORPORA = Path(__file__).parents[3] / "shared" / "corpora"
SIZE = (224, 224)  # in which pictures are served
RATE = 16_000  # at which clips are
PHOTO_SIDE = 500  # the longer one, of a photograph as it is usually found in such a dataset

Rows = list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Corpora:
    """A directory of files with tables of what they are.

    Attributes:
        directory: With images.csv and audio.csv, and the files in images and audio.
        num_files: How many of each kind to take at most, spread over all; None for all of them.
    """

    directory: Path = CORPORA
    num_files: int | None = None

    def photos(self, num_rows: int) -> Rows:
        """Give photographs in JPEG whose longer side is `PHOTO_SIDE`, from the first again when all are taken.

        Bytes behind the end of the picture tell one from another, or rows would share samples.
        """
        sizes = ((entry, max(int(entry["width"]), int(entry["height"]))) for entry in self._entries("images"))
        names = [entry["file"] for entry, side in sizes if entry["format"] == "JPEG" and side == PHOTO_SIDE]
        rows = enumerate(islice(cycle([self._picture(name) for name in self._some(names)]), num_rows))
        return [{**row, "image_url": row["image_url"] + number.to_bytes(4, "little")} for number, row in rows]

    def pictures(self) -> Rows:
        """Give every picture."""
        return [self._picture(name) for name in self._some([entry["file"] for entry in self._entries("images")])]

    def clips(self) -> Rows:
        """Give every clip."""
        names = self._some([entry["file"] for entry in self._entries("audio")])
        return [{"audio": str(self.directory / "audio" / name), "caption": name} for name in names]

    def clips_of(self, seconds: float, num_rows: int) -> Rows:
        """Give clips of one length, cut out of longer ones, from the first again when all are taken."""
        spec = AudioSpec(target_sr=RATE, max_duration=1000.0)
        names = [entry["file"] for entry in self._entries("audio") if float(entry["seconds"]) >= seconds]
        num_frames = round(seconds * RATE)
        rows: Rows = []
        for name in self._some(names):
            frames = decode_audio((self.directory / "audio" / name).read_bytes(), spec=spec, name=name)
            for start in range(0, len(frames) - num_frames + 1, num_frames):
                cut = {"array": frames[start : start + num_frames], "sampling_rate": RATE}
                rows.append({"audio": cut, "caption": f"{name} from {start / RATE:g} s"})
        return list(islice(cycle(rows), num_rows))

    def _picture(self, name: str) -> dict[str, Any]:
        return {"image_url": (self.directory / "images" / name).read_bytes(), "caption": name}

    def _entries(self, kind: str) -> list[dict[str, str]]:
        with open(self.directory / f"{kind}.csv", newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))

    def _some(self, names: list[str]) -> list[str]:
        if self.num_files is None or self.num_files >= len(names):
            return names
        return names[:: -(-len(names) // self.num_files)]
