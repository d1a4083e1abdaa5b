"""Running costs: an integral along the solution, its value, its gradients, and what it must leave alone."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from available import each_available
from problems import both_directions
from torch import Tensor
from torch.autograd import gradcheck

import pynode
from pynode import (
    RK4,
    BacksolveAdjoint,
    CheckpointedAdjoint,
    DirectAdjoint,
    FieldError,
    InputError,
    ReturnCode,
    SaveAt,
    Vern7,
)
from pynode.sensealg import ContinuousAdjoint

F64 = torch.float64


def leaf(*values: float) -> Tensor:
    return torch.tensor(values if len(values) > 1 else values[0], dtype=F64, requires_grad=True)


# ------------------------------------------------------------------------------------------------------ analytic

# y' = -k y, l = y^2: the integral is y0^2 (1 - exp(-2 k T)) / (2 k). The cost decays at twice the rate of y, so that an
# error of y in a method of order 5 is 2^5 as large in c; at most 60 steps, of local error 2 * TOLERANCE; gradients in k
# and T of exponentials with k T < 1.1 are no larger than twice the values.
TOLERANCE = 1e-10
BOUND = 2 * 60 * 32 * 2 * TOLERANCE


def closed(k: Tensor, y0: Tensor, t: Tensor) -> Tensor:
    return y0**2 * (1 - torch.exp(-2 * k * (t[-1] - t[0]))) / (2 * k)


SAVES = {
    "at t": None,
    "inside": SaveAt(ts=[0.3, 0.6]),
    "with the end": SaveAt(ts=[0.3, 1.2]),
    "steps": SaveAt(steps=True),
}


@each_available
@pytest.mark.parametrize("saveat", SAVES.values(), ids=SAVES)
def test_closed_form_and_its_gradients(sensealg, saveat) -> None:
    k, y0, t = leaf(0.9), leaf(1.3), leaf(0.1, 1.2)
    sol = pynode.solve(
        lambda t, y: -k * y, y0, t, running_cost=lambda t, y: y**2, sensealg=sensealg, saveat=saveat,
        rtol=TOLERANCE, atol=TOLERANCE,
    )  # fmt: skip
    expected = closed(k, y0, t)
    assert sol.running_cost.shape == ()
    assert abs(sol.running_cost - expected).item() < BOUND
    found = torch.autograd.grad(sol.running_cost, [k, y0, t])
    for a, b in zip(found, torch.autograd.grad(expected, [k, y0, t]), strict=True):
        assert (a - b).abs().max().item() < BOUND
    if saveat is not None and saveat.ts is not None:
        assert sol.ts.tolist() == saveat.ts
    assert sol.ys.shape == sol.ts.shape


@both_directions
def test_the_integral_is_signed(sign) -> None:
    # y = cos(sign 2 t), l = t^2: the integral from 0 to sign is sign / 3, for which RK4 is exact.
    f = lambda t, y: torch.stack([-2 * y[1], 2 * y[0]])  # noqa: E731
    sol = pynode.solve(f, leaf(1.0, 0.0), [0.0, sign], running_cost=lambda t, y: t**2, algorithm=RK4(steps=3))
    assert sol.running_cost.item() == pytest.approx(sign / 3, rel=1e-14)


@each_available
def test_the_gradient_of_the_end_is_the_cost_there(sensealg) -> None:
    t, y0 = leaf(0.0, 1.0), leaf(0.7)
    sol = pynode.solve(
        lambda t, y: -y, y0, t, running_cost=lambda t, y: torch.cos(y), sensealg=sensealg, rtol=1e-9, atol=1e-9
    )
    (gradient,) = torch.autograd.grad(sol.running_cost, t)
    # An autonomous problem depends on t[1] - t[0] alone. The derivative of the last step of length h in h is l(end) up
    # to an error of the order of the tolerance over h, and h > 1e-2.
    at_end = torch.cos(sol.ys[-1]).item()
    assert gradient.tolist() == pytest.approx([-at_end, at_end], abs=1e-7)


# ------------------------------------------------------------------- parameters, args, against other ways to get it


class Field(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = torch.nn.Parameter(torch.tensor([[0.3, -0.7], [0.9, 0.1]], dtype=F64))

    def forward(self, t, y, a):
        return torch.tanh(y @ self.w) * torch.cos(t) + a * y


class Cost(torch.nn.Module):
    """One value per sample, with a parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.v = torch.nn.Parameter(torch.tensor([0.4, -1.1], dtype=F64))

    def forward(self, t, y, a):
        return (y * self.v).sum(-1) ** 2 + a * t * y[:, 0]


def start() -> Tensor:
    return torch.tensor([[0.5, -0.3], [1.0, 0.2], [-0.4, 0.8]], dtype=F64, requires_grad=True)


def test_equals_the_problem_augmented_by_hand() -> None:
    field, cost, a = Field(), Cost(), leaf(-0.2)
    y0 = start()
    inputs = [y0, field.w, cost.v, a]
    weights = torch.tensor([1.0, -2.0, 0.5], dtype=F64)
    options = {"args": (a,), "algorithm": RK4(steps=5)}
    t = [0.0, 0.5, 1.0]
    sol = pynode.solve(field, y0, t, running_cost=cost, **options)
    loss = torch.dot(weights, sol.running_cost) + sol.ys.pow(2).sum()
    assert sol.running_cost.shape == (3,)

    both = lambda t, s, a: (field(t, s[0], a), cost(t, s[0], a))  # noqa: E731
    byhand = pynode.solve(both, (y0, torch.zeros(3, dtype=F64)), t, **options)
    same = torch.dot(weights, byhand.ys[1][-1]) + byhand.ys[0].pow(2).sum()
    torch.testing.assert_close(loss, same, rtol=1e-14, atol=0)
    for found, expected in zip(torch.autograd.grad(loss, inputs), torch.autograd.grad(same, inputs), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)
    # Four evaluations a step and the probe for the gradient; the cost is evaluated with f.
    assert sol.stats.forward.nfe == byhand.stats.forward.nfe


@each_available
def test_against_finite_differences(sensealg) -> None:
    w, v, captured = Field().w.detach().requires_grad_(), Cost().v.detach().requires_grad_(), leaf(0.6)

    def run(y0, w, v, captured, a, t):
        f = lambda t, y, a: torch.tanh(y @ w) * torch.cos(t) + a * y  # noqa: E731
        cost = lambda t, y, a: {"size": (y * v).sum(-1) ** 2, "rest": torch.sin(captured * y[0, 0]) + a * t}  # noqa: E731
        sol = pynode.solve(
            f, y0, t, args=(a,), running_cost=cost, sensealg=sensealg, algorithm=Vern7(), rtol=1e-10, atol=1e-10
        )
        return sol.running_cost["size"].sum() + 2 * sol.running_cost["rest"]

    # Errors of a solve at 1e-10 with some 10 steps, divided by eps, are 1e-5 where a perturbation changes the steps.
    inputs = (start()[:1].detach().requires_grad_(), w, v, captured, leaf(-0.2), leaf(0.1, 0.9))
    assert gradcheck(run, inputs, eps=1e-4, atol=5e-5, rtol=1e-4, fast_mode=True)


@each_available
def test_only_the_cost_has_parameters(sensealg) -> None:
    cost = Cost()
    y0, a = start().detach(), torch.zeros((), dtype=F64)
    sol = pynode.solve(
        lambda t, y, a: -y, y0, [0.0, 1.0], args=(a,), running_cost=cost, sensealg=sensealg, rtol=1e-9, atol=1e-9
    )
    sol.running_cost.sum().backward()
    # d/dv of sum_b (y_b . v)^2 with y = y0 exp(-t); as BOUND, with sums over 6 numbers below 1.
    expected = (1 - math.exp(-2.0)) * (y0 @ cost.v.detach()) @ y0
    assert (cost.v.grad - expected).abs().max().item() < 6 * 60 * 32 * 2e-9


@each_available
def test_a_cost_that_depends_on_nothing_differentiable(sensealg) -> None:
    y0 = leaf(1.0, 2.0)
    plain = pynode.solve(lambda t, y: -y, y0, [0.0, 1.0], sensealg=sensealg)
    costed = pynode.solve(
        lambda t, y: -y, y0, [0.0, 1.0], sensealg=sensealg, running_cost=lambda t, y: torch.ones((), dtype=F64)
    )
    assert costed.running_cost.item() == pytest.approx(1.0, rel=1e-14)
    (expected,) = torch.autograd.grad(plain.ys[-1].sum(), y0)
    (found,) = torch.autograd.grad(costed.ys[-1].sum() + costed.running_cost, y0)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


@each_available
def test_a_cost_whose_parameters_are_cut_off_is_refused(sensealg) -> None:
    # The field's parameters are reached, which must not hide that the cost's are not.
    class Cut(Cost):
        def forward(self, t, y, a):
            return (y * self.v.detach()).sum(-1)

    field, cost = Field(), Cut()
    sol = pynode.solve(field, start(), [0.0, 1.0], args=(leaf(0.1),), running_cost=cost, sensealg=sensealg)
    loss = sol.running_cost.sum()
    if isinstance(sensealg, DirectAdjoint):  # torch's tape, torch's rules
        assert torch.autograd.grad(loss, cost.v, allow_unused=True) == (None,)
        return
    with pytest.raises(pynode.GradientError, match=r"a parameter of shape \(2,\)"):
        loss.backward()


def test_a_cost_that_writes_into_its_state() -> None:
    y0 = start()
    before = y0.detach().clone()
    with pytest.raises((FieldError, RuntimeError), match=r"in place|inplace"):  # ours, or torch's in its graph
        pynode.solve(lambda t, y: -y, y0, [0.0, 1.0], running_cost=lambda t, y: y.mul_(2).sum())
    assert torch.equal(y0.detach(), before)


def test_no_gradient_needed() -> None:
    sol = pynode.solve(lambda t, y: -y, torch.ones(2), [0.0, 1.0], running_cost=lambda t, y: y.sum())
    assert not sol.running_cost.requires_grad
    assert sol.sensealg is None
    assert pynode.solve(lambda t, y: -y, torch.ones(2), [0.0, 1.0]).running_cost is None


def test_forms_precisions_and_complex_trees() -> None:
    y0 = {"z": torch.tensor([1.0 + 1.0j], dtype=torch.complex64), "x": torch.tensor([[2.0]])}
    f = lambda t, y: {"z": 1.0j * y["z"], "x": -y["x"]}  # noqa: E731
    cost = lambda t, y: [y["z"].abs() ** 2, (y["x"].reshape(()), torch.ones(2, 3))]  # noqa: E731
    sol = pynode.solve(f, y0, [0.0, 2.0], running_cost=cost)
    modulus, (x, ones) = sol.running_cost
    assert (modulus.shape, x.shape, ones.shape) == ((1,), (), (2, 3))
    assert modulus.dtype == x.dtype == torch.float32
    assert modulus.item() == pytest.approx(4.0, rel=1e-3)
    assert x.item() == pytest.approx(2 * (1 - math.exp(-2)), rel=1e-3)
    assert ones.flatten().tolist() == pytest.approx([2.0] * 6, rel=1e-5)
    assert sol.ys["z"].shape == (2, 1)
    assert sol.ys["z"].dtype == torch.complex64


def test_generalised_adjoint_gives_states_and_cost_together() -> None:
    # One pass: as many pullbacks as for the states alone, also where the cost needs a save point of its own.
    y0 = leaf(0.4, -0.2)
    run = lambda **k: pynode.solve(  # noqa: E731
        lambda t, y: torch.sin(y), y0, [0.0, 1.0], saveat=[0.2, 0.9], **k
    )
    plain = run()
    (plain.ys[-1].sum()).backward()
    both = run(running_cost=lambda t, y: y[0] ** 2)
    (both.ys[-1].sum() + both.running_cost).backward()
    assert both.stats.backward.accepted == both.stats.forward.accepted
    assert both.stats.forward.nfe == plain.stats.forward.nfe


# --------------------------------------------------------------------------------------------- what it leaves alone


def spiral(t, y):
    return torch.stack([y[1], -3 * torch.sin(y[0])])


def wild(t, y):
    return 1e3 * torch.sin(200 * t).reshape(1) * torch.ones(3, dtype=y.dtype)


NORMS = {"rms": None, "largest": lambda e: e.abs().max()}


@pytest.mark.parametrize("norm", NORMS.values(), ids=NORMS)
@pytest.mark.parametrize("tolerance", [1e-6, torch.tensor([1e-6, 1e-7], dtype=F64)], ids=["number", "tensor"])
def test_the_steps_are_those_without_the_cost(norm, tolerance) -> None:
    options = {"saveat": SaveAt(steps=True), "rtol": tolerance, "atol": tolerance, "norm": norm}
    y0 = torch.tensor([1.0, 0.3], dtype=F64)
    plain = pynode.solve(spiral, y0, [0.0, 3.0], **options)
    costed = pynode.solve(spiral, y0, [0.0, 3.0], running_cost=wild, **options)
    assert len(costed.ts) == len(plain.ts)
    # Sums over more channels may be rounded differently.
    torch.testing.assert_close(costed.ts, plain.ts, rtol=1e-9, atol=0)
    torch.testing.assert_close(costed.ys, plain.ys, rtol=1e-9, atol=1e-12)
    assert costed.stats.forward == plain.stats.forward


@pytest.mark.parametrize("tolerance", [1e-6, torch.tensor([1e-6, 1e-7], dtype=F64)], ids=["number", "tensor"])
def test_cost_in_norm_controls_the_cost(tolerance) -> None:
    y0 = torch.tensor([1.0, 0.3], dtype=F64)
    run = lambda inside: pynode.solve(  # noqa: E731
        spiral, y0, [0.0, 1.0], running_cost=wild, cost_in_norm=inside, rtol=tolerance, atol=tolerance
    )
    out, controlled = run(False), run(True)
    # A step of a fifth order method cannot resolve sin(200 t) unless it is shorter than its period, 2 pi / 200.
    assert out.stats.forward.accepted < 1.0 / (2 * math.pi / 200) < controlled.stats.forward.accepted
    expected = 1e3 * (1 - math.cos(200.0)) / 200
    # At most as many steps as were taken, of rms error below 1e-6 (1 + |c|) over 5 channels, |c| <= 10.
    bound = controlled.stats.forward.accepted * math.sqrt(5) * 1e-6 * 11
    assert (controlled.running_cost - expected).abs().max().item() < bound


def test_what_a_norm_of_ones_own_gets() -> None:
    shapes: set[str] = set()

    def norm(error):
        shapes.add(str(type(error).__name__))
        parts = error if isinstance(error, tuple) else (error,)
        shapes.update(str(tuple(part.shape)) for part in parts)
        return torch.stack([part.abs().max() for part in parts]).max()

    y0 = torch.tensor([1.0, 0.3], dtype=F64)
    pynode.solve(spiral, y0, [0.0, 0.1], running_cost=wild, norm=norm)
    assert shapes == {"Tensor", "(2,)"}
    shapes.clear()
    pynode.solve(spiral, y0, [0.0, 0.1], running_cost=wild, norm=norm, cost_in_norm=True)
    assert shapes == {"tuple", "(2,)", "(3,)"}


BACKSOLVE_NORMS = {"seminorm": "seminorm", "full": "full", "callable": lambda parts: max(p.abs().max() for p in parts)}


@pytest.mark.parametrize("norm", BACKSOLVE_NORMS.values(), ids=BACKSOLVE_NORMS)
@pytest.mark.parametrize("tolerance", [1e-6, torch.tensor([1e-6, 1e-7], dtype=F64)], ids=["number", "tensor"])
def test_backsolve_does_not_see_the_cost(norm, tolerance) -> None:
    # wild is integrated backward to nothing like what it was: neither steps nor the reconstruction check may notice.
    w = leaf(3.0)
    f = lambda t, y: torch.stack([y[1], -w * torch.sin(y[0])])  # noqa: E731
    y0 = leaf(1.0, 0.3)

    def run(**options):
        sol = pynode.solve(
            f, y0, [0.0, 1.0, 3.0], sensealg=BacksolveAdjoint(norm=norm), rtol=tolerance, atol=tolerance, **options
        )
        loss = sol.ys[1:].sum()
        return torch.autograd.grad(loss if sol.running_cost is None else loss + sol.running_cost.sum(), [y0, w]), sol

    plain, without = run()
    costed, with_cost = run(running_cost=wild)
    assert with_cost.stats.backward == without.stats.backward
    for found, expected in zip(costed, plain, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    run(running_cost=lambda t, y: y.sum(), cost_in_norm=True)


@each_available
def test_dense_output_is_of_the_state(sensealg) -> None:
    y0 = leaf(1.0, 0.3)
    options = {"sensealg": sensealg, "saveat": SaveAt(dense=True)}
    plain = pynode.solve(spiral, y0, [0.0, 1.0], **options)
    costed = pynode.solve(spiral, y0, [0.0, 1.0], running_cost=wild, **options)
    at = torch.tensor([0.7, 0.2], dtype=F64)
    torch.testing.assert_close(costed(at), plain(at), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(costed.derivative(0.4), plain.derivative(0.4), rtol=1e-9, atol=1e-12)
    found, expected = (torch.autograd.grad(sol(at)[0].sum(), y0)[0] for sol in (costed, plain))
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-9)


def test_observers_see_the_state() -> None:
    class Observer:
        def __init__(self) -> None:
            self.seen: set[tuple[str, int]] = set()

        def step(self, t, y, h) -> None:
            self.seen.add(("step", y.numel()))

        def accepted(self, t, y, h) -> None:
            self.seen.add(("accepted", y.numel()))

        def rejected(self, t, y, h) -> None:
            self.seen.add(("rejected", y.numel()))

    observer = Observer()
    y0 = torch.tensor([1.0, 0.3], dtype=F64)
    pynode.solve(spiral, y0, [0.0, 3.0], running_cost=wild, observer=observer, dt0=3.0)
    assert observer.seen == {("step", 2), ("accepted", 2), ("rejected", 2)}


# ------------------------------------------------------------------------------------------------- failing solves


@each_available
@pytest.mark.parametrize("saveat", [SAVES["at t"], SAVES["steps"]], ids=["at t", "steps"])
def test_a_failed_solve_has_the_cost_up_to_where_it_came(sensealg, saveat) -> None:
    k, y0 = leaf(0.9), leaf(1.3)
    t = torch.tensor([0.0, 50.0], dtype=F64)
    if isinstance(sensealg, ContinuousAdjoint):
        sensealg = dataclasses.replace(sensealg, max_steps=1000)  # the limit below is for the forward solve
    sol = pynode.solve(
        lambda t, y: -k * y, y0, t, running_cost=lambda t, y: y**2, sensealg=sensealg, saveat=saveat,
        rtol=TOLERANCE, atol=TOLERANCE, max_steps=12, throw=False,
    )  # fmt: skip
    assert sol.retcode is ReturnCode.MaxIters
    reached = float(sol.message.split("t = ")[1].split()[0])
    assert 0 < reached < 50
    span = torch.tensor([0.0, reached], dtype=F64)
    expected = closed(k, y0, span)
    # The message gives the time to nine digits.
    assert abs(sol.running_cost - expected).item() < BOUND + 1e-8
    found = torch.autograd.grad(sol.running_cost, [k, y0])
    for a, b in zip(found, torch.autograd.grad(expected, [k, y0]), strict=True):
        assert (a - b).abs().item() < BOUND + 1e-8


@pytest.mark.parametrize("sensealg", [CheckpointedAdjoint(), DirectAdjoint()], ids=["checkpointed", "direct"])
@pytest.mark.parametrize("dense", [None, False], ids=["kept", "not kept"])
def test_a_failed_fixed_solve(sensealg, dense) -> None:
    # y' = y^2 from 1 blows up at t = 1: the steps overflow soon after.
    y0 = leaf(1.0)
    sol = pynode.solve(
        lambda t, y: y**2, y0, [0.0, 3.0], running_cost=lambda t, y: y, sensealg=sensealg, algorithm=RK4(steps=30),
        throw=False, saveat=SaveAt(dense=dense),
    )  # fmt: skip
    assert sol.retcode is ReturnCode.Unstable
    assert math.isfinite(sol.running_cost.item())
    (gradient,) = torch.autograd.grad(sol.running_cost, y0)
    assert gradient.item() > 1.0  # the integral of y = y0 / (1 - y0 t) is -log(1 - y0 t): at least t / (1 - t)


def test_a_solve_that_failed_at_once() -> None:
    sol = pynode.solve(
        lambda t, y: y * math.nan, leaf(1.0), [0.0, 1.0], running_cost=lambda t, y: y, throw=False, saveat=[0.5]
    )
    assert sol.retcode is ReturnCode.InitialFailure
    assert sol.running_cost.item() == 0.0


# -------------------------------------------------------------------------------------------------------- refusals


def _run(cost, y0=None, **options):
    return pynode.solve(lambda t, y: -y, torch.ones(2) if y0 is None else y0, [0.0, 1.0], running_cost=cost, **options)


def test_what_is_no_cost() -> None:
    with pytest.raises(InputError, match="running_cost is a float"):
        _run(1.0)
    with pytest.raises(InputError, match="cost_in_norm"):
        _run(None, cost_in_norm=True)
    with pytest.raises(FieldError, match="running_cost returned a NoneType"):
        _run(lambda t, y: None)
    with pytest.raises(FieldError, match=r"running_cost returned torch\.float64.*float32"):
        _run(lambda t, y: y.sum().double())
    with pytest.raises(FieldError, match=r"running_cost\['a'\] returned torch\.complex64"):
        _run(lambda t, y: {"a": y.sum() * 1j})
    with pytest.raises(FieldError, match="running_cost returned an empty tensor"):
        _run(lambda t, y: y[:0])
    with pytest.raises(FieldError, match=r"running_cost returned \(\)"):
        _run(lambda t, y: ())


def test_a_cost_that_changes_its_form() -> None:
    with pytest.raises(FieldError, match=r"running_cost returned shape \(2,\).*initial time, \(\)"):
        _run(lambda t, y: y.sum() if t == 0 else y)
    with pytest.raises(FieldError, match="running_cost returned dtype"):
        _run(lambda t, y: y.sum() if t == 0 else y.sum().double())
    with pytest.raises(FieldError, match=r"running_cost returned a tuple of length 1 at running_cost"):
        _run(lambda t, y: (y[0], y[1]) if t == 0 else (y[0],))


def test_messages_still_name_f() -> None:
    with pytest.raises(FieldError, match=r"f returned shape \(1,\)\. "):
        pynode.solve(lambda t, y: y[:1], torch.ones(2), [0.0, 1.0], running_cost=lambda t, y: y.sum())


def test_tolerances_are_of_the_states_size() -> None:
    with pytest.raises(InputError, match="flattened state, 2"):
        _run(lambda t, y: y.sum(), rtol=torch.full((3,), 1e-4))


# ------------------------------------------------------------------------------------------------ as a layer, compiled


def test_neural_ode_registers_a_cost_with_parameters() -> None:
    field, cost = torch.nn.Linear(2, 2).double(), Cost()
    model = pynode.nn.NeuralODE(
        lambda t, y: torch.tanh(field(y)), running_cost=lambda t, y: cost(t, y, 0.0), algorithm="rk4"
    )
    assert model.solve(start()).running_cost.shape == (3,)

    class Energy(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cost = cost

        def forward(self, t, y):
            return self.cost(t, y, 0.0)

    model = pynode.nn.NeuralODE(lambda t, y: torch.tanh(field(y)), running_cost=Energy())
    assert [name for name, _ in model.named_parameters()] == ["running_cost.cost.v"]
    sol = model.solve(start())
    sol.running_cost.sum().backward()
    assert cost.v.grad.abs().sum() > 0
    assert model(start()).shape == (3, 2)


@pytest.mark.slow
def test_compiled_steps_integrate_the_cost_too() -> None:
    field, cost, a = Field(), Cost(), leaf(-0.2)
    y0 = start()
    inputs = [y0, field.w, cost.v, a]
    found = []
    for compiled in (False, "step"):
        sol = pynode.solve(field, y0, [0.0, 0.5, 1.0], args=(a,), running_cost=cost, compile=compiled)
        found.append(torch.autograd.grad(sol.running_cost.sum() + sol.ys[-1].sum(), inputs))
    for eager, fast in zip(*found, strict=True):
        torch.testing.assert_close(fast, eager, rtol=1e-10, atol=1e-12)
