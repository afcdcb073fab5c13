"""What a cluster holds goes into Ray Data and comes back, and never by way of the driver."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from in_memory_datasets import InMemoryAudioTextDataset, InMemoryImageTextDataset
from in_memory_datasets.scale import from_ray_dataset, load_on_cluster
from tests.scale.test_cluster import NUM_SAMPLES, clip_rows, expected_pictures, picture_rows, read_everywhere

pytestmark = [
    pytest.mark.ray,
    pytest.mark.usefixtures("cluster"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray"),
]


@pytest.mark.parametrize("storage", ["decoded", "encoded"])
def test_pictures_go_into_ray_data_and_back(storage: Any, encode_png: Callable[..., bytes]) -> None:
    """The rows of a cluster's pictures have their pixels, captions and numbers, and load into a cluster again."""
    rows = picture_rows()
    for row in rows:
        row["image_url"] = encode_png(row["image_url"])
    rows[5]["image_url"] = b"no picture"
    with load_on_cluster(InMemoryImageTextDataset, rows, image_size=(8, 6), storage=storage, progress=False) as sharded:
        data = sharded.to_ray_dataset()
        records = sorted(data.take_all(), key=lambda record: int(record["index"]))
        assert [record["index"] for record in records] == list(range(NUM_SAMPLES))
        assert records[7]["image"].shape == (6, 8, 3)
        assert [bool(record["valid"]) for record in records] == [i != 5 for i in range(NUM_SAMPLES)]
        assert (records[5]["image"] == 128).all()
        expected = [sample for sample in expected_pictures() if sample[0] != 5]
        found = [(int(r["index"]), r["caption"], int(r["image"].astype(int).sum())) for r in records if r["valid"]]
        assert found == expected
        with from_ray_dataset(InMemoryImageTextDataset, data.sort("index"), progress=False) as again:
            assert [failure.index for failure in again.report.failures] == [5]
            served = [sample for part in read_everywhere(again) for sample in part]
    assert [sample for sample in served if sample[0] != 5] == expected


def test_clips_go_into_ray_data_and_back() -> None:
    """Clips keep their own lengths on the way."""
    rows = clip_rows(20)
    with load_on_cluster(
        InMemoryAudioTextDataset, rows, target_sr=100, max_duration=1.0, on_error="skip", progress=False
    ) as sharded:
        data = sharded.to_ray_dataset()
        records = sorted(data.take_all(), key=lambda record: int(record["index"]))
        assert [len(record["audio"]) for record in records] == [10 + i % 7 for i in range(20)]
        np.testing.assert_allclose(records[3]["audio"], 0.04, atol=1e-6)
        with from_ray_dataset(InMemoryAudioTextDataset, data.sort("index"), max_duration=1.0, progress=False) as again:
            assert read_everywhere(again) == read_everywhere(sharded)
