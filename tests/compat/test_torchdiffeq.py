"""The drop-in against torchdiffeq itself: same calls, same results."""

from __future__ import annotations

import copy
import itertools
import math
import warnings

import pytest
import torch
import torchdiffeq
from torch import nn

import pynode
from pynode.compat import torchdiffeq as compat

FIXED = ["euler", "midpoint", "heun2", "rk4"]
#: Adaptive methods, with a relative tolerance their order can afford.
ADAPTIVE = {"dopri8": 1e-7, "dopri5": 1e-7, "bosh3": 1e-4, "fehlberg2": 1e-3, "adaptive_heun": 2e-3}
DTYPES = [torch.float32, torch.float64, torch.complex64]


class Net(nn.Module):
    """A smooth, non-autonomous field with parameters, one of them unused."""

    def __init__(self, dtype=torch.float64):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.a = nn.Parameter(0.7 * torch.randn(3, 3, generator=generator, dtype=torch.float64).to(dtype))
        self.b = nn.Parameter(torch.randn(3, generator=generator, dtype=torch.float64).to(dtype))
        self.unused = nn.Parameter(torch.ones(2, dtype=dtype))

    def forward(self, t, y):
        return torch.tanh(y @ self.a) + torch.sin(3 * t) * self.b


class TupleNet(Net):
    def forward(self, t, y):
        first, second = y
        return super().forward(t, first) * second.mean(), -second * torch.cos(t) + first.sum()


def start(dtype=torch.float64, requires_grad=False):
    y0 = torch.tensor([[0.5, -1.0, 2.0], [0.1, 0.3, -0.2]], dtype=torch.float64).to(dtype)
    return y0.requires_grad_(requires_grad)


def tuple_start(dtype=torch.float64, requires_grad=False):
    second = torch.tensor([0.4, 0.9], dtype=torch.float64).to(dtype).requires_grad_(requires_grad)
    return start(dtype, requires_grad), second


def times(reverse=False, dtype=torch.float64, requires_grad=False):
    t = torch.tensor([0.2, 0.5, 0.9, 1.4], dtype=dtype)
    return (t.flip(0) if reverse else t).requires_grad_(requires_grad)


def each(value):
    return value if isinstance(value, tuple) else (value,)


def assert_near(ours, theirs, bound):
    """Largest difference relative to the largest value."""
    assert isinstance(ours, tuple) == isinstance(theirs, tuple)
    for mine, other in zip(each(ours), each(theirs), strict=True):
        assert mine.shape == other.shape
        assert mine.dtype == other.dtype
        assert (mine - other).abs().max() <= bound * (1 + other.abs().max())


def unit(dtype):
    return torch.finfo(dtype.to_real()).eps


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# ---------------------------------------------------------------------------------------------------------- values


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("state", ["tensor", "tuple"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("method", FIXED)
def test_fixed_methods_agree_to_rounding(method, dtype, state, reverse):
    f, y0 = (Net(dtype), start(dtype)) if state == "tensor" else (TupleNet(dtype), tuple_start(dtype))
    call = {"method": method, "options": {"step_size": 0.13}}
    with torch.no_grad():
        theirs = torchdiffeq.odeint(f, y0, times(reverse), **call)
        assert_near(compat.odeint(f, y0, times(reverse), **call), theirs, 30 * unit(dtype))
        assert_near(compat.odeint_adjoint(f, y0, times(reverse), **call), theirs, 30 * unit(dtype))


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("state", ["tensor", "tuple"])
@pytest.mark.parametrize(
    ("method", "dtype"),
    [(m, d) for m in ADAPTIVE for d in DTYPES if not d.is_complex or m.startswith("dopri")],
)
def test_adaptive_methods_agree_within_the_tolerance(method, dtype, state, reverse):
    f, y0 = (Net(dtype), start(dtype)) if state == "tensor" else (TupleNet(dtype), tuple_start(dtype))
    rtol = max(ADAPTIVE[method], 50 * unit(dtype))
    call = {"method": method, "rtol": rtol, "atol": 0.01 * rtol}
    with torch.no_grad():
        # torchdiffeq's dopri8 interpolates at order 4 and misses its own tolerance by a factor of 100.
        other = {**call, "method": "dopri5"} if method == "dopri8" else call
        theirs = torchdiffeq.odeint(f, y0, times(reverse), **other)
        assert_near(compat.odeint(f, y0, times(reverse), **call), theirs, 20 * rtol)


def test_tsit5_agrees_with_dopri5():
    f, y0, t = Net(), start(), times()
    with torch.no_grad():
        assert_near(compat.odeint(f, y0, t, method="tsit5"), torchdiffeq.odeint(f, y0, t), 2e-6)


def test_defaults_are_torchdiffeqs():
    f, y0, t = Net(), start(), times()
    steps = []
    f.callback_step = lambda t0, y0, dt: steps.append(float(dt))
    with torch.no_grad():
        theirs = torchdiffeq.odeint(f, y0, t)
        reference, steps[:] = len(steps), []
        assert_near(compat.odeint(f, y0, t), theirs, 2e-6)
    assert 0.5 * reference <= len(steps) <= 2 * reference


def test_one_time_returns_the_initial_state():
    y0 = tuple_start(requires_grad=True)
    for solver in (compat.odeint, compat.odeint_adjoint):
        first, second = solver(TupleNet(), y0, times()[:1])
        assert first.shape == (1, 2, 3)
        assert torch.equal(second[0], y0[1])
        first.sum().backward()


def test_scalar_state_and_float32_times():
    y0 = torch.tensor(1.5)
    t = times(dtype=torch.float32)
    ours = compat.odeint(lambda t, y: -y * t, y0, t)
    assert_near(ours, torchdiffeq.odeint(lambda t, y: -y * t, y0, t), 5e-6)


def test_what_torchdiffeq_forgives_in_a_derivative_is_forgiven():
    y0 = tuple_start(torch.float32)

    def f(t, y):
        return [y[0].double() * -1.0, y[1][:, None] * 2.0]

    theirs = torchdiffeq.odeint(f, y0, times())
    assert_near(compat.odeint(f, y0, times()), theirs, 5e-6)


# --------------------------------------------------------------------------------------------------------- options

TENSOR_TOLERANCES = {
    "tensor_rtol": {"rtol": torch.tensor(1e-6, dtype=torch.float64), "atol": torch.full((3,), 1e-8)},
    "full_atol": {"rtol": 1e-6, "atol": torch.full((2, 3), 1e-8)},
}
ADAPTIVE_OPTIONS = {
    "norm": {"norm": lambda y: y.abs().max()},
    "first_step": {"first_step": torch.tensor(0.01)},
    "step_t": {"step_t": torch.tensor([0.7, 0.3, 5.0])},
    "controller": {"safety": 0.8, "ifactor": 3.0, "dfactor": 0.5},
    "max_step": {"max_step": 0.05},
    "min_step": {"min_step": 1e-4},
    "max_num_steps": {"max_num_steps": 1000},
    "dtype": {"dtype": torch.float64},
}
FIXED_OPTIONS = {
    "none": {},
    "cubic": {"step_size": 0.21, "interp": "cubic"},
    "linear": {"step_size": 0.21, "interp": "linear"},
    "perturb": {"step_size": 0.21, "perturb": True},
    "grid": {"grid_constructor": lambda f, y0, t: torch.linspace(float(t[0]), float(t[-1]), 8, dtype=t.dtype)},
}


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("name", ADAPTIVE_OPTIONS)
def test_adaptive_options(name, reverse):
    f, y0, t = Net(), start(), times(reverse)
    call = {"rtol": 1e-6, "atol": 1e-8, "options": ADAPTIVE_OPTIONS[name]}
    with torch.no_grad():
        assert_near(compat.odeint(f, y0, t, **call), torchdiffeq.odeint(f, y0, t, **call), 2e-5)
        assert_near(compat.odeint_adjoint(f, y0, t, **call), torchdiffeq.odeint(f, y0, t, **call), 2e-5)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("method", FIXED)
@pytest.mark.parametrize("name", FIXED_OPTIONS)
def test_fixed_options(name, method, reverse):
    f, y0, t = Net(), start(), times(reverse)
    call = {"method": method, "options": FIXED_OPTIONS[name]}
    with torch.no_grad():
        # Nudged times of evaluation are those of float64.
        assert_near(compat.odeint(f, y0, t, **call), torchdiffeq.odeint(f, y0, t, **call), 1e-13)


@pytest.mark.parametrize("name", TENSOR_TOLERANCES)
def test_tensor_tolerances(name):
    f, y0, t = Net(), start(), times()
    with torch.no_grad():
        theirs = torchdiffeq.odeint(f, y0, t, **TENSOR_TOLERANCES[name])
        assert_near(compat.odeint(f, y0, t, **TENSOR_TOLERANCES[name]), theirs, 2e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex128])
def test_tuple_tolerances(dtype):
    f, y0, t = TupleNet(dtype), tuple_start(dtype), times()
    call = {"rtol": (1e-5, 1e-6), "atol": (torch.tensor(1e-7), torch.tensor([1e-8, 1e-6]))}
    with torch.no_grad():
        assert_near(compat.odeint(f, y0, t, **call), torchdiffeq.odeint(f, y0, t, **call), 1e-4)


def test_each_component_has_its_own_tolerance():
    """A component that need not be right lets the steps grow."""

    def steps(rtol, atol):
        count = []

        def f(t, y):
            return torch.cos(40 * t) * 40 + 0 * y[0], -y[1]

        class Counted:
            def __call__(self, t, y):
                return f(t, y)

            def callback_accept_step(self, t0, y0, dt):
                count.append(dt)

        compat.odeint(Counted(), (torch.zeros(1), torch.ones(1)), torch.tensor([0.0, 1.0]), rtol=rtol, atol=atol)
        return len(count)

    assert steps((1e3, 1e-4), (1e3, 1e-4)) < steps((1e-4, 1e3), (1e-4, 1e3))


def test_the_norm_sees_the_state_in_its_form():
    seen = []

    def norm(y):
        seen.append(y)
        return torch.cat([x.reshape(-1) for x in each(y)]).abs().max()

    with torch.no_grad():
        compat.odeint(TupleNet(), tuple_start(), times(), options={"norm": norm})
        compat.odeint(Net(), start(), times(), options={"norm": norm})
    assert [x.shape for x in seen[0]] == [(2, 3), (2,)]
    assert seen[-1].shape == (2, 3)


@pytest.mark.parametrize("reverse", [False, True])
def test_jumps_are_met_and_never_evaluated_on(reverse):
    seen = []

    def f(t, y):
        seen.append(float(t))
        return -0.5 * y if t < 0.5 else y**2

    y0 = torch.tensor([0.3, 0.4], dtype=torch.float64)
    t = torch.tensor([0.0, 1.0], dtype=torch.float64)
    t = t.flip(0) if reverse else t
    options = {"jump_t": torch.tensor([0.5], dtype=torch.float64)}
    exact = torchdiffeq.odeint(f, y0, t, rtol=1e-9, atol=1e-11)
    seen.clear()
    assert_near(compat.odeint(f, y0, t, options=options), exact, 1e-6)
    assert 0.5 not in seen
    with_jump = len(seen)
    seen.clear()
    compat.odeint(f, y0, t)
    assert with_jump < len(seen)


def test_perturb_evaluates_inside_the_steps_forward_and_backward():
    seen = []

    def f(t, y):
        seen.append(float(t))
        return -y

    for method in FIXED:
        y0 = torch.ones(2, dtype=torch.float64, requires_grad=True)
        seen.clear()
        ys = compat.odeint_adjoint(
            f,
            y0,
            torch.tensor([0.0, 1.0], dtype=torch.float64),
            method=method,
            options={"step_size": 0.25, "perturb": True},
            adjoint_params=(),
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # coarse steps back
            ys.sum().backward()
        assert not {0.0, 0.25, 0.5, 0.75, 1.0} & set(seen) - ({0.125} if method == "midpoint" else set())


@pytest.mark.parametrize("solver", [compat.odeint, compat.odeint_adjoint])
def test_min_step_is_kept_at_the_price_of_the_tolerance(solver):
    steps = []
    f = Net()
    f.callback_accept_step = lambda t0, y0, dt: steps.append(float(dt))
    f.callback_accept_step_adjoint = f.callback_accept_step
    y0 = start(requires_grad=True)
    t = torch.tensor([0.0, 1.0], dtype=torch.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        solver(f, y0, t, rtol=1e-12, atol=1e-12, options={"min_step": 0.25}).sum().backward()
    assert min(steps) >= 0.249
    assert len(steps) == (4 if solver is compat.odeint else 8)


def test_first_and_largest_steps_are_used():
    steps = []
    f = Net()
    f.callback_step = lambda t0, y0, dt: steps.append(float(dt))
    compat.odeint(f, start(), times(), options={"first_step": 0.003, "max_step": 0.1})
    assert steps[0] == pytest.approx(0.003, abs=1e-12)
    assert max(steps) <= 0.1 * 1.011


def test_grid_constructor_sees_the_users_times_field_and_state():
    calls = []
    f, y0, t = Net(torch.float32), start(torch.float32, True), times(True, torch.float32)

    def grid(func, y, times):
        calls.append(times.tolist())
        assert func is f
        assert y is y0
        assert times.dtype is torch.float32
        return torch.linspace(float(times[0]), float(times[-1]), 20)

    ys = compat.odeint_adjoint(f, y0, t, method="rk4", options={"grid_constructor": grid})
    ys.sum().backward()
    assert calls[0] == t.tolist()
    assert calls[1:] == [[float(a), float(b)] for b, a in zip(t[:-1].flip(0), t[1:].flip(0), strict=True)]


# ------------------------------------------------------------------------------------------------------- gradients


def gradients(solver, f, y0, t, **call):
    """Gradients of a fixed random functional with respect to y0, parameters and t."""
    f = copy.deepcopy(f)
    f.zero_grad()
    ys = solver(f, y0, t, **call)
    generator = torch.Generator().manual_seed(1)
    loss = sum((y * torch.randn(y.shape, generator=generator, dtype=torch.float64)).sum().real for y in each(ys))
    return torch.autograd.grad(loss, [*each(y0), t, f.a, f.b], allow_unused=False)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("state", ["tensor", "tuple"])
@pytest.mark.parametrize("method", FIXED)
def test_gradients_of_fixed_methods_through_odeint(method, state, reverse):
    f, y0 = (Net(), start(requires_grad=True)) if state == "tensor" else (TupleNet(), tuple_start(requires_grad=True))
    t = times(reverse, requires_grad=True)
    for options in ({}, {"step_size": 0.13, "interp": "cubic"}, {"step_size": 0.13}):
        call = {"method": method, "options": options}
        ours, theirs = (gradients(m.odeint, f, y0, t, **call) for m in (compat, torchdiffeq))
        *ours_but_t, _ = _without_t(ours, y0)
        *theirs_but_t, _ = _without_t(theirs, y0)
        assert_near(tuple(ours_but_t), tuple(theirs_but_t), 1e-11)
        assert_near(ours[len(each(y0))], theirs[len(each(y0))], 1e-10)


def _without_t(found, y0):
    n = len(each(y0))
    return [*found[:n], *found[n + 1 :], None]


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("state", ["tensor", "tuple"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("interface", ["odeint", "odeint_adjoint"])
def test_gradients_of_adaptive_methods(interface, dtype, state, reverse):
    f = Net(dtype) if state == "tensor" else TupleNet(dtype)
    y0 = start(dtype, True) if state == "tensor" else tuple_start(dtype, True)
    t = times(reverse, requires_grad=not dtype.is_complex)
    call = {"rtol": 1e-7, "atol": 1e-9}
    if dtype.is_complex:  # torchdiffeq's gradients of t are not defined there
        t = t.requires_grad_()
        ours = gradients(getattr(compat, interface), f, y0, t, **call)
        theirs = gradients(compat.odeint, f, y0, t, method="dopri8", **call)
    else:
        ours, theirs = (gradients(getattr(m, interface), f, y0, t, **call) for m in (compat, torchdiffeq))
    assert_near(tuple(ours), tuple(theirs), 1e-5)


@pytest.mark.parametrize("method", ["dopri8", "tsit5", "bosh3", "rk4"])
def test_adjoint_gradients_agree_with_plain_backpropagation(method):
    y0, t = start(requires_grad=True), times(requires_grad=True)
    call = {"method": method}
    call |= {"options": {"step_size": 0.01}} if method == "rk4" else {"rtol": 1e-5, "atol": 1e-7}
    ours = gradients(compat.odeint_adjoint, Net(), y0, t, **call)
    theirs = gradients(torchdiffeq.odeint, Net(), y0, t, rtol=1e-7, atol=1e-9)
    assert_near(tuple(ours), tuple(theirs), 3e-4)


@pytest.mark.parametrize(
    "call",
    [
        {"adjoint_rtol": 1e-5, "adjoint_atol": 1e-7},
        {"adjoint_rtol": (1e-5,) * 6, "adjoint_atol": (1e-7,) * 6},
        {"adjoint_method": "bosh3", "adjoint_rtol": 1e-5},
        {"adjoint_method": "rk4", "adjoint_options": {"step_size": 0.02}},
        {"adjoint_options": {"norm": "seminorm"}},
        {"adjoint_options": {"norm": lambda parts: max(x.abs().max() for x in parts)}},
        {"options": {"norm": lambda y: y.abs().max()}},
        {"options": {"first_step": 0.02, "max_step": 0.2}},
        {"adjoint_options": {"first_step": 0.02, "max_step": 0.2, "step_t": torch.tensor([0.7]), "safety": 0.7}},
    ],
)
def test_adjoint_keywords(call):
    y0, t = start(requires_grad=True), times(requires_grad=True)
    call = {"rtol": 1e-5, "atol": 1e-7, **call}
    ours, theirs = (gradients(m.odeint_adjoint, Net(), y0, t, **call) for m in (compat, torchdiffeq))
    assert_near(tuple(ours), tuple(theirs), 5e-4)


@pytest.mark.parametrize("norm", ["seminorm", "max"])
def test_adjoint_norms_of_tuple_states(norm):
    seen = []

    def largest(parts):
        seen.append([tuple(x.shape) for x in parts])
        return max(x.abs().max() for x in parts)

    y0, t = tuple_start(requires_grad=True), times(requires_grad=True)
    call = {"adjoint_options": {"norm": largest if norm == "max" else norm}}
    ours = gradients(compat.odeint_adjoint, TupleNet(), y0, t, **call)
    shapes = seen[:1]
    theirs = gradients(torchdiffeq.odeint_adjoint, TupleNet(), y0, t, **call)
    assert shapes == seen[-1:]
    assert_near(tuple(ours), tuple(theirs), 1e-4)


def test_parameters_in_the_norm_cost_steps_and_seminorm_saves_them():
    def backward_steps(options):
        torch.manual_seed(0)
        f = nn.Sequential(nn.Linear(2, 64), nn.Tanh(), nn.Linear(64, 2)).double()

        class Field(nn.Module):
            def __init__(self):
                super().__init__()
                self.net = f
                self.count = 0

            def forward(self, t, y):
                return self.net(y) * torch.sin(20 * t)

            def callback_step_adjoint(self, t0, y0, dt):
                self.count += 1

        field = Field()
        y0 = torch.ones(2, dtype=torch.float64)
        ys = compat.odeint_adjoint(
            field, y0, torch.tensor([0.0, 1.0], dtype=torch.float64), adjoint_options=options, rtol=1e-6, atol=1e-8
        )
        ys[-1].sum().backward()
        return field.count

    assert backward_steps({"norm": "seminorm"}) < backward_steps({})


def test_an_unused_parameter_gets_zeros_and_adjoint_params_are_obeyed():
    f = Net()
    compat.odeint_adjoint(f, start(), times()).sum().backward()
    assert torch.equal(f.unused.grad, torch.zeros(2, dtype=torch.float64))
    reference = f.a.grad
    f.zero_grad()
    compat.odeint_adjoint(f, start(), times(), adjoint_params=[f.a]).sum().backward()
    assert f.b.grad is None
    assert_near(f.a.grad, reference, 1e-6)
    assert not compat.odeint_adjoint(f, start(), times(), adjoint_params=()).requires_grad


def test_tensors_of_a_closure_are_adjoint_params():
    w = torch.tensor([0.5, 1.0], dtype=torch.float64, requires_grad=True)
    doubled = 2 * w

    def f(t, y):
        return doubled * y

    y0 = torch.ones(2, dtype=torch.float64)
    for solver, params in ((compat.odeint, {}), (compat.odeint_adjoint, {"adjoint_params": (doubled,)})):
        w.grad = None
        doubled = 2 * w
        params = {"adjoint_params": (doubled,)} if params else {}
        solver(f, y0, torch.tensor([0.0, 1.0], dtype=torch.float64), **params)[-1].sum().backward()
        assert_near(w.grad, 2 * torch.exp(2 * w.detach()), 1e-6)


def test_replicas_of_data_parallel_keep_their_parameters():
    f = Net()
    replica = f._replicate_for_data_parallel()
    for name, parameter in f.named_parameters():
        object.__setattr__(replica, name, parameter * 1.0)
        replica.__dict__[name] = parameter * 1.0
    assert not list(replica.parameters())
    compat.odeint_adjoint(replica, start(), times()).sum().backward()
    assert f.a.grad.abs().sum() > 0


def test_double_backward_through_odeint():
    y0 = start(requires_grad=True)

    def second(module):
        (gradient,) = torch.autograd.grad(
            module.odeint(Net(), y0, times()[:2], rtol=1e-5, atol=1e-7)[-1].pow(2).sum(), y0, create_graph=True
        )
        return torch.autograd.grad(gradient.pow(2).sum(), y0)[0]

    assert_near(second(compat), second(torchdiffeq), 5e-4)


def test_a_gradient_that_cannot_be_trusted_warns():
    y0 = torch.ones(2, dtype=torch.float64, requires_grad=True)
    t = torch.tensor([0.0, 1.0], dtype=torch.float64)
    ys = compat.odeint_adjoint(lambda t, y: -y, y0, t, method="euler", options={"step_size": 0.25}, adjoint_params=())
    with pytest.warns(RuntimeWarning, match="cannot be trusted"):
        ys[-1].sum().backward()
    # The gradient is torchdiffeq's all the same.
    other = y0.detach().clone().requires_grad_()
    torchdiffeq.odeint_adjoint(
        lambda t, y: -y, other, t, method="euler", options={"step_size": 0.25}, adjoint_params=()
    )[-1].sum().backward()
    assert_near(y0.grad, other.grad, 1e-12)


# ------------------------------------------------------------------------------------------------------- callbacks


def record(f, suffix=""):
    calls = []
    for name in ("callback_step", "callback_accept_step", "callback_reject_step"):

        def callback(t0, y0, dt, name=name):
            shapes = [x.shape for x in y0] if isinstance(y0, tuple) else y0.shape
            calls.append((name, t0.dtype, dt.dtype, t0.item(), dt.item(), shapes))

        setattr(f, name + suffix, callback)
    return calls


@pytest.mark.parametrize("t_dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("state", ["tensor", "tuple"])
@pytest.mark.parametrize("reverse", [False, True])
def test_callbacks_of_fixed_methods_are_torchdiffeqs(reverse, state, t_dtype):
    calls = []
    for module in (compat, torchdiffeq):
        f, y0 = (Net(), start()) if state == "tensor" else (TupleNet(), tuple_start())
        calls.append(record(f))
        with pytest.warns(UserWarning, match="does not support callbacks"):
            module.odeint(f, y0, times(reverse, t_dtype), method="rk4", options={"step_size": 0.25})
    ours, theirs = calls
    assert len(ours) == len(theirs) == 5
    for mine, other in zip(ours, theirs, strict=True):
        assert mine[:3] == other[:3]
        assert mine[5] == other[5]
        assert mine[3:5] == pytest.approx(other[3:5], abs=1e-6)


@pytest.mark.parametrize("state", ["tensor", "tuple"])
@pytest.mark.parametrize("reverse", [False, True])
def test_callbacks_of_adaptive_methods(reverse, state):
    """Steps differ a little, so their protocol is compared."""
    for module in (compat, torchdiffeq):
        f, y0 = (Net(), start()) if state == "tensor" else (TupleNet(), tuple_start())
        calls = record(f)
        module.odeint(f, y0, times(reverse), rtol=1e-4, atol=1e-6, options={"first_step": 1.0})
        names = [call[0] for call in calls]
        assert names[:2] == ["callback_step", "callback_reject_step"]
        assert names[::2] == ["callback_step"] * (len(names) // 2)
        assert set(names[1::2]) == {"callback_accept_step", "callback_reject_step"}
        accepted = [call for call in calls if call[0] == "callback_accept_step"]
        assert accepted[0][3] == times(reverse)[0].item()
        sign = -1 if reverse else 1
        for now, after in itertools.pairwise(accepted):
            assert now[4] > 0
            assert after[3] == pytest.approx(now[3] + sign * now[4], abs=1e-12)
        for call in calls:
            assert call[1:3] == (torch.float64, torch.float64)
            assert call[5] == ([(2, 3), (2,)] if state == "tuple" else (2, 3))


@pytest.mark.parametrize("state", ["tensor", "tuple"])
@pytest.mark.parametrize("method", ["rk4", "dopri5"])
def test_callbacks_of_the_adjoint_solve(method, state):
    shapes, counts, first = [], [], []
    for module in (compat, torchdiffeq):
        f = Net() if state == "tensor" else TupleNet()
        y0 = start(requires_grad=True) if state == "tensor" else tuple_start(requires_grad=True)
        calls = []
        f.callback_step_adjoint = lambda t0, y0, dt, calls=calls: calls.append((t0, y0, dt))
        options = {"step_size": 0.25} if method == "rk4" else {}
        ys = module.odeint_adjoint(f, y0, times(), method=method, options=options)
        assert not calls
        ys = ys[0] if isinstance(ys, tuple) else ys
        ys.sum().backward()
        shapes.append([x.shape for x in calls[0][1]])
        counts.append(len(calls))
        first.append(calls[0])
    assert shapes[0] == shapes[1]
    assert first[0][0] == first[1][0] == times()[-1]
    for mine, other in zip(first[0][1], first[1][1], strict=True):
        assert_near(mine, other, 1e-5)
    assert counts[0] == counts[1] if method == "rk4" else counts[0] <= 2 * counts[1]


def test_adjoint_callbacks_of_a_reversed_solve_see_the_users_time():
    f, seen = Net(), []
    f.callback_step_adjoint = lambda t0, y0, dt: seen.append((float(t0), float(dt)))
    compat.odeint_adjoint(f, start(requires_grad=True), times(True)).sum().backward()
    assert seen[0][0] == times(True)[-1]
    assert all(0.2 <= t <= 1.4 and dt > 0 for t, dt in seen)


# ----------------------------------------------------------------------------------------------------------- dense


@pytest.mark.parametrize("reverse", [False, True])
def test_dense_solution(reverse):
    f, y0 = Net(), start(requires_grad=True)
    ends = (torch.tensor(1.4), torch.tensor(0.2)) if reverse else (torch.tensor(0.2), torch.tensor(1.4))
    solution = compat.odeint_dense(f, y0, *ends)
    inner = torch.tensor(0.77)
    exact = torchdiffeq.odeint(f, y0, torch.stack([ends[0], inner]), rtol=1e-10, atol=1e-12)[-1]
    assert_near(solution(inner), exact, 1e-6)
    if not reverse:
        assert_near(solution(inner), torchdiffeq.odeint_dense(f, y0, *ends)(inner), 1e-6)
    (gradient,) = torch.autograd.grad(solution(inner).sum(), y0)
    (reference,) = torch.autograd.grad(exact.sum(), y0)
    assert_near(gradient, reference, 1e-5)
    assert solution(torch.tensor([0.3, 0.4, 0.5])).shape == (3, 2, 3)
    with pytest.raises(pynode.InputError, match="span"):
        solution(3.0)


# ---------------------------------------------------------------------------------------------------------- errors


def test_scipys_solvers_have_neither_events_nor_dense_output():
    where = torch.tensor([0.0, 1.0], dtype=torch.float64)
    for call in (
        lambda: compat.odeint(Net(), start(), where, method="scipy_solver", event_fn=lambda t, y: t - 0.5),
        lambda: compat.odeint_adjoint(Net(), start(), where, method="scipy_solver", event_fn=lambda t, y: t - 0.5),
        lambda: compat.odeint_dense(Net(), start(), 0.0, 1.0, method="scipy_solver"),
    ):
        with pytest.raises(pynode.UnsupportedError, match=r"scipy_solver.*Remedy: use 'dopri5'"):
            call()


BAD_CALLS = {
    "method": (ValueError, "Invalid method 'rk5'.*'dopri5'", {"method": "rk5"}),
    "list state": (AssertionError, "y0 is a list", {"y0": [start()]}),
    "number": (AssertionError, "y0 is a float", {"y0": 1.0}),
    "integer state": (AssertionError, "dtype torch.int64", {"y0": torch.ones(2, dtype=torch.int64)}),
    "times as list": (AssertionError, "t is a list", {"t": [0.0, 1.0]}),
    "integer times": (AssertionError, "dtype torch.int64", {"t": torch.tensor([0, 1])}),
    "two-dimensional times": (AssertionError, "1-D", {"t": torch.zeros(2, 2)}),
    "no times": (AssertionError, "non-empty", {"t": torch.zeros(0)}),
    "repeated times": (AssertionError, "strictly", {"t": torch.tensor([0.0, 1.0, 1.0])}),
    "zigzag": (AssertionError, "strictly", {"t": torch.tensor([0.0, 1.0, 0.5])}),
    "negative rtol": (AssertionError, "rtol = -1", {"rtol": -1.0}),
    "rtol with gradient": (AssertionError, "gradient", {"rtol": torch.tensor(1e-3, requires_grad=True)}),
    "atol of another shape": (AssertionError, r"atol has shape \(5,\)", {"atol": torch.full((5,), 1e-3)}),
    "tuple tolerance": (AssertionError, "rtol has 3 entries", {"rtol": (1e-3,) * 3, "y0": tuple_start()}),
    "step_size and grid": (
        ValueError,
        "mutually exclusive",
        {"method": "rk4", "options": {"step_size": 0.1, "grid_constructor": lambda f, y, t: t}},
    ),
    "interp": (ValueError, "'linear' or 'cubic'", {"method": "rk4", "options": {"interp": "spline"}}),
    "repeated stops": (
        ValueError,
        "repeat a time",
        {"options": {"step_t": torch.tensor([0.3]), "jump_t": torch.tensor([0.3])}},
    ),
    "min over max": (AssertionError, "min_step", {"options": {"min_step": 2.0, "max_step": 1.0}}),
    "first_step": (AssertionError, "first_step", {"options": {"first_step": -1.0}}),
}


@pytest.mark.parametrize("name", BAD_CALLS)
def test_bad_calls(name):
    kind, message, changed = BAD_CALLS[name]
    call = {"y0": start(), "t": times(), **changed}
    for solver in (compat.odeint, compat.odeint_adjoint):
        with pytest.raises(kind, match=message) as caught:
            solver(Net(), **call)
        assert isinstance(caught.value, pynode.PynodeError)


@pytest.mark.parametrize("solver", [compat.odeint, compat.odeint_adjoint])
def test_failed_solves_are_assertion_errors_in_torchdiffeqs_terms(solver):
    params = {"adjoint_params": ()} if solver is compat.odeint_adjoint else {}
    with pytest.raises(AssertionError, match="max_num_steps") as caught:
        solver(Net(), start(), times(), options={"max_num_steps": 2}, **params)
    assert isinstance(caught.value, pynode.SolveError)
    assert caught.value.retcode is pynode.ReturnCode.MaxIters
    with pytest.raises(AssertionError, match="step") as caught:
        solver(lambda t, y: y**2, torch.ones(1), torch.tensor([0.0, 2.0]), **params)
    assert isinstance(caught.value, pynode.SolveError)


def test_adjoint_needs_parameters_or_options():
    y0, t = start(), times()
    with pytest.raises(ValueError, match="adjoint_params"):
        compat.odeint_adjoint(lambda t, y: y, y0, t)
    with pytest.raises(ValueError, match="adjoint_options"):
        compat.odeint_adjoint(Net(), y0, t, adjoint_method="rk4", options={"first_step": 0.1})
    with pytest.raises(ValueError, match="seminorm"):
        compat.odeint_adjoint(Net(), y0, t, adjoint_options={"norm": "semi"})


def test_a_wrong_derivative_is_a_field_error():
    with pytest.raises(pynode.FieldError, match="shape"):
        compat.odeint(lambda t, y: y[0], start(), times())
    with pytest.raises(pynode.FieldError, match="NoneType"):
        compat.odeint(lambda t, y: None, start(), times())
    with pytest.raises(pynode.FieldError, match="length"):
        compat.odeint(lambda t, y: y[0], tuple_start(), times())


def test_warnings_are_torchdiffeqs():
    f, y0, t = Net(), start(), times()
    for call in ({"options": {"step_size": 0.1}}, {"method": "rk4", "options": {"first_step": 0.1}}):
        for module in (compat, torchdiffeq):
            with pytest.warns(UserWarning, match="Unexpected arguments"):
                module.odeint(f, y0, t, **call)
    f.b.requires_grad_(False)
    for module in (compat, torchdiffeq):
        with pytest.warns(UserWarning, match="adjoint"):
            module.odeint_adjoint(f, y0, t, adjoint_options={"norm": lambda parts: parts[1].abs().max()})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compat.odeint(f, y0, t, options={"max_step": math.inf})
        compat.odeint_adjoint(f, y0, t, options={"max_step": math.inf})
