"""A solve meets its tolerance, whatever the field, state, times, direction, precision and method; or says why not."""

from __future__ import annotations

import math

import torch
from bounds import between, error, reference, rounding, size_of, tolerance_bound
from drawn import ADAPTIVE, EXPLICIT, FIXED, FIXED_EXPLICIT, SPLIT, Case, adaptive, cases, fixed, pairs
from growing import CLOSED
from hypothesis import event, given
from hypothesis import strategies as st
from shares import share

import pynode

F64 = torch.float64
#: Fehlberg's embedded method is Euler's with 1/512 of its error: for an eigenvalue z = h lambda the estimate is
#: |z|^2 / 512 and the error |z|^3 / 12.
FEHLBERG = 512.0 / 12.0


def forms_of_times(case: Case, form: str):
    """The times as a list, or a tensor; single precision where that holds them."""
    wide = torch.tensor(case.t, dtype=F64)
    if form == "list":
        return case.t
    return wide.float() if form == "single" and torch.equal(wide.float().double(), wide) else wide


@share(2.0)
@given(st.data())
def test_adaptive_steps_meet_their_tolerance(data):
    case = data.draw(cases())
    algorithm, options = data.draw(adaptive(case, loosest=1e-4 if not data.draw(st.booleans()) else 1e-3))
    if options["rtol"] > 1e-4:  # so few steps that only short ones are beyond doubt
        options["dtmax"] = 1.0 / (case.core.lipschitz * abs(case.field.pace))
    times = forms_of_times(case, data.draw(st.sampled_from(["list", "tensor", "single"])))
    sol = pynode.solve(case.field, case.y0, times, algorithm=algorithm, **options)
    event(algorithm.name)
    assert sol.retcode is pynode.ReturnCode.Success
    assert sol.ts.tolist() == case.t
    size, steps = size_of(case), sol.stats.forward.accepted
    bound = tolerance_bound(case, steps, options["rtol"], options["atol"], size, algorithm)
    if algorithm.name == "Fehlberg2":
        bound *= max(1.0, FEHLBERG * case.core.lipschitz * case.span)
    tau, ys = torch.tensor(case.tau, dtype=F64), case.vector(sol.ys)
    if algorithm.name not in EXPLICIT:  # cubics between the steps
        found = error(case, ys[-1:], tau[-1:])
        assert found <= bound, f"{found / bound:.3g} times what {steps} steps may be off by at the end"
        ends = pynode.solve(
            case.field, case.y0, case.t, algorithm=algorithm, saveat=pynode.SaveAt(steps=True), **options
        ).ts
        z = ends.diff().abs().max().item() * abs(case.field.pace) * case.core.lipschitz
        bound = (2.0 + z) * bound + between(case, algorithm, z, size)
    found = error(case, ys, tau)
    assert found <= bound, f"{found / bound:.3g} times what {steps} steps may be off by"


def step_bound(case: Case, steps: int, order: int) -> float:
    """Of fixed steps. With |y^(p+1)| <= lipschitz^(p+1) size the local error is at most C z^(p+1) size to leading
    order, z = h lipschitz, where C, the error constant, is 1/2 for Euler's methods and less for all others. Twice that
    for the higher orders, as z <= 1/8."""
    z = case.span * case.core.lipschitz / steps
    size = size_of(case) + case.core.drive / case.core.lipschitz
    return 2.0 * steps * 0.5 * z ** (order + 1) * size * case.growth + rounding(case, steps, size)


@share(1.0)
@given(cases(kinds=CLOSED), st.sampled_from(tuple(FIXED)), st.booleans())
def test_fixed_steps_have_their_order(case, name, twice):
    algorithm = fixed(name, case, 2.0 if twice else 1.0)
    sol = pynode.solve(case.field, case.y0, case.t, algorithm=algorithm, saveat=[case.t[-1]])
    event(name)
    found = error(case, case.vector(sol.ys), torch.tensor(case.tau[-1:], dtype=F64))
    assert found <= step_bound(case, algorithm.steps, FIXED[name])


@share(0.5)
@given(pairs(), st.sampled_from(tuple(SPLIT)))
def test_symplectic_steps_have_their_order(case, name):
    algorithm = fixed(name, case)
    sol = pynode.solve(case.field, case.y0, case.t, algorithm=algorithm, saveat=[case.t[-1]])
    found = error(case, case.vector(sol.ys), torch.tensor(case.tau[-1:], dtype=F64))
    assert found <= step_bound(case, algorithm.steps, SPLIT[name])


@share(0.25)
@given(cases(kinds=("forced",), dtypes=(F64, torch.float32), forms=("vector",)))
def test_exponential_steps_have_their_order(case):
    class Split:
        linear = case.field.pace * case.core.a.detach()

        def nonlinear(self, t, y):
            return case.field(t, y) - self.linear @ y

        def __call__(self, t, y):
            return case.field(t, y)

    algorithm = pynode.ETDRK4(steps=max(4, math.ceil(8.0 * case.span * case.core.lipschitz)))
    sol = pynode.solve(Split(), case.y0, case.t, algorithm=algorithm, saveat=[case.t[-1]])
    found = error(case, case.vector(sol.ys), torch.tensor(case.tau[-1:], dtype=F64))
    assert found <= step_bound(case, algorithm.steps, 4)


# ------------------------------------------------------------------------------------------------------- wild ones


def exact_wild(kind: str, rate: float, y0: torch.Tensor, t: float) -> torch.Tensor | None:
    """Of the scalar equations below at ``t`` from 0, in double precision; None where there is no solution."""
    y = y0.double()
    if kind == "linear":
        return y * math.exp(rate * t) if rate * t < 700 else None
    if kind == "square":  # y' = rate y^2 blows up where 1 = rate t y0
        return y / (1.0 - rate * t * y) if bool((rate * t * y < 1.0).all()) else None
    if kind == "root":  # y' = -rate sqrt(y) ends at 0
        return (y.sqrt() - rate * t / 2) ** 2 if bool((rate * t / 2 < y.sqrt()).all()) else None
    return y


def assert_helpful(refusal: pynode.PynodeError) -> None:
    assert "Expected:" in str(refusal)
    assert "Remedy:" in str(refusal)


WILD = {
    "linear": lambda rate: lambda t, y: rate * y,
    "square": lambda rate: lambda t, y: rate * y * y,
    "root": lambda rate: lambda t, y: -rate * torch.sqrt(y),
    "still": lambda rate: lambda t, y: 0.0 * y,
}


@share(1.5)
@given(st.data())
def test_anything_at_all_is_right_or_a_documented_error(data):
    """Stiff, exploding, huge, tiny and empty; tolerances out of reach; few steps. Nothing but a PynodeError is raised,
    and what is returned is right."""
    kind = data.draw(st.sampled_from(tuple(WILD)))
    dtype = data.draw(st.sampled_from([F64, torch.float32]))
    rate = data.draw(st.sampled_from([1.0, -1.0, -30.0, -1e6, 1e-8, 1e3, 20.0]))
    values = data.draw(st.lists(st.sampled_from([1.0, 0.0, 0.5, 1e-30, 1e-300, 1e30, 1e300, 3.0]), max_size=3))
    y0 = torch.tensor(values, dtype=F64).to(dtype)
    end = data.draw(st.sampled_from([1.0, 2.0, 1e-3, 1e-12, 1e3, 1e-300, 1e12]))
    start = data.draw(st.sampled_from([0.0, 0.0, 0.0, 1.0, 1e9]))
    if kind == "root":
        rate = abs(rate)
    name = data.draw(st.sampled_from(tuple(ADAPTIVE)))
    rtol = data.draw(st.sampled_from([1e-4, 1e-2, 1e-6, 1e-13, 0.0]))
    atol = data.draw(st.sampled_from([0.0, 1e-6, 1e-30, 1.0]))
    algorithm = ADAPTIVE[name][0]
    t = [start, start + end]
    try:
        sol = pynode.solve(WILD[kind](rate), y0, t, algorithm=algorithm, rtol=rtol, atol=atol, max_steps=300)
    except pynode.PynodeError as refusal:
        event(type(refusal).__name__)
        assert_helpful(refusal)
        return
    event("solved")
    assert sol.ys.shape == (2, *y0.shape)
    assert torch.equal(sol.ys[0], y0)
    assert torch.isfinite(sol.ys).all()
    exact = exact_wild(kind, rate, y0, sol.ts[-1].item() - start)
    if exact is None or not len(values):
        return  # a solution that is beyond the largest number, or that an explicit step jumped over
    # dy/dt is monotonous in y: local errors grow at most as their ratio to dy/dt does, or as exp(rate t).
    steps = sol.stats.forward.accepted
    growth = math.exp(max(rate * end, 0.0)) if kind == "linear" else 1.0
    if kind == "square":
        growth = max(1.0, float((1.0 / (1.0 - rate * end * y0.double()) ** 2).max()))
    size = max(y0.double().abs().max().item(), exact.abs().max().item())
    each = atol + (rtol + 40 * torch.finfo(dtype).eps) * size
    bound = steps * math.sqrt(len(values)) * each * growth
    if (
        rtol <= 1e-4 and kind != "root" and name != "Fehlberg2"
    ):  # shorter steps than the time constants are what makes estimates errors
        assert (sol.ys[-1].double() - exact).abs().max().item() <= bound


@share(0.75)
@given(st.data())
def test_fixed_steps_end_finite_or_in_a_documented_error(data):
    kind, name = data.draw(st.sampled_from(tuple(WILD))), data.draw(st.sampled_from((*FIXED_EXPLICIT, *FIXED)))
    rate = data.draw(st.sampled_from([1.0, -1.0, -1e6, 1e200, 1e-8]))
    y0 = torch.tensor(data.draw(st.lists(st.sampled_from([1.0, 0.0, 1e-300, 1e300]), max_size=3)), dtype=F64)
    end = data.draw(st.sampled_from([1.0, -1.0, 1e-300, 1e12]))
    try:
        sol = pynode.solve(WILD[kind](rate), y0, [0.0, end], algorithm=getattr(pynode, name)(steps=20))
    except pynode.PynodeError as refusal:
        event(type(refusal).__name__)
        assert_helpful(refusal)
        return
    assert torch.isfinite(sol.ys).all()
    if kind == "still":
        assert torch.equal(sol.ys[-1], y0)


@share(0.25)
@given(st.data())
def test_states_without_elements_stay_without(data):
    case = data.draw(cases(kinds=("tanh",), forms=("vector",)))
    shape = data.draw(st.sampled_from([(0,), (2, 0), (0, 3)]))
    name = data.draw(st.sampled_from((*ADAPTIVE, *FIXED)))
    algorithm = ADAPTIVE[name][0] if name in ADAPTIVE else fixed(name, case)
    y0 = torch.zeros(shape, dtype=case.x0.dtype)
    try:
        sol = pynode.solve(lambda t, y: -y, y0, case.t, algorithm=algorithm)
    except pynode.PynodeError as refusal:
        assert_helpful(refusal)
        return
    assert sol.ys.shape == (len(case.t), *shape)


def test_the_references_agree():
    """Closed forms and tight solves are two references; a wrong one would excuse wrong answers."""
    for kind in CLOSED:

        @share(0.1)
        @given(cases(kinds=(kind,), dtypes=(F64,), forms=("vector",)))
        def agree(case):
            tau = torch.tensor(case.tau, dtype=F64)
            formula = reference(case, tau)
            exact, case.core.exact = case.core.exact, lambda tau, x0: None
            try:
                solved = reference(case, tau)
            finally:
                case.core.exact = exact
            # Some 100 steps at 1e-13 of a size that size_of bounds, and an atol of 1e-13.
            limit = 100 * 1e-13 * math.sqrt(case.channels) * (1.0 + size_of(case)) * case.growth
            assert (formula - solved).norm(dim=1).max().item() <= limit

        agree()
