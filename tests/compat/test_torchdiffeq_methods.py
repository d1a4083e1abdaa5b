"""The drop-in's SciPy and implicit methods, its node of adjoint options, and its installation under another name."""

from __future__ import annotations

import subprocess
import sys
import warnings

import pytest
import torch

from pynode import GradientError, InputError, SolveError, UnsupportedError
from pynode.compat.torchdiffeq import odeint, odeint_adjoint, odeint_dense

theirs = pytest.importorskip("torchdiffeq")
pytest.importorskip("scipy")

T = torch.linspace(0.0, 1.5, 4, dtype=torch.float64)
SOLVERS = ("RK45", "RK23", "DOP853", "Radau", "BDF", "LSODA")


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.w = torch.nn.Parameter(torch.randn(3, 3, generator=generator, dtype=torch.float64))

    def forward(self, t, y):
        return torch.tanh(y @ self.w) + torch.cos(2 * t)


Y0 = torch.tensor([[0.3, -0.2, 0.5]], dtype=torch.float64)


def gradients(function, y0, t, field, **options):
    y0, t = y0.clone().requires_grad_(), t.clone().requires_grad_()
    ys = function(field, y0, t, **options)
    return torch.autograd.grad((ys**2).sum(), [y0, t, *field.parameters()])


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("t", [T, T.flip(0)], ids=["forward", "backward"])
def test_scipy_solvers_agree_with_torchdiffeqs(solver, t):
    options = {"method": "scipy_solver", "options": {"solver": solver}, "rtol": 1e-6, "atol": 1e-8}
    ours, other = (function(Net(), Y0, t, **options) for function in (odeint, theirs.odeint))
    # The same steps, but for LSODA, whose choices hang on rounding: there within ten tolerances.
    close = 1e-5 if solver == "LSODA" else 1e-9
    torch.testing.assert_close(ours, other.detach(), rtol=close, atol=close)
    assert not ours.requires_grad


@pytest.mark.parametrize("t", [T, T.flip(0)], ids=["forward", "backward"])
@pytest.mark.parametrize("pair", [False, True])
def test_lsoda_keeps_min_step_at_the_price_of_the_tolerances(pair, t):
    """dopri5 takes over: its 3 steps of a half have a local error of some h^6 / 6! = 2e-5 each, amplified by less than
    ten. Without a shortest step LSODA takes more than a hundred evaluations (tested, too)."""
    net, seen = Net(), []

    def field(s, y):
        seen.append(float(s))
        return (net(s, y[0]), -y[1]) if pair else net(s, y)

    y0 = (Y0, torch.ones(1, 2, dtype=torch.float64)) if pair else Y0
    tight = {"rtol": 1e-9, "atol": 1e-11, "method": "scipy_solver"}
    exact = odeint(field, y0, t, **tight)
    free, count = len(seen), 40
    assert free > 2 * count
    seen.clear()
    with pytest.warns(RuntimeWarning, match="at the price of the tolerances"):
        ys = odeint(field, y0, t, **tight, options={"min_step": 0.5})
    assert len(seen) < count
    for found, close in zip(ys if pair else [ys], exact if pair else [exact], strict=True):
        torch.testing.assert_close(found, close, rtol=0, atol=1e-3)


@pytest.mark.parametrize("t", [T, T.flip(0)], ids=["forward", "backward"])
def test_lsoda_steps_itself_where_it_steps_no_shorter_than_min_step(t):
    options = {"method": "scipy_solver", "rtol": 1e-6, "atol": 1e-8}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bounded = odeint(Net(), Y0, t, **options, options={"min_step": 1e-9, "max_step": 0.3})
    free = odeint(Net(), Y0, t, **options, options={"max_step": 0.3})
    torch.testing.assert_close(bounded, free, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("t", [T, T.flip(0)], ids=["forward", "backward"])
def test_the_adjoint_by_scipy_has_the_gradients_of_the_tape(t):
    field = Net()
    tight = {"rtol": 1e-10, "atol": 1e-12}
    exact = gradients(odeint, Y0, t, field, method="dopri8", **tight)
    by = {"method": "scipy_solver", "options": {"solver": "DOP853"}}
    for options in (
        by,
        {**by, "adjoint_method": "dopri8", "adjoint_options": {}},
        {**by, "adjoint_method": "dopri8", "adjoint_options": {"norm": "seminorm"}},
        {"method": "dopri8", "adjoint_method": "scipy_solver", "adjoint_options": {"solver": "LSODA"}},
    ):
        for ours, wanted in zip(gradients(odeint_adjoint, Y0, t, field, **tight, **options), exact, strict=True):
            torch.testing.assert_close(ours, wanted, rtol=1e-6, atol=1e-7)


def test_a_second_derivative_through_scipy_is_refused_not_dropped():
    """Of a sum whose other part has one, it would be that part's alone."""
    f, y0 = Net(), Y0.clone().requires_grad_()
    times = torch.tensor([0.0, 1.0], dtype=torch.float64)
    ys = odeint_adjoint(f, y0, times, method="scipy_solver")
    (first,) = torch.autograd.grad(ys[-1].sum(), y0, create_graph=True)
    with pytest.raises(GradientError, match="differentiated again"):
        torch.autograd.grad((first**2 + y0**2).sum(), y0)


def test_tuples_and_complex_states_by_scipy():
    field = lambda t, y: (1j * y[0] * y[1].sum(), -y[1])  # noqa: E731
    start = (torch.tensor([1.0 + 0.5j], dtype=torch.complex128), torch.tensor([0.5, 1.0], dtype=torch.float64))
    options = {"rtol": 1e-9, "atol": 1e-11, "adjoint_params": ()}
    found = []
    for method in ("scipy_solver", "dopri8"):
        start = tuple(x.clone().requires_grad_() for x in start)
        ys = odeint_adjoint(field, start, T, method=method, **options)
        loss = sum((y.abs() ** 2).sum() for y in ys) + ys[0].real.sum()
        found.append([*ys, *torch.autograd.grad(loss, start)])
    for ours, wanted in zip(*found, strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-6, atol=1e-7)


def test_what_scipy_cannot_do_is_said():
    with pytest.raises(InputError, match=r"'Euler'.*RK45"):
        odeint(Net(), Y0, T, method="scipy_solver", options={"solver": "Euler"})
    with pytest.raises(SolveError, match="SciPy's RK45 stopped") as caught:
        odeint(lambda t, y: y * y, Y0.abs() + 1, T * 10, method="scipy_solver", options={"solver": "RK45"})
    assert isinstance(caught.value, AssertionError)
    with pytest.warns(UserWarning, match="Unexpected arguments"):
        odeint(Net(), Y0, T, method="scipy_solver", options={"steps": 3})
    with pytest.raises(UnsupportedError, match="scipy_solver"):
        odeint_dense(Net(), Y0, 0.0, 1.0, method="scipy_solver")


def test_one_time_is_no_integration_by_scipy():
    torch.testing.assert_close(odeint(Net(), Y0, T[:1], method="scipy_solver"), Y0[None], rtol=0, atol=0)


@pytest.mark.parametrize("method", ["heun3", "implicit_euler", "implicit_midpoint", "trapezoid", "radauIIA3"])
def test_methods_at_fixed_steps_agree_with_torchdiffeqs(method):
    if method != "heun3" and not hasattr(theirs._impl, "fixed_grid_implicit"):
        pytest.skip("this torchdiffeq has no implicit methods")
    options = {"method": method, "options": {"step_size": 0.1}}
    if method not in theirs._impl.odeint.__globals__.get("SOLVERS", {method: 0}):
        pytest.skip(f"this torchdiffeq has no {method}")
    ours, other = (function(Net(), Y0, T, **options) for function in (odeint, theirs.odeint))
    # Theirs iterates to 1e-8.
    torch.testing.assert_close(ours, other, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("norm", [None, "seminorm"])
def test_the_node_shows_torchdiffeqs_norm_and_takes_another(norm):
    field, options = Net(), {"adjoint_options": {} if norm is None else {"norm": norm}}
    nodes = []
    for function in (odeint_adjoint, theirs.odeint_adjoint):
        y0 = Y0.clone().requires_grad_()
        nodes.append(function(field, y0, T, **options).grad_fn)
    state = (torch.tensor(0.3), torch.randn(1, 3), torch.randn(1, 3), torch.randn(3, 3))
    shown, wanted = (node.adjoint_options["norm"](state) for node in nodes)
    torch.testing.assert_close(shown, wanted)

    called = []
    y0 = Y0.clone().requires_grad_()
    ys = odeint_adjoint(field, y0, T, **options)
    before = ys.grad_fn.adjoint_options["norm"]
    ys.grad_fn.adjoint_options["norm"] = lambda parts: called.append([x.shape for x in parts]) or before(parts)
    (found,) = torch.autograd.grad(ys.square().sum(), y0)
    assert [tuple(shape) for shape in called[0]] == [(), (1, 3), (1, 3), (3, 3)]
    wanted = gradients(odeint_adjoint, Y0, T, field, **options)[0]
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-8)


def test_the_node_of_a_tuple_is_where_torchdiffeqs_is():
    field = lambda t, y: (-y[0], y[0].sum() * y[1])  # noqa: E731
    start = (torch.ones(2, 2, requires_grad=True), torch.ones(()))
    ys = odeint_adjoint(field, start, torch.tensor([0.0, 1.0]), adjoint_params=())
    node = ys[0].grad_fn.next_functions[0][0].next_functions[0][0]
    shapes = []
    norm = node.adjoint_options["norm"]
    node.adjoint_options["norm"] = lambda parts: shapes.append([x.shape for x in parts]) or norm(parts)
    ys[1].sum().backward()
    assert [tuple(x) for x in shapes[0]] == [(), (5,), (5,)]
    assert start[0].grad.abs().sum() > 0


def test_it_can_be_installed_under_torchdiffeqs_name():
    code = (
        "from pynode.compat import installed; installed.as_torchdiffeq(); installed.as_torchdiffeq();"
        "import torchdiffeq; from torchdiffeq._impl.odeint import odeint;"
        "print(torchdiffeq.__name__, odeint is torchdiffeq.odeint)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["pynode.compat.torchdiffeq", "True"]


def test_it_refuses_to_stand_in_where_torchdiffeq_is_in_use():
    from pynode.compat import installed

    with pytest.raises(UnsupportedError, match="was imported already"):
        installed.as_torchdiffeq()
