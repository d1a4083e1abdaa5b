"""Forward sensitivities: analytic, against finite differences and against the discrete adjoint."""

from __future__ import annotations

import math

import pytest
import torch
from problems import both_directions
from torch import Tensor
from torch.autograd import gradcheck

import pynode
from pynode import (
    RK4,
    CheckpointedAdjoint,
    DirectAdjoint,
    ForwardSensitivity,
    GradientError,
    Heun,
    ReturnCode,
    SaveAt,
    UnsupportedError,
    Vern7,
)
from pynode.native.adjoints import forward

F64 = torch.float64
ROWS, COLUMNS = "rows", "columns"
CONTROL = {"controlled": ForwardSensitivity(), "not controlled": ForwardSensitivity(error_control=False)}
each_control = pytest.mark.parametrize("sensealg", CONTROL.values(), ids=CONTROL)


def leaf(*values: float) -> Tensor:
    return torch.tensor(values if len(values) > 1 else values[0], dtype=F64, requires_grad=True)


def start() -> Tensor:
    return torch.tensor([[0.5, -0.3], [1.0, 0.2], [-0.4, 0.8]], dtype=F64, requires_grad=True)


def weight() -> Tensor:
    return torch.tensor([[0.3, -0.7], [0.9, 0.1]], dtype=F64, requires_grad=True)


def projected(states: Tensor) -> Tensor:
    """A linear functional that weighs every number differently."""
    flat = (torch.view_as_real(states) if states.is_complex() else states).reshape(-1)
    return torch.dot(torch.cos(1.0 + torch.arange(flat.numel(), dtype=flat.dtype)), flat)


# ------------------------------------------------------------------------------------------------------ analytic


@each_control
@both_directions
def test_exponential(sensealg, sign) -> None:
    # y = y0 exp(-k (t - t0)), |k t| < 1: at most 60 steps, of local error 2e-10, growing by less than e; factor t.
    k, y0, t = leaf(0.8), leaf(1.3), leaf(0.0, sign * 0.5, sign * 1.1)
    sol = pynode.solve(lambda t, y: -k * y, y0, t, sensealg=sensealg, rtol=1e-10, atol=1e-10)
    exact = y0 * torch.exp(-k * (t - t[0]))
    weights = torch.tensor([0.3, -1.0, 2.0], dtype=F64)
    found = torch.autograd.grad(torch.dot(weights, sol.ys), [k, y0, t])
    # The columns are controlled to the tolerance; without control they are the derivative of the computed solution,
    # which for y linear in y0 and exponential in k is worse by the order of the method.
    bound = 60 * 2e-10 * math.e * 6 * 2
    for a, b in zip(found, torch.autograd.grad(torch.dot(weights, exact), [k, y0, t]), strict=True):
        assert (a - b).abs().max().item() < bound
    assert sol.sensealg == sensealg


@each_control
def test_dense_output_is_differentiable_after_the_solve(sensealg) -> None:
    k, y0 = leaf(0.8), leaf(1.3)
    t = leaf(0.2, 1.1)
    sol = pynode.solve(lambda t, y: -k * y, y0, t, sensealg=sensealg, rtol=1e-10, atol=1e-10)
    at = torch.tensor([0.9, 0.35], dtype=F64, requires_grad=True)
    exact = y0 * torch.exp(-k * (at - t[0]))
    # Dense output of order 4 with steps below 0.1: error constants below 1 leave 0.1**5 * exp(-5) at the worst.
    expected = torch.autograd.grad(exact.sum(), [k, y0, t, at])
    for a, b in zip(torch.autograd.grad(sol(at).sum(), [k, y0, t, at]), expected, strict=True):
        assert (a - b).abs().max().item() < 1e-6
    slopes = torch.autograd.grad(sol.derivative(0.5), [k, y0])
    z = math.exp(-0.8 * 0.3)
    assert slopes[0].item() == pytest.approx(1.3 * z * (0.8 * 0.3 - 1), abs=1e-4)
    assert slopes[1].item() == pytest.approx(-0.8 * z, abs=1e-4)
    # y'' = k^2 y, in t and, the other way, in t0.
    by_start, by_time = torch.autograd.grad(sol.derivative(at).sum(), [t, at])
    second = 0.64 * exact.detach()
    torch.testing.assert_close(by_time, second, rtol=1e-8, atol=0)
    assert by_start.tolist() == pytest.approx([-second.sum().item(), 0.0], abs=1e-4)


def test_the_start_time_at_a_save_time_of_its_own() -> None:
    # dy(s; t0)/dt0 = -f at s = t0 and dy/ds = f, where s is given apart; y(t0; t0) = y0 does not move.
    y0, t, s = leaf(2.0), leaf(0.0, 1.0), leaf(0.0, 1.0)
    sol = pynode.solve(lambda t, y: -y, y0, t, saveat=s, sensealg=ForwardSensitivity())
    gt, gs = torch.autograd.grad(sol.ys[0], [t, s], retain_graph=True)
    assert gt.tolist() == pytest.approx([2.0, 0.0])
    assert gs.tolist() == pytest.approx([-2.0, 0.0])
    sol = pynode.solve(lambda t, y: -y, y0, t, sensealg=ForwardSensitivity())
    assert torch.autograd.grad(sol.ys[0], t)[0].tolist() == [0.0, 0.0]


# ------------------------------------------------------------------------------------------ against finite differences


@pytest.mark.parametrize("way", [ROWS, COLUMNS])
def test_finite_differences_of_everything(way) -> None:
    # 6 numbers of state; columns: of y0, w, v, a, the start; or of v and a alone.
    v = torch.tensor([0.4, -1.1], dtype=F64, requires_grad=True)
    w = weight() if way == ROWS else weight().detach()
    y0 = start() if way == ROWS else start().detach()

    def run(v, a, *rest):
        moving = dict(zip(["w", "y0", "t"], rest, strict=False)) if rest else {"w": w, "y0": y0, "t": [0.1, 0.5, 0.9]}
        f = lambda t, y, a: torch.tanh(y @ moving["w"]) * torch.cos(t + v) + a["x"] * y  # noqa: E731
        sol = pynode.solve(
            f, moving["y0"], moving["t"], args=({"x": a},), sensealg=ForwardSensitivity(), algorithm=Vern7(),
            rtol=1e-10, atol=1e-10,
        )  # fmt: skip
        return projected(sol.ys), projected(sol(0.3))

    inputs = (v, leaf(-0.2), *((w, y0, leaf(0.1, 0.5, 0.9)) if way == ROWS else ()))
    # Errors of a solve at 1e-10 with some 10 steps, divided by eps, are 1e-5 where a perturbation changes the steps.
    assert gradcheck(run, inputs, eps=1e-4, atol=5e-5, rtol=1e-4, fast_mode=True)


# ------------------------------------------------------------------------------------------- against discrete adjoints


class Field(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Tanh(), torch.nn.Linear(3, 2)).double()
        generator = torch.Generator().manual_seed(0)
        for p in self.parameters():
            torch.nn.init.normal_(p, std=0.5, generator=generator)

    def forward(self, t, y):
        return self.net(y) * torch.cos(t)


def gradients(sensealg, batch: int, **options) -> tuple[list[Tensor], pynode.Solution]:
    field = Field()
    y0 = torch.linspace(-1.0, 1.0, 2 * batch, dtype=F64).reshape(batch, 2).requires_grad_(batch == 1)
    inputs = [*field.parameters(), *([y0] if batch == 1 else [])]
    sol = pynode.solve(field, y0, [0.0, 0.7, 1.0], sensealg=sensealg, **options)
    return list(torch.autograd.grad(projected(sol.ys), inputs)), sol


# 17 parameters: 20 numbers of state are more than the columns, 2 are fewer than those and y0's.
BATCHES = {ROWS: 1, COLUMNS: 10}
each_way = pytest.mark.parametrize("batch", BATCHES.values(), ids=BATCHES)


@each_way
@pytest.mark.parametrize("algorithm", [Heun(steps=3), RK4(steps=5)], ids=["heun", "rk4"])
@pytest.mark.parametrize("exact", [DirectAdjoint(), CheckpointedAdjoint()], ids=["direct", "checkpointed"])
def test_fixed_steps_give_the_discrete_derivative(batch, algorithm, exact) -> None:
    expected, _ = gradients(exact, batch, algorithm=algorithm)
    found, sol = gradients(ForwardSensitivity(), batch, algorithm=algorithm)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)
    # The probe does not know the columns: one evaluation more than without a gradient.
    stages = {"Heun": 2, "RK4": 4}[algorithm.name]
    forward_, backward = sol.stats.forward, sol.stats.backward
    products = min(2 * batch, 17 + (2 if batch == 1 else 0))
    interpolated = forward_.nfe - 1 - stages * algorithm.steps
    assert 0 <= interpolated <= 1
    assert forward_.nvjp == products * (forward_.nfe - 1)
    assert (backward.nfe, backward.nvjp, backward.accepted) == (0, 0, 0)
    assert "products with the Jacobian" in repr(sol)


@each_way
def test_without_error_control_the_steps_are_those_of_the_solve_alone(batch) -> None:
    options = {"rtol": 1e-6, "atol": 1e-6, "saveat": SaveAt(steps=True)}
    with torch.no_grad():
        field = Field()
        y0 = torch.linspace(-1.0, 1.0, 2 * batch, dtype=F64).reshape(batch, 2)
        plain = pynode.solve(field, y0, [0.0, 0.7, 1.0], **options)
    expected, _ = gradients(CheckpointedAdjoint(), batch, **options)
    found, sol = gradients(ForwardSensitivity(error_control=False), batch, **options)
    torch.testing.assert_close(sol.ts, plain.ts, rtol=1e-10, atol=0)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)  # frozen steps: the derivative of the same steps


def test_error_control_sees_columns_and_norms() -> None:
    # y = 0 for w = 0, and dy/dw oscillates: only the column needs small steps.
    def steps(**options) -> int:
        w = leaf(0.0)
        sol = pynode.solve(
            lambda t, y: w * torch.sin(40 * t) * torch.ones_like(y), torch.zeros(2, dtype=F64), [0.0, 2.0],
            rtol=1e-6, atol=1e-6, **options,
        )  # fmt: skip
        (gradient,) = torch.autograd.grad(sol.ys[-1, 0], w)
        if options["sensealg"].error_control:
            n = sol.stats.forward.accepted
            assert abs(gradient.item() - (1 - math.cos(80.0)) / 40) < n * 2e-6
        return sol.stats.forward.accepted

    largest = lambda e: e.abs().max()  # noqa: E731
    periods = 2 * 40 / (2 * math.pi)
    assert steps(sensealg=ForwardSensitivity()) > periods
    assert steps(sensealg=ForwardSensitivity(), norm=largest) > periods
    assert steps(sensealg=ForwardSensitivity(error_control=False)) < periods
    assert steps(sensealg=ForwardSensitivity(error_control=False), norm=largest) < periods


def test_tolerances_of_the_states_size() -> None:
    tolerance = torch.tensor([1e-7, 1e-7], dtype=F64)
    one, _ = gradients(ForwardSensitivity(), 1, rtol=1e-7, atol=1e-7)
    each, _ = gradients(ForwardSensitivity(), 1, rtol=tolerance, atol=tolerance)
    for a, b in zip(each, one, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


def test_the_error_of_the_gradient_follows_the_tolerance() -> None:
    expected, _ = gradients(CheckpointedAdjoint(), 1, algorithm=Vern7(), rtol=1e-13, atol=1e-13)

    def error(tolerance: float) -> float:
        found, sol = gradients(ForwardSensitivity(), 1, rtol=tolerance, atol=tolerance)
        distance = max((a - b).abs().max().item() for a, b in zip(found, expected, strict=True))
        # df/dy < 1.5 as |net'| < 0.5**2 * 3 * 2, over one unit of time; 4 cotangents below 1.
        assert distance < 2 * sol.stats.forward.accepted * tolerance * math.exp(1.5) * 4
        return distance

    errors = [error(10.0**-k) for k in (4, 5, 6, 7, 8)]
    slope = math.log10(errors[0] / errors[-1]) / 4
    # Error per step control: errors go like tolerance**(p / (p + 1)) = tolerance**0.83 for p = 5, and the estimate of
    # a slope over four decades from two errors that are each within a factor of 10 of that law is off by 0.5 at most.
    assert 0.33 < slope < 1.33
    assert errors[-1] < errors[0] * 10 ** (-4 * 0.33)


# -------------------------------------------------------------------------------------------- states, args, precisions


def test_complex_states_and_parameters_in_a_tree() -> None:
    def run(sensealg):
        z0 = torch.tensor([1.0 + 0.5j, -0.3j], dtype=torch.complex128, requires_grad=True)
        x0 = torch.tensor([[0.4]], dtype=F64, requires_grad=True)
        c = torch.tensor(0.7 - 0.4j, dtype=torch.complex128, requires_grad=True)
        matrix = torch.tensor([[0.2j, 1.0], [-0.5, 0.3 + 0.1j]], dtype=torch.complex128, requires_grad=True)
        f = lambda t, y, c: {"x": -y["x"] * y["z"][0].abs(), "z": matrix @ y["z"] * c + y["x"][0]}  # noqa: E731
        sol = pynode.solve(f, {"x": x0, "z": z0}, [0.0, 1.0], args=(c,), sensealg=sensealg, algorithm=RK4(steps=4))
        loss = projected(sol.ys["z"]) + projected(sol.ys["x"])
        return torch.autograd.grad(loss, [z0, x0, c, matrix])

    for found, expected in zip(run(ForwardSensitivity()), run(DirectAdjoint()), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13)


def test_complex_parameters_by_columns() -> None:
    def run(sensealg):
        c = torch.tensor(0.7 - 0.4j, dtype=torch.complex128, requires_grad=True)
        y0 = torch.linspace(0.0, 1.0, 8, dtype=F64) * (1 + 0.5j)
        sol = pynode.solve(lambda t, y: c * y * y.abs(), y0, [0.0, 1.0], sensealg=sensealg, algorithm=RK4(steps=4))
        return torch.autograd.grad(projected(sol.ys), c)[0]

    torch.testing.assert_close(run(ForwardSensitivity()), run(DirectAdjoint()), rtol=1e-12, atol=1e-13)


def test_single_precision_and_captured_tensors_with_a_history() -> None:
    scale = torch.tensor([0.5, -1.0], requires_grad=True)
    made = torch.exp(scale)  # a hypernetwork's output
    y0 = torch.ones(2)
    sol = pynode.solve(lambda t, y: -made * y, y0, [0.0, 1.0], sensealg=ForwardSensitivity(), rtol=1e-5, atol=1e-6)
    assert sol.ys.dtype == torch.float32
    sol.ys[-1].sum().backward()
    rate = scale.detach().exp()
    # At most 20 steps of local error 1e-5.
    torch.testing.assert_close(scale.grad, -rate * torch.exp(-rate), rtol=0, atol=20 * 1e-5)


def test_what_f_does_not_depend_on() -> None:
    # A constant field, an argument without influence, a state without one.
    y0, a, k = leaf(1.0, 2.0), leaf(3.0), leaf(0.5)
    sol = pynode.solve(
        lambda t, y, a: torch.ones(2, dtype=F64), y0, [0.0, 1.0], args=(a,), sensealg=ForwardSensitivity()
    )
    found = torch.autograd.grad(sol.ys[-1].sum(), [y0, a], allow_unused=True)
    assert found[0].tolist() == [1.0, 1.0]
    assert found[1] is None
    sol = pynode.solve(lambda t, y: k.expand(2), y0, [0.0, 2.0], sensealg=ForwardSensitivity())
    found = torch.autograd.grad(sol.ys[-1].sum(), [y0, k])
    assert found[0].tolist() == [1.0, 1.0]
    assert found[1].item() == pytest.approx(4.0)
    (nothing,) = torch.autograd.grad(pynode.solve(
        lambda t, y: -k * y, y0, [0.0, 2.0], sensealg=ForwardSensitivity()).ys[0].sum(), k
    )  # fmt: skip
    assert nothing.item() == 0.0


def test_only_save_times_need_a_gradient() -> None:
    s = leaf(0.5)
    sol = pynode.solve(
        lambda t, y: -y, torch.ones(1, dtype=F64), [0.0, 1.0], saveat=s.reshape(1), sensealg=ForwardSensitivity()
    )
    sol.ys.sum().backward()
    assert s.grad.item() == pytest.approx(-math.exp(-0.5), abs=1e-4)


def test_ys_may_be_written_into() -> None:
    t, k = leaf(0.0, 1.0), leaf(0.5)
    sol = pynode.solve(lambda t, y: -k * y, torch.ones(1, dtype=F64), t, sensealg=ForwardSensitivity())
    with torch.no_grad():
        sol.ys.mul_(0)
    (gradient,) = torch.autograd.grad(sol.ys[-1].sum(), t)
    assert gradient.tolist() == pytest.approx([0.5 * math.exp(-0.5), -0.5 * math.exp(-0.5)], abs=1e-4)


def test_observers_see_the_state_alone() -> None:
    class Observer:
        sizes: set[int] = set()  # noqa: RUF012

        def step(self, t, y, h) -> None:
            self.sizes.add(y.numel())

        accepted = rejected = step

    gradients(ForwardSensitivity(), 1, observer=Observer())
    assert Observer.sizes == {2}


def test_a_failed_solve_keeps_its_gradient() -> None:
    k, y0 = leaf(1.0), leaf(1.0)
    sol = pynode.solve(
        lambda t, y: -k * y, y0, [0.0, 0.1, 100.0], sensealg=ForwardSensitivity(), max_steps=12, throw=False
    )
    assert sol.retcode is ReturnCode.MaxIters
    assert sol.ts.tolist() == [0.0, 0.1]
    found = torch.autograd.grad(sol.ys[-1], [k, y0])
    assert [g.item() for g in found] == pytest.approx([-0.1 * math.exp(-0.1), math.exp(-0.1)], abs=12 * 2e-5)


# ------------------------------------------------------------------------------------------------------------ refusals


class Once(torch.autograd.Function):
    """The square, which can be differentiated once."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return 2 * x * gradient


class Detached(torch.autograd.Function):
    """The square, whose pullback loses its own graph."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return 2 * x * gradient.detach()


@pytest.mark.parametrize("square", [Once, Detached], ids=["once", "detached"])
def test_a_field_that_is_not_twice_differentiable(square) -> None:
    k = leaf(0.5)
    run = lambda count: pynode.solve(  # noqa: E731
        lambda t, y: -square.apply(k * y), torch.ones(count, dtype=F64), [0.0, 1.0], sensealg=ForwardSensitivity()
    )
    with pytest.raises(GradientError, match=r"(?s)twice differentiable.*CheckpointedAdjoint"):
        run(3)
    # As many columns as states: pulled back once, which such a field can be. y = 1 / (1 + k^2 t).
    (gradient,) = torch.autograd.grad(run(1).ys[-1], k)
    assert gradient.item() == pytest.approx(-1.0 / 1.25**2, abs=1e-4)


def test_too_many_columns(monkeypatch) -> None:
    monkeypatch.setattr(forward, "LIMIT", 37)  # 19 columns of 2 numbers are 38
    with pytest.raises(UnsupportedError, match=r"19 columns of 2 numbers.*37.*CheckpointedAdjoint"):
        gradients(ForwardSensitivity(), 1)


def test_dense_output_that_was_not_kept() -> None:
    _, sol = gradients(ForwardSensitivity(), 1, saveat=SaveAt(dense=False))
    with pytest.raises(UnsupportedError, match=r"dense=False"):
        sol(0.5)


def test_an_owed_parameter_that_f_cuts_off() -> None:
    field = torch.nn.Linear(2, 2).double()
    sol = pynode.solve(
        lambda t, y: field(y).detach() + 0 * y, start(), [0.0, 1.0], params=field.parameters(),
        sensealg=ForwardSensitivity(),
    )  # fmt: skip
    with pytest.raises(GradientError, match="does not depend on it"):
        sol.ys[-1].sum().backward()
