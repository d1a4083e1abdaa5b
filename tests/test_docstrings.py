"""Every public name has a docstring with an example, and all of them run."""

from __future__ import annotations

import doctest
import inspect
import math
from types import ModuleType
from typing import Any

import pytest
import torch

import pynode
import pynode.compat.torchdiffeq
import pynode.nn
import pynode.problems
import pynode.training

MODULES = (pynode, pynode.nn, pynode.training, pynode.problems, pynode.compat.torchdiffeq)
OBJECTS = {
    f"{module.__name__}.{name}": getattr(module, name)
    for module in MODULES
    for name in module.__all__  # type: ignore[attr-defined]
}
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def documented(value: Any) -> bool:
    """Whether the object can have a docstring of its own; others (tables, aliases of types) have their module's."""
    return inspect.isclass(value) or inspect.isfunction(value) or isinstance(value, ModuleType)


def docstring(name: str) -> str:
    value = OBJECTS[name]
    inherited = inspect.isclass(value) and not vars(value).get("__doc__")
    return "" if inherited else inspect.getdoc(value) or ""


def examples(name: str, text: str) -> doctest.DocTest:
    scope = {"math": math, "torch": torch, "pynode": pynode}
    return doctest.DocTestParser().get_doctest(text, scope, name, None, None)


@pytest.mark.parametrize("name", [name for name, value in OBJECTS.items() if documented(value)])
def test_the_examples_of(name: str) -> None:
    text = docstring(name)
    assert "Examples\n--------\n" in text
    test = examples(name, text)
    assert any(example.want for example in test.examples)  # one that shows nothing cannot be wrong
    torch.manual_seed(0)
    said: list[str] = []
    runner = doctest.DocTestRunner(optionflags=FLAGS)
    runner.run(test, out=said.append)
    assert runner.failures == 0, "".join(said)


@pytest.mark.parametrize("name", [name for name, value in OBJECTS.items() if not documented(value)])
def test_tables_and_types_are_in_the_example_of_their_module(name: str) -> None:
    module, _, short = name.rpartition(".")
    assert module == "pynode.problems"
    assert short in pynode.problems.__doc__.split("Examples\n--------\n")[1]


def test_the_package_itself() -> None:
    test = examples("pynode", inspect.getdoc(pynode) or "")
    assert test.examples
    assert doctest.DocTestRunner(optionflags=FLAGS).run(test).failed == 0


def test_public_names_are_unique_objects_with_one_docstring() -> None:
    """An example that was copied with its name would hide that the copy has none of its own."""
    texts: dict[str, str] = {}
    for name, value in OBJECTS.items():
        if documented(value) and not isinstance(value, ModuleType):
            code = docstring(name).split("Examples\n--------\n")[1]
            other = texts.setdefault(code, name)
            assert other == name or OBJECTS[other] is value, (other, name)
