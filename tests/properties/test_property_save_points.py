"""Save points never change the answer; dense output is the solution in between."""

from __future__ import annotations

import torch
from bounds import between, error, reference, rounding, size_of, tolerance_bound
from drawn import FIXED, adaptive, cases, fixed
from forms import leaves
from growing import CLOSED
from hypothesis import given
from hypothesis import strategies as st
from shares import share

import pynode

F64 = torch.float64


def counts(sol: pynode.Solution) -> tuple[int, int]:
    return sol.stats.forward.accepted, sol.stats.forward.rejected


@share(1.5)
@given(st.data())
def test_what_is_saved_changes_nothing(data):
    """By adaptive methods, and fixed ones that carry their steps: ends bit for bit, what is in between to the rounding
    of one interpolant."""
    case = data.draw(cases())
    if data.draw(st.booleans()):
        algorithm, options = data.draw(adaptive(case))
    else:
        algorithm, options = fixed(data.draw(st.sampled_from(tuple(FIXED))), case), {}
    ends = [case.t[0], case.t[-1]]

    def solve(times, **more):
        return pynode.solve(case.field, case.y0, times, algorithm=algorithm, **options, **more)

    plain, many = solve(ends), solve(case.t)
    own = torch.tensor(case.t, dtype=F64)
    keep = data.draw(st.lists(st.booleans(), min_size=len(own), max_size=len(own)).filter(any))
    some = solve(ends, saveat=own[torch.tensor(keep)])
    kinds = {
        "t0": pynode.SaveAt(t0=True),
        "t1": pynode.SaveAt(t1=True),
        "steps": pynode.SaveAt(steps=True),
        "both": pynode.SaveAt(ts=own[torch.tensor(keep)], t0=True, t1=True),
        "sparse": pynode.SaveAt(dense=False),
        "fn": pynode.SaveAt(ts=own, fn=lambda t, y: [x.abs().sum() for x in leaves(y)]),
    }
    kind = data.draw(st.sampled_from(tuple(kinds)))
    other = solve(ends, saveat=kinds[kind])
    for sol in (many, some, other):
        assert counts(sol) == counts(plain)
    first, last = (case.vector(plain.ys)[i] for i in (0, -1))
    assert torch.equal(case.vector(many.ys)[0], first)
    assert torch.equal(case.vector(many.ys)[-1], last)
    size = size_of(case)
    among = (case.vector(some.ys) - case.vector(many.ys)[torch.tensor(keep)]).abs().max().item()
    assert among <= rounding(case, 1, size, algorithm)
    if kind == "fn":
        for saved, states in zip(other.ys, leaves(many.ys), strict=True):
            sums = torch.stack([x.abs().sum() for x in states])
            assert (saved - sums).abs().max().item() <= case.channels * rounding(case, 1, size, algorithm)
    else:
        found = case.vector(other.ys)
        expected = {
            "t0": first[None],
            "t1": last[None],
            "sparse": torch.stack([first, last]),
            "both": None,
            "steps": None,
        }[kind]
        if expected is not None:
            assert torch.equal(found, expected)
        else:
            assert torch.equal(found[0], first)
            assert torch.equal(found[-1], last)
        if kind == "steps":
            assert len(found) == plain.stats.forward.accepted + 1
    dense = case.vector(plain(own))
    assert (dense - case.vector(many.ys)).abs().max().item() <= rounding(case, 1, size, algorithm)


@share(1.0)
@given(st.data())
def test_dense_output_is_the_solution_in_between(data):
    """With short steps, of a quarter of the problem's time constant."""
    case = data.draw(cases(kinds=CLOSED))
    algorithm, options = data.draw(adaptive(case, loosest=1e-4))
    z = 0.25
    options["dtmax"] = z / (case.core.lipschitz * abs(case.field.pace))
    sol = pynode.solve(case.field, case.y0, [case.t[0], case.t[-1]], algorithm=algorithm, **options)
    parts = data.draw(st.lists(st.integers(1, 1023), min_size=1, max_size=6, unique=True))
    tau = torch.tensor(sorted(case.span * k / 1024 for k in parts), dtype=F64)
    size = size_of(case)
    steps = sol.stats.forward.accepted
    bound = tolerance_bound(case, steps, options["rtol"], options["atol"], size, algorithm)
    if algorithm.name == "Fehlberg2":
        bound *= max(1.0, 512 / 12 * z)
    found = error(case, case.vector(sol(tau / case.field.pace + case.field.start)), tau)
    assert found <= (2.0 + z) * bound + between(case, algorithm, z, size) + rounding(case, steps, size, algorithm)


@share(0.5)
@given(st.data())
def test_dense_output_is_one_curve(data):
    """Continuous over the ends of steps: both sides of an end are a rounding apart, along with what the solution moves
    between neighbouring floats."""
    case = data.draw(cases())
    algorithm, options = data.draw(adaptive(case))
    sol = pynode.solve(case.field, case.y0, case.t, algorithm=algorithm, saveat=pynode.SaveAt(steps=True), **options)
    ends = sol.ts.double()
    states = case.vector(sol.ys)
    size = max(states.abs().max().item(), reference(case, torch.tensor([0.0], dtype=F64)).abs().max().item())
    near = torch.nextafter(ends, torch.full_like(ends, case.t[-1]))
    ulp = 2.0**-51 * (ends * case.field.pace).abs().max().item()
    speed = case.core.lipschitz * size * 2 + case.core.drive + 1.0
    limit = rounding(case, 1, size + speed * case.span, stages=40) + ulp * speed
    for at in (ends, near):
        assert (case.vector(sol(at)) - states).abs().max().item() <= limit
