"""What a solve returns: dense output and its derivative, the repr, and what is left of a solve that failed."""

from __future__ import annotations

import math

import pytest
import torch
from problems import BY_NAME, both_directions, every_problem

import pynode
from pynode import ReturnCode
from pynode.algorithms import ALGORITHMS, FixedStep
from pynode.native.tableaus import TABLEAUS

F64 = torch.float64
ADAPTIVE = [name for name, cls in ALGORITHMS.items() if not issubclass(cls, FixedStep)]


def ones(*shape: int) -> torch.Tensor:
    return torch.ones(shape, dtype=F64)


def decay(t, y):
    return -y


# Dense output


@every_problem
def test_dense_output_is_as_good_as_the_steps(problem):
    """Tsitouras' interpolant has order 4 in steps whose error of order 5 is near the tolerance: per step it is allowed
    the tolerance itself times 10, once, and not accumulating."""
    tolerance = 1e-8
    sol = pynode.solve(problem.f, problem.y0(), problem.times(2), rtol=tolerance, atol=tolerance)
    times = problem.times(101)
    size = 1.0 + problem.exact(times).abs().max().item()
    per_step = tolerance * size * problem.y0().numel() ** 0.5
    allowed = (sol.stats.forward.accepted * problem.growth + 10.0) * per_step
    assert problem.error(times, sol(times)) <= allowed
    # The interpolant's slope: one power of h less, and h is at least span / (3 * steps) on average.
    with torch.no_grad():
        slopes = torch.stack([problem.f(t, y) for t, y in zip(times, problem.exact(times), strict=True)])
    steps = sol.stats.forward.accepted
    assert (sol.derivative(times) - slopes).abs().max().item() <= allowed * 10.0 * steps / abs(
        problem.end - problem.start
    )


@pytest.mark.parametrize("name", TABLEAUS)
@both_directions
def test_dense_output_meets_the_saved_states_and_slopes(name, sign):
    """At step boundaries the interpolant is the state up to rounding, and its slope is the field's."""
    problem = BY_NAME["modulated"]
    algorithm = ALGORITHMS[name]() if name in ADAPTIVE else ALGORITHMS[name](steps=8)
    options = {"algorithm": algorithm, "rtol": 1e-4, "atol": 1e-4}
    steps = pynode.solve(problem.f, ones(3), [0.0, sign], saveat=pynode.SaveAt(steps=True), **options)
    # Rounding: each weight b_i(theta) is a sum of a few large terms of alternating sign, each relatively wrong by at
    # most (degree + 2) U; they multiply stages of size at most e, and step sizes of at most 1.
    tableau = TABLEAUS[name]
    unit, degree = 2.0**-53, len(tableau.dense_b[0])
    terms = sum(abs(b) * (j + 1) for row in tableau.dense_b for j, b in enumerate(row))
    rounding = (degree + 2 + len(tableau.dense_b)) * unit * terms * math.e
    torch.testing.assert_close(steps(steps.ts), steps.ys, rtol=0, atol=rounding)
    assert torch.equal(steps(0.0), steps.ys[0])
    slopes = torch.cos(steps.ts)[:, None] * steps.ys
    torch.testing.assert_close(steps.derivative(steps.ts), slopes, rtol=0, atol=rounding)


@both_directions
def test_the_derivative_is_that_of_the_dense_output(sign):
    sol = pynode.solve(BY_NAME["modulated"].f, ones(2), [0.0, 2.0 * sign])
    times = torch.linspace(0.05, 1.95, 17, dtype=F64) * sign
    h = 1e-5
    difference = (sol(times + h) - sol(times - h)) / (2 * h)
    # Central differences: h^2 |y'''| / 6 < 1e-9 and rounding 1e-16 / h; a step boundary within h adds a jump of the
    # second derivative, h times its size (of the order of tolerance / h_step^2 < 1e-3).
    torch.testing.assert_close(sol.derivative(times), difference, rtol=0, atol=1e-7)


@both_directions
def test_forms_of_queries(sign):
    sol = pynode.solve(decay, ones(2, 3), [0.0, sign, 2.0 * sign])
    for query in (sol, sol.derivative):
        one = query(0.75 * sign)
        assert one.shape == (2, 3)
        assert torch.equal(query(torch.tensor(0.75 * sign, dtype=F64)), one)
        assert torch.equal(query(torch.tensor(0.75 * sign)), one)  # single precision, exact in binary
        times = torch.tensor([1.5, 0.25, 0.25, 2.0, 0.0], dtype=F64) * sign
        several = query(times)
        assert several.shape == (5, 2, 3)
        for t, row in zip(times, several, strict=True):
            torch.testing.assert_close(row, query(t), rtol=1e-14, atol=0)
        torch.testing.assert_close(query(times.flip(0)), several.flip(0), rtol=1e-14, atol=0)
        assert query(int(sign)).shape == (2, 3)
        assert query((0.1 * sign, 0.2 * sign)).shape == (2, 2, 3)


def test_queries_of_a_tree():
    y0 = {"a": ones(2), "b": (ones(), ones(1, 3))}
    sol = pynode.solve(lambda t, y: {"b": (-y["b"][0], -y["b"][1]), "a": y["a"]}, y0, [0.0, 1.0])
    for query, at in ((sol, 0.5), (sol.derivative, 0.5)):
        found = query(at)
        assert list(found) == ["a", "b"]
        assert [x.shape for x in (found["a"], *found["b"])] == [(2,), (), (1, 3)]
        many = query(torch.tensor([0.1, 0.2, 0.3], dtype=F64))
        assert [x.shape for x in (many["a"], *many["b"])] == [(3, 2), (3,), (3, 1, 3)]


@both_directions
def test_ends_rounded_to_the_precision_of_the_query_are_inside(sign):
    """0.1 in single precision lies beyond 0.1 in double precision, and 0.1 + 0.2 beyond 0.3."""
    sol = pynode.solve(decay, ones(1), [0.0, sign * 0.1])
    assert sol(torch.tensor(sign * 0.1)).item() == pytest.approx(math.exp(-sign * 0.1))
    sol = pynode.solve(decay, ones(1), [0.0, sign * 0.3])
    assert sol(sign * (0.1 + 0.2)).item() == pytest.approx(math.exp(-sign * 0.3))


@both_directions
@pytest.mark.parametrize("t", [-0.1, 1.1, math.nan, math.inf, 1.0 + 1e-6])
def test_queries_outside_the_span_are_refused(t, sign):
    sol = pynode.solve(decay, ones(1), [0.0, sign])
    for query in (sol, sol.derivative):
        with pytest.raises(pynode.InputError, match="span"):
            query(sign * t)


@pytest.mark.parametrize("t", [torch.zeros(2, 2), torch.tensor([1]), torch.zeros(0), torch.tensor(1j)], ids=str)
def test_queries_of_no_sense_are_refused(t):
    sol = pynode.solve(decay, ones(1), [0.0, 1.0])
    with pytest.raises(pynode.InputError):
        sol(t)


# Repr and attributes


def test_repr_says_how_it_went_and_what_it_cost():
    sol = pynode.solve(decay, ones(4, 2), [0.0, 1.0, 2.5], algorithm="dopri5")
    text = repr(sol)
    forward = sol.stats.forward
    for part in ("Success", "DP5", "0 .. 2.5", "3 saved", "(3, 4, 2)", "float64", f"{forward.nfe} evaluations"):
        assert part in text
    assert f"{forward.accepted} steps" in text
    assert "backward" not in text
    assert sol.sensealg is None
    assert sol.message == ""


def test_repr_tells_whether_the_gradient_has_run():
    sol = pynode.solve(decay, ones(2).requires_grad_(), [0.0, 1.0])
    assert "backward: not run (CheckpointedAdjoint)" in repr(sol)
    sol.ys.sum().backward()
    assert f"{sol.stats.backward.nvjp} pullbacks" in repr(sol)
    assert sol.stats.backward.nvjp > 0


def test_repr_of_a_tree_and_of_a_failure():
    sol = pynode.solve(lambda t, y: (y[0] ** 2,), (ones(1),), [0.0, 2.0], throw=False)
    assert "a tuple" in repr(sol)
    assert sol.retcode.name in repr(sol)
    assert sol.message in repr(sol)


# Failure


def blow_up(sign):
    """y' = +-y^2 from 1: y = 1 / (1 - |t|), infinite at |t| = 1."""
    return lambda t, y: sign * y**2


@both_directions
@pytest.mark.parametrize("name", ["Tsit5", "BS3", "DP8"])
def test_what_was_reached_is_returned(name, sign):
    times = sign * torch.tensor([0.0, 0.25, 0.5, 1.5, 2.0], dtype=F64)
    options = {"algorithm": name, "rtol": 1e-5, "atol": 1e-8, "max_steps": 1000}
    sol = pynode.solve(blow_up(sign), ones(2), times, throw=False, **options)
    assert sol.retcode in (ReturnCode.DtLessThanMin, ReturnCode.Unstable, ReturnCode.MaxIters)
    assert not sol.retcode.successful
    assert torch.equal(sol.ts, times[:3])
    torch.testing.assert_close(sol.ys[:, 0], 1.0 / (1.0 - times[:3].abs()), rtol=1e-4, atol=0)
    # Dense output up to where it stopped, and not beyond.
    assert sol(0.75 * sign)[0].item() == pytest.approx(4.0, rel=1e-4)
    with pytest.raises(pynode.InputError, match="span"):
        sol(1.25 * sign)
    with pytest.raises(pynode.SolveError) as caught:
        pynode.solve(blow_up(sign), ones(2), times, **options)
    error = caught.value
    assert error.retcode is sol.retcode
    assert 0.9 < error.t * sign < 1.1
    assert str(error) == sol.message == error.solution.message
    assert torch.equal(error.solution.ys, sol.ys)


@both_directions
def test_saved_steps_of_a_failed_solve(sign):
    sol = pynode.solve(
        blow_up(sign), ones(1), [0.0, 2.0 * sign], throw=False, saveat=pynode.SaveAt(steps=True), max_steps=9
    )
    assert sol.retcode is ReturnCode.MaxIters
    assert len(sol.ts) == len(sol.ys) == sol.stats.forward.accepted + 1
    assert sol.ys.isfinite().all()


@both_directions
@pytest.mark.parametrize("algorithm", ["tsit5", "rk4"])
@pytest.mark.parametrize("tree", [False, True])
def test_a_solve_that_failed_at_once_still_has_its_start(algorithm, tree, sign):
    bad = lambda t, y: (y[0] * math.nan,) if tree else y * math.nan  # noqa: E731
    y0 = (ones(2),) if tree else ones(2)
    sol = pynode.solve(bad, y0, [0.0, sign, 2.0 * sign], algorithm=algorithm, throw=False)
    assert sol.retcode is ReturnCode.InitialFailure
    first, here = (sol.ys[0], sol(0.0)[0]) if tree else (sol.ys, sol(0.0))
    assert torch.equal(first, ones(1, 2))
    assert torch.equal(here, ones(2))
    assert torch.equal(sol.ts, torch.zeros(1, dtype=F64))
    assert "t = 0" in sol.message


@both_directions
def test_nothing_reached_of_what_was_asked_for(sign):
    sol = pynode.solve(blow_up(sign), ones(2), [0.0, 2.0 * sign], saveat=[1.5 * sign], throw=False, max_steps=300)
    assert not sol.retcode.successful
    assert sol.ts.shape == (0,)
    assert sol.ys.shape == (0, 2)
    assert sol(0.5 * sign).shape == (2,)
    assert "0 saved" in repr(sol)


@both_directions
def test_a_field_that_becomes_nan_midway(sign):
    f = lambda t, y: torch.where(t * sign > 0.5, math.nan, 1.0) * torch.ones_like(y)  # noqa: E731
    sol = pynode.solve(f, ones(1), [0.0, 0.4 * sign, sign], throw=False)
    assert sol.retcode is ReturnCode.Unstable
    assert 0.4 < sign * float(sol.message.split("t = ")[1].split(" ")[0]) <= 0.5
    assert len(sol.ts) == 2
    fixed = pynode.solve(f, ones(1), [0.0, 0.4 * sign, sign], algorithm="rk4", throw=False)
    assert fixed.retcode is ReturnCode.Unstable


def test_every_way_to_fail_has_its_advice():
    """Value, expectation and remedy in each message."""
    from pynode.solution import failure_message

    for retcode in ReturnCode:
        if not retcode.successful:
            message = failure_message(retcode, 0.5, "detail")
            for part in ("t = 0.5", "detail", "Expected: ", "Remedy: "):
                assert part in message


def test_stats_add_up_over_queries():
    sol = pynode.solve(decay, ones(1), [0.0, 1.0], algorithm="vern7")
    before = sol.stats.forward.nfe
    sol(0.5)
    stages = len(TABLEAUS["Vern7"].c) + len(TABLEAUS["Vern7"].dense_c)
    assert sol.stats.forward.nfe == before + stages


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("batching", ["joint", "independent"])
def test_dense_output_of_a_field_that_was_changed_since_is_refused(batching, grad):
    class Rate(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.rate = torch.nn.Parameter(torch.ones(1, dtype=F64))

        def forward(self, t, y):
            return -self.rate * y

    f = Rate()
    with torch.set_grad_enabled(grad):
        sol = pynode.solve(f, ones(2, 1), [0.0, 1.0], batching=batching)
        sol(0.5)
        with torch.no_grad():
            f.rate.mul_(0.5)
        with pytest.raises(pynode.InputError, match="modified in place"):
            sol(0.5)
