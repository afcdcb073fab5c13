"""What images and clips in memory have in common: the load, the books of a batch, saving, mending, pickling."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset
from typing_extensions import Self

from in_memory_datasets.build import LoadRequest, load, retry
from in_memory_datasets.errors import LoadError, StoreError
from in_memory_datasets.schema import LoadReport
from in_memory_datasets.store import FAILED, LOADED, Store, open_store, save_store
from in_memory_datasets.training.captions import CaptionTurns
from in_memory_datasets.training.serving import AudioServing, Books, ImageServing

ServingT = TypeVar("ServingT", bound="ImageServing | AudioServing")


class InMemoryDataset(Dataset[Any], Generic[ServingT]):
    """What both kinds of in-memory dataset have in common; a context manager.

    Attributes:
        report: What the load did.
        failed_indices: Row numbers of the samples that failed, ascending.
        nbytes: Bytes held at rest: media, captions and bookkeeping.
    """

    def __init__(self, request: LoadRequest, serving: ServingT) -> None:
        store, report = load(request)
        self._open(request, serving, store, report)

    def _open(self, request: LoadRequest, serving: ServingT, store: Store, report: LoadReport) -> None:
        self._request = request
        self._serving = serving
        self._num_retries = 0
        self._turns: CaptionTurns | None = None
        if serving.captions == "random":
            self._turns = CaptionTurns(store.num_samples, seed=torch.initial_seed())
        self._take(store, report)

    def _take(self, store: Store, report: LoadReport) -> None:
        self._store = store
        self._seconds, self._bytes_fetched = report.seconds, report.bytes_fetched
        self._index_slots()

    def _index_slots(self) -> None:
        """Note which slots are served: all of them, or with on_error="skip" the loaded ones."""
        status = self._store.table.status
        self._slots = np.flatnonzero(status == LOADED) if self._request.on_error == "skip" else np.arange(len(status))

    @classmethod
    def _load(cls, directory: str | os.PathLike[str], *, verify: bool, request: LoadRequest, serving: ServingT) -> Self:
        """Open a directory; of `request.spec` only the kind counts, the rest is the store's to say."""
        store = open_store(directory)
        try:
            report = cls._check(directory, store, request, verify=verify)
        except BaseException:
            store.close()
            raise
        dataset = cls.__new__(cls)
        dataset._open(replace(request, spec=store.spec), serving, store, report)
        return dataset

    @classmethod
    def _check(
        cls, directory: str | os.PathLike[str], store: Store, request: LoadRequest, *, verify: bool
    ) -> LoadReport:
        place = os.fspath(directory)
        if not isinstance(store.spec, type(request.spec)):
            raise StoreError(f"{place} holds samples of {store.spec}, which {cls.__name__} does not serve")
        if verify and (bad := store.verify()):
            raise StoreError(
                f"{place}: {len(bad):,} of {store.num_samples:,} samples differ from their checksums (rows {bad[:5]}): "
                "load the dataset again from its sources"
            )
        report = store.table.report(seconds=0.0, bytes_fetched=0, nbytes=store.nbytes)
        if request.on_error == "raise" and report.failures:
            raise LoadError(f"{place} holds failed samples; the first is {report.failures[0]}")
        return report

    @abstractmethod
    def __getitems__(self, indices: Sequence[int]) -> Any:
        """Gather a batch."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Give one sample, as a copy of its own: `__getitems__([index])[0]`.

        Raises:
            IndexError: There is no such sample.
        """
        sample: dict[str, Any] = self.__getitems__([index])[0]
        return sample

    def __len__(self) -> int:
        return len(self._slots)

    def _find_slots(self, indices: Sequence[int]) -> tuple[NDArray[np.int64], Books]:
        table = self._store.table
        num_samples = len(self._slots)
        positions = np.asarray(indices, dtype=np.int64)
        if positions.size and not (-num_samples <= positions.min() and positions.max() < num_samples):
            wrong = next(i for i in positions.tolist() if not -num_samples <= i < num_samples)
            raise IndexError(f"sample {wrong} of a dataset of {num_samples:,}")
        slots = self._slots[positions]
        captions: list[str | list[str]]
        if self._serving.captions == "first":
            captions = [table.caption(slot) for slot in slots.tolist()]
        elif self._turns is not None:
            turns = self._turns
            captions = [table.caption(slot, turns.take(slot, table.num_captions(slot))) for slot in slots.tolist()]
        else:
            captions = [table.captions(slot) for slot in slots.tolist()]
        return slots, Books(captions, slots.astype(np.int64), table.status[slots] == LOADED)

    @property
    def report(self) -> LoadReport:
        """Sum up the load: counts, reasons, every failure, seconds and bytes."""
        return self._store.table.report(
            seconds=self._seconds, bytes_fetched=self._bytes_fetched, nbytes=self._store.nbytes
        )

    @property
    def failed_indices(self) -> list[int]:
        """Row numbers of the samples that failed, ascending."""
        failed: list[int] = np.flatnonzero(self._store.table.status == FAILED).tolist()
        return failed

    @property
    def nbytes(self) -> int:
        """Bytes held at rest: media, captions and bookkeeping."""
        return self._store.nbytes

    def set_epoch(self, epoch: int) -> None:
        """Let `captions="random"` follow the epoch, where it would else count how often a sample was served.

        Raises:
            ConfigError: The epoch is not a whole number from 0 on.
        """
        if self._turns is not None:
            self._turns.set_epoch(epoch)

    def retry_failed(self) -> LoadReport:
        """Load again only what failed, put it in its place, and return the new report.

        Sources that can be had no more (bytes of a dataset that was opened from a directory) stay failed.

        Raises:
            MemoryLimitError: Clips in memory must be packed anew and there is no room for that.
        """
        store, report = retry(self._request, self._store, attempt=self._num_retries)
        self._num_retries += 1
        if store is not self._store:
            self._store.close()
        self._take(store, report)
        return report

    def verify(self) -> list[int]:
        """List the row numbers of samples that differ from their checksums. Cost: one read of everything."""
        return self._store.verify()

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Write the dataset into a directory of its own; `load` maps it in milliseconds.

        Raises:
            StoreError: The directory holds other files.
            OSError: The disk is full or may not be written.
        """
        save_store(self._store, directory)

    def close(self) -> None:
        """Give up the memory now and not when the dataset is collected; batches handed out stay as they are."""
        self._store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        # The rows stay behind: they may be large, and what failed is known to the store.
        return {**self.__dict__, "_request": replace(self._request, reader=None, job=None), "_slots": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._index_slots()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._describe()})"

    def _describe(self) -> str:
        if self._store.closed:
            return "closed"
        failed = len(self.failed_indices)
        return f"{len(self):,} samples, {self.nbytes:,} bytes" + (f", {failed:,} failed" if failed else "")
