"""Streams of the Hub's library: read as they are stored, to their true end, and with errors that say where.

Python's tarfile takes a header that is damaged or cut short for the end of the archive, and so does whoever reads
shards with it: the dataset is shorter then, and nobody is told. Here such a shard is an error.
"""

from __future__ import annotations

import copy
import logging
import os
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from in_memory_datasets.errors import InMemoryDatasetsError, LoadError
from in_memory_datasets.rows.messages import describe
from in_memory_datasets.schema import strip_credentials

_log = logging.getLogger("in_memory_datasets")

_LACKS_MARK = "_lacks_mark_of_its_end"


@dataclass(slots=True)
class Place:
    """Where in its shards a stream is being read: `open` has the file each open shard is at, "" before the first.

    A shuffled stream may read several shards at once, in threads; `broken` is the one that is no whole archive.
    """

    open: dict[str, str] = field(default_factory=dict)
    broken: str = ""

    def __str__(self) -> str:
        if self.broken or len(self.open) == 1:
            shard = self.broken or next(iter(self.open))
            member = self.open.get(shard, "")
            return f" at {member} in {shard}" if member else f" in {shard}"
        return f" in one of {', '.join(sorted(self.open)[:3])}" if self.open else ""


def as_stored(dataset: Any) -> tuple[Any, Place]:
    """Give a stream of rows as they are stored, nothing decoded or formatted, and where it is read at the moment.

    Declared types make a stream encode and decode what it reads, for which `Audio` needs torchcodec even with
    `decode=False`. Without them the rows come as they are, and every shape they can have is known here.
    """
    place = Place()
    dataset = copy.copy(dataset.with_format(None))
    dataset._info = dataset._info.copy()
    dataset._info.features = None
    dataset._ex_iterable = _to_the_end(dataset._ex_iterable, place)
    return dataset, place


def told(rows: Iterable[Any], place: Place) -> Iterator[Any]:
    """Give the rows of a stream.

    Raises:
        LoadError: The stream raised something; says how many rows came before, where it was, and what it raised.
    """
    num_rows = 0
    try:
        for row in rows:
            yield row
            num_rows += 1
    except (InMemoryDatasetsError, MemoryError):
        raise
    except Exception as error:  # whatever the library, a storage or the user's own function raises
        ways = f"max_samples={num_rows} takes the rows before it" if num_rows else "look at it without this library"
        raise LoadError(
            f"{describe(f'the stream broke off after {num_rows:,} rows{place}', error)}. {ways}; with cache_dir= what "
            "was loaded is kept, and the next load goes on from there"
        ) from error


def _to_the_end(stage: Any, place: Place) -> Any:
    """Copy the stages of a stream with archives that are read strictly."""
    if isinstance(stage, list):
        return [_to_the_end(item, place) for item in stage]
    if any(kind.__name__ == "ArchiveIterable" for kind in type(stage).__mro__):
        return _strict(stage, place)
    changed = {}
    for name, value in getattr(stage, "__dict__", {}).items():
        if name in ("ex_iterable", "ex_iterables"):
            changed[name] = _to_the_end(value, place)
        elif name == "kwargs" and isinstance(value, dict):
            changed[name] = {key: _to_the_end(item, place) for key, item in value.items()}
    if not changed:
        return stage
    stage = copy.copy(stage)
    vars(stage).update(changed)
    return stage


def _strict(archive: Any, place: Place) -> Any:
    shard = strip_credentials(str(archive.args[0])) if archive.args else ""

    def members(file: Any) -> Iterator[tuple[str, Any]]:
        place.open[shard] = ""
        try:
            with tarfile.open(fileobj=file, mode="r|*", tarinfo=_StrictHeader) as tar:
                for member in tar:
                    tar.members = []  # type: ignore[attr-defined] # a stream does not go back, and the list would grow
                    # As the Hub's library has it: no directories, and no files that are hidden.
                    if member.isreg() and not os.path.basename(member.name).startswith((".", "__")):
                        place.open[shard] = member.name
                        yield member.name, tar.extractfile(member)
                if getattr(tar, _LACKS_MARK, False):  # some programs leave it out
                    _log.warning("%s ends without the mark that ends an archive: it may have been cut short", shard)
        except tarfile.TarError:
            place.broken = shard
            raise
        del place.open[shard]

    kind = type(archive)
    strict = type(kind.__name__, (kind,), {"_iter_tar": staticmethod(members)})
    return strict(getattr(strict, archive.generator.__name__), *archive.args)


class _StrictHeader(tarfile.TarInfo):
    """A header that ends the archive only by being the mark of its end."""

    @classmethod
    def fromtarfile(cls, tarfile_: tarfile.TarFile) -> _StrictHeader:
        try:
            return super().fromtarfile(tarfile_)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except tarfile.EmptyHeaderError:  # type: ignore[attr-defined]
            if tarfile_.offset == 0:
                raise tarfile.ReadError("it is empty") from None
            setattr(tarfile_, _LACKS_MARK, True)
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"what follows the first {tarfile_.offset:,} bytes is no tar archive") from error
