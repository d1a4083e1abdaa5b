"""Which stepper runs an algorithm: the one place where the native solver knows methods by name.

To add a family of methods: a class of algorithms in :mod:`pynode.algorithms`, a stepper
(:class:`pynode.native.stepper.Stepper`) in a file of its own, and one entry in ``FAMILIES`` here.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Container
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pynode.algorithms import (
    FBDF,
    VCABM,
    Algorithm,
    AutoSwitch,
    Exponential,
    FixedAdams,
    FixedImplicit,
    FixedStep,
    Implicit,
    Multistep,
    RadauIIA,
    Reversible,
    Rosenbrock,
    Stabilized,
    Symplectic,
)
from pynode.algorithms.implicit import SDIRK as SDIRKMethod
from pynode.errors import UnsupportedError, explain
from pynode.native.adams import ADAMS, Adams
from pynode.native.adjoints.backward import Against
from pynode.native.auto_switch import AutoSwitch as AutoSwitchStepper
from pynode.native.bdf import BDF, PAST
from pynode.native.chebyshev import SCHEMES
from pynode.native.exponential import ETDRK4
from pynode.native.fixed_adams import FIXED_ADAMS
from pynode.native.fixed_implicit import FixedImplicit as FixedImplicitStepper
from pynode.native.fixed_implicit_tableaus import SCHEME_TABLEAUS
from pynode.native.implicit import Settings
from pynode.native.implicit_tableaus import IMPLICIT_TABLEAUS
from pynode.native.metered import Metered
from pynode.native.radau import Radau
from pynode.native.reversible import REVERSIBLE
from pynode.native.rosenbrock import Rosenbrock as RosenbrockStepper
from pynode.native.rosenbrock_tableaus import ROSENBROCK
from pynode.native.runge_kutta import RungeKutta, TapedRungeKutta
from pynode.native.sdirk import SDIRK
from pynode.native.splittings import SPLITTINGS
from pynode.native.stability import check_twins
from pynode.native.stabilized import Stabilized as StabilizedStepper
from pynode.native.stepper import Stepper
from pynode.native.symplectic import Symplectic as SymplecticStepper
from pynode.native.tableaus import TABLEAUS, Tableau
from pynode.native.vcabm import VCABM as VCABMStepper
from pynode.problem import Field
from pynode.sensealg import ContinuousAdjoint, DirectAdjoint
from pynode.transforms import transformed

if TYPE_CHECKING:
    from pynode.backends import Request


@dataclasses.dataclass(frozen=True)
class Family:
    """Methods that one stepper runs.

    Parameters
    ----------
    names : container of str
        Of the algorithms.
    make : callable
        ``make(algorithm, field, taped, request)``; ``taped``: autograd records what the stepper does.
    carries : callable
        ``carries(algorithm)``: the most vectors of the state's size that are carried from step to step.
    """

    names: Container[str]
    make: Callable[[Any, Field, bool, Request], Stepper]
    carries: Callable[[Any], int] = lambda algorithm: 0


def _auto_switch(algorithm: AutoSwitch, field: Field, taped: bool, request: Request) -> Stepper:
    stiff = family_of(algorithm.stiff)
    name = algorithm.nonstiff.name
    if name not in TABLEAUS or stiff is None:
        raise UnsupportedError(
            explain(
                f"AutoSwitch with {name} and {algorithm.stiff.name}",
                "an explicit Runge-Kutta method and an implicit one, of the torch backend",
                "use AutoTsit5(Rosenbrock23())",
            )
        )
    tableau = TABLEAUS[name]
    check_twins(name, tableau)
    explicit = (TapedRungeKutta if taped else RungeKutta)(tableau, field)
    return AutoSwitchStepper(algorithm, explicit, stiff.make(algorithm.stiff, field, taped, request), taped)


def settings_of(algorithm: Implicit | FBDF, field: Field, taped: bool, request: Request) -> Settings:
    """The settings of an implicit stepper: with the adjoint's tolerances where it is that which is integrated."""
    sensealg = request.sensealg
    rtol, atol = request.rtol, request.atol
    if isinstance(field, Against) and isinstance(sensealg, ContinuousAdjoint):
        rtol = rtol if sensealg.rtol is None else sensealg.rtol
        atol = atol if sensealg.atol is None else sensealg.atol
    # Where few states are kept a step must repeat from its state alone, and given steps have nothing to gain by it but
    # slower convergence to their tight tolerance.
    bounded = any(getattr(sensealg, option, None) for option in ("checkpoints", "max_memory", "checkpointing"))
    return Settings(
        rtol=_for_all(rtol, field.layout.size),
        atol=_for_all(atol, field.layout.size),
        fixed=not algorithm.adaptive,
        linsolve=algorithm.linsolve,
        reuse=algorithm.adaptive and not (request.differentiable and bounded),
        taped=taped,
        linear=getattr(algorithm, "interpolation", "") == "linear",
    )


def _for_all(tolerance: float | Tensor, size: int) -> float | Tensor:
    """A tolerance for all channels, from one that may be for the leading ones: the tightest for those behind."""
    if not isinstance(tolerance, Tensor) or tolerance.numel() in (1, size):
        return tolerance
    return torch.cat([tolerance.reshape(-1), tolerance.min().expand(size - tolerance.numel())])


#: Of all algorithms but the explicit Runge-Kutta methods, which have compiled and metered forms besides.
FAMILIES: dict[type[Algorithm], Family] = {
    Symplectic: Family(
        SPLITTINGS,
        lambda algorithm, field, taped, request: SymplecticStepper(
            SPLITTINGS[algorithm.name], field, algorithm.interpolation
        ),
    ),
    Reversible: Family(
        REVERSIBLE,
        lambda algorithm, field, taped, request: REVERSIBLE[algorithm.name](field, algorithm.interpolation),
        lambda algorithm: REVERSIBLE[algorithm.name].carries,
    ),
    Multistep: Family(
        ADAMS,
        lambda algorithm, field, taped, request: Adams(algorithm.name, field, algorithm.interpolation),
        lambda algorithm: ADAMS[algorithm.name][0] - 1,
    ),
    FixedAdams: Family(
        FIXED_ADAMS,
        lambda algorithm, field, taped, request: FIXED_ADAMS[algorithm.name](algorithm, field, request),
        lambda algorithm: max(algorithm.max_order - 2, 0),
    ),
    AutoSwitch: Family(("AutoSwitch",), _auto_switch, lambda algorithm: 1),
    FixedImplicit: Family(
        ("FixedImplicit",),
        lambda algorithm, field, taped, request: FixedImplicitStepper(
            SCHEME_TABLEAUS[algorithm.scheme], field, algorithm.interpolation, algorithm.max_iters, taped
        ),
    ),
    Rosenbrock: Family(ROSENBROCK, lambda algorithm, field, taped, request: RosenbrockStepper(algorithm, field, taped)),
    Stabilized: Family(
        SCHEMES,
        lambda algorithm, field, taped, request: StabilizedStepper(algorithm, field),
        lambda algorithm: 1 if algorithm.eigen_est is None else 0,
    ),
    SDIRKMethod: Family(
        IMPLICIT_TABLEAUS,
        lambda algorithm, field, taped, request: SDIRK(
            IMPLICIT_TABLEAUS[algorithm.name], field, settings_of(algorithm, field, taped, request)
        ),
        lambda algorithm: 1 + len(IMPLICIT_TABLEAUS[algorithm.name].c),
    ),
    Exponential: Family(
        ("ETDRK4",),
        lambda algorithm, field, taped, request: ETDRK4(field, algorithm.interpolation, taped),
    ),
    VCABM: Family(
        ("VCABM",),
        lambda algorithm, field, taped, request: VCABMStepper(algorithm.max_order, field),
        lambda algorithm: algorithm.max_order,
    ),
    FBDF: Family(
        ("FBDF",),
        lambda algorithm, field, taped, request: BDF(
            algorithm.max_order, field, settings_of(algorithm, field, taped, request)
        ),
        lambda algorithm: PAST + 1,
    ),
    RadauIIA: Family(
        ("RadauIIA5", "RadauIIA9"),
        lambda algorithm, field, taped, request: Radau(
            algorithm.stages, field, settings_of(algorithm, field, taped, request)
        ),
        lambda algorithm: 2 * algorithm.stages,
    ),
}


def family_of(algorithm: Algorithm) -> Family | None:
    """The family of an algorithm; None for an explicit Runge-Kutta method."""
    kind: Any = type(algorithm)
    return _family_of(kind)


@functools.lru_cache(maxsize=256)
def _family_of(kind: type[Any]) -> Family | None:
    return next((family for base, family in FAMILIES.items() if issubclass(kind, base)), None)


def carries(algorithm: Algorithm) -> int:
    """The most vectors that an algorithm carries, beside the state, from step to step."""
    family = family_of(algorithm)
    return 0 if family is None else family.carries(algorithm)


def known(algorithm: Algorithm) -> bool:
    """Whether the native solver has the algorithm."""
    family = family_of(algorithm)
    return algorithm.name in (TABLEAUS if family is None else family.names)


def stepper_of(algorithm: Algorithm, field: Field, request: Request, taped: bool, compiled: bool = True) -> Stepper:
    """A stepper for ``algorithm`` on ``field``.

    Parameters
    ----------
    taped : bool
        Autograd is to record what it does.
    compiled : bool
        False for an eager one whatever ``compile=`` says.

    Raises
    ------
    UnsupportedError
        For an option of the request that the method does not have.
    """
    family = family_of(algorithm)
    if family is not None:
        _refuse_options(algorithm, request)
        if isinstance(algorithm, Reversible) and request.compile and compiled and not isinstance(field, Against):
            from pynode.native.compiled_reversible import COMPILED  # torch's compiler

            return COMPILED[algorithm.name](field, algorithm.interpolation)
        return family.make(algorithm, field, taped, request)
    tableau = tableau_of(algorithm)
    if not (request.compile and compiled):
        return _metered((TapedRungeKutta if taped else RungeKutta)(tableau, field), request)
    from pynode.native import compiled as graphs  # torch's compiler

    if isinstance(field, Against):
        return graphs.CompiledAdjoint(tableau, field)
    if not taped:
        return graphs.CompiledRungeKutta(tableau, field)
    direct = isinstance(request.sensealg, DirectAdjoint)
    return (graphs.CompiledDirectRungeKutta if direct else graphs.CompiledTapedRungeKutta)(tableau, field)


def tableau_of(algorithm: Algorithm) -> Tableau:
    """The tableau of an explicit Runge-Kutta method, with the dense output the algorithm asks for."""
    tableau = TABLEAUS[algorithm.name]
    if isinstance(algorithm, FixedStep) and algorithm.interpolation == "linear":
        return dataclasses.replace(
            tableau, dense_c=(), dense_a=(), dense_b=tuple((weight,) for weight in tableau.b), dense_order=1
        )
    return tableau


def _metered(stepper: RungeKutta | TapedRungeKutta, request: Request) -> Stepper:
    """The stepper, adding to the channels that count steps, where there are such."""
    quantities = request.problem.quantities
    if not quantities:
        return stepper
    return Metered(stepper, quantities, request.problem.state_layout.size, request.rtol, request.atol)


def _refuse_options(algorithm: Algorithm, request: Request) -> None:
    if isinstance(algorithm, Implicit | FBDF | AutoSwitch) and transformed():
        raise UnsupportedError(
            explain(
                f"{algorithm.name} inside a torch.func transform or a dual level of torch.autograd.forward_ad",
                "an explicit method: the linear solves of implicit ones are differentiated by torch's tape alone",
                "use loss.backward() or torch.autograd.grad, a batch as part of the state, or an explicit method",
            )
        )
    if request.compile and not isinstance(algorithm, Reversible):
        raise UnsupportedError(
            explain(
                f"compile='step' with {algorithm.name}",
                "an explicit Runge-Kutta method, ReversibleHeun or AsynchronousLeapfrog",
                "drop compile=, or use Heun()",
            )
        )
    if request.problem.quantities:
        raise UnsupportedError(
            explain(
                f"a running cost of the solver's steps (LocalError, StiffnessEstimate) with {algorithm.name}",
                "an explicit Runge-Kutta method",
                "use algorithm=Tsit5(), or drop that cost",
            )
        )
