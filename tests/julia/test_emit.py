"""The text of emitted programs: what is in it, what is not, and that running it allocates nothing."""

from __future__ import annotations

import copy
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from julia_process import WITHOUT_JULIA, julia_executable
from torch import Tensor, nn

from pynode.capture.capturing import NotCapturable, capture
from pynode.dependencies import Dependencies
from pynode.julia.emit import Program, emit
from pynode.problem import ODEProblem
from pynode.problems import Perceptron
from pynode.solution import Counts


def program(f: Callable[..., Any], y0: Tensor) -> Program:
    problem = ODEProblem(f, y0, [0.3, 1.0])
    return emit(capture(problem, Dependencies(problem, Counts(), None)))


def test_the_same_field_gives_the_same_text() -> None:
    f = Perceptron((3, 8, 3))
    assert program(f, torch.ones(4, 3)).source == program(copy.deepcopy(f), torch.zeros(4, 3)).source


def test_constants_are_not_in_the_text() -> None:
    fixed = torch.tensor([0.123456789, 0.5])
    found = program(lambda t, y: y * fixed, torch.ones(2))
    assert "0.1234" not in found.source
    assert torch.equal(found.constants[0], fixed)
    assert "constants = (c1,)" in found.source
    assert "0.12345679f0" in found.standalone()
    other = program(lambda t, y: y * fixed.neg(), torch.ones(2))
    assert other.source == found.source


def test_every_function_is_defined_once_on_five_arguments() -> None:
    text = program(Perceptron((3, 8, 3)), torch.ones(4, 3)).source
    heads = [
        "f!(du, u, p, t)",
        "vjp!(dλ, λ, u, p, t)",
        "vjp_p!(g, λ, u, p, t)",
        "vjp_t(λ, u, p, t)",
        "tgrad!(dT, u, p, t)",
    ]
    assert [text.count("function " + head) for head in heads] == [1] * 5


def test_only_used_functions_of_the_prelude_are_in_the_text() -> None:
    text = program(Perceptron((3, 8, 3)), torch.ones(4, 3)).source
    assert "function tanh_(" in text
    assert "exp_(" not in text
    assert "convolution!" not in text


def test_matrices_are_neither_copied_nor_transposed() -> None:
    """A linear layer is a product with a view of ``p``."""
    text = program(nn_field(nn.Linear(40, 40)), torch.ones(32, 40)).source
    body = text[text.index("function f!") : text.index("function vjp!")]
    assert len(re.findall(r"product!\(", body)) == 1
    assert "transpose(reshape(view(p, 1:1600), 40, 40))" in body
    assert "copy" not in body


def test_a_chain_of_elementwise_operators_is_one_loop() -> None:
    text = program(lambda t, y: torch.tanh(y * 2 + 1).exp() - torch.sin(y) * y**2, torch.ones(64)).source
    body = text[text.index("function f!") : text.index("function vjp!")]
    assert body.count("for ") == 1


def test_gradients_of_slices_are_collected_in_one_array() -> None:
    def lorenz(t: Tensor, y: Tensor) -> Tensor:
        return torch.stack([10 * (y[1] - y[0]), y[0] * (28 - y[2]) - y[1], y[0] * y[1] - 8 / 3 * y[2]])

    text = program(lorenz, torch.ones(3)).source
    body = text[text.index("function vjp!") : text.index("function vjp_p!")]
    assert "w1" not in body
    assert body.count("+=") == 8


def test_a_dear_function_runs_along_all_of_memory() -> None:
    """A row of 50 fills no vectors: tanh takes the 1000 elements as one."""
    text = program(Perceptron((2, 50, 2)), torch.ones(20, 2)).source
    body = text[text.index("function f!") : text.index("function vjp!")]
    assert re.search(r"for i in 1:1000\n\s+w\d+\[i\] = tanh_\(w\d+\[i\]\)", body)


def nn_field(module: nn.Module) -> nn.Module:
    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = module

        def forward(self, t: Tensor, y: Tensor) -> Tensor:
            return self.module(y)

    return Wrapped()


def test_an_operator_without_julia_form_is_refused_by_name() -> None:
    with pytest.raises(NotCapturable, match=r"aten\.sort.*test_emit\.py:\d+"):
        program(lambda t, y: torch.sort(y)[0], torch.ones(3))


def test_running_a_perceptron_allocates_nothing(tmp_path: Path) -> None:
    executable = julia_executable()
    if executable is None:
        pytest.skip(WITHOUT_JULIA)
    lines = ["allocated(f, arguments...) = (f(arguments...); @allocated f(arguments...))"]
    for k, (sizes, batch) in enumerate([((2, 50, 2), 20), ((16, 64, 64, 16), 32)]):
        found = program(Perceptron(sizes), torch.randn(batch, sizes[0]))
        (tmp_path / f"program{k}.jl").write_text(found.source, encoding="utf-8")
        parameters = sum(x.numel() for x in Perceptron(sizes).parameters())
        lines += [
            f'module M{k}; include(raw"{tmp_path / f"program{k}.jl"}"); end',
            f"let u = randn(Float32, {batch * sizes[0]}), p = randn(Float32, {parameters})",
            "    du, g = similar(u), similar(p)",
            f"    print(allocated(M{k}.f!, du, u, p, 0.0), ' ', allocated(M{k}.vjp!, du, u, u, p, 0.0), ' ',",
            f"        allocated(M{k}.vjp_p!, g, u, u, p, 0.0), ' ', allocated(M{k}.tgrad!, du, u, p, 0.0), ' ')",
            "end",
        ]
    script = tmp_path / "allocations.jl"
    script.write_text("\n".join(lines), encoding="utf-8")
    done = subprocess.run([executable, "--startup-file=no", str(script)], check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["0"] * 8
