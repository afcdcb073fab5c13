"""How long the interpreter is held, which is what many cores cannot share.

CPython keeps in a word of its own state whether a thread holds the interpreter (the GIL). The word is found by how it
behaves, and then read from outside, at moments that chance chooses: the share of moments at which it is held is the
share of time, and the process that is watched does not know. Before anything is measured, the method has to find a loop
in Python to hold it all the time, and a loop of checksums in zlib to hold it hardly ever.
"""

from __future__ import annotations

import ctypes
import os
import random
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.load.running import watched

_MEAN_SECONDS_BETWEEN_LOOKS = 0.0007
_WORD_BYTES = 8
_NUM_ROUNDS, _NUM_TRIES = 40, 5
_MOST_BYTES = 2**20


class NoSuchWordError(Exception):
    """This interpreter keeps no such word, or elsewhere."""


def find_word() -> int:
    """Find the address of a word of this process that is 0 exactly when no thread holds the interpreter.

    Raises:
        NoSuchWordError: There is none in the state that all threads share.
    """
    runtime = ctypes.addressof(ctypes.c_char.in_dll(ctypes.pythonapi, "_PyRuntime"))
    num_words = min(_MOST_BYTES, _end_of_mapping(runtime) - runtime) // _WORD_BYTES
    buffer = ctypes.create_string_buffer(num_words * _WORD_BYTES)
    format = f"{num_words}Q"
    # The one keeps the interpreter while it copies, the other gives it up meanwhile.
    holding, giving_up = ctypes.PyDLL(None).memcpy, ctypes.CDLL(None).memcpy
    for copy in (holding, giving_up):
        copy.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]

    def narrow(candidates: set[int]) -> None:
        for _ in range(_NUM_ROUNDS):
            holding(buffer, runtime, len(buffer) - 1)
            held = struct.unpack(format, buffer)
            giving_up(buffer, runtime, len(buffer) - 1)
            free = struct.unpack(format, buffer)
            candidates.intersection_update(i for i in tuple(candidates) if held[i] and not free[i])

    for _ in range(_NUM_TRIES):  # a thread that is late to wake may hold the interpreter while it is given up
        candidates = set(range(num_words))
        narrow(candidates)
        # What is a thread's own, and no word of all, is told by another one.
        other = threading.Thread(target=narrow, args=(candidates,))
        other.start()
        other.join()
        if candidates:
            return runtime + min(candidates) * _WORD_BYTES
    raise NoSuchWordError


def _end_of_mapping(address: int) -> int:
    for line in Path("/proc/self/maps").read_text().splitlines():
        first, _, last = line.split()[0].partition("-")
        if int(first, 16) <= address < int(last, 16):
            return int(last, 16)
    raise NoSuchWordError


@dataclass(slots=True)
class Looks:
    """What was seen.

    Attributes:
        num_looks: How often it was looked.
        num_held: How often the interpreter was held.
    """

    num_looks: int = 0
    num_held: int = 0

    @property
    def share(self) -> float:
        """Share of the time that it was held."""
        return self.num_held / self.num_looks


@contextmanager
def looking(pid: int, address: int) -> Iterator[Looks]:
    """Look at a word of a process that this one started, for as long as the block runs."""
    looks, chance = Looks(), random.Random(0)
    fd = os.open(f"/proc/{pid}/mem", os.O_RDONLY)

    def look() -> None:
        looks.num_looks += 1
        looks.num_held += any(os.pread(fd, _WORD_BYTES, address))

    try:
        with watched(look, lambda: chance.expovariate(1 / _MEAN_SECONDS_BETWEEN_LOOKS)):
            yield looks
    finally:
        os.close(fd)


def project(num_cores: int, *, cpu_seconds: float, serial_seconds: float) -> float:
    """Give the samples in a second that so many cores load.

    Args:
        cpu_seconds: Processor time of a sample, which cores share.
        serial_seconds: What of it they cannot share.

    Example:
        >>> [round(project(n, cpu_seconds=0.002, serial_seconds=0.0001)) for n in (1, 8, 64)]
        [500, 4000, 10000]
    """
    return min(num_cores / cpu_seconds, 1 / serial_seconds)
