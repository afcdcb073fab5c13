"""The on-the-fly twins: every sample is fetched and decoded again whenever it is asked for.

They share rows, fetch, decode and serving with the in-memory datasets, so that changing one import is the whole
migration, and a comparison of the two compares nothing else.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Generic, Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from in_memory_datasets.decode import decode_audio, decode_image
from in_memory_datasets.errors import ConfigError, LoadError, SampleError
from in_memory_datasets.fetch import Fetcher
from in_memory_datasets.rows import ColumnSpec, open_rows
from in_memory_datasets.schema import AudioSpec, FetchOptions, ImageSpec, Resize, Row, check_choice
from in_memory_datasets.training.batches import AudioBatch, ImageBatch
from in_memory_datasets.training.buffers import BufferPool
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
from in_memory_datasets.training.turns import Captions, Crop, Draws, Turns

OnTheFlyOnError = Literal["placeholder", "raise"]
SpecT = TypeVar("SpecT", bound="ImageSpec | AudioSpec")
ServingT = TypeVar("ServingT", bound="ImageServing | AudioServing")


class OnTheFlyDataset(Dataset[Any], Generic[SpecT, ServingT]):
    """What both on-the-fly datasets have in common.

    Raises:
        ConfigError: The rows cannot be read in any order.
    """

    _decode: Callable[..., NDArray[Any]]

    def __init__(
        self,
        rows: tuple[Any, ColumnSpec, ColumnSpec, int | None],
        spec: SpecT,
        serving: ServingT,
        on_error: OnTheFlyOnError,
        fetch: FetchOptions,
    ) -> None:
        check_choice("on_error", on_error, ("placeholder", "raise"))
        hf_dataset, media_col, txt_col, max_samples = rows
        self._reader = open_rows(hf_dataset, media_col=media_col, txt_col=txt_col, max_samples=max_samples)
        if not self._reader.random_access or self._reader.num_rows is None:
            raise ConfigError(
                f"{type(hf_dataset).__name__} gives its rows only in order, and on the fly they are asked for in any: "
                f"pass a Dataset or a list, or use InMemory{type(self).__name__}, which reads rows once"
            )
        self._num_rows = self._reader.num_rows
        self._spec = spec
        self._serving = serving
        self._on_error = on_error
        self._fetcher = Fetcher(fetch)
        self._fetch_options = fetch
        self._turns = Turns(self._num_rows, seed=torch.initial_seed()) if serving.by_chance else None
        self._buffers = BufferPool()

    def __len__(self) -> int:
        return self._num_rows

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Fetch and decode one sample.

        Raises:
            IndexError: There is no such sample.
            LoadError: It failed and `on_error` is "raise".
        """
        sample: dict[str, Any] = self.__getitems__([index])[0]
        return sample

    @abstractmethod
    def __getitems__(self, indices: Sequence[int]) -> Any:
        """Fetch and decode a batch."""

    def _load(self, indices: Sequence[int]) -> tuple[list[NDArray[Any] | None], Draws | None, Books]:
        """Fetch and decode one sample after the other; None where it failed."""
        rows = self._reader.take([self._position(index) for index in indices])
        samples = [self._load_row(row) for row in rows]
        numbers = np.array([row.index for row in rows], np.int64)
        draws = None if self._turns is None else self._turns.take(numbers)
        valid = torch.tensor([sample is not None for sample in samples], dtype=torch.bool)
        return samples, draws, Books(self._captions_of(rows, draws), torch.from_numpy(numbers), valid)

    def _position(self, index: int) -> int:
        if not -self._num_rows <= index < self._num_rows:
            raise IndexError(f"sample {index} of a dataset of {self._num_rows:,}")
        return int(index) % self._num_rows

    def _load_row(self, row: Row) -> NDArray[Any] | None:
        try:
            if row.source is None:
                raise row.error or SampleError(f"row {row.index} has no media", reason="empty")
            fetched = self._fetcher.fetch(row.source)
            try:
                return type(self)._decode(fetched.data, spec=self._spec, name=row.source.name)
            finally:
                fetched.release()
        except SampleError as error:
            if self._on_error == "raise":
                raise LoadError(f"row {row.index}: {error}") from error
            return None

    def _captions_of(self, rows: Sequence[Row], draws: Draws | None) -> list[str | list[str]]:
        if self._serving.captions == "all":
            return [list(row.captions) for row in rows]
        numbers = [0] * len(rows)
        if self._serving.captions == "random" and draws is not None:
            numbers = draws.captions(np.array([len(row.captions) for row in rows])).tolist()
        return [row.captions[number] if row.captions else "" for row, number in zip(rows, numbers, strict=True)]

    def set_epoch(self, epoch: int) -> None:
        """Let what chance decides follow the epoch, where it would else count how often a sample was served."""
        if self._turns is not None:
            self._turns.set_epoch(epoch)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_fetcher"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._fetcher = Fetcher(self._fetch_options)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._num_rows:,} samples)"


class ImageTextDataset(OnTheFlyDataset[ImageSpec, ImageServing]):
    """Images and captions, fetched and decoded anew each time.

    Samples and batches are those of `InMemoryImageTextDataset`, and so are the arguments, but for those of the load:
    `on_error="skip"` is not to be had, since what fails is not known beforehand.

    Raises:
        ConfigError: An argument cannot work, or the rows come only in order.

    Cost: one fetch and one decode per sample and epoch.

    Example:
        >>> rows = [{"image_url": np.full((2, 2, 3), 7, np.uint8), "caption": "dark"}]
        >>> ImageTextDataset(rows, image_size=(4, 4))[0]["image"].shape
        torch.Size([3, 4, 4])
    """

    _decode = staticmethod(decode_image)

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
        on_error: OnTheFlyOnError = "placeholder",
        output: ImageOutput = "torch",
        transform: Transform | None = None,
        batch_transform: Transform | None = None,
        fetch: FetchOptions = FetchOptions(),  # noqa: B008 - frozen
    ) -> None:
        spec = ImageSpec(image_size, resize)
        serving = ImageServing(captions=captions, output=output, transform=transform, batch_transform=batch_transform)
        super().__init__((hf_dataset, img_col, txt_col, max_samples), spec, serving, on_error, fetch)

    def __getitems__(self, indices: Sequence[int]) -> ImageBatch:
        """Fetch and decode a batch, one sample after the other.

        Raises:
            IndexError: There is no such sample.
            LoadError: One failed and `on_error` is "raise".
        """
        samples, _, books = self._load(indices)
        width, height = self._spec.image_size
        images = self._buffers.empty((len(samples), height, width, 3), torch.uint8)
        for row, sample in zip(images.numpy(), samples, strict=True):
            row[:] = PLACEHOLDER_GREY if sample is None else sample
        return self._serving.batch(images, books)


class AudioTextDataset(OnTheFlyDataset[AudioSpec, AudioServing]):
    """Clips and captions, fetched and decoded anew each time.

    Samples and batches are those of `InMemoryAudioTextDataset`, and so are the arguments, but for those of the load
    (`dtype` too: nothing lies at rest).

    Raises:
        ConfigError: An argument cannot work, or the rows come only in order.

    Cost: one fetch and one decode per sample and epoch.

    Example:
        >>> rows = [{"audio": {"array": np.zeros(8000), "sampling_rate": 8000}, "caption": "silence"}]
        >>> AudioTextDataset(rows)[0]["audio"].shape
        torch.Size([16000])
    """

    _decode = staticmethod(decode_audio)

    def __init__(
        self,
        hf_dataset: Any,
        audio_col: ColumnSpec = "audio",
        txt_col: ColumnSpec = "caption",
        max_samples: int | None = None,
        target_sr: int = 16_000,
        max_duration: float = 30.0,
        *,
        pad_to: PadTo = "longest",
        crop: Crop = "start",
        keep_duration: float | None = None,
        captions: Captions = "first",
        on_error: OnTheFlyOnError = "placeholder",
        output: AudioOutput = "torch",
        transform: Transform | None = None,
        batch_transform: Transform | None = None,
        fetch: FetchOptions = FetchOptions(),  # noqa: B008 - frozen
    ) -> None:
        spec = clip_spec(target_sr, max_duration, "float32", crop, keep_duration)
        serving = AudioServing(
            captions=captions,
            output=output,
            transform=transform,
            batch_transform=batch_transform,
            pad_to=pad_to,
            crop=crop,
            window_seconds=max_duration,
        )
        super().__init__((hf_dataset, audio_col, txt_col, max_samples), spec, serving, on_error, fetch)

    def __getitems__(self, indices: Sequence[int]) -> AudioBatch:
        """Fetch and decode a batch, one sample after the other.

        Raises:
            IndexError: There is no such sample.
            LoadError: One failed and `on_error` is "raise".
        """
        samples, draws, books = self._load(indices)
        serving, spec = self._serving, self._spec
        silence = np.zeros(serving.placeholder_frames(spec), np.float32)
        clips = [silence if sample is None else sample for sample in samples]
        num_frames = np.array([len(clip) for clip in clips], np.int64)
        starts, lengths = serving.cut(np.zeros_like(num_frames), num_frames, draws, spec)
        windows = zip(clips, starts.tolist(), lengths.tolist(), strict=True)
        waveforms = [torch.from_numpy(clip[start : start + length].copy()) for clip, start, length in windows]
        return serving.batch(waveforms, books, spec=spec)
