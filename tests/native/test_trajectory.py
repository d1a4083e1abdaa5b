"""What is kept of a solve, and that what is not kept comes back bit for bit."""

from __future__ import annotations

import functools
import itertools
import math

import pytest
import torch

from pynode.controllers import IController
from pynode.layout import Layout
from pynode.native.checkpoints import Binomial, EveryStep, Thinned
from pynode.native.error_norm import ErrorNorm
from pynode.native.loop import Stepping, integrate_adaptive, integrate_fixed
from pynode.native.reversible import REVERSIBLE
from pynode.native.runge_kutta import RungeKutta
from pynode.native.stepper import Stepper
from pynode.native.tableaus import TABLEAUS
from pynode.native.trajectory import SaveRecorder, Trajectory
from pynode.problem import Field
from pynode.solution import Counts, ReturnCode

both_directions = pytest.mark.parametrize("sign", [1.0, -1.0], ids=["forward", "reversed"])
STORES = {
    "every": EveryStep,
    "thinned": Thinned,
    **{f"binomial{slots}": functools.partial(Binomial, slots) for slots in (1, 2, 3, 5, 8, 13)},
}
JUMPS = frozenset({0.0539, -0.0539, 0.3, -0.3})
Y0 = torch.tensor([0.3, -1.0], dtype=torch.float64)


def swing(t, y):
    """Non-autonomous and nonlinear, so that the last bit of every time and state counts."""
    return torch.stack([y[1] * torch.cos(3.0 * t), -torch.sin(y[0]) - 0.1 * t])


class _States:
    """A recorder that keeps every state and feeds trajectories."""

    def __init__(self, *trajectories: Trajectory) -> None:
        self.trajectories = trajectories
        self.states: list[torch.Tensor] = []

    def accept(self, stepper, t, t1, y, y1):
        self.states.append(y.clone())
        for trajectory in self.trajectories:
            trajectory.append(y, t1, stepper.carried())


def _stepper(name: str) -> Stepper:
    field = Field(swing, (), Layout(Y0), Counts())
    return REVERSIBLE[name](field) if name in REVERSIBLE else RungeKutta(TABLEAUS[name], field)


def _trajectory(t0: float, sign: float, store=EveryStep) -> Trajectory:
    return Trajectory(t0, sign * math.inf, store(), JUMPS, False)


@both_directions
@pytest.mark.parametrize("name", ["RK4", "DP5", "Tsit5", "Vern7", *REVERSIBLE])
def test_recomputed_states_are_bitwise_equal_on_a_fixed_mesh(name, sign):
    """At four of the steps t + (t1 - t) differs from t1 in its last bit, which a replay must not notice."""
    mesh = [sign * x for x in (-1.0, -0.0603, 0.001, 0.0539, 0.7066, 1.9443, 2.5, 3.0)]
    assert sum(t + (t1 - t) != t1 for t, t1 in itertools.pairwise(mesh)) >= 4
    trajectories = [_trajectory(mesh[0], sign, store) for store in STORES.values()]
    recorder = _States(*trajectories)
    integrate_fixed(_stepper(name), Y0, mesh, recorder, Counts(), max_steps=1000, jumps=JUMPS)
    _check_all(trajectories, recorder.states, name)


@both_directions
@pytest.mark.parametrize("name", ["BS3", "Tsit5", "DP8", *REVERSIBLE])
def test_recomputed_states_are_bitwise_equal_after_an_adaptive_solve(name, sign):
    trajectories = [_trajectory(-sign, sign, store) for store in STORES.values()]
    recorder, counts = _States(*trajectories), Counts()
    tolerance = 1e-5 if name in ("Tsit5", "DP8") else 1e-2  # one place means quadratic work: few steps
    stepping = Stepping(lambda: ErrorNorm(tolerance, tolerance), IController(), 1000, stops=(0.001,), jumps=JUMPS)
    outcome = integrate_adaptive(_stepper(name), Y0, -sign, 2.0 * sign, recorder, counts, stepping)
    assert outcome.retcode is ReturnCode.Success
    assert trajectories[0].steps == counts.accepted > 4
    _check_all(trajectories, recorder.states, name)


def _check_all(trajectories, states, name):
    steps = len(states)
    for trajectory in trajectories:
        # A second pass over the same record, and passes from steps whose snapshots the first has used up.
        for start in (steps - 1, steps - 1, steps // 2, 0):
            backward = list(trajectory.backward(_stepper(name), start))
            assert [n for n, *_ in backward] == list(range(start, -1, -1))
            for n, state, _ in backward:
                assert torch.equal(state, states[n])
        for wanted in ([0], [steps - 1], list(range(steps)), list(range(1, steps, 3))):
            found = list(trajectory.states(wanted, _stepper(name)))
            assert [n for n, *_ in found] == wanted
            for n, state, _ in found:
                assert torch.equal(state, states[n])


@both_directions
def test_step_at(sign):
    trajectory = _trajectory(0.0, sign)
    for t1 in (1.0, 1.5, 4.0):
        trajectory.append(Y0, sign * t1)
    expected = {0.0: 0, 0.5: 0, 1.0: 0, 1.0 + 1e-12: 1, 1.5: 1, 2.0: 2, 4.0: 2}
    assert {t: trajectory.step_at(sign * t) for t in expected} == expected


@both_directions
def test_jumps_nudge_towards_the_inside_of_a_step(sign):
    trajectory = Trajectory(0.0, sign * math.inf, EveryStep(), frozenset({sign * 1.0}), False)
    for t1 in (1.0, 2.0):
        trajectory.append(Y0, sign * t1)
    assert [trajectory.jump_after(n) for n in (0, 1)] == [0.0, sign * math.inf]
    assert [trajectory.jump_before(n) for n in (0, 1)] == [-sign * math.inf, 0.0]
    assert [trajectory.begins(n) for n in (0, 1)] == [True, True]
    everywhere = Trajectory(0.0, sign * math.inf, EveryStep(), frozenset(), True)
    everywhere.append(Y0, sign)
    assert everywhere.jump_after(0) == -everywhere.jump_before(0) == sign * math.inf


class _Line:
    """A stepper whose dense output is a straight line."""

    def __init__(self) -> None:
        self.queries: list[list[float]] = []

    def carried(self, end=False):
        return ()

    def interpolate(self, thetas, derivative=False):
        self.queries.append(list(thetas))
        return torch.tensor([[theta] for theta in thetas], dtype=torch.float64)


@both_directions
def test_save_points_are_interpolated_once_per_step(sign):
    times = [sign * x for x in (0.0, 0.25, 0.75, 1.0, 2.5, 3.0)]
    stepper = _Line()
    recorder = SaveRecorder(times, torch.zeros(1, dtype=torch.float64), _trajectory(0.0, sign), False)
    for n in range(3):
        end = torch.tensor([n + 1.0], dtype=torch.float64)
        recorder.accept(stepper, sign * n, sign * (n + 1), end - 1, end)
    assert stepper.queries == [[0.25, 0.75], [0.5]]
    assert recorder.saved == times
    assert recorder.values().tolist() == [[0.0], [0.25], [0.75], [1.0], [0.5], [3.0]]


def test_every_step_is_saved_on_request():
    recorder = SaveRecorder([0.5], torch.zeros(1), _trajectory(0.0, 1.0), True)
    for n in range(3):
        recorder.accept(_Line(), n, n + 1.0, torch.tensor([float(n)]), torch.tensor([n + 1.0]))
    assert recorder.saved == [0.0, 1.0, 2.0, 3.0]
    assert recorder.values().tolist() == [[0.0], [1.0], [2.0], [3.0]]


def test_saved_values_share_no_memory_with_the_states():
    y0 = torch.zeros(1)
    trajectory = _trajectory(0.0, 1.0)
    recorder = SaveRecorder([0.0], y0, trajectory, False)
    recorder.accept(_Line(), 0.0, 1.0, y0, torch.ones(1))
    recorder.values().fill_(7.0)
    assert y0.item() == 0.0


def test_without_keep_no_state_is_held():
    trajectory = Trajectory(0.0, math.inf, None, frozenset(), False)
    trajectory.append(Y0, 1.0)
    assert not trajectory.kept
    assert trajectory.mesh == [0.0, 1.0]
