"""What a dataset would take, computed before anything is fetched."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from in_memory_datasets.schema.sizes import format_bytes

LimitedBy = Literal["cgroup", "machine", "memory_limit"]


@dataclass(frozen=True, slots=True)
class TierPlan:
    """What a dataset would take in one form.

    Attributes:
        name: "decoded", "int16" (clips at half the size) or "encoded".
        bytes_needed: What the block would hold; None where that is not known.
        fits: Whether that fits; False where it is not known to.
        num_samples_that_fit: The most samples that would.
        is_upper_bound: True where lengths are unknown beforehand and the longest was assumed.
        is_estimate: True where a part of the samples was measured and stands for all.
    """

    name: str
    bytes_needed: int | None
    fits: bool
    num_samples_that_fit: int
    is_upper_bound: bool
    is_estimate: bool


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """What a dataset would take, computed before anything is fetched; prints as a table.

    Attributes:
        num_samples: Samples asked for, with `max_samples="auto"` those that fit; None where the dataset does not know
            its length.
        bytes_needed: What the block will hold, in the `storage` asked for; None where that is not known.
        bytes_available: What may be used.
        fits: Whether it fits; False where it is not known to.
        num_samples_that_fit: The most samples that would.
        limited_by: What sets the limit: "cgroup" (the container), "machine" or "memory_limit" (the argument).
        is_upper_bound: True where lengths are unknown beforehand and the longest was assumed.
        storage: The form asked for.
        tiers: What every form would take.
        num_decoded: With `storage="auto"`, how many would lie decoded; None where that is not known.
        num_on_disk: And how many would find no room in memory, even encoded.
        seconds: How long the load may take, from a probe; None without one.
        num_probed: Samples that were fetched for it.
    """

    num_samples: int | None
    bytes_needed: int | None
    bytes_available: int
    fits: bool
    num_samples_that_fit: int
    limited_by: LimitedBy
    is_upper_bound: bool = False
    storage: str = "decoded"
    tiers: tuple[TierPlan, ...] = ()
    num_decoded: int | None = None
    num_on_disk: int | None = None
    seconds: float | None = None
    num_probed: int = 0

    def __str__(self) -> str:
        lines = [
            f"{'samples':<18}" + ("unknown" if self.num_samples is None else f"{self.num_samples:,}"),
            f"{'memory available':<18}{format_bytes(self.bytes_available)} ({self.limited_by})",
            f"{'':<18}{'memory needed':<18}{'fits':<6}{'samples that fit':>16}",
        ]
        for tier in self.tiers or (_only_tier(self),):
            kind = "at most " if tier.is_upper_bound else "about " if tier.is_estimate else ""
            needed = "unknown" if tier.bytes_needed is None else kind + format_bytes(tier.bytes_needed)
            fits = "yes" if tier.fits else "?" if tier.bytes_needed is None else "no"
            lines.append(f"{'  ' + tier.name:<18}{needed:<18}{fits:<6}{tier.num_samples_that_fit:>16,}")
        if self.num_decoded is not None and self.num_samples is not None:
            num_encoded = self.num_samples - self.num_decoded - (self.num_on_disk or 0)
            mixture = f"{self.num_decoded:,} decoded, {num_encoded:,} encoded"
            lines.append(f"{'mixture':<18}{mixture}" + (f", {self.num_on_disk:,} on disk" if self.num_on_disk else ""))
        if self.seconds is not None:
            lines.append(f"{'load time':<18}about {_format_seconds(self.seconds)} ({self.num_probed} samples probed)")
        return "\n".join(lines)


def _only_tier(plan: MemoryPlan) -> TierPlan:
    return TierPlan(
        plan.storage, plan.bytes_needed, plan.fits, plan.num_samples_that_fit, plan.is_upper_bound, is_estimate=False
    )


def _format_seconds(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
