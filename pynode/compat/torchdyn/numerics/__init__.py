"""torchdyn.numerics."""

from pynode.compat.torchdyn.numerics.integrate import (
    odeint,
    odeint_hybrid,
    odeint_mshooting,
    odeint_symplectic,
    sdeint,
)
from pynode.compat.torchdyn.numerics.solvers import (
    AsynchronousLeapfrog,
    DormandPrince45,
    Euler,
    HyperEuler,
    HyperMidpoint,
    HyperRungeKutta4,
    ImplicitEuler,
    Midpoint,
    MSBackward,
    MSZero,
    RungeKutta4,
    Tsitouras45,
)
from pynode.compat.torchdyn.numerics.systems import Lorenz, VanDerPol

__all__ = [
    "AsynchronousLeapfrog",
    "DormandPrince45",
    "Euler",
    "HyperEuler",
    "HyperMidpoint",
    "HyperRungeKutta4",
    "ImplicitEuler",
    "Lorenz",
    "MSBackward",
    "MSZero",
    "Midpoint",
    "RungeKutta4",
    "Tsitouras45",
    "VanDerPol",
    "odeint",
    "odeint_hybrid",
    "odeint_mshooting",
    "odeint_symplectic",
    "sdeint",
]
