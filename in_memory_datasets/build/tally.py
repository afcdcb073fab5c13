"""What a load takes, counted as its outcomes come."""

from __future__ import annotations

import heapq
import time

from in_memory_datasets.build.pipeline import Outcome
from in_memory_datasets.schema import Effort, HostTime

# So that a dataset of a million hosts costs no more memory than one of these: about two megabytes.
MAX_HOSTS, _MAX_NAME = 10_000, 255
_NUM_SLOWEST = 5


class Tally:
    """Count the outcomes of one load, in memory that is bounded however many samples and hosts there are.

    The clock of its threads runs from when it is made.

    Args:
        num_threads: Decode threads of the load.
    """

    def __init__(self, num_threads: int) -> None:
        self._num_threads = num_threads
        self._started = time.monotonic()
        self._num_tried = self.bytes_fetched = 0
        self._fetch = self._decode = self._write = 0.0
        self._hosts: dict[str, tuple[int, float]] = {}  # samples, and their seconds

    def add(self, outcome: Outcome) -> None:
        """Count one outcome, of a sample or of a failure."""
        self._num_tried += 1
        self.bytes_fetched += outcome.bytes_fetched
        self._fetch += outcome.fetch_seconds
        self._decode += outcome.decode_seconds
        self._write += outcome.write_seconds
        host = outcome.host
        if not host or len(host) > _MAX_NAME or (host not in self._hosts and len(self._hosts) == MAX_HOSTS):
            return
        num_samples, seconds = self._hosts.get(host, (0, 0.0))
        self._hosts[host] = num_samples + 1, seconds + outcome.fetch_seconds

    def effort(self) -> Effort:
        """Sum up what was counted by now; the decode threads count as waiting from the start on until now."""
        seconds = time.monotonic() - self._started
        times = (HostTime(host, total / count, count) for host, (count, total) in self._hosts.items())
        return Effort(
            seconds=seconds,
            num_tried=self._num_tried,
            bytes_fetched=self.bytes_fetched,
            seconds_by_stage={
                "fetch": self._fetch,
                "decode": self._decode,
                "write": self._write,
                "waiting": max(0.0, self._num_threads * seconds - self._decode - self._write),
            },
            slowest_hosts=tuple(heapq.nlargest(_NUM_SLOWEST, times, key=lambda time: time.mean_seconds)),
        )
