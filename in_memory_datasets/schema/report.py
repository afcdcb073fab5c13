"""What a load did, what it took, and what failed in it."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from in_memory_datasets.errors import ConfigError, MissingExtraError
from in_memory_datasets.schema.records import Failure
from in_memory_datasets.schema.sizes import format_bytes

if TYPE_CHECKING:
    import pandas

# In how many hosts a report counts failures; a dataset may name a million.
NUM_FAILED_HOSTS = 100

_HINTS = {
    "blocked_address": "  (private addresses are fetched with fetch=FetchOptions(allow_private_addresses=True))",
    "local_file": "  (files of this machine are read with fetch=FetchOptions(allow_local_files=True))",
}

LoadLimit = Literal["network", "sources", "processor", "writing", ""]
_COLUMNS = [column.name for column in fields(Failure)]


@dataclass(frozen=True, slots=True)
class HostTime:
    """How long one host took to answer.

    Attributes:
        host: Its name.
        mean_seconds: Of the last request for each sample, body included, the mean.
        num_samples: Samples that were asked of it, failed ones included.
    """

    host: str
    mean_seconds: float
    num_samples: int


def no_seconds() -> dict[str, float]:
    """Give the seconds of a load that had nothing to do."""
    return dict.fromkeys(("fetch", "decode", "write", "waiting"), 0.0)


@dataclass(frozen=True, slots=True)
class Effort:
    """What a load took; nothing where all was there already.

    Attributes:
        seconds: How long it took, attaching included.
        num_tried: Samples that were tried, failed ones included.
        bytes_fetched: Encoded bytes read from all sources.
        seconds_by_stage: See `LoadReport`.
        slowest_hosts: See `LoadReport`.
    """

    seconds: float = 0.0
    num_tried: int = 0
    bytes_fetched: int = 0
    seconds_by_stage: dict[str, float] = field(default_factory=no_seconds)
    slowest_hosts: tuple[HostTime, ...] = ()


@dataclass(frozen=True, slots=True)
class LoadReport:
    """What a load did; prints as a short summary.

    What it took is told by the process that loaded. One that attached, to a cache, a directory or what another rank
    loaded, tried no sample and has zeros there.

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
        by_stage: How many failed at each stage ("row", "fetch", "decode"), commonest first.
        by_host: How many failed at each host, commonest first, at most a hundred hosts; what failed without a host,
            such as files and rows, is not counted.
        num_tried: Samples that this load, or retry, tried, failed ones included; the others were there already.
        seconds_by_stage: What the samples that were tried took: "fetch", the last request for each, body included, or
            reading its file; "decode", making what is kept of it; "write", putting that in its place. These are summed
            over samples, many of which are under way at once. "waiting" is how long decode threads had nothing to do,
            summed over threads: threads × wall − decode − write. What `storage="auto"` decodes after all is loaded
            counts for none of them.
        slowest_hosts: The hosts that took longest for a sample, the slowest first, at most five. Hosts are told apart
            up to the ten-thousandth.
        num_unique: Samples that are stored: rows that name the same source share one.
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
    by_stage: dict[str, int] = field(default_factory=dict)
    by_host: dict[str, int] = field(default_factory=dict)
    num_tried: int = 0
    seconds_by_stage: dict[str, float] = field(default_factory=no_seconds)
    slowest_hosts: tuple[HostTime, ...] = ()
    num_unique: int = 0

    @property
    def success_rate(self) -> float:
        """Share of the samples that loaded, 0 to 1; 1 where there are none."""
        return self.num_ok / self.num_samples if self.num_samples else 1.0

    @property
    def waiting_rate(self) -> float:
        """Share of the time for which decode threads had nothing to do, 0 to 1; 0 where nothing was loaded."""
        of_threads = [self.seconds_by_stage[stage] for stage in ("waiting", "decode", "write")]
        return of_threads[0] / sum(of_threads) if sum(of_threads) > 0 else 0.0

    @property
    def limited_by(self) -> LoadLimit:
        """What a faster load would need more of.

        Where decode threads waited for half of the time or longer, that is the "network", or, of files and inline
        media, the reading of "sources"; else the "processor", or "writing" where that took them longer than decoding.
        "" where nothing was loaded.
        """
        if not self.num_tried:
            return ""
        if self.waiting_rate >= 0.5:
            return "network" if self.slowest_hosts else "sources"
        return "writing" if self.seconds_by_stage["write"] > self.seconds_by_stage["decode"] else "processor"

    def to_dict(self) -> dict[str, Any]:
        """Give all but the failures as plain values that JSON can hold, for a log of experiments."""
        hosts = [asdict(host) for host in self.slowest_hosts]
        values = {each.name: getattr(self, each.name) for each in fields(self) if each.name != "failures"}
        return {
            **values,
            "slowest_hosts": hosts,
            "success_rate": self.success_rate,
            "waiting_rate": self.waiting_rate,
            "limited_by": self.limited_by,
        }

    def to_pandas(self) -> pandas.DataFrame:
        """Give the failures as a table: index, source, stage, reason, detail, host, attempts.

        Raises:
            MissingExtraError: pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise MissingExtraError("a table of failures needs pandas: pip install pandas") from error
        columns = {name: [getattr(failure, name) for failure in self.failures] for name in _COLUMNS}
        types = dict.fromkeys(("index", "attempts"), "int64")
        return pandas.DataFrame(columns, columns=_COLUMNS).astype(types)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the failures into a file, one a line: JSON Lines or, with a line of names before them, CSV.

        The file is replaced whole or not at all.

        Args:
            path: Its name, which ends in ".jsonl" or ".csv".

        Raises:
            ConfigError: It ends in something else.
            OSError: The disk is full or may not be written.
        """
        target = Path(path)
        rows = [{name: _writable(value) for name, value in asdict(failure).items()} for failure in self.failures]
        if target.suffix.lower() == ".jsonl":
            text = "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows)
        elif target.suffix.lower() == ".csv":
            file = io.StringIO(newline="")
            writer = csv.DictWriter(file, _COLUMNS)  # which ends lines by CR LF, as RFC 4180 has it
            writer.writeheader()
            writer.writerows(rows)
            text = file.getvalue()
        else:
            raise ConfigError(f"{target}: failures are saved as JSON Lines or CSV; end the name in '.jsonl' or '.csv'")
        _replace_file(target, text.encode())

    def __str__(self) -> str:
        sizes = f"{format_bytes(self.nbytes)} in memory"
        some_now = 0 < self.num_tried < self.num_samples
        if self.num_tried:
            rate = self.num_tried / self.seconds if self.seconds > 0 else 0.0
            lines = [
                f"{self.num_ok:,} of {self.num_samples:,} samples loaded"
                + (f", {self.num_tried:,} tried now," if some_now else "")
                + f" in {self.seconds:.1f} s ({rate:,.0f}/s); {format_bytes(self.bytes_fetched)} fetched, {sizes}"
            ]
            lines.append(self._limit())
        else:
            lines = [f"{self.num_ok:,} of {self.num_samples:,} samples attached in {self.seconds:.1f} s; {sizes}"]
        if 0 < self.num_unique < self.num_samples:
            lines.append(f"{self.num_samples:,} rows share {self.num_unique:,} samples")
        if self.num_encoded or self.num_on_disk:
            lines.append(
                f"{self.num_decoded:,} lie decoded, {self.num_encoded:,} encoded, {self.num_on_disk:,} on disk"
            )
        if self.num_failed:
            reasons = ", ".join(f"{count:,} {reason}" for reason, count in self.by_reason.items())
            lines.append(f"{self.num_failed:,} failed: {reasons}{self._worst_host()}")
            lines.extend(f"  {failure}" for failure in self.failures[:3])
            if self.num_failed > 3:
                lines.append(f"  … and {self.num_failed - 3:,} more in .failures")
            lines.extend(hints_for(self.by_reason))
        if self.num_empty_captions:
            lines.append(f"{self.num_empty_captions:,} rows have no caption")
        return "\n".join(lines)

    def _limit(self) -> str:
        waited = f"decode threads waited {self.waiting_rate:.0%} of the time".replace("%", " %")
        limits: dict[LoadLimit, str] = {
            "network": "the network was the limit",
            "sources": "reading the sources was the limit",
            "processor": "the processor was the limit",
            "writing": "writing was the limit",
        }
        return f"{limits[self.limited_by]}: {waited}"

    def _worst_host(self) -> str:
        """Name the host at which half of several failures or more happened."""
        if self.num_failed < 2 or not self.by_host:
            return ""
        host, count = next(iter(self.by_host.items()))
        if 2 * count < self.num_failed:
            return ""
        return f"; {'all' if count == self.num_failed else f'{count:,} of them'} at {host}"


def count_reasons(failures: Iterable[Failure]) -> dict[str, int]:
    """Count failures by reason, commonest first."""
    return dict(Counter(failure.reason for failure in failures).most_common())


def hints_for(reasons: Collection[str]) -> list[str]:
    """Say which option lets through what failed for one of these reasons; a line for each that has one."""
    return [hint for reason, hint in _HINTS.items() if reason in reasons]


def count_stages(failures: Iterable[Failure]) -> dict[str, int]:
    """Count failures by stage, commonest first."""
    return dict(Counter(failure.stage for failure in failures).most_common())


def count_hosts(failures: Iterable[Failure]) -> dict[str, int]:
    """Count failures by host, commonest first, of the hundred commonest."""
    return dict(Counter(failure.host for failure in failures if failure.host).most_common(NUM_FAILED_HOSTS))


def _writable(value: Any) -> Any:
    """Write out what UTF-8 cannot hold, such as file names in another encoding."""
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value


def _replace_file(target: Path, data: bytes) -> None:
    partial = target.with_name(f"{target.name}.{os.getpid()}.partial")
    try:
        with open(partial, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, target)
    except BaseException as error:
        with contextlib.suppress(OSError):  # it is the first error that says what is wrong
            partial.unlink()
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(target)  # the kernel does not say on which file's account a disk was full
        raise
