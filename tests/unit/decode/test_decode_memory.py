"""DecodeMemory: decodes begin while they fit together; what is too large runs alone, and is not overtaken for ever."""

import os
import threading

import pytest

from in_memory_datasets.decode.decode_memory import DecodeMemory, decode_memory


def test_what_fits_runs_together_and_what_does_not_runs_alone():
    memory = DecodeMemory(limit_bytes=100)
    in_use = []

    def enter(num_bytes):
        with memory.reserve(num_bytes):
            in_use.append(memory.bytes_in_use)

    with memory.reserve(60):
        with memory.reserve(40):
            assert memory.bytes_in_use == 100
        large = threading.Thread(target=enter, args=(1_000,))
        large.start()
    large.join()
    assert in_use == [1_000]
    assert memory.bytes_in_use == 0


def test_an_error_gives_the_memory_back():
    memory = DecodeMemory(limit_bytes=100)
    try:
        with memory.reserve(80):
            raise ValueError
    except ValueError:
        pass
    assert memory.bytes_in_use == 0


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_a_forked_child_does_not_inherit_a_held_bound():
    with decode_memory().reserve(2**40):
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.write(writer, str(decode_memory().bytes_in_use).encode())
            os._exit(0)
        os.waitpid(child, 0)
        assert os.read(reader, 10) == b"0"
        os.close(reader)
        os.close(writer)
