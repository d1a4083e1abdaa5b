"""Scripts of this folder run by torchrun or alone, with an end to their time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

HERE = Path(__file__).parent
#: Generous: it ends what hangs, and no test depends on how quick the machine is.
LIMIT = 400.0


def torchrun(script: str, ranks: int, *arguments: object, limit: float = LIMIT) -> str:
    """What a script of this folder prints under torchrun; a failure of any rank, or no end in time, fails the test."""
    # Port 0: a free one, so that runs at the same time do not meet.
    options = ["--standalone", f"--nproc-per-node={ranks}"]
    return _run([sys.executable, "-m", "torch.distributed.run", *options, str(HERE / script)], arguments, limit)


def alone(script: str, *arguments: object, limit: float = LIMIT) -> str:
    """The same in one process without torchrun."""
    return _run([sys.executable, str(HERE / script)], arguments, limit)


def _run(command: Sequence[str], arguments: Sequence[object], limit: float) -> str:
    import pynode

    # Processes that torchrun starts each have one thread, as their bits depend on it.
    root = str(Path(pynode.__file__).parents[1])
    paths = os.pathsep.join([root, str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [*command, *map(str, arguments)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,  # a group of its own, to be ended with its children
    )
    try:
        output, _ = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        pytest.fail(f"{Path(command[-1]).name} did not end within {limit:g} s:\n{output[-4000:]}")
    if process.returncode:
        pytest.fail(f"{Path(command[-1]).name} ended with status {process.returncode}:\n{output[-6000:]}")
    return output
