"""float32 products of the backward pass are as exact as those of the solve were (TF32, bfloat16 on the CPU)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

import pynode
from pynode.algorithms import RK4


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    cudnn = torch.backends.cudnn.allow_tf32
    yield
    torch.set_float32_matmul_precision("highest")  # also ends a mix of the two interfaces
    torch.backends.cudnn.allow_tf32 = cudnn


class Watching(torch.nn.Module):
    def __init__(self, look) -> None:
        super().__init__()
        self.look, self.seen = look, []
        self.weight = torch.nn.Parameter(torch.tensor(0.5))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        self.seen.append(self.look())
        return self.weight * y


SENSEALGS = [pynode.CheckpointedAdjoint(), pynode.BacksolveAdjoint(), pynode.GaussAdjoint()]


@pytest.mark.parametrize("sensealg", SENSEALGS, ids=repr)
@pytest.mark.parametrize(("during", "after"), [("high", "highest"), ("highest", "medium")])
def test_backward_repeats_at_the_precision_of_the_solve(sensealg, during: str, after: str) -> None:
    f = Watching(torch.get_float32_matmul_precision)
    torch.set_float32_matmul_precision(during)
    sol = pynode.solve(f, torch.ones(2), [0.0, 1.0], algorithm=RK4(steps=3), sensealg=sensealg)
    solved = len(f.seen)
    torch.set_float32_matmul_precision(after)
    sol.ys.sum().backward()
    assert len(f.seen) > solved
    assert set(f.seen) == {during}
    assert torch.get_float32_matmul_precision() == after


def test_convolutions_too() -> None:
    f = Watching(lambda: torch.backends.cudnn.allow_tf32)
    torch.backends.cudnn.allow_tf32 = False
    sol = pynode.solve(f, torch.ones(2), [0.0, 1.0], algorithm=RK4(steps=3))
    torch.backends.cudnn.allow_tf32 = True
    sol.ys.sum().backward()
    assert set(f.seen) == {False}
    assert torch.backends.cudnn.allow_tf32 is True


@pytest.mark.skipif(not hasattr(torch._C, "_get_fp32_precision_getter"), reason="torch < 2.9: one interface only")
def test_the_newer_interface_which_forbids_the_older_one() -> None:
    f = Watching(lambda: torch.backends.cuda.matmul.fp32_precision)
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    sol = pynode.solve(f, torch.ones(2), [0.0, 1.0], algorithm=RK4(steps=3))
    torch.backends.cuda.matmul.fp32_precision = "ieee"
    sol.ys.sum().backward()
    assert set(f.seen) == {"tf32"}
    assert torch.backends.cuda.matmul.fp32_precision == "ieee"


def test_a_backward_pass_that_fails_leaves_the_settings_alone() -> None:
    f = Watching(torch.get_float32_matmul_precision)
    torch.set_float32_matmul_precision("high")
    sol = pynode.solve(f, torch.ones(2), [0.0, 1.0], algorithm=RK4(steps=3))
    torch.set_float32_matmul_precision("highest")
    with torch.no_grad():
        f.weight.mul_(2.0)
    with pytest.raises(pynode.GradientError):
        sol.ys.sum().backward()
    assert torch.get_float32_matmul_precision() == "highest"


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_tf32_of_the_solve_is_that_of_its_gradient() -> None:
    """Under TF32 in both passes, and under it in the solve alone: the same gradient, to the last bit."""
    torch.manual_seed(0)
    weight = (torch.randn(64, 64, device="cuda") / 8).requires_grad_()
    y0 = torch.randn(8, 64, device="cuda")
    found = []
    for after in ("high", "highest"):
        torch.set_float32_matmul_precision("high")
        sol = pynode.solve(lambda t, y: torch.tanh(y @ weight), y0, [0.0, 1.0], algorithm=RK4(steps=3))
        torch.set_float32_matmul_precision(after)
        found += torch.autograd.grad(sol.ys.sum(), weight)
    assert torch.equal(found[0], found[1])
