"""Install a wheel into an empty directory, look at what is in it, and use it from there.

python -I use_the_wheel.py path/to/the.whl
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

# Runs in an isolated process of its own, so that neither a clone nor an editable install is found before the target.
USE = """
import io, sys
from pathlib import Path

target = Path(sys.argv[1]).resolve()
sys.path.insert(0, str(target))

import in_memory_datasets
from PIL import Image
from torch.utils.data import DataLoader
from in_memory_datasets import InMemoryImageTextDataset, collate_in_memory_images

place = Path(in_memory_datasets.__file__).resolve()
assert place.is_relative_to(target), f"imported from {place}, expected it under {target}"
rows = []
for i, colour in enumerate(("red", "green", "blue")):
    file = io.BytesIO()
    Image.new("RGB", (40, 30), colour).save(file, "PNG")
    rows.append({"image": {"bytes": file.getvalue(), "path": None}, "caption": f"a {colour} picture"})
with InMemoryImageTextDataset(rows, "image", image_size=(16, 16), progress=False) as dataset:
    (batch,) = DataLoader(dataset, batch_size=3, collate_fn=collate_in_memory_images)
assert batch["images"].shape == (3, 3, 16, 16), batch["images"].shape
assert batch["captions"] == ["a red picture", "a green picture", "a blue picture"], batch["captions"]
assert batch["images"][0, :, 8, 8].tolist() == [255, 0, 0], batch["images"][0, :, 8, 8]
print("in_memory_datasets", in_memory_datasets.__version__)
"""


def check_contents(wheel: Path) -> None:
    """Refuse a wheel that holds anything but the package and its metadata, or lacks the mark of being typed."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (metadata,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        licensed = any(".dist-info/" in name and name.endswith("LICENSE") for name in names)
        text = archive.read(metadata).decode()
    roots = {name.partition("/")[0] for name in names}
    expected = {"in_memory_datasets", metadata.partition("/")[0]}
    if roots != expected:
        raise SystemExit(f"{wheel.name} holds {sorted(roots)}, expected {sorted(expected)}")
    if "in_memory_datasets/py.typed" not in names:
        raise SystemExit(f"{wheel.name} lacks in_memory_datasets/py.typed: type checkers would not read its types")
    if tests := [name for name in names if "test" in name.lower()]:
        raise SystemExit(f"{wheel.name} holds tests: {tests}")
    if not licensed:
        raise SystemExit(f"{wheel.name} holds no LICENSE")
    if "Requires-Python: >=3.10" not in text:
        raise SystemExit(f"{wheel.name} does not say which Python it needs")


def main(arguments: list[str]) -> None:
    """Check the one wheel that is named."""
    if len(arguments) != 1:
        raise SystemExit(f"expected one wheel, got {arguments or 'none'}: remove older ones from build/wheel")
    wheel = Path(arguments[0]).resolve()
    check_contents(wheel)
    with tempfile.TemporaryDirectory() as directory:
        target = Path(directory) / "target"
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-deps"]
        subprocess.run([*pip, "--no-index", "--target", str(target), str(wheel)], check=True, cwd=directory)
        subprocess.run([sys.executable, "-I", "-W", "error", "-c", USE, str(target)], check=True, cwd=directory)
    print(f"{wheel.name}: installed and used from an empty directory")


if __name__ == "__main__":
    main(sys.argv[1:])
