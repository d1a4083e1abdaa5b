"""Algorithm objects, their names, and the orders of convergence that the methods behind them show."""

from __future__ import annotations

import dataclasses
import math
import pickle

import pytest
import torch
from problems import BY_NAME, Problem

import pynode
from pynode.algorithms import ALGORITHMS, ALIASES, FixedStep, algorithm_from_name
from pynode.layout import Layout
from pynode.native.loop import integrate_fixed
from pynode.native.reversible import REVERSIBLE
from pynode.native.runge_kutta import RungeKutta, TapedRungeKutta
from pynode.native.tableaus import TABLEAUS
from pynode.problem import Field
from pynode.solution import Counts, ReturnCode

every_algorithm = pytest.mark.parametrize("name", ALGORITHMS)
#: The explicit Runge-Kutta methods and the reversible ones; every other family has a test file of its own.
GENERAL = {name: cls for name, cls in ALGORITHMS.items() if name in TABLEAUS or name in REVERSIBLE}
every_general = pytest.mark.parametrize("name", GENERAL)
ORDERS = {name: (REVERSIBLE[name] if name in REVERSIBLE else TABLEAUS[name]).order for name in GENERAL}
FIXED = [name for name, cls in GENERAL.items() if issubclass(cls, FixedStep)]
every_fixed = pytest.mark.parametrize("name", FIXED)


# Names


@every_algorithm
def test_an_algorithm_is_an_immutable_value(name):
    algorithm = ALGORITHMS[name]()
    assert algorithm == ALGORITHMS[name]()
    assert hash(algorithm) == hash(ALGORITHMS[name]())
    assert pickle.loads(pickle.dumps(algorithm)) == algorithm
    assert algorithm.name == name
    assert getattr(pynode, name) is ALGORITHMS[name]
    with pytest.raises(dataclasses.FrozenInstanceError):
        algorithm.dt = 1.0


def test_algorithms_of_different_classes_differ():
    assert len({cls() for cls in ALGORITHMS.values()}) == len(ALGORITHMS)


@every_algorithm
def test_names_in_any_case(name):
    for spelling in (name, name.lower(), name.upper()):
        assert algorithm_from_name(spelling) == ALGORITHMS[name]()


@pytest.mark.parametrize(
    ("alias", "name"),
    [("dopri5", "DP5"), ("dopri8", "DP8"), ("bosh3", "BS3"), ("adaptive_heun", "AdaptiveHeun"), ("heun2", "Heun")],
)
def test_torchdiffeq_names(alias, name):
    assert ALIASES[alias] == name
    assert algorithm_from_name(alias) == ALGORITHMS[name]()


@every_general
def test_every_algorithm_has_a_method_and_a_solve(name):
    algorithm = ALGORITHMS[name]()
    assert algorithm.adaptive == (name not in FIXED)
    assert (name in REVERSIBLE) != (name in TABLEAUS)
    assert name in REVERSIBLE or algorithm.adaptive == (TABLEAUS[name].b_error is not None)
    problem = BY_NAME["riccati"]
    by_object = pynode.solve(problem.f, problem.y0(), problem.times(5), algorithm=algorithm, rtol=1e-3, atol=1e-3)
    by_name = pynode.solve(problem.f, problem.y0(), problem.times(5), algorithm=name, rtol=1e-3, atol=1e-3)
    assert torch.equal(by_object.ys, by_name.ys)
    assert by_object.algorithm == algorithm


# Options of fixed-step algorithms


@pytest.mark.parametrize(
    "options",
    [
        {"dt": 0.0},
        {"dt": -0.1},
        {"dt": math.inf},
        {"dt": math.nan},
        {"steps": 0},
        {"steps": 2.5},
        {"steps": math.nan},
        {"steps": True},
        {"steps": "ten"},
        {"dt": 0.1, "steps": 3},
        {"dt": 0.1, "mesh": lambda t: t},
        {"interpolation": "cubic"},
    ],
    ids=lambda options: str(options).split("<function")[0],
)
def test_options_that_make_no_sense_are_refused(options):
    with pytest.raises(pynode.InputError):
        pynode.RK4(**options)


# Orders. The problems are nonlinear and non-autonomous, so that no order condition is met by accident.


def _field(problem: Problem) -> Field:
    return Field(problem.f, (), Layout(problem.y0()), Counts())


def _stepper(name: str, kind: type, problem: Problem):
    return REVERSIBLE[name](_field(problem)) if name in REVERSIBLE else kind(TABLEAUS[name], _field(problem))


class _Errors:
    """A recorder of the root mean square error over all steps and components, at ``thetas`` inside each step."""

    def __init__(self, problem: Problem, thetas: list[float]) -> None:
        self.problem, self.thetas = problem, thetas
        self.times: list[float] = []
        self.values: list[torch.Tensor] = []

    def accept(self, stepper, t, t1, y, y1):
        self.times += [t + theta * (t1 - t) for theta in self.thetas]
        self.values.append(y1[None] if self.thetas == [1.0] else stepper.interpolate(self.thetas))

    def rms(self) -> float:
        exact = self.problem.exact(torch.tensor(self.times, dtype=torch.float64))
        return (torch.cat(self.values) - exact).square().mean().sqrt().item()


def _measured_order(name: str, direction: str, stepper: type, thetas: list[float]) -> float:
    which, counts_of_steps = STEPS[ORDERS[name]]
    problem = BY_NAME[which + direction]
    errors = []
    for steps in counts_of_steps:
        recorder, counts = _Errors(problem, thetas), Counts()
        mesh = problem.times(steps + 1).tolist()
        outcome = integrate_fixed(
            _stepper(name, stepper, problem), problem.y0(), mesh, recorder, counts, max_steps=steps
        )
        assert outcome.retcode is ReturnCode.Success
        assert counts.accepted == steps
        errors.append(recorder.rms())
    return _slope(counts_of_steps, errors)


def _slope(steps: list[int], errors: list[float]) -> float:
    """Least-squares slope of log(error) over log(step size)."""
    x = torch.tensor([-math.log(n) for n in steps], dtype=torch.float64)
    y = torch.tensor([math.log(e) for e in errors], dtype=torch.float64)
    x = x - x.mean()
    return ((x * y).sum() / (x * x).sum()).item()


# Problem and steps over its span of 4: enough for the leading term of the error to dominate, few enough to keep the
# error above 1e-14, where rounding (1e-16 a step, adding up like a random walk) does not show. The pairs of order 5
# and 7 are optimised to have small leading coefficients, and show their order only where the solution's derivatives
# do not grow ("tracking"); those of order 8 and 9 only where they do, so that errors are large with few steps
# ("riccati").
STEPS = {
    1: ("tracking", [64, 128]),
    2: ("tracking", [48, 64, 96]),
    3: ("tracking", [48, 64, 96]),
    4: ("tracking", [64, 96]),
    5: ("tracking", [128, 192]),
    7: ("tracking", [40, 48, 64]),
    8: ("riccati", [20, 24, 32]),
    9: ("riccati", [14, 18, 22]),
}
every_stepper = pytest.mark.parametrize(
    ("direction", "stepper"),
    [("", RungeKutta), (":reversed", RungeKutta)],
    ids=["forward", "reversed"],
)


@every_stepper
@every_general
def test_order_of_convergence(name, direction, stepper):
    """The error over a fixed mesh falls as h^p: the slope is nearer to p than to any other order.

    A wrong coefficient reduces the order to at most p - 1.
    """
    assert abs(_measured_order(name, direction, stepper, [1.0]) - ORDERS[name]) < 0.5


@every_stepper
@every_general
def test_order_of_dense_output(name, direction, stepper):
    """Inside steps the error falls as h^min(p, q + 1) for a dense output of order q.

    The states at the starts of the steps carry an error O(h^p), the interpolant adds O(h^(q+1)), which does not
    accumulate.
    """
    dense = 3 if name in REVERSIBLE else TABLEAUS[name].dense_order
    order = min(ORDERS[name], dense + 1)
    assert abs(_measured_order(name, direction, stepper, [0.2, 0.5, 0.7]) - order) < 0.5


@every_general
def test_steps_on_the_tape_are_the_same_steps(name):
    """States and dense output agree to rounding: 1e-15 a step in numbers of size one, with weights below a hundred."""
    problem, thetas = BY_NAME["tracking"], [0.2, 0.5, 1.0]
    found = []
    for make in (RungeKutta, TapedRungeKutta):
        recorder = _Errors(problem, thetas)
        mesh = problem.times(17).tolist()
        outcome = integrate_fixed(_stepper(name, make, problem), problem.y0(), mesh, recorder, Counts(), max_steps=16)
        found.append((outcome.y, torch.cat(recorder.values)))
    for plain, taped in zip(*found, strict=True):
        torch.testing.assert_close(taped, plain, rtol=0, atol=1e-12)


@every_fixed
def test_fixed_steps_through_the_front_door(name):
    """Halving dt divides the error by about 2^p, and steps= means the same as the dt it implies."""
    problem, order = BY_NAME["riccati"], ORDERS[name]
    errors = []
    for steps in (64, 128):
        sol = pynode.solve(problem.f, problem.y0(), problem.times(), algorithm=ALGORITHMS[name](steps=steps))
        same = pynode.solve(
            problem.f, problem.y0(), problem.times(), algorithm=ALGORITHMS[name](dt=4.0 / steps)
        )  # exact in binary
        assert torch.equal(sol.ys, same.ys)
        assert sol.stats.forward.accepted == steps
        errors.append(problem.error(sol.ts[-1:], sol.ys[-1:]))
    assert abs(math.log2(errors[0] / errors[1]) - order) < 0.35


def test_linear_interpolation_is_a_straight_line_and_costs_nothing():
    problem = BY_NAME["riccati"]
    ends = pynode.solve(problem.f, problem.y0(), problem.times(5), algorithm="rk4")
    sol = pynode.solve(
        problem.f,
        problem.y0(),
        problem.times(5),
        algorithm=pynode.RK4(interpolation="linear"),
        saveat=problem.times(9),
    )
    middle = (ends.ys[:-1] + ends.ys[1:]) / 2
    # The line goes through the end of the step as the combination of the same stages: equal up to rounding.
    torch.testing.assert_close(sol.ys[1::2], middle, rtol=1e-14, atol=1e-15)
    assert torch.equal(sol.ys[::2], ends.ys)
    assert sol.stats.forward.nfe == ends.stats.forward.nfe


def test_hermite_interpolation_is_exact_for_a_cubic():
    """y' = 3 t^2 with the fourth-order method: every step and every cubic inside it is exact."""
    sol = pynode.solve(
        lambda t, y: 3.0 * t**2 + 0.0 * y,
        torch.zeros(1, dtype=torch.float64),
        [0.0, 1.0],
        algorithm=pynode.RK4(steps=2),
        saveat=torch.linspace(0, 1, 11),
    )
    torch.testing.assert_close(sol.ys[:, 0], sol.ts.double() ** 3, rtol=0, atol=1e-15)


def test_perturb_evaluates_just_inside_every_step():
    """A field that is an integer-valued staircase in t: perturbed steps never see the neighbouring tread."""
    staircase = lambda t, y: torch.floor(t) + 1.0 + 0.0 * y  # noqa: E731
    for t, start in (([0.0, 1.0, 2.0, 3.0], 0.0), ([3.0, 2.0, 1.0, 0.0], 6.0)):
        # Those of FixedAdams look back over treads, as torchdiffeq's do: tests/native/test_fixed_adams_perturb.py.
        for name in (x for x in FIXED if not ALGORITHMS[x]().remembers):
            sol = pynode.solve(
                staircase, torch.tensor([start], dtype=torch.float64), t, algorithm=ALGORITHMS[name](perturb=True)
            )
            exact = torch.tensor([x * (x + 1.0) / 2.0 for x in t], dtype=torch.float64)
            torch.testing.assert_close(sol.ys[:, 0], exact, rtol=0, atol=1e-14)
