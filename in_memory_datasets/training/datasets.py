"""The in-memory datasets: everything is loaded once, and a batch is one gather from memory."""

from __future__ import annotations

import inspect
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

from in_memory_datasets.build import LoadRequest, OnError, load, plan, retry
from in_memory_datasets.errors import LoadError, StoreError
from in_memory_datasets.rows import ColumnSpec, open_rows
from in_memory_datasets.schema import (
    AudioDtype,
    AudioSpec,
    FetchOptions,
    ImageSpec,
    LoadReport,
    MemoryPlan,
    Resize,
    parse_bytes,
)
from in_memory_datasets.store import FAILED, LOADED, Store, open_store, save_store
from in_memory_datasets.training.batches import AudioBatch, ImageBatch
from in_memory_datasets.training.captions import Captions, CaptionTurns
from in_memory_datasets.training.job import detect_job
from in_memory_datasets.training.serving import (
    PLACEHOLDER_GREY,
    AudioOutput,
    AudioServing,
    Books,
    ImageOutput,
    ImageServing,
    PadTo,
    Transform,
    check_on_error,
    silence,
)

ServingT = TypeVar("ServingT", ImageServing, AudioServing)


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
    def _load(
        cls, directory: str | os.PathLike[str], *, verify: bool, request: dict[str, Any], serving: ServingT
    ) -> Self:
        store = open_store(directory)
        if not isinstance(store.spec, cls._SPEC):
            store.close()
            raise StoreError(
                f"{os.fspath(directory)} holds {type(store.spec).__name__}s, not what {cls.__name__} serves"
            )
        if verify and (bad := store.verify()):
            store.close()
            raise StoreError(
                f"{os.fspath(directory)}: {len(bad):,} of {store.num_samples:,} samples differ from their checksums "
                f"(rows {bad[:5]}…): load them again, or open without verify and leave them out"
            )
        report = store.table.report(seconds=0.0, bytes_fetched=0, nbytes=store.nbytes)
        full = LoadRequest(reader=None, spec=store.spec, **request)
        if full.on_error == "raise" and report.failures:
            store.close()
            raise LoadError(f"{os.fspath(directory)} holds failed samples; the first is {report.failures[0]}")
        dataset = cls.__new__(cls)
        dataset._open(full, serving, store, report)
        return dataset

    @abstractmethod
    def __getitems__(self, indices: Sequence[int]) -> Any:
        """Gather a batch."""

    _SPEC: type = object

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
            MemoryLimitError: Clips must be packed anew and there is no room for that.
        """
        store, report = retry(self._request, self._store, attempt=self._num_retries)
        self._num_retries += 1
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


class InMemoryImageTextDataset(InMemoryDataset[ImageServing]):
    """Images and captions, loaded into memory once and served from there.

    A sample is `{"image": uint8 (3, H, W), "caption": str, "index": int, "valid": bool}`; batches come through
    `collate_in_memory_images`.

    Args:
        hf_dataset: A `datasets.Dataset` or `IterableDataset`, or any sequence or iterable of mappings.
        img_col: The column of sources: a name, a dotted path into nested columns, or a callable of the row. A source
            is an http(s) URL, a path, an fsspec URL, encoded bytes, an HF `Image` value, a picture or an array.
        txt_col: The column of captions, likewise.
        max_samples: Rows to take from the front; None takes all.
        image_size: (width, height) in pixels.
        resize: "stretch" to the size, "crop" the centre, or "pad" with black.
        captions: Of several captions the "first", a "random" one (another each epoch, seeded), or "all" as a list.
        on_error: A failed sample is served as a grey "placeholder" with `valid` False, is left out ("skip"), or ends
            the load ("raise").
        output: "torch", "numpy" (H, W, 3) or "pil".
        transform: Called on one sample's image, as `output` gives it.
        batch_transform: Called on the batch tensor.
        cache_dir: A directory: the dataset is built there once, and attached to ever after.
        memory_limit: Bytes, or text such as "16GB"; None takes what the container or machine has free.
        fetch: How sources are fetched.
        num_threads: Decode threads; None takes one per core.
        progress: Whether to draw a progress bar.

    Raises:
        ConfigError: An argument cannot work; before anything is read.
        MemoryLimitError: It does not fit; before anything is fetched.
        LoadError: No sample could be loaded, or one could not and `on_error` is "raise".

    Cost: one fetch and decode per sample; width · height · 3 bytes each at rest, one copy per machine.

    Example:
        >>> rows = [{"image_url": np.full((2, 2, 3), 7, np.uint8), "caption": "dark"}]
        >>> dataset = InMemoryImageTextDataset(rows, image_size=(4, 4), progress=False)
        >>> dataset[0]["image"].shape, dataset[0]["caption"]
        (torch.Size([3, 4, 4]), 'dark')
    """

    _SPEC = ImageSpec

    def __init__(
        self,
        hf_dataset: Any,
        img_col: ColumnSpec = "image_url",
        txt_col: ColumnSpec = "caption",
        max_samples: int | None = None,
        image_size: tuple[int, int] = (224, 224),
        *,
        resize: Resize = "stretch",
        captions: Captions = "first",
        on_error: OnError = "placeholder",
        output: ImageOutput = "torch",
        transform: Transform | None = None,
        batch_transform: Transform | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        memory_limit: int | str | None = None,
        fetch: FetchOptions = FetchOptions(),  # noqa: B008 - frozen
        num_threads: int | None = None,
        progress: bool = True,
    ) -> None:
        check_on_error(on_error)
        spec = ImageSpec(image_size, resize)
        serving = ImageServing(captions=captions, output=output, transform=transform, batch_transform=batch_transform)
        super().__init__(
            LoadRequest(
                spec=spec,
                memory_limit=None if memory_limit is None else parse_bytes(memory_limit),
                reader=open_rows(hf_dataset, media_col=img_col, txt_col=txt_col, max_samples=max_samples),
                fetch=fetch,
                on_error=on_error,
                num_threads=num_threads,
                progress=progress,
                cache_dir=cache_dir,
                job=detect_job(),
            ),
            serving,
        )

    @classmethod
    def plan(
        cls,
        hf_dataset: Any,
        img_col: ColumnSpec = "image_url",
        txt_col: ColumnSpec = "caption",
        max_samples: int | None = None,
        image_size: tuple[int, int] = (224, 224),
        *,
        resize: Resize = "stretch",
        memory_limit: int | str | None = None,
        **others: Any,
    ) -> MemoryPlan:
        """Compute what the dataset would take in memory, and whether that fits; nothing is fetched.

        Takes the arguments of the class, so that the same ones serve both; `others` do not bear on the size.

        Raises:
            ConfigError: An argument cannot work.
            TypeError: There is no such argument.

        Cost: reads the captions of up to 128 rows.

        Example:
            >>> InMemoryImageTextDataset.plan([{"image_url": "a.jpg", "caption": ""}] * 1000).num_samples
            1000
        """
        inspect.signature(cls).bind(hf_dataset, **others)
        return plan(
            LoadRequest(
                reader=open_rows(hf_dataset, media_col=img_col, txt_col=txt_col, max_samples=max_samples),
                spec=ImageSpec(image_size, resize),
                memory_limit=None if memory_limit is None else parse_bytes(memory_limit),
            )
        )

    @classmethod
    def load(
        cls,
        directory: str | os.PathLike[str],
        *,
        verify: bool = False,
        captions: Captions = "first",
        on_error: OnError = "placeholder",
        output: ImageOutput = "torch",
        transform: Transform | None = None,
        batch_transform: Transform | None = None,
        fetch: FetchOptions = FetchOptions(),  # noqa: B008 - frozen
        num_threads: int | None = None,
        progress: bool = True,
    ) -> Self:
        """Map a dataset that `save` or a `cache_dir` left in a directory; nothing is read but its rows.

        Args:
            directory: Where it lies.
            verify: Whether to compare every sample with its checksum first, which reads everything.

        The other arguments are those of the class; `fetch`, `num_threads` and `progress` are for `retry_failed`.

        Raises:
            StoreError: It is no complete dataset of images, or of another version, or altered.
            LoadError: It holds failed samples and `on_error` is "raise".
        """
        check_on_error(on_error)
        return cls._load(
            directory,
            verify=verify,
            request={"on_error": on_error, "fetch": fetch, "num_threads": num_threads, "progress": progress},
            serving=ImageServing(
                captions=captions, output=output, transform=transform, batch_transform=batch_transform
            ),
        )

    def __getitems__(self, indices: Sequence[int]) -> ImageBatch:
        """Gather a batch in one copy.

        Args:
            indices: Positions in the dataset, in any order, repeats allowed.

        Returns:
            A sequence of samples that lies in one piece, for the collate functions.

        Raises:
            IndexError: There is no such sample.
            StoreError: The dataset was closed.

        Cost: one copy of B · H · W · 3 bytes.
        """
        slots, books = self._find_slots(indices)
        images = self._store.images
        assert images is not None
        buffer = self._serving.buffer((len(slots), *images.shape[1:]))
        np.take(images, slots, axis=0, out=buffer, mode="clip")  # the default mode copies through a second buffer
        if not books.valid.all():
            buffer[~books.valid] = PLACEHOLDER_GREY
        return self._serving.batch(buffer, books)


class InMemoryAudioTextDataset(InMemoryDataset[AudioServing]):
    """Clips and captions, loaded into memory once and served from there.

    A sample is `{"audio": float32 (num_frames,), "sampling_rate": int, "caption": str, "index": int, "valid": bool}`;
    batches come through `collate_in_memory_audio`. At rest each clip takes the room of its own length.

    Args:
        hf_dataset: A `datasets.Dataset` or `IterableDataset`, or any sequence or iterable of mappings.
        audio_col: The column of sources: a name, a dotted path into nested columns, or a callable of the row. A source
            is an http(s) URL, a path, an fsspec URL, encoded bytes, an HF `Audio` value, decoded or not, or an array.
        txt_col: The column of captions, likewise.
        max_samples: Rows to take from the front; None takes all.
        target_sr: Sampling rate in Hz that clips are resampled to; channels are mixed down by their mean.
        max_duration: Seconds of a clip that are kept; what follows is not decoded.
        dtype: How frames lie at rest: "float32", or "int16" at half the size. Served is float32 in [-1, 1].
        pad_to: Batches are padded to their "longest" clip, or to "max" (`max_duration`).
        captions: Of several captions the "first", a "random" one (another each epoch, seeded), or "all" as a list.
        on_error: A failed sample is served as a second of silence with `valid` False ("placeholder"), is left out
            ("skip"), or ends the load ("raise").
        output: "torch" or "numpy".
        transform: Called on one clip's waveform, (num_frames,).
        batch_transform: Called on the padded batch, (B, T).
        cache_dir: A directory: the dataset is built there once, and attached to ever after.
        memory_limit: Bytes, or text such as "16GB"; None takes what the container or machine has free.
        fetch: How sources are fetched.
        num_threads: Decode threads; None takes one per core.
        progress: Whether to draw a progress bar.

    Raises:
        ConfigError: An argument cannot work; before anything is read.
        MemoryLimitError: It may not fit; before anything is fetched.
        LoadError: No sample could be loaded, or one could not and `on_error` is "raise".

    Cost: one fetch and decode per sample; 4 (or 2) bytes per frame at rest, one copy per machine.

    Example:
        >>> rows = [{"audio": {"array": np.zeros(8000), "sampling_rate": 8000}, "caption": "silence"}]
        >>> dataset = InMemoryAudioTextDataset(rows, target_sr=16_000, progress=False)
        >>> dataset[0]["audio"].shape, dataset[0]["sampling_rate"]
        (torch.Size([16000]), 16000)
    """

    _SPEC = AudioSpec

    def __init__(
        self,
        hf_dataset: Any,
        audio_col: ColumnSpec = "audio",
        txt_col: ColumnSpec = "caption",
        max_samples: int | None = None,
        target_sr: int = 16_000,
        max_duration: float = 30.0,
        *,
        dtype: AudioDtype = "float32",
        pad_to: PadTo = "longest",
        captions: Captions = "first",
        on_error: OnError = "placeholder",
        output: AudioOutput = "torch",
        transform: Transform | None = None,
        batch_transform: Transform | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        memory_limit: int | str | None = None,
        fetch: FetchOptions = FetchOptions(),  # noqa: B008 - frozen
        num_threads: int | None = None,
        progress: bool = True,
    ) -> None:
        check_on_error(on_error)
        spec = AudioSpec(target_sr, max_duration, dtype)
        serving = AudioServing(
            captions=captions, output=output, transform=transform, batch_transform=batch_transform, pad_to=pad_to
        )
        super().__init__(
            LoadRequest(
                spec=spec,
                memory_limit=None if memory_limit is None else parse_bytes(memory_limit),
                reader=open_rows(hf_dataset, media_col=audio_col, txt_col=txt_col, max_samples=max_samples),
                fetch=fetch,
                on_error=on_error,
                num_threads=num_threads,
                progress=progress,
                cache_dir=cache_dir,
                job=detect_job(),
            ),
            serving,
        )

    @classmethod
    def plan(
        cls,
        hf_dataset: Any,
        audio_col: ColumnSpec = "audio",
        txt_col: ColumnSpec = "caption",
        max_samples: int | None = None,
        target_sr: int = 16_000,
        max_duration: float = 30.0,
        *,
        dtype: AudioDtype = "float32",
        memory_limit: int | str | None = None,
        **others: Any,
    ) -> MemoryPlan:
        """Compute what the dataset would take at most, every clip as long as `max_duration`; nothing is fetched.

        Takes the arguments of the class, so that the same ones serve both; `others` do not bear on the size.

        Raises:
            ConfigError: An argument cannot work.
            TypeError: There is no such argument.

        Cost: reads the captions of up to 128 rows.

        Example:
            >>> InMemoryAudioTextDataset.plan([{"audio": "a.wav", "caption": ""}] * 500, dtype="int16").is_upper_bound
            True
        """
        inspect.signature(cls).bind(hf_dataset, **others)
        return plan(
            LoadRequest(
                reader=open_rows(hf_dataset, media_col=audio_col, txt_col=txt_col, max_samples=max_samples),
                spec=AudioSpec(target_sr, max_duration, dtype),
                memory_limit=None if memory_limit is None else parse_bytes(memory_limit),
            )
        )

    @classmethod
    def load(
        cls,
        directory: str | os.PathLike[str],
        *,
        verify: bool = False,
        pad_to: PadTo = "longest",
        captions: Captions = "first",
        on_error: OnError = "placeholder",
        output: AudioOutput = "torch",
        transform: Transform | None = None,
        batch_transform: Transform | None = None,
        fetch: FetchOptions = FetchOptions(),  # noqa: B008 - frozen
        num_threads: int | None = None,
        progress: bool = True,
    ) -> Self:
        """Map a dataset that `save` or a `cache_dir` left in a directory; nothing is read but its rows.

        Args:
            directory: Where it lies.
            verify: Whether to compare every sample with its checksum first, which reads everything.

        The other arguments are those of the class; `fetch`, `num_threads` and `progress` are for `retry_failed`.

        Raises:
            StoreError: It is no complete dataset of clips, or of another version, or altered.
            LoadError: It holds failed samples and `on_error` is "raise".
        """
        check_on_error(on_error)
        return cls._load(
            directory,
            verify=verify,
            request={"on_error": on_error, "fetch": fetch, "num_threads": num_threads, "progress": progress},
            serving=AudioServing(
                captions=captions, output=output, transform=transform, batch_transform=batch_transform, pad_to=pad_to
            ),
        )

    def __getitems__(self, indices: Sequence[int]) -> AudioBatch:
        """Gather a batch in one copy, padded with zeros.

        Args:
            indices: Positions in the dataset, in any order, repeats allowed.

        Returns:
            A sequence of samples that lies in one piece, for the collate functions.

        Raises:
            IndexError: There is no such sample.
            StoreError: The dataset was closed.

        Cost: one copy of B · T · 4 bytes.
        """
        slots, books = self._find_slots(indices)
        store, spec = self._store, self._store.spec
        assert isinstance(spec, AudioSpec)
        clips = [
            store.sample(slot) if valid else silence(spec)
            for slot, valid in zip(slots.tolist(), books.valid.tolist(), strict=True)
        ]
        return self._serving.batch(clips, books, spec=spec)
