"""The harness itself, on programs written by hand: it passes what is right and names what is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from fields import Draw, Made
from julia_process import WITHOUT_JULIA, Outcome, Program, julia_executable, run_programs
from products_by_torch import Reference
from torch import Tensor

# dy/dt = t * W tanh(y), with W row-major in p.
RIGHT = """
using LinearAlgebra
const kept = zeros(T, 3)
weight(p) = reshape(p, 3, 3)
function f!(du, u, p, t)
    kept .= tanh.(u)
    mul!(du, transpose(weight(p)), kept)
    du .*= T(t)
    nothing
end
function vjp!(da, a, u, p, t)
    mul!(da, weight(p), a)
    da .*= T(t) .* (1 .- tanh.(u) .^ 2)
    nothing
end
vjp_p!(g, a, u, p, t) = (g .= vec(T(t) .* tanh.(u) .* transpose(a)); nothing)
vjp_t(a, u, p, t) = dot(a, transpose(weight(p)) * tanh.(u))
tgrad!(dT, u, p, t) = (mul!(dT, transpose(weight(p)), tanh.(u)); nothing)
"""

#: Corruptions of it, and what is then said.
WRONG = {
    "a factor": ("1 .- tanh.(u) .^ 2", "1 .- tanh.(u) .^ 2 .+ 1e-3", "vjp at point 1 is"),
    "a transpose": ("vec(T(t) .* tanh.(u) .* transpose(a))", "vec(T(t) .* a .* transpose(tanh.(u)))", "vjp_p at point"),
    "the time": ("du .*= T(t)", "du .*= T(0.375)", "f at point 2 is"),
    "an element left out": ("da .*= T(t)", "da[1] = NaN; da .*= T(t)", "vjp at point 1 is nan"),
    "a stale buffer": ("mul!(dT, transpose(weight(p)), tanh.(u))", "mul!(dT, transpose(weight(p)), kept)", "tgrad"),
    "an accumulating buffer": ("kept .= tanh.(u)", "kept .+= tanh.(u)", "f! gave other values when repeated"),
    "an input overwritten": ("kept .= tanh.(u)", "kept .= tanh.(u); u[1] = 0.5", "an input was changed"),
    "an error": ("kept .= tanh.(u)", "kept .= no_such_name.(u)", "UndefVarError"),
    "no program": ("using LinearAlgebra", "function", "syntax"),
    "a result": ("du .*= T(t)\n    nothing", "du .*= T(t)", "f! returned"),
}


def _made(dtype: torch.dtype) -> Made:
    draw = Draw(dtype)
    weight = draw.parameter(3, 3)

    def f(t: Tensor, y: Tensor) -> Tensor:
        return t * (weight @ torch.tanh(y))

    return Made(f, draw.normal(3))


@pytest.fixture(scope="module")
def reference() -> Reference:
    return Reference(_made)


@pytest.fixture(scope="module")
def outcomes(reference: Reference, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    executable = julia_executable()
    if executable is None:
        pytest.skip(WITHOUT_JULIA)
    sources = {f"right {kind}": f"const T = {kind}\n{RIGHT}" for kind in ("Float32", "Float64")}
    for name, (old, new, _) in WRONG.items():
        assert RIGHT.count(old) == 1
        sources[name] = "const T = Float64\n" + RIGHT.replace(old, new)
    programs = [
        Program(name, text, reference.points[torch.float32 if "Float32" in text else torch.float64])
        for name, text in sources.items()
    ]
    results = run_programs(programs, tmp_path_factory.mktemp("julia"), executable)
    return dict(zip(sources, results, strict=True))


@pytest.mark.parametrize("kind", ["Float32", "Float64"])
def test_a_right_program_passes(kind: str, outcomes: dict[str, Outcome], reference: Reference) -> None:
    outcome = outcomes[f"right {kind}"]
    assert not outcome.error
    assert reference.deviations(outcome.values) == []


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_program_is_named(name: str, outcomes: dict[str, Outcome], reference: Reference) -> None:
    outcome = outcomes[name]
    found = [outcome.error] if outcome.error else reference.deviations(outcome.values)
    assert any(WRONG[name][2] in x for x in found), found


def test_a_process_that_dies_says_how(reference: Reference, tmp_path: Path) -> None:
    executable = julia_executable()
    if executable is None:
        pytest.skip(WITHOUT_JULIA)
    program = Program("dies", "exit(7)", reference.points[torch.float64])
    (outcome,) = run_programs([program], tmp_path, executable)
    assert "status 7" in outcome.error
