"""Names that a model brings along never become code of another language.

Names of parameters, buffers, modules, classes and keys come from checkpoints and configuration files. Whatever they
are, the emitted Julia and C++ is that of the same field under plain names, but for Julia comments, which they do not
end.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pynode
from pynode.capture.capturing import capture
from pynode.cpp.emit import emit as emit_cpp
from pynode.dependencies import Dependencies
from pynode.julia.emit import emit as emit_julia
from pynode.problem import ODEProblem
from pynode.solution import Counts

MARK = "hostile_payload"
HOSTILE = [
    f"x; run(`{MARK}`)",
    f"\nrun(`{MARK}`)\n",
    f"\r\n{MARK}()\r",
    f'"""; {MARK}(); """',
    f"$({MARK}())",
    f"end; {MARK}(); begin",
    f"=# {MARK}() #=",
    f"*/ {MARK}(); /*",
    f"{MARK}\\",
    f"{MARK}??/\n#include </etc/passwd>",
    f"\u2028{MARK}()\u2029\x85\x0b\x0c\x00",
    f"\u202e{MARK}\u2066 µ'λ",
    "end",
    "",
]
each_name = pytest.mark.parametrize("name", HOSTILE, ids=[ascii(name) for name in HOSTILE])


def put(module: nn.Module, registry: str, name: str, value: Any) -> None:
    """As a checkpoint or ``__dict__`` may: past the checks of register_parameter and add_module."""
    getattr(module, registry)[name] = value


def field(name: str) -> nn.Module:
    """A field whose parameter, buffer, submodule, attributes and class are all called ``name``."""

    def forward(self: Any, t: Tensor, y: Tensor, args: dict[str, Tensor]) -> Tensor:
        (weight,), (inner,), (shift,) = self._parameters.values(), self._modules.values(), self._buffers.values()
        (scale,) = args.values()
        out: Tensor = torch.tanh(inner(y) @ weight) * scale + shift + t
        return out

    cls = type(name.replace("\0", ""), (nn.Module,), {"forward": forward, "__module__": name, "__qualname__": name})
    made: nn.Module = cls()
    torch.manual_seed(0)
    put(made, "_parameters", name, nn.Parameter(torch.randn(3, 3)))
    put(made, "_modules", f"{name}_inner", nn.Linear(3, 3))
    put(made, "_buffers", f"{name}_buffer", torch.randn(3))
    return made


def captured(name: str) -> Any:
    made = field(name)
    args = ({name: torch.full((3,), 0.5, requires_grad=True)},)
    problem = ODEProblem(made, torch.ones(2, 3), [0.0, 1.0], args)
    return capture(problem, Dependencies(problem, Counts(), None))


def without_comments(julia: str) -> str:
    """Julia text without ``#`` to the end of the line; it holds no string in which a ``#`` could stand."""
    assert '"' not in re.sub(r"#[^\n]*", "", julia)
    return re.sub(r"#[^\n]*", "", julia)


@each_name
def test_julia_is_that_of_plain_names_but_for_comments(name: str) -> None:
    plain, hostile = (emit_julia(captured(x)).standalone() for x in ("plain", name))
    assert without_comments(hostile) == without_comments(plain)
    assert MARK not in without_comments(hostile)
    assert len(hostile.splitlines()) == len(plain.splitlines())  # of every kind of line end that Unicode has
    assert all(c == "\n" or c.isprintable() for c in hostile)


@each_name
def test_cpp_has_no_names(name: str) -> None:
    plain, hostile = (emit_cpp(captured(x)) for x in ("plain", name))
    assert hostile.source == plain.source


def test_ordinary_names_are_still_in_the_comments() -> None:
    text = emit_julia(captured("weight_ih_l0")).source
    assert re.search(r"^#   4:12  weight_ih_l0 \(3, 3\)$", text, flags=re.M)
    assert re.search(r"^#   \d+:\d+  weight_ih_l0_inner\.bias \(3,\)$", text, flags=re.M)


@each_name
def test_a_solve_and_its_gradient_do_not_mind(name: str) -> None:
    made, scale = field(name), torch.full((3,), 0.5, requires_grad=True)
    sol = pynode.solve(made, torch.ones(2, 3), [0.0, 0.5], args=({name: scale},))
    sol.ys[-1].sum().backward()
    assert all(x.grad is not None and x.grad.abs().sum() > 0 for x in [*made.parameters(), scale])


@each_name
def test_a_state_with_such_keys(name: str) -> None:
    sol = pynode.solve(lambda t, y: {name: -y[name]}, {name: torch.ones(2)}, [0.0, 1.0])
    assert set(sol.ys) == {name}
    problem = ODEProblem(lambda t, y: {name: -y[name]}, {name: torch.ones(2)}, [0.0, 1.0])
    found = capture(problem, Dependencies(problem, Counts(), None))
    assert MARK not in emit_julia(found).standalone() + emit_cpp(found).source


def test_julia_reads_the_programs_as_what_they_are(tmp_path: Path) -> None:
    """Julia itself: each program defines its functions, and runs nothing of what the names say."""
    from julia_process import WITHOUT_JULIA, julia_executable

    executable = julia_executable()
    if executable is None:
        pytest.skip(WITHOUT_JULIA)
    lines = []
    for i, name in enumerate(HOSTILE):
        path = tmp_path / f"program{i}.jl"
        text = emit_julia(captured(name.replace(MARK, f"touch {tmp_path}/made{i}"))).standalone()
        path.write_text(text, encoding="utf-8")
        lines.append(f'module M{i}; include("{path}"); @assert isdefined(M{i}, :f!); end')
    script = tmp_path / "all.jl"
    script.write_text("\n".join(lines), encoding="utf-8")
    done = subprocess.run([executable, "--startup-file=no", str(script)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.glob("made*"))
