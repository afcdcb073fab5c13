"""Turn a source (URL, file, object, inline bytes) into encoded bytes, or into a reason why not."""

from in_memory_datasets.fetch.fetcher import Fetcher
from in_memory_datasets.fetch.transfers import Fetched

__all__ = ["Fetched", "Fetcher"]
