"""First steps that a solve takes over from the one before."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from torch import Tensor

import pynode
from pynode import WarmStart
from pynode.algorithms import RK4

F64 = torch.float64
ADAPTIVE = ["Tsit5", "BS3", "Vern7", "DP8", "VCABM", "ROCK4", "RadauIIA5", "Rodas5P", "FBDF"]


def decay(t: Tensor, y: Tensor) -> Tensor:
    return -y


class FirstStep:
    """An observer: the length of the first step tried."""

    def __init__(self) -> None:
        self.size: float | None = None

    def step(self, t: float, y: Tensor, h: float) -> None:
        self.size = abs(h) if self.size is None else self.size

    def accepted(self, t: float, y: Tensor, h: float) -> None: ...
    def rejected(self, t: float, y: Tensor, h: float) -> None: ...


def first(warm: WarmStart | None, t=(0.0, 10.0), **options) -> float:
    observer = FirstStep()
    pynode.solve(decay, torch.ones(2, dtype=F64), list(t), dt0=warm, observer=observer, **options)
    assert observer.size is not None
    return observer.size


@pytest.mark.parametrize("name", ADAPTIVE)
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_solves_that_repeat_themselves_cost_less_and_meet_the_tolerance(name: str, sign: float) -> None:
    """y' = -sign y: the error at t = 3 is what tolerances per step add up to, however the steps were begun."""
    warm, tolerance = WarmStart(), 1e-6
    y0 = torch.ones(2, dtype=F64)
    options = {"algorithm": name, "rtol": tolerance, "atol": tolerance}
    field = lambda t, y: -sign * y  # noqa: E731
    cold = pynode.solve(field, y0, [0.0, sign * 3.0], **options)
    for _ in range(4):
        sol = pynode.solve(field, y0, [0.0, sign * 3.0], dt0=warm, **options)
        error = (sol.ys[-1] - math.exp(-3.0)).abs().max().item()
        assert error <= tolerance * (sol.stats.forward.accepted + 1)
    assert sol.stats.forward.nfe < cold.stats.forward.nfe


def test_the_first_step_is_the_one_that_its_error_asked_for() -> None:
    """Order 1, y' = 2 t in Euler's pair of AdaptiveHeun: the error of a step h from 0 is known, and proportional to
    h^2, so that the step asked for is safety * h / sqrt(ratio)."""
    warm = WarmStart()
    options = {"algorithm": "AdaptiveHeun", "rtol": 0.0, "atol": 1e-4}

    def solve(dt0: WarmStart) -> None:
        pynode.solve(lambda t, y: 2 * t + 0 * y, torch.zeros(1, dtype=F64), [0.0, 1.0], dt0=dt0, **options)

    warm.dt0 = 1e-3
    solve(warm)
    once = warm.dt0
    assert once > 1e-3
    for _ in range(6):
        solve(warm)
    settled = warm.dt0
    solve(warm)
    assert warm.dt0 == pytest.approx(settled, rel=1e-6)  # a fixed point: the ratio of that step is safety^2
    warm.dt0 = 30 * settled  # rejected until it is not, and settles there again
    for _ in range(6):
        solve(warm)
    assert warm.dt0 == pytest.approx(settled, rel=1e-3)


def test_it_is_all_the_state_there_is() -> None:
    """The same state gives the same solve, to the last bit, and no other object knows of it."""
    one, other = WarmStart(), WarmStart()
    for warm in (one, other):
        first(warm)
        first(warm)
    assert one == other
    assert first(copy.deepcopy(one)) == first(pickle.loads(pickle.dumps(other)))
    assert first(WarmStart()) == first(None)


def test_what_is_another_problem_starts_cold() -> None:
    cold = first(None)
    tight = {"rtol": 1e-9, "atol": 1e-11}
    for change in (
        {"algorithm": "Vern7"},
        tight,
        {"t": (0.0, -10.0)},
        {"t": (1.0, 10.0)},
    ):
        warm = WarmStart()
        first(warm)
        assert first(warm, **change) == first(None, **change)
    warm = WarmStart()
    first(warm)
    assert first(warm) != cold
    assert first(warm, t=(0.0, 5.0)) != first(None, t=(0.0, 5.0))  # another end is the same start


def test_a_given_first_step_serves_the_first_solve() -> None:
    warm = WarmStart(0.125)
    assert first(warm) == 0.125
    assert warm.dt0 != 0.125


def test_a_failed_solve_is_not_learned_from() -> None:
    warm = WarmStart(0.01)
    with pytest.raises(pynode.SolveError):
        pynode.solve(lambda t, y: y**2, torch.ones(1, dtype=F64), [0.0, 2.0], dt0=warm)
    assert warm == WarmStart(0.01)


def test_gradients_are_those_of_the_steps_taken() -> None:
    """The steps of a warm solve, given as a mesh: the same gradient."""
    warm = WarmStart()
    w = torch.tensor(0.7, dtype=F64, requires_grad=True)
    field = lambda t, y: torch.sin(w * y)  # noqa: E731
    for _ in range(2):
        sol = pynode.solve(field, torch.ones(2, dtype=F64), [0.0, 2.0], dt0=warm, rtol=1e-4, atol=1e-5)
    (found,) = torch.autograd.grad(sol.ys[-1].sum(), w)
    again = WarmStart(None)
    for _ in range(2):
        taped = pynode.solve(
            field,
            torch.ones(2, dtype=F64),
            [0.0, 2.0],
            dt0=again,
            rtol=1e-4,
            atol=1e-5,
            sensealg=pynode.DirectAdjoint(),
        )
    (expected,) = torch.autograd.grad(taped.ys[-1].sum(), w)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


def test_a_model_in_a_training_loop() -> None:
    """Fewer evaluations in every epoch but the first, and the loss comes down as it does without."""
    evaluations, losses = [], []
    for dt0 in (None, WarmStart()):
        torch.manual_seed(0)
        net = torch.nn.Sequential(torch.nn.Linear(2, 16), torch.nn.Tanh(), torch.nn.Linear(16, 2))
        model = pynode.nn.NeuralODE(lambda t, y, net=net: net(y), dt0=dt0, rtol=1e-4, atol=1e-5)
        x = torch.randn(8, 2)
        optimiser = torch.optim.Adam(net.parameters(), lr=1e-2)
        count = 0
        for _ in range(10):
            optimiser.zero_grad()
            sol = model.solve(x)
            loss = (sol.ys[-1] - 0.5 * x).pow(2).mean()
            loss.backward()
            optimiser.step()
            count += sol.stats.forward.nfe + sol.stats.backward.nfe
        evaluations.append(count)
        losses.append(loss.item())
    assert evaluations[1] < 0.8 * evaluations[0]
    assert losses[1] == pytest.approx(losses[0], rel=1e-2)


def test_a_stretch_between_events_is_warm_at_the_start_alone() -> None:
    warm = WarmStart()
    event = pynode.Event(lambda t, y: y[0] - 0.5, terminal=False, effect=lambda t, y: 2 * y)
    for _ in range(2):
        sol = pynode.solve(decay, torch.ones(2, dtype=F64), [0.0, 2.0], events=event, dt0=warm)
        assert len(sol.events) == 2
        assert sol.events[0].t.item() == pytest.approx(math.log(2.0), rel=1e-4)
    reference = WarmStart()
    pynode.solve(decay, torch.ones(2, dtype=F64), [0.0, 2.0], dt0=reference)
    assert warm.dt0 is not None
    sol.resume(3.0)


def test_fixed_steps_have_nothing_to_learn() -> None:
    warm = WarmStart()
    pynode.solve(decay, torch.ones(2), [0.0, 1.0], algorithm=RK4(steps=3), dt0=warm)
    assert warm == WarmStart()


def test_bad_input() -> None:
    for dt0 in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(pynode.InputError, match=r"WarmStart\(dt0="):
            WarmStart(dt0)
    y0 = torch.ones(2)
    with pytest.raises(pynode.UnsupportedError, match=r"WarmStart\(\) with backend='julia'"):
        pynode.solve(decay, y0, [0.0, 1.0], dt0=WarmStart(), backend="julia")
    with pytest.raises(pynode.UnsupportedError, match=r"WarmStart\(\) with batching='independent'"):
        pynode.solve(decay, y0, [0.0, 1.0], dt0=WarmStart(), batching="independent")
