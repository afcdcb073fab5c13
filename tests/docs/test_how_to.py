"""The how-tos: what they have one copy is well-formed, and their links lead somewhere."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import yaml

HOW_TOS = sorted((Path(__file__).parents[2] / "docs/how-to").glob("*.md"))


def blocks_of(paper: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", paper.read_text("utf-8"), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("paper", HOW_TOS, ids=lambda paper: paper.name)
def test_what_is_to_be_copied_is_well_formed(paper: Path) -> None:
    """Manifests are YAML with a kind, scripts are Bash, and programs are Python."""
    for manifest in blocks_of(paper, "yaml"):
        assert {"apiVersion", "kind", "spec"} <= set(yaml.safe_load(manifest))
    for script in blocks_of(paper, "bash"):
        subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    for program in blocks_of(paper, "python"):
        compile(program, paper.name, "exec")


@pytest.mark.parametrize("paper", HOW_TOS, ids=lambda paper: paper.name)
def test_links_lead_to_files_and_headings_that_are_there(paper: Path) -> None:
    """Every relative link of a how-to names a file, and where it names a heading, one that the file has."""
    for target in re.findall(r"\]\(([^)]+)\)", paper.read_text("utf-8")):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        linked = (paper.parent / name).resolve()
        assert linked.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", linked.read_text("utf-8"), re.MULTILINE)
            anchors = {re.sub(r"[^a-z0-9 -]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in anchors, target
