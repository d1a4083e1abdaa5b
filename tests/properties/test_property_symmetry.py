"""What a solve must keep: reflections and shifts of time, units of time and state, superposition, the names of
components, and the way back."""

from __future__ import annotations

import math

import torch
from bounds import rounding, size_of, tolerance_bound
from drawn import ADAPTIVE, EXPLICIT, FIXED, SPLIT, Case, adaptive, cases, fixed, pairs
from forms import flat, leaves
from growing import CLOSED, LINEAR
from hypothesis import given
from hypothesis import strategies as st
from shares import share

import pynode
from pynode.layout import rebuild

F64 = torch.float64
SMOOTH = (*CLOSED, "tanh", "softplus", "sin", "drifting")
GENTLE = (1.0, -1.0, 2.0**-20, 2.0**10)
#: Methods whose step is undone by the step of the opposite length.
SYMMETRIC = ("VelocityVerlet", "Yoshida6", "KahanLi8", "ImplicitMidpoint", "Trapezoid")
STABILISED = ("RKC", "ROCK2", "ROCK4")


def counts(sol: pynode.Solution) -> tuple[int, int, int]:
    forward = sol.stats.forward
    return forward.nfe, forward.accepted, forward.rejected


def same(a, b) -> bool:
    return all(torch.equal(x, y) for x, y in zip(leaves(a), leaves(b), strict=True))


def method(data: st.DataObject, case: Case, names: tuple[str, ...] = tuple(ADAPTIVE)):
    """An adaptive or a fixed method for the case, with its options."""
    if data.draw(st.booleans()):
        return data.draw(adaptive(case, names=names))
    return fixed(data.draw(st.sampled_from(tuple(FIXED))), case), {}


@share(1.0)
@given(st.data())
def test_time_reflected_gives_the_same_bits(data):
    """dy/ds = -f(-s, y) from -t0: every sum and product is the same but for signs, and rounding is symmetric. Only the
    spectral radii of stabilised methods are estimated by differences to one side."""
    case = data.draw(cases())
    algorithm, options = method(data, case, names=tuple(name for name in ADAPTIVE if name not in STABILISED))
    sol = pynode.solve(case.field, case.y0, case.t, algorithm=algorithm, **options)

    def reflected(s, y):
        moved = case.field(-s, y)
        case_leaves = iter([-x for x in leaves(moved)])
        return rebuild(moved, case_leaves)

    other = pynode.solve(reflected, case.y0, [-x for x in case.t], algorithm=algorithm, **options)
    assert counts(other) == counts(sol)
    assert same(other.ys, sol.ys)


@share(1.0)
@given(st.data())
def test_a_shift_of_time_changes_rounding_only(data):
    """Of an autonomous field. A step from t is the difference of two floats near t: off by half an ulp of the larger,
    by which every step's end moves along the solution. The step-size search rounds to a millionth, so that the same
    steps are taken; once in some 10^5 decisions it may not, when both answers still meet the tolerance."""
    kinds = (*LINEAR, "cubic", "tanh", "softplus", "sin")
    case = data.draw(cases(kinds=kinds, starts=(0.0, -1.0)))
    algorithm, options = method(data, case)
    shift = data.draw(st.sampled_from([1.0, -2.0, 64.0])) / abs(case.field.pace)
    sol = pynode.solve(case.field, case.y0, case.t, algorithm=algorithm, **options)
    moved = [x + shift for x in case.t]
    assert [x - shift for x in moved] == case.t
    other = pynode.solve(case.field, case.y0, moved, algorithm=algorithm, **options)
    size, steps = size_of(case), max(sol.stats.forward.accepted, other.stats.forward.accepted)
    ulp = 2.0**-52 * max(abs(x * case.field.pace) for x in moved)
    limit = rounding(case, steps, size, algorithm) + steps * ulp * case.core.lipschitz * size * case.growth
    # Not evaluations: times too close to each other for the state's precision are looked at by some more.
    if counts(other)[1:] != counts(sol)[1:] or (algorithm.adaptive and algorithm.name not in EXPLICIT):
        limit = 2.0 * tolerance_bound(case, steps, options["rtol"], options["atol"], size, algorithm)
    assert (case.vector(other.ys) - case.vector(sol.ys)).abs().max().item() <= limit


@share(1.0)
@given(st.data())
def test_units_of_a_linear_state_do_not_matter(data):
    """2^k y0 with 2^k atol: every number is scaled exactly."""
    case = data.draw(cases(kinds=LINEAR))
    algorithm, options = method(data, case)
    factor = data.draw(st.sampled_from([2.0**10, 2.0**-12, 4.0, -1.0, -0.5]))
    sol = pynode.solve(case.field, case.y0, case.t, algorithm=algorithm, **options)
    if options:
        options["atol"] = options["atol"] * abs(factor)
    start = rebuild(case.y0, iter([factor * x for x in leaves(case.y0)]))
    other = pynode.solve(case.field, start, case.t, algorithm=algorithm, **options)
    assert counts(other) == counts(sol)
    assert same(other.ys, rebuild(sol.ys, iter([factor * x for x in leaves(sol.ys)])))


@share(1.0)
@given(st.data())
def test_units_of_time_do_not_matter(data):
    """f / 2^k at times 2^k t. The first step is given, as Hairer's rule for it knows the unit of time."""
    case = data.draw(cases(starts=(0.0, -1.0, 3.0), paces=(1.0, -1.0)))
    if data.draw(st.booleans()):
        algorithm, options = data.draw(adaptive(case, names=EXPLICIT))
        options["dt0"] = case.span / 16
    else:
        algorithm, options = fixed(data.draw(st.sampled_from(tuple(FIXED))), case), {}
    sol = pynode.solve(case.field, case.y0, case.t, algorithm=algorithm, **options)
    unit = data.draw(st.sampled_from([2.0**8, 2.0**-8, 2.0**30, 2.0**-30]))

    def slower(t, y):
        return rebuild(y, iter([x / unit for x in leaves(case.field(t / unit, y))]))

    if options:
        options["dt0"] *= unit
    other = pynode.solve(slower, case.y0, [x * unit for x in case.t], algorithm=algorithm, **options)
    assert counts(other) == counts(sol)
    assert same(other.ys, sol.ys)


@share(1.0)
@given(st.data())
def test_solutions_of_linear_fields_can_be_added(data):
    """To rounding by fixed steps, which are linear maps; each to its tolerance by adaptive ones."""
    case = data.draw(cases(kinds=LINEAR, spans=(1.0, 2.0, 2.0**-20)))
    algorithm, options = method(data, case)
    a, b = data.draw(st.tuples(*[st.sampled_from([1.0, -1.0, 0.75, 2.0])] * 2))
    seed = data.draw(st.integers(0, 1000))
    numbers = torch.Generator().manual_seed(seed)
    more = [torch.randn(x.shape, dtype=x.dtype, generator=numbers) * case.x0.abs().max() for x in leaves(case.y0)]
    starts = [
        leaves(case.y0),
        more,
        [a * x + b * y for x, y in zip(leaves(case.y0), more, strict=True)],
    ]
    sols = [
        pynode.solve(case.field, rebuild(case.y0, iter(start)), case.t, algorithm=algorithm, **options)
        for start in starts
    ]
    one, two, both = (case.vector(sol.ys) for sol in sols)
    steps = max(sol.stats.forward.accepted for sol in sols)
    size = case.growth * max(torch.cat([x.reshape(-1) for x in start]).norm().item() for start in starts)
    limit = rounding(case, steps, size, algorithm)
    if algorithm.adaptive:
        limit = tolerance_bound(case, steps, options["rtol"], options["atol"], size, algorithm)
        limit *= max(1.0, 512 / 12 * case.core.lipschitz * case.span) if algorithm.name == "Fehlberg2" else 1.0
    assert (a * one + b * two - both).norm(dim=1).max().item() <= (abs(a) + abs(b) + 1.0) * limit


@share(1.0)
@given(st.data())
def test_names_of_components_do_not_matter(data):
    """P f(P' y) from P y0: the field computes the same numbers, so do explicit steps; norms are summed in another
    order, from which the rounding of step sizes protects, and linear systems are eliminated in another."""
    case = data.draw(cases(forms=("vector",)))
    algorithm, options = method(data, case)
    order = torch.tensor(data.draw(st.permutations(range(case.x0.numel()))))
    back = torch.argsort(order)

    def renamed(t, y):
        return case.field(t, y[back])[order]

    sol = pynode.solve(case.field, case.y0, case.t, algorithm=algorithm, **options)
    other = pynode.solve(renamed, case.y0[order], case.t, algorithm=algorithm, **options)
    size, steps = size_of(case), max(sol.stats.forward.accepted, other.stats.forward.accepted)
    if not algorithm.adaptive or (algorithm.name in EXPLICIT and counts(other) == counts(sol)):
        limit = rounding(case, steps, size, algorithm)
    else:
        limit = 2.0 * tolerance_bound(case, steps, options["rtol"], options["atol"], size, algorithm)
    assert (case.vector(other.ys)[:, back] - case.vector(sol.ys)).abs().max().item() <= limit


@share(1.0)
@given(st.data())
def test_there_and_back(data):
    """The error of the way there is carried back by the flow, by at most exp(lipschitz span), and more is made."""
    case = data.draw(cases(kinds=SMOOTH, spans=(1.0, 0.5, 0.125), paces=GENTLE))
    names = tuple(name for name in ADAPTIVE if name not in ("Fehlberg2", "ImplicitEuler"))
    algorithm, options = data.draw(adaptive(case, names=names, loosest=1e-4))
    there = pynode.solve(case.field, case.y0, case.t, algorithm=algorithm, **options)
    end = rebuild(case.y0, iter([x[-1] for x in leaves(there.ys)]))
    back = pynode.solve(case.field, end, case.t[::-1], algorithm=algorithm, **options)
    size = size_of(case)
    steps = there.stats.forward.accepted + back.stats.forward.accepted
    limit = tolerance_bound(case, steps, options["rtol"], options["atol"], size, algorithm)
    limit *= math.exp(case.core.lipschitz * case.span)
    assert (case.vector(back.ys)[-1] - case.vector(there.ys)[0]).norm().item() <= limit


@share(0.5)
@given(pairs(), st.sampled_from(SYMMETRIC))
def test_symmetric_methods_come_back_to_rounding(case, name):
    algorithm = fixed(name, case)
    there = pynode.solve(case.field, case.y0, [case.t[0], case.t[-1]], algorithm=algorithm)
    end = rebuild(case.y0, iter([x[-1] for x in leaves(there.ys)]))
    back = pynode.solve(case.field, end, [case.t[-1], case.t[0]], algorithm=algorithm)
    # Compositions have substeps longer than the step, whose number and length enter their rounding: 17 of 1.2 at most.
    stages = 20 if name not in SPLIT else 3 * 17
    steps, size = 2 * algorithm.steps, size_of(case)
    limit = rounding(case, steps, size, stages=stages) * math.exp(case.core.lipschitz * case.span)
    found = flat(back.ys, case.x0.dtype, lead=1)[-1].detach() - case.x0
    assert found.norm().item() <= limit
