"""Rows -> fetch -> decode -> store: the only place where they meet."""

from in_memory_datasets.build.background import Finished, Loading, Order
from in_memory_datasets.build.keeping import lock_memory, resident_fraction, warm
from in_memory_datasets.build.loading import load, memory_for, retry
from in_memory_datasets.build.moving import open_saved, save
from in_memory_datasets.build.planning import plan
from in_memory_datasets.build.request import LoadRequest, OnError, Storage, num_cores

__all__ = [
    "Finished",
    "LoadRequest",
    "Loading",
    "OnError",
    "Order",
    "Storage",
    "load",
    "lock_memory",
    "memory_for",
    "num_cores",
    "open_saved",
    "plan",
    "resident_fraction",
    "retry",
    "save",
    "warm",
]
