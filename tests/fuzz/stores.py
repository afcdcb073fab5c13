"""Fuzz targets of what is read back from a disk or a hub: a StoreError, or something that can be used."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import numpy as np

from in_memory_datasets.errors import StoreError
from in_memory_datasets.schema import AudioSpec, ImageSpec
from in_memory_datasets.store.layout import check_arrays, map_arrays
from in_memory_datasets.store.manifest import digest, make_manifest, parse_manifest
from in_memory_datasets.store.table import RowTable

_SPECS = (ImageSpec((2, 3)), AudioSpec(8_000, 1.0), AudioSpec(8_000, 1.0, "int16"))


def manifests(data: bytes) -> None:
    """Read manifests, as they are and with the checksum that they should have."""
    for text in (data, _signed(data)):
        with suppress(StoreError):
            manifest = parse_manifest(text, "/a/place")
            assert type(manifest.num_samples) is int
            assert manifest.num_samples >= 0
            newest = {}
            for name, digests in manifest.checksums.items():
                assert all(isinstance(each, str) for each in digests)
                newest[name] = digests[0]
            again = parse_manifest(make_manifest(manifest.spec, manifest.num_samples, newest), "/a/place")
            assert (again.spec, again.num_samples) == (manifest.spec, manifest.num_samples)


def arrays(data: bytes) -> None:
    """Read the header of samples.safetensors, and every number it leads to."""
    with suppress(StoreError):
        found = map_arrays(memoryview(data))
        assert sum(array.nbytes for array in found.values()) <= len(data)
        sums = [
            int(np.nansum(array.view(np.uint8))) for array in map(np.ascontiguousarray, found.values()) if array.size
        ]
        assert min(sums, default=0) >= 0
        counts = {0, 1, 3, *(count for array in found.values() for count in (len(array), len(array) - 1) if array.ndim)}
        for spec in _SPECS:
            for num_samples in counts:
                with suppress(StoreError):
                    num_decoded = check_arrays(spec, num_samples, found)
                    assert 0 <= num_decoded <= num_samples


def tables(data: bytes) -> None:
    """Read every value of rows.arrow that a store would read."""
    with suppress(StoreError):
        _read_table(RowTable(memoryview(data)))


def _read_table(table: RowTable) -> None:
    num_rows = min(table.num_rows, 100)
    assert 0 <= table.num_empty_captions <= table.num_rows
    for column in (table.status, table.stage, table.reason, table.attempts, table.checksum):
        assert len(column) == table.num_rows
    first = table.caption(np.arange(num_rows))
    for slot in range(num_rows):
        captions = table.captions(slot)
        assert captions[:1] == [first[slot]] or (not captions and first[slot] == "")
        assert isinstance(table.source(slot), str)
    for failure in table.failures():
        assert str(failure)


def _signed(data: bytes) -> bytes:
    try:
        manifest: Any = json.loads(data)
        if not isinstance(manifest, dict):
            return data
        manifest.pop("checksum", None)
        return json.dumps({**manifest, "checksum": digest(json.dumps(manifest, sort_keys=True).encode())}).encode()
    except (ValueError, RecursionError):
        return data
