"""The front door, forward: accuracy, what is counted, and every option of ``solve`` that is not about gradients."""

from __future__ import annotations

import functools
import math
import subprocess
import sys
import threading

import pytest
import torch
from orders import orders_of
from problems import BY_NAME, Counting, both_directions, every_problem

import pynode
from pynode.algorithms import ALGORITHMS, Exponential, FixedStep, Implicit, Symplectic
from pynode.native.tableaus import TABLEAUS

ADAPTIVE = [name for name, cls in ALGORITHMS.items() if not issubclass(cls, FixedStep)]
every_algorithm = pytest.mark.parametrize(
    "name", [name for name, cls in ALGORITHMS.items() if not issubclass(cls, Symplectic | Exponential)]
)
every_adaptive = pytest.mark.parametrize("name", ADAPTIVE)
#: Of fixed order: errors of the others are in native/test_vcabm.py and native/test_bdf.py.
every_adaptive_tableau = pytest.mark.parametrize("name", [name for name in ADAPTIVE if name in TABLEAUS])
KEEP = (Implicit, pynode.FBDF, pynode.VCABM)
F64 = torch.float64


def ones(*shape: int, dtype: torch.dtype = F64) -> torch.Tensor:
    return torch.ones(shape, dtype=dtype)


def decay(t, y):
    return -y


# Accuracy

TOLERANCES = {
    2: (1e-3, 1e-4),
    3: (1e-3, 1e-6),
    4: (1e-4, 1e-7),
    5: (1e-4, 1e-6, 1e-9),
    7: (1e-5, 1e-10),
    8: (1e-5, 1e-10),
    9: (1e-6, 1e-11),
}
# Fehlberg's embedded method is Euler's with 1/512 of its error. For a solution exp(i w t) the estimate is (w h)^2 / 512
# and the error of the propagated solution at most (w h)^3 / 12; with the estimate at the tolerance, (w h)^2 = 512 tol
# (1 + |y|), the first is the larger only for tol < (12 / 512)^2 / 512 / 2 = 5e-7.
FINE = (1e-7,)


@every_problem
@every_adaptive_tableau
def test_the_error_is_bounded_by_the_tolerance(name, problem):
    """Each step's error is at most tol in the root mean square of n elements, so at most tol * sqrt(n) in any of them,
    with tol = tolerance * (1 + max |y|); N of them, amplified by the problem's growth, add up to at most
    N * growth * sqrt(n) * tol. The estimate is of the lower-order solution, so the propagated one does better."""
    for tolerance in FINE if name == "Fehlberg2" else TOLERANCES[orders_of(name)[0]]:
        sol = pynode.solve(problem.f, problem.y0(), problem.times(3), algorithm=name, rtol=tolerance, atol=tolerance)
        size = 1.0 + problem.exact(problem.times(50)).abs().max().item()
        per_step = tolerance * size * problem.y0().numel() ** 0.5
        assert problem.error(sol.ts, sol.ys) <= sol.stats.forward.accepted * problem.growth * per_step
        assert sol.retcode is pynode.ReturnCode.Success


@every_adaptive_tableau
def test_the_error_follows_the_tolerance(name):
    """Tolerance proportionality: with the elementary controller the error goes at least like tol^(p / k), p the order
    and k the order of the estimate (error per step tol => h ~ tol^(1/k) => global error h^p). Half of that is asked."""
    (order, error_order), problem = orders_of(name), BY_NAME["tracking"]
    loose, tight = (1e-3, 1e-5) if order <= 3 else (1e-5, 1e-9)
    errors = [
        problem.error(sol.ts, sol.ys)
        for sol in (
            pynode.solve(problem.f, problem.y0(), problem.times(2), algorithm=name, rtol=tol, atol=tol)
            for tol in (loose, tight)
        )
    ]
    assert errors[0] / errors[1] >= (loose / tight) ** (0.5 * order / error_order)


@every_problem
@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=["single", "double"])
def test_every_precision_gives_its_own_accuracy(problem, dtype):
    tolerance = 1e-5 if dtype == torch.float32 else 1e-9
    y0 = problem.y0(dtype)
    seen = set()

    def f(t, y):
        seen.add((t.dtype, t.shape, y.dtype, y.shape))
        return problem.f(t, y)

    sol = pynode.solve(f, y0, problem.times(4), rtol=tolerance, atol=tolerance)
    assert seen == {(dtype, torch.Size(()), y0.dtype, y0.shape)}
    assert sol.ys.dtype == y0.dtype
    assert sol.ys.shape == (4, *y0.shape)
    size = 1.0 + problem.exact(problem.times(50)).abs().max().item()
    per_step = tolerance * size * y0.numel() ** 0.5
    assert problem.error(sol.ts, sol.ys) <= sol.stats.forward.accepted * problem.growth * per_step


@both_directions
@pytest.mark.parametrize("shape", [(), (1,), (3,), (2, 3), (2, 1, 4)], ids=str)
def test_states_of_any_shape(shape, sign):
    sol = pynode.solve(decay, ones(*shape), [0.0, 0.5 * sign, 1.0 * sign], rtol=1e-8, atol=1e-8)
    assert sol.ys.shape == (3, *shape)
    torch.testing.assert_close(sol.ys[-1], ones(*shape) * math.exp(-sign), rtol=1e-6, atol=0)


# Times


@both_directions
def test_double_precision_times_with_a_single_precision_state(sign):
    """Steps of 1e-3 at t = 1e6, where single precision times are 0.06 apart."""
    t = 1e6 + sign * torch.tensor([0.0, 0.004, 0.01], dtype=F64)
    sol = pynode.solve(lambda t, y: -100.0 * sign * y, ones(2, dtype=torch.float32), t, rtol=1e-4, atol=1e-6)
    assert sol.ts.dtype == F64
    assert sol.ys.dtype == torch.float32
    torch.testing.assert_close(sol.ys[:, 0], torch.exp(-torch.tensor([0.0, 0.4, 1.0])), rtol=1e-3, atol=0)
    assert pynode.solve(lambda t, y: -y, ones(2), t, algorithm=pynode.RK4(dt=1e-3)).stats.forward.accepted == 10


@both_directions
def test_times_far_from_zero_in_double_precision(sign):
    """y' = -2 (t - 1e6) y from 1e6 on: the field sees every digit of t."""
    t = 1e6 + sign * torch.linspace(0.0, 1.0, 5, dtype=F64)
    sol = pynode.solve(lambda t, y: -2.0 * (t - 1e6) * y, ones(1), t, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(sol.ys[:, 0], torch.exp(-((t - 1e6) ** 2)), rtol=1e-6, atol=0)


@both_directions
@pytest.mark.parametrize("form", [list, tuple, lambda t: torch.tensor(t), lambda t: torch.tensor(t, dtype=F64)])
def test_times_in_any_form(form, sign):
    sol = pynode.solve(decay, ones(1), form([0.0, sign * 0.5, sign * 2.0]))
    torch.testing.assert_close(sol.ts.double(), torch.tensor([0.0, sign * 0.5, sign * 2.0], dtype=F64))


# Fields


def test_fields_of_any_kind():
    class Module(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.rate = torch.nn.Parameter(torch.tensor(-2.0, dtype=F64))

        def forward(self, t, y):
            return self.rate * y

    class Callable:
        def __call__(self, t, y):
            return -2.0 * y

        def method(self, t, y):
            return -2.0 * y

    rate = torch.tensor(-2.0, dtype=F64)
    forms = {
        "module": (Module(), ()),
        "closure": (lambda t, y: rate * y, ()),
        "callable object": (Callable(), ()),
        "method": (Callable().method, ()),
        "partial": (functools.partial(lambda k, t, y: k * y, -2.0), ()),
        "args": (lambda t, y, k, options: k * options["one"] * y, (rate, {"one": 1})),
    }
    results = {name: pynode.solve(f, ones(2), [0.0, 1.0], args=args).ys for name, (f, args) in forms.items()}
    for result in results.values():
        assert torch.equal(result, results["closure"])
    assert results["closure"].requires_grad is False
    assert results["module"].requires_grad is True


def test_a_solve_inside_a_solve():
    """y' = -x(1), x' = x from x(0) = y: y = exp(-e t), the same from inside and from outside."""

    def inner(t, y):
        return -pynode.solve(lambda s, x: x, y, [0.0, 1.0], rtol=1e-9, atol=1e-9).ys[-1]

    sol = pynode.solve(inner, ones(2), [0.0, 0.5], rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(sol.ys[-1], ones(2) * math.exp(-math.e / 2.0), rtol=1e-5, atol=0)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_modes_around_the_solve(mode):
    layer = torch.nn.Linear(2, 2).double()
    f = lambda t, y: torch.tanh(layer(y))  # noqa: E731
    expected = pynode.solve(f, ones(2), [0.0, 1.0]).ys.detach()
    with mode():
        sol = pynode.solve(f, ones(2), [0.0, 1.0])
        inside = sol(0.3)
    assert torch.equal(sol.ys, expected)
    assert not sol.ys.requires_grad
    assert torch.equal(sol(0.3), inside)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_modes_inside_the_field(mode):
    @mode()
    def f(t, y):
        return -y

    assert torch.equal(pynode.solve(f, ones(2), [0.0, 1.0]).ys, pynode.solve(decay, ones(2), [0.0, 1.0]).ys)


def test_inference_tensors_outside_their_mode():
    with torch.inference_mode():
        y0, t = ones(2), torch.linspace(0, 1, 3)
    assert y0.is_inference()
    layer = torch.nn.Linear(2, 2).double()
    sol = pynode.solve(lambda t, y: layer(y), y0, t, saveat=t)
    sol.ys.sum().backward()
    assert layer.weight.grad is not None


@pytest.mark.parametrize("name", ["SSPRK33", "Vern7"])
def test_inference_mode_leaves_nothing_behind(name):
    """What a solve under inference mode caches must serve a later one that differentiates its times."""
    with torch.inference_mode():
        pynode.solve(decay, ones(2), [0.0, 0.5, 1.0], algorithm=name, saveat=[0.3, 0.7])
    t = torch.tensor([0.3, 0.7], dtype=F64, requires_grad=True)
    sol = pynode.solve(decay, ones(1), [0.0, 1.0], algorithm=name, saveat=t, sensealg=pynode.DirectAdjoint())
    sol.ys.sum().backward()
    assert t.grad is not None


def test_two_threads_and_one_module():
    module = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3)).double()
    f = lambda t, y: module(y) * torch.cos(t)  # noqa: E731
    starts = [ones(2, 3), -2.0 * ones(5, 3)]
    expected = [pynode.solve(f, y0, [0.0, 3.0]) for y0 in starts]
    found: list[list] = [[], []]

    def work(index: int) -> None:
        for _ in range(5):
            found[index].append(pynode.solve(f, starts[index], [0.0, 3.0]))

    threads = [threading.Thread(target=work, args=(index,)) for index in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index in (0, 1):
        assert len(found[index]) == 5
        for sol in found[index]:
            assert torch.equal(sol.ys, expected[index].ys)
            assert sol.stats == expected[index].stats


def test_the_users_tensors_are_left_alone():
    y0, t = ones(3), torch.linspace(0.0, 1.0, 3, dtype=F64)
    copies = y0.clone(), t.clone()
    sol = pynode.solve(decay, y0, t, saveat=torch.tensor([0.0], dtype=F64))
    sol.ys.fill_(9.0)
    assert torch.equal(y0, copies[0])
    assert torch.equal(t, copies[1])
    before = sol(1e-6)
    y0.fill_(5.0)
    assert torch.equal(sol(1e-6), before)


# Counting


@every_algorithm
@both_directions
def test_evaluations_are_counted_where_they_happen(name, sign):
    """Against a field that counts its own calls: without gradients and with them, save points, dense queries."""
    times = [0.0, 0.4 * sign, 1.0 * sign]
    for y0 in (ones(2), ones(2).requires_grad_()):
        for sensealg in (pynode.CheckpointedAdjoint(), pynode.DirectAdjoint()):
            f = Counting(lambda t, y: torch.cos(t) * y)
            sol = pynode.solve(
                f, y0, times, algorithm=name, sensealg=sensealg, saveat=[x * sign for x in (0.1, 0.2, 0.9)]
            )
            forward = sol.stats.forward
            assert forward.nfe + forward.njac == f.calls  # a Jacobian is one call
            assert f.calls > forward.accepted >= 1
            before = f.calls
            with torch.no_grad():
                sol(0.35 * sign)
                sol.derivative(0.35 * sign)
            assert f.calls > before or issubclass(ALGORITHMS[name], KEEP)  # their stages
            assert forward.nfe + forward.njac == f.calls
            assert (sol.stats.backward.nfe, sol.stats.backward.nvjp) == (0, 0)


@pytest.mark.parametrize("name", TABLEAUS)
def test_evaluations_per_step(name):
    """A step costs the stages it has, first-same-as-last methods one less; the automatic first step costs one more."""
    tableau = TABLEAUS[name]
    f = Counting(decay)
    with torch.no_grad():
        sol = pynode.solve(f, ones(2), [0.0, 1.0, 2.0], algorithm=name)
    forward = sol.stats.forward
    attempts = forward.accepted + forward.rejected
    stages = len(tableau.c)
    starts = 1 if tableau.fsal else forward.accepted
    interpolations = len(tableau.dense_c) if tableau.b_error is not None else 0  # 1.0 lies inside an adaptive step
    assert f.calls == starts + attempts * (stages - 1) + interpolations + (tableau.b_error is not None)


# What is saved


@every_algorithm
@pytest.mark.parametrize("direction", ["riccati", "riccati:reversed"])
def test_save_points_never_change_the_steps(name, direction):
    problem = BY_NAME[direction]
    algorithm = ALGORITHMS[name](steps=20) if name not in ADAPTIVE else ALGORITHMS[name]()
    solve = functools.partial(pynode.solve, problem.f, problem.y0(), algorithm=algorithm, rtol=1e-4, atol=1e-4)
    # The midpoint rule's cubic needs the slopes at both ends, neither of which is a stage; torchdiffeq's Adams methods
    # evaluate the slope at the end, which begins the next step.
    others = {"ImplicitMidpoint": 2, "ExplicitAdams": 1, "ImplicitAdams": 1}
    extra = len(TABLEAUS[name].dense_c) if name in TABLEAUS else others.get(name, 0)
    few = solve(problem.times(2))
    for many in (solve(problem.times(200)), solve(problem.times(2), saveat=problem.times(200))):
        assert torch.equal(many.ys[-1], few.ys[-1])
        assert torch.equal(many.ys[0], few.ys[0])
        a, b = few.stats.forward, many.stats.forward
        assert (a.accepted, a.rejected) == (b.accepted, b.rejected)
        with_points = b.nfe - a.nfe  # a whole number of steps had their extra stages evaluated, each once
        assert 0 <= with_points <= extra * b.accepted
        assert with_points == 0 if extra == 0 else with_points % extra == 0


@both_directions
def test_saved_values_do_not_depend_on_what_else_is_saved(sign):
    solve = functools.partial(pynode.solve, BY_NAME["modulated"].f, ones(1), rtol=1e-6, atol=1e-6)
    all_times = torch.linspace(0.0, sign * 3.0, 31, dtype=F64)
    everything = solve(all_times)
    some = solve(all_times[[0, -1]], saveat=all_times[[3, 10, 11, 29]])
    torch.testing.assert_close(some.ys, everything.ys[[3, 10, 11, 29]], rtol=1e-14, atol=0)
    dense = some(all_times)
    torch.testing.assert_close(dense, everything.ys, rtol=1e-13, atol=0)


@both_directions
def test_forms_of_saveat(sign):
    t = [0.0, 2.0 * sign]
    ts = torch.tensor([0.5, 1.0, 1.75], dtype=F64) * sign
    solve = functools.partial(pynode.solve, decay, ones(2), t)
    for saveat in (ts, ts.tolist(), tuple(ts.tolist()), pynode.SaveAt(ts), pynode.SaveAt(ts=ts.tolist())):
        sol = solve(saveat=saveat)
        assert torch.equal(sol.ts, ts)
        assert torch.equal(sol.ys, solve(saveat=ts).ys)
    steps = solve(saveat=pynode.SaveAt(steps=True))
    assert len(steps.ts) == len(steps.ys) == steps.stats.forward.accepted + 1
    assert steps.ts[0] == 0.0
    assert steps.ts[-1] == 2.0 * sign
    assert ((steps.ts.diff() * sign) > 0).all()
    torch.testing.assert_close(steps.ys[:, 0], torch.exp(-steps.ts), rtol=1e-4, atol=0)
    sparse = solve(saveat=pynode.SaveAt(dense=False))
    assert torch.equal(sparse.ys, solve().ys)
    with pytest.raises(pynode.UnsupportedError, match="dense"):
        sparse(sign)


@both_directions
def test_a_single_save_time(sign):
    for at in (0.0, 0.7, 1.0):
        sol = pynode.solve(decay, ones(2), [0.0, sign], saveat=[at * sign])
        assert sol.ys.shape == (1, 2)
        assert sol.ys[0, 0].item() == pytest.approx(math.exp(-at * sign), rel=1e-4)


# Options of the step-size search


def _steps(f, end, y0=None, **options):
    sol = pynode.solve(f, ones(1) if y0 is None else y0, [0.0, end], saveat=pynode.SaveAt(steps=True), **options)
    return sol, sol.ts.diff().abs()


@both_directions
def test_dt0_dtmax_and_dtmin(sign):
    sol, sizes = _steps(decay, sign, dt0=0.03125, dtmax=0.1)
    assert sizes[0] == 0.03125
    assert sizes.max() <= 0.1 * (1 + 1e-9)
    assert sol.stats.forward.nfe == 1 + 6 * sol.stats.forward.accepted  # no evaluation to find a first step
    sol, sizes = _steps(decay, sign, dtmin=0.2, rtol=1e-2, atol=1e-2)
    assert sizes[0] >= 0.2
    with pytest.raises(pynode.SolveError, match="dtmin") as caught:
        _steps(lambda t, y: torch.cos(50.0 * t) * y, sign, dtmin=0.2)
    assert caught.value.retcode is pynode.ReturnCode.DtLessThanMin


@both_directions
def test_tstops_are_met(sign):
    stops = [0.1, 1.0 / 3.0, 0.7]
    for form in (list, lambda x: torch.tensor(x, dtype=F64)):
        sol, _ = _steps(decay, sign, tstops=form([sign * x for x in stops]))
        assert {sign * x for x in stops} <= set(sol.ts.tolist())


@every_adaptive
@both_directions
def test_discontinuities(name, sign):
    """y' = 1, but 3 between 0.3 and 0.8, from t = -1: unnamed the jumps cost rejections, named they cost nothing,
    whichever value f has at the jump itself. dtmax keeps methods of few stages from stepping over the whole bump."""
    jumps = torch.tensor([0.3, 0.8], dtype=F64)
    f = lambda t, y: (1.0 + 2.0 * ((t * sign > jumps[0]) & (t * sign <= jumps[1]))) * torch.ones_like(y)  # noqa: E731
    g = lambda t, y: (1.0 + 2.0 * ((t * sign >= jumps[0]) & (t * sign < jumps[1]))) * torch.ones_like(y)  # noqa: E731
    for field in (f, g):
        solve = functools.partial(
            pynode.solve,
            field,
            torch.zeros(1, dtype=F64),
            [-sign, sign],
            algorithm=name,
            rtol=1e-6,
            atol=1e-6,
            dtmax=0.2,
        )
        blind, named = solve(), solve(d_discontinuities=[sign * 0.3, sign * 0.8])
        assert blind.stats.forward.rejected > 0
        assert named.stats.forward.rejected == 0
        assert named.stats.forward.nfe < blind.stats.forward.nfe
        # Exact but for rounding: constant slopes.
        assert named.ys[-1].item() == pytest.approx(sign * (2.0 + 2.0 * 0.5), abs=1e-14)


@both_directions
@pytest.mark.parametrize("algorithm", ["tsit5", "rk4", "euler", "dp8"])
@pytest.mark.parametrize("at", [0.0, 1.0])
def test_discontinuities_at_the_ends(sign, algorithm, at):
    """The value of f at the jump itself, a hundred, is never seen; with and without gradients."""
    f = lambda t, y: torch.where(t == sign * at, 100.0, 1.0) * torch.ones_like(y)  # noqa: E731
    for y0 in (ones(1), ones(1).requires_grad_()):
        sol = pynode.solve(f, y0, [0.0, sign], algorithm=algorithm, d_discontinuities=[sign * at])
        assert sol.ys[-1].item() == pytest.approx(1.0 + sign, abs=1e-14)


@both_directions
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_discontinuities_close_to_zero_and_in_single_precision(sign, dtype):
    """Steps to a time near 0 from one far from it: t + (t1 - t) is not t1."""
    for exponent in range(1, 30):
        at = sign * 10.0 ** (-exponent / 5.0)
        f = lambda t, y, at=at: torch.where(t * sign < at * sign, 1.0, 100.0) * torch.ones_like(y)  # noqa: E731
        sol = pynode.solve(f, torch.zeros(1, dtype=dtype), [-sign, sign], d_discontinuities=[at])
        assert sol.stats.forward.rejected == 0


@both_directions
def test_the_norm_gets_the_tree_of_the_scaled_error(sign):
    seen = []

    def norm(error):
        seen.append({key: (value.dtype, value.shape) for key, value in error.items()})
        return max(value.abs().max() for value in error.values())

    y0 = {"a": ones(2, 3), "z": torch.ones(2, dtype=torch.complex128)}
    f = lambda t, y: {"a": -y["a"], "z": 5.0j * y["z"]}  # noqa: E731
    largest = pynode.solve(f, y0, [0.0, sign], norm=norm)
    assert seen
    assert all(entry == {"a": (F64, (2, 3)), "z": (torch.complex128, (2,))} for entry in seen)
    average = pynode.solve(f, y0, [0.0, sign])
    # The largest error is above the root mean square, so it takes more steps; ignoring z takes fewer.
    only_a = pynode.solve(f, y0, [0.0, sign], norm=lambda error: error["a"].square().mean().sqrt())
    accepted = [sol.stats.forward.accepted for sol in (only_a, average, largest)]
    assert accepted[0] < accepted[1] <= accepted[2]


@both_directions
@pytest.mark.parametrize("controller", [pynode.PIController(), pynode.PIDController(), pynode.IController(safety=0.5)])
def test_controllers_keep_the_tolerance(controller, sign):
    problem = BY_NAME["modulated" if sign > 0 else "modulated:reversed"]
    default = pynode.solve(problem.f, problem.y0(), problem.times(), rtol=1e-7, atol=1e-7)
    sol = pynode.solve(problem.f, problem.y0(), problem.times(), rtol=1e-7, atol=1e-7, controller=controller)
    assert not torch.equal(sol.ys, default.ys)  # other steps
    assert problem.error(sol.ts, sol.ys) <= sol.stats.forward.accepted * problem.growth * 1e-7 * (1 + math.e)


@both_directions
def test_tensor_valued_tolerances(sign):
    y0 = ones(2, 2)
    f = lambda t, y: torch.cos(5.0 * t) * y  # noqa: E731
    scalar = pynode.solve(f, y0, [0.0, sign], rtol=1e-6, atol=1e-8)
    for rtol, atol in (
        (torch.tensor(1e-6, dtype=F64), torch.tensor(1e-8, dtype=F64)),
        (torch.full((4,), 1e-6, dtype=F64), 1e-8),
        (1e-6, torch.full((4,), 1e-8, dtype=F64)),
    ):
        sol = pynode.solve(f, y0, [0.0, sign], rtol=rtol, atol=atol)
        assert torch.equal(sol.ys, scalar.ys)
        assert sol.stats == scalar.stats
    # A component whose tolerance is wide is not controlled.
    atol = torch.tensor([1e-8, 1e6, 1e6, 1e6], dtype=F64)
    assert pynode.solve(f, y0, [0.0, sign], atol=atol).stats.forward.accepted < scalar.stats.forward.accepted


def test_purely_absolute_and_purely_relative_control():
    y0 = torch.tensor([0.0, 1.0], dtype=F64)
    f = lambda t, y: torch.stack([0.0 * y[0], -y[1]])  # noqa: E731
    for options in ({"rtol": 0.0, "atol": 1e-8}, {"rtol": 1e-8, "atol": torch.tensor([0.0, 1e-300], dtype=F64)}):
        sol = pynode.solve(f, y0, [0.0, 1.0], **options)
        torch.testing.assert_close(sol.ys[-1], torch.tensor([0.0, math.exp(-1.0)], dtype=F64), rtol=0, atol=1e-6)


@both_directions
def test_magnitudes_at_the_edge_of_single_precision(sign):
    """f / tolerance is 1e20, whose square single precision cannot hold."""
    sol = pynode.solve(lambda t, y: -1e15 * sign * y, ones(2, dtype=torch.float32), [0.0, sign * 1e-15])
    torch.testing.assert_close(sol.ys[-1], torch.full((2,), math.exp(-1.0)), rtol=1e-4, atol=0)


@both_directions
def test_max_steps(sign):
    f = lambda t, y: torch.cos(50.0 * t) * y  # noqa: E731
    with pytest.raises(pynode.SolveError, match="max_steps = 7") as caught:
        pynode.solve(f, ones(1), [0.0, sign * 10.0], max_steps=7)
    assert caught.value.retcode is pynode.ReturnCode.MaxIters
    forward = caught.value.solution.stats.forward
    assert forward.accepted + forward.rejected == 7
    needed = pynode.solve(f, ones(1), [0.0, sign]).stats.forward
    enough = pynode.solve(f, ones(1), [0.0, sign], max_steps=needed.accepted + needed.rejected)
    assert enough.retcode is pynode.ReturnCode.Success


# The package


def test_importing_pynode_imports_torch_and_numpy_only():
    code = """
import sys, torch, numpy
before = {name.partition('.')[0] for name in sys.modules}
import pynode
after = {name.partition('.')[0] for name in sys.modules} - before - set(sys.stdlib_module_names) - {'pynode'}
print(sorted(after))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
