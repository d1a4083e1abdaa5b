"""Algorithms, controllers and sensitivity algorithms as the expressions of juliaenv/src/algorithms.jl."""

from __future__ import annotations

from typing import Any

from pynode.algorithms import (
    ALGORITHMS,
    FBDF,
    VCABM,
    Algorithm,
    AutoSwitch,
    Exponential,
    FixedAdams,
    JuliaAlgorithm,
    Reversible,
    Stabilized,
    Symplectic,
)
from pynode.controllers import IController, PIDController, PredictiveController
from pynode.errors import UnsupportedError, explain
from pynode.julia.runtime import Julia
from pynode.sensealg import (
    BacksolveAdjoint,
    GaussAdjoint,
    GaussKronrodAdjoint,
    InterpolatingAdjoint,
    QuadratureAdjoint,
    SensitivityAlgorithm,
)

#: Native algorithms that SciML calls otherwise, or has as a tableau only.
_OTHER = {"AdaptiveHeun": "Heun()"}
_TABLEAUS = ("RK38", "Fehlberg2", "Heun3")


def known(algorithm: Algorithm) -> bool:
    """Whether SciML has the algorithm."""
    if isinstance(algorithm, JuliaAlgorithm):
        return True
    if isinstance(algorithm, AutoSwitch):
        return known(algorithm.nonstiff) and known(algorithm.stiff)
    if isinstance(algorithm, VCABM) and algorithm != VCABM():  # its highest order is no option there
        return False
    return algorithm.name in ALGORITHMS and not isinstance(
        algorithm, Reversible | Symplectic | FixedAdams | Exponential
    )


def number_of(engine: Julia, algorithm: Algorithm) -> int:
    """Julia's number of an algorithm."""
    if isinstance(algorithm, JuliaAlgorithm):
        return engine.named(algorithm.expression) if algorithm.expression else engine.held(algorithm.object)
    return engine.named(expression_of(algorithm))


def expression_of(algorithm: Algorithm) -> str:
    """What one writes in Julia for an algorithm of pynode's.

    Raises
    ------
    UnsupportedError
        For an option that SciML's method does not have.
    """
    if algorithm.name in _TABLEAUS:
        return _tableau(algorithm.name)
    if isinstance(algorithm, AutoSwitch):
        return _auto_switch(algorithm)
    if isinstance(algorithm, Stabilized):
        return f"{algorithm.name}({_stages(algorithm)})"
    if isinstance(algorithm, FBDF):
        given = [f"max_order = Val({algorithm.max_order})"] if algorithm.max_order != FBDF().max_order else []
        given += ["linsolve = KrylovJL_GMRES()"] if algorithm.linsolve == "gmres" else []
        return f"FBDF({', '.join(given)})"
    options = "linsolve = KrylovJL_GMRES()" if getattr(algorithm, "linsolve", "") == "gmres" else ""
    return _OTHER.get(algorithm.name, f"{algorithm.name}({options})")


#: Those that SciML has a pair for: ``AutoTsit5(stiff; options)``.
_PAIRED = ("Tsit5", "DP5", "Vern7", "Vern9")


def _auto_switch(algorithm: AutoSwitch) -> str:
    name = algorithm.nonstiff.name
    if name not in _PAIRED:
        raise UnsupportedError(
            explain(
                f"AutoSwitch(nonstiff={name}()) on the Julia backend",
                f"one of {', '.join(_PAIRED)}",
                "use AutoTsit5(Rosenbrock23()), or backend='torch'",
            )
        )
    parts = [f"maxstiffstep = {algorithm.maxstiffstep}", f"maxnonstiffstep = {algorithm.maxnonstiffstep}"]
    parts += [f"nonstifftol = {algorithm.nonstifftol}", f"stifftol = {algorithm.stifftol}"]
    parts.append(f"stiffalgfirst = {str(algorithm.stiffalgfirst).lower()}")
    return f"Auto{name}({expression_of(algorithm.stiff)}; {', '.join(parts)})"


def _stages(algorithm: Stabilized) -> str:
    given = {key: getattr(algorithm, key) for key in ("min_stages", "max_stages", "eigen_est")}
    given = {key: value for key, value in given.items() if value is not None}
    if "eigen_est" in given or (given and algorithm.name == "RKC"):
        raise UnsupportedError(
            explain(
                f"{algorithm.name}({', '.join(given)}) on the Julia backend",
                "RKC(), or ROCK2 and ROCK4 with min_stages and max_stages alone",
                "drop these options, or use backend='torch'",
            )
        )
    return ", ".join(f"{key} = {value}" for key, value in given.items())


def _tableau(name: str) -> str:
    from pynode.native.tableaus import TABLEAUS

    tableau = TABLEAUS[name]
    stages = len(tableau.b)
    rows = [[*row, *[0.0] * (stages - len(row))] for row in tableau.a]
    matrix = "; ".join(" ".join(repr(float(x)) for x in row) for row in rows)

    def vector(values: Any) -> str:
        return "Float64[" + ", ".join(repr(float(x)) for x in values) + "]"

    error = tableau.b_error or ()
    arguments = [f"Float64[{matrix}]", vector(tableau.b), vector(tableau.c), vector(error)]
    return f"tableau({', '.join(arguments)}, {tableau.order}, {tableau.order - 1})"


def controller_number(engine: Julia, controller: PIDController) -> int:
    """Julia's number of a step-size controller; 0, each algorithm's own choice, for pynode's default ones.

    SciML writes the exponents of the last three errors.
    """
    if controller in (IController(), PredictiveController()):
        return 0
    p, i, d = controller.pcoeff, controller.icoeff, controller.dcoeff
    betas = f"{p + i + d}, {-(p + 2 * d)}, {d}"
    bounds = f"gamma = {controller.safety}, qmin = {controller.factormin}, qmax = {controller.factormax}"
    return engine.named(f"PIDController({betas}; {bounds})")


def sensealg_expression(sensealg: SensitivityAlgorithm, rtol: float, atol: float) -> str:
    """A sensitivity algorithm as SciML's; the products are ours, whatever ``autojacvec`` says.

    ``rtol``, ``atol``: tolerances of a quadrature that has none of its own.
    """
    options = ["autojacvec = ZygoteVJP()"]
    if isinstance(sensealg, InterpolatingAdjoint | GaussAdjoint) and sensealg.checkpointing:
        options.append("checkpointing = true")
    if isinstance(sensealg, QuadratureAdjoint):
        rtol = rtol if sensealg.quadrature_rtol is None else sensealg.quadrature_rtol
        atol = atol if sensealg.quadrature_atol is None else sensealg.quadrature_atol
        options += [f"reltol = {rtol!r}", f"abstol = {atol!r}"]
    assert isinstance(
        sensealg, BacksolveAdjoint | InterpolatingAdjoint | QuadratureAdjoint | GaussAdjoint | GaussKronrodAdjoint
    )
    return f"{sensealg.name}({', '.join(options)})"
