"""What to load: rows of any dataset, with their sources and captions."""

from in_memory_datasets.rows.columns import ColumnSpec
from in_memory_datasets.rows.presets import find_preset, open_preset, preset_names
from in_memory_datasets.rows.reader import MaxSamples, RowReader, open_rows
from in_memory_datasets.rows.sources import source_from_value

__all__ = [
    "ColumnSpec",
    "MaxSamples",
    "RowReader",
    "find_preset",
    "open_preset",
    "open_rows",
    "preset_names",
    "source_from_value",
]
