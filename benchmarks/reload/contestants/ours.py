"""This library: a directory that `save` left, and one that `cache_dir` keeps."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

from benchmarks.reload.contestants.base import Contestant
from benchmarks.reload.pictures import BATCH_SIZE, Pictures, draw


class Saved(Contestant):
    """`save`, then `load`."""

    name = "in_memory_datasets, load"
    imports = (
        "torch.utils.data:DataLoader",
        "in_memory_datasets:InMemoryImageTextDataset",
        "in_memory_datasets:collate_in_memory_images",
    )
    kind = "ours"
    packages: ClassVar[tuple[str, ...]] = ("in-memory-datasets", "torch")
    configuration = (
        "DataLoader(InMemoryImageTextDataset.load(directory), batch_size=32, sampler=indices, "
        "collate_fn=collate_in_memory_images)"
    )
    source = "README.md"

    def prepare(self, pictures: Pictures, place: Path) -> None:
        from in_memory_datasets import InMemoryImageTextDataset

        with InMemoryImageTextDataset(pictures, progress=False) as dataset:
            dataset.save(place / "saved")

    def open(self, place: Path) -> Any:
        from in_memory_datasets import InMemoryImageTextDataset

        return InMemoryImageTextDataset.load(place / "saved", progress=False)

    def first_batch(self, opened: Any, indices: list[int]) -> tuple[Any, Sequence[str] | None]:
        from torch.utils.data import DataLoader

        from in_memory_datasets import collate_in_memory_images

        loader = DataLoader(
            opened, batch_size=BATCH_SIZE, sampler=indices, collate_fn=collate_in_memory_images, num_workers=0
        )
        batch = next(iter(loader))
        return batch["images"], batch["captions"]


class Cached(Saved):
    """The constructor again, with the same rows and the same `cache_dir`."""

    name = "in_memory_datasets, cache_dir"
    imports = (*Saved.imports, "datasets:load_from_disk")
    packages = ("in-memory-datasets", "datasets", "torch")
    configuration = (
        "the same over InMemoryImageTextDataset(load_from_disk(rows), cache_dir=directory), whose rows are URLs and "
        "captions"
    )
    notes = "opening the dataset of the rows is timed too, importing its library counts as imports"

    def prepare(self, pictures: Pictures, place: Path) -> None:
        from datasets import Dataset, load_from_disk

        from in_memory_datasets import FetchOptions, InMemoryImageTextDataset

        with serve_pictures(len(pictures)) as url:
            addresses = [f"{url}/{i}.bmp" for i in range(len(pictures))]
            rows = Dataset.from_dict({"image_url": addresses, "caption": pictures.captions})
            rows.save_to_disk(str(place / "rows"))
            InMemoryImageTextDataset(
                load_from_disk(str(place / "rows")),
                cache_dir=place / "cache",
                on_error="raise",
                fetch=FetchOptions(allow_private_addresses=True),
                progress=False,
            ).close()

    def open(self, place: Path) -> Any:
        from datasets import load_from_disk

        from in_memory_datasets import InMemoryImageTextDataset

        rows = load_from_disk(str(place / "rows"))
        return InMemoryImageTextDataset(rows, cache_dir=place / "cache", progress=False)


@contextmanager
def serve_pictures(num_pictures: int) -> Iterator[str]:
    """Serve pictures over HTTP on this machine, as BMP, which costs least to make; give the address."""
    from PIL import Image

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            number = Path(self.path).stem
            if not (number.isdigit() and int(number) < num_pictures):
                self.send_error(404)
                return
            file = io.BytesIO()
            Image.fromarray(draw(int(number))).save(file, "BMP")
            self.send_response(200)
            self.send_header("Content-Type", "image/bmp")
            self.send_header("Content-Length", str(file.tell()))
            self.end_headers()
            self.wfile.write(file.getbuffer())

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing of each of 100,000 requests."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()
