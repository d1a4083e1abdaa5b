"""Programs for a GPU's arrays on JLArrays, with scalar indexing forbidden, against torch: the reference
implementation of what they all have in common takes their place."""

from __future__ import annotations

import functools
import os
import subprocess
from pathlib import Path

import fields_of_densities  # noqa: F401  (registers its fields)
import fields_of_dynamics
import fields_of_operators  # noqa: F401  (registers its fields)
import pytest
import torch
from fields import FIELDS
from julia_process import WITHOUT_JULIA, Outcome, Program, julia_executable, run_programs
from products_by_torch import Reference

from pynode.capture.capturing import capture
from pynode.dependencies import Dependencies
from pynode.julia.emit import emit
from pynode.problem import ODEProblem
from pynode.solution import Counts

pytestmark = pytest.mark.julia

assert fields_of_dynamics.FIELDS is FIELDS

DRIVER = Path(__file__).with_name("run_on_device.jl")
LOAD_PATH = os.pathsep.join(("@", "@v#.#", "@stdlib"))

#: Between them: products by BLAS and by kernels, reductions, scans, convolutions, indices that are data, time alone.
QUICK = (
    "linear",
    "attention",
    "layer_norm",
    "running_sums",
    "convolution_1d",
    "scatters",
    "only_time",
    "arguments",
)

#: Every kernel is compiled, about a second each: the rest of the zoo is for -m "julia and slow".
each_field = pytest.mark.parametrize(
    "name", [x if x in QUICK else pytest.param(x, marks=pytest.mark.slow) for x in FIELDS]
)


@functools.cache
def without_jlarrays() -> str | None:
    """Why these tests cannot run, if they cannot."""
    executable = julia_executable()
    if executable is None:
        return WITHOUT_JULIA
    command = [executable, "--startup-file=no", "-e", "using JLArrays, GPUArraysCore"]
    environment = {**os.environ, "JULIA_LOAD_PATH": LOAD_PATH}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    return None if done.returncode == 0 else "JLArrays is not in Julia's environment (JULIA_PROJECT)"


def program(name: str, dtype: torch.dtype, reference: Reference) -> Program:
    made = FIELDS[name](dtype)
    problem = ODEProblem(made.f, made.y0, list(made.times), made.args)
    captured = capture(problem, Dependencies(problem, Counts(), None))
    return Program(f"{name} {dtype}", emit(captured, "JLArray").standalone(), reference.points[dtype])


def run(programs: list[Program], folder: Path) -> list[Outcome]:
    reason = without_jlarrays()
    if reason is not None:
        pytest.skip(reason)
    executable = julia_executable()
    assert executable is not None
    return run_programs(programs, folder, executable, ("-O1",), 1800.0, DRIVER, LOAD_PATH)


@each_field
def test_kernels_agree_with_torch(name: str, tmp_path: Path) -> None:
    reason = without_jlarrays()
    if reason is not None:
        pytest.skip(reason)
    reference = Reference(FIELDS[name])
    dtypes = (torch.float32, torch.float64) if name in QUICK[:2] else (torch.float32,)
    outcomes = run([program(name, dtype, reference) for dtype in dtypes], tmp_path)
    assert [x.error for x in outcomes if x.error] == []
    assert [x for outcome in outcomes for x in reference.deviations(outcome.values)] == []


def test_loops_over_single_elements_would_be_caught(tmp_path: Path) -> None:
    reference = Reference(FIELDS["linear"])
    made = FIELDS["linear"](torch.float64)
    problem = ODEProblem(made.f, made.y0, list(made.times), made.args)
    loops = emit(capture(problem, Dependencies(problem, Counts(), None))).standalone()
    (outcome,) = run([Program("loops", loops, reference.points[torch.float64])], tmp_path)
    assert "calar indexing" in outcome.error
