"""Samples <-> one memory-mapped block <-> a directory on disk."""

from in_memory_datasets.store import cache
from in_memory_datasets.store.attach import attach_or_build, locked
from in_memory_datasets.store.block import Block, SharedEnd
from in_memory_datasets.store.disk_errors import disk_errors
from in_memory_datasets.store.layout import HEADER_BYTES
from in_memory_datasets.store.live import LiveStore, is_alive
from in_memory_datasets.store.manifest import spec_to_json
from in_memory_datasets.store.opening import open_store
from in_memory_datasets.store.pieces import Joined, Pieces, copier
from in_memory_datasets.store.places import Placed, Places
from in_memory_datasets.store.ranks import find_store, share_store
from in_memory_datasets.store.residency import bring_in, count_resident, lock, lockable_bytes
from in_memory_datasets.store.store import Store, save_store
from in_memory_datasets.store.table import FAILED, LOADED, RowTable, TableWriter
from in_memory_datasets.store.writer import Promotion, StoreWriter

__all__ = [
    "FAILED",
    "HEADER_BYTES",
    "LOADED",
    "Block",
    "Joined",
    "LiveStore",
    "Pieces",
    "Placed",
    "Places",
    "Promotion",
    "RowTable",
    "SharedEnd",
    "Store",
    "StoreWriter",
    "TableWriter",
    "attach_or_build",
    "bring_in",
    "cache",
    "copier",
    "count_resident",
    "disk_errors",
    "find_store",
    "is_alive",
    "lock",
    "lockable_bytes",
    "locked",
    "open_store",
    "save_store",
    "share_store",
    "spec_to_json",
]
