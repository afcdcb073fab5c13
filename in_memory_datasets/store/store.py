"""A store: the samples of one dataset in one block, their rows in another, and a manifest that says what they are.

In memory and on disk the bytes are the same, so that saving is a copy and loading is a mapping:

    manifest.json          format version, modality, spec, counts; written last, so its presence says "complete"
    samples.safetensors    "images" uint8 [N, H, W, 3], or "offsets" int64 [N+1] and "frames" int16|float32 [total]
    rows.arrow             one row per sample, see `table`
"""

from __future__ import annotations

import json
import os
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from in_memory_datasets.errors import ConfigError, StoreError
from in_memory_datasets.schema import FORMAT_VERSION, AudioSpec, ImageSpec
from in_memory_datasets.store.block import CLOSED, Block
from in_memory_datasets.store.layout import map_arrays
from in_memory_datasets.store.table import LOADED, RowTable

FORMAT_NAME = "in-memory-datasets"
MANIFEST, SAMPLES, ROWS = "manifest.json", "samples.safetensors", "rows.arrow"


class Store:
    """The samples and rows of one dataset, mapped; a context manager.

    It pickles as its blocks do: plainly with its data, to a worker process as a handle.

    Args:
        spec: What each sample was turned into.
        samples: The block that is samples.safetensors; the store owns it from here on.
        rows: The block that is rows.arrow; likewise.
        directory: Where both lie as files, or None for memory.

    Attributes:
        images: uint8, shape (N, H, W, 3), read-only; of an audio store None.
        frames: float32 or int16, shape (total,), read-only; of an image store None.
        offsets: int64, shape (N + 1,): sample i is `frames[offsets[i]:offsets[i + 1]]`; of an image store None.

    Raises:
        StoreError: The blocks are short, altered, or do not belong together.
    """

    def __init__(
        self, spec: ImageSpec | AudioSpec, *, samples: Block, rows: Block, directory: Path | None = None
    ) -> None:
        self.spec = spec
        self.samples = samples
        self.rows = rows
        self.directory = directory
        self._table: RowTable | None = RowTable(rows.view())
        arrays = map_arrays(samples.view())
        images, frames, offsets = (arrays.get(name) for name in ("images", "frames", "offsets"))
        num_rows = self.table.num_rows
        if isinstance(self.spec, ImageSpec):
            width, height = self.spec.image_size
            shape = (num_rows, height, width, 3)
            if images is None or images.dtype != np.uint8 or images.shape != shape:
                raise StoreError(f"samples.safetensors: expected 'images' uint8 {shape}, got {_describe(arrays)}")
        else:
            if (
                frames is None
                or offsets is None
                or frames.dtype != self.spec.dtype
                or frames.ndim != 1
                or offsets.dtype != np.int64
                or offsets.shape != (num_rows + 1,)
            ):
                raise StoreError(
                    f"samples.safetensors: expected 'frames' {self.spec.dtype} and 'offsets' int64 ({num_rows + 1},), "
                    f"got {_describe(arrays)}"
                )
            if offsets[0] != 0 or offsets[-1] != len(frames) or bool(np.any(offsets[1:] < offsets[:-1])):
                raise StoreError("samples.safetensors: the offsets of the clips do not ascend; load again")
        self.images, self.frames, self.offsets = images, frames, offsets

    @property
    def closed(self) -> bool:
        """Tell whether the memory was given up."""
        return self.samples.closed

    @property
    def table(self) -> RowTable:
        """Give the rows.

        Raises:
            StoreError: The store was closed.
        """
        if self._table is None:
            raise StoreError(CLOSED)
        return self._table

    @property
    def num_samples(self) -> int:
        """Count the samples, failed ones included."""
        return self.table.num_rows

    @property
    def nbytes(self) -> int:
        """Count the bytes held at rest: media, captions and bookkeeping."""
        return self.samples.nbytes + self.rows.nbytes

    def sample(self, slot: int) -> NDArray[Any]:
        """Give one sample as a read-only view: (H, W, 3), or (num_frames,)."""
        if self.images is not None:
            image: NDArray[Any] = self.images[slot]
            return image
        assert self.frames is not None
        assert self.offsets is not None
        return self.frames[self.offsets[slot] : self.offsets[slot + 1]]

    def verify(self) -> list[int]:
        """Compare every loaded sample with its checksum and list the slots that differ. Cost: one read of all."""
        table = self.table
        return [
            slot
            for slot in np.flatnonzero(table.status == LOADED).tolist()
            if checksum(self.sample(slot)) != table.checksum[slot]
        ]

    def close(self) -> None:
        """Give up the memory; views handed out before stay readable."""
        self.images = self.frames = self.offsets = self._table = None
        self.samples.close()
        self.rows.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __copy__(self) -> Store:
        return self  # one copy per machine is the point

    def __deepcopy__(self, _: object) -> Store:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (self.spec, self.samples, self.rows)


def _restore(spec: ImageSpec | AudioSpec, samples: Block, rows: Block) -> Store:
    return Store(spec, samples=samples, rows=rows)


def checksum(sample: NDArray[Any]) -> int:
    """Digest the bytes of one sample: XXH3-64, seed 0. Releases the GIL. Source: https://xxhash.com."""
    return xxhash.xxh3_64_intdigest(sample.data) if sample.size else xxhash.xxh3_64_intdigest(b"")


def spec_to_json(spec: ImageSpec | AudioSpec) -> dict[str, Any]:
    """Describe a spec as the manifest does."""
    return {"modality": "image" if isinstance(spec, ImageSpec) else "audio", "spec": asdict(spec)}


def spec_from_json(manifest: dict[str, Any]) -> ImageSpec | AudioSpec:
    """Read a spec back."""
    kind: Any = {"image": ImageSpec, "audio": AudioSpec}[manifest["modality"]]
    spec: ImageSpec | AudioSpec = kind(**manifest["spec"])
    return spec


def save_store(store: Store, directory: str | os.PathLike[str]) -> None:
    """Write a store into a directory, which is new, empty, or an older store that is then replaced.

    Files are replaced whole and the manifest is written last: whoever has the older store mapped keeps it intact, and
    an interrupted save never looks complete.

    Raises:
        StoreError: The directory holds something else.
        OSError: The disk is full or may not be written.
    """
    target = Path(directory)
    target.mkdir(parents=True, exist_ok=True)
    foreign = {path.name for path in target.iterdir()} - {MANIFEST, SAMPLES, ROWS}
    foreign = {name for name in foreign if not name.endswith(".partial")}
    if foreign:
        raise StoreError(
            f"{target} holds other files ({', '.join(sorted(foreign)[:3])}): save into a directory of its own"
        )
    for name, block in ((SAMPLES, store.samples), (ROWS, store.rows)):
        partial = target / f"{name}.partial"
        partial.unlink(missing_ok=True)
        with Block.create(partial) as copy:
            block.copy_to(copy)
            os.fsync(copy.fd)
    (target / MANIFEST).unlink(missing_ok=True)
    for name in (SAMPLES, ROWS):
        os.replace(target / f"{name}.partial", target / name)
    write_manifest(target, store)


def write_manifest(directory: Path, store: Store) -> None:
    """Declare a directory complete, in one step."""
    manifest = {
        "format": FORMAT_NAME,
        "version": FORMAT_VERSION,
        **spec_to_json(store.spec),
        "num_samples": store.num_samples,
        "complete": True,
    }
    partial = directory / f"{MANIFEST}.partial"
    with open(partial, "w", encoding="utf-8") as file:
        json.dump(manifest, file, indent=2)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, directory / MANIFEST)


def open_store(directory: str | os.PathLike[str]) -> Store:
    """Map a store that lies in a directory; nothing is read but its rows.

    Raises:
        StoreError: There is no complete store, it is of another version, or its files are short or altered.
    """
    place = Path(directory)
    try:
        manifest = json.loads((place / MANIFEST).read_text("utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise StoreError(f"{place} holds no complete dataset: there is no {MANIFEST}") from error
    except ValueError as error:
        raise StoreError(f"{place / MANIFEST} is damaged ({error}); delete the directory and load again") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT_NAME:
        raise StoreError(f"{place / MANIFEST} does not describe a dataset of this library")
    if manifest.get("version") != FORMAT_VERSION:
        raise StoreError(
            f"{place}: format version {manifest.get('version')!r}, this library reads {FORMAT_VERSION}; "
            "install the version that wrote it, or delete it and load again"
        )
    try:
        spec = spec_from_json(manifest)
        num_samples = manifest["num_samples"]
    except (KeyError, TypeError, ValueError, ConfigError) as error:
        raise StoreError(f"{place / MANIFEST} is damaged ({error!r}); delete the directory and load again") from error
    try:
        with ExitStack() as opened:
            samples, rows = (opened.enter_context(Block.open(place / name)) for name in (SAMPLES, ROWS))
            for name, block in ((SAMPLES, samples), (ROWS, rows)):
                if not block.nbytes:
                    raise StoreError(f"{place / name} is empty; delete the directory and load again")
            store = Store(spec, samples=samples, rows=rows, directory=place)
            if store.num_samples != num_samples:
                raise StoreError(f"{place}: {store.num_samples} rows, expected {num_samples!r}")
            opened.pop_all()  # they are the store's now
    except FileNotFoundError as error:
        raise StoreError(f"{error.filename} is missing; delete the directory and load again") from error
    except StoreError as error:
        raise StoreError(str(error) if str(place) in str(error) else f"{place}: {error}") from error
    return store


def _describe(arrays: dict[str, NDArray[Any]]) -> str:
    return ", ".join(f"{name!r} {value.dtype} {value.shape}" for name, value in arrays.items()) or "nothing"
