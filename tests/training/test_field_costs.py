"""Running costs made of a field: known values, gradients against finite differences, sums of several, capture."""

from __future__ import annotations

import pytest
import torch
from regularised_fields import F64, MATRIX, Tanh, check_slope, points

import pynode
from pynode import julia
from pynode.errors import InputError
from pynode.nn import CNF, ExactTrace, HutchinsonTrace, NeuralODE
from pynode.running_cost import Costed
from pynode.training import JacobianFrobenius, KineticEnergy, LocalError, RunningCosts, TaylorDerivative

#: Nested products in 6 by 3 numbers of size below 10: some hundred roundings.
ROUNDING = {"rtol": 0.0, "atol": 1e-12}

COSTS = {
    "kinetic": KineticEnergy,
    "jacobian": JacobianFrobenius,
    "jacobian by noise": lambda f: JacobianFrobenius(f, probes=HutchinsonTrace()),
    "Taylor 2": lambda f: TaylorDerivative(f, 2),
    "Taylor 3": lambda f: TaylorDerivative(f, 3),
}
each_cost = pytest.mark.parametrize("make", COSTS.values(), ids=COSTS)


# ------------------------------------------------------------------------------------------------- Taylor derivative


@pytest.mark.parametrize("order", range(1, 6))
def test_derivatives_of_a_linear_field_are_powers_of_its_matrix(order) -> None:
    cost = TaylorDerivative(lambda t, y: y @ MATRIX.T, order)
    y, t = points(6, 3), torch.tensor(0.2, dtype=F64)
    expected = y @ torch.linalg.matrix_power(MATRIX, order).T
    torch.testing.assert_close(cost.derivative(t, y), expected, **ROUNDING)
    torch.testing.assert_close(cost(t, y), expected.square().sum(-1), **ROUNDING)


@pytest.mark.parametrize("order", range(1, 5))
def test_derivatives_of_nonlinear_fields(order) -> None:
    t, y = torch.tensor(0.3, dtype=F64), points(5, 2).exp()
    # y' = y^2: y = y0 / (1 - y0 s), whose K-th derivative is K! y^(K + 1).
    factorial = torch.arange(1, order + 1, dtype=F64).prod()
    found = TaylorDerivative(lambda t, y: y**2, order).derivative(t, y)
    torch.testing.assert_close(found, factorial * y ** (order + 1), rtol=1e-13, atol=0.0)
    # y' = 1 + y^2: y = tan; derivatives of the tangent in terms of itself.
    tangents = [1 + y**2, 2 * y * (1 + y**2), (2 + 6 * y**2) * (1 + y**2), (16 * y + 24 * y**3) * (1 + y**2)]
    found = TaylorDerivative(lambda t, y: 1 + y**2, order).derivative(t, y)
    torch.testing.assert_close(found, tangents[order - 1], rtol=1e-13, atol=0.0)


def test_explicit_time_counts() -> None:
    # y' = a y + t^2: y'' = a y' + 2 t, y''' = a y'' + 2.
    a, t, y = 0.7, torch.tensor(0.4, dtype=F64), points(3, 1)
    first = a * y + t**2
    second = a * first + 2 * t
    found = TaylorDerivative(lambda t, y, a: a * y + t**2, 3).derivative(t, y, a)
    torch.testing.assert_close(found, a * second + 2, **ROUNDING)


def test_its_integral_over_a_linear_flow() -> None:
    """y'' of y' = -k y is k^2 y: the integral of its square is k^3 y0^2 (1 - exp(-2 k)) / 2."""
    k, y0 = 1.3, points(4, 1)
    sol = pynode.solve(
        lambda t, y: -k * y, y0, [0.0, 1.0], running_cost=TaylorDerivative(lambda t, y: -k * y, 2),
        algorithm=pynode.Vern9(), rtol=1e-13, atol=1e-13, cost_in_norm=True,
    )  # fmt: skip
    expected = k**3 * y0[:, 0].square() * (1 - torch.exp(torch.tensor(-2 * k, dtype=F64))) / 2
    torch.testing.assert_close(sol.running_cost, expected, rtol=0.0, atol=1e-11)  # some steps of 1e-13, amplified


def test_states_may_be_trees() -> None:
    f = lambda t, y: {"q": y["p"], "p": -y["q"]}  # noqa: E731
    y = {"q": points(4, 2), "p": points(4, 2, seed=1)}
    t = torch.tensor(0.0, dtype=F64)
    energy = y["q"].square().sum(-1) + y["p"].square().sum(-1)
    torch.testing.assert_close(KineticEnergy(f)(t, y), energy, **ROUNDING)
    torch.testing.assert_close(TaylorDerivative(f, 4)(t, y), energy, **ROUNDING)
    with pytest.raises(InputError, match="flatten"):
        JacobianFrobenius(f)(t, y)


# ----------------------------------------------------------------------------------------------------- Jacobian


def test_jacobian_is_that_of_autograd() -> None:
    field, y, t = Tanh(3), points(4, 3), torch.tensor(0.2, dtype=F64)
    jacobians = torch.func.vmap(torch.func.jacrev(lambda y: field(t, y)))(y)
    torch.testing.assert_close(JacobianFrobenius(field)(t, y), jacobians.square().sum((1, 2)), **ROUNDING)


def test_noise_is_drawn_once_a_solve_and_unbiased() -> None:
    field = lambda t, y: y @ MATRIX.T  # noqa: E731
    cost = JacobianFrobenius(field, probes=HutchinsonTrace("gaussian"))
    with pytest.raises(InputError, match="draw"):
        pynode.solve(field, points(2, 3), [0.0, 1.0], running_cost=cost)
    count = 4000
    torch.manual_seed(0)
    _, norms = NeuralODE(field, running_cost=cost).output_and_cost(points(count, 3))
    score = (norms.mean() - MATRIX.square().sum()) / (norms.std() / count**0.5)
    assert abs(score.item()) < 5
    assert norms.std() > 0.1
    first, second = (cost.drawn(points(2, 3)) for _ in range(2))
    y, t = points(2, 3), torch.tensor(0.0, dtype=F64)
    assert torch.equal(first(t, y), first(t, y))
    assert not torch.equal(first(t, y), second(t, y))


# --------------------------------------------------------------------------------------------------------- gradients


@each_cost
def test_gradients_are_those_of_finite_differences(make) -> None:
    field, x = Tanh(), points(3, 2).requires_grad_()
    cost = make(field).drawn(x, torch.Generator().manual_seed(1))
    check_slope(
        lambda: pynode.solve(
            field,
            x,
            [0.0, 1.0],
            running_cost=cost,
            algorithm=pynode.RK4(steps=4),
            sensealg=pynode.CheckpointedAdjoint(),
        ).running_cost.sum(),
        [x, *field.parameters()],
    )


@pytest.mark.parametrize("make", [COSTS["jacobian by noise"], COSTS["Taylor 2"]], ids=["jacobian", "Taylor"])
def test_sensitivity_algorithms_agree(make) -> None:
    field, x = Tanh(), points(3, 2).requires_grad_()
    cost = make(field).drawn(x, torch.Generator().manual_seed(1))
    found = {}
    tolerance = 1e-7
    for sensealg in (
        pynode.DirectAdjoint(),
        pynode.CheckpointedAdjoint(),
        pynode.BacksolveAdjoint(),
        pynode.InterpolatingAdjoint(),
        pynode.GaussAdjoint(),
    ):
        sol = pynode.solve(
            field, x, [0.0, 0.3], running_cost=cost, sensealg=sensealg, rtol=tolerance, atol=tolerance,
            algorithm=pynode.Vern7(), cost_in_norm=True,
        )  # fmt: skip
        found[sensealg.name] = torch.autograd.grad(sol.running_cost.sum(), [x, *field.parameters()])
    largest = max(g.abs().max().item() for g in found["DirectAdjoint"])
    for name, gradients in found.items():
        # The same steps differentiated, up to rounding; or some 30 steps each way with errors amplified tenfold.
        bound = 1e-12 if name == "CheckpointedAdjoint" else 600 * tolerance
        for a, b in zip(gradients, found["DirectAdjoint"], strict=True):
            assert (a - b).abs().max().item() < bound * largest, name


# ------------------------------------------------------------------------------------------------------------- sums


def test_costs_add_up_and_keep_their_weights() -> None:
    field, x = Tanh(), points(3, 2)
    alone = {
        "kinetic": KineticEnergy(field, weight=0.5),
        "error": LocalError(weight=2.0),
        "taylor": TaylorDerivative(field),
    }
    costs = RunningCosts(error=alone["error"], kinetic=alone["kinetic"], taylor=alone["taylor"], time=lambda t, y: t)
    # The steps are the same with any cost.
    each = {n: NeuralODE(field, running_cost=c).output_and_cost(x)[1] for n, c in alone.items()}
    out, integrals = NeuralODE(field, running_cost=costs).output_and_cost(x)
    assert torch.equal(out, NeuralODE(field)(x))
    for name, value in each.items():
        torch.testing.assert_close(integrals[name], value, rtol=1e-12, atol=1e-15)
    weighted = 0.5 * each["kinetic"].mean() + 2.0 * each["error"] + 0.01 * each["taylor"].mean() + 0.5
    torch.testing.assert_close(costs.penalty(integrals), weighted, rtol=1e-12, atol=0.0)
    costs["error"].weight = 0.0
    torch.testing.assert_close(costs.penalty(integrals), weighted - 2.0 * each["error"], rtol=1e-12, atol=0.0)


def test_costs_of_the_flow_alone_in_either_direction() -> None:
    """A CNF hands a cost the state without its density; time running down does not change signs."""
    field, x = Tanh(), points(4, 2)
    against = lambda t, y: -field(1.0 - t, y)  # noqa: E731
    options = {"rtol": 1e-10, "atol": 1e-10, "algorithm": pynode.Vern7()}

    def costs(f) -> RunningCosts:
        return RunningCosts(jacobian=JacobianFrobenius(f), taylor=TaylorDerivative(f, 2), energy=KineticEnergy(f))

    found = [
        CNF(field, 2, running_cost=costs(field), trace=ExactTrace(), **options).log_prob_and_cost(x)[1],
        CNF(against, 2, t=(1.0, 0.0), running_cost=costs(against), **options).log_prob_and_cost(x)[1],
        NeuralODE(field, running_cost=costs(field), **options).output_and_cost(x)[1],
        NeuralODE(against, (1.0, 0.0), running_cost=costs(against), **options).output_and_cost(x)[1],
    ]
    for other in found[1:]:
        for name, value in found[0].items():
            assert value.shape == (4,)
            # Some 20 steps; costs, which do not choose the steps, have derivatives of a hundred times those of states.
            torch.testing.assert_close(other[name], value, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: RunningCosts(), "RunningCosts"),
        (lambda: RunningCosts(energy=1.0), "energy"),
        (lambda: RunningCosts(own=RunningCosts(error=LocalError())), "own"),
        (lambda: TaylorDerivative(Tanh(), 0), "order"),
        (lambda: KineticEnergy(Tanh(), event_ndim=-1), "event_ndim"),
        (lambda: KineticEnergy(3.0), "f is"),
        (lambda: NeuralODE(Tanh()).output_and_cost(points(2, 2)), "no running cost"),
    ],
    ids=["empty", "number", "nested", "order", "event_ndim", "field", "no cost"],
)
def test_bad_input_is_named(make, named) -> None:
    with pytest.raises(InputError, match=named):
        make()


# ----------------------------------------------------------------------------------------------------------- capture


@pytest.mark.parametrize(
    "make",
    [pytest.param(make, marks=pytest.mark.slow if name == "Taylor 3" else ()) for name, make in COSTS.items()],
    ids=COSTS,
)
def test_running_costs_are_captured_for_julia(make) -> None:
    field, y = Tanh(), points(3, 2)
    costs = RunningCosts(cost=make(field)).drawn(y)
    f = Costed(field, costs)
    program = julia.source(f, 0.1, (y, {"cost": torch.zeros(3, dtype=F64)}))
    assert "function vjp_p!" in program
