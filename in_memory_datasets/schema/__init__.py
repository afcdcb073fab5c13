"""What crosses a border between two stages: frozen records, and how sizes are written."""

from in_memory_datasets.schema.plan import LimitedBy, MemoryPlan, TierPlan
from in_memory_datasets.schema.records import (
    ADDRESS_HINT,
    FORMAT_VERSION,
    REASONS,
    STAGES,
    AudioDtype,
    AudioSpec,
    Failure,
    FetchOptions,
    ImageSpec,
    Resize,
    Row,
    Source,
    SourceKind,
    Stage,
    check_choice,
    host_of,
    strip_credentials,
)
from in_memory_datasets.schema.report import LoadReport, count_reasons
from in_memory_datasets.schema.sizes import format_bytes, parse_bytes

__all__ = [
    "ADDRESS_HINT",
    "FORMAT_VERSION",
    "REASONS",
    "STAGES",
    "AudioDtype",
    "AudioSpec",
    "Failure",
    "FetchOptions",
    "ImageSpec",
    "LimitedBy",
    "LoadReport",
    "MemoryPlan",
    "Resize",
    "Row",
    "Source",
    "SourceKind",
    "Stage",
    "TierPlan",
    "check_choice",
    "count_reasons",
    "format_bytes",
    "host_of",
    "parse_bytes",
    "strip_credentials",
]
