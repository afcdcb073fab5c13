"""Files of a store that somebody made up: checksums fit, and what they say cannot be."""

from __future__ import annotations

import json

import pytest

from in_memory_datasets.errors import StoreError
from in_memory_datasets.schema import AudioSpec
from in_memory_datasets.store import RowTable, TableWriter
from in_memory_datasets.store.manifest import digest, make_manifest, parse_manifest
from tests.making import make_rows


def signed(**changes: object) -> bytes:
    manifest = {**json.loads(make_manifest(AudioSpec(), 3, {"rows": "0f"})), **changes}
    del manifest["checksum"]
    return json.dumps({**manifest, "checksum": digest(json.dumps(manifest, sort_keys=True).encode())}).encode()


@pytest.mark.parametrize(
    "changes",
    [
        {"num_samples": "3"},
        {"num_samples": -1},
        {"num_samples": True},
        {"num_samples": 3.0},
        {"checksums": ["rows"]},
        {"checksums": {"rows": []}},
        {"checksums": {"rows": "0f"}},
        {"checksums": {"rows": 15}},
        {"checksums": {"rows": [15]}},
        {"spec": {"target_sr": 10**400, "max_duration": 1.5}},
    ],
    ids=str,
)
def test_a_signed_manifest_of_impossible_values_is_refused(changes: dict[str, object]) -> None:
    assert parse_manifest(signed(), "/data").num_samples == 3
    with pytest.raises(StoreError, match=r"/data/manifest\.json is damaged"):
        parse_manifest(signed(**changes), "/data")


@pytest.mark.parametrize("change", [5, 8, -5, -8, 2**40])
@pytest.mark.parametrize("captions", [(), (("ä", ""), (), ("b", "c", "d"))], ids=["empty", "rows"])
def test_rows_with_any_number_altered_are_refused_or_can_be_read(captions: list[tuple[str]], change: int) -> None:
    writer = TableWriter()
    writer.add(make_rows(captions))
    whole = writer.to_buffer().to_pybytes()
    num_refused = 0
    for start in range(0, len(whole) - 7, 8):
        number = int.from_bytes(whole[start : start + 8], "little") + change
        altered = whole[:start] + (number % 2**64).to_bytes(8, "little") + whole[start + 8 :]
        try:
            table = RowTable(memoryview(altered))
        except StoreError:
            num_refused += 1
        else:
            assert len([table.captions(slot) for slot in range(table.num_rows)]) == table.num_rows
    assert num_refused > 10
