"""``explicit_adams``, ``implicit_adams``, ``fixed_adams`` of the drop-in against torchdiffeq's."""

from __future__ import annotations

import warnings

import pytest
import torch
import torchdiffeq
from torch import nn

import pynode
from pynode.compat import torchdiffeq as compat
from pynode.native.fixed_adams import adams_weights

METHODS = ["explicit_adams", "implicit_adams", "fixed_adams"]
every_method = pytest.mark.parametrize("method", METHODS)
#: Of a solve of some 30 steps in numbers of size one: the weights add up to 1e3 in absolute value at the highest order,
#: and errors of 2e-16 times that (times the step) grow by less than 100 over the span.
NEAR = {"rtol": 0, "atol": 1e-12}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.a = nn.Parameter(0.7 * torch.randn(3, 3, generator=generator, dtype=torch.float64))

    def forward(self, t, y):
        return torch.tanh(y @ self.a) + torch.sin(3 * t)


def start() -> torch.Tensor:
    return torch.tensor([[0.5, -1.0, 2.0], [0.1, 0.3, -0.2]], dtype=torch.float64, requires_grad=True)


def times() -> torch.Tensor:
    return torch.tensor([0.2, 0.5, 0.9, 1.2], dtype=torch.float64)


@pytest.mark.parametrize("module", ["_BASHFORTH_DIVISOR", "_MOULTON_DIVISOR"])
def test_weights_are_torchdiffeqs(module):
    theirs = getattr(__import__("torchdiffeq._impl.fixed_adams", fromlist=[module]), module)
    for order in range(2, 13):  # its implicit weight of order 1, which nothing uses, is 1/11 instead of 1
        ours = torch.tensor(adams_weights(order, module.startswith("_M")), dtype=torch.float64)
        torch.testing.assert_close(ours, theirs[order], rtol=4e-16, atol=0)


@pytest.mark.parametrize("interp", ["linear", "cubic"])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(
    ("method", "max_order"),
    # The order of 11 is unstable on the field backward in time: rounding grows as if it were an error of its own.
    [(method, order) for method in METHODS for order in (3, 4, 6, 10 if method == "explicit_adams" else 12)],
)
@pytest.mark.filterwarnings("ignore:max_order is below")
def test_values_and_gradients_agree(method, max_order, reverse, interp):
    found = []
    for solver in (compat.odeint, torchdiffeq.odeint):
        f, y0, t = Net(), start(), times()
        options = {"step_size": 0.03, "max_order": max_order, "interp": interp}
        ys = solver(f, y0, t.flip(0) if reverse else t, method=method, rtol=1e-6, atol=1e-7, options=options)
        found.append((ys, *torch.autograd.grad(ys.square().sum(), [y0, f.a])))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, **NEAR)


@pytest.mark.filterwarnings("ignore:.*corrections of an Adams", "ignore:Functional iteration")
@every_method
def test_uneven_steps_have_the_weights_of_even_ones(method):
    """The history is not rescaled there, which is torchdiffeq's semantics."""
    t = torch.tensor([0.0, 0.01, 0.03, 0.04, 0.06, 0.07, 0.1, 0.11], dtype=torch.float64)
    with torch.no_grad():
        ours, theirs = (s(Net(), start(), t, method=method) for s in (compat.odeint, torchdiffeq.odeint))
    torch.testing.assert_close(ours, theirs, **NEAR)


@pytest.mark.parametrize("perturb", [False, True])
def test_gradients_of_times_agree(perturb):
    found = []
    for solver in (compat.odeint, torchdiffeq.odeint):
        t = torch.linspace(0.0, 0.3, 12, dtype=torch.float64).requires_grad_()
        ys = solver(Net(), start(), t, method="implicit_adams", options={"perturb": perturb})
        found.append(torch.autograd.grad(ys.square().sum(), t)[0])
    torch.testing.assert_close(*found, **NEAR)


@pytest.mark.parametrize("max_iters", [1, 3])
def test_corrections_that_do_not_converge_lower_the_order_and_warn(max_iters):
    found = []
    options = {"step_size": 0.1, "max_iters": max_iters}
    for solver in (compat.odeint, torchdiffeq.odeint):
        with pytest.warns(Warning, match=r"corrections of an Adams step|did not converge"):
            ys = solver(Net(), start(), times(), method="implicit_adams", rtol=1e-10, atol=1e-12, options=options)
        found.append(ys)
    torch.testing.assert_close(*found, **NEAR)


@pytest.mark.filterwarnings("ignore:.*corrections of an Adams", "ignore:Functional iteration")
@every_method
def test_the_continuous_adjoint_agrees(method):
    """Both integrate the adjoint backward by the same method over the same steps; torchdiffeq integrates time and
    parameters with it and has all of them in the test of convergence, so corrections may differ by the tolerance."""
    found = []
    for solver in (compat.odeint_adjoint, torchdiffeq.odeint_adjoint):
        f, y0 = Net(), start()
        ys = solver(f, y0, times(), method=method, rtol=1e-9, atol=1e-9, options={"step_size": 0.05, "max_order": 5})
        found.append(torch.autograd.grad(ys.square().sum(), [y0, f.a]))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-7)


class Logged(Net):
    """Notes the times at which it is evaluated."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[float] = []

    def forward(self, t, y):
        self.seen.append(float(t))
        return super().forward(t, y)


@pytest.mark.parametrize("interp", ["linear", "cubic"])
@pytest.mark.parametrize("reverse", [False, True])
@every_method
def test_perturb_looks_back_and_evaluates_where_torchdiffeq_does(method, reverse, interp):
    """Values, gradients and, up to rounding of a step's end, the times of evaluations: none of them on the mesh."""
    mesh = torch.linspace(0.0, 1.0, 9, dtype=torch.float64)
    found, seen = [], []
    for solver in (compat.odeint, torchdiffeq.odeint):
        f, y0, t = Logged(), start(), mesh[::4].clone()
        t = t.flip(0) if reverse else t
        options = {"step_size": 0.125, "perturb": True, "interp": interp}
        ys = solver(f, y0, t, method=method, rtol=1e-6, atol=1e-7, options=options)
        seen.append([x for x in f.seen if interp == "linear" or x not in mesh.tolist()])
        found.append((ys, *torch.autograd.grad(ys.square().sum(), [y0, f.a])))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, **NEAR)
    assert not set(seen[0]) & set(mesh.tolist())
    ours, theirs = (sorted(set(x)) for x in seen)
    torch.testing.assert_close(torch.tensor(ours), torch.tensor(theirs), rtol=0, atol=1e-15)


def test_options():
    call = {"method": "explicit_adams"}
    with pytest.warns(UserWarning, match="reduces to `rk4`"):
        compat.odeint(Net(), start(), times(), **call, options={"max_order": 3})
    with pytest.warns(UserWarning, match="max_iters"):
        compat.odeint(Net(), start(), times(), **call, options={"max_iters": 3})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compat.odeint(Net(), start(), times(), method="implicit_adams", options={"max_iters": 9, "step_size": 0.01})
    with pytest.raises(pynode.InputError, match="from 2 to 12"):
        compat.odeint(Net(), start(), times(), **call, options={"max_order": 13})
