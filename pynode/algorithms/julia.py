"""Algorithms that only SciML has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pynode.algorithms.base import Algorithm
from pynode.errors import InputError, explain


@dataclass(frozen=True)
class JuliaAlgorithm(Algorithm):
    """An algorithm of OrdinaryDiffEq.jl, for ``backend="julia"``.

    Parameters
    ----------
    expression : str
        What one writes in Julia: ``"Rodas5P"``, ``"AutoTsit5(Rosenbrock23())"``,
        ``"TRBDF2(linsolve = KrylovJL_GMRES())"``. A name alone is called without arguments.
    object : optional
        Instead, an algorithm object of diffeqpy (``de.Rodas5P()``) or juliacall.

    Notes
    -----
    Names of https://docs.sciml.ai/DiffEqDocs/stable/solvers/ode_solve/.

    Examples
    --------
    >>> pynode.JuliaAlgorithm("TRBDF2(linsolve = KrylovJL_GMRES())").expression
    'TRBDF2(linsolve = KrylovJL_GMRES())'
    """

    expression: str = ""
    object: Any = None

    def __post_init__(self) -> None:
        if bool(self.expression) == (self.object is not None) or not isinstance(self.expression, str):
            raise InputError(
                explain(
                    f"JuliaAlgorithm(expression={self.expression!r}, object={self.object!r})",
                    "an expression, or an object of diffeqpy",
                    "write JuliaAlgorithm('Rodas5P') or JuliaAlgorithm(object=de.Rodas5P())",
                )
            )

    @property
    def name(self) -> str:
        return self.expression or str(self.object).partition("(")[0].partition("{")[0]
