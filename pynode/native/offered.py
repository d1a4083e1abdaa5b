"""Which algorithms and sensitivity algorithms go together in the native solver."""

from __future__ import annotations

from pynode.algorithms import (
    FBDF,
    Algorithm,
    AutoSwitch,
    Exponential,
    Implicit,
    Reversible,
    Symplectic,
)
from pynode.native.methods import known
from pynode.native.reversible import REVERSIBLE
from pynode.native.splittings import SPLITTINGS
from pynode.sensealg import (
    ContinuousAdjoint,
    ForwardSensitivity,
    GaussAdjoint,
    QuadratureAdjoint,
    ReversibleAdjoint,
    SensitivityAlgorithm,
)


def missing(algorithm: Algorithm, sensealg: SensitivityAlgorithm) -> str | None:
    """None, or a clause saying what is not offered."""
    if not known(algorithm):
        return f"the algorithm {algorithm.name}"
    if isinstance(sensealg, ReversibleAdjoint):
        if not isinstance(algorithm, Reversible | Symplectic):
            return (
                f"ReversibleAdjoint with {algorithm.name}, which cannot be run backward: only "
                f"{', '.join(REVERSIBLE)} and the symplectic {', '.join(SPLITTINGS)} can"
            )
        if algorithm.perturb:
            return f"ReversibleAdjoint with {algorithm.name}(perturb=True), which begins anew with every step"
    if isinstance(algorithm, Symplectic) and isinstance(sensealg, ForwardSensitivity):
        return f"ForwardSensitivity with {algorithm.name}, for whose halves the sensitivities are no pair (q, p)"
    if isinstance(algorithm, Exponential) and isinstance(sensealg, ForwardSensitivity):
        return f"ForwardSensitivity with {algorithm.name}, for which the sensitivities have no linear part"
    if isinstance(algorithm, Implicit | FBDF | AutoSwitch) and isinstance(sensealg, ForwardSensitivity):
        return (
            f"ForwardSensitivity with {algorithm.name}, whose Newton iteration would need second derivatives of f "
            "(CheckpointedAdjoint() is exact, too)"
        )
    if isinstance(sensealg, ContinuousAdjoint):
        back = sensealg.algorithm or algorithm
        if isinstance(back, Exponential):
            return (
                f"{sensealg.name} integrated backward by {back.name}, as its adjoint has no linear part "
                f"({sensealg.name}(algorithm=Tsit5()) goes back by another method)"
            )
        if isinstance(back, Symplectic):
            return (
                f"{sensealg.name} integrated backward by {back.name}, as its adjoint is no pair (q, p) "
                f"({sensealg.name}(algorithm=Tsit5()) goes back by another one)"
            )
        hard = isinstance(back, Implicit | FBDF | AutoSwitch)
        if hard and not isinstance(sensealg, GaussAdjoint | QuadratureAdjoint):
            return (
                f"{sensealg.name} integrated backward by {back.name}: the Jacobian of all it integrates would be "
                f"that of second derivatives of f ({sensealg.name}(algorithm=Tsit5()) goes back by another method; "
                "GaussAdjoint() and QuadratureAdjoint() go back by this one)"
            )
    return None
