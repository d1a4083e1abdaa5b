"""Every input that cannot be used has its exception, whose message says value, expectation and remedy."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch

import pynode
from pynode import (
    BacksolveAdjoint,
    CheckpointedAdjoint,
    DirectAdjoint,
    FieldError,
    GradientError,
    InputError,
    ReturnCode,
    SolveError,
    UnsupportedError,
)

Y0 = torch.tensor([1.0, 2.0])
T = [0.0, 1.0]
ADAPTIVE, FIXED = pynode.Tsit5(), pynode.RK4(steps=20)
both = pytest.mark.parametrize("algorithm", [ADAPTIVE, FIXED], ids=["adaptive", "fixed"])
modes = pytest.mark.parametrize("mode", ["no_grad", "default", "direct", "backsolve"])


def decay(t, y):
    return -y


def raises(error: type[Exception], value: str, expectation: str, remedy: str, call) -> Exception:
    """Call and check the three parts of the message, each a fragment of the part it belongs to."""
    with pytest.raises(error) as caught:
        call()
    message = str(caught.value)
    parts = re.fullmatch(
        r"(?P<value>.*)\. Expected: (?P<expectation>.*)\. Remedy: (?P<remedy>.*)\.", message, re.DOTALL
    )
    assert parts is not None, message
    assert value in parts["value"]
    assert expectation in parts["expectation"]
    assert remedy in parts["remedy"]
    assert isinstance(caught.value, pynode.PynodeError)
    return caught.value


def solved(f=decay, y0=Y0, t=T, **options):
    return lambda: pynode.solve(f, y0, t, **options)


def in_mode(mode: str, f, y0=Y0, t=T, **options):
    """The same call with and without a gradient in sight; f is probed in some and not in others."""

    def call():
        if mode == "no_grad":
            with torch.no_grad():
                return pynode.solve(f, y0, t, **options)
        sensealg = {"default": None, "direct": DirectAdjoint(), "backsolve": BacksolveAdjoint()}[mode]
        return pynode.solve(f, y0.clone().requires_grad_(), t, sensealg=sensealg, **options)

    return call


# ------------------------------------------------------------------------------------------------------------- times


@pytest.mark.parametrize(
    ("t", "value", "expectation", "remedy"),
    [
        ([], "t has shape (0,)", "non-empty 1-D", "start and end"),
        ([0.5], "t has 1 element", "a start and an end", "give both"),
        (1.0, "t has shape ()", "1-D", "start and end"),
        (torch.zeros(2, 2), "t has shape (2, 2)", "1-D", "flatten"),
        (
            [0.0, 1.0, 0.5],
            "t[1] = 1.0 is followed by t[2] = 0.5",
            "strictly increasing or strictly decreasing",
            "sort t",
        ),
        ([1.0, 0.0, 0.5], "t[1] = 0.0 is followed by t[2] = 0.5", "strictly", "sort t"),
        ([0.0, 0.0], "t[0] = 0.0 is followed by t[1] = 0.0", "strictly", "torch.unique"),
        ([0.0, 1.0, 1.0], "t[1] = 1.0 is followed by t[2] = 1.0", "strictly", "torch.unique"),
        ([0.0, math.nan], "t[1] = nan", "finite", "sort t"),
        ([math.nan, 1.0], "t[0] = nan", "finite", "sort t"),
        ([0.0, math.inf], "inf", "finite times", "remove it"),
        (torch.tensor([0, 1]), "t has dtype torch.int64", "float32 or float64", "t.double()"),
        (None, "t is a NoneType", "1-D tensor or a sequence of numbers", "pass a tensor"),
        ("abc", "t is a str", "1-D tensor or a sequence of numbers", "pass a tensor"),
    ],
)
def test_times(t, value, expectation, remedy) -> None:
    raises(InputError, value, expectation, remedy, solved(t=t))


@pytest.mark.parametrize(
    ("saveat", "value", "expectation", "remedy"),
    [
        ([0.5, 1.5], "saveat goes from 0.5 to 1.5", "within the span of t, 0 to 1", "extend t"),
        ([0.8, 0.2], "saveat runs against t", "direction of t", "flip(0)"),
        ([0.2, 0.2], "saveat[0] = 0.2", "strictly", "sort saveat"),
        ([], "saveat has shape (0,)", "non-empty", "start and end"),
        ([math.nan], "saveat", "finite", "saveat"),
    ],
)
def test_save_times(saveat, value, expectation, remedy) -> None:
    raises(InputError, value, expectation, remedy, solved(saveat=saveat))


def test_dense_output_outside_the_span() -> None:
    sol = pynode.solve(decay, Y0, T)
    raises(InputError, "times from 1.5 to 1.5", "[0, 1]", "longer span", lambda: sol(1.5))
    raises(InputError, "shape (2, 2)", "at most one dimension", "flatten", lambda: sol(torch.zeros(2, 2)))
    raises(InputError, "nan", "within the integrated span", "longer span", lambda: sol(math.nan))


# ------------------------------------------------------------------------------------------------------------- state


@pytest.mark.parametrize(
    ("y0", "value", "expectation", "remedy"),
    [
        (1.0, "y0 is a float", "a tensor", "torch.as_tensor"),
        (np.ones(2), "y0 is a ndarray", "a tensor", "torch.as_tensor"),
        ((Y0, None), "y0[1] is a NoneType", "a tensor", "torch.as_tensor"),
        ({"a": {"b": [1.0]}}, "y0['a']['b'][0] is a float", "a tensor", "torch.as_tensor"),
        ([], "y0 = [] holds no tensor", "at least one tensor", "initial state"),
        (torch.ones(0), "y0 has no element", "at least one element", "non-empty"),
        (torch.ones(2, dtype=torch.int64), "y0 has dtype torch.int64", "float32", "y0.float()"),
        (torch.ones(2, dtype=torch.bool), "y0 has dtype torch.bool", "float32", "y0.float()"),
        (torch.ones(2, dtype=torch.float16), "y0 has dtype torch.float16", "float32", "y0.float()"),
        ((Y0, Y0.double()), "y0[1] is torch.float64", "one device and one precision", ".to()"),
    ],
)
def test_states(y0, value, expectation, remedy) -> None:
    raises(InputError, value, expectation, remedy, solved(y0=y0))


def test_field_and_args() -> None:
    raises(InputError, "f is a int", "a callable f(t, y, *args)", "module or function", solved(f=3))
    raises(InputError, "args is a Tensor", "a tuple", "args=(value,)", solved(args=Y0))


# ------------------------------------------------------------------------------------------------- what f returns


TREE = (torch.ones(2), {"a": torch.ones(3)})


@modes
@both
@pytest.mark.parametrize(
    ("f", "value", "expectation", "remedy"),
    [
        (lambda t, y: y[:1], "shape (1,)", "shape of y, (2,)", "one derivative per element"),
        (lambda t, y: y[None], "shape (1, 2)", "shape of y, (2,)", "one derivative per element"),
        (lambda t, y: y.sum(), "shape ()", "shape of y, (2,)", "one derivative per element"),
        (lambda t, y: y.double(), "dtype torch.float64", "dtype of y, torch.float32", ".to(dtype)"),
        (lambda t, y: y.to(torch.complex64), "dtype torch.complex64", "dtype of y, torch.float32", ".to(dtype)"),
        (lambda t, y: y.to("meta"), "on meta", "device cpu", "move the model"),
        (lambda t, y: None, "NoneType", "a tensor like y", "return statement"),
        (lambda t, y: 0.0, "float", "a tensor like y", "return a tensor"),
        (lambda t, y: (y,), "tuple", "a tensor like y", "return a tensor"),
    ],
    ids=["short", "deep", "scalar", "double", "complex", "device", "none", "float", "tuple"],
)
def test_a_field_of_another_form(f, value, expectation, remedy, algorithm, mode) -> None:
    raises(FieldError, value, expectation, remedy, in_mode(mode, f, algorithm=algorithm))


@both
@pytest.mark.parametrize(
    ("f", "value", "expectation", "remedy"),
    [
        (lambda t, y: y[0], "Tensor", "sequence of length 2", "tree of y"),
        (lambda t, y: (y[0],), "tuple of length 1", "sequence of length 2", "tree of y"),
        (lambda t, y: (y[0], y[0]), "Tensor", "dictionary with keys ['a']", "tree of y"),
        (lambda t, y: (y[0], {"b": y[0]}), "keys ['b']", "dictionary with keys ['a']", "tree of y"),
        (lambda t, y: (y[0], {"a": y[0]}), "shape (2,) for y[1]['a']", "(3,)", "one derivative per element"),
        (lambda t, y: (y[0], {"a": None}), "NoneType for y[1]['a']", "a tensor", "return statement"),
    ],
    ids=["leaf", "short", "no dictionary", "other key", "other shape", "none"],
)
def test_a_field_of_another_tree(f, value, expectation, remedy, algorithm) -> None:
    raises(FieldError, value, expectation, remedy, solved(f=f, y0=TREE, algorithm=algorithm))


@both
@modes
def test_a_field_whose_form_changes_on_the_way(algorithm, mode) -> None:
    f = lambda t, y: -y if t < 0.5 else -y[:1]  # noqa: E731
    raises(FieldError, "shape (1,)", "(2,)", "one derivative", in_mode(mode, f, algorithm=algorithm))


@modes
@both
@pytest.mark.parametrize("shape", [(2,), (1, 2)], ids=["flat", "matrix"])
def test_a_field_that_changes_y_in_place(shape, algorithm, mode) -> None:
    y0 = Y0.reshape(shape).clone()
    f = lambda t, y: y.neg_()  # noqa: E731
    raises(FieldError, "y in place", "leave y alone", "y.clone()", in_mode(mode, f, y0, algorithm=algorithm))
    assert torch.equal(y0, Y0.reshape(shape))


# ----------------------------------------------------------------------------------------------------- non-finite f


def unusable(solution) -> bool:
    """Nothing that was not reached looks like a number: absent, or not finite."""
    saved = solution.ys
    return len(saved) < 2 or not torch.isfinite(saved[-1]).all()


@modes
@both
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_non_finite_at_the_start(value, algorithm, mode) -> None:
    f = lambda t, y: y * value  # noqa: E731
    error = raises(SolveError, "t = 0", "finite f(t0, y0)", "torch.isfinite", in_mode(mode, f, algorithm=algorithm))
    assert error.retcode is ReturnCode.InitialFailure
    assert error.t == 0.0
    solution = in_mode(mode, f, algorithm=algorithm, throw=False)()
    assert solution.retcode is ReturnCode.InitialFailure
    assert not solution.retcode.successful
    assert solution.message == str(error)
    assert unusable(solution)


@both
def test_a_non_finite_initial_state(algorithm) -> None:
    y0 = torch.tensor([1.0, math.nan])
    raises(SolveError, "non-finite", "finite", "", solved(y0=y0, algorithm=algorithm))


@modes
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_non_finite_half_way_adaptive(value, mode) -> None:
    f = lambda t, y: torch.where(t > 0.5, y * value, -y)  # noqa: E731
    error = raises(SolveError, "non-finite", "finite values throughout", "bound the field", in_mode(mode, f))
    assert error.retcode is ReturnCode.Unstable
    assert error.t == pytest.approx(0.5, abs=1e-6)  # steps shrink towards the border, which float32 resolves to 6e-8
    solution = in_mode(mode, f, t=[0.0, 0.25, 0.75, 1.0], throw=False)()
    assert solution.retcode is ReturnCode.Unstable
    # What was reached is right (default tolerance 1e-5), and nothing else is there.
    assert solution.ts.tolist() == [0.0, 0.25]
    torch.testing.assert_close(solution.ys[1].detach(), Y0 * math.exp(-0.25), rtol=0, atol=1e-4)


@modes
def test_non_finite_half_way_fixed(mode) -> None:
    f = lambda t, y: torch.where(t > 0.5, y * math.nan, -y)  # noqa: E731
    error = raises(
        SolveError,
        "t = 0.5 because the field or the state became non-finite (the step from there to t = 0.55 is not finite)",
        "finite values throughout",
        "fixed step",
        in_mode(mode, f, algorithm=FIXED),
    )
    assert error.retcode is ReturnCode.Unstable
    assert error.t == 0.5
    solution = in_mode(mode, f, t=[0.0, 0.25, 0.75, 1.0], algorithm=FIXED, throw=False)()
    assert solution.retcode is ReturnCode.Unstable
    assert solution.ts.tolist() == [0.0, 0.25]  # what was reached, and nothing else
    assert torch.isfinite(solution.ys).all()


@both
def test_blow_up_in_finite_time(algorithm) -> None:
    f = lambda t, y: y**3  # noqa: E731  (y = 1 / sqrt(1 - 2 t): infinite at t = 0.5)
    y0 = torch.ones(1, dtype=torch.float64)
    error = raises(SolveError, "t = ", "", "", solved(f=f, y0=y0, algorithm=algorithm, max_steps=2000))
    assert error.retcode in (ReturnCode.Unstable, ReturnCode.DtLessThanMin, ReturnCode.MaxIters)
    if algorithm is ADAPTIVE:
        assert error.t == pytest.approx(0.5, abs=1e-3)
    assert error.solution is not None
    assert unusable(error.solution)


@both
def test_one_bad_component_is_enough(algorithm) -> None:
    f = lambda t, y: torch.stack([-y[0], y[1] / torch.clamp(0.5 - t, min=0.0)])  # noqa: E731
    with pytest.raises(SolveError):
        pynode.solve(f, Y0, T, algorithm=algorithm, max_steps=2000)


@pytest.mark.parametrize("sensealg", [CheckpointedAdjoint(), BacksolveAdjoint()], ids=["checkpointed", "backsolve"])
def test_a_non_finite_loss(sensealg) -> None:
    y0 = Y0.clone().requires_grad_()
    loss = (pynode.solve(decay, y0, T, sensealg=sensealg).ys[-1] * math.nan).sum()
    with pytest.raises(pynode.PynodeError, match="finite"):
        loss.backward()
    assert y0.grad is None


# -------------------------------------------------------------------------------------------------- options of steps


@pytest.mark.parametrize("name", ["rtol", "atol"])
@pytest.mark.parametrize("value", [-1e-3, math.nan, math.inf, -math.inf])
def test_tolerances(name, value) -> None:
    raises(InputError, f"{name} = {value}", "finite number >= 0", f"positive {name}", solved(**{name: value}))
    raises(InputError, name, "finite number >= 0", f"positive {name}", solved(**{name: torch.tensor([1e-3, value])}))


def test_tolerances_of_another_type_or_shape() -> None:
    raises(InputError, "rtol = '1e-3'", "a number", "positive rtol", solved(rtol="1e-3"))
    raises(InputError, "atol = None", "a number", "positive atol", solved(atol=None))
    raises(InputError, "atol has shape (3,)", "flattened state, 2", "one number", solved(atol=torch.full((3,), 1e-3)))


@pytest.mark.parametrize(
    ("dtype", "rtol"), [(torch.float32, 1e-9), (torch.float64, 1e-17), (torch.float32, 0.0), (torch.float64, 0.0)]
)
def test_tolerances_below_what_the_dtype_holds(dtype, rtol) -> None:
    error = raises(
        InputError,
        f"rtol = {rtol:.3g}",
        "atol + rtol * |y0|",
        "raise rtol",
        solved(y0=Y0.to(dtype), rtol=rtol, atol=1e-20),
    )
    assert str(dtype) in str(error)
    assert ("solve in float64" in str(error)) == (dtype == torch.float32)


def test_an_absolute_tolerance_alone_is_enough() -> None:
    assert pynode.solve(decay, Y0, T, rtol=0.0, atol=1e-4).retcode is ReturnCode.Success


def test_fixed_algorithms_have_no_tolerance_to_check() -> None:
    assert pynode.solve(decay, Y0, T, algorithm=FIXED, rtol=0.0, atol=0.0).retcode is ReturnCode.Success


@pytest.mark.parametrize(
    ("options", "value", "expectation"),
    [
        ({"max_steps": 0}, "max_steps = 0", "integer >= 1"),
        ({"max_steps": 1.5}, "max_steps = 1.5", "integer >= 1"),
        ({"dt0": -0.1}, "dt0 = -0.1", "positive"),
        ({"dt0": math.nan}, "dt0 = nan", "positive"),
        ({"dtmin": -1.0}, "dtmin = -1.0", "0 <= dtmin <= dtmax"),
        ({"dtmin": 2.0, "dtmax": 1.0}, "dtmax = 1.0", "0 <= dtmin <= dtmax"),
        ({"dtmax": 0.0}, "dtmax = 0.0", "dtmax > 0"),
        ({"tstops": [math.nan]}, "tstops", "finite"),
        ({"controller": "pid"}, "controller is 'pid'", "controller object"),
    ],
    ids=str,
)
def test_options_of_step_control(options, value, expectation) -> None:
    raises(InputError, value, expectation, "", solved(**options))


@modes
def test_max_steps_reached_adaptive(mode) -> None:
    f = lambda t, y: torch.sin(200 * t) * y  # noqa: E731
    error = raises(SolveError, "max_steps = 7", "within the limit", "raise max_steps", in_mode(mode, f, max_steps=7))
    assert error.retcode is ReturnCode.MaxIters
    assert 0 < error.t < 1
    solution = in_mode(mode, f, max_steps=7, throw=False)()
    assert solution.retcode is ReturnCode.MaxIters
    assert solution.ts.tolist() == [0.0]
    assert len(solution.ys) == 1
    assert solution.stats.forward.accepted + solution.stats.forward.rejected == 7
    assert "MaxIters" in repr(solution)


def test_max_steps_reached_fixed() -> None:
    error = raises(
        SolveError,
        "20 steps and max_steps = 7",
        "within the limit",
        "raise max_steps",
        solved(algorithm=FIXED, max_steps=7),
    )
    assert error.retcode is ReturnCode.MaxIters
    assert len(error.solution.ys) == 1


@modes
def test_step_underflow(mode) -> None:
    f = lambda t, y: torch.sign(t - 0.4) * 1e6 * y.sign()  # noqa: E731
    error = raises(
        SolveError, "dtmin = 0.01", "meets the tolerance", "d_discontinuities=", in_mode(mode, f, dtmin=0.01)
    )
    assert error.retcode is ReturnCode.DtLessThanMin
    solution = in_mode(mode, f, dtmin=0.01, throw=False)()
    assert solution.retcode is ReturnCode.DtLessThanMin
    assert len(solution.ys) == 1


def test_a_solution_that_ends_with_an_infinite_slope() -> None:
    f = lambda t, y: torch.where(y > 0, -1 / y, math.nan)  # noqa: E731  (y = sqrt(1 - 2 t))
    y0 = torch.ones(1, dtype=torch.float64)
    with pytest.raises(SolveError) as caught:
        pynode.solve(f, y0, T, max_steps=3000)
    assert caught.value.retcode in (ReturnCode.Unstable, ReturnCode.DtLessThanMin)
    # Where y = eps the remaining time is eps**2 / 2; with atol = 1e-7 the solution is lost below y = 1e-3.
    assert caught.value.t == pytest.approx(0.5, abs=1e-5)


def test_a_failure_of_the_backward_solve_is_an_exception() -> None:
    y0 = Y0.clone().requires_grad_()
    sol = pynode.solve(lambda t, y: torch.sin(5 * y), y0, T, sensealg=BacksolveAdjoint(max_steps=2))
    error = raises(
        SolveError,
        "in the backward solve of BacksolveAdjoint",
        "within the limit",
        "max_steps",
        sol.ys[-1].sum().backward,
    )
    assert error.retcode is ReturnCode.MaxIters
    assert y0.grad is None


# ------------------------------------------------------------------------------------------------------------- names


@pytest.mark.parametrize(("name", "near"), [("tsit6", "Tsit5"), ("dopri", "DP5"), ("rk-4", "RK4"), ("vern8", "Vern7")])
def test_unknown_algorithm(name, near) -> None:
    error = raises(InputError, f"unknown algorithm {name!r}", "AdaptiveHeun", "did you mean", solved(algorithm=name))
    assert near in str(error).split("Remedy")[1]


def test_an_algorithm_that_is_none() -> None:
    raises(InputError, "unknown algorithm '???'", "Tsit5", "known algorithms are", solved(algorithm="???"))
    raises(InputError, "the class Tsit5", "an algorithm object", "Tsit5()", solved(algorithm=pynode.Tsit5))
    raises(InputError, "algorithm is 5", "an algorithm object or its name", "Tsit5()", solved(algorithm=5))


@pytest.mark.parametrize(
    ("sensealg", "value", "remedy"),
    [
        ("backsolve", "sensealg is 'backsolve'", "sensealg=BacksolveAdjoint()"),
        ("CheckpointAdjoint", "'CheckpointAdjoint'", "sensealg=CheckpointedAdjoint()"),
        (DirectAdjoint, "DirectAdjoint", "sensealg=DirectAdjoint()"),
        (7, "sensealg is 7", "sensealg=CheckpointedAdjoint()"),
    ],
    ids=str,
)
def test_unknown_sensitivity_algorithm(sensealg, value, remedy) -> None:
    raises(
        InputError,
        value,
        "one of CheckpointedAdjoint, DirectAdjoint, BacksolveAdjoint",
        remedy,
        solved(sensealg=sensealg),
    )


def test_unknown_backend() -> None:
    raises(InputError, "unknown backend 'tourch'", "'torch'", "backend='torch'", solved(backend="tourch"))


def test_a_combination_the_backend_lacks() -> None:
    class Rosenbrock(pynode.Algorithm):
        pass

    class Quadrature(pynode.SensitivityAlgorithm):
        pass

    raises(UnsupportedError, "Rosenbrock", "offers", "", solved(algorithm=Rosenbrock()))
    raises(UnsupportedError, "Quadrature", "offers", "", solved(sensealg=Quadrature()))


@pytest.mark.parametrize(
    ("make", "value", "expectation"),
    [
        (lambda: pynode.RK4(dt=-0.1), "RK4(dt=-0.1)", "positive finite"),
        (lambda: pynode.RK4(dt=math.nan), "RK4(dt=nan)", "positive finite"),
        (lambda: pynode.RK4(steps=0), "RK4(steps=0)", "integer >= 1"),
        (lambda: pynode.RK4(dt=0.1, steps=3), "dt and steps", "at most one"),
        (lambda: pynode.RK4(interpolation="spline"), "'spline'", "'hermite' or 'linear'"),
        (lambda: CheckpointedAdjoint(checkpoints=1), "checkpoints=1", "integer >= 2"),
        (lambda: BacksolveAdjoint(norm="max"), "norm='max'", "'seminorm', 'full' or a callable"),
        (lambda: BacksolveAdjoint(algorithm="tsit7"), "'tsit7'", "Tsit5"),
        (lambda: BacksolveAdjoint(on_mismatch="ignore"), "'ignore'", "'raise' or 'warn'"),
        (lambda: pynode.PIDController(safety=2.0), "safety=2.0", "0 < safety <= 1"),
    ],
)
def test_options_of_objects(make, value, expectation) -> None:
    raises(InputError, value, expectation, "", make)


# --------------------------------------------------------------------------------------------------------- gradients


@pytest.mark.parametrize("sensealg", [CheckpointedAdjoint(), BacksolveAdjoint()], ids=["checkpointed", "backsolve"])
def test_a_parameter_that_cannot_receive_its_gradient(sensealg) -> None:
    class Numpy(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(3, 2))

        def forward(self, t, y):
            return y * float(self.weight.detach().sum())

    sol = pynode.solve(Numpy(), Y0, T, sensealg=sensealg)
    raises(
        GradientError, "parameter of shape (3, 2) requires a gradient", "differentiable torch operations", ".detach()",
        sol.ys[-1].sum().backward,
    )  # fmt: skip


def test_errors_are_also_the_builtin_ones() -> None:
    assert issubclass(InputError, ValueError)
    assert issubclass(FieldError, ValueError)
    assert issubclass(GradientError, RuntimeError)
    assert issubclass(SolveError, RuntimeError)
    assert issubclass(UnsupportedError, NotImplementedError)
