"""The README's catalogue of errors is the one that the code has."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import pynode
from pynode import errors
from pynode.error_catalogue import error_catalogue
from pynode.solution import ADVICE, ReturnCode, failure_message

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def test_the_readme_has_what_is_generated() -> None:
    section = README.split("## When it fails\n")[1].split("\n## ")[0]
    assert error_catalogue().strip() in section
    assert len(re.findall(r"^\| ", section, flags=re.M)) == len(error_catalogue().splitlines()) - 1


def test_the_catalogue_is_complete() -> None:
    text = error_catalogue()
    for code in ReturnCode:
        assert f"| `{code.name}` | {code.value} |" in text
    for name, value in vars(errors).items():
        if isinstance(value, type) and issubclass(value, Exception):
            assert f"| `{name}` |" in text
    assert set(ADVICE) == {code for code in ReturnCode if not code.successful}


@pytest.mark.parametrize("code", [code for code in ReturnCode if not code.successful])
def test_a_message_has_the_catalogues_words(code: ReturnCode) -> None:
    message = failure_message(code, 1.5, "a detail")
    assert code.value in message
    assert ADVICE[code][1] in message
    assert ADVICE[code][1] in error_catalogue()


def test_every_exception_is_caught_as_pynodes() -> None:
    raised = [x for x in vars(errors).values() if isinstance(x, type) and issubclass(x, Exception)]
    assert all(issubclass(x, pynode.PynodeError | pynode.PynodeWarning) for x in raised)


def test_the_command_prints_it() -> None:
    done = subprocess.run([sys.executable, "-m", "pynode.error_catalogue"], capture_output=True, text=True, check=True)
    assert done.stdout == error_catalogue()
