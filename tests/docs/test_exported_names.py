"""What can be imported is what is announced, and importing it does nothing."""

from __future__ import annotations

import importlib
import io
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import soundfile

import in_memory_datasets
from in_memory_datasets import errors

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "PIL", "aiohttp", "datasets", "soundfile", "soxr", "simplejpeg", "fsspec", "av", "matplotlib", "tqdm")


def run(script: str) -> dict[str, object]:
    """Run a script in a fresh interpreter, with every warning an error, and read the JSON it prints."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    found: dict[str, object] = json.loads(done.stdout)
    return found


def test_every_announced_name_can_be_imported() -> None:
    """`__all__` is sorted, without repeats, and each of its names is there, public and documented as ours."""
    names = in_memory_datasets.__all__
    assert names == sorted(set(names))
    for name in names:
        value = getattr(in_memory_datasets, name)
        module = value.__name__ if isinstance(value, ModuleType) else value.__module__
        assert module.startswith("in_memory_datasets.")
        assert name in dir(in_memory_datasets)


def test_every_error_is_exported() -> None:
    """Whatever class of the error tree there is can be caught by its name in the package."""
    classes = {name for name, value in vars(errors).items() if isinstance(value, type)}
    assert classes <= set(in_memory_datasets.__all__)


def test_star_import_gives_what_is_announced() -> None:
    """`from in_memory_datasets import *` gives `__all__` and nothing else."""
    namespace: dict[str, object] = {}
    exec("from in_memory_datasets import *", namespace)
    assert set(namespace) - {"__builtins__"} == set(in_memory_datasets.__all__)


def test_nothing_public_is_unannounced() -> None:
    """Besides `__all__` the package holds only its own modules and what its first lines import."""
    extra = {name for name in vars(in_memory_datasets) if not name.startswith("_")} - set(in_memory_datasets.__all__)
    modules = {name for name in extra if f"in_memory_datasets.{name}" in sys.modules}
    assert extra - modules == {"annotations", "importlib", "TYPE_CHECKING", "Any"}


def test_an_unknown_name_is_an_attribute_error() -> None:
    """Names that are not there are refused as Python does it."""
    with pytest.raises(AttributeError, match="has no attribute 'InMemoryVideoTextDataset'"):
        _ = in_memory_datasets.InMemoryVideoTextDataset  # type: ignore[attr-defined]


def test_every_module_can_be_imported_on_its_own() -> None:
    """No module needs another to have been imported first."""
    package = ROOT / "in_memory_datasets"
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        importlib.import_module(".".join(parts[:-1] if parts[-1] == "__init__" else parts))


def test_importing_does_nothing() -> None:
    """A fresh `import in_memory_datasets` loads no heavy library, starts no thread, and opens no file or socket."""
    found = run(
        "import json, os, sys, threading, warnings\n"
        "before = set(os.listdir('/proc/self/fd')) if os.path.isdir('/proc/self/fd') else set()\n"
        "filters = list(warnings.filters)\n"
        "environment = dict(os.environ)\n"
        "import in_memory_datasets\n"
        "after = set(os.listdir('/proc/self/fd')) if os.path.isdir('/proc/self/fd') else set()\n"
        f"print(json.dumps({{'loaded': [name for name in {HEAVY!r} if name in sys.modules],"
        " 'threads': threading.active_count(), 'descriptors': sorted(after - before),"
        " 'filters': filters == list(warnings.filters), 'environment': environment == dict(os.environ)}))"
    )
    assert found == {"loaded": [], "threads": 1, "descriptors": [], "filters": True, "environment": True}


def test_options_and_errors_need_no_torch() -> None:
    """`FetchOptions`, the records and the errors can be had, and used, where torch cannot be imported."""
    found = run(
        "import json, sys\n"
        "sys.modules['torch'] = None\n"
        "from in_memory_datasets import FetchOptions, Failure, LoadReport, MemoryPlan, ConfigError, StoreError\n"
        "print(json.dumps({'timeout': FetchOptions(timeout=5.0).timeout}))"
    )
    assert found == {"timeout": 5.0}


def test_a_plan_needs_no_network_library() -> None:
    """A plan of a list of rows loads neither aiohttp nor a decoder: nothing is fetched for it."""
    found = run(
        "import json, sys\n"
        "from in_memory_datasets import InMemoryImageTextDataset\n"
        "InMemoryImageTextDataset.plan([{'image_url': 'https://a.example/1.jpg', 'caption': 'x'}])\n"
        "print(json.dumps([name for name in ('simplejpeg', 'soundfile', 'soxr', 'av', 'matplotlib', 'datasets')"
        " if name in sys.modules]))"
    )
    assert found == []


def test_a_wav_needs_neither_the_extra_nor_a_chart_library(tmp_path: Path) -> None:
    """Loading a wav imports no PyAV, and nothing in the package ever imports matplotlib."""
    file = io.BytesIO()
    soundfile.write(file, np.zeros(800, np.float32), 8000, format="WAV")
    (tmp_path / "a.wav").write_bytes(file.getvalue())
    found = run(
        "import json, sys\n"
        "from in_memory_datasets import InMemoryAudioTextDataset\n"
        f"rows = [{{'audio': {str(tmp_path / 'a.wav')!r}, 'caption': 'x'}}]\n"
        "with InMemoryAudioTextDataset(rows, progress=False) as dataset:\n"
        "    num_frames = len(dataset[0]['audio'])\n"
        "loaded = [name for name in ('av', 'matplotlib', 'torchcodec', 'datasets') if name in sys.modules]\n"
        "print(json.dumps({'num_frames': num_frames, 'loaded': loaded}))"
    )
    assert found == {"num_frames": 1600, "loaded": []}


def test_no_module_of_the_package_names_a_chart_library() -> None:
    """matplotlib belongs to the scripts at the root."""
    for path in (ROOT / "in_memory_datasets").rglob("*.py"):
        assert "matplotlib" not in path.read_text("utf-8"), path
