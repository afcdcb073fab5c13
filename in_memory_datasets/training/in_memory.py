"""What images and clips in memory have in common: the load, the books of a batch, saving, mending, pickling."""

from __future__ import annotations

import functools
import os
import weakref
from abc import abstractmethod
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset, get_worker_info
from typing_extensions import Self

from in_memory_datasets.build import (
    Finished,
    Loading,
    LoadRequest,
    Order,
    load,
    lock_memory,
    memory_for,
    open_saved,
    resident_fraction,
    retry,
    save,
    warm,
)
from in_memory_datasets.errors import ConfigError, LoadError, StoreError
from in_memory_datasets.schema import Effort, ImageSpec, LoadReport, strip_credentials
from in_memory_datasets.store import FAILED, LOADED, LiveStore, Pieces, Store
from in_memory_datasets.training.encoded import EncodedMedia
from in_memory_datasets.training.media import DeviceMedia, HostMedia
from in_memory_datasets.training.ring import Ring, shared_ring
from in_memory_datasets.training.serving import AudioServing, Books, ImageServing
from in_memory_datasets.training.share import Share
from in_memory_datasets.training.turns import Draws, Turns

ServingT = TypeVar("ServingT", bound="ImageServing | AudioServing")

_CPU = torch.device("cpu")

DESCRIBED: Any = object()
"""A `wait` with which a dataset only understands its arguments, and loads nothing."""


class InMemoryDataset(Dataset[Any], Generic[ServingT]):
    """What both kinds of in-memory dataset have in common; a context manager.

    Attributes:
        report: What the load did.
        failed_indices: Row numbers of the samples that failed, ascending.
        nbytes: Bytes held at rest: media, captions and bookkeeping.
    """

    def __init__(self, request: LoadRequest, serving: ServingT, *, wait: bool) -> None:
        if wait is DESCRIBED:
            self._request, self._serving = request, serving
        elif wait:
            store, effort = load(request)
            self._open(request, serving, store)
            self._effort = effort
        else:
            self._open(request, serving, None)

    @classmethod
    def _of_share(cls, request: LoadRequest, serving: ServingT, share: Share) -> Self:
        """Serve what one process serves of a cluster's samples."""
        dataset = cls.__new__(cls)
        dataset._share, dataset._division = share, 0
        served = share.current(0)
        assert served is not None
        dataset._division, pieces, dataset._slots = served
        dataset._open(request, serving, pieces)
        if serving.by_chance:
            # By the row's number and the epoch: whichever node serves it, and however often it was served elsewhere.
            dataset._turns = Turns(0, seed=torch.initial_seed())
            dataset._turns.set_epoch(0)
        return dataset

    def _open(self, request: LoadRequest, serving: ServingT, store: Store | Pieces | None) -> None:
        self._request = request
        self._serving = serving
        self._num_retries = 0
        self._device = _CPU
        self._ring: Ring | None = shared_ring()  # there before the first worker is started
        self._effort = Effort()
        self._media: HostMedia | EncodedMedia | DeviceMedia | None = None
        self._whole = store
        self._loading: Loading | Finished | None = None
        if store is None:
            self._loading = loading = Loading(request)  # which raises where this cannot be
            weakref.finalize(self, loading.cancel)
            num_rows = request.rows.num_rows
            assert num_rows is not None
            self._slots, self._any_failed = np.arange(num_rows), True
            self._was_read: NDArray[np.bool_] | None = None
        else:
            try:
                self._take(store)
            except BaseException:
                self.close()
                raise
            num_rows = store.num_samples
        self._turns = Turns(num_rows, seed=torch.initial_seed()) if serving.by_chance else None

    @property
    def _store(self) -> Store | Pieces:
        """The store, which is waited for where it is not finished."""
        if self._share is not None:
            self._follow(self._share)
        self._adopt()
        assert self._whole is not None
        return self._whole

    @property
    def _stores(self) -> tuple[Store, ...]:
        """All stores that are served from."""
        return self._store.stores

    def _adopt(self, timeout_seconds: float | None = None) -> None:
        """Take the store of a load that has ended, which is waited for."""
        loading = self._loading
        if loading is not None:
            store, self._effort = loading.wait(timeout_seconds)
            self._loading = None
            self._drop_media()
            self._take(store)
            loading.cancel()  # nothing but its memory is left

    def _follow(self, share: Share) -> None:
        """Serve what the share says, where that has changed."""
        if (served := share.current(self._division)) is not None:
            self._division, pieces, self._slots = served
            self._drop_media()
            self._take(pieces)

    def _view(self) -> LiveStore | Store | Pieces:
        """Give what samples are read from now."""
        if self._loading is not None and (live := self._loading.wait_until_readable()) is not None:
            return live
        return self._store

    def _take(self, store: Store | Pieces) -> None:
        self._whole = store
        self._media = None
        self._lies_in_files = store.directory is not None
        self.__dict__.pop("_bytes_available", None)
        self._index_slots()
        if self._request.lock_memory and isinstance(store, Store):  # that of a share is locked by who loaded it
            lock_memory(store)

    def _index_slots(self) -> None:
        """Note which slots are served: all of them, or with on_error="skip" the loaded ones."""
        if isinstance(self._whole, Pieces):
            self._any_failed = bool((self._whole.table.status[self._slots] != LOADED).any())
            self._was_read = np.zeros(self._whole.num_unique, np.bool_) if self._lies_in_files else None
            return
        view = self._view()
        if isinstance(view, LiveStore):
            self._slots, self._any_failed, self._was_read = np.arange(view.table.num_rows), True, None
            return
        is_loaded, skips = self._store.table.status == LOADED, self._request.on_error == "skip"
        self._slots = np.flatnonzero(is_loaded) if skips else np.arange(len(is_loaded))
        self._any_failed = not (skips or is_loaded.all())
        self._was_read = np.zeros(self._store.num_unique, np.bool_) if self._lies_in_files else None

    @classmethod
    def _load(cls, directory: str | os.PathLike[str], *, verify: bool, request: LoadRequest, serving: ServingT) -> Self:
        """Open a directory; of `request.spec` only the kind counts, the rest is the store's to say, and its storage."""
        store = open_saved(directory, cache_dir=request.cache_dir, progress=request.progress)
        try:
            cls._check(directory, store, request, verify=verify)
        except BaseException:
            store.close()
            raise
        dataset = cls.__new__(cls)
        if isinstance(store.spec, ImageSpec):  # which may recompress, what a request for pixels alone could not ask for
            request = replace(request, storage="auto")
        dataset._open(replace(request, spec=store.spec), serving, store)
        return dataset

    @classmethod
    def _check(cls, directory: str | os.PathLike[str], store: Store, request: LoadRequest, *, verify: bool) -> None:
        def place() -> str:
            return strip_credentials(os.fspath(directory))

        if not isinstance(store.spec, type(request.spec)):
            raise StoreError(f"{place()} holds samples of {store.spec}, which {cls.__name__} does not serve")
        if verify and (bad := store.verify()):
            raise StoreError(
                f"{place()}: {len(bad):,} of {store.num_samples:,} samples differ from their checksums "
                f"(rows {bad[:5]}): "
                'load it without verify and call retry_failed(reasons={"checksum"}), or delete it and load again'
            )
        if request.on_error == "raise" and (failures := store.table.failures()):
            raise LoadError(f"{place()} holds failed samples; the first is {failures[0]}")

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
        if self._share is not None:
            self._follow(self._share)
        return len(self._slots)

    _share: Share | None = None
    _division = 0  # the number of what is served of it

    def _samples(self, view: LiveStore | Store | Pieces) -> HostMedia | EncodedMedia | DeviceMedia:
        """Give the samples where they are served from; to a device they are copied when the first is asked for."""
        if isinstance(view, LiveStore):
            arriving = view.images if isinstance(view.spec, ImageSpec) else view.frames
            if not isinstance(self._media, HostMedia):
                self._media = HostMedia(arriving)
            elif self._media.samples is not arriving:  # there is more of it, or it was moved
                self._media = replace(self._media, samples=arriving)
            return self._media
        if self._device != _CPU and get_worker_info() is not None:
            raise ConfigError(
                f"this dataset lies on {self._device}, and worker processes would each copy it there: take "
                "num_workers=0, which is the fast way for it, or the dataset that to() was called on"
            )
        if self._media is None:
            store, here = view, self._device == _CPU
            samples = store.frames if store.images is None else store.images
            if store.encoded is not None:
                if not here:
                    raise ConfigError(
                        f"{store.num_unique - store.num_decoded:,} of {store.num_unique:,} samples lie encoded, and "
                        f'are decoded in memory: take storage="decoded" for {self._device}, or DevicePrefetcher'
                    )
                self._media = EncodedMedia.of(store)
            else:
                assert samples is not None
                self._media = HostMedia(samples) if here else DeviceMedia.copy_of(samples, self._device)
        return self._media

    def to(self, device: str | torch.device) -> Self:
        """Give the dataset with its samples on a device, where batches are gathered and come out.

        The samples are copied there at once. Rows and captions stay in memory, and so do the samples, for saving and
        for the other processes of the machine; `to("cpu")` gives a dataset that serves from there, without a copy.
        Use it with `num_workers=0` and without `pin_memory`. Both datasets read the same rows and block: retry what
        failed before, and close them together, by closing either.

        Raises:
            ConfigError: Arrays and pictures were asked for, which are on no device; or samples lie encoded.
            MemoryLimitError: The samples do not fit there; with both numbers.

        Cost: one copy of all samples; afterwards a batch costs one gather on the device.
        """
        there = torch.device(device)
        if there.type != "cpu" and self._serving.output != "torch":
            raise ConfigError(f'output={self._serving.output!r} is never on a device: take output="torch" for {there}')
        store = self._store
        store.refuse_if_cut_short()
        clone = type(self).__new__(type(self))
        clone.__dict__.update(self.__dict__, _device=there, _media=None)
        clone._samples(store)
        return clone

    def _find(
        self, view: LiveStore | Store | Pieces, indices: Sequence[int]
    ) -> tuple[torch.Tensor, Draws | None, Books]:
        """Find the rows at some positions: the numbers of their samples, int64 (B,), and what goes with these.

        Where no row repeats another's source, the numbers are the books' own indices.
        """
        table = view.table
        num_samples = len(self._slots)
        try:
            slots = self._slots[np.asarray(indices, dtype=np.int64)]
        except IndexError:
            wrong = next(int(index) for index in indices if not -num_samples <= index < num_samples)
            raise IndexError(f"sample {wrong} of a dataset of {num_samples:,}") from None
        numbers = table.sample_of(slots)
        if isinstance(view, LiveStore):
            assert self._loading is not None
            self._loading.wait_for(numbers)
        elif self._was_read is not None and not (self._was_read[numbers].all() and self._fits):
            view.will_need(numbers)
            self._was_read[numbers] = True
        rows = table.rows_of(slots)
        draws = None if self._turns is None else self._turns.take(rows)
        captions: list[Any]  # of texts, or of lists of them
        if self._serving.captions == "all":
            captions = [table.captions(slot) for slot in slots.tolist()]
        elif self._serving.captions == "first" or draws is None:
            captions = table.caption(slots)
        else:
            captions = table.caption(slots, draws.captions(table.num_captions(slots)))
        is_loaded = view.is_loaded(numbers) if isinstance(view, LiveStore) else table.status[slots] == LOADED
        valid = torch.from_numpy(is_loaded)
        books = Books(captions, torch.from_numpy(rows), valid)
        return books.indices if numbers is rows else torch.from_numpy(numbers), draws, books

    @functools.cached_property
    def _bytes_available(self) -> int | None:
        """The memory there is for files; None for a store that lies in memory anyway. Cost: half a millisecond."""
        assert self._whole is not None
        return memory_for(self._whole, self._request)

    @property
    def _fits(self) -> bool:
        """Tell whether what was read once is likely to be in memory still."""
        # Of what this batch is made from, whatever is served by now.
        assert self._whole is not None
        return self._bytes_available is None or self._whole.nbytes <= self._bytes_available

    def wait(self, timeout: float | None = None) -> LoadReport:
        """Wait until all is loaded, with `wait=False`, and give the report.

        Everything but samples, batches, their number and `progress` waits like this when it is asked for.

        Args:
            timeout: Seconds to wait at most; None for as long as it takes.

        Raises:
            TimeoutError: It is not loaded by then; the load goes on.
            LoadError: No sample could be loaded, or one could not and `on_error` is "raise".
            MemoryLimitError: It does not fit.
        """
        self._adopt(timeout)
        return self.report

    @property
    def progress(self) -> float:
        """Share of the samples that are loaded or have failed, 0 to 1."""
        return 1.0 if self._loading is None else self._loading.progress

    def expect_order(self, order: Order) -> None:
        """Say in which order samples will be asked for, while they are loaded; `EpochSampler` does so by itself.

        Args:
            order: Gives their positions, int64, in pieces of any length. What it leaves out is loaded after them.
        """
        if self._loading is not None:
            self._loading.expect(order)

    @property
    def report(self) -> LoadReport:
        """Sum up the load: counts, reasons, hosts, every failure, what it took and what was its limit."""
        return self._store.report(self._effort, bytes_available=self._bytes_available)

    @property
    def failed_indices(self) -> list[int]:
        """Row numbers of the samples that failed, ascending."""
        table = self._store.table
        failed: list[int] = np.sort(table.rows_of(np.flatnonzero(table.status == FAILED))).tolist()
        return failed

    @property
    def nbytes(self) -> int:
        """Bytes held at rest: media, captions and bookkeeping."""
        return self._store.nbytes

    def set_epoch(self, epoch: int) -> None:
        """Let what chance decides follow the epoch, where it would else count how often a sample was served.

        That is `captions="random"`, and `crop="random"` of clips.

        Raises:
            ConfigError: The epoch is not a whole number from 0 on.
        """
        if self._turns is not None:
            self._turns.set_epoch(epoch)
        if self._share is not None:
            self._share.set_epoch(epoch)
            self._follow(self._share)  # now: what it attaches to here, worker processes find too

    def retry_failed(self, *, reasons: Collection[str] | None = None) -> LoadReport:
        """Load again only what failed, put it in its place, and return the new report.

        Sources that can be had no more (bytes of a dataset that was opened from a directory) stay failed.

        Args:
            reasons: Only what failed for one of these, such as `{"timeout", "reset"}`. With "checksum", every sample is
                compared with its checksum, and those that differ are loaded again too.

        Raises:
            ConfigError: There is no such reason.
            StoreError: The disk is full, or may not be written; then what was there is as it was.
            MemoryLimitError: Samples of different lengths must be packed anew in memory, and there is no room for that.
        """
        whole = self._store
        if isinstance(whole, Pieces):
            raise ConfigError("this is a part of what a cluster holds: call retry_failed() of the sharded dataset")
        store, effort = retry(self._request, whole, attempt=self._num_retries, reasons=reasons)
        self._num_retries += 1
        self._drop_media()
        if store is not whole:
            whole.close()
        self._take(store)
        self._effort = effort
        return self.report

    @property
    def resident_fraction(self) -> float:
        """Share of the dataset that lies in memory, 0 to 1.

        Of one in a directory the page cache holds what was read, until the memory is wanted for something else. Linux
        tells it of files that you own or may write; of others it says 1.0.

        Cost: a tenth of a millisecond for a gigabyte.
        """
        return resident_fraction(self._stores)

    def warm(self, *, progress: bool = True) -> float:
        """Read a dataset that lies in a directory into memory now, and not when its samples are asked for.

        It is read from its front, and no more of it than there is memory for.

        Returns:
            `resident_fraction`, which is below 1 where not all fits.

        Raises:
            StoreError: A file of it was cut short, or cannot be read.

        Cost: one read of what is not in memory yet, at the speed of the disk.
        """
        return warm(self._stores, progress=progress)

    def verify(self) -> list[int]:
        """List the row numbers of samples that differ from their checksums; `retry_failed` mends them.

        Cost: one read of everything.
        """
        return self._store.verify()

    def save(self, directory: str | os.PathLike[str], *, progress: bool = True) -> None:
        """Write the dataset into a directory of its own, which `load` maps in milliseconds; or publish it at a URL.

        What is there already of an older dataset is replaced, the manifest last: an interrupted save never looks
        complete. Before it is published, every sample is compared with its checksum.

        Of a node's dataset in a cluster, all that this process can reach is written; the rows are then numbered anew,
        from 0 on.

        Args:
            directory: A directory, or the URL of any storage fsspec knows, such as `s3://bucket/birds`, or
                `hf://datasets/user/birds`: a repository that is not there yet is made there, and is private. Settings
                and logins are those of the storage's own package.
            progress: Whether to draw a progress bar.

        Raises:
            StoreError: Other files are there; or the disk is full, or may not be written, and then what was there
                before is as it was; or, at a URL, samples are altered.
            MissingExtraError: The storage needs a package that is not installed.
        """
        save(self._store, directory, progress=progress)

    def close(self) -> None:
        """Give up the memory now and not when the dataset is collected; batches handed out stay as they are."""
        self._drop_media()
        self._ring = None
        if self._loading is not None:
            self._loading.cancel()
        if self._whole is not None:
            self._whole.close()
        if self._share is not None:
            self._share.close()
            self._share = None

    def _drop_media(self) -> None:
        if isinstance(self._media, (HostMedia, EncodedMedia)):
            self._media.close()
        self._media = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        # The rows stay behind: they may be large, and what failed is known to the store.
        request = replace(self._request, reader=None, job=None)
        # Which slots are served is found anew, but of a cluster's samples, where the share has said it.
        slots = self._slots if isinstance(self._whole, Pieces) else None
        return {**self.__dict__, "_request": request, "_slots": slots, "_was_read": None, "_media": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._index_slots()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._describe()})"

    def _describe(self) -> str:
        if self._loading is not None:
            return f"{len(self):,} samples, {self.progress:.0%} loaded"
        if self._store.closed:
            return "closed"
        failed = len(self.failed_indices)
        return f"{len(self):,} samples, {self.nbytes:,} bytes" + (f", {failed:,} failed" if failed else "")
