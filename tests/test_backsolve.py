"""The continuous adjoint: its check, its options, its anchors."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import pynode
from pynode import BacksolveAdjoint, CheckpointedAdjoint, GradientError, SaveAt

W = torch.tensor([[0.3, -0.7], [0.9, 0.1]], dtype=torch.float64)


def start() -> Tensor:
    return torch.tensor([0.5, -0.3], dtype=torch.float64, requires_grad=True)


def gradients(sensealg, *, t=(0.0, 0.4, 1.0), f=None, **options):
    """Gradients of y0, of a 2 x 2 parameter and of a complex scalar in args, with the solution."""
    y0, w = start(), W.clone().requires_grad_()
    z = torch.tensor(0.3 + 0.2j, dtype=torch.complex128, requires_grad=True)
    field = f or (lambda t, y, z: torch.tanh(y @ w) * torch.cos(t) + torch.view_as_real(z * torch.view_as_complex(y)))
    sol = pynode.solve(field, y0, t, args=(z,), sensealg=sensealg, **options)
    return list(torch.autograd.grad(sol.ys.pow(2).sum(), [y0, w, z], allow_unused=True)), sol


REFERENCE, _ = gradients(CheckpointedAdjoint(), algorithm=pynode.Vern7(), rtol=1e-12, atol=1e-12)


def error(found) -> float:
    return max((a - b).abs().max().item() for a, b in zip(found, REFERENCE, strict=True))


# |df/dy| < 1.5, so errors grow by less than exp(1.5) each way; at most 20 steps, of local error 2 * tolerance each, for
# the state and for the adjoint that depends on it; the loss's cotangents 2 y are below 2.
def bound(tolerance: float) -> float:
    return 2 * 2 * 20 * 2 * tolerance * math.exp(3.0)


# -------------------------------------------------------------------------------------------------- reconstruction


def dissipative(sensealg, t=(0.0, 1.0), rate=30.0, **options):
    y0 = start()
    sol = pynode.solve(lambda t, y: -rate * y, y0, t, sensealg=sensealg, **options)
    sol.ys[-1].sum().backward()
    return y0.grad


def test_a_dissipative_field_is_refused() -> None:
    # y' = -30 y: an error of atol = 1e-7 at t = 1 has grown by exp(30) = 1e13 at t = 0.
    with pytest.raises(GradientError) as caught:
        dissipative(BacksolveAdjoint())
    message = str(caught.value)
    for part in ("from t = 1 to t = 0", "cannot be trusted", "reconstruction_rtol = 0.01", "CheckpointedAdjoint",
                 "save more times", "tighten", "reconstruction_rtol=None"):  # fmt: skip
        assert part in message


def test_the_same_field_is_accepted_where_it_is_exact() -> None:
    # Linear: exp(-30), relative error of some 60 steps with a local error of 1e-5 relative to y above atol = 1e-7.
    gradient = dissipative(CheckpointedAdjoint())
    torch.testing.assert_close(gradient, torch.full_like(gradient, math.exp(-30)), rtol=0, atol=60 * 1e-7)


def test_the_check_can_be_turned_off_or_into_a_warning() -> None:
    dissipative(BacksolveAdjoint(reconstruction_rtol=None))
    with pytest.warns(RuntimeWarning, match="cannot be trusted"):
        dissipative(BacksolveAdjoint(on_mismatch="warn"))


def test_saving_in_between_re_anchors_the_state() -> None:
    # Over 1/40 of the span errors grow by exp(30 / 40) = 2 only.
    ts = torch.linspace(0, 1, 41, dtype=torch.float64)
    y0 = start()
    sol = pynode.solve(lambda t, y: -30 * y, y0, ts, sensealg=BacksolveAdjoint(), rtol=1e-8, atol=1e-12)
    sol.ys[10].sum().backward()
    expected = math.exp(-30 * 0.25)
    assert y0.grad.tolist() == pytest.approx([expected] * 2, rel=100 * 1e-8 * math.exp(0.75))


def test_the_check_accepts_states_that_are_or_pass_through_zero() -> None:
    y0 = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    sol = pynode.solve(
        lambda t, y: torch.cos(t) * torch.ones_like(y) + 0 * y, y0, [0.0, math.pi], sensealg=BacksolveAdjoint()
    )
    sol.ys[-1].sum().backward()  # from 0 to 0 by way of 1
    assert y0.grad.tolist() == pytest.approx([1.0, 1.0])


def test_a_field_that_runs_away_backward_is_refused() -> None:
    def lorenz(t, y):
        x, v, z = y
        return torch.stack([10 * (v - x), x * (28 - z) - v, x * v - 8 / 3 * z])

    y0 = torch.tensor([1.0, 1.0, 1.0], dtype=torch.float64, requires_grad=True)
    # Volumes shrink by exp(-41/3 t): an error of 1e-4 at t = 3 would be 1e13 at t = 0, were it not for the products,
    # which make it infinite on the way.
    sol = pynode.solve(lorenz, y0, [0.0, 3.0], sensealg=BacksolveAdjoint(max_steps=300), rtol=1e-4, atol=1e-4)
    with pytest.raises((GradientError, pynode.SolveError), match=r"BacksolveAdjoint.*CheckpointedAdjoint"):
        sol.ys[-1].sum().backward()


# ------------------------------------------------------------------------------------------------------- norms


@pytest.mark.parametrize("norm", ["seminorm", "full"])
def test_norms_by_name(norm) -> None:
    found, _ = gradients(BacksolveAdjoint(norm=norm), rtol=1e-7, atol=1e-7)
    assert error(found) < bound(1e-7)


def test_seminorm_leaves_parameters_out_of_step_control() -> None:
    # df/dw oscillates fast without touching y: "full" must follow it, the seminorm must not.
    def run(norm):
        y0, w = start(), torch.zeros((), dtype=torch.float64, requires_grad=True)
        f = lambda t, y: -y + torch.sin(300 * t) * w  # noqa: E731
        sol = pynode.solve(f, y0, [0.0, 1.0], sensealg=BacksolveAdjoint(norm=norm))
        sol.ys[-1].sum().backward()
        return sol.stats.backward.accepted

    assert run("seminorm") * 3 < run("full")


def test_a_callable_norm_gets_state_adjoint_arguments_and_parameters() -> None:
    seen = []

    def norm(parts):
        seen.append([(tuple(x.shape), x.dtype) for x in parts])
        return max(x.abs().max().item() for x in parts[:2])

    found, _ = gradients(BacksolveAdjoint(norm=norm), rtol=1e-7, atol=1e-7)
    flat = ((2,), torch.float64)
    assert seen[0] == [flat, flat, ((), torch.complex128), ((2, 2), torch.float64)]
    assert all(entry == seen[0] for entry in seen)
    assert error(found) < bound(1e-7)  # the largest element is above the root mean square


# ----------------------------------------------------------------------------------------- own algorithm and control


def test_own_tolerances_and_algorithm() -> None:
    options = {"rtol": 1e-10, "atol": 1e-10, "algorithm": pynode.Vern7()}
    tight, sol = gradients(BacksolveAdjoint(), **options)
    loose, loose_sol = gradients(BacksolveAdjoint(rtol=1e-4, atol=1e-4), **options)
    assert loose_sol.stats.forward == sol.stats.forward
    assert loose_sol.stats.backward.nfe < sol.stats.backward.nfe
    assert error(tight) < bound(1e-10)
    assert error(tight) < error(loose) < bound(1e-4)
    other, other_sol = gradients(BacksolveAdjoint(algorithm="bs3"), **{**options, "rtol": 1e-6, "atol": 1e-6})
    assert other_sol.algorithm == pynode.Vern7()
    assert other_sol.stats.backward.accepted > other_sol.stats.forward.accepted
    assert error(other) < 10 * bound(1e-6)  # ten times as many steps of the lower order


def test_own_controller_and_limits() -> None:
    found, _ = gradients(BacksolveAdjoint(controller=pynode.PIController()), rtol=1e-7, atol=1e-7)
    assert error(found) < bound(1e-7)
    _, sol = gradients(BacksolveAdjoint(dtmax=0.01))
    assert sol.stats.backward.accepted >= 100
    told = r"in the backward solve of BacksolveAdjoint.*max_steps = 1.*or use GaussAdjoint"
    with pytest.raises(pynode.SolveError, match=told):
        gradients(BacksolveAdjoint(max_steps=1, rtol=1e-9))


def test_a_fixed_adjoint_of_an_adaptive_solve() -> None:
    options = {"rtol": 1e-9, "atol": 1e-9, "algorithm": pynode.Vern7()}
    errors = []
    for steps in (8, 16):
        found, sol = gradients(BacksolveAdjoint(algorithm=pynode.RK4(steps=steps)), **options)
        assert sol.stats.backward.accepted == 2 * steps  # in each of the two stretches
        errors.append(error(found))
    assert 8 < errors[0] / errors[1] < 32  # order 4: 16 up to higher-order terms


@pytest.mark.parametrize("make", [lambda n: pynode.RK4(steps=n), lambda n: pynode.RK4(dt=1 / n)], ids=["steps", "dt"])
def test_fixed_steps_converge_with_their_order(make) -> None:
    errors = [error(gradients(BacksolveAdjoint(), algorithm=make(n))[0]) for n in (10, 20)]
    assert 8 < errors[0] / errors[1] < 32


def test_fixed_steps_go_back_over_the_forward_boundaries() -> None:
    _, sol = gradients(BacksolveAdjoint(), algorithm=pynode.RK4(steps=10))  # 0.4 and the ends are among them
    assert sol.stats.backward.accepted == 10
    _, sol = gradients(BacksolveAdjoint(), algorithm=pynode.RK4(steps=9))  # 0.4 cuts one step
    assert sol.stats.backward.accepted == 10


@pytest.mark.parametrize("t", [(0.0, 0.4, 1.0), (1.0, 0.4, 0.0)], ids=["ahead", "back"])
def test_times_get_the_slope_of_the_field(t) -> None:
    times = torch.tensor(t, dtype=torch.float64, requires_grad=True)
    y0 = start()
    f = lambda t, y: torch.sin(3 * t) - y**2  # noqa: E731
    sol = pynode.solve(f, y0, times, sensealg=BacksolveAdjoint(), rtol=1e-9, atol=1e-9)
    gradient, y0_gradient = torch.autograd.grad(sol.ys[1:].pow(2).sum(), [times, y0])
    slopes = torch.stack([f(x, y) for x, y in zip(times, sol.ys, strict=True)]).detach()
    expected = (2 * sol.ys.detach() * slopes).sum(1)
    expected[0] = -torch.dot(y0_gradient, slopes[0])
    torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-14)


def test_dense_output_on_request() -> None:
    y0 = start()
    f = lambda t, y: -y  # noqa: E731
    sol = pynode.solve(f, y0, [0.0, 1.0], sensealg=BacksolveAdjoint(), saveat=SaveAt(dense=True), rtol=1e-8, atol=1e-8)
    (gradient,) = torch.autograd.grad(sol(0.5).sum() + sol(torch.tensor([0.2, 0.7])).sum(), y0)
    expected = sum(math.exp(-x) for x in (0.5, 0.2, 0.7))
    assert gradient.tolist() == pytest.approx([expected] * 2, abs=2 * 20 * 2 * 1e-8 * 3)


def test_parameters_of_another_precision() -> None:
    w = torch.tensor(0.7, dtype=torch.float32, requires_grad=True)
    y0 = start()
    sol = pynode.solve(lambda t, y: -w * y, y0, [0.0, 1.0], sensealg=BacksolveAdjoint(), rtol=1e-8, atol=1e-8)
    sol.ys[-1].sum().backward()
    assert w.grad.dtype == torch.float32
    assert w.grad.item() == pytest.approx(-y0.sum().item() * math.exp(-0.7), rel=1e-6)  # float32 rounding of the result


def test_a_complex_argument_behind_an_odd_number_of_reals() -> None:
    # y = exp(-a |c|): d/da = -|c| y and d/dc = -a y c / |c|.
    a = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    c = torch.tensor(0.3 + 0.4j, dtype=torch.complex128, requires_grad=True)
    y0 = torch.ones(1, dtype=torch.float64)
    sol = pynode.solve(
        lambda t, y, a, c: -a * c.abs() * y, y0, [0.0, 1.0], args=(a, c), sensealg=BacksolveAdjoint(),
        rtol=1e-9, atol=1e-9,
    )  # fmt: skip
    sol.ys[-1].sum().backward()
    y = math.exp(-0.25)
    assert a.grad.item() == pytest.approx(-0.5 * y, abs=1e-7)
    assert c.grad.item() == pytest.approx(-0.5 * y * (0.6 + 0.8j), abs=1e-7)


def test_a_save_time_of_its_own_at_the_start_does_not_move_with_it() -> None:
    # y(s; t0) = y0 exp(t0 - s): dy/dt0 = y0 at s = t0.
    t = torch.tensor([0.0, 1.0], dtype=torch.float64, requires_grad=True)
    sol = pynode.solve(lambda t, y: -y, start(), t, saveat=[0.0, 1.0], sensealg=BacksolveAdjoint())
    (gradient,) = torch.autograd.grad(sol.ys[0].sum(), t)
    assert gradient.tolist() == pytest.approx([0.2, 0.0])
