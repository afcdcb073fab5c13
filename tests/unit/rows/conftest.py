"""Many small tests: the collector need not walk through torch and datasets after each of them."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="module", autouse=True)
def light_collections() -> Iterator[None]:
    """Leave what was imported before out of every collection of this module's tests."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
