"""One target in this process, its code instrumented: `python -m tests.fuzz.under_atheris TARGET FILE [options]`.

Each input is written to the file before the target sees it. libFuzzer would do that itself after a crash; but where
glibc has found damage it holds a lock then, for which libFuzzer waits for ever. So it is told to leave signals alone.

Source: atheris, https://github.com/google/atheris; options: https://llvm.org/docs/LibFuzzer.html.
"""

from __future__ import annotations

import os
import shlex
import sys

import atheris

# Bitmaps of runs are unpacked in Python, byte by byte: instrumented, the largest would take most of a minute.
_SLOW = ["PIL.BmpImagePlugin"]

with atheris.instrument_imports(include=["in_memory_datasets", "PIL", "soundfile", "yarl"], exclude=_SLOW):
    from PIL import Image

    from tests.fuzz.targets import TARGETS

    Image.init()  # imports every plug-in


def main() -> None:
    """Run the target that the first argument names until libFuzzer ends the process."""
    name, current, *options = sys.argv[1:]
    target, _ = TARGETS[name]
    fd = os.open(current, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)

    def run(data: bytes) -> None:
        os.pwrite(fd, data, 0)
        os.ftruncate(fd, len(data))
        target(data)

    # libFuzzer puts this before the options, in a shell, where it starts itself anew to merge.
    command = shlex.join([sys.executable, "-m", "tests.fuzz.under_atheris", name, current])
    signals = [f"-handle_{signal}=0" for signal in ("abrt", "segv", "bus", "ill", "fpe")]
    atheris.Setup([command, *signals, *options], run)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
