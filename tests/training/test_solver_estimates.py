"""Local error and stiffness of the solver's own steps: against steps taken by hand, and their exact gradients."""

from __future__ import annotations

import pytest
import torch
from regularised_fields import F64, Tanh, check_slope, points
from torch import Tensor

import pynode
from pynode import BS3, DP5, RK4, CheckpointedAdjoint, DirectAdjoint, Euler, SaveAt, Tsit5, VelocityVerlet
from pynode.errors import UnsupportedError
from pynode.nn import CNF, NeuralODE
from pynode.training import KineticEnergy, LocalError, RunningCosts, StiffnessEstimate

#: Dormand and Prince's coefficients (1980), digit by digit: nothing is taken from the library.
A = [
    [],
    [1 / 5],
    [3 / 40, 9 / 40],
    [44 / 45, -56 / 15, 32 / 9],
    [19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729],
    [9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656],
    [35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84],
]
C = [0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0]
FOURTH = [5179 / 57600, 0.0, 7571 / 16695, 393 / 640, -92097 / 339200, 187 / 2100, 1 / 40]

SUMS = {
    "error": LocalError(),
    "raw error": LocalError(scaled=False),
    "stiffness": StiffnessEstimate(),
    "scaled stiffness": StiffnessEstimate(scaled=True),
}
each_sum = pytest.mark.parametrize("cost", SUMS.values(), ids=SUMS)
#: Equal steps of an adaptive method: any is accepted, and dtmax bounds it.
EQUAL = {"rtol": 1e3, "atol": 1e3, "dt0": 0.25, "dtmax": 0.25}


def by_hand(field, y: Tensor, rtol: float, atol: float, h: float, steps: int) -> dict[str, Tensor]:
    """The four sums over DP5's steps of length h from t = 0."""
    sums = {name: torch.zeros((), dtype=F64) for name in SUMS}
    t = 0.0
    for _ in range(steps):
        stages: list[Tensor] = []
        states: list[Tensor] = []
        for row, c in zip(A, C, strict=True):
            states.append(y + h * sum((a * k for a, k in zip(row, stages, strict=True)), torch.zeros_like(y)))
            stages.append(field(torch.tensor(t + c * h, dtype=F64), states[-1]))
        end = states[-1]
        weights = [a - b for a, b in zip([*A[-1], 0.0], FOURTH, strict=True)]
        error = h * sum(w * k for w, k in zip(weights, stages, strict=True))
        scale = atol + rtol * torch.maximum(y.abs(), end.abs())
        stiffness = (stages[6] - stages[5]).norm() / (states[6] - states[5]).norm()
        sums["raw error"] = sums["raw error"] + h * error.square().mean().sqrt()
        sums["error"] = sums["error"] + h * (error / scale).square().mean().sqrt()
        sums["stiffness"] = sums["stiffness"] + stiffness
        sums["scaled stiffness"] = sums["scaled stiffness"] + h * stiffness
        y, t = end, t + h
    return sums


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("grad", [False, True], ids=["plain", "taped"])
def test_values_and_gradients_of_steps_taken_by_hand(steps, grad) -> None:
    field, x = Tanh(), points(3, 2).requires_grad_(grad)
    costs = RunningCosts(**{name.replace(" ", "_"): cost for name, cost in SUMS.items()})
    expected = by_hand(field, x, 1e3, 1e3, 0.25, steps)
    with torch.set_grad_enabled(grad):
        sol = pynode.solve(
            field, x, [0.0, 0.25 * steps], running_cost=costs,
            algorithm=DP5(), sensealg=DirectAdjoint(), **EQUAL,
        )  # fmt: skip
    assert sol.stats.forward.accepted == steps
    # Errors are sums of stages of size one that cancel to 1e-5: rounding 1e-16 / 1e-5, of gradients some times more;
    # states 6 and 7 of a step differ by 1e-5, too.
    for name, value in expected.items():
        found = sol.running_cost[name.replace(" ", "_")]
        torch.testing.assert_close(found, value, rtol=1e-9, atol=0.0)
        if grad:
            inputs = [x, *field.parameters()]
            pairs = zip(*(torch.autograd.grad(v, inputs, retain_graph=True) for v in (found, value)), strict=True)
            for a, b in pairs:
                assert (a - b).abs().max() < 1e-8 * b.abs().max()


@each_sum
@pytest.mark.parametrize("sensealg", [DirectAdjoint(), CheckpointedAdjoint(), CheckpointedAdjoint(checkpoints=2)])
def test_gradients_are_those_of_finite_differences(cost, sensealg) -> None:
    field, x = Tanh(), points(3, 2).requires_grad_()

    def loss() -> Tensor:
        sol = pynode.solve(field, x, [0.0, 1.0], running_cost=cost, algorithm=Tsit5(), sensealg=sensealg, **EQUAL)
        assert sol.stats.forward.accepted == 4
        # Of size one, whatever the tolerances scale it to, and beside the state: the adjoints of both are needed.
        factor = {"error": 1e8, "raw error": 1e5}.get(next(n for n, c in SUMS.items() if c is cost), 1.0)
        return factor * sol.running_cost + sol.ys[-1].sum()

    # Rounding as above, 1e-16 / 1e-5, over h.
    check_slope(loss, [x, *field.parameters()], bound=1e-7)


def test_second_derivatives_are_exact_too() -> None:
    field, x = Tanh(), points(2, 2).requires_grad_()

    def second(sensealg) -> Tensor:
        sol = pynode.solve(field, x, [0.0, 1.0], running_cost=StiffnessEstimate(), sensealg=sensealg, **EQUAL)
        (gradient,) = torch.autograd.grad(sol.running_cost, x, create_graph=True)
        return torch.autograd.grad(gradient.square().sum(), x)[0]

    direct = second(DirectAdjoint())
    assert (second(CheckpointedAdjoint()) - direct).abs().max() < 1e-7 * direct.abs().max()


@each_sum
def test_times_have_gradients(cost) -> None:
    """Steps of a fixed-step method stretch with the span: RK4's two inner stages give a stiffness."""
    if isinstance(cost, LocalError):
        options = {"algorithm": Tsit5(), "rtol": 1e3, "atol": 1e3, "dt0": 10.0}  # one step, whatever the span
    else:
        options = {"algorithm": RK4(steps=3)}
    field, t = Tanh(), torch.tensor([0.1, 0.8], dtype=F64, requires_grad=True)
    scale = 1e7 if cost is SUMS["error"] else 1e4 if cost is SUMS["raw error"] else 1.0
    for saveat in (None, SaveAt(ts=[0.3, 0.5])):
        check_slope(
            lambda saveat=saveat: (
                scale * pynode.solve(field, points(2, 2), t, running_cost=cost, saveat=saveat, **options).running_cost
            ),
            [t],
            bound=1e-7,
        )


def test_stiffness_of_a_linear_field_is_between_its_singular_values() -> None:
    matrix = torch.diag(torch.tensor([-1.0, -5.0], dtype=F64))
    sol = pynode.solve(
        lambda t, y: y @ matrix, points(4, 2), [0.0, 1.0], running_cost=StiffnessEstimate(), rtol=1e-6, atol=1e-6
    )
    mean = sol.running_cost.item() / sol.stats.forward.accepted
    assert 1.0 < mean < 5.0 + 1e-9
    # Where both stages see the same state there is nothing to see, and nothing to differentiate.
    still = pynode.solve(
        lambda t, y: 0.0 * y, points(1, 2).requires_grad_(), [0.0, 1.0], running_cost=StiffnessEstimate(),
        sensealg=DirectAdjoint(),
    )  # fmt: skip
    assert still.running_cost.item() == 0.0
    still.running_cost.backward()


def test_the_steps_are_those_without() -> None:
    field, x = Tanh(), points(3, 2)
    costs = RunningCosts(error=LocalError(), stiffness=StiffnessEstimate(), energy=KineticEnergy(field))
    plain = pynode.solve(field, x, [0.0, 1.0], saveat=SaveAt(steps=True))
    costed = pynode.solve(field, x, [0.0, 1.0], saveat=SaveAt(steps=True), running_cost=costs)
    assert torch.equal(plain.ys, costed.ys)
    assert torch.equal(plain.ts, costed.ts)
    assert plain.stats.forward.nfe == costed.stats.forward.nfe
    torch.testing.assert_close(costed(0.37), plain(0.37), rtol=0.0, atol=0.0)


def test_a_flow_has_them_over_state_and_density() -> None:
    flow = CNF(Tanh(), 2, running_cost=RunningCosts(error=LocalError(), energy=KineticEnergy(Tanh())), t=(1.0, 0.0))
    _, costs = flow.log_prob_and_cost(points(3, 2))
    assert costs["error"].item() > 0
    assert costs["energy"].min().item() > 0


ELSEWHERE = {
    "continuous adjoint": ({"sensealg": pynode.GaussAdjoint()}, LocalError(), "GaussAdjoint"),
    "backsolve": ({"sensealg": pynode.BacksolveAdjoint()}, StiffnessEstimate(), "BacksolveAdjoint"),
    "compiled": ({"compile": "step"}, LocalError(), "compile"),
    "no estimate": ({"algorithm": RK4(steps=3)}, LocalError(), "embedded error"),
    "no pair of stages": ({"algorithm": BS3()}, StiffnessEstimate(), "one abscissa"),
    "no stages": ({"algorithm": Euler(steps=2)}, RunningCosts(stiffness=StiffnessEstimate()), "one abscissa"),
    "Julia": ({"backend": "julia"}, LocalError(), "julia"),
}


@pytest.mark.parametrize(("options", "cost", "named"), ELSEWHERE.values(), ids=ELSEWHERE)
def test_elsewhere_they_are_refused(options, cost, named) -> None:
    with pytest.raises(UnsupportedError, match=named):
        NeuralODE(Tanh(), running_cost=cost, **options)(points(2, 2).requires_grad_())


def test_symplectic_steps_are_refused() -> None:
    f = lambda t, y: (y[1], -y[0])  # noqa: E731
    with pytest.raises(UnsupportedError, match="Runge-Kutta"):
        pynode.solve(
            f, (points(2), points(2)), [0.0, 1.0], algorithm=VelocityVerlet(steps=2), running_cost=StiffnessEstimate()
        )
