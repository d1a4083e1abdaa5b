"""How compiled functions behave: at the same time, on what is not finite, with indices outside, without BLAS."""

from __future__ import annotations

import concurrent.futures
import subprocess
from pathlib import Path

import pytest
import torch
from compiled_values import Evaluator, program_of
from fields import Draw, Made
from julia_process import Point
from torch import Tensor, nn

from pynode.capture.capturing import capture
from pynode.cpp import compile as compiling
from pynode.cpp.emit import emit
from pynode.dependencies import Dependencies
from pynode.errors import UnsupportedError
from pynode.problem import ODEProblem
from pynode.problems import Perceptron
from pynode.solution import Counts


def point_of(made: Made, evaluator: Evaluator, seed: int = 0) -> Point:
    generator = torch.Generator().manual_seed(seed)
    program = evaluator.program

    def normal(n: int) -> Tensor:
        return torch.randn(n, generator=generator, dtype=torch.float64).to(program.dtype)

    return Point(0.5, normal(program.size), normal(program.parameters_size) * 0.3, normal(program.size))


def wide(dtype: torch.dtype) -> Made:
    """Products of many sizes: in registers, and by BLAS."""
    net = Draw(dtype).module(lambda: Perceptron((40, 130, 65, 40)))
    return Made(net, Draw(dtype).normal(150, 40))


def test_two_threads_do_not_meet() -> None:
    made = wide(torch.float32)
    evaluator = Evaluator(program_of(made))
    points = [point_of(made, evaluator, seed) for seed in range(2)]

    def products(point: Point) -> tuple[Tensor, ...]:
        g = torch.zeros_like(point.p)
        return (*evaluator.products(point, g), g)

    alone = [products(point) for point in points]
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        jobs = [(i, pool.submit(lambda x=points[i]: [products(x) for _ in range(20)])) for i in range(2)]
        for i, job in jobs:
            assert all(torch.equal(a, b) for found in job.result() for a, b in zip(found, alone[i], strict=True))


@pytest.mark.parametrize("activation", [nn.Tanh, nn.ReLU, nn.GELU])
def test_what_is_not_finite_stays_in_its_row(activation: type[nn.Module]) -> None:
    net = nn.Sequential(nn.Linear(10, 33), activation(), nn.Linear(33, 10))
    y = torch.randn(8, 10)
    evaluator = Evaluator(program_of(Made(_Plain(net), y)))
    u = y.clone()
    u[1, 2], u[4, 0], u[6, 9] = torch.nan, torch.inf, -torch.inf
    p = torch.cat([x.detach().flatten() for x in net.parameters()])
    du = evaluator.f(Point(0.0, u.flatten(), p, u.flatten())).view(8, 10)
    wanted = net(u)
    assert torch.equal(du.isnan(), wanted.isnan())
    assert torch.equal(du.isinf(), wanted.isinf())
    finite = wanted.isfinite()
    assert torch.allclose(du[finite], wanted[finite], rtol=1e-5, atol=1e-6)


class _Plain(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        out: Tensor = self.net(y)
        return out


def test_an_index_outside_gives_nan_and_touches_no_other_memory() -> None:
    table = torch.arange(4.0)

    def f(t: Tensor, y: Tensor) -> Tensor:
        return table[y.to(torch.int64)] * y

    evaluator = Evaluator(program_of(Made(f, torch.tensor([0.5, 1.5, 2.5, 3.5]))))
    u = torch.tensor([1.0, -4.0, 4.0, 1e30])
    du = evaluator.f(Point(0.0, u, torch.zeros(0), u))
    assert du[:2].tolist() == [1.0, 0.0]
    assert du[2:].isnan().all()


def test_without_blas_products_are_the_same_to_rounding() -> None:
    made = wide(torch.float32)
    evaluator = Evaluator(program_of(made))
    point = point_of(made, evaluator)
    with_blas = evaluator.f(point)
    evaluator.field.library.handle.field_set_gemm(None)
    try:
        without = evaluator.f(point)
    finally:
        evaluator.field.library.handle.field_set_gemm(compiling.blas(torch.float32))
    bound = 64 * torch.finfo(torch.float32).eps * float(with_blas.abs().max())
    assert float((with_blas - without).abs().max()) <= bound


def test_the_text_holds_no_constants_and_names_its_sizes() -> None:
    fixed = torch.tensor([0.123456789, 0.5])
    problem = ODEProblem(lambda t, y: y * fixed, torch.ones(2), [0.0, 1.0])
    program = emit(capture(problem, Dependencies(problem, Counts(), None)))
    assert "0.1234" not in program.source
    assert torch.equal(program.prepared()[0], fixed)
    other = ODEProblem(lambda t, y: y * fixed.neg(), torch.ones(2), [0.0, 1.0])
    assert emit(capture(other, Dependencies(other, Counts(), None))).source == program.source
    evaluator = Evaluator(program)
    sizes = (compiling.ctypes.c_long * 7).in_dll(evaluator.field.library.handle, "field_sizes")
    wanted = [2, 0, program.f_work, program.joint_work, program.backward_work, program.time_work, 1]
    assert list(sizes) == wanted


def test_forward_products_are_not_done_again_backward() -> None:
    """Three layers: three products forward, and two of each kind but for the first layer's input backward."""
    text = program_of(wide(torch.float32)).source
    forward = text[text.index("void field_forward") : text.index("void field_backward")]
    backward = text[text.index("void field_backward") : text.index("T field_vjp_t")]
    assert forward.count("product<") == 3
    assert backward.count("product<") == 6
    assert "tanh_(" not in backward


def test_a_missing_compiler_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling.shutil, "which", lambda name: None)
    compiling.compiler.cache_clear()
    try:
        with pytest.raises(UnsupportedError, match="there is no"):
            compiling.compiler()
    finally:
        compiling.compiler.cache_clear()


def test_text_that_does_not_compile_is_refused_with_the_compilers_words() -> None:
    with pytest.raises(UnsupportedError, match="nonsense"):
        compiling.library("nonsense;")


def test_a_library_is_compiled_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYNODE_CACHE", str(tmp_path))
    text = 'extern "C" int seven() { return 7; }\n'
    first = compiling.library(text, ("-shared", "-fPIC"))
    assert first.seconds > 0
    assert first.handle.seven() == 7
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("compiled again"))
    compiling._library.cache_clear()
    again = compiling.library(text, ("-shared", "-fPIC"))
    assert again.seconds == 0
    assert again.path == first.path
    assert [x.name for x in again.path.parent.iterdir()] == [again.path.name]
