"""Every example in a docstring runs, and every public name has a docstring that begins with a summary."""

from __future__ import annotations

import doctest
import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import in_memory_datasets
from in_memory_datasets import errors, schema

PACKAGE = Path(in_memory_datasets.__file__).parent
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def module_names() -> list[str]:
    names = []
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = (PACKAGE.name, *path.relative_to(PACKAGE).with_suffix("").parts)
        names.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    return names


def public_members(module: ModuleType) -> Iterator[tuple[str, Any]]:
    """Give the public classes and functions a module defines, and the public methods of those classes."""
    for name, value in vars(module).items():
        if name.startswith("_") or getattr(value, "__module__", None) != module.__name__:
            continue
        if inspect.isclass(value):
            yield name, value
            for method_name, method in vars(value).items():
                function = getattr(method, "__func__", getattr(method, "fget", method))
                if not method_name.startswith("_") and inspect.isfunction(function):
                    yield f"{name}.{method_name}", function
        elif inspect.isroutine(value):
            yield name, value


@pytest.mark.parametrize("name", module_names())
def test_examples_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The examples of one module print what they say."""
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(name)
    runner = doctest.DocTestRunner(optionflags=FLAGS, verbose=False)
    said: list[str] = []
    for case in doctest.DocTestFinder(exclude_empty=True).find(module):
        runner.run(case, out=said.append)
    assert runner.summarize(verbose=False).failed == 0, "".join(said)


def test_public_names_begin_with_a_summary() -> None:
    """A module, and every public class, function and method in it, has a docstring that begins with a sentence."""
    wrong = []
    for name in module_names():
        module = importlib.import_module(name)
        for member, value in [("", module), *public_members(module)]:
            summary = inspect.cleandoc(value.__doc__ or "").split("\n\n")[0]
            # The docstring that a dataclass is given where it has none is its signature.
            is_generated = member and summary.startswith(f"{member}(")
            if is_generated or not summary.endswith((".", "?", ":")):
                wrong.append(f"{name}.{member}: {summary!r}")
    assert wrong == []


ERRORS = [value for value in vars(errors).values() if isinstance(value, type)]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: error.__name__)
def test_every_error_has_an_example_that_raises_it(error: type[Exception]) -> None:
    """The docstring of each error shows it raised, or caught, by name."""
    (case,) = doctest.DocTestFinder(recurse=False).find(error, error.__name__, globs=vars(errors))
    sources = "".join(example.source for example in case.examples)
    if error is errors.InMemoryDatasetsError:
        assert f"except {error.__name__}" in sources
    else:
        assert f"raise {error.__name__}(" in sources
        assert any(example.exc_msg and error.__name__ in example.exc_msg for example in case.examples)


def test_the_announced_names_have_examples() -> None:
    """Each class and function a user imports from the package shows a running example."""
    finder = doctest.DocTestFinder(recurse=True)
    without = []
    for name in in_memory_datasets.__all__:
        value = getattr(in_memory_datasets, name)
        # Records of results are made by the library: the examples are where they are got.
        if value in (schema.Failure, schema.LoadReport, schema.MemoryPlan):
            continue
        if not any(case.examples for case in finder.find(value, name)):
            without.append(name)
    assert without == []
