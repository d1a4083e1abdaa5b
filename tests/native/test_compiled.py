"""compile="step": the same numbers as eager, without recompilation when only times, tolerances or weights change."""

from __future__ import annotations

import pytest
import torch

import pynode

pytestmark = pytest.mark.slow


class Spiral(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Linear(2, 16), torch.nn.Tanh(), torch.nn.Linear(16, 2))

    def forward(self, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return self.net(y**3) * torch.cos(t)


def _gradients(field: Spiral, y0: torch.Tensor, ts: torch.Tensor, **options: object) -> list[torch.Tensor]:
    y0 = y0.clone().requires_grad_()
    sol = pynode.solve(field, y0, ts, rtol=1e-8, atol=1e-10, **options)  # type: ignore[arg-type]
    loss = (sol.ys * torch.linspace(1, 2, len(ts), dtype=ts.dtype)[:, None, None]).sum()
    return [sol.ys.detach(), *torch.autograd.grad(loss, [y0, *field.parameters()])]


@pytest.mark.parametrize("algorithm", [pynode.Tsit5(), pynode.RK4(steps=7)], ids=lambda a: a.name)
def test_compiled_steps_agree_with_eager_ones_to_rounding(algorithm: pynode.Algorithm) -> None:
    torch.manual_seed(0)
    field, y0 = Spiral().double(), torch.randn(5, 2, dtype=torch.float64)
    ts = torch.tensor([0.0, 0.3, 0.7, 1.0], dtype=torch.float64)  # inner save points take the dense output
    eager = _gradients(field, y0, ts, algorithm=algorithm)
    compiled = _gradients(field, y0, ts, algorithm=algorithm, compile="step")
    for a, b in zip(eager, compiled, strict=True):
        # The step sizes follow an error estimate that differs by rounding, which moves the solution by about
        # tolerance * rounding / error: far below the tolerance. Fixed steps differ by rounding alone.
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(
    "sensealg",
    [pynode.GaussAdjoint(), pynode.QuadratureAdjoint(), pynode.GaussAdjoint(checkpointing=True)],
    ids=["gauss", "quadrature", "gauss, checkpointing"],
)
def test_compiled_continuous_adjoints_agree_with_eager_ones(sensealg: pynode.SensitivityAlgorithm) -> None:
    torch.manual_seed(0)
    field, y0 = Spiral().double(), torch.randn(5, 2, dtype=torch.float64)
    ts = torch.tensor([0.0, 0.3, 1.0], dtype=torch.float64)
    eager = _gradients(field, y0, ts, sensealg=sensealg, algorithm=pynode.DP5())
    for _ in range(2):  # the first look is autograd's, the second pass is compiled throughout
        compiled = _gradients(field, y0, ts, sensealg=sensealg, algorithm=pynode.DP5(), compile="step")
        for a, b in zip(eager, compiled, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


def test_the_whole_pullback_of_a_step_is_one_graph_and_agrees() -> None:
    torch.manual_seed(0)
    field, y0 = Spiral().double(), torch.randn(5, 2, dtype=torch.float64)
    ts = torch.tensor([0.0, 1.0], dtype=torch.float64)
    eager = _gradients(field, y0, ts, algorithm=pynode.RK4(steps=7))
    for _ in range(2):
        compiled = _gradients(field, y0, ts, algorithm=pynode.RK4(steps=7), compile="step")
        for a, b in zip(eager, compiled, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


class Half(torch.nn.Module):
    """Does not use one of its parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.used = torch.nn.Parameter(torch.tensor(0.5, dtype=torch.float64))
        self.unused = torch.nn.Parameter(torch.tensor(0.5, dtype=torch.float64))

    def forward(self, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return -self.used * y


@pytest.mark.parametrize("sensealg", [pynode.CheckpointedAdjoint(), pynode.GaussAdjoint()], ids=lambda s: s.name)
def test_a_parameter_that_is_not_used_gets_no_gradient_from_graphs_either(
    sensealg: pynode.SensitivityAlgorithm,
) -> None:
    field = Half()
    for _ in range(2):
        field.zero_grad()
        y0 = torch.ones(3, dtype=torch.float64)
        sol = pynode.solve(field, y0, [0.0, 1.0], sensealg=sensealg, compile="step", rtol=1e-8, atol=1e-10)
        sol.ys[-1].sum().backward()
        assert field.unused.grad is None
        # y(1) = exp(-used), its derivative -exp(-used), to the tolerance.
        torch.testing.assert_close(field.used.grad, -3 * torch.exp(-field.used.detach()), rtol=1e-6, atol=0)


def test_new_times_tolerances_and_weights_do_not_compile_again() -> None:
    torch.manual_seed(0)
    field, y0 = Spiral(), torch.randn(5, 2)
    pynode.solve(field, y0, [0.0, 1.0], compile="step").ys[-1].sum().backward()
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert before >= 2  # a forward step and a step to pull back
    with torch.no_grad():
        for p in field.parameters():
            p.mul_(1.1)
    pynode.solve(field, y0 + 1, [0.5, 2.0], rtol=1e-3, compile="step").ys[-1].sum().backward()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == before


def test_what_cannot_be_compiled_says_so() -> None:
    class Callable:
        __hash__ = None  # type: ignore[assignment]

        def __call__(self, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return -y

    with pytest.raises(pynode.UnsupportedError, match="compile=False"):
        pynode.solve(Callable(), torch.ones(2), [0.0, 1.0], compile="step")
    with pytest.raises(pynode.UnsupportedError, match=r"BacksolveAdjoint.*CheckpointedAdjoint"):
        pynode.solve(Spiral(), torch.ones(1, 2), [0.0, 1.0], compile="step", sensealg=pynode.BacksolveAdjoint())
    with pytest.raises(pynode.InputError, match="step"):
        pynode.solve(Spiral(), torch.ones(1, 2), [0.0, 1.0], compile="whole")
