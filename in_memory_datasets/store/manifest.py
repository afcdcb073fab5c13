"""manifest.json: what a directory holds, and the checksums of all in it but the media.

It is written last, so that a directory with one is complete, and it digests itself. Every sample has a checksum of its
own in rows.arrow.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import xxhash

from in_memory_datasets.errors import ConfigError, StoreError
from in_memory_datasets.schema import FORMAT_VERSION, VERSION_OF_REPEATS, AudioSpec, ImageSpec

FORMAT_NAME = "in-memory-datasets"
MANIFEST = "manifest.json"
# What the first manifests said; later ones say more, and sign it.
_UNSIGNED = {"format", "version", "modality", "spec", "num_samples", "complete"}


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a directory says it is.

    Attributes:
        spec: What each sample was turned into.
        num_samples: Rows, failed ones included.
        checksums: Of "rows" (rows.arrow) and "places" (samples.safetensors up to the media), the XXH3-64 digests that
            are accepted. Two of each while files are being replaced.
    """

    spec: ImageSpec | AudioSpec
    num_samples: int
    checksums: dict[str, list[str]] = field(default_factory=dict)


def make_manifest(
    spec: ImageSpec | AudioSpec,
    num_samples: int,
    checksums: Mapping[str, str],
    *,
    replacing: Manifest | None = None,
    has_repeats: bool = False,
) -> bytes:
    """Write down what a directory is, once it is complete.

    Args:
        replacing: The state whose files are about to be replaced: until they are, theirs are as good as the new ones,
            so that there is no moment at which the directory would be refused.
        has_repeats: Whether rows share samples, which the first version does not know.
    """
    older = {} if replacing is None else replacing.checksums
    manifest = {
        "format": FORMAT_NAME,
        "version": VERSION_OF_REPEATS if has_repeats else FORMAT_VERSION,
        **spec_to_json(spec),
        "num_samples": num_samples,
        "complete": True,
        "byteorder": "little",
        "checksums": {
            name: [value, *older.get(name, [])] for name, value in checksums.items() if replacing is None or older
        },
    }
    return f"{json.dumps({**manifest, 'checksum': _sign(manifest)}, indent=2)}\n".encode()


def write_manifest(directory: Path, manifest: bytes) -> None:
    """Declare a directory complete, in one step."""
    write_partial_manifest(directory, manifest)
    os.replace(directory / f"{MANIFEST}.partial", directory / MANIFEST)


def write_partial_manifest(directory: Path, manifest: bytes) -> None:
    """Write the manifest under the name it has until the directory is complete."""
    with open(directory / f"{MANIFEST}.partial", "wb") as file:
        file.write(manifest)
        file.flush()
        os.fsync(file.fileno())


def read_manifest(directory: Path) -> Manifest:
    """Read what a directory says it is.

    Raises:
        StoreError: There is no manifest, or it is damaged, foreign or of another version.
    """
    try:
        text = (directory / MANIFEST).read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise StoreError(f"{directory} holds no complete dataset: there is no {MANIFEST}") from error
    return parse_manifest(text, os.fspath(directory))


def parse_manifest(text: bytes, directory: str) -> Manifest:
    """Read the text of a manifest; `directory` is where it lies, for messages.

    Raises:
        StoreError: It is damaged, foreign or of another version.
    """
    path = f"{directory}/{MANIFEST}"
    try:
        manifest = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise StoreError(f"{path} is damaged ({error}); delete the directory and load again") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT_NAME:
        raise StoreError(f"{path} does not describe a dataset of this library")
    if manifest.get("version") not in (FORMAT_VERSION, VERSION_OF_REPEATS):
        raise StoreError(
            f"{directory}: format version {manifest.get('version')!r}, this library reads {FORMAT_VERSION} and "
            f"{VERSION_OF_REPEATS}; install the version that wrote it, or delete it and load again"
        )
    for order, where in ((manifest.get("byteorder", "little"), path), (sys.byteorder, "this machine")):
        if order != "little":
            raise StoreError(f"{where} has numbers in {order}-endian order; stores are written and read little-endian")
    try:
        if set(manifest) != _UNSIGNED and manifest.pop("checksum") != _sign(manifest):
            raise ValueError("it differs from its checksum")
        num_samples, checksums = manifest["num_samples"], manifest.get("checksums", {})
        if type(num_samples) is not int or num_samples < 0:
            raise ValueError(f"num_samples is {num_samples!r}")
        if not isinstance(checksums, dict) or not all(map(_is_digests, checksums.values())):
            raise ValueError(f"the checksums are {checksums!r:.200}")
        return Manifest(spec_from_json(manifest), num_samples, checksums)
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError, ConfigError) as error:
        raise StoreError(f"{path} is damaged ({error!r}); delete the directory and load again") from error


def _is_digests(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(each, str) for each in value)


def spec_to_json(spec: ImageSpec | AudioSpec) -> dict[str, Any]:
    """Describe a spec as the manifest does; what is None is not said."""
    fields = {name: value for name, value in asdict(spec).items() if value is not None}
    return {"modality": "image" if isinstance(spec, ImageSpec) else "audio", "spec": fields}


def spec_from_json(manifest: dict[str, Any]) -> ImageSpec | AudioSpec:
    """Read a spec back."""
    kind: Any = {"image": ImageSpec, "audio": AudioSpec}[manifest["modality"]]
    spec: ImageSpec | AudioSpec = kind(**manifest["spec"])
    return spec


def digest(data: Any) -> str:
    """Digest some bytes: XXH3-64, seed 0, 16 hexadecimal figures."""
    return str(xxhash.xxh3_64_hexdigest(data))


def _sign(manifest: Mapping[str, Any]) -> str:
    return digest(json.dumps(manifest, sort_keys=True).encode())
