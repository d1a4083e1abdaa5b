"""Emitted programs run by a Julia executable: many in one process, each in a module of its own.

Numbers travel as raw files, so that nothing but Julia's standard library is needed, in any version >= 1.5.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

WITHOUT_JULIA = "no Julia executable: set PYNODE_JULIA to one, or put julia on PATH"

DRIVER = Path(__file__).with_name("run_emitted.jl")


def julia_executable() -> str | None:
    """PYNODE_JULIA, which must then exist, or what PATH has."""
    named = os.environ.get("PYNODE_JULIA")
    if named and shutil.which(named) is None:
        raise FileNotFoundError(f"PYNODE_JULIA={named} is no executable")
    return shutil.which(named or "julia")


@dataclass(frozen=True)
class Point:
    """Where the functions are evaluated; all of one dtype: ``u`` (n,), ``p`` (k,), ``a`` (n,), the cotangent λ."""

    t: float
    u: Tensor
    p: Tensor
    a: Tensor


@dataclass(frozen=True)
class Program:
    """Source text, and the points at which its functions are evaluated."""

    name: str
    source: str
    points: tuple[Point, Point]


@dataclass(frozen=True)
class Values:
    """What a program's functions gave at a point: (n,), (n,), (k,), 0-dim, (n,)."""

    f: Tensor
    vjp: Tensor
    vjp_p: Tensor
    vjp_t: Tensor
    tgrad: Tensor


@dataclass(frozen=True)
class Outcome:
    """Values at each point, or Julia's error.

    Attributes
    ----------
    values : tuple of Values
        Empty where there is an error.
    error : str
        What Julia raised, or which promise was broken: inputs unchanged, no state left from one call to the next.
    seconds : float
        What Julia took, compilation included.
    """

    values: tuple[Values, ...]
    error: str
    seconds: float


def run_programs(
    programs: Sequence[Program],
    folder: Path,
    executable: str,
    flags: Sequence[str] = (),
    timeout: float = 900.0,
    driver: Path = DRIVER,
    load_path: str = "@stdlib",
) -> list[Outcome]:
    """Run every program in one process; one that fails does not keep the others from running."""
    folders = [folder / f"case{i}" for i in range(len(programs))]
    for program, place in zip(programs, folders, strict=True):
        _write(program, place)
    command = [executable, "--startup-file=no", "--history-file=no", "--color=no", *flags]
    command += [str(driver), *map(str, folders)]
    # By default the standard library alone; one thread for BLAS: repeated products then have the same rounding.
    environment = {**os.environ, "JULIA_LOAD_PATH": load_path, "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout, check=False)
    died = f"Julia ended with status {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-4000:]}"
    return [_read(program, place, died) for program, place in zip(programs, folders, strict=True)]


def _write(program: Program, place: Path) -> None:
    place.mkdir(parents=True)
    (place / "program.jl").write_text(program.source, encoding="utf-8")
    first = program.points[0]
    kind = {torch.float32: "Float32", torch.float64: "Float64"}[first.u.dtype]
    (place / "sizes").write_text(f"{kind} {first.u.numel()} {first.p.numel()}")
    for i, point in enumerate(program.points, start=1):
        for name in ("u", "p", "a"):
            (place / f"{name}{i}").write_bytes(getattr(point, name).detach().numpy().tobytes())
        (place / f"t{i}").write_bytes(torch.tensor(point.t, dtype=torch.float64).numpy().tobytes())


def _read(program: Program, place: Path, died: str) -> Outcome:
    if (place / "error").exists():
        return Outcome((), (place / "error").read_text(encoding="utf-8"), 0.0)
    if not (place / "seconds").exists():  # written last
        return Outcome((), died, 0.0)
    n, k = program.points[0].u.numel(), program.points[0].p.numel()
    values = []
    for i, point in enumerate(program.points, start=1):
        numbers = torch.frombuffer(bytearray((place / f"values{i}").read_bytes()), dtype=point.u.dtype)
        f, vjp, vjp_p, vjp_t, tgrad = numbers.split([n, n, k, 1, n])
        values.append(Values(f, vjp, vjp_p, vjp_t[0], tgrad))
    return Outcome(tuple(values), "", float((place / "seconds").read_text()))
