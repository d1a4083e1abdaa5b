"""Fields, losses and times out of the ordinary, under every sensitivity algorithm: the right gradient, or an error."""

from __future__ import annotations

import math

import pytest
import torch
from available import OF_TORCH
from torch import Tensor

import pynode
from pynode import FieldError, GradientError, InputError
from pynode.sensealg import ContinuousAdjoint, SensitivityAlgorithm

CASES: dict[str, SensitivityAlgorithm] = {cls.__name__: cls() for cls in OF_TORCH} | {
    "CheckpointedAdjoint-3": pynode.CheckpointedAdjoint(checkpoints=3),
    "InterpolatingAdjoint-checkpointing": pynode.InterpolatingAdjoint(checkpointing=True),
    "GaussAdjoint-checkpointing": pynode.GaussAdjoint(checkpointing=True),
}
every_sensealg = pytest.mark.parametrize("sensealg", CASES.values(), ids=CASES)
UNTAPED = {name: x for name, x in CASES.items() if not isinstance(x, pynode.DirectAdjoint)}
every_untaped = pytest.mark.parametrize("sensealg", UNTAPED.values(), ids=UNTAPED)

TOL = 1e-7
#: A jump in the last part of a step of Tsit5 enters its error estimate with the weight 1/66 of its last stage alone:
#: what it does may be 66 times the estimate, which stays below TOL * (1 + |y|) = 2 TOL.
BLIND = 66.0
#: Of 1000 steps of a method of order 2 over at most 2 time units: its error is some h**2.
H = 2e-3


def options(sensealg: SensitivityAlgorithm, tol: float = TOL) -> dict[str, object]:
    if isinstance(sensealg, pynode.ReversibleAdjoint):
        return {"algorithm": pynode.ReversibleHeun(steps=1000), "sensealg": sensealg}
    return {"algorithm": pynode.Tsit5(), "rtol": tol, "atol": tol, "sensealg": sensealg}


def bound(sensealg: SensitivityAlgorithm, tol: float = TOL) -> float:
    """Of a smooth problem's gradient: the sum of below 100 local errors, here."""
    return 10.0 * H**2 if isinstance(sensealg, pynode.ReversibleAdjoint) else 100.0 * tol


def leaf(*values: float) -> Tensor:
    return torch.tensor(values if len(values) > 1 else values[0], dtype=torch.float64, requires_grad=True)


def close(found: Tensor, expected: Tensor, limit: float) -> None:
    torch.testing.assert_close(found, expected, rtol=0.0, atol=limit * max(1.0, expected.abs().max().item()))


# ---------------------------------------------------------------------------------------------------------------- kinks


def _crossing(kink: str, y0: Tensor, a: Tensor, b: Tensor, end: float) -> Tensor:
    """``y(end)`` of ``y' = a - b |y|`` or ``y' = a - b relu(y)``, from y0 < 0 through 0."""
    crossed = torch.log(a / (a + b * y0)) / b if kink == "abs" else -y0 / a
    return a / b * (1.0 - torch.exp(-b * (end - crossed)))


@every_sensealg
@pytest.mark.parametrize("kink", ["abs", "relu"])
def test_a_kink_that_the_trajectory_crosses(kink, sensealg) -> None:
    y0, a, b = leaf(-0.6), leaf(1.0), leaf(0.8)
    corner = torch.abs if kink == "abs" else torch.relu
    sol = pynode.solve(lambda t, y: a - b * corner(y), y0, [0.0, 2.0], **options(sensealg))
    found = torch.autograd.grad(sol.ys[-1], [y0, a, b])
    exact = torch.autograd.grad(_crossing(kink, y0, a, b, 2.0), [y0, a, b])
    # Where df/dy jumps, by 1.6 or 0.8, so does the equation of the derivative; its solution grows by exp(0.65) = 1.9 at
    # most. Its local error, about h, is controlled by the continuous adjoints and forward sensitivities, once, and once
    # more in the solution they stand on. A discrete derivative is off by that jump times half of the step it happens
    # in: fixed ones are H; error control of the state, which is off by 1.6 / 2 * h**2, makes it some sqrt(TOL).
    if isinstance(sensealg, ContinuousAdjoint | pynode.ForwardSensitivity):
        limit = 2.0 * 1.9 * BLIND * 2.0 * TOL
    elif isinstance(sensealg, pynode.ReversibleAdjoint):
        limit = 1.9 * 1.6 * H / 2.0
    else:
        limit = 1.9 * 1.6 / 2.0 * math.sqrt(BLIND * 2.0 * TOL / 0.8)
    for x, y in zip(found, exact, strict=True):
        close(x, y, limit)


@every_sensealg
def test_a_kink_that_the_trajectory_does_not_meet(sensealg) -> None:
    y0, a, b = leaf(0.3), leaf(1.0), leaf(0.8)
    sol = pynode.solve(lambda t, y: a - b * y.abs(), y0, [0.0, 2.0], **options(sensealg))
    exact = a / b + (y0 - a / b) * torch.exp(-2.0 * b)
    pairs = (torch.autograd.grad(x, [y0, a, b]) for x in (sol.ys[-1], exact))
    for x, y in zip(*pairs, strict=True):
        close(x, y, bound(sensealg))


# -------------------------------------------------------------------------------------------------------- singularities


@every_untaped
@pytest.mark.parametrize("where", ["state", "parameter"])
def test_a_derivative_that_is_infinite_raises(where, sensealg) -> None:
    # y = 0 stays, where the root's slope is infinite; or the slope with respect to p is, and y' = -y is harmless.
    y0, p = (leaf(0.0, 0.0), leaf(0.7)) if where == "state" else (leaf(0.4, 0.5), leaf(0.0))
    f = (lambda t, y: p * torch.sqrt(y)) if where == "state" else (lambda t, y: torch.sqrt(p) * y - y)
    with pytest.raises(GradientError, match=r"not finite.*singularity"):
        pynode.solve(f, y0, [0.0, 1.0], **options(sensealg)).ys[-1].sum().backward()
    assert y0.grad is None
    assert p.grad is None


def test_torchs_tape_hands_out_what_torch_does() -> None:
    y0, p = leaf(0.4, 0.5), leaf(0.0)
    f = lambda t, y: torch.sqrt(p) * y - y  # noqa: E731
    pynode.solve(f, y0, [0.0, 1.0], sensealg=pynode.DirectAdjoint()).ys[-1].sum().backward()
    assert not p.grad.isfinite()


@every_untaped
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_raises(value, sensealg) -> None:
    y0 = leaf(0.4, 0.5)
    ys = pynode.solve(lambda t, y: -y, y0, [0.0, 0.5, 1.0], **options(sensealg)).ys
    with pytest.raises(GradientError, match=r"not finite.*check the loss for a NaN"):
        (ys[1] * value).sum().backward()
    assert y0.grad is None


def test_large_gradients_are_finite() -> None:
    y0, p = torch.ones(2, requires_grad=True), torch.ones((), requires_grad=True)
    (pynode.solve(lambda t, y: -p * y, y0, [0.0, 1.0]).ys[-1] * 1e37).sum().backward()  # its square is not
    assert y0.grad.isfinite().all()
    assert p.grad.isfinite()


# ----------------------------------------------------------------------------------------------------------- parameters


class Switched(torch.nn.Module):
    """``y' = -y + early`` until t = 0.5, ``y' = -y + late`` from there."""

    def __init__(self) -> None:
        super().__init__()
        self.early = torch.nn.Parameter(torch.tensor(0.3, dtype=torch.float64))
        self.late = torch.nn.Parameter(torch.tensor(0.7, dtype=torch.float64))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return -y + (self.early if t < 0.5 else self.late)


@every_sensealg
@pytest.mark.parametrize("way", ["module", "closure"])
def test_a_parameter_used_only_later(way, sensealg) -> None:
    model = Switched()
    early, late = model.early, model.late
    f = model if way == "module" else (lambda t, y: -y + (early if t < 0.5 else late))
    y0 = leaf(1.0)
    sol = pynode.solve(f, y0, [0.0, 1.0], d_discontinuities=[0.5], **options(sensealg))
    sol.ys[-1].backward()
    close(early.grad, torch.tensor(math.exp(-0.5) - math.exp(-1.0), dtype=torch.float64), bound(sensealg))
    close(late.grad, torch.tensor(1.0 - math.exp(-0.5), dtype=torch.float64), bound(sensealg))
    close(y0.grad, torch.tensor(math.exp(-1.0), dtype=torch.float64), bound(sensealg))


# Where the integral of the parameters' gradient is under no error control (GaussAdjoint, "seminorm") a jump that the
# adjoint itself does not feel has to be named, as above.
FELT = {
    "CheckpointedAdjoint": CASES["CheckpointedAdjoint"],
    "DirectAdjoint": CASES["DirectAdjoint"],
    "BacksolveAdjoint": CASES["BacksolveAdjoint"],
    "QuadratureAdjoint": CASES["QuadratureAdjoint"],
    "InterpolatingAdjoint-full": pynode.InterpolatingAdjoint(norm="full"),
    "ForwardSensitivity": CASES["ForwardSensitivity"],
}


@pytest.mark.parametrize("sensealg", FELT.values(), ids=FELT)
def test_a_jump_that_is_not_named(sensealg) -> None:
    model = Switched()
    pynode.solve(model, leaf(1.0), [0.0, 1.0], **options(sensealg)).ys[-1].backward()
    # The step over the jump of 0.4 in f is off by 0.4 h, and by h in the gradient.
    limit = BLIND * 2.0 * TOL / 0.4
    close(model.early.grad, torch.tensor(math.exp(-0.5) - math.exp(-1.0), dtype=torch.float64), limit)
    close(model.late.grad, torch.tensor(1.0 - math.exp(-0.5), dtype=torch.float64), limit)


@every_sensealg
def test_a_frozen_parameter(sensealg) -> None:
    gradients = []
    for frozen in (False, True):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Tanh(), torch.nn.Linear(3, 2)).double()
        model[0].weight.requires_grad_(not frozen)
        sol = pynode.solve(lambda t, y, m=model: m(y), leaf(0.4, -0.2), [0.0, 1.0], **options(sensealg))
        sol.ys[-1].pow(2).sum().backward()
        gradients.append([p.grad for p in model.parameters()])
    whole, part = gradients
    assert part[0] is None
    for x, y in zip(part[1:], whole[1:], strict=True):
        close(x, y, bound(sensealg))
        assert y.abs().max() > 0.1


# -------------------------------------------------------------------------------------- fields with a will of their own


@every_sensealg
def test_a_field_that_writes_into_its_input(sensealg) -> None:
    w = leaf(0.5)
    with pytest.raises(FieldError, match=r"changed its input y in place.*clone"):
        pynode.solve(lambda t, y: w * y.mul_(0.5), leaf(0.4, -0.2), [0.0, 1.0], **options(sensealg))


class Noisy(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = torch.nn.Sequential(
            torch.nn.Linear(3, 16), torch.nn.Tanh(), torch.nn.Dropout(0.5), torch.nn.Linear(16, 3)
        ).double()

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.net(y)


def _fixed(sensealg: SensitivityAlgorithm) -> pynode.Algorithm:
    """Of steps that no noise can shorten."""
    return (pynode.ReversibleHeun if isinstance(sensealg, pynode.ReversibleAdjoint) else pynode.RK4)(steps=10)


ONCE = (pynode.DirectAdjoint, pynode.ForwardSensitivity)
REPEATING = {name: x for name, x in CASES.items() if not isinstance(x, ONCE)}


@pytest.mark.parametrize("sensealg", REPEATING.values(), ids=REPEATING)
@pytest.mark.parametrize("save", [[0.0, 1.0], [0.0, 0.4, 1.0]], ids=["ends", "inner"])
def test_dropout_in_training_mode_raises(save, sensealg) -> None:
    model, y0 = Noisy(), torch.ones(3, dtype=torch.float64)
    sol = pynode.solve(model, y0, save, algorithm=_fixed(sensealg), sensealg=sensealg)
    with pytest.raises(GradientError, match=r"f gave other values than before.*\.eval\(\) for dropout"):
        sol.ys[1:].sum().backward()
    assert all(p.grad is None for p in model.parameters())
    sol = pynode.solve(model.eval(), y0, save, algorithm=_fixed(sensealg), sensealg=sensealg)
    sol.ys[1:].sum().backward()
    assert all(p.grad.abs().max() > 0.0 for p in model.parameters())


@pytest.mark.parametrize("sensealg", [cls() for cls in ONCE], ids=lambda s: s.name)
def test_dropout_where_every_evaluation_is_made_once(sensealg) -> None:
    """The gradient for the masks that were drawn."""
    y0 = torch.ones(3, dtype=torch.float64, requires_grad=True)

    def loss(start: Tensor) -> Tensor:
        model = Noisy()
        torch.manual_seed(1)
        return pynode.solve(model, start, [0.0, 1.0], algorithm=pynode.RK4(steps=10), sensealg=sensealg).ys[-1].sum()

    (found,) = torch.autograd.grad(loss(y0), y0)
    for i, direction in enumerate(torch.eye(3, dtype=torch.float64)):
        # With y0 as it is differentiated, as more evaluations under no gradient would draw other masks.
        ahead, back = ((y0 + sign * 1e-4 * direction).detach().requires_grad_() for sign in (1.0, -1.0))
        # Central differences of a smooth loss: off by 1e-8 times a third derivative.
        assert abs((loss(ahead) - loss(back)).item() / 2e-4 - found[i].item()) < 1e-6


@pytest.mark.parametrize("sensealg", REPEATING.values(), ids=REPEATING)
def test_weights_that_changed_behind_torchs_back_raise(sensealg) -> None:
    w = leaf(0.5, 0.3)
    sol = pynode.solve(lambda t, y: w * y, leaf(0.4, -0.2), [0.0, 1.0], algorithm=_fixed(sensealg), sensealg=sensealg)
    w.data *= 2.0
    with pytest.raises(GradientError, match="f gave other values than before"):
        sol.ys[-1].sum().backward()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "autocast"])
@every_untaped
def test_fields_at_rest_repeat_themselves(sensealg, dtype) -> None:
    """A derivative that is rounding only is no sign of another f."""
    y0 = torch.tensor([0.4, -0.2], requires_grad=True)
    w = torch.tensor([[0.5, 0.3], [-0.2, 0.4]], requires_grad=True)

    def f(t: Tensor, y: Tensor) -> Tensor:
        # What is left is of another sign with every call, as sums in another order would be.
        f.calls += 1
        rate = w @ y
        return (rate - rate.detach()).float() + (-1) ** f.calls * 1e-7

    f.calls = 0
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype is torch.bfloat16):
        sol = pynode.solve(f, y0, [0.0, 1.0], algorithm=_fixed(sensealg), sensealg=sensealg)
    sol.ys[-1].sum().backward()
    assert y0.grad.isfinite().all()


class Normed(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norm = torch.nn.BatchNorm1d(4)
        self.net = torch.nn.Sequential(
            torch.nn.Linear(2, 4), self.norm, torch.nn.Tanh(), torch.nn.Linear(4, 2)
        ).double()

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.net(y)


@every_sensealg
def test_batch_norm_in_training_mode(sensealg) -> None:
    """f depends on the batch alone, so that the gradient is right; the running statistics count every evaluation: of
    the probe, of the solve and of the backward pass, as there is no telling which of them training means."""
    model = Normed()
    start = torch.randn(5, 2, dtype=torch.float64)
    y0 = start.clone().requires_grad_()
    sol = pynode.solve(model, y0, [0.0, 0.5], **options(sensealg))
    sol.ys[-1].pow(2).sum().backward()
    stats = sol.stats
    assert model.norm.num_batches_tracked.item() == stats.forward.nfe + stats.backward.nfe
    assert model.norm.running_mean.abs().max() > 0.0

    def reference(x: Tensor) -> Tensor:
        with torch.no_grad():
            return pynode.solve(model, x, [0.0, 0.5], rtol=1e-11, atol=1e-11).ys[-1].pow(2).sum()

    direction = torch.randn(5, 2, dtype=torch.float64)
    # Central differences: off by 1e-8 times a third derivative, and by 2e-10 / 1e-4.
    slope = (reference(start + 1e-4 * direction) - reference(start - 1e-4 * direction)) / 2e-4
    growth = 10.0  # of batch normalisation, which divides by the spread of a small batch
    assert abs((y0.grad * direction).sum() - slope) < growth * bound(sensealg) * max(1.0, abs(slope.item()))


# ----------------------------------------------------------------------------------------------------- losses and times


def _decay(sensealg: SensitivityAlgorithm, t: object, y0: Tensor | None = None, p: Tensor | None = None):
    """``y' = -p y``: the solution, and its tensors."""
    y0 = leaf(1.0, -2.0) if y0 is None else y0
    p = leaf(0.7) if p is None else p
    return pynode.solve(lambda t, y: -p * y, y0, t, **options(sensealg)), y0, p


@every_sensealg
def test_a_loss_on_some_of_the_states(sensealg) -> None:
    sol, y0, p = _decay(sensealg, [0.0, 0.2, 0.5, 0.9, 1.0])
    (sol.ys[1].sum() + 3.0 * sol.ys[3, 0]).backward()
    one = torch.tensor([1.0, 1.0], dtype=torch.float64)
    close(y0.grad, math.exp(-0.14) * one + torch.tensor([3.0 * math.exp(-0.63), 0.0]), bound(sensealg))
    expected = 0.2 * math.exp(-0.14) - 2.7 * math.exp(-0.63)
    close(p.grad, torch.tensor(expected, dtype=torch.float64), bound(sensealg))


@every_sensealg
def test_a_loss_on_the_initial_state_alone(sensealg) -> None:
    sol, y0, p = _decay(sensealg, [0.0, 0.5, 1.0])
    (3.0 * sol.ys[0].sum()).backward()
    assert torch.equal(y0.grad, torch.full((2,), 3.0, dtype=torch.float64))
    assert p.grad is None or p.grad.item() == 0.0
    assert sol.stats.backward.nfe == 0


@every_sensealg
def test_times_that_decrease(sensealg) -> None:
    sol, y0, p = _decay(sensealg, [1.0, 0.6, 0.0])
    (sol.ys[1].sum() + sol.ys[2, 1]).backward()
    first, second = math.exp(0.28), math.exp(0.7)
    close(y0.grad, torch.tensor([first, first + second], dtype=torch.float64), bound(sensealg))
    # y(t) = y0 exp(-p (t - 1)): dy/dp = (1 - t) y.
    close(p.grad, torch.tensor(-0.4 * first - 2.0 * second, dtype=torch.float64), bound(sensealg))


@every_sensealg
def test_five_hundred_save_points(sensealg) -> None:
    t = torch.linspace(0.0, 1.0, 501, dtype=torch.float64)
    sol, y0, p = _decay(sensealg, t)
    (sol.ys[1:, 0].sum() / 500.0).backward()
    decay = torch.exp(-0.7 * t[1:])
    # Every save point but the continuous adjoints' may lie in few steps; these take one or more in each interval.
    close(y0.grad, torch.stack([decay.mean(), torch.zeros_like(decay[0])]), bound(sensealg))
    close(p.grad, -(t[1:] * decay).mean(), bound(sensealg))


@every_sensealg
@pytest.mark.parametrize("t", [[0.0, 0.0], [1.0, 1.0, 2.0]], ids=["empty", "repeated"])
def test_an_interval_without_length_is_refused(t, sensealg) -> None:
    with pytest.raises(InputError, match=r"is followed by t\[1\].*strictly.*drop repeated times"):
        _decay(sensealg, t)


@every_sensealg
def test_an_initial_state_that_requires_no_gradient(sensealg) -> None:
    y0 = torch.tensor([1.0, -2.0], dtype=torch.float64)
    sol, _, p = _decay(sensealg, [0.0, 1.0], y0=y0)
    sol.ys[-1].sum().backward()
    assert y0.grad is None
    close(p.grad, torch.tensor(math.exp(-0.7), dtype=torch.float64), bound(sensealg))


@every_sensealg
def test_nothing_requires_a_gradient(sensealg) -> None:
    sol, _, _ = _decay(sensealg, [0.0, 1.0], y0=torch.ones(2, dtype=torch.float64), p=torch.tensor(0.7).double())
    assert sol.sensealg is None
    assert sol.ys.grad_fn is None
    assert not sol.ys.requires_grad
    with torch.no_grad():
        under, _, _ = _decay(sensealg, [0.0, 1.0])
    assert under.sensealg is None
    assert not under.ys.requires_grad


# ---------------------------------------------------------------------------------------------------------- bookkeeping


@every_sensealg
def test_backward_twice(sensealg) -> None:
    """The same gradient to the last bit, and the same work, which is counted from zero and added up."""
    y0, w = leaf(0.4, -0.2), leaf(0.5, 0.3)
    sol = pynode.solve(
        lambda t, y: torch.tanh(w * y.flip(0)) * torch.cos(t), y0, [0.0, 0.4, 1.0], **options(sensealg, 1e-5)
    )
    loss = sol.ys[1:].pow(2).sum()
    assert sol.stats.backward == pynode.Counts()
    forward = pynode.Counts(**vars(sol.stats.forward))
    first = torch.autograd.grad(loss, [y0, w], retain_graph=True)
    once = pynode.Counts(**vars(sol.stats.backward))
    second = torch.autograd.grad(loss, [y0, w], retain_graph=True)
    assert all(torch.equal(x, y) for x, y in zip(first, second, strict=True))
    twice = pynode.Counts(**{name: 2 * count for name, count in vars(once).items()})
    if sensealg == pynode.CheckpointedAdjoint(
        checkpoints=3
    ):  # the first pass has used up the states that were kept late
        twice.nfe = max(twice.nfe, sol.stats.backward.nfe)
    assert sol.stats.backward == twice
    assert sol.stats.forward == forward
    if not isinstance(sensealg, pynode.ForwardSensitivity):
        assert once.nvjp > 0


@pytest.mark.parametrize("tolerance", [1e-6, 1e-8])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_gauss_sees_a_parameter_that_is_switched_on_where_forward_steps_crowd(tolerance, checkpointing):
    # dy/dt = -y + p [t > 1/2]: the adjoint exp(t - 1) does not feel p, and its steps go over the switch. Forward steps
    # do, and meet it to tolerance; the bound is what a kink leaves of one (see above).
    p = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    sensealg = pynode.GaussAdjoint(checkpointing=checkpointing)
    y0 = torch.ones(1, dtype=torch.float64)
    sol = pynode.solve(
        lambda t, y: -y + p * (t > 0.5), y0, [0.0, 1.0], rtol=tolerance, atol=tolerance, sensealg=sensealg
    )
    (gradient,) = torch.autograd.grad(sol.ys[-1].sum(), p)
    assert abs(gradient.item() - (1.0 - math.exp(-0.5))) < math.sqrt(tolerance)
