"""Second derivatives through CheckpointedAdjoint: against analytic ones, finite differences and DirectAdjoint."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.autograd import gradgradcheck
from torch.autograd.function import once_differentiable
from torch.autograd.functional import hessian, hvp, vhp

import pynode
from pynode import (
    RK4,
    SSPRK33,
    BacksolveAdjoint,
    CheckpointedAdjoint,
    DirectAdjoint,
    GradientError,
    Heun,
    Midpoint,
    SaveAt,
    Tsit5,
    Vern7,
)
from pynode.native.adjoints.second_order import _split

CHECKPOINTED = {
    "all": CheckpointedAdjoint(),
    "2": CheckpointedAdjoint(checkpoints=2),
    "3": CheckpointedAdjoint(checkpoints=3),
}
each_bound = pytest.mark.parametrize("sensealg", CHECKPOINTED.values(), ids=CHECKPOINTED)

# With fixed steps a central difference of gradients is wrong by EPS**2 times a fourth derivative of order one, and by
# 1e-16 / EPS of rounding: 1e-10 and 1e-11.
EPS, ATOL = 1e-5, 1e-8
# The same steps computed in another order: 1e-16 for each of some hundred operations on numbers of order ten.
ROUNDING = {"rtol": 0.0, "atol": 1e-12}


def leaf(*values) -> Tensor:
    return torch.tensor(values if len(values) > 1 else values[0], dtype=torch.float64, requires_grad=True)


def weights() -> Tensor:
    return (torch.arange(4, dtype=torch.float64).reshape(2, 2).sin() + 0.3).requires_grad_()


def rhs(t: Tensor, y: Tensor, w: Tensor, a: Tensor) -> Tensor:
    return torch.tanh(y @ w) * torch.cos(2 * t) + a * y


def direction(x: Tensor) -> Tensor:
    """Different in every element, real and imaginary."""
    steps = torch.arange(x.numel(), dtype=torch.float64).reshape(x.shape)
    return torch.complex(torch.cos(steps + 1), torch.sin(2 * steps)) if x.is_complex() else torch.cos(steps + 1)


def real(x: Tensor) -> Tensor:
    return torch.view_as_real(x) if x.is_complex() else x


def product(loss: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    """The Hessian of ``loss`` times every input's ``direction``, by differentiating twice."""
    gradients = torch.autograd.grad(loss, inputs, create_graph=True)
    along = sum((real(g) * real(direction(x))).sum() for g, x in zip(gradients, inputs, strict=True))
    return list(torch.autograd.grad(along, inputs))


def assert_as_direct(loss, inputs, sensealg=CheckpointedAdjoint(), atol=1e-12) -> None:  # noqa: B008  (immutable)
    """``loss(sensealg)`` has the Hessian-vector product that DirectAdjoint gives, and none of it is zero."""
    expected = product(loss(DirectAdjoint()), inputs)
    found = product(loss(sensealg), inputs)
    for x, y in zip(found, expected, strict=True):
        assert y.abs().max() > 1e-3
        torch.testing.assert_close(x, y, rtol=0, atol=atol)


# ----------------------------------------------------------------------------------------------------- the numbers


@pytest.mark.parametrize("algorithm", [Tsit5(), Vern7()], ids=["tsit5", "vern7"])
def test_analytic_hessian_of_exponential_growth(algorithm) -> None:
    """L = y(T)^2 with y' = a y: L = y0^2 exp(2 a T)."""
    a, y0, end = leaf(0.3), leaf(1.7), 1.3

    def loss(a, y0):
        sol = pynode.solve(lambda t, y: a * y, y0, [0.0, end], algorithm=algorithm, rtol=1e-12, atol=1e-12)
        return sol.ys[-1] ** 2

    found = hessian(loss, (a, y0))
    value = 1.7**2 * math.exp(2 * 0.3 * end)
    expected = [[4 * end**2 * value, 4 * end * value / 1.7], [4 * end * value / 1.7, 2 * value / 1.7**2]]
    # Fewer than a thousand steps with local errors of 1e-12 times values below 50.
    torch.testing.assert_close(
        torch.tensor(found, dtype=torch.float64), torch.tensor(expected, dtype=torch.float64), rtol=0, atol=5e-8
    )


@each_bound
@pytest.mark.parametrize("backward", [False, True], ids=["ahead", "back"])
def test_gradgradcheck_of_everything(sensealg, backward) -> None:
    t = leaf(0.8, 0.35, 0.0) if backward else leaf(0.0, 0.35, 0.8)

    def solved(y0, w, t, a):
        f = lambda t, y, a: rhs(t, y, w, a)  # noqa: E731
        return pynode.solve(f, y0, t, args=(a,), algorithm=Heun(steps=5), sensealg=sensealg).ys

    assert gradgradcheck(solved, (leaf(0.5, -0.3), weights(), t, leaf(0.4)), eps=EPS, atol=ATOL, rtol=1e-7)


ALGORITHMS = {
    # Every step is dtmax: the taped and the untaped solve take the very same ones.
    "tsit5": (Tsit5(), {"dt0": 0.1, "dtmax": 0.1, "rtol": 1e-2, "atol": 1e-2}),
    "vern7": (Vern7(), {"dt0": 0.1, "dtmax": 0.1, "rtol": 1e-2, "atol": 1e-2}),
    "rk4": (RK4(steps=7), {}),
    "short last step": (SSPRK33(dt=0.3), {}),
    "over t": (Heun(), {}),
    # Boundaries that are not linear in t.
    "mesh": (Midpoint(mesh=lambda t: torch.cat([t[:1], t[0] + (t[-1] - t[0]) * 0.4 ** (1 + t[1:2]), t[-1:]])), {}),
}


@each_bound
@pytest.mark.parametrize("own", [False, True], ids=["at t", "saveat"])
@pytest.mark.parametrize("name", ALGORITHMS)
def test_as_direct_adjoint_with_nonlinear_losses_and_dense_output(name, own, sensealg) -> None:
    algorithm, options = ALGORITHMS[name]
    y0, w, a, t, s = leaf(0.5, -0.3), weights(), leaf(0.4), leaf(0.0, 0.35, 0.8), leaf(0.11, 0.35, 0.7)

    def loss(sensealg):
        f = lambda t, y, a: rhs(t, y, w, a)  # noqa: E731
        given = {"saveat": s} if own else {}
        sol = pynode.solve(f, y0, t, args=(a,), algorithm=algorithm, sensealg=sensealg, **given, **options)
        dense = sol(torch.tensor([0.6, 0.2], dtype=torch.float64)).pow(2).sum() + sol.derivative(0.3).pow(2).sum()
        return sol.ys.pow(3).sum() + sol.ys[1].exp().sum() + dense

    # Vern7's dense output has weights up to 1207, here differentiated twice by times: 1e-16 * 1207 * 7**2 / 0.1**2.
    assert_as_direct(loss, [y0, w, a, t, *([s] if own else [])], sensealg, 1e-9 if name == "vern7" else 1e-12)


def test_times_of_dense_output() -> None:
    y0, t, s = leaf(0.5, -0.3), leaf(0.0, 0.8), leaf(0.6, 0.2)

    def loss(sensealg):
        sol = pynode.solve(lambda t, y: torch.sin(3 * t) - y**2, y0, t, algorithm=RK4(steps=5), sensealg=sensealg)
        return sol(s).pow(2).sum() + sol.derivative(s).pow(2).sum()

    assert_as_direct(loss, [y0, t, s])


def test_save_at_steps() -> None:
    y0, w, t = leaf(0.5, -0.3), weights(), leaf(0.0, 0.8)

    def loss(sensealg):
        f = lambda t, y: torch.tanh(y @ w) + t  # noqa: E731
        save = SaveAt(steps=True)
        return pynode.solve(f, y0, t, algorithm=RK4(steps=5), saveat=save, sensealg=sensealg).ys.pow(3).sum()

    assert_as_direct(loss, [y0, w, t])


def test_a_loss_on_the_first_states_only() -> None:
    y0, w = leaf(0.5, -0.3), weights()

    def loss(sensealg):
        t = [0.0, 0.2, 0.5, 1.0]
        sol = pynode.solve(lambda t, y: torch.tanh(y @ w), y0, t, algorithm=RK4(), sensealg=sensealg)
        return sol.ys[1].prod() + sol.ys[0].pow(3).sum()

    assert_as_direct(loss, [y0, w])


def test_cotangents_that_depend_on_what_the_solve_does_not() -> None:
    y0, w, c = leaf(0.5, -0.3), weights(), leaf(0.7, 1.1)

    def loss(sensealg):
        sol = pynode.solve(lambda t, y: torch.tanh(y @ w), y0, [0.0, 1.0], algorithm=RK4(steps=5), sensealg=sensealg)
        return (c**2 * sol.ys[-1]).sum()

    assert_as_direct(loss, [y0, w, c])


def test_tree() -> None:
    q, p, w = leaf(0.5, -0.3), leaf(0.2, 0.1), weights()

    def loss(sensealg):
        f = lambda t, y, w: {"q": y["p"][0], "p": (-torch.sin(y["q"] @ w) * (1 + t),)}  # noqa: E731
        sol = pynode.solve(
            f, {"q": q, "p": (p,)}, [0.0, 0.3, 0.6], args=(w,), algorithm=RK4(steps=5), sensealg=sensealg
        )
        return sol.ys["q"].pow(3).sum() + (sol.ys["q"] * sol.ys["p"][0]).sum()

    assert_as_direct(loss, [q, p, w])


def test_complex_state_argument_and_parameter() -> None:
    y0 = torch.tensor([0.5 + 0.2j, -0.1 + 0.4j], dtype=torch.complex128, requires_grad=True)
    w = torch.tensor(-0.3 + 0.9j, dtype=torch.complex128, requires_grad=True)
    a = torch.tensor(0.2 - 0.1j, dtype=torch.complex128, requires_grad=True)

    def loss(sensealg):
        f = lambda t, y, a: w * y * torch.cos(t) + a * y.conj() ** 2  # noqa: E731
        sol = pynode.solve(f, y0, [0.0, 0.3, 0.7], args=(a,), algorithm=RK4(steps=5), sensealg=sensealg)
        return sol.ys.abs().pow(4).sum() + sol.ys.real.prod()

    assert_as_direct(loss, [y0, w, a])


def test_modules_and_captured_tensors_with_a_history() -> None:
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2)).double()
    y0, code = leaf(0.5, -0.3), leaf(0.7)

    def loss(sensealg):
        scale = torch.exp(code)  # a hypernetwork's output
        sol = pynode.solve(lambda t, y: net(y) * scale, y0, [0.0, 1.0], algorithm=RK4(steps=5), sensealg=sensealg)
        return sol.ys[-1].pow(2).sum()

    assert_as_direct(loss, [y0, code, net[0].weight, net[0].bias, net[2].weight])


def test_full_hessian_is_symmetric_and_agrees_with_direct_adjoint() -> None:
    y0, w = leaf(0.5, -0.3), weights()

    def loss(sensealg):
        def of(y0, w):
            f = lambda t, y: torch.tanh(y @ w)  # noqa: E731
            return pynode.solve(f, y0, [0.0, 0.4, 1.0], algorithm=RK4(), sensealg=sensealg).ys.pow(3).sum()

        return of

    def matrix(sensealg) -> Tensor:
        blocks = hessian(loss(sensealg), (y0, w))
        return torch.cat([torch.cat([b.reshape(n, -1) for b in row], 1) for row, n in zip(blocks, (2, 4), strict=True)])

    found = matrix(CheckpointedAdjoint())
    torch.testing.assert_close(found, found.T, **ROUNDING)
    torch.testing.assert_close(found, matrix(DirectAdjoint()), **ROUNDING)


@each_bound
def test_functional_hvp_and_vhp(sensealg) -> None:
    """hvp differentiates a vector-Hessian product by its vector."""
    y0, w = leaf(0.5, -0.3), weights()

    def loss(y0, w):
        f = lambda t, y: torch.tanh(y @ w)  # noqa: E731
        return pynode.solve(f, y0, [0.0, 0.4, 1.0], algorithm=RK4(), sensealg=sensealg).ys.pow(3).sum()

    expected = product(loss(y0, w), [y0, w])
    along = (direction(y0), direction(w))
    for function in (hvp, vhp):
        _, found = function(loss, (y0, w), along)
        for x, y in zip(found, expected, strict=True):
            torch.testing.assert_close(x, y, **ROUNDING)


def test_hvp_with_respect_to_times() -> None:
    t = leaf(0.0, 0.35, 0.8)

    def loss(sensealg):
        def of(t):
            f = lambda t, y: torch.sin(3 * t) - y**2  # noqa: E731
            return (
                pynode.solve(f, leaf(0.5, -0.3), t, algorithm=ALGORITHMS["mesh"][0], sensealg=sensealg).ys.exp().sum()
            )

        return of

    _, expected = vhp(loss(DirectAdjoint()), t, direction(t))
    _, found = hvp(loss(CheckpointedAdjoint()), t, direction(t))
    torch.testing.assert_close(found, expected, **ROUNDING)


def test_adaptive_default_against_differences_of_gradients() -> None:
    """Where the perturbation moves the steps: local errors of 1e-12 in some 30 steps over 2 EPS are 2e-6."""
    y0, w = leaf(0.5, -0.3), weights()
    options = {"algorithm": Vern7(), "rtol": 1e-12, "atol": 1e-12}

    def gradient(shift: float, create_graph: bool = False) -> tuple[Tensor, ...]:
        moved = [(x + shift * direction(x)).detach().requires_grad_() for x in (y0, w)]
        sol = pynode.solve(lambda t, y: torch.tanh(y @ moved[1]), moved[0], [0.0, 0.5, 1.0], **options)
        loss = sol.ys.pow(3).sum()
        return tuple(product(loss, moved)) if create_graph else torch.autograd.grad(loss, moved)

    for x, ahead, behind in zip(gradient(0.0, create_graph=True), gradient(EPS), gradient(-EPS), strict=True):
        torch.testing.assert_close(x, (ahead - behind) / (2 * EPS), rtol=0, atol=2e-6)


def test_float32() -> None:
    y0, w = leaf(0.5, -0.3), weights()

    def loss(y0, w):
        sol = pynode.solve(lambda t, y: torch.tanh(y @ w), y0, [0.0, 1.0], algorithm=RK4(steps=5))
        return sol.ys[-1].pow(3).sum()

    expected = product(loss(y0, w), [y0, w])
    narrow = [x.detach().float().requires_grad_() for x in (y0, w)]
    gradients = torch.autograd.grad(loss(*narrow), narrow, create_graph=True)
    along = sum((g * direction(g).float()).sum() for g in gradients)
    for x, y in zip(torch.autograd.grad(along, narrow), expected, strict=True):
        assert x.dtype == torch.float32
        torch.testing.assert_close(x.double(), y, rtol=0, atol=1e-4)  # 6e-8 for each of some hundred operations


# ------------------------------------------------------------------------------------------------ zeros and bookkeeping


def test_what_the_gradient_depends_on_linearly_has_a_zero_second_derivative() -> None:
    y0, a, unused = leaf(0.5, -0.3), leaf(0.7, 0.2), leaf(1.0)
    sol = pynode.solve(lambda t, y: a, y0, [0.0, 2.0], params=[a, unused], allow_unused=True)
    gradients = torch.autograd.grad(sol.ys[-1].sum(), [y0, a, unused], create_graph=True)
    along = sum(g.sum() for g in gradients)
    for x in torch.autograd.grad(along, [y0, a, unused]):
        torch.testing.assert_close(x, torch.zeros_like(x), rtol=0, atol=0)
    # Not so where the loss itself is nonlinear: L = sum (y0 + 2 a)^2.
    sol = pynode.solve(lambda t, y: a, y0, [0.0, 2.0])
    found = product(sol.ys[-1].pow(2).sum(), [y0, a])
    inner = 2 * direction(y0) + 4 * direction(a)
    torch.testing.assert_close(found[0], inner)
    torch.testing.assert_close(found[1], 2 * inner)


def test_the_penalty_on_a_gradient_reaches_a_linear_field() -> None:
    """|dL/dy0|^2 with y' = a y and L = y(1): exp(2 a), the gradient of which is 2 exp(2 a)."""
    y0, a = leaf(0.5), leaf(-0.4)
    sol = pynode.solve(lambda t, y: a * y, y0, [0.0, 1.0], rtol=1e-10, atol=1e-10)
    (gradient,) = torch.autograd.grad(sol.ys[-1], y0, create_graph=True)
    gradient.pow(2).backward()
    torch.testing.assert_close(a.grad, torch.tensor(2 * math.exp(-0.8), dtype=torch.float64), rtol=1e-8, atol=0)
    torch.testing.assert_close(y0.grad, torch.zeros((), dtype=torch.float64), rtol=0, atol=0)


def test_second_derivatives_count_in_stats_backward() -> None:
    y0, w = leaf(0.5, -0.3), weights()
    sol = pynode.solve(lambda t, y: torch.tanh(y @ w), y0, [0.0, 1.0], algorithm=RK4(steps=5))
    (gradient,) = torch.autograd.grad(sol.ys[-1].sum(), w, create_graph=True)
    assert sol.stats.backward.nfe == sol.stats.backward.nvjp == 20
    torch.autograd.grad(gradient.sum(), w)
    # Each step is evaluated once in either sweep, and pulled back twice each time.
    assert sol.stats.backward.nfe == 20 + 40
    assert sol.stats.backward.nvjp == 20 + 80


@pytest.mark.parametrize("slots", [1, 2, 3, 5, 40])
def test_tangents_in_bounded_memory(slots) -> None:
    """The schedule sweeps over no step more often than the binomial bound says, and ends."""

    def sweeps(count: int, slots: int) -> list[int]:
        if count <= slots:
            return [1] * count
        split = _split(count, slots)
        assert 1 <= split < count
        right, left = sweeps(count - split, max(slots - 1, 1)), sweeps(split, slots)
        return [n + 1 for n in left] + right

    for count in (1, 2, 3, 7, 20, 41):
        allowed = next(r for r in itertools.count(1) if math.comb(slots + r, slots) >= count)
        assert max(sweeps(count, slots)) <= allowed + 1


# --------------------------------------------------------------------------------------------------------- refusals


class Cubed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return 3 * x**2 * g


class CubedInNumpy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return torch.from_numpy(np.asarray(3 * x.detach().numpy() ** 2 * g.detach().numpy()))


@pytest.mark.parametrize("cubed", [Cubed, CubedInNumpy], ids=["once", "numpy"])
def test_a_field_that_is_not_twice_differentiable(cubed) -> None:
    y0, a = leaf(0.5, -0.3), leaf(0.7)
    sol = pynode.solve(lambda t, y: cubed.apply(a) * y, y0, [0.0, 1.0])
    (gradient,) = torch.autograd.grad(sol.ys[-1].sum(), a, create_graph=True)
    with pytest.raises(GradientError, match=r"cannot be differentiated twice.*second derivatives.*finite differences"):
        gradient.backward()


def test_third_derivatives_are_refused() -> None:
    y0 = leaf(0.5, -0.3)
    sol = pynode.solve(lambda t, y: -(y**2), y0, [0.0, 1.0])
    (gradient,) = torch.autograd.grad(sol.ys[-1].pow(2).sum(), y0, create_graph=True)
    (second,) = torch.autograd.grad(gradient.sum(), y0, create_graph=True)
    with pytest.raises(GradientError, match=r"second derivative.*again.*two differentiations.*DirectAdjoint\(\)"):
        second.sum().backward()


def test_continuous_adjoints_name_those_that_can() -> None:
    y0 = leaf(0.5, -0.3)
    with pytest.raises(GradientError, match=r"BacksolveAdjoint.*again.*CheckpointedAdjoint\(\) .*DirectAdjoint\(\)"):
        hvp(
            lambda y: pynode.solve(lambda t, y: -(y**2), y, [0.0, 1.0], sensealg=BacksolveAdjoint()).ys[-1].sum(),
            y0,
            torch.ones_like(y0),
        )


@pytest.mark.parametrize("which", ["parameter", "argument", "y0"])
def test_changes_in_place_between_the_derivatives_raise(which) -> None:
    y0, w, a = leaf(0.5, -0.3), weights(), leaf(0.4)
    sol = pynode.solve(lambda t, y, a: rhs(t, y, w, a), y0, [0.0, 1.0], args=(a,))
    (gradient,) = torch.autograd.grad(sol.ys[-1].sum(), w, create_graph=True)
    with torch.no_grad():
        {"parameter": w, "argument": a, "y0": y0}[which].mul_(2)
    with pytest.raises(RuntimeError, match=r"modified (in place|by an inplace operation)"):
        gradient.sum().backward()


def test_a_vmapped_backward_pass_is_refused() -> None:
    y0 = leaf(0.5, -0.3)
    with pytest.raises(GradientError, match=r"CheckpointedAdjoint was vmapped.*vectorize.*DirectAdjoint\(\)"):
        torch.autograd.functional.jacobian(
            lambda y: pynode.solve(lambda t, y: -(y**2), y, [0.0, 1.0]).ys[-1], y0, vectorize=True
        )
