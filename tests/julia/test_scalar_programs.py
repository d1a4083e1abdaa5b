"""Fields of one small system as scalar programs, run by any Julia executable, against torch."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fields_of_densities  # noqa: F401  (registers its fields)
import fields_of_dynamics
import fields_of_operators  # noqa: F401  (registers its fields)
import pytest
import torch
from fields import FIELDS, Made
from julia_process import WITHOUT_JULIA, julia_executable
from products_by_torch import Reference
from torch import Tensor, nn

from pynode.capture.capturing import capture
from pynode.errors import UnsupportedError
from pynode.julia.emit_kernel import MAX_OPERATIONS, MAX_STATE, Kernel, kernel
from pynode.problem import ODEProblem

assert fields_of_dynamics.FIELDS is FIELDS

DTYPES = (torch.float32, torch.float64)

#: Fields of the zoo that are larger than a thread's code may be, or use what has no scalar form, and what is said.
REFUSED = {
    **dict.fromkeys(("perceptron",), "scalar operations"),
    **dict.fromkeys(("group_norm", "instance_norm"), "state numbers"),
}

DRIVER = """
for folder in ARGS
    kind, n, k = split(read(joinpath(folder, "sizes"), String))
    T = kind == "Float32" ? Float32 : Float64
    m = Module()
    Base.include(m, joinpath(folder, "program.jl"))
    take(name, count) = (x = Vector{T}(undef, count); read!(joinpath(folder, name), x); x)
    u, p, t = take("u", parse(Int, n)), take("p", parse(Int, k)), take("t", 1)[1]
    values = collect(T, Base.invokelatest(getfield(m, :f), u, p, t))
    open(io -> write(io, values), joinpath(folder, "values"), "w")
end
"""


def emitted(made: Made) -> tuple[Kernel, ODEProblem]:
    problem = ODEProblem(made.f, made.y0, list(made.times), made.args)
    return kernel(capture(problem, products=False)), problem


def run(cases: list[tuple[Kernel, Tensor, float]], folder: Path) -> list[Tensor]:
    """``f`` of each program at its state and time."""
    executable = julia_executable()
    if executable is None:
        pytest.skip(WITHOUT_JULIA)
    places = [folder / f"case{i}" for i in range(len(cases))]
    for place, (program, u, t) in zip(places, cases, strict=True):
        place.mkdir()
        p = torch.cat([torch.zeros(0, dtype=u.dtype), *(x.to(u.dtype).flatten() for x in program.shared)])
        (place / "program.jl").write_text(program.source, encoding="utf-8")
        (place / "sizes").write_text(f"Float{torch.finfo(u.dtype).bits} {u.numel()} {p.numel()}")
        for name, x in (("u", u), ("p", p), ("t", torch.tensor([t], dtype=u.dtype))):
            (place / name).write_bytes(x.detach().numpy().tobytes())
    (folder / "driver.jl").write_text(DRIVER)
    command = [executable, "--startup-file=no", str(folder / "driver.jl"), *map(str, places)]
    environment = {**os.environ, "JULIA_LOAD_PATH": "@stdlib"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return [
        torch.frombuffer(bytearray((place / "values").read_bytes()), dtype=u.dtype)
        for place, (_, u, _) in zip(places, cases, strict=True)
    ]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Tensor] | str]:
    """Of every field of the zoo: ``f`` in both precisions by one Julia process, or why there is no program."""
    found: dict[str, list[Tensor] | str] = {}
    cases: dict[str, list[tuple[Kernel, Tensor, float]]] = {}
    for name in FIELDS:
        try:
            both = [emitted(FIELDS[name](dtype)) for dtype in DTYPES]
        except UnsupportedError as refusal:
            found[name] = str(refusal)
        else:
            cases[name] = [(program, problem.y0, problem.times[0]) for program, problem in both]
    values = run([x for both in cases.values() for x in both], tmp_path_factory.mktemp("programs"))
    return found | {name: values[2 * i : 2 * i + 2] for i, name in enumerate(cases)}


@pytest.mark.parametrize("name", [x for x in FIELDS if x not in REFUSED])
def test_scalar_programs_agree_with_torch(name: str, outcomes: dict[str, list[Tensor] | str]) -> None:
    values = outcomes[name]
    if isinstance(values, str):
        assert "scalar" in values or "state numbers" in values, values
        pytest.skip(f"no scalar program: {values.split('. Expected')[0]}")
    reference = Reference(FIELDS[name])
    for dtype, found in zip(DTYPES, values, strict=True):
        distance = (found.double() - reference.exact[0].f).abs().max().item()
        assert distance <= reference.epsilons[0]["f"] * torch.finfo(dtype).eps


def test_most_of_the_zoo_has_a_scalar_program(outcomes: dict[str, list[Tensor] | str]) -> None:
    assert sum(not isinstance(x, str) for x in outcomes.values()) >= 50


@pytest.mark.parametrize("name", REFUSED)
def test_large_fields_are_refused_with_the_reason(name: str) -> None:
    with pytest.raises(UnsupportedError, match=REFUSED[name]):
        emitted(FIELDS[name](torch.float64))


def _field(f: Callable[..., Any], *y0: float) -> Made:
    return Made(f, torch.tensor(y0, dtype=torch.float64), times=(0.0, 1.0))


def test_an_operator_without_scalar_form_is_named() -> None:
    with pytest.raises(UnsupportedError, match=r"aten\.\w*sort"):
        emitted(_field(lambda t, y: torch.sort(y).values, 1.0, 2.0))


def test_the_limits_are_those_that_the_messages_name() -> None:
    many = torch.ones(MAX_STATE + 1, dtype=torch.float64)
    with pytest.raises(UnsupportedError, match=f"at most {MAX_STATE}"):
        emitted(Made(lambda t, y: -y, many))
    emitted(Made(lambda t, y: -y, many[1:]))
    wide = nn.Sequential(nn.Linear(2, 400), nn.Tanh(), nn.Linear(400, 2)).double()
    with pytest.raises(UnsupportedError, match=f"more than {MAX_OPERATIONS}"):
        emitted(_field(lambda t, y: wide(y), 1.0, 2.0))


def test_leaving_a_functions_domain_gives_nan_as_in_torch(tmp_path: Path) -> None:
    def f(t: Tensor, y: Tensor) -> Tensor:
        a, b = y.unbind()
        infinite = torch.exp(1000 * b)
        values = (a.sqrt(), a.log(), (3 * a).asin(), a**0.3, infinite.sin(), torch.acosh(a), torch.sign(a.log()))
        return torch.stack([sum(x.isnan().double() * 2**i for i, x in enumerate(values)), b])

    made = _field(f, -1.0, 1.0)
    program, problem = emitted(made)
    expected = f(torch.tensor(0.0), made.y0)
    assert expected[0] == 0b111111  # the sign of NaN is 0 in torch
    (found,) = run([(program, problem.y0, 0.0)], tmp_path)
    assert torch.equal(found, expected)


def test_new_values_of_the_parameters_need_no_new_text() -> None:
    net = nn.Linear(2, 2).double()

    def program() -> tuple[str, Tensor]:
        found, _ = emitted(_field(lambda t, y: net(y), 1.0, 2.0))
        return found.source, torch.cat([x.flatten() for x in found.shared])

    text, values = program()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(1.0)
    other_text, other_values = program()
    assert other_text == text
    assert torch.equal(other_values, values + 1.0)
