"""Samples <-> one memory-mapped block <-> a directory on disk."""

from in_memory_datasets.store.block import Block
from in_memory_datasets.store.cache import attach_or_build, locked
from in_memory_datasets.store.layout import HEADER_BYTES
from in_memory_datasets.store.ranks import share_store
from in_memory_datasets.store.store import Store, open_store, save_store
from in_memory_datasets.store.table import FAILED, LOADED, RowTable, TableWriter
from in_memory_datasets.store.writer import StoreWriter

__all__ = [
    "FAILED",
    "HEADER_BYTES",
    "LOADED",
    "Block",
    "RowTable",
    "Store",
    "StoreWriter",
    "TableWriter",
    "attach_or_build",
    "locked",
    "open_store",
    "save_store",
    "share_store",
]
