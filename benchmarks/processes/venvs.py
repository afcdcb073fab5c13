"""The virtual environments of the peers, made when they are first needed."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

_REQUIREMENTS = Path(__file__).parent / "requirements"


class InstallError(Exception):
    """A virtual environment could not be made; the message is the end of what pip said."""


def python_of(venv: str, root: Path) -> Path:
    """Give the interpreter of a virtual environment, and make that first if it is missing or its pins have changed.

    Every package is pinned and pip resolves nothing (`--no-deps`): a peer that asks for torchvision, or for any newer
    torch, would else fetch gigabytes of CUDA. `NAME.source.txt` lists what is built from source once the rest is there.

    Raises:
        InstallError: pip failed.
    """
    if venv == "main":
        return Path(sys.executable)
    requirements = [_REQUIREMENTS / f"{venv}.txt", _REQUIREMENTS / f"{venv}.source.txt"]
    pins = hashlib.sha256(b"".join(path.read_bytes() for path in requirements if path.exists())).hexdigest()
    directory = root / venv
    python = directory / "bin" / "python"
    ready = directory / ".ready"
    if ready.exists() and ready.read_text() == pins:
        return python
    print(f"installing the peers of build/peers/{venv} …", flush=True)
    shutil.rmtree(directory, ignore_errors=True)
    _run([sys.executable, "-m", "venv", str(directory)])
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    _run([*pip, "--requirement", str(requirements[0])])
    if requirements[1].exists():
        _run([*pip, "--no-build-isolation", "--requirement", str(requirements[1])])
    ready.write_text(pins)
    return python


def _run(command: list[str]) -> None:
    # The compilers that a Python from elsewhere was built with need not be the ones of this machine.
    environment = {"CC": "cc", "CXX": "c++", **os.environ}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise InstallError((done.stderr or done.stdout)[-2000:].strip())
