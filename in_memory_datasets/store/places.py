"""Where samples are put while a store is made; all that a process needs which only puts them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from in_memory_datasets.store.block import Block, SharedEnd
from in_memory_datasets.store.layout import HEADER_BYTES
from in_memory_datasets.store.store import checksum


@dataclass(frozen=True, slots=True)
class Placed:
    """A sample that lies where it belongs, or where it is packed from.

    Attributes:
        start: Where in its block it begins.
        num_bytes: How long it is there.
        num_frames: How many frames of a clip that is, or decodes to; of images 0.
        checksum: Of its bytes.
    """

    start: int
    num_bytes: int
    num_frames: int
    checksum: int


@dataclass(frozen=True, slots=True)
class Places:
    """Where samples are put; all that is needed to put one, in whatever process.

    Attributes:
        block: Where they lie.
        image_bytes: What each takes of decoded images, whose place follows from their number; 0 for all else.
        is_clip: Whether they are clips.
        end: Where the next one may lie, where the number does not say.
    """

    block: Block
    image_bytes: int
    is_clip: bool
    end: SharedEnd

    def put(self, number: int, sample: NDArray[Any], num_frames: int = 0) -> Placed:
        """Write one sample and say where; nothing else is changed. Thread-safe, releases the GIL.

        Args:
            number: Of the sample.
            num_frames: Of an encoded clip, the frames it decodes to.

        Raises:
            OSError: The disk is full.
        """
        start = self.place_of_image(number) if self.image_bytes else self.end.allocate(sample.nbytes)
        self.block.write(sample, start)
        num_frames = (num_frames or sample.size) if self.is_clip else 0
        return Placed(start, sample.nbytes, num_frames, checksum(sample))

    def place_of_image(self, number: int) -> int:
        """Give where a decoded image begins."""
        return HEADER_BYTES + number * self.image_bytes
