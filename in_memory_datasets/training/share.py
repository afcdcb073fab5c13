"""What one process serves of the samples of a cluster, as a dataset sees it."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from in_memory_datasets.store import Pieces


class Share(Protocol):
    """Which samples are served, and from where; others in another epoch."""

    def current(self, known: int) -> tuple[int, Pieces, NDArray[np.int64]] | None:
        """Give what is served now; asked before every batch, in any process.

        Args:
            known: The number of what the asker has; 0 for nothing.

        Returns:
            Its number, the stores, which are the share's to close, and the slot of each position, int64 (num_samples,);
            None while that is what the asker has.
        """

    def set_epoch(self, epoch: int) -> None:
        """Serve what is served in an epoch, here and in worker processes; waits until that is there."""

    def close(self) -> None:
        """Give up what is served."""
