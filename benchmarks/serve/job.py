"""What the driver asks of a process, as one line of JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Literal

Media = Literal["image", "audio"]
Task = Literal["prepare", "time"]

# A batch of 32 clips padded to ten seconds is 20 MB; 256 images of 224×224 are 38 MB.
BATCH_SIZES: dict[Media, int] = {"image": 256, "audio": 32}


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One process of one peer.

    Attributes:
        task: "prepare" makes the peer's files, "time" times epochs.
        peer: A key of `PEERS`.
        media: What is served.
        data: Where the samples lie in their neutral form.
        place: Where the peer's own files lie.
        num_samples: How many of the samples are served, from the front.
        num_workers: Worker processes or threads of the loader.
        batch_size: Samples of a batch.
        warm_seconds: Later epochs are repeated until this has passed.
        max_warm_epochs: But not more often than this.
        check: Whether one more epoch, which is not timed, is compared with the samples, and the memory watched.
    """

    task: Task
    peer: str
    media: Media
    data: str
    place: str
    num_samples: int
    num_workers: int
    batch_size: int
    warm_seconds: float = 1.0
    max_warm_epochs: int = 5
    check: bool = False

    def to_json(self) -> str:
        """Write the job as one line."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, line: str) -> Job:
        """Read what `to_json` wrote."""
        return cls(**json.loads(line))
