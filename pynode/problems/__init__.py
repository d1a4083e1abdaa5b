"""Built-in problems with known answers, for tests, benchmarks, ``pynode crosscheck`` and a first look at a method.

Every field is a ``torch.nn.Module`` whose physical parameters are ``nn.Parameter``s. Those given by a formula are
written once for torch and for ``jax.numpy`` (``xp`` below), so that diffrax can solve the same problem; neither jax nor
anything else beside torch is imported here.

``PROBLEMS`` are those that gradients and other libraries are checked on; ``DETEST`` and ``STIFF`` are the public test
sets of solvers, over their full spans. ``problem_from_name`` knows all of them. ``Formula`` and ``Exact`` are the types
of a problem's field and of its analytic solution.

Examples
--------
>>> problem = pynode.problems.PROBLEMS["lotka-volterra"].build(dtype=torch.float64, seed=0)
>>> sol = pynode.solve(problem.field, problem.y0, problem.t, rtol=1e-6, atol=1e-8)
>>> problem.loss(sol.ys).backward()
>>> len(pynode.problems.DETEST), len(pynode.problems.STIFF)
(25, ...)
>>> rotation: pynode.problems.Formula = lambda xp, t, y, p: xp.stack([y[1], -y[0]])
>>> pynode.solve(pynode.problems.FormulaField(rotation), torch.eye(2)[0], [0.0, 1.0]).ys.shape
torch.Size([2, 2])
>>> end = pynode.problems.PROBLEMS["harmonic"]  # .exact, an Exact, is there where the solution is known
>>> end.exact is not None
True
"""

from __future__ import annotations

from pynode.errors import InputError, explain
from pynode.problems.classic import (
    HARMONIC,
    LINEAR,
    LORENZ,
    LOTKA_VOLTERRA,
    ROBERTSON,
    VAN_DER_POL,
    VAN_DER_POL_STIFF,
)
from pynode.problems.detest import DETEST
from pynode.problems.formula import Formula, FormulaField
from pynode.problems.grids import BRUSSELATOR_1D, BRUSSELATOR_2D, HEAT
from pynode.problems.networks import CDE, SPIRAL, ControlledField, Perceptron, initialise, spiral_start
from pynode.problems.problem import PROBLEMS, Exact, Instance, Problem, WeightedLoss, given
from pynode.problems.stiff import STIFF

__all__ = [
    "DETEST",
    "PROBLEMS",
    "STIFF",
    "ControlledField",
    "Exact",
    "Formula",
    "FormulaField",
    "Instance",
    "Perceptron",
    "Problem",
    "WeightedLoss",
    "given",
    "initialise",
    "problem_from_name",
    "spiral_start",
]

_ALL = (
    *(LINEAR, HARMONIC, LOTKA_VOLTERRA, SPIRAL, VAN_DER_POL, VAN_DER_POL_STIFF, ROBERTSON, LORENZ),
    *(HEAT, BRUSSELATOR_1D, BRUSSELATOR_2D, CDE),
)

PROBLEMS.update({problem.name: problem for problem in _ALL})


def problem_from_name(name: str) -> Problem:
    """The problem called ``name``, of ``PROBLEMS``, ``DETEST`` or ``STIFF``.

    Raises
    ------
    InputError
        If there is none; the message lists them.

    Examples
    --------
    >>> pynode.problems.problem_from_name("B5").name
    'B5'
    >>> try:
    ...     pynode.problems.problem_from_name("lotka")
    ... except pynode.InputError as error:
    ...     print(error)
    unknown problem 'lotka'. Expected: one of linear, harmonic, lotka-volterra, spiral, vanderpol, ...
    """
    known = {**PROBLEMS, **STIFF, **DETEST}
    if name not in known:
        raise InputError(explain(f"unknown problem {name!r}", f"one of {', '.join(known)}", "choose one of them"))
    return known[name]
