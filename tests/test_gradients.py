"""Gradients of every sensitivity algorithm: against finite differences, against each other, and their bookkeeping."""

from __future__ import annotations

import gc
import math
import weakref

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

import pynode
from pynode import (
    BacksolveAdjoint,
    CheckpointedAdjoint,
    DirectAdjoint,
    GradientError,
    Heun,
    SaveAt,
    Tsit5,
    Vern7,
)
from pynode.algorithms import ALGORITHMS, Exponential, FixedStep, Symplectic
from pynode.native.tableaus import TABLEAUS

EXACT = {
    "direct": DirectAdjoint(),
    "checkpointed": CheckpointedAdjoint(),
    "checkpointed3": CheckpointedAdjoint(checkpoints=3),
}
SENSEALGS = {**EXACT, "backsolve": BacksolveAdjoint()}
NOT_TAPED = [CheckpointedAdjoint(), CheckpointedAdjoint(checkpoints=3), BacksolveAdjoint()]
each_sensealg = pytest.mark.parametrize("sensealg", SENSEALGS.values(), ids=SENSEALGS)
each_untaped = pytest.mark.parametrize("sensealg", NOT_TAPED, ids=["checkpointed", "checkpointed3", "backsolve"])

# Finite differences of a solve with local errors of 1e-12 and some 20 steps are wrong by 2e-11 / EPS = 2e-6 where a
# perturbation changes the steps taken, and by EPS**2 = 1e-10 otherwise. gradcheck's atol is five times the former.
TIGHT = {"algorithm": Vern7(), "rtol": 1e-12, "atol": 1e-12}
EPS, ATOL = 1e-5, 1e-5


def coarse(sensealg: pynode.SensitivityAlgorithm) -> dict[str, object]:
    """Few fixed steps, whose discretisation error would show, where the gradient is exact for the steps taken; for the
    continuous adjoint so many that h**4 = (0.8 / 40)**4 = 2e-7 is far below ATOL."""
    return {"algorithm": pynode.RK4(steps=40) if isinstance(sensealg, BacksolveAdjoint) else Heun(steps=3)}


def checked(function, inputs) -> None:
    assert gradcheck(function, inputs, eps=EPS, atol=ATOL, rtol=1e-4, fast_mode=True)


def projected(*states: Tensor) -> Tensor:
    """Two linear functionals of the states that weigh every element differently."""
    flat = torch.cat([torch.view_as_real(s).reshape(-1) if s.is_complex() else s.reshape(-1) for s in states])
    index = torch.arange(flat.numel(), dtype=flat.dtype)
    return torch.stack([torch.dot(torch.cos(index + 1), flat), torch.dot(torch.sin(2 * index + 1), flat)])


def leaf(*values) -> Tensor:
    return torch.tensor(values if len(values) > 1 else values[0], dtype=torch.float64, requires_grad=True)


def weights(n: int = 2) -> Tensor:
    return (torch.arange(n * n, dtype=torch.float64).reshape(n, n).sin() + 0.3).requires_grad_()


def rhs(t: Tensor, y: Tensor, w: Tensor, a: Tensor) -> Tensor:
    return torch.tanh(y @ w) * torch.cos(2 * t) + a * y


# ---------------------------------------------------------------------------------------------- finite differences


@each_sensealg
@pytest.mark.parametrize("backward", [False, True], ids=["ahead", "back"])
@pytest.mark.parametrize("kind", ["adaptive", "fixed"])
def test_gradcheck_of_y0_parameters_times_and_args(sensealg, kind, backward) -> None:
    options = TIGHT if kind == "adaptive" else coarse(sensealg)
    t = leaf(0.0, 0.35, 0.8) if not backward else leaf(0.8, 0.35, 0.0)

    def solved(y0, w, t, a):
        return projected(
            pynode.solve(lambda t, y, a: rhs(t, y, w, a), y0, t, args=(a,), sensealg=sensealg, **options).ys
        )

    checked(solved, (leaf(0.5, -0.3), weights(), t, leaf(0.4)))


@each_sensealg
@pytest.mark.parametrize("kind", ["adaptive", "fixed"])
def test_gradcheck_with_save_times_of_their_own(sensealg, kind) -> None:
    options = TIGHT if kind == "adaptive" else coarse(sensealg)

    def solved(y0, w, t, s):
        return projected(
            pynode.solve(lambda t, y: rhs(t, y, w, -0.3), y0, t, saveat=s, sensealg=sensealg, **options).ys
        )

    checked(solved, (leaf(0.5, -0.3), weights(), leaf(0.0, 0.8), leaf(0.11, 0.45, 0.77)))


@pytest.mark.parametrize("sensealg", [*EXACT.values()], ids=EXACT)
def test_gradcheck_where_dt_shortens_the_last_step(sensealg) -> None:
    def solved(y0, t):
        algorithm = pynode.SSPRK33(dt=0.3)
        return projected(pynode.solve(lambda t, y: torch.sin(y + t), y0, t, algorithm=algorithm, sensealg=sensealg).ys)

    checked(solved, (leaf(0.5, -0.3), leaf(0.05, 0.4, 0.8)))


@each_sensealg
def test_gradcheck_of_a_tree(sensealg) -> None:
    def f_tree(t, y, w):
        return {"q": y["p"][0].squeeze(0), "p": (-torch.sin(y["q"] @ w)[None] * (1 + t),)}

    def solved(q, p, w, t):
        sol = pynode.solve(f_tree, {"q": q, "p": (p,)}, t, args=(w,), sensealg=sensealg, **TIGHT)
        return projected(sol.ys["q"], sol.ys["p"][0])

    checked(solved, (leaf(0.5, -0.3), leaf(0.2, 0.1)[None].detach().requires_grad_(), weights(), leaf(0.0, 0.3, 0.6)))


@each_sensealg
def test_gradcheck_of_a_complex_state_and_parameter(sensealg) -> None:
    def solved(y0, w, a, t):
        f = lambda t, y, a: w * y * torch.cos(t) + a * y.conj()  # noqa: E731
        return projected(pynode.solve(f, y0, t, args=(a,), sensealg=sensealg, **TIGHT).ys)

    y0 = torch.tensor([0.5 + 0.2j, -0.1 + 0.4j], dtype=torch.complex128, requires_grad=True)
    w = torch.tensor(-0.3 + 0.9j, dtype=torch.complex128, requires_grad=True)
    a = torch.tensor(0.2 - 0.1j, dtype=torch.complex128, requires_grad=True)
    checked(solved, (y0, w, a, leaf(0.0, 0.3, 0.7)))


@each_sensealg
@pytest.mark.parametrize("kind", ["adaptive", "fixed"])
def test_gradcheck_of_dense_output_after_the_solve(sensealg, kind) -> None:
    options = TIGHT if kind == "adaptive" else coarse(sensealg)

    def solved(y0, w, t, s):
        sol = pynode.solve(
            lambda t, y: rhs(t, y, w, 0.1), y0, t, sensealg=sensealg, saveat=SaveAt(dense=True), **options
        )
        return projected(sol(s), sol.ys[-1])

    # Unordered, with one time in a step that another one is in too.
    checked(solved, (leaf(0.5, -0.3), weights(), leaf(0.0, 0.8), leaf(0.6, 0.05, 0.61)))


@each_sensealg
@pytest.mark.parametrize("kind", ["adaptive", "fixed"])
def test_gradcheck_where_every_step_is_saved(sensealg, kind) -> None:
    # An adaptive solve has its inner boundaries frozen, so only the ends enter; tstops keeps the number of steps.
    options = {**TIGHT, "rtol": 1e-9, "atol": 1e-9} if kind == "adaptive" else coarse(sensealg)

    def solved(y0, t):
        sol = pynode.solve(
            lambda t, y: torch.sin(3 * t) - y**2, y0, t, sensealg=sensealg, saveat=SaveAt(steps=True), **options
        )
        return projected(sol.ys[0], sol.ys[-1]) if kind == "adaptive" else projected(sol.ys)

    checked(solved, (leaf(0.5, 0.2), leaf(0.0, 0.8)))


@each_sensealg
def test_gradient_with_respect_to_a_float32_time_and_state(sensealg) -> None:
    t = torch.tensor([0.0, 0.5, 1.0], requires_grad=True)
    y0 = torch.tensor([1.0, 2.0], requires_grad=True)
    sol = pynode.solve(lambda t, y: -y, y0, t, sensealg=sensealg, rtol=1e-6, atol=1e-6)
    sol.ys[1:].sum().backward()
    assert t.grad.dtype == torch.float32
    # y(t_i) = y0 exp(-(t_i - t0)); 20 evaluations in float32 and local errors of 1e-6 stay below 2e-5.
    slope = -3.0 * torch.exp(-torch.tensor([0.5, 1.0]))
    torch.testing.assert_close(t.grad, torch.cat([-slope.sum()[None], slope]), rtol=0, atol=6e-5)
    torch.testing.assert_close(y0.grad, -slope.sum().expand(2) / 3, rtol=0, atol=2e-5)


# ------------------------------------------------------------------------------------- one algorithm against another


def every_gradient(sensealg, **options) -> list[Tensor]:
    y0, w, a = leaf(0.5, -0.3), weights(), leaf(0.4)
    t = leaf(0.0, 0.3, 1.2)
    sol = pynode.solve(lambda t, y, a: rhs(t, y, w, a), y0, t, args=(a,), sensealg=sensealg, **options)
    loss = projected(sol.ys).pow(2).sum()
    return list(torch.autograd.grad(loss, [y0, w, a, t]))


@pytest.mark.parametrize("checkpoints", [None, 2, 5])
@pytest.mark.parametrize(
    "name", [name for name, cls in ALGORITHMS.items() if not issubclass(cls, Symplectic | Exponential)]
)
def test_checkpointed_equals_direct_to_rounding(name, checkpoints) -> None:
    cls = ALGORITHMS[name]
    if name == "FBDF" and checkpoints:
        pytest.skip("its Newton iteration keeps no Jacobian then, and ends elsewhere within the tolerance: test_bdf.py")
    algorithm = cls(steps=13) if issubclass(cls, FixedStep) else cls()
    # Not Hairer's first step, whose error of 1e-11 would be mostly rounding, and with it the size of the second step.
    options = {"algorithm": algorithm, "rtol": 1e-4, "atol": 1e-4, "dt0": 0.2}
    expected = every_gradient(DirectAdjoint(), **options)
    found = every_gradient(CheckpointedAdjoint(checkpoints), **options)
    # The same sums in another order: a few hundred operations of relative rounding 1.1e-16 each (the low-order methods
    # take 100 steps), amplified by at most exp(2 * 1.2), since |df/dy| < 2.
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=400 * 1.1e-16 * math.exp(2.4) * max(1.0, b.abs().max().item()))


@pytest.mark.parametrize("norm", ["seminorm", "full"])
@pytest.mark.parametrize("tolerance", [1e-4, 1e-6, 1e-8])
def test_error_of_backsolve_is_a_multiple_of_the_tolerance(tolerance, norm) -> None:
    reference = every_gradient(CheckpointedAdjoint(), **TIGHT)
    sensealg = BacksolveAdjoint(norm=norm)
    found = every_gradient(sensealg, algorithm=Vern7(), rtol=tolerance, atol=tolerance)
    # Up to 20 steps, each with a local error below 2 * tolerance, for the state and again for the adjoint that depends
    # on it; an error grows by at most exp(2 * 1.2) = 11 over the span.
    for a, b in zip(found, reference, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=2 * 20 * 2 * 11 * tolerance * max(1.0, b.abs().max().item()))


@each_sensealg
def test_loss_on_the_initial_state_only(sensealg) -> None:
    model = torch.nn.Linear(2, 2).double()
    y0, t, a = leaf(0.5, -0.3), leaf(0.0, 1.0), leaf(2.0)
    sol = pynode.solve(lambda t, y, a: model(y) * a, y0, t, args=(a,), sensealg=sensealg)
    sol.ys[0].sum().backward()
    torch.testing.assert_close(y0.grad, torch.ones(2, dtype=torch.float64), rtol=0, atol=0)
    for x in (t, a, model.weight):
        assert x.grad is None or not x.grad.any()


@each_sensealg
def test_a_zero_cotangent_gives_zero_gradients_and_no_error(sensealg) -> None:
    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = torch.nn.Linear(2, 2)

        def forward(self, t, y):
            return self.linear(y)

    model = Model().double()
    sol = pynode.solve(model, leaf(0.5, -0.3), [0.0, 0.5, 1.0], sensealg=sensealg)
    (sol.ys - sol.ys.detach()).pow(2).sum().backward()
    torch.testing.assert_close(model.linear.weight.grad, torch.zeros(2, 2, dtype=torch.float64), rtol=0, atol=0)


@pytest.mark.parametrize("sensealg", [*EXACT.values()], ids=EXACT)
def test_gradients_of_a_failed_solve_leave_its_final_time_alone(sensealg) -> None:
    y0, t = leaf(1.0, 2.0), leaf(0.0, 0.05, 5.0)
    f = lambda t, y: -(y**2) * (1 + t)  # noqa: E731
    sol = pynode.solve(f, y0, t, max_steps=6, throw=False, sensealg=sensealg)
    assert sol.retcode is pynode.ReturnCode.MaxIters
    assert sol.ys.shape == (2, 2)
    gradients = torch.autograd.grad(sol.ys.sum(), [y0, t])
    expected = torch.autograd.grad(pynode.solve(f, y0, t[:2], **TIGHT).ys.sum(), [y0, t])
    # Six steps with local errors of 2e-5 at |y| = 2; the slope -y**2 (1 + t) changes four times as fast as y.
    for a, b in zip(gradients, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=4 * 6 * 2e-5)
    assert gradients[1][2] == 0


def test_a_fixed_solve_beyond_max_steps_returns_its_start_and_its_gradient() -> None:
    y0, t = leaf(1.0, 2.0), leaf(0.0, 1.0)
    sol = pynode.solve(lambda t, y: -y, y0, t, algorithm=Heun(steps=9), max_steps=3, throw=False)
    assert sol.ys.shape == (1, 2)
    gradients = torch.autograd.grad(sol.ys.sum(), [y0, t])
    assert gradients[0].tolist() == [1.0, 1.0]
    assert gradients[1].tolist() == [0.0, 0.0]


# --------------------------------------------------------------------------------------------------- double backward


@each_sensealg
def test_save_times_that_coincide_with_steps_keep_their_own_gradient(sensealg) -> None:
    # With steps= the inner boundaries do not depend on the inner times, which are equal to them all the same.
    t = leaf(0.0, 0.2, 0.4, 0.6, 0.8)
    y0 = leaf(0.5, -0.3)
    f = lambda t, y: torch.sin(3 * t) - y**2  # noqa: E731
    sol = pynode.solve(f, y0, t, algorithm=pynode.RK4(steps=40), sensealg=sensealg)
    (gradient,) = torch.autograd.grad(projected(sol.ys)[0], t)
    cotangents = torch.cos(torch.arange(10, dtype=torch.float64) + 1).reshape(5, 2)
    slopes = torch.stack([f(t[i], sol.ys[i]) for i in range(5)])
    expected = (cotangents * slopes).sum(1)
    # The slope of cubic Hermite interpolation at a node is f there.
    torch.testing.assert_close(
        gradient[1:-1], expected[1:-1], rtol=0, atol=1e-12 if sensealg in EXACT.values() else 1e-6
    )


def test_gradgradcheck_through_direct_adjoint() -> None:
    def solved(y0, w, t):
        sol = pynode.solve(lambda t, y: torch.tanh(y @ w) + t, y0, t, algorithm=Heun(steps=2), sensealg=DirectAdjoint())
        return projected(sol.ys)[:1]

    assert gradgradcheck(solved, (leaf(0.5, -0.3), weights(), leaf(0.0, 0.25, 0.6)), eps=EPS, atol=ATOL)


def test_hessian_through_direct_adjoint_against_differences_of_the_default_gradient() -> None:
    w = weights()

    def loss(y0, sensealg):
        return (
            pynode.solve(lambda t, y: torch.tanh(y @ w), y0, [0.0, 1.0], sensealg=sensealg, **TIGHT).ys[-1].pow(2).sum()
        )

    y0 = leaf(0.5, -0.3)
    hessian = torch.autograd.functional.hessian(lambda y: loss(y, DirectAdjoint()), y0)

    def gradient(y):
        y = y.detach().requires_grad_()
        return torch.autograd.grad(loss(y, CheckpointedAdjoint()), y)[0]

    steps = EPS * torch.eye(2, dtype=torch.float64)
    differences = torch.stack([(gradient(y0 + h) - gradient(y0 - h)) / (2 * EPS) for h in steps])
    torch.testing.assert_close(hessian, differences, rtol=0, atol=ATOL)


@pytest.mark.parametrize("power", [1, 2], ids=["linear", "quadratic"])
def test_double_backward_is_refused_by_continuous_adjoints(power) -> None:
    y0, w = leaf(0.5, -0.3), leaf(0.7)
    sol = pynode.solve(lambda t, y: -w * y**2, y0, [0.0, 1.0], sensealg=BacksolveAdjoint())
    (gradient,) = torch.autograd.grad(sol.ys[-1].pow(power).sum(), y0, create_graph=True)
    # Also with a linear loss, whose cotangents depend on nothing: a penalty on this gradient must not lose it silently.
    penalty = gradient.pow(2).sum() + w**2
    with pytest.raises(
        GradientError, match=r"differentiated again.*one differentiation.*Checkpointed.*DirectAdjoint\(\)"
    ):
        penalty.backward()


@each_untaped
def test_create_graph_alone_is_allowed(sensealg) -> None:
    y0 = leaf(0.5, -0.3)
    sol = pynode.solve(lambda t, y: -y, y0, [0.0, 1.0], sensealg=sensealg)
    (gradient,) = torch.autograd.grad(sol.ys[-1].sum(), y0, create_graph=True)
    torch.testing.assert_close(
        gradient.detach(), torch.full((2,), math.exp(-1), dtype=torch.float64), rtol=1e-4, atol=0
    )


# ----------------------------------------------------------------------------------------------------- bookkeeping


class Counted:
    """A field that counts its calls, and the pullbacks through what it returned."""

    def __init__(self, w: Tensor) -> None:
        self.w, self.calls, self.pullbacks = w, 0, 0

    def __call__(self, t, y):
        self.calls += 1
        derivative = torch.tanh(y @ self.w) * torch.cos(t)
        if derivative.requires_grad:
            derivative.register_hook(self._hook)
        return derivative

    def _hook(self, gradient):
        self.pullbacks += 1


@each_sensealg
@pytest.mark.parametrize("algorithm", [Tsit5(), pynode.BS3(), pynode.DP8(), pynode.RK4(steps=7)], ids=lambda a: a.name)
@pytest.mark.parametrize("t", [[0.0, 1.0], [0.0, 0.3, 0.55, 1.0]], ids=["ends", "inner"])
def test_stats_count_every_call(sensealg, algorithm, t) -> None:
    f = Counted(weights())
    sol = pynode.solve(f, leaf(0.5, -0.3), t, algorithm=algorithm, sensealg=sensealg)
    assert f.calls == sol.stats.forward.nfe
    assert sol.stats.backward == pynode.Counts()
    for repeat in (1, 2):
        f.calls = f.pullbacks = 0
        before = pynode.Counts(**vars(sol.stats.backward))
        projected(sol.ys).sum().backward(retain_graph=True)
        assert f.calls == sol.stats.backward.nfe - before.nfe
        assert f.pullbacks == sol.stats.backward.nvjp - before.nvjp > 0
        if isinstance(sensealg, CheckpointedAdjoint):
            assert sol.stats.backward.accepted == repeat * sol.stats.forward.accepted


@each_untaped
def test_backward_stops_at_the_last_state_in_the_loss(sensealg) -> None:
    ts = torch.linspace(0, 1, 11, dtype=torch.float64)
    options = {"algorithm": pynode.RK4(), "sensealg": sensealg}
    whole = pynode.solve(lambda t, y: -y, leaf(0.5, -0.3), ts, **options)
    whole.ys[10].sum().backward()
    part = pynode.solve(lambda t, y: -y, leaf(0.5, -0.3), ts, **options)
    part.ys[3].sum().backward()
    short = pynode.solve(lambda t, y: -y, leaf(0.5, -0.3), ts[:4], **options)
    short.ys[3].sum().backward()
    assert part.stats.backward.accepted == 3
    assert whole.stats.backward.accepted == 10
    if sensealg == CheckpointedAdjoint(checkpoints=3):  # recomputes from what the longer solve has kept
        assert part.stats.backward.nfe < whole.stats.backward.nfe
    else:
        assert part.stats.backward.nfe == short.stats.backward.nfe


@each_sensealg
def test_backward_twice_adds_up(sensealg) -> None:
    y0, w = leaf(0.5, -0.3), weights()
    sol = pynode.solve(lambda t, y: torch.tanh(y @ w), y0, [0.0, 1.0], sensealg=sensealg)
    loss = sol.ys[-1].pow(2).sum()
    loss.backward(retain_graph=True)
    first = [y0.grad.clone(), w.grad.clone()]
    loss.backward()
    for x, g in zip((y0, w), first, strict=True):
        torch.testing.assert_close(x.grad, 2 * g, rtol=0, atol=0)


@each_sensealg
def test_a_second_solve_in_between_changes_nothing(sensealg) -> None:
    y0, w = leaf(0.5, -0.3), weights()

    def start(end: float) -> Tensor:
        return pynode.solve(lambda t, y: torch.tanh(y @ w), y0, [0.0, end], sensealg=sensealg).ys[-1].sum()

    alone = torch.autograd.grad(start(1.0), [y0, w])
    first = start(1.0)
    torch.autograd.grad(start(0.3), [y0, w])
    for a, b in zip(torch.autograd.grad(first, [y0, w]), alone, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


@each_sensealg
def test_one_solve_feeding_another(sensealg) -> None:
    def twice(y0, w):
        f = lambda t, y: torch.tanh(y @ w)  # noqa: E731
        middle = pynode.solve(f, y0, [0.0, 0.5], sensealg=sensealg, **TIGHT).ys[-1]
        return pynode.solve(f, middle, [0.5, 1.0], sensealg=sensealg, **TIGHT).ys[-1]

    checked(lambda y0, w: projected(twice(y0, w)), (leaf(0.5, -0.3), weights()))


@each_sensealg
@pytest.mark.parametrize("which", ["parameter", "argument", "y0"])
def test_changes_in_place_before_backward_raise(sensealg, which) -> None:
    y0, w, a = leaf(0.5, -0.3), weights(), leaf(0.4)
    sol = pynode.solve(lambda t, y, a: rhs(t, y, w, a), y0, [0.0, 1.0], args=(a,), sensealg=sensealg)
    with torch.no_grad():
        {"parameter": w, "argument": a, "y0": y0}[which].mul_(2)
    if which == "y0" and sensealg == DirectAdjoint():
        sol.ys[-1].sum().backward()  # the tape holds a copy
        return
    with pytest.raises(RuntimeError, match=r"modified (in place|by an inplace operation)"):
        sol.ys[-1].sum().backward()


def test_an_unused_parameter_may_change_before_backward() -> None:
    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.critic = torch.nn.Linear(2, 2), torch.nn.Linear(2, 1)

        def forward(self, t, y):
            return self.linear(y)

    model = Model()
    sol = pynode.solve(model, torch.ones(3, 2), [0.0, 1.0])
    with torch.no_grad():
        model.critic.weight.mul_(2)
    sol.ys[-1].sum().backward()
    assert model.linear.weight.grad is not None
    assert model.critic.weight.grad is None


def test_a_change_that_torch_does_not_see_raises_too() -> None:
    w = weights()
    sol = pynode.solve(lambda t, y: torch.tanh(y @ w), leaf(0.5, -0.3), [0.0, 1.0])
    w.data.mul_(2)
    with pytest.raises(GradientError, match=r"f gave other values than before.*the same f.*\.eval\(\) for dropout"):
        sol.ys[-1].sum().backward()


@pytest.mark.parametrize("checkpoints", [None, 3])
@pytest.mark.parametrize("save", [[0.0, 1.0], [0.0, 0.4, 1.0]])
def test_dropout_inside_the_field_raises(checkpoints, save) -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Dropout(0.5))
    sol = pynode.solve(
        lambda t, y: model(y),
        torch.ones(4, 8),
        save,
        algorithm=Heun(steps=6),
        sensealg=CheckpointedAdjoint(checkpoints),
    )
    with pytest.raises(GradientError, match="f gave other values than before"):
        sol.ys[-1].sum().backward()


@each_sensealg
def test_writing_into_ys(sensealg) -> None:
    y0 = leaf(0.5, -0.3)
    sol = pynode.solve(lambda t, y: -y, y0, [0.0, 0.5, 1.0], sensealg=sensealg)
    sol.ys.mul_(2)
    if isinstance(sensealg, BacksolveAdjoint):
        with pytest.raises(GradientError, match=r"ys was changed in place.*ys\.clone\(\)"):
            sol.ys[-1].sum().backward()
        return
    sol.ys[-1].sum().backward()  # default tolerance 1e-5
    torch.testing.assert_close(y0.grad, torch.full((2,), 2 * math.exp(-1), dtype=torch.float64), rtol=0, atol=1e-4)


@each_untaped
def test_a_solution_is_freed_without_the_cycle_collector(sensealg) -> None:
    gc.collect()
    gc.disable()
    try:
        sol = pynode.solve(lambda t, y: -y, leaf(0.5, -0.3), [0.0, 1.0], sensealg=sensealg)
        loss = sol.ys[-1].sum()
        loss.backward()
        alive = [weakref.ref(sol), weakref.ref(sol.ys)]
        del sol, loss
        assert [ref() for ref in alive] == [None, None]
    finally:
        gc.enable()


@each_untaped
def test_autocast_is_the_same_in_both_passes(sensealg) -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(2, 16), torch.nn.Tanh(), torch.nn.Linear(16, 2))
    y0 = torch.randn(4, 2)
    seen = set()

    def f(t, y):
        out = model(y)
        seen.add(out.dtype)
        return out.float()

    with torch.autocast("cpu", dtype=torch.bfloat16):
        total = sum(
            pynode.solve(f, y0, [0.0, 1.0], algorithm=Heun(steps=4), sensealg=sensealg).ys[-1].sum() for _ in range(2)
        )
        after = model(y0).float().sum()  # the untaped solve must not have left untaped casts behind
    total.backward()
    assert seen == {torch.bfloat16}
    gradient = model[0].weight.grad.clone()
    (again,) = torch.autograd.grad(after, model[0].weight)
    assert again.any()
    model.zero_grad()
    exact = pynode.solve(f, y0, [0.0, 1.0], algorithm=Heun(steps=4), sensealg=DirectAdjoint()).ys[-1].sum()
    exact.backward()
    # bfloat16 has a relative rounding of 2**-8; 16 terms in each product.
    size = model[0].weight.grad.abs().max().item()
    torch.testing.assert_close(gradient, 2 * model[0].weight.grad, rtol=0, atol=2 * 16 * 2**-8 * size)


# --------------------------------------------------------------------------------------- what gets a gradient at all


class TwoLayers(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.unused = (torch.nn.Linear(2, 2).double() for _ in range(3))

    def forward(self, t, y):
        return torch.tanh(self.second(torch.tanh(self.first(y))))


@each_sensealg
def test_unused_and_frozen_parameters_get_no_gradient(sensealg) -> None:
    model = TwoLayers()
    model.first.weight.requires_grad_(False)
    pynode.solve(model, leaf(0.5, -0.3), [0.0, 1.0], sensealg=sensealg).ys[-1].sum().backward()
    assert model.first.weight.grad is None
    assert model.unused.weight.grad is None
    assert model.first.bias.grad is not None
    assert model.second.weight.grad is not None


@each_sensealg
def test_shared_parameters_get_the_sum(sensealg) -> None:
    torch.manual_seed(0)
    shared = torch.nn.Linear(2, 2).double()
    first, second = torch.nn.Linear(2, 2).double(), torch.nn.Linear(2, 2).double()
    first.load_state_dict(shared.state_dict())
    second.load_state_dict(shared.state_dict())

    def gradient(one, two):
        for module in (one, two):
            module.zero_grad()
        f = lambda t, y: torch.tanh(two(torch.tanh(one(y))))  # noqa: E731
        y0 = torch.tensor([0.5, -0.3], dtype=torch.float64)
        pynode.solve(f, y0, [0.0, 1.0], sensealg=sensealg, **TIGHT).ys[-1].sum().backward()
        return [module.weight.grad for module in (one, two)]

    apart = gradient(first, second)
    together = gradient(shared, shared)
    # Of the same steps (the seminorm and the forward norm do not see parameters): rounding of some 100 terms.
    torch.testing.assert_close(together[0], apart[0] + apart[1], rtol=0, atol=1e-12)


@each_sensealg
def test_a_parameter_used_only_later(sensealg) -> None:
    class Late(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.early, self.late = torch.nn.Parameter(leaf(0.3).detach()), torch.nn.Parameter(leaf(0.7).detach())

        def forward(self, t, y):
            return y * (self.early if t < 0.5 else self.late)

    model = Late()
    y0 = torch.ones(1, dtype=torch.float64)
    pynode.solve(model, y0, [0.0, 1.0], sensealg=sensealg, d_discontinuities=[0.5], rtol=1e-9, atol=1e-9).ys[
        -1
    ].sum().backward()
    # y(1) = exp(0.5 early + 0.5 late); below 30 steps with local errors of 2e-9.
    expected = 0.5 * math.exp(0.5)
    assert model.early.grad.item() == pytest.approx(expected, abs=1e-7)
    assert model.late.grad.item() == pytest.approx(expected, abs=1e-7)


@each_untaped
def test_a_module_whose_parameters_are_all_detached_raises(sensealg) -> None:
    class Detached(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = torch.nn.Linear(2, 2).double()

        def forward(self, t, y):
            with torch.no_grad():
                return self.linear(y)

    sol = pynode.solve(Detached(), leaf(0.5, -0.3), [0.0, 1.0], sensealg=sensealg)
    with pytest.raises(GradientError, match=r"shape \(2, 2\) requires a gradient.*differentiable.*\.detach\(\)"):
        sol.ys[-1].sum().backward()


@each_untaped
def test_a_non_finite_gradient_raises(sensealg) -> None:
    y0 = leaf(0.0, 1.0)
    sol = pynode.solve(lambda t, y: torch.sqrt(y.abs() * 0) + 0 * y, y0, [0.0, 1.0], sensealg=sensealg)
    with pytest.raises(pynode.PynodeError, match="finite"):
        sol.ys[-1].sum().backward()


def test_nothing_to_differentiate() -> None:
    y0 = torch.ones(2)
    sol = pynode.solve(lambda t, y: -y, y0, [0.0, 1.0])
    assert not sol.ys.requires_grad
    assert sol.sensealg is None
    with torch.no_grad():
        assert not pynode.solve(lambda t, y: -y, y0.clone().requires_grad_(), [0.0, 1.0]).ys.requires_grad


def test_dense_output_made_under_inference_mode_serves_a_tape_later() -> None:
    with torch.inference_mode():
        pynode.solve(lambda t, y: -y, torch.ones(2), [0.0, 0.5, 1.0], algorithm=pynode.Fehlberg2())
    t = torch.tensor([0.0, 0.5, 1.0], requires_grad=True)
    pynode.solve(lambda t, y: -y, torch.ones(2), t, algorithm=pynode.Fehlberg2()).ys.sum().backward()
    assert t.grad is not None


@pytest.mark.parametrize("algorithm", [pynode.Tsit5(), pynode.Vern7(), pynode.RK4(steps=3)], ids=lambda a: a.name)
def test_slopes_and_query_times_after_the_solve_are_differentiable(algorithm: pynode.Algorithm) -> None:
    def gradients(sensealg: pynode.SensitivityAlgorithm) -> tuple[torch.Tensor, ...]:
        y0, rate, at = leaf(0.5, -0.3), leaf(1.3), leaf(0.0, 0.2, 0.55, 1.0)
        sol = pynode.solve(lambda t, y: torch.cos(t) - rate * y**2, y0, [0.0, 1.0], algorithm=algorithm, dt0=0.1,
                           sensealg=sensealg)  # fmt: skip
        weights = torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=torch.float64)[:, None]
        return torch.autograd.grad((weights * (sol.derivative(at) + sol(at) ** 2)).sum(), [y0, rate, at])

    # Rounding, over at most some dozen steps; of the curvature of the interpolant, whose polynomials have coefficients
    # of their own size (4e5 in all for Vern7), in steps of 0.1 at least and weighted by 3.
    polynomials = TABLEAUS[algorithm.name].dense_b
    curvature = sum(abs(c) * (j + 1) * j for row in polynomials for j, c in enumerate(row))
    bound = max(1e-12, 3.0 * torch.finfo(torch.float64).eps * curvature / 0.1)
    for a, b in zip(gradients(CheckpointedAdjoint()), gradients(DirectAdjoint()), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=bound)


def test_dense_output_refuses_gradients_it_lacks() -> None:
    y0 = leaf(0.5, -0.3)
    dense = pynode.solve(lambda t, y: -y, y0, [0.0, 1.0], sensealg=BacksolveAdjoint(), saveat=pynode.SaveAt(dense=True))
    slope = dense.derivative(0.5)  # can be looked at
    with pytest.raises(pynode.GradientError, match=r"sol\.derivative\(t\).*CheckpointedAdjoint"):
        slope.sum().backward()
    constant = pynode.solve(lambda t, y: -y, y0, [0.0, 1.0], sensealg=BacksolveAdjoint())
    with pytest.raises(pynode.UnsupportedError, match=r"kept no states.*SaveAt\(dense=True\)"):
        constant(0.5)
