"""A store at a URL: one process loads the web once, and whoever may read the URL has the result.

The files are those of a directory. They are uploaded with the manifest last and downloaded with it first, into a cache,
under a name made of its bytes: the same dataset from another place is the same entry, and a new one is another. What
was downloaded counts only when every checksum is right.

The Hugging Face Hub takes all files in one commit; every other place is reached through fsspec.
"""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard
from urllib.parse import unquote

from in_memory_datasets.errors import ConfigError, InMemoryDatasetsError, MissingExtraError, StoreError
from in_memory_datasets.schema import format_bytes, strip_credentials
from in_memory_datasets.store.attach import attach_or_build
from in_memory_datasets.store.block import Block
from in_memory_datasets.store.manifest import MANIFEST, Manifest, parse_manifest, write_manifest
from in_memory_datasets.store.opening import compare_places, compare_rows, open_store
from in_memory_datasets.store.store import ROWS, SAMPLES, Store

OnProgress = Callable[[int], object]
OnDownload = Callable[[int], OnProgress]
Place = str | os.PathLike[str]

_PART_BYTES = 8 * 2**20
_NUM_PARTS_AT_ONCE = 8
# Where directories are only parts of names, and to make one could make a bucket.
_WITHOUT_DIRECTORIES = {"abfs", "abfss", "adl", "az", "gcs", "gs", "oci", "oss", "s3", "s3a"}
_OF_THE_HUB = {".gitattributes", "README.md"}


def is_url(place: Place) -> TypeGuard[str]:
    """Tell whether a place is a URL, and not a directory of this machine.

    Example:
        >>> is_url("s3://bucket/birds"), is_url("file:///data/birds"), is_url("/data/birds")
        (True, False, False)
    """
    return isinstance(place, str) and "://" in place and not place.startswith(("file://", "local://"))


def directory_of(place: Place) -> Path:
    """Give the directory that a place which is no URL means.

    Raises:
        ConfigError: A URL was made a path, in which its two slashes are one.
    """
    if isinstance(place, str) and place.startswith(("file://", "local://")):
        from fsspec.implementations.local import LocalFileSystem

        return Path(str(LocalFileSystem._strip_protocol(place)))
    directory = Path(place)
    protocol, colon, rest = str(directory).partition(":/")
    if not isinstance(place, str) and colon and protocol.isalnum():
        raise ConfigError(f"{directory} is a path, and no URL: give {protocol}://{rest} as a str")
    return directory


def publish(store: Store, url: str, *, on_progress: OnProgress = lambda num_bytes: None) -> None:
    """Upload a store to a place that is new, empty, or an older store that is then replaced.

    Raises:
        StoreError: Samples differ from their checksums, other files are there, or it cannot be written.
        MissingExtraError: The protocol needs a package that is not installed.
        ConfigError: It is no usable URL.

    Cost: one read of the store, and the upload.
    """
    if bad := store.verify():
        raise StoreError(
            f"{len(bad):,} of {store.num_samples:,} samples differ from their checksums (rows {bad[:5]}) and are not "
            'published: retry_failed(reasons={"checksum"}) loads them again'
        )
    with _storage_errors(url):
        if url.startswith("hf://"):
            _commit(store, _HubPlace.of(url))
            on_progress(store.nbytes)
        else:
            _upload(store, url, on_progress)


def fetch_store(
    url: str,
    cache_dir: Path,
    *,
    on_download: OnDownload = lambda num_bytes: lambda num_more_bytes: None,
    on_waiting: Callable[[int], object] = lambda num_bytes: None,
) -> Store:
    """Open what was published at a URL, after downloading it into a cache where it is not there yet.

    Args:
        on_download: Told, before a download, how many bytes there are; what it returns is told how many more are here.
        on_waiting: Told, while another process downloads the same, how many bytes that one has.

    Raises:
        StoreError: There is no complete store, it is of another version, it was altered, or it cannot be read.
        MissingExtraError: The protocol needs a package that is not installed.
        ConfigError: It is no usable URL.

    Cost: a request where it is there already; else the download, and one read of what was downloaded.
    """
    shown = strip_credentials(url.rstrip("/"))
    with _storage_errors(url):
        fs, path = _open_storage(url)
        fs.invalidate_cache()  # of what lay there before
        try:
            text: bytes = fs.cat_file(f"{path}/{MANIFEST}")
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
            raise StoreError(f"{shown} holds no complete dataset: there is no {MANIFEST}") from error
    manifest = parse_manifest(text, shown)
    name = hashlib.sha256(text).hexdigest()[:32]

    def build(entry: Path) -> Store:
        _download(fs, path, url, entry, on_download)
        _check(entry, manifest, shown)
        for file in (SAMPLES, ROWS):
            os.replace(entry / f"{file}.partial", entry / file)
        write_manifest(entry, text)
        return open_store(entry)

    return attach_or_build(cache_dir, name, build, on_waiting=lambda _: on_waiting(_num_downloaded(cache_dir / name)))


def _upload(store: Store, url: str, on_progress: OnProgress) -> None:
    fs, path = _open_storage(url)
    if not set(_protocols(fs)) & _WITHOUT_DIRECTORIES:
        fs.makedirs(path, exist_ok=True)
    fs.invalidate_cache()
    try:
        found = {str(name).strip("/") for name in fs.ls(path, detail=False)} - {path.strip("/")}
    except FileNotFoundError:  # nothing of that name, where there are no directories
        found = set()
    there = {name.rpartition("/")[2] for name in found}
    _refuse_foreign_files(there, url)
    if MANIFEST in there:
        fs.rm_file(f"{path}/{MANIFEST}")  # so that at no moment a mixture of old and new looks complete
    for name, block in ((SAMPLES, store.samples), (ROWS, store.rows)):
        view = block.view()
        with fs.open(f"{path}/{name}", "wb") as file:
            for start in range(0, view.nbytes, _PART_BYTES):
                part = view[start : start + _PART_BYTES]
                file.write(part)
                on_progress(part.nbytes)
    fs.pipe_file(f"{path}/{MANIFEST}", store.manifest())


def _refuse_foreign_files(there: set[str], url: str) -> None:
    if foreign := sorted(there - {MANIFEST, SAMPLES, ROWS}):
        raise StoreError(
            f"{strip_credentials(url)} holds other files ({', '.join(foreign[:3])}): save into a place of its own"
        )


@dataclass(frozen=True, slots=True)
class _HubPlace:
    """A place on the Hub: hf://datasets/USER/NAME[@REVISION][/PATH]."""

    url: str
    repo: str
    revision: str | None
    path: str

    @classmethod
    def of(cls, url: str) -> _HubPlace:
        kind, *parts = url.removeprefix("hf://").rstrip("/").split("/")
        if kind != "datasets" or len(parts) < 2 or not all(parts):
            expected = "hf://datasets/USER/NAME, with @REVISION and a path behind it or not"
            raise ConfigError(f"{strip_credentials(url)}: expected {expected}")
        name, _, revision = parts[1].partition("@")
        return cls(url, f"{parts[0]}/{name}", unquote(revision) or None, "/".join(parts[2:]))

    def file(self, name: str) -> str:
        """Give the path of a file in the repository."""
        return f"{self.path}/{name}".lstrip("/")


def _commit(store: Store, place: _HubPlace) -> None:
    """Put all files into one commit; a repository that is not there yet is made, and is private."""
    from huggingface_hub import CommitOperationAdd, HfApi

    api = HfApi()
    api.create_repo(place.repo, repo_type="dataset", private=True, exist_ok=True)
    files = api.list_repo_files(place.repo, repo_type="dataset", revision=place.revision)
    prefix = place.file("")
    there = {file.removeprefix(prefix).partition("/")[0] for file in files if file.startswith(prefix)}
    _refuse_foreign_files(there - _OF_THE_HUB, place.url)
    with ExitStack() as opened:
        adds = [CommitOperationAdd(place.file(MANIFEST), store.manifest())]
        for name, block in ((SAMPLES, store.samples), (ROWS, store.rows)):
            on_disk = None if store.directory is None else store.directory / name
            if on_disk is not None and os.path.samestat(os.stat(on_disk), os.fstat(block.fd)):
                adds.append(CommitOperationAdd(place.file(name), on_disk))  # which the Hub's own transfer likes best
                continue
            file = opened.enter_context(os.fdopen(os.dup(block.fd), "rb"))
            file.seek(0)
            adds.append(CommitOperationAdd(place.file(name), file))
        api.create_commit(
            place.repo,
            adds,
            commit_message=f"Publish {store.num_samples:,} samples",
            repo_type="dataset",
            revision=place.revision,
        )


def _download(fs: Any, path: str, url: str, entry: Path, on_download: OnDownload) -> None:
    """Bring the samples and rows into partial files, going on with what an earlier download left there."""
    with _storage_errors(url):
        sizes = {name: int(fs.info(f"{path}/{name}")["size"]) for name in (SAMPLES, ROWS)}
    partials = {name: entry / f"{name}.partial" for name in sizes}
    here = {name: partial.stat().st_size if partial.exists() else 0 for name, partial in partials.items()}
    missing = sum(sizes.values()) - sum(here.values())
    if missing > (free := shutil.disk_usage(entry).free):
        raise StoreError(
            f"{entry} has {format_bytes(free)} free, and {format_bytes(missing)} are to be downloaded: make room, or "
            "take another cache_dir"
        )
    on_progress = on_download(sum(sizes.values()))
    with ThreadPoolExecutor(_NUM_PARTS_AT_ONCE, "in-memory-datasets-download") as threads:
        for name, size in sizes.items():
            read = functools.partial(_read_part, fs, f"{path}/{name}", url)
            start = here[name] if here[name] <= size else 0
            on_progress(start)
            with open(partials[name], "ab") as file:
                file.truncate(start)
                # A few parts at once, written in order, so that what is here is always a beginning.
                for first in range(start, size, _PART_BYTES * _NUM_PARTS_AT_ONCE):
                    last = min(size, first + _PART_BYTES * _NUM_PARTS_AT_ONCE)
                    starts = range(first, last, _PART_BYTES)
                    for part in threads.map(read, starts, [*starts[1:], last]):
                        file.write(part)
                        on_progress(len(part))
                file.flush()
                os.fsync(file.fileno())


def _read_part(fs: Any, path: str, url: str, start: int, stop: int) -> bytes:
    with _storage_errors(url):
        part: bytes = fs.cat_file(path, start=start, end=stop)
    if len(part) != stop - start:
        raise StoreError(
            f"{strip_credentials(url)} gave {len(part):,} bytes of {path.rpartition('/')[2]} where {stop - start:,} "
            "were asked for: it was cut short or replaced meanwhile, or its server gives no parts of files"
        )
    return part


def _num_downloaded(entry: Path) -> int:
    return sum(path.stat().st_size for path in entry.glob("*.partial"))


def _check(entry: Path, manifest: Manifest, shown: str) -> None:
    """Compare all that was downloaded with its checksums; what is wrong is removed, to be downloaded again."""
    partials = [entry / f"{name}.partial" for name in (SAMPLES, ROWS)]
    try:
        with ExitStack() as opened:
            samples, rows = (opened.enter_context(Block.open(partial)) for partial in partials)
            compare_rows(rows, manifest)
            store = Store(manifest.spec, samples=samples, rows=rows)  # looks through every row, whoever wrote them
            compare_places(store, manifest)
            if bad := store.verify():
                raise StoreError(
                    f"{len(bad):,} of {store.num_samples:,} samples differ from their checksums (rows {bad[:5]})"
                )
    except StoreError as error:
        for partial in partials:
            partial.unlink(missing_ok=True)
        raise StoreError(
            f"what was downloaded from {shown} is not what was published: {error}; load it again, or have it saved "
            "there again"
        ) from error


def _open_storage(url: str) -> tuple[Any, str]:
    import fsspec

    if url.startswith("hf://"):
        _HubPlace.of(url)
    try:
        fs, path = fsspec.core.url_to_fs(url)
    except ImportError as error:
        from fsspec.registry import known_implementations

        protocol = url.partition("://")[0]
        module = known_implementations.get(protocol, {}).get("class", protocol).partition(".")[0]
        raise MissingExtraError(
            f"{strip_credentials(url)} needs a package that is not installed: pip install {module}"
        ) from error
    except ValueError as error:
        raise ConfigError(f"{strip_credentials(url)} is no usable URL: {strip_credentials(str(error))}") from error
    return fs, str(path).rstrip("/")


def _protocols(fs: Any) -> tuple[str, ...]:
    return (fs.protocol,) if isinstance(fs.protocol, str) else tuple(fs.protocol)


@contextmanager
def _storage_errors(url: str) -> Iterator[None]:
    """Say what went wrong at a place, whatever its back end's own words for it are."""
    shown = strip_credentials(url)
    try:
        yield
    except InMemoryDatasetsError:
        raise
    except Exception as error:  # back ends raise whatever their own libraries raise
        words = strip_credentials(" ".join(str(error).split())[:300])
        raise StoreError(
            f"{shown} cannot be reached, read or written ({type(error).__name__}: {words}): look at its name, your "
            "login and your rights there"
        ) from error
