"""What a load did, and what failed in it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from in_memory_datasets.schema.records import ADDRESS_HINT, Failure
from in_memory_datasets.schema.sizes import format_bytes


@dataclass(frozen=True, slots=True)
class LoadReport:
    """What a load did; prints as a short summary.

    Attributes:
        num_samples: Rows taken from the dataset.
        num_ok: Samples that loaded.
        num_failed: Samples that did not.
        num_empty_captions: Rows without a caption, which have "" for one.
        by_reason: How many failed for each reason, commonest first.
        failures: Every failure, by ascending index.
        seconds: How long the load took.
        bytes_fetched: Encoded bytes read from all sources.
        nbytes: Bytes held at rest.
        num_decoded: Samples that lie decoded.
        num_encoded: Samples that lie encoded, and are decoded whenever they are served.
        num_on_disk: Samples of a `cache_dir` for which there is no room in memory, decoded or encoded.
    """

    num_samples: int
    num_ok: int
    num_failed: int
    num_empty_captions: int
    by_reason: dict[str, int]
    failures: list[Failure] = field(repr=False)
    seconds: float
    bytes_fetched: int
    nbytes: int
    num_decoded: int
    num_encoded: int
    num_on_disk: int

    def __str__(self) -> str:
        rate = self.num_samples / self.seconds if self.seconds > 0 else 0.0
        lines = [
            f"{self.num_ok:,} of {self.num_samples:,} samples loaded in {self.seconds:.1f} s ({rate:,.0f}/s); "
            f"{format_bytes(self.bytes_fetched)} fetched, {format_bytes(self.nbytes)} in memory"
        ]
        if self.num_encoded or self.num_on_disk:
            lines.append(
                f"{self.num_decoded:,} lie decoded, {self.num_encoded:,} encoded, {self.num_on_disk:,} on disk"
            )
        if self.num_failed:
            reasons = ", ".join(f"{count:,} {reason}" for reason, count in self.by_reason.items())
            lines.append(f"{self.num_failed:,} failed: {reasons}")
            lines.extend(f"  {failure}" for failure in self.failures[:3])
            if self.num_failed > 3:
                lines.append(f"  … and {self.num_failed - 3:,} more in .failures")
            if self.by_reason.get("blocked_address"):
                lines.append(ADDRESS_HINT)
        if self.num_empty_captions:
            lines.append(f"{self.num_empty_captions:,} rows have no caption")
        return "\n".join(lines)


def count_reasons(failures: Iterable[Failure]) -> dict[str, int]:
    """Count failures by reason, commonest first."""
    return dict(Counter(failure.reason for failure in failures).most_common())
