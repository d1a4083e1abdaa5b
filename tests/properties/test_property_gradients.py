"""Gradients: linear in the cotangent, the same from every sensitivity algorithm, by differences, through trees."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from bounds import rounding, size_of
from drawn import ADAPTIVE, EXPLICIT, FIXED_EXPLICIT, SPLIT, Case, adaptive, cases, clear, fixed, pairs
from forms import flat, leaves
from hypothesis import event, given
from hypothesis import strategies as st
from shares import share
from torch import Tensor

import pynode
from pynode.backends import backend_from_name
from pynode.errors import GradientError
from pynode.layout import rebuild

F64 = torch.float64
TORCH = backend_from_name("torch")
GENTLE = {"size": False, "paces": (1.0, -1.0, 2.0), "starts": (0.0, -1.0), "spans": (1.0, 2.0, 0.125), "most": 4}
TIGHT = ("DP5", "Tsit5", "Vern7", "Vern9", "DP8")
EXACT = {
    "checkpointed": pynode.CheckpointedAdjoint(),
    "few checkpoints": pynode.CheckpointedAdjoint(checkpoints=3),
    "bytes": pynode.CheckpointedAdjoint(max_memory=4096),
    "reversible": pynode.ReversibleAdjoint(),
}
CONTINUOUS = {
    "backsolve": pynode.BacksolveAdjoint(),
    "backsolve full": pynode.BacksolveAdjoint(norm="full"),
    "interpolating": pynode.InterpolatingAdjoint(),
    "interpolating full": pynode.InterpolatingAdjoint(norm="full"),
    "interpolating again": pynode.InterpolatingAdjoint(checkpointing=True),
    "gauss": pynode.GaussAdjoint(),
    "gauss again": pynode.GaussAdjoint(checkpointing=True),
    "quadrature": pynode.QuadratureAdjoint(),
    "forward": pynode.ForwardSensitivity(),
}


@dataclass
class Pulled:
    """Gradients of ``sum(cotangents * ys)``, flat, with the solve they are of."""

    sol: pynode.Solution
    y0: Tensor
    params: Tensor
    t: Tensor

    def all(self) -> list[Tensor]:
        return [self.y0, self.params, self.t]


def solved(case: Case, algorithm: pynode.Algorithm, sensealg: object, options: dict) -> tuple:
    """The solution, and what it is differentiated by: leaves of y0, parameters, times."""
    y0 = _copy(case.y0)
    t = torch.tensor(case.t, dtype=F64, requires_grad=True)
    sol = pynode.solve(case.field, y0, t, algorithm=algorithm, sensealg=sensealg, **options)
    return sol, leaves(y0), list(case.field.parameters()), t


def _copy(tree):
    if isinstance(tree, dict):
        return {key: _copy(branch) for key, branch in tree.items()}
    if isinstance(tree, tuple | list):
        built = [_copy(branch) for branch in tree]
        return type(tree)(*built) if hasattr(tree, "_fields") else type(tree)(built)
    return tree.detach().clone().requires_grad_()


def pull(solution: tuple, cotangents: list[Tensor]) -> Pulled:
    sol, y0, params, t = solution
    found = torch.autograd.grad(leaves(sol.ys), [*y0, *params, t], cotangents, retain_graph=True, allow_unused=True)
    found = [torch.zeros_like(x) if g is None else g for x, g in zip([*y0, *params, t], found, strict=True)]
    dtype = F64
    middle = len(y0)
    return Pulled(sol, flat(found[:middle], dtype), flat(found[middle:-1], dtype), found[-1])


def cotangents_for(case: Case, seed: int) -> list[Tensor]:
    numbers = torch.Generator().manual_seed(seed)
    return [torch.randn(len(case.t), *x.shape, dtype=x.dtype, generator=numbers) for x in leaves(case.y0)]


def scale_of(case: Case, pulled: Pulled, cotangents: list[Tensor]) -> float:
    """What the adjoint and what it is multiplied with are of the size of, at most: cotangents, carried back, times the
    field's derivatives by state, parameters and time, added up over the span."""
    size = size_of(case) + case.core.drive
    weight = sum(x.abs().sum().item() for x in cotangents)
    derivative = (1.0 + case.core.lipschitz) * (1.0 + size) * (1.0 + case.span) * abs(case.field.pace)
    largest = max((x.abs().max().item() for x in pulled.all() if x.numel()), default=0.0)
    return max(largest, weight * case.growth * derivative)


def distance(a: Pulled, b: Pulled) -> float:
    return max((x - y).abs().max().item() for x, y in zip(a.all(), b.all(), strict=True) if x.numel())


@share(1.5)
@given(st.data())
def test_exact_gradients_are_those_of_torchs_tape(data):
    """To rounding: the derivative of the numbers that were computed, whoever takes it."""
    which = data.draw(st.sampled_from(("adaptive", "fixed", "pairs")))
    options: dict = {}
    if which == "pairs":
        case = data.draw(pairs())
        algorithm = fixed(data.draw(st.sampled_from(tuple(SPLIT))), case)
    else:
        case = data.draw(cases(**GENTLE))
        if which == "adaptive":
            algorithm, options = data.draw(adaptive(case, names=(*EXPLICIT, "VCABM", "ReversibleHeun")))
        else:
            algorithm = fixed(data.draw(st.sampled_from(FIXED_EXPLICIT)), case)
    if options and data.draw(st.booleans()):
        options["saveat"] = torch.tensor(case.t, dtype=F64)
    names = [name for name, x in EXACT.items() if TORCH.supports(algorithm, x) is None]
    name = data.draw(st.sampled_from(names))
    event(f"{algorithm.name} {name}")
    cotangents = cotangents_for(case, data.draw(st.integers(0, 999)))
    tape = pull(solved(case, algorithm, pynode.DirectAdjoint(), options), cotangents)
    found = pull(solved(case, algorithm, EXACT[name], options), cotangents)
    steps = tape.sol.stats.forward.accepted
    limit = rounding(case, steps, scale_of(case, tape, cotangents), algorithm)
    if name == "reversible":  # rounding of the way back, along which neighbours separate at most by exp(lipschitz span)
        limit *= 2.0 * math.exp(case.core.lipschitz * case.span)
    if found.sol.stats.forward.accepted != steps:
        # The tape rounds otherwise than what writes into its own room; where that is the error of a short step, the
        # steps after it may differ.
        assert not clear(case, algorithm, options)
        limit = continuous_limit(case, [tape, found], cotangents, options["rtol"] + options["atol"])
    assert distance(found, tape) <= limit


def continuous_limit(case: Case, pulled: list[Pulled], cotangents: list[Tensor], tol: float) -> float:
    """Errors of a tolerance in every step of both directions, carried by both flows; that of the state changes the
    adjoint through the field's second derivatives, which are below (1 + lipschitz)^2 here."""
    steps = sum(x.sol.stats.forward.accepted + x.sol.stats.backward.accepted for x in pulled)
    local = math.sqrt(case.channels) * tol * scale_of(case, pulled[0], cotangents)
    return steps * local * case.growth * (1.0 + case.core.lipschitz) ** 2 * (1.0 + case.span)


@share(1.0)
@given(st.data())
def test_continuous_gradients_agree_to_the_tolerance(data):
    case = data.draw(cases(**GENTLE))
    names = tuple(name for name in ADAPTIVE if name not in ("Fehlberg2", "ImplicitEuler", "AsynchronousLeapfrog"))
    if data.draw(st.booleans()):  # so tight that a gradient one per cent off is far outside
        algorithm, options = data.draw(adaptive(case, names=TIGHT, loosest=1e-9))
    else:
        algorithm, options = data.draw(adaptive(case, names=names, loosest=1e-4))
    options["atol"] = tol = options["rtol"]
    options["dtmax"] = 0.5 / case.core.lipschitz
    possible = [name for name, x in CONTINUOUS.items() if TORCH.supports(algorithm, x) is None]
    name = data.draw(st.sampled_from(possible))
    event(f"{algorithm.name} {name}")
    cotangents = cotangents_for(case, data.draw(st.integers(0, 999)))
    exact = pull(solved(case, algorithm, pynode.CheckpointedAdjoint(), options), cotangents)
    try:
        found = pull(solved(case, algorithm, CONTINUOUS[name], options), cotangents)
    except GradientError:
        if "backsolve" in name:  # the state could not be integrated backward
            return
        raise
    limit = continuous_limit(case, [exact, found], cotangents, tol)
    if "backsolve" in name:
        limit *= math.exp(case.core.lipschitz * case.span)
    assert distance(found, exact) <= limit


@share(1.0)
@given(st.data())
def test_gradients_are_linear_in_the_cotangent(data):
    """Of one solve, to rounding: steps are differentiated, forward sensitivities contracted."""
    case = data.draw(cases(**GENTLE))
    if data.draw(st.booleans()):
        algorithm, options = data.draw(adaptive(case, names=(*EXPLICIT, "VCABM", "Rodas4", "KenCarp4", "FBDF")))
    else:
        algorithm, options = fixed(data.draw(st.sampled_from((*FIXED_EXPLICIT, "Trapezoid"))), case), {}
    candidates = {**EXACT, "direct": pynode.DirectAdjoint(), "forward": pynode.ForwardSensitivity()}
    possible = [name for name, x in candidates.items() if TORCH.supports(algorithm, x) is None]
    name = data.draw(st.sampled_from(possible))
    event(f"{algorithm.name} {name}")
    solution = solved(case, algorithm, candidates[name], options)
    one, two = cotangents_for(case, 1), cotangents_for(case, data.draw(st.integers(2, 999)))
    a, b = data.draw(st.tuples(*[st.sampled_from([1.0, -1.0, 0.5, 3.0])] * 2))
    both = [a * x + b * y for x, y in zip(one, two, strict=True)]
    first, second, third = (pull(solution, x) for x in (one, two, both))
    limit = rounding(case, first.sol.stats.forward.accepted, scale_of(case, first, [*one, *two]), algorithm)
    limit *= 2.0 * (abs(a) + abs(b) + 1.0)
    if name == "reversible":
        limit *= 2.0 * math.exp(case.core.lipschitz * case.span)
    for x, y, z in zip(first.all(), second.all(), third.all(), strict=True):
        assert (a * x + b * y - z).abs().max().item() <= limit
    doubled = pull(solution, [2.0 * x for x in one])
    for x, y in zip(first.all(), doubled.all(), strict=True):
        assert torch.equal(2.0 * x, y)


@share(0.5)
@given(st.data())
def test_gradients_are_slopes(data):
    """By fixed steps, along a random direction in initial state, parameters and times. Central differences with e and
    e / 2 tell their own error, of which 4/3 is the first's; rounding is divided by e."""
    case = data.draw(cases(dtypes=(F64,), **GENTLE))
    algorithm = fixed(data.draw(st.sampled_from((*FIXED_EXPLICIT, "Trapezoid", "RadauIIA5", "Rodas4"))), case)
    name = data.draw(st.sampled_from(("checkpointed", "few checkpoints")))
    cotangents = cotangents_for(case, data.draw(st.integers(0, 999)))
    solution = solved(case, algorithm, EXACT[name], {})
    pulled = pull(solution, cotangents)
    _, y0, params, t = solution
    numbers = torch.Generator().manual_seed(7)
    directions = [torch.randn(x.shape, dtype=x.dtype, generator=numbers) for x in [*y0, *params, t]]
    directions[-1] *= 0.1 * case.span / 256
    found = torch.autograd.grad(leaves(solution[0].ys), [*y0, *params, t], cotangents, allow_unused=True)
    slope = sum(_inner(g, d) for g, d in zip(found, directions, strict=True) if g is not None)

    def value(e: float) -> float:
        kept = [x.detach().clone() for x in params]
        with torch.no_grad():
            for x, d in zip(params, directions[len(y0) : -1], strict=True):
                x.add_(e * d)
            moved = iter([x.detach() + e * d for x, d in zip(y0, directions, strict=False)])
            sol = pynode.solve(case.field, rebuild(case.y0, moved), t + e * directions[-1], algorithm=algorithm)
            for x, old in zip(params, kept, strict=True):
                x.copy_(old)
        return sum(_inner(c, x) for c, x in zip(cotangents, leaves(sol.ys), strict=True))

    e = 2.0**-14
    coarse, fine = ((value(h) - value(-h)) / (2 * h) for h in (e, e / 2))
    scale = scale_of(case, pulled, cotangents)
    # Newton's iteration, where there is one, ends at some 1e-10 of the stages.
    solved_to = 0.0 if algorithm.name in FIXED_EXPLICIT else 1e-9 * scale
    limit = 2.0 * abs(coarse - fine) + (4.0 * rounding(case, algorithm.steps, scale) + solved_to) / e
    assert abs(slope - fine) <= limit
    assert limit <= 1e-2 * scale or algorithm.name not in FIXED_EXPLICIT


def _inner(a: Tensor, b: Tensor) -> float:
    return (a.conj() * b).real.sum().item()


@share(0.75)
@given(st.data())
def test_trees_have_the_gradients_of_their_flat_state(data):
    """The same numbers in the same order: to rounding of sums, and step for step."""
    case = data.draw(cases(forms=("tuple", "dict", "nested", "named", "empty leaf", "mixed", "matrix"), **GENTLE))
    algorithm, options = data.draw(adaptive(case, names=(*EXPLICIT, "VCABM", "Rodas5P", "ROCK2")))
    possible = [x for x in (*EXACT.values(), *CONTINUOUS.values()) if TORCH.supports(algorithm, x) is None]
    sensealg = data.draw(st.sampled_from(possible))
    cotangents = cotangents_for(case, data.draw(st.integers(0, 999)))
    try:
        tree = pull(solved(case, algorithm, sensealg, options), cotangents)
    except GradientError:
        if isinstance(sensealg, pynode.BacksolveAdjoint):  # the state could not be integrated backward
            return
        raise
    shape = case.y0
    case.y0 = case.x0
    plain = pull(solved(case, algorithm, sensealg, options), [flat(cotangents, case.x0.dtype, lead=1)])
    case.y0 = shape
    together = tree.sol.stats.forward.accepted == plain.sol.stats.forward.accepted
    assert together or not clear(case, algorithm, options)
    steps = plain.sol.stats.forward.accepted + plain.sol.stats.backward.accepted
    limit = rounding(case, steps, scale_of(case, plain, cotangents), algorithm)
    if (
        not together
        or tree.sol.stats.backward != plain.sol.stats.backward
        or not isinstance(sensealg, pynode.CheckpointedAdjoint)
    ):
        limit = continuous_limit(case, [tree, plain], cotangents, options["rtol"] + options["atol"])
        limit *= math.exp(case.core.lipschitz * case.span)
    assert distance(tree, plain) <= limit


@share(0.4)
@given(st.data())
def test_second_derivatives_are_symmetric(data):
    """<u, H v> = <v, H u>, to rounding, of the exact discrete gradient."""
    case = data.draw(cases(dtypes=(F64,), **GENTLE))
    if data.draw(st.booleans()):
        algorithm, options = data.draw(adaptive(case, names=("Tsit5", "Vern7", "BS3")))
    else:
        algorithm, options = fixed(data.draw(st.sampled_from(("RK4", "Heun", "SSPRK33"))), case), {}
    sol, y0, params, _ = solved(case, algorithm, pynode.CheckpointedAdjoint(), options)
    loss = sum(x[-1].pow(3).real.sum() for x in leaves(sol.ys))
    inputs = [x for x in (*y0, *params) if x.numel()]
    gradient = torch.autograd.grad(loss, inputs, create_graph=True, allow_unused=True)
    inputs = [x for x, g in zip(inputs, gradient, strict=True) if g is not None]
    gradient = [g for g in gradient if g is not None]
    numbers = torch.Generator().manual_seed(data.draw(st.integers(0, 999)))
    u, v = ([torch.randn(x.shape, dtype=x.dtype, generator=numbers) for x in inputs] for _ in range(2))

    def product(direction):
        found = torch.autograd.grad(gradient, inputs, direction, retain_graph=True, allow_unused=True)
        return [torch.zeros_like(x) if g is None else g for x, g in zip(inputs, found, strict=True)]

    one, two = (sum(_inner(a, b) for a, b in zip(x, product(y), strict=True)) for x, y in ((u, v), (v, u)))
    size = (1.0 + size_of(case)) ** 3 * (1.0 + case.core.lipschitz) ** 2 * (1.0 + case.span) ** 2 * case.growth**3
    weight = sum(x.abs().sum().item() for x in u) * sum(x.abs().sum().item() for x in v)
    assert abs(one - two) <= rounding(case, sol.stats.forward.accepted, 6.0 * size * weight, algorithm)
