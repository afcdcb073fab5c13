"""Turn a source (URL, file, object, inline bytes) into encoded bytes, or into a reason why not."""

from in_memory_datasets.fetch.fetcher import Fetched, Fetcher

__all__ = ["Fetched", "Fetcher"]
