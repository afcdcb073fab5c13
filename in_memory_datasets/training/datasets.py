"""The in-memory datasets: everything is loaded once, and a batch is one gather from memory."""

from __future__ import annotations

import inspect
import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from typing_extensions import Self

from in_memory_datasets.build import LoadRequest, OnError, Storage, plan
from in_memory_datasets.rows import ColumnSpec, MaxSamples, open_rows
from in_memory_datasets.schema import (
    AudioDtype,
    AudioSpec,
    FetchOptions,
    ImageSpec,
    MemoryPlan,
    Resize,
)
from in_memory_datasets.store import LOADED, LiveStore, Pieces, Store
from in_memory_datasets.store.cache import CacheDir
from in_memory_datasets.training.batches import AudioBatch, ImageBatch
from in_memory_datasets.training.encoded import EncodedMedia
from in_memory_datasets.training.in_memory import InMemoryDataset
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
    clip_spec,
)
from in_memory_datasets.training.turns import Captions, Crop, Draws


class InMemoryImageTextDataset(InMemoryDataset[ImageServing]):
    """Images and captions, loaded into memory once and served from there.

    A sample is `{"image": uint8 (3, H, W), "caption": str, "index": int, "valid": bool}`; batches come through
    `collate_in_memory_images`.

    Args:
        hf_dataset: A `datasets.Dataset` or `IterableDataset`, or any sequence or iterable of mappings.
        img_col: The column of sources: a name, a dotted path into nested columns, or a callable of the row. A source
            is an http(s) URL, a path, an fsspec URL, encoded bytes, an HF `Image` value, a picture or an array.
        txt_col: The column of captions, likewise.
        max_samples: Rows to take from the front; None takes all, "auto" as many as there is memory for.
        image_size: (width, height) in pixels.
        resize: "stretch" to the size, "crop" the centre, or "pad" with black.
        captions: Of several captions the "first", a "random" one (another each epoch, seeded), or "all" as a list.
        on_error: A failed sample is served as a grey "placeholder" with `valid` False, is left out ("skip"), or ends
            the load ("raise").
        output: "torch", "numpy" (H, W, 3) or "pil".
        transform: Called on one sample's image, as `output` gives it.
        batch_transform: Called on the batch tensor.
        cache_dir: A directory: the dataset is built there once, and attached to ever after. True takes the platform's
            own directory for caches.
        storage: "decoded" keeps pixels; "encoded" keeps compressed bytes and decodes them on access, on all cores;
            "auto" keeps as many decoded as there is memory for, the rest encoded, and with a `cache_dir` what does not
            fit even so on disk.
        recompress: ("jpeg", quality) keeps encoded pictures that are larger than `image_size` as a JPEG of that size.
        memory_limit: Bytes, or text such as "16GB"; None takes what the container or machine has free.
        lock_memory: Whether to keep the dataset in memory (mlock) for as long as this process has it open: neither
            swapped nor, in a directory, dropped from the page cache.
        fetch: How sources are fetched.
        num_threads: Decode threads; None takes one per core.
        progress: Whether to draw a progress bar.
        wait: Whether to load everything before anything else is done. With False training can begin with what has
            arrived: asking for a sample waits for it, and so does what needs all of them, see `wait()`. What goes wrong
            with the load is raised there then.

    Raises:
        ConfigError: An argument cannot work; before anything is read.
        MemoryLimitError: It does not fit; before anything is fetched.
        LoadError: No sample could be loaded, or one could not and `on_error` is "raise".

    Cost: one fetch and decode per source, however many rows name it; width · height · 3 bytes each at rest, one copy
    per machine.

    Example:
        >>> rows = [{"image_url": np.full((2, 2, 3), 7, np.uint8), "caption": "dark"}]
        >>> dataset = InMemoryImageTextDataset(rows, image_size=(4, 4), progress=False)
        >>> dataset[0]["image"].shape, dataset[0]["caption"]
        (torch.Size([3, 4, 4]), 'dark')
    """

    def __init__(
        self,
        hf_dataset: Any,
        img_col: ColumnSpec = "image_url",
        txt_col: ColumnSpec = "caption",
        max_samples: MaxSamples = None,
        image_size: tuple[int, int] = (224, 224),
        *,
        resize: Resize = "stretch",
        captions: Captions = "first",
        on_error: OnError = "placeholder",
        output: ImageOutput = "torch",
        transform: Transform | None = None,
        batch_transform: Transform | None = None,
        cache_dir: CacheDir | None = None,
        storage: Storage = "decoded",
        recompress: tuple[str, int] | None = None,
        memory_limit: int | str | None = None,
        lock_memory: bool = False,
        fetch: FetchOptions = FetchOptions(),  # noqa: B008 - frozen
        num_threads: int | None = None,
        progress: bool = True,
        wait: bool = True,
    ) -> None:
        request = LoadRequest(
            spec=ImageSpec(image_size, resize, recompress),
            fetch=fetch,
            on_error=on_error,
            num_threads=num_threads,
            progress=progress,
            memory_limit=memory_limit,
            lock_memory=lock_memory,
            storage=storage,
            cache_dir=cache_dir,
        )
        serving = ImageServing(captions=captions, output=output, transform=transform, batch_transform=batch_transform)
        super().__init__(
            replace(
                request,
                reader=open_rows(hf_dataset, media_col=img_col, txt_col=txt_col, max_samples=max_samples),
                job=detect_job(),
            ),
            serving,
            wait=wait,
        )

    @classmethod
    def plan(
        cls,
        hf_dataset: Any,
        img_col: ColumnSpec = "image_url",
        txt_col: ColumnSpec = "caption",
        max_samples: MaxSamples = None,
        image_size: tuple[int, int] = (224, 224),
        *,
        resize: Resize = "stretch",
        storage: Storage = "decoded",
        recompress: tuple[str, int] | None = None,
        memory_limit: int | str | None = None,
        fetch: FetchOptions = FetchOptions(),  # noqa: B008 - frozen
        num_threads: int | None = None,
        probe: int = 0,
        **others: Any,
    ) -> MemoryPlan:
        """Compute what the dataset would take in memory, decoded and encoded, and whether that fits.

        Takes the arguments of the class, so that the same ones serve both; `others` do not bear on the size. Nothing is
        fetched unless a `probe` is asked for. Where rows repeat a source it takes less: each is stored once, which a
        load finds out before it refuses what does not fit.

        Args:
            probe: How many of the first samples to fetch and decode, 64 at most, to tell how long the load will take
                and how large encoded samples are.

        Raises:
            ConfigError: An argument cannot work.
            TypeError: There is no such argument.

        Cost: reads up to 128 rows, for the length of their captions and the sizes of their files.

        Example:
            >>> InMemoryImageTextDataset.plan([{"image_url": "a.jpg", "caption": ""}] * 1000).num_samples
            1000
        """
        inspect.signature(cls).bind(hf_dataset, **others)
        return plan(
            LoadRequest(
                reader=open_rows(hf_dataset, media_col=img_col, txt_col=txt_col, max_samples=max_samples),
                spec=ImageSpec(image_size, resize, recompress),
                storage=storage,
                memory_limit=memory_limit,
                fetch=fetch,
                num_threads=num_threads,
            ),
            probe=probe,
        )

    @classmethod
    def load(
        cls,
        directory: str | os.PathLike[str],
        *,
        verify: bool = False,
        cache_dir: CacheDir | None = None,
        lock_memory: bool = False,
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

        One that was published at a URL is downloaded first, and every sample compared with its checksum; the next time
        it is mapped likewise.

        Args:
            directory: Where it lies: a directory, or a URL, see `save`.
            verify: Whether to compare every sample with its checksum first, which reads everything.
            cache_dir: Where to download to; None takes the platform's own directory for caches.
            lock_memory: Whether to read it into memory and keep it there for as long as this process has it open.

        The other arguments are those of the class; `fetch`, `num_threads` and `progress` are for `retry_failed`.

        Raises:
            StoreError: It is no complete dataset of images, or of another version, or altered.
            LoadError: It holds failed samples and `on_error` is "raise".
            MissingExtraError: The storage needs a package that is not installed.
            MemoryLimitError: It is to be locked, and there is less memory, or the system does not allow that much.
        """
        return cls._load(
            directory,
            verify=verify,
            request=LoadRequest(
                spec=ImageSpec(),
                cache_dir=cache_dir,
                lock_memory=lock_memory,
                fetch=fetch,
                on_error=on_error,
                num_threads=num_threads,
                progress=progress,
            ),
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
        view = self._view()
        numbers, _, books = self._find(view, indices)
        there = books.to(self._device)
        images = self._samples(view).images(there.indices if numbers is books.indices else numbers.to(self._device))
        if self._any_failed and not there.valid.all():
            images[~there.valid] = PLACEHOLDER_GREY
        return self._serving.batch(images, there)


class InMemoryAudioTextDataset(InMemoryDataset[AudioServing]):
    """Clips and captions, loaded into memory once and served from there.

    A sample is `{"audio": float32 (num_frames,), "sampling_rate": int, "caption": str, "index": int, "valid": bool}`;
    batches come through `collate_in_memory_audio`. At rest each clip takes the room of its own length.

    Args:
        hf_dataset: A `datasets.Dataset` or `IterableDataset`, or any sequence or iterable of mappings.
        audio_col: The column of sources: a name, a dotted path into nested columns, or a callable of the row. A source
            is an http(s) URL, a path, an fsspec URL, encoded bytes, an HF `Audio` value, decoded or not, or an array.
        txt_col: The column of captions, likewise.
        max_samples: Rows to take from the front; None takes all, "auto" as many as there is memory for.
        target_sr: Sampling rate in Hz that clips are resampled to; channels are mixed down by their mean.
        max_duration: Seconds of a clip that are served, from its start; what follows is neither decoded nor kept.
        dtype: How frames lie at rest: "float32", or "int16" at half the size. Served is float32 in [-1, 1].
        pad_to: Batches are padded to their "longest" clip, or to "max" (`max_duration`), which what a `transform` gives
            must then fit into.
        crop: Of a clip longer than `max_duration` the "start" is served, or a "random" part (another each epoch,
            seeded), for which more of it is kept at rest.
        keep_duration: Seconds of a clip that are kept with `crop="random"`; None for four times `max_duration`.
        captions: Of several captions the "first", a "random" one (another each epoch, seeded), or "all" as a list.
        on_error: A failed sample is served as a second of silence with `valid` False ("placeholder"), is left out
            ("skip"), or ends the load ("raise").
        output: "torch" or "numpy".
        transform: Called on one clip's waveform, (num_frames,).
        batch_transform: Called on the padded batch, (B, T).
        cache_dir: A directory: the dataset is built there once, and attached to ever after. True takes the platform's
            own directory for caches.
        storage: "decoded" keeps frames; "encoded" keeps FLAC of 16 bits and decodes it on access, on all cores; "auto"
            keeps as many decoded as there is memory for, the rest encoded, and with a `cache_dir` what does not fit
            even so on disk.
        memory_limit: Bytes, or text such as "16GB"; None takes what the container or machine has free.
        lock_memory: Whether to keep the dataset in memory (mlock) for as long as this process has it open: neither
            swapped nor, in a directory, dropped from the page cache.
        fetch: How sources are fetched.
        num_threads: Decode threads; None takes one per core.
        progress: Whether to draw a progress bar.
        wait: Whether to load everything before anything else is done. With False training can begin with what has
            arrived: asking for a sample waits for it, and so does what needs all of them, see `wait()`. What goes wrong
            with the load is raised there then.

    Raises:
        ConfigError: An argument cannot work; before anything is read.
        MemoryLimitError: It may not fit; before anything is fetched.
        LoadError: No sample could be loaded, or one could not and `on_error` is "raise".

    Cost: one fetch and decode per source, however many rows name it; 4 (or 2) bytes per frame at rest, one copy per
    machine.

    Example:
        >>> rows = [{"audio": {"array": np.zeros(8000), "sampling_rate": 8000}, "caption": "silence"}]
        >>> dataset = InMemoryAudioTextDataset(rows, target_sr=16_000, progress=False)
        >>> dataset[0]["audio"].shape, dataset[0]["sampling_rate"]
        (torch.Size([16000]), 16000)
    """

    def __init__(
        self,
        hf_dataset: Any,
        audio_col: ColumnSpec = "audio",
        txt_col: ColumnSpec = "caption",
        max_samples: MaxSamples = None,
        target_sr: int = 16_000,
        max_duration: float = 30.0,
        *,
        dtype: AudioDtype = "float32",
        pad_to: PadTo = "longest",
        crop: Crop = "start",
        keep_duration: float | None = None,
        captions: Captions = "first",
        on_error: OnError = "placeholder",
        output: AudioOutput = "torch",
        transform: Transform | None = None,
        batch_transform: Transform | None = None,
        cache_dir: CacheDir | None = None,
        storage: Storage = "decoded",
        memory_limit: int | str | None = None,
        lock_memory: bool = False,
        fetch: FetchOptions = FetchOptions(),  # noqa: B008 - frozen
        num_threads: int | None = None,
        progress: bool = True,
        wait: bool = True,
    ) -> None:
        request = LoadRequest(
            spec=clip_spec(target_sr, max_duration, dtype, crop, keep_duration),
            fetch=fetch,
            on_error=on_error,
            num_threads=num_threads,
            progress=progress,
            memory_limit=memory_limit,
            lock_memory=lock_memory,
            storage=storage,
            cache_dir=cache_dir,
        )
        serving = AudioServing(
            captions=captions,
            output=output,
            transform=transform,
            batch_transform=batch_transform,
            pad_to=pad_to,
            crop=crop,
            window_seconds=max_duration,
        )
        super().__init__(
            replace(
                request,
                reader=open_rows(hf_dataset, media_col=audio_col, txt_col=txt_col, max_samples=max_samples),
                job=detect_job(),
            ),
            serving,
            wait=wait,
        )

    @classmethod
    def plan(
        cls,
        hf_dataset: Any,
        audio_col: ColumnSpec = "audio",
        txt_col: ColumnSpec = "caption",
        max_samples: MaxSamples = None,
        target_sr: int = 16_000,
        max_duration: float = 30.0,
        *,
        dtype: AudioDtype = "float32",
        crop: Crop = "start",
        keep_duration: float | None = None,
        storage: Storage = "decoded",
        memory_limit: int | str | None = None,
        fetch: FetchOptions = FetchOptions(),  # noqa: B008 - frozen
        num_threads: int | None = None,
        probe: int = 0,
        **others: Any,
    ) -> MemoryPlan:
        """Compute what the dataset would take at most, every clip as long as `max_duration`, in every form.

        Takes the arguments of the class, so that the same ones serve both; `others` do not bear on the size. Nothing is
        fetched unless a `probe` is asked for. Rows that repeat a source are counted each, as of pictures.

        Args:
            probe: How many of the first clips to fetch and decode, 64 at most: their lengths and sizes stand for all,
                and tell how long the load will take.

        Raises:
            ConfigError: An argument cannot work.
            TypeError: There is no such argument.

        Cost: reads up to 128 rows, for the length of their captions.

        Example:
            >>> InMemoryAudioTextDataset.plan([{"audio": "a.wav", "caption": ""}] * 500, dtype="int16").is_upper_bound
            True
        """
        inspect.signature(cls).bind(hf_dataset, **others)
        return plan(
            LoadRequest(
                reader=open_rows(hf_dataset, media_col=audio_col, txt_col=txt_col, max_samples=max_samples),
                spec=clip_spec(target_sr, max_duration, dtype, crop, keep_duration),
                storage=storage,
                memory_limit=memory_limit,
                fetch=fetch,
                num_threads=num_threads,
            ),
            probe=probe,
        )

    @classmethod
    def load(
        cls,
        directory: str | os.PathLike[str],
        *,
        verify: bool = False,
        cache_dir: CacheDir | None = None,
        lock_memory: bool = False,
        pad_to: PadTo = "longest",
        crop: Crop = "start",
        max_duration: float | None = None,
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

        One that was published at a URL is downloaded first, and every sample compared with its checksum; the next time
        it is mapped likewise.

        Args:
            directory: Where it lies: a directory, or a URL, see `save`.
            verify: Whether to compare every sample with its checksum first, which reads everything.
            cache_dir: Where to download to; None takes the platform's own directory for caches.
            lock_memory: Whether to read it into memory and keep it there for as long as this process has it open.
            max_duration: Seconds of a clip that are served; None for all that is kept there.

        The other arguments are those of the class; `fetch`, `num_threads` and `progress` are for `retry_failed`.

        Raises:
            StoreError: It is no complete dataset of clips, or of another version, or altered.
            LoadError: It holds failed samples and `on_error` is "raise".
            MissingExtraError: The storage needs a package that is not installed.
            MemoryLimitError: It is to be locked, and there is less memory, or the system does not allow that much.
        """
        return cls._load(
            directory,
            verify=verify,
            request=LoadRequest(
                spec=AudioSpec(),
                cache_dir=cache_dir,
                lock_memory=lock_memory,
                fetch=fetch,
                on_error=on_error,
                num_threads=num_threads,
                progress=progress,
            ),
            serving=AudioServing(
                captions=captions,
                output=output,
                transform=transform,
                batch_transform=batch_transform,
                pad_to=pad_to,
                crop=crop,
                window_seconds=max_duration,
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
        view = self._view()
        found, draws, books = self._find(view, indices)
        while True:
            version = view.version
            batch = self._gather(view, found.numpy(), draws, books)
            if not isinstance(view, LiveStore) or version == view.version:
                return batch
            view.wait_for(found.numpy())  # clips that arrive were moved meanwhile

    def _gather(
        self, view: LiveStore | Store | Pieces, numbers: NDArray[np.int64], draws: Draws | None, books: Books
    ) -> AudioBatch:
        # All of it from this view: another may be there by now, and what it was made of be closed.
        media, serving, spec = self._samples(view), self._serving, view.spec
        assert isinstance(spec, AudioSpec)
        starts, lengths = view.clip_places(numbers)
        starts, lengths = serving.cut(starts, lengths, draws, spec)
        if self._any_failed:
            failed = ~books.valid.numpy()
            starts[failed], lengths[failed] = -1, serving.placeholder_frames(spec)
        if serving.transform is not None:
            if isinstance(media, EncodedMedia):  # all at once, by all cores
                padded = media.clips(starts.tolist(), lengths.tolist(), int(lengths.max(initial=0)))
                clips = [clip[:length] for clip, length in zip(padded, lengths.tolist(), strict=True)]
            else:
                each = zip(starts.tolist(), lengths.tolist(), strict=True)
                clips = [media.clips([start], [length], length)[0] for start, length in each]
            return serving.batch(clips, books.to(self._device), spec=spec)
        num_frames = serving.max_frames(spec) if serving.pad_to == "max" else int(lengths.max(initial=0))
        audio = media.clips(starts.tolist(), lengths.tolist(), num_frames)
        frames = torch.from_numpy(lengths).to(self._device)
        return serving.padded(audio, frames, books.to(self._device), spec=spec)

    @property
    def _spec(self) -> AudioSpec:
        spec = self._view().spec
        assert isinstance(spec, AudioSpec)
        return spec

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Frames of each sample as it is served, by position: int64, shape (len(dataset),)."""
        store = self._store
        offsets, table = store.offsets, store.table
        assert offsets is not None
        lengths = np.minimum(np.diff(offsets), self._serving.max_frames(self._spec))[table.sample_of(self._slots)]
        lengths[table.status[self._slots] != LOADED] = self._serving.placeholder_frames(self._spec)
        return np.asarray(lengths)

    @property
    def sampling_rate(self) -> int:
        """Sampling rate of the clips, in Hz."""
        return self._spec.target_sr

    @property
    def pad_to(self) -> PadTo:
        """What batches are padded to: their "longest" clip, or "max"."""
        return self._serving.pad_to
