"""Every fuzz target, by name: a function of bytes that raises where a promise is broken, and where to begin."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from tests.fuzz import media, seeds, stores, web

CORPUS = Path(__file__).parent / "corpus"

Target = Callable[[bytes], None]

TARGETS: dict[str, tuple[Target, Callable[[], Iterable[bytes]]]] = {
    "jpegs": (media.jpegs, seeds.jpegs),
    "pictures": (media.pictures, seeds.pictures),
    "clips": (media.clips, seeds.clips),
    "rare_clips": (media.rare_clips, seeds.rare_clips),
    "kept_clips": (media.kept_clips, seeds.kept_clips),
    "orientations": (media.orientations, seeds.orientations),
    "addresses": (web.addresses, seeds.addresses),
    "headers": (web.headers, seeds.headers),
    "answers": (web.answers, seeds.answers),
    "manifests": (stores.manifests, seeds.manifests),
    "arrays": (stores.arrays, seeds.arrays),
    "tables": (stores.tables, seeds.tables),
}


def kept_corpus(name: str) -> Iterator[Path]:
    """Give the inputs of a target that fuzzing has found and the repository keeps."""
    yield from sorted((CORPUS / name).glob("*"))
