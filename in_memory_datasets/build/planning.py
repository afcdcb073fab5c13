"""What a load would take: in every form, from the rows alone; with a probe, from its first samples too."""

from __future__ import annotations

import itertools
import os
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from in_memory_datasets.build.bars import progress_bar
from in_memory_datasets.build.duplicates import SampleNumbers, count_samples, first_rows
from in_memory_datasets.build.pipeline import Outcome, Threads, run
from in_memory_datasets.build.request import LoadRequest
from in_memory_datasets.decode import check_flac_rate
from in_memory_datasets.errors import ConfigError
from in_memory_datasets.memory import plan_memory
from in_memory_datasets.schema import AudioSpec, FetchOptions, ImageSpec, MemoryPlan, Row, TierPlan, parse_bytes
from in_memory_datasets.store import HEADER_BYTES, Placed, TableWriter, lockable_bytes

MAX_PROBE = 64
"""The most samples that a plan fetches."""

# Rows whose captions, and sizes where these are known without a fetch, are measured for the plan.
_NUM_MEASURED_ROWS = 128
# Captions and bookkeeping of a row that cannot be measured, because reading it would use it up.
_ASSUMED_ROW_BYTES = 256
_OFFSET_BYTES = 8
# What a picture takes at most beyond its pixels, the header of a file of them; and a clip of noise as FLAC.
_HEADER_OF_PIXELS_BYTES = 20
_FLAC_OF_NOISE, _HEADER_OF_FLAC_BYTES = 1.01, 100
# An estimate from 128 samples is this far off when it is far off.
_FAR_OFF = 1.25


@dataclass(frozen=True, slots=True)
class _Size:
    """What a sample takes in one form: a bound where it is the most one can take, or an estimate from a part."""

    num_bytes: float
    is_upper_bound: bool = False
    is_estimate: bool = False


@dataclass(frozen=True, slots=True)
class Probe:
    """What was found out about samples by fetching and decoding some.

    Attributes:
        num_samples: How many were fetched.
        num_hosts: From how many hosts; 0 where none was asked.
        fetch_seconds: Mean time that an attempt at a sample takes, without the wait for its turn.
        decode_seconds: Mean time to make a sample of its bytes, on one thread.
        encoded_bytes: Mean size of one that is kept encoded; None where none could be decoded.
        num_frames: Mean frames of a clip; of pictures 0.
    """

    num_samples: int
    num_hosts: int
    fetch_seconds: float
    decode_seconds: float
    encoded_bytes: float | None
    num_frames: float

    def seconds_for(self, num_samples: int, *, fetch: FetchOptions, num_threads: int) -> float:
        """Estimate how long so many samples take: whichever of fetching and decoding is the slower.

        A server that slows down under load, or one host in the probe where there are many, makes it wrong by as much.

        Example:
            >>> probe = Probe(64, 1, fetch_seconds=0.1, decode_seconds=0.001, encoded_bytes=9e3, num_frames=0)
            >>> round(probe.seconds_for(32_000, fetch=FetchOptions(per_host=32), num_threads=2))
            100
        """
        at_once = min(fetch.concurrency, fetch.per_host * self.num_hosts or fetch.concurrency)
        return num_samples * max(self.fetch_seconds / at_once, self.decode_seconds / num_threads)


def plan(request: LoadRequest, *, probe: int = 0, num_unique: int | None = None) -> MemoryPlan:
    """Compute what a load would take.

    Args:
        probe: How many of the first samples to fetch and decode, for the sizes that are not known without and for the
            time it takes; at most `MAX_PROBE`.
        num_unique: How many samples the rows have, where that was counted; that is then what the plan counts. None
            takes a sample for each row, which is too much where rows repeat a source.

    Raises:
        ConfigError: `probe` is out of range, or the rows can be read only once.

    Cost: reads up to 128 rows, and looks at the sizes of local files; with a probe, one fetch and decode of each.
    """
    if isinstance(probe, bool) or not isinstance(probe, int) or not 0 <= probe <= MAX_PROBE:
        raise ConfigError(f"probe={probe!r}: expected how many samples to fetch for the plan, from 0 to {MAX_PROBE}")
    reader = request.rows
    rows = _measured_rows(request)
    empty_bytes = TableWriter().to_buffer().size
    row_bytes: float = _ASSUMED_ROW_BYTES
    if rows:
        table = TableWriter()
        table.add(rows)
        row_bytes = (table.to_buffer().size - empty_bytes) / len(rows)
    probed = _probe(request, probe) if probe else None
    sizes = _sizes(request.spec, rows, probed)
    num_rows = reader.num_rows if reader.num_rows is not None else reader.max_rows
    if num_unique and num_rows:
        num_rows, row_bytes = num_unique, row_bytes * num_rows / num_unique
    plans = {
        name: plan_memory(
            num_samples=num_rows,
            bytes_per_sample=size.num_bytes + row_bytes,
            fixed_bytes=empty_bytes + HEADER_BYTES,
            memory_limit=None if request.memory_limit is None else parse_bytes(request.memory_limit),
            is_upper_bound=size.is_upper_bound or reader.num_rows is None,
        )
        for name, size in sizes.items()
    }
    chosen = _choose(request, plans, sizes)
    if reader.takes_what_fits and num_rows is not None:
        num_samples = min(num_rows, chosen.num_samples_that_fit)
        share = num_samples / num_rows if num_rows else 0
        needed = None if chosen.bytes_needed is None else round(chosen.bytes_needed * share)
        chosen = replace(chosen, num_samples=num_samples, bytes_needed=needed, fits=num_samples > 0, num_on_disk=None)
    seconds = None
    if probed is not None and chosen.num_samples is not None:
        seconds = probed.seconds_for(chosen.num_samples, fetch=request.fetch, num_threads=request.threads)
    return replace(
        chosen,
        storage=request.storage,
        tiers=tuple(_tier(name, plans[name], size) for name, size in sizes.items()),
        seconds=seconds,
        num_probed=0 if probed is None else probed.num_samples,
    )


def _tier(name: str, one: MemoryPlan, size: _Size) -> TierPlan:
    return TierPlan(
        name, one.bytes_needed, one.fits, one.num_samples_that_fit, size.is_upper_bound, is_estimate=size.is_estimate
    )


def _choose(request: LoadRequest, plans: dict[str, MemoryPlan], sizes: dict[str, _Size]) -> MemoryPlan:
    """Give the plan for the storage asked for; of a mixture, how it would be divided."""
    is_int16 = isinstance(request.spec, AudioSpec) and request.spec.dtype == "int16"
    decoded_name = "int16" if is_int16 else "decoded"
    decoded = plans[decoded_name]
    if request.storage == "decoded":
        return decoded
    encoded = plans["encoded"]
    if request.storage == "encoded":
        return encoded
    if decoded.fits:
        return replace(decoded, num_decoded=decoded.num_samples, num_on_disk=0)
    if sizes["encoded"].is_upper_bound or encoded.num_samples is None or encoded.bytes_needed is None:
        return replace(encoded, bytes_needed=None, fits=False, is_upper_bound=True)
    if not encoded.fits:
        return replace(encoded, num_decoded=0, num_on_disk=encoded.num_samples - encoded.num_samples_that_fit)
    more_for_one = sizes[decoded_name].num_bytes - sizes["encoded"].num_bytes
    num_decoded = int((encoded.bytes_available - encoded.bytes_needed) / max(1.0, more_for_one))
    num_decoded = min(num_decoded, encoded.num_samples)
    needed = round(encoded.bytes_needed + num_decoded * more_for_one)
    return replace(encoded, bytes_needed=needed, num_decoded=num_decoded, num_on_disk=0)


def _sizes(spec: ImageSpec | AudioSpec, rows: list[Row], probed: Probe | None) -> dict[str, _Size]:
    """Say what a sample takes in each form that this kind of sample has."""
    if isinstance(spec, ImageSpec):
        raw = spec.image_size[0] * spec.image_size[1] * 3
        most = raw + _HEADER_OF_PIXELS_BYTES + _OFFSET_BYTES
        known = _known_sizes(rows)
        if probed is not None and probed.encoded_bytes is not None:
            encoded = _Size(probed.encoded_bytes + _OFFSET_BYTES, is_estimate=True)
        elif known is not None and spec.recompress is None:
            encoded = _Size(float(np.minimum(known, most).mean()) + _OFFSET_BYTES, is_estimate=True)
        else:
            encoded = _Size(most, is_upper_bound=True)
        return {"decoded": _Size(raw), "encoded": encoded}
    is_known = probed is not None and probed.num_frames > 0
    num_frames = probed.num_frames if probed is not None and is_known else float(spec.max_frames)
    sizes = {
        name: _Size(num_frames * num_bytes + _OFFSET_BYTES, is_upper_bound=not is_known, is_estimate=is_known)
        for name, num_bytes in (("decoded", 4), ("int16", 2))
    }
    if not _has_flac(spec):
        return sizes
    if probed is not None and probed.encoded_bytes is not None:
        sizes["encoded"] = _Size(probed.encoded_bytes + 2 * _OFFSET_BYTES, is_estimate=True)
    else:
        noise = 2 * num_frames * _FLAC_OF_NOISE + _HEADER_OF_FLAC_BYTES + 2 * _OFFSET_BYTES
        sizes["encoded"] = _Size(noise, is_upper_bound=True)
    return sizes


def _has_flac(spec: AudioSpec) -> bool:
    try:
        check_flac_rate(spec.target_sr)
    except ConfigError:
        return False
    return True


def _measured_rows(request: LoadRequest) -> list[Row]:
    """Read some rows from all over the dataset; none where they can only be read in order."""
    reader = request.rows
    if not (reader.random_access and reader.num_rows):
        return []
    num_rows = min(reader.num_rows, _NUM_MEASURED_ROWS)
    return reader.take(np.linspace(0, reader.num_rows - 1, num_rows).round().astype(int).tolist())


def _known_sizes(rows: list[Row]) -> NDArray[np.int64] | None:
    """Give the encoded sizes of rows where all are known without a fetch; None where one is not."""
    sizes = []
    for row in rows:
        if row.source is None:
            continue
        if row.source.kind == "bytes":
            sizes.append(len(row.source.value))
        elif row.source.kind != "path":
            return None
        elif os.path.isfile(row.source.value):  # one that is not there takes nothing
            sizes.append(os.path.getsize(row.source.value))
    return np.array(sizes) if sizes else None


def _probe(request: LoadRequest, num_samples: int) -> Probe | None:
    reader = request.rows
    if reader.random_access and reader.num_rows is not None:
        rows = reader.take(list(range(min(num_samples, reader.num_rows))))
    elif reader.reads_once:
        raise ConfigError("probe= fetches the first samples, and an iterator is gone once it is read: pass a list")
    else:
        rows = list(itertools.islice(itertools.chain.from_iterable(reader.batches()), num_samples))
    rows = first_rows(rows, SampleNumbers().of(rows), 0)
    encoded = isinstance(request.spec, ImageSpec) or _has_flac(request.spec)
    kept: list[tuple[int, int]] = []

    def measure(slot: int, sample: NDArray[Any], num_frames: int) -> Placed:
        kept.append((sample.nbytes, num_frames if encoded else sample.size))
        return Placed(0, sample.nbytes, num_frames, 0)

    workshop = Threads(measure, request, is_encoded=lambda slot: encoded)
    outcomes: list[Outcome] = list(run(iter([rows]), workshop, request))
    if not outcomes:
        return None
    decoded = [outcome.decode_seconds for outcome in outcomes if outcome.failure is None]
    return Probe(
        num_samples=len(outcomes),
        num_hosts=len({row.source.host for row in rows if row.source is not None} - {""}),
        fetch_seconds=float(np.mean([outcome.fetch_seconds for outcome in outcomes])),
        decode_seconds=float(np.mean(decoded)) if decoded else 0.0,
        encoded_bytes=float(np.mean([num_bytes for num_bytes, _ in kept])) if kept and encoded else None,
        num_frames=float(np.mean([frames for _, frames in kept])) if kept else 0.0,
    )


def is_surely_too_large(request: LoadRequest, expected: MemoryPlan) -> bool:
    """Tell whether to refuse a load before anything is fetched.

    Decoded samples are refused by what they take at most. What encoded ones take is known when they are there: only an
    estimate that is far off is a reason not to try.
    """
    if expected.bytes_needed is None or expected.fits:
        return False
    if request.storage == "decoded":
        return True
    return not expected.is_upper_bound and expected.bytes_needed > _FAR_OFF * expected.bytes_available


def plan_without_repeats(request: LoadRequest, expected: MemoryPlan) -> MemoryPlan:
    """Plan anew, with the samples counted, where a load would be refused for a plan that takes one for each row.

    Cost: nothing where it would not be refused; else reads the rows, up to as many samples as do not fit.
    """
    if not request.rows.random_access or not expected.num_samples or expected.bytes_needed is None:
        return expected
    limit = expected.bytes_available if is_surely_too_large(request, expected) else expected.bytes_needed
    lockable = lockable_bytes() if request.lock_memory and not expected.is_upper_bound else None
    if lockable is not None:
        limit = min(limit, lockable)
    if expected.bytes_needed <= limit:
        return expected
    most = int(expected.num_samples * _FAR_OFF * limit / expected.bytes_needed)
    with progress_bar(request.progress, expected.num_samples, "Looking for repeats", unit="row") as bar:
        num_unique = count_samples(request.rows.batches(), most=most, on_progress=bar.update)
    return plan(request, num_unique=num_unique) if num_unique <= most else expected


def ways_out(request: LoadRequest) -> str:
    """Say what to change so that less memory is needed."""
    spec, ways = request.spec, []
    if isinstance(spec, ImageSpec):
        ways.append("take a smaller image_size")
    else:
        ways.append("give max_duration= of your longest clip")
        if spec.dtype != "int16" and request.storage == "decoded":
            ways.append('dtype="int16"')
    if request.storage == "decoded":
        ways.append('storage="encoded"')
    ways.append('storage="auto" with a cache_dir=')
    return ", or ".join(ways)
