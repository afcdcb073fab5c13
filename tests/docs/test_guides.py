"""The papers are true: their Python runs, their tables are those of the code, what they name exists.

A ```python block is executed, in order, in one namespace per paper, in an empty directory. A ```text block right behind
it is what it prints ("..." stands for anything). A block under `<!-- not run: reason -->` is only compiled. The Hub is
replaced at its border: `datasets.load_dataset` gives small tables of the published schemas, whose sources are files of
the demonstration set.
"""

from __future__ import annotations

import contextlib
import doctest
import inspect
import io
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import pytest

import in_memory_datasets
from demo.scenes import draw_scene, render_scene
from demo.sounds import draw_sound, render_sound
from in_memory_datasets import FetchOptions, InMemoryAudioTextDataset, InMemoryImageTextDataset, presets
from in_memory_datasets.rows import find_preset
from in_memory_datasets.schema import REASONS, format_bytes

ROOT = Path(__file__).parents[2]
GUIDE = ROOT / "IN_MEMORY_DATASETS_GUIDE.md"
FORMAT = ROOT / "docs/reference/store-format.md"
PAPERS = [
    ROOT / "README.md",
    GUIDE,
    ROOT / "IN_MEMORY_SUMMARY.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    FORMAT,
    ROOT / "docs/explanation/benchmarks.md",
    *sorted((ROOT / "docs/explanation/decisions").glob("*.md")),
    *sorted((ROOT / "docs/how-to").glob("*.md")),
]
NUM_ROWS = 24
# Rows whose files are not there, as in any dataset of URLs.
LOST = (5, 17)


@dataclass(frozen=True, slots=True)
class Block:
    """One fenced block: its language, its text, the line it begins at, and why it is not run, if it is not."""

    language: str
    text: str
    line: int
    not_run: str | None


def blocks_of(paper: Path) -> Iterator[Block]:
    """Give the fenced blocks of a Markdown file, in order."""
    lines = paper.read_text("utf-8").splitlines()
    start, language, not_run = None, "", None
    for number, line in enumerate(lines, start=1):
        fence = re.fullmatch(r"\s*```(\w*)", line)
        if fence and start is None:
            above = next((text for text in reversed(lines[: number - 1]) if text.strip()), "")
            excuse = re.fullmatch(r"\s*<!-- not run: *(.*?) *-->", above)
            start, language, not_run = number, fence[1], excuse[1] if excuse else None
        elif fence and start is not None:
            text = "\n".join(lines[start : number - 1]) + "\n"
            yield Block(language, text, start + 1, not_run)
            start = None
    assert start is None, f"{paper.name}: the block that begins in line {start} never ends"


def has_python(paper: Path) -> bool:
    """Tell whether a paper has anything to run."""
    return any(block.language == "python" for block in blocks_of(paper))


def table_under(heading: str, paper: Path = GUIDE) -> list[list[str]]:
    """Give the cells of the first table under a heading, without its head."""
    section = paper.read_text("utf-8").split(f"\n{heading}\n", 1)
    assert len(section) == 2, f"{paper.name} has no heading {heading!r}"
    rows = []
    for line in section[1].splitlines():
        if line.startswith("|"):
            rows.append([cell.strip() for cell in line.strip("|").split(" | ")])
        elif rows or line.startswith("#"):
            break
    return rows[2:]


# --- the Hub, at its border -----------------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Render a few pictures and clips of the demonstration set."""
    place = tmp_path_factory.mktemp("hub")
    for i in range(NUM_ROWS):
        if i not in LOST:
            (place / f"{i}.jpg").write_bytes(render_scene(draw_scene(i), i))
        if i < 8:
            (place / f"{i}.wav").write_bytes(render_sound(draw_sound(i), i))
            (place / f"-clip-{i:05}.wav").write_bytes(render_sound(draw_sound(i), i))
    return place


def load_dataset_from(files: Path) -> Callable[..., Any]:
    """Make what stands for `datasets.load_dataset`: the published columns, a few rows."""
    images = [{"image_url": str(files / f"{i}.jpg"), "caption": draw_scene(i).caption} for i in range(NUM_ROWS)]
    clips = [{"audio": str(files / f"{i}.wav"), "caption": draw_sound(i).caption} for i in range(8)]
    kept = [i for i in range(NUM_ROWS) if i not in LOST]
    tables: dict[str, list[dict[str, Any]]] = {
        "allenai/pixmo-cap": [{**row, "transcripts": ["I see it."]} for row in images],
        "lmms-lab/flickr30k": [
            {
                "image": {"bytes": (files / f"{i}.jpg").read_bytes(), "path": f"{i}.jpg"},
                "caption": [f"{draw_scene(i).caption} ({n})" for n in range(5)],
                "img_id": str(i),
            }
            for i in kept
        ],
        "google/MusicCaps": [
            {"ytid": f"-clip-{i:05}", "start_s": 30, "end_s": 40, "caption": draw_sound(i).caption} for i in range(8)
        ],
        "me/field-recordings": clips,
    }

    def load_dataset(repo: str, *_: Any, split: str, streaming: bool = False) -> Any:
        table = datasets.Dataset.from_list(tables[repo])
        return table.to_iterable_dataset() if streaming else table

    return load_dataset


# --- what is executed -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("paper", [paper for paper in PAPERS if has_python(paper)], ids=lambda paper: paper.name)
def test_every_example_runs(paper: Path, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Python of a paper runs from top to bottom and prints what stands under it."""
    monkeypatch.chdir(tmp_path)
    for name in ("photos", "clips"):
        (tmp_path / name).symlink_to(files)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset_from(files))
    namespace: dict[str, Any] = {"__name__": "paper"}
    if paper == FORMAT:
        keep_stores_of(files)
    printed: str | None = None
    for block in blocks_of(paper):
        if block.language == "python":
            # Blank lines in front make line numbers in tracebacks those of the paper.
            code = compile("\n" * (block.line - 1) + block.text, str(paper), "exec")
            printed = None
            if block.not_run is None:
                with contextlib.redirect_stdout(io.StringIO()) as out:
                    exec(code, namespace)
                printed = out.getvalue()
        elif block.language == "text" and printed is not None:
            flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
            assert doctest.OutputChecker().check_output(block.text, printed, flags), (
                f"{paper.name}:{block.line} says\n{block.text}\nand the block above it prints\n{printed}"
            )
            printed = None


def keep_stores_of(files: Path) -> None:
    """Save the datasets that the readers of store-format.md open."""
    load_dataset = load_dataset_from(files)
    images = load_dataset("allenai/pixmo-cap", split="train")
    clips = load_dataset("me/field-recordings", split="train")
    for storage in ("decoded", "encoded"):
        name = "captioned" if storage == "decoded" else "encoded"
        with InMemoryImageTextDataset(images, image_size=(48, 32), storage=storage, progress=False) as pictures:
            pictures.save(f"{name}-images")
        with InMemoryAudioTextDataset(clips, storage=storage, progress=False) as sounds:
            sounds.save(f"{name}-clips")
    each_five_times = images.select([i // 5 for i in range(5 * NUM_ROWS)])
    with InMemoryImageTextDataset(each_five_times, image_size=(48, 32), progress=False) as pictures:
        pictures.save("repeated-images")


@pytest.mark.parametrize("paper", PAPERS, ids=lambda paper: paper.name)
def test_only_few_blocks_are_excused(paper: Path) -> None:
    """A block that is not run says why, and Python is never hidden behind a missing language."""
    for block in blocks_of(paper):
        assert block.language in ("python", "text", "bash", "yaml"), f"{paper.name}:{block.line} names no language"
        if block.not_run is not None:
            assert len(block.not_run) > 10, f"{paper.name}:{block.line} is not run for no reason"


# --- what is named --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("paper", PAPERS, ids=lambda paper: paper.name)
def test_commands_name_what_exists(paper: Path) -> None:
    """Every `make` target, script, flag and file that a shell block names is there."""
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    for block in blocks_of(paper):
        if block.language != "bash":
            continue
        for line in block.text.splitlines():
            words = line.partition("#")[0].split()
            if words[:1] == ["make"]:
                assert set(words[1:]) <= targets, f"{paper.name}:{block.line}: {line!r}"
            scripts = [word for word in words if word.endswith(".py")]
            for script in scripts:
                assert (ROOT / script).is_file(), f"{paper.name}:{block.line}: {line!r}"
                source = (ROOT / script).read_text("utf-8")
                for flag in (word for word in words[words.index(script) :] if word.startswith("--")):
                    assert f'"{flag}"' in source, f"{paper.name}:{block.line}: {script} knows no {flag}"


def test_the_readme_names_the_two_commands() -> None:
    """Whoever has a clone finds the one command that shows it and the one that tests it."""
    commands = "".join(block.text for block in blocks_of(ROOT / "README.md") if block.language == "bash")
    assert re.search(r"^make quickstart\b", commands, re.MULTILINE)
    assert re.search(r"^make test\b", commands, re.MULTILINE)


@pytest.mark.parametrize("paper", PAPERS, ids=lambda paper: paper.name)
def test_links_lead_somewhere(paper: Path) -> None:
    """Links to files and headings of this repository are good."""
    for target in re.findall(r"\]\(([^)\s]+)\)", paper.read_text("utf-8")):
        if target.startswith(("https://", "http://")):
            continue
        name, _, anchor = target.partition("#")
        file = (paper.parent / name).resolve() if name else paper
        assert file.exists(), f"{paper.name}: there is no {target}"
        if anchor:
            assert anchor in anchors_of(file), f"{paper.name}: there is no heading for {target}"


def anchors_of(paper: Path) -> set[str]:
    """Make the anchors of the headings, as GitHub does."""
    headings = re.findall(r"^#+ (.*)$", paper.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_decision_is_in_the_index() -> None:
    """The index of decisions lists each of them by its own title."""
    folder = ROOT / "docs/explanation/decisions"
    index = (folder / "README.md").read_text("utf-8")
    for decision in folder.glob("[0-9]*.md"):
        title = decision.read_text("utf-8").splitlines()[0].lstrip("# ").partition(". ")[2]
        assert f"[{title}]({decision.name})" in index


# --- what is in tables ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "cls",
    [InMemoryImageTextDataset, InMemoryAudioTextDataset, FetchOptions],
    ids=lambda cls: cls.__name__,
)
def test_the_guide_lists_every_parameter(cls: type) -> None:
    """The tables of parameters have each parameter, in order, with its default."""
    listed = table_under(f"### `{cls.__name__}`")
    parameters = list(inspect.signature(cls).parameters.values())
    assert [row[0].strip("`") for row in listed] == [parameter.name for parameter in parameters]
    for row, parameter in zip(listed, parameters, strict=True):
        if parameter.default is inspect.Parameter.empty:
            assert row[1] == "required"
        else:
            assert eval(row[1].strip("`"), {"FetchOptions": FetchOptions}) == parameter.default, row


def test_the_guide_lists_every_reason() -> None:
    """The table of reasons has each reason a sample can fail for, and no other."""
    listed = [row[0].strip("`") for row in table_under("### Reasons")]
    assert sorted(listed) == sorted(reason for reason in REASONS if reason)


def test_the_guide_lists_every_preset() -> None:
    """The table of published datasets has each preset, with the copy that it loads."""
    listed = {row[0].strip("`"): row[1].strip("`") for row in table_under("## Published datasets by name")}
    assert listed == {name: find_preset(name).repo for name in presets.names()}


def test_the_messages_in_troubleshooting_are_those_of_the_code() -> None:
    """Whoever searches the guide for the words of an error finds them: each piece of a message is in the source."""
    source = "".join(path.read_text("utf-8") for path in (ROOT / "in_memory_datasets").rglob("*.py"))
    source = re.sub(r'"\s*\n\s*f?"', "", source)
    not_ours = ("can't pickle", "from a worker", ": No space left on device")
    for message, *_ in table_under("## Troubleshooting"):
        for piece in re.split(r"\s*[;,]?\s*…[;,]?\s*|`\s*", message):
            assert len(piece) < 4 or piece in source or piece in not_ours, f"no error says {piece!r}"


def test_the_memory_table_of_images_is_right() -> None:
    """width · height · 3 bytes an image."""
    for size, *cells in table_under("### Images at rest"):
        width, height = (int(side) for side in size.split(" × "))
        expected = [format_bytes(width * height * 3 * num_images) for num_images in (1, 1_000, 10_000, 100_000)]
        assert cells == expected


def test_the_memory_table_of_clips_is_right() -> None:
    """seconds · Hz · bytes of a frame, a clip."""
    for seconds, rate, dtype, *cells in table_under("### Clips at rest"):
        frame_bytes = {"float32": 4, "int16": 2}[dtype]
        clip_bytes = int(seconds.removesuffix(" s")) * int(rate.removesuffix(" Hz").replace(",", "")) * frame_bytes
        assert cells == [format_bytes(clip_bytes * num_clips) for num_clips in (1, 1_000, 10_000, 100_000)]


def test_the_guide_names_every_public_name() -> None:
    """Whatever can be imported from the package is spoken of in the guide."""
    text = GUIDE.read_text("utf-8")
    assert [name for name in in_memory_datasets.__all__ if not re.search(rf"\b{name}\b", text)] == []


def test_the_newest_entry_of_the_changelog_is_this_version() -> None:
    """The changelog begins with the version of the package."""
    versions = re.findall(r"^## \[([\d.]+)\]", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
    assert versions[0] == in_memory_datasets.__version__
