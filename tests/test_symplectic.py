"""Symplectic methods: order, geometry, costs, gradients, and what they refuse."""

from __future__ import annotations

import collections
import math

import pytest
import torch
from torch import Tensor

import pynode
from pynode import (
    BacksolveAdjoint,
    CheckpointedAdjoint,
    DirectAdjoint,
    FieldError,
    ForwardSensitivity,
    GaussAdjoint,
    InputError,
    InterpolatingAdjoint,
    ReversibleAdjoint,
    SaveAt,
    SymplecticEuler,
    Tsit5,
    UnsupportedError,
    VelocityVerlet,
    Yoshida6,
)
from pynode.backends import backend_from_name
from pynode.native.splittings import SPLITTINGS

METHODS = {cls.__name__: cls for cls in (SymplecticEuler, VelocityVerlet, Yoshida6)}
each_method = pytest.mark.parametrize("cls", METHODS.values(), ids=METHODS)
EPS = 2.0**-53
Pair = collections.namedtuple("Pair", "q p")


def tensor(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def whole(t: Tensor, y: tuple[Tensor, Tensor], w: Tensor | float = 1.3) -> tuple[Tensor, Tensor]:
    """Separable, neither half linear, both depending on time."""
    q, p = y
    return p * (1 + 0.3 * torch.sin(2 * t)) + 0.2 * p**3, -w * torch.sin(q) * (1 + 0.2 * torch.cos(3 * t))


class Apart:
    """The same with its halves."""

    def __call__(self, t, y, *args):
        return whole(t, y, *args)

    def velocity(self, t, p, *args):
        return whole(t, (torch.zeros_like(p), p), *args)[0]

    def force(self, t, q, *args):
        return whole(t, (q, torch.zeros_like(q)), *args)[1]


each_form = pytest.mark.parametrize("f", [whole, Apart()], ids=["whole", "halves"])
Y0 = (tensor(0.5, 1.0), tensor(0.1, -0.3))


def flat(ys: tuple[Tensor, Tensor]) -> Tensor:
    return torch.cat(list(ys), dim=-1)


@pytest.fixture(scope="module")
def exact() -> Tensor:
    return flat(pynode.solve(whole, Y0, [0.0, 2.0], algorithm="vern9", rtol=1e-13, atol=1e-13).ys)[-1]


# The methods


@pytest.mark.parametrize("name", SPLITTINGS)
def test_coefficients_are_consistent(name) -> None:
    splitting = SPLITTINGS[name]
    for weights in (splitting.drifts, splitting.kicks):
        assert abs(math.fsum(weights) - 1) <= 4 * EPS
    assert len(splitting.kicks) == len(splitting.drifts) + 1


def test_yoshida_solves_its_equations() -> None:
    """sum w = 1, sum w^3 = sum w^5 = 0: to the rounding of weights of size 1.3, whose powers are below 4."""
    w = SPLITTINGS["Yoshida6"].drifts
    assert w == w[::-1]
    assert abs(math.fsum(x**3 for x in w)) <= 7 * 3 * 4 * EPS
    assert abs(math.fsum(x**5 for x in w)) <= 7 * 5 * 4 * EPS


@each_method
@each_form
@pytest.mark.parametrize("sign", [1.0, -1.0], ids=["ahead", "back"])
def test_order_as_a_slope(cls, f, sign) -> None:
    """Neither half is linear or autonomous, so that no order condition is met by accident."""
    expected = flat(pynode.solve(whole, Y0, [0.0, 2.0 * sign], algorithm="vern9", rtol=1e-13, atol=1e-13).ys)[-1]
    errors = []
    for steps in (40, 80):
        sol = pynode.solve(f, Y0, [0.0, 2.0 * sign], algorithm=cls(steps=steps))
        errors.append((flat(sol.ys)[-1] - expected).abs().max().item())
    assert abs(math.log2(errors[0] / errors[1]) - SPLITTINGS[cls.__name__].order) < 0.1


@each_method
def test_a_running_cost_has_the_order_of_the_method(cls) -> None:
    cost = lambda t, y: (y[0].square() * t).sum() + y[1].cos().sum()  # noqa: E731
    expected = pynode.solve(whole, Y0, [0.0, 2.0], algorithm="vern9", rtol=1e-13, atol=1e-13, running_cost=cost)
    errors = []
    for steps in (40, 80):
        sol = pynode.solve(whole, Y0, [0.0, 2.0], algorithm=cls(steps=steps), running_cost=cost)
        errors.append((sol.running_cost - expected.running_cost).abs().item())
    assert abs(math.log2(errors[0] / errors[1]) - SPLITTINGS[cls.__name__].order) < 0.2


@each_method
@each_form
def test_a_step_is_a_symplectic_map(cls, f) -> None:
    """J^T Omega J = Omega for the Jacobian of three large steps: sums of a hundred products below 30."""

    def flow(y: Tensor) -> Tensor:
        sol = pynode.solve(f, (y[:2], y[2:]), [0.0, 1.5], algorithm=cls(steps=3), sensealg=DirectAdjoint())
        return flat(sol.ys)[-1]

    jacobian = torch.func.jacrev(flow)(flat(Y0))
    omega = torch.kron(tensor(0.0, 1.0, -1.0, 0.0).reshape(2, 2), torch.eye(2, dtype=torch.float64))
    assert (jacobian - torch.eye(4)).abs().max() > 0.5
    torch.testing.assert_close(jacobian.mT @ omega @ jacobian, omega, rtol=0, atol=100 * 30 * EPS)


@pytest.mark.parametrize("cls", [VelocityVerlet, Yoshida6])
def test_symmetric_methods_return_to_the_start(cls) -> None:
    """Without time dependence, N steps ahead and N back: a thousand evaluations of rounding EPS, growth below 10."""
    f = lambda t, y: (y[1] + 0.2 * y[1] ** 3, -torch.sin(y[0]))  # noqa: E731
    there = pynode.solve(f, Y0, [0.0, 4.0], algorithm=cls(steps=40)).ys
    back = pynode.solve(f, tuple(x[-1] for x in there), [4.0, 0.0], algorithm=cls(steps=40)).ys
    assert (there[0][-1] - Y0[0]).abs().max() > 0.1
    torch.testing.assert_close(flat(back)[-1], flat(Y0), rtol=0, atol=1000 * EPS * 10)


def test_symplectic_euler_drifts_first() -> None:
    f = lambda t, y: (2 * y[1], -3 * y[0])  # noqa: E731
    q, p = pynode.solve(f, (tensor(1.0), tensor(0.5)), [0.0, 0.125], algorithm=SymplecticEuler()).ys
    assert q[-1].item() == 1.0 + 0.125 * 2 * 0.5
    assert p[-1].item() == 0.5 - 0.125 * 3 * q[-1].item()


def test_verlet_is_the_position_recursion() -> None:
    """q[n+1] - 2 q[n] + q[n-1] = h^2 F(q[n]) for dq/dt = p: to the rounding of numbers of size 2."""
    f = lambda t, y: (y[1], -torch.sin(y[0]))  # noqa: E731
    t = torch.arange(17) / 8.0  # exact in binary
    q, _ = pynode.solve(f, (tensor(1.0), tensor(0.5)), t, algorithm=VelocityVerlet()).ys
    second = q[2:] - 2 * q[1:-1] + q[:-2]
    torch.testing.assert_close(second, -torch.sin(q[1:-1]) / 64, rtol=0, atol=20 * EPS)


# States and fields


@each_form
def test_names_and_shapes_of_the_state_stay(f) -> None:
    y0 = Pair(torch.ones(3, 2, dtype=torch.float64), torch.zeros(3, 2, dtype=torch.float64))
    pairs = pynode.solve(f, y0, [0.0, 1.0, 2.0], algorithm=VelocityVerlet(dt=0.1)).ys
    assert isinstance(pairs, Pair)
    assert pairs.q.shape == (3, 3, 2)
    plain = pynode.solve(f, tuple(y0), [0.0, 1.0, 2.0], algorithm="velocityverlet").algorithm
    assert plain == VelocityVerlet()


def test_halves_may_be_trees_of_different_shapes() -> None:
    """q = (a, b), p = c with c driving both: a' = c, b' = sum c, c' = -a."""
    f = lambda t, y: ((y[1], y[1].sum()), -y[0][0])  # noqa: E731
    y0 = ((tensor(1.0, 0.5), torch.tensor(0.0, dtype=torch.float64)), tensor(0.0, 0.0))
    (a, b), c = pynode.solve(f, y0, [0.0, 1.0], algorithm=Yoshida6(steps=10)).ys
    # The method's error with h = 1/10 on a harmonic oscillator is below h^6.
    torch.testing.assert_close(a[-1], y0[0][0] * math.cos(1), rtol=0, atol=1e-6)
    torch.testing.assert_close(c[-1], -y0[0][0] * math.sin(1), rtol=0, atol=1e-6)
    torch.testing.assert_close(b[-1], (a[-1] - a[0]).sum(), rtol=0, atol=1e-14)


def test_both_forms_of_a_field_give_the_same_steps_and_counts() -> None:
    """A halves' call and a whole's both count; what is evaluated is the same, to rounding."""
    found = [pynode.solve(f, Y0, [0.0, 2.0], algorithm=Yoshida6(steps=10)) for f in (whole, Apart())]
    torch.testing.assert_close(flat(found[0].ys), flat(found[1].ys), rtol=1e-14, atol=0)
    assert found[0].stats.forward.nfe == found[1].stats.forward.nfe


@pytest.mark.parametrize(("cls", "each"), [(SymplecticEuler, 2), (VelocityVerlet, 2), (Yoshida6, 14)])
def test_evaluations_are_counted_as_they_are_made(cls, each) -> None:
    calls = 0

    def f(t, y):
        nonlocal calls
        calls += 1
        return whole(t, y)

    with torch.no_grad():
        sol = pynode.solve(f, Y0, [0.0, 2.0], algorithm=cls(steps=10))
    assert sol.stats.forward.nfe == calls == 1 + 3 + 10 * each


def test_dense_output_is_a_cubic_or_a_line(exact) -> None:
    """Inside steps of h the cubic's error is below h^4 |y''''| / 384, with |y''''| < 30 here."""
    t = torch.linspace(0.0, 2.0, 37, dtype=torch.float64)
    expected = flat(pynode.solve(whole, Y0, t, algorithm="vern9", rtol=1e-13, atol=1e-13).ys)
    sol = pynode.solve(whole, Y0, [0.0, 2.0], algorithm=Yoshida6(steps=40), saveat=SaveAt(ts=t, dense=True))
    bound = 30 * 0.05**4 / 384 + 1e-7
    torch.testing.assert_close(flat(sol.ys), expected, rtol=0, atol=bound)
    torch.testing.assert_close(flat(sol(t)), flat(sol.ys), rtol=0, atol=1e-14)
    line = pynode.solve(whole, Y0, [0.0, 2.0], algorithm=VelocityVerlet(steps=1, interpolation="linear"))
    torch.testing.assert_close(line(0.5)[0], 0.75 * line.ys[0][0] + 0.25 * line.ys[0][1], rtol=1e-14, atol=0)


# Gradients


def gradients(algorithm, sensealg, f=whole, **options) -> list[Tensor]:
    w, t = torch.tensor(1.3, dtype=torch.float64, requires_grad=True), tensor(0.0, 0.37, 2.0).requires_grad_()
    q = Y0[0].clone().requires_grad_()
    sol = pynode.solve(f, (q, Y0[1]), t, args=(w,), algorithm=algorithm, sensealg=sensealg, **options)
    loss = (sol.ys[0][1:] ** 2).sum() + sol.ys[1][1].sum()
    if "running_cost" in options:
        loss = loss + sol.running_cost
    return list(torch.autograd.grad(loss, [q, w, t]))


EXACT = {
    "checkpointed": CheckpointedAdjoint(),
    "bounded": CheckpointedAdjoint(checkpoints=4),
    "reversible": ReversibleAdjoint(),
}


@each_method
@each_form
@pytest.mark.parametrize("cost", [False, True], ids=["", "cost"])
@pytest.mark.parametrize("sensealg", EXACT.values(), ids=EXACT)
def test_exact_adjoints_agree_with_the_tape(cls, f, cost, sensealg) -> None:
    """To the rounding of a hundred steps of a few dozen operations each, forward and back, growing below exp(2 * 1.6)
    for the state and again for the adjoint."""
    options = {"running_cost": lambda t, y, w: (y[0] ** 2).sum() * t * w + y[1].sum()} if cost else {}
    for algorithm in (cls(steps=25), cls()):  # the second one moves with t
        expected = gradients(algorithm, DirectAdjoint(), f, **options)
        for a, b in zip(gradients(algorithm, sensealg, f, **options), expected, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=25 * 14 * 30 * EPS * math.exp(3.2) * 4)


@pytest.mark.parametrize("sensealg", EXACT.values(), ids=EXACT)
def test_gradients_across_a_jump(sensealg) -> None:
    f = lambda t, y, w: (y[1], -w * torch.sin(y[0]) + 0.3 * (t > 0.5))  # noqa: E731
    mesh = lambda t: torch.cat([t[:1], tensor(0.2), t[1:2], tensor(0.5, 0.9), t[2:]])  # noqa: E731
    found, expected = (
        gradients(VelocityVerlet(mesh=mesh), s, f, d_discontinuities=[0.5]) for s in (sensealg, DirectAdjoint())
    )
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-13)


@each_method
def test_gradients_equal_finite_differences(cls) -> None:
    def loss(w: float) -> float:
        arg = torch.tensor(w, dtype=torch.float64)
        return pynode.solve(whole, Y0, [0.0, 2.0], args=(arg,), algorithm=cls(steps=20)).ys[0][-1].square().sum().item()

    w = torch.tensor(1.3, dtype=torch.float64, requires_grad=True)
    sol = pynode.solve(whole, Y0, [0.0, 2.0], args=(w,), algorithm=cls(steps=20))
    (found,) = torch.autograd.grad(sol.ys[0][-1].square().sum(), w)
    h = 1e-5  # truncation h^2 / 6 |l'''| with |l'''| < 100, rounding EPS / h
    assert abs(found.item() - (loss(1.3 + h) - loss(1.3 - h)) / (2 * h)) < 100 * h**2 / 6 + 100 * EPS / h


@pytest.mark.parametrize("adjoint", [BacksolveAdjoint, InterpolatingAdjoint, GaussAdjoint])
def test_continuous_adjoints_go_back_by_another_algorithm(adjoint) -> None:
    """The forward error of 80 steps of order six, below 1e-7, and of the cubic between them, of order h^4."""
    tight = adjoint(algorithm=Tsit5(), rtol=1e-9, atol=1e-9)
    expected = gradients(Yoshida6(steps=160), CheckpointedAdjoint())
    for a, b in zip(gradients(Yoshida6(steps=160), tight), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


def test_second_derivatives() -> None:
    def loss(sensealg):
        def value(q: Tensor) -> Tensor:
            sol = pynode.solve(whole, (q, Y0[1]), [0.0, 2.0], algorithm=VelocityVerlet(steps=10), sensealg=sensealg)
            return flat(sol.ys)[-1].pow(3).sum()

        return torch.autograd.functional.hessian(value, Y0[0])

    torch.testing.assert_close(loss(CheckpointedAdjoint()), loss(DirectAdjoint()), rtol=0, atol=1e-12)


def test_vmap_over_starts() -> None:
    def end(q: Tensor) -> Tensor:
        return pynode.solve(whole, (q, Y0[1]), [0.0, 2.0], algorithm=VelocityVerlet(steps=10)).ys[0][-1]

    starts = torch.stack([Y0[0], 2 * Y0[0]])
    torch.testing.assert_close(torch.func.vmap(end)(starts), torch.stack([end(q) for q in starts]), rtol=0, atol=1e-14)


# What is refused


def test_a_state_that_is_no_pair_is_refused() -> None:
    for y0 in (tensor(1.0, 2.0), (tensor(1.0),), (tensor(1.0),) * 3, {"q": tensor(1.0), "p": tensor(1.0)}):
        with pytest.raises(InputError, match=r"a state \(q, p\)"):
            pynode.solve(lambda t, y: y, y0, [0.0, 1.0], algorithm=VelocityVerlet())


@pytest.mark.parametrize(
    ("f", "what"),
    [
        (lambda t, y: (y[1], -y[0] - 0.1 * y[1]), "dp/dt that f returned changes with p"),
        (lambda t, y: (y[1] + 0.1 * y[0], -y[0]), "dq/dt that f returned changes with q"),
        (lambda t, y: (y[1] * (1 + y[0] ** 2), -(y[1] ** 2) * y[0]), "changes with p"),
    ],
    ids=["damped", "growing", "mixed"],
)
@pytest.mark.parametrize("p0", [0.0, 0.7], ids=["at rest", "moving"])
def test_fields_that_are_not_separable_are_refused(f, what, p0) -> None:
    if p0 == 0.0 and what == "changes with p":
        what = ""  # nothing moves from there
    y0 = (tensor(1.0), tensor(p0))
    if not what:
        assert pynode.solve(f, y0, [0.0, 1.0], algorithm=VelocityVerlet(dt=0.1)).ys[0][-1].item() == 1.0
        return
    with pytest.raises(FieldError, match=what):
        pynode.solve(f, y0, [0.0, 1.0], algorithm=VelocityVerlet(dt=1e-3))


def test_halves_that_are_not_those_of_the_field_are_refused() -> None:
    class Wrong(Apart):
        def force(self, t, q, *args):
            return -q

    with pytest.raises(FieldError, match="not the second half"):
        pynode.solve(Wrong(), Y0, [0.0, 1.0], algorithm=VelocityVerlet())


@pytest.mark.parametrize("sensealg", [GaussAdjoint(), BacksolveAdjoint(), ForwardSensitivity()])
def test_adjoints_that_are_no_pairs_are_refused(sensealg) -> None:
    with pytest.raises(UnsupportedError, match=r"no pair \(q, p\)"):
        gradients(VelocityVerlet(steps=3), sensealg)


def test_other_options_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="compile='step'"):
        pynode.solve(whole, Y0, [0.0, 1.0], algorithm=VelocityVerlet(), compile="step")
    reason = backend_from_name("julia").supports(VelocityVerlet(), GaussAdjoint())
    assert reason is not None
    assert "backend='torch'" in reason


# Energy, the reason for all this

#: A pendulum swung out to 1 rad, whose period is 6.7.
PERIOD, STEPS_A_PERIOD = 6.7, 20


def energy_errors(algorithm, periods: int) -> Tensor:
    """Energy errors over two periods at the start, in the middle and at the end of a long run, (3, 40)."""
    f = lambda t, y: (y[1], -torch.sin(y[0]))  # noqa: E731
    window = torch.arange(2 * STEPS_A_PERIOD, dtype=torch.float64) * PERIOD / STEPS_A_PERIOD
    t = torch.cat([window + PERIOD * n for n in (0, periods // 2 - 2, periods - 2)])
    with torch.no_grad():
        options = {"algorithm": algorithm, "rtol": 1e-6, "atol": 1e-6, "max_steps": 10**7}
        q, p = pynode.solve(f, (tensor(1.0), tensor(0.0)), t, saveat=SaveAt(ts=t, dense=False), **options).ys
    energy = p**2 / 2 + 1 - torch.cos(q)
    return (energy - energy[0]).abs().reshape(3, -1)


@pytest.mark.parametrize("periods", [100, pytest.param(10_000, marks=pytest.mark.slow)])
def test_energy_is_bounded_where_it_drifts_without(periods) -> None:
    """Verlet conserves H + h^2 (p^2 cos(q) / 12 - sin(q)^2 / 24) + O(h^4), whose second part is below h^2 / 8 here;
    the error of DP5, which damps a little every period, grows in proportion to time."""
    h = PERIOD / STEPS_A_PERIOD
    symplectic = energy_errors(VelocityVerlet(dt=h), periods).amax(1)
    assert symplectic.max() < h**2 / 8
    assert symplectic[2] < 1.1 * symplectic[0]
    drifting = energy_errors("dp5", periods).amin(1)
    assert 1.7 < drifting[2] / drifting[1] < 2.3
    if periods >= 10_000:
        assert drifting[2] > symplectic.max()
