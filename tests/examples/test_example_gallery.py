"""Every example runs as ``--quick``, some of them at a time: CI takes turns.

``PYNODE_EXAMPLES=all`` runs every script, ``PYNODE_EXAMPLES=3`` the fourth turn; by default the day decides.
"""

from __future__ import annotations

import datetime
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
#: Modules that others import are no scripts, nor is data.py, which only says what it finds.
SCRIPTS = sorted(
    path.stem
    for path in EXAMPLES.glob("*.py")
    if all(part in path.read_text(encoding="utf-8") for part in ("__main__", "--quick"))
)
TURNS = 6
"""A run of slow tests takes every sixth script."""

#: What the last lines of a script say that lacks Julia or its data; it ends with another status than 0 then.
LACKING = ("pynode julia setup", "Expected: --data DIR or PYNODE_DATA with its files.")


def chosen() -> list[str]:
    """The scripts whose turn it is."""
    turn = os.environ.get("PYNODE_EXAMPLES", str(datetime.date.today().toordinal()))
    return SCRIPTS if turn == "all" else SCRIPTS[int(turn) % TURNS :: TURNS]


def test_turns_reach_every_script(monkeypatch: pytest.MonkeyPatch) -> None:
    reached = []
    for turn in range(TURNS):
        monkeypatch.setenv("PYNODE_EXAMPLES", str(turn))
        reached += chosen()
    assert sorted(reached) == SCRIPTS


def test_the_gallery_shows_scripts_that_exist() -> None:
    shown = set(re.findall(r"`(\w+)\.py`", (EXAMPLES / "README.md").read_text(encoding="utf-8")))
    assert shown <= {path.stem for path in EXAMPLES.glob("*.py")}


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS)
def test_quick(script: str, tmp_path: Path) -> None:
    if script not in chosen():
        pytest.skip("not its turn (PYNODE_EXAMPLES=all runs every script)")
    found = subprocess.run(
        [sys.executable, EXAMPLES / f"{script}.py", "--quick"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=1200,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    last = "\n".join(found.stderr.strip().splitlines()[-2:])
    if found.returncode != 0 and any(text in last for text in LACKING):
        pytest.skip(last)
    assert found.returncode == 0, found.stderr
    assert len(found.stdout.splitlines()) > 3
    assert list(tmp_path.glob("**/*.png"))
