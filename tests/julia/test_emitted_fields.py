"""Emitted source, executed by Julia, against torch's own derivatives: every field of the zoo in both precisions."""

from __future__ import annotations

from pathlib import Path

import fields_of_densities  # noqa: F401  (registers its fields)
import fields_of_dynamics
import fields_of_operators  # noqa: F401  (registers its fields)
import fields_of_series  # noqa: F401  (registers its fields)
import pytest
import torch
from fields import FIELDS, Made
from julia_process import WITHOUT_JULIA, Program, julia_executable, run_programs
from products_by_torch import Reference
from refused_fields import REFUSED

from pynode import julia
from pynode.errors import UnsupportedError

assert fields_of_dynamics.FIELDS is FIELDS

DTYPES = (torch.float32, torch.float64)


def source(made: Made) -> str:
    return julia.source(made.f, made.times[0], made.y0, made.args)


#: Their programs take Julia half a minute to compile.
HEAVY = (
    "conditional_density_with_four_probes",
    "density_of_images",
    "density_with_costs",
    "density_with_exact_trace",
    "density_with_one_probe",
)


@pytest.mark.parametrize(
    "name", [pytest.param(x, marks=pytest.mark.slow) if x in HEAVY else pytest.param(x) for x in FIELDS]
)
def test_emitted_functions_agree_with_torch(name: str, tmp_path: Path) -> None:
    executable = julia_executable()
    if executable is None:
        pytest.skip(WITHOUT_JULIA)
    reference = Reference(FIELDS[name])
    programs = [Program(f"{name} {dtype}", source(FIELDS[name](dtype)), reference.points[dtype]) for dtype in DTYPES]
    outcomes = run_programs(programs, tmp_path, executable)
    assert [x.error for x in outcomes if x.error] == []
    assert [x for outcome in outcomes for x in reference.deviations(outcome.values)] == []


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_captured_is_refused_with_its_reason(name: str) -> None:
    make, word = REFUSED[name]
    with pytest.raises(UnsupportedError) as refusal:
        source(make(torch.float64))
    assert word in str(refusal.value)


def test_a_corrupted_program_is_noticed(tmp_path: Path) -> None:
    executable = julia_executable()
    if executable is None:
        pytest.skip(WITHOUT_JULIA)
    make = FIELDS["perceptron"]
    reference = Reference(make)
    corrupted = f"{source(make(torch.float64))}\nvjp_p!(g, λ, u, p, t) = (fill!(g, 0); nothing)\n"
    program = Program("no gradient", corrupted, reference.points[torch.float64])
    (outcome,) = run_programs([program], tmp_path, executable)
    found = reference.deviations(outcome.values)
    assert len(found) == 2
    assert all(x.startswith("vjp_p at point") for x in found)
